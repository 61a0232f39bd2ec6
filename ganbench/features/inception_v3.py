"""The Inception-v3 of 2015-12-05, the network that FID, KID and the Inception Score are defined over.

The function is that of torch-fidelity's network; the order of computation is faster. Batch norm is folded into the
convolutions, images are channels last in memory, ReLU is inside oneDNN's convolution on the CPU (`folding`), average
pooling comes after the 1x1 convolution instead of before it (both are linear), and TensorFlow 1's resizing is torch's
on a padded image. The weights are checked by hash. Torchvision's Inception-v3 is another network.
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
from ganbench.features.weights import Published, published, read

FILE = "pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # its start is in the file's name
URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
FILES = {FILE: Published(URL, SHA256)}
SIDE = 299
LARGE = 512  # pixels of a side beyond which only the pixels that are looked at are converted
SPATIAL_CHANNELS = 7

# Convolutions as (name, output channels, kernel height, kernel width). Padding keeps the size, except where a name is
# in VALID; "max" is the 3x3 max pool of stride 2.
Spec = tuple[str, int, int, int]
STEM: tuple[Spec | str, ...] = (
    ("Conv2d_1a_3x3", 32, 3, 3), ("Conv2d_2a_3x3", 32, 3, 3), ("Conv2d_2b_3x3", 64, 3, 3), "max",  # 64 x 73 x 73
    ("Conv2d_3b_1x1", 80, 1, 1), ("Conv2d_4a_3x3", 192, 3, 3), "max",  # 192 x 35 x 35
)
VALID = {"Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_4a_3x3"}
REDUCING = {"Mixed_6a", "Mixed_7a"}  # the last convolution of each branch, and the pool, halve the side

# A branch is a chain; a list within it stands for convolutions side by side, whose outputs are joined.
Branch = tuple[Spec | list[Spec], ...]


def _35(pool: int) -> tuple[tuple[Branch, ...], int]:
    return (
        (("branch1x1", 64, 1, 1),),
        (("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 5)),
        (("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 3), ("branch3x3dbl_3", 96, 3, 3)),
    ), pool


def _17(c: int) -> tuple[tuple[Branch, ...], int]:
    return (
        (("branch1x1", 192, 1, 1),),
        (("branch7x7_1", c, 1, 1), ("branch7x7_2", c, 1, 7), ("branch7x7_3", 192, 7, 1)),
        (("branch7x7dbl_1", c, 1, 1), ("branch7x7dbl_2", c, 7, 1), ("branch7x7dbl_3", c, 1, 7),
         ("branch7x7dbl_4", c, 7, 1), ("branch7x7dbl_5", 192, 1, 7)),
    ), 192


def _8() -> tuple[tuple[Branch, ...], int]:
    return (
        (("branch1x1", 320, 1, 1),),
        (("branch3x3_1", 384, 1, 1), [("branch3x3_2a", 384, 1, 3), ("branch3x3_2b", 384, 3, 1)]),
        (("branch3x3dbl_1", 448, 1, 1), ("branch3x3dbl_2", 384, 3, 3),
         [("branch3x3dbl_3a", 384, 1, 3), ("branch3x3dbl_3b", 384, 3, 1)]),
    ), 192


# By block: its branches, and the channels of the convolution beside the pool (0: there is none).
BLOCKS: dict[str, tuple[tuple[Branch, ...], int]] = {
    "Mixed_5b": _35(32), "Mixed_5c": _35(64), "Mixed_5d": _35(64),  # 256, 288, 288 x 35 x 35
    "Mixed_6a": ((
        (("branch3x3", 384, 3, 3),),
        (("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 3), ("branch3x3dbl_3", 96, 3, 3)),
    ), 0),
    "Mixed_6b": _17(128), "Mixed_6c": _17(160), "Mixed_6d": _17(160), "Mixed_6e": _17(192),  # 768 x 17 x 17
    "Mixed_7a": ((
        (("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 3)),
        (("branch7x7x3_1", 192, 1, 1), ("branch7x7x3_2", 192, 1, 7), ("branch7x7x3_3", 192, 7, 1),
         ("branch7x7x3_4", 192, 3, 3)),
    ), 0),
    "Mixed_7b": _8(), "Mixed_7c": _8(),  # 2048 x 8 x 8
}


def _convolution(
    state: dict[str, Tensor], name: str, shape: tuple[int, int, int, int], stride: int, valid: bool, relu: bool
) -> Convolution:
    """A convolution of the network with its batch norm; padding keeps the size unless `valid`."""
    padding = (0, 0) if valid else (shape[2] // 2, shape[3] // 2)
    weight, bias = folded(state, f"{name}.conv", f"{name}.bn", shape, 0.001)
    return Convolution(weight, bias, Form(padding, (stride, stride), "relu" if relu else "none"))


class Mixed(nn.Module):
    """An Inception block: branches side by side, one of them a pool."""

    def __init__(self, state: dict[str, Tensor], name: str, channels: int):
        super().__init__()
        branches, pool = BLOCKS[name]
        self.reducing = name in REDUCING
        self.max_pool = name in (*REDUCING, "Mixed_7c")
        self.branches = nn.ModuleList()
        self.channels = channels if self.reducing else pool  # of the output; more are added below
        for branch in branches:
            stages, width = nn.ModuleList(), channels
            for stage in branch:
                specs = stage if isinstance(stage, list) else [stage]
                halve = self.reducing and stage is branch[-1]
                stages.append(nn.ModuleList(
                    _convolution(state, f"{name}.{n}", (c, width, h, w), 2 if halve else 1, halve, True)
                    for n, c, h, w in specs
                ))
                width = sum(c for _, c, _, _ in specs)
            self.branches.append(stages)
            self.channels += width
        self.pool = None
        if pool:
            self.pool = _convolution(state, f"{name}.branch_pool", (pool, channels, 1, 1), 1, False, self.max_pool)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for stages in self.branches:
            now = [x]
            for stage in stages:  # type: ignore[attr-defined]
                now = [convolution(now[0]) for convolution in stage]
            outputs += now
        if self.pool is None:
            outputs.append(F.max_pool2d(x, 3, 2))
        elif self.max_pool:
            outputs.append(self.pool(F.max_pool2d(x, 3, 1, 1)))
        else:  # the mean of a 1x1 convolution is the convolution of the mean, over fewer channels
            outputs.append(F.avg_pool2d(self.pool(x), 3, 1, 1, count_include_pad=False).relu_())
        return torch.cat(outputs, 1)


class Network(nn.Module):
    """Scaled images N x 3 x 299 x 299 to 2,048 features; the weights are those of the published file's names.

    Raises ValueError where an entry is missing, of another shape, or unknown.
    """

    def __init__(self, state: object):
        super().__init__()
        if not isinstance(state, dict):
            raise ValueError("not a dictionary")
        state = {k: v for k, v in state.items() if not str(k).endswith("num_batches_tracked")}
        self.stem, channels = nn.ModuleList(), 3
        for layer in STEM:
            if isinstance(layer, str):
                self.stem.append(nn.MaxPool2d(3, 2))
                continue
            name, width, h, w = layer
            stride = 2 if name == "Conv2d_1a_3x3" else 1
            self.stem.append(_convolution(state, name, (width, channels, h, w), stride, name in VALID, True))
            channels = width
        self.blocks = nn.ModuleDict()
        for name in BLOCKS:
            block = Mixed(state, name, channels)
            self.blocks[name], channels = block, block.channels
        self.register_buffer("classifier", take(state, "fc.weight", (1008, channels)).float())
        self.classifier: Tensor
        take(state, "fc.bias", (1008,))  # part of the file, not of the logits
        if state:
            raise ValueError(f"unknown entries: {', '.join(map(str, list(state)[:3]))}")

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks_until(x, "").mean((2, 3)).float()

    def spatial(self, x: Tensor) -> Tensor:
        """The first 1x1 convolution of the block that TensorFlow's graph calls `mixed_6`: N x 192 x 17 x 17."""
        block: Any = self.blocks["Mixed_6d"]
        return block.branches[0][0][0](self.blocks_until(x, "Mixed_6d")).float()

    def blocks_until(self, x: Tensor, end: str) -> Tensor:
        """The output before the block `end`, or after the last one."""
        # The first maps are the largest: on the CPU, as many images at a time as its cache holds.
        step = 8 // x.element_size() if x.device.type == "cpu" else len(x)
        x = torch.cat([functools.reduce(lambda t, layer: layer(t), self.stem, part) for part in x.split(step)])
        for name, block in self.blocks.items():
            if name == end:
                break
            x = block(x)
        return x


