"""The Fréchet distance at d = 2048: from moments, from few images, its moments, and its standard error."""

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.speed import Case


def features(n: int, seed: int, d: int = 2048, factors: int = 256) -> torch.Tensor:
    """Draw correlated features like those after a ReLU: float32 n x d. The seed moves the factors' means and scales."""
    mix = torch.randn(factors, d, generator=torch.Generator().manual_seed(0)) / factors**0.5
    g = torch.Generator().manual_seed(seed)
    shift, scale = 0.1 * torch.randn(factors, generator=g), 0.8 + 0.4 * torch.rand(factors, generator=g)
    parts = [
        ((torch.randn(len(i), factors, generator=g) * scale + shift) @ mix
         + 0.3 * torch.randn(len(i), d, generator=g)).relu_()
        for i in torch.arange(n).split(5000)
    ]
    return torch.cat(parts)


def cases() -> Iterator[Case]:
    """Yield ours beside torch-fidelity (eigenvalues of the product), pytorch-fid (sqrtm) and NumPy."""
    import scipy.linalg
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    from ganbench.metrics.frechet import (
        Moments,
        frechet_distance,
        frechet_distance_and_error,
        frechet_distance_from_moments,
        moments,
    )

    def statistics(m: Moments) -> dict[str, np.ndarray]:
        return {"mu": m.mean.numpy(), "sigma": m.cov.numpy()}

    def by_eigenvalues(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
        return fid_statistics_to_metric(a, b, verbose=False)[KEY_METRIC_FID]

    def by_sqrtm(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
        delta, root = a["mu"] - b["mu"], scipy.linalg.sqrtm(a["sigma"] @ b["sigma"])
        return float(delta @ delta + np.trace(a["sigma"]) + np.trace(b["sigma"]) - 2 * np.trace(root.real))

    def within(tolerance: float):
        def agree(ours: object, theirs: dict[str, object]) -> None:
            for peer, value in theirs.items():
                assert abs(ours / value - 1) < tolerance, (peer, ours, value)

        return agree

    real, fake = moments(features(10_000, 1)), moments(features(10_000, 2))
    a, b = statistics(real), statistics(fake)
    yield Case(
        "Fréchet distance from moments, d = 2048",
        lambda: frechet_distance_from_moments(real, fake),
        {"torch-fidelity": lambda: by_eigenvalues(a, b), "scipy.linalg.sqrtm": lambda: by_sqrtm(a, b)},
        {"torch-fidelity": 4, "scipy.linalg.sqrtm": 14},
        repeats=3,
        agree=within(1e-8),
    )

    x, y = features(1000, 1), features(1000, 2)
    c, d = (fid_features_to_statistics(s.double()) for s in (x, y))
    yield Case(
        "Fréchet distance of 1,000 and 1,000 images, d = 2048 (torch-fidelity: from moments)",
        lambda: frechet_distance(x, y),
        {"torch-fidelity": lambda: by_eigenvalues(c, d)},
        {"torch-fidelity": 20},
        repeats=3,
        agree=within(1e-4),  # the root of a singular product keeps half the digits
    )

    many = features(50_000, 1)

    def same_moments(ours: Moments, theirs: dict[str, np.ndarray]) -> None:
        assert np.abs(ours.cov.numpy() - theirs["np.cov"]).max() < 1e-12 * np.abs(theirs["np.cov"]).max()

    yield Case(
        "moments of 50,000 x 2048",
        lambda: moments(many),
        {"np.cov": lambda: np.cov(many.double().numpy(), rowvar=False)},
        repeats=3,
        count=50_000,
        unit="rows",
        agree=same_moments,
    )

    x, y = many[:10_000], features(10_000, 2)
    yield Case(
        "Fréchet distance of 10,000 and 10,000 images with its standard error (torch-fidelity: without)",
        lambda: frechet_distance_and_error(x, y),
        {"torch-fidelity": lambda: by_eigenvalues(*(fid_features_to_statistics(s) for s in (x.double(), y.double())))},
        repeats=2,
        agree=lambda ours, theirs: within(1e-8)(ours[0], theirs),
    )
