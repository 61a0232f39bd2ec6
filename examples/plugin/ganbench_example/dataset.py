"""A data set: images of one horizontal or vertical bar, made on the spot."""

from pathlib import Path

import torch

from ganbench.data.datasets import Dataset, unknown_split

SIZES = {"train": 400, "test": 200}


def bars(split: str, root: Path, download: bool) -> Dataset:
    """Bars of 2 pixels on a dark square, 1 x 8 x 8, classes horizontal and vertical: train 400, test 200.

    root: the data folder, for files of your own. download: whether the network may be used. Neither is needed here.
    Raises UserError for another split.
    """
    if split not in SIZES:  # first of all, before a file is opened: `ganbench validate` relies on it
        raise unknown_split("bars", split, tuple(SIZES))
    generator = torch.Generator().manual_seed(list(SIZES).index(split))  # the same images every time
    n = SIZES[split]
    images = torch.randint(0, 40, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(n) % 2
    for image, label, at in zip(images, labels, torch.randint(0, 7, (n,), generator=generator), strict=True):
        bar = image[0, at : at + 2] if label == 0 else image[0, :, at : at + 2]
        bar.add_(200)
    return Dataset("bars", split, images, labels, ("horizontal", "vertical"))
