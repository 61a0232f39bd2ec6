"""`Samples`, which every source gives, and functions on them: drawing a subset, resizing, aligning classes.

A source builds its samples with `with_fingerprint`. The origin of the samples goes into the result of an evaluation.
"""

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
    """Images to evaluate, with what is known about them.

    images: uint8 N x C x H x W; 0 x 3 x 1 x 1 if the source holds only moments. labels: int64 N, or None.
    origin: JSON values that describe the source in a result. classes: names of the classes if the source has names; a
    label is the index of its name.
    moments: mean and covariance of features that came with a file, or None: float64 `mu` (d) and `sigma` (d x d), and
    `mu_s` and `sigma_s` of spatial features.
    """

    images: Tensor
    labels: Tensor | None
    origin: dict[str, Any] = field(default_factory=dict)
    moments: dict[str, Tensor] | None = None
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """How to read a source.

    labels_file: a CSV with the columns file and label. labels_option: the option that named this CSV, for messages.
    resize: applied to every image. latent, prior, classes: shape of z, its distribution (a key of PRIORS) and number of
    classes of a generator whose file does not store them. device: runs a TorchScript generator.
    moments_alone: accept an npz that holds moments and no images. progress: called with (what, total); returns a
    function that is called with each number of finished images.
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
        """Return the first given option that only generators use, as on the command line, or "" if none is given."""
        given = {"--latent": self.latent, "--prior": self.prior, "--classes": self.classes}
        return next((name for name, value in given.items() if value is not None), "")


def take(samples: Samples, num: int | None, text: str, seed: int) -> Samples:
    """Return `num` samples, drawn without replacement with `seed`, in their old order. For None, return all samples.

    A subset has no moments, because moments in a file are those of all images. text: the source, for the message.
    Raises UserError if there are fewer than `num` samples.
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
    """Return a split of a data set as samples. options: how the data set was read, for the origin.

    Images of a class subset get the labels of the whole data set, because classifiers are trained with these.
    """
    origin = {"kind": "dataset", "name": data.name, "split": data.split, "fingerprint": data.fingerprint}
    labels, classes = data.labels, data.classes
    if labels is not None and data.first_class:
        labels, classes = labels + data.first_class, ()
    return Samples(data.images, labels, {**origin, **origin_of_options(options)}, classes=classes)


def origin_of_options(options: Options | None) -> dict[str, Any]:
    """Return the entries of an origin that record how files were read."""
    origin: dict[str, Any] = {}
    if options and options.resize:
        origin["resize"] = str(options.resize)
    if options and options.labels_file:
        origin["labels_from"] = options.labels_file.name
    return origin


def resized(samples: Samples, resize: Resize | None) -> Samples:
    """Return samples with every image resized and without moments. If `resize` is None, return them unchanged."""
    if resize is None or not len(samples.images):
        return samples
    images = torch.stack([resize(image) for image in samples.images])
    made = with_fingerprint(images, samples.labels, {**samples.origin, "resize": str(resize)})
    return replace(made, classes=samples.classes)


def aligned(samples: Samples, reference: Samples) -> Samples:
    """Return the samples relabelled so that a class of the same name has the same label as in the reference.

    Classes that the reference lacks get the labels after those of the reference. If either set has no names of classes,
    or only whole numbers, return the samples unchanged.
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
    """Return the images with the strides of a new contiguous tensor.

    Strides matter: a network's result depends on the memory layout in its last digits. `contiguous()` keeps unusual
    strides of dimensions of size 1.
    """
    _, c, h, w = images.shape
    return (
        images if images.stride() == (c * h * w, h * w, w, 1) else images.clone(memory_format=torch.contiguous_format)
    )


def with_fingerprint(
    images: Tensor, labels: Tensor | None, origin: dict[str, Any], moments: dict[str, Tensor] | None = None
) -> Samples:
    """Return samples whose origin includes a fingerprint: the SHA-256 of shape and pixels.

    Without images, it is the SHA-256 of the shape and the moments.
    """
    images = row_major(images)
    digest = hashlib.sha256(repr(tuple(images.shape)).encode() + images.numpy().tobytes())
    if not len(images):
        for key, value in sorted((moments or {}).items()):
            digest.update(key.encode() + value.numpy().tobytes())
    made = Samples(images, labels, {**origin, "fingerprint": digest.hexdigest()})
    return replace(made, moments=moments) if moments else made
