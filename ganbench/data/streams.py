"""Sets of images that may be larger than memory: `Images`, and the kinds of it.

A set has one shape and a length, gives batches in order, and few rows at random. A plain tensor, uint8 N x C x H x W,
is a set in memory: both have `len`, `shape`, `split` and `[rows]`, and `batches` serves both.

    for batch in batches(images, 64): ...           # all images, once, in order
    for batch in batches(images, 64, slice(0, 640)): ...
    images[torch.tensor([3, 5])]                    # few rows

EncodedImages  image files in folders and zips, decoded in parallel
ArrayFile      an array in a file that is not compressed
Made           images that a function makes block by block: generators
Chosen         some rows of another set
Changed        a set each image of which goes through a function
Partial        the pixels of some rows alone, for metrics that said which rows they look at
"""

import copy
import hashlib
import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ganbench.base.errors import UserError
from ganbench.data.decoders import decode_files
from ganbench.data.decoding import VERSION, Array, Decoding, File, decode
from ganbench.data.profiles import has_other_profile

IN_MEMORY = 64 << 20  # bytes of pixels; smaller sets are kept once they are read
FEW = 256  # rows that are decoded in this process, since starting others takes longer

Rows = slice | Tensor


class Images(ABC):
    """A set of images of one shape. shape: (N, C, H, W)."""

    shape: torch.Size

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def batches(self, size: int, rows: Rows | None = None) -> Iterator[Tensor]:
        """Yield images in the order of `rows`, uint8 n x C x H x W, contiguous; n is `size` but in the last batch.

        rows: a slice or int64 rows; None takes all. Raises UserError for an image that cannot be read.
        """

    def __getitem__(self, rows: Rows | int | tuple[Any, ...]) -> Tensor:
        """Return rows, uint8 n x C x H x W, or one image for a whole number. A tuple indexes the other axes too."""
        if isinstance(rows, tuple):
            return self[rows[0]][(slice(None), *rows[1:]) if not isinstance(rows[0], int) else rows[1:]]
        if isinstance(rows, int):
            return self[torch.tensor([range(len(self))[rows]])][0]
        parts = list(self.batches(max(1, IN_MEMORY // max(1, self.shape[1:].numel())), rows))
        return torch.cat(parts) if parts else torch.empty(0, *self.shape[1:], dtype=torch.uint8)

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield all images in batches, as `Tensor.split` does."""
        return self.batches(size)


def batches(images: Tensor | Images, size: int, rows: Rows | None = None) -> Iterator[Tensor]:
    """Yield the images of a set, in memory or not, in batches of `size` (see `Images.batches`)."""
    if isinstance(images, Images):
        yield from images.batches(size, rows)
        return
    if rows is None or isinstance(rows, slice):
        chosen = images if rows is None else images[rows]
        yield from chosen.split(size) if len(chosen) else ()
        return
    for some in rows.split(size) if len(rows) else ():
        yield images[some]


def chosen(images: Tensor | Images, rows: Rows) -> Tensor | Images:
    """Return the set of some rows: a tensor of a tensor, and otherwise a set that reads nothing now."""
    if isinstance(images, Tensor):
        return images[rows]
    if isinstance(images, EncodedImages):
        return images.chosen(rows)
    return Chosen(images, numbers(rows, len(images)))


def numbers(rows: Rows | None, n: int) -> Tensor:
    """Return the numbers of rows among n, int64."""
    if isinstance(rows, Tensor):
        return rows
    return torch.arange(n)[rows or slice(None)]


def rebatched(chunks: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    """Yield the rows of chunks of any lengths in batches of `size`; the last one may have fewer."""
    parts: list[Tensor] = []
    held = 0
    for chunk in chunks:
        while len(chunk):
            take = chunk[: size - held]
            parts.append(take)
            held, chunk = held + len(take), chunk[len(take) :]
            if held == size:
                yield parts[0] if len(parts) == 1 else torch.cat(parts)
                parts, held = [], 0
    if parts:
        yield parts[0] if len(parts) == 1 else torch.cat(parts)


class EncodedImages(Images):
    """Image files, decoded when they are asked for, in parallel.

    files: in their order; not empty. how: how to decode them. name, progress: for the progress of reading.
    The shape is that of the first file, which is decoded when the set is made; the others are held against it when they
    are read. A set of at most IN_MEMORY bytes is kept once it has been read as a whole. other_profiles: number of
    images with a colour profile other than sRGB, once there is a fingerprint.
    Raises UserError if the first file cannot be decoded.
    """

    def __init__(
        self, files: Sequence[File], how: Decoding, name: str = "images",
        progress: Callable[[str, int], Callable[[int], None]] | None = None,
    ):
        self.files, self.how, self.name, self.progress = files, how, name, progress
        h, w, c = decode(files[0].read(), files[0].name, how).shape
        self.shape = torch.Size((len(files), c, h, w))
        self._kept: Tensor | None = None
        self._digest = ""
        self.other_profiles = 0

    def batches(self, size: int, rows: Rows | None = None) -> Iterator[Tensor]:
        if self._kept is not None:
            return batches(self._kept, size, rows)
        if self.shape.numel() <= IN_MEMORY and (rows is None or rows == slice(None)):
            return self._keeping(size)
        return rebatched(self._decoded(rows), size)

    def _decoded(self, rows: Rows | None) -> Iterator[Tensor]:
        if rows is None or isinstance(rows, slice):
            files = self.files[rows or slice(None)]
        else:
            files = [self.files[i] for i in rows.tolist()]
        _, c, h, w = self.shape
        return decode_files(files, self.how, (c, h, w), self.files[0].name, 0 if len(files) < FEW else None)

    def _keeping(self, size: int) -> Iterator[Tensor]:
        parts: list[Tensor] = []

        def seen() -> Iterator[Tensor]:
            for part in self._decoded(None):
                parts.append(part)
                yield part

        yield from rebatched(seen(), size)
        self._kept = torch.cat(parts)

    def chosen(self, rows: Rows) -> "EncodedImages":
        """Return the set of some of the files. Nothing is decoded."""
        some = copy.copy(self)
        some.files = self.files[rows] if isinstance(rows, slice) else [self.files[i] for i in rows.tolist()]
        some.shape = torch.Size((len(some.files), *self.shape[1:]))
        some._digest = ""
        some._kept = None if self._kept is None else self._kept[rows]
        return some

    def fingerprint(self) -> str:
        """Return the SHA-256 of the encoded bytes of all files, in their order, and of how they are decoded.

        Nothing is decoded: files are read at the speed of the disk, once. `other_profiles` is counted meanwhile.
        """
        if not self._digest:
            advance = self.progress(f"read {self.name}", len(self.files)) if self.progress else lambda n: None
            digest = hashlib.sha256(f"encoded images, decoder {VERSION}, {self.how}".encode())
            archives: dict[str, zipfile.ZipFile] = {}
            self.other_profiles = 0
            for count, file in enumerate(self.files, 1):
                data = file.read(archives)
                digest.update(hashlib.sha256(data).digest())
                self.other_profiles += has_other_profile(data)
                if count % 64 == 0:
                    advance(64)
            advance(len(self.files) % 64)
            for archive in archives.values():
                archive.close()
            self._digest = digest.hexdigest()
        return self._digest


class ArrayFile(Images):
    """A uint8 array in a file, not compressed, from a byte on: N x H x W x C, or N x C x H x W.

    It is read and not mapped: a file that is cut while it is used is an error and no crash. file: open for reading; it
    is closed with this object. name: for messages. Raises UserError if the file ends too early.
    """

    def __init__(self, file: object, offset: int, shape: Sequence[int], channels_last: bool, name: str):
        self.file, self.offset, self.channels_last, self.name = file, offset, channels_last, name
        n, *rest = shape
        self.stored = tuple(rest)
        self.shape = torch.Size((n, rest[2], rest[0], rest[1]) if channels_last else shape)
        self.row = int(np.prod(rest))

    def batches(self, size: int, rows: Rows | None = None) -> Iterator[Tensor]:
        for some in numbers(rows, len(self)).split(size):
            if not len(some):
                return
            first, count = int(some[0]), len(some)
            if torch.equal(some, torch.arange(first, first + count)):
                array = self._read(first, count)
            else:
                array = np.concatenate([self._read(i, 1) for i in some.tolist()])
            if self.channels_last:
                array = np.ascontiguousarray(array.transpose(0, 3, 1, 2))
            yield torch.from_numpy(array)

    def _read(self, first: int, count: int) -> Array:
        array = np.empty((count, *self.stored), np.uint8)
        view, at = array.data.cast("B"), self.offset + first * self.row
        while len(view):
            try:
                done = os.preadv(self.file.fileno(), [view], at)  # type: ignore[attr-defined]
            except OSError as error:
                raise UserError(f"cannot read {self.name}: {error.strerror}. Check the disk.") from error
            if not done:
                raise UserError(f"{self.name} was cut short while it was read: write it again.")
            view, at = view[done:], at + done
        return array


class Made(Images):
    """Images that are made block by block, seen, and made again when they are asked for again.

    block(index) returns the images of rows index * `size` onwards, uint8, always the same ones. Blocks are asked for in
    ascending order within a pass, so that a generator of random numbers can go on from the last one.
    """

    def __init__(self, shape: Sequence[int], size: int, block: Callable[[int], Tensor]):
        self.shape, self.size, self.block = torch.Size(shape), size, block

    def batches(self, size: int, rows: Rows | None = None) -> Iterator[Tensor]:
        return rebatched(self._in_blocks(rows), size)

    def _in_blocks(self, rows: Rows | None) -> Iterator[Tensor]:
        chosen = numbers(rows, len(self))
        if not len(chosen):
            return
        order = chosen.argsort(stable=True)
        if not torch.equal(order, torch.arange(len(order))):  # blocks in ascending order, then the rows in theirs
            made = torch.cat(list(self._in_blocks(chosen[order])))
            yield made[order.argsort()]
            return
        of_block = chosen // self.size
        for index in of_block.unique().tolist():
            wanted = chosen[of_block == index] - index * self.size
            images = self.block(index)
            yield images if torch.equal(wanted, torch.arange(len(images))) else images[wanted]


class Chosen(Images):
    """Some rows of another set, int64, in their order."""

    def __init__(self, of: Images, rows: Tensor):
        self.of, self.rows = of, rows
        self.shape = torch.Size((len(rows), *of.shape[1:]))

    def batches(self, size: int, rows: Rows | None = None) -> Iterator[Tensor]:
        return self.of.batches(size, self.rows if rows is None else self.rows[rows])


class Changed(Images):
    """Another set with every image, uint8 C x H x W, passed through a function, which gives all the same shape."""

    def __init__(self, of: Images, change: Callable[[Tensor], Tensor]):
        self.of, self.change = of, change
        self.shape = torch.Size((len(of), *change(torch.zeros(of.shape[1:], dtype=torch.uint8)).shape))

    def batches(self, size: int, rows: Rows | None = None) -> Iterator[Tensor]:
        for batch in self.of.batches(size, rows):
            yield torch.stack([self.change(image) for image in batch])


class Partial(Images):
    """The pixels of some rows of a set: those that were seen in one pass over it.

    rows: int64, sorted, without repetitions. pixels: uint8, one image a row. n: images in the whole set.
    """

    def __init__(self, n: int, rows: Tensor, pixels: Tensor):
        self.rows, self.pixels = rows, pixels
        self.shape = torch.Size((n, *pixels.shape[1:]))

    def batches(self, size: int, rows: Rows | None = None) -> Iterator[Tensor]:
        """Yield images. Raises IndexError for rows that this set does not have."""
        chosen = numbers(rows, len(self))
        at = torch.searchsorted(self.rows, chosen)
        if not torch.equal(self.rows[at.clamp(max=len(self.rows) - 1)] if len(self.rows) else at - 1, chosen):
            raise IndexError("a metric looks at images that it did not announce: see Protocol.rows")
        return batches(self.pixels, size, at)


def fingerprint_of_files(images: EncodedImages, labels: Tensor | None) -> str:
    """Return the SHA-256 of encoded images and of their labels, as 64 hexadecimal digits."""
    digest = hashlib.sha256(images.fingerprint().encode())
    if labels is not None:
        digest.update(labels.contiguous().numpy().data)
    return digest.hexdigest()


def fingerprint_of_pixels(images: Tensor | Images, advance: Callable[[int], None] = lambda n: None) -> str:
    """Return the SHA-256 of shape and pixels, as 64 hexadecimal digits."""
    digest = hashlib.sha256(repr(tuple(images.shape)).encode())
    for batch in batches(images, max(1, IN_MEMORY // max(1, images.shape[1:].numel()))):
        digest.update(batch.contiguous().numpy().data)
        advance(len(batch))
    return digest.hexdigest()


def spooled(parts: Iterator[Array], folder: Path | None, name: str) -> tuple[object, int]:
    """Write arrays one after the other to a temporary file without a name; return it and the number of rows.

    folder: where the file lies while it is open; None leaves it to the system. Raises UserError if the disk is full.
    """
    import tempfile

    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as the set that reads it
    rows = 0
    try:
        for part in parts:
            file.write(np.ascontiguousarray(part).data)
            rows += len(part)
        file.flush()
    except OSError as error:
        file.close()
        raise UserError(
            f"{name} needs room for its pixels in {tempfile.gettempdir()}: {error.strerror}. Free some, or set TMPDIR."
        ) from error
    return file, rows
