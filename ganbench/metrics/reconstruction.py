"""Reconstruction error: how far the model's own reconstruction of a held-out image is from it.

    mse = mean over images, channels and pixels of (x - G(E(x)))^2,   l1 = the same of |x - G(E(x))|

on pixels in [-1, 1] (v / 127.5 - 1): an error of one grey level is 0.0078 in l1, and in units of [0, 1] l1 is half and
mse a quarter of this. Range [0, 4] and [0, 2], lower is better. Bao et al. (2017), "CVAE-GAN: Fine-Grained Image
Generation through Asymmetric Training", arXiv:1703.10155, train with the squared error; Donahue et al. (2017),
"Adversarial Feature Learning", arXiv:1605.09782, compare with autoencoders of either. The papers print no such figure
that we know of: unit and mean are our reading.

The standard error is over the images.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Uncertainty, Value

BATCH = 1000


def mean_squared_errors(images: Tensor, reconstructed: Tensor) -> Tensor:
    """Mean squared error of each of N float images in [-1, 1] over channels and pixels: float64, shape N."""
    return (images.double() - reconstructed.double()).square().flatten(1).mean(1)


def mean_absolute_errors(images: Tensor, reconstructed: Tensor) -> Tensor:
    """Mean absolute error of each of N float images in [-1, 1] over channels and pixels: float64, shape N."""
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
            again = inputs.model.reconstruct(batch)
            if again.shape != batch.shape:
                wanted, found = tuple(batch.shape[1:]), tuple(again.shape[1:])
                raise Unavailable(f"the model reconstructs images of {wanted} as ones of {found}")
            errors.append(formula(batch.float() / 127.5 - 1, again))
        values = torch.cat(errors)
        if not torch.isfinite(values).all():
            raise Unavailable("some reconstructions are not finite: the model is broken")
        uncertainty = Uncertainty(values.std().item() / math.sqrt(n), "standard error", "the held-out images")
        return [Value(values.mean().item(), uncertainty, n, 0, details={"unit": "pixels in [-1, 1]"})]

    return Protocol(
        stem=stem,
        version=1,
        summary=f"Mean {what} error of the reconstruction of held-out images, pixels in [-1, 1]",
        source="Bao et al. 2017, arXiv:1703.10155",
        direction="lower",
        compute=compute,
        needs=frozenset({"model.reconstruct", "held_out.images"}),
        real_row="none",
    )


PROTOCOLS = [
    _protocol("reconstruction_l1", mean_absolute_errors, "absolute"),
    _protocol("reconstruction_mse", mean_squared_errors, "squared"),
]
