"""Kernel distance: the squared maximum mean discrepancy of features under a cubic kernel; over Inception-v3 it is KID.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),    k(a, b) = (a'b / d + 1)^3

Bińkowski et al. (2018), "Demystifying MMD GANs", arXiv:1801.01401, Section 4. Unbiased, hence negative at times;
raw, never times 1000. The protocol takes the mean over 100 subsets of 1,000 (or of all, where there are fewer), drawn
without replacement with torch-fidelity's seed and order (fakes first), and agrees with it on the same features.
Lower is better.

The standard error is not the spread over subsets, which overlap. It has two parts. That of the U-statistic over all
samples is taken to first order (Hoeffding's projection): sample i contributes 2 (mean_j k(x_i, x_j) - mean_j
k(x_i, y_j)). Given the samples, the mean over subsets scatters around that U-statistic by their spread over the root
of their number. Where the two sets are alike, the first order overstates the error, by about 1.4.
"""

import math

import numpy as np
import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Uncertainty, Value, require_features

SUBSETS, SUBSET_SIZE, SUBSET_SEED = 100, 1000, 2020


def cubic_kernel(a: Tensor, b: Tensor) -> Tensor:
    """(a b' / d + 1)^3 for N x d and M x d: N x M, in the inputs' dtype."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def mmd2_unbiased(real: Tensor, fake: Tensor) -> float:
    """Unbiased MMD^2 under the cubic kernel of N x d and M x d features (float64 inside)."""
    x, y = real.double(), fake.double()
    n, m = len(x), len(y)
    k_xx, k_yy, k_xy = cubic_kernel(x, x), cubic_kernel(y, y), cubic_kernel(x, y)
    within_x = (k_xx.sum() - k_xx.diagonal().sum()) / (n * (n - 1))
    within_y = (k_yy.sum() - k_yy.diagonal().sum()) / (m * (m - 1))
    return (within_x + within_y - 2 * k_xy.mean()).item()


def standard_error(real: Tensor, fake: Tensor, most: int = 10_000, chunk: int = 1024) -> float:
    """First-order standard error of the unbiased MMD^2 of all N x d and M x d features over the samples of both sets.

    The variance of the projection is estimated from the first `most` rows of each set: it costs their number squared.
    """
    x, y = real[:most].double(), fake[:most].double()
    variance = 0.0
    for own, other, n in ((x, y, len(real)), (y, x, len(fake))):
        parts = []
        for rows in own.split(chunk):
            same = (cubic_kernel(rows, own).sum(1) - cubic_kernel(rows, rows).diagonal()) / (len(own) - 1)
            parts.append(2 * (same - cubic_kernel(rows, other).mean(1)))
        variance += torch.cat(parts).var().item() / n
    return math.sqrt(variance)


def _compute(inputs: Inputs) -> list[Value]:
    real, fake = require_features(inputs)
    size = min(SUBSET_SIZE, len(real), len(fake))
    if size < 2:
        raise Unavailable("the kernel distance needs at least 2 images on each side")
    rng = np.random.RandomState(SUBSET_SEED)
    values = []
    for _ in range(SUBSETS):
        y = fake[rng.choice(len(fake), size, replace=False)]
        x = real[rng.choice(len(real), size, replace=False)]
        values.append(mmd2_unbiased(x, y))
    spread = float(np.std(values))
    error = math.hypot(standard_error(real, fake), spread / math.sqrt(SUBSETS))
    uncertainty = Uncertainty(error, "standard error", "the samples of both sets (first order) and the draw of subsets")
    details = {"subsets": SUBSETS, "subset_size": size, "std_over_subsets": spread}
    warnings = (f"subsets of {size} instead of {SUBSET_SIZE:,}",) if size < SUBSET_SIZE else ()
    return [Value(float(np.mean(values)), uncertainty, len(real), len(fake), details=details, warnings=warnings)]


PROTOCOLS = [
    Protocol(
        stem="kd",
        version=1,
        summary=f"Kernel distance (MMD^2, cubic kernel), {SUBSETS} subsets of {SUBSET_SIZE:,}",
        source="Bińkowski et al. 2018, arXiv:1801.01401, Sec. 4",
        direction="lower",
        compute=_compute,
        needs=frozenset({"real.features", "fake.features"}),
        published=("kid", "inception-v3"),
    )
]
