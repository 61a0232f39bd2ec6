"""Files that are whole or not there: write beside, then rename."""

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
    """A temporary path beside `path` to write to; on success it replaces `path`, on failure it is removed.

    Raises UserError where the folder cannot be written or the disk is full; `path` then is as it was before.
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
    """Raise UserError where `path` could not be written: before long work, not after it. Nothing is made or changed."""
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{option} {path} cannot be written: {folder} is a file. Choose another folder.")
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder: name a file in it.")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{option} {path} cannot be written: {folder} is read-only for you. Choose another folder.")


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path` atomically."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused: they are no JSON and no result."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file, or raise a UserError that calls it by its role (`what`). NaN and infinity are refused."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"the {what} {path} is not valid JSON ({error}).") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
