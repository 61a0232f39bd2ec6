"""Parzen-window log-likelihood: the log-density of real test images under Gaussian windows around generated images.

    LL = mean over test x of log (1/n) sum_i N(x; G(z_i), sigma^2 I)        in nats, pixels scaled to [0, 1]

Source: Goodfellow et al. (2014), "Generative Adversarial Nets", arXiv:1406.2661, Section 5. It is also used by Mirza
and Osindero (2014), arXiv:1411.1784, and by Denton et al. (2015), arXiv:1506.05751, on each level of an image pyramid
(for this, call the plain functions on reduced images). As in the authors' `parzen_ll.py`, there are 10,000 samples, and
sigma is one of 10 values from 0.1 to 1, evenly spaced in log: the one with the highest mean log-density of 1,000
validation images. These are drawn from the reference, never from the test images. The result agrees with scikit-learn's
KernelDensity with a single leaf (its tree is inaccurate in so many dimensions). Range (-inf,
d log(1 / (0.1 sqrt(2 pi)))], so that values of both signs are normal; higher is better.

In hundreds of dimensions the value says little about the distribution: a set of cluster centres can beat samples of the
true distribution (Theis et al., 2016, arXiv:1511.01844). Use it only for comparison with the papers' tables, at their
counts.

The standard error is that of the papers: over the test images, for fixed samples and sigma. All sums are in float64.
"""

import math

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Value, known, require_tensor

WINDOWS = 10_000
VALIDATION = 1_000
SIGMAS = tuple(10 ** (i / 9 - 1) for i in range(10))
CHUNK = 2**24  # distances at a time: 128 MiB


def parzen_log_likelihood(real: Tensor, fake: Tensor, sigmas: float | tuple[float, ...]) -> Tensor:
    """Return the log-density of each real row under Gaussian windows at the fake rows, in nats: float64 N.

    real, fake: N x d and M x d of any dtype, in the unit of sigma. sigmas: one window width, or S widths, which give
    S x N log-densities.
    Raises ValueError if a width is not positive or a set is empty.
    Source: Goodfellow et al. (2014), Section 5.

    >>> parzen_log_likelihood(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0]]), 1.0).round(decimals=3)
    tensor([-0.9190, -1.4190], dtype=torch.float64)
    """
    require_tensor(real, "real", "N x d", "real")
    require_tensor(fake, "fake", "N x d", "real")
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"real has {real.shape[1]} values a row, and fake has {fake.shape[1]}")
    widths = [sigmas] if isinstance(sigmas, float | int) else list(sigmas)
    if min(widths) <= 0 or not len(real) or not len(fake):
        raise ValueError("a window needs a positive width, and both sets at least one row")
    centre = fake.mean(0, dtype=torch.float64)  # centre the rows: far from the origin the product form loses digits
    y = fake - centre
    y_squares, d = y.square().sum(1), y.shape[1]
    parts = []
    for rows in real.split(max(CHUNK // len(y), 1)):
        x = rows - centre
        # Subtract the smallest |x - y|^2 / 2 of each row before exp, and add it at the end. `half` is changed in place.
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
    """Return the window width with the highest mean log-density of the validation rows; in a tie the first width.

    real, fake: N x d validation rows and M x d generated rows of any dtype, in the unit of sigma. sigmas: the widths to
    choose from.
    Raises ValueError if a width is not positive or a set is empty.
    Source: Goodfellow et al. (2014), Section 5.

    >>> choose_sigma(torch.tensor([[0.3], [-0.3]]), torch.tensor([[0.0]]), sigmas=(0.1, 0.3, 1.0))
    0.3
    """
    return sigmas[int(parzen_log_likelihood(real, fake, tuple(sigmas)).mean(1).argmax())]


def _drawn(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Rows of the windows among the generated images, and of the validation images among the reference."""
    if inputs.held_out is None:
        raise Unavailable("there are no real images beside the reference to test on")
    sets = {"generated": inputs.fake.images, "reference": inputs.real.images, "test": inputs.held_out.images}
    if len({x.shape[1:] for x in sets.values()}) > 1:
        sizes = ", ".join(f"{what} images are {'x'.join(map(str, x.shape[1:]))}" for what, x in sets.items())
        raise Unavailable(f"all images need to have one size: {sizes}")
    validation = torch.randperm(len(sets["reference"]), generator=inputs.generator)
    same = inputs.fake is inputs.real or inputs.fake.images is inputs.real.images
    if same:  # row of real data: no image may be both a window and for validation
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
    return windows, validation


def _rows(inputs: Inputs) -> dict[str, Tensor]:
    """All rows that are looked at; in the row of real data, windows and validation images are rows of one set."""
    windows, validation = _drawn(inputs)
    assert inputs.held_out is not None
    return {"fake": windows, "real": validation, "held_out": torch.arange(len(inputs.held_out))}


def _compute(inputs: Inputs) -> list[Value]:
    windows, validation = _drawn(inputs)
    assert inputs.held_out is not None
    # Compute on grey levels 0 to 255, without a copy in [0, 1]: widths are 255 times larger, densities 255^d smaller.
    fake, valid, test = inputs.fake.images[windows], inputs.real.images[validation], inputs.held_out.images
    fake, valid = fake.flatten(1), valid.flatten(1)
    sigma_of_width = {255 * s: s for s in SIGMAS}
    width = choose_sigma(valid, fake, tuple(sigma_of_width))
    at_once = 16 * max(CHUNK // len(fake), 1)
    likelihood = torch.cat([parzen_log_likelihood(x.flatten(1), fake, width) for x in test.split(at_once)])
    likelihood += fake.shape[1] * math.log(255)
    sigma = sigma_of_width[width]
    warnings = []
    if len(fake) < WINDOWS:
        warnings.append(
            f"{len(fake):,} windows, not {WINDOWS:,}: lower than with more, comparable only at equal counts"
        )
    if sigma in (SIGMAS[0], SIGMAS[-1]):
        warnings.append(f"the best sigma, {sigma:.3g}, is at the end of the grid: a sigma outside may fit better")
    value, error = likelihood.mean().item(), likelihood.std().item() / math.sqrt(len(test))
    uncertainty, unknown = known(error, "the test images", value, "all test images have one density", len(test))
    details = {"sigma": sigma, "windows": len(fake), "validation_images": len(valid)}
    n_fake = len(windows)
    return [Value(value, uncertainty, len(test), n_fake, details=details, warnings=(*warnings, *unknown))]


PROTOCOLS = [
    Protocol(
        stem="parzen_ll",
        version=1,
        summary="Log-likelihood (nats) of test images under Parzen windows at 10,000 samples, sigma by validation",
        source="Goodfellow et al. 2014, arXiv:1406.2661, Sec. 5",
        direction="higher",
        compute=_compute,
        needs=frozenset({"fake.images", "real.images", "held_out.images"}),
        rows=_rows,
        real_row="reference",
    )
]
