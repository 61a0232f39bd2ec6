"""Images from Python objects: tensors and arrays, batches of a DataLoader, functions, and networks.

What the command line reads from files, Python code has in its hands. Floats say their range: nothing is guessed.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ganbench.base.errors import UserError
from ganbench.data.images import to_uint8
from ganbench.data.sources.callables import collected
from ganbench.data.sources.generators import of_module
from ganbench.data.sources.samples import Options, Samples, take, with_fingerprint
from ganbench.data.streams import Images

BATCH = 500  # images that a function is asked for at once
OUTSIDE = 0.1  # of the range: how far floats may lie beyond the one that was declared

Range = tuple[float, float]


def samples_of(
    value: Any, what: str, num: int | None = None, seed: int = 0, labels: Any = None, value_range: Range | None = None,
    options: Options | None = None,
) -> Samples:
    """Return the images of an object as samples.

    value:

    - a tensor or an array, N x C x H x W, N x H x W x C or N x H x W, C = 1 or 3: uint8, or floats in `value_range`;
    - an iterable of such batches, or of (images, labels), such as a DataLoader. It is read once, and kept as uint8;
    - a network that makes images from latents, `nn.Module`: `options` give the shape of a latent, its prior and the
      number of classes. It is called in evaluation mode, as network(z) or network(z, y), on the device of its weights;
    - a function. It is called as f(n, first) for images first, ..., first + n - 1, and returns images or (images,
      labels).

    what: the name of the argument, for messages. num: of images; a function and a network need it. seed: of what is
    drawn. labels: int64 N or a sequence of whole numbers, for images that come without.
    Raises UserError for anything else, for floats of an undeclared range or outside of it, and for NaN.
    """
    if isinstance(value, nn.Module):
        if labels is not None:
            raise UserError(f"{what}: a network draws its labels itself: give classes= and leave labels= out.")
        return of_module(value, what, _number(num, what, "a network"), seed, options or Options(), value_range)
    origin: dict[str, Any] = {"kind": type(value).__name__}
    images: Tensor | Images
    if isinstance(value, Tensor | np.ndarray):
        images, own = as_images(value, what, value_range), None
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes | dict | os.PathLike):
        images, own = collected(what, _batches(iter(value), what, num, value_range))
    elif callable(value):
        n, name = _number(num, what, "a function"), getattr(value, "__name__", type(value).__name__)
        origin = {"kind": "callable", "name": name}
        calls = (value(min(BATCH, n - first), first) for first in range(0, n, BATCH))
        images, own = collected(what, _batches(calls, what, None, value_range))
        if len(images) != n:
            raise UserError(f"{what}: the function was asked for {n:,} images in all, and returned {len(images):,}.")
    else:
        raise UserError(
            f"{what} must be a path, a tensor, an array, an iterable of batches, a function or a network, not "
            f"{type(value).__name__}."
        )
    if not len(images):
        raise UserError(f"{what} holds no images.")
    if labels is not None and own is not None:
        raise UserError(f"{what}: the batches have labels of their own: leave labels= out.")
    if labels is not None:
        own = as_labels(labels, len(images), f"the labels of {what}")
    return take(with_fingerprint(images, own, origin), num, what, seed)


def as_images(value: Tensor | np.ndarray, what: str, value_range: Range | None = None) -> Tensor:
    """Return images as a contiguous uint8 tensor N x C x H x W on the CPU. Raises UserError as `samples_of` does.

    A level v stands for the same floats whatever their range: x in [low, high] is mapped to [-1, 1] first.
    """
    x = torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value.detach().cpu()
    x = x.unsqueeze(1) if x.ndim == 3 else x
    if x.ndim == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        x = x.permute(0, 3, 1, 2)
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise UserError(
            f"{what}: images must have the shape N x C x H x W or N x H x W x C with C = 1 or 3, not "
            f"{tuple(value.shape)}."
        )
    if x.dtype == torch.uint8:
        if value_range is not None:
            raise UserError(f"{what} is uint8, whose range is known: leave value_range= out.")
        return x.contiguous()
    if not x.is_floating_point():
        raise UserError(f"{what}: images must be uint8 or floats, not {x.dtype}.")
    if value_range is None:
        raise UserError(f"{what} holds floats: say their range, as value_range=(0, 1) or value_range=(-1, 1).")
    low, high = value_range
    if not low < high:
        raise UserError(f"value_range={value_range}: the first number must be less than the second.")
    if x.numel():
        least, most = x.min().item(), x.max().item()
        if min(least - low, high - most) < -OUTSIDE * (high - low):
            raise UserError(f"{what}: floats of {least:.3g} to {most:.3g} are not in value_range={value_range}.")
    try:
        return to_uint8((x.float() - low) * (2 / (high - low)) - 1).contiguous()
    except ValueError as error:
        raise UserError(f"{what}: {error}.") from error


def as_labels(value: Any, n: int, what: str) -> Tensor:
    """Return n labels, int64, from whole numbers of 0 or more. Raises UserError for anything else."""
    if not isinstance(value, Tensor | np.ndarray | Sequence) or isinstance(value, str | bytes):
        raise UserError(f"{what} must be a tensor, an array or a list of whole numbers, not {type(value).__name__}.")
    try:
        labels = value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value))
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} must be whole numbers: {error}.") from error
    if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool or labels.ndim != 1:
        raise UserError(f"{what} must be whole numbers, one for each image, not {labels.dtype} of {labels.ndim} axes.")
    if len(labels) != n or (n and labels.min() < 0):
        raise UserError(f"{what} must be {n:,} numbers of 0 or more, one for each image.")
    return labels.to(torch.int64)


def _batches(
    batches: Iterator[Any], what: str, num: int | None, value_range: Range | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield images and labels of batches, at most `num` images in all."""
    left = num
    for index, batch in enumerate(batches):
        where = f"{what}, batch {index}"
        images, labels = batch if isinstance(batch, tuple | list) and len(batch) == 2 else (batch, None)
        if not isinstance(images, Tensor | np.ndarray):
            raise UserError(f"{where} must be a tensor or an array of images, or (images, labels), not "
                            f"{type(batch).__name__}.")
        x = as_images(images, where, value_range)
        y = None if labels is None else as_labels(labels, len(x), f"{where}: the labels")
        yield x[:left], None if y is None else y[:left]
        if left is not None and (left := left - len(x)) <= 0:
            return


def _number(num: int | None, what: str, kind: str) -> int:
    if num is None:
        raise UserError(f"{what} is {kind}, which makes any number of images: give num=.")
    return num

