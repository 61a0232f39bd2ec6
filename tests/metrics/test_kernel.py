"""Kernel distances against float64 loops and torch-fidelity with the same seed; standard errors by simulation."""

import math

import numpy as np
import pytest
import torch
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

from ganbench.metrics import Inputs, Side, Unavailable, kernel
from ganbench.metrics.kernel import cubic_kernel, kernel_distance, mmd2_unbiased, mmd_rbf, standard_error


def draw(n, d, seed, shift=0.0, scale=1.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * scale + shift


def measure(real, fake, stem="kd"):
    images = torch.zeros(0, 1, 1, 1, dtype=torch.uint8)
    sides = Side(images, features=real), Side(images, features=fake)
    [protocol] = [p for p in kernel.PROTOCOLS if p.stem == stem]
    [value] = protocol.compute(Inputs(*sides, None, torch.Generator()))
    return value


def factors(n, d, seed, shift=0.0, offset=0.0):
    """Return correlated features like those behind a ReLU."""
    mix = torch.randn(32, d, generator=torch.Generator().manual_seed(0)) / 32**0.5
    return ((draw(n, 32, seed) + shift) @ mix).relu() + offset


def test_mmd2_equals_the_definition_in_loops():
    real, fake = draw(7, 3, 1), draw(5, 3, 2, shift=0.5)

    def k(a, b):
        return (sum(float(u) * float(v) for u, v in zip(a, b, strict=True)) / 3 + 1) ** 3

    def within(x):
        return sum(k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j) / (len(x) * (len(x) - 1))

    between = sum(k(a, b) for a in real for b in fake) / 35
    assert mmd2_unbiased(real, fake) == pytest.approx(within(real) + within(fake) - 2 * between, rel=1e-12)


@pytest.mark.parametrize(("n_real", "n_fake"), [(40, 40), (24, 20), (20, 24), (1100, 1050)])
def test_the_protocol_equals_torch_fidelity_with_generated_images_as_first_input(n_real, n_fake):
    real, fake = draw(n_real, 16, 1), draw(n_fake, 16, 2, shift=0.2, scale=1.1)
    size = min(1000, n_real, n_fake)
    theirs = kid_features_to_metric(fake.double(), real.double(), kid_subset_size=size, verbose=False)
    ours = measure(real, fake)
    assert ours.value == pytest.approx(theirs[KEY_METRIC_KID_MEAN], rel=1e-6)
    assert ours.details["std_over_subsets"] == pytest.approx(theirs[KEY_METRIC_KID_STD], rel=1e-6, abs=1e-12)
    assert (ours.n_real, ours.n_fake, ours.details["subset_size"]) == (n_real, n_fake, size)


def mmd2_less_one(x, y):
    """Return the unbiased MMD^2 of the cubic kernel minus 1, in float64: small features keep their digits."""

    def k(a, b):
        g = a.double() @ b.double().T / a.shape[1]
        return g * (3 + g * (3 + g))

    def within(a):
        return k(a, a).fill_diagonal_(0).sum() / (len(a) * (len(a) - 1))

    return (within(x) + within(y) - 2 * k(x, y).mean()).item()


def subsets_in_float64(real, fake):
    """Return the MMD^2 of each subset, directly from the protocol."""
    rng = np.random.RandomState(2020)
    size = min(kernel.SUBSET_SIZE, len(real), len(fake))
    values = []
    for _ in range(kernel.SUBSETS):
        y = fake[rng.choice(len(fake), size, replace=False)]
        values.append(mmd2_less_one(real[rng.choice(len(real), size, replace=False)], y))
    return np.array(values)


@pytest.mark.parametrize("size", [30, 200], ids=["a subset at a time", "all pairs at once"])
@pytest.mark.parametrize(
    ("shift", "offset", "scale"), [(0.05, 0, 1), (0.5, 0, 1), (0.1, 3, 1), (0.1, 0, 1e-6), (0.5, 0, 1e6)]
)
def test_float32_products_keep_six_digits_of_every_subset(size, shift, offset, scale, monkeypatch):
    monkeypatch.setattr(kernel, "SUBSETS", 8)
    monkeypatch.setattr(kernel, "SUBSET_SIZE", size)
    monkeypatch.setattr(kernel, "BLOCK", 100)
    real, fake = factors(300, 64, 1, 0, offset) * scale, factors(250, 64, 2, shift, offset) * scale
    ours, exact = kernel_distance(real, fake).numpy(), subsets_in_float64(real, fake)
    g = real.double() @ real.double().T / 64
    of_a_term = (g * (3 + g * (3 + g))).std().item()  # values near 0 are differences of terms of this size
    assert ours == pytest.approx(exact, rel=1e-6, abs=3e-7 * of_a_term / size**0.5)
    assert ours.mean() == pytest.approx(exact.mean(), rel=1e-6, abs=1e-8 * of_a_term)


def test_both_ways_of_summing_agree(monkeypatch):
    real, fake = factors(230, 16, 1), factors(121, 16, 2, 0.3)
    at_once = measure(real, fake)
    monkeypatch.setattr(kernel._Cubic, "all_pairs", lambda *_: pytest.fail("all pairs"))
    monkeypatch.setattr(kernel, "standard_error", lambda *_: 0.0)
    with pytest.raises(pytest.fail.Exception):
        measure(real, fake)
    monkeypatch.setattr(kernel, "SUBSETS", 1)  # one subset of 121 samples costs less than all pairs
    [alone] = kernel_distance(real, fake)
    monkeypatch.undo()
    assert alone.item() == pytest.approx(kernel_distance(real, fake)[0].item(), rel=1e-7)
    assert at_once.value == pytest.approx(kernel_distance(real, fake).mean().item(), rel=1e-12)


def test_one_image_is_unavailable():
    for call in (kernel_distance, mmd2_unbiased, mmd_rbf):
        with pytest.raises(Unavailable, match="needs at least 2 images"):
            call(draw(10, 3, 0), draw(1, 3, 0))


def test_fewer_images_than_a_subset_give_a_warning():
    assert measure(draw(40, 4, 1), draw(40, 4, 2)).warnings == ("subsets of 40 instead of 1,000",)


def test_equal_distributions_give_values_of_both_signs_around_zero():
    values = np.array([mmd2_unbiased(draw(50, 4, 2 * seed), draw(50, 4, 2 * seed + 1)) for seed in range(200)])
    assert abs(values.mean()) < 3 * values.std(ddof=1) / 200**0.5
    assert (values < 0).mean() > 0.3


def pair(seed, n, m, shift, scale):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=g) * torch.linspace(0.5, 1.5, 4), torch.randn(m, 4, generator=g) * scale + shift


