"""Decode one image file into an array, without torch: a process that only decodes starts in a fifth of a second.

An image is oriented as its EXIF data say, and its first frame must be its only one. A colour profile is ignored, as in
every other evaluation tool. Nothing else that could be done in several ways is done unasked: alpha is refused unless
`Decoding.alpha` names a background, and more than 8 bits per channel are refused.
"""

import io
import os
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ganbench.base.errors import UserError
from ganbench.data.resizing import Resize

VERSION = 2  # part of the fingerprint of files: raise it whenever the pixels of a file would change
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff", ".gif",
    ".tga", ".jp2", ".j2k", ".avif", ".apng",
)
LARGEST_FILE = 1 << 30  # bytes of one encoded image; what claims to be more is no image of a set
CHANNELS = {"rgb": "RGB", "l": "L"}
ALPHA = {"white": 255, "black": 0}

# Errors of Pillow for a damaged or hostile file, and of zipfile for a damaged, encrypted or unknown member.
UNREADABLE = (
    UnidentifiedImageError, OSError, SyntaxError, ValueError, TypeError, struct.error, EOFError, MemoryError,
    OverflowError, Image.DecompressionBombError, zlib.error, IndexError, KeyError,
)
BROKEN_ARCHIVE = (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, ValueError)

Array = NDArray[np.uint8]


@dataclass(frozen=True)
class Decoding:
    """How files become images of one kind.

    resize: applied to every image. channels: "rgb" or "l" converts every image; None keeps grey grey and colour colour.
    alpha: "white" or "black" flattens onto that background; None refuses alpha.
    """

    resize: Resize | None = None
    channels: str | None = None
    alpha: str | None = None

    def __str__(self) -> str:
        """Return what distinguishes this decoding from the default one, "" for the default: part of a fingerprint."""
        named = (("resize", self.resize), ("channels", self.channels), ("alpha", self.alpha))
        return ",".join(f"{name}={value}" for name, value in named if value is not None)


@dataclass(frozen=True)
class File:
    """One encoded image: a file, or a member of a zip.

    size and time: as listed, in bytes and nanoseconds, so that a file which changes while it is read is noticed.
    """

    path: str
    member: str | None
    size: int
    time: int

    @property
    def name(self) -> str:
        """The name for messages."""
        return self.path if self.member is None else f"{self.path}/{self.member}"

    def read(self, archives: dict[str, zipfile.ZipFile] | None = None) -> bytes:
        """Return the encoded bytes. archives: open zips by path, to be shared by several reads.

        Raises UserError if the file is missing, no regular file, too large or damaged, or has changed since.
        """
        if self.member is not None:
            return self._read_member({} if archives is None else archives, self.member)
        try:
            # A FIFO or a device in the place of a file must not be waited for.
            descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
            with open(descriptor, "rb", buffering=0) as file:
                before = os.fstat(descriptor)
                require_regular(before, self.name)
                data = file.read(before.st_size + 1) if before.st_size else b""
                while 0 < len(data) <= before.st_size and (more := file.read(before.st_size + 1 - len(data))):
                    data += more
                after = os.fstat(descriptor)
        except OSError as error:
            raise UserError(f"cannot read {self.name}: {error.strerror}. {_advice(error)}") from error
        if len(data) != self.size or (after.st_size, after.st_mtime_ns) != (self.size, self.time):
            raise UserError(f"{self.name} changed while it was read: start again when nothing writes to it.")
        return data

    def _read_member(self, archives: dict[str, zipfile.ZipFile], member: str) -> bytes:
        try:
            if self.path not in archives:
                archives[self.path] = zipfile.ZipFile(self.path)
            if os.stat(self.path).st_mtime_ns != self.time:
                raise KeyError(member)
            return archives[self.path].read(member)
        except KeyError as error:
            raise UserError(f"{self.path} changed while it was read: start again when nothing writes to it.") from error
        except BROKEN_ARCHIVE as error:
            raise UserError(
                f"{self.path} cannot be read as a zip ({reason(error)}): check the path, or pack it again."
            ) from error


