"""The kernel distance against float64 loops and torch-fidelity with the same seed; its standard error by simulation."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

from ganbench.metrics import Inputs, Side, kernel
from ganbench.metrics.kernel import mmd2_unbiased, standard_error


def draw(n, d, seed, shift=0.0, scale=1.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * scale + shift


def measure(real, fake):
    images = torch.zeros(0, 1, 1, 1, dtype=torch.uint8)
    sides = Side(images, features=real), Side(images, features=fake)
    [value] = kernel.PROTOCOLS[0].compute(Inputs(*sides, None, torch.Generator()))
    return value


def test_it_equals_the_definition_in_loops():
    real, fake = draw(7, 3, 1), draw(5, 3, 2, shift=0.5)

    def k(a, b):
        return (sum(float(u) * float(v) for u, v in zip(a, b, strict=True)) / 3 + 1) ** 3

    def within(x):
        return sum(k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j) / (len(x) * (len(x) - 1))

    between = sum(k(a, b) for a in real for b in fake) / 35
    assert mmd2_unbiased(real, fake) == pytest.approx(within(real) + within(fake) - 2 * between, rel=1e-12)


@pytest.mark.parametrize(("n_real", "n_fake"), [(40, 40), (24, 20), (20, 24), (1100, 1050)])
def test_the_protocol_equals_torch_fidelity_with_the_fakes_as_its_first_input(n_real, n_fake):
    real, fake = draw(n_real, 16, 1), draw(n_fake, 16, 2, shift=0.2, scale=1.1)
    size = min(1000, n_real, n_fake)
    theirs = kid_features_to_metric(fake.double(), real.double(), kid_subset_size=size, verbose=False)
    ours = measure(real, fake)
    assert ours.value == pytest.approx(theirs[KEY_METRIC_KID_MEAN], rel=1e-9)
    assert ours.details["std_over_subsets"] == pytest.approx(theirs[KEY_METRIC_KID_STD], rel=1e-6, abs=1e-12)
    assert (ours.n_real, ours.n_fake, ours.details["subset_size"]) == (n_real, n_fake, size)


def test_fewer_images_than_a_subset_are_said():
    assert measure(draw(40, 4, 1), draw(40, 4, 2)).warnings == ("subsets of 40 instead of 1,000",)


def test_it_is_unbiased_so_that_equal_distributions_give_values_of_both_signs_around_zero():
    values = np.array([mmd2_unbiased(draw(50, 4, 2 * seed), draw(50, 4, 2 * seed + 1)) for seed in range(200)])
    assert abs(values.mean()) < 3 * values.std(ddof=1) / 200**0.5
    assert (values < 0).mean() > 0.3


def pair(seed, n, m, shift, scale):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=g) * torch.linspace(0.5, 1.5, 4), torch.randn(m, 4, generator=g) * scale + shift


@pytest.mark.parametrize(
    ("n", "m", "shift", "scale"), [(400, 300, 0.5, 1.3), (300, 400, 0.0, 2.0), (300, 300, 1.0, 1.0)]
)
def test_the_standard_error_is_the_standard_deviation_over_fresh_draws(n, m, shift, scale):
    sets = [pair(seed, n, m, shift, scale) for seed in range(200)]
    values = [mmd2_unbiased(*s) for s in sets]
    errors = np.array([standard_error(*s) for s in sets])
    assert np.sqrt((errors**2).mean()) == pytest.approx(np.std(values, ddof=1), rel=0.15)


def test_where_the_sets_are_alike_the_standard_error_errs_on_the_safe_side():
    sets = [(draw(200, 4, 2 * seed), draw(200, 4, 2 * seed + 1)) for seed in range(200)]
    spread = np.std([mmd2_unbiased(*s) for s in sets], ddof=1)
    assert 1.1 * spread < np.sqrt(np.mean([standard_error(*s) ** 2 for s in sets])) < 1.7 * spread


def test_the_protocol_s_standard_error_counts_the_draw_of_subsets_too(monkeypatch):
    # Ten subsets of a tenth: what they leave out doubles the variance.
    monkeypatch.setattr(kernel, "SUBSETS", 10)
    monkeypatch.setattr(kernel, "SUBSET_SIZE", 60)
    runs = [measure(*pair(seed, 600, 600, 0.5, 1.3)) for seed in range(150)]
    errors = np.array([r.uncertainty.value for r in runs])
    assert np.sqrt((errors**2).mean()) == pytest.approx(np.std([r.value for r in runs], ddof=1), rel=0.15)


def test_chunks_and_a_limit_of_rows_change_the_standard_error_little():
    real, fake = pair(0, 600, 500, 0.5, 1.3)
    whole = standard_error(real, fake)
    assert standard_error(real, fake, chunk=37) == pytest.approx(whole, rel=1e-12)
    assert standard_error(real, fake, most=400) == pytest.approx(whole, rel=0.2)
    assert standard_error(real, fake, most=400) != whole
