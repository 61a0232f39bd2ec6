"""Images of a training set, decoded once: into memory if they fit, otherwise into a file that is mapped into memory.

    data = for_training(datasets.load("folder:imagenet:train", resize=resize), reporter.progress, reporter.say)

A training step takes its batch by index, and must not decode. `<data folder>/decoded/NAME-KEY.u8` holds the pixels,
uint8 N x C x H x W; the operating system keeps in memory what fits. KEY depends on the content of the image files and
on how they are decoded. `NAME-KEY.json` beside it says what the file holds, with the SHA-256 of each piece of it.

The file grows as `.NAME-KEY.part`, piece by piece; `.NAME-KEY.record` has the SHA-256 of each finished piece. After a
kill at any moment, the pieces that are as recorded are kept, and the others are made again. The process that makes a
file holds a lock on its `.part`, which ends with the process; others wait for it. A process that uses a file holds a
shared lock on it, so that `remove` spares it.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ganbench.base import distributed, memory
from ganbench.base.errors import UserError
from ganbench.base.files import write_json
from ganbench.data.datasets import Dataset, data_root
from ganbench.data.streams import EncodedImages, Images, batches

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # a system without such locks: each process makes its own file, and the first one counts
    fcntl = None

FOLDER = "decoded"
LIMIT = "GANBENCH_IN_MEMORY"  # bytes of pixels up to which a set is kept in memory
VERSION = 1  # part of the key: raise it whenever the content of a file would change
PIECE = 64 << 20  # bytes, rounded down to whole images
LOOKED_AT = 4  # pieces that are compared with their SHA-256 when a file is opened
POLL_SECONDS = 0.5
LEFT_OVER_SECONDS = 24 * 3600.0  # an unfinished file that nobody wrote to for this long may be removed

Progress = Callable[[str, int], Callable[[int], None]]  # (what, total) -> advance(n)
Say = Callable[[str], None]

_mapped: "weakref.WeakValueDictionary[int, np.memmap[Any, Any]]" = weakref.WeakValueDictionary()  # by address


@dataclass(frozen=True)
class Decoded(Dataset):
    """A data set whose images were decoded from files. It keeps the fingerprint of these files."""

    of_files: tuple[str, str] = ("", "")  # fingerprint and its kind

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the data set that was decoded."""
        return self.of_files[0]

    @property
    def fingerprint_of(self) -> str:
        """The kind of that fingerprint."""
        return self.of_files[1]


def for_training(
    data: Dataset, progress: Progress = lambda what, total: lambda n: None, say: Say = lambda text: None
) -> Dataset:
    """Return the data set with a tensor of its images, in memory or mapped from a file, uint8 N x C x H x W.

    A set is kept in memory if its pixels take at most GANBENCH_IN_MEMORY bytes, by default half of the free memory. A
    mapped tensor can be read only: writing to it ends the process. A data set that has a tensor is returned unchanged.
    Under torchrun all processes must call this function; the first one decodes for all that share its disk.

    progress: called with (what, total); returns a function that is called with numbers of finished images. say: called
    with what is made and how large it is.
    Raises UserError if an image cannot be decoded, and if there is no room for the file.
    """
    if isinstance(data.images, Tensor):
        return data
    size = math.prod(data.images.shape)
    if not distributed.anybody(int(size > _limit())):
        images = _read(data.images, progress(f"decode {data.name}", len(data)))
        return _with(data, images) if data.fingerprint_of == "files" else replace(data, images=images)
    store = _Store(data, data.images)
    mapped = store.mapped_or_made(progress, say) if distributed.rank() == 0 else None
    distributed.decide(True)  # the other processes wait for the first one, and then find its file
    return _with(data, store.mapped_or_made(progress, say) if mapped is None else mapped)


def is_mapped(images: Tensor) -> bool:
    """Return True if a tensor, or what it is a part of, was mapped from a file by `for_training`."""
    return images.untyped_storage().data_ptr() in _mapped


class Stored(NamedTuple):
    """A file of decoded images, or what a killed process left of one.

    paths: the files. size: in bytes. used: when it was last used, in seconds since 1970. what: for people.
    why_kept: why it must not be removed now, or "".
    """

    paths: tuple[Path, ...]
    size: int
    used: float
    what: str
    why_kept: str


