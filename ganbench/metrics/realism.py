"""Realism: the formula of the Inception Score with a classifier of the domain, for instance of faces.

    realism = exp( E_x KL( p(y|x) || p(y) ) ),   p(y) = E_x p(y|x)

Source: Bao et al. (2017), "CVAE-GAN: Fine-Grained Image Generation through Asymmetric Training", arXiv:1703.10155,
Table 1, with 53,000 samples and a network that was trained on another set of faces. The paper gives no spread; our
interpretation is a single split of all samples, instead of the ten splits of `score`. The top-1 accuracy of the same
table is `discriminability`. Realism equals `inception_score` with one split. Range [1, K], higher is better. It
increases with variety as well as with realism, and it is biased downwards for few samples. Sums are in float64.

The standard error is over the samples, by the delta method, as for `score_1split`: to first order log realism is the
mean of the divergences, because p(y) minimises their sum.
"""

from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Value, known, require_logits, require_tensor
from ganbench.metrics.inception_score import ALIKE, score_and_error


def realism(logits: Tensor) -> tuple[float, float]:
    """Return the realism of the samples, in [1, K], and its standard error.

    logits: floating N x K.
    Raises Unavailable for fewer than two samples.
    Source: Bao et al. (2017), Table 1.

    >>> import torch
    >>> value, error = realism(torch.tensor([[9.0, 0.0], [0.0, 9.0], [0.0, 0.0], [9.0, 0.0]]))
    >>> round(value, 2), round(error, 2)
    (1.63, 0.32)
    """
    require_tensor(logits, "logits", "N x K")
    n = len(logits)
    if n < 2:
        raise Unavailable(f"a mean of predictions needs at least 2 images, not {n}")
    return score_and_error(logits)


def _compute(inputs: Inputs) -> list[Value]:
    logits = require_logits(inputs.fake)
    value, error = realism(logits)
    uncertainty, unknown = known(error, "the samples (delta method)", value, ALIKE, len(logits))
    return [Value(value, uncertainty, 0, len(logits), warnings=unknown)]


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
