"""Test error of the model's own classifier, which is trained with few labels: the measure of semi-supervised GANs.

    error = mean over held-out images of [ argmax_k C(x)_k != y ]

Sources: Salimans et al. (2016), "Improved Techniques for Training GANs", arXiv:1606.03498, Section 5.1 and Tables 1 and
2; Deng et al. (2017), "Structured Generative Adversarial Networks", arXiv:1711.00889. Range [0, 1], lower is better.
The test images are used only once, with the given weights: no step, epoch or model is selected on them. A prediction
outside the classes of the data set (class K + 1: "generated") is an error.

The standard error is binomial over the images. The papers give mean and deviation over draws of the training labels:
here each draw is a training run with its own seed, and the table over seeds gives both.
"""

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Uncertainty, Value, require_answers, require_labels
from ganbench.metrics.discriminability import proportion


def test_error(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the share of images whose largest logit is not at the label, in [0, 1], and its standard error.

    logits: floating N x K. labels: int64 N.
    Raises Unavailable if there are no images.
    Source: Salimans et al. (2016), Section 5.1.

    >>> test_error(torch.eye(4), torch.tensor([0, 1, 2, 0]))[0]
    0.25
    """
    require_answers(logits, labels)
    return proportion(logits.argmax(1) != labels)


def own_answers(inputs: Inputs) -> Tensor:
    """Return the model's logits of the held-out images: N x K.

    Raises Unavailable if there is no classifier, if there are no held-out images, or if logits are not finite.
    """
    if inputs.model is None or inputs.model.classify is None:
        raise Unavailable("there is no model that classifies")
    if inputs.held_out is None:
        raise Unavailable("there are no real images beside the reference to test on")
    classify, images = inputs.model.classify, inputs.held_out.images
    logits: Tensor = inputs.share("answers to the held-out images", lambda: classify(images))
    if not torch.isfinite(logits).all():
        raise Unavailable("some logits of the model are not finite: its classifier is broken")
    return logits


def _compute(inputs: Inputs) -> list[Value]:
    if inputs.held_out is None:
        raise Unavailable("there are no real images beside the reference to test on")
    labels, logits = require_labels(inputs.held_out), own_answers(inputs)
    own, theirs = 0 if inputs.model is None else inputs.model.num_classes, len(inputs.held_out.classes)
    if own and theirs and own != theirs:
        raise Unavailable(f"the held-out images have {theirs} classes, and the model has {own}")
    if int(labels.max()) >= logits.shape[1]:
        raise Unavailable(f"label {int(labels.max())} is not one of the model's {logits.shape[1]} classes")
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
        rows="stream",
    )
]
