"""Squared Euclidean distances between the rows of two sets: preselect in float32, decide exactly.

    |x - y|^2 = |x|^2 + |y|^2 - 2 x'y

The products are computed one tile at a time, from rows minus a common centre c: far from the origin the three terms
would cancel. With unit roundoff u, a sum of d products has an error of at most d u |x - c| |y - c| in any order of
summation. The probability of an error above 8 d^(1/2) u |x - c| |y - c| is below 10^-13, because rounding errors have
random signs (Higham and Mary, 2019). The error of a distance is therefore at most

    kappa (|x - c|^2 + |y - c|^2),    kappa = (min(d, 8 d^(1/2)) + 32) u.

A comparison with a threshold t is certain unless the distance lies within this bound of t; near t, |y - c|^2 is at
most 2 |x - c|^2 + 2 t. The uncertain comparisons are decided by `exact`: the sum of squared differences in float64 of
the original rows, which is the same number for equal pairs of rows. Results therefore do not depend on tiles, threads
or the processor, and agree with float64.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ganbench.metrics.products import product

TILE = 2048  # rows and columns of a tile: 16 MiB of float32
SPARE = 3  # candidates beyond the k nearest, so that few rows need a second search
UNDECIDED = 1e-3  # share of the pairs of a tile; above it, products in float64 are faster than single pairs
LARGEST = 1e30  # squared norms above it, or all below its inverse, leave the range of float32


def exact(a: Tensor, i: Tensor, b: Tensor, j: Tensor) -> Tensor:
    """Return |a_i - b_j|^2 for each pair of row numbers (i, j), from the original rows: float64, one for each pair."""
    if len(i) == 1:  # a single sum would be split among threads, and rounded in another way
        return exact(a, i.repeat(2), b, j.repeat(2))[:1]
    chunk = max(2, (1 << 20) // max(a.shape[1], 1))
    parts = [(a[p].double() - b[q].double()).square_().sum(1) for p, q in _pairs(i, j, chunk)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def _pairs(i: Tensor, j: Tensor, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield chunks of at least two pairs."""
    start = 0
    while start < len(i):
        stop = len(i) if len(i) - start <= chunk + 1 else start + chunk
        yield i[start:stop], j[start:stop]
        start = stop


class Rows:
    """Rows of a set minus a centre, one block at a time, with their squared norms.

    rows: N x d, float32 or float64. centre: d, in the same dtype. dtype: the dtype of products, float32 if squares fit.
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
        """Squared norms of the centred rows in that dtype: N, float64."""
        if dtype not in self._squares:
            blocks = (self.block(span, dtype).square_() for span in self.spans)
            self._squares[dtype] = torch.cat([block.sum(1).double() for block in blocks])
        return self._squares[dtype]

    def block(self, span: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Centred rows of a span."""
        rows = self.rows[slice(*span)]
        if dtype == torch.float64:
            return rows.double() - self.centre.double()
        return (rows - self.centre).to(dtype)

    def slack(self, squared: Tensor, dtype: torch.dtype) -> Tensor:
        """Error bound of distances from these rows that are about `squared`: N, float64."""
        return self.kappa(dtype) * (3 * self.norms + 2 * squared)

    def kappa(self, dtype: torch.dtype) -> float:
        """Error bound of a squared distance in product form, as a share of the sum of both squared norms."""
        d = self.rows.shape[1]
        return (min(d, 8 * math.sqrt(d)) + 32) * torch.finfo(dtype).eps / 2 * 1.01

    def __getitem__(self, which: Tensor) -> "Rows":
        return Rows(self.rows[which], self.centre)


