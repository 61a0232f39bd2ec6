"""Log-likelihood under Parzen windows against closed forms, SciPy and scikit-learn; the choice of sigma."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.neighbors import KernelDensity

from ganbench.metrics import Inputs, Side, Unavailable, parzen
from ganbench.metrics.parzen import SIGMAS, choose_sigma, parzen_log_likelihood

[PROTOCOL] = parzen.PROTOCOLS
GOLDEN = 47.538911359338144  # computed with NumPy from the definition


def draw(n, d, seed, dtype=torch.float64):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_definition(real, fake, sigma):
    x, y = real.double().numpy(), fake.double().numpy()
    squares = ((x[:, None] - y) ** 2).sum(-1)
    return logsumexp(-squares / 2 / sigma**2, axis=1) - np.log(len(y)) - x.shape[1] * np.log(sigma * np.sqrt(2 * np.pi))


def images(n, seed, mean=128.0, std=40.0, channels=1, edge=6):
    x = torch.randn(n, channels, edge, edge, generator=torch.Generator().manual_seed(seed)) * std + mean
    return x.clamp(0, 255).to(torch.uint8)


def measure(fake, real, held_out, seed=0):
    sides = [Side(x) for x in (real, fake, held_out)]
    [value] = PROTOCOL.compute(Inputs(*sides, torch.Generator().manual_seed(seed)))
    return value


# --- The density


def test_one_window_is_a_gaussian():
    x, mean = draw(7, 5, 0), draw(1, 5, 1)
    expected = multivariate_normal(mean[0].numpy(), 0.3**2).logpdf(x.numpy())
    assert parzen_log_likelihood(x, mean, 0.3).numpy() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("n", "m", "d"), [(30, 40, 2), (20, 300, 784), (1, 1, 1)])
@pytest.mark.parametrize("sigma", [0.1, 0.2, 1.0])
def test_the_density_equals_the_definition_and_scikit_learn(n, m, d, sigma):
    x, y = draw(n, d, 0), draw(m, d, 1)
    ours = parzen_log_likelihood(x, y, sigma).numpy()
    assert ours == pytest.approx(by_definition(x, y, sigma), rel=1e-11)
    # A single leaf: the tree of scikit-learn stops too early in 784 dimensions.
    theirs = KernelDensity(bandwidth=sigma, leaf_size=m + 1).fit(y.numpy()).score_samples(x.numpy())
    assert ours == pytest.approx(theirs, rel=1e-11)


def test_several_widths_at_once_equal_single_widths(monkeypatch):
    x, y = draw(25, 9, 0), draw(31, 9, 1)
    monkeypatch.setattr(parzen, "CHUNK", 31 * 4)  # several chunks, the last one shorter
    assert torch.equal(
        parzen_log_likelihood(x, y, (0.1, 0.4)),
        torch.stack([parzen_log_likelihood(x, y, s) for s in (0.1, 0.4)]),
    )
    assert parzen_log_likelihood(x, y, 0.4).numpy() == pytest.approx(by_definition(x, y, 0.4), rel=1e-12)


@given(shift=st.floats(-1e4, 1e4), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_a_common_shift_changes_nothing(shift, seed):
    x, y = draw(8, 4, seed), draw(9, 4, seed + 1)
    shifted = parzen_log_likelihood(x + shift, y + shift, 0.2)
    assert shifted.numpy() == pytest.approx(parzen_log_likelihood(x, y, 0.2).numpy(), abs=1e-7)


def test_a_unit_ten_times_larger_adds_log_ten_per_dimension():
    x, y = draw(8, 4, 0), draw(9, 4, 1)
    small, large = parzen_log_likelihood(x, y, 0.2), parzen_log_likelihood(10 * x, 10 * y, 2.0)
    assert small.numpy() == pytest.approx((large + 4 * math.log(10)).numpy(), rel=1e-12)


def test_the_density_far_from_every_window_is_finite():
    far = parzen_log_likelihood(torch.full((1, 784), 255.0), torch.zeros(3, 784), 0.1)
    expected = -784 * 255**2 / 2 / 0.01 - 784 * math.log(0.1 * math.sqrt(2 * math.pi))
    assert far.item() == pytest.approx(expected, rel=1e-12)


def test_the_density_integrates_to_one():
    grid = torch.linspace(-6, 7, 4001, dtype=torch.float64)[:, None]
    density = parzen_log_likelihood(grid, draw(20, 1, 0), 0.3).exp()
    assert torch.trapezoid(density, grid[:, 0]).item() == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize(("n", "m", "sigma"), [(0, 3, 0.1), (3, 0, 0.1), (3, 3, 0.0), (3, 3, -1.0)])
def test_empty_sets_and_widths_that_are_not_positive_raise(n, m, sigma):
    with pytest.raises(ValueError, match="a window needs"):
        parzen_log_likelihood(draw(n, 2, 0), draw(m, 2, 1), sigma)


# --- The width


def test_sigmas_are_ten_evenly_spaced_in_log_from_a_tenth_to_one():
    assert pytest.approx(np.logspace(-1, 0, 10), rel=1e-12) == SIGMAS


@pytest.mark.parametrize("spread", [0.15, 0.4])
def test_the_chosen_width_has_the_highest_log_likelihood(spread):
    y = torch.zeros(1, 3, dtype=torch.float64)
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * spread
    nearest = min(SIGMAS, key=lambda s: abs(math.log(s / spread)))
    assert choose_sigma(x, y) == nearest
    means = [by_definition(x[:200], y, s).mean() for s in SIGMAS]
    assert choose_sigma(x[:200], y) == SIGMAS[int(np.argmax(means))]


# --- The protocol


def test_the_value_is_the_mean_over_test_images_on_pixels_in_0_to_1():
    fake, real, test = images(60, 0), images(40, 1), images(30, 2)
    value = measure(fake, real, test)
    x, y, v = (a.flatten(1).double() / 255 for a in (test, fake, real))
    sigma = SIGMAS[int(np.argmax([by_definition(v, y, s).mean() for s in SIGMAS]))]
    expected = by_definition(x, y, sigma)
    assert value.details == {"sigma": sigma, "windows": 60, "validation_images": 40}
    assert value.value == pytest.approx(expected.mean(), rel=1e-9)
    assert value.uncertainty.value == pytest.approx(expected.std(ddof=1) / math.sqrt(30), rel=1e-9)
    assert (value.n_real, value.n_fake) == (30, 60)
    assert value.warnings[0].startswith("60 windows, not 10,000")


def test_the_test_images_do_not_choose_the_width():
    fake, real = images(60, 0), images(40, 1)
    sigmas = {measure(fake, real, images(30, seed, std=std)).details["sigma"] for seed, std in ((2, 1), (3, 120))}
    assert len(sigmas) == 1
    assert sigmas != {measure(fake, images(40, 1, std=1), images(30, 2)).details["sigma"]}


def test_1000_reference_images_validate_and_10000_samples_are_windows(monkeypatch):
    monkeypatch.setattr(parzen, "WINDOWS", 50)
    value = measure(images(60, 0), images(1100, 1), images(30, 2))
    assert value.details["validation_images"] == 1000
    assert value.n_fake == value.details["windows"] == 50
    assert not value.warnings or "windows" not in value.warnings[0]


def test_in_the_row_of_real_data_no_image_is_both_window_and_validation_image():
    real, test = images(60, 1), images(30, 2)
    value = measure(real, real, test)
    assert value.details["windows"] == value.details["validation_images"] == 30
    # With validation images among the windows, the narrowest width would win.
    assert value.details["sigma"] > SIGMAS[0]
    assert measure(real.clone(), real, test).details["sigma"] == SIGMAS[0]


def test_a_width_at_the_end_of_the_grid_gives_a_warning():
    value = measure(images(20, 0, std=0), images(20, 1, std=0), images(20, 2, std=0))
    assert value.details["sigma"] == SIGMAS[0]
    assert "0.1, is at the end of the grid" in value.warnings[-2]
    # Every test image equals the only window: d log(1 / (sigma sqrt(2 pi))).
    assert value.value == pytest.approx(-36 * math.log(0.1 * math.sqrt(2 * math.pi)), rel=1e-9)
    assert (value.uncertainty, value.warnings[-1]) == (
        None, "no uncertainty is known: all test images have one density"
    )


def test_better_samples_give_a_higher_log_likelihood():
    dark_and_light = [torch.cat([images(30, s, 60.0, 20.0), images(30, s + 1, 190.0, 20.0)]) for s in (1, 3, 5)]
    real, test, good = dark_and_light
    off, collapsed = images(60, 7, 125.0, 20.0), images(60, 8, 60.0, 20.0)
    values = [measure(x, real, test).value for x in (good, off, collapsed)]
    assert values[0] > values[1] + 5 > values[2]


def test_the_interval_of_the_standard_error_covers_the_truth():
    fake, real = images(100, 0), images(50, 1)
    truth = measure(fake, real, images(20_000, 2)).value
    runs = [measure(fake, real, images(50, 10 + seed)) for seed in range(200)]
    covered = np.mean([abs(v.value - truth) <= 1.96 * v.uncertainty.value for v in runs])
    assert 0.90 <= covered <= 0.99


@pytest.mark.parametrize(
    ("fake", "real", "test"), [(0, 3, 3), (3, 0, 3), (3, 3, 1), (3, 3, 0)], ids=["fake", "real", "test", "no test"]
)
def test_too_few_images_are_unavailable(fake, real, test):
    with pytest.raises(Unavailable, match="needs at least 1 window, 1 validation image and 2 test images"):
        measure(images(fake, 0), images(real, 1), images(test, 2))


def test_images_of_two_sizes_are_unavailable():
    with pytest.raises(Unavailable, match="one size: generated images are 1x8x8, reference images are 1x6x6"):
        measure(images(5, 0, edge=8), images(5, 1), images(5, 2))


def test_the_value_of_fixed_images_does_not_change():
    pixel = torch.arange(36).view(1, 1, 6, 6)
    fake, real, test = (((torch.arange(n).view(-1, 1, 1, 1) * k + pixel * 7) % 256).to(torch.uint8)
                        for n, k in ((20, 3), (15, 4), (10, 5)))
    assert measure(fake, real, test).value == pytest.approx(GOLDEN, rel=1e-6)
