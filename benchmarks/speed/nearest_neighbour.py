"""Exact 1-NN: the nearest of 60,000 images of 784 pixels for each of 10,000 images."""

from collections.abc import Iterator

import torch

from benchmarks.speed import Case

POINTS, QUERIES, PIXELS, CLUSTERS = 60_000, 10_000, 784, 100


def images(n: int, seed: int) -> torch.Tensor:
    """Draw mostly dark pixels around clustered centres, like handwriting."""
    centres = torch.rand(CLUSTERS, PIXELS, generator=torch.Generator().manual_seed(0)).sub_(0.7).clamp_(min=0) * 700
    g = torch.Generator().manual_seed(seed)
    noise = 40 * torch.randn(n, PIXELS, generator=g)
    which = torch.randint(CLUSTERS, (n,), generator=g)
    return noise.add_(centres[which]).clamp_(0, 255).to(torch.uint8)


def cases() -> Iterator[Case]:
    import numpy as np
    from sklearn.neighbors import KNeighborsClassifier

    from ganbench.metrics.nearest_neighbour import nearest

    points, queries = images(POINTS, 1), images(QUERIES, 2)
    x, q, labels = points.float().numpy(), queries.float().numpy(), np.arange(POINTS) % 10

    def scikit_learn() -> torch.Tensor:
        model = KNeighborsClassifier(1, algorithm="brute").fit(x, labels)
        return torch.from_numpy(model.kneighbors(q, return_distance=False)[:, 0])

    def agree(own: object, outcomes: dict[str, object]) -> None:
        other = outcomes["scikit-learn, brute"]
        assert isinstance(own, torch.Tensor)
        assert isinstance(other, torch.Tensor)
        differ = (own != other).nonzero().squeeze(1)
        far = [(queries[differ].int() - points[at[differ]].int()).square().sum(1) for at in (own, other)]
        assert (far[0] <= far[1]).all(), "the exact one is never farther"
        assert len(differ) < QUERIES / 1000

    title = f"1-NN of {QUERIES:,} in {POINTS:,} x {PIXELS}"
    yield Case(f"{title}, pixels", lambda: nearest(queries, points), {"scikit-learn, brute": scikit_learn},
               {"scikit-learn, brute": 3}, repeats=3, count=QUERIES, unit="queries", agree=agree)
