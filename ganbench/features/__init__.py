"""Feature extractors: pretrained networks that turn images into features, and into logits where they have classes.

An extractor owns its resizing and scaling: it takes uint8 images of any size and one or three channels. Extractors are
found by entry point. `create("inception-v3", weights=...)` makes one, and `extract` runs it over a set of images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ganbench.base import registry
from ganbench.base.errors import UserError, shortened
from ganbench.base.precision import full_float32
from ganbench.base.standard_output import user_code
from ganbench.data.streams import Images, batches
from ganbench.features.checks import check_form, check_images


@dataclass(frozen=True)
class Features:
    """The output of one pass. features: float32 N x d. logits: float32 N x K, or None if there are no classes."""

    features: Tensor
    logits: Tensor | None = None


class FeatureExtractor(nn.Module):
    """The contract of an extractor. A subclass sets the fields below and writes `forward`.

    `forward(images)` takes N x 1|3 x H x W, uint8 or float32 in the same units (0 to 255, for images that differ by
    less than a level), and returns `Features` of the batch. `weights` is a file, or None for the published ones
    (bundled, cached or downloaded). `download` says whether the network may be used for that.
    """

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    licence: ClassVar[str] = ""
    source: ClassVar[str] = ""
    classes: tuple[str, ...] = ()
    sha256: str = ""  # hash of the file of weights; empty if there are no weights
    official: bool = True  # False: not the published weights, so that no published name may be used
    columns: dict[tuple[int, ...], tuple[int, int | None]]  # of features and logits, by the shape of an image
    report: dict[str, Any]  # findings of runs (an error, a fallback) for the reader; part of no cache key

    def __init__(self) -> None:
        super().__init__()
        self.report = {}
        self.columns = {}

    @property
    def title(self) -> str:
        """Name for metrics and tables: `name` with the published weights, else `name@<8 digits of the hash>`."""
        return self.name if self.official else f"{self.name}@{self.sha256[:8]}"

    def batch_size(self, device: torch.device, shape: torch.Size) -> int:
        """Return how many images of shape N x C x H x W to take at a time: few on a CPU, whose cache is small."""
        return 16 if device.type == "cpu" else 256

    def describe(self) -> dict[str, Any]:
        """Return the identity of the network for a result, so that others can use the same one."""
        return {"name": self.name, "version": self.version, "sha256": self.sha256, "official": self.official,
                "source": self.source, "licence": self.licence}


def create(name: str, weights: Path | None = None, download: bool = True) -> FeatureExtractor:
    """Return the extractor of that name in evaluation mode, its parameters frozen.

    weights: a file to use instead of the published weights. download: whether the network may be used. Raises
    UserError for an unknown name, and if weights are missing, unreadable or those of another network.
    """
    cls = registry.load("extractors", name)
    if weights is not None and not weights.is_file():
        raise UserError(f"--weights {name}={weights}: there is no such file.")
    try:
        with user_code():
            extractor: FeatureExtractor = cls(weights=weights, download=download)
        _require_extractor(extractor, name if weights is None else None)  # weights may have a name of their own
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the class may be somebody else's
        raise UserError(f"the extractor '{name}' cannot be used ({registry.reason(error)}).") from error
    return extractor.eval().requires_grad_(False)


def _require_extractor(extractor: Any, name: str | None) -> None:
    """Raise TypeError or ValueError unless this is an extractor with a describable identity. name: None: any."""
    if not isinstance(extractor, FeatureExtractor):
        raise TypeError(f"it is no FeatureExtractor, but a {type(extractor).__name__}")
    if not isinstance(getattr(extractor, "name", None), str):
        raise TypeError("it has no name")
    if name is not None and extractor.name != name:
        raise ValueError(f"its name is {extractor.name!r}, and its entry point is '{name}'")
    for field in ("version", "licence", "source", "sha256"):
        if not isinstance(getattr(extractor, field), str):
            raise TypeError(f"its field '{field}' must be a text, not {getattr(extractor, field)!r}")
    if not isinstance(extractor.classes, tuple | list) or not all(isinstance(c, str) for c in extractor.classes):
        raise TypeError(f"its field 'classes' must be names, not {shortened(repr(extractor.classes), 80)}")
    size = extractor.batch_size(torch.device("cpu"), torch.Size((2, 1, 8, 8)))
    if type(size) is not int or size < 1:
        raise ValueError(f"its batch_size must return a positive whole number, not {size!r}")


def is_bundled(name: str) -> bool:
    """Return True if an extractor can be used without a download now."""
    try:
        create(name, download=False)
    except UserError:
        return False
    return True


def _require_output(extractor: FeatureExtractor, out: Any, batch: Tensor) -> None:
    """Raise TypeError or ValueError, which names the extractor, unless `out` is the output for the batch."""
    what = f"the extractor '{extractor.name}' must return Features of {len(batch)} rows, N x d"
    if not isinstance(out, Features):
        raise TypeError(f"{what}, and returned an object of type {type(out).__name__}")
    for name, x in (("features", out.features), ("logits", out.logits)):
        if x is None and name == "logits":
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"{what}: its {name} are of type {type(x).__name__}")
        if x.ndim != 2 or len(x) != len(batch) or not x.shape[1] or not x.is_floating_point():
            kind = str(x.dtype).removeprefix("torch.")
            raise TypeError(f"{what}: its {name} are {kind} of shape {tuple(x.shape)}, not floats of that")
        if not torch.isfinite(x).all():
            raise ValueError(f"the {name} of the extractor '{extractor.name}' are not finite")
    columns = (out.features.shape[1], None if out.logits is None else out.logits.shape[1])
    known = extractor.columns.setdefault(tuple(batch.shape[1:]), columns)
    if columns != known:
        raise ValueError(f"{what}: the columns of its features and logits were {known}, and are {columns} now")


@torch.inference_mode()
def embed(extractor: FeatureExtractor, batch: Tensor, device: torch.device) -> Features:
    """Run an extractor, which is on `device`, over one batch. Returns float32 features and logits on the CPU.

    batch: uint8, or float32 in 0..255, n x 1|3 x H x W. Raises TypeError for images of another type and ValueError for
    those of another shape, and TypeError or ValueError if the extractor returns anything but n rows of finite floats.
    """
    check_form(batch)
    if device.type == "cuda":  # the copy overlaps with the computation
        batch = batch.pin_memory()
    try:
        with full_float32(), user_code():
            out = extractor(batch.to(device, non_blocking=True))
    except SystemExit as error:  # the network may be somebody else's
        raise RuntimeError(f"the extractor '{extractor.name}' tried to end the program ({error})") from error
    _require_output(extractor, out, batch)
    return Features(out.features.float().cpu(), None if out.logits is None else out.logits.float().cpu())


def extract(
    extractor: FeatureExtractor, images: Tensor | Images, batch_size: int | None, device: torch.device,
    advance: Callable[[int], None] | None = None,
) -> Features:
    """Run an extractor over images N x C x H x W. Returns float32 features and logits on the CPU, in the same order.

    images: uint8, in memory or not, or float32 in 0..255. batch_size: None leaves it to the extractor. advance: called
    with the size of each finished batch (for a progress bar).
    Raises TypeError and ValueError like `embed`, and ValueError for floats in another range.
    """
    if isinstance(images, Tensor):
        check_images(images)
    extractor = extractor.to(device)
    parts = []
    for batch in batches(images, batch_size or extractor.batch_size(device, images.shape)):
        parts.append(embed(extractor, batch, device))
        if advance:
            advance(len(batch))
    logits = None if parts[0].logits is None else torch.cat([p.logits for p in parts if p.logits is not None])
    return Features(torch.cat([p.features for p in parts]), logits)
