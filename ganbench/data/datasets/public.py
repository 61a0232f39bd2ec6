"""Public data sets, through torchvision: downloaded into the data folder on first use, then read from there.

Each function takes `(split, root, download)` and returns a `Dataset` in the order of the published files: uint8 images
N x C x H x W, and int64 labels if the split has them. It raises UserError for an unknown split, and for files that are
missing or damaged and cannot be downloaded.
"""

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ganbench.base.errors import UserError
from ganbench.data.datasets import Dataset, unknown_split


def _open_or_download(name: str, root: Path, download: bool, make: Callable[..., Any]) -> Any:
    """Open a torchvision data set. If that fails and `download` is True, download it, with the progress on stderr."""
    with redirect_stdout(sys.stderr):
        try:
            return make(root=str(root), download=False)
        except Exception as error:  # missing or damaged files; torchvision raises errors of many types
            if not download:
                raise UserError(
                    f"the data set '{name}' is missing from {root}, or damaged there, and this run is offline. "
                    "Run once without --offline, or set GANBENCH_DATA to a folder that has it."
                ) from error
        try:
            root.mkdir(parents=True, exist_ok=True)
            return make(root=str(root), download=True)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"the data set '{name}' is missing from {root}, or damaged there, and could not be downloaded "
                f"({reason}). Check the network, or set GANBENCH_DATA to a folder that has it."
            ) from error


def _is_train(name: str, split: str) -> bool:
    """Return True for the split train and False for test. Raises UserError for another split."""
    if split not in ("train", "test"):
        raise unknown_split(name, split, ("train", "test"))
    return split == "train"


def _nchw(array: np.ndarray) -> Tensor:
    """Convert a uint8 array N x H x W x C to a contiguous tensor N x C x H x W."""
    return torch.from_numpy(array).permute(0, 3, 1, 2).contiguous()


def mnist(split: str, root: Path, download: bool) -> Dataset:
    """MNIST: handwritten digits, 1 x 28 x 28, 10 classes, train 60,000 and test 10,000."""
    return _mnist_like("mnist", "MNIST", split, root, download, tuple("0123456789"))


def fashion_mnist(split: str, root: Path, download: bool) -> Dataset:
    """Fashion-MNIST: articles of clothing, 1 x 28 x 28, 10 classes, train 60,000 and test 10,000."""
    classes = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")
    return _mnist_like("fashion-mnist", "FashionMNIST", split, root, download, classes)


def _mnist_like(name: str, cls: str, split: str, root: Path, download: bool, classes: tuple[str, ...]) -> Dataset:
    train = _is_train(name, split)
    import torchvision.datasets as tv

    data = _open_or_download(name, root, download, lambda **kw: getattr(tv, cls)(train=train, **kw))
    return Dataset(name, split, data.data[:, None].contiguous(), data.targets.long(), classes)


def cifar10(split: str, root: Path, download: bool) -> Dataset:
    """CIFAR-10: 3 x 32 x 32, 10 classes, train 50,000 and test 10,000."""
    return _cifar("cifar10", "CIFAR10", split, root, download)


def cifar100(split: str, root: Path, download: bool) -> Dataset:
    """CIFAR-100: 3 x 32 x 32, 100 classes, train 50,000 and test 10,000."""
    return _cifar("cifar100", "CIFAR100", split, root, download)


def _cifar(name: str, cls: str, split: str, root: Path, download: bool) -> Dataset:
    train = _is_train(name, split)
    import torchvision.datasets as tv

    data = _open_or_download(name, root, download, lambda **kw: getattr(tv, cls)(train=train, **kw))
    return Dataset(name, split, _nchw(data.data), torch.tensor(data.targets), tuple(data.classes))


def svhn(split: str, root: Path, download: bool) -> Dataset:
    """SVHN: street-view house numbers, 3 x 32 x 32, 10 classes, train 73,257, test 26,032 and extra 531,131."""
    if split not in ("train", "test", "extra"):
        raise unknown_split("svhn", split, ("train", "test", "extra"))
    import torchvision.datasets as tv

    data = _open_or_download("svhn", root / "svhn", download, lambda **kw: tv.SVHN(split=split, **kw))
    return Dataset(
        "svhn", split, torch.from_numpy(data.data), torch.from_numpy(data.labels).long(), tuple("0123456789")
    )


def stl10(split: str, root: Path, download: bool) -> Dataset:
    """STL-10: 3 x 96 x 96, 10 classes, train 5,000, test 8,000 and unlabeled 100,000.

    The split `train+unlabeled` has both, without labels.
    """
    if split not in ("train", "test", "unlabeled", "train+unlabeled"):
        raise unknown_split("stl10", split, ("train", "test", "unlabeled", "train+unlabeled"))
    import torchvision.datasets as tv

    data = _open_or_download("stl10", root, download, lambda **kw: tv.STL10(split=split, **kw))
    labels = None if "unlabeled" in split else torch.from_numpy(data.labels).long()
    return Dataset("stl10", split, torch.from_numpy(data.data), labels, tuple(data.classes))


def celeba(split: str, root: Path, download: bool) -> Dataset:
    """CelebA: aligned faces, centre crop of 160 reduced to 3 x 64 x 64 (antialiased), train 162,770 and test 19,962.

    The split `valid` has 19,867 images, and `all` has those of the three splits. There are no labels.
    """
    if split not in ("train", "valid", "test", "all"):
        raise unknown_split("celeba", split, ("train", "valid", "test", "all"))
    import torchvision.datasets as tv
    from PIL import Image

    data = _open_or_download("celeba", root, download, lambda **kw: tv.CelebA(split=split, **kw))
    images = torch.empty(len(data), 3, 64, 64, dtype=torch.uint8)
    for i in range(len(data)):
        image, _ = data[i]
        left, top = (image.width - 160) // 2, (image.height - 160) // 2
        small = image.crop((left, top, left + 160, top + 160)).resize((64, 64), Image.Resampling.LANCZOS)
        images[i] = torch.from_numpy(np.array(small)).permute(2, 0, 1)
    return Dataset("celeba", split, images)
