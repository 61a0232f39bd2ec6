"""A folder of images: class folders become labels, a flat folder has none unless a CSV file brings them."""

import csv
import re
from collections.abc import Sequence, Set
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from ganbench.base.data_spec import class_part
from ganbench.base.errors import UserError
from ganbench.data.datasets import Dataset, UnknownSplit, rows_of, unknown_split
from ganbench.data.images import SUFFIXES, decode
from ganbench.data.resizing import Resize

SPLITS = ("train", "val", "valid", "test")
MAX_CLASSES = 100_000  # larger numbers are identifiers, not labels
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def folder_and_split(text: str) -> tuple[Path, str | None]:
    """What follows `folder:`, a path or PATH:split, taken apart; a path that exists is one, whatever it contains."""
    path, _, split = text.rpartition(":") if ":" in text and not Path(text).exists() else (text, "", "")
    if not path:
        raise UserError(f"'folder:{text}' names no folder: write folder:PATH.")
    return Path(path), split or None


def find_split(path: Path, split: str | None) -> tuple[Path, str, set[str]]:
    """Return the folder with the images of a split, the split's name, and the class folders of all splits.

    A folder without split folders is one split, 'all'. Reads no image. Raises UserError for a path that is no folder,
    and for a split that it does not have.
    """
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}: name a folder of images (of a recipe: --data folder:PATH).")
    splits = tuple(s for s in SPLITS if (path / s).is_dir())
    if splits:
        split = split or "train"
        if split not in splits:
            raise unknown_split(path.resolve().name, split, splits)
        classes = {c.name for s in splits for c in (path / s).iterdir() if c.is_dir() and not _hidden(c, path)}
        return path / split, split, classes
    if split not in (None, "train", "all"):
        raise UnknownSplit(f"the folder {path} has no split '{split}': make folders {path}/train and {path}/{split}.")
    return path, "all", set()


def image_folder(
    path: Path, split: str | None = None, resize: Resize | None = None, labels_file: Path | None = None,
    classes: range | None = None,
) -> Dataset:
    """`path/*.png` (no labels), `path/CLASS/*.png`, or either below `path/train`, `path/test`, ... (splits).

    The set is named after the folder. Classes are the sorted folder names; where all of them are whole numbers, those
    numbers are the labels. Files are taken in the order of their paths. resize: done to each image. labels_file: a CSV
    (`read_labels`) that labels the files instead of the class folders, with names relative to the folder that they
    are read from. classes: only the images of these are read, and are a part of the split whose class 0 is the first;
    they are counted over all splits, so that their numbers mean the same in each.
    Raises UserError for a folder without images, or without those classes, images of different sizes or channels, or a
    broken file (named).
    """
    name = path.resolve().name
    path, split, everywhere = find_split(path, split)
    files = sorted(
        f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES and not f.is_dir() and not _hidden(f, path)
    )
    if not files:
        raise UserError(f"{path} holds no images (looked for {', '.join(SUFFIXES)}).")
    labels, names = _labels(files, path, labels_file, everywhere if classes is not None else set())
    if classes is None:
        return Dataset(name, split, read_files(files, resize), labels, names)
    rows = rows_of(labels, names, classes, str(path))
    assert labels is not None
    return Dataset(
        name, f"{split}{class_part(classes)}", read_files([files[row] for row in rows.tolist()], resize),
        labels[rows] - classes.start, names[classes.start : classes.stop], classes.start,
    )


def _labels(
    files: list[Path], path: Path, labels_file: Path | None, others: set[str]
) -> tuple[Tensor | None, tuple[str, ...]]:
    """The labels of files below a path, by a CSV or by their class folders, and the classes; none of a flat folder.

    others: class folders that are counted too.
    """
    if labels_file is not None:
        return read_labels(labels_file, [f.relative_to(path).as_posix() for f in files], str(path))
    parents = [f.relative_to(path).parts[0] if len(f.relative_to(path).parts) > 1 else None for f in files]
    if None in parents:
        if any(parents):
            raise UserError(
                f"{path} mixes images with class folders: move {files[parents.index(None)].name} into a class folder."
            )
        return None, ()
    return labels_of([str(p) for p in parents], others)


