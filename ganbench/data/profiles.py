"""Colour profiles of image files: they are not applied, as in every other evaluation tool, and so they are counted.

`has_other_profile` looks at encoded bytes without decoding them: at the few bytes before the pixels of a JPEG, PNG or
WebP file. Only a file that has a profile is opened.
"""

import functools
import io
import struct

from PIL import Image

SAME = 2  # grey levels by which a profile may differ from sRGB: two roundings
STEPS = (0, 32, 64, 96, 128, 160, 192, 224, 255)  # of each channel that is compared
SRGB = (b"sRGB", "sRGB".encode("utf-16-be"))  # in the description of a profile, if Pillow has no ImageCms


def has_other_profile(data: bytes) -> bool:
    """Return True if an encoded image has an ICC profile that changes colours: one that is not that of sRGB.

    A profile that cannot be read counts as another one. A file that is no image has none: decoding says what it is.
    """
    if not _may_have_profile(data):
        return False
    try:
        with Image.open(io.BytesIO(data)) as file:
            profile = file.info.get("icc_profile")
            mode = "L" if file.mode in ("1", "L", "LA") else "RGB"
    except Exception:  # Pillow raises errors of many types for damaged files
        return False
    return bool(profile) and not _is_srgb(profile, mode)


def _may_have_profile(data: bytes) -> bool:
    """False if the bytes before the pixels have no profile; True for kinds of files whose bytes are not looked at."""
    if data.startswith(b"\x89PNG"):
        return data.find(b"iCCP", 8, data.find(b"IDAT", 8)) >= 0
    if data.startswith(b"\xff\xd8"):
        return _jpeg_has_profile(data)
    if data.startswith(b"RIFF"):
        return data[12:16] == b"VP8X" and len(data) > 20 and bool(data[20] & 0x20)
    return not data.startswith((b"GIF8", b"BM", b"P"))  # which have none


def _jpeg_has_profile(data: bytes) -> bool:
    """Look at the segments of a JPEG file up to its pixels."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, size = struct.unpack_from(">BH", data, at + 1)
        if marker == 0xDA:  # the pixels
            return False
        if marker == 0xE2 and data.startswith(b"ICC_PROFILE\0", at + 4):
            return True
        at += 2 + size
    return False


@functools.lru_cache(maxsize=64)
def _is_srgb(profile: bytes, mode: str) -> bool:
    """True if colours of that mode, "L" or "RGB", are those of sRGB but for rounding."""
    try:
        from PIL import ImageCms
    except ImportError:
        return any(name in profile for name in SRGB)
    channels = len(mode)
    if channels == 1:
        colours = Image.new(mode, (len(STEPS), 1))
        colours.putdata(STEPS)
    else:
        colours = Image.new(mode, (len(STEPS) ** 3, 1))
        colours.putdata([(r, g, b) for r in STEPS for g in STEPS for b in STEPS])
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(colours, own, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return False
    assert converted is not None
    before, after = colours.convert("RGB").tobytes(), converted.tobytes()
    return all(abs(a - b) <= SAME for a, b in zip(before, after, strict=True))
