"""Mode coverage against brute force and SciPy; standard errors against new samples."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2, entropy

from ganbench.metrics import Inputs, Side, Unavailable, mode_coverage
from ganbench.metrics.mode_coverage import (
    grid,
    high_quality_counts,
    kl_divergence,
    kl_to_uniform,
    mixture_modes,
    modes_found,
    ring,
    stacked_counts,
)

BY_STEM = {p.stem: p for p in mode_coverage.PROTOCOLS}
IMAGES = torch.zeros(0, 3, 4, 4, dtype=torch.uint8)


def digits(numbers, channels=3):
    """Return images whose channels have the brightness of the digits of `numbers`, the most significant digit first."""
    places = [numbers // 10 ** (channels - 1 - c) % 10 for c in range(channels)]
    return (torch.stack(places, 1) * 25)[:, :, None, None].expand(-1, -1, 4, 4).to(torch.uint8)


def read(images):
    """Classify one channel by its brightness."""
    assert images.dtype == torch.uint8
    assert images.shape[1] == 1
    value = images.flatten(1).float().mean(1, keepdim=True) / 25
    return value, -(value - torch.arange(10)).square()


def measure(stem, fake=None, real=None, embed=read):
    inputs = Inputs(real or Side(IMAGES), fake, None, torch.Generator().manual_seed(0), embed=embed)
    [value] = BY_STEM[stem].compute(inputs)
    return value


def of_classes(labels, k=10):
    labels = torch.as_tensor(labels)
    return Side(torch.zeros(len(labels), 1, 4, 4, dtype=torch.uint8), logits=torch.eye(k)[labels])


def counts(*values):
    return torch.tensor(values)


# --- Mixtures of Gaussians


def test_the_ring_and_the_grid_equal_pacgans():
    angles = np.arange(8) * 2 * np.pi / 8
    assert ring().numpy() == pytest.approx(np.stack([np.cos(angles), np.sin(angles)], 1), abs=1e-12)
    assert sorted(grid().tolist()) == sorted([float(-4 + 2 * i), float(-4 + 2 * j)] for i in range(5) for j in range(5))


def test_samples_of_the_mixture_capture_all_modes_with_the_share_of_a_chi_square():
    g = torch.Generator().manual_seed(0)
    for centres, std in ((ring(), 0.01), (grid(), 0.05)):
        x = centres[torch.randint(len(centres), (20_000,), generator=g)]
        x = x + std * torch.randn(x.shape, generator=g, dtype=torch.float64)
        modes, share = mixture_modes(centres, x, std)
        assert modes == len(centres)
        assert share == pytest.approx(chi2(2).cdf(9), abs=0.003)
        assert mixture_modes(centres, x, std, within=1.0)[1] == pytest.approx(chi2(2).cdf(1), abs=0.015)


def test_counts_equal_a_loop_over_samples_and_centres(monkeypatch):
    centres = grid()
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(1)) * 3
    expected = np.zeros(25, dtype=int)
    for point in x.double().numpy():
        distances = np.sqrt(((centres.numpy() - point) ** 2).sum(1)) / 0.3
        if distances.min() < 3:
            expected[distances.argmin()] += 1
    assert high_quality_counts(centres, x, 0.3).tolist() == expected.tolist()
    monkeypatch.setattr(mode_coverage, "CHUNK", 25 * 7)
    assert high_quality_counts(centres, x, 0.3).tolist() == expected.tolist()
    assert mixture_modes(centres, x, 0.3) == ((expected > 0).sum(), expected.sum() / 500)


def test_a_collapsed_generator_captures_one_mode_or_none():
    centres = ring()
    assert mixture_modes(centres, centres[2:3].expand(50, -1), 0.01) == (1, 1.0)
    assert mixture_modes(centres, torch.zeros(50, 2), 0.01) == (0, 0.0)


def test_a_distance_of_three_standard_deviations_is_outside():
    centre = torch.zeros(1, 2)
    x = torch.tensor([[0.0, 3.0], [0.0, 2.999], [3.001, 0.0]])
    assert high_quality_counts(centre, x, 1.0).tolist() == [1]
    assert high_quality_counts(centre, x, 1.0, within=4.0).tolist() == [3]


def test_an_empty_set_of_samples_raises():
    with pytest.raises(ValueError, match="no samples"):
        mixture_modes(ring(), torch.zeros(0, 2), 0.01)


# --- Stacked digits


def test_stacked_digits_are_classified_channel_by_channel():
    numbers = torch.randint(1000, (3000,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(stacked_counts(digits(numbers), read), numbers.bincount(minlength=1000))
    assert stacked_counts(digits(counts(407, 407, 12)), read).nonzero()[:, 0].tolist() == [12, 407]
    assert len(stacked_counts(digits(counts(4, 12), 2), read)) == 100


def test_a_uniform_generator_has_a_thousand_modes_and_zero_divergence():
    fake = Side(digits(torch.arange(26_000) % 1000))
    assert measure("stacked_modes", fake).value == 1000
    assert measure("stacked_modes_kl", fake).value == pytest.approx(0, abs=1e-12)
    assert measure("stacked_modes", fake).details == {"of": 1000, "share": 1.0}


def test_half_of_the_modes_give_500_modes_and_a_divergence_of_log_two():
    fake = Side(digits(torch.arange(26_000) % 500))
    found, kl = measure("stacked_modes", fake), measure("stacked_modes_kl", fake)
    assert (found.value, found.details["share"], found.n_fake) == (500, 0.5, 26_000)
    assert kl.value == pytest.approx(math.log(2), rel=1e-12)


def test_26000_uniform_samples_have_the_expected_bias_of_the_divergence():
    numbers = torch.randint(1000, (26_000,), generator=torch.Generator().manual_seed(0))
    kl = measure("stacked_modes_kl", Side(digits(numbers)))
    assert kl.value == pytest.approx(999 / 52_000, abs=3 * kl.uncertainty.value)
    assert kl.uncertainty.value == pytest.approx(math.sqrt(2 * 999) / 52_000, rel=0.1)


def test_the_two_stacked_protocols_classify_once_and_require_26000_samples():
    seen = []
    inputs = Inputs(
        Side(IMAGES), Side(digits(torch.arange(50))), None, torch.Generator(), embed=lambda x: seen.append(x) or read(x)
    )
    for stem in ("stacked_modes", "stacked_modes_kl"):
        BY_STEM[stem].compute(inputs)
        assert BY_STEM[stem].num == 26_000
    assert len(seen) == 3


def test_stacked_modes_without_a_classifier_of_digits_are_unavailable():
    fake = Side(digits(torch.arange(50)))
    with pytest.raises(Unavailable, match="no classes"):
        measure("stacked_modes", fake, embed=lambda x: (x.flatten(1).float(), None))
    with pytest.raises(Unavailable, match="11 classes in 3 channels are more than 1,000 modes"):
        measure("stacked_modes", fake, embed=lambda x: (x, torch.zeros(len(x), 11)))
    with pytest.raises(Unavailable, match="not finite"):
        measure("stacked_modes_kl", fake, embed=lambda x: (x, torch.full((len(x), 10), math.nan)))
    with pytest.raises(Unavailable, match="at least 1 image"):
        measure("stacked_modes", Side(IMAGES))


# --- Classes


def test_modes_are_the_predicted_classes():
    value = measure("modes", of_classes([0, 0, 3, 3, 9]))
    assert (value.value, value.details, value.n_fake, value.n_real) == (3, {"of": 10, "share": 0.3}, 5, 0)


def test_class_kl_equals_scipy_with_half_a_sample_added():
    real, fake = [0] * 30 + [1] * 20 + [2] * 50, [0] * 5 + [1] * 10 + [3] * 5
    value = measure("class_kl", of_classes(fake, 4), of_classes(real, 4))
    expected = entropy(np.array([5, 10, 0, 5]) + 0.5, np.array([30, 20, 50, 0]) + 0.5)
    assert value.value == pytest.approx(expected, rel=1e-12)
    assert value.details == {"classes": 4, "missing": [2]}
    assert (value.n_real, value.n_fake) == (100, 20)


def test_equal_counts_have_zero_divergence_and_the_order_of_the_sets_matters():
    a, b = counts(10, 20, 70), counts(30, 30, 40)
    assert kl_divergence(a, a)[0] == 0
    assert kl_divergence(a, b)[0] == pytest.approx(entropy(b.numpy() + 0.5, a.numpy() + 0.5), rel=1e-12)
    assert kl_divergence(a, b)[0] != pytest.approx(kl_divergence(b, a)[0], rel=0.01)


@pytest.mark.parametrize("p", [[1, 0, 0, 0], [5, 3, 2, 0], [1, 1, 1, 1]])
def test_the_divergence_to_uniform_equals_scipy(p):
    p = np.array(p) * 7
    assert kl_to_uniform(torch.from_numpy(p))[0] == pytest.approx(entropy(p, np.ones(4)), rel=1e-12, abs=1e-12)


def test_the_divergence_of_an_empty_set_is_unavailable():
    with pytest.raises(Unavailable, match="needs at least 1 image"):
        kl_to_uniform(counts(0, 0))
    with pytest.raises(Unavailable, match="needs at least 1 image in each set, not 3 and 0"):
        kl_divergence(counts(1, 2), counts(0, 0))


def test_missing_logits_are_unavailable():
    whole, none = of_classes([0, 1]), Side(IMAGES)
    for stem, fake, real in (("modes", none, whole), ("class_kl", none, whole), ("class_kl", whole, none)):
        with pytest.raises(Unavailable, match="no classes"):
            measure(stem, fake, real)


# --- Uncertainty: 95 % intervals cover the mean over new samples

rng = np.random.RandomState(0)
UNIFORM, SKEWED = np.full(1000, 1e-3), np.exp(1.5 * rng.randn(1000))
SKEWED /= SKEWED.sum()
FEW = np.array([0.5, 0.3, 0.1, 0.05, 0.04, 0.005, 0.003, 0.002])
TEN = np.arange(1, 11) ** 2 / 385


def covered(estimates, truth):
    values, errors = np.array(estimates).T
    return np.mean(abs(values - truth) <= 1.96 * errors + 1e-9)


@pytest.mark.parametrize(("p", "n"), [(SKEWED, 26_000), (SKEWED, 2600), (TEN, 100)], ids=["1000", "1000 thin", "10"])
def test_the_interval_of_a_count_covers_the_expected_count(p, n):
    draws = torch.from_numpy(np.random.RandomState(1).multinomial(n, p, size=200))
    assert 0.90 <= covered([modes_found(c) for c in draws], (1 - (1 - p) ** n).sum()) <= 0.99


def test_the_error_of_a_count_is_not_zero_if_a_mode_is_missing_or_occurs_once():
    assert modes_found(counts(1000, 1000, 0))[1] >= 0.5
    assert modes_found(counts(1000, 1000, 1))[1] >= 0.4
    assert modes_found(counts(1000, 1000, 1000)) == (3, 0)
    assert modes_found(counts(0, 0)) == (0, 0.5)


@pytest.mark.parametrize("p", [UNIFORM, SKEWED], ids=["uniform", "skewed"])
def test_the_interval_of_a_divergence_to_uniform_covers_its_mean(p):
    draws = np.random.RandomState(2).multinomial(26_000, p, size=2000)
    truth = np.mean([entropy(d, np.ones(1000)) for d in draws])
    assert 0.90 <= covered([kl_to_uniform(torch.from_numpy(d)) for d in draws[:200]], truth) <= 0.99


@pytest.mark.parametrize(("p", "q"), [(FEW, FEW), (FEW, FEW[[1, 0, 2, 3, 4, 5, 6, 7]])], ids=["equal", "unequal"])
def test_the_interval_of_a_divergence_between_two_sets_covers_its_mean(p, q):
    g = np.random.RandomState(3)
    pairs = zip(g.multinomial(3000, q, size=1000), g.multinomial(2000, p, size=1000), strict=True)
    runs = [kl_divergence(*map(torch.from_numpy, pair)) for pair in pairs]
    # For equal distributions the error grows with the value and covers the whole upper tail.
    assert 0.90 <= covered(runs[:200], np.mean([value for value, _ in runs])) <= (1 if p is q else 0.99)
