"""Images of other sizes brought to one, in the way that the user names: never by themselves, and always recorded.

`SIDE:METHOD` stretches an image to SIDE x SIDE pixels; `SIDE:crop-METHOD` first cuts the square in its centre. The
methods are Pillow's filters on the 8-bit image: the filter widens with the reduction (antialiased), and each of its
two passes, along rows and then along columns, is rounded to 8 bits. That is what most scripts that prepare data sets
do. Code that filters in floating point and keeps it (clean-fid's resize to 299) differs by fractions of a level.
"""

import re
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ganbench.base.errors import UserError

METHODS = {
    "pil-bicubic": Image.Resampling.BICUBIC,
    "pil-bilinear": Image.Resampling.BILINEAR,
    "pil-lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
MAX_SIDE = 16_384


@dataclass(frozen=True)
class Resize:
    """side: of the square that comes out. method: of METHODS. crop: cut the square in the centre first."""

    side: int
    method: str
    crop: bool = False

    def __str__(self) -> str:
        return f"{self.side}:{'crop-' if self.crop else ''}{self.method}"

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 C x H x W to C x side x side; an image of that size stays as it is, to the pixel."""
        c, h, w = image.shape
        if self.crop and h != w:
            short = min(h, w)
            top, left = (h - short) // 2, (w - short) // 2
            image = image[:, top : top + short, left : left + short]
        if image.shape[1:] == (self.side, self.side):
            return image
        array = image.permute(1, 2, 0).numpy() if c == 3 else image[0].numpy()
        small = Image.fromarray(np.ascontiguousarray(array)).resize((self.side, self.side), METHODS[self.method])
        return torch.from_numpy(np.array(small).reshape(self.side, self.side, c)).permute(2, 0, 1).contiguous()


def parse(text: str) -> Resize:
    """The Resize that `64:pil-bicubic` or `64:crop-pil-bicubic` says. Raises UserError that names --resize."""
    match = re.fullmatch(r"(\d{1,5}):(crop-)?(.+)", text, re.ASCII)
    if not match or match[3] not in METHODS or not 1 <= int(match[1]) <= MAX_SIDE:
        raise UserError(
            f"--resize '{text}': write SIDE:METHOD (stretches) or SIDE:crop-METHOD (cuts the square in the centre "
            f"first), with a side of 1 to {MAX_SIDE} and one of {', '.join(METHODS)}."
        )
    return Resize(int(match[1]), match[3], bool(match[2]))
