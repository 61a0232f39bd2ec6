"""A feature extractor: brightness of rows and columns, and a classifier of bars without any training."""

from pathlib import Path

import torch
from torch import Tensor

from ganbench.base.errors import UserError
from ganbench.features import FeatureExtractor, Features


class Strokes(FeatureExtractor):
    """Mean brightness of every row and every column, in [0, 1]: d = H + W. Classes: horizontal and vertical bars."""

    name = "strokes"  # as in the entry point
    version = "1"  # raise it whenever a feature changes: it is part of the key of cached features
    source = "this package"
    licence = "Apache-2.0"
    classes = ("horizontal", "vertical")

    def __init__(self, weights: Path | None = None, download: bool = True) -> None:
        super().__init__()
        if weights is not None:
            raise UserError(f"--weights strokes={weights}: the extractor 'strokes' has no weights. Leave it out.")

    def forward(self, images: Tensor) -> Features:
        """images: N x 1|3 x H x W, uint8 or float32 in 0..255. Returns features N x d and logits N x 2, float32."""
        x = images.float().mean(1) / 255
        rows, columns = x.mean(2), x.mean(1)
        logits = 20 * torch.stack([rows.amax(1) - columns.amax(1), columns.amax(1) - rows.amax(1)], 1)
        return Features(torch.cat([rows, columns], 1), logits)
