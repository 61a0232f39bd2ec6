"""Images from a Python function of the user, named as `module:callable`."""

import importlib
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ganbench.base.errors import UserError, shortened
from ganbench.base.standard_output import user_code
from ganbench.data.images import check
from ganbench.data.sources.samples import Samples, with_fingerprint
from ganbench.data.streams import IN_MEMORY, ArrayFile, Images, spooled


def call(text: str, num: int | None, seed: int) -> Samples:
    """Call `module:callable` as f(num, seed), and return its images as samples.

    The module is looked for in the working directory too, before all others. The function returns images, uint8
    N x 1|3 x H x W; or (images, labels) with labels int64 N, 0 or more; or an iterator of such batches, which may hold
    more than fits into memory. What it prints goes to stderr.
    Raises UserError if the function cannot be imported, fails, or returns anything else.
    """
    if num is None:
        raise UserError(f"'{text}' makes any number of images: give the number with --num.")
    with user_code():
        function = _find(text)
        out = _run(text, num, seed, lambda: function(num, seed))
        images: Tensor | Images
        if isinstance(out, Tensor) or (isinstance(out, tuple) and len(out) == 2):
            images, labels = _checked(text, out)
        elif isinstance(out, Iterable) and not isinstance(out, str | bytes | dict):
            images, labels = collected(f"'{text}'", _checked_batches(text, num, seed, iter(out)), num)
        else:
            raise UserError(
                f"'{text}' must return a tensor of images, or (images, labels), or an iterator of these, not "
                f"{type(out).__name__}."
            )
    if len(images) != num or not math.prod(images.shape):
        raise UserError(f"'{text}' was asked for {num:,} images, but returned shape {tuple(images.shape)}.")
    return with_fingerprint(images, labels, {"kind": "callable", "name": text, "seed": seed})


def _find(text: str) -> Callable[[int, int], Any]:
    module, _, attribute = text.partition(":")
    if not getattr(sys.flags, "safe_path", False) and "" not in sys.path:
        sys.path.insert(0, "")  # so that modules in the working directory are found
    try:
        function: Callable[[int, int], Any] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"cannot read images from '{shortened(text)}': it is no folder, file or data set, and no callable "
            f"({error}). Check the spelling."
        ) from error
    except (Exception, SystemExit) as error:
        raise UserError(
            f"'{text}': the module cannot be imported ({type(error).__name__}: {error}). Correct the module."
        ) from error
    return function


def _run(text: str, num: int, seed: int, step: Callable[[], Any]) -> Any:
    """Run a step of the user's code. Raises UserError for whatever it raises, also for an attempt to leave."""
    try:
        return step()
    except StopIteration:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(
            f"'{text}' failed when called with ({num}, {seed}): {type(error).__name__}: {error}. Correct the function."
        ) from error


def _checked(text: str, out: Any) -> tuple[Tensor, Tensor | None]:
    """Return images and labels of one call or one batch. Raises UserError if they are anything else."""
    images, labels = out if isinstance(out, tuple) and len(out) == 2 else (out, None)
    if not isinstance(images, Tensor):
        raise UserError(f"'{text}' must return a tensor of images, or (images, labels), not {type(out).__name__}.")
    try:
        images = check(images.detach().cpu())
    except TypeError as error:
        raise UserError(f"'{text}' must return images: {error}.") from error
    if labels is not None:
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise UserError(f"'{text}': labels must be an int64 tensor of length {len(images):,}, one per image.")
        labels = labels.cpu()
        if len(labels) and labels.min() < 0:
            raise UserError(
                f"'{text}': labels must be 0 or more, not {int(labels.min())}: return none if classes are unknown."
            )
    return images, labels


def _checked_batches(text: str, num: int, seed: int, batches: Iterator[Any]) -> Iterator[tuple[Tensor, Tensor | None]]:
    while True:
        try:
            yield _checked(text, _run(text, num, seed, lambda: next(batches)))
        except StopIteration:
            return


def collected(
    name: str, batches: Iterator[tuple[Tensor, Tensor | None]], most: int | None = None
) -> tuple[Tensor | Images, Tensor | None]:
    """Return the images and labels of checked batches as one set; many images go into a temporary file.

    name: of the source, for messages. most: the number of images that were asked for. Raises UserError for more than
    these, for images of several shapes, and for labels that come with some batches alone.
    """
    labels: list[Tensor | None] = []
    shapes: list[tuple[int, ...]] = []

    def arrays() -> Iterator[np.ndarray]:
        rows = 0
        for images, of_images in batches:
            rows += len(images)
            if most is not None and rows > most:
                raise UserError(f"{name} was asked for {most:,} images, but goes on after them: stop there.")
            labels.append(of_images)
            shapes.append(tuple(images.shape[1:]))
            if shapes[-1] != shapes[0]:
                raise UserError(f"{name} returned images of {shapes[0]} and of {shapes[-1]}: give all one size.")
            yield images.numpy()

    file, rows = spooled(arrays(), None, name)
    shape = (rows, *(shapes[0] if shapes else (1, 0, 0)))
    if len({of is None for of in labels}) > 1:
        raise UserError(f"{name} returned labels with some batches and not with others.")
    known = [of for of in labels if of is not None]
    made = ArrayFile(file, 0, shape, False, name)
    return made[:] if math.prod(shape) <= IN_MEMORY else made, torch.cat(known) if known else None
