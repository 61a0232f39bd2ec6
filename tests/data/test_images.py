"""Images: conversion to and from float, files that are read or refused, grids."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ganbench.base.errors import UserError
from ganbench.data.images import check, decode, grid, save_png, to_float, to_rgb, to_uint8

EVERY_VALUE = torch.arange(256, dtype=torch.uint8)


def test_all_256_levels_are_the_same_after_conversion_to_float_and_back():
    x = to_float(EVERY_VALUE)
    assert x.dtype == torch.float32
    assert (x[0].item(), x[255].item()) == (-1.0, 1.0)
    assert torch.equal(to_uint8(x), EVERY_VALUE)
    assert torch.equal(to_uint8(x.double()), EVERY_VALUE)


@given(st.floats(-1.5, 1.5, width=32))
@settings(max_examples=300, deadline=None)
def test_a_float_becomes_the_floor_of_127_5_x_plus_128_within_0_to_255(x):
    # Computed in float32, as in the code of StyleGAN.
    expected = int(np.clip(np.floor(np.float32(x) * np.float32(127.5) + np.float32(128)), 0, 255))
    assert to_uint8(torch.tensor([x])).item() == expected


def test_values_between_two_levels_are_rounded_without_bias():
    x = (torch.rand(200_000, generator=torch.Generator().manual_seed(0)) * 2 - 1) * 0.99
    error = to_float(to_uint8(x)) - x
    # Uniform rounding errors of one step, 2 / 255: the mean of 200,000 is known to 5e-6. Truncation would give -4e-3.
    assert abs(error.mean()) < 2e-5
    assert error.abs().max() <= 1 / 255 + 1e-6


def test_values_beyond_the_range_and_infinities_are_clamped():
    x = torch.tensor([-2.0, -1.0001, 1.0001, 7.0, float("inf"), -float("inf")])
    assert to_uint8(x).tolist() == [0, 0, 255, 255, 255, 0]


def test_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(torch.tensor([0.0, float("nan")]))


def test_conversion_does_not_change_its_input():
    x = torch.linspace(-2, 2, 9)
    before = x.clone()
    to_uint8(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("channels", [1, 3])
def test_uint8_images_of_one_or_three_channels_are_accepted(channels):
    images = torch.zeros(2, channels, 4, 5, dtype=torch.uint8)
    assert check(images) is images


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 4, 4),
        torch.zeros(3, 4, 4, dtype=torch.uint8),
        torch.zeros(2, 4, 4, 4, dtype=torch.uint8),
        torch.zeros(2, 4, 4, 3, dtype=torch.uint8),
    ],
    ids=["float", "no batch", "four channels", "channels last"],
)
def test_other_tensors_are_refused_with_their_dtype_and_shape(images):
    with pytest.raises(TypeError, match=rf"not {images.dtype} \({images.shape[0]}, "):
        check(images)


def test_one_channel_is_repeated_and_three_are_unchanged():
    grey = torch.arange(8, dtype=torch.uint8).view(2, 1, 2, 2)
    assert torch.equal(to_rgb(grey), grey.repeat(1, 3, 1, 1))
    rgb = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    assert to_rgb(rgb) is rgb


def stored(array, form="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, format=form, **options)
    file.seek(0)
    return file


def noise(*shape):
    return np.random.RandomState(0).randint(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_rgb_files_are_read_exactly(form):
    array = noise(5, 7, 3)
    image = decode(stored(array, form, **({"lossless": True} if form == "WEBP" else {})), "x")
    assert image.dtype == torch.uint8
    assert np.array_equal(image.permute(1, 2, 0).numpy(), array)


def test_a_grey_file_has_one_channel_and_a_path_is_read_like_a_file_object(tmp_path):
    array = noise(6, 4)
    (tmp_path / "grey.png").write_bytes(stored(array).getvalue())
    assert np.array_equal(decode(tmp_path / "grey.png", "grey.png")[0].numpy(), array)


def test_a_palette_is_read_as_its_colours_and_black_and_white_as_grey():
    colours = np.array([[[255, 0, 0], [0, 128, 0]]], dtype=np.uint8)
    palette = io.BytesIO()
    Image.fromarray(colours).quantize(4).save(palette, format="PNG")
    assert np.array_equal(decode(palette, "x").permute(1, 2, 0).numpy(), colours)
    bits = io.BytesIO()
    Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1").save(bits, format="PNG")
    assert decode(bits, "x").tolist() == [[[0, 255]]]


def test_an_alpha_channel_is_refused_with_the_name_of_the_file():
    with pytest.raises(UserError, match=r"cat\.png has an alpha channel \(RGBA\)"):
        decode(stored(noise(4, 4, 4)), "cat.png")
    with pytest.raises(UserError, match=r"cat\.png has an alpha channel \(LA\)"):
        decode(stored(noise(4, 4, 2)), "cat.png")


def test_a_transparent_colour_is_refused_with_the_name_of_the_file():
    with pytest.raises(UserError, match=r"cat\.png has an alpha channel"):
        decode(stored(noise(4, 4, 3), transparency=(1, 2, 3)), "cat.png")


def test_sixteen_bit_colour_is_refused_with_the_name_of_the_file_and_not_cut_to_eight():
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)  # 2 x 1 pixels, 16 bits, RGB
    pixels = zlib.compress(b"\0" + np.arange(6, dtype=">u2").tobytes())
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    with pytest.raises(UserError, match=r"deep\.png has more than 8 bits"):
        decode(io.BytesIO(png), "deep.png")


@pytest.mark.parametrize(("dtype", "form"), [(np.uint16, "PNG"), (np.int32, "TIFF"), (np.float32, "TIFF")])
def test_more_than_eight_bits_a_channel_are_refused_with_the_name_of_the_file(dtype, form):
    with pytest.raises(UserError, match="deep has more than 8 bits per channel"):
        decode(stored(noise(4, 4).astype(dtype) * 100, form), "deep")


@pytest.mark.parametrize("keep", [0, 20, 60, 200])
def test_a_broken_file_is_refused_with_the_name_of_the_file(keep):
    whole = stored(noise(16, 16, 3)).getvalue()
    assert len(whole) > 400
    with pytest.raises(UserError, match=r"half\.png is not a readable image"):
        decode(io.BytesIO(whole[:keep]), "half.png")


def test_text_and_a_folder_are_refused_with_the_name_of_the_file(tmp_path):
    with pytest.raises(UserError, match=r"note\.png is not a readable image"):
        decode(io.BytesIO(b"not an image"), "note.png")
    with pytest.raises(UserError, match="folder is not a readable image"):
        decode(tmp_path, "folder")


def test_a_grid_has_the_images_row_by_row_on_white_and_an_incomplete_last_row():
    images = torch.stack([torch.full((1, 2, 3), i, dtype=torch.uint8) for i in range(5)])
    picture = grid(images, columns=3, padding=1)
    assert picture.shape == (1, 2 * 3 + 1, 3 * 4 + 1)
    for i in range(6):
        top, left = 1 + i // 3 * 3, 1 + i % 3 * 4
        assert (picture[:, top : top + 2, left : left + 3] == (i if i < 5 else 255)).all()
    assert (picture == 255).sum() == picture.numel() - 5 * 6
    with pytest.raises(TypeError):
        grid(images.float(), columns=3)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_small_picture_is_saved_enlarged_by_a_whole_factor(tmp_path, channels):
    image = torch.from_numpy(noise(channels, 40, 100))
    save_png(image, tmp_path / "new" / "x.png")
    back = decode(tmp_path / "new" / "x.png", "x")
    assert torch.equal(back, image.repeat_interleave(3, 1).repeat_interleave(3, 2))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["x.png"]
    large = torch.from_numpy(noise(channels, 330, 10))
    save_png(large, tmp_path / "large.png")
    assert torch.equal(decode(tmp_path / "large.png", "x"), large)
