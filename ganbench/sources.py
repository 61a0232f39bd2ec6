"""Where images come from: a folder, a zip, an npz, a data set's split, a callable, or a checkpoint's generator.

Whatever the source, the outcome is `Samples`: uint8 N x C x H x W, all of one size, with labels where they are known.
"""

import hashlib
import importlib
import io
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ganbench import datasets
from ganbench.errors import UserError, did_you_mean
from ganbench.gan import GAN
from ganbench.images import SUFFIXES, check, decode, to_uint8
from ganbench.registry import names


@dataclass(frozen=True)
class Samples:
    """Images to evaluate. labels: int64 N, or None. origin: what goes into a result about where they came from."""

    images: Tensor
    labels: Tensor | None
    origin: dict[str, Any] = field(default_factory=dict)


def open_source(text: str, num: int | None = None, seed: int = 0, split: str | None = None) -> Samples:
    """Images from what a user may name: a folder, FILE.zip, FILE.npz, `NAME[:split]`, `folder:PATH`, `module:callable`.

    num: how many; a callable is asked for them, from everything else they are drawn without replacement under `seed`.
    Raises UserError that names the source for anything that cannot be read, and for fewer images than `num`.
    """
    path = Path(text)
    head = text.partition(":")[0]
    if head == "folder" or head in names("datasets"):  # a folder of that name is ./NAME
        samples = from_dataset(datasets.load(text, split))
    elif text and path.is_dir():
        samples = from_dataset(datasets.load(f"folder:{text}", split))
    elif path.suffix.lower() == ".zip":
        samples = _zip(path)
    elif path.suffix.lower() == ".npz":
        samples = _npz(path)
    elif ":" in text and not path.exists():
        return _callable(text, num, seed)
    else:
        known = did_you_mean(head, names("datasets"))
        raise UserError(
            f"cannot read images from '{text}': no such folder, .zip, .npz, module:callable or data set.{known}"
        )
    return take(samples, num, text, seed)


def take(samples: Samples, num: int | None, text: str, seed: int) -> Samples:
    """`num` of the samples, drawn without replacement under a seed and kept in order; all of them for None."""
    n = len(samples.images)
    if num is None or num == n:
        return samples
    if num > n:
        raise UserError(f"'{text}' has {n:,} images, fewer than the {num:,} asked for: lower --num or give more.")
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:num].sort().values
    labels = None if samples.labels is None else samples.labels[rows]
    return Samples(samples.images[rows], labels, {**samples.origin, "drawn": num, "draw_seed": seed})


def from_dataset(data: datasets.Dataset) -> Samples:
    """A data set's split as samples, with its origin."""
    origin = {"kind": "dataset", "name": data.name, "split": data.split, "fingerprint": data.fingerprint}
    return Samples(data.images, data.labels, origin)


# All that zipfile raises for a member that is cut, damaged, encrypted, or packed in a way that it does not know.
BROKEN_ARCHIVE = (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError)


