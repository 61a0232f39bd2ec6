"""Images in one file: a zip of image files, or an npz of arrays, which may hold moments of features too."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from ganbench.base import memory
from ganbench.base.errors import UserError, shortened
from ganbench.data.datasets import layout
from ganbench.data.datasets.folder import labels_of_layout
from ganbench.data.decoding import BROKEN_ARCHIVE, Array, reason
from ganbench.data.sources.samples import Options, Samples, of_files, of_profiles, origin_of_options, with_fingerprint
from ganbench.data.streams import IN_MEMORY, ArrayFile, EncodedImages, Images, fingerprint_of_files, spooled

MOMENTS = (("mu", "sigma"), ("mu_s", "sigma_s"))
ABOUT_MOMENTS = {"n": "iu", "extractor": "U", "sha256": "U"}  # arrays that `ganbench statistics` adds: kinds of dtype
OTHER_MOMENTS = (("mean", "cov"), ("mean", "covariance"), ("m", "s"), ("mu", "cov"), ("mean", "sigma"))
IMAGES = ("images", "arr_0")
ARRAYS = ("arr_1", "labels", *(key for pair in MOMENTS for key in pair), *ABOUT_MOMENTS)
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
PIECE = 8 << 20  # bytes of a compressed array that are unpacked at a time


def read_zip(path: Path, options: Options, split: str | None = None) -> Samples:
    """Open the images of a zip in the sorted order of their names; they are decoded when they are asked for.

    Labels come from `options.labels_file`, from the index of StyleGAN's tools, or from class folders: the rules are
    those of folders (see `layout`). split: the split, if the zip has splits.
    Raises UserError if the zip or its first image is damaged, or if there is no image.
    """
    found = layout.of_zip(path, split, options.labels_file is None)
    labels, classes = labels_of_layout(found, options.labels_file)
    images = EncodedImages(found.files, options.decoding, str(path), options.progress)
    origin = {
        "kind": "zip", "name": path.name, **({"split": found.split} if found.splits else {}),
        "fingerprint": fingerprint_of_files(images, labels), "fingerprint_of": "files",
        **of_files(str(path), found.left_out, found.remarks, options), **of_profiles(str(path), images, options),
        **origin_of_options(options),
    }
    return Samples(images, labels, origin, classes=classes)


def read_npz(path: Path, moments_alone: bool = False) -> Samples:
    """Read the arrays of an npz. More than IN_MEMORY bytes of images stay in the file, or are unpacked into another.

    `images` or `arr_0` holds the images, uint8 N x H x W x C or N x C x H x W. `labels` or `arr_1`, if there, holds
    integers N, 0 or more. `mu` and `sigma`, and `mu_s` and `sigma_s`, if there, hold moments of features: mean d and
    covariance d x d. moments_alone: accept a file with moments and no images.
    Raises UserError if the file is damaged, or if an array is missing or has another dtype or shape.
    """
    try:
        layout.require_regular_zip(path.stat(), path)
        with zipfile.ZipFile(path) as archive:  # np.load would also take a file of one array, or a pickle
            members = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
            name = next((key for key in IMAGES if key in members), None)
            headers = {key: _header(archive, members[key], path) for key in (*ARRAYS, name) if key in members}
            memory.require(
                sum(dtype.itemsize * int(np.prod(shape, dtype=object)) for key, (shape, dtype, _, _) in headers.items()
                    if key != name), f"{path}: its labels and moments",
            )
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in headers if key in ARRAYS}
        images = None if name is None else _images(path, members[name], name, *headers[name])
    except (*BROKEN_ARCHIVE, TypeError, SyntaxError) as error:
        raise UserError(
            f"{path} cannot be read as npz ({reason(error)}): check the path, or write it again with numpy.savez."
        ) from error
    labels = arrays.get("labels", arrays.get("arr_1"))
    origin: dict[str, Any] = {"kind": "npz", "name": path.name}
    moments = _checked_moments(path, arrays)
    if moments:
        about = {
            key: arrays[key].item() for key, kind in ABOUT_MOMENTS.items()
            if key in arrays and arrays[key].ndim == 0 and arrays[key].dtype.kind in kind
        }
        if about.get("n", 2) < 2:
            raise UserError(f"{path}: moments of n = {about['n']} images: write the number of images, 2 or more.")
        origin["moments"] = {"arrays": sorted(moments), **about}
    if images is None:
        if moments and not moments_alone:
            raise UserError(f"{path} holds moments and no images: use it only as --reference, for Fréchet distances.")
        if moments:
            return with_fingerprint(torch.zeros(0, 3, 1, 1, dtype=torch.uint8), None, origin, moments)
        held = ", ".join(repr(shortened(name, 40)) for name in sorted(members)[:8]) or "nothing"
        raise UserError(
            f"{path} has no array 'arr_0' or 'images', but {held}: write the images under one of these names."
            f"{_renaming(path, set(members))}"
        )
    if labels is not None:
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(f"{path}: labels must be {len(images)} whole numbers, one per image.")
        if labels.min() < 0 or labels.max() >= 2**62:
            raise UserError(
                f"{path}: labels must be 0 or more, not {labels.min()}: leave the array out if classes are unknown."
            )
    return with_fingerprint(
        images, None if labels is None else torch.from_numpy(labels.astype(np.int64)), origin, moments
    )


def _renaming(path: Path, names: set[str]) -> str:
    """Return a line of code that writes the arrays of an npz under the names that are read, or ""."""
    load, new = f"numpy.load({str(path)!r})", f"numpy.savez({f'{path.stem}-read.npz'!r}"
    for mean, covariance in OTHER_MOMENTS:
        if {mean, covariance} <= names:
            return f" For moments: a = {load}; {new}, mu=a[{mean!r}], sigma=a[{covariance!r}])."
    arrays = names - set(ARRAYS)
    if len(arrays) != 1:
        return ""
    (only,) = arrays
    return f" If {shortened(only, 40)!r} holds them: {new}, arr_0={load}[{only!r}])."


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> tuple[tuple[int, ...], Any, bool, int]:
    """Return shape, dtype, whether it is in Fortran's order, and the length of the header of an array in an npz."""
    with archive.open(member) as file:
        version = npy.read_magic(file)
        if version not in HEADERS:
            raise ValueError(f"version {version} of its array format is not known")
        shape, fortran, dtype = HEADERS[version](file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which are read with allow_pickle alone")
        return shape, dtype, fortran, file.tell()


def _images(
    path: Path, member: zipfile.ZipInfo, name: str, shape: tuple[int, ...], dtype: Any, fortran: bool, header: int
) -> Tensor | Images:
    """Return the images of an npz: in memory if they are few, else as they lie in a file."""
    if dtype != np.uint8 or len(shape) != 4:
        hint = ""
        if np.issubdtype(dtype, np.floating):
            hint = (
                f" For floats x in [0, 1]: {name} = (x * 255).round().astype('uint8'); for x in [-1, 1]: "
                f"{name} = (x * 127.5 + 128).clip(0, 255).astype('uint8')."
            )
        raise UserError(f"{path}: images must be uint8 with 4 dimensions, not {dtype} with {len(shape)}.{hint}")
    last = shape[3] in (1, 3)
    if not last and shape[1] not in (1, 3):
        raise UserError(f"{path}: images of shape {shape} have neither 1 nor 3 channels.")
    size = int(np.prod(shape, dtype=object))
    if size == 0:
        raise UserError(f"{path} holds no images: their shape is {shape}.")
    if member.file_size != size + header:
        raise ValueError(f"its images take {member.file_size - header:,} bytes, not the {size:,} of their shape")
    if size <= IN_MEMORY or fortran:
        memory.require(3 * size, f"{path}: its images")
        with np.load(path, allow_pickle=False) as arrays:
            array = arrays[name]
        return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2) if last else array))
    if member.compress_type == zipfile.ZIP_STORED:
        file = open(path, "rb")  # noqa: SIM115 - lives as long as the set that reads it
        file.seek(member.header_offset)
        local = file.read(30)  # the local header ends with the lengths of the name and of the extra field
        offset = member.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(
            local[28:30], "little")
        return ArrayFile(file, offset + header, shape, last, str(path))
    unpacked, _ = spooled(_pieces(path, member, header), None, str(path))
    return ArrayFile(unpacked, 0, shape, last, str(path))


def _pieces(path: Path, member: zipfile.ZipInfo, header: int) -> Iterator[Array]:
    """The bytes of a compressed array, piece by piece."""
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        file.read(header)
        while piece := file.read(PIECE):
            yield np.frombuffer(piece, np.uint8)


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
