"""EBGAN's modified score against its definition, SciPy, resampling and simulation."""

import importlib

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from ganbench.metrics import Inputs, Side, Unavailable

module = importlib.import_module("ganbench.metrics.modified_score")  # the package may have a function of the same name


def measure(logits):
    side = Side(torch.zeros(len(logits), 1, 1, 1, dtype=torch.uint8), logits=logits)
    [value] = module.PROTOCOLS[0].compute(Inputs(side, side, None, torch.Generator()))
    return value


def by_scipy(logits):
    """The mean of SciPy's relative entropies of p(y) to each p(y|x)."""
    p = softmax(logits.double().numpy(), axis=1)
    return float(entropy(np.broadcast_to(p.mean(0), p.shape), p, axis=1).mean())


@pytest.mark.parametrize(("n", "k", "scale"), [(2, 2, 1.0), (10, 3, 1.0), (500, 10, 3.0), (64, 1008, 2.0)])
def test_the_score_equals_scipys_relative_entropies(n, k, scale):
    logits = torch.randn(n, k, generator=torch.Generator().manual_seed(n)) * scale
    assert measure(logits).value == pytest.approx(by_scipy(logits), rel=1e-12)


def test_the_two_distributions_stand_in_the_papers_order():
    # Sure predictions, 3 to 1: the score grows with their certainty; in the other order it is at most ln 2.
    logits = torch.tensor([[20.0, 0.0]] * 3 + [[0.0, 20.0]])
    p, tail = np.array([0.75, 0.25]), 20.0
    expected = (p * np.log(p)).sum() + p[0] * tail / 4 + p[1] * 3 * tail / 4
    assert measure(logits).value == pytest.approx(expected, abs=1e-6)


def test_equal_predictions_score_zero_and_have_no_uncertainty():
    alike = measure(torch.tensor([[0.3, 2.0, -1.0]]).repeat(5000, 1))
    assert alike.value == pytest.approx(0.0, abs=1e-12)
    assert (alike.uncertainty, alike.warnings) == (
        None, ("no uncertainty is known: the classifier answers the same for all images",)
    )


def test_probabilities_that_are_zero_in_float64_do_not_matter():
    logits = torch.eye(5, 6).repeat(40, 1) * 2000
    assert measure(logits).value == pytest.approx(2000 * 4 / 5 - np.log(5), rel=1e-12)  # class 5 has p(y) = 0


def answers(n, seed, certain=3.0):
    """Logits of three classes in the shares 1, 2, 3 with varying certainty."""
    g = torch.Generator().manual_seed(seed)
    label = torch.tensor([0, 1, 1, 2, 2, 2])[torch.randint(6, (n,), generator=g)]
    return torch.randn(n, 3, generator=g) + certain * torch.nn.functional.one_hot(label, 3)


def test_the_standard_error_equals_the_jackknife():
    logits = answers(300, 1)
    left_out = np.array([by_scipy(torch.cat([logits[:i], logits[i + 1 :]])) for i in range(300)])
    jackknife = np.sqrt(np.square(left_out - left_out.mean()).sum() * 299 / 300)
    assert measure(logits).uncertainty.value == pytest.approx(jackknife, rel=0.01)


def test_the_second_order_is_the_spread_of_draws_where_the_first_is_nothing():
    """Predictions that differ by their class alone: only the counts of the classes vary."""

    def one(seed):
        label = torch.randint(4, (200,), generator=torch.Generator().manual_seed(seed))
        return module.modified_score(6.0 * torch.nn.functional.one_hot(label, 4))

    scores, errors = zip(*map(one, range(400)), strict=True)
    assert np.mean(errors) == pytest.approx(np.std(scores, ddof=1), rel=0.25)


def test_intervals_cover_the_truth():
    truth = module.modified_score(answers(1_000_000, 0))[0]
    runs = [measure(answers(2000, seed)) for seed in range(1, 201)]
    covered = sum(abs(r.value - truth) <= 1.96 * r.uncertainty.value for r in runs) / 200
    assert 0.90 <= covered <= 0.99


def test_too_few_images_are_unavailable_and_few_give_a_warning():
    with pytest.raises(Unavailable, match="needs at least 2 images, not 1"):
        measure(torch.randn(1, 4))
    assert measure(torch.randn(4999, 4)).warnings == ("4,999 images: biased, comparable only at equal counts",)
    assert measure(torch.randn(5000, 4)).warnings == ()
