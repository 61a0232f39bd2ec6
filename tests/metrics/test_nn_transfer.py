"""1-NN on features against scikit-learn and the definition."""

import importlib

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from ganbench.metrics import Inputs, Side, Unavailable
from ganbench.metrics.nn_transfer import nn_transfer as accuracy

nn_transfer = importlib.import_module("ganbench.metrics.nn_transfer")  # the package has a function of the same name


def blobs(n, seed, d=5, classes=4):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=g)
    return torch.nn.functional.one_hot(labels, d).float() * 2 + torch.randn(n, d, generator=g), labels


def side(features, labels):
    return Side(torch.zeros(len(labels) if labels is not None else 1, 1, 2, 2, dtype=torch.uint8), labels, features)


def measure(real, held_out):
    [protocol] = nn_transfer.PROTOCOLS
    [value] = protocol.compute(Inputs(real, real, held_out, torch.Generator()))
    return value


@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (1e-3, 0), (1e3, 50)])
def test_the_accuracy_equals_scikit_learn_by_brute_force(scale, shift):
    (x, y), (t, truth) = blobs(300, 0), blobs(200, 1)
    x, t = x * scale + shift, t * scale + shift
    value, error = accuracy(x, y, t, truth)
    reference = KNeighborsClassifier(1, algorithm="brute").fit(x.double().numpy(), y.numpy())
    assert value == reference.score(t.double().numpy(), truth.numpy())
    assert 0.5 < value < 0.95
    hits = round(value * 200)
    p = (hits + 2) / 204
    assert error == pytest.approx((p * (1 - p) / 204) ** 0.5, rel=1e-12)


def test_the_training_images_find_themselves():
    x, y = blobs(100, 0)
    assert accuracy(x, y, x, y)[0] == 1
    assert accuracy(x, y, x, y + 1)[0] == 0


def test_held_out_images_are_classified_by_the_reference():
    (x, y), (t, truth) = blobs(60, 0), blobs(40, 1)
    value = measure(side(x, y), side(t, truth))
    nearest = (t[:, None] - x[None]).square().sum(2).argmin(1)
    assert value.value == pytest.approx((y[nearest] == truth).double().mean().item(), abs=1e-12)
    assert (value.n_real, value.n_fake, value.details) == (40, 0, {"train": 60})
    assert value.uncertainty.over == "the test images (binomial)"


def test_missing_or_incompatible_inputs_are_unavailable():
    x, y = blobs(20, 0)
    with pytest.raises(Unavailable, match="no labels"):
        measure(side(x, None), side(x, y))
    with pytest.raises(Unavailable, match="no labels"):
        measure(side(x, y), side(x, None))
    with pytest.raises(Unavailable, match="no real images beside the reference"):
        measure(side(x, y), None)
    with pytest.raises(Unavailable, match="5 features of training images and 4 of test images"):
        measure(side(x, y), side(x[:, :4], y))
    with pytest.raises(Unavailable, match="needs at least 1 training image"):
        accuracy(x[:0], y[:0], x, y)
    with pytest.raises(Unavailable, match="needs at least 1 image"):
        accuracy(x, y, x[:0], y[:0])
