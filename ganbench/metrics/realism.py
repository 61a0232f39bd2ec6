"""Realism: the formula of the Inception Score over a classifier of the domain, for instance of faces.

    realism = exp( E_x KL( p(y|x) || p(y) ) ),   p(y) = E_x p(y|x)

Bao et al. (2017), "CVAE-GAN: Fine-Grained Image Generation through Asymmetric Training", arXiv:1703.10155, Table 1:
53,000 samples and a network trained on another set of faces. The paper gives no spread, so that all samples are taken
at once, without the ten splits of `score`: our reading. Its other column, top-1 accuracy, is `discriminability`. Equals
`inception_score` of one split. Range [1, K], higher is better; it rises with variety as with realism, and is biased
downwards for few samples. float64.

The standard error is over the samples by the delta method: to first order log realism is the mean of the divergences,
since p(y) minimises their sum.
"""

import math

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Uncertainty, Value, require_logits


def realism(logits: Tensor) -> tuple[float, float]:
    """The score of N x K logits, and its standard error. Raises Unavailable for fewer than two samples."""
    n = len(logits)
    if n < 2:
        raise Unavailable(f"a mean of answers needs at least 2 images, not {n}")
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    divergences = torch.where(p > 0, p * (log_p - p.mean(0).log()), 0.0).sum(1)
    score = divergences.mean().exp().item()
    return score, score * divergences.std().item() / math.sqrt(n)


def _compute(inputs: Inputs) -> list[Value]:
    logits = require_logits(inputs.fake)
    value, error = realism(logits)
    uncertainty = Uncertainty(error, "standard error", "the samples (delta method)")
    return [Value(value, uncertainty, 0, len(logits))]


PROTOCOLS = [
    Protocol(
        stem="realism",
        version=1,
        summary="Inception Score's formula over a classifier of the domain, all samples at once",
        source="Bao et al. 2017, arXiv:1703.10155, Table 1",
        direction="higher",
        compute=_compute,
        needs=frozenset({"fake.logits"}),
    )
]
