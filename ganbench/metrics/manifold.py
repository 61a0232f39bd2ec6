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

The standard error is that of a mean over the samples that the definition averages over; the set that the balls are
built from is taken as given.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Uncertainty, Value, require_features

PR_K, DC_K = 3, 5


@dataclass(frozen=True)
class Neighbourhoods:
    """What the four values are made of, for one k.

    real_hits: for each fake, how many balls of reals hold it. fake_hits: for each real, how many balls of fakes hold
    it. covered: for each real, whether its ball holds a fake.
    """

    k: int
    real_hits: Tensor
    fake_hits: Tensor
    covered: Tensor


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2 for N x d and M x d in their dtype: N x M, not below 0.

    By the product form, on rows centred by the caller: far from the origin it would lose digits.
    """
    return (a.square().sum(1, keepdim=True) - 2 * a @ b.T + b.square().sum(1)).clamp_(min=0)


def radii(x: Tensor, k: int, chunk: int = 2048) -> Tensor:
    """Squared distance from each row of N x d to its k-th nearest neighbour among the others.

    Raises Unavailable for k or fewer samples.
    """
    if len(x) <= k:
        raise Unavailable(f"{k} nearest neighbours need more than {k} images, not {len(x)}")
    parts = []
    for start in range(0, len(x), chunk):
        distances = squared_distances(x[start : start + chunk], x)
        rows = torch.arange(len(distances))
        distances[rows, start + rows] = -1  # itself comes first, whatever rounding says
        parts.append(distances.kthvalue(k + 1, dim=1).values)
    return torch.cat(parts)


def neighbourhoods(real: Tensor, fake: Tensor, k: int, closed: bool, chunk: int = 2048) -> Neighbourhoods:
    """Count who lies in whose ball, for N x d reals and M x d fakes; closed balls hold their border.

    Memory: chunk x max(N, M).
    """
    centre = real.mean(0)
    x, y = real - centre, fake - centre
    radii_x, radii_y = radii(x, k, chunk), radii(y, k, chunk)
    inside: Callable[[Tensor, Tensor], Tensor] = torch.le if closed else torch.lt
    real_hits = torch.zeros(len(y), dtype=torch.int64)
    fake_hits, covered = [], []
    for rows, radius in zip(x.split(chunk), radii_x.split(chunk), strict=True):
        distances = squared_distances(rows, y)
        in_real = inside(distances, radius[:, None])
        real_hits += in_real.sum(0)
        covered.append(in_real.any(1))
        fake_hits.append(inside(distances, radii_y).sum(1))
    return Neighbourhoods(k, real_hits, torch.cat(fake_hits), torch.cat(covered))


def precision(n: Neighbourhoods) -> Tensor:
    """One value a fake: 1 where it lies in the balls of the reals."""
    return (n.real_hits > 0).double()


def recall(n: Neighbourhoods) -> Tensor:
    """One value a real: 1 where it lies in the balls of the fakes."""
    return (n.fake_hits > 0).double()


def density(n: Neighbourhoods) -> Tensor:
    """One value a fake: how many balls of reals hold it, over k."""
    return n.real_hits.double() / n.k


def coverage(n: Neighbourhoods) -> Tensor:
    """One value a real: 1 where its ball holds a fake."""
    return n.covered.double()


def _protocol(formula: Callable[[Neighbourhoods], Tensor], k: int, closed: bool, source: str, over: str) -> Protocol:
    def compute(inputs: Inputs) -> list[Value]:
        real, fake = require_features(inputs)
        n = inputs.share(f"neighbourhoods of {k}", lambda: neighbourhoods(real.double(), fake.double(), k, closed))
        values = formula(n)
        # As for a proportion: a share of 0 or 1 is not certain.
        error = math.sqrt((values.var().item() * (len(values) - 1) + 1) / len(values)) / math.sqrt(len(values))
        unequal = f"{len(real):,} real and {len(fake):,} generated images: comparable only at equal counts"
        warnings = (unequal,) if len(real) != len(fake) else ()
        uncertainty = Uncertainty(error, "standard error", over)
        return [Value(values.mean().item(), uncertainty, len(real), len(fake), warnings=warnings)]

    name = formula.__name__
    return Protocol(
        stem=name,
        version=1,
        summary=f"{name.capitalize()} by the {k} nearest neighbours of features",
        source=source,
        direction="higher",
        compute=compute,
        needs=frozenset({"real.features", "fake.features"}),
    )


_KYNKAANNIEMI = "Kynkäänniemi et al. 2019, arXiv:1904.06991, Eq. 1"
_NAEEM = "Naeem et al. 2020, arXiv:2002.09797, Eqs. 3, 4"
PROTOCOLS = [
    _protocol(precision, PR_K, True, _KYNKAANNIEMI, "the generated samples"),
    _protocol(recall, PR_K, True, _KYNKAANNIEMI, "the real samples"),
    _protocol(density, DC_K, False, _NAEEM, "the generated samples"),
    _protocol(coverage, DC_K, False, _NAEEM, "the real samples"),
]
