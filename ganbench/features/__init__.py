"""Feature extractors: pretrained networks that turn images into features, and into logits where they have classes.

An extractor owns its resizing and scaling: it takes uint8 images of any size and one or three channels. Extractors are
found by entry point; `create("inception-v3", weights=...)` is the way in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ganbench.base import registry
from ganbench.base.errors import UserError
from ganbench.base.precision import full_float32
from ganbench.data.images import check


@dataclass(frozen=True)
class Features:
    """What one pass yields. features: float32 N x d. logits: float32 N x K, or None where there are no classes."""

    features: Tensor
    logits: Tensor | None = None


class FeatureExtractor(nn.Module):
    """The contract. A subclass sets the fields below and writes `forward`.

    `forward(images)` takes N x 1|3 x H x W, uint8 or float32 in the same units (0 to 255, for images that differ by
    less than a level), and returns `Features` of the batch. `weights` is a file, or None for the published ones
    (bundled, cached or downloaded). `download` says whether the network may be used for that.
    """

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    licence: ClassVar[str] = ""
    source: ClassVar[str] = ""
    classes: tuple[str, ...] = ()
    sha256: str = ""  # of the weights' file; empty where there are no weights
    official: bool = True  # False: not the published weights, so that no published name may be used
    report: dict[str, Any]  # what runs found out (an error, a fallback): for the reader, part of no key

    def __init__(self) -> None:
        super().__init__()
        self.report = {}

    @property
    def title(self) -> str:
        """The name for metrics and tables: `name` with the published weights, else `name@<8 digits of the hash>`."""
        return self.name if self.official else f"{self.name}@{self.sha256[:8]}"

    def batch_size(self, device: torch.device, shape: torch.Size) -> int:
        """Images of N x C x H x W to take at a time where the user did not say: small on the CPU, whose cache is."""
        return 16 if device.type == "cpu" else 256

    def describe(self) -> dict[str, Any]:
        """What goes into a result, so that somebody else can use the same network."""
        return {"name": self.name, "version": self.version, "sha256": self.sha256, "official": self.official,
                "source": self.source, "licence": self.licence}


def create(name: str, weights: Path | None = None, download: bool = True) -> FeatureExtractor:
    """The extractor of that name in evaluation mode, its parameters frozen.

    Raises UserError for an unknown name, and where weights are missing, unreadable or of another network.
    """
    cls = registry.load("extractors", name)
    if weights is not None and not weights.is_file():
        raise UserError(f"--weights {name}={weights}: there is no such file.")
    extractor: FeatureExtractor = cls(weights=weights, download=download)
    return extractor.eval().requires_grad_(False)


@torch.inference_mode()
def extract(
    extractor: FeatureExtractor, images: Tensor, batch_size: int | None, device: torch.device,
    advance: Callable[[int], None] | None = None,
) -> Features:
    """One pass over images N x C x H x W; features and logits come back on the CPU, float32, in the same order.

    The images are uint8, or float32 in 0..255. `batch_size` None leaves it to the extractor. `advance` is called with
    the size of each batch that is done (for a progress bar).
    """
    if images.dtype != torch.float32:
        check(images)
    extractor = extractor.to(device)
    parts = []
    for batch in images.split(batch_size or extractor.batch_size(device, images.shape)):
        with full_float32():
            out = extractor(batch.to(device))
        parts.append(Features(out.features.float().cpu(), None if out.logits is None else out.logits.float().cpu()))
        if advance:
            advance(len(batch))
    logits = None if parts[0].logits is None else torch.cat([p.logits for p in parts if p.logits is not None])
    return Features(torch.cat([p.features for p in parts]), logits)
