"""Synthetic labelled images of any shape, for runs that only show that everything works. They need no download.

Found as the data set `synthetic`; its split names the shape, as in `synthetic:3x32x32:10:train`.
"""

import re
from pathlib import Path

import torch

from ganbench.base.errors import UserError
from ganbench.data.datasets import Dataset

SIZES = {"train": 128, "test": 64}
CELLS = 4  # the pattern of a class has 4 x 4 cells


def synthetic(split: str, root: Path, download: bool) -> Dataset:
    """Noisy patterns, one per class, of any shape: synthetic:CxHxW[:CLASSES][:train|test], train 128 and test 64.

    There are ten classes by default, with numbers of images that differ by at most one. Pixels are computed from
    integers only, so that they are the same on every machine. `root` and `download` are not used.
    Raises UserError for a split of another form.
    """
    match = re.fullmatch(r"([13])x([1-9]\d{0,3})x([1-9]\d{0,3})(?::([1-9]\d{0,3}))?(?::(train|test))?", split)
    if match is None:
        raise UserError(
            f"the data set 'synthetic' has no split '{split}': write synthetic:CxHxW[:CLASSES][:train|test], "
            "as in synthetic:3x32x32:10:train."
        )
    channels, height, width, classes = (int(n or 10) for n in match.groups()[:4])
    part = match[5] or "train"
    count = SIZES[part]
    labels = torch.arange(count) % classes
    patterns = torch.randint(
        256, (classes, channels, CELLS, CELLS), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    rows, columns = (torch.arange(side) * CELLS // side for side in (height, width))
    noise = torch.Generator().manual_seed(1 + list(SIZES).index(part))
    images = torch.randint(256, (count, channels, height, width), generator=noise, dtype=torch.uint8) // 4
    images += patterns[labels][:, :, rows][:, :, :, columns] // 4 * 3
    # Include the shape in the split's name, so that loading `synthetic` with this split gives the same images.
    split = f"{channels}x{height}x{width}:{classes}:{part}"
    return Dataset("synthetic", split, images, labels, tuple(map(str, range(classes))))
