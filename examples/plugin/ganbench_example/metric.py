"""Minimum matching distance: how far real images are from the nearest generated image.

    matching distance = mean over real x of min over generated g of |f(x) - f(g)|_2,   f: features

Source: Achlioptas et al. (2018), "Learning Representations and Generative Models for 3D Point Clouds",
arXiv:1707.02392, Section 4 (called MMD there). The paper compares point clouds; features of images are our choice.
Range [0, inf), lower is better. The distance grows if a kind of real image is never generated. It shrinks with the
number of generated images, and it is 0 for a copy of the training set: compare it with the row of real data.

The standard error is over the real images, for fixed generated images. The variation over generated sets is left
out: that is little for as many generated images as real ones. For a sixth as many, the error is a third too small.
"""

import math

from torch import Tensor

from ganbench.metrics import Inputs, Protocol, Unavailable, Value, known, nearest, require_features


def matching_distances(real: Tensor, fake: Tensor) -> Tensor:
    """Return the distance of each real image to the nearest generated one: float64 N.

    real, fake: floating N x d and M x d. Raises Unavailable if there is no generated image.
    """
    return (real.double() - fake[nearest(real, fake)].double()).norm(dim=1)


def _compute(inputs: Inputs) -> list[Value]:
    real, fake = require_features(inputs)  # float32 N x d and M x d, finite
    n = len(real)
    if n < 2:
        raise Unavailable(f"a mean with its error needs at least 2 real images, not {n}")
    distances = matching_distances(real, fake)
    value, error = distances.mean().item(), distances.std().item() / math.sqrt(n)
    uncertainty, unknown = known(error, "the real images", size=value, alike="all distances are equal", n=n)
    counts = f"{len(fake):,} generated images: comparable only at equal counts"
    return [Value(value, uncertainty, n_real=n, n_fake=len(fake), warnings=(counts, *unknown))]


PROTOCOLS = [
    Protocol(
        stem="matching_distance",  # on the command line: matching_distance_<extractor>
        version=1,  # raise it whenever a value changes: only equal protocols are compared
        summary="Mean distance of real images to the nearest generated one",
        source="Achlioptas et al. 2018, arXiv:1707.02392, Section 4",
        direction="lower",
        compute=_compute,
        needs=frozenset({"real.features", "fake.features"}),
    ),
]
