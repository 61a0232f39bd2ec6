"""A folder of images as a data set. Labels come from class folders, or from a CSV file.

`image_folder` reads the folder of a spec `folder:PATH`. `labels_of`, `read_labels` and `require_same_shape` serve zip
files too.
"""

import csv
import re
from collections.abc import Sequence, Set
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from ganbench.base.data_spec import class_part
from ganbench.base.errors import UserError
from ganbench.data.datasets import Dataset, UnknownSplit, rows_of_classes, unknown_split
from ganbench.data.images import SUFFIXES, decode
from ganbench.data.resizing import Resize

SPLITS = ("train", "val", "valid", "test")
MAX_CLASSES = 100_000  # class names that are larger numbers are identifiers, not labels
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def folder_and_split(text: str) -> tuple[Path, str | None]:
    """Split the text after `folder:` into a path and the name of a split, or None. An existing path is never split.

    Raises UserError if the path is empty.
    """
    path, _, split = text.rpartition(":") if ":" in text and not Path(text).exists() else (text, "", "")
    if not path:
        raise UserError(f"'folder:{text}' names no folder: write folder:PATH.")
    return Path(path), split or None


def find_split(path: Path, split: str | None) -> tuple[Path, str, set[str]]:
    """Return the folder with the images of a split, the split's name, and the names of class folders in all splits.

    A folder without split folders has one split, 'all'. No image is read. Raises UserError if the path is not a folder,
    and UnknownSplit if it has no such split.
    """
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}: give a folder of images (for a recipe: --data folder:PATH).")
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
    """Read `path/*.png` (no labels) or `path/CLASS/*.png`, or either below `path/train`, `path/test`, ... (splits).

    The data set has the name of the folder. Files are read in the sorted order of their paths. Classes are the sorted
    names of the class folders. If all names are whole numbers, these numbers are the labels.

    resize: applied to every image. labels_file: a CSV with labels that replace the class folders (see `read_labels`);
    its file names are relative to the folder of the split. classes: read only these classes and relabel them from 0;
    the numbering of classes is then shared by all splits.
    Raises UserError if there is no image or no such class, if images differ in size or channels, and if a file is
    damaged.
    """
    name = path.resolve().name
    path, split, class_folders = find_split(path, split)
    files = sorted(
        f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES and not f.is_dir() and not _hidden(f, path)
    )
    if not files:
        raise UserError(f"{path} holds no images (looked for {', '.join(SUFFIXES)}): give another folder.")
    labels, names = _label_files(files, path, labels_file, class_folders if classes is not None else set())
    if classes is None:
        return Dataset(name, split, read_files(files, resize), labels, names)
    rows = rows_of_classes(labels, names, classes, str(path))
    assert labels is not None
    return Dataset(
        name, f"{split}{class_part(classes)}", read_files([files[row] for row in rows.tolist()], resize),
        labels[rows] - classes.start, names[classes.start : classes.stop], classes.start,
    )


def _label_files(
    files: list[Path], path: Path, labels_file: Path | None, more_classes: set[str]
) -> tuple[Tensor | None, tuple[str, ...]]:
    """Return labels and class names of files below `path`, from a CSV or from class folders; (None, ()) without either.

    more_classes: names of classes that are numbered too, though none of the files may belong to them.
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
    return labels_of([str(p) for p in parents], more_classes)


def _hidden(file: Path, below: Path) -> bool:
    """Return True if the file, or a folder between `below` and the file, has a name that begins with a dot."""
    return any(part.startswith(".") for part in file.relative_to(below).parts)


def labels_of(class_names: list[str], more_classes: Set[str] = frozenset()) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels, int64 N, and the names of all classes, from the class name of each image.

    If all names are whole numbers below MAX_CLASSES, these numbers are the labels. Otherwise a label is the position of
    the name in sorted order.
    more_classes: names of classes that are numbered too, though no image may belong to them.

    >>> labels_of(["dog", "cat", "dog"])
    (tensor([1, 0, 1]), ('cat', 'dog'))
    """
    known = sorted({*class_names, *more_classes})
    if all(c.isdecimal() and int(c) < MAX_CLASSES for c in known):
        index = {c: int(c) for c in known}
        classes = tuple(str(i) for i in range(max(index.values()) + 1))
    else:
        index = {c: i for i, c in enumerate(known)}
        classes = tuple(known)
    return torch.tensor([index[c] for c in class_names]), classes


def read_labels(file: Path, names: Sequence[str], where: str) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels, int64 N, and the names of all classes, from a CSV with the columns `file` and `label`.

    names: the files that need a label. where: the folder or zip that holds them, for error messages. The column `label`
    holds class names, or whole numbers from 0; `labels_of` turns them into labels.
    Raises UserError if the CSV cannot be read, if a line is wrong, and if a file is missing, unknown or listed twice.
    """
    label_of: dict[str, str] = {}
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            table = csv.DictReader(stream, strict=True)
            if not {"file", "label"} <= set(table.fieldnames or ()):
                raise UserError(f"{file} must begin with a line that names the columns: file,label.")
            for row in table:
                if None in row or not row["file"] or not (row["label"] or "").strip():
                    raise UserError(f"{file}, line {table.line_num}: write one file and its label: FILE,LABEL.")
                name, label = PurePosixPath(row["file"]).as_posix(), row["label"].strip()
                if name in label_of:
                    raise UserError(f"{file}, line {table.line_num}: {name} is listed twice: remove one line.")
                if NUMBER.fullmatch(label) and not label.isdecimal():
                    raise UserError(
                        f"{file}, line {table.line_num}: the label '{label}' of {name} must be a whole number, 0 or "
                        "more, or a name."
                    )
                label_of[name] = label
    except OSError as error:
        raise UserError(f"cannot read the labels {file}: {error.strerror}. Check the path.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is not a CSV file in UTF-8 ({error}): save it as one.") from error
    if without := [n for n in names if n not in label_of]:
        raise UserError(f"{file} has no label for {_first_and_count(without)} in {where}: add the missing lines.")
    if unknown := sorted(set(label_of) - set(names)):
        raise UserError(f"{file} labels {_first_and_count(unknown)}, which {where} does not hold: remove these lines.")
    return labels_of([label_of[n] for n in names])


def _first_and_count(names: list[str]) -> str:
    """Return the first name and how many more there are, for a message."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1:,} more"


def read_files(files: list[Path], resize: Resize | None = None) -> Tensor:
    """Decode image files into uint8 N x C x H x W. resize: applied to every image.

    Raises UserError for the first file that is damaged, or that differs from the first file in size or channels.
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
    """Raise UserError if an image, C x H x W, has another shape than the first one. The names are those of files."""
    if image.shape != first.shape:

        def size(t: Tensor) -> str:
            return f"{t.shape[2]}x{t.shape[1]} with {t.shape[0]} channel{'s' if t.shape[0] > 1 else ''}"

        remedy = "Convert them first." if len(image) != len(first) else "Resize them, or use --resize."
        raise UserError(
            f"{name} is {size(image)} but {first_name} is {size(first)}: metrics need images of one size, all grey or "
            f"all colour. {remedy}"
        )
