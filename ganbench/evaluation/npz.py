"""Arrays in an npz that may be larger than memory, with a checksum if one is wanted.

`write` takes arrays, and `Stream`s whose rows come piece by piece. `read` returns arrays of a file that `write` wrote
with a checksum, and refuses any other file. `pieces` returns the rows of one array piece by piece.
"""

import hashlib
import json
import math
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ganbench.base import memory
from ganbench.base.files import atomic_path

CHECKSUM = "checksum"
PIECE = 8 << 20  # bytes that are read at a time
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
BROKEN = (  # what zipfile and numpy raise for a damaged file
    OSError, EOFError, zipfile.BadZipFile, RuntimeError, NotImplementedError, ValueError, KeyError, TypeError,
    SyntaxError, OverflowError,
)

Array = NDArray[Any]


class _Hash(Protocol):
    def update(self, data: Any, /) -> None: ...


@dataclass(frozen=True)
class Stream:
    """An array whose rows arrive in pieces. shape, dtype: of all pieces together."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    pieces: Iterable[Array]


def write(path: Path, arrays: Mapping[str, Array | Stream], checksum: bool = False) -> None:
    """Write an npz, not compressed, atomically. checksum: add the SHA-256 of all arrays as a last one.

    Raises UserError if the file cannot be written, and ValueError if the pieces of a stream do not have its shape.
    """
    digest = hashlib.sha256()
    with atomic_path(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in arrays.items():
            _add(archive, name, array, digest)
        if checksum:
            _add(archive, CHECKSUM, np.array(digest.hexdigest()), hashlib.sha256())


def _add(archive: zipfile.ZipFile, name: str, array: Array | Stream, digest: _Hash) -> None:
    if not isinstance(array, Stream):
        array = Stream(array.shape, array.dtype, [array])
    expected, rows = array.shape[1:], 0
    member = zipfile.ZipInfo(f"{name}.npy")  # without the time: the same arrays give the same file
    with archive.open(member, "w", force_zip64=True) as file:
        header = {"descr": npy.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
        npy.write_array_header_1_0(file, header)
        digest.update(_identity(name, array.dtype, array.shape))
        for piece in array.pieces:
            if piece.dtype != array.dtype or piece.shape[1:] != expected:
                raise ValueError(f"{name} of {array.dtype} {array.shape} cannot hold {piece.dtype} {piece.shape}")
            data = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
            file.write(data)
            digest.update(data)
            rows += len(piece) if piece.ndim else 0
    if array.shape and rows != array.shape[0]:
        raise ValueError(f"{name} has {rows} rows, not {array.shape[0]}")


def read(path: Path, leave: Collection[str] = ()) -> dict[str, Array]:
    """Return the arrays of an npz with a checksum. leave: arrays that are checked and not returned.

    Raises UserError if they do not fit into memory, and one of BROKEN if the file is damaged or has no checksum.
    """
    digest = hashlib.sha256()
    found: dict[str, Array] = {}
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        sizes = [m.file_size for m in members if m.filename.removesuffix(".npy") not in leave]
        memory.require(sum(sizes), f"{path}: its arrays")
        for member in members:
            name = member.filename.removesuffix(".npy")
            with archive.open(member) as file:
                shape, dtype = _header(file, member)
                if name != CHECKSUM:
                    digest.update(_identity(name, dtype, shape))
                array = None if name in leave else np.empty(shape, dtype)
                into = None if array is None else array.reshape(-1).view(np.uint8)
                at = 0
                while data := file.read(PIECE):
                    if name != CHECKSUM:
                        digest.update(data)
                    if into is not None:
                        into[at : at + len(data)] = np.frombuffer(data, np.uint8)
                    at += len(data)
            if array is not None:
                found[name] = array
    if CHECKSUM not in found:
        raise ValueError("it has no checksum")
    if str(found.pop(CHECKSUM)) != digest.hexdigest():
        raise ValueError("its checksum is another")
    return found


def read_text(path: Path, name: str) -> str:
    """Return a text from an npz without reading the rest. Raises one of BROKEN if there is none."""
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{name}.npy")
        with archive.open(member) as file:
            shape, dtype = _header(file, member)
            if shape != () or dtype.kind != "U" or dtype.itemsize > PIECE:
                raise ValueError(f"'{name}' is no text")
            return str(np.frombuffer(file.read(), dtype)[0])


def pieces(path: Path, name: str) -> Iterator[Array]:
    """Yield the rows of an array of an npz. Raises one of BROKEN if the file is damaged."""
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{name}.npy")
        with archive.open(member) as file:
            shape, dtype = _header(file, member)
            row = max(1, dtype.itemsize * math.prod(shape[1:]))
            while data := file.read(max(1, PIECE // row) * row):
                yield np.frombuffer(data, dtype).reshape(-1, *shape[1:])


def _header(file: IO[bytes], member: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read shape and dtype of an array. Raises ValueError unless its values take exactly the rest of the member."""
    version = npy.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"version {version} of its array format is not known")
    shape, fortran, dtype = HEADERS[version](file)
    size = dtype.itemsize * math.prod(shape)
    if dtype.hasobject or fortran or member.compress_type != zipfile.ZIP_STORED or dtype.itemsize == 0:
        raise ValueError(f"'{member.filename}' is not as it was written")
    if member.file_size - file.tell() != size:
        raise ValueError(f"'{member.filename}' is cut")
    return shape, dtype


def _identity(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    return json.dumps([name, dtype.str, list(shape)]).encode()
