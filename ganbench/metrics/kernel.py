"""Kernel distances: the squared maximum mean discrepancy of features; with Inception-v3 features `kd` is KID.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)

`kd` has the kernel k(a, b) = (a'b / d + 1)^3. Source: Bińkowski et al. (2018), "Demystifying MMD GANs",
arXiv:1801.01401, Section 4. The estimate is unbiased and can therefore be negative; it is never multiplied by 1000. The
protocol takes the mean over 100 subsets of 1,000 images (or of all images, if there are fewer), drawn without
replacement with torch-fidelity's seed and order (generated images first). The result agrees with torch-fidelity on the
same features, to 1e-6 if torch-fidelity gets float64: in float32 it loses digits of small distances. Lower is better.

`mmd_rbf` has the kernel k(a, b) = exp(-|a - b|^2 / (2 sigma^2)) with sigma = 10, on features normalised to length 1.
Source: Jayasumana et al. (2024), "Rethinking FID: Towards a Better Evaluation Metric for Image Generation",
arXiv:2401.09603, Section 4. Their CMMD uses CLIP's image embeddings and a factor of 1000, which is not applied here.
As in the official code, all pairs are used, including each sample with itself. The estimate is therefore biased upwards
by about (1 - E k) / n for each set, has the range [0, 2], and is 0 for a set against itself. Lower is better.

The standard error is of first order (Hoeffding's projection): sample i contributes 2 (mean_j k(x_i, x_j) - mean_j
k(x_i, y_j)). The spread of `kd` over subsets is not a standard error, because the subsets overlap. For fixed samples,
the mean over subsets varies around the U-statistic of all samples by that spread divided by the root of the number of
subsets; this term is added. If both sets have the same distribution, the first order overestimates the error of an
unbiased estimate by a factor of about 1.4.

Products are in float32, sums in float64. The parts of the kernel that depend on x alone or on y alone cancel in MMD^2.
They are removed beforehand, because they would add the rounding of much larger numbers. With c the mean of all
features, x = c + u, y = c + v, s = c'c/d + 1, p = u'c/d, q = v'c/d, g = u'v/d and A = s + p + q, the rest of the cubic
kernel is g (t^2 + tA + A^2) + 3pq (A + s), where t = A + g.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Value, known, require_features, require_rows
from ganbench.metrics.products import blas_product

SUBSETS, SUBSET_SIZE, SUBSET_SEED = 100, 1000, 2020
SIGMA = 10.0  # width of the kernel of `mmd_rbf`
ROWS = 2000  # rows of each set for the first-order error, unless all pairs are computed for the value
BLOCK = 1000  # rows at a time, to bound the memory; an even number

Block = Callable[[slice, slice], Tensor]  # the kernel between two slices of rows, float32


def cubic_kernel(a: Tensor, b: Tensor) -> Tensor:
    """Return (a b' / d + 1)^3 for N x d and M x d features: N x M, in their dtype."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def mmd2_unbiased(real: Tensor, fake: Tensor) -> float:
    """Return the unbiased MMD^2 of all samples with the cubic kernel, directly from the definition in float64.

    real, fake: floating N x d and M x d features. The value can be negative.
    Raises Unavailable if a set has fewer than two samples.
    Source: Bińkowski et al. (2018), Section 4.

    >>> round(mmd2_unbiased(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])), 6)
    9.5
    """
    require_rows(real, fake)
    _require_two(real, fake)
    x, y = real.double(), fake.double()
    n, m = len(x), len(y)
    k_xx, k_yy, k_xy = cubic_kernel(x, x), cubic_kernel(y, y), cubic_kernel(x, y)
    within_x = (k_xx.sum() - k_xx.diagonal().sum()) / (n * (n - 1))
    within_y = (k_yy.sum() - k_yy.diagonal().sum()) / (m * (m - 1))
    return (within_x + within_y - 2 * k_xy.mean()).item()


def kernel_distance(real: Tensor, fake: Tensor) -> Tensor:
    """Return the unbiased MMD^2 of 100 random subsets with the cubic kernel: float64 100; the mean is KID.

    real, fake: floating N x d and M x d features. A subset has 1,000 samples of each set, or all samples of the smaller
    set. The values can be negative.
    Raises Unavailable if a set has fewer than two samples.
    Source: Bińkowski et al. (2018), Section 4.

    >>> values = kernel_distance(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]]))
    >>> len(values), round(values.mean().item(), 3)
    (100, 9.5)
    """
    require_rows(real, fake)
    return _kernel_distance(real, fake)[0]


def standard_error(real: Tensor, fake: Tensor, most: int = ROWS) -> float:
    """Return the first-order standard error of the unbiased MMD^2 of all samples, over the samples of both sets.

    real, fake: floating N x d and M x d features. The variance of the projection is estimated from `most` evenly spaced
    rows of each set.
    """
    cubic = _Cubic.of(_spread(real, most), _spread(fake, most))
    return cubic.standard_error(cubic.all_pairs(), len(real), len(fake))


def mmd_rbf(real: Tensor, fake: Tensor, sigma: float = SIGMA) -> float:
    """Return the biased MMD^2 with the Gaussian kernel on features normalised to length 1, in [0, 2].

    real, fake: floating N x d and M x d features. sigma: width of the kernel.
    Raises Unavailable if a set has fewer than two samples.
    Source: Jayasumana et al. (2024), Section 4; CMMD is 1000 times this over CLIP embeddings.

    >>> real, fake = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    >>> round(mmd_rbf(real, fake, sigma=1.0), 3)
    1.264
    """
    require_rows(real, fake)
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, not {sigma}")
    return _mmd_rbf(real, fake, sigma)[0]


def _require_two(real: Tensor, fake: Tensor) -> None:
    if min(len(real), len(fake)) < 2:
        raise Unavailable("the kernel distance needs at least 2 images in each set")


def _spread(x: Tensor, most: int) -> Tensor:
    """At most `most` evenly spaced rows, because a set may be ordered by class."""
    return x[:: -(-len(x) // most)]


def _slices(n: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]


@dataclass
class _Sums:
    """Sums of a kernel over pairs, float64.

    rows: n x 2, sums of each row over the columns of even and of odd index. columns: m x 2, the same for each column.
    subsets: sums within each pair of subsets.
    """

    rows: Tensor
    columns: Tensor
    subsets: Tensor


def _sum_pairs(block: Block, n: int, m: int, same: bool, in_a: Tensor | None, in_b: Tensor | None) -> _Sums:
    """Sum the n x m kernel in blocks. same: rows and columns are one set, and pairs of a row with itself are excluded.

    in_a, in_b: float32 n x K and m x K, 1 for each row of a subset and 0 for the other rows.
    """
    rows, columns = torch.zeros(n, 2, dtype=torch.float64), torch.zeros(m, 2, dtype=torch.float64)
    subsets = torch.zeros(0 if in_a is None else in_a.shape[1], dtype=torch.float64)
    for i in _slices(n):
        for j in _slices(m):
            if same and j.start < i.start:
                continue
            k = block(i, j)
            mirrored = same and i != j
            if same and i == j:
                k.fill_diagonal_(0)
            for half in (0, 1):
                rows[i, half] += k[:, half::2].sum(1, dtype=torch.float64)
                if mirrored or not same:
                    (rows if mirrored else columns)[j, half] += k[half::2].sum(0, dtype=torch.float64)
            if in_a is not None and in_b is not None:
                subsets += (2 if mirrored else 1) * (in_a[i] * blas_product(k, in_b[j].T)).sum(0, dtype=torch.float64)
    return _Sums(rows, columns, subsets)


@dataclass
class _Cubic:
    """Two sets, prepared for the cubic kernel.

    u, v: centred rows (float32), whose products are g. p, q: their products with the centre (float64). All products are
    divided by `scale`^2, a typical a'b / d + 1, so that float32 neither overflows nor underflows.
    """

    u: Tensor
    v: Tensor
    p: Tensor
    q: Tensor
    s: float
    scale: float

    @classmethod
    def of(cls, real: Tensor, fake: Tensor) -> "_Cubic":
        d, n = real.shape[1], len(real) + len(fake)
        chunks = [*real.split(BLOCK), *fake.split(BLOCK)]
        centre = sum((c.sum(0, dtype=torch.float64) for c in chunks), torch.zeros(d, dtype=torch.float64)) / n
        size = sum(c.double().square().sum().item() for c in chunks) / n / d
        scale = math.sqrt(1 + size)
        root = math.sqrt(d) * scale
        sides = []
        for x in (real, fake):
            u, p = torch.empty(x.shape), torch.empty(len(x), dtype=torch.float64)
            for i in _slices(len(x)):
                rows = (x[i].double() - centre) / root
                u[i], p[i] = rows, rows @ centre / root
            sides.append((u, p))
        (u, p), (v, q) = sides
        return cls(u, v, p, q, ((centre @ centre).item() / d + 1) / scale**2, scale)

    def take(self, real: Tensor, fake: Tensor) -> "_Cubic":
        """Subsets of both sets, by indices."""
        return _Cubic(self.u[real], self.v[fake], self.p[real], self.q[fake], self.s, self.scale)

    def block(self, a: Tensor, p: Tensor, b: Tensor, q: Tensor) -> Tensor:
        """g (t^2 + tA + A^2) between rows."""
        g = blas_product(a, b)
        whole = p.float()[:, None] + (q + self.s).float()
        t = g + whole
        k = t * t
        return k.addcmul_(t, whole).addcmul_(whole, whole).mul_(g)

    def small_block(self, a: Tensor, p: Tensor, b: Tensor, q: Tensor) -> NDArray[np.float32]:
        """`block` with NumPy only: its product takes half the time if a and b are the same rows.

        All steps use NumPy, because the waiting threads of its product would delay those of torch.
        """
        g = a.numpy() @ b.numpy().T
        whole = np.add.outer(p.numpy().astype(np.float32), (q + self.s).numpy().astype(np.float32))
        t = g + whole
        k = t * t
        t *= whole
        k += t
        whole *= whole
        k += whole
        k *= g
        return k

    def rest(self, p: Tensor, q: Tensor) -> Tensor:
        """Sum of 3pq (A + s) over all q, for each p."""
        return 3 * p * ((2 * self.s + p) * q.sum() + q.square().sum())

    def own(self, p: Tensor) -> Tensor:
        """3pq (A + s) for q = p, for each p."""
        return 6 * p**2 * (self.s + p)

    def mmd2(self) -> float:
        """The unbiased MMD^2 of all rows."""
        n, m = len(self.u), len(self.v)
        total = 0.0
        for a, p, b, q, weight in (
            (self.u, self.p, self.u, self.p, 1 / (n * (n - 1))),
            (self.v, self.q, self.v, self.q, 1 / (m * (m - 1))),
            (self.u, self.p, self.v, self.q, -2 / (n * m)),
        ):
            same = a is b
            k = self.small_block(a, p, b, q)
            between = float(k.sum(dtype=np.float64)) - (float(k.trace(dtype=np.float64)) if same else 0)
            between += (self.rest(p, q).sum() - (self.own(p).sum() if same else 0)).item()
            total += weight * between
        return total * self.scale**6

    def all_pairs(self, in_x: Tensor | None = None, in_y: Tensor | None = None) -> tuple[_Sums, _Sums, _Sums]:
        """Sums over all pairs of real, of generated, and of real with generated samples."""
        u, v, p, q, n, m = self.u, self.v, self.p, self.q, len(self.u), len(self.v)
        return (
            _sum_pairs(lambda i, j: self.block(u[i], p[i], u[j], p[j]), n, n, True, in_x, in_x),
            _sum_pairs(lambda i, j: self.block(v[i], q[i], v[j], q[j]), m, m, True, in_y, in_y),
            _sum_pairs(lambda i, j: self.block(u[i], p[i], v[j], q[j]), n, m, False, in_x, in_y),
        )

    def standard_error(self, sums: tuple[_Sums, _Sums, _Sums], n: int, m: int) -> float:
        """First-order error of the unbiased MMD^2 of n and m samples; the rows are all of them or subsets."""
        xx, yy, xy = sums
        variance_real = self._variance(self.p, xx.rows, self.q, xy.rows, n) / n
        variance_fake = self._variance(self.q, yy.rows, self.p, xy.columns, m) / m
        return math.sqrt(variance_real + variance_fake) * self.scale**6

    def _variance(self, p: Tensor, within: Tensor, q: Tensor, between: Tensor, n: int) -> float:
        """The variance of 2 (mean_j k(x_i, x_j) - mean_j k(x_i, y_j)) for means over n samples."""
        same = (within.sum(1) + self.rest(p, p) - self.own(p)) / (len(p) - 1)
        variance = 4 * (same - (between.sum(1) + self.rest(p, q)) / len(q)).var().item()
        if len(p) == n:
            return variance
        # Means over smaller samples are noisier. The covariance of the means over two halves of the samples is the
        # variance of the projection; the rest of the variance decreases with the number of samples.
        halves = []
        for half in (0, 1):
            own = torch.zeros(len(p), dtype=torch.float64)
            own[half::2] = 1
            same = (within[:, half] + self.rest(p, p[half::2]) - own * self.own(p)) / (len(p[half::2]) - own)
            halves.append(2 * (same - (between[:, half] + self.rest(p, q[half::2])) / len(q[half::2])))
        shared = min(max(torch.cov(torch.stack(halves))[0, 1].item(), 0.0), variance)
        return shared + (variance - shared) * len(p) / n

    def mmd2_of_subsets(self, in_x: Tensor, in_y: Tensor, sums: tuple[_Sums, _Sums, _Sums]) -> Tensor:
        """The unbiased MMD^2 of each subset, from the sums within the subsets."""
        counts = in_x.sum(0, dtype=torch.float64)
        p1, p2, p3 = (in_x.double().T @ self.p**k for k in (1, 2, 3))
        q1, q2, q3 = (in_y.double().T @ self.q**k for k in (1, 2, 3))
        xx = sums[0].subsets + 3 * (2 * self.s * p1 * p1 + 2 * p1 * p2) - 6 * (self.s * p2 + p3)
        yy = sums[1].subsets + 3 * (2 * self.s * q1 * q1 + 2 * q1 * q2) - 6 * (self.s * q2 + q3)
        xy = sums[2].subsets + 3 * (2 * self.s * p1 * q1 + p2 * q1 + p1 * q2)
        return ((xx + yy) / (counts * (counts - 1)) - 2 * xy / counts**2) * self.scale**6


def _kernel_distance(real: Tensor, fake: Tensor) -> tuple[Tensor, float]:
    """The MMD^2 of each subset, and the first-order standard error over the samples."""
    _require_two(real, fake)
    n, m = len(real), len(fake)
    size = min(SUBSET_SIZE, n, m)
    rng = np.random.RandomState(SUBSET_SEED)
    drawn = []
    for _ in range(SUBSETS):
        y = torch.from_numpy(rng.choice(m, size, replace=False))
        drawn.append((torch.from_numpy(rng.choice(n, size, replace=False)), y))
    cubic = _Cubic.of(real, fake)
    if (n + m) ** 2 > 1.3 * SUBSETS * (2 * size) ** 2:
        values = torch.tensor([cubic.take(x, y).mmd2() for x, y in drawn], dtype=torch.float64)
        return values, standard_error(real, fake)
    # All pairs cost less than the pairs of all subsets: compute them once, and sum them for each subset.
    in_x, in_y = torch.zeros(n, SUBSETS), torch.zeros(m, SUBSETS)
    for k, (x, y) in enumerate(drawn):
        in_x[x, k] = in_y[y, k] = 1
    sums = cubic.all_pairs(in_x, in_y)
    return cubic.mmd2_of_subsets(in_x, in_y, sums), cubic.standard_error(sums, n, m)


def _mmd_rbf(real: Tensor, fake: Tensor, sigma: float) -> tuple[float, float]:
    """The biased MMD^2 under the Gaussian kernel, and its first-order standard error."""
    _require_two(real, fake)
    if torch.equal(real, fake):
        return 0.0, 0.0  # all terms cancel, but rounding would leave about 1e-12
    n, m = len(real), len(fake)
    total = torch.zeros(real.shape[1], dtype=torch.float64)
    for c in (*real.split(BLOCK), *fake.split(BLOCK)):
        total += _unit(c).sum(0)
    centre = total / (n + m)  # does not change the distances, but reduces their rounding
    sides = []
    for x in (real, fake):
        u, p = torch.empty(x.shape), torch.empty(len(x), dtype=torch.float64)
        for i in _slices(len(x)):
            rows = (_unit(x[i]) - centre) / sigma
            u[i], p[i] = rows, -rows.square().sum(1) / 2
        sides.append((u, p.float()))
    (u, p), (v, q) = sides

    def block(a: Tensor, p: Tensor, b: Tensor, q: Tensor) -> Tensor:
        """k - 1, so that small distances keep their digits; the ones cancel in MMD^2."""
        return blas_product(a, b).add_(p[:, None]).add_(q).clamp_(max=0).expm1_()

    xx = _sum_pairs(lambda i, j: block(u[i], p[i], u[j], p[j]), n, n, True, None, None)
    yy = _sum_pairs(lambda i, j: block(v[i], q[i], v[j], q[j]), m, m, True, None, None)
    xy = _sum_pairs(lambda i, j: block(u[i], p[i], v[j], q[j]), n, m, False, None, None)
    value = xx.rows.sum() / n**2 + yy.rows.sum() / m**2 - 2 * xy.rows.sum() / (n * m)
    a, b = 2 * (xx.rows / n - xy.rows / m).sum(1), 2 * (yy.rows / m - xy.columns / n).sum(1)
    return max(value.item(), 0.0), math.sqrt(a.var().item() / n + b.var().item() / m)


def _unit(x: Tensor) -> Tensor:
    """Rows normalised to length 1, in float64; rows of zeros stay zero."""
    x = x.double()
    return x / x.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)


def _compute(inputs: Inputs) -> list[Value]:
    real, fake = require_features(inputs)
    values, error_of_samples = _kernel_distance(real, fake)
    size, spread = min(SUBSET_SIZE, len(real), len(fake)), values.std(correction=0).item()
    error = math.hypot(error_of_samples, spread / math.sqrt(SUBSETS))
    over = "the samples of both sets (first order) and the draw of subsets"
    value, n = values.mean().item(), min(len(real), len(fake))
    uncertainty, unknown = known(error, over, value, "the features of both sets do not vary", n)
    details = {"subsets": SUBSETS, "subset_size": size, "std_over_subsets": spread}
    warnings = (f"subsets of {size} instead of {SUBSET_SIZE:,}",) if size < SUBSET_SIZE else ()
    return [Value(value, uncertainty, len(real), len(fake), details=details, warnings=(*warnings, *unknown))]


def _compute_rbf(inputs: Inputs) -> list[Value]:
    real, fake = require_features(inputs)
    value, error = _mmd_rbf(real, fake, SIGMA)
    alike = "both sets are equal, or the directions of their features do not vary"
    n = min(len(real), len(fake))
    uncertainty, unknown = known(error, "the samples of both sets (first order)", value, alike, n)
    details = {"sigma": SIGMA, "times_1000": value * 1000}
    unequal = f"{len(real):,} real and {len(fake):,} generated images: biased by their counts"
    warnings = (unequal,) if len(real) != len(fake) else ()
    return [Value(value, uncertainty, len(real), len(fake), details=details, warnings=(*warnings, *unknown))]


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
    ),
    Protocol(
        stem="mmd_rbf",
        version=1,
        summary=f"Biased MMD^2 of features of length 1, Gaussian kernel of sigma {SIGMA:g}",
        source="Jayasumana et al. 2024, arXiv:2401.09603, Sec. 4",
        direction="lower",
        compute=_compute_rbf,
        needs=frozenset({"real.features", "fake.features"}),
    ),
]
