"""Fidelity and diversity by nearest neighbours: precision, recall, density, coverage.

Let B(x) be the ball around x whose radius is the distance to the k-th nearest neighbour of x in its own set. With
generated samples f and real images r:

    precision = mean over f of 1[ f in some B(r) ]        recall   = mean over r of 1[ r in some B(f) ]
    density   = mean over f of #{ r : f in B(r) } / k     coverage = mean over r of 1[ some f in B(r) ]

Sources: Kynkäänniemi et al. (2019), "Improved Precision and Recall Metric for Assessing Generative Models",
arXiv:1904.06991, Equation 1 (precision and recall: k = 3, closed balls); Naeem et al. (2020), "Reliable Fidelity and
Diversity Metrics for Generative Models", arXiv:2002.09797, Equations 3 and 4 (density and coverage: k = 5, open balls).
Range [0, 1], density [0, inf); higher is better. If both distributions and both counts are equal, the expected density
is 1 and the expected coverage about 1 - 2^-k. Precision and recall agree with torch-fidelity, density and coverage with
`prdc`, on the same features. The published network of both papers is VGG-16, so every name here includes its extractor.

One pass over the distances gives all four. Float32 decides whether a sample is inside a ball if its rounding cannot
change the answer; otherwise the distance is exact. A sample on the border of a ball (a copy of the neighbour that
defines the radius) is inside a closed ball and outside an open one. Duplicates within a set are neighbours of each
other.

The standard error is over the samples of both sets, because the balls change with the samples. A mean over one set does
not give it (it takes the other set as fixed), nor does a jackknife (it counts interactions between samples several
times). It is estimated by subsampling: both sets are split at random into G pairs of smaller sets, and the variance of
the value over these pairs, divided by G, estimates the variance at full size if the variance falls as 1 / n (Politis
and Romano, 1994). In many dimensions it falls more slowly. The same is therefore done with 2 G pairs, and the change is
extrapolated to the full size (Bertail, Politis and Romano, 1999). The result is never below the standard error of the
mean over the averaged set.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ganbench.metrics.contract import (
    Inputs,
    Protocol,
    Side,
    Unavailable,
    Uncertainty,
    Value,
    require_features,
    require_rows,
)
from ganbench.metrics.distances import (
    TILE,
    UNDECIDED,
    Neighbours,
    Rows,
    distinct,
    exact,
    mean,
    neighbours,
    squared_distances,
    tile,
    usual,
)

PR_K, DC_K = 3, 5
PARTITION_SEED = 0  # four protocols share the split into smaller sets, so it has a seed of its own
MOST_GROWTH = 2.5  # limit of the variance's extrapolation factor beyond 1 / n, which is a rough estimate


@dataclass(frozen=True)
class Balls:
    """A kind of balls: the radius is the distance to the k-th nearest neighbour; closed balls include their border."""

    k: int
    closed: bool


KYNKAANNIEMI, NAEEM = Balls(PR_K, closed=True), Balls(DC_K, closed=False)


@dataclass(frozen=True)
class Neighbourhoods:
    """The counts that the four values are computed from, for one kind of balls, N real images and M generated samples.

    real_hits: int64 M, number of balls of real images that contain each sample. fake_hits: int64 N, number of balls of
    samples that contain each real image. covered: bool N, True if the ball of the real image contains a sample.
    """

    k: int
    real_hits: Tensor
    fake_hits: Tensor
    covered: Tensor


class _Distinct:
    """The distinct rows of one set, their counts, and the radii of their balls for each kind of balls."""

    def __init__(self, x: Tensor, near: Neighbours, centre: Tensor, kinds: Sequence[Balls], size: int):
        self.x, self.near = x, near
        self.first = self.index = torch.arange(len(x))
        self.times = torch.ones_like(self.first)
        if near.equal.any():
            self.first, self.index, self.times = distinct(x)
        self.rows = Rows(x if len(self.first) == len(x) else x[self.first], centre, size)
        self.error = near.error[self.first]
        self.radii = [near.squared[self.first, b.k - 1] for b in kinds]
        radius = torch.stack(self.radii).amax(0) + self.error
        # A row whose squared distance by the product form in that dtype is larger is outside all balls.
        self.farthest = {t: (radius + self.rows.slack(radius, t)).to(t) for t in (torch.float32, torch.float64)}


def neighbourhoods(
    real: Tensor,
    fake: Tensor,
    kinds: Sequence[Balls] = (KYNKAANNIEMI, NAEEM),
    near_real: Neighbours | None = None,
    near_fake: Neighbours | None = None,
    size: int = TILE,
) -> list[Neighbourhoods]:
    """Return, for each kind of balls, the counts of samples in balls between N x d reals and M x d samples.

    near_real, near_fake: the neighbours within each set, if they are known. Memory: tiles of size x size.
    Raises Unavailable if a set has k images or fewer.
    """
    x, y, most = usual(real), usual(fake), max(b.k for b in kinds)
    if min(len(x), len(y)) <= most:
        raise Unavailable(f"{most} nearest neighbours need more than {most} images, not {min(len(x), len(y))}")
    if x.dtype != y.dtype:
        x, y = x.double(), y.double()
    near_x, near_y = near_real or neighbours(x, most, size), near_fake or neighbours(y, most, size)
    reals, fakes = (_Distinct(s, near, mean(x), kinds, size) for s, near in ((x, near_x), (y, near_y)))
    real_hits = torch.zeros(len(kinds), len(fakes.first), dtype=torch.int64)
    held = torch.zeros(len(kinds), len(reals.first), dtype=torch.int64)  # number of samples in the ball of each real
    fake_hits = torch.zeros_like(held)
    fits = reals.rows.dtype == fakes.rows.dtype == torch.float32

    for a in reals.rows.spans:
        for b in fakes.rows.spans:
            in_real, in_fake = None, None
            for dtype in (torch.float32, torch.float64) if fits else (torch.float64,):
                d = tile(reals.rows, a, fakes.rows, b, dtype)
                in_real = _inside(d, reals, fakes, (a[0], b[0]), 0, kinds)
                in_fake = _inside(d, fakes, reals, (b[0], a[0]), 1, kinds)
                if in_real is not None and in_fake is not None:
                    break
            assert in_real is not None
            assert in_fake is not None
            for s in range(len(kinds)):
                i, j = in_real[s]
                held[s].index_add_(0, i, fakes.times[j])
                real_hits[s].index_add_(0, j, reals.times[i])
                j, i = in_fake[s]
                fake_hits[s].index_add_(0, i, fakes.times[j])
    return [
        Neighbourhoods(b.k, real_hits[s][fakes.index], fake_hits[s][reals.index], held[s][reals.index] > 0)
        for s, b in enumerate(kinds)
    ]


def _inside(
    d: Tensor, x: _Distinct, y: _Distinct, offsets: tuple[int, int], axis: int, kinds: Sequence[Balls]
) -> list[tuple[Tensor, Tensor]] | None:
    """For each kind of balls, the pairs (row of x, row of y) of a tile such that the ball of the x contains the y.

    axis: the axis of the tile that belongs to x. Returns None if float32 leaves too many pairs to decide one by one.
    """
    farthest = x.farthest[d.dtype][offsets[0] : offsets[0] + d.shape[axis]]
    pairs = (d <= (farthest[:, None] if axis == 0 else farthest)).nonzero()
    squared = d[pairs[:, 0], pairs[:, 1]].double()
    own, other = pairs[:, axis] + offsets[0], pairs[:, 1 - axis] + offsets[1]
    error = x.error[own] + x.rows.kappa(d.dtype) * (x.rows.norms[own] + y.rows.norms[other])
    found = []
    for balls, radii in zip(kinds, x.radii, strict=True):
        margin = radii[own] - squared
        inside = margin > error
        doubtful = (margin.abs() <= error).nonzero().squeeze(1)
        if d.dtype == torch.float32 and len(doubtful) > max(UNDECIDED * d.numel(), 100):
            return None
        inside[doubtful] = _exactly_inside(balls, x, own[doubtful], y, other[doubtful])
        found.append((own[inside], other[inside]))
    return found


def _exactly_inside(balls: Balls, x: _Distinct, own: Tensor, y: _Distinct, other: Tensor) -> Tensor:
    """True for each pair of distinct rows if the ball of the row of x contains the row of y, by exact distances."""
    centres, which = own.unique(return_inverse=True)
    radius = x.near.exactly(x.x, x.first[centres], balls.k)[which]
    squared = exact(x.x, x.first[own], y.x, y.first[other])
    return squared <= radius if balls.closed else squared < radius


def _precision(n: Neighbourhoods) -> Tensor:
    """One value per sample: 1 if a ball of a real image contains it."""
    return (n.real_hits > 0).double()


def _recall(n: Neighbourhoods) -> Tensor:
    """One value per real image: 1 if a ball of a sample contains it."""
    return (n.fake_hits > 0).double()


def _density(n: Neighbourhoods) -> Tensor:
    """One value per sample: the number of balls of real images that contain it, divided by k."""
    return n.real_hits.double() / n.k


def _coverage(n: Neighbourhoods) -> Tensor:
    """One value per real image: 1 if its ball contains a sample."""
    return n.covered.double()


def _require(real: Tensor, fake: Tensor, k: int) -> None:
    require_rows(real, fake)
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")


def precision(real: Tensor, fake: Tensor, k: int = PR_K) -> float:
    """Return the share of generated samples inside the k-nearest-neighbour balls of the real images, in [0, 1].

    real, fake: floating N x d and M x d features. The balls are closed.
    Raises Unavailable if a set has k images or fewer.
    Source: Kynkäänniemi et al. (2019), Equation 1.

    >>> real, fake = torch.arange(6.0)[:, None], torch.tensor([[1.5], [2.5], [20.0], [21.0], [22.0]])
    >>> precision(real, fake, k=1)
    0.4
    """
    _require(real, fake, k)
    return _precision(neighbourhoods(real, fake, [Balls(k, closed=True)])[0]).mean().item()


def recall(real: Tensor, fake: Tensor, k: int = PR_K) -> float:
    """Return the share of real images inside the k-nearest-neighbour balls of the generated samples, in [0, 1].

    real, fake: floating N x d and M x d features. The balls are closed.
    Raises Unavailable if a set has k images or fewer.
    Source: Kynkäänniemi et al. (2019), Equation 1.

    >>> real, fake = torch.arange(6.0)[:, None], torch.tensor([[1.5], [2.5], [20.0], [21.0], [22.0]])
    >>> recall(real, fake, k=1)
    0.5
    """
    _require(real, fake, k)
    return _recall(neighbourhoods(real, fake, [Balls(k, closed=True)])[0]).mean().item()


def density(real: Tensor, fake: Tensor, k: int = DC_K) -> float:
    """Return the mean number of real k-nearest-neighbour balls that contain a generated sample, over k: in [0, inf).

    real, fake: floating N x d and M x d features. The balls are open.
    Raises Unavailable if a set has k images or fewer.
    Source: Naeem et al. (2020), Equation 3.

    >>> real, fake = torch.arange(6.0)[:, None], torch.tensor([[1.5], [2.5], [20.0], [21.0], [22.0]])
    >>> density(real, fake, k=1)
    0.8
    """
    _require(real, fake, k)
    return _density(neighbourhoods(real, fake, [Balls(k, closed=False)])[0]).mean().item()


def coverage(real: Tensor, fake: Tensor, k: int = DC_K) -> float:
    """Return the share of real k-nearest-neighbour balls that contain a generated sample, in [0, 1].

    real, fake: floating N x d and M x d features. The balls are open.
    Raises Unavailable if a set has k images or fewer.
    Source: Naeem et al. (2020), Equation 4.

    >>> real, fake = torch.arange(6.0)[:, None], torch.tensor([[1.5], [2.5], [20.0], [21.0], [22.0]])
    >>> coverage(real, fake, k=1)
    0.5
    """
    _require(real, fake, k)
    return _coverage(neighbourhoods(real, fake, [Balls(k, closed=False)])[0]).mean().item()


FORMULAS = {
    "precision": (_precision, 0), "recall": (_recall, 0), "density": (_density, 1), "coverage": (_coverage, 1),
}


def subsampled_errors(values: Callable[[Tensor, Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor | None:
    """Return the standard errors of V values over the samples of both sets, by subsampling: float64 V.

    values: maps N x d and M x d features to V values (float64) that depend on nearest neighbours.
    Returns None if a set has fewer than 48 samples, which is too few to split.
    """
    n = min(len(real), len(fake))
    groups = next((g for least, g in ((4000, 16), (192, 8), (96, 4), (48, 2)) if n >= least), 0)
    if not groups:
        return None
    rounds = 2 if n >= 4000 else 16
    generator = torch.Generator().manual_seed(PARTITION_SEED)
    coarse = _variances(values, real, fake, groups, rounds, generator)
    fine = _variances(values, real, fake, 2 * groups, rounds, generator)
    growth = ((coarse / fine.clamp(min=1e-300)).clamp(min=1) ** math.log2(groups)).clamp(max=MOST_GROWTH)
    return (coarse * growth).sqrt()


def _variances(
    values: Callable[[Tensor, Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    groups: int,
    rounds: int,
    generator: torch.Generator,
) -> Tensor:
    """Variances of the values over `groups` pairs of smaller sets, divided by `groups`; mean over rounds."""
    variances = []
    for _ in range(rounds):
        splits = [torch.randperm(len(s), generator=generator).tensor_split(groups) for s in (real, fake)]
        variances.append(torch.stack([values(real[i], fake[j]) for i, j in zip(*splits, strict=True)]).var(0) / groups)
    return torch.stack(variances).mean(0)


def _four_values(real: Tensor, fake: Tensor) -> Tensor:
    """The four values of small sets, in the order of FORMULAS, without exact decisions at borders."""
    centre = mean(real)
    x, y = real - centre, fake - centre
    y_within = fake - mean(fake)
    radii_x, radii_y = (
        squared_distances(s, s).fill_diagonal_(math.inf).topk(DC_K, largest=False).values for s in (x, y_within)
    )
    d = squared_distances(x, y)
    inside = d < radii_x[:, DC_K - 1, None]
    values = (
        (d <= radii_x[:, PR_K - 1, None]).any(0),
        (d <= radii_y[:, PR_K - 1]).any(1),
        inside.sum(0) / DC_K,
        inside.any(1),
    )
    return torch.stack([v.double().mean() for v in values])


def neighbours_of(side: Side, x: Tensor) -> Neighbours:
    """Return the nearest neighbours of each sample within its own set, cached with the set.

    Raises Unavailable if the set has 5 images or fewer.
    """
    if len(x) <= DC_K:
        raise Unavailable(f"{DC_K} nearest neighbours need more than {DC_K} images, not {len(x)}")
    return Neighbours(**side.keep("neighbours/1", lambda: vars(neighbours(x, DC_K))))


def _protocol(name: str, source: str, over: str) -> Protocol:
    formula, which = FORMULAS[name]
    k = (KYNKAANNIEMI, NAEEM)[which].k

    def compute(inputs: Inputs) -> list[Value]:
        real, fake = require_features(inputs)

        def count() -> list[Neighbourhoods]:
            near = neighbours_of(inputs.real, usual(real)), neighbours_of(inputs.fake, usual(fake))
            return neighbourhoods(real, fake, near_real=near[0], near_fake=near[1])

        values = formula(inputs.share("neighbourhoods", count)[which])
        # One is added to the sum of squares, as for a proportion: a share of 0 or 1 is not certain.
        error = math.sqrt((values.var().item() * (len(values) - 1) + 1) / len(values)) / math.sqrt(len(values))
        errors = inputs.share(
            "errors of neighbourhoods", lambda: subsampled_errors(_four_values, usual(real), usual(fake))
        )
        if errors is not None:
            error = max(error, errors[list(FORMULAS).index(name)].item())
        whose = f"{over} (too few for both sets)" if errors is None else "the samples of both sets (subsampling)"
        uncertainty = Uncertainty(error, "standard error", whose)
        unequal = f"{len(real):,} real and {len(fake):,} generated images: comparable only at equal counts"
        warnings = (unequal,) if len(real) != len(fake) else ()
        return [Value(values.mean().item(), uncertainty, len(real), len(fake), warnings=warnings)]

    return Protocol(
        stem=name,
        version=2,
        summary=f"{name.capitalize()} by the {k} nearest neighbours of features",
        source=source,
        direction="higher",
        compute=compute,
        needs=frozenset({"real.features", "fake.features"}),
    )


_KYNKAANNIEMI = "Kynkäänniemi et al. 2019, arXiv:1904.06991, Eq. 1"
_NAEEM = "Naeem et al. 2020, arXiv:2002.09797, Eqs. 3, 4"
PROTOCOLS = [
    _protocol("precision", _KYNKAANNIEMI, "the generated samples"),
    _protocol("recall", _KYNKAANNIEMI, "the real samples"),
    _protocol("density", _NAEEM, "the generated samples"),
    _protocol("coverage", _NAEEM, "the real samples"),
]
