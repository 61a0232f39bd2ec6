"""Parzen-window log-likelihood: how likely real test images are under Gaussian windows around generated ones.

    LL = mean over test x of log (1/n) sum_i N(x; G(z_i), sigma^2 I)        in nats, pixels scaled to [0, 1]

Goodfellow et al. (2014), "Generative Adversarial Nets", arXiv:1406.2661, Section 5; also Mirza and Osindero (2014),
arXiv:1411.1784, and Denton et al. (2015), arXiv:1506.05751, who apply it level by level to a pyramid (call the plain
functions on reduced images). 10,000 samples; sigma is the one of 10 values from 0.1 to 1, evenly spaced in log, that
makes 1,000 validation images likeliest: a draw from the reference, never the test images. As in the authors'
`parzen_ll.py`. Agrees with scikit-learn's KernelDensity of a single leaf (its tree is off by far in so many
dimensions). Range (-inf, d log(1 / (0.1 sqrt(2 pi)))], so of either sign: negative is ordinary; higher is better.

In hundreds of dimensions it says little about the distribution: a set of cluster centres may beat samples of the true
one (Theis et al., 2016, arXiv:1511.01844). It is here to stand beside the papers' tables, at their counts.

The standard error is the papers': over the test images, for the samples and the sigma at hand. float64 throughout.
"""

import math

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Uncertainty, Value

WINDOWS = 10_000
VALIDATION = 1_000
SIGMAS = tuple(10 ** (i / 9 - 1) for i in range(10))
CHUNK = 2**24  # distances at a time: 128 MiB


def parzen_log_likelihood(real: Tensor, fake: Tensor, sigmas: float | tuple[float, ...]) -> Tensor:
    """Log-density in nats of each of N x d real rows under Gaussian windows at the M x d fake rows: float64 N.

    For several window widths at once: S x N. Both of any dtype, in the unit that sigma is in. Raises ValueError
    where sigma is not positive or one set is empty.
    """
    widths = [sigmas] if isinstance(sigmas, float | int) else list(sigmas)
    if min(widths) <= 0 or not len(real) or not len(fake):
        raise ValueError("a window needs a positive width, and both sets at least one row")
    centre = fake.mean(0, dtype=torch.float64)  # far from the origin the product form would lose digits
    y = fake - centre
    y_squares, d = y.square().sum(1), y.shape[1]
    parts = []
    for rows in real.split(max(CHUNK // len(y), 1)):
        x = rows - centre
        # One array through all of it: |x - y|^2 / 2, less its smallest in each row, which is put back at the end.
        half = torch.addmm(y_squares / 2, x, y.T, alpha=-1)
        nearest = half.amin(1, keepdim=True)
        half -= nearest
        smallest = (nearest[:, 0] + x.square().sum(1) / 2).clamp_(min=0)
        exponent = torch.empty_like(half)
        found = []
        for s in widths:
            torch.mul(half, -1 / s**2, out=exponent)
            log_sum = exponent.exp_().sum(1).log()
            found.append(log_sum - smallest / s**2 - d * math.log(s * math.sqrt(2 * math.pi)))
        parts.append(torch.stack(found))
    densities = torch.cat(parts, 1) - math.log(len(y))
    return densities[0] if isinstance(sigmas, float | int) else densities


def choose_sigma(real: Tensor, fake: Tensor, sigmas: tuple[float, ...] = SIGMAS) -> float:
    """The width of those given under which N x d validation rows are likeliest on average (the first, if several)."""
    return sigmas[int(parzen_log_likelihood(real, fake, tuple(sigmas)).mean(1).argmax())]


def _compute(inputs: Inputs) -> list[Value]:
    assert inputs.held_out is not None
    sets = {"generated": inputs.fake.images, "reference": inputs.real.images, "test": inputs.held_out.images}
    if len({x.shape[1:] for x in sets.values()}) > 1:
        sizes = ", ".join(f"{what} ones {'x'.join(map(str, x.shape[1:]))}" for what, x in sets.items())
        raise Unavailable(f"the images need to be of one size: {sizes}")
    validation = torch.randperm(len(sets["reference"]), generator=inputs.generator)
    if inputs.fake.images is inputs.real.images:  # the row of real data: no image may be a window and be judged by it
        number = min(VALIDATION, len(validation) // 2)
        windows = validation[number:]
        validation = validation[:number]
    else:
        windows = torch.randperm(len(sets["generated"]), generator=inputs.generator)
        validation = validation[:VALIDATION]
    windows = windows[:WINDOWS]
    if not len(windows) or not len(validation) or len(sets["test"]) < 2:
        counts = f"not {len(windows)}, {len(validation)} and {len(sets['test'])}"
        raise Unavailable(f"needs at least 1 window, 1 validation image and 2 test images, {counts}")

    # On levels 0 to 255, which need no copy in [0, 1]: widths are 255 times as large, densities 255^d times as small.
    fake, valid, test = sets["generated"][windows], sets["reference"][validation], sets["test"]
    fake, valid, test = fake.flatten(1), valid.flatten(1), test.flatten(1)
    by_level = {255 * s: s for s in SIGMAS}
    level = choose_sigma(valid, fake, tuple(by_level))
    likelihood = parzen_log_likelihood(test, fake, level) + test.shape[1] * math.log(255)
    sigma = by_level[level]
    warnings = []
    if len(fake) < WINDOWS:
        warnings.append(
            f"{len(fake):,} windows, not {WINDOWS:,}: lower than with more, comparable only at equal counts"
        )
    if sigma in (SIGMAS[0], SIGMAS[-1]):
        warnings.append(f"the best sigma, {sigma:.3g}, is the last of those tried: others may fit better")
    uncertainty = Uncertainty(likelihood.std().item() / math.sqrt(len(test)), "standard error", "the test images")
    details = {"sigma": sigma, "windows": len(fake), "validation_images": len(valid)}
    n_fake = len(windows)
    return [Value(likelihood.mean().item(), uncertainty, len(test), n_fake, details=details, warnings=tuple(warnings))]


PROTOCOLS = [
    Protocol(
        stem="parzen_ll",
        version=1,
        summary="Log-likelihood (nats) of test images under Parzen windows at 10,000 samples, sigma by validation",
        source="Goodfellow et al. 2014, arXiv:1406.2661, Sec. 5",
        direction="higher",
        compute=_compute,
        needs=frozenset({"fake.images", "real.images", "held_out.images"}),
        real_row="reference",
    )
]
