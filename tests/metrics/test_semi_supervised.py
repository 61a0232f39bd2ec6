"""The test error of a model's own classifier against scikit-learn."""

import pytest
import torch
from sklearn.metrics import zero_one_loss

from ganbench.metrics import Inputs, Model, Side, Unavailable, semi_supervised


def measure(images, labels, classify):
    [protocol] = semi_supervised.PROTOCOLS
    empty = Side(images[:0])
    [value] = protocol.compute(
        Inputs(empty, empty, Side(images, labels), torch.Generator(), model=Model("test", classify=classify))
    )
    return value


def test_the_error_is_the_share_of_wrong_predictions_on_held_out_images_used_once():
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256, (300, 1, 4, 4), generator=g, dtype=torch.uint8)
    labels = torch.randint(5, (300,), generator=g)
    logits = torch.randn(300, 5, generator=g) + 2 * torch.nn.functional.one_hot(labels, 5)
    seen = []

    def classify(x):
        seen.append(x)
        return logits

    value = measure(images, labels, classify)
    assert value.value == pytest.approx(zero_one_loss(labels, logits.argmax(1)), rel=1e-12)
    assert 0 < value.value < 0.5
    assert len(seen) == 1
    assert torch.equal(seen[0], images)
    p = (round(300 * value.value) + 2) / 304
    assert value.uncertainty.value == pytest.approx((p * (1 - p) / 304) ** 0.5, rel=1e-12)
    assert (value.n_real, value.n_fake) == (300, 0)


def test_a_prediction_of_the_generated_class_is_an_error():
    images, labels = torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.arange(6) % 2
    assert measure(images, labels, lambda x: torch.tensor([[0.0, 0.0, 1.0]]).repeat(len(x), 1)).value == 1


def test_missing_or_broken_inputs_are_unavailable():
    images, labels = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.arange(4)
    with pytest.raises(Unavailable, match="no labels"):
        measure(images, None, lambda x: torch.zeros(4, 2))
    with pytest.raises(Unavailable, match="no model that classifies"):
        measure(images, labels, None)
    with pytest.raises(Unavailable, match="not finite"):
        measure(images, labels, lambda x: torch.full((4, 2), torch.inf))
    with pytest.raises(Unavailable, match="label 3 is not one of the model's 2 classes"):
        measure(images, labels, lambda x: torch.zeros(4, 2))
    with pytest.raises(Unavailable, match="no real images beside the reference"):
        semi_supervised.PROTOCOLS[0].compute(Inputs(Side(images), Side(images), None, torch.Generator()))
