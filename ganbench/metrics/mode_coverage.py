"""Mode coverage: how many of the modes of the data a generator reaches, and how evenly.

    modes = #{ k : some sample is of mode k }        KL = sum_k p_k log(p_k / q_k), p of samples, q of the data

Three kinds of data. **Stacked digits** (three in the colour channels, 10^3 = 1,000 modes, told apart by a classifier of
one channel): Metz et al. (2017), "Unrolled Generative Adversarial Networks", arXiv:1611.02163, Section 3.3.1;
26,000 samples and KL to the uniform distribution, as in Srivastava et al. (2017), "VEEGAN: Reducing Mode Collapse in
GANs using Implicit Variational Learning", arXiv:1705.07761, and Lin et al. (2018), "PacGAN", arXiv:1712.04086.
**Mixtures of Gaussians** (plain functions): a sample is of high quality within three standard deviations of its nearest
centre (VEEGAN, Section 4); a mode is captured if it is the nearest to such a sample. As in PacGAN's official code.
**Labelled sets**: the classes that an extractor tells apart.

Range of the count [1, K], higher is better; of the KL [0, inf), in nats, lower is better. A KL of n samples over K
modes is too large by about (K - 1) / 2n, which the papers leave in and so do we (0.019 for 1,000 modes and 26,000
samples): compare at equal counts. Between two sets half a sample is added to each class of either, lest a class that
the reference lacks make it infinite.

Standard errors are over the samples (and the real images, for `class_kl`). Of a KL: the delta method, with the
second-order term that is left where the two distributions are equal. Of the count: its variance is what a second draw
would find new (Efron and Thisted, 1976), estimated from the modes that were hit once and twice (Chao, 1984).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Uncertainty, Value, require_logits

STACKED_SAMPLES, STACKED_MODES = 26_000, 1_000
WITHIN = 3.0  # standard deviations
CHUNK = 2**22  # distances at a time


def ring(modes: int = 8, radius: float = 1.0) -> Tensor:
    """Centres on a circle, modes x 2, float64: the '2D ring' (standard deviation 0.01 in PacGAN)."""
    angle = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
    return radius * torch.stack([angle.cos(), angle.sin()], 1)


def grid(side: int = 5, spacing: float = 2.0) -> Tensor:
    """Centres on a square lattice around 0, side^2 x 2, float64: the '2D grid' (standard deviation 0.05 in PacGAN)."""
    line = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) * spacing
    return torch.cartesian_prod(line, line)


def high_quality_counts(real: Tensor, fake: Tensor, std: float, within: float = WITHIN) -> Tensor:
    """How many of N x d samples lie nearest to each of K x d centres and closer than `within` x `std`: int64 K."""
    counts = torch.zeros(len(real), dtype=torch.int64)
    for rows in fake.double().split(max(CHUNK // len(real), 1)):
        nearest = torch.cdist(rows, real.double(), compute_mode="donot_use_mm_for_euclid_dist").min(1)
        counts += nearest.indices[nearest.values < within * std].bincount(minlength=len(real))
    return counts


def mixture_modes(real: Tensor, fake: Tensor, std: float, within: float = WITHIN) -> tuple[int, float]:
    """(modes captured, share of samples of high quality) of N x d samples of a mixture of Gaussians at K x d centres.

    Raises ValueError without samples.
    """
    if not len(fake):
        raise ValueError("there are no samples")
    counts = high_quality_counts(real, fake, std, within)
    return int((counts > 0).sum()), int(counts.sum()) / len(fake)


def stacked_counts(images: Tensor, embed: Callable[[Tensor], tuple[Tensor, Tensor | None]]) -> Tensor:
    """How many of N x C x H x W images are of each of the K^C modes of C stacked classes: int64 K^C.

    embed: a channel, N x 1 x H x W, to features and logits N x K; the first channel is the most significant digit.
    Raises Unavailable without classes, for logits that are not finite, and for more than 1,000 modes.
    """
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


def modes_found(counts: Tensor) -> tuple[int, float]:
    """Number of K counts above 0, and its standard error over draws of as many samples."""
    found, n = int((counts > 0).sum()), int(counts.sum())
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    unseen = once * (once - 1) / (2 * (twice + 1))
    new = unseen * -math.expm1(-once / unseen) if unseen else 0.0
    # The number of samples is fixed, which takes something off a Poisson variance. Of few modes: each that was hit c
    # times is hit again or not, with e^-c for not, and one that was never seen may yet be.
    missed = (-counts[counts > 0].double()).exp()
    fewest = (missed * (1 - missed)).sum().item() + (0.25 if found < len(counts) else 0.0)
    return found, math.sqrt(max(new - once**2 / max(n, 1), fewest))


def kl_divergence(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """KL(fake || real) in nats of two distributions over K classes, given as counts, and its standard error.

    Half a sample is added to each class of either. Equal counts give 0. Raises Unavailable for an empty set.
    """
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
    """KL(p || uniform) in nats of the distribution of K counts, and its standard error over the samples.

    Raises Unavailable without samples.
    """
    n, k = int(counts.sum()), len(counts)
    if not n:
        raise Unavailable("a divergence needs at least 1 image")
    p = counts[counts > 0].double() / n
    log_ratio = (p * k).log()
    value = (p * log_ratio).sum()
    first = (p * (log_ratio - value).square()).sum().item() / n
    return max(value.item(), 0.0), _standard_error(first, (len(p) - 1) / (2 * n**2))


def _standard_error(first: float, second: float) -> float:
    """Of a KL, from its first-order variance as estimated and its second-order one.

    The noise in the estimate of the first is twice the second: it alone is left where the distributions are equal.
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


def _answers(logits: Tensor) -> Tensor:
    return logits.argmax(1).bincount(minlength=logits.shape[1])


def _of_count(counts: Tensor) -> list[Value]:
    found, error = modes_found(counts)
    uncertainty = Uncertainty(error, "standard error", "the samples (Chao's estimate)")
    details = {"of": len(counts), "share": found / len(counts)}
    return [Value(found, uncertainty, 0, int(counts.sum()), details=details)]


def _compute_stacked(inputs: Inputs) -> list[Value]:
    return _of_count(_stacked(inputs))


def _compute_stacked_kl(inputs: Inputs) -> list[Value]:
    counts = _stacked(inputs)
    value, error = kl_to_uniform(counts)
    uncertainty = Uncertainty(error, "standard error", "the samples (delta method)")
    return [Value(value, uncertainty, 0, int(counts.sum()), details={"modes": len(counts)})]


def _compute_modes(inputs: Inputs) -> list[Value]:
    return _of_count(_answers(require_logits(inputs.fake)))


def _compute_class_kl(inputs: Inputs) -> list[Value]:
    real, fake = _answers(require_logits(inputs.real)), _answers(require_logits(inputs.fake))
    value, error = kl_divergence(real, fake)
    uncertainty = Uncertainty(error, "standard error", "the samples of both sets (delta method)")
    missing = [c for c in range(len(real)) if real[c] and not fake[c]]
    details = {"classes": len(real), "missing": missing[:100]}
    return [Value(value, uncertainty, int(real.sum()), int(fake.sum()), details=details)]


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
