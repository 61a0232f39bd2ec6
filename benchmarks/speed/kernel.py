"""Kernel distances at d = 2048: KID in its published protocol, at three sizes, and the Gaussian kernel."""

from collections.abc import Iterator

import torch

from benchmarks.speed import Case
from benchmarks.speed.frechet import features


def cases() -> Iterator[Case]:
    """Yield ours, with its standard error, beside torch-fidelity on the same subsets, in float32 and in float64."""
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    from ganbench.metrics import Inputs, Side, kernel

    nothing = torch.zeros(0, 1, 1, 1, dtype=torch.uint8)

    def ours(real: torch.Tensor, fake: torch.Tensor) -> float:
        sides = Side(nothing, features=real), Side(nothing, features=fake)
        return kernel.PROTOCOLS[0].compute(Inputs(*sides, None, torch.Generator()))[0].value

    def theirs(real: torch.Tensor, fake: torch.Tensor) -> float:
        out = kid_features_to_metric(fake, real, kid_subset_size=min(1000, len(fake)), verbose=False)
        return out[KEY_METRIC_KID_MEAN]

    def agree(value: float, peers: dict[str, float]) -> None:
        # In float32 torch-fidelity keeps some four digits of a small distance.
        assert abs(value - peers["torch-fidelity, float64"]) < 1e-6 * abs(value)
        assert abs(value - peers["torch-fidelity, float32"]) < 1e-3 * abs(value)

    for n, goal in ((10_000, 1.6), (5000, None), (1000, None)):
        x, y = features(n, 1), features(n, 2)
        x64, y64 = x.double(), y.double()
        yield Case(
            f"KID of {n:,} and {n:,} images, d = 2048, with its standard error",
            lambda x=x, y=y: ours(x, y),
            {
                "torch-fidelity, float32": lambda x=x, y=y: theirs(x, y),
                "torch-fidelity, float64": lambda x=x64, y=y64: theirs(x, y),
            },
            {"torch-fidelity, float32": goal} if goal else {},
            repeats=2,
            agree=agree,
        )
        del x, y, x64, y64

    x, y = features(5000, 1), features(5000, 2)

    def by_definition() -> float:
        """As in the paper's code: all at once."""
        a, b = (s / s.norm(dim=1, keepdim=True) for s in (x, y))

        def mean(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            squares = u.square().sum(1)[:, None] + v.square().sum(1) - 2 * u @ v.T
            return torch.exp(-squares / 200).mean()

        return (mean(a, a) + mean(b, b) - 2 * mean(a, b)).item()

    def close(value: float, peers: dict[str, float]) -> None:
        assert abs(value - peers["the definition, float32"]) < 1e-6

    yield Case(
        "MMD of 5,000 and 5,000 images, Gaussian kernel, d = 2048, with its standard error",
        lambda: kernel.mmd_rbf(x, y),
        {"the definition, float32": by_definition},
        repeats=3,
        agree=close,
    )
