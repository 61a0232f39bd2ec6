"""The truncation curve against the truncated normal distribution and closed forms of a linear generator."""

import importlib
import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest, truncnorm

from ganbench.metrics import Inputs, Model, Side, Unavailable, frechet, truncation
from ganbench.metrics.truncation import THRESHOLDS, truncated_latents, usable_thresholds

inception_score = importlib.import_module("ganbench.metrics.inception_score")  # not the function

NOTHING = Side(torch.zeros(0, 1, 1, 1, dtype=torch.uint8))
D = 16


def normal(n, g):
    return torch.randn(n, D, generator=g)


def uniform(n, g):
    return torch.rand(n, D, generator=g) * 2 - 1


def linear(z, y=None):
    return (z / 4).view(-1, 1, 4, 4)


def pixels(images):
    assert images.dtype == torch.uint8
    x = images.flatten(1).float() / 127.5 - 1
    return x * 4, 8 * x[:, :5]


def inputs(generate=linear, prior=normal, embed=pixels, classes=0, real=None, seed=0):
    model = Model("test", classes, sample_latent=prior, generate=generate)
    if real is None:
        real = torch.randn(4000, D, generator=torch.Generator().manual_seed(99))
    side = Side(torch.zeros(len(real), 1, 4, 4, dtype=torch.uint8), features=real)
    return Inputs(side, NOTHING, None, torch.Generator().manual_seed(seed), model=model, embed=embed)


def measure(stem, given=None):
    [protocol] = [p for p in truncation.PROTOCOLS if p.stem == stem]
    return protocol.compute(given or inputs())


@pytest.mark.parametrize("threshold", [2.0, 0.5, 0.1])
def test_truncated_latents_have_the_truncated_normal_distribution(threshold):
    z = truncated_latents(normal, 500, threshold, torch.Generator().manual_seed(0))
    assert z.shape == (500, D)
    assert z.abs().max() <= threshold
    assert kstest(z.flatten().numpy(), truncnorm(-threshold, threshold).cdf).pvalue > 0.01
    # Elements stay independent.
    assert np.abs(np.corrcoef(z.T.numpy()) - np.eye(D)).max() < 5 / math.sqrt(500)


