"""Test error of the model's own classifier, learnt from few labels: the measure of semi-supervised GANs.

    error = mean over held-out images of [ argmax_k C(x)_k != y ]

Salimans et al. (2016), "Improved Techniques for Training GANs", arXiv:1606.03498, Section 5.1 and Tables 1 and 2; Deng
et al. (2017), "Structured Generative Adversarial Networks", arXiv:1711.00889. Range [0, 1], lower is better. The test
images are looked at once, with the weights that are given: no step, epoch or model is chosen on them. An answer beyond
the data set's classes (K + 1: "generated") is an error.

The standard error is binomial over the images. The papers' mean and deviation are over draws of the labels that were
trained on: here each draw is a seed of its own run, and the table over seeds gives both.
"""

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Uncertainty, Value, require_labels
from ganbench.metrics.discriminability import proportion


def test_error(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Share of N x K logits whose largest is not at the label (int64 N), and its standard error."""
    return proportion(logits.argmax(1) != labels)


def own_answers(inputs: Inputs) -> Tensor:
    """The model's logits N x K of the held-out images. Raises Unavailable where there are none, or not finite."""
    if inputs.model is None or inputs.model.classify is None:
        raise Unavailable("there is no model that classifies")
    if inputs.held_out is None:
        raise Unavailable("there are no real images beside the reference to test on")
    classify, images = inputs.model.classify, inputs.held_out.images
    logits: Tensor = inputs.share("answers to the held-out images", lambda: classify(images))
    if not torch.isfinite(logits).all():
        raise Unavailable("some answers of the model are not finite: its classifier is broken")
    return logits


def _compute(inputs: Inputs) -> list[Value]:
    if inputs.held_out is None:
        raise Unavailable("there are no real images beside the reference to test on")
    labels, logits = require_labels(inputs.held_out), own_answers(inputs)
    if int(labels.max()) >= logits.shape[1]:
        raise Unavailable(f"label {int(labels.max())} is beyond the model's {logits.shape[1]} classes")
    value, error = test_error(logits, labels)
    uncertainty = Uncertainty(error, "standard error", "the test images (binomial)")
    return [Value(value, uncertainty, len(labels), 0)]


PROTOCOLS = [
    Protocol(
        stem="test_error",
        version=1,
        summary="Error of the model's own classifier on held-out images",
        source="Salimans et al. 2016, arXiv:1606.03498, Sec. 5.1",
        direction="lower",
        compute=_compute,
        needs=frozenset({"model.classify", "held_out.images", "held_out.labels"}),
        real_row="none",
    )
]
