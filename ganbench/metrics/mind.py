"""Monge distance: the squared sliced Wasserstein-2 distance of features; over Inception-v3 it is MIND.

    3 d mean over directions u, over ranks j of ( sort(u'X)_j - sort(u'Y)_j )^2,    |u| = 1

Berthet et al. (2026), "MIND: Monge Inception Distance for Generative Models Evaluation", arXiv:2605.06797: 1,000
directions, uniform on the sphere; the factor of 3 d brings it to the size of the Fréchet distance. Directions are
drawn as torch-fidelity does, with its seed, and so are the samples of the larger set that take part where counts
differ (fakes first): it agrees with torch-fidelity's `metric_mind` on the same features. Sums in float64. Range
[0, inf), lower is better. Biased upwards: compare only at equal counts.

The standard error is over the samples of both sets and over the directions. Along one direction the transport T takes
the j-th smallest of one set to the j-th smallest of the other, and a sample x has the influence phi(x) with
phi'(x) = 2 (x - T(x)); a sample's influence is its mean over directions. Where both sets are of one distribution the
distance is all bias and that error is too large.
"""

import math

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Uncertainty, Value, require_features
from ganbench.metrics.sliced_wasserstein import potentials

DIRECTIONS = 1000
SEED = 2020  # torch-fidelity's: its directions and its choice of samples are part of the protocol
AT_ONCE = 50  # directions, to bound the memory


def monge_distance(real: Tensor, fake: Tensor, directions: Tensor) -> tuple[float, float]:
    """3 d times the squared sliced Wasserstein-2 distance of N x d and N x d features, and its standard error.

    directions: K x d, of unit length, at least 2. Raises ValueError unless counts are equal, Unavailable for fewer
    than two samples.
    """
    if len(real) != len(fake):
        raise ValueError(f"{len(real)} real and {len(fake)} generated samples: the distance pairs them")
    if len(real) < 2:
        raise Unavailable(f"the distance needs at least 2 images on each side, not {len(real)}")
    x, y = real.double(), fake.double()
    per_direction = []
    influence = torch.zeros(2, len(x), dtype=torch.float64)
    for some in directions.double().split(AT_ONCE):
        (a, order_a), (b, order_b) = ((some @ s.T).sort(1) for s in (x, y))
        per_direction.append((a - b).square().mean(1))
        for row, own, other, order in ((0, a, b, order_a), (1, b, a, order_b)):
            phi = potentials(own, 2 * (own - other))
            influence[row].index_add_(0, order.flatten(), phi.flatten())
    distances = torch.cat(per_direction)
    influence /= len(directions)
    scale = 3.0 * x.shape[1]
    variance = influence.var(1).sum() / len(x) + distances.var() / len(distances)
    return scale * distances.mean().item(), scale * math.sqrt(variance.item())


def _compute(inputs: Inputs) -> list[Value]:
    real, fake = require_features(inputs)
    n = min(len(real), len(fake))
    generator = torch.Generator().manual_seed(SEED)
    x, y = real, fake
    if len(fake) > n:
        y = fake[torch.randperm(len(fake), generator=generator)[:n]]
    if len(real) > n:
        x = real[torch.randperm(len(real), generator=generator)[:n]]
    directions = torch.randn(DIRECTIONS, real.shape[1], generator=generator)
    directions = directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-12)
    value, error = monge_distance(x, y, directions)
    unequal = f"{len(real):,} real and {len(fake):,} generated images: {n:,} of each are paired"
    warnings = (unequal,) if len(real) != len(fake) else ()
    uncertainty = Uncertainty(error, "standard error", "the samples of both sets (first order) and the directions")
    details = {"directions": DIRECTIONS, "paired": n}
    return [Value(value, uncertainty, len(real), len(fake), details=details, warnings=warnings)]


PROTOCOLS = [
    Protocol(
        stem="monge",
        version=1,
        summary=f"Squared sliced Wasserstein-2 distance of features times 3d, {DIRECTIONS:,} directions",
        source="Berthet et al. 2026, arXiv:2605.06797",
        direction="lower",
        compute=_compute,
        needs=frozenset({"real.features", "fake.features"}),
        published=("mind", "inception-v3"),
    )
]
