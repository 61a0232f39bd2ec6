"""Images in one file: a zip of image files, or an npz of arrays, which may hold moments of features too."""

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
from ganbench.data.sources.samples import Options, Samples, origin_of_options, with_fingerprint

# Errors that zipfile raises for a member that is truncated, damaged, encrypted or compressed by an unknown method.
BROKEN_ARCHIVE = (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError)
MOMENTS = (("mu", "sigma"), ("mu_s", "sigma_s"))
ABOUT_MOMENTS = {"n": "iu", "extractor": "U", "sha256": "U"}  # arrays that `ganbench statistics` adds: kinds of dtype
ARRAYS = ("arr_0", "images", "arr_1", "labels", *(key for pair in MOMENTS for key in pair), *ABOUT_MOMENTS)


def _reason(error: BaseException) -> str:
    """Return the error in a few words, without the path that an OSError repeats."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _hidden(member: str) -> bool:
    """Return True if a member of a zip, or one of its folders, begins with a dot, or comes from macOS's metadata."""
    return any(part.startswith(".") or part == "__MACOSX" for part in member.split("/"))


def read_zip(path: Path, options: Options) -> Samples:
    """Read the images of a zip in the sorted order of their names.

    Labels come from `options.labels_file`, or from class folders if there are two or more.
    Raises UserError if the zip or an image is damaged, if there is no image, and if images differ in size or channels.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted(m for m in archive.namelist() if m.lower().endswith(SUFFIXES) and not _hidden(m))
            if not members:
                raise UserError(f"{path} holds no images (looked for {', '.join(SUFFIXES)}): give another file.")
            images: list[Tensor] = []
            for member in members:
                image = decode(io.BytesIO(archive.read(member)), f"{path}/{member}")
                if options.resize is not None:
                    image = options.resize(image)
                require_same_shape(image, images[0] if images else image, f"{path}/{member}", members[0])
                images.append(image)
    except BROKEN_ARCHIVE as error:
        raise UserError(
            f"{path} cannot be read as a zip ({_reason(error)}): check the path, or pack it again."
        ) from error
    parents = [m.rpartition("/")[0].rpartition("/")[2] for m in members]
    labels, classes = labels_of(parents) if all(parents) and len(set(parents)) > 1 else (None, ())
    if options.labels_file is not None:
        labels, classes = read_labels(options.labels_file, members, str(path))
    origin = {"kind": "zip", "name": path.name, **origin_of_options(options)}
    made = with_fingerprint(torch.stack(images), labels, origin)
    return replace(made, classes=classes)


def read_npz(path: Path, moments_alone: bool = False) -> Samples:
    """Read the arrays of an npz.

    `images` or `arr_0` holds the images, uint8 N x H x W x C or N x C x H x W. `labels` or `arr_1`, if there, holds
    integers N. `mu` and `sigma`, and `mu_s` and `sigma_s`, if there, hold moments of features: mean d and covariance
    d x d. moments_alone: accept a file with moments and no images.
    Raises UserError if the file is damaged, or if an array is missing or has another dtype or shape.
    """
    try:
        with zipfile.ZipFile(path):  # np.load would also take a file of one array, or a pickle
            pass
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files if key in ARRAYS}
    except (*BROKEN_ARCHIVE, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as npz ({_reason(error)}): check the path, or write it again with numpy.savez."
        ) from error
    images = arrays.get("images", arrays.get("arr_0"))
    labels = arrays.get("labels", arrays.get("arr_1"))
    origin: dict[str, Any] = {"kind": "npz", "name": path.name}
    moments = _checked_moments(path, arrays)
    if moments:
        about = {
            key: arrays[key].item() for key, kind in ABOUT_MOMENTS.items()
            if key in arrays and arrays[key].ndim == 0 and arrays[key].dtype.kind in kind
        }
        origin["moments"] = {"arrays": sorted(moments), **about}
    if images is None:
        if moments and not moments_alone:
            raise UserError(f"{path} holds moments and no images: use it only as --reference, for Fréchet distances.")
        if moments:
            return with_fingerprint(torch.zeros(0, 3, 1, 1, dtype=torch.uint8), None, origin, moments)
        raise UserError(f"{path} has no array 'arr_0' or 'images': write the images under one of these names.")
    if images.dtype != np.uint8 or images.ndim != 4:
        raise UserError(f"{path}: images must be uint8 with 4 dimensions, not {images.dtype} with {images.ndim}.")
    if images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    elif images.shape[1] not in (1, 3):
        raise UserError(f"{path}: images of shape {images.shape} have neither 1 nor 3 channels.")
    if images.size == 0:
        raise UserError(f"{path} holds no images: their shape is {images.shape}.")
    if labels is not None and (labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer)):
        raise UserError(f"{path}: labels must be {len(images)} whole numbers, one per image.")
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    return with_fingerprint(
        tensor, None if labels is None else torch.from_numpy(labels.astype(np.int64)), origin, moments
    )


def _checked_moments(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, Tensor] | None:
    """Return the moments among the arrays of an npz as float64, with symmetric covariances, or None without any.

    Raises UserError if an array of a pair is missing, has another dtype or shape, or is not a mean or a covariance.
    """
    found: dict[str, Tensor] = {}
    for mean, covariance in MOMENTS:
        if (mean in arrays) != (covariance in arrays):
            raise UserError(f"{path}: '{mean}' and '{covariance}' belong together, but one is missing: write both.")
        if mean not in arrays:
            continue
        if mean != "mu" and "mu" not in found:
            raise UserError(f"{path} has '{mean}' and no 'mu': write both.")
        mu, sigma = arrays[mean], arrays[covariance]
        if not all(np.issubdtype(a.dtype, np.floating) for a in (mu, sigma)):
            raise UserError(f"{path}: '{mean}' and '{covariance}' must be floats, not {mu.dtype} and {sigma.dtype}.")
        mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
        if mu.ndim != 1 or not mu.size or sigma.shape != (mu.size, mu.size):
            raise UserError(
                f"{path}: '{mean}' must have shape d and '{covariance}' d x d, not {mu.shape} and {sigma.shape}."
            )
        if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
            raise UserError(f"{path}: some values of '{mean}' or '{covariance}' are not finite: compute them again.")
        if np.abs(sigma - sigma.T).max() > 1e-6 * np.abs(sigma).max() or np.diagonal(sigma).min() < 0:
            raise UserError(
                f"{path}: '{covariance}' is not a covariance, because it is not symmetric or has a negative variance: "
                "compute it again."
            )
        found |= {mean: torch.from_numpy(mu), covariance: torch.from_numpy((sigma + sigma.T) / 2)}
    return found or None