@pytest.mark.parametrize(
    ("n", "m", "shift", "scale"), [(400, 300, 0.5, 1.3), (300, 400, 0.0, 2.0), (300, 300, 1.0, 1.0)]
)
def test_the_standard_error_equals_the_standard_deviation_over_new_samples(n, m, shift, scale):
    sets = [pair(seed, n, m, shift, scale) for seed in range(200)]
    values = [mmd2_unbiased(*s) for s in sets]
    errors = np.array([standard_error(*s) for s in sets])
    assert np.sqrt((errors**2).mean()) == pytest.approx(np.std(values, ddof=1), rel=0.15)


def test_the_standard_error_is_too_large_for_equal_distributions():
    sets = [(draw(200, 4, 2 * seed), draw(200, 4, 2 * seed + 1)) for seed in range(200)]
    spread = np.std([mmd2_unbiased(*s) for s in sets], ddof=1)
    assert 1.1 * spread < np.sqrt(np.mean([standard_error(*s) ** 2 for s in sets])) < 1.7 * spread


def test_the_standard_error_of_the_protocol_includes_the_draw_of_subsets(monkeypatch):
    # Ten subsets of a tenth of the samples double the variance.
    monkeypatch.setattr(kernel, "SUBSETS", 10)
    monkeypatch.setattr(kernel, "SUBSET_SIZE", 60)
    runs = [measure(*pair(seed, 600, 600, 0.5, 1.3)) for seed in range(150)]
    errors = np.array([r.uncertainty.value for r in runs])
    assert np.sqrt((errors**2).mean()) == pytest.approx(np.std([r.value for r in runs], ddof=1), rel=0.15)


def projections(real, fake):
    """Return the first-order standard error directly from its definition, in float64."""
    x, y = real.double(), fake.double()
    variance = 0.0
    for own, other in ((x, y), (y, x)):
        k = cubic_kernel(own, own).fill_diagonal_(0)
        variance += (2 * (k.sum(1) / (len(own) - 1) - cubic_kernel(own, other).mean(1))).var().item() / len(own)
    return math.sqrt(variance)


def test_the_standard_error_equals_its_definition_for_any_block_size(monkeypatch):
    real, fake = pair(0, 600, 500, 0.5, 1.3)
    whole = standard_error(real, fake)
    # The code omits the parts of the kernel that depend on x alone, which are of order 1/N.
    assert whole == pytest.approx(projections(real, fake), rel=5e-3)
    monkeypatch.setattr(kernel, "BLOCK", 38)
    assert standard_error(real, fake) == pytest.approx(whole, rel=1e-6)


def test_a_limit_of_rows_changes_the_standard_error_little_even_for_ordered_sets():
    real, fake = pair(0, 3000, 3000, 0.5, 1.3)
    fake = fake[fake[:, 0].argsort()]
    assert standard_error(real, fake, most=1000) == pytest.approx(standard_error(real, fake, most=3000), rel=0.15)


