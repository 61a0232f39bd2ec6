"""Mutual predictability of a label y and a latent z: in a disentangled model neither one predicts the other.

    y_from_z   test accuracy of a support vector machine that predicts y from z = E(x)
    z_from_y   1 - sum_i |z_i - m(y_i)|^2 / sum_i |z_i - m|^2 over test images, where m(y) is the mean of a class and m
               the mean of all training images: the share of the variance of z that y explains

Source: Deng et al. (2017), "Structured Generative Adversarial Networks", arXiv:1711.00889, on disentanglement. Lower is
better. The best y_from_z is chance level (`chance` in the details: the share of the most frequent class), and the best
z_from_y is 0. Range [0, 1]; z_from_y can be slightly negative by chance.

The official code fits scikit-learn's SVC with default settings to nine tenths of the encoded images and tests it on the
last tenth. This protocol does the same, with the kernel width of later defaults (gamma='scale', which does not depend
on the unit of z). The paper does not say which images are encoded: the protocol uses held-out images, at most 10,000,
drawn at random. No code was published for predicting z from y: the regression on class means is our interpretation.

The standard errors are over the test images: binomial for y_from_z, and that of a ratio of means for z_from_y.
"""

import math

import torch
from torch import Tensor

from ganbench.metrics.contract import (
    Inputs,
    Protocol,
    Unavailable,
    Uncertainty,
    Value,
    known,
    require_labelled,
    require_labels,
)
from ganbench.metrics.discriminability import proportion

MOST, LEAST = 10_000, 20


def y_from_z(train_z: Tensor, train_y: Tensor, test_z: Tensor, test_y: Tensor) -> tuple[float, float]:
    """Return the test accuracy of an SVC that predicts labels from latents, in [0, 1], and its standard error.

    train_z, test_z: floating N x d and M x d latents. train_y, test_y: int64 N and M labels.
    Raises Unavailable if the training labels have one class only or there are no test images.
    Source: Deng et al. (2017).

    >>> z, y = torch.tensor([[0.0], [0.1], [1.0], [1.1]]), torch.tensor([0, 0, 1, 1])
    >>> value, error = y_from_z(z, y, test_z=torch.tensor([[0.05], [1.05]]), test_y=torch.tensor([0, 1]))
    >>> value, round(error, 3)
    (1.0, 0.192)
    """
    require_labelled(train_z, train_y, test_z, test_y, ("train_z", "train_y", "test_z", "test_y"))
    from sklearn.svm import SVC

    if len(train_y.unique()) < 2:
        raise Unavailable("a classifier of latents needs at least 2 classes, not 1")
    fitted = SVC().fit(train_z.double().numpy(), train_y.numpy())
    return proportion(torch.from_numpy(fitted.predict(test_z.double().numpy())) == test_y)


def z_from_y(train_z: Tensor, train_y: Tensor, test_z: Tensor, test_y: Tensor) -> tuple[float, float]:
    """Return the share of the variance of test latents that the label explains, at most 1, and its standard error.

    train_z, test_z: floating N x d and M x d latents. train_y, test_y: int64 N and M labels. The prediction is the
    training mean of the class, or the mean of all training latents for a class without training images.
    Raises Unavailable for fewer than two test images, or if the latents do not vary.
    Source: Deng et al. (2017); the regression is our interpretation.

    >>> z, y = torch.tensor([[0.0], [0.2], [1.0], [1.2]]), torch.tensor([0, 0, 1, 1])
    >>> value, error = z_from_y(z, y, test_z=torch.tensor([[0.0], [1.0]]), test_y=torch.tensor([0, 1]))
    >>> round(value, 3), round(error, 3)
    (0.962, 0.015)
    """
    require_labelled(train_z, train_y, test_z, test_y, ("train_z", "train_y", "test_z", "test_y"))
    if len(test_z) < 2:
        raise Unavailable(f"a share of variance needs at least 2 test images, not {len(test_z)}")
    train, test = train_z.double(), test_z.double()
    mean = train.mean(0)
    predicted = mean.repeat(len(test), 1)
    for c in train_y.unique().tolist():
        predicted[test_y == c] = train[train_y == c].mean(0)
    residual, total = (test - predicted).square().sum(1), (test - mean).square().sum(1)
    if total.mean() <= 1e-12 * test.square().sum(1).mean():
        raise Unavailable("the latents do not vary: a share of the variance needs latents that differ")
    ratio = residual.mean() / total.mean()
    error = (residual - ratio * total).std() / math.sqrt(len(test)) / total.mean()
    return 1 - ratio.item(), error.item()


def _drawn(inputs: Inputs) -> dict[str, Tensor]:
    """Rows of the held-out images that are encoded."""
    if inputs.held_out is None:
        raise Unavailable("there are no real images beside the reference to encode")
    n = len(inputs.held_out)
    if n < LEAST:
        raise Unavailable(f"a split into nine tenths and one tenth needs at least {LEAST} images, not {n}")
    return {"held_out": torch.randperm(n, generator=inputs.generator)[:MOST]}


def _train_and_test(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents and labels of nine tenths of the held-out images, and of one tenth, drawn at random."""
    if inputs.held_out is None:
        raise Unavailable("there are no real images beside the reference to encode")
    labels = require_labels(inputs.held_out)
    if inputs.model is None or inputs.model.encode is None:
        raise Unavailable("there is no model with an encoder")
    encode, images, order = inputs.model.encode, inputs.held_out.images, _drawn(inputs)["held_out"]
    z: Tensor = inputs.share("latents of held-out images", lambda: encode(images[order]).flatten(1))
    y = labels[order]
    if not torch.isfinite(z).all():
        raise Unavailable("some latents are not finite: the encoder is broken")
    cut = len(y) * 9 // 10
    return z[:cut], y[:cut], z[cut:], y[cut:]


def _y_from_z(inputs: Inputs) -> list[Value]:
    train_z, train_y, test_z, test_y = _train_and_test(inputs)
    value, error = y_from_z(train_z, train_y, test_z, test_y)
    most_frequent = train_y.mode().values
    details = {"train": len(train_y), "test": len(test_y), "chance": (test_y == most_frequent).double().mean().item()}
    uncertainty = Uncertainty(error, "standard error", "the test images (binomial)")
    return [Value(value, uncertainty, len(train_y) + len(test_y), 0, details=details)]


def _z_from_y(inputs: Inputs) -> list[Value]:
    train_z, train_y, test_z, test_y = _train_and_test(inputs)
    value, error = z_from_y(train_z, train_y, test_z, test_y)
    alike = "the label explains all of every latent, or nothing of it"
    uncertainty, unknown = known(error, "the test images", 1, alike, len(test_y))
    details = {"train": len(train_y), "test": len(test_y)}
    return [Value(value, uncertainty, len(train_y) + len(test_y), 0, details=details, warnings=unknown)]


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
        rows=_drawn,
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
        rows=_drawn,
        real_row="none",
    ),
]
