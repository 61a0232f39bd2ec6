"""Sliced Wasserstein distance of patches at each level of a Laplacian pyramid: texture and structure at each scale.

    SWD = mean over directions u, over ranks j of | sort(u'A)_j - sort(u'B)_j |,    |u| = 1

with A and B the patches of real and generated images at one level. Source: Karras et al. (2018), "Progressive Growing
of GANs for Improved Quality, Stability, and Variation", arXiv:1710.10196, Section 5. As in the code of the paper:

- Each image gives 128 patches of 7 x 7 pixels at random places of each level.
- Each channel of the patches is standardised with its mean and standard deviation over the set.
- There are 4 times 128 directions.
- The pyramid is halved (5 x 5 binomial filter, mirrored borders) as long as the next level has 16 pixels or more per
  side. Each level except the last is the difference from the enlarged next level. Images of 28 pixels therefore have
  one level: the pixels themselves.

The code of the paper supports 3 channels; here images can also have 1 channel.

Range [0, inf), lower is better. The value is not multiplied by 1,000, unlike in the paper's tables. It is biased
upwards at small counts; the paper uses 16,384 images in each set. `swd` is the mean over levels, `swd@32` the level of
32 pixels. At most 16,384 images are used, drawn at random, to bound the memory: 4 bytes for each of 49 x 128 values per
image, channel and set (2.5 GB for 16,384 colour images).

The standard error is over the images of both sets, to first order, and over the directions. Along one direction the
transport T maps the j-th smallest value of A to the j-th smallest of B. A patch at x has the influence phi(x) with
phi'(x) = sign(x - T(x)), minus its effect on the mean and standard deviation of the standardisation. The influence of
an image is the mean over its patches, directions and levels. If both sets have the same distribution, the distance is
pure bias, and this error is too large by a factor of up to 2.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Value, known, pixels, require_rows
from ganbench.metrics.products import blas_product

PATCH, PATCHES, REPEATS, DIRECTIONS = 7, 128, 4, 128
SMALLEST = 16  # smallest side of a level in pixels
ENOUGH = 16_384  # images in each set
AT_ONCE = 8  # directions whose projections are sorted together, to bound the memory
IMAGES_AT_ONCE = 512
ERROR_DIRECTIONS = 32  # directions per repeat for the influences, which need the order: argsort is slower than sort
_TAPS = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16


def potentials(x: Tensor, slope: Tensor) -> Tensor:
    """Return phi with phi' = slope by the trapezoidal rule: K x n, with mean 0 in each row.

    x, slope: floating K x n; x ascends along rows.
    """
    rise = (x[:, 1:] - x[:, :-1]) * (slope[:, 1:] + slope[:, :-1]) / 2
    phi = F.pad(rise.cumsum(1), (1, 0))
    return phi - phi.mean(1, keepdim=True)


def _blur(x: Tensor, gain: float) -> Tensor:
    """Filter N x C x H x W with the 5 x 5 binomial filter times `gain`, with mirrored borders."""
    c = x.shape[1]
    taps = (_TAPS * math.sqrt(gain)).view(1, 1, 5, 1).expand(c, -1, -1, -1)
    x = F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), taps, groups=c)
    return F.conv2d(x, taps.transpose(2, 3), groups=c)


def _halve(x: Tensor) -> Tensor:
    return _blur(x, 1.0)[:, :, ::2, ::2]


def _double(x: Tensor) -> Tensor:
    spread = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    spread[:, :, ::2, ::2] = x
    return _blur(spread, 4.0)


def levels(height: int, width: int) -> list[int]:
    """Return the shorter side of each level: 64, 32, 16 for 64 pixels. Raises Unavailable if halving is impossible."""
    sides, h, w = [], height, width
    while min(h, w) >= SMALLEST:
        sides.append(min(h, w))
        if min(h, w) // 2 >= SMALLEST and (h % 2 or w % 2):
            raise Unavailable(f"a pyramid needs sides that can be halved down to {SMALLEST} pixels, not {h} x {w}")
        h, w = h // 2, w // 2
    if not sides:
        raise Unavailable(
            f"the distance needs images of at least {SMALLEST} x {SMALLEST} pixels, not {height} x {width}"
        )
    return sides


def laplacian_pyramid(images: Tensor, count: int) -> list[Tensor]:
    """Return `count` levels of N x C x H x W images, float32: differences from the enlarged next one, and the last."""
    pyramid = [images.float()]
    for _ in range(1, count):
        smaller = _halve(pyramid[-1])
        pyramid[-1] = pyramid[-1] - _double(smaller)
        pyramid.append(smaller)
    return pyramid


def patches(images: Tensor, level: int, count: int, generator: torch.Generator) -> Tensor:
    """Return standardised 7 x 7 patches of one of `count` levels: float32 (128 N) x (49 C), ordered by image.

    images: N x C x H x W. generator: draws the places of the patches.
    """
    n, c = images.shape[:2]
    result = torch.empty(n * PATCHES, c, PATCH, PATCH)
    inside = torch.arange(PATCH)
    for start in range(0, n, IMAGES_AT_ONCE):
        pixels = laplacian_pyramid(images[start : start + IMAGES_AT_ONCE], count)[level]
        m, h, w = len(pixels), *pixels.shape[2:]
        left = torch.randint(w - PATCH + 1, (m, PATCHES), generator=generator)
        top = torch.randint(h - PATCH + 1, (m, PATCHES), generator=generator)
        y, x = (top[..., None] + inside)[..., :, None], (left[..., None] + inside)[..., None, :]
        chosen = pixels.permute(0, 2, 3, 1)[torch.arange(m).view(m, 1, 1, 1), y, x]  # m x 128 x 7 x 7 x C
        result[start * PATCHES : (start + m) * PATCHES] = chosen.flatten(0, 1).permute(0, 3, 1, 2)
    for channel in result.unbind(1):
        mean, variance = _moments(channel)
        channel.sub_(mean.float()).div_(variance.sqrt().float() if variance > 0 else 1.0)
    return result.flatten(1)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance of all elements in float64, without a float64 copy of x."""
    mean = x.sum(dtype=torch.float64) / x.numel()
    squares = torch.stack([(part.double() - mean).square().sum() for part in x.split(1 << 16)])
    return mean, squares.sum() / x.numel()


