"""Data sets: whole in memory as one uint8 tensor, so that no Python runs per image on the hot path.

A data set is a function `(split: str, root: Path, download: bool) -> Dataset`, found by entry point. `load` is the way
in: `mnist`, `mnist:test`, `mnist:train[:50000]`, `folder:PATH`.
"""

import functools
import hashlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ganbench import registry
from ganbench.errors import UserError
from ganbench.images import check

ROWS = re.compile(r"(?P<split>.*)\[(?P<a>\d*):(?P<b>\d*)\]")


@dataclass(frozen=True)
class Dataset:
    """One split of a data set.

    images: uint8 N x C x H x W. labels: int64 N in 0..K-1, or None. classes: K names.
    exact: False where the pixels are known to differ from the published set (recompressed, resized).
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check(self.images)
        if self.labels is not None and (self.labels.dtype != torch.int64 or len(self.labels) != len(self.images)):
            raise TypeError(f"labels of {self.name} must be int64, one an image")

    def __len__(self) -> int:
        return len(self.images)

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


def name_in(spec: str) -> str:
    """The data set's name in what a user writes: what stands before a split or rows."""
    return re.split(r"[:\[]", spec, maxsplit=1)[0]


def load(spec: str, split: str | None = None) -> Dataset:
    """Load `NAME`, `NAME:split`, `folder:PATH` or `folder:PATH:split`; `split` is the default where none is named.

    `NAME[a:b]` and `NAME:split[a:b]` are its rows from a up to, and without, b, counted from 0 in the order of the
    published files: `mnist:train[:50000]` to train on and `mnist:train[50000:]` to choose by.
    Raises UserError for an unknown name or split, rows that are not there, a folder that is not one, and a set that is
    missing while offline.
    """
    name = name_in(spec)
    rest = spec[len(name) :].removeprefix(":")
    if name == "folder":
        from ganbench.datasets.folder import folder_and_split, image_folder

        path, chosen = folder_and_split(rest)
        return image_folder(path, chosen or split)
    get = registry.load("datasets", name)
    rows = ROWS.fullmatch(rest)
    whole = get((rows["split"] if rows else rest) or split or "train", data_root(), not offline())
    return _rows(whole, int(rows["a"] or 0), int(rows["b"] or len(whole))) if rows else whole


def _rows(data: Dataset, a: int, b: int) -> Dataset:
    """The images from row a up to, and without, row b, as a split of their own."""
    if not a < b <= len(data):
        raise UserError(
            f"{data.name}:{data.split} has rows 0 to {len(data) - 1:,}: [{a}:{b}] asks for others, or for none."
        )
    labels = None if data.labels is None else data.labels[a:b]
    return replace(data, split=f"{data.split}[{a}:{b}]", images=data.images[a:b], labels=labels)


def unknown_split(name: str, split: str, known: tuple[str, ...]) -> UserError:
    """The error that a data set raises for a split it does not have."""
    return UserError(f"the data set '{name}' has no split '{split}': it has {', '.join(known)}.")
