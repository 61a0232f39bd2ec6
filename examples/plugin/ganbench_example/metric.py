"""A metric: do generated images have as much ink as real ones?

    ink_gap = | E f(real) - E f(fake) |,   f: the mean of an image's features

The error is the standard error of a difference of two means, over the images of both sets.
"""

import math

from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Uncertainty, Value, require_features


def ink_gap(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """Return the difference of the mean features of two sets, at least 0, and its standard error.

    real: N x d. fake: M x d. Raises Unavailable for fewer than two images in a set.
    """
    if min(len(real), len(fake)) < 2:
        raise Unavailable("a spread needs at least two images in each set")
    a, b = real.double().mean(1), fake.double().mean(1)  # sums in float64
    error = math.sqrt(a.var().item() / len(a) + b.var().item() / len(b))
    return abs(a.mean() - b.mean()).item(), error


def _compute(inputs: Inputs) -> list[Value]:
    real, fake = require_features(inputs)
    value, error = ink_gap(real, fake)
    return [Value(value, Uncertainty(error, "standard error", "the images of both sets"), len(real), len(fake))]


PROTOCOLS = [
    Protocol(
        stem="ink_gap",  # on the command line: ink_gap_<extractor>
        version=1,  # raise it whenever a value changes: only equal protocols are compared
        summary="difference of mean features",
        source="this package",
        direction="lower",
        compute=_compute,
        needs=frozenset({"real.features", "fake.features"}),
    ),
]
