"""Resize images of several sizes to one, only on request (`--resize`) and by a method that is recorded in the result.

`SIDE:METHOD` stretches an image to SIDE x SIDE pixels. `SIDE:crop-METHOD` first cuts the square in its centre. The
methods are Pillow's antialiased filters on the 8-bit image, which round to 8 bits after the horizontal and after the
vertical pass. Most scripts that prepare data sets do the same. Code that filters in floating point, such as clean-fid's
resize to 299, differs by fractions of a level.
"""

from __future__ import annotations  # torch is named and not imported: processes that only decode use this module

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ganbench.base.errors import UserError, shortened

if TYPE_CHECKING:
    from torch import Tensor

METHODS = {
    "pil-bicubic": Image.Resampling.BICUBIC,
    "pil-bilinear": Image.Resampling.BILINEAR,
    "pil-lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
MAX_SIDE = 16_384


@dataclass(frozen=True)
class Resize:
    """One way to resize an image; call it with the image.

    side: side of the resulting square, in pixels. method: a key of METHODS. crop: cut the square in the centre first,
    instead of stretching.
    """

    side: int
    method: str
    crop: bool = False

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return f"{self.side}:{'crop-' if self.crop else ''}{self.method}"

    def __call__(self, image: Tensor) -> Tensor:
        """Resize an image, uint8 C x H x W, to uint8 C x side x side. An image of this size is returned unchanged."""
        import torch

        array = image.permute(1, 2, 0).numpy()
        small = self.array(array)
        return image if small is array else torch.from_numpy(small).permute(2, 0, 1).contiguous()

    def array(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize an image, uint8 H x W x C, to uint8 side x side x C. An image of this size is returned unchanged."""
        h, w, c = image.shape
        if self.crop and h != w:
            short = min(h, w)
            top, left = (h - short) // 2, (w - short) // 2
            image = image[top : top + short, left : left + short]
        if image.shape[:2] == (self.side, self.side):
            return image
        picture = Image.fromarray(np.ascontiguousarray(image if c == 3 else image[:, :, 0]))
        small = picture.resize((self.side, self.side), METHODS[self.method])
        return np.array(small).reshape(self.side, self.side, c)


def parse(text: str) -> Resize:
    """Read `SIDE:METHOD` or `SIDE:crop-METHOD`. Raises UserError that names --resize.

    >>> parse("64:crop-pil-bicubic")
    Resize(side=64, method='pil-bicubic', crop=True)
    """
    match = re.fullmatch(r"(\d{1,5}):(crop-)?(.+)", text, re.ASCII)
    if not match or match[3] not in METHODS or not 1 <= int(match[1]) <= MAX_SIDE:
        raise UserError(
            f"--resize '{shortened(text, 80)}': write SIDE:METHOD (stretches) or SIDE:crop-METHOD (cuts the square "
            f"in the centre first), with SIDE from 1 to {MAX_SIDE} and METHOD one of {', '.join(METHODS)}."
        )
    return Resize(int(match[1]), match[3], bool(match[2]))
