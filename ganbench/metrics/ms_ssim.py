"""MS-SSIM as a measure of diversity: the mean similarity of two samples. 1 means equal images, lower is more diverse.

    MS-SSIM(x, y) = l_M(x, y)^{w_M} prod_{j=1..M} cs_j(x, y)^{w_j},  M = 5

Sources: Wang et al. (2003), "Multi-scale structural similarity for image quality assessment", for one pair; Odena et
al. (2017), arXiv:1610.09585, Section 4.2, for the mean over random pairs within a class as a measure of diversity.
Range [0, 1]. A good value depends on the data: compare with the row of real data.

Published implementations differ below 176 px, so that the variants have names. Both variants halve the scales by 2 x 2
means (an odd last row or column is averaged alone), count negative terms as 0, and are defined from 1 px upwards. On
square images of 176 px and more whose sides are divisible by 16, both equal the usual MS-SSIM of pytorch-msssim.

- `shrunk-window` (used by the protocols), as in the ProGAN code base: if the image is smaller than the 11-tap Gaussian
  window (sigma 1.5) at a scale, the window shrinks to the image, and sigma in proportion.
- `cut-window`, as in compare_gan: the window is cut to the image, and sigma stays 1.5.

Standard errors are over the samples and the pairs. There is none from fewer than 5 images, or if all pairs are equally
similar.

Images above 64 px are filtered in float32 (by oneDNN, with all planes of a batch side by side). The terms use the
difference of the two images, so that their common part cancels before rounding: the result is within 1e-5 of float64,
and exactly 1 for equal images. If a factor is so near 0 that its root would amplify the rounding, the pair is computed
again in float64.
"""

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from ganbench.metrics.contract import (
    ImageSet,
    Inputs,
    Protocol,
    Unavailable,
    Value,
    known,
    require_labels,
    require_tensor,
)

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
PAIRS_PER_CLASS = 100
PAIRS = 1000
VARIANTS = ("shrunk-window", "cut-window")
CACHED = 500_000  # pixels of the first images that are filtered together; more do not fit the processor's cache
ROUNDING = 2e-5  # largest difference of two MS-SSIM that rounding can make
SMALL = 0.01  # rounding changes a factor by at most 1e-6; if the factor is above SMALL, its root by less than 1e-5


def _window(size: int, variant: str = "shrunk-window") -> Tensor:
    """Gaussian window of `size` taps that sums to 1. With fewer than 11 taps, sigma shrinks or stays 1.5 (variants)."""
    sigma = 1.5 * size / 11 if variant == "shrunk-window" else 1.5
    t = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    w = torch.exp(-(t**2) / (2 * sigma**2))
    return w / w.sum()


def ms_ssim(a: Tensor, b: Tensor, variant: str = "shrunk-window") -> Tensor:
    """Return the MS-SSIM of N pairs of images, as the mean over channels: float64 N, in [0, 1].

    a, b: N x C x H x W in 0..255, uint8 or floating. Images above 64 px are computed in float32 if the result is exact
    to 1e-5, unless they are float64; all others are computed in float64. variant: 'shrunk-window' or 'cut-window'.
    Raises ValueError if the shapes differ or the variant is unknown.
    Source: Wang et al. (2003).

    >>> black, white = torch.zeros(1, 1, 16, 16), torch.full((1, 1, 16, 16), 255.0)
    >>> ms_ssim(torch.cat([black, black]), torch.cat([black, white])).round(decimals=3)
    tensor([1.0000, 0.2930], dtype=torch.float64)
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant '{variant}' of MS-SSIM: {', '.join(VARIANTS)}")
    for x, name in ((a, "a"), (b, "b")):
        require_tensor(x, name, "N x C x H x W", "real")
        if x.is_floating_point() and x.numel() and not 0 <= x.min() <= x.max() <= 255:
            raise ValueError(f"{name} must have pixels in 0..255, not in {x.min():g}..{x.max():g}")
    if a.shape != b.shape:
        raise ValueError(f"pairs need images of one shape, not {tuple(a.shape)} and {tuple(b.shape)}")
    pairs = max(1, -(-CACHED // max(1, a[:1].numel())))
    parts = [_ms_ssim(x, y, variant) for x, y in zip(a.split(pairs), b.split(pairs), strict=True)]
    return torch.cat(parts)


def _ms_ssim(a: Tensor, b: Tensor, variant: str) -> Tensor:
    if min(a.shape[2:]) <= 64 or a.dtype == torch.float64:
        return _combined(_factors(a.double() - 127.5, b.double() - 127.5, _banded, variant))
    n, c, h, w = a.shape
    x, y = (t.reshape(1, n * c, h, w).contiguous(memory_format=torch.channels_last).float().sub_(127.5) for t in (a, b))
    factors = _factors(x, y, _depthwise, variant).view(len(WEIGHTS), n, c)
    values = _combined(factors)
    inexact = ((factors < SMALL) & (factors > -SMALL)).any(2).any(0)
    if inexact.any():
        values[inexact] = _ms_ssim(a[inexact].double(), b[inexact].double(), variant)
    return values


Pairs = tuple[Tensor, Tensor]  # indices of the first and of the second images: int64 P, twice
Blur = Callable[[list[Tensor], Tensor, Tensor], list[Tensor]]  # (maps, vertical and horizontal window) -> filtered maps


def _factors(x: Tensor, y: Tensor, blur: Blur, variant: str) -> Tensor:
    """The terms cs of each scale, and l cs of the last one, of images N x C x H x W minus 127.5: float64 5 x N x C."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    means = []
    for scale in range(len(WEIGHTS)):
        h, w = x.shape[2:]
        d = x - y
        level = d.mean((2, 3), keepdim=True).round_()  # a whole number: subtraction is exact, variances do not change
        d = d - level
        # Filter four maps instead of the usual five: 2 cov(x, y) = var x + var y - var(x - y).
        mu_x, mu_y, squares, differences = blur(
            [x, y, (x * x).addcmul_(y, y), d * d], _window(min(11, h), variant), _window(min(11, w), variant)
        )
        mu_d = mu_x - mu_y - level
        spread = (squares - mu_x * mu_x).addcmul_(mu_y, mu_y, value=-1).add_(c2)
        term = 1 - differences.addcmul_(mu_d, mu_d, value=-1).div_(spread)
        if scale == len(WEIGHTS) - 1:
            mu_x, mu_y = mu_x + 127.5, mu_y + 127.5
            term = term * (1 - (mu_x - mu_y) ** 2 / (mu_x * mu_x + mu_y * mu_y + c1))
        means.append(term.mean((2, 3), dtype=torch.float64))
        x, y = (F.avg_pool2d(t, 2, ceil_mode=True, count_include_pad=False) for t in (x, y))
    return torch.stack(means)


