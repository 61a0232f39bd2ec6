"""A folder of images as a data set. Labels come from class folders, StyleGAN's index, or a CSV file.

`image_folder` reads the folder of a spec `folder:PATH`. `labels_of_layout` serves zips too. The rules stand in
`layout.py`.
"""

import csv
import io
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from ganbench.base.data_spec import class_part
from ganbench.base.errors import UserError
from ganbench.base.files import read_bytes
from ganbench.data.datasets import Dataset, layout, rows_of_classes
from ganbench.data.datasets.layout import Layout
from ganbench.data.decoding import Decoding
from ganbench.data.streams import EncodedImages

MOST_BYTES = 1 << 28  # of a CSV: the names of millions of files
MAX_CLASSES = 100_000  # class names that are larger numbers are identifiers, not labels
MISSING = ("nan", "<na>")  # what tables write for a value that is not there
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
Progress = Callable[[str, int], Callable[[int], None]]  # (what, total) -> advance(n)


def folder_and_split(text: str) -> tuple[Path, str | None]:
    """Split the text after `folder:` into a path and the name of a split, or None. An existing path is never split.

    Raises UserError if the path is empty.
    """
    path, _, split = text.rpartition(":") if ":" in text and not os.path.exists(text) else (text, "", "")
    if not path:
        raise UserError(f"'folder:{text}' names no folder: write folder:PATH.")
    return Path(path), split or None


def find_split(path: Path, split: str | None) -> str:
    """Return the name of the split that is read: 'all' for a folder without splits. No image is decoded.

    Raises UserError if the path is not a folder of images, and UnknownSplit if it has no such split.
    """
    return layout.of_folder(path, split, labelled=False).split


def image_folder(
    path: Path, split: str | None = None, how: Decoding = Decoding(), labels_file: Path | None = None,  # noqa: B008
    classes: range | None = None, progress: Progress | None = None,
) -> Dataset:
    """Read `path/*.png` (no labels) or `path/CLASS/*.png`, or either below `path/train`, `path/test`, ... (splits).

    The data set has the name of the folder. Its files are in the sorted order of their paths, and are decoded when they
    are asked for. Classes are the sorted names of the class folders. If all names are whole numbers, these numbers are
    the labels.

    how: how to decode the files. labels_file: a CSV with labels that replace the class folders (see `read_labels`);
    its file names are relative to the folder of the split. classes: choose only these classes and relabel them from 0;
    the numbering of classes is then shared by all splits. progress: called with (what, total), see `Options`.
    Raises UserError if there is no image or no such class, and if the first file is damaged.
    """
    found = layout.of_folder(path, split, labels_file is None)
    labels, names = labels_of_layout(found, labels_file, classes is not None)
    images = EncodedImages(found.files, how, f"{path}", progress)
    name = path.resolve().name
    if classes is None:
        return Dataset(name, found.split, images, labels, names, left_out=found.left_out, remarks=found.remarks,
                       where=found.where)
    rows = rows_of_classes(labels, names, classes, f"{path}/{found.split}" if found.splits else str(path))
    assert labels is not None
    return Dataset(
        name, f"{found.split}{class_part(classes)}", images.chosen(rows), labels[rows] - classes.start,
        names[classes.start : classes.stop], classes.start, found.left_out, found.remarks, found.where, names,
    )


def labels_of_layout(
    found: Layout, labels_file: Path | None, all_splits: bool = False
) -> tuple[Tensor | None, tuple[str, ...]]:
    """Return labels, int64 N, and class names of the images of a folder or zip; (None, ()) if there are none.

    They come from a CSV, the index, or class folders. all_splits: number the classes of the other splits too.
    """
    if labels_file is not None:
        return read_labels(labels_file, found.names, found.where)
    if found.labels is not None:
        labels = torch.tensor([found.labels[name] for name in found.names])
        return labels, tuple(str(i) for i in range(int(labels.max()) + 1))
    if found.classes is None:
        return None, ()
    return labels_of(found.classes, found.known if all_splits else frozenset(), found.where)


def labels_of(
    class_names: list[str], more_classes: Set[str] = frozenset(), where: str = "the labels"
) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels, int64 N, and the names of all classes, from the class name of each image.

    If all names are whole numbers below MAX_CLASSES, these numbers are the labels. Otherwise a label is the position of
    the name in sorted order.
    more_classes: names of classes that are numbered too, though no image may belong to them. where: for messages.
    Raises UserError if two names are one number.

    >>> labels_of(["dog", "cat", "dog"])
    (tensor([1, 0, 1]), ('cat', 'dog'))
    """
    known = sorted({*class_names, *more_classes})
    if all(c.isdecimal() and int(c) < MAX_CLASSES for c in known):
        index = {c: int(c) for c in known}
        if len(set(index.values())) < len(index):
            same = next((a, b) for a in known for b in known if a < b and index[a] == index[b])
            raise UserError(f"{where}: the classes '{same[0]}' and '{same[1]}' are one number: rename one of them.")
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
        with io.StringIO(read_bytes(file, "labels", MOST_BYTES).decode("utf-8-sig"), newline="") as stream:
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
                if label.casefold() in MISSING:
                    raise UserError(
                        f"{file}, line {table.line_num}: the label of {name} is missing ('{label}'): write its class."
                    )
                label_of[name] = label
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is not a CSV file in UTF-8 ({error}): save it as one.") from error
    if without := [n for n in names if n not in label_of]:
        hint = _other_spelling(without[0], label_of)
        raise UserError(f"{file} has no label for {_first_and_count(without)} in {where}: {hint}add the missing lines.")
    if unknown := sorted(set(label_of) - set(names)):
        raise UserError(f"{file} labels {_first_and_count(unknown)}, which {where} does not hold: remove these lines.")
    return labels_of([label_of[n] for n in names])


def _other_spelling(name: str, listed: Iterable[str]) -> str:
    """Return what to do if a file is listed under another form of its name, with a space after it, or ""."""
    for other in listed:
        if other.replace("\\", "/") == name:
            return f"it has {other}: write / in place of \\, or "
        if unicodedata.normalize("NFC", other) == unicodedata.normalize("NFC", name):
            form = "NFC" if unicodedata.is_normalized("NFC", name) else "NFD"
            return f"it has the name in another Unicode form: write unicodedata.normalize('{form}', name), or "
    return ""


def _first_and_count(names: list[str]) -> str:
    """Return the first name and how many more there are, for a message."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1:,} more"
