"""Label noise of training images: labels that are drawn anew, once, by a seed.

The draws are those of the label-noise robust GANs' code (Kaneko, Ushiku, Harada, 2019): on CIFAR in the order of the
published files, each image gets the label that it has there. Only training labels are ever changed: the reference and
real images of an evaluation have their true ones.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ganbench.base.errors import UserError
from ganbench.base.label_noise import CIFAR100_FLIPS, FLIPS, LabelNoise, flips
from ganbench.data.datasets import Dataset
from ganbench.data.datasets.decoded import Decoded


def with_label_noise(data: Dataset, noise: LabelNoise | None) -> Dataset:
    """Return the data set with noise on its labels; it says so in `label_noise`. Its fingerprint is another one.

    A data set that has this noise already is returned unchanged, and so is any if `noise` is None.
    Raises UserError if the data set has no labels, or not the classes that asymmetric noise knows.
    """
    if noise is None or data.label_noise == noise:
        return data
    if data.label_noise is not None:
        raise ValueError(f"'{data.name}' has label noise already ({data.label_noise}), which is not {noise}")
    if data.labels is None:
        raise UserError(
            f"'{data.name}' has no labels, so there can be no label noise: put its images into class folders, or drop "
            "'label_noise' from [train]."
        )
    if isinstance(data, Decoded):
        raise ValueError("label noise comes before decoding, which keeps a fingerprint")
    names = data.classes or tuple(map(str, range(int(data.labels.max()) + 1)))
    if data.name == "synthetic" and len(names) in FLIPS:  # its classes have no names: they stand for CIFAR's
        names = FLIPS[len(names)][0]
    pairs: dict[int, int] = {}
    if noise.kind == "asymmetric":
        try:
            pairs = flips(names)
        except ValueError:
            raise UserError(
                f"asymmetric label noise flips classes of CIFAR-10 or CIFAR-100 by name, and '{data.name}' does not "
                f"have them all (its classes: {', '.join(names[:3])}, ...): take such data, or kind = \"symmetric\"."
            ) from None
    return replace(data, labels=noisy(data.labels, noise, len(names), pairs), label_noise=noise)


def noisy(labels: Tensor, noise: LabelNoise, classes: int, pairs: dict[int, int]) -> Tensor:
    """Return noisy labels, int64 N. labels: the true ones. pairs: of asymmetric noise, a class and what it becomes."""
    rng, y, rate = np.random.RandomState(noise.seed), labels.numpy().copy(), noise.rate
    if rate == 0:
        return labels
    if noise.kind == "symmetric":
        replaced = rng.rand(len(y)) <= rate
        y[replaced] = rng.choice(classes, replaced.sum())
    elif len(pairs) < len(CIFAR100_FLIPS):  # a number for each image of a class that can be mistaken
        rows = np.flatnonzero(np.isin(y, list(pairs)))
        rows = rows[rng.uniform(size=len(rows)) <= rate]
        y[rows] = [pairs[int(c)] for c in y[rows]]
    else:  # an entry of its row of T for each image, where T was rounded to float32
        rows_of_t = np.zeros((classes, classes))
        for a, b in pairs.items():
            rows_of_t[a, a], rows_of_t[a, b] = np.float32(1 - rate), np.float32(rate)
        rows_of_t /= np.maximum(rows_of_t.sum(1, keepdims=True), 1e-300)
        y[:] = [rng.multinomial(1, rows_of_t[c]).argmax() if c in pairs else c for c in y]
    return torch.from_numpy(y)
