"""Features of sets of images: one pass over a set serves all extractors and all metrics; references are cached.

A pass takes each batch once: every extractor, every reduced size and every draw of pixels is served while the batch is
in memory, and then it is dropped. Where metrics need nothing but moments, moments are all that is kept.

The cache lies in `<data folder>/features/`. Its keys hold everything that could change a digit: fingerprint and draw of
the images, weights and version of the network, the arithmetic, the size to which images were reduced, and the version
of this file. A pass over a reference that is interrupted goes on where it was. A damaged file is made again; a full
disk costs a remark and nothing else.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ganbench.base import distributed
from ganbench.base.memory import in_words
from ganbench.data.sources import Samples
from ganbench.data.streams import Images, Partial, batches
from ganbench.evaluation import disk_cache
from ganbench.evaluation.sinks import FeatureSink, MomentSink, PixelSink
from ganbench.features import FeatureExtractor, Features, embed, extract
from ganbench.metrics import Unavailable

VERSION = 2
SAVE_EVERY = 60.0  # seconds after which what a pass over a reference has made is written
WORTH_SAYING = 256 << 20  # bytes of features
MOST_AT_ONCE = 1024  # images in one batch for all extractors together
Progress = Callable[[str, int], Callable[[int], None]]  # (what, total) -> advance(n)
Say = Callable[[str], None]


def reduce(images: Tensor, side: int) -> Tensor:
    """Reduce uint8 images N x C x H x W to side x side pixels (bilinear, antialiased, rounded to uint8)."""
    small = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True, align_corners=False)
    return small.round().clamp(0, 255).to(torch.uint8)


@dataclass
class Wanted:
    """What metrics look at in one set of images.

    features: by extractor and side in pixels (0: as the images are), whether their moments are enough. rows: int64 rows
    whose pixels are looked at. all_pixels: the pixels of all images are.
    """

    features: dict[tuple[str, int], bool] = field(default_factory=dict)
    rows: list[Tensor] = field(default_factory=list)
    all_pixels: bool = False

    def add(self, name: str, side: int, moments: bool) -> None:
        """Add features; moments are enough if they are for everybody who looks at these."""
        self.features[name, side] = moments and self.features.get((name, side), True)


class FeatureStore:
    """Makes features, keeps them in memory, and caches those of reference sets on disk.

    extractors: by name. folder: of the cache; None keeps nothing on disk. batch_size: images in a pass of an
    extractor; None leaves it to the extractor.
    seconds, waited: how long the passes took, and how long of that they waited for images.
    """

    def __init__(
        self, extractors: dict[str, FeatureExtractor], device: torch.device, batch_size: int | None = None,
        folder: Path | None = None, progress: Progress = lambda what, total: lambda n: None,
        say: Say = lambda text: None,
    ):
        self.extractors, self.device, self.batch_size = extractors, device, batch_size
        self.folder, self.progress, self.say = folder, progress, say
        self.seconds = self.waited = 0.0
        self._labels: dict[int, str] = {}
        self._lasting: set[int] = set()
        self._sets: list[Samples] = []  # alive as long as their ids are keys
        self._memory: dict[tuple[int, str, int], Features] = {}
        self._by_moments: set[tuple[int, str]] = set()
        self._failed: dict[tuple[int, str, int], str] = {}
        self._pixels: dict[int, Tensor | Images] = {}
        self._kept: dict[tuple[int, str], MutableMapping[str, dict[str, Tensor]]] = {}

    def name(self, samples: Samples, label: str, keep: bool = False) -> None:
        """Name a set for the progress bar. keep: its features are worth keeping on disk."""
        self._labels[id(samples)] = label
        self._sets.append(samples)
        if keep and "fingerprint" in samples.origin:
            self._lasting.add(id(samples))

    def gather(self, samples: Samples, wanted: Wanted) -> None:
        """Make all that metrics look at in one pass over the images, unless it is there already."""
        jobs = [
            _Job(self, samples, name, side, moments)
            for (name, side), moments in wanted.features.items() if not self._has(samples, name, side, moments)
        ]
        pixels = None
        if isinstance(samples.images, Images) and id(samples) not in self._pixels:
            if wanted.all_pixels:
                pixels = torch.arange(len(samples.images))
            elif wanted.rows:
                pixels = torch.cat(wanted.rows).unique()
        if jobs or pixels is not None:
            self._pass(samples, jobs, pixels)

    def provide(self, samples: Samples, name: str, side: int, features: Features) -> None:
        """Take over features that were made elsewhere: of a set reduced to `side` px (0: as it is)."""
        self._sets.append(samples)
        self._memory[id(samples), name, side] = features

    def forget(self, samples: Samples) -> None:
        """Drop all that is held of a set in memory."""
        mine = id(samples)
        self._memory = {key: value for key, value in self._memory.items() if key[0] != mine}
        self._failed = {key: value for key, value in self._failed.items() if key[0] != mine}
        self._kept = {key: value for key, value in self._kept.items() if key[0] != mine}
        self._pixels.pop(mine, None)
        self._labels.pop(mine, None)
        self._by_moments = {key for key in self._by_moments if key[0] != mine}
        self._lasting.discard(mine)
        self._sets = [each for each in self._sets if each is not samples]

    def images(self, samples: Samples) -> Tensor | Images:
        """Return the images of a set as metrics get them: those rows that `gather` was told of, or all."""
        return self._pixels.get(id(samples), samples.images)

    def features(self, samples: Samples, name: str, side: int = 0) -> Features:
        """Return features and logits of a set reduced to `side` px (0: as it is), in every process.

        Raises Unavailable if the extractor failed.
        """
        key = (id(samples), name, side)
        if not self._has(samples, name, side, moments=False):
            self._pass(samples, [_Job(self, samples, name, side, moments=False)], None)
        if key in self._failed:
            raise Unavailable(self._failed[key])
        return self._memory[key]

    def has_moments_alone(self, samples: Samples, name: str) -> bool:
        """Return True if the moments of a set's features were kept, and no features. Raises Unavailable on failure."""
        if (id(samples), name, 0) in self._failed:
            raise Unavailable(self._failed[id(samples), name, 0])
        return (id(samples), name) in self._by_moments

    def kept(self, samples: Samples, name: str) -> MutableMapping[str, dict[str, Tensor]]:
        """Return the tensors that metrics derived from a set's features; cached on disk for a reference set."""
        key = (id(samples), name)
        if key not in self._kept:
            path = self.path(samples, name, 0)
            self._kept[key] = _OnDisk(self, path) if path else {}
        return self._kept[key]

    def embed(self, name: str) -> Callable[[Tensor | Images], tuple[Tensor, Tensor | None]]:
        """Return an extractor as a function of images that a metric makes, uint8 or float in 0..255."""
        extractor = self.extractors[name]

        def embed(images: Tensor | Images) -> tuple[Tensor, Tensor | None]:
            out = extract(extractor, images, self.batch_size, self.device)
            return out.features, out.logits

        return embed

    def pace(self) -> dict[str, float]:
        """Return how many seconds the passes over images took, and how many of these the networks waited for images."""
        return {"pass_seconds": round(self.seconds, 1), "waited_seconds": round(self.waited, 1)}

    def _has(self, samples: Samples, name: str, side: int, moments: bool) -> bool:
        """Return True if features, or the moments that are enough, are in memory or on disk, or cannot be made."""
        key = (id(samples), name, side)
        if key in self._memory or key in self._failed:
            return True
        path = self.path(samples, name, side)
        if moments:
            kept = self.kept(samples, name)
            there = path is not None and distributed.rank() == 0 and "moments/1" in kept and "some/1" in kept
            if distributed.decide(there):
                self._by_moments.add((id(samples), name))
                return True
        found = self._read(path, len(samples.images)) if path else None
        if not distributed.decide(found is not None):
            return False
        self._memory[key] = _unpack(found or {})
        return True

    def _pass(self, samples: Samples, jobs: "list[_Job]", pixel_rows: Tensor | None) -> None:
        """Serve jobs and pixels by one pass over the images, in which each process reads its own part.

        A process takes whole batches of every job, so that the batches are those of a single process. Under torchrun,
        jobs whose batches have no small common multiple therefore get a pass each.
        """
        for group in _in_step(jobs) if jobs and distributed.world_size() > 1 else [jobs]:
            n = len(samples.images)
            if distributed.world_size() > 1:
                size = math.lcm(*(job.size for job in group)) if group else 64
            else:
                size = max((job.size for job in group), default=64)
            count, rank, world = -(-n // size), distributed.rank(), distributed.world_size()
            start, stop = (r * count // world * size for r in (rank, rank + 1))
            stop = min(stop, n)
            pixels = None if pixel_rows is None else PixelSink(pixel_rows, samples.images.shape, start)
            pixel_rows = None  # one group sees them
            done = self._go_on(group, start) if pixels is None and world == 1 else start
            names = " + ".join(dict.fromkeys(f"{j.name} at {j.side} px" if j.side else j.name for j in group)) or "look"
            advance = self.progress(f"{names}, {self._labels.get(id(samples), 'images')}", stop - start)
            if done > start:
                advance(done - start)
            self._run(samples, group, pixels, range(done, stop), start, size, advance)
            for job in group:
                job.finish()
            if pixels is not None:
                self._pixels[id(samples)] = _seen(samples.images, pixels)

    def _go_on(self, group: "list[_Job]", start: int) -> int:
        """Read what an interrupted pass left, and return the row to go on with."""
        found = [job.pieces() for job in group]
        rows = {count for count, _ in found}
        if len(rows) != 1 or rows == {0}:
            return start
        for job, (_, pieces) in zip(group, found, strict=True):
            job.go_on(pieces, start)
        return rows.pop()

    def _run(
        self, samples: Samples, group: "list[_Job]", pixels: PixelSink | None, rows: range, start: int, size: int,
        advance: Callable[[int], None],
    ) -> None:
        began = saved = time.monotonic()
        whole = rows.start == 0 and rows.stop == len(samples.images)
        stream = batches(samples.images, size, None if whole else slice(rows.start, rows.stop)) if rows else iter(())
        while True:
            before = time.monotonic()
            batch = next(stream, None)
            self.waited += time.monotonic() - before
            if batch is None:
                break
            if pixels is not None:
                pixels.take(batch)
            for job in group:
                for part in job.waiting.add(batch):
                    job.take(part, start)
            advance(len(batch))
            in_step = distributed.world_size() == 1 and not any(job.waiting for job in group)
            if in_step and time.monotonic() - saved > SAVE_EVERY:
                for job in group:
                    job.save()
                saved = time.monotonic()
        for job in group:
            for part in job.waiting.rest():
                job.take(part, start)
        self.seconds += time.monotonic() - began

    def path(self, samples: Samples, name: str, side: int) -> Path | None:
        """Return the file of the cache that holds the features of a set; None if they are not kept."""
        if self.folder is None or id(samples) not in self._lasting:
            return None
        origin = {
            k: samples.origin[k] for k in ("fingerprint", "fingerprint_of", "drawn", "draw_seed") if k in samples.origin
        }
        extractor = self.extractors[name].describe()
        key = {"version": VERSION, "images": origin, "count": len(samples.images), "extractor": extractor, "side": side}
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        return self.folder / f"{name}-{digest}.safetensors"

    def _read(self, path: Path, rows: int | None = None) -> dict[str, Tensor] | None:
        return disk_cache.read(path, self.say, rows) if distributed.rank() == 0 else None

    def _write(self, path: Path, tensors: dict[str, Tensor]) -> None:
        if distributed.rank() == 0:
            disk_cache.write(path, tensors, self.say)


class _Job:
    """One extractor over one set at one size, in a pass."""

    def __init__(self, store: FeatureStore, samples: Samples, name: str, side: int, moments: bool):
        self.store, self.samples, self.name, self.side, self.moments = store, samples, name, side, moments
        self.extractor = store.extractors[name].to(store.device)
        self.size = store.batch_size or self.extractor.batch_size(store.device, samples.images.shape)
        self.n = len(samples.images)
        self.path = store.path(samples, name, side)
        self.sink: FeatureSink | MomentSink | None = None
        self.problem: str | None = None
        self.waiting = Rebatched(self.size)

    def take(self, batch: Tensor, start: int) -> None:
        """Run the extractor over a batch. An error of the extractor ends this job and no other."""
        if self.problem is not None:
            return
        try:
            out = embed(self.extractor, reduce(batch, self.side) if self.side else batch, self.store.device)
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            self.problem = f"the extractor '{self.name}' failed: {type(error).__name__}: {text}"
            return
        if self.sink is None:
            self.sink = self._sink(out, start)
        self.sink.take(out)

    def _sink(self, first: Features, start: int) -> FeatureSink | MomentSink:
        d = first.features.shape[1]
        if self.moments and self.n > d:
            return MomentSink(self.n, start)
        share = -(-self.n // distributed.world_size()) + self.size * 64
        sink = FeatureSink(min(self.n, share), f"features of {self.name}")
        if 4 * self.n * d > WORTH_SAYING:
            self.store.say(f"{self.name}: {self.n:,} x {d:,} features take {in_words(4 * self.n * d)} of memory")
        return sink

    def finish(self) -> None:
        """Hand what was made to the store."""
        store, key = self.store, (id(self.samples), self.name, self.side)
        self.problem = distributed.first(self.problem)
        if self.problem is not None:
            store._failed[key] = self.problem
            return
        kinds = distributed.gather_objects(type(self.sink).__name__)
        if MomentSink.__name__ in kinds:
            sink = self.sink if isinstance(self.sink, MomentSink) else MomentSink(self.n)
            for name, tensors in sink.gathered().items():
                store.kept(self.samples, self.name)[name] = tensors
            store._by_moments.add((id(self.samples), self.name))
        else:
            features = self.sink if isinstance(self.sink, FeatureSink) else FeatureSink(0, "features")
            store._memory[key] = features.gathered()
            if self.path is not None:
                store._write(self.path, _pack(store._memory[key]))
        for piece in self._files():
            disk_cache.remove(piece)

    # --- An interrupted pass ---

    def save(self) -> None:
        """Write what was made since the last time, for a set whose features are kept on disk."""
        if self.path is None or self.sink is None or self.problem is not None:
            return
        start = self.sink.saved if isinstance(self.sink, FeatureSink) else 0
        disk_cache.write(self._file(start), self.sink.piece(), self.store.say)

    def pieces(self) -> tuple[int, list[dict[str, Tensor]]]:
        """Return how many rows an interrupted pass left, and its pieces; none that do not fit into whole batches."""
        rows, found = 0, []
        while self.path is not None and (piece := disk_cache.read(self._file(rows), self.store.say)) is not None:
            if self.moments and "scatter" in piece:
                return int(piece["n"]), [piece]
            if "features" not in piece or not len(piece["features"]):
                break
            found.append(piece)
            rows += len(piece["features"])
        return (rows, found) if rows % self.size == 0 and rows <= self.n else (0, [])

    def go_on(self, pieces: list[dict[str, Tensor]], start: int) -> None:
        """Go on from pieces."""
        if "scatter" in pieces[0]:
            self.sink = MomentSink(self.n, start)
            self.sink.go_on(pieces[0])
        else:
            self.sink = FeatureSink(self.n, f"features of {self.name}")
            self.sink.go_on(pieces)

    def _file(self, start: int) -> Path:
        assert self.path is not None
        return self.path.with_suffix(f".{'moments' if self.moments else 'features'}-{start:010d}.piece")

    def _files(self) -> Iterator[Path]:
        if self.path is not None and distributed.rank() == 0:
            try:
                yield from list(self.path.parent.glob(f"{self.path.stem}.*.piece"))
            except OSError:
                return


class Rebatched:
    """Batches of one size, from batches of another."""

    def __init__(self, size: int):
        self.size = size
        self.parts: list[Tensor] = []
        self.held = 0

    def __bool__(self) -> bool:
        return self.held > 0

    def add(self, batch: Tensor) -> Iterator[Tensor]:
        """Yield the whole batches that can be made now."""
        while len(batch):
            part = batch[: self.size - self.held]
            batch = batch[len(part) :]
            self.parts.append(part)
            self.held += len(part)
            if self.held == self.size:
                yield from self.rest()

    def rest(self) -> Iterator[Tensor]:
        """Yield what is left, if anything is."""
        parts, self.parts, self.held = self.parts, [], 0
        if parts:
            yield parts[0] if len(parts) == 1 else torch.cat(parts)


def _in_step(jobs: list[_Job]) -> list[list[_Job]]:
    """Groups of jobs whose batches have a common multiple that is not too large."""
    groups: list[list[_Job]] = []
    for job in jobs:
        for group in groups:
            if math.lcm(job.size, *(other.size for other in group)) <= max(MOST_AT_ONCE, job.size):
                group.append(job)
                break
        else:
            groups.append([job])
    return groups


def _seen(images: Tensor | Images, pixels: PixelSink) -> Tensor | Images:
    """The pixels that a pass saw, as metrics get them."""
    seen, n = pixels.gathered(), len(images)
    return seen if len(seen) == n else Partial(n, pixels.rows, seen)


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
