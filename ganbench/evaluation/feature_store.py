"""Features of sets of images: one pass an extractor, shared by all metrics, and cached for reference sets.

The cache lies in `<data folder>/features/`. Its keys hold everything that could change a digit: fingerprint and draw of
the images, weights and version of the network, the arithmetic, the size to which images were reduced, and the version
of this file. A damaged file is made again; a full disk costs a remark and nothing else.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ganbench.base import distributed
from ganbench.base.files import atomic_path
from ganbench.data.sources import Samples
from ganbench.features import FeatureExtractor, Features, extract

VERSION = 1
Progress = Callable[[str, int], Callable[[int], None]]  # (what, total) -> advance(n)
Say = Callable[[str], None]


def reduce(images: Tensor, side: int) -> Tensor:
    """Reduce uint8 images N x C x H x W to side x side pixels (bilinear, antialiased, rounded to uint8)."""
    small = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True, align_corners=False)
    return small.round().clamp(0, 255).to(torch.uint8)


class FeatureStore:
    """Makes features, keeps them in memory, and caches those of reference sets on disk.

    extractors: by name. folder: of the cache; None keeps nothing on disk. batch_size: images in a pass of an
    extractor; None leaves it to the extractor.
    """

    def __init__(
        self, extractors: dict[str, FeatureExtractor], device: torch.device, batch_size: int | None = None,
        folder: Path | None = None, progress: Progress = lambda what, total: lambda n: None,
        say: Say = lambda text: None,
    ):
        self.extractors, self.device, self.batch_size = extractors, device, batch_size
        self.folder, self.progress, self.say = folder, progress, say
        self._labels: dict[int, str] = {}
        self._lasting: set[int] = set()
        self._sets: list[Samples] = []  # alive as long as their ids are keys
        self._memory: dict[tuple[int, str, int], Features] = {}
        self._kept: dict[tuple[int, str], MutableMapping[str, dict[str, Tensor]]] = {}

    def name(self, samples: Samples, label: str, keep: bool = False) -> None:
        """Name a set for the progress bar. keep: its features are worth keeping on disk."""
        self._labels[id(samples)] = label
        self._sets.append(samples)
        if keep and "fingerprint" in samples.origin:
            self._lasting.add(id(samples))

    def features(self, samples: Samples, name: str, side: int = 0) -> Features:
        """Return features and logits of a set reduced to `side` px (0: as it is). If distributed, rank 0 has them."""
        key = (id(samples), name, side)
        if key not in self._memory:
            path = self._path(samples, name, side)
            found = self._read(path) if path else None
            if distributed.decide(found is not None):
                self._memory[key] = _unpack(found or {})
            else:
                self._memory[key] = self._extract(samples, name, side)
                if path:
                    self._write(path, _pack(self._memory[key]))
        return self._memory[key]

    def kept(self, samples: Samples, name: str) -> MutableMapping[str, dict[str, Tensor]]:
        """Return the tensors that metrics derived from a set's features; cached on disk for a reference set."""
        key = (id(samples), name)
        if key not in self._kept:
            path = self._path(samples, name, 0)
            self._kept[key] = _OnDisk(self, path) if path else {}
        return self._kept[key]

    def embed(self, name: str) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
        """Return an extractor as a function of images that a metric makes, uint8 or float in 0..255."""
        extractor = self.extractors[name]

        def embed(images: Tensor) -> tuple[Tensor, Tensor | None]:
            out = extract(extractor, images, self.batch_size, self.device)
            return out.features, out.logits

        return embed

    def _extract(self, samples: Samples, name: str, side: int) -> Features:
        """Extract in one pass. Each process takes whole batches, so that batches are those of a single process."""
        extractor, images = self.extractors[name], samples.images
        size = self.batch_size or extractor.batch_size(self.device, samples.images.shape)
        batches = -(-len(images) // size)
        rank, world = distributed.rank(), distributed.world_size()
        mine = slice(rank * batches // world * size, (rank + 1) * batches // world * size)
        images = images[mine]
        what = f"{name}, {self._labels.get(id(samples), 'images')}" + (f" at {side} px" if side else "")
        out = extract(
            extractor, reduce(images, side) if side else images, size, self.device, self.progress(what, len(images))
        )
        logits = None if out.logits is None else distributed.gather(out.logits)
        return Features(distributed.gather(out.features), logits)

    def _path(self, samples: Samples, name: str, side: int) -> Path | None:
        if self.folder is None or id(samples) not in self._lasting:
            return None
        origin = {k: samples.origin[k] for k in ("fingerprint", "drawn", "draw_seed") if k in samples.origin}
        extractor = self.extractors[name].describe()
        key = {"version": VERSION, "images": origin, "count": len(samples.images), "extractor": extractor, "side": side}
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        return self.folder / f"{name}-{digest}.safetensors"

    def _read(self, path: Path) -> dict[str, Tensor] | None:
        if distributed.rank() != 0 or not path.exists():
            return None
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            self.say(f"{path} cannot be read ({error}): made again")
            return None

    def _write(self, path: Path, tensors: dict[str, Tensor]) -> None:
        if distributed.rank() != 0:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as part:
                save_file({k: v.contiguous() for k, v in tensors.items()}, part)
        except (OSError, SafetensorError) as error:
            self.say(f"features are not kept: {path} cannot be written ({error})")


def _pack(out: Features) -> dict[str, Tensor]:
    return {"features": out.features} | ({} if out.logits is None else {"logits": out.logits})


def _unpack(tensors: dict[str, Tensor]) -> Features:
    return Features(tensors.get("features", torch.empty(0)), tensors.get("logits"))


class _OnDisk(MutableMapping[str, dict[str, Tensor]]):
    """Derived tensors by name, in files beside the file of features."""

    def __init__(self, store: FeatureStore, path: Path):
        self.store, self.path = store, path
        self.memory: dict[str, dict[str, Tensor]] = {}

    def _file(self, name: str) -> Path:
        return self.path.with_suffix(f".{name.replace('/', '-')}.safetensors")

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        if name not in self.memory:
            found = self.store._read(self._file(name))
            if found is None:
                raise KeyError(name)
            self.memory[name] = found
        return self.memory[name]

    def __setitem__(self, name: str, value: dict[str, Tensor]) -> None:
        self.memory[name] = value
        self.store._write(self._file(name), value)

    def __delitem__(self, name: str) -> None:
        self.memory.pop(name, None)
        self._file(name).unlink(missing_ok=True)

    def __iter__(self) -> Iterator[str]:
        return iter(self.memory)

    def __len__(self) -> int:
        return len(self.memory)