def require_regular(found: os.stat_result, name: str) -> None:
    """Raise UserError unless a file is a regular file of a size that an image may have."""
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{name} is no regular file: remove it from the images.")
    if found.st_size > LARGEST_FILE:
        raise UserError(f"{name} has {found.st_size:,} bytes, which no image of a set has: remove or replace it.")


def reason(error: BaseException) -> str:
    """Return an error in a few words, without the path that an OSError repeats."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _advice(error: OSError) -> str:
    return "You may not read it: change its permissions." if isinstance(error, PermissionError) else "Check the path."


def decode(data: bytes | Path | Any, name: str, how: Decoding = Decoding()) -> Array:
    """Decode one image file into a contiguous uint8 array H x W x C, with C = 1 for grey images and 3 for colour.

    data: the encoded bytes, a path or a binary file object. name: the file's name, for error messages.
    Raises UserError if the file is damaged, has several frames, has an alpha channel that `how` does not flatten, or
    has more than 8 bits per channel. Such a file can be read in several ways, and the choice would change a metric
    without notice.
    """
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as file:
            if ";16" in str(file.tile):  # Pillow would cut 16-bit colour to 8 bits without a warning
                raise UserError(f"{name} has more than 8 bits per channel ({file.mode}): convert it to 8 bits first.")
            if (frames := getattr(file, "n_frames", 1)) > 1:
                raise UserError(f"{name} has {frames} frames: save each as a file of its own, or remove it.")
            file.load()
            image: Image.Image = file
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                image = ImageOps.exif_transpose(image)
            image = _eight_bits(_without_alpha(image, name, how.alpha), name)
            if how.channels is not None and image.mode != CHANNELS[how.channels]:
                image = image.convert(CHANNELS[how.channels])
            array = np.array(image)
    except UNREADABLE as error:
        raise UserError(f"{name} is not a readable image ({reason(error)}): remove or replace it.") from error
    if array.ndim == 2:
        array = array[:, :, None]
    return array if how.resize is None else how.resize.array(array)


def _without_alpha(image: Image.Image, name: str, alpha: str | None) -> Image.Image:
    if image.mode not in ("RGBA", "LA", "PA", "RGBa", "La") and "transparency" not in image.info:
        return image
    if alpha is None:
        raise UserError(
            f"{name} has an alpha channel ({image.mode}): flatten it onto a background first, or use --alpha."
        )
    grey = image.mode in ("L", "LA", "La")
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, (ALPHA[alpha],) * 3 + (255,))
    return Image.alpha_composite(background, image).convert("L" if grey else "RGB")


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        raise UserError(f"{name} has more than 8 bits per channel ({image.mode}): convert it to 8 bits first.")
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")


def size_in_words(shape: tuple[int, ...]) -> str:
    """Return the size of an array H x W x C for a message: '28x28 with 1 channel'."""
    h, w, c = shape
    return f"{w}x{h} with {c} channel{'s' if c > 1 else ''}"


def decode_all(
    files: list[File], how: Decoding, shape: tuple[int, ...], first: str, out: Array,
    archives: dict[str, zipfile.ZipFile],
) -> None:
    """Decode files into `out`, uint8 N x C x H x W.

    shape: H, W and C that every image must have. first: the file whose shape that is, for the message. archives: see
    `File.read`. Raises UserError for the first file that is damaged or of another size or number of channels.
    """
    for i, file in enumerate(files):
        array = decode(file.read(archives), file.name, how)
        if array.shape != shape:
            remedy = "Convert them first, or use --channels." if array.shape[2] != shape[2] else (
                "Resize them, or use --resize.")
            raise UserError(
                f"{file.name} is {size_in_words(array.shape)} but {first} is {size_in_words(shape)}: metrics need "
                f"images of one size, all grey or all colour. {remedy}"
            )
        out[i] = array.transpose(2, 0, 1)
