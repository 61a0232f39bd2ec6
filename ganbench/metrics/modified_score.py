"""Modified score: mean KL divergence of the average of a classifier's predictions from each prediction.

    I' = E_x KL( p(y) || p(y|x) )

Source: Zhao, Mathieu, LeCun (2017), "Energy-based Generative Adversarial Network", arXiv:1609.03126, Section 4.1. The
two distributions of the Inception Score stand in the other order, and there is no exponential. The paper takes a
classifier of MNIST; here it is any extractor with classes. All sums are in float64. Range [0, infinity), higher is
better.

The score has no upper bound: it grows with the certainty of the classifier, so that values are comparable for one
classifier alone. A few samples of which it is very sure move the mean more than the Inception Score's.

The standard error is over the samples, by the delta method. I' is a function of two means over samples, p(y) and
l = E log p(y|x): I' = sum_k p_k (log p_k - l_k). The variance has a first order, from the
gradient at each sample, and a second order, from a quadratic form. The second alone remains if samples of all classes
are equally frequent and answered with equal certainty. The gradient is taken at the estimated means, which adds twice
the second order to the first: the variance is first - second, and at least second.
"""

import math

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Value, known, require_logits, require_tensor


def modified_score(logits: Tensor) -> tuple[float, float]:
    """Return the modified score I' of floating N x K logits, in nats, at least 0, and its standard error.

    The error is over the samples (delta method).
    Raises Unavailable if there are fewer than two samples.
    Source: Zhao, Mathieu, LeCun (2017), Section 4.1.

    >>> score, error = modified_score(torch.tensor([[3.0, 0.0], [0.0, 3.0], [3.0, 0.0], [0.0, 3.0]]))
    >>> round(score, 3)
    0.855
    """
    require_tensor(logits, "logits", "N x K")
    n = len(logits)
    if n < 2:
        raise Unavailable(f"a standard error over the samples needs at least 2 images, not {n}")
    log_each = logits.double().log_softmax(1)
    each = log_each.exp()
    p, log_p = each.mean(0), log_each.mean(0)  # p(y) and l
    gap = torch.where(p > 0, p.clamp_min(torch.finfo(p.dtype).tiny).log() - log_p, 0.0)
    score = (p * gap).sum().item()

    each, log_each = each - p, log_each - log_p
    first = ((each @ gap) - (log_each @ p)).square().sum().item() / (n - 1) / n
    # Q = sum_k d_k (d_k / 2 p_k - e_k) of the errors d of p and e of l, with variance 2 tr((A S)^2).
    half = torch.where(p > 0, 0.5 / p, 0.0)
    joint = torch.cat([each, log_each], 1)
    s = joint.T @ joint / (n - 1) / n
    k = len(p)
    a_s = torch.cat([half[:, None] * s[:k] - 0.5 * s[k:], -0.5 * s[:k]])
    second = 2 * (a_s * a_s.T).sum().item()
    return score, math.sqrt(max(first - second, second, 0.0))


def _compute(inputs: Inputs) -> list[Value]:
    logits = require_logits(inputs.fake)
    score, error = modified_score(logits)
    n, alike = len(logits), "the classifier answers the same for all images"
    uncertainty, unknown = known(error, "the samples (delta method)", max(score, 1.0), alike, n)
    few = (f"{n:,} images: biased, comparable only at equal counts",) if n < 5_000 else ()
    return [Value(score, uncertainty, 0, n, warnings=(*few, *unknown))]


PROTOCOLS = [
    Protocol(
        stem="modified_score",
        version=1,
        summary="modified score, mean KL of p(y) from p(y|x), all samples at once",
        source="Zhao, Mathieu, LeCun 2017, arXiv:1609.03126, Sec. 4.1",
        direction="higher",
        compute=_compute,
        needs=frozenset({"fake.logits"}),
    ),
]
