"""Metrics of images that come batch by batch, as in a training loop: features are kept, images are not.

Each batch goes through the networks when it comes. The reference is looked at once, with the first result. A result is
what one evaluation of the same images in the same order gives, to the digit.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ganbench.base import distributed
from ganbench.base.device import choose_device, describe_device, peak_memory
from ganbench.base.errors import UserError
from ganbench.data.sources import Options, Samples
from ganbench.data.streams import Images, Rows
from ganbench.evaluation import measure, run
from ganbench.evaluation.feature_store import FeatureStore, Rebatched, reduce
from ganbench.evaluation.inputs import cache_folder, describe, make_extractors
from ganbench.features import Features, embed
from ganbench.reporting import results
from ganbench.reporting.results import Result


class Forgotten(Images):
    """The shape of images that were seen and not kept."""

    def __init__(self, shape: torch.Size):
        self.shape = shape

    def batches(self, size: int, rows: Rows | None = None) -> Iterator[Tensor]:
        raise AssertionError("the images were not kept")


class _Stream:
    """The features of the images so far, by one network at one size: in whole batches, and the images of the last."""

    def __init__(self, size: int, embed: Callable[[Tensor], Features]):
        self.size, self.embed = size, embed
        self.waiting = Rebatched(size)
        self.done: list[Features] = []

    def take(self, images: Tensor) -> None:
        """Add images, uint8."""
        self.done += map(self.embed, self.waiting.add(images))

    def features(self) -> Features:
        """Return the features of all images so far; the last batch, which may still grow, is made anew each time."""
        rest = self.waiting.parts
        parts = [*self.done, *([self.embed(torch.cat(rest))] if rest else [])]
        logits = [part.logits for part in parts if part.logits is not None]
        return Features(torch.cat([part.features for part in parts]), torch.cat(logits) if logits else None)


class Accumulator:
    """Metrics of generated images that come batch by batch, against a reference that stays.

    It keeps the features of all images, 4 bytes a number (50,000 images and Inception-v3: 400 MB), and their pixels
    only if a metric looks at these. Under torch.distributed each process updates with its own images, and `compute`,
    which all processes call, is over all of them in the order of the ranks. Results have no row of real data.
    """

    def __init__(
        self, metrics: list[str] | None, reference: str | Samples | None, held_out: Samples | None = None,
        extractor: str | None = None, weights: dict[str, Path] | None = None,
        resolutions: tuple[int, ...] | None = None, batch_size: int | None = None, seed: int = 0,
        device: str | None = None, cache: bool = True,
    ):
        """The arguments are those of `run.Request`. Raises UserError for metrics that need more than images."""
        self.device, self.seed, self.resolutions = choose_device(device), seed, resolutions
        name = reference.partition(":")[0] if isinstance(reference, str) else ""
        default = extractor or run.EXTRACTORS.get(name, "inception-v3")
        self.requests = measure.parse_metrics(metrics or run.default_metrics(default), default)
        for r in self.requests:
            if r.protocol.asks_model:
                raise UserError(f"'{r.name}' is measured of a model, not of images that come in batches: use evaluate.")
        extractors, self.missing = make_extractors(self.requests, weights or {})
        run.require_some(self.requests, self.missing)
        self.reference, self.held_out = (reference if isinstance(reference, Samples) else None), held_out
        if isinstance(reference, str):
            self.reference, other = run.load_reference(reference, Options(moments_alone=True))
            self.held_out = held_out or other
        self.store = FeatureStore(extractors, self.device, batch_size, cache_folder() if cache else None)
        self.reset()

    def reset(self) -> None:
        """Forget all images and keep what is known of the reference."""
        self.shape: torch.Size | None = None
        self.count = 0
        self.streams: dict[tuple[str, int], _Stream] = {}
        self.pixels: list[Tensor] = []
        self.labels: list[Tensor] = []

    def update(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Add images, uint8 n x C x H x W, and their labels, int64 n.

        Raises UserError for images of another shape than before, and for labels that come with some batches alone.
        """
        if not len(images):
            return
        if self.shape is None:
            self._begin(images.shape[1:])
        if images.shape[1:] != self.shape:
            raise UserError(f"the images are {tuple(images.shape[1:])}, and were {tuple(self.shape or ())} before.")
        if (labels is None) == bool(self.labels) and self.count:
            raise UserError("give labels with all batches, or with none.")
        self.count += len(images)
        if labels is not None:
            self.labels.append(labels)
        if any("fake.images" in r.protocol.needs for r in self.requests):
            self.pixels.append(images)
        for (_, side), stream in self.streams.items():
            stream.take(reduce(images, side) if side else images)

    def _begin(self, shape: torch.Size) -> None:
        """Prepare for images of this shape, C x H x W."""
        self.shape = shape
        for r in self.requests:
            if r.extractor is None or r.extractor in self.missing:
                continue
            sides = [0] if {"fake.features", "fake.logits"} & r.protocol.needs else []
            if sides and r.protocol.resolutions and "fake.logits" in r.protocol.needs:
                sides += self.resolutions or r.protocol.resolutions(min(shape[1:]))
            for side in sides:
                if (r.extractor, side) not in self.streams:
                    self.streams[r.extractor, side] = self._stream(r.extractor, shape)

    def _stream(self, name: str, shape: torch.Size) -> _Stream:
        extractor = self.store.extractors[name].to(self.device)
        size = self.store.batch_size or extractor.batch_size(self.device, torch.Size((2, *shape)))
        return _Stream(size, lambda batch: embed(extractor, batch, self.device))

    def merge(self, other: "Accumulator") -> None:
        """Add the images of another accumulator with the same metrics after these. The other one stays as it is.

        Raises UserError for other metrics or networks, and for images of another shape.
        """
        mine, theirs = ([(r.name, r.extractor) for r in each.requests] for each in (self, other))
        if mine != theirs:
            raise UserError("only accumulators with the same metrics can be merged.")
        for name, extractor in self.store.extractors.items():
            if extractor.describe() != other.store.extractors[name].describe():
                raise UserError(f"the accumulators have different networks '{name}', and cannot be merged.")
        if other.shape is None:
            return
        if self.shape is None:
            self._begin(other.shape)
        if other.shape != self.shape:
            raise UserError(f"the other images are {tuple(other.shape)}, and these are {tuple(self.shape or ())}.")
        if bool(self.labels) != bool(other.labels) and self.count:
            raise UserError("one of the accumulators has labels, and the other has none.")
        self.count += other.count
        self.pixels += other.pixels
        self.labels += other.labels
        for key, stream in self.streams.items():
            if stream.waiting:
                stream.done += map(stream.embed, stream.waiting.rest())
            stream.done.append(other.streams[key].features())

    def compute(self) -> Result:
        """Return the result for all images so far, in every process. More images can be added afterwards.

        Raises UserError for fewer than two images.
        """
        began = time.monotonic()
        fake, features = self._gathered()
        if len(fake.images) < 2:
            raise UserError(f"{len(fake.images)} images have come: a metric needs a set of at least two.")
        for (name, side), found in features.items():
            self.store.provide(fake, name, side, found)
        try:
            measurements, _ = measure.evaluate(
                self.requests, self.store, fake, self.reference, self.held_out, self.seed, self.resolutions, None,
                self.missing, row_of_real=False,
            )
        finally:
            self.store.forget(fake)
        real, test = (None if each is None else describe(each) for each in (self.reference, self.held_out))
        made = Result(
            fake=describe(fake), reference=real, held_out=test, measurements=measurements, seed=self.seed,
            seconds=round(time.monotonic() - began, 1), peak_memory_bytes=peak_memory(self.device),
            environment=results.environment(describe_device(self.device)) | self.store.pace(), created=results.now(),
        )
        result: Result = distributed.from_first(made)
        return result

    def _gathered(self) -> tuple[Samples, dict[tuple[str, int], Features]]:
        """Return the images and the features of all processes, in the order of the ranks."""
        features = {key: stream.features() for key, stream in self.streams.items()}
        pixels, labels = _cat(self.pixels), _cat(self.labels)
        count, shape = self.count, self.shape
        if distributed.world_size() > 1:
            shapes = {s for s in distributed.gather_objects(shape) if s is not None}
            if len(shapes) > 1:
                raise UserError(f"the processes have images of different shapes: {sorted(map(tuple, shapes))}.")
            if shape is None and shapes:
                self._begin(shape := shapes.pop())
            count = sum(distributed.gather_objects(count))
            parts = distributed.gather_objects((features, pixels, labels))
            features = {key: _joined([part[0][key] for part in parts if key in part[0]]) for key in self.streams}
            pixels = _cat([part[1] for part in parts])
            labels = _cat([part[2] for part in parts])
        whole = torch.Size((count, *(shape or (1, 1, 1))))
        images: Tensor | Images = Forgotten(whole) if pixels is None else pixels
        return Samples(images, labels, {"kind": "accumulated"}), features


def _cat(parts: Sequence[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known) if known else None


def _joined(parts: list[Features]) -> Features:
    features = _cat([part.features for part in parts])
    assert features is not None
    return Features(features, _cat([part.logits for part in parts]))
