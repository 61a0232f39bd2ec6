"""1-NN transfer: how well the nearest training image, in the space of features, tells the class of a test image.

    accuracy = mean over test images t of [ y(argmin_x |f(t) - f(x)|_2) = y(t) ],  x over labelled training images

Donahue et al. (2017), "Adversarial Feature Learning", arXiv:1605.09782, Section 4.2 and Table 1: features of the model
under test (its encoder's or its discriminator's), the training images of MNIST as points, its test images as queries.
The official code reports an encoder's last hidden layer beside its output: which one is meant is up to the features
that are given. Agrees with scikit-learn's brute-force KNeighborsClassifier. Range [0, 1], higher is better. On the raw
pixels of MNIST, 60,000 points and 10,000 queries, it is 96.91 %.

The standard error is binomial over the test images; the training images are taken as given. Of equally near points
the first counts.
"""

from torch import Tensor

from ganbench.metrics.contract import (
    Inputs,
    Protocol,
    Side,
    Unavailable,
    Uncertainty,
    Value,
    features_of,
    require_labels,
)
from ganbench.metrics.discriminability import proportion
from ganbench.metrics.nearest_neighbour import nearest


def nn_transfer(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> tuple[float, float]:
    """Accuracy of 1-NN from N x d training features and int64 labels N on M x d test features, and its standard error.

    Raises Unavailable where there are no training or no test features.
    """
    if len(train) == 0:
        raise Unavailable("a nearest neighbour needs at least 1 training image, not 0")
    return proportion(train_labels[nearest(test, train)] == test_labels)


def train_and_test(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features and labels of the reference, to train on, and of the held-out images, to test on.

    Raises Unavailable where any are missing or not finite, or the features of one are longer than the other's.
    """
    held_out = require_held_out(inputs)
    train, test = features_of(inputs.real), features_of(held_out)
    if train.shape[1] != test.shape[1]:
        raise Unavailable(f"{train.shape[1]} features of training images and {test.shape[1]} of test images")
    return train, require_labels(inputs.real), test, require_labels(held_out)


def require_held_out(inputs: Inputs) -> Side:
    """The held-out images, or Unavailable if there are none."""
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
