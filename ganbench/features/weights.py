"""Files of weights: published ones, downloaded once into `weights/` of the data folder, and files that users give."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ganbench.base.errors import UserError
from ganbench.data.datasets import data_root


class Published(NamedTuple):
    """Address of a file, and the beginning of its SHA-256; '' if its content is checked instead of the file."""

    url: str
    sha256: str


def published(name: str, files: Mapping[str, Published], download: bool) -> list[Path]:
    """Return the paths of the published files of extractor `name`, in the order of `files`; download what is missing.

    Raises UserError if a file is missing and must not or cannot be downloaded.
    """
    folder = data_root() / "weights"
    what = f"the published weights of {name} are not in {folder}"
    both = " with the entries of both" if len(files) > 1 else ""
    remedy = f"Put {' and '.join(files)} there, or give --weights {name}=FILE{both}."
    for file, (url, sha256) in files.items():
        path = folder / file
        if path.exists():
            continue
        if not download:
            raise UserError(f"{what} and this run is offline. {remedy}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256 or None)
        except Exception as error:
            raise UserError(f"{what} and could not be downloaded ({error}). {remedy}") from error
    return [folder / file for file in files]


def read(name: str, path: Path) -> Any:
    """Return the content of a file, on the CPU. Raises UserError if it is broken or holds more than plain tensors."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{path} is not a whole file of plain tensors, and reading more could run code: "
            f"give another --weights {name}=FILE."
        ) from error
