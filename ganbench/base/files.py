"""Files that are either complete or absent: they are written under a temporary name, then renamed.

Write every file through `atomic_path`, `write_text` or `write_json`. Call `require_writable` before long work.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ganbench.base.errors import UserError, shortened

MOST_BYTES = 16 << 20  # of a file of text; the largest result has 0.2 MB


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path, to write to. On success, its content replaces that of `path`; on failure, it is removed.

    A regular file, or nothing, is replaced at once, by renaming: the temporary path lies in its folder, and missing
    folders are made. A link is kept, and what it leads to is replaced. A device, a pipe, an open file (`/dev/stdout`)
    and a file whose folder cannot be written are written in place. A new file gets the mode that the umask leaves; an
    old one keeps its mode.
    Raises UserError if the path cannot be written or the disk is full; `path` then stays as it was, if it is replaced
    by renaming.
    """
    work: Path | None = None
    try:
        target, in_place = _target(path)
        if in_place:
            work = Path(tempfile.mkdtemp(prefix="ganbench-"))
            part = work / "part"
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_old_parts(target.parent)
            part = target.with_name(_part_name(target.name))
        # The system applies the umask here; a library may later replace the file by one with another mode.
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        mode = stat.S_IMODE((target if target.exists() and not in_place else part).stat().st_mode)
    except (OSError, RuntimeError) as error:  # before 3.13, a circle of links raises RuntimeError
        raise _cannot_write(path, error) from error
    try:
        yield part
        with open(part, "rb") as file:
            if in_place:
                _copy_into(file, target)
            else:
                os.fsync(file.fileno())
        if not in_place:
            part.chmod(mode)
            _replace(part, target)
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) or _is_failed_write(error):
            raise _cannot_write(path, error) from error
        raise
    finally:
        with contextlib.suppress(OSError):  # it never hides the first error
            part.unlink(missing_ok=True)
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def _cannot_write(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error).rstrip(".")
    return UserError(f"cannot write {path}: {reason}. Free some space or choose another folder.")


def _is_failed_write(error: Exception) -> bool:
    """Return True for the errors with which safetensors and torch report a full disk, which are no OSError."""
    kind = type(error).__name__
    return (kind == "SafetensorError" and "I/O error" in str(error)) or (
        kind == "RuntimeError" and any(word in str(error) for word in ("inline_container", "PytorchStreamWriter"))
    )


def _target(path: Path) -> tuple[Path, bool]:
    """Return the path that is written, with links followed, and whether it is written in place instead of replaced.

    Raises OSError for a folder and a socket.
    """
    if _open_file(path) is not None:
        return path, True
    target = path.resolve()
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return target, False
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if stat.S_ISSOCK(mode):
        raise OSError(errno.ENXIO, "it is a socket")
    if not stat.S_ISREG(mode):
        return target, True
    return target, os.access(target, os.W_OK) and not os.access(target.parent, os.W_OK)


def _replace(part: Path, target: Path) -> None:
    """Rename `part` to `target`. Where that is not possible, but the old file can be written, write over its content.

    A file that is mounted alone, as into a container, and another user's file in a shared folder are such files.
    """
    try:
        os.replace(part, target)
    except OSError as error:
        kinds = (errno.EBUSY, errno.EXDEV, errno.EPERM, errno.EACCES)
        if error.errno not in kinds or not target.is_file() or not os.access(target, os.W_OK):
            raise
        with open(part, "rb") as file:
            _copy_into(file, target)


def _open_file(path: Path) -> int | None:
    """Return the number of the open file of this process that the path means, as /dev/stdout means 1; else None."""
    here = Path(os.path.abspath(path))
    own = {"/dev/fd", "/proc/self/fd", f"/proc/{os.getpid()}/fd", "/proc/thread-self/fd"}
    for _ in range(40):  # a circle of links ends here
        folder = {str(here.parent), os.path.realpath(here.parent)}
        if folder & own and here.name.isdecimal():
            return int(here.name)
        if not here.is_symlink():
            return None
        here = Path(os.path.normpath(here.parent / os.readlink(here)))
    return None


def _copy_into(file: BinaryIO, target: Path) -> None:
    """Write the content of a file into a device, a pipe or an open file, or over that of a file."""
    number = _open_file(target)
    if number is None:
        regular = stat.S_ISREG(target.stat().st_mode)
        goal = os.open(target, os.O_WRONLY | (os.O_TRUNC if regular else 0))
    else:
        goal = os.dup(number)
    with open(goal, "wb") as out:
        shutil.copyfileobj(file, out)


PART = re.compile(r"\..+\.(?P<host>[A-Za-z0-9]+)-(?P<pid>\d+)-[0-9a-f]{8}\.part", re.DOTALL)
# The same, as versions before 0.2 named it.
OLD_PART = re.compile(r"\..+\.(json|jsonl|md|npz|png|pt|safetensors|xml)\.(?P<pid>\d+)\.part", re.DOTALL)
PART_SECONDS = 24 * 3600.0  # a temporary file that nobody wrote to for this long is left from a killed process
_tidied: set[Path] = set()  # folders in which this process has removed old temporary files


