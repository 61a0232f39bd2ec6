"""Inception Score: exp of the mean divergence of a classifier's answers from their own average.

    IS = exp( E_x KL( p(y|x) || p(y) ) )

Salimans et al. (2016), "Improved Techniques for Training GANs", arXiv:1606.03498, Section 4. The samples are
shuffled and cut into 10 splits; the score is the mean over splits, its spread their population standard deviation,
as published. Logits of the published network have no bias and 1,008 classes. float64. Agrees with torch-fidelity
on the same logits. Range [1, K], higher is better. It sees neither real images nor variety within a class.
"""

import numpy as np
import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Uncertainty, Value, require_logits

SPLITS = 10
SHUFFLE_SEED = 2020  # torch-fidelity's; part of the protocol, so that one set of samples has one score


def inception_score(logits: Tensor, splits: int = SPLITS) -> Tensor:
    """The score of each of `splits` contiguous parts of N x K logits: float64, shape `splits`.

    Raises Unavailable for fewer samples than splits.
    """
    n = len(logits)
    if n < splits:
        raise Unavailable(f"{splits} splits need at least {splits} images, not {n}")
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    scores = []
    for i in range(splits):
        part = slice(i * n // splits, (i + 1) * n // splits)
        marginal = p[part].mean(0, keepdim=True)
        divergence = torch.where(p[part] > 0, p[part] * (log_p[part] - marginal.log()), 0.0).sum(1)
        scores.append(divergence.mean().exp())
    return torch.stack(scores)


def _compute(inputs: Inputs) -> list[Value]:
    logits = require_logits(inputs.fake)
    order = torch.from_numpy(np.random.RandomState(SHUFFLE_SEED).permutation(len(logits)))
    scores = inception_score(logits[order])
    spread = Uncertainty(scores.std(correction=0).item(), "standard deviation", f"{SPLITS} splits of the samples")
    warnings: tuple[str, ...] = ()
    if len(logits) < 5_000:
        warnings = (f"{len(logits):,} images in {SPLITS} splits: biased downwards, comparable only at equal counts",)
    return [Value(scores.mean().item(), spread, 0, len(logits), warnings=warnings)]


PROTOCOLS = [
    Protocol(
        stem="score",
        version=1,
        summary="Inception Score, 10 splits",
        source="Salimans et al. 2016, arXiv:1606.03498, Sec. 4",
        direction="higher",
        compute=_compute,
        needs=frozenset({"fake.logits"}),
        published=("inception_score", "inception-v3"),
    )
]