def test_a_limit_of_rows_changes_the_standard_error_little_for_equal_distributions():
    # A quarter of the rows without a correction would give four times the variance.
    sets = [(draw(1200, 4, 2 * seed), draw(1200, 4, 2 * seed + 1)) for seed in range(20)]
    whole, some = (np.mean([standard_error(*s, most=most) ** 2 for s in sets]) for most in (1200, 300))
    assert 0.7 * whole < some < 2 * whole


def coverage(runs, truth):
    """Return the share of nominal 95 % intervals of (value, standard error) that contain the expected value."""
    values, errors = np.array(runs).T
    return float((np.abs(values - truth) <= 1.96 * errors).mean())


def true_kd(shift, scale):
    """Return the true MMD^2: E (a'b / 4 + 1)^3 of independent Gaussians follows from the moments of a'b."""

    def third(mean_a, var_a, mean_b, var_b):
        # First three moments of a product of independent Gaussians in each dimension, then of their sum.
        m1 = mean_a * mean_b
        m2 = (mean_a**2 + var_a) * (mean_b**2 + var_b)
        m3 = (mean_a**3 + 3 * mean_a * var_a) * (mean_b**3 + 3 * mean_b * var_b)
        variance, skew = m2 - m1**2, m3 - 3 * m1 * m2 + 2 * m1**3
        mean, variance, skew = 1 + m1.sum() / 4, variance.sum() / 16, skew.sum() / 64
        return mean**3 + 3 * mean * variance + skew

    zero, own = np.zeros(4), np.linspace(0.5, 1.5, 4) ** 2
    there, wide = np.full(4, shift), np.full(4, scale**2)
    within = third(zero, own, zero, own) + third(there, wide, there, wide)
    return within - 2 * third(zero, own, there, wide)


@pytest.mark.parametrize(("shift", "scale"), [(0.5, 1.3), (1.0, 1.0)])
def test_intervals_of_the_protocol_cover_the_truth(shift, scale, monkeypatch):
    monkeypatch.setattr(kernel, "SUBSETS", 20)
    monkeypatch.setattr(kernel, "SUBSET_SIZE", 100)
    runs = [measure(*pair(seed, 300, 250, shift, scale)) for seed in range(200)]
    assert 0.90 <= coverage([(r.value, r.uncertainty.value) for r in runs], true_kd(shift, scale)) <= 0.99


# --- The Gaussian kernel


def rbf_in_loops(real, fake, sigma=10.0):
    def unit(x):
        x = x.double().numpy()
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    x, y = unit(real), unit(fake)

    def mean(a, b):
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(2) / (2 * sigma**2)).mean()

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


@pytest.mark.parametrize("block", [10, 1000])
@pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
def test_mmd_rbf_equals_its_definition(block, scale, monkeypatch):
    monkeypatch.setattr(kernel, "BLOCK", block)
    real, fake = factors(70, 24, 1) * scale, factors(55, 24, 2, 0.2) * scale
    assert mmd_rbf(real, fake) == pytest.approx(rbf_in_loops(real, fake), rel=1e-6)
    assert mmd_rbf(real, fake, sigma=0.5) == pytest.approx(rbf_in_loops(real, fake, 0.5), rel=1e-6)
    assert mmd_rbf(fake, real) == pytest.approx(mmd_rbf(real, fake), rel=1e-6)


def test_mmd_rbf_of_a_set_and_itself_is_zero():
    x = factors(80, 24, 1)
    assert mmd_rbf(x, x.clone()) == 0
    assert 0 <= mmd_rbf(x, x.flip(0)) < 1e-11
    assert mmd_rbf(torch.zeros(4, 3), torch.zeros(5, 3)) == 0


def test_mmd_rbf_reports_its_value_times_1000_in_the_details():
    value = measure(factors(40, 24, 1), factors(30, 24, 2, 0.2), "mmd_rbf")
    assert value.details == {"sigma": 10.0, "times_1000": value.value * 1000}
    assert value.warnings == ("40 real and 30 generated images: biased by their counts",)
    assert value.value == mmd_rbf(factors(40, 24, 1), factors(30, 24, 2, 0.2))


def test_intervals_of_mmd_rbf_cover_the_truth():
    def sets(seed, n):
        return draw(n, 4, 2 * seed), draw(n, 4, 2 * seed + 1, shift=0.6)

    # The bias from pairs of a sample with itself is (1 - E k) / n, far below the error here.
    truth = mmd_rbf(*sets(10_000, 6000))
    runs = [measure(*sets(seed, 300), "mmd_rbf") for seed in range(200)]
    assert 0.90 <= coverage([(r.value, r.uncertainty.value) for r in runs], truth) <= 0.99