def test_elements_within_the_threshold_do_not_change():
    z = normal(500, torch.Generator().manual_seed(0))
    truncated = truncated_latents(normal, 500, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(truncated[z.abs() <= 1], z[z.abs() <= 1])


def test_thresholds_that_all_draws_or_no_draws_are_within_are_excluded():
    g = torch.Generator().manual_seed(0)
    assert usable_thresholds(normal(5000, g), THRESHOLDS) == list(THRESHOLDS)
    assert usable_thresholds(uniform(5000, g), THRESHOLDS) == [0.75, 0.5, 0.25, 0.1]
    assert usable_thresholds(normal(5000, g) + 4, THRESHOLDS) == [2.0, 1.5]
    assert usable_thresholds(uniform(5000, g) / 20, THRESHOLDS) == []


def test_a_latent_with_a_discrete_code_is_unavailable():
    def with_code(n, g):
        code = torch.nn.functional.one_hot(torch.randint(3, (n,), generator=g), 3)
        return torch.cat([normal(n, g)[:, 3:], code], 1)

    with pytest.raises(Unavailable, match="3 of the 16 elements of the latent are not continuous"):
        measure("truncation_score", inputs(prior=with_code))


def test_the_curve_has_an_untruncated_point_and_one_for_each_threshold():
    values = measure("truncation_fd")
    names = ["", "@2.0", "@1.5", "@1.0", "@0.75", "@0.5", "@0.25", "@0.1"]
    assert [v.suffix for v in values] == names
    assert [v.suffix for v in measure("truncation_score")] == names
    assert [v.details["threshold"] for v in values] == [None, *THRESHOLDS]
    assert {(v.n_real, v.n_fake) for v in values} == {(4000, 5000)}


def test_the_distance_equals_the_closed_form_of_the_truncated_normal():
    # Features equal z except for the rounding to grey levels. The distance to N(0, I) is d (1 - std)^2.
    for value in measure("truncation_fd", inputs(real=torch.randn(20_000, D)))[1:]:
        t = value.details["threshold"]
        std = math.sqrt(truncnorm(-t, t).var() + (4 / 127.5) ** 2 / 12)
        assert value.value == pytest.approx(D * (1 - std) ** 2, rel=0.05, abs=0.05)


def test_the_points_equal_the_two_metrics_of_their_samples():
    given = inputs()
    distances, scores = (measure(stem, given) for stem in ("truncation_fd", "truncation_score"))
    points = given.shared["truncated samples"]
    assert len(points) == len(distances) == len(scores) == 8
    for p, d, s in zip(points, distances, scores, strict=True):
        assert d.value == pytest.approx(frechet.frechet_distance(given.real.features, p.features), rel=1e-8)
        order = np.random.RandomState(inception_score.SHUFFLE_SEED).permutation(5000)
        expected = inception_score.inception_score(p.logits[torch.from_numpy(order)]).mean().item()
        assert s.value == pytest.approx(expected, rel=1e-9)
        assert d.uncertainty.value > 0
        assert s.uncertainty.value >= 0


def test_the_two_protocols_generate_the_samples_once():
    calls = []
    given = inputs(lambda z, y: calls.append(len(z)) or linear(z))
    for stem in ("truncation_fd", "truncation_score"):
        measure(stem, given)
    assert sum(calls) == 8 * 5000


def test_less_truncation_gives_a_smaller_distance_to_a_normal_reference():
    values = [v.value for v in measure("truncation_fd")]
    assert values[1:] == sorted(values[1:])


def test_classes_of_a_conditional_generator_are_drawn_uniformly():
    asked = []
    measure("truncation_score", inputs(lambda z, y: asked.append(y) or linear(z), classes=3))
    counts = torch.cat(asked).bincount(minlength=3) / 40_000
    assert counts.tolist() == pytest.approx([1 / 3] * 3, abs=0.02)


def test_an_extractor_without_classes_gives_a_distance_and_no_score():
    given = inputs(embed=lambda x: (pixels(x)[0], None))
    assert len(measure("truncation_fd", given)) == 8
    with pytest.raises(Unavailable, match="no classes"):
        measure("truncation_score", given)


def test_values_that_are_not_finite_are_unavailable():
    with pytest.raises(Unavailable, match="generated images are not finite"):
        measure("truncation_fd", inputs(lambda z, y: linear(z) * math.nan))
    with pytest.raises(Unavailable, match="not finite"):
        measure("truncation_fd", inputs(embed=lambda x: (pixels(x)[0] * math.inf, None)))


def test_a_collapsed_generator_has_a_constant_curve():
    given = inputs(lambda z, y: torch.zeros(len(z), 1, 4, 4))
    assert [v.value for v in measure("truncation_score", given)] == pytest.approx([1] * 8)
    assert np.ptp([v.value for v in measure("truncation_fd", given)]) == pytest.approx(0, abs=1e-9)


def test_the_intervals_of_the_distances_cover_the_mean_over_new_samples(monkeypatch):
    monkeypatch.setattr(truncation, "SAMPLES", 300)
    monkeypatch.setattr(truncation, "THRESHOLDS", (1.0,))
    runs = []
    for seed in range(200):
        real = torch.randn(400, D, generator=torch.Generator().manual_seed(1000 + seed))
        # The untruncated point is left out: both distributions are equal, and the first-order error does not hold.
        _, value = measure("truncation_fd", inputs(real=real, seed=seed))
        runs.append((value.value, value.uncertainty.value))
    values, errors = np.array(runs).T
    assert 0.90 <= np.mean(abs(values - values.mean()) <= 1.96 * errors) <= 0.99
