"""Checks of what a model returns: a model of another package may return anything."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ganbench.base.errors import UserError
from ganbench.base.registry import reason
from ganbench.base.standard_output import user_code
from ganbench.gan.contract import GAN


def name_of(gan: GAN) -> str:
    """Return the words that name a model in a message: those of its class and module."""
    return f"the model {type(gan).__module__}.{type(gan).__qualname__}"


def require_model(gan: Any) -> None:
    """Raise TypeError unless this is a model that says which images it makes."""
    if not isinstance(gan, GAN):
        raise TypeError(f"it is no ganbench.gan.GAN, but a {type(gan).__name__}")
    shape = getattr(gan, "image_shape", None)
    if not isinstance(shape, tuple | list) or len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape):
        raise TypeError(f"its image_shape must be three positive whole numbers C, H, W, not {shape!r}")
    if shape[0] not in (1, 3):
        raise TypeError(f"its images must have 1 or 3 channels, not {shape[0]}")
    if type(gan.num_classes) is not int or gan.num_classes < 0:
        raise TypeError(f"its num_classes must be a whole number, not {gan.num_classes!r}")


def images_of(gan: GAN, n: int, make: Callable[[], Tensor | None], wanted: bool = True) -> Tensor | None:
    """Return the images that `make` makes with a method of the model: float n x C x H x W.

    wanted: False if `make` may return None. Raises UserError, which names the model, if the method fails or returns
    anything else.
    """
    try:
        with user_code():
            images = make()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{name_of(gan)} failed: {reason(error)}. Mend that model.") from error
    shape = (n, *gan.image_shape)
    if images is None and not wanted:
        return None
    if not isinstance(images, Tensor):
        found = f"an object of type {type(images).__name__}"
    elif tuple(images.shape) != shape or not images.is_floating_point():
        found = f"{str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}"
    else:
        return images
    raise UserError(f"{name_of(gan)} returned {found}, not float images of shape {shape}. Mend that model.")
