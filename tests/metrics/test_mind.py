"""The Monge distance against SciPy's Wasserstein distances, closed forms, and torch-fidelity's arithmetic."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from ganbench.metrics import Inputs, Side, Unavailable, mind
from ganbench.metrics.mind import monge_distance


def gaussians(n, m, d, seed=0, shift=0.0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g), torch.randn(m, d, generator=g) + shift


def axes(d):
    return torch.eye(d)


def measure(real, fake):
    sides = (Side(torch.zeros(len(s), 1, 1, 1, dtype=torch.uint8), features=s) for s in (real, fake))
    [value] = mind.PROTOCOLS[0].compute(Inputs(*sides, None, torch.Generator()))
    return value


def test_sorting_gives_the_optimal_assignment():
    real, fake = gaussians(30, 30, 3)
    expected = []
    for axis in range(3):
        cost = (real[:, axis, None].double() - fake[:, axis].double()).square().numpy()
        expected.append(cost[linear_sum_assignment(cost)].mean())
    value, _ = monge_distance(real, fake, axes(3))
    assert value == pytest.approx(3 * 3 * np.mean(expected), rel=1e-12)


def test_a_shift_gives_three_times_its_squared_length():
    # The mean of (u'm)^2 over unit directions u is |m|^2 / d.
    real, _ = gaussians(40, 1, 5)
    shift = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0])
    value, error = monge_distance(real, real + shift, axes(5))
    assert value == pytest.approx(3 * shift.square().sum().item(), rel=1e-6)
    assert error > 0


@pytest.mark.parametrize(("n", "m"), [(80, 80), (80, 60), (50, 90)])
def test_the_distance_equals_the_arithmetic_of_torch_fidelity(n, m):
    # torch-fidelity's order: one generator with seed 2020 draws samples of the larger set, then directions in float32.
    real, fake = gaussians(n, m, 16, shift=0.3)
    g = torch.Generator().manual_seed(2020)
    few = min(n, m)
    y = fake[torch.randperm(m, generator=g)[:few]] if m > few else fake
    x = real[torch.randperm(n, generator=g)[:few]] if n > few else real
    u = torch.randn(1000, 16, generator=g)
    u = u / u.norm(dim=1, keepdim=True)
    theirs = 48 * ((y @ u.T).sort(dim=0).values - (x @ u.T).sort(dim=0).values).square().mean().item()
    value = measure(real, fake)
    assert value.value == pytest.approx(theirs, rel=1e-6)
    assert (value.n_real, value.n_fake, value.details["paired"]) == (n, m, few)
    assert bool(value.warnings) == (n != m)


def test_a_set_against_itself_is_zero_and_the_order_does_not_matter():
    real, fake = gaussians(60, 60, 8)
    assert measure(real, real.clone()).value == 0
    shuffled = fake[torch.randperm(60, generator=torch.Generator().manual_seed(1))]
    assert measure(real, shuffled).value == pytest.approx(measure(real, fake).value, rel=1e-12)
    assert measure(fake, real).value == pytest.approx(measure(real, fake).value, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_distance_scales_with_the_square_of_the_features(scale):
    real, fake = gaussians(40, 40, 8, shift=0.5)
    expected = measure(real, fake)
    value = measure(scale * real, scale * fake)
    assert value.value == pytest.approx(scale**2 * expected.value, rel=1e-5)
    assert value.uncertainty.value == pytest.approx(scale**2 * expected.uncertainty.value, rel=1e-5)


def test_the_standard_error_equals_the_deviation_over_new_samples():
    values, errors = [], []
    for i in range(25):
        value = measure(*gaussians(100, 100, 6, seed=i, shift=0.4))
        values.append(value.value)
        errors.append(value.uncertainty.value)
    ratio = math.sqrt(np.square(errors).mean()) / np.std(values, ddof=1)
    assert 0.75 < ratio < 1.5


def test_one_image_and_unequal_counts_raise():
    real, fake = gaussians(1, 5, 3)
    with pytest.raises(Unavailable, match="needs at least 2 images"):
        measure(real, fake)
    with pytest.raises(ValueError, match="needs pairs"):
        monge_distance(fake, fake[:3], axes(3))