class InceptionV3(FeatureExtractor):
    """Inception-v3 of 2015-12-05: 2,048 features of the last pool, logits without bias over 1,008 classes.

    Images of any size are resized to 299 x 299 the way TensorFlow 1 did; float32 throughout, on accelerators too. The
    published weights are taken from the data folder's `weights/`, or downloaded into it once; other weights can be
    given and are then named by their hash. `report["convolutions"]` says which ones ran.
    """

    name = "inception-v3"
    source = "torch-fidelity, converted from TensorFlow's inception-2015-12-05"
    licence = "Apache-2.0"
    version = "3"  # 1 was torch-fidelity's network, 2 resized by matrix products: the same to 1e-6, not to the bit

    def __init__(self, weights: Path | None = None, download: bool = True) -> None:
        super().__init__()
        path = weights or published(self.name, FILES, download)[0]
        state = read(self.name, path)
        self.sha256 = sha256_of(path)
        self.official = self.sha256 == SHA256
        keys = f"{len(state)} entries" if isinstance(state, dict) else type(state).__name__
        try:
            self.net = Network(state)
        except ValueError as error:
            raise UserError(
                f"{path} does not hold the weights of FID's Inception-v3 (found {keys}): the published file is {FILE}."
            ) from error

    def batch_size(self, device: torch.device, shape: torch.Size) -> int:
        return 8 if device.type == "cpu" else 256

    def forward(self, images: Tensor) -> Features:
        with full_float32():
            features = self.net(scaled(images))
            logits = F.linear(features, self.net.classifier)
        self._note()
        return Features(features, logits)

    def _note(self) -> None:
        self.report["convolutions"] = "oneDNN with ReLU" if all_fused(self.net) else "torch"