def _why(error: BaseException) -> str:
    """The error in a few words, without the path that OSError repeats."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _hidden(member: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in member.split("/"))


def _zip(path: Path) -> Samples:
    """Images of a zip in the order of their names; class folders inside it become labels."""
    from ganbench.datasets.folder import labels_of, require_same_shape

    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted(m for m in archive.namelist() if m.lower().endswith(SUFFIXES) and not _hidden(m))
            if not members:
                raise UserError(f"{path} holds no images (looked for {', '.join(SUFFIXES)}).")
            images: list[Tensor] = []
            for member in members:
                image = decode(io.BytesIO(archive.read(member)), f"{path}/{member}")
                require_same_shape(image, images[0] if images else image, f"{path}/{member}", members[0])
                images.append(image)
    except BROKEN_ARCHIVE as error:
        raise UserError(f"{path} cannot be read as a zip ({_why(error)}): copy or pack it again.") from error
    parents = [m.rpartition("/")[0].rpartition("/")[2] for m in members]
    labels = labels_of(parents)[0] if all(parents) and len(set(parents)) > 1 else None
    return _with_fingerprint(torch.stack(images), labels, {"kind": "zip", "name": path.name})


def _npz(path: Path) -> Samples:
    """`arr_0` (or `images`): uint8 N x H x W x C or N x C x H x W; `arr_1` (or `labels`): whole numbers, optional."""
    try:
        with zipfile.ZipFile(path):  # np.load takes more than npz: a lone array, or a pickle
            pass
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files if key in ("arr_0", "images", "arr_1", "labels")}
    except (*BROKEN_ARCHIVE, ValueError) as error:
        raise UserError(f"{path} cannot be read as npz ({_why(error)}): write it again with numpy.savez.") from error
    images = arrays.get("images", arrays.get("arr_0"))
    labels = arrays.get("labels", arrays.get("arr_1"))
    if images is None:
        raise UserError(f"{path} has no array 'arr_0' or 'images'.")
    if images.dtype != np.uint8 or images.ndim != 4:
        raise UserError(f"{path}: images must be uint8 with 4 dimensions, not {images.dtype} with {images.ndim}.")
    if images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    elif images.shape[1] not in (1, 3):
        raise UserError(f"{path}: images of shape {images.shape} have neither 1 nor 3 channels.")
    if images.size == 0:
        raise UserError(f"{path} holds no images: their shape is {images.shape}.")
    if labels is not None and (labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer)):
        raise UserError(f"{path}: labels must be {len(images)} whole numbers, one an image.")
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    return _with_fingerprint(
        tensor,
        None if labels is None else torch.from_numpy(labels.astype(np.int64)),
        {"kind": "npz", "name": path.name},
    )


def _callable(text: str, num: int | None, seed: int) -> Samples:
    """`module:callable` is called as f(n, seed) and returns uint8 images N x C x H x W, or (images, labels int64 N)."""
    if num is None:
        raise UserError(f"'{text}' makes as many images as you like: say how many with --num.")
    module, _, attribute = text.partition(":")
    if not getattr(sys.flags, "safe_path", False) and "" not in sys.path:
        sys.path.insert(0, "")  # the user's own module lies where the command was typed
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"cannot read images from '{text}': no such folder, file or data set, and no such callable ({error})."
        ) from error
    except Exception as error:
        raise UserError(f"'{text}': the module cannot be imported ({type(error).__name__}: {error}).") from error
    try:
        out = function(num, seed)
    except Exception as error:
        raise UserError(
            f"'{text}' failed when called with ({num}, {seed}): {type(error).__name__}: {error}."
        ) from error
    images, labels = out if isinstance(out, tuple) and len(out) == 2 else (out, None)
    if not isinstance(images, Tensor):
        raise UserError(f"'{text}' must return a tensor of images, or (images, labels), not {type(out).__name__}.")
    try:
        images = check(images.cpu())
    except TypeError as error:
        raise UserError(f"'{text}' returned something else than images: {error}.") from error
    if len(images) != num or images.numel() == 0:
        raise UserError(f"'{text}' was asked for {num:,} images and returned shape {tuple(images.shape)}.")
    if labels is not None:
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != (num,):
            raise UserError(f"'{text}': labels must be an int64 tensor of {num:,}, one an image.")
        labels = labels.cpu()
    return _with_fingerprint(images, labels, {"kind": "callable", "name": text, "seed": seed})


def _row_major(images: Tensor) -> Tensor:
    """The same images with the strides of a new tensor: the last digits of a network's sums depend on the layout."""
    _, c, h, w = images.shape
    return (
        images if images.stride() == (c * h * w, h * w, w, 1) else images.clone(memory_format=torch.contiguous_format)
    )


def _with_fingerprint(images: Tensor, labels: Tensor | None, origin: dict[str, Any]) -> Samples:
    images = _row_major(images)
    digest = hashlib.sha256(repr(tuple(images.shape)).encode() + images.numpy().tobytes()).hexdigest()
    return Samples(images, labels, {**origin, "fingerprint": digest})


@torch.inference_mode()
def generate(
    gan: GAN, num: int, seed: int, device: torch.device, labels: Tensor | None = None, batch_size: int = 500,
    advance: Callable[[int], None] | None = None,
) -> Samples:  # fmt: skip
    """`num` samples of a generator, quantised to uint8. Without `labels` they are balanced: 0, 1, ..., K-1, 0, ...

    Batches are drawn from one seeded generator in steps of `batch_size`, which is part of what makes the samples.
    Raises UserError where the generator yields NaN.
    """
    generator = torch.Generator().manual_seed(seed)
    gan = gan.to(device).eval()
    if labels is None and gan.num_classes:
        labels = torch.arange(num) % gan.num_classes
    parts = []
    for start in range(0, num, batch_size):
        n = min(batch_size, num - start)
        y = None if labels is None else labels[start : start + n].to(device)
        try:
            parts.append(to_uint8(gan.sample(n, y, generator)).cpu())
        except ValueError as error:
            raise UserError(f"the generator cannot be evaluated: {error}. Take an earlier checkpoint.") from error
        if advance:
            advance(n)
    return Samples(_row_major(torch.cat(parts)), labels, {"kind": "generator", "seed": seed, "batch_size": batch_size})
