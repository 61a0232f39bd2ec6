"""Test error of a nearest-neighbour classifier whose training set consists of generated images.

    error = mean over real test images t of [ y(argmin_g |t - g|_2) != y(t) ]

over generated images g, where y(g) is the requested label. Source: Radford et al. (2016), "Unsupervised Representation
Learning with DCGANs", arXiv:1511.06434, appendix on capturing data distributions, with raw pixels and 50,000 generated
images of MNIST. Range [0, 1], lower is better. The row of real data uses the reference as training set: with all 60,000
training images of MNIST the error is 3.09 %.

The standard error is binomial over the test images, with two successes and two failures added (Agresti and Coull,
1998), for a fixed training set.
"""

import math

import torch
from torch import Tensor

from ganbench.metrics.contract import (
    Inputs,
    Protocol,
    Unavailable,
    Uncertainty,
    Value,
    compare_labels,
    pixels,
    require_labels,
    require_tensor,
)
from ganbench.metrics.distances import Rows, distinct, exact, mean, tile, usual
from ganbench.metrics.products import keeps_digits, product

QUERIES, POINTS = 1024, 4096  # rows and columns of a tile
WHOLE = 1024  # pixels: the largest number for which float32 sums products of pixels minus 128 exactly, in any order
BYTES = 2**31 // (3 * 2**14)  # pixels: the largest number for which scores, norm minus twice the product, fit 32 bits


def nearest(queries: Tensor, points: Tensor) -> Tensor:
    """Return the index of the nearest point in Euclidean distance for each query: int64 N, in [0, M).

    queries, points: N x d and M x d, both uint8 or floating. The result is exact; in a tie the first point wins.
    Raises Unavailable if there are no points.
    Source: Radford et al. (2016), appendix (1-NN on pixels).

    >>> nearest(torch.tensor([[0, 3]], dtype=torch.uint8), torch.tensor([[9, 3], [0, 5]], dtype=torch.uint8))
    tensor([1])
    """
    for x, name in ((queries, "queries"), (points, "points")):
        require_tensor(x, name, "N x d", "real")
        if x.dtype != torch.uint8 and not x.is_floating_point():
            raise TypeError(f"{name} must be uint8 or floating, not {x.dtype}")
    if queries.shape[1] != points.shape[1] or queries.is_floating_point() != points.is_floating_point():
        found = f"{queries.dtype} N x {queries.shape[1]} and {points.dtype} N x {points.shape[1]}"
        raise ValueError(f"queries and points must be of one kind and length, not {found}")
    if not len(points):
        raise Unavailable("a nearest neighbour needs at least 1 image")
    if queries.dtype == points.dtype == torch.uint8:
        return _nearest_pixels(queries, points)
    return _nearest_features(usual(queries), usual(points))


def _nearest_pixels(queries: Tensor, points: Tensor) -> Tensor:
    """Nearest uint8 points: smallest score |p|^2 - 2 q'p of pixels minus 128, whose products are at most 2^14 in size.

    Products of bytes, summed in 32 bits, are exact up to 43,690 pixels. They are used only if they are fast and exact
    for all tiles. Otherwise float32 is used: each partial sum of 1,024 products, in any order, is a whole number up to
    2^24, which float32 represents exactly. A score below 2^24 in size is then exact, no score is below -2^24, and a
    larger score stays larger when it is rounded. Two cases need float64 sums of 1,024 products each: queries whose
    smallest score is not below 2^24, and images of more than 1,024 pixels.
    """
    d = queries.shape[1]
    tiles = [(n, m) for n in _sizes(len(queries), QUERIES) for m in _sizes(len(points), POINTS)]
    if d <= BYTES and all(bytes_multiply(n, m, d) for n, m in tiles):
        return _least_score(queries, points, torch.int32)[1]
    best, at = _least_score(queries, points, torch.float32 if d <= WHOLE else torch.float64)
    if d <= WHOLE and len(again := (best >= 2**24).nonzero().squeeze(1)):
        at[again] = _least_score(queries[again], points, torch.float64)[1]
    return at


def bytes_multiply(n: int, m: int, d: int) -> bool:
    """Return True if this processor multiplies bytes fast, and exactly for a tile of n queries, m points and d pixels.

    Some instructions saturate at 16 bits, and torch 2.14 gives wrong sums for some layouts of one pixel.
    """
    fast = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return fast and keeps_digits(_product_of_bytes, n, m, d, torch.int8)


def _product_of_bytes(a: Tensor, b: Tensor) -> Tensor:
    """a b' for int8 N x d and M x d: int32 N x M."""
    return torch._int_mm(a, _columns(b))


def _columns(b: Tensor) -> Tensor:
    """b' with the usual strides, which `_int_mm` needs; for one column `.T.contiguous()` does not change strides."""
    return torch.empty(b.shape[::-1], dtype=b.dtype).copy_(b.T)


def _sizes(n: int, step: int) -> set[int]:
    """Lengths of the blocks when n rows are split into blocks of `step` rows."""
    return {min(n, step), n % step or step} if n else set()


