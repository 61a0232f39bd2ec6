"""Mode coverage: how many modes of the data a generator reaches, and how evenly.

    modes = #{ k : some sample has mode k }        KL = sum_k p_k log(p_k / q_k), p of the samples, q of the data

There are three kinds of data:

- **Stacked digits**: three digits in the colour channels, 10^3 = 1,000 modes, recognised by a classifier of one
  channel. Source: Metz et al. (2017), "Unrolled Generative Adversarial Networks", arXiv:1611.02163, Section 3.3.1;
  26,000 samples and KL to the uniform distribution as in Srivastava et al. (2017), "VEEGAN: Reducing Mode Collapse in
  GANs using Implicit Variational Learning", arXiv:1705.07761, and Lin et al. (2018), "PacGAN", arXiv:1712.04086.
- **Mixtures of Gaussians** (plain functions): a sample has high quality if it lies within three standard deviations of
  its nearest centre (VEEGAN, Section 4). A mode is captured if it is the nearest one of such a sample, as in PacGAN's
  official code.
- **Labelled sets**: the modes are the classes of an extractor.

The number of modes has the range [1, K], higher is better. The KL is in nats with the range [0, inf), lower is better.
The KL of n samples over K modes has an upward bias of about (K - 1) / 2n (0.019 for 1,000 modes and 26,000 samples).
Like the papers, the protocol does not correct it: compare at equal counts. For the KL between two sets, half a sample
is added to each class of both sets; otherwise a class that is missing from the reference would make it infinite.

Standard errors are over the samples (and over the real images, for `class_kl`). The KL uses the delta method with the
second-order term, which alone remains if both distributions are equal. The variance of the number of modes is the
number of new modes in a second sample of the same size (Efron and Thisted, 1976), estimated from the modes that occur
once and twice (Chao, 1984).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ganbench.metrics.contract import (
    ImageSet,
    Inputs,
    Protocol,
    Unavailable,
    Value,
    known,
    require_logits,
    require_rows,
    require_tensor,
)

STACKED_SAMPLES, STACKED_MODES = 26_000, 1_000
SURE = 0.01  # modes; a smaller error says that another set of samples has the same modes
WITHIN = 3.0  # standard deviations
BATCH = 4096  # stacked images at a time, to bound the memory; a multiple of the extractors' batches
CHUNK = 2**22  # distances at a time, to bound the memory


def ring(modes: int = 8, radius: float = 1.0) -> Tensor:
    """Return the centres of PacGAN's '2D ring', whose standard deviation is 0.01: float64 modes x 2."""
    angle = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
    return radius * torch.stack([angle.cos(), angle.sin()], 1)


def grid(side: int = 5, spacing: float = 2.0) -> Tensor:
    """Return the centres of PacGAN's '2D grid', whose standard deviation is 0.05: float64 side^2 x 2."""
    line = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) * spacing
    return torch.cartesian_prod(line, line)


