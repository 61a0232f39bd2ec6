"""Images: `uint8`, N x C x H x W, RGB or one channel. The only conversions to and from float, files and grids.

Models work on float images in [-1, 1]. A value v in 0..255 stands for the interval [v, v+1) / 127.5 - 128/127.5, so
that `to_uint8(to_float(v)) == v` and rounding has no bias (as in the StyleGAN and StudioGAN code bases).
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ganbench.base.errors import UserError
from ganbench.base.files import atomic_path

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


def to_float(images: Tensor) -> Tensor:
    """uint8 in 0..255 to float32 in [-1, 1]: v / 127.5 - 1, any shape."""
    return images.to(torch.float32) / 127.5 - 1.0


def to_uint8(x: Tensor) -> Tensor:
    """Float in [-1, 1] to uint8: floor(127.5 x + 128), clamped to 0..255, any shape. Not-a-number raises ValueError."""
    if torch.isnan(x).any():
        raise ValueError("the images contain NaN: the generator has diverged")
    return (x.to(torch.float32) * 127.5 + 128.0).clamp_(0, 255).to(torch.uint8)


def check(images: Tensor) -> Tensor:
    """Return `images` unchanged if they honour the contract (uint8, N x 1|3 x H x W); else raise TypeError."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise TypeError(f"images must be uint8 of shape N x 1|3 x H x W, not {images.dtype} {tuple(images.shape)}")
    return images


def to_rgb(images: Tensor) -> Tensor:
    """N x 1 x H x W or N x 3 x H x W to N x 3 x H x W, by repeating the one channel (no copy)."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def decode(source: Path | object, name: str) -> Tensor:
    """One image file (a path or a binary file object) as uint8 C x H x W.

    Raises UserError that names the file where it is broken, has an alpha channel, or more than 8 bits a channel:
    whichever way such a file were flattened or scaled would change the metric silently.
    """
    try:
        with Image.open(source) as file:  # type: ignore[arg-type]
            if ";16" in str(file.tile):  # Pillow would cut 16-bit colour to 8 bits without a word
                raise UserError(f"{name} has more than 8 bits a channel ({file.mode}): convert it to 8 bits first.")
            file.load()
            image: Image.Image = file
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                raise UserError(f"{name} has an alpha channel ({image.mode}): flatten it onto a background first.")
            if image.mode.startswith(("I", "F")):
                raise UserError(f"{name} has more than 8 bits a channel ({image.mode}): convert it to 8 bits first.")
            if image.mode not in ("L", "RGB"):
                image = image.convert("L" if image.mode == "1" else "RGB")
            array = np.array(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{name} is not a readable image ({error}): remove or replace it.") from error
    if array.ndim == 2:
        array = array[:, :, None]
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def grid(images: Tensor, columns: int, padding: int = 2) -> Tensor:
    """N x C x H x W to one uint8 C x H' x W' picture, row by row, on a white ground. A last row may be short."""
    check(images)
    n, c, h, w = images.shape
    rows = -(-n // columns)
    canvas = torch.full((c, rows * (h + padding) + padding, columns * (w + padding) + padding), 255, dtype=torch.uint8)
    for i, image in enumerate(images):
        top = padding + (i // columns) * (h + padding)
        left = padding + (i % columns) * (w + padding)
        canvas[:, top : top + h, left : left + w] = image
    return canvas


def save_png(image: Tensor, path: Path) -> None:
    """Write one uint8 C x H x W image as PNG, atomically. Small pictures are enlarged by whole pixels to be seen."""
    array = image.permute(1, 2, 0).squeeze(-1).numpy()
    picture = Image.fromarray(array)
    factor = max(1, 320 // max(picture.size))
    if factor > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    with atomic_path(path) as part:
        picture.save(part, format="PNG")
