"""Inception-v3 features beside torch-fidelity's network, with the same random weights and images of 32 x 32 pixels."""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed import Case
from ganbench.features import FeatureExtractor, create

IMAGES = 64
GFLOP = 11.42  # of one image at 299 x 299: two operations for each multiplication, padding included


def cases() -> Iterator[Case]:
    """Yield float32 beside the peer's default batch (64) and its best one on a CPU (4), and bfloat16 at batch 64."""
    torch.set_grad_enabled(False)
    theirs, weights = plain()
    images = torch.randint(256, (IMAGES, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    exact, fast = create("inception-v3", weights), create("inception-v3-bf16", weights)

    def agree(limit: float) -> Callable[[object, dict[str, object]], None]:
        def check(ours: object, others: dict[str, object]) -> None:
            assert isinstance(ours, Tensor)
            for name, other in others.items():
                assert isinstance(other, Tensor)
                error = ((ours - other).norm() / other.norm()).item()
                assert error < limit, f"{name}: {error:.1e}"

        return check

    def run(network: torch.nn.Module, batch: int) -> Callable[[], Tensor]:
        def call() -> Tensor:
            parts = [network(part) for part in images.split(batch)]
            return torch.cat([p[0] if isinstance(p, tuple) else p.features for p in parts])

        return call

    def title(extractor: FeatureExtractor, batch: int, dtype: torch.dtype) -> str:
        call, limit = run(extractor, batch), peak(dtype)
        call()
        began = time.perf_counter()
        call()
        share = IMAGES * GFLOP / (time.perf_counter() - began) / limit
        return f"{extractor.name}, batch {batch}, at {share:.0%} of the convolution peak ({limit:.0f} GFLOP/s)"

    small = exact.batch_size(torch.device("cpu"), images.shape)
    yield Case(
        title(exact, small, torch.float32), run(exact, small),
        {"torch-fidelity, batch 64": run(theirs, 64), "torch-fidelity, batch 4": run(theirs, 4)},
        goals={"torch-fidelity, batch 64": 3, "torch-fidelity, batch 4": 1.9},
        repeats=3, count=IMAGES, unit="images", agree=agree(1e-4),
    )
    batch = 64
    peer = f"torch-fidelity, batch {batch}"
    yield Case(
        title(fast, batch, torch.bfloat16), run(fast, batch), {peer: run(theirs, batch)}, goals={peer: 3.5}, repeats=3,
        count=IMAGES, unit="images", agree=agree(0.1),
    )


def plain() -> tuple[torch.nn.Module, Path]:
    """Return torch-fidelity's network with random weights that keep the scale, and the file of these weights."""
    import torch_fidelity.feature_extractor_inceptionv3 as published

    torch.manual_seed(0)
    with (
        mock.patch.object(published, "load_state_dict_from_url", return_value={}),
        mock.patch.object(published.FeatureExtractorInceptionV3, "load_state_dict"),
    ):
        net = published.FeatureExtractorInceptionV3("inception-v3", ["2048", "logits_unbiased"])
    for name, parameter in net.named_parameters():
        if name.endswith("conv.weight"):
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
    path = Path(tempfile.mkdtemp()) / "random.pth"
    torch.save(net.state_dict(), path)
    return net, path


def peak(dtype: torch.dtype) -> float:
    """Measure GFLOP/s of a 3x3 convolution of 256 channels, channels last: about the peak of this machine."""
    n, c, side = 8, 256, 35
    x = torch.randn(n, c, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(c, c, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    seconds = []
    for _ in range(8):
        began = time.perf_counter()
        F.conv2d(x, weight, padding=1)
        seconds.append(time.perf_counter() - began)
    return 2 * n * side**2 * c**2 * 9 / min(seconds) / 1e9
