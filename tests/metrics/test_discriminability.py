"""Accuracy of a classifier on what was asked for, against scikit-learn; at native size and reduced."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, recall_score

from ganbench.metrics import Inputs, Side, Unavailable, discriminability
from ganbench.metrics.discriminability import accuracy, lower_resolutions

IMAGES = torch.zeros(0, 1, 8, 8, dtype=torch.uint8)


def draw(n, k, seed):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(k, (n,), generator=g)
    return torch.randn(n, k, generator=g) + 2 * torch.nn.functional.one_hot(labels, k), labels


def measure(labels, logits, at=None):
    fake = Side(IMAGES, labels, logits=logits, logits_at=at or {})
    return discriminability.PROTOCOLS[0].compute(Inputs(Side(IMAGES), fake, None, torch.Generator()))


def test_it_equals_scikit_learn_whole_and_a_class():
    logits, labels = draw(500, 7, 0)
    [value] = measure(labels, logits)
    answers = logits.argmax(1)
    assert value.value == accuracy_score(labels, answers)
    recall = recall_score(labels, answers, average=None)
    assert list(value.details["per_class"].values()) == pytest.approx(recall.tolist(), abs=1e-6)
    assert list(value.details["per_class"]) == [str(c) for c in range(7)]


def test_each_resolution_is_a_value_with_its_own_suffix():
    logits, labels = draw(60, 4, 0)
    at = {r: draw(60, 4, r)[0] for r in (16, 8)}
    values = measure(labels, logits, at)
    assert [v.suffix for v in values] == ["", "@16", "@8"]
    assert [v.value for v in values] == [accuracy_score(labels, x.argmax(1)) for x in (logits, at[16], at[8])]


def test_the_standard_error_is_the_standard_deviation_over_fresh_draws():
    runs = []
    for seed in range(300):
        logits, labels = draw(200, 3, seed)
        runs.append(accuracy(logits, labels))
    values, errors = np.array(runs).T
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(ddof=1), rel=0.15)


def test_the_standard_error_is_not_zero_where_all_or_none_are_right():
    labels = torch.arange(10) % 2
    right = torch.nn.functional.one_hot(labels, 2).float()
    (all_right, e1), (none_right, e2) = accuracy(right, labels), accuracy(-right, labels)
    assert (all_right, none_right) == (1.0, 0.0)
    # Agresti and Coull: (10 + 2) of (10 + 4)
    assert (e1, e2) == pytest.approx([(12 / 14 * 2 / 14 / 14) ** 0.5] * 2, rel=1e-12)


@pytest.mark.parametrize(
    ("side", "expected"), [(28, (16, 8, 4)), (128, (64, 32, 16, 8, 4)), (32, (16, 8, 4)), (8, (4,)), (4, ())]
)
def test_resolutions_are_the_powers_of_two_below_the_side(side, expected):
    assert lower_resolutions(side) == expected


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_the_classifier_does_not_know_makes_it_unavailable(label):
    with pytest.raises(Unavailable, match=f"label {label} is beyond the extractor's 3 classes"):
        measure(torch.tensor([0, 1, label]), torch.randn(3, 3))


def test_no_labels_and_no_classes_make_it_unavailable():
    with pytest.raises(Unavailable, match="no labels"):
        measure(None, torch.randn(3, 3))
    with pytest.raises(Unavailable, match="no classes"):
        measure(torch.tensor([0]), None)
