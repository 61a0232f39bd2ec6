"""Fidelity and diversity by nearest neighbours: precision, recall, density, coverage.

With B(x) the ball around x whose radius is the distance to its k-th nearest neighbour in its own set:

    precision = mean over fakes of 1[ f in some B(r) ]        recall   = mean over reals of 1[ r in some B(f) ]
    density   = mean over fakes of #{ r : f in B(r) } / k     coverage = mean over reals of 1[ some f in B(r) ]

Kynkäänniemi et al. (2019), "Improved Precision and Recall Metric for Assessing Generative Models",
arXiv:1904.06991, Equation 1 (k = 3, closed balls); Naeem et al. (2020), "Reliable Fidelity and Diversity Metrics for
Generative Models", arXiv:2002.09797, Equations 3 and 4 (k = 5, open balls). Range [0, 1], density [0, inf); higher is
better. For equal distributions density is 1 and coverage about 1 - 2^-k, at equal counts. Agrees with torch-fidelity
(precision, recall) and with `prdc` (density, coverage) on the same features. The published networks are VGG-16 in both
papers, so every name here carries its extractor.

All four come of one pass over the distances, in float32 where that is enough to say who lies in a ball, and exactly
where it is not: a sample on the border of a ball (a copy of the neighbour that makes the radius) is in the closed one
and not in the open one. Samples that come twice are each other's neighbours.

The standard error is over the samples of both sets, since the balls would be others too. Neither a mean over one set
(which takes the other as given) nor a jackknife (which counts what several samples do together several times) gives
it. Both sets are cut at random into G pairs of smaller sets: the variance of the value over them, over G, estimates
the variance at the full size where that falls as 1 / n (Politis and Romano, 1994). In many dimensions it falls more
slowly; so the same is done with 2 G pairs, and the change is carried on to the full size (Bertail, Politis and Romano,
1999). It is never less than the error of the mean over the averaged set alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Side, Unavailable, Uncertainty, Value, require_features
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
PARTITION_SEED = 0  # the cuts into smaller sets serve four protocols, so they are drawn apart from any one of them
MOST_GROWTH = 2.5  # of the error's square, beyond 1 / n, from the smaller sets to the full size: it is a rough estimate


@dataclass(frozen=True)
class Balls:
    """Which balls: out to the k-th nearest neighbour; closed ones hold their border."""

    k: int
    closed: bool


KYNKAANNIEMI, NAEEM = Balls(PR_K, closed=True), Balls(DC_K, closed=False)


@dataclass(frozen=True)
class Neighbourhoods:
    """What the four values are made of, for one sort of balls.

    real_hits: for each fake, how many balls of reals hold it. fake_hits: for each real, how many balls of fakes hold
    it. covered: for each real, whether its ball holds a fake.
    """

    k: int
    real_hits: Tensor
    fake_hits: Tensor
    covered: Tensor


class _Distinct:
    """The distinct rows of one set, how often each came, and how far their balls of each sort reach."""

    def __init__(self, x: Tensor, near: Neighbours, centre: Tensor, sorts: Sequence[Balls], size: int):
        self.x, self.near = x, near
        self.first = self.index = torch.arange(len(x))
        self.times = torch.ones_like(self.first)
        if near.equal.any():
            self.first, self.index, self.times = distinct(x)
        self.rows = Rows(x if len(self.first) == len(x) else x[self.first], centre, size)
        self.error = near.error[self.first]
        self.radii = [near.squared[self.first, b.k - 1] for b in sorts]
        radius = torch.stack(self.radii).amax(0) + self.error
        # Whatever is farther by its product form in that dtype is outside of all balls.
        self.farthest = {t: (radius + self.rows.slack(radius, t)).to(t) for t in (torch.float32, torch.float64)}


def neighbourhoods(
    real: Tensor,
    fake: Tensor,
    sorts: Sequence[Balls] = (KYNKAANNIEMI, NAEEM),
    near_real: Neighbours | None = None,
    near_fake: Neighbours | None = None,
    size: int = TILE,
) -> list[Neighbourhoods]:
    """Count who lies in whose ball, for N x d reals and M x d fakes: one answer for each sort of balls.

    near_real, near_fake: the neighbours within each set, if they are known. Memory: tiles of size x size.
    Raises Unavailable for k or fewer samples on a side.
    """
    x, y, most = usual(real), usual(fake), max(b.k for b in sorts)
    if min(len(x), len(y)) <= most:
        raise Unavailable(f"{most} nearest neighbours need more than {most} images, not {min(len(x), len(y))}")
    if x.dtype != y.dtype:
        x, y = x.double(), y.double()
    near_x, near_y = near_real or neighbours(x, most, size), near_fake or neighbours(y, most, size)
    reals, fakes = (_Distinct(s, near, mean(x), sorts, size) for s, near in ((x, near_x), (y, near_y)))
    real_hits = torch.zeros(len(sorts), len(fakes.first), dtype=torch.int64)
    held = torch.zeros(len(sorts), len(reals.first), dtype=torch.int64)  # fakes in the ball of a real
    fake_hits = torch.zeros_like(held)
    fits = reals.rows.dtype == fakes.rows.dtype == torch.float32

    for a in reals.rows.spans:
        for b in fakes.rows.spans:
            in_real, in_fake = None, None
            for dtype in (torch.float32, torch.float64) if fits else (torch.float64,):
                d = tile(reals.rows, a, fakes.rows, b, dtype)
                in_real = _inside(d, reals, fakes, (a[0], b[0]), 0, sorts)
                in_fake = _inside(d, fakes, reals, (b[0], a[0]), 1, sorts)
                if in_real is not None and in_fake is not None:
                    break
            assert in_real is not None
            assert in_fake is not None
            for s in range(len(sorts)):
                i, j = in_real[s]
                held[s].index_add_(0, i, fakes.times[j])
                real_hits[s].index_add_(0, j, reals.times[i])
                j, i = in_fake[s]
                fake_hits[s].index_add_(0, i, fakes.times[j])
    return [
        Neighbourhoods(b.k, real_hits[s][fakes.index], fake_hits[s][reals.index], held[s][reals.index] > 0)
        for s, b in enumerate(sorts)
    ]


def _inside(
    d: Tensor, x: _Distinct, y: _Distinct, offsets: tuple[int, int], axis: int, sorts: Sequence[Balls]
) -> list[tuple[Tensor, Tensor]] | None:
    """For each sort of balls, the pairs (row of x, row of y) of a tile with the latter in the ball of the former.

    axis: of the tile, along which x lies. None where float32 leaves too many to be decided one by one.
    """
    farthest = x.farthest[d.dtype][offsets[0] : offsets[0] + d.shape[axis]]
    pairs = (d <= (farthest[:, None] if axis == 0 else farthest)).nonzero()
    squared = d[pairs[:, 0], pairs[:, 1]].double()
    own, other = pairs[:, axis] + offsets[0], pairs[:, 1 - axis] + offsets[1]
    error = x.error[own] + x.rows.kappa(d.dtype) * (x.rows.norms[own] + y.rows.norms[other])
    found = []
    for balls, radii in zip(sorts, x.radii, strict=True):
        margin = radii[own] - squared
        inside = margin > error
        doubtful = (margin.abs() <= error).nonzero().squeeze(1)
        if d.dtype == torch.float32 and len(doubtful) > max(UNDECIDED * d.numel(), 100):
            return None
        inside[doubtful] = _settle(balls, x, own[doubtful], y, other[doubtful])
        found.append((own[inside], other[inside]))
    return found


def _settle(balls: Balls, x: _Distinct, own: Tensor, y: _Distinct, other: Tensor) -> Tensor:
    """Whether a distinct row of y is in the ball of one of x, for pairs: exactly."""
    centres, which = own.unique(return_inverse=True)
    radius = x.near.exactly(x.x, x.first[centres], balls.k)[which]
    squared = exact(x.x, x.first[own], y.x, y.first[other])
    return squared <= radius if balls.closed else squared < radius


def _precision(n: Neighbourhoods) -> Tensor:
    """One value a fake: 1 where it lies in the balls of the reals."""
    return (n.real_hits > 0).double()


def _recall(n: Neighbourhoods) -> Tensor:
    """One value a real: 1 where it lies in the balls of the fakes."""
    return (n.fake_hits > 0).double()


def _density(n: Neighbourhoods) -> Tensor:
    """One value a fake: how many balls of reals hold it, over k."""
    return n.real_hits.double() / n.k


def _coverage(n: Neighbourhoods) -> Tensor:
    """One value a real: 1 where its ball holds a fake."""
    return n.covered.double()


def precision(real: Tensor, fake: Tensor, k: int = PR_K) -> float:
    """Share of the M x d fakes in a closed ball of the N x d reals, in [0, 1]. Unavailable for k or fewer samples."""
    return _precision(neighbourhoods(real, fake, [Balls(k, closed=True)])[0]).mean().item()


def recall(real: Tensor, fake: Tensor, k: int = PR_K) -> float:
    """Share of the N x d reals in a closed ball of the M x d fakes, in [0, 1]. Unavailable for k or fewer samples."""
    return _recall(neighbourhoods(real, fake, [Balls(k, closed=True)])[0]).mean().item()


def density(real: Tensor, fake: Tensor, k: int = DC_K) -> float:
    """Mean over M x d fakes of the open balls of N x d reals that hold one, over k. Unavailable for k or fewer."""
    return _density(neighbourhoods(real, fake, [Balls(k, closed=False)])[0]).mean().item()


def coverage(real: Tensor, fake: Tensor, k: int = DC_K) -> float:
    """Share of open balls of the N x d reals that hold one of the M x d fakes. Unavailable for k or fewer samples."""
    return _coverage(neighbourhoods(real, fake, [Balls(k, closed=False)])[0]).mean().item()


FORMULAS = {
    "precision": (_precision, 0), "recall": (_recall, 0), "density": (_density, 1), "coverage": (_coverage, 1),
}


def subsampled_errors(values: Callable[[Tensor, Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor | None:
    """Standard errors over the samples of both sets of V values of two sets, from smaller sets cut out of them.

    values: float64 V of N x d and M x d features, such that neighbours are all that matters. None where there are
    fewer than 48 samples on a side, of which no smaller sets can be made.
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
    """Variances of the values over `groups` pairs of smaller sets, over their number; mean of rounds."""
    variances = []
    for _ in range(rounds):
        cuts = [torch.randperm(len(s), generator=generator).tensor_split(groups) for s in (real, fake)]
        variances.append(torch.stack([values(real[i], fake[j]) for i, j in zip(*cuts, strict=True)]).var(0) / groups)
    return torch.stack(variances).mean(0)


def _four(real: Tensor, fake: Tensor) -> Tensor:
    """The four values of small sets, in the order of FORMULAS, in plain floating point."""
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
    """The nearest others of each sample of a side, kept with it: what needs one set alone, and half of all work."""
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
        # As for a proportion: a share of 0 or 1 is not certain.
        error = math.sqrt((values.var().item() * (len(values) - 1) + 1) / len(values)) / math.sqrt(len(values))
        errors = inputs.share("errors of neighbourhoods", lambda: subsampled_errors(_four, usual(real), usual(fake)))
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