def _hidden(file: Path, below: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(below).parts)


def labels_of(class_names: list[str], others: Set[str] = frozenset()) -> tuple[Tensor, tuple[str, ...]]:
    """Labels (int64) and class names from one class name an image; whole numbers are taken as they are.

    others: names of classes that there also are.
    """
    known = sorted({*class_names, *others})
    if all(c.isdecimal() and int(c) < MAX_CLASSES for c in known):
        index = {c: int(c) for c in known}
        classes = tuple(str(i) for i in range(max(index.values()) + 1))
    else:
        index = {c: i for i, c in enumerate(known)}
        classes = tuple(known)
    return torch.tensor([index[c] for c in class_names]), classes


def read_labels(file: Path, names: Sequence[str], where: str) -> tuple[Tensor, tuple[str, ...]]:
    """Labels (int64) and class names of the files `names` in `where`, from a CSV with the columns `file` and `label`.

    Labels are whole numbers from 0 on, taken as they are, or names, whose place in sorted order is the label.
    Raises UserError that names the file and the line, or the images that are missing, unknown or listed twice.
    """
    label_of: dict[str, str] = {}
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            table = csv.DictReader(stream, strict=True)
            if not {"file", "label"} <= set(table.fieldnames or ()):
                raise UserError(f"{file} must begin with a line that names the columns: file,label.")
            for row in table:
                if None in row or not row["file"] or not (row["label"] or "").strip():
                    raise UserError(f"{file}, line {table.line_num}: this is no file and its label.")
                name, label = PurePosixPath(row["file"]).as_posix(), row["label"].strip()
                if name in label_of:
                    raise UserError(f"{file}, line {table.line_num}: {name} is listed twice.")
                if NUMBER.fullmatch(label) and not label.isdecimal():
                    raise UserError(
                        f"{file}, line {table.line_num}: the label '{label}' of {name} must be a whole number from 0 "
                        "on, or a name."
                    )
                label_of[name] = label
    except OSError as error:
        raise UserError(f"cannot read the labels {file}: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is no CSV in UTF-8 ({error}).") from error
    if without := [n for n in names if n not in label_of]:
        raise UserError(f"{file} has no label for {_some(without)} in {where}.")
    if unknown := sorted(set(label_of) - set(names)):
        raise UserError(f"{file} labels {_some(unknown)}, which {where} does not hold.")
    return labels_of([label_of[n] for n in names])


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1:,} more"


def read_files(files: list[Path], resize: Resize | None = None) -> Tensor:
    """Decode image files of one size, or brought to one by `resize`, into uint8 N x C x H x W.

    Raises UserError naming the first file that is broken or differs from the first in size or channels.
    """
    images = torch.empty(0, dtype=torch.uint8)
    for i, file in enumerate(files):
        image = decode(file, str(file))
        if resize is not None:
            image = resize(image)
        if i == 0:
            images = torch.empty(len(files), *image.shape, dtype=torch.uint8)
        require_same_shape(image, images[0], str(file), str(files[0]))
        images[i] = image
    return images


def require_same_shape(image: Tensor, first: Tensor, name: str, first_name: str) -> None:
    """Raise UserError unless both are C x H x W of the same shape."""
    if image.shape != first.shape:

        def size(t: Tensor) -> str:
            return f"{t.shape[2]}x{t.shape[1]} with {t.shape[0]} channel{'s' if t.shape[0] > 1 else ''}"

        remedy = "Convert them first." if len(image) != len(first) else "Resize them, or have it done by --resize."
        raise UserError(
            f"{name} is {size(image)} but {first_name} is {size(first)}: a metric needs images of one size and kind. "
            + remedy
        )
