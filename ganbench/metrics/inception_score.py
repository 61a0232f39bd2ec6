"""Inception Score: exp of the mean KL divergence of a classifier's predictions from their average.

    IS = exp( E_x KL( p(y|x) || p(y) ) )

Source: Salimans et al. (2016), "Improved Techniques for Training GANs", arXiv:1606.03498, Section 4. The samples are
shuffled and divided into 10 splits; the score is the mean over splits, and its spread is their population standard
deviation, as published. The published network has logits without bias and 1,008 classes. All sums are in float64. The
result agrees with torch-fidelity on the same logits. Range [1, K], higher is better. The score does not depend on real
images, and it does not measure the variety within a class.

`score_1split` is the score of all samples in a single split, as in StudioGAN: Kang et al. (2023), "StudioGAN: A
Taxonomy and Benchmark of GANs for Image Synthesis", arXiv:2206.09479. It cannot be compared with the mean of ten
splits, which is lower because smaller splits have a larger downward bias. Its standard error is over the samples
(delta method): the score times the standard error of the mean divergence. The dependence on p(y) vanishes to first
order; its second order is used if it is larger, which it is if all divergences are nearly equal.
"""

import math

import numpy as np
import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Value, known, require_logits, require_tensor

SPLITS = 10
ALIKE = "the classifier answers the same for all images"
SHUFFLE_SEED = 2020  # torch-fidelity's seed; fixed by the protocol, so that one set of samples has one score


def divergences(logits: Tensor) -> Tensor:
    """Return KL( p(y|x) || p(y) ) in nats for each row of N x K logits; p(y) is the average: float64 N."""
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - p.mean(0, keepdim=True).log()), 0.0).sum(1)


def score_and_error(logits: Tensor) -> tuple[float, float]:
    """Return the score of N x K logits in one split, in [1, K], and its standard error over the samples; N at least 2.

    The variance of the mean divergence has a first order, var(KL) / n, and a second order, tr(A A) / 2n^2, where
    A = cov(p) / p(y) is at most 1 in each direction. The second order alone remains if all divergences are equal, for
    instance if each sample is surely of one class, and the classes are equally frequent. tr(A) bounds it from above.
    """
    n = len(logits)
    per_sample = divergences(logits)
    p = logits.double().softmax(1)
    mean = p.mean(0)
    second = torch.where(mean > 0, p.var(0, correction=0) / mean, 0.0).sum().item() / (2 * n**2)
    score = per_sample.mean().exp().item()
    return score, score * math.sqrt(max(per_sample.var().item() / n, second))


def inception_score(logits: Tensor, splits: int = SPLITS) -> Tensor:
    """Return the Inception Score of each of `splits` contiguous parts of the samples: float64 `splits`, in [1, K].

    logits: floating N x K. Shuffle the rows first if they are ordered by class.
    Raises Unavailable if there are fewer samples than splits.
    Source: Salimans et al. (2016), Section 4.

    >>> inception_score(torch.tensor([[9.0, 0.0], [0.0, 9.0], [9.0, 0.0], [9.0, 0.0]]), splits=2).round(decimals=2)
    tensor([2., 1.], dtype=torch.float64)
    """
    require_tensor(logits, "logits", "N x K")
    n = len(logits)
    if n < splits:
        raise Unavailable(f"{splits} splits need at least {splits} images, not {n}")
    parts = (logits[i * n // splits : (i + 1) * n // splits] for i in range(splits))
    return torch.stack([divergences(part).mean().exp() for part in parts])


def _compute(inputs: Inputs) -> list[Value]:
    logits = require_logits(inputs.fake)
    order = torch.from_numpy(np.random.RandomState(SHUFFLE_SEED).permutation(len(logits)))
    scores = inception_score(logits[order])
    spread = scores.std(correction=0).item()
    alike = "the splits have one score"
    if len(logits) < 2 * SPLITS:
        spread, alike = 0.0, "a split of one image has the score 1, whatever it shows"
    over = f"{SPLITS} splits of the samples"
    uncertainty, unknown = known(spread, over, 1, alike, kind="standard deviation")
    warnings: tuple[str, ...] = ()
    if len(logits) < 5_000:
        warnings = (f"{len(logits):,} images in {SPLITS} splits: biased downwards, comparable only at equal counts",)
    return [Value(scores.mean().item(), uncertainty, 0, len(logits), warnings=(*warnings, *unknown))]


def _compute_1split(inputs: Inputs) -> list[Value]:
    logits = require_logits(inputs.fake)
    n = len(logits)
    if n < 2:
        raise Unavailable(f"a standard error over the samples needs at least 2 images, not {n}")
    score, error = score_and_error(logits)
    uncertainty, unknown = known(error, "the samples (delta method)", score, ALIKE, n)
    warnings = (f"{n:,} images: biased downwards, comparable only at equal counts",) if n < 5_000 else ()
    return [Value(score, uncertainty, 0, n, warnings=(*warnings, *unknown))]


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
    ),
    Protocol(
        stem="score_1split",
        version=1,
        summary="Inception Score, all samples at once",
        source="Salimans et al. 2016, arXiv:1606.03498, Sec. 4; one split as in Kang et al. 2023, arXiv:2206.09479",
        direction="higher",
        compute=_compute_1split,
        needs=frozenset({"fake.logits"}),
        published=("inception_score_1split", "inception-v3"),
    ),
]
