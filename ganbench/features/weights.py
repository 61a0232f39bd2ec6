"""Files of weights: published ones, downloaded once into `weights/` of the data folder, and files that users give."""

import atexit
import contextlib
import functools
import glob
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ganbench.base.errors import UserError
from ganbench.base.files import PART_SECONDS, sha256_of
from ganbench.data.datasets import data_root


class Published(NamedTuple):
    """Address of a file, and the beginning of its SHA-256; '' if its content is checked instead of the file."""

    url: str
    sha256: str


def published(name: str, files: Mapping[str, Published], download: bool) -> list[Path]:
    """Return the paths of the published files of extractor `name`, in the order of `files`; download what is missing.

    If the data folder cannot be written, the files are downloaded into a temporary folder that is removed at the end.
    Raises UserError if a file is missing and must not or cannot be downloaded.
    """
    folder = data_root() / "weights"
    what = f"the published weights of {name} are not in {folder}"
    both = " with the entries of both" if len(files) > 1 else ""
    remedy = f"Put {' and '.join(files)} there, or give --weights {name}=FILE{both}."
    paths = []
    for file, (url, sha256) in files.items():
        path = folder / file
        if is_there(path):
            paths.append(path)
            continue
        if not download:
            raise UserError(f"{what} and this run is offline. {remedy}")
        try:
            path = _writable(folder) / file
            if not path.exists():
                _remove_old_downloads(path)
                torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256 or None)
        except Exception as error:
            raise UserError(f"{what} and could not be downloaded ({error}). {remedy}") from error
        paths.append(path)
    return paths


def is_there(path: Path) -> bool:
    """Return True if a file is there; False also if its folder may not be read."""
    try:
        return path.exists()
    except OSError:
        return False


def is_whole(path: Path, file: Published) -> bool:
    """Return True if the bytes of a file are the published ones, as far as their hash is known.

    Raises OSError if the file cannot be read.
    """
    return path.stat().st_size > 0 and sha256_of(path).startswith(file.sha256)


def _writable(folder: Path) -> Path:
    """Return the folder, newly made if need be, or if it cannot be written, a temporary folder of this process."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    print(f"weights are not kept: {folder} cannot be written", file=sys.stderr, flush=True)
    return _temporary()


@functools.cache
def _temporary() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="ganbench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _remove_old_downloads(path: Path) -> None:
    """Remove what killed downloads of a file left, as torch names it, if nobody wrote to it for a day."""
    with contextlib.suppress(OSError):
        for part in path.parent.glob(f"{glob.escape(path.name)}.*.partial"):
            if time.time() - part.stat().st_mtime > PART_SECONDS:
                part.unlink()


def read(name: str, path: Path) -> Any:
    """Return the content of a file, on the CPU. Raises UserError if it is broken or holds more than plain tensors."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read the weights {path}: {error.strerror or error}. Check the path.") from error
    except Exception as error:
        own = path.parent == data_root() / "weights"
        remedy = "delete it, and it is downloaded again, or give" if own else "give another"
        raise UserError(
            f"{path} is not a whole file of plain tensors, and reading more could run code: "
            f"{remedy} --weights {name}=FILE."
        ) from error
