"""Checks of the images that an extractor is given: type, shape and range."""

from typing import Any

import torch
from torch import Tensor

from ganbench.data.streams import Images

WANTED = "images are uint8, or float32 in 0..255, of shape N x 1|3 x H x W"
BLACK = 0.5  # half a level: images in 0..255 that stay below it are black
BEYOND = 2_550.0  # ten times the range. Generators without a limit leave 0..255 a little


def check_form(images: Any) -> None:
    """Check the type and shape of images for an extractor: a tensor, or an `Images`, whose batches are uint8.

    Raises TypeError for another type and ValueError for another shape. No pixel is looked at.

    >>> check_form(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))
    Traceback (most recent call last):
    ValueError: images are uint8, or float32 in 0..255, of shape N x 1|3 x H x W; these are uint8 of shape (2, 8, 8, 3)
    """
    if not isinstance(images, Tensor | Images):
        raise TypeError(f"{WANTED}; these are of type {type(images).__name__}")
    dtype = images.dtype if isinstance(images, Tensor) else torch.uint8
    shape = tuple(images.shape)
    found = f"{WANTED}; these are {str(dtype).removeprefix('torch.')} of shape {shape}"
    if dtype not in (torch.uint8, torch.float32):
        raise TypeError(found)
    if len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape:
        raise ValueError(found)


def check_images(images: Any) -> None:
    """Check the type, shape and range of images for an extractor.

    Float images may leave 0..255 as a generator does whose output has no limit, and may be black. Images in [-1, 1] or
    [0, 1] are refused: all of their values lie in [-1, 1], and some are larger than half a level of 0..255.
    Raises TypeError for another type, and ValueError for another shape or range and for values that are not finite.

    >>> check_images(torch.linspace(-1, 1, 64).view(1, 1, 8, 8))
    Traceback (most recent call last):
    ValueError: images are uint8, or float32 in 0..255; these look like [-1, 1]: use floor(127.5 x + 128) as uint8
    """
    check_form(images)
    if not isinstance(images, Tensor) or images.dtype == torch.uint8:
        return
    low, high = (value.item() for value in images.aminmax())
    largest, wanted = max(-low, high), "images are uint8, or float32 in 0..255"
    if not largest < float("inf"):
        raise ValueError(f"{wanted}; these hold NaN or infinite values")
    if BLACK < largest <= 1:
        if low < 0:
            raise ValueError(f"{wanted}; these look like [-1, 1]: use floor(127.5 x + 128) as uint8")
        raise ValueError(f"{wanted}; these look like [0, 1]: multiply them by 255")
    if largest > BEYOND:
        raise ValueError(f"{wanted}; these reach from {low:g} to {high:g}")
