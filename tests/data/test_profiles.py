"""Colour profiles: counted in result and stderr if they are not those of sRGB, and never applied."""

import io
import json
import struct
import zipfile
from functools import partial

import numpy as np
import pytest
from PIL import Image, ImageCms

from ganbench.data.decoding import decode
from ganbench.data.profiles import has_other_profile

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
P3 = ((0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1572, 0.0666, 0.7841))  # X, Y, Z of red, green, blue
OF_SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
IMAGE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def fixed(x):
    return struct.pack(">i", round(x * 65536))


def profile(primaries, gamma=None):
    """An ICC profile of three primaries. gamma: None for the curve of sRGB."""
    curve = b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + b"".join(map(fixed, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92,
                                                                             0.04045)))
    if gamma is not None:
        curve = b"para\0\0\0\0" + struct.pack(">HH", 0, 0) + fixed(gamma)
    xyz = [b"XYZ \0\0\0\0" + b"".join(map(fixed, v)) for v in ((0.9642, 1.0, 0.8249), *primaries)]
    parts = [*zip((b"wtpt", b"rXYZ", b"gXYZ", b"bXYZ"), xyz, strict=True),
             *((name, curve) for name in (b"rTRC", b"gTRC", b"bTRC"))]
    at = 128 + 4 + 12 * len(parts)
    tags, body = struct.pack(">I", len(parts)), b""
    for name, data in parts:
        data += b"\0" * (-len(data) % 4)
        tags += name + struct.pack(">II", at + len(body), len(data))
        body += data
    head = bytearray(128)
    head[:4] = struct.pack(">I", at + len(body))
    head[8:24] = bytes.fromhex("04300000") + b"mntrRGB XYZ "[:12]
    head[36:40] = b"acsp"
    head[68:80] = b"".join(map(fixed, (0.9642, 1.0, 0.8249)))
    return bytes(head) + tags + body


def encoded(form, icc=None, mode="RGB"):
    out = io.BytesIO()
    Image.fromarray(IMAGE).convert(mode).save(out, form, **({"icc_profile": icc} if icc else {}))
    return out.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    ("icc", "other"),
    [
        (None, False),
        (SRGB, False),
        (profile(OF_SRGB), False),  # by its colours, whatever its name
        (profile(P3), True),
        (profile(OF_SRGB, 1.8), True),
        (b"no profile", True),
    ],
    ids=["none", "srgb", "primaries", "p3", "gamma", "damaged"],
)
def test_a_profile_is_another_one_if_it_changes_colours(form, icc, other):
    assert has_other_profile(encoded(form, icc)) is other


def test_what_has_no_profile_or_is_no_image_has_no_other_one():
    for form in ("BMP", "GIF", "PPM"):
        assert not has_other_profile(encoded(form))
    whole = encoded("JPEG", profile(P3))
    assert has_other_profile(whole)
    for data in (b"", b"\xff\xd8", whole[:10], whole[:30], encoded("PNG", SRGB)[:20], b"RIFF", b"text", b"\x89PNG"):
        assert not has_other_profile(data)


def test_a_segment_before_the_profile_hides_nothing():
    exif = Image.Exif()
    exif[0x010E] = "ICC_PROFILE " * 50 + "IDAT iCCP"
    save = partial(Image.fromarray(IMAGE).save, format="JPEG", exif=exif)
    for icc in (None, profile(P3)):
        out = io.BytesIO()
        save(out, **({"icc_profile": icc} if icc else {}))
        assert has_other_profile(out.getvalue()) is (icc is not None)


def test_pixels_are_as_they_are_in_the_file():
    plain, other = (decode(encoded("PNG", icc), "x.png") for icc in (None, profile(P3)))
    assert np.array_equal(plain, other)


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_stderr_and_the_result_say_how_many_images_have_one(ganbench, place, packed):
    (place / "set").mkdir()
    for i in range(12):
        icc = profile(P3) if i < 5 else SRGB if i < 8 else None
        (place / f"set/{i:02}.png").write_bytes(encoded("PNG", icc))
    source = "set"
    if packed:
        with zipfile.ZipFile("set.zip", "w") as archive:
            for file in sorted((place / "set").iterdir()):
                archive.write(file, file.name)
        source = "set.zip"
    for again in (False, True):  # with cached features too
        done = ganbench("evaluate", "--images", source, "--reference", source, "--metrics", "fd_pixels", "--json")
        assert done.code == 0, done.err
        assert "colour profiles other than sRGB are ignored: 5 of 12 images have one" in done.err, again
        result = json.loads(done.out)
        assert result["fake"]["other_profiles"] == result["reference"]["other_profiles"] == 5
    for file in sorted((place / "set").iterdir())[:5]:
        file.unlink()
    done = ganbench("evaluate", "--images", "set", "--reference", "set", "--metrics", "fd_pixels", "--json")
    assert "profile" not in done.err + done.out
