"""Squared Euclidean distances between the rows of two sets: fast in float32, exact where that cannot decide.

    |x - y|^2 = |x|^2 + |y|^2 - 2 x'y

The products are taken a tile at a time, of rows less a common centre c, since far from the origin the three terms
would cancel. In arithmetic of unit roundoff u, a sum of d products is off by at most d u |x - c| |y - c| in whatever
order it is taken, and by more than 8 d^(1/2) u |x - c| |y - c| less than once in 10^13 times, as rounding errors have
no sign of their own (Higham and Mary, 2019); so the distance is off by at most

    kappa (|x - c|^2 + |y - c|^2),    kappa = (min(d, 8 d^(1/2)) + 32) u.

Whoever compares it with t knows the answer, unless it lies within that of t; and where it is near t, |y - c|^2 is at
most 2 |x - c|^2 + 2 t. What is left undecided is decided by `exact`: the sum of squared differences in float64 of the
rows as they came, which is the same number for equal pairs of rows. So results do not depend on tiles, threads or the
processor, and agree with float64 throughout.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 2048  # rows and columns of a tile: 16 MiB of float32
SPARE = 3  # candidates beyond the k nearest, so that few rows have to be looked at again
UNDECIDED = 1e-3  # of the pairs of a tile: beyond that, products in float64 are faster than single pairs
LARGEST = 1e30  # squared norms that are larger, or all smaller than its inverse, leave the range of float32


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b' for N x d and M x d in their dtype: N x M; float32 through oneDNN where it is there.

    For matrices it is up to three times as fast as the BLAS that `torch.mm` calls. Never in less than float32.
    """
    if a.dtype != torch.float32:
        return a @ b.T
    if torch.get_float32_matmul_precision() != "highest":
        return (a.double() @ b.double().T).float()
    if torch.backends.mkldnn.is_available() and len(a) * len(b) * a.shape[1] > 1 << 20:
        dense: Tensor = F.linear(a.to_mkldnn(), b.to_mkldnn()).to_dense()
        return dense
    return a @ b.T


