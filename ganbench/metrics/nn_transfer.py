"""1-NN transfer: how well the nearest training image in feature space predicts the class of a test image.

    accuracy = mean over test images t of [ y(argmin_x |f(t) - f(x)|_2) = y(t) ],  x over labelled training images

Source: Donahue et al. (2017), "Adversarial Feature Learning", arXiv:1605.09782, Section 4.2 and Table 1. The features
are those of the model under test (of its encoder or its discriminator). The paper classifies MNIST's test images by
their nearest training images. The official code reports the encoder's output and its last hidden layer; the caller
chooses by the features. The accuracy agrees with scikit-learn's brute-force KNeighborsClassifier. Range [0, 1], higher
is better. On the raw pixels of MNIST, with 60,000 training and 10,000 test images, it is 96.91 %.

The standard error is binomial over the test images, for fixed training images. In a tie the first training image wins.
"""

from torch import Tensor

from ganbench.metrics.contract import (
    Inputs,
    Protocol,
    Side,
    Unavailable,
    Uncertainty,
    Value,
    compare_labels,
    features_of,
    require_labelled,
    require_labels,
)
from ganbench.metrics.discriminability import proportion
from ganbench.metrics.nearest_neighbour import nearest


def nn_transfer(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> tuple[float, float]:
    """Return the test accuracy of a 1-nearest-neighbour classifier, in [0, 1], and its standard error.

    train, test: floating N x d and M x d features. train_labels, test_labels: int64 N and M.
    Raises Unavailable if there are no training images or no test images.
    Source: Donahue et al. (2017), Section 4.2 and Table 1.

    >>> import torch
    >>> train, labels = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([3, 3, 5])
    >>> nn_transfer(train, labels, test=torch.tensor([[0.4], [1.6]]), test_labels=torch.tensor([3, 3]))[0]
    0.5
    """
    require_labelled(train, train_labels, test, test_labels)
    if len(train) == 0:
        raise Unavailable("a nearest neighbour needs at least 1 training image, not 0")
    return proportion(train_labels[nearest(test, train)] == test_labels)


def train_and_test(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return features and labels of the reference (training set), and of the held-out images (test set).

    Features are float32 N x d and M x d, labels int64 N and M.
    Raises Unavailable if any of them is missing or not finite, if d differs, or if a test class has no training image.
    """
    held_out = require_held_out(inputs)
    train, test = features_of(inputs.real), features_of(held_out)
    if train.shape[1] != test.shape[1]:
        raise Unavailable(f"{train.shape[1]} features of training images and {test.shape[1]} of test images")
    compare_labels(inputs.real, held_out, "the reference", "the test images", refuse=True)
    return train, require_labels(inputs.real), test, require_labels(held_out)


def require_held_out(inputs: Inputs) -> Side:
    """Return the held-out images. Raises Unavailable if there are none."""
    if inputs.held_out is None:
        raise Unavailable("there are no real images beside the reference to test on")
    return inputs.held_out


def _compute(inputs: Inputs) -> list[Value]:
    train, train_labels, test, test_labels = train_and_test(inputs)
    value, error = nn_transfer(train, train_labels, test, test_labels)
    uncertainty = Uncertainty(error, "standard error", "the test images (binomial)")
    return [Value(value, uncertainty, len(test), 0, details={"train": len(train)})]


PROTOCOLS = [
    Protocol(
        stem="nn_transfer",
        version=1,
        summary="Test accuracy of 1-NN on features of the training images",
        source="Donahue et al. 2017, arXiv:1605.09782, Table 1",
        direction="higher",
        compute=_compute,
        needs=frozenset({"real.features", "real.labels", "held_out.features", "held_out.labels"}),
        real_row="none",
    )
]