def tile(x: Rows, rows: tuple[int, int], y: Rows, columns: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Squared distances by the product form between a block of x and a block of y, which have one centre."""
    d = product(x.block(rows, dtype).mul_(-2), y.block(columns, dtype))
    m, n = x.squares(dtype)[slice(*rows), None], y.squares(dtype)[slice(*columns)]
    return d.add_(m.to(dtype)).add_(n.to(dtype))


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return |a_i - b_j|^2 for N x d and M x d by the product form, rounded in their dtype: N x M, at least 0.

    The caller centres the rows: far from the origin the product form loses digits.
    """
    d = product(a * -2, b)
    return d.add_(a.square().sum(1, keepdim=True)).add_(b.square().sum(1)).clamp_(min=0)


def usual(x: Tensor) -> Tensor:
    """Features in the dtype of the distances: float64 unchanged, any other dtype as float32."""
    return x if x.dtype == torch.float64 else x.float()


def mean(x: Tensor) -> Tensor:
    """Mean of N x d in its dtype, summed in float64."""
    return x.sum(0, dtype=torch.float64).div_(len(x)).to(x.dtype)


def distinct(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Deduplicate rows N x d: index of the first of each distinct row (U), number of its distinct row for each row (N),
    and count of each distinct row (U)."""
    n = torch.arange(len(x))
    factors = torch.randint(1 << 62, (x.shape[1],), generator=torch.Generator().manual_seed(0)) * 2 + 1
    keys = []  # equal rows have equal keys; different rows have equal keys very rarely
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
    """The k nearest other rows of each row of a set of N. Equal rows are neighbours of each other.

    squared: N x k squared distances, ascending, float64, each within `error` (N) of the exact one.
    equal: N, number of other rows equal to the row. candidates: N x c distinct rows of the set, which include the
    nearest ones that differ from the row. times: N x c, count of each candidate in the set. approximate: N x c,
    squared distances of the candidates, within `error` of the exact ones if they can be among the k nearest.
    """

    squared: Tensor
    error: Tensor
    equal: Tensor
    candidates: Tensor
    times: Tensor
    approximate: Tensor

    def exactly(self, x: Tensor, rows: Tensor, k: int) -> Tensor:
        """Exact squared distances from these rows (indices) of the set x to their k-th nearest other row."""
        near, candidates = self.approximate[rows], self.candidates[rows]
        i, j = ((near - self.squared[rows, k - 1, None]).abs() <= 2 * self.error[rows, None]).nonzero().unbind(1)
        near[i, j] = exact(x, rows[i], x, candidates[i, j])
        return _ranked(near, self.times[rows], self.equal[rows], k)[:, -1]


def _ranked(squared: Tensor, times: Tensor, equal: Tensor, k: int) -> Tensor:
    """Distances to the 1st to k-th other row: each column counts `times`, and `equal` rows are at distance 0."""
    squared, order = F.pad(squared, (0, 1), value=float("inf")).sort(dim=1, stable=True)
    reached = equal[:, None] + F.pad(times, (0, 1)).gather(1, order).cumsum(1)
    ranks = torch.arange(1, k + 1).repeat(len(squared), 1)
    at = torch.searchsorted(reached, ranks).clamp_(max=squared.shape[1] - 1)
    return torch.where(ranks <= equal[:, None], 0.0, squared.gather(1, at))


def neighbours(x: Tensor, k: int, size: int = TILE) -> Neighbours:
    """Return the k nearest other rows of each row of N x d, N > k. Memory: tiles of size x size."""
    x = usual(x)
    first, index, times = distinct(x)
    rows = x if len(first) == len(x) else x[first]
    points = Rows(rows, mean(rows), size)
    c = min(k + SPARE, len(rows) - 1)
    squared, at = _nearest_others(points, c)
    norms = points.norms + (points.norms[at].amax(1) if c else 0)
    error = points.kappa(points.dtype) * norms
    if c < len(rows) - 1:  # search again in float64 unless the last candidate is surely farther than the k-th
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
    """Distances to the c nearest other rows by the product form, ascending, and their indices; each pair once."""
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
    """The same in float64 for the rows x, which are the rows `own` of the points."""
    best = torch.full((len(own), c), float("inf"), dtype=torch.float64)
    at = torch.zeros_like(best, dtype=torch.int64)
    for columns in points.spans:
        d = tile(x, (0, len(own)), points, columns, torch.float64)
        here = ((own >= columns[0]) & (own < columns[1])).nonzero().squeeze(1)
        d[here, own[here] - columns[0]] = float("inf")
        _merge(best, at, d, columns[0])
    return best, at


def _merge(best: Tensor, at: Tensor, d: Tensor, offset: int) -> None:
    """Merge the smallest distances of a tile into the smallest so far, in place."""
    near, columns = d.topk(min(best.shape[1], d.shape[1]), dim=1, largest=False)
    values, order = torch.cat([best, near.double()], 1).sort(dim=1, stable=True)
    at.copy_(torch.cat([at, columns + offset], 1).gather(1, order)[:, : at.shape[1]])
    best.copy_(values[:, : best.shape[1]])