def sliced_wasserstein(
    real: Tensor,
    fake: Tensor,
    generator: torch.Generator,
    repeats: int = REPEATS,
    directions: int = DIRECTIONS,
    channels: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return the Wasserstein-1 distance along each random direction, and the influence of each descriptor.

    real, fake: float32 N x D descriptors, the same shape for both sets. generator: draws repeats * directions
    directions. channels: if not 0, the number of equal parts of D that were standardised with their own mean and
    standard deviation over the set; the influences then include this standardisation.
    The distances are float64 repeats * directions, at least 0. The influences on the mean distance are float64 2 x N,
    of the real and of the generated descriptors.
    Raises ValueError if the shapes differ.
    Source: Karras et al. (2018), Section 5.

    >>> real = torch.zeros(4, 1)
    >>> sliced_wasserstein(real, real + 3, torch.Generator().manual_seed(0), repeats=1, directions=2)[0]
    tensor([3., 3.], dtype=torch.float64)
    """
    require_rows(real, fake)
    if real.shape != fake.shape:
        raise ValueError(f"descriptors {tuple(real.shape)} and {tuple(fake.shape)}: the distance needs pairs")
    distances = []
    n, d = real.shape
    influence = torch.zeros(2, n, dtype=torch.float64)
    moved, stretched = torch.zeros(2, 2, d, dtype=torch.float64)  # effect of moving and scaling a component, by set
    for _ in range(repeats):
        u = torch.randn(directions, d, generator=generator, dtype=torch.float64)
        u = (u / u.norm(dim=1, keepdim=True)).float()
        for start in range(0, directions, AT_ONCE):
            some = u[start : start + AT_ONCE]
            a, b = (blas_product(some, s) for s in (real, fake))
            if start >= ERROR_DIRECTIONS:
                # NumPy is faster than torch: it sorts float32 with vector instructions.
                a, b = (torch.from_numpy(np.sort(p.numpy(), axis=1)) for p in (a, b))
                distances.append((a - b).abs().mean(1, dtype=torch.float64))
                continue
            (a, order_a), (b, order_b) = a.sort(dim=1), b.sort(dim=1)
            distances.append((a - b).abs().mean(1, dtype=torch.float64))
            for row, own, other, order, x in ((0, a, b, order_a, real), (1, b, a, order_b, fake)):
                slope = (own - other).sign()
                phi = potentials(own.double(), slope.double())
                influence[row].index_add_(0, order.flatten(), phi.flatten())
                if channels:
                    slope = torch.empty_like(slope).scatter_(1, order, slope)
                    moved[row] += (slope.double().mean(1)[:, None] * some).sum(0)
                    stretched[row] += (blas_product(slope, x.T) / n * some).sum(0, dtype=torch.float64)
    if channels:
        for row, x in enumerate((real, fake)):
            parts = x.view(n, channels, -1)
            means, squares = parts.mean(2).double(), parts.square().mean(2).double()
            influence[row] -= means @ moved[row].view(channels, -1).sum(1)
            influence[row] -= (squares - 1) @ stretched[row].view(channels, -1).sum(1) / 2
    return torch.cat(distances), influence / (repeats * min(directions, ERROR_DIRECTIONS))


def _drawn(inputs: Inputs) -> dict[str, Tensor]:
    """Rows of the images that are compared, the same number of each set."""
    real, fake = inputs.real.images, inputs.fake.images
    if real.shape[1:] != fake.shape[1:]:
        raise Unavailable("generated and real images differ in size")
    n = min(len(real), len(fake), ENOUGH)
    if n < 2:
        raise Unavailable(f"the distance needs at least 2 images in each set, not {n}")
    levels(*real.shape[2:])
    return {
        side: torch.arange(n) if len(s) == n else torch.randperm(len(s), generator=inputs.generator)[:n]
        for side, s in (("real", real), ("fake", fake))
    }


def _compute(inputs: Inputs) -> list[Value]:
    rows, g = _drawn(inputs), inputs.generator
    n, sides = len(rows["real"]), levels(*inputs.real.images.shape[2:])
    real, fake = inputs.real, inputs.fake
    x, y = (s.images[rows[name]] if len(s) > n else pixels(s) for name, s in (("real", real), ("fake", fake)))
    warnings = (f"{n:,} images instead of {ENOUGH:,}: biased upwards, comparable only at equal counts",) * (n < ENOUGH)

    values, total = [], torch.zeros(2, n, dtype=torch.float64)
    mean, variance_of_directions = 0.0, 0.0
    for level, side in enumerate(sides):
        patches_real, patches_fake = (patches(s, level, len(sides), g) for s in (x, y))
        distances, influence = sliced_wasserstein(patches_real, patches_fake, g, REPEATS, DIRECTIONS, x.shape[1])
        influence = influence.view(2, n, PATCHES).mean(2)
        variance = distances.var().item() / len(distances)
        error = math.sqrt(influence.var(1).sum().item() / n + variance)
        values.append(_value(distances.mean().item(), error, f"@{side}", (len(real), len(fake)), warnings))
        total += influence / len(sides)
        mean += distances.mean().item() / len(sides)
        variance_of_directions += variance / len(sides) ** 2
    error = math.sqrt(total.var(1).sum().item() / n + variance_of_directions)
    details = {"levels": sides, "patches": PATCHES, "directions": REPEATS * DIRECTIONS, "images": n}
    return [_value(mean, error, "", (len(real), len(fake)), warnings, details), *values]


def _value(
    value: float,
    error: float,
    suffix: str,
    counts: tuple[int, int],
    warnings: tuple[str, ...],
    details: dict[str, object] | None = None,
) -> Value:
    over = "the images of both sets (first order) and the directions"
    uncertainty, unknown = known(error, over, value, "the patches of both sets are equal", min(counts))
    return Value(value, uncertainty, *counts, suffix=suffix, details=details or {}, warnings=(*warnings, *unknown))


PROTOCOLS = [
    Protocol(
        stem="swd",
        version=1,
        summary=f"Sliced Wasserstein distance of {PATCH} x {PATCH} patches, by level of a Laplacian pyramid",
        source="Karras et al. 2018, arXiv:1710.10196, Sec. 5",
        direction="lower",
        compute=_compute,
        needs=frozenset({"real.images", "fake.images"}),
        rows=_drawn,
    )
]