class InceptionV3BF16(InceptionV3):
    """Inception-v3 with bfloat16 convolutions: several times as fast, and never called `fid`.

    `report["probe_error"]` says what the rounding did: the relative error (Frobenius norm) of the features of the first
    batch against the float32 network's. Images are resized in float32; logits are float32 products of the features.
    """

    name = "inception-v3-bf16"

    def __init__(self, weights: Path | None = None, download: bool = True) -> None:
        super().__init__(weights, download)
        self._published, self.official = self.official, False  # whatever the weights: the arithmetic is another one

    @property
    def title(self) -> str:
        return self.name if self._published else super().title

    def batch_size(self, device: torch.device, shape: torch.Size) -> int:
        return 16 if device.type == "cpu" else 256

    def forward(self, images: Tensor) -> Features:
        x = scaled(images)
        features = self.net(x.to(torch.bfloat16))
        with full_float32():
            if "probe_error" not in self.report:
                exact = torch.cat([self.net(part) for part in x.split(4)])
                error = (features - exact).norm() / exact.norm().clamp_min(torch.finfo(torch.float32).tiny)
                self.report["probe_error"] = float(f"{error.item():.2g}")
            logits = F.linear(features, self.net.classifier)
        self._note()
        return Features(features, logits)


class InceptionV3Spatial(InceptionV3):
    """Inception-v3 of 2015-12-05, 17 x 17 x 7 spatial features of an inner layer: what sFID is taken over.

    The first 7 channels of the layer `mixed_6/conv` of TensorFlow's graph (after ReLU), flattened by row, column and
    channel to 2,023: the choice of Dhariwal and Nichol (2021), arXiv:2105.05233, after Nash et al. (2021),
    arXiv:2103.03841. No classes.
    """

    name = "inception-v3-spatial"

    def forward(self, images: Tensor) -> Features:
        with full_float32():
            features = self.net.spatial(scaled(images))[:, :SPATIAL_CHANNELS]
        self._note()
        return Features(features.permute(0, 2, 3, 1).flatten(1))


def scaled(images: Tensor) -> Tensor:
    """N x 1|3 x H x W in 0..255 to the network's input: (v - 128) / 128, float32 N x 3 x 299 x 299, channels last.

    Bilinear as TensorFlow 1 resized: pixel i of the new image looks at i H / 299 in the old one, without half-pixel
    centres and without a filter.
    """
    large = max(images.shape[2:]) > LARGE
    images = to_rgb(images)  # before resizing: one channel is rounded as three are
    x = (_sampled(images) - 128) / 128 if large else _interpolated((images.float() - 128) / 128)
    return x.contiguous(memory_format=torch.channels_last)


def _interpolated(x: Tensor) -> Tensor:
    """With corners aligned, one pixel more on both sides gives the ratio H / 299; the added one is dropped again."""
    if x.shape[2:] == (SIDE, SIDE):
        return x
    x = F.pad(x, (0, 1, 0, 1), mode="replicate").contiguous(memory_format=torch.channels_last)
    return F.interpolate(x, (SIDE + 1, SIDE + 1), mode="bilinear", align_corners=True)[..., :SIDE, :SIDE]


def _sampled(images: Tensor) -> Tensor:
    """Take the rows, and of these the columns, that the new pixels look at: most of a large image is not converted."""
    low, high, share = _grid(images.shape[2], images.device)
    x = torch.lerp(images.index_select(2, low).float(), images.index_select(2, high).float(), share[:, None])
    low, high, share = _grid(images.shape[3], images.device)
    return torch.lerp(x.index_select(3, low), x.index_select(3, high), share)


@functools.lru_cache(maxsize=16)
def _grid(n: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each of the 299 new pixels: the indices of its two old ones, and the second one's share."""
    with torch.inference_mode(False):
        at = torch.arange(SIDE, dtype=torch.float32) * torch.tensor(n / SIDE, dtype=torch.float32)
        low = at.long()
        return low.to(device), (low + 1).clamp_max(n - 1).to(device), (at - low).to(device)
