"""Mutual predictability of a label y and a latent z: a model that keeps them apart lets neither tell the other.

    y_from_z   test accuracy of a support vector machine that predicts y from z = E(x)
    z_from_y   1 - sum_i |z_i - m(y_i)|^2 / sum_i |z_i - m|^2 over test images, with m(y) the mean of a class and m that
               of all training images: the share of z's variance that y explains

Deng et al. (2017), "Structured Generative Adversarial Networks", arXiv:1711.00889, on disentanglement. Lower is better:
at best y_from_z is chance (`chance` in the details: the share of the commonest class) and z_from_y 0. Range [0, 1];
z_from_y may be negative by chance.

The official code fits scikit-learn's SVC with its defaults to nine tenths of the encoded images and tests it on the
last tenth; so do we, with the kernel's width of later defaults (gamma='scale', which does not depend on z's unit).
Which images are encoded is not said: here held-out ones, 10,000 of them drawn where there are more. For predicting z
from y no code was published: the regression on class means is our reading.

The standard errors are over the images of the test tenth: binomial, and that of a ratio of means.
"""

import math

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Uncertainty, Value, require_labels
from ganbench.metrics.discriminability import proportion

MOST, LEAST = 10_000, 20


def y_from_z(train_z: Tensor, train_y: Tensor, test_z: Tensor, test_y: Tensor) -> tuple[float, float]:
    """Accuracy of an SVC fitted to N x d latents and labels int64 N, on M x d latents and M labels; its standard error.

    Raises Unavailable where the training labels are of one class.
    """
    from sklearn.svm import SVC

    if len(train_y.unique()) < 2:
        raise Unavailable("a classifier of latents needs at least 2 classes, not 1")
    fitted = SVC().fit(train_z.double().numpy(), train_y.numpy())
    return proportion(torch.from_numpy(fitted.predict(test_z.double().numpy())) == test_y)


def z_from_y(train_z: Tensor, train_y: Tensor, test_z: Tensor, test_y: Tensor) -> tuple[float, float]:
    """Share of the variance of M x d test latents that class means of N x d training latents explain; standard error.

    A class that training lacks is given the mean of all. Raises Unavailable for fewer than two test images, and where
    the latents do not vary.
    """
    if len(test_z) < 2:
        raise Unavailable(f"a share of variance needs at least 2 test images, not {len(test_z)}")
    train, test = train_z.double(), test_z.double()
    mean = train.mean(0)
    predicted = mean.repeat(len(test), 1)
    for c in train_y.unique().tolist():
        predicted[test_y == c] = train[train_y == c].mean(0)
    left, all_of_it = (test - predicted).square().sum(1), (test - mean).square().sum(1)
    if all_of_it.mean() <= 1e-12 * test.square().sum(1).mean():
        raise Unavailable("the latents do not vary: there is nothing to predict, and a share needs some variance")
    ratio = left.mean() / all_of_it.mean()
    error = (left - ratio * all_of_it).std() / math.sqrt(len(test)) / all_of_it.mean()
    return 1 - ratio.item(), error.item()


def _parts(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents and labels of nine tenths and of one tenth of the held-out images, drawn at random."""
    if inputs.held_out is None:
        raise Unavailable("there are no real images beside the reference to encode")
    labels = require_labels(inputs.held_out)
    if inputs.model is None or inputs.model.encode is None:
        raise Unavailable("there is no model with an encoder")
    if len(labels) < LEAST:
        raise Unavailable(f"nine tenths and one tenth need at least {LEAST} images, not {len(labels)}")
    order = torch.randperm(len(labels), generator=inputs.generator)[:MOST]
    encode, images = inputs.model.encode, inputs.held_out.images[order]
    z: Tensor = inputs.share("latents of held-out images", lambda: encode(images).flatten(1))
    y = labels[order]
    if not torch.isfinite(z).all():
        raise Unavailable("some latents are not finite: the encoder is broken")
    cut = len(y) * 9 // 10
    return z[:cut], y[:cut], z[cut:], y[cut:]


def _y_from_z(inputs: Inputs) -> list[Value]:
    train_z, train_y, test_z, test_y = _parts(inputs)
    value, error = y_from_z(train_z, train_y, test_z, test_y)
    commonest = train_y.mode().values
    details = {"train": len(train_y), "test": len(test_y), "chance": (test_y == commonest).double().mean().item()}
    uncertainty = Uncertainty(error, "standard error", "the test images (binomial)")
    return [Value(value, uncertainty, len(train_y) + len(test_y), 0, details=details)]


def _z_from_y(inputs: Inputs) -> list[Value]:
    train_z, train_y, test_z, test_y = _parts(inputs)
    value, error = z_from_y(train_z, train_y, test_z, test_y)
    uncertainty = Uncertainty(error, "standard error", "the test images")
    details = {"train": len(train_y), "test": len(test_y)}
    return [Value(value, uncertainty, len(train_y) + len(test_y), 0, details=details)]


_NEEDS = frozenset({"model.encode", "held_out.images", "held_out.labels"})
PROTOCOLS = [
    Protocol(
        stem="y_from_z",
        version=1,
        summary="Accuracy of an SVM that predicts the label from the latent of held-out images",
        source="Deng et al. 2017, arXiv:1711.00889",
        direction="lower",
        compute=_y_from_z,
        needs=_NEEDS,
        real_row="none",
    ),
    Protocol(
        stem="z_from_y",
        version=1,
        summary="Share of the variance of held-out images' latents that the label explains",
        source="Deng et al. 2017, arXiv:1711.00889",
        direction="lower",
        compute=_z_from_y,
        needs=_NEEDS,
        real_row="none",
    ),
]
