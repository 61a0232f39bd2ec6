"""Sliced Wasserstein distance of patches at the levels of a Laplacian pyramid: texture and structure, scale by scale.

    SWD = mean over directions u, over ranks j of | sort(u'A)_j - sort(u'B)_j |,    |u| = 1

with A and B the patches of real and generated images at one level. Karras et al. (2018), "Progressive Growing of GANs
for Improved Quality, Stability, and Variation", arXiv:1710.10196, Section 5, as in its code: of every image 128 patches
of 7 x 7 pixels at random places at each level, each channel of a set's patches less its mean and over its standard
deviation, 4 times 128 directions. The pyramid is halved (5 x 5 binomial filter, mirrored borders) while the next level
has 16 pixels a side or more; each level but the last is the difference from the next one, enlarged. So images of 28
pixels have the one level of 28, that is the pixels themselves. Images of 1 channel are taken as they come, where the
code knows 3 only.

Range [0, inf), lower is better: raw, where the paper's tables print it times 1,000. Biased upwards at small counts; the
paper takes 16,384 images on either side. `swd` is the mean over levels, `swd@32` the level of 32 pixels. At most 16,384
images are used, drawn at random, which bounds the memory: 4 bytes for each of 49 x 128 values an image, channel and
set (2.5 GB for 16,384 colour images).

The standard error is over the images of both sets, to first order, and over the directions. Along one direction the
transport T takes the j-th smallest of A to the j-th smallest of B, and a patch at x has the influence phi(x) with
phi'(x) = sign(x - T(x)), less what it does through the mean and the standard deviation that all patches are normalised
by; an image's influence is the mean over its patches, over directions and levels. Where both sets are of one
distribution the distance is all bias, and that error is too large, up to twice.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Uncertainty, Value
from ganbench.metrics.products import blas_product

PATCH, PATCHES, REPEATS, DIRECTIONS = 7, 128, 4, 128
SMALLEST = 16  # pixels a side of the last level
ENOUGH = 16_384  # images
AT_ONCE = 8  # directions whose projections are sorted together, to bound the memory
IMAGES_AT_ONCE = 512
ERROR_DIRECTIONS = 32  # of each repeat, from which images' influences are taken: ordering costs more than sorting
_TAPS = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16


def potentials(x: Tensor, slope: Tensor) -> Tensor:
    """phi at sorted x (K x n), ascending along rows, with phi' = `slope` at each: integrated by trapezia, mean 0."""
    rise = (x[:, 1:] - x[:, :-1]) * (slope[:, 1:] + slope[:, :-1]) / 2
    phi = F.pad(rise.cumsum(1), (1, 0))
    return phi - phi.mean(1, keepdim=True)


def _blur(x: Tensor, gain: float) -> Tensor:
    """The 5 x 5 binomial filter times `gain` on N x C x H x W, with mirrored borders."""
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
    """The shorter sides of the levels: 64, 32, 16 for 64 pixels. Raises Unavailable for sides that do not halve."""
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
    """`count` levels of N x C x H x W images, float32: each less the next one enlarged, and the last as it is."""
    pyramid = [images.float()]
    for _ in range(1, count):
        smaller = _halve(pyramid[-1])
        pyramid[-1] = pyramid[-1] - _double(smaller)
        pyramid.append(smaller)
    return pyramid


def patches(images: Tensor, level: int, count: int, generator: torch.Generator) -> Tensor:
    """Normalised 7 x 7 patches of level `level` of `count`: float32 (N 128) x (C 49), image by image."""
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
    """Mean and population variance of all elements, in float64 without a copy in it."""
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
    """Sliced Wasserstein-1 distance of N x D and N x D descriptors by direction, and the descriptors' influences.

    channels: of so many equal parts of D, each was normalised by its own mean and standard deviation over the set,
    which belongs to the influences. Returns float64 (repeats directions) and 2 x N: influences on the mean distance,
    of reals and of fakes.
    """
    if real.shape != fake.shape:
        raise ValueError(f"descriptors {tuple(real.shape)} and {tuple(fake.shape)}: the distance pairs them")
    distances = []
    n, d = real.shape
    influence = torch.zeros(2, n, dtype=torch.float64)
    moved, stretched = torch.zeros(2, 2, d, dtype=torch.float64)  # what moving or stretching a component does, by set
    for _ in range(repeats):
        u = torch.randn(directions, d, generator=generator, dtype=torch.float64)
        u = (u / u.norm(dim=1, keepdim=True)).float()
        for start in range(0, directions, AT_ONCE):
            some = u[start : start + AT_ONCE]
            a, b = (blas_product(some, s) for s in (real, fake))
            if start >= ERROR_DIRECTIONS:
                # NumPy sorts float32 with vector instructions.
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


def _compute(inputs: Inputs) -> list[Value]:
    real, fake, g = inputs.real.images, inputs.fake.images, inputs.generator
    if real.shape[1:] != fake.shape[1:]:
        raise Unavailable("generated and real images differ in size")
    n = min(len(real), len(fake), ENOUGH)
    if n < 2:
        raise Unavailable(f"the distance needs at least 2 images in each set, not {n}")
    sides = levels(*real.shape[2:])
    x, y = (s if len(s) == n else s[torch.randperm(len(s), generator=g)[:n]] for s in (real, fake))
    warnings = (f"{n:,} images instead of {ENOUGH:,}: biased upwards, comparable only at equal counts",) * (n < ENOUGH)

    values, total = [], torch.zeros(2, n, dtype=torch.float64)
    mean, directions = 0.0, 0.0
    for level, side in enumerate(sides):
        of_real, of_fake = (patches(s, level, len(sides), g) for s in (x, y))
        distances, influence = sliced_wasserstein(of_real, of_fake, g, REPEATS, DIRECTIONS, x.shape[1])
        influence = influence.view(2, n, PATCHES).mean(2)
        scatter = distances.var().item() / len(distances)
        error = math.sqrt(influence.var(1).sum().item() / n + scatter)
        values.append(_value(distances.mean().item(), error, f"@{side}", (len(real), len(fake)), warnings))
        total += influence / len(sides)
        mean, directions = mean + distances.mean().item() / len(sides), directions + scatter / len(sides) ** 2
    error = math.sqrt(total.var(1).sum().item() / n + directions)
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
    over = Uncertainty(error, "standard error", "the images of both sets (first order) and the directions")
    return Value(value, over, *counts, suffix=suffix, details=details or {}, warnings=warnings)


PROTOCOLS = [
    Protocol(
        stem="swd",
        version=1,
        summary=f"Sliced Wasserstein distance of {PATCH} x {PATCH} patches, by level of a Laplacian pyramid",
        source="Karras et al. 2018, arXiv:1710.10196, Sec. 5",
        direction="lower",
        compute=_compute,
        needs=frozenset({"real.images", "fake.images"}),
    )
]
