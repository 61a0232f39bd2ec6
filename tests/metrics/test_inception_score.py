"""The Inception Score against torch-fidelity and known values."""

import importlib
import math

import pytest
import torch
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

from ganbench.metrics import Inputs, Side, Unavailable
from ganbench.metrics.inception_score import inception_score

module = importlib.import_module("ganbench.metrics.inception_score")  # the package has a function of the same name


def measure(logits):
    side = Side(torch.zeros(len(logits), 1, 1, 1, dtype=torch.uint8), logits=logits)
    [value] = module.PROTOCOLS[0].compute(Inputs(side, side, None, torch.Generator()))
    return value


@pytest.mark.parametrize(("n", "k", "scale"), [(10, 3, 1.0), (1000, 10, 3.0), (517, 1008, 2.0), (64, 5, 20.0)])
def test_mean_and_spread_equal_torch_fidelity(n, k, scale):
    logits = torch.randn(n, k, generator=torch.Generator().manual_seed(n)) * scale
    theirs, ours = isc_features_to_metric(logits), measure(logits)
    assert ours.value == pytest.approx(theirs[KEY_METRIC_ISC_MEAN], rel=1e-12)
    if n < 20:  # torch-fidelity says 1e-17
        assert ours.uncertainty is None
        assert "a split of one image has the score 1, whatever it shows" in ours.warnings[-1]
        return
    assert ours.uncertainty.value == pytest.approx(theirs[KEY_METRIC_ISC_STD], rel=1e-9, abs=1e-12)
    assert ours.uncertainty.kind == "standard deviation"


def test_the_score_equals_the_definition_in_loops():
    logits = torch.tensor([[1.0, 2.0, 0.0], [0.0, -1.0, 3.0], [2.0, 2.0, 1.0]])
    p = [[math.exp(v) / sum(math.exp(w) for w in row) for v in row] for row in logits.tolist()]
    q = [sum(row[k] for row in p) / 3 for k in range(3)]
    divergence = sum(row[k] * math.log(row[k] / q[k]) for row in p for k in range(3)) / 3
    assert inception_score(logits, splits=1).tolist() == pytest.approx([math.exp(divergence)], rel=1e-12)


def test_certain_and_balanced_predictions_reach_the_number_of_classes():
    # All probabilities but one are 0 in float64: 0 log 0 counts as 0.
    # One class is never predicted.
    logits = torch.eye(5, 6).repeat(40, 1) * 2000
    assert inception_score(logits, splits=4).tolist() == pytest.approx([5.0] * 4, rel=1e-12)


def test_equal_predictions_score_one():
    assert measure(torch.tensor([[0.3, 2.0, -1.0]]).repeat(50, 1)).value == pytest.approx(1.0, abs=1e-12)


def test_samples_are_shuffled_before_they_are_split():
    ordered = (torch.eye(10) * 50).repeat_interleave(100, 0)
    assert inception_score(ordered).tolist() == pytest.approx([1.0] * 10)
    assert measure(ordered).value > 9


def one_split(logits):
    side = Side(torch.zeros(len(logits), 1, 1, 1, dtype=torch.uint8), logits=logits)
    [protocol] = [p for p in module.PROTOCOLS if p.stem == "score_1split"]
    [value] = protocol.compute(Inputs(side, side, None, torch.Generator()))
    return value


def test_one_split_equals_torch_fidelity_for_any_order():
    logits = torch.randn(500, 12, generator=torch.Generator().manual_seed(1)) * 3
    value = one_split(logits)
    theirs = isc_features_to_metric(logits, splits=1)
    assert value.value == pytest.approx(theirs[KEY_METRIC_ISC_MEAN], rel=1e-12)
    assert one_split(logits.flip(0)).value == pytest.approx(value.value, rel=1e-12)
    assert value.value > measure(logits).value
    assert value.uncertainty.kind == "standard error"


def test_the_standard_error_of_one_split_equals_the_jackknife():
    logits = torch.randn(200, 4, generator=torch.Generator().manual_seed(1)) * 2
    left_out = torch.stack([inception_score(torch.cat([logits[:i], logits[i + 1 :]]), 1)[0] for i in range(200)])
    jackknife = ((left_out - left_out.mean()).square().sum() * 199 / 200).sqrt().item()
    assert one_split(logits).uncertainty.value == pytest.approx(jackknife, rel=0.01)


def answers(n, seed):
    """Return logits of three classes in the shares 1, 2, 3 with varying certainty."""
    g = torch.Generator().manual_seed(seed)
    label = torch.tensor([0, 1, 1, 2, 2, 2])[torch.randint(6, (n,), generator=g)]
    return torch.randn(n, 3, generator=g) + 3 * torch.nn.functional.one_hot(label, 3)


def test_intervals_of_one_split_cover_the_truth():
    truth = inception_score(answers(2_000_000, 0), 1).item()
    runs = [one_split(answers(1000, seed)) for seed in range(1, 201)]
    covered = sum(abs(r.value - truth) <= 1.96 * r.uncertainty.value for r in runs) / 200
    assert 0.90 <= covered <= 0.99


def test_one_split_of_one_image_is_unavailable():
    with pytest.raises(Unavailable, match="needs at least 2 images, not 1"):
        one_split(torch.randn(1, 4))
    alike = one_split(torch.tensor([[0.3, 2.0, -1.0]]).repeat(8, 1))
    assert (alike.uncertainty, alike.warnings[1:]) == (
        None, ("no uncertainty is known: the classifier answers the same for all images",)
    )
    assert "biased downwards" in one_split(torch.randn(4999, 4)).warnings[0]


def test_fewer_images_than_splits_are_unavailable():
    with pytest.raises(Unavailable, match="at least 10 images, not 9"):
        measure(torch.randn(9, 4))


def test_few_images_give_a_warning():
    assert "biased downwards" in measure(torch.randn(4999, 4)).warnings[0]
    assert measure(torch.randn(5000, 4)).warnings == ()
