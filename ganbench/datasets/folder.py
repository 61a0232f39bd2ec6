"""A folder of images: class folders become labels, a flat folder has none."""

from pathlib import Path

import torch
from torch import Tensor

from ganbench.datasets import Dataset, unknown_split
from ganbench.errors import UserError
from ganbench.images import SUFFIXES, decode

SPLITS = ("train", "val", "valid", "test")
MAX_CLASSES = 100_000  # larger numbers are identifiers, not labels


def image_folder(path: Path, split: str | None = None) -> Dataset:
    """`path/*.png` (no labels), `path/CLASS/*.png`, or either below `path/train`, `path/test`, ... (splits).

    The set is named after the folder. Classes are the sorted folder names; where all of them are whole numbers, those
    numbers are the labels. Files are taken in the order of their paths.
    Raises UserError for a folder without images, images of different sizes or channels, or a broken file (named).
    """
    if not path.is_dir():
        raise UserError(f"{path} {'is a file' if path.exists() else 'does not exist'}: name a folder of images.")
    name = path.resolve().name
    splits = tuple(s for s in SPLITS if (path / s).is_dir())
    if splits:
        split = split or "train"
        if split not in splits:
            raise unknown_split(name, split, splits)
        path = path / split
    elif split not in (None, "train", "all"):
        raise UserError(f"the folder {path} has no split '{split}': make folders {path}/train and {path}/{split}.")
    else:
        split = "all"

    files = sorted(
        f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES and not f.is_dir() and not _hidden(f, path)
    )
    if not files:
        raise UserError(f"{path} holds no images (looked for {', '.join(SUFFIXES)}).")
    images = read_files(files)
    parents = [f.relative_to(path).parts[0] if len(f.relative_to(path).parts) > 1 else None for f in files]
    if None in parents:
        if any(parents):
            raise UserError(
                f"{path} mixes images with class folders: move {files[parents.index(None)].name} into a class folder."
            )
        return Dataset(name, split, images)
    labels, classes = labels_of([str(p) for p in parents])
    return Dataset(name, split, images, labels, classes)


def _hidden(file: Path, below: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(below).parts)


def labels_of(class_names: list[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Labels (int64) and class names from one class name an image; whole numbers are taken as they are."""
    known = sorted(set(class_names))
    if all(c.isdecimal() and int(c) < MAX_CLASSES for c in known):
        index = {c: int(c) for c in known}
        classes = tuple(str(i) for i in range(max(index.values()) + 1))
    else:
        index = {c: i for i, c in enumerate(known)}
        classes = tuple(known)
    return torch.tensor([index[c] for c in class_names]), classes


def read_files(files: list[Path]) -> Tensor:
    """Decode image files of one size into uint8 N x C x H x W.

    Raises UserError naming the first file that is broken or differs from the first in size or channels.
    """
    first = decode(files[0], str(files[0]))
    images = torch.empty(len(files), *first.shape, dtype=torch.uint8)
    for i, file in enumerate(files):
        image = decode(file, str(file))
        require_same_shape(image, first, str(file), str(files[0]))
        images[i] = image
    return images


def require_same_shape(image: Tensor, first: Tensor, name: str, first_name: str) -> None:
    """Raise UserError unless both are C x H x W of the same shape."""
    if image.shape != first.shape:

        def size(t: Tensor) -> str:
            return f"{t.shape[2]}x{t.shape[1]} with {t.shape[0]} channel{'s' if t.shape[0] > 1 else ''}"

        raise UserError(
            f"{name} is {size(image)} but {first_name} is {size(first)}: a metric needs images of one size and kind. "
            "Resize or convert them first."
        )
