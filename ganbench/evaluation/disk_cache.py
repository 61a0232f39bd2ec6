"""Tensors on disk with a checksum: what is damaged, cut or of another length is made again, never used.

Several evaluations may share a folder. A folder that cannot be read or written costs a remark and nothing else.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ganbench.base.errors import UserError
from ganbench.base.files import atomic_path

Say = Callable[[str], None]


def checksum(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().flatten().numpy().data)
    return digest.hexdigest()


def read(path: Path, say: Say, rows: int | None = None) -> dict[str, Tensor] | None:
    """Return the tensors of a file that `write` wrote; None, with a remark unless it does not exist, of any other.

    rows: the length that every tensor must have.
    """
    try:
        if not path.exists():
            return None
        with safe_open(path, "pt") as file:
            expected = (file.metadata() or {}).get("sha256")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        if expected != checksum(tensors):
            raise ValueError("its checksum is another")
        if rows is not None and any(len(tensor) != rows for tensor in tensors.values()):
            raise ValueError(f"it is not of {rows:,} images")
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        say(f"{path} cannot be read ({error}): made again")
        return None
    return tensors


def write(path: Path, tensors: dict[str, Tensor], say: Say) -> bool:
    """Write tensors with their checksum, atomically. Return False, with a remark, if they cannot be written."""
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as part:
            save_file(whole, part, {"sha256": checksum(whole)})
    except (OSError, SafetensorError, UserError) as error:
        say(f"features are not kept: {path} cannot be written ({error})")
        return False
    return True


def remove(path: Path) -> None:
    """Remove a file if it is there and may be removed."""
    with contextlib.suppress(OSError):  # a cache that cannot be tidied is used as it is
        path.unlink(missing_ok=True)
