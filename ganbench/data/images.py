"""The image format, uint8 N x C x H x W with C = 1 or 3, and all conversions to and from float, files and grids.

Models work on float images in [-1, 1]. The level v in 0..255 stands for the floats in [(v - 128) / 127.5,
(v - 127) / 127.5). Rounding then has no bias, and `to_uint8(to_float(v)) == v`. The code of StyleGAN and StudioGAN
converts in the same way.
"""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ganbench.base.files import atomic_path
from ganbench.data import decoding


def to_float(images: Tensor) -> Tensor:
    """Convert uint8 images of any shape to float32 in [-1, 1]: v / 127.5 - 1.

    >>> to_float(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([-1.,  1.])
    """
    return images.to(torch.float32) / 127.5 - 1.0


def to_uint8(x: Tensor) -> Tensor:
    """Convert float images of any shape in [-1, 1] to uint8: floor(127.5 x + 128), clamped to 0..255.

    Raises ValueError for NaN.

    >>> to_uint8(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
    tensor([  0, 128, 255, 255], dtype=torch.uint8)
    """
    if torch.isnan(x).any():
        raise ValueError("the images contain NaN: the generator has diverged")
    return (x.to(torch.float32) * 127.5 + 128.0).clamp_(0, 255).to(torch.uint8)


def check(images: Tensor) -> Tensor:
    """Return `images` unchanged. Raises TypeError unless they are uint8 of shape N x 1|3 x H x W."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise TypeError(f"images must be uint8 of shape N x 1|3 x H x W, not {images.dtype} {tuple(images.shape)}")
    return images


def to_rgb(images: Tensor) -> Tensor:
    """Return images of three channels, N x 3 x H x W, from N x 1|3 x H x W. One channel is repeated, without a copy."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def decode(source: Path | object, name: str) -> Tensor:
    """Decode one image file into a contiguous uint8 tensor C x H x W (see `decoding.decode`)."""
    return torch.from_numpy(decoding.decode(source, name)).permute(2, 0, 1).contiguous()


def grid(images: Tensor, columns: int, padding: int = 2) -> Tensor:
    """Return one picture of all images, uint8 C x H' x W', on a white background.

    images: uint8 N x C x H x W, shown row by row. The last row may be incomplete. columns: images in a row. padding:
    pixels around and between images. Raises TypeError if `images` are not in the image format.
    """
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
    """Write one image, uint8 C x H x W, as PNG, atomically. Raises UserError if the file cannot be written.

    An image whose longer side is at most 160 pixels is enlarged by a whole factor to a longer side of up to 320 pixels.
    """
    array = image.permute(1, 2, 0).squeeze(-1).numpy()
    picture = Image.fromarray(array)
    factor = max(1, 320 // max(picture.size))
    if factor > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    with atomic_path(path) as part:
        picture.save(part, format="PNG")