def _part_name(name: str) -> str:
    """Return a new name for a temporary file: two containers may have the same process id, and the same host name."""
    return f".{name[:40]}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.part"


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "", platform.node())[:20] or "host"


def _remove_old_parts(folder: Path) -> None:
    """Remove the temporary files of killed processes from a folder, once a process."""
    if folder in _tidied:
        return
    _tidied.add(folder)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = PART.fullmatch(entry.name) or OLD_PART.fullmatch(entry.name)
            if match is None:
                continue
            with contextlib.suppress(OSError):
                old = time.time() - entry.stat(follow_symlinks=False).st_mtime > PART_SECONDS
                here = match.groupdict().get("host") in (None, _host())
                if old and not (here and _lives(int(match["pid"]))) and entry.is_file(follow_symlinks=False):
                    os.unlink(entry.path)


def _lives(pid: int) -> bool:
    """Return True unless this machine certainly has no process with this id."""
    if os.name != "posix":  # os.kill would end the process
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is another user's
        return True
    return True


def require_writable(path: Path, option: str) -> None:
    """Raise UserError if `path` cannot be written. Call it before long work. No file or folder is made or changed.

    option: the option that the user gave the path with, for the message.
    """
    try:
        if path.is_dir():
            raise UserError(f"{option} {path} is a folder: give the path of a file.")
        if _open_file(path) is not None:
            return
        target, in_place = _target(path)
        if target.exists() and not os.access(target, os.W_OK):
            raise UserError(f"{option} {path} cannot be written: it is write-protected. Choose another file.")
        folder = target.parent
        while not folder.exists():
            folder = folder.parent
        is_folder = folder.is_dir()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{option} {path} cannot be written: {reason}. Choose another path.") from error
    if not is_folder:
        raise UserError(f"{option} {path} cannot be written: {folder} is a file. Choose another folder.")
    if not in_place and not os.access(folder, os.W_OK):
        raise UserError(f"{option} {path} cannot be written: you may not write to {folder}. Choose another folder.")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, atomically. Raises UserError if the file cannot be written.

    Characters that UTF-8 does not have, from names of files that are not UTF-8, are written as escapes such as
    `\\udcff`. In JSON this is the same character.
    """
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON in UTF-8, atomically.

    Raises ValueError for NaN and infinity, which JSON does not have. Raises UserError if the file cannot be written.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_bytes(path: Path, what: str, most: int = MOST_BYTES) -> bytes:
    """Return the bytes of a file.

    what: the role of the file, for the message ("result", "recipe"). A pipe that nobody writes to is empty. Raises
    UserError if the file cannot be read or is longer than `most` bytes.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            data = file.read(most + 1)
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror or error}. Check the path.") from error
    if len(data) > most:
        raise UserError(f"the {what} {path} is longer than {most >> 20} MiB, so it is none: check the path.")
    return data


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a pipe without waiting for somebody who writes to it. The descriptor waits for data as usual."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    os.set_blocking(descriptor, True)
    return descriptor


def read_text(path: Path, what: str) -> str:
    """Return the text of a file in UTF-8. Raises UserError if it cannot be read or is not UTF-8."""
    try:
        return read_bytes(path, what).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"the {what} {path} is not UTF-8 text (byte {error.start + 1}): save it again as UTF-8."
        ) from error


def read_json(path: Path, what: str, remedy: str = "make the file again") -> Any:
    """Read a JSON file and return its value.

    what: the role of the file, for the message ("result", "baseline"). remedy: what the user can do about a bad one.
    Raises UserError if the file cannot be read, is empty, or is not valid JSON (`parse_json`).
    """
    data = read_bytes(path, what)
    if not data.strip():
        raise UserError(f"the {what} {path} is not valid JSON (it is empty): {remedy}.")
    try:
        return parse_json(data)
    except ValueError as error:
        raise UserError(f"the {what} {path} is not valid JSON ({error}): {remedy}.") from error


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text in UTF-8.

    Raises ValueError, and no other exception, for what JSON does not have or nobody writes: NaN, infinity, a number
    beyond a float or beyond 64 bits, a key that stands twice in one object, and nesting that is too deep.

    >>> parse_json('{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    """
    try:
        return json.loads(
            text if isinstance(text, str) else text.decode("utf-8"), parse_constant=_refuse_constant,
            parse_float=_finite, parse_int=_whole, object_pairs_hook=_without_doubles,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is not UTF-8") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{shortened(digits, 30)} is too large for a number")
    return value


def _whole(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise ValueError(f"{shortened(digits, 30)} is too large for a whole number")
    return int(digits)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key '{next(key for key in keys if keys.count(key) > 1)}' stands twice in one object")
    return found


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hexadecimal digits. Raises OSError if the file cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
