"""LPIPS over VGG16 as features: the squared Euclidean distance of two images' features is their LPIPS.

    LPIPS(x, y) = sum_l 1/(H_l W_l) sum_{h,w} sum_c w_lc (f_lc(x) - f_lc(y))^2

Zhang et al. (2018), "The unreasonable effectiveness of deep features as a perceptual metric", arXiv:1801.03924,
Equation 1, with linear layers v0.1; f_l are the activations of five layers of VGG16, normalised to unit length over the
channels. The features are therefore sqrt(w_lc / (H_l W_l)) f_lc, 122 values a pixel: take few images at a time.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ganbench.base.errors import UserError
from ganbench.base.files import sha256_of
from ganbench.base.precision import full_float32
from ganbench.data.images import to_float, to_rgb
from ganbench.features import FeatureExtractor, Features
from ganbench.features.weights import Published, published, read

VGG16 = "vgg16-397923af.pth"  # torchvision's; the start of its hash is in its name
LINEAR = "weights-vgg16-lpips.pth"
# Hash of the values of the five linear layers, float32, in their order.
LINEAR_SHA256 = "9153a2043dccf3b525d4f13db916e93ef040548ea923b6f2100de5ebac141a78"
FILES = {
    VGG16: Published(f"https://download.pytorch.org/models/{VGG16}", "397923af"),
    LINEAR: Published(f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{LINEAR}", ""),
}
# Index in torchvision's `features` and output channels of each convolution, by slice; a slice ends in one LPIPS layer.
SLICES = (
    ((0, 64), (2, 64)), ((5, 128), (7, 128)), ((10, 256), (12, 256), (14, 256)),
    ((17, 512), (19, 512), (21, 512)), ((24, 512), (26, 512), (28, 512)),
)
SMALLEST = 2 ** (len(SLICES) - 1)


class LpipsVGG16(FeatureExtractor):
    """LPIPS over VGG16: features whose squared distance is the perceptual distance of two images; no classes.

    Images keep their size, which must be at least 16 px. The published weights are two files in `weights/` of the data
    folder, downloaded once. A file that a user gives holds the entries of both.
    """

    name = "lpips-vgg16"
    source = "torchvision (VGG16, ImageNet) and LPIPS v0.1"
    licence = "BSD-3-Clause, BSD-2-Clause"

    def __init__(self, weights: Path | None = None, download: bool = True) -> None:
        super().__init__()
        paths = [weights] if weights else published(self.name, FILES, download)
        state: dict[str, Any] = {}
        for path in paths:
            found = read(self.name, path)
            if not isinstance(found, dict):
                raise UserError(f"{path} does not hold weights of LPIPS over VGG16 (found {type(found).__name__}).")
            state |= found
        hashes = [sha256_of(path) for path in paths]
        self.sha256 = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
        where = " and ".join(map(str, paths))
        self.layers, channels = [], 3
        for i, convolutions in enumerate(SLICES):
            names = []
            for index, width in convolutions:
                for part, shape in (("weight", (width, channels, 3, 3)), ("bias", (width,))):
                    value = _entry(state, f"features.{index}.{part}", shape, where)
                    if part == "weight":
                        value = value.contiguous(memory_format=torch.channels_last)
                    self.register_buffer(f"{part}{index}", value)
                names.append(index)
                channels = width
            self.layers.append(names)
            linear = _entry(state, f"lin{i}.model.1.weight", (1, channels, 1, 1), where)
            if (linear < 0).any():
                raise UserError(f"{where} has negative weights in lin{i}: those of LPIPS are not.")
            self.register_buffer(f"linear{i}", linear.float())
        values = b"".join(getattr(self, f"linear{i}").numpy().astype("<f4").tobytes() for i in range(len(SLICES)))
        self.official = (
            len(paths) == 2 and hashes[0].startswith("397923af") and hashlib.sha256(values).hexdigest() == LINEAR_SHA256
        )

    def batch_size(self, device: torch.device, shape: torch.Size) -> int:
        pixels = shape[-1] * shape[-2]
        return max(1, (1 << 16 if device.type == "cpu" else 1 << 22) // pixels)

    def forward(self, images: Tensor) -> Features:
        if min(images.shape[2:]) < SMALLEST:
            size = f"{images.shape[3]}x{images.shape[2]}"
            raise UserError(f"the extractor '{self.name}' needs images of {SMALLEST} px or more, not {size}.")
        shift, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]], device=images.device)
        x = (to_rgb(to_float(images)) - shift.view(-1, 1, 1)) / scale.view(-1, 1, 1)
        x = x.contiguous(memory_format=torch.channels_last)
        parts = []
        with full_float32():
            for i, indices in enumerate(self.layers):
                if i:
                    x = F.max_pool2d(x, 2)
                for index in indices:
                    x = F.conv2d(x, getattr(self, f"weight{index}"), getattr(self, f"bias{index}"), padding=1).relu_()
                unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
                share = (getattr(self, f"linear{i}") / (x.shape[2] * x.shape[3])).sqrt()
                parts.append((unit * share).flatten(1))
        return Features(torch.cat(parts, 1))


def _entry(state: dict[str, Any], key: str, shape: tuple[int, ...], where: str) -> Tensor:
    value = state.get(key)
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        raise UserError(
            f"{where} does not hold the weights of LPIPS over VGG16 (no {key} of {'x'.join(map(str, shape))}): "
            f"the published files are {VGG16} and {LINEAR}."
        )
    return value.float()