def high_quality_counts(real: Tensor, fake: Tensor, std: float, within: float = WITHIN) -> Tensor:
    """Return the number of samples that are nearest to each centre and closer than `within` * `std`: int64 K.

    real: floating K x d centres. fake: floating N x d samples. std: standard deviation of each Gaussian.
    """
    counts = torch.zeros(len(real), dtype=torch.int64)
    for rows in fake.double().split(max(CHUNK // len(real), 1)):
        nearest = torch.cdist(rows, real.double(), compute_mode="donot_use_mm_for_euclid_dist").min(1)
        counts += nearest.indices[nearest.values < within * std].bincount(minlength=len(real))
    return counts


def mixture_modes(real: Tensor, fake: Tensor, std: float, within: float = WITHIN) -> tuple[int, float]:
    """Return the number of captured modes, in [0, K], and the share of high-quality samples, in [0, 1].

    real: floating K x d centres of a mixture of Gaussians. fake: floating N x d samples. std: standard deviation of
    each Gaussian. within: largest distance of a high-quality sample to its centre, in standard deviations.
    Raises ValueError if there are no samples.
    Source: Srivastava et al. (2017), Section 4.

    >>> mixture_modes(ring(8), fake=torch.tensor([[1.0, 0.01], [0.99, 0.0], [0.5, 0.5], [0.0, 1.0]]), std=0.01)
    (2, 0.75)
    """
    require_rows(real, fake)
    if not len(fake):
        raise ValueError("there are no samples")
    counts = high_quality_counts(real, fake, std, within)
    return int((counts > 0).sum()), int(counts.sum()) / len(fake)


def stacked_counts(images: Tensor | ImageSet, embed: Callable[[Any], tuple[Tensor, Tensor | None]]) -> Tensor:
    """Return the number of images of each of the K^C modes of C stacked classes: int64 K^C.

    images: N x C x H x W, N at least 1; the first channel is the most significant digit. embed: maps one channel,
    n x 1 x H x W, to features and logits n x K.
    Raises Unavailable if the extractor has no classes, if logits are not finite, or for more than 1,000 modes.
    """
    counts = sum(_stacked_counts(batch, embed) for batch in images.split(BATCH))
    assert isinstance(counts, Tensor)
    return counts


def _stacked_counts(images: Tensor, embed: Callable[[Any], tuple[Tensor, Tensor | None]]) -> Tensor:
    mode, classes = torch.zeros(len(images), dtype=torch.int64), 0
    for channel in images.split(1, dim=1):
        logits = embed(channel)[1]
        if logits is None:
            raise Unavailable("this extractor has no classes")
        if not torch.isfinite(logits).all():
            raise Unavailable("some logits are not finite: the extractor or the images are broken")
        classes = logits.shape[1]
        if classes ** images.shape[1] > STACKED_MODES:
            modes = f"{classes} classes in {images.shape[1]} channels"
            raise Unavailable(f"needs a classifier of single digits: {modes} are more than {STACKED_MODES:,} modes")
        mode = mode * classes + logits.argmax(1)
    return mode.bincount(minlength=classes ** images.shape[1])


def _require_counts(x: Tensor, name: str, n: int | None = None) -> None:
    require_tensor(x, name, "K", "whole", n)
    if len(x) and x.min() < 0:
        raise ValueError(f"{name} must be numbers of images, and one is {int(x.min())}")


def modes_found(counts: Tensor) -> tuple[int, float]:
    """Return the number of modes that occur, in [0, K], and its standard error over samples of the same size.

    counts: int64 K, number of samples of each mode.
    Source of the error: Efron and Thisted (1976), Chao (1984).

    >>> found, error = modes_found(torch.tensor([7, 1, 0, 2]))
    >>> found, round(error, 3)
    (3, 0.775)
    """
    _require_counts(counts, "counts")
    found, n = int((counts > 0).sum()), int(counts.sum())
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    unseen = once * (once - 1) / (2 * (twice + 1))
    new = unseen * -math.expm1(-once / unseen) if unseen else 0.0
    # The fixed number of samples makes the variance smaller than that of Poisson counts by once^2 / n. The lower limit
    # matters for few modes: a mode with c samples is missed with probability e^-c, and an unseen mode may occur.
    missed = (-counts[counts > 0].double()).exp()
    lower_limit = (missed * (1 - missed)).sum().item() + (0.25 if found < len(counts) else 0.0)
    return found, math.sqrt(max(new - once**2 / max(n, 1), lower_limit))


def kl_divergence(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """Return KL(fake || real) of two distributions over K classes, in nats, in [0, inf), and its standard error.

    real, fake: int64 K, number of images of each class. Half a sample is added to each class of both sets. Equal counts
    give 0.
    Raises Unavailable if a set is empty.
    Source: Srivastava et al. (2017), Section 4.

    >>> value, error = kl_divergence(real=torch.tensor([50, 50]), fake=torch.tensor([70, 30]))
    >>> round(value, 3), round(error, 3)
    (0.081, 0.057)
    """
    _require_counts(real, "real")
    _require_counts(fake, "fake", len(real))
    n, m = int(fake.sum()), int(real.sum())
    if not n or not m:
        raise Unavailable(f"a divergence needs at least 1 image in each set, not {m} and {n}")
    p, q = ((counts.double() + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (fake, real))
    log_ratio, ratio = (p / q).log(), p / q
    value = (p * log_ratio).sum()
    first = (p * (log_ratio - value).square()).sum().item() / n + (q * (ratio - 1).square()).sum().item() / m
    second = (int(((fake + real) > 0).sum()) - 1) / 2 * (1 / n + 1 / m) ** 2
    return max(value.item(), 0.0), _standard_error(first, second)


def kl_to_uniform(counts: Tensor) -> tuple[float, float]:
    """Return KL(p || uniform) of a distribution over K modes, in nats, in [0, log K], and its standard error.

    counts: int64 K, number of samples of each mode.
    Raises Unavailable if there are no samples.
    Source: Srivastava et al. (2017), Section 4.

    >>> value, error = kl_to_uniform(torch.tensor([10, 10, 0, 0]))
    >>> round(value, 3), round(error, 3)
    (0.693, 0.035)
    """
    _require_counts(counts, "counts")
    n, k = int(counts.sum()), len(counts)
    if not n:
        raise Unavailable("a divergence needs at least 1 image")
    p = counts[counts > 0].double() / n
    log_ratio = (p * k).log()
    value = (p * log_ratio).sum()
    first = (p * (log_ratio - value).square()).sum().item() / n
    return max(value.item(), 0.0), _standard_error(first, (len(p) - 1) / (2 * n**2))


def _standard_error(first: float, second: float) -> float:
    """Standard error of a KL estimate, from its first- and second-order variances.

    The estimate of the first-order variance has a noise of twice the second-order variance. The second-order variance
    alone remains if both distributions are equal.
    """
    noise = min(2 * second / first, 1.0) if first > 0 else 1.0
    return math.sqrt(max(first + second * (1 - 2 * noise**2), second))


def _stacked(inputs: Inputs) -> Tensor:
    assert inputs.embed
    embed, images = inputs.embed, inputs.fake.images
    if not len(images):
        raise Unavailable("needs at least 1 image")
    counts: Tensor = inputs.share("modes of stacked classes", lambda: stacked_counts(images, embed))
    return counts


def _class_counts(logits: Tensor) -> Tensor:
    return logits.argmax(1).bincount(minlength=logits.shape[1])


def _modes_value(counts: Tensor) -> list[Value]:
    found, error = modes_found(counts)
    sure = "every mode has so many samples that others would find the same modes"
    uncertainty, unknown = known(error if error > SURE else 0.0, "the samples (Chao's estimate)", 1, sure)
    details = {"of": len(counts), "share": found / len(counts)}
    return [Value(found, uncertainty, 0, int(counts.sum()), details=details, warnings=unknown)]


def _compute_stacked(inputs: Inputs) -> list[Value]:
    return _modes_value(_stacked(inputs))


def _compute_stacked_kl(inputs: Inputs) -> list[Value]:
    counts = _stacked(inputs)
    value, error = kl_to_uniform(counts)
    uncertainty, unknown = known(error, "the samples (delta method)", value, "all samples have one mode")
    return [Value(value, uncertainty, 0, int(counts.sum()), details={"modes": len(counts)}, warnings=unknown)]


def _compute_modes(inputs: Inputs) -> list[Value]:
    return _modes_value(_class_counts(require_logits(inputs.fake)))


def _compute_class_kl(inputs: Inputs) -> list[Value]:
    real, fake = _class_counts(require_logits(inputs.real)), _class_counts(require_logits(inputs.fake))
    value, error = kl_divergence(real, fake)
    over, alike = "the samples of both sets (delta method)", "all images of both sets are put into one class"
    uncertainty, unknown = known(error, over, value, alike)
    missing = [c for c in range(len(real)) if real[c] and not fake[c]]
    details = {"classes": len(real), "missing": missing[:100]}
    return [Value(value, uncertainty, int(real.sum()), int(fake.sum()), details=details, warnings=unknown)]


PROTOCOLS = [
    Protocol(
        stem="stacked_modes",
        version=1,
        summary=f"Modes of stacked digits found among {STACKED_SAMPLES:,} samples",
        source="Metz et al. 2017, arXiv:1611.02163, Sec. 3.3.1",
        direction="higher",
        compute=_compute_stacked,
        needs=frozenset({"fake.images", "embed"}),
        num=STACKED_SAMPLES,
        rows="stream",
    ),
    Protocol(
        stem="stacked_modes_kl",
        version=1,
        summary=f"KL (nats) to uniform of the modes of stacked digits among {STACKED_SAMPLES:,} samples",
        source="Srivastava et al. 2017, arXiv:1705.07761, Sec. 4",
        direction="lower",
        compute=_compute_stacked_kl,
        needs=frozenset({"fake.images", "embed"}),
        num=STACKED_SAMPLES,
        rows="stream",
    ),
    Protocol(
        stem="modes",
        version=1,
        summary="Classes of the extractor that samples are put into",
        source="Metz et al. 2017, arXiv:1611.02163, Sec. 3.3.1",
        direction="higher",
        compute=_compute_modes,
        needs=frozenset({"fake.logits"}),
    ),
    Protocol(
        stem="class_kl",
        version=1,
        summary="KL (nats) of the samples' classes to the reference's, by the extractor",
        source="Srivastava et al. 2017, arXiv:1705.07761, Sec. 4",
        direction="lower",
        compute=_compute_class_kl,
        needs=frozenset({"fake.logits", "real.logits"}),
    ),
]