def _combined(factors: Tensor) -> Tensor:
    """Weighted geometric mean over 5 scales, then mean over channels: from 5 x N x C to N."""
    weights = torch.tensor(WEIGHTS, dtype=torch.float64).view(-1, 1, 1)
    return (factors.clamp(min=0) ** weights).prod(0).mean(1)


def _depthwise(maps: list[Tensor], vertical: Tensor, horizontal: Tensor) -> list[Tensor]:
    """Separable 'valid' filtering of maps 1 x P x H x W, channels last, float32."""
    x = torch.cat(maps, 1)
    planes = x.shape[1]
    x = F.conv2d(x, _rounded(vertical).view(1, 1, -1, 1).repeat(planes, 1, 1, 1), groups=planes)
    x = F.conv2d(x, _rounded(horizontal).view(1, 1, 1, -1).repeat(planes, 1, 1, 1), groups=planes)
    return list(x.split(planes // len(maps), 1))


def _rounded(window: Tensor) -> Tensor:
    """The window in float32 with a sum of 1: the rounding error is added to the first tap, which is the smallest."""
    taps = window.float()
    taps[0] += 1 - taps.double().sum()
    return taps


def _banded(maps: list[Tensor], vertical: Tensor, horizontal: Tensor) -> list[Tensor]:
    """Separable 'valid' filtering of maps N x C x H x W, float64, as products with band matrices."""
    return [_product(_product(x.mT, vertical).mT, horizontal) for x in maps]


def _product(x: Tensor, window: Tensor, block: int = 54) -> Tensor:
    """Filter along the last axis in blocks of `block` results, because a whole band matrix is mostly zeros."""
    taps, results = len(window), x.shape[-1] - len(window) + 1
    parts = []
    for start in range(0, results, block):
        k = min(block, results - start)
        band = torch.zeros(k + taps - 1, k, dtype=x.dtype)
        for i in range(taps):
            band.diagonal(-i).fill_(window[i])
        parts.append(x[..., start : start + k + taps - 1] @ band)
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def random_pairs(rows: Tensor, count: int, generator: torch.Generator) -> Pairs:
    """Return `count` independent random pairs of two different entries of `rows`: int64 `count`, twice.

    rows: int64, indices of images, at least two.
    """
    n = len(rows)
    first = torch.randint(n, (count,), generator=generator)
    second = (first + torch.randint(1, n, (count,), generator=generator)) % n
    return rows[first], rows[second]


def pairs_within_classes(labels: Tensor, count: int, generator: torch.Generator) -> dict[int, Pairs]:
    """Return `count` random pairs of images within each class, by class.

    labels: int64 N. Raises Unavailable if a class has only one image.
    """
    pairs = {}
    for c in labels.unique().tolist():
        rows = (labels == c).nonzero().squeeze(1)
        if len(rows) < 2:
            raise Unavailable(f"class {c} has one image, and a pair needs two")
        pairs[c] = random_pairs(rows, count, generator)
    return pairs


def rows_of(pairs: Iterable[Pairs]) -> Tensor:
    """Return the indices of the images of all pairs: int64, ascending, each once."""
    return torch.cat([torch.zeros(0, dtype=torch.int64), *(rows for both in pairs for rows in both)]).unique()


def over_pairs(images: Tensor | ImageSet, pairs: Pairs, values: int = 1 << 24) -> Tensor:
    """Return the MS-SSIM of each pair of images: float64 P, in [0, 1].

    images: uint8 N x C x H x W. pairs: indices of both images. values: pixels that are gathered at a time, to bound the
    memory.
    """
    batch = max(1, values // max(1, images.shape[1:].numel()))
    batches = zip(pairs[0].split(batch), pairs[1].split(batch), strict=True)
    return torch.cat([ms_ssim(images[a], images[b]) for a, b in batches])


def pairs_variance(values: Tensor, pairs: Pairs) -> float:
    """Return the variance of the mean of P values of image pairs, where pairs with a common image are dependent.

    values: float64 P. pairs: two int64 P, the indices of the images.
    The variance is the sum of products of deviations over all pairs of pairs with a common image, divided by P^2. It is
    never below the variance for independent pairs. Source: dyadic clusters, Aronow, Samii and Assenova (2015).
    """
    n, deviations = len(values), values - values.mean()
    by_image = torch.zeros(int(torch.stack(pairs).max()) + 1, dtype=torch.float64)
    for images in pairs:
        by_image.index_add_(0, images, deviations)
    shared = by_image.square().sum() - deviations.square().sum()
    return max(shared.item() / n**2, values.var().item() / n)


def _alike(values: Tensor) -> bool:
    """True if the values differ by rounding alone (see the module's docstring)."""
    return bool(values.max() - values.min() <= ROUNDING)


def _pairs_of_classes(inputs: Inputs) -> dict[int, Pairs]:
    """The pairs of `ms_ssim`."""
    return pairs_within_classes(require_labels(inputs.fake), PAIRS_PER_CLASS, inputs.generator)


def _pairs_of_all(inputs: Inputs) -> Pairs:
    """The pairs of `ms_ssim_all`."""
    n = len(inputs.fake)
    if n < 2:
        raise Unavailable("a pair needs two images")
    return random_pairs(torch.arange(n), PAIRS, inputs.generator)


def _within_classes(inputs: Inputs) -> list[Value]:
    images = inputs.fake.images
    means, variance, alike = {}, 0.0, True
    for c, pairs in _pairs_of_classes(inputs).items():
        values = over_pairs(images, pairs)
        means[str(c)] = values.mean().item()
        variance += pairs_variance(values, pairs)
        alike = alike and _alike(values)
    classes = len(means)
    over = f"the samples and {PAIRS_PER_CLASS} pairs a class"
    fewest = int(require_labels(inputs.fake).unique(return_counts=True)[1].min())
    error = 0.0 if alike else math.sqrt(variance) / classes
    uncertainty, unknown = known(error, over, 1, "all pairs of a class are equally similar", fewest)
    per_class = {c: round(mean, 6) for c, mean in means.items()}
    details = {"variant": "shrunk-window", "pairs": PAIRS_PER_CLASS * classes, "per_class": per_class}
    return [Value(sum(means.values()) / classes, uncertainty, 0, len(images), details=details, warnings=unknown)]


def _over_all(inputs: Inputs) -> list[Value]:
    images, pairs = inputs.fake.images, _pairs_of_all(inputs)
    values = over_pairs(images, pairs)
    error = 0.0 if _alike(values) else math.sqrt(pairs_variance(values, pairs))
    over = f"the samples and {PAIRS:,} pairs of them"
    uncertainty, unknown = known(error, over, 1, "all pairs are equally similar", len(images))
    details = {"variant": "shrunk-window", "pairs": PAIRS}
    return [Value(values.mean().item(), uncertainty, 0, len(images), details=details, warnings=unknown)]


PROTOCOLS = [
    Protocol(
        stem="ms_ssim",
        version=1,
        summary=f"MS-SSIM of pairs within a class (shrunk-window), {PAIRS_PER_CLASS} pairs a class",
        source="Odena et al. 2017, arXiv:1610.09585, Sec. 4.2",
        direction="none",
        compute=_within_classes,
        needs=frozenset({"fake.images", "fake.labels"}),
        rows=lambda inputs: {"fake": rows_of(_pairs_of_classes(inputs).values())},
    ),
    Protocol(
        stem="ms_ssim_all",
        version=1,
        summary=f"MS-SSIM of pairs over all samples (shrunk-window), {PAIRS:,} pairs",
        source="Wang et al. 2003; pairs as in Karras et al. 2018, arXiv:1710.10196",
        direction="none",
        compute=_over_all,
        rows=lambda inputs: {"fake": rows_of([_pairs_of_all(inputs)])},
    ),
]
