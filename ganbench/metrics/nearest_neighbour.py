"""Test error of a nearest-neighbour classifier that knows generated images only.

    error = mean over real test images t of [ y(argmin_g |t - g|_2) != y(t) ]

with g over generated images and y(g) the label that was asked for. Radford et al. (2016), "Unsupervised
Representation Learning with DCGANs", arXiv:1511.06434, appendix on capturing data distributions: raw pixels, 50,000
generated images of MNIST. Range [0, 1], lower is better. The row of real data uses the reference as training set. On
MNIST's own 60,000 training images it is 3.09 %.
"""

import math

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Uncertainty, Value, require_labels


def nearest(queries: Tensor, points: Tensor, chunk: int = 500) -> Tensor:
    """Index of the Euclidean nearest of M x d uint8 points for each of N x d uint8 queries: int64 N.

    Exact, and the first wins a tie: sums of d products of pixels less 128 are whole numbers up to 2^14 d, which
    float32 holds for d <= 1,024 and float64 always; their differences are taken in float64.
    """
    dtype = torch.float32 if points.shape[1] <= 1024 else torch.float64
    p = points.to(dtype) - 128
    norm = p.square().sum(1).double()
    return torch.cat([(norm - 2 * (q.to(dtype) - 128) @ p.T).argmin(1) for q in queries.split(chunk)])


def _compute(inputs: Inputs) -> list[Value]:
    if inputs.held_out is None:
        raise Unavailable("no real images beside the reference to test on")
    labels, truth = require_labels(inputs.fake), require_labels(inputs.held_out)
    train, test = inputs.fake.images, inputs.held_out.images
    if train.shape[1:] != test.shape[1:]:
        raise Unavailable("generated and real images differ in size")
    wrong = labels[nearest(test.flatten(1), train.flatten(1))] != truth
    value, n = wrong.double().mean().item(), len(wrong)
    p = (int(wrong.sum()) + 2) / (n + 4)
    uncertainty = Uncertainty(math.sqrt(p * (1 - p) / (n + 4)), "standard error", "the test images (binomial)")
    return [Value(value, uncertainty, n, len(train))]


PROTOCOLS = [
    Protocol(
        stem="nn_error",
        version=1,
        summary="Test error of 1-NN on pixels with generated images as training set",
        source="Radford et al. 2016, arXiv:1511.06434, appendix",
        direction="lower",
        compute=_compute,
        needs=frozenset({"fake.images", "fake.labels", "held_out.images", "held_out.labels"}),
        real_row="reference",
    )
]
