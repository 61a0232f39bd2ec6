"""Data sets. Bundled and public ones are in memory as one uint8 tensor; files of a folder are decoded on demand.

Use `load` with a data spec: `mnist`, `mnist:train[:50000]`, `cifar10[classes 0-4]`, `folder:PATH`. A data set is a
function `(split: str, root: Path, download: bool) -> Dataset`, found by entry point in `ganbench.datasets`.

digits.py     8 x 8 digits that scikit-learn ships
folder.py     a folder of images, with class folders or a CSV of labels
layout.py     which files of a folder or zip are images, and what their names say: one set of rules
public.py     MNIST, Fashion-MNIST, CIFAR, SVHN, STL-10 and CelebA, through torchvision
synthetic.py  noisy patterns of any shape
"""

import functools
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ganbench.base import registry
from ganbench.base.data_spec import apart, class_part, classes_in, name_in, rows_in
from ganbench.base.errors import UserError
from ganbench.base.label_noise import LabelNoise
from ganbench.base.standard_output import user_code
from ganbench.data.decoding import Decoding
from ganbench.data.images import check
from ganbench.data.resizing import Resize
from ganbench.data.streams import EncodedImages, Images, batches, chosen, fingerprint_of_files


@dataclass(frozen=True)
class Dataset:
    """One split of a data set, or a part of a split.

    images: uint8 N x C x H x W, a tensor or `Images`. labels: int64 N in 0..K-1, or None. classes: the names of the K
    classes, or empty. first_class: in a class subset, the label that class 0 has in the whole data set; otherwise 0.
    left_out: number of files of a folder that are not read, by reason. remarks: sentences for the user about the choice
    between two ways in which the source could be read. where: the folder, for messages.
    all_classes: in a class subset, the names of all classes of the whole set. label_noise: the noise that the labels
    have (`label_noise.with_label_noise`), or None.
    Raises TypeError if images or labels have another dtype or shape.
    """

    name: str
    split: str
    images: Tensor | Images
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    first_class: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    where: str = ""
    all_classes: tuple[str, ...] = ()
    label_noise: LabelNoise | None = None

    def __post_init__(self) -> None:
        if isinstance(self.images, Tensor):
            check(self.images)
        if self.labels is not None and (self.labels.dtype != torch.int64 or len(self.labels) != len(self.images)):
            raise TypeError(f"labels of {self.name} must be int64, one per image")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def whole_split(self) -> str:
        """Name of the split without the part: "train" of "train[0:50000]"."""
        return apart(self.split)[0]

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the images and labels, as 64 hexadecimal digits. It depends on the order of the images.

        Images in memory count by shape and pixels, those in files by their encoded bytes: see `fingerprint_of`.
        """
        if isinstance(self.images, EncodedImages):
            return fingerprint_of_files(self.images, self.labels)
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        for part in batches(self.images, 1000):
            digest.update(part.contiguous().numpy().data)
        if self.labels is not None:
            digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()


    @property
    def fingerprint_of(self) -> str:
        """The kind of fingerprint: "files" (encoded bytes) or "pixels". Only two of one kind can be compared."""
        return "files" if isinstance(self.images, EncodedImages) else "pixels"


def data_root() -> Path:
    """Return the folder of data sets and weights: GANBENCH_DATA if it is set, otherwise the user's cache folder.

    Raises UserError if there is no such user, or no home folder.
    """
    if given := os.environ.get("GANBENCH_DATA"):
        try:
            return Path(given).expanduser()
        except RuntimeError as error:
            raise UserError(f"GANBENCH_DATA={given} names no home folder: write the path of a folder.") from error
    import platformdirs

    try:
        folder = Path(platformdirs.user_cache_dir("ganbench"))
    except RuntimeError:
        folder = Path("~")
    if not folder.is_absolute():  # older versions leave the ~ of a home folder that nobody knows
        raise UserError("this user has no home folder: set GANBENCH_DATA to a folder for data sets and weights.")
    return folder


def offline() -> bool:
    """Return True if nothing may be downloaded, because GANBENCH_OFFLINE or `--offline` is set."""
    return os.environ.get("GANBENCH_OFFLINE", "") not in ("", "0", "false")


def load(
    spec: str, split: str | None = None, resize: Resize | None = None, labels_file: Path | None = None,
    how: Decoding | None = None, progress: Callable[[str, int], Callable[[int], None]] | None = None,
) -> Dataset:
    """Load the data that a spec names: `NAME`, `NAME:split`, `folder:PATH` or `folder:PATH:split`, and a part if any.

    A row range `[a:b]` selects rows a to b - 1, counted from 0 in the order of the published files. Use
    `mnist:train[:50000]` for training and `mnist:train[50000:]` for validation, for example. A class subset
    `[classes a-b]` selects the images of classes a to b, and relabels them from 0.

    split: the split if the spec names none. resize: applied to every image. labels_file: a CSV with the labels of a
    folder (see `image_folder`). how: how files are decoded, with its own resize. progress: see `image_folder`.
    Raises UserError if a name, split, row, class or folder does not exist, and if a set is missing while offline.
    """
    whole, _ = apart(spec)
    name, classes = name_in(spec), classes_in(spec)
    rest = whole[len(name) :].removeprefix(":")
    if name == "folder":
        from ganbench.data.datasets.folder import folder_and_split, image_folder

        path, of_spec = folder_and_split(rest)
        data = image_folder(path, of_spec or split, how or Decoding(resize), labels_file, classes, progress)
    else:
        get = registry.load("datasets", name)
        data = _opened(get, name, rest or split or "train")
        if classes is not None:
            data = _class_subset(data, classes)
        if resize is not None:
            data = replace(data, images=torch.stack([resize(image) for image in data.images[:]]))
    rows = rows_in(spec, len(data))
    return data if rows is None else _row_range(data, *rows)


def _opened(get: Callable[[str, Path, bool], Dataset], name: str, split: str) -> Dataset:
    """Return a split of an installed data set. Raises UserError, which names the set, if its function fails."""
    root = data_root()
    try:
        with user_code():
            data = get(split, root, not offline())
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the function may be somebody else's
        raise UserError(f"the data set '{name}' cannot be loaded ({registry.reason(error)}).") from error
    if not isinstance(data, Dataset):
        raise UserError(f"the data set '{name}' returned an object of type {type(data).__name__}, not a Dataset.")
    return data


def _row_range(data: Dataset, a: int, b: int) -> Dataset:
    """Return rows a to b - 1. Raises UserError if there are none, or not all of them."""
    if not a < b <= len(data):
        raise UserError(
            f"{data.name}:{data.split} has rows 0 to {len(data) - 1:,}, but [{a}:{b}] asks for other rows, or for "
            "none: choose rows that exist."
        )
    labels, remarks = None if data.labels is None else data.labels[a:b], data.remarks
    split = f"{data.split}[{a}:{b}]"
    if data.labels is not None and labels is not None and bool((data.labels.diff() >= 0).all()):  # sorted by class
        some, whole = len(labels.unique()), len(data.labels.unique())
        if some < whole:
            remarks = (*remarks, (
                f"{data.name}:{split} has {some:,} of {whole:,} classes, since its files are sorted by class: --num "
                "and --num-reference draw from all"
            ))
    return replace(data, split=split, images=chosen(data.images, slice(a, b)), labels=labels, remarks=remarks)


def _class_subset(data: Dataset, classes: range) -> Dataset:
    """Return the images of these classes, relabelled from 0."""
    rows = rows_of_classes(data.labels, data.classes, classes, f"{data.name}:{data.split}")
    assert data.labels is not None
    return Dataset(
        data.name, f"{data.split}{class_part(classes)}", chosen(data.images, rows), data.labels[rows] - classes.start,
        data.classes[classes.start : classes.stop], classes.start, all_classes=data.classes,
    )


def rows_of_classes(labels: Tensor | None, known: tuple[str, ...], classes: range, whose: str) -> Tensor:
    """Return the rows, int64, of the images whose labels are in `classes`.

    labels: int64 N. known: the names of all classes. whose: the data set or folder, for error messages.
    Raises UserError if there are no labels, if a class is not known, and if there is no image of these classes.
    """
    if labels is None:
        raise UserError(
            f"{whose} has no labels, so {class_part(classes)} cannot be selected: choose data with labels."
        )
    if not classes or classes.stop > len(known):
        raise UserError(
            f"{whose} has classes 0 to {len(known) - 1:,}, but {class_part(classes)} asks for other classes, or for "
            "none: choose classes that exist."
        )
    rows = ((labels >= classes.start) & (labels < classes.stop)).nonzero().squeeze(1)
    if not len(rows):
        raise UserError(f"{whose} has no image of {class_part(classes)}: choose other classes.")
    return rows


class UnknownSplit(UserError):
    """A data set does not have the split that was asked for."""


def unknown_split(name: str, split: str, known: tuple[str, ...]) -> UnknownSplit:
    """Return the error that a data set raises for an unknown split. known: the splits that the data set has."""
    return UnknownSplit(f"the data set '{name}' has no split '{split}': choose one of {', '.join(known)}.")
