"""Monge distance: the squared sliced Wasserstein-2 distance of features; with Inception-v3 it is MIND.

    3 d mean over directions u, over ranks j of ( sort(u'X)_j - sort(u'Y)_j )^2,    |u| = 1

Source: Berthet et al. (2026), "MIND: Monge Inception Distance for Generative Models Evaluation", arXiv:2605.06797, with
1,000 directions, uniform on the sphere. The factor 3 d makes it similar in size to the Fréchet distance. The directions
are drawn like torch-fidelity's, with its seed. If the counts differ, samples of the larger set are drawn in the same
way, generated samples first. The result agrees with torch-fidelity's `metric_mind` on the same features. Sums are in
float64. Range [0, inf), lower is better. The distance is biased upwards: compare at equal counts only.

The standard error is over the samples of both sets and over the directions. Along one direction the transport T maps
the j-th smallest value of one set to the j-th smallest of the other. A sample x has the influence phi(x) with
phi'(x) = 2 (x - T(x)); its total influence is the mean over directions. If both sets have the same distribution, the
distance is pure bias, and this error is too large.
"""

import math

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Value, known, require_features, require_rows
from ganbench.metrics.sliced_wasserstein import potentials

DIRECTIONS = 1000
SEED = 2020  # torch-fidelity's seed; its directions and its choice of samples are part of the protocol
AT_ONCE = 50  # directions, to bound the memory


def monge_distance(real: Tensor, fake: Tensor, directions: Tensor) -> tuple[float, float]:
    """Return 3 d times the squared sliced Wasserstein-2 distance of features, in [0, inf), and its standard error.

    real, fake: floating N x d features, the same number in both sets. directions: floating K x d of unit length, K at
    least 2.
    Raises ValueError if the counts differ, and Unavailable for fewer than two samples.
    Source: Berthet et al. (2026).

    >>> real = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    >>> round(monge_distance(real, real + 1, directions=torch.eye(2))[0], 6)
    6.0
    """
    require_rows(real, fake, directions, names=("real", "fake", "directions"))
    if len(real) != len(fake):
        raise ValueError(f"{len(real)} real and {len(fake)} generated samples: the distance needs pairs")
    if len(real) < 2:
        raise Unavailable(f"the distance needs at least 2 images in each set, not {len(real)}")
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
    unequal = f"{len(real):,} real and {len(fake):,} generated images: {n:,} of each are used"
    warnings = (unequal,) if len(real) != len(fake) else ()
    over = "the samples of both sets (first order) and the directions"
    uncertainty, unknown = known(error, over, value, "both sets are equal", n)
    details = {"directions": DIRECTIONS, "paired": n}
    return [Value(value, uncertainty, len(real), len(fake), details=details, warnings=(*warnings, *unknown))]


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
