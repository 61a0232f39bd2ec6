"""Data sets: whole in memory as one uint8 tensor, so that no Python runs per image on the hot path.

A data set is a function `(split: str, root: Path, download: bool) -> Dataset`, found by entry point. `load` is the way
in: `mnist`, `mnist:test`, `mnist:train[:50000]`, `cifar10[classes 0-4]`, `folder:PATH`.
"""

import functools
import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ganbench.base import registry
from ganbench.base.data_spec import apart, class_part, classes_in, name_in, rows_in
from ganbench.base.errors import UserError
from ganbench.data.images import check
from ganbench.data.resizing import Resize


@dataclass(frozen=True)
class Dataset:
    """One split of a data set.

    images: uint8 N x C x H x W. labels: int64 N in 0..K-1, or None. classes: K names.
    first_class: of a part by classes, the number that its class 0 has in the whole set.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    first_class: int = 0

    def __post_init__(self) -> None:
        check(self.images)
        if self.labels is not None and (self.labels.dtype != torch.int64 or len(self.labels) != len(self.images)):
            raise TypeError(f"labels of {self.name} must be int64, one an image")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def whole_split(self) -> str:
        """The split of which these are rows or classes, or all."""
        return apart(self.split)[0]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shape, pixels and labels, in order: the same images give the same one on every machine."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().data)
        if self.labels is not None:
            digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()


def data_root() -> Path:
    """Where data sets and weights live: GANBENCH_DATA, else the user's cache folder."""
    if folder := os.environ.get("GANBENCH_DATA"):
        return Path(folder).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("ganbench"))


def offline() -> bool:
    """True if GANBENCH_OFFLINE says that nothing may be downloaded (`--offline` sets it)."""
    return os.environ.get("GANBENCH_OFFLINE", "") not in ("", "0", "false")


def load(spec: str, split: str | None = None, resize: Resize | None = None, labels_file: Path | None = None) -> Dataset:
    """Load `NAME`, `NAME:split`, `folder:PATH` or `folder:PATH:split`; `split` is the default where none is named.

    `NAME[a:b]` and `NAME:split[a:b]` are its rows from a up to, and without, b, counted from 0 in the order of the
    published files: `mnist:train[:50000]` to train on and `mnist:train[50000:]` to choose by. `[classes a-b]` are the
    images of classes a to b, which become classes 0 to b - a of the part. resize: done to every image.
    labels_file: of a folder (`image_folder`).
    Raises UserError for an unknown name or split, rows or classes that are not there, a folder that is not one, and a
    set that is missing while offline.
    """
    whole, _ = apart(spec)
    name, classes = name_in(spec), classes_in(spec)
    rest = whole[len(name) :].removeprefix(":")
    if name == "folder":
        from ganbench.data.datasets.folder import folder_and_split, image_folder

        path, chosen = folder_and_split(rest)
        data = image_folder(path, chosen or split, resize, labels_file, classes)
    else:
        get = registry.load("datasets", name)
        data = get(rest or split or "train", data_root(), not offline())
        if classes is not None:
            data = _of_classes(data, classes)
        if resize is not None:
            data = replace(data, images=torch.stack([resize(image) for image in data.images]))
    rows = rows_in(spec, len(data))
    return data if rows is None else _rows(data, *rows)


def _rows(data: Dataset, a: int, b: int) -> Dataset:
    """The images from row a up to, and without, row b, as a split of their own."""
    if not a < b <= len(data):
        raise UserError(
            f"{data.name}:{data.split} has rows 0 to {len(data) - 1:,}: [{a}:{b}] asks for others, or for none."
        )
    labels = None if data.labels is None else data.labels[a:b]
    return replace(data, split=f"{data.split}[{a}:{b}]", images=data.images[a:b], labels=labels)


def _of_classes(data: Dataset, classes: range) -> Dataset:
    """The images of those classes, as a split of their own whose class 0 is the first of them."""
    rows = rows_of(data.labels, data.classes, classes, f"{data.name}:{data.split}")
    assert data.labels is not None
    return Dataset(
        data.name, f"{data.split}{class_part(classes)}", data.images[rows], data.labels[rows] - classes.start,
        data.classes[classes.start : classes.stop], classes.start,
    )


def rows_of(labels: Tensor | None, known: tuple[str, ...], classes: range, whose: str) -> Tensor:
    """The rows of images of those classes. Raises UserError, beginning with `whose`, for classes that are not there."""
    if labels is None:
        raise UserError(f"{whose} has no labels to choose {class_part(classes)} by.")
    if not classes or classes.stop > len(known):
        raise UserError(
            f"{whose} has classes 0 to {len(known) - 1:,}: {class_part(classes)} asks for others, or for none."
        )
    rows = ((labels >= classes.start) & (labels < classes.stop)).nonzero().squeeze(1)
    if not len(rows):
        raise UserError(f"{whose} has no image of {class_part(classes)}.")
    return rows


class UnknownSplit(UserError):
    """A data set was asked for a split that it does not have."""


def unknown_split(name: str, split: str, known: tuple[str, ...]) -> UnknownSplit:
    """Return the error that a data set raises for a split that it does not have."""
    return UnknownSplit(f"the data set '{name}' has no split '{split}': it has {', '.join(known)}.")
