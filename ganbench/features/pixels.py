"""Raw pixels as features: for the classical measures, and for evaluations without a network."""

from pathlib import Path

import torch
from torch import Tensor

from ganbench.base.errors import UserError
from ganbench.features import FeatureExtractor, Features


class Pixels(FeatureExtractor):
    """Pixels scaled to [0, 1], flattened in the order channel, row, column: d = C H W. No resizing, no classes."""

    name = "pixels"

    def __init__(self, weights: Path | None = None, download: bool = True) -> None:
        super().__init__()
        if weights is not None:
            raise UserError(f"--weights pixels={weights}: the extractor 'pixels' has no weights. Leave the option out.")

    def batch_size(self, device: torch.device, shape: torch.Size) -> int:
        return max(16, min(4096, (1 << 24) // shape[1:].numel()))

    def forward(self, images: Tensor) -> Features:
        return Features(images.flatten(1).float() / 255.0)
