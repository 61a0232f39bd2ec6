"""Reconstruction error: the difference between a held-out image and its reconstruction by the model.

    mse = mean over images, channels and pixels of (x - G(E(x)))^2,   l1 = mean of |x - G(E(x))|

Pixels are in [-1, 1] (v / 127.5 - 1): an error of one grey level is 0.0078 in l1. For pixels in [0, 1], l1 would be a
half and mse a quarter of these values. Range of mse [0, 4] and of l1 [0, 2], lower is better.

Sources: Bao et al. (2017), "CVAE-GAN: Fine-Grained Image Generation through Asymmetric Training", arXiv:1703.10155,
train with the squared error; Donahue et al. (2017), "Adversarial Feature Learning", arXiv:1605.09782, compare with
autoencoders that are trained with either error. We know of no such value in the papers: the unit and the mean are our
interpretation.

The standard error is over the images.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Value, known, require_tensor

BATCH = 1000


def _require(images: Tensor, reconstructed: Tensor) -> None:
    require_tensor(images, "images", "N x C x H x W")
    require_tensor(reconstructed, "reconstructed", "N x C x H x W")
    if reconstructed.shape != images.shape:
        shapes = f"{tuple(images.shape)} and {tuple(reconstructed.shape)}"
        raise ValueError(f"images and reconstructions must have one shape, not {shapes}")


def mean_squared_errors(images: Tensor, reconstructed: Tensor) -> Tensor:
    """Return the mean squared error of each image over channels and pixels: float64 N, in [0, 4].

    images, reconstructed: floating N x C x H x W in [-1, 1].
    Source: Bao et al. (2017).

    >>> mean_squared_errors(torch.ones(1, 1, 2, 2), torch.tensor([[[[1.0, 1.0], [0.0, -1.0]]]]))
    tensor([1.2500], dtype=torch.float64)
    """
    _require(images, reconstructed)
    return (images.double() - reconstructed.double()).square().flatten(1).mean(1)


def mean_absolute_errors(images: Tensor, reconstructed: Tensor) -> Tensor:
    """Return the mean absolute error of each image over channels and pixels: float64 N, in [0, 2].

    images, reconstructed: floating N x C x H x W in [-1, 1].
    Source: Donahue et al. (2017).

    >>> mean_absolute_errors(torch.ones(1, 1, 2, 2), torch.tensor([[[[1.0, 1.0], [0.0, -1.0]]]]))
    tensor([0.7500], dtype=torch.float64)
    """
    _require(images, reconstructed)
    return (images.double() - reconstructed.double()).abs().flatten(1).mean(1)


def _protocol(stem: str, formula: Callable[[Tensor, Tensor], Tensor], what: str) -> Protocol:
    def compute(inputs: Inputs) -> list[Value]:
        if inputs.held_out is None:
            raise Unavailable("there are no real images beside the reference to reconstruct")
        if inputs.model is None or inputs.model.reconstruct is None:
            raise Unavailable("there is no model that reconstructs")
        n = len(inputs.held_out)
        if n < 2:
            raise Unavailable(f"a mean with its error needs at least 2 images, not {n}")
        errors = []
        for batch in inputs.held_out.images.split(BATCH):
            reconstructed = inputs.model.reconstruct(batch)
            if reconstructed.shape != batch.shape:
                wanted, found = tuple(batch.shape[1:]), tuple(reconstructed.shape[1:])
                raise Unavailable(f"the model reconstructs images of shape {wanted} with shape {found}")
            if not torch.isfinite(reconstructed).all():
                raise Unavailable("some reconstructions are not finite: the model is broken")
            errors.append(formula(batch.float() / 127.5 - 1, reconstructed))
        values = torch.cat(errors)
        value, error = values.mean().item(), values.std().item() / math.sqrt(n)
        uncertainty, unknown = known(error, "the held-out images", value, "all images have one error", n)
        return [Value(value, uncertainty, n, 0, details={"unit": "pixels in [-1, 1]"}, warnings=unknown)]

    return Protocol(
        stem=stem,
        version=1,
        summary=f"Mean {what} error of the reconstruction of held-out images, pixels in [-1, 1]",
        source="Bao et al. 2017, arXiv:1703.10155",
        direction="lower",
        compute=compute,
        needs=frozenset({"model.reconstruct", "held_out.images"}),
        real_row="none",
        rows="stream",
    )


PROTOCOLS = [
    _protocol("reconstruction_l1", mean_absolute_errors, "absolute"),
    _protocol("reconstruction_mse", mean_squared_errors, "squared"),
]
