"""MS-SSIM diversity: how alike two samples are on average. 1 is the same picture every time; lower is more diverse.

    MS-SSIM(x, y) = l_M(x, y)^{w_M} prod_{j=1..M} cs_j(x, y)^{w_j},  M = 5

Wang et al. (2003), "Multi-scale structural similarity for image quality assessment", for one pair; Odena et al.
(2017), arXiv:1610.09585, Section 4.2, for the mean over random pairs within a class as a measure of diversity. Range
[0, 1]; the reading depends on the data: compare with the row of real images.

Variant `shrunk-window`, after the ProGAN code base: at each scale the 11-tap Gaussian window (sigma 1.5) is shrunk to
the image where that is smaller, and sigma with it; scales are halved by 2 x 2 means (an odd last row or column is
averaged alone); negative terms count as 0. On images of 176 px and more whose sides are divisible by 16 it is the
usual MS-SSIM and agrees with pytorch-msssim.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Uncertainty, Value, require_labels

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
PAIRS_PER_CLASS = 100
PAIRS = 1000


def _window(size: int) -> Tensor:
    """Gaussian window of `size` taps that sums to 1; sigma is 1.5 at 11 taps and shrinks in proportion."""
    sigma = 1.5 * size / 11
    t = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    w = torch.exp(-(t**2) / (2 * sigma**2))
    return w / w.sum()


def _blur(x: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Separable 'valid' filtering of N x C x H x W."""
    c = x.shape[1]
    x = F.conv2d(x, vertical.view(1, 1, -1, 1).expand(c, -1, -1, -1), groups=c)
    return F.conv2d(x, horizontal.view(1, 1, 1, -1).expand(c, -1, -1, -1), groups=c)


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """MS-SSIM of N pairs of uint8 images N x C x H x W: float64, shape N, in [0, 1]; the mean over channels.

    Computed in float64, since small windows over flat regions lose all digits of float32.
    """
    x, y = a.double(), b.double()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    result: Tensor | None = None
    for scale, weight in enumerate(WEIGHTS):
        h, w = x.shape[2:]
        wv, wh = _window(min(11, h)), _window(min(11, w))
        mu_x, mu_y = _blur(x, wv, wh), _blur(y, wv, wh)
        var_x = _blur(x * x, wv, wh) - mu_x**2
        var_y = _blur(y * y, wv, wh) - mu_y**2
        cov = _blur(x * y, wv, wh) - mu_x * mu_y
        term = (2 * cov + c2) / (var_x + var_y + c2)
        if scale == len(WEIGHTS) - 1:
            term = term * (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1)
        factor = term.mean((2, 3)).clamp(min=0) ** weight  # N x C
        result = factor if result is None else result * factor
        x, y = (F.avg_pool2d(t, 2, ceil_mode=True, count_include_pad=False) for t in (x, y))
    assert result is not None
    return result.mean(1)


def random_pairs(rows: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`count` ordered pairs of two different entries of `rows` (indices), drawn independently."""
    n = len(rows)
    first = torch.randint(n, (count,), generator=generator)
    second = (first + torch.randint(1, n, (count,), generator=generator)) % n
    return rows[first], rows[second]


def _over_pairs(images: Tensor, pairs: tuple[Tensor, Tensor], values: int = 1 << 20) -> Tensor:
    """MS-SSIM of each pair of rows; `values` pixels at a time, to bound the memory."""
    batch = max(1, values // images[0].numel())
    batches = zip(pairs[0].split(batch), pairs[1].split(batch), strict=True)
    return torch.cat([ms_ssim(images[a], images[b]) for a, b in batches])


def _within_classes(inputs: Inputs) -> list[Value]:
    images, labels = inputs.fake.images, require_labels(inputs.fake)
    means, variance = {}, 0.0
    for c in labels.unique().tolist():
        rows = (labels == c).nonzero().squeeze(1)
        if len(rows) < 2:
            raise Unavailable(f"class {c} has one image: a pair needs two")
        values = _over_pairs(images, random_pairs(rows, PAIRS_PER_CLASS, inputs.generator))
        means[str(c)] = values.mean().item()
        variance += values.var().item() / PAIRS_PER_CLASS
    classes = len(means)
    uncertainty = Uncertainty(math.sqrt(variance) / classes, "standard error", f"{PAIRS_PER_CLASS} pairs a class")
    per_class = {c: round(mean, 6) for c, mean in means.items()}
    details = {"variant": "shrunk-window", "pairs": PAIRS_PER_CLASS * classes, "per_class": per_class}
    return [Value(sum(means.values()) / classes, uncertainty, 0, len(images), details=details)]


def _over_all(inputs: Inputs) -> list[Value]:
    images = inputs.fake.images
    if len(images) < 2:
        raise Unavailable("a pair needs two images")
    values = _over_pairs(images, random_pairs(torch.arange(len(images)), PAIRS, inputs.generator))
    uncertainty = Uncertainty(values.std().item() / math.sqrt(PAIRS), "standard error", f"{PAIRS} pairs")
    details = {"variant": "shrunk-window", "pairs": PAIRS}
    return [Value(values.mean().item(), uncertainty, 0, len(images), details=details)]


PROTOCOLS = [
    Protocol(
        stem="ms_ssim",
        version=1,
        summary=f"MS-SSIM of pairs within a class (shrunk-window), {PAIRS_PER_CLASS} pairs a class",
        source="Odena et al. 2017, arXiv:1610.09585, Sec. 4.2",
        direction="none",
        compute=_within_classes,
        needs=frozenset({"fake.images", "fake.labels"}),
    ),
    Protocol(
        stem="ms_ssim_all",
        version=1,
        summary=f"MS-SSIM of pairs over all samples (shrunk-window), {PAIRS:,} pairs",
        source="Wang et al. 2003; pairs as in Karras et al. 2018, arXiv:1710.10196",
        direction="none",
        compute=_over_all,
    ),
]