def exact(a: Tensor, i: Tensor, b: Tensor, j: Tensor) -> Tensor:
    """|a_i - b_j|^2 for pairs of row numbers, from the rows as they came: float64, one a pair."""
    if len(i) == 1:  # a single sum would be split among threads, and so rounded in another way
        return exact(a, i.repeat(2), b, j.repeat(2))[:1]
    chunk = max(2, (1 << 20) // max(a.shape[1], 1))
    parts = [(a[p].double() - b[q].double()).square_().sum(1) for p, q in _pairs(i, j, chunk)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def _pairs(i: Tensor, j: Tensor, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunks of at least two pairs."""
    start = 0
    while start < len(i):
        stop = len(i) if len(i) - start <= chunk + 1 else start + chunk
        yield i[start:stop], j[start:stop]
        start = stop


class Rows:
    """The rows of a set less a centre, a block at a time, with their squared norms.

    rows: N x d, float32 or float64. centre: d, in the same dtype. dtype: of the products, float32 where squares fit.
    """

    def __init__(self, rows: Tensor, centre: Tensor, tile: int = TILE):
        self.rows, self.centre = rows, centre
        self.spans = [(start, min(start + tile, len(rows))) for start in range(0, len(rows), tile)]
        self._squares: dict[torch.dtype, Tensor] = {}
        self.dtype = torch.float32
        largest = self.squares(torch.float32).max().item() if len(rows) else 0.0
        if not 1 / LARGEST < largest < LARGEST:
            self.dtype = torch.float64

    @property
    def norms(self) -> Tensor:
        """Squared norms: N, float64."""
        return self.squares(self.dtype)

    def squares(self, dtype: torch.dtype) -> Tensor:
        """Squared norms (float64) of the rows as they are in products of that dtype."""
        if dtype not in self._squares:
            blocks = (self.block(span, dtype).square_() for span in self.spans)
            self._squares[dtype] = torch.cat([block.sum(1).double() for block in blocks])
        return self._squares[dtype]

    def block(self, span: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """The rows of a span, centred."""
        rows = self.rows[slice(*span)]
        if dtype == torch.float64:
            return rows.double() - self.centre.double()
        return (rows - self.centre).to(dtype)

    def slack(self, squared: Tensor, dtype: torch.dtype) -> Tensor:
        """How far distances from these rows may be off where they are about `squared`: N, float64."""
        return self.kappa(dtype) * (3 * self.norms + 2 * squared)

    def kappa(self, dtype: torch.dtype) -> float:
        """Error of a squared distance in product form, by the sum of both norms."""
        d = self.rows.shape[1]
        return (min(d, 8 * math.sqrt(d)) + 32) * torch.finfo(dtype).eps / 2 * 1.01

    def __getitem__(self, which: Tensor) -> "Rows":
        return Rows(self.rows[which], self.centre)


def tile(x: Rows, rows: tuple[int, int], y: Rows, columns: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Squared distances by the product form between a block of x and a block of y, which share their centre."""
    d = product(x.block(rows, dtype).mul_(-2), y.block(columns, dtype))
    m, n = x.squares(dtype)[slice(*rows), None], y.squares(dtype)[slice(*columns)]
    return d.add_(m.to(dtype)).add_(n.to(dtype))


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2 for N x d and M x d by the product form in their dtype: N x M, not below 0, rounded.

    On rows centred by the caller: far from the origin it would lose digits.
    """
    d = product(a * -2, b)
    return d.add_(a.square().sum(1, keepdim=True)).add_(b.square().sum(1)).clamp_(min=0)


def usual(x: Tensor) -> Tensor:
    """Features in a dtype that the distances are made for: float64 as they are, anything else as float32."""
    return x if x.dtype == torch.float64 else x.float()


def mean(x: Tensor) -> Tensor:
    """The mean of N x d in its dtype, summed in float64."""
    return x.sum(0, dtype=torch.float64).div_(len(x)).to(x.dtype)


def distinct(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of N x d: the first of each distinct row (U indices), which of those each row is (N), how often it came (U)."""
    n = torch.arange(len(x))
    factors = torch.randint(1 << 62, (x.shape[1],), generator=torch.Generator().manual_seed(0)) * 2 + 1
    keys = []  # equal rows have equal keys, and different rows hardly ever
    for rows in x.split(TILE // 8):
        bits = (rows + 0.0).view(torch.int32 if x.dtype == torch.float32 else torch.int64)  # -0 becomes 0
        mixed = bits.long() * factors
        keys.append((mixed ^ (mixed >> 29)).sum(1))
    if len(torch.cat(keys).unique()) == len(x):
        return n, n, torch.ones_like(n)
    _, index, times = torch.unique(x + 0.0, dim=0, return_inverse=True, return_counts=True)
    return torch.full_like(times, len(x)).scatter_reduce_(0, index, n, "amin"), index, times


@dataclass(frozen=True)
class Neighbours:
    """The k nearest of the other rows, for each row of a set of N; rows that are equal are each other's neighbours.

    squared: N x k squared distances, ascending, float64, each within `error` (N) of the exact one.
    equal: N, how many others are equal to the row. candidates: N x c rows of the set: all distinct, and the nearest
    that differ from the row among them. times: N x c, how often each of them came. approximate: N x c, how far they
    are, within `error` where they may be among the k nearest.
    """

    squared: Tensor
    error: Tensor
    equal: Tensor
    candidates: Tensor
    times: Tensor
    approximate: Tensor

    def exactly(self, x: Tensor, rows: Tensor, k: int) -> Tensor:
        """Exact squared distances to the k-th nearest of the others, for these rows (indices) of the set x."""
        near, candidates = self.approximate[rows], self.candidates[rows]
        i, j = ((near - self.squared[rows, k - 1, None]).abs() <= 2 * self.error[rows, None]).nonzero().unbind(1)
        near[i, j] = exact(x, rows[i], x, candidates[i, j])
        return _ranked(near, self.times[rows], self.equal[rows], k)[:, -1]


def _ranked(squared: Tensor, times: Tensor, equal: Tensor, k: int) -> Tensor:
    """Distances to the 1st to k-th other, where the columns came `times` and `equal` others are at no distance."""
    squared, order = F.pad(squared, (0, 1), value=float("inf")).sort(dim=1, stable=True)
    reached = equal[:, None] + F.pad(times, (0, 1)).gather(1, order).cumsum(1)
    ranks = torch.arange(1, k + 1).repeat(len(squared), 1)
    at = torch.searchsorted(reached, ranks).clamp_(max=squared.shape[1] - 1)
    return torch.where(ranks <= equal[:, None], 0.0, squared.gather(1, at))


def neighbours(x: Tensor, k: int, size: int = TILE) -> Neighbours:
    """The k nearest others of each row of N x d, N > k. Memory: tiles of size x size."""
    x = usual(x)
    first, index, times = distinct(x)
    rows = x if len(first) == len(x) else x[first]
    points = Rows(rows, mean(rows), size)
    c = min(k + SPARE, len(rows) - 1)
    squared, at = _nearest_others(points, c)
    norms = points.norms + (points.norms[at].amax(1) if c else 0)
    error = points.kappa(points.dtype) * norms
    if c < len(rows) - 1:  # rows whose last candidate is not surely farther than the k-th are looked at in float64
        unsure = squared[:, -1] - points.slack(squared[:, -1], points.dtype) <= squared[:, k - 1] + error
        again = unsure.nonzero().squeeze(1)
        for some in again.split(size) if len(again) else ():
            squared[some], at[some] = _nearest(points[some], points, c, some)
            norms = points.norms[some] + points.norms[at[some]].amax(1)
            error[some] = points.kappa(torch.float64) * norms
    ranked = _ranked(squared, times[at], times - 1, k)
    made = (ranked, error, times - 1, first[at], times[at], squared)
    return Neighbours(*(t if len(first) == len(x) else t[index] for t in made))


def _nearest_others(points: Rows, c: int) -> tuple[Tensor, Tensor]:
    """The c nearest others of each row by the product form, each pair made once: distances, ascending, and which."""
    best = torch.full((len(points.rows), c), float("inf"), dtype=torch.float64)
    at = torch.zeros_like(best, dtype=torch.int64)
    for a, rows in enumerate(points.spans if c else []):
        for columns in points.spans[a:]:
            d = tile(points, rows, points, columns, points.dtype)
            if rows == columns:
                d.fill_diagonal_(float("inf"))
            else:
                _merge(best[slice(*columns)], at[slice(*columns)], d.T.contiguous(), rows[0])
            _merge(best[slice(*rows)], at[slice(*rows)], d, columns[0])
    return best, at


def _nearest(x: Rows, points: Rows, c: int, own: Tensor) -> tuple[Tensor, Tensor]:
    """The same in float64 for some of the rows, which are the rows `own` of the points."""
    best = torch.full((len(own), c), float("inf"), dtype=torch.float64)
    at = torch.zeros_like(best, dtype=torch.int64)
    for columns in points.spans:
        d = tile(x, (0, len(own)), points, columns, torch.float64)
        here = ((own >= columns[0]) & (own < columns[1])).nonzero().squeeze(1)
        d[here, own[here] - columns[0]] = float("inf")
        _merge(best, at, d, columns[0])
    return best, at


def _merge(best: Tensor, at: Tensor, d: Tensor, offset: int) -> None:
    """Take the smallest of a tile into the smallest so far, in place."""
    near, columns = d.topk(min(best.shape[1], d.shape[1]), dim=1, largest=False)
    values, order = torch.cat([best, near.double()], 1).sort(dim=1, stable=True)
    at.copy_(torch.cat([at, columns + offset], 1).gather(1, order)[:, : at.shape[1]])
    best.copy_(values[:, : best.shape[1]])
