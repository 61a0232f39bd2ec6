"""`Samples`, which every source gives, and functions on them: drawing a subset, resizing, aligning classes.

A source builds its samples with `with_fingerprint`. The origin of the samples goes into the result of an evaluation.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganbench.base.data_spec import apart, name_in
from ganbench.base.errors import UserError
from ganbench.data import datasets
from ganbench.data.decoding import Decoding
from ganbench.data.resizing import Resize
from ganbench.data.streams import Changed, EncodedImages, Images, chosen, fingerprint_of_pixels


@dataclass(frozen=True)
class Samples:
    """Images to evaluate, with what is known about them.

    images: uint8 N x C x H x W, a tensor or `Images`; 0 x 3 x 1 x 1 if the source holds only moments.
    labels: int64 N, or None.
    origin: JSON values that describe the source in a result. classes: names of the classes if the source has names; a
    label is the index of its name.
    moments: mean and covariance of features that came with a file, or None: float64 `mu` (d) and `sigma` (d x d), and
    `mu_s` and `sigma_s` of spatial features.
    """

    images: Tensor | Images
    labels: Tensor | None
    origin: dict[str, Any] = field(default_factory=dict)
    moments: dict[str, Tensor] | None = None
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """How to read a source.

    labels_file: a CSV with the columns file and label. labels_option: the option that named this CSV, for messages.
    resize: applied to every image. latent, prior, classes: shape of z, its distribution (a key of PRIORS) and number of
    classes of a generator whose file does not store them. generator_batch: the number of latents that a generator of a
    fixed batch size takes. device: runs a TorchScript generator.
    moments_alone: accept an npz that holds moments and no images. channels, alpha: how image files are decoded, see
    `Decoding`. progress: called with (what, total); returns a function that is called with each number of finished
    images. say: called with remarks for the user.
    """

    labels_file: Path | None = None
    labels_option: str = "--image-labels"
    resize: Resize | None = None
    latent: tuple[int, ...] | None = None
    prior: str | None = None
    classes: int | None = None
    generator_batch: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    moments_alone: bool = False
    progress: Callable[[str, int], Callable[[int], None]] = lambda what, total: lambda n: None
    say: Callable[[str], None] = lambda text: None
    channels: str | None = None
    alpha: str | None = None

    @property
    def decoding(self) -> Decoding:
        """How image files are decoded."""
        return Decoding(self.resize, self.channels, self.alpha)

    def of_a_generator(self) -> str:
        """Return the first given option that only generators use, as on the command line, or "" if none is given."""
        given = {
            "--latent": self.latent, "--prior": self.prior, "--classes": self.classes,
            "--generator-batch": self.generator_batch,
        }
        return next((name for name, value in given.items() if value is not None), "")

    def of_image_files(self) -> str:
        """Return the first given option that only image files use, as on the command line, or "" if none is given."""
        return "--channels" if self.channels else "--alpha" if self.alpha else ""


def take(samples: Samples, num: int | None, text: str, seed: int, option: str = "--num") -> Samples:
    """Return `num` samples, drawn without replacement with `seed`, in their old order. For None, return all samples.

    A subset has no moments, because moments in a file are those of all images. text, option: the source and the option
    that gave the number, for the message. Raises UserError if there are fewer than `num` samples.
    """
    n = len(samples.images)
    if num is None or num == n:
        return samples
    if num > n:
        raise UserError(f"'{text}' has {n:,} images, fewer than the {num:,} asked for: lower {option} or give more.")
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:num].sort().values
    labels = None if samples.labels is None else samples.labels[rows]
    origin = {**samples.origin, "drawn": num, "draw_seed": seed}
    return Samples(chosen(samples.images, rows), labels, origin, classes=samples.classes)


def from_dataset(data: datasets.Dataset, options: Options | None = None) -> Samples:
    """Return a split of a data set as samples. options: how the data set was read, for the origin.

    Images of a class subset get the labels of the whole data set, because classifiers are trained with these.
    """
    origin: dict[str, Any] = {
        "kind": "dataset", "name": data.name, "split": data.split, "fingerprint": data.fingerprint,
    }
    if data.fingerprint_of != "pixels":
        origin["fingerprint_of"] = data.fingerprint_of
    origin |= of_files(data.where or data.name, data.left_out, data.remarks, options)
    origin |= of_profiles(data.where or data.name, data.images, options)
    labels, classes = data.labels, data.all_classes or data.classes
    if labels is not None and data.first_class:
        labels = labels + data.first_class
    return Samples(data.images, labels, {**origin, **origin_of_options(options)}, classes=classes)


def of_files(
    where: str, left_out: Mapping[str, int], remarks: tuple[str, ...], options: Options | None
) -> dict[str, Any]:
    """Say which files of a folder or zip are not read, and return them as an entry of an origin."""
    for remark in remarks if options else ():
        options.say(remark)  # type: ignore[union-attr]
    if not left_out:
        return {}
    if options:
        counts = ", ".join(f"{count:,} {why}" for why, count in sorted(left_out.items()))
        options.say(f"{where}: files that are not read: {counts}")
    return {"left_out": dict(sorted(left_out.items()))}


def of_profiles(where: str, images: Tensor | Images, options: Options | None) -> dict[str, Any]:
    """Say how many image files have a colour profile that is ignored, and return the number as an entry of an origin.

    images: they have a fingerprint by now, for which the files are read.
    """
    count = images.other_profiles if isinstance(images, EncodedImages) else 0
    if not count:
        return {}
    if options:
        how_many = f"{count:,} of {len(images):,} images have one"
        options.say(f"{where}: colour profiles other than sRGB are ignored: {how_many}")
    return {"other_profiles": count}


def origin_of_options(options: Options | None) -> dict[str, Any]:
    """Return the entries of an origin that record how files were read."""
    origin: dict[str, Any] = {}
    if options and options.resize:
        origin["resize"] = str(options.resize)
    if options and options.channels:
        origin["channels"] = options.channels
    if options and options.alpha:
        origin["alpha"] = options.alpha
    if options and options.labels_file:
        origin["labels_from"] = options.labels_file.name
    return origin


def resized(samples: Samples, resize: Resize | None) -> Samples:
    """Return samples with every image resized and without moments. If `resize` is None, return them unchanged."""
    if resize is None or not len(samples.images):
        return samples
    if not isinstance(samples.images, Tensor):
        origin = {**samples.origin, "resize": str(resize)}
        if "fingerprint" in origin:  # what is made is determined by what it is made of
            origin["fingerprint"] = hashlib.sha256(f"{origin['fingerprint']} {resize}".encode()).hexdigest()
        return replace(samples, images=Changed(samples.images, resize), origin=origin, moments=None)
    images = torch.stack([resize(image) for image in samples.images])
    made = with_fingerprint(images, samples.labels, {**samples.origin, "resize": str(resize)})
    return replace(made, classes=samples.classes)


def aligned(samples: Samples, reference: Samples, say: Callable[[str], None] = lambda text: None) -> Samples:
    """Return the samples relabelled so that a class of the same name has the same label as in the reference.

    Names are compared without regard to case, and "_", "-" and a space are the same. Classes that the reference lacks
    get the labels after those of the reference, and are named to the user with `say`. If either set has no names of
    classes, or only whole numbers, return the samples unchanged.
    """
    named = [s.labels is not None and not all(c.isdecimal() for c in s.classes) for s in (samples, reference)]
    if not all(named) or samples.classes == reference.classes:
        return samples
    index = {plain_name(name): i for i, name in enumerate(reference.classes)}
    names = list(reference.classes)
    for name in samples.classes:
        if plain_name(name) not in index:
            index[plain_name(name)] = len(names)
            names.append(name)
    if others := names[len(reference.classes) :]:
        some = ", ".join(f"'{name}'" for name in others[:5]) + (", ..." if len(others) > 5 else "")
        say(f"{len(others)} of the images' classes are not in the reference: {some}")
    labels = torch.tensor([index[plain_name(name)] for name in samples.classes])[samples.labels]
    return replace(samples, labels=labels, classes=tuple(names))


def named_like(samples: Samples, reference: Samples | None, trained_on: str | None, named: str | None) -> Samples:
    """Return the samples of a model with the names of the classes of the set that it was trained on, if they are known.

    trained_on, named: the specs of the training data and of the reference, which have the same names for one set.
    """
    if reference is None or samples.labels is None or not trained_on or not named:
        return samples
    one, other = (apart(spec)[0] if name_in(spec) == "folder" else name_in(spec) for spec in (trained_on, named))
    if one != other or int(samples.labels.max()) >= len(reference.classes):
        return samples
    return replace(samples, classes=reference.classes)


def plain_name(name: str) -> str:
    """Return the name of a class without regard to case, and with a space for "_" and "-"."""
    return re.sub("[-_ ]+", " ", name.casefold()).strip()


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
    images: Tensor | Images, labels: Tensor | None, origin: dict[str, Any], moments: dict[str, Tensor] | None = None
) -> Samples:
    """Return samples whose origin includes a fingerprint: the SHA-256 of shape and pixels.

    Without images, it is the SHA-256 of the shape and the moments.
    """
    if isinstance(images, Tensor):
        images = row_major(images)
    fingerprint = fingerprint_of_pixels(images)
    if not len(images):
        digest = hashlib.sha256(repr(tuple(images.shape)).encode())
        for key, value in sorted((moments or {}).items()):
            digest.update(key.encode() + value.numpy().tobytes())
        fingerprint = digest.hexdigest()
    made = Samples(images, labels, {**origin, "fingerprint": fingerprint})
    return replace(made, moments=moments) if moments else made
