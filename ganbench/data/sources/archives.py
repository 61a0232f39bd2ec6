"""Images in one file: a zip of image files, or an npz of arrays."""

import io
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ganbench.base.errors import UserError
from ganbench.data.datasets.folder import labels_of, read_labels, require_same_shape
from ganbench.data.images import SUFFIXES, decode
from ganbench.data.sources.samples import Options, Samples, read_with, with_fingerprint

# All that zipfile raises for a member that is cut, damaged, encrypted, or packed in a way that it does not know.
BROKEN_ARCHIVE = (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError)
MOMENTS = (("mu", "sigma"), ("mu_s", "sigma_s"))
ABOUT_MOMENTS = {"n": "iu", "extractor": "U", "sha256": "U"}  # what `ganbench statistics` adds, and of which kind
ARRAYS = ("arr_0", "images", "arr_1", "labels", *(key for pair in MOMENTS for key in pair), *ABOUT_MOMENTS)


def _why(error: BaseException) -> str:
    """The error in a few words, without the path that OSError repeats."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _hidden(member: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in member.split("/"))


def read_zip(path: Path, options: Options) -> Samples:
    """Images of a zip in the order of their names; class folders inside it become labels, unless a CSV brings them."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted(m for m in archive.namelist() if m.lower().endswith(SUFFIXES) and not _hidden(m))
            if not members:
                raise UserError(f"{path} holds no images (looked for {', '.join(SUFFIXES)}).")
            images: list[Tensor] = []
            for member in members:
                image = decode(io.BytesIO(archive.read(member)), f"{path}/{member}")
                if options.resize is not None:
                    image = options.resize(image)
                require_same_shape(image, images[0] if images else image, f"{path}/{member}", members[0])
                images.append(image)
    except BROKEN_ARCHIVE as error:
        raise UserError(f"{path} cannot be read as a zip ({_why(error)}): copy or pack it again.") from error
    parents = [m.rpartition("/")[0].rpartition("/")[2] for m in members]
    labels, classes = labels_of(parents) if all(parents) and len(set(parents)) > 1 else (None, ())
    if options.labels_file is not None:
        labels, classes = read_labels(options.labels_file, members, str(path))
    made = with_fingerprint(torch.stack(images), labels, {"kind": "zip", "name": path.name, **read_with(options)})
    return replace(made, classes=classes)


def read_npz(path: Path, moments_alone: bool = False) -> Samples:
    """`arr_0` (or `images`): uint8 N x H x W x C or N x C x H x W; `arr_1` (or `labels`): whole numbers, optional.

    `mu` and `sigma`, and with them `mu_s` and `sigma_s`, are moments of features: they may come with the images, or,
    where `moments_alone` allows it, in their stead.
    """
    try:
        with zipfile.ZipFile(path):  # np.load takes more than npz: a lone array, or a pickle
            pass
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files if key in ARRAYS}
    except (*BROKEN_ARCHIVE, ValueError) as error:
        raise UserError(f"{path} cannot be read as npz ({_why(error)}): write it again with numpy.savez.") from error
    images = arrays.get("images", arrays.get("arr_0"))
    labels = arrays.get("labels", arrays.get("arr_1"))
    origin: dict[str, Any] = {"kind": "npz", "name": path.name}
    moments = _moments(path, arrays)
    if moments:
        about = {
            key: arrays[key].item() for key, kind in ABOUT_MOMENTS.items()
            if key in arrays and arrays[key].ndim == 0 and arrays[key].dtype.kind in kind
        }
        origin["moments"] = {"arrays": sorted(moments), **about}
    if images is None:
        if moments and not moments_alone:
            raise UserError(f"{path} holds moments and no images: it can only be the --reference of Fréchet distances.")
        if moments:
            return with_fingerprint(torch.zeros(0, 3, 1, 1, dtype=torch.uint8), None, origin, moments)
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
    return with_fingerprint(
        tensor, None if labels is None else torch.from_numpy(labels.astype(np.int64)), origin, moments
    )


def _moments(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, Tensor] | None:
    """The moments among an npz's arrays, float64. Raises UserError for a mean without its covariance, and the like."""
    found: dict[str, Tensor] = {}
    for mean, covariance in MOMENTS:
        if (mean in arrays) != (covariance in arrays):
            raise UserError(f"{path}: '{mean}' and '{covariance}' belong together, and one is missing.")
        if mean not in arrays:
            continue
        if mean != "mu" and "mu" not in found:
            raise UserError(f"{path} has '{mean}' and no 'mu': it must hold both.")
        mu, sigma = arrays[mean], arrays[covariance]
        if not all(np.issubdtype(a.dtype, np.floating) for a in (mu, sigma)):
            raise UserError(f"{path}: '{mean}' and '{covariance}' must be floats, not {mu.dtype} and {sigma.dtype}.")
        mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
        if mu.ndim != 1 or not mu.size or sigma.shape != (mu.size, mu.size):
            raise UserError(
                f"{path}: '{mean}' must have shape d and '{covariance}' d x d, not {mu.shape} and {sigma.shape}."
            )
        if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
            raise UserError(f"{path}: some values of '{mean}' or '{covariance}' are not finite.")
        if np.abs(sigma - sigma.T).max() > 1e-6 * np.abs(sigma).max() or np.diagonal(sigma).min() < 0:
            raise UserError(f"{path}: '{covariance}' is not symmetric, or has a negative variance: no covariance.")
        found |= {mean: torch.from_numpy(mu), covariance: torch.from_numpy((sigma + sigma.T) / 2)}
    return found or None