def stored() -> list[Stored]:
    """Return everything that this module has put into the data folder. Raises OSError if that may not be read."""
    folder = data_root() / FOLDER
    found = []
    for path in sorted(p for pattern in ("*.u8", ".*.part") for p in folder.glob(pattern)):
        whole = path.suffix == ".u8"
        others = [path.with_suffix(suffix) for suffix in ([".json"] if whole else [".record", ".new"])]
        if not whole and not (of_it := folder / f"{path.stem[1:]}.u8").exists():
            others.append(of_it.with_suffix(".json"))  # written, but the file was not renamed before the kill
        with contextlib.suppress(OSError):  # it was removed in this moment
            state = path.stat()
            used, size = state.st_mtime, state.st_size
            for other in others:
                with contextlib.suppress(OSError):
                    used = max(used, other.stat().st_mtime)
            paths = tuple(p for p in (path, *others) if p.exists())
            found.append(Stored(paths, size, used, _described(path), _why_kept(path, whole, used)))
    return found


def remove(entry: Stored) -> bool:
    """Remove the files of an entry of `stored`. Return False if they must be kept now, or cannot be removed."""
    path = entry.paths[0]
    if _why_kept(path, path.suffix == ".u8", entry.used):
        return False
    try:
        for file in entry.paths:
            file.unlink(missing_ok=True)
    except OSError:  # on some systems no file can be removed that is open
        return False
    return True


