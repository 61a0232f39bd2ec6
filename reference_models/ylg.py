"""YLG: SAGAN with local sparse attention in the place of dense attention.

"Your Local GAN: Designing Two Dimensional Local Attention Mechanisms for Generative Models",
Giannis Daras, Augustus Odena, Han Zhang, Alexandros G. Dimakis. CVPR 2020, arXiv:1911.12287.
Official code: https://github.com/giannisdaras/ylg (branch train; inversion: branch master, inverse_image.py).

Networks, losses and steps are those of `sagan.py`, and the attention layer alone differs: eight heads, of which each
has a mask that says which keys a query may attend to. Two masks are the two steps of one pattern. The code does more
than the paper's text says, and this file does as the code:
- keys and values are max-pooled 2 x 2, and the masks are those of the pooled grid. The queries, four times as many,
  take the masks in turn: query q, counted row by row, has the mask of key q mod N, which lies elsewhere in the image;
- the two steps are heads of one layer, side by side. Full information is a property of the two masks one after the
  other; in one layer no query sees all keys;
- the second step's mask has the last cell of all blocks, of later ones too;
- right to left is left to right in the reversed enumeration. It is not the transposed pattern;
- the loss of inversion takes D's features before the attention layer, and the first four heads, which are right to
  left.

Unconfirmed, because the text that could be read leaves it open: batch size, Adam's beta2, length, and the networks for
other sizes than 128 pixels, which are those of `sagan.py`. Layers of fewer than 64 channels cannot have eight heads:
`heads = 4` has each mask once.

Deviations from the paper and its code:
1. Running moments of batch norm have momentum 0.1; the code has 0.001 in the blocks and 0.0001 in the last layer.
2. Spectral norm moves u in G's step too; the code moves D's u with real images alone. torch's u moves before v.
3. The code draws u at random; here fifteen power iterations on the first weights precede training.
4. Only the logits that a mask allows are computed. The code computes all and adds -1000 to the others, whose softmax is
   then 0 in float32: the values are the same.
5. The loss of inversion is a sum of norms for each image. The code takes one norm over all restarts together, so that
   the restarts weigh each other's gradients.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ganbench.gan import GAN, Batch, minimize
from reference_models.layers import (
    ConditionalBatchNorm,
    DownBlock,
    FirstDownBlock,
    UpBlock,
    conv3,
    spectral_norm,
    xavier_start,
)

# Channels by image size, in multiples of a width: of G at 4 x 4 and after each doubling, and of D after each block.
G_WIDTHS = {32: (1, 1, 1, 1), 64: (16, 8, 4, 2, 1), 128: (16, 16, 8, 4, 2, 1)}
D_WIDTHS = {32: (1, 1, 1, 1), 64: (1, 2, 4, 8, 16), 128: (1, 2, 4, 8, 16, 16)}
HALVINGS = {32: 2, 64: 5, 128: 5}  # the first blocks of D halve, the others keep the size


def sides_of_g(size: int) -> list[int]:
    """Side of the maps after each block of G."""
    return [8 << i for i in range(len(G_WIDTHS[size]) - 1)]


def sides_of_d(size: int) -> list[int]:
    """Side of the maps after each block of D."""
    return [size >> min(i, HALVINGS[size]) for i in range(1, len(D_WIDTHS[size]) + 1)]


# --- Local sparse attention ---


def manhattan(side: int) -> Tensor:
    """Cells of a grid in the order of their Manhattan distance to the corner (0, 0), those of one distance by row.

    Returns int64 N = side^2, a cell being its number row by row. ESA (enumerate, shift, apply) applies masks for a line
    in this order, so that neighbours on the line are near each other in the image.

    >>> manhattan(3).tolist()
    [0, 1, 3, 2, 4, 6, 5, 7, 8]
    """
    cells = sorted(range(side**2), key=lambda cell: (cell // side + cell % side, cell))
    return torch.tensor(cells)


def masks(side: int) -> Tensor:
    """The four masks of a grid: bool 4 x N x N, True where query i may attend to key j.

    On a line of blocks of `side` cells: step 1 is the own block up to the own cell, step 2 the last cell of each block
    and the own cell. In this order: right to left, step 1 and 2; left to right, step 1 and 2.
    """
    t, u = torch.arange(side**2)[:, None], torch.arange(side**2)
    steps = torch.stack([(t // side == u // side) & (u <= t), (u % side == side - 1) | (u == t)])
    order = manhattan(side)
    return torch.cat([steps[:, n][:, :, n] for n in (order.flip(0).argsort(), order.argsort())])


class LocalAttention(nn.Module):
    """h + gamma W_o a, where each head's a_i sums over the keys j that its mask allows: softmax_j(theta_i^T phi_j) g_j.

    theta, phi (C / 8 channels), g (C / 2) and W_o are 1 x 1 convolutions without biases; each head has its part of the
    channels. phi and g are max-pooled 2 x 2. The first half of the heads is right to left, the other left to right; of
    each two heads one has step 1's mask and one step 2's. gamma starts at 0.
    """

    keys: Tensor
    queries: Tensor
    back: Tensor
    outside: Tensor
    special: Tensor

    def __init__(self, width: int, side: int, heads: int):
        super().__init__()
        if heads < 4 or heads % 4 or width % (8 * heads):
            raise ValueError(f"heads must be a multiple of 4 of which width / 8 is one: {heads} heads, width {width}")
        self.theta = nn.Conv2d(width, width // 8, 1, bias=False)
        self.phi = nn.Conv2d(width, width // 8, 1, bias=False)
        self.g = nn.Conv2d(width, width // 2, 1, bias=False)
        self.out = nn.Conv2d(width // 2, width, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))
        self.pool, self.side, self.heads = nn.MaxPool2d(2), side // 2, heads
        s, n, half = self.side, self.side**2, heads // 4
        order = manhattan(s)
        queries = (order[:, None] + n * torch.arange(4)).flatten()  # the four queries of a key's mask in turn
        after, last = torch.ones(s, s, dtype=torch.bool).triu(1), torch.arange(n) % s == s - 1
        for name, value in {
            "keys": order, "queries": queries, "back": queries.argsort(),
            "outside": torch.stack([after.T] * half + [after] * half)[:, None].repeat_interleave(4, 2),
            "special": torch.stack([last.flip(0)] * half + [last] * half)[:, :, None].repeat_interleave(4, 1),
        }.items():
            self.register_buffer(name, value, persistent=False)

    def by_head(self, maps: Tensor) -> Tensor:
        """B x C x n pixels to B x heads / 2 x 2 x n x C / heads: heads with step 1's mask, and with step 2's."""
        return maps.unflatten(1, (self.heads // 2, 2, -1)).mT

    def attention(self, h: Tensor) -> Tensor:
        """All weights, those that are masked too: B x heads x HW x N, by the masks' definition."""
        q, k = self.by_head(self.theta(h).flatten(2)), self.by_head(self.pool(self.phi(h)).flatten(2))
        allowed = masks(self.side).repeat(1, 4, 1).to(h.device).unflatten(0, (2, 1, 2))
        allowed = allowed.expand(-1, self.heads // 4, -1, -1, -1).flatten(0, 1)
        return (q @ k.mT).masked_fill(~allowed, -torch.inf).softmax(-1).flatten(1, 2)

    def forward(self, h: Tensor) -> Tensor:
        s, half = self.side, self.heads // 4
        q = self.by_head(self.theta(h).flatten(2)[:, :, self.queries])  # B x . x 2 x HW x C / heads in ESA's order
        k, v = (self.by_head(self.pool(f(h)).flatten(2)[:, :, self.keys]) for f in (self.phi, self.g))
        # Step 1: a query attends to the keys of its block, up to its own or from its own on.
        in_blocks = [m[:, :, 0].unflatten(2, (s, -1)) for m in (q, k, v)]
        weights = (in_blocks[0] @ in_blocks[1].mT).masked_fill(self.outside, -torch.inf).softmax(-1)
        step1 = (weights @ in_blocks[2]).flatten(2, 3)
        # Step 2: it attends to the last or first key of every block, and to its own where that is no such key.
        q, k, v = q[:, :, 1], k[:, :, 1], v[:, :, 1]
        k_special, v_special = (torch.cat([m[:, :half, ::s], m[:, half:, s - 1 :: s]], 1) for m in (k, v))
        own = (q * k.repeat_interleave(4, 2)).sum(-1, keepdim=True).masked_fill(self.special, -torch.inf)
        weights = torch.cat([q @ k_special.mT, own], -1).softmax(-1)
        step2 = weights[..., :-1] @ v_special + weights[..., -1:] * v.repeat_interleave(4, 2)
        a = torch.stack([step1, step2], 2).mT.flatten(1, 3)[:, :, self.back]  # B x C/2 x HW
        return h + self.gamma * self.out(a.unflatten(2, h.shape[2:]))


def after_each_block(widths: list[int], sides: list[int], attention: int, heads: int) -> nn.ModuleList:
    """The layer after each block of a network: attention after the first block of side `attention`, else nothing."""
    place = sides.index(attention)
    return nn.ModuleList(
        LocalAttention(width, attention, heads) if i == place else nn.Identity() for i, width in enumerate(widths)
    )


# --- Networks ---


class Generator(nn.Module):
    """z, y -> 4x4 -> ... -> SxS by residual blocks with conditional batch norm; attention after one of them."""

    def __init__(self, size: int, channels: int, classes: int, latent_dim: int, width: int, attention: int, heads: int):
        super().__init__()
        widths = [width * k for k in G_WIDTHS[size]]
        self.classes = classes
        self.project = nn.Linear(latent_dim, widths[0] * 16)
        self.blocks = nn.ModuleList(UpBlock(cin, cout, classes) for cin, cout in pairwise(widths))
        self.after = after_each_block(widths[1:], sides_of_g(size), attention, heads)
        self.norm, self.out = nn.BatchNorm2d(widths[-1]), conv3(widths[-1], channels)
        norms = [m for m in self.modules() if isinstance(m, ConditionalBatchNorm)]
        tables = [table for m in norms for table in (m.gain, m.shift)]
        xavier_start(self, but=tables)
        spectral_norm(self, but=tables)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        c = F.one_hot(y, self.classes).to(z)
        h = self.project(z).unflatten(1, (-1, 4, 4))
        for block, after in zip(self.blocks, self.after, strict=True):
            h = after(block(h, c))
        return torch.tanh(self.out(F.relu(self.norm(h)))).float()


class Discriminator(nn.Module):
    """x, y -> logit: residual blocks, attention after one of them, the sum over pixels h, w^T h + b + v_y^T h."""

    def __init__(self, size: int, channels: int, classes: int, width: int, attention: int, heads: int):
        super().__init__()
        widths = [width * k for k in D_WIDTHS[size]]
        blocks: list[nn.Module] = [FirstDownBlock(channels, widths[0])]
        for i, (cin, cout) in enumerate(pairwise(widths), start=1):
            blocks.append(DownBlock(cin, cout, down=i < HALVINGS[size], hidden=cout))
        self.blocks = nn.ModuleList(blocks)
        self.after = after_each_block(widths, sides_of_d(size), attention, heads)
        self.logit, self.embed = nn.Linear(widths[-1], 1), nn.Embedding(classes, widths[-1])
        xavier_start(self)
        spectral_norm(self)

    def before_attention(self, x: Tensor) -> tuple[Tensor, LocalAttention]:
        """D's features that the attention layer takes, N x C x H x W, and this layer."""
        h = x
        for block, after in zip(self.blocks, self.after, strict=True):
            h = block(h)
            if isinstance(after, LocalAttention):
                return h, after
        raise AssertionError("every D has attention")

    def features(self, x: Tensor) -> Tensor:
        """h, N x C in float32."""
        h = x
        for block, after in zip(self.blocks, self.after, strict=True):
            h = after(block(h))
        return F.relu(h).float().sum((2, 3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.features(x)
        with torch.autocast(x.device.type, enabled=False):  # the hinge's margin needs more digits than bfloat16 has
            return self.logit(h).squeeze(1) + (self.embed(y) * h).sum(1)  # N


# --- The model ---


class YLG(GAN):
    """YLG-SAGAN (Daras, Odena, Zhang, Dimakis, 2020).

    image_size: 32, 64 or 128. g_width, d_width: channels at the image (at 32 pixels, of all blocks). attention: side of
    the maps with attention in G and D. heads: of each attention layer; half of them are right to left. n_critic:
    updates of D for each of G, which share a batch; G's batch is as large as one of D's.
    """

    def __init__(
        self, image_size: int = 32, channels: int = 3, num_classes: int = 10, latent_dim: int = 128,
        g_width: int = 256, d_width: int = 128, attention: int = 16, heads: int = 8, n_critic: int = 1,
        g_lr: float = 1e-4, d_lr: float = 4e-4, beta1: float = 0.0, beta2: float = 0.9,
    ):
        super().__init__()
        if image_size not in G_WIDTHS:
            raise ValueError(f"image_size must be one of {', '.join(map(str, G_WIDTHS))}, not {image_size}")
        if attention not in (places := sorted({*sides_of_g(image_size)} & {*sides_of_d(image_size)})):
            raise ValueError(f"attention must be one of {', '.join(map(str, places))}, not {attention}")
        if min(num_classes, n_critic) < 1:
            raise ValueError("num_classes and n_critic must be at least 1")
        self.image_shape, self.num_classes = (channels, image_size, image_size), num_classes
        self.latent_dim, self.n_critic = latent_dim, n_critic
        self.g_lr, self.d_lr, self.betas = g_lr, d_lr, (beta1, beta2)
        self.G = Generator(image_size, channels, num_classes, latent_dim, g_width, attention, heads)
        self.D = Discriminator(image_size, channels, num_classes, d_width, attention, heads)

    def d_loss(self, real_logit: Tensor, fake_logit: Tensor) -> Tensor:
        """L_D = E max(0, 1 - D(x, y)) + E max(0, 1 + D(G(z), y)), the hinge loss   (Equation 4)"""
        return F.relu(1 - real_logit).mean() + F.relu(1 + fake_logit).mean()

    def g_loss(self, fake_logit: Tensor) -> Tensor:
        """L_G = -E D(G(z), y)   (Equation 4)"""
        return -fake_logit.mean()

    def optimizers(self) -> dict[str, Optimizer]:
        """Two time scales: D learns four times as fast as G (Section 4)."""
        return {
            "D": Adam(self.D.parameters(), self.d_lr, betas=self.betas),
            "G": Adam(self.G.parameters(), self.g_lr, betas=self.betas),
        }

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        if batch.y is None:
            raise ValueError("YLG needs labels")
        for x, y in zip(batch.x.tensor_split(self.n_critic), batch.y.tensor_split(self.n_critic), strict=True):
            z, c = self.draw(x)
            with torch.no_grad():
                fake = self.G(z, c)
            real_logit, fake_logit = self.D(torch.cat([x, fake]), torch.cat([y, c])).split(len(x))
            d_loss = minimize(self.d_loss(real_logit, fake_logit), opt["D"])
        z, c = self.draw(x)
        g_loss = minimize(self.g_loss(self.D(self.G(z, c), c)), opt["G"])
        return {"d_loss": d_loss, "g_loss": g_loss}

    def draw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z ~ N(0, I), and classes drawn uniformly: as many as the images x, on their device."""
        return self.sample_latent(len(x)).to(x), torch.randint(self.num_classes, (len(x),), device=x.device)

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ N(0, I)"""
        return torch.randn(n, self.latent_dim, generator=generator)

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Images of the classes `y`; without them the classes are drawn uniformly."""
        c = torch.randint(self.num_classes, (n,), generator=generator) if y is None else y
        return self.generate(self.sample_latent(n, generator).to(self.device), c.to(self.device))

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z, y)"""
        if y is None:
            raise ValueError("YLG needs labels")
        return self.G(z, y)

    def discriminator_features(self, x: Tensor) -> Tensor:
        """D's features before the class is seen: the sums over pixels h, N x C."""
        return self.D.features(x)

    def inversion_loss(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Sum over heads of |(D_0(G(z)) - D_0(x)) S|, D_0 being D's features before attention (Section 5).

        S says how much attention each pixel of x receives: the mean of the weights above 0 that its key has, in the
        first half of the heads. x: real images. Returns a function of as many images G(z), which gives float N.
        """
        with torch.no_grad():
            real, layer = self.D.before_attention(x)
            weights = layer.attention(real)[:, : layer.heads // 2]
            received = weights.sum(2) / weights.count_nonzero(2).clamp(min=1)  # N x heads / 2 x keys
            saliency = F.interpolate(received.unflatten(2, (layer.side, -1)), size=real.shape[2:], mode="nearest")

        def loss(fake: Tensor) -> Tensor:
            difference = self.D.before_attention(fake)[0] - real
            return torch.linalg.vector_norm(difference[:, None] * saliency[:, :, None], dim=(2, 3, 4)).sum(1)

        return loss
