"""Files that are either complete or absent: they are written under a temporary name, then renamed.

Write every file through `atomic_path`, `write_text` or `write_json`. Call `require_writable` before long work.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ganbench.base.errors import UserError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`. It replaces `path` on success, and is removed on failure.

    Missing folders are made. Raises UserError if the folder cannot be written or the disk is full; `path` then stays as
    it was.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.chmod(0o644)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}. Free some space or choose another folder."
        ) from error
    finally:
        part.unlink(missing_ok=True)


def require_writable(path: Path, option: str) -> None:
    """Raise UserError if `path` cannot be written. Call it before long work. No file or folder is made or changed.

    option: the option that the user gave the path with, for the message.
    """
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{option} {path} cannot be written: {folder} is a file. Choose another folder.")
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder: give the path of a file.")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{option} {path} cannot be written: you may not write to {folder}. Choose another folder.")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, atomically. Raises UserError if the file cannot be written."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON in UTF-8, atomically.

    Raises ValueError for NaN and infinity, which JSON does not have. Raises UserError if the file cannot be written.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file and return its value.

    what: the role of the file, for the message ("result", "baseline").
    Raises UserError if the file cannot be read or is not valid JSON. NaN and infinity are not valid.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror}. Check the path.") from error
    except ValueError as error:
        raise UserError(f"the {what} {path} is not valid JSON ({error}): make the file again.") from error


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hexadecimal digits. Raises OSError if the file cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