class _Store:
    """The file of one data set's pixels."""

    def __init__(self, data: Dataset, images: Images):
        self.data, self.images = data, images
        content = images.fingerprint() if isinstance(images, EncodedImages) else data.fingerprint
        key = hashlib.sha256(f"{VERSION} {content} {tuple(images.shape)}".encode()).hexdigest()[:32]
        name = re.sub(r"[^A-Za-z0-9]+", "_", data.name)[:40]
        self.path = data_root() / FOLDER / f"{name}-{key}.u8"
        self.about = self.path.with_suffix(".json")
        self.size = math.prod(images.shape)
        self.piece_rows = max(1, PIECE // math.prod(images.shape[1:]))
        self.piece = self.piece_rows * math.prod(images.shape[1:])
        self.pieces = -(-len(images) // self.piece_rows)
        self.identity = {
            "version": VERSION, "fingerprint": content, "shape": list(images.shape), "piece_rows": self.piece_rows
        }
        self.described = self.identity | {
            "count": len(images), "source": f"{data.name}:{data.split}",
            "decoding": str(images.how) if isinstance(images, EncodedImages) else "",
        }

    def mapped_or_made(self, progress: Progress, say: Say) -> Tensor:
        """Return the mapped images. Make the file if it is not whole."""
        for _ in range(3):
            images = self.mapped(say)
            if images is not None:
                return images
            self.make(progress, say)
        raise UserError(f"{self.path} cannot be read as it was written: check the disk.")

    def mapped(self, say: Say = lambda text: None) -> Tensor | None:
        """Return the mapped images, uint8 N x C x H x W; None if the file is missing, of another length or damaged."""
        try:
            file = open(self.path, "rb")  # noqa: SIM115 - it lives as long as the array below
        except OSError:
            return None
        _lock(file, shared=True)
        if not _is_at(file, self.path):  # `remove` was earlier
            file.close()
            return None
        try:
            about = json.loads(self.about.read_text(encoding="utf-8"))
            digests = about.pop("sha256")
            some = np.linspace(0, self.pieces - 1, min(LOOKED_AT, self.pieces)).astype(int).tolist()
            whole = (
                about.items() >= self.identity.items() and len(digests) == self.pieces
                and os.fstat(file.fileno()).st_size == self.size
                and self.verified(file, {i: digests[i] for i in some}) == set(some)
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            say(f"{self.path} is damaged: it is made again")
            file.close()
            return None
        # "r": copy on write counts as memory, and is refused for a file that is larger than memory.
        array = np.memmap(file, np.uint8, "r", shape=tuple(self.images.shape))
        weakref.finalize(array, file.close)  # which ends the lock
        with contextlib.suppress(OSError):  # a folder that cannot be written
            os.utime(self.about)  # last used now
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            images = torch.from_numpy(array)
        _mapped[images.data_ptr()] = array
        return images

    def make(self, progress: Progress, say: Say) -> None:
        """Decode the images into the file, going on from what an interrupted process left."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.alone(say) as part:
                if part is not None:
                    self.fill(*part, progress, say)
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror or error}. Free some space, or set GANBENCH_DATA to "
                "another folder; the same command then goes on."
            ) from error

    @contextlib.contextmanager
    def alone(self, say: Say) -> Iterator[tuple[IO[bytes], Path] | None]:
        """Yield the unfinished file and its path, locked; or None once another process has made the whole file."""
        path, waits = self.path.with_name(f".{self.path.stem}.part"), False
        while True:
            file = _opened(path)
            try:
                locked = _lock(file)
                if locked is None:  # no locks here: a file of this process alone
                    file.close()
                    path = path.with_name(f".{self.path.stem}-{os.urandom(4).hex()}.part")
                    file = _opened(path)
                if locked is not False and _is_at(file, path):
                    if self.mapped() is None:
                        yield file, path
                    else:
                        _remove_empty(path)
                        yield None
                    return
            finally:
                file.close()
            if not waits:
                say(f"another process makes {self.path}: waiting for it")
                waits = True
            time.sleep(POLL_SECONDS)
            if self.mapped() is not None:
                yield None
                return

    def fill(self, file: IO[bytes], part: Path, progress: Progress, say: Say) -> None:
        """Make the pieces that are missing, and give the whole file its name."""
        record = part.with_suffix(".record")
        digests = self.recorded(record)
        kept = self.verified(file, digests)
        digests = {i: digests[i] for i in kept}
        todo = [i for i in range(self.pieces) if i not in kept]
        none = torch.empty(0, dtype=torch.int64)
        rows = torch.cat([none, *(self.rows_of(i) for i in todo)])
        self.require_room(file, part, len(rows) * self.piece // self.piece_rows, say)
        lines = [json.dumps(self.identity), *(f"{i} {digest}" for i, digest in sorted(digests.items()))]
        new = record.with_suffix(".new")
        new.write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.replace(new, record)
        advance = progress(f"decode {self.data.name}", len(self.data))
        advance(len(self.data) - len(rows))
        made = batches(self.images, self.piece_rows, rows) if todo else iter(())
        with open(record, "a", encoding="utf-8") as lines_of_record:
            for i, batch in zip(todo, made, strict=True):  # only the last piece is shorter, and it is the last one
                pixels = batch.contiguous().numpy().data
                file.seek(i * self.piece)
                file.write(pixels)
                file.flush()
                os.fsync(file.fileno())  # the pixels are on the disk before the record says so
                digests[i] = hashlib.sha256(pixels).hexdigest()
                lines_of_record.write(f"{i} {digests[i]}\n")
                lines_of_record.flush()
                advance(len(batch))
        file.truncate(self.size)
        file.flush()
        os.fsync(file.fileno())
        write_json(self.about, {**self.described, "sha256": [digests[i] for i in range(self.pieces)]})
        try:
            os.replace(part, self.path)
        except PermissionError:  # on some systems no file is replaced that is open
            if self.mapped() is None:
                raise
            part.unlink()
        record.unlink(missing_ok=True)

    def rows_of(self, piece: int) -> Tensor:
        """Return the rows of a piece, int64."""
        first = piece * self.piece_rows
        return torch.arange(first, min(first + self.piece_rows, len(self.data)))

    def recorded(self, record: Path) -> dict[int, str]:
        """Return the SHA-256 of the pieces that a record names; nothing if it is of another file."""
        try:
            head, *lines = record.read_text(encoding="utf-8").split("\n")
            if json.loads(head) != self.identity:
                return {}
        except (OSError, ValueError):
            return {}
        found = (re.fullmatch(r"(\d{1,9}) ([0-9a-f]{64})", line) for line in lines)  # a kill may cut the last line
        return {int(match[1]): match[2] for match in found if match and int(match[1]) < self.pieces}

    def verified(self, file: IO[bytes], digests: dict[int, str]) -> set[int]:
        """Return the pieces of a file that have these SHA-256."""
        good = set()
        for i, digest in digests.items():
            file.seek(i * self.piece)
            if hashlib.sha256(file.read(min(self.piece, self.size - i * self.piece))).hexdigest() == digest:
                good.add(i)
        return good

    def require_room(self, file: IO[bytes], part: Path, missing: int, say: Say) -> None:
        """Say what is made. Raises UserError, and leaves no new file, if the disk has less room than that takes."""
        folder, (_, c, h, w) = self.path.parent, self.images.shape
        free = shutil.disk_usage(folder).free
        of_it = "" if missing == self.size else f", of which {memory.in_words(self.size - missing)} are there"
        what = f"{len(self.data):,} images of {self.data.name} at {c}x{h}x{w} take {memory.in_words(self.size)}{of_it}"
        length = os.fstat(file.fileno()).st_size
        if min(missing, self.size - min(self.size, length)) > free:
            file.close()
            _remove_empty(part)
            raise UserError(
                f"{what}, and {folder} has {memory.in_words(free)} free: free some, set GANBENCH_DATA to another "
                "folder, or train at a smaller size. `ganbench doctor --clean` removes decoded images."
            )
        say(f"decodes once for training: {what}, in {folder} (free: {memory.in_words(free)}); "
            "`ganbench doctor --clean` removes them")


def _with(data: Dataset, images: Tensor) -> Decoded:
    known = {field.name: getattr(data, field.name) for field in fields(Dataset)}
    return Decoded(**{**known, "images": images}, of_files=(data.fingerprint, data.fingerprint_of))


def _limit() -> int:
    """Return the bytes up to which a set is kept in memory. Raises UserError if GANBENCH_IN_MEMORY is no number."""
    text = os.environ.get(LIMIT, "")
    if not text:
        here = os.environ.get("LOCAL_WORLD_SIZE", "1")  # processes of torchrun on this machine, each with a copy
        return memory.available() // 2 // max(1, int(here) if here.isdecimal() else 1)
    if not (text.isascii() and text.isdecimal()) or len(text) > 18:
        raise UserError(f"{LIMIT}={text[:20]} must be a number of bytes: correct it, or unset it.")
    return int(text)


def _read(images: Images, advance: Callable[[int], None]) -> Tensor:
    whole = torch.empty(images.shape, dtype=torch.uint8)
    done = 0
    for batch in batches(images, 256):
        whole[done : done + len(batch)] = batch
        done += len(batch)
        advance(len(batch))
    return whole


def _lock(file: IO[bytes], shared: bool = False) -> bool | None:
    """Lock a file until it is closed. Return False if another process holds it, and None where there are no locks.

    shared: wait for a process that holds it alone. A whole file is held alone only while it gets its name or loses it.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def _opened(path: Path) -> IO[bytes]:
    """Open a file for reading and writing as it is, or make it."""
    return open(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b")


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Return True if an open file still has this path: it may have been renamed or removed before it was locked."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _remove_empty(path: Path) -> None:
    with contextlib.suppress(OSError):
        if not path.stat().st_size:
            path.unlink()


def _why_kept(path: Path, whole: bool, used: float) -> str:
    """Return why a file must not be removed now, or ""."""
    try:
        with open(path, "rb") as file:
            if _lock(file) is False:
                return "in use" if whole else "being made"
    except OSError as error:
        return f"cannot be opened ({error.strerror})"
    return "" if whole or time.time() - used > LEFT_OVER_SECONDS else "unfinished, less than a day old"


def _described(path: Path) -> str:
    """Return what a file holds, for people: '1,200 images of cats:train at 3x64x64'."""
    if path.suffix != ".u8":
        return "unfinished"
    try:
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return f"{about['count']:,} images of {about['source']} at {_sizes(about['shape'][1:])}"
    except (OSError, ValueError, KeyError, TypeError):
        return "damaged"


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
