"""What every source yields, and what is done to it afterwards: draws, resizing, a fingerprint."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganbench.base.errors import UserError
from ganbench.data import datasets
from ganbench.data.resizing import Resize


@dataclass(frozen=True)
class Samples:
    """Images to evaluate. labels: int64 N, or None. origin: what goes into a result about where they came from.

    classes: the names of the classes, where the source has names for them; a label is the place of its name.
    moments: of features over Inception-v3, float64, where a file brought them along: `mu` (d), `sigma` (d x d), and
    `mu_s`, `sigma_s` of the spatial features. A file of moments alone has images of shape 0 x 3 x 1 x 1.
    """

    images: Tensor
    labels: Tensor | None
    origin: dict[str, Any] = field(default_factory=dict)
    moments: dict[str, Tensor] | None = None
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """How a source is read, where it does not say itself.

    labels_file: a CSV with the columns file and label, and labels_option what the user calls it. resize: done to every
    image. latent, prior, classes: of a generator that does not say them. device: of a TorchScript generator.
    moments_alone: an npz without images is welcome if it holds moments. progress: (what, total) -> advance(n).
    """

    labels_file: Path | None = None
    labels_option: str = "--image-labels"
    resize: Resize | None = None
    latent: tuple[int, ...] | None = None
    prior: str | None = None
    classes: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    moments_alone: bool = False
    progress: Callable[[str, int], Callable[[int], None]] = lambda what, total: lambda n: None

    def of_a_generator(self) -> str:
        """The first option that only a generator has a use for, as the user calls it; empty if none was given."""
        given = {"--latent": self.latent, "--prior": self.prior, "--classes": self.classes}
        return next((name for name, value in given.items() if value is not None), "")


def take(samples: Samples, num: int | None, text: str, seed: int) -> Samples:
    """`num` of the samples, drawn without replacement under a seed and kept in order; all of them for None.

    A draw has no moments: those of the file are of all its images.
    """
    n = len(samples.images)
    if num is None or num == n:
        return samples
    if num > n:
        raise UserError(f"'{text}' has {n:,} images, fewer than the {num:,} asked for: lower --num or give more.")
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:num].sort().values
    labels = None if samples.labels is None else samples.labels[rows]
    origin = {**samples.origin, "drawn": num, "draw_seed": seed}
    return Samples(samples.images[rows], labels, origin, classes=samples.classes)


def from_dataset(data: datasets.Dataset, options: Options | None = None) -> Samples:
    """A data set's split as samples, with its origin. options: those under which it was read, which go into that.

    Images of a part by classes have the labels that they have in the whole set, as a classifier of that knows them.
    """
    origin = {"kind": "dataset", "name": data.name, "split": data.split, "fingerprint": data.fingerprint}
    labels, classes = data.labels, data.classes
    if labels is not None and data.first_class:
        labels, classes = labels + data.first_class, ()
    return Samples(data.images, labels, {**origin, **read_with(options)}, classes=classes)


def read_with(options: Options | None) -> dict[str, Any]:
    """What the origin says about the options under which files were read."""
    origin: dict[str, Any] = {}
    if options and options.resize:
        origin["resize"] = str(options.resize)
    if options and options.labels_file:
        origin["labels_from"] = options.labels_file.name
    return origin


def resized(samples: Samples, resize: Resize | None) -> Samples:
    """Every image brought to one size; the samples themselves for None. Moments of other pixels are dropped."""
    if resize is None or not len(samples.images):
        return samples
    images = torch.stack([resize(image) for image in samples.images])
    made = with_fingerprint(images, samples.labels, {**samples.origin, "resize": str(resize)})
    return replace(made, classes=samples.classes)


def aligned(samples: Samples, reference: Samples) -> Samples:
    """The samples with labels that mean the classes which they mean in the reference, where both have names for them.

    A class that the reference does not have gets a label after all of its own. Whole numbers are labels and no names.
    """
    named = [s.labels is not None and not all(c.isdecimal() for c in s.classes) for s in (samples, reference)]
    if not all(named) or samples.classes == reference.classes:
        return samples
    index = {name: i for i, name in enumerate(reference.classes)}
    for name in samples.classes:
        index.setdefault(name, len(index))
    labels = torch.tensor([index[name] for name in samples.classes])[samples.labels]
    return replace(samples, labels=labels, classes=tuple(index))


def row_major(images: Tensor) -> Tensor:
    """The same images with the strides of a new tensor: the last digits of a network's sums depend on the layout."""
    _, c, h, w = images.shape
    return (
        images if images.stride() == (c * h * w, h * w, w, 1) else images.clone(memory_format=torch.contiguous_format)
    )


def with_fingerprint(
    images: Tensor, labels: Tensor | None, origin: dict[str, Any], moments: dict[str, Tensor] | None = None
) -> Samples:
    """Samples whose origin holds the SHA-256 of their shape and pixels; of the moments where there are no images."""
    images = row_major(images)
    digest = hashlib.sha256(repr(tuple(images.shape)).encode() + images.numpy().tobytes())
    if not len(images):
        for key, value in sorted((moments or {}).items()):
            digest.update(key.encode() + value.numpy().tobytes())
    made = Samples(images, labels, {**origin, "fingerprint": digest.hexdigest()})
    return replace(made, moments=moments) if moments else made