def _least_score(queries: Tensor, points: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Smallest score |p|^2 - 2 q'p of each query over the points, rounded once to dtype, and its first point."""
    largest = torch.iinfo(dtype).max if dtype == torch.int32 else math.inf
    best = torch.full((len(queries),), largest, dtype=dtype)
    at = torch.zeros(len(queries), dtype=torch.int64)
    for first in range(0, len(points), POINTS):
        p = points[first : first + POINTS]
        norms = (p.float() - 128).square_().sum(1, dtype=torch.float64).to(dtype)
        parts = [_columns(_signed(p))] if dtype == torch.int32 else [s.float() - 128 for s in p.split(WHOLE, 1)]
        for start in range(0, len(queries), QUERIES):
            q = queries[start : start + QUERIES]
            if dtype == torch.int32:
                score = torch._int_mm(_signed(q), parts[0])
            else:
                score = product(q[:, :WHOLE].float() - 128, parts[0]).to(dtype)
                for a, b in zip(q.split(WHOLE, 1)[1:], parts[1:], strict=True):
                    score += product(a.float() - 128, b)
            least, here = torch.sub(norms, score, alpha=2, out=score).min(1)
            rows = slice(start, start + QUERIES)
            better = least < best[rows]
            best[rows] = torch.where(better, least, best[rows])
            at[rows] = torch.where(better, here + first, at[rows])
    return best, at


def _signed(pixels: Tensor) -> Tensor:
    """uint8 pixels minus 128 as int8, row-major."""
    return torch.bitwise_xor(pixels, 128, out=torch.empty(pixels.shape, dtype=torch.uint8)).view(torch.int8)


def _nearest_features(queries: Tensor, points: Tensor) -> Tensor:
    """Nearest floating points: by products in float32 if the second nearest is surely farther, otherwise exactly."""
    if queries.dtype != points.dtype:
        queries, points = queries.double(), points.double()
    if not len(queries):
        return torch.zeros(0, dtype=torch.int64)
    chosen = distinct(points)[0].sort().values
    centre = mean(points)
    x, y = Rows(queries, centre, QUERIES), Rows(points[chosen], centre, POINTS)
    dtype = torch.float32 if x.dtype == y.dtype == torch.float32 else torch.float64
    best, second = torch.full((2, len(queries)), math.inf, dtype=torch.float64)
    at = torch.zeros(len(queries), dtype=torch.int64)
    for columns in y.spans:
        for span in x.spans:
            rows = slice(*span)
            d = tile(x, span, y, columns, dtype)
            least, here = d.min(1)
            next_least = d.scatter_(1, here[:, None], math.inf).amin(1)
            better = least < best[rows]
            second[rows] = torch.stack(
                [torch.maximum(least.double(), best[rows]), second[rows], next_least.double()]
            ).amin(0)
            best[rows] = torch.where(better, least.double(), best[rows])
            at[rows] = torch.where(better, here + columns[0], at[rows])
    unsure = (second - x.slack(second, dtype) <= best + x.slack(best, dtype)).nonzero().squeeze(1)
    for some in unsure.split(max(1, (1 << 22) // len(chosen))) if len(unsure) else ():
        at[some] = _exactly_nearest(x[some], y)
    return chosen[at]


def _exactly_nearest(x: Rows, y: Rows) -> Tensor:
    """The same for few queries and distinct points: preselect by products in float64, decide exactly."""
    d = torch.cat([tile(x, (0, len(x.rows)), y, columns, torch.float64) for columns in y.spans], 1)
    least = d.amin(1)
    i, j = (d <= (least + 2 * x.slack(least, torch.float64))[:, None]).nonzero().unbind(1)
    squared = exact(x.rows, i, y.rows, j)
    closest = torch.full_like(least, math.inf).scatter_reduce_(0, i, squared, "amin")
    wins = squared == closest[i]
    return torch.full_like(i[: len(least)], len(y.rows)).scatter_reduce_(0, i[wins], j[wins], "amin")


def _compute(inputs: Inputs) -> list[Value]:
    if inputs.held_out is None:
        raise Unavailable("there are no real images beside the reference to test on")
    labels, truth = require_labels(inputs.fake), require_labels(inputs.held_out)
    warnings = compare_labels(inputs.fake, inputs.held_out, "the samples", "the test images")
    train, test = pixels(inputs.fake), pixels(inputs.held_out)
    if train.shape[1:] != test.shape[1:]:
        raise Unavailable("generated and real images differ in size")
    wrong = labels[nearest(test.flatten(1), train.flatten(1))] != truth
    value, n = wrong.double().mean().item(), len(wrong)
    p = (int(wrong.sum()) + 2) / (n + 4)
    uncertainty = Uncertainty(math.sqrt(p * (1 - p) / (n + 4)), "standard error", "the test images (binomial)")
    return [Value(value, uncertainty, n, len(train), warnings=warnings)]


PROTOCOLS = [
    Protocol(
        stem="nn_error",
        version=1,
        summary="Test error of 1-NN on pixels with generated images as training set",
        source="Radford et al. 2016, arXiv:1511.06434, appendix",
        direction="lower",
        compute=_compute,
        needs=frozenset({"fake.images", "fake.labels", "held_out.images", "held_out.labels"}),
        real_row="reference",
    )
]
