"""AutoGAN's controller: a policy over architectures, the beam of the best, and the rules of the search.

Gong, Chang, Jiang, Wang 2019, arXiv:1908.03835; values of the official code. Each of the three stages has a new
controller, which draws the tokens of one more cell for an architecture of the beam, and goes on from the hidden state
that drew it.

Deviations from the code:
1. The gradient is that of J = E[score] + beta E[H], H the mean entropy of the tokens: REINFORCE for the score and for
   the entropies of later tokens, and the entropy's own derivative. The code keeps the entropy inside the advantage
   attached, which turns the sign of that derivative around.
2. The advantage is taken before the baseline moves; in the code afterwards, so that it is 0.9 of this one, which Adam
   does not see.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reference_models.autogan import choices

HIDDEN = 100
BASELINE_DECAY = 0.9
ENTROPY_WEIGHT = 1e-3  # beta

Arch = tuple[int, ...]


class Draw(NamedTuple):
    """n architectures; log p of their new tokens and the mean entropy of these in nats, n each; the hidden states."""

    archs: list[Arch]
    log_p: Tensor
    entropy: Tensor
    hidden: Tensor
    cell: Tensor


class Beam(NamedTuple):
    """The best architectures of the stages so far, best first, with their scores and hidden states, K x HIDDEN each."""

    archs: list[Arch]
    scores: list[float]
    hidden: Tensor
    cell: Tensor


EMPTY = Beam([()], [0.0], torch.zeros(1, HIDDEN), torch.zeros(1, HIDDEN))  # before the first stage


class Controller(nn.Module):
    """An LSTM that draws the tokens of cell `stage` one after the other, each from the softmax of its own linear layer.

    The first input is 0; later ones are embeddings of the token before. All layers start as PyTorch has it.
    """

    def __init__(self, stage: int):
        super().__init__()
        self.sizes = choices(stage)
        self.lstm = nn.LSTMCell(HIDDEN, HIDDEN)
        self.embedding = nn.Embedding(sum(self.sizes), HIDDEN)
        self.logits = nn.ModuleList(nn.Linear(HIDDEN, size) for size in self.sizes)

    def draw(self, n: int, beam: Beam) -> Draw:
        """Draw n architectures: one of the beam each, uniformly and with replacement, and the tokens of one more cell.

        The only source of randomness is torch's global generator.
        """
        rows = torch.randint(len(beam.archs), (n,))
        log_p, entropy, tokens, (h, c) = self.unroll((beam.hidden[rows], beam.cell[rows]))
        archs = [(*beam.archs[row], *own) for row, own in zip(rows.tolist(), tokens.tolist(), strict=True)]
        return Draw(archs, log_p, entropy, h.detach(), c.detach())

    def unroll(
        self, state: tuple[Tensor, Tensor], given: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Return log p (n), mean entropy (n), tokens (int64 n x T) and the last state of n architectures.

        state: hidden and cell state, n x HIDDEN each. given: take these tokens instead of drawing.
        """
        x, log_ps, entropies, tokens = torch.zeros_like(state[0]), [], [], []
        for t, layer in enumerate(self.logits):
            state = self.lstm(x, state)
            log_p = layer(state[0]).log_softmax(1)
            token = log_p.detach().exp().multinomial(1) if given is None else given[:, t : t + 1]
            log_ps.append(log_p.gather(1, token))
            entropies.append(-(log_p * log_p.exp()).sum(1))
            tokens.append(token)
            x = self.embedding(token.squeeze(1) + sum(self.sizes[:t]))
        return torch.cat(log_ps, 1).sum(1), torch.stack(entropies, 1).mean(1), torch.cat(tokens, 1), state


class Uniform:
    """Draws every token uniformly: the policy of a random search."""

    def __init__(self, stage: int):
        self.sizes = choices(stage)

    def draw(self, n: int, beam: Beam) -> Draw:
        """Draw n architectures as `Controller.draw` does; their hidden states are 0."""
        rows = torch.randint(len(beam.archs), (n,)).tolist()
        tokens = torch.stack([torch.randint(size, (n,)) for size in self.sizes], 1).tolist()
        logs = torch.tensor(self.sizes).float().log()
        hidden = torch.zeros(n, HIDDEN)
        archs = [(*beam.archs[row], *own) for row, own in zip(rows, tokens, strict=True)]
        return Draw(archs, -logs.sum().expand(n), logs.mean().expand(n), hidden, hidden)


class Baseline:
    """Moving average of the rewards: b <- 0.9 b + 0.1 r, from the first reward on."""

    def __init__(self) -> None:
        self.value: float | None = None

    def advantage(self, reward: float) -> float:
        """Return r - b, 0 for the first reward, and then move b."""
        if self.value is None:
            self.value = reward
        advantage = reward - self.value
        self.value = BASELINE_DECAY * self.value + (1 - BASELINE_DECAY) * reward
        return advantage


def policy_loss(log_p: Tensor, entropy: Tensor, advantage: float) -> Tensor:
    """-(A log p + beta H) of one architecture: its mean gradient is that of -J, whatever the baseline in A is.

    advantage: A = r - b, where the reward is r = score + beta H.
    """
    return -(advantage * log_p + ENTROPY_WEIGHT * entropy).sum()


def best(draws: Sequence[Draw], scores: Sequence[float], top: int) -> Beam:
    """Return the `top` architectures of the draws by score, in which one that was drawn twice may stand twice.

    scores: one for each architecture, in the order of the draws. The later one of equal scores comes first.
    """
    archs = [arch for draw in draws for arch in draw.archs]
    hidden, cell = torch.cat([d.hidden for d in draws]), torch.cat([d.cell for d in draws])
    order = sorted(range(len(archs)), key=lambda i: (scores[i], i), reverse=True)[:top]
    return Beam([archs[i] for i in order], [scores[i] for i in order], hidden[order], cell[order])


class ResetRule:
    """Dynamic reset: training has come to a stop if one of two windows of losses has hardly any variance.

    The windows hold the last `window` losses of G and of D. Nothing is decided before that of G is full. A decision to
    reset empties both.
    """

    def __init__(self, window: int, threshold: float):
        self.threshold = threshold
        self.g, self.d = deque[float](maxlen=window), deque[float](maxlen=window)

    def due(self) -> bool:
        """Return True if the shared weights must start anew."""
        full = len(self.g) == self.g.maxlen
        due = full and min(variance(self.g), variance(self.d)) < self.threshold
        if due:
            self.g.clear()
            self.d.clear()
        return due


def variance(values: Sequence[float]) -> float:
    """Population variance."""
    mean = sum(values) / len(values)
    return sum((v - mean) ** 2 for v in values) / len(values)
