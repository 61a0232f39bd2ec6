"""GAN-train and GAN-test: train a classifier on generated images, or test a classifier of real images on them.

    GAN-train = accuracy on real test images of a classifier trained on generated images and the requested labels
    GAN-test  = accuracy on generated images of a classifier trained on the real training images

Source: Shmelkov et al. (2018), "How good is my GAN?", arXiv:1807.09499, Section 3. GAN-train is also the classification
accuracy score (CAS) of Ravuri and Vinyals (2019), "Classification Accuracy Score for Conditional Generative Models",
arXiv:1905.10887. Range [0, 1], higher is better; the upper limit is the row of real data. GAN-train is low if samples
are unrealistic, wrongly labelled or lack variety. GAN-test is low if they are unrealistic or wrongly labelled. A
GAN-test above the accuracy on real images suggests overfitting (or samples that are all easy).

Both papers train a ResNet. Here it is ganbench's small classifier with its fixed recipe and seed, so that values can be
compared with each other, but not with those of the papers. GAN-train needs as many samples as training images.

The standard error is binomial over the test images; the variation over training runs is not included.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ganbench.metrics.contract import (
    Inputs,
    Protocol,
    Side,
    Unavailable,
    Uncertainty,
    Value,
    compare_labels,
    pixels,
    require_labels,
)
from ganbench.metrics.discriminability import accuracy

Fit = Callable[[Tensor, Tensor], Callable[[Any], Tensor]]


def train(fit: Fit | None, side: Side) -> Callable[[Any], Tensor]:
    """Return a classifier that is fitted to a labelled set.

    Raises Unavailable if it cannot be trained: too few images, or images that are not square.
    """
    labels = require_labels(side)
    if fit is None:
        raise Unavailable("there is no classifier to train")
    if len(labels) == 0:
        raise Unavailable("a classifier needs a label for every image")
    try:
        return fit(pixels(side), labels)
    except ValueError as error:
        raise Unavailable(f"the classifier needs other images: {error}") from error


def _value(
    predict: Callable[[Any], Tensor], on: Side, n_real: int, n_fake: int, over: str, warnings: tuple[str, ...]
) -> Value:
    """Accuracy on a labelled set."""
    value, error = accuracy(predict(on.images), require_labels(on))
    return Value(value, Uncertainty(error, "standard error", over), n_real, n_fake, warnings=warnings)


def _gan_train(inputs: Inputs) -> list[Value]:
    if inputs.held_out is None:
        raise Unavailable("there are no real images beside the reference to test on")
    warnings = compare_labels(inputs.fake, inputs.held_out, "the samples", "the test images")
    predict, n, m = train(inputs.fit, inputs.fake), len(inputs.held_out), len(inputs.fake)
    return [_value(predict, inputs.held_out, n, m, "the test images (binomial)", warnings)]


def _gan_test(inputs: Inputs) -> list[Value]:
    warnings = compare_labels(inputs.real, inputs.fake, "the reference", "the samples", refuse=True)
    predict = inputs.share("classifier of the reference", lambda: train(inputs.fit, inputs.real))
    return [_value(predict, inputs.fake, len(inputs.real), len(inputs.fake), "the samples (binomial)", warnings)]


PROTOCOLS = [
    Protocol(
        stem="gan_train",
        version=1,
        summary="Accuracy on real test images of a small classifier trained on generated images",
        source="Shmelkov et al. 2018, arXiv:1807.09499, Sec. 3",
        direction="higher",
        compute=_gan_train,
        needs=frozenset({"fake.images", "fake.labels", "held_out.images", "held_out.labels", "fit"}),
        real_row="reference",
    ),
    Protocol(
        stem="gan_test",
        version=1,
        summary="Accuracy on generated images of a small classifier trained on the reference",
        source="Shmelkov et al. 2018, arXiv:1807.09499, Sec. 3",
        direction="higher",
        compute=_gan_test,
        needs=frozenset({"real.images", "real.labels", "fake.images", "fake.labels", "fit"}),
    ),
]
