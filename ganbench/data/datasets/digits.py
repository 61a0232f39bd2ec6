"""The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn ships: real images without a download.

Found as the data set `digits`, with the splits train and test.
"""

from pathlib import Path

import numpy as np
import torch

from ganbench.data.datasets import Dataset, unknown_split

TEST = 500  # the last images of the file: their writers wrote no training image, as in the published split


def digits(split: str, root: Path, download: bool) -> Dataset:
    """Optical recognition of handwritten digits (UCI), 1 x 8 x 8, 10 classes: train 1,297 and test 500.

    Pixels are 0..16 in the file; they are scaled to 0..255 and rounded. `root` and `download` are not used.
    Raises UserError for another split.
    """
    from sklearn.datasets import load_digits

    if split not in ("train", "test"):
        raise unknown_split("digits", split, ("train", "test"))
    data = load_digits()
    part = slice(None, -TEST) if split == "train" else slice(-TEST, None)
    images = np.rint(data.images[part] * (255 / 16)).astype(np.uint8)
    labels = torch.from_numpy(data.target[part].astype(np.int64))
    return Dataset("digits", split, torch.from_numpy(images)[:, None], labels, tuple("0123456789"))
