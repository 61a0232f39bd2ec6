"""Images from a Python function of the user, named as `module:callable`."""

import importlib
import sys

import torch
from torch import Tensor

from ganbench.base.errors import UserError
from ganbench.data.images import check
from ganbench.data.sources.samples import Samples, with_fingerprint


def call(text: str, num: int | None, seed: int) -> Samples:
    """Call `module:callable` as f(num, seed), and return its images as samples.

    The function returns images, uint8 N x 1|3 x H x W, or (images, labels) with labels int64 N.
    Raises UserError if the function cannot be imported, fails, or returns anything else.
    """
    if num is None:
        raise UserError(f"'{text}' makes any number of images: give the number with --num.")
    module, _, attribute = text.partition(":")
    if not getattr(sys.flags, "safe_path", False) and "" not in sys.path:
        sys.path.insert(0, "")  # so that modules in the working directory are found
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"cannot read images from '{text}': it is no folder, file or data set, and no callable ({error}). Check "
            "the spelling."
        ) from error
    except Exception as error:
        raise UserError(
            f"'{text}': the module cannot be imported ({type(error).__name__}: {error}). Correct the module."
        ) from error
    try:
        out = function(num, seed)
    except Exception as error:
        raise UserError(
            f"'{text}' failed when called with ({num}, {seed}): {type(error).__name__}: {error}. Correct the function."
        ) from error
    images, labels = out if isinstance(out, tuple) and len(out) == 2 else (out, None)
    if not isinstance(images, Tensor):
        raise UserError(f"'{text}' must return a tensor of images, or (images, labels), not {type(out).__name__}.")
    try:
        images = check(images.cpu())
    except TypeError as error:
        raise UserError(f"'{text}' must return images: {error}.") from error
    if len(images) != num or images.numel() == 0:
        raise UserError(f"'{text}' was asked for {num:,} images, but returned shape {tuple(images.shape)}.")
    if labels is not None:
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != (num,):
            raise UserError(f"'{text}': labels must be an int64 tensor of length {num:,}, one per image.")
        labels = labels.cpu()
    return with_fingerprint(images, labels, {"kind": "callable", "name": text, "seed": seed})
