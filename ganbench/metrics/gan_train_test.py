"""GAN-train and GAN-test: can a classifier learn from generated images, and does one of real images know them?

    GAN-train = accuracy on real test images of a classifier trained on generated images and the labels asked for
    GAN-test  = accuracy on generated images of a classifier trained on the real training images

Shmelkov et al. (2018), "How good is my GAN?", arXiv:1807.09499, Section 3; GAN-train is also the classification
accuracy score (CAS) of Ravuri and Vinyals (2019), "Classification Accuracy Score for Conditional Generative Models",
arXiv:1905.10887. Range [0, 1], higher is better. GAN-train is low for samples that are unreal, wrongly labelled or few
in kind, GAN-test for unreal or wrongly labelled ones; a GAN-test above the real images' own accuracy points at
overfitting (or at samples that are all easy). The ceiling is the row of real data.

Both papers train a ResNet; here it is ganbench's small classifier with its fixed recipe and seed, so that values
compare with each other and not with the papers'. GAN-train wants as many samples as there are training images.

The standard error is binomial over the images tested on; that of another training run is not in it.
"""

from collections.abc import Callable

from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Side, Unavailable, Uncertainty, Value, require_labels
from ganbench.metrics.discriminability import accuracy

Fit = Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]]


def train(fit: Fit | None, side: Side) -> Callable[[Tensor], Tensor]:
    """A classifier fitted to a labelled set. Raises Unavailable where it cannot be: too few images, or not square."""
    labels = require_labels(side)
    if fit is None:
        raise Unavailable("there is no classifier to train")
    if len(labels) == 0 or labels.min() < 0:
        raise Unavailable("a classifier needs images that are all labelled")
    try:
        return fit(side.images, labels)
    except ValueError as error:
        raise Unavailable(f"the classifier needs other images: {error}") from error


def _value(predict: Callable[[Tensor], Tensor], on: Side, n_real: int, n_fake: int, over: str, seen: Tensor) -> Value:
    """Accuracy on a labelled set, with a warning about classes that were not among the labels `seen` in training."""
    labels = require_labels(on)
    value, error = accuracy(predict(on.images), labels)
    unseen = sorted(set(labels.tolist()) - set(seen.tolist()))
    some = ", ".join(map(str, unseen[:5])) + (", ..." if len(unseen) > 5 else "")
    warnings = (f"no image to train on of {len(unseen)} of the classes tested: {some}",) if unseen else ()
    return Value(value, Uncertainty(error, "standard error", over), n_real, n_fake, warnings=warnings)


def _gan_train(inputs: Inputs) -> list[Value]:
    seen = require_labels(inputs.fake)
    if inputs.held_out is None:
        raise Unavailable("there are no real images beside the reference to test on")
    test = require_labels(inputs.held_out)
    predict = train(inputs.fit, inputs.fake)
    return [_value(predict, inputs.held_out, len(test), len(seen), "the test images (binomial)", seen)]


def _gan_test(inputs: Inputs) -> list[Value]:
    labels, seen = require_labels(inputs.fake), require_labels(inputs.real)
    predict = inputs.share("classifier of the reference", lambda: train(inputs.fit, inputs.real))
    return [_value(predict, inputs.fake, len(seen), len(labels), "the samples (binomial)", seen)]


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
