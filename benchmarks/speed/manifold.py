"""Precision, recall, density and coverage of 10,000 against 10,000 features of 2,048 dimensions."""

from collections.abc import Iterator

import torch

from benchmarks.speed import Case

N, D = 10_000, 2048


def features(seed: int, shift: float) -> torch.Tensor:
    """Draw features like those of a network: correlated, with most of their variance in few dimensions."""
    g = torch.Generator().manual_seed(0)
    mixing = torch.randn(D, D, generator=g) * torch.exp(-torch.arange(D) / 60.0)[:, None]
    g = torch.Generator().manual_seed(seed)
    return ((torch.randn(N, D, generator=g) + shift) @ mixing).relu()


def cases() -> Iterator[Case]:
    import contextlib
    import io

    from prdc import compute_prdc
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    from ganbench.metrics import manifold

    real, fake = features(1, 0.0), features(2, 0.15)
    a, b = real.numpy(), fake.numpy()

    def ours() -> dict[str, float]:
        counts = manifold.neighbourhoods(real, fake)
        return {name: formula(counts[which]).mean().item() for name, (formula, which) in manifold.FORMULAS.items()}

    def theirs() -> dict[str, float]:
        with contextlib.redirect_stdout(io.StringIO()):
            return compute_prdc(a, b, nearest_k=5)

    def agree(own: object, outcomes: dict[str, object]) -> None:
        assert isinstance(own, dict)
        other = outcomes["prdc"]
        assert isinstance(other, dict)
        for name in ("density", "coverage"):
            assert abs(own[name] - other[name]) < 1e-6, name
        pair = outcomes["torch-fidelity (precision and recall only)"]
        assert isinstance(pair, tuple)
        assert max(abs(own["precision"] - pair[0]), abs(own["recall"] - pair[1])) < 1e-6

    yield Case(
        f"precision, recall, density, coverage, {N:,} x {N:,} x {D:,}",
        ours,
        {
            "prdc": theirs,
            "torch-fidelity (precision and recall only)": lambda: calculate_precision_recall_full(fake, real, 3),
        },
        {"prdc": 5, "torch-fidelity (precision and recall only)": 3},
        repeats=3,
        agree=agree,
    )

    known = manifold.neighbours(real, manifold.DC_K)
    yield Case(
        "the same, the reference's neighbours known",
        lambda: manifold.neighbourhoods(real, fake, near_real=known),
        {"prdc": theirs},
        repeats=3,
        warm_up=0,
    )
