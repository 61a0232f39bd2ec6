"""The Fréchet distance against closed forms, scipy and torch-fidelity; its standard error by simulation."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from ganbench.metrics import Inputs, Side, Unavailable, frechet
from ganbench.metrics.frechet import (
    Moments,
    MomentsAccumulator,
    check_moments,
    frechet_distance,
    frechet_distance_and_error,
    frechet_distance_from_moments,
    frechet_standard_error,
    moments,
    subset_sizes,
)

PROTOCOLS = {p.stem: p for p in frechet.PROTOCOLS}


def draw(n, d, seed, rank=None, dtype=torch.float32):
    """Return correlated, skewed features N x d, like those behind a ReLU; optionally of lower rank."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(rank or d, d, generator=g, dtype=dtype) / d**0.5
    return torch.randn(n, rank or d, generator=g, dtype=dtype).relu() @ mix + 0.1 * torch.randn(
        d, generator=g, dtype=dtype
    )


def by_sqrtm(real, fake):
    x, y = real.double().numpy(), fake.double().numpy()
    s_x, s_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(s_x @ s_y)
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s_x + s_y - 2 * root.real)


def by_singular_values(real, fake):
    """The distance with tr (S_r S_f)^(1/2) as a nuclear norm of centred products, without covariances."""
    x, y = real.double().numpy(), fake.double().numpy()
    a, b = (x - x.mean(0)) / (len(x) - 1) ** 0.5, (y - y.mean(0)) / (len(y) - 1) ** 0.5
    nuclear = scipy.linalg.svd(a @ b.T, compute_uv=False, lapack_driver="gesvd").sum()
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * nuclear


def by_torch_fidelity(real, fake):
    moments = [fid_features_to_statistics(x.double()) for x in (real, fake)]
    return fid_statistics_to_metric(*moments, verbose=False)[KEY_METRIC_FID]


def distance_and_error(real, fake):
    value, error = frechet_distance_and_error(real, fake)
    assert value == pytest.approx(frechet_distance(real, fake), rel=1e-8, abs=1e-12 * (1 + real.var().item()))
    return value, error


def side(features, labels=None, kept=None, n=None):
    images = torch.zeros(len(features) if n is None else n, 1, 1, 1, dtype=torch.uint8)
    return Side(images, labels, features, kept=kept or {})


def measure(stem, real, fake, seed=0):
    real, fake = (x if isinstance(x, Side) else side(x) for x in (real, fake))
    [value] = PROTOCOLS[stem].compute(Inputs(real, fake, None, torch.Generator().manual_seed(seed)))
    return value


@pytest.fixture(params=["in full", "by squares"])
def way(request, monkeypatch):
    """Run a test with the code for small problems (float64, without squaring) and for large ones."""
    if request.param == "by squares":
        monkeypatch.setattr(frechet, "SMALL", 0)
    return request.param


# --- Values


@pytest.mark.parametrize(("n", "m", "d"), [(300, 300, 2), (200, 150, 16), (1000, 700, 64), (500, 400, 200)])
def test_the_distance_equals_torch_fidelity_scipy_and_the_nuclear_norm_on_regular_covariances(n, m, d, way):
    real, fake = draw(n, d, 1), draw(m, d, 2) * 1.3 + 0.2
    for value in (frechet_distance(real, fake), frechet_distance_from_moments(moments(real), moments(fake))):
        assert value == pytest.approx(by_torch_fidelity(real, fake), rel=1e-9)
        assert value == pytest.approx(by_sqrtm(real, fake), rel=1e-9)
        assert value == pytest.approx(by_singular_values(real, fake), rel=1e-12)


SINGULAR = [(24, 20, 256, None), (3, 40, 30, None), (40, 3, 30, None), (300, 200, 64, 8), (90, 20, 60, None)]


@pytest.mark.parametrize(("n", "m", "d", "rank"), SINGULAR)
def test_singular_covariances_lose_no_digits(n, m, d, rank, way):
    real, fake = draw(n, d, 1, rank), draw(m, d, 2, rank) * 1.3 + 0.2
    value = frechet_distance(real, fake)
    assert value == pytest.approx(by_singular_values(real, fake), rel=1e-12 if way == "in full" else 1e-10)
    # torch-fidelity uses the root of a product of covariances, which loses half the digits if it is singular.
    assert value == pytest.approx(by_torch_fidelity(real, fake), rel=1e-6)
    assert frechet_distance(fake, real) == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize(("n", "m", "d", "rank"), SINGULAR)
def test_singular_covariances_lose_few_digits_if_only_moments_are_known(n, m, d, rank, way):
    real, fake = draw(n, d, 1, rank), draw(m, d, 2, rank) * 1.3 + 0.2
    value = frechet_distance_from_moments(moments(real), moments(fake))
    assert value == pytest.approx(by_singular_values(real, fake), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_scale_of_features_loses_no_digits(scale, way):
    real, fake = draw(100, 20, 1, dtype=torch.float64), draw(90, 20, 2, dtype=torch.float64) * 1.3 + 0.2
    value, error = distance_and_error(real, fake)
    scaled = distance_and_error(real * scale, fake * scale)
    assert scaled[0] == pytest.approx(value * scale**2, rel=1e-9)
    assert scaled[1] == pytest.approx(error * scale**2, rel=1e-4)


@pytest.mark.parametrize(("n", "m", "d"), [(900, 700, 40), (60, 50, 100), (700, 30, 50)])
def test_single_precision_and_squares_are_enough_for_the_standard_error(n, m, d, monkeypatch):
    real, fake = draw(n, d, 1), draw(m, d, 2) * 1.1 + 0.05
    exact = frechet_standard_error(real, fake)
    monkeypatch.setattr(frechet, "SMALL", 0)
    assert frechet_standard_error(real, fake) == pytest.approx(exact, rel=1e-5)


def test_constant_features_do_not_change_the_distance(way):
    real, fake = draw(200, 10, 1), draw(150, 10, 2) * 1.3
    value = frechet_distance(real, fake)
    wide = [torch.cat([x, torch.full((len(x), 3), 2.0)], dim=1) for x in (real, fake)]
    assert distance_and_error(*wide) == pytest.approx((value, frechet_standard_error(real, fake)), rel=1e-5)


# --- Moments


def close(a, b, tolerance=1e-12):
    """Return True if a and b are equal up to rounding of the largest entry."""
    return np.abs(np.asarray(a) - np.asarray(b)).max() <= tolerance * np.abs(np.asarray(b)).max()


@pytest.mark.parametrize("chunk", [7, 50, 2048])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_moments_equal_numpy(chunk, offset, monkeypatch):
    monkeypatch.setattr(frechet, "CHUNK", chunk)
    x = draw(301, 12, 1, dtype=torch.float64) + offset
    m = moments(x)
    assert (m.n, m.mean.dtype, m.cov.dtype) == (301, torch.float64, torch.float64)
    assert close(m.mean, x.numpy().mean(0))
    assert close(m.cov, np.cov(x.numpy(), rowvar=False))
    assert torch.equal(m.cov, m.cov.T)


def test_a_mean_that_changes_during_the_update_loses_no_digits(monkeypatch):
    monkeypatch.setattr(frechet, "CHUNK", 100)
    x = torch.cat([draw(100, 5, i, dtype=torch.float64) + 1e5 * (i == 0) for i in range(5)])
    assert close(moments(x).cov, np.cov(x.numpy(), rowvar=False), 1e-11)


def test_rows_may_come_in_any_batches_and_from_several_accumulators():
    x = draw(5000, 6, 1)
    whole = moments(x)
    parts = [MomentsAccumulator() for _ in range(3)]
    batches = x.split(37)
    for i, batch in enumerate(batches):
        parts[i % 2].update(batch)
        if i == len(batches) // 2:
            assert parts[0].moments().n == len(parts[0])  # reading the moments changes nothing
    parts[0].merge(parts[1])
    parts[0].merge(parts[2])
    parts[2].merge(parts[0])
    for m in (parts[0].moments(), parts[2].moments()):
        assert m.n == 5000
        assert close(m.mean, whole.mean)
        assert close(m.cov, whole.cov)


def test_the_accumulator_copies_batches_and_ignores_gradients():
    x, seen = draw(30, 4, 1), MomentsAccumulator()
    buffer = torch.empty(10, 4)
    for rows in x.split(10):
        buffer.copy_(rows)
        seen.update(buffer.clone().requires_grad_())
        seen.update(buffer)
        buffer.zero_()
    assert close(seen.moments().cov, np.cov(x.repeat(2, 1).double().numpy(), rowvar=False))


def test_the_memory_does_not_grow_with_the_number_of_rows():
    import tracemalloc  # it traces NumPy's arrays, which hold all data

    rows, peaks = draw(10_000, 8, 1), {}
    for batches in (1, 100):
        tracemalloc.start()
        seen = MomentsAccumulator()
        for i in range(batches):
            seen.update(rows + i)
        m = seen.moments()
        peaks[batches] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert m.n == 1_000_000
    assert m.mean.numpy() == pytest.approx(rows.double().mean(0).numpy() + 49.5, rel=1e-6)
    assert peaks[100] < 1.1 * peaks[1] < 2**20


def test_rows_of_another_length_raise():
    seen = MomentsAccumulator()
    seen.update(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="rows of 4 features"):
        seen.update(torch.zeros(3, 5))
    with pytest.raises(Unavailable, match="at least 2 images, not 0"):
        MomentsAccumulator().moments()


def test_moments_that_cannot_be_moments_are_refused():
    m = moments(draw(50, 4, 1))
    whole = check_moments(m.mean, m.cov, 50)
    assert (whole.n, torch.equal(whole.mean, m.mean), torch.equal(whole.cov, m.cov)) == (50, True, True)
    assert check_moments(m.mean.numpy(), m.cov.numpy().tolist()).n == 0
    indefinite = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    two = torch.zeros(2)
    for mean, cov, n, message in (
        (two, indefinite, 9, r"no negative eigenvalue, and this matrix has -1 \(its largest is 3\)"),
        (two, -torch.eye(2), 9, "no negative eigenvalue, and this matrix has -1"),
        (two, torch.diag(torch.tensor([1.0, -1e-4])), 9, "no negative eigenvalue"),
        (two, torch.tensor([[1.0, 0.5], [0.4, 1.0]]), 9, "must be symmetric, and two mirrored entries differ by 0.1"),
        (two, torch.eye(2) * math.nan, 9, "must be finite"),
        (two + math.inf, torch.eye(2), 9, "must be finite"),
        (two, torch.eye(2), -5, "at least 2 samples, or of 0 for an unknown number, not of -5"),
        (two, torch.eye(2), 1, "not of 1"),
        (two, torch.eye(3), 9, r"the shapes \(d,\) and \(d, d\), not \(2,\) and \(3, 3\)"),
        (two[None], torch.eye(2), 9, r"not \(1, 2\) and \(2, 2\)"),
        (torch.zeros(0), torch.zeros(0, 0), 9, "the shapes"),
    ):
        with pytest.raises(ValueError, match=message):
            check_moments(mean, cov, n)
        with pytest.raises(ValueError, match=message):
            frechet_distance_from_moments(Moments(n, mean, cov), Moments(9, two, torch.eye(2)))
    with pytest.raises(ValueError, match="arrays of numbers"):
        check_moments(["a"], [[1.0]])
    with pytest.raises(ValueError, match="2 real and of 3 generated features"):
        frechet_distance_from_moments(Moments(9, two, torch.eye(2)), Moments(9, torch.zeros(3), torch.eye(3)))


@pytest.mark.parametrize(("n", "d", "rank"), [(500, 60, None), (40, 60, None), (500, 60, 5), (50, 60, 1)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_rounded_and_singular_covariances_are_moments(n, d, rank, scale):
    x = draw(n, d, 1, rank) * scale
    exact, single = moments(x).cov, torch.cov(x.T)
    for cov in (exact, exact.float(), single, exact.to(torch.float32).numpy()):
        assert check_moments(x.mean(0), cov, n).cov.dtype == torch.float64
    constant = torch.ones(9, 3)
    assert not check_moments(constant.mean(0), moments(constant).cov, 9).cov.any()


# --- Closed forms


def test_one_dimension_equals_the_closed_form():
    # (mu_r - mu_f)^2 + (sigma_r - sigma_f)^2 with the unbiased standard deviations
    real, fake = draw(50, 1, 1), draw(70, 1, 2) * 3 + 1
    x, y = real.double().numpy(), fake.double().numpy()
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-12)


def test_axis_parallel_gaussians_equal_the_closed_form():
    # Whitened samples have exactly the chosen moments: |delta|^2 + sum (sigma_r - sigma_f)^2.
    def exact(n, scale, shift, seed):
        x = np.random.RandomState(seed).randn(n, len(scale))
        q = np.linalg.qr(x - x.mean(0))[0] * (n - 1) ** 0.5
        return torch.from_numpy(q * scale + shift)

    real = exact(90, np.array([1.0, 2.0, 0.5]), np.zeros(3), 1)
    fake = exact(60, np.array([2.0, 0.1, 0.5]), np.array([0.0, 1.0, -2.0]), 2)
    assert frechet_distance(real, fake) == pytest.approx(5 + 1 + 1.9**2, rel=1e-12)


@pytest.mark.parametrize(("n", "d", "rank"), [(100, 10, None), (10, 100, None), (100, 50, 5)])
def test_a_set_against_itself_is_zero_up_to_rounding(n, d, rank, way):
    x = draw(n, d, 3, rank)
    total_variance = x.double().var(0).sum().item()
    for other in (x.clone(), x.flip(0)):
        value, error = distance_and_error(x, other)
        assert 0 <= value <= 1e-12 * total_variance
        assert 0 <= error <= (1e-10 if way == "in full" else 1e-5) * total_variance
        assert 0 <= frechet_distance_from_moments(moments(x), moments(other)) <= 1e-12 * total_variance


def test_constant_sets_differ_only_by_their_means(way):
    x = torch.ones(5, 3)
    assert distance_and_error(x, x * 3) == (pytest.approx(12, rel=1e-12), 0)
    assert distance_and_error(torch.zeros(5, 3), torch.zeros(4, 3)) == (0, 0)
    assert frechet_distance_from_moments(moments(x), moments(x * 3)) == pytest.approx(12, rel=1e-12)


@given(shift=st.floats(-100, 100), scale=st.floats(0.01, 100), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_the_distance_is_symmetric_ignores_a_common_shift_and_grows_with_the_square_of_the_scale(shift, scale, seed):
    real, fake = draw(40, 5, seed, dtype=torch.float64), draw(30, 5, seed + 1, dtype=torch.float64) + 0.5
    value, error = distance_and_error(real, fake)
    assert distance_and_error(fake, real) == pytest.approx((value, error), rel=1e-8)
    assert frechet_distance(real * scale + shift, fake * scale + shift) == pytest.approx(value * scale**2, rel=1e-6)


# --- Standard errors


def gaussians(seed, n, m, d, shift, scale):
    g = torch.Generator().manual_seed(seed)
    real = torch.randn(n, d, generator=g) * torch.linspace(0.5, 1.5, d)
    return real, torch.randn(m, d, generator=g) * scale + shift


def truth(d, shift, scale):
    """Return the distance between the distributions of `gaussians`."""
    return d * shift**2 + (torch.linspace(0.5, 1.5, d).double() - scale).square().sum().item()


def coverage(runs, expected):
    """Return the share of nominal 95 % intervals of (value, standard error) that contain the expected value."""
    values, errors = np.array(runs).T
    return float((np.abs(values - expected) <= 1.96 * errors).mean())


CASES = [(400, 300, 4, 0.5, 1.3), (400, 300, 4, 0.0, 2.0), (300, 500, 3, 1.0, 1.0)]


@pytest.mark.parametrize(("n", "m", "d", "shift", "scale"), CASES)
def test_the_standard_error_equals_the_deviation_over_new_samples_and_its_intervals_cover(n, m, d, shift, scale):
    runs = np.array([distance_and_error(*gaussians(seed, n, m, d, shift, scale)) for seed in range(200)])
    # A standard deviation of 200 draws has an error of 5 %.
    assert np.sqrt((runs[:, 1] ** 2).mean()) == pytest.approx(runs[:, 0].std(ddof=1), rel=0.15)
    assert 0.90 <= coverage(runs, truth(d, shift, scale)) <= 0.99


def test_the_bias_of_few_images_is_upwards_and_larger_than_the_standard_error():
    runs = np.array([distance_and_error(*gaussians(seed, 40, 40, 20, 0.0, 1.0)) for seed in range(50)])
    assert runs[:, 0].mean() > truth(20, 0.0, 1.0) + 3 * runs[:, 1].mean()


def test_the_standard_error_includes_both_sets():
    def mean(n, m):
        return np.mean([frechet_standard_error(*gaussians(seed, n, m, 3, 1.0, 1.0)) for seed in range(5)])

    assert min(mean(5000, 50), mean(50, 5000)) > 4 * mean(5000, 5000)


def test_rows_are_evenly_spaced_over_an_ordered_set(monkeypatch):
    real, fake = gaussians(0, 3000, 3000, 3, 1.0, 1.0)
    fake = fake[fake[:, 0].argsort()]
    whole = frechet_standard_error(real, fake)
    monkeypatch.setattr(frechet, "MOST", 500)
    assert frechet_standard_error(real, fake) == pytest.approx(whole, rel=0.1)


# --- Protocols


def kept_moments(x):
    m = moments(x)
    return {"moments/1": {"n": torch.tensor(m.n), "mean": m.mean, "cov": m.cov}}


def test_the_protocol_equals_the_function_and_caches_moments():
    real, fake = draw(300, 12, 1), draw(200, 12, 2) * 1.2
    known = side(real)
    value = measure("fd", known, fake)
    assert (value.value, value.uncertainty.value) == pytest.approx(distance_and_error(real, fake), rel=1e-12)
    assert (value.n_real, value.n_fake) == (300, 200)
    assert set(known.kept) == {"moments/1"}
    assert close(known.kept["moments/1"]["cov"], np.cov(real.double().numpy(), rowvar=False))
    # The cache is used: another mean changes the value.
    known.kept["moments/1"]["mean"] += 1
    assert measure("fd", known, fake).value > value.value + 1


def test_no_covariance_is_computed_for_fewer_images_than_features():
    few = side(draw(20, 30, 1))
    value = measure("fd", few, draw(25, 30, 2))
    assert not few.kept
    assert value.value == pytest.approx(by_singular_values(few.features, draw(25, 30, 2)), rel=1e-12)
    assert value.warnings == ("20 images for 30 features: the covariance is singular, and the distance biased upwards",)


def test_few_images_give_a_warning(monkeypatch):
    monkeypatch.setattr(frechet, "ENOUGH", 100)
    assert "fewer than 100 images" in measure("fd", draw(150, 4, 1), draw(99, 4, 2)).warnings[0]
    assert measure("fd", draw(100, 4, 1), draw(100, 4, 2)).warnings == ()


@pytest.mark.parametrize("m", [200, 8])
@pytest.mark.parametrize("stem", ["fd", "fd_inf"])
def test_a_reference_may_consist_of_moments_alone(stem, m):
    real, fake = draw(300, 12, 1), draw(m, 12, 2) * 1.2
    reference = side(None, kept=kept_moments(real), n=0)
    value, whole = measure(stem, reference, fake), measure(stem, real, fake)
    assert value.value == pytest.approx(whole.value, rel=1e-10)
    assert 0 < value.uncertainty.value < whole.uncertainty.value
    assert "the reference is given by its moments" in value.uncertainty.over
    assert value.n_real == 300
    with pytest.raises(Unavailable, match="12 features of real images and 6 of fake ones"):
        measure(stem, reference, draw(50, 6, 2))
    reference.kept["moments/1"]["cov"][3, 3] = math.nan
    with pytest.raises(Unavailable, match="not finite"):
        measure(stem, reference, fake)


def test_missing_features_and_moments_are_unavailable():
    with pytest.raises(Unavailable, match="no features"):
        measure("fd", side(None, n=0), draw(50, 6, 2))


def by_class(seed, n, d=3, classes=4):
    labels = torch.arange(n) % classes
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return x + labels[:, None], labels


def test_intra_fd_is_the_mean_over_classes():
    (x, a), (y, b) = by_class(1, 200), by_class(2, 120)
    y = y * 1.2
    value = measure("intra_fd", side(x, a), side(y, b))
    each = [distance_and_error(x[a == c], y[b == c]) for c in range(4)]
    assert value.value == pytest.approx(np.mean([v for v, _ in each]), rel=1e-12)
    assert value.uncertainty.value == pytest.approx(math.sqrt(sum(e**2 for _, e in each)) / 4, rel=1e-9)
    assert list(value.details["per_class"].values()) == pytest.approx([v for v, _ in each])
    assert list(value.details["per_class"]) == ["0", "1", "2", "3"]
    assert "images in a class" in value.warnings[0]


def test_intra_fd_detects_wrong_classes_and_fd_does_not():
    (x, a), (y, b) = by_class(1, 400), by_class(2, 400)
    mixed = (b + 1) % 4  # realistic images of the wrong classes
    assert measure("intra_fd", side(x, a), side(y, mixed)).value > 1
    assert measure("fd", side(x, a), side(y, mixed)).value < 0.2
    assert measure("intra_fd", side(x, a), side(y, b)).value < 0.2


@pytest.mark.parametrize("lacking", ["real", "fake"])
def test_intra_fd_with_too_few_images_of_a_class_is_unavailable(lacking):
    sides = {which: side(*by_class(i, 40)) for i, which in enumerate(("real", "fake"))}
    s = sides[lacking]
    kept = (s.labels != 2) | (torch.arange(40) < 4)
    sides[lacking] = side(s.features[kept], s.labels[kept])
    found = "1 and 10" if lacking == "real" else "10 and 1"
    with pytest.raises(Unavailable, match=f"every class needs at least 2 images in each set: class 2 has {found}"):
        measure("intra_fd", sides["real"], sides["fake"])


def test_intervals_of_intra_fd_cover_the_truth():
    runs = []
    for seed in range(200):
        sets = [gaussians(1000 * c + seed, 150, 150, 2, 0.5 + c, 1.3) for c in range(2)]
        labels = torch.arange(300) // 150
        value = measure("intra_fd", *(side(torch.cat([s[i] for s in sets]), labels) for i in (0, 1)))
        runs.append((value.value, value.uncertainty.value))
    assert 0.90 <= coverage(runs, (truth(2, 0.5, 1.3) + truth(2, 1.5, 1.3)) / 2) <= 0.99


def test_subset_sizes_go_from_five_thousand_or_half_to_all():
    sizes = subset_sizes(50_000)
    assert (len(sizes), sizes[0], sizes[1], sizes[-1]) == (15, 5000, 8214, 50_000)
    assert (subset_sizes(10_000)[0], subset_sizes(9000)[0], subset_sizes(4)[0]) == (5000, 4500, 2)
    with pytest.raises(Unavailable, match="needs at least 4 images, not 3"):
        subset_sizes(3)


def test_fd_inf_is_the_intercept_of_a_line_fitted_over_one_over_n():
    value = measure("fd_inf", draw(500, 6, 1), draw(400, 6, 2) * 1.2)
    sizes, distances = value.details["sizes"], value.details["distances"]
    slope, intercept = np.polyfit(1 / np.array(sizes), distances, 1)
    assert value.value == pytest.approx(intercept, rel=1e-9)
    assert value.details["slope"] == pytest.approx(slope, rel=1e-9)
    assert distances[-1] == pytest.approx(frechet_distance(draw(500, 6, 1), draw(400, 6, 2) * 1.2), rel=1e-12)
    assert value.warnings == ("subsets from 200 images, not 5,000: 400 images are few",)


def test_fd_inf_has_a_smaller_bias_and_can_be_negative():
    # With 20 features and 300 samples, the bias of fd is about six times larger.
    runs = [measure("fd_inf", *(s * 1.0 for s in gaussians(seed, 20_000, 300, 20, 0.0, 1.0))) for seed in range(20)]
    expected = truth(20, 0.0, 1.0)
    left = np.mean([r.value for r in runs]) - expected
    plain = np.mean([r.details["distances"][-1] for r in runs]) - expected
    assert abs(left) < plain / 3
    same = [measure("fd_inf", *gaussians(seed, 5000, 300, 1, 0.0, 0.5)).value for seed in range(20)]
    assert min(same) < 0 < max(same)


def test_intervals_of_fd_inf_cover_the_truth():
    runs = [measure("fd_inf", *gaussians(seed, 800, 300, 3, 0.5, 1.3), seed=seed) for seed in range(200)]
    assert 0.90 <= coverage([(r.value, r.uncertainty.value) for r in runs], truth(3, 0.5, 1.3)) <= 0.99


@pytest.mark.parametrize(("n", "d"), [(200, 32), (40, 64)])
def test_the_error_of_fd_inf_covers_the_draw_of_subsets_and_equal_sets_have_none(n, d):
    real = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    other = torch.randn(n // 10, d, generator=torch.Generator().manual_seed(1))
    nearly = torch.cat([real[: n - n // 10], other])
    runs = [measure("fd_inf", real, nearly, seed) for seed in range(20)]
    spread = np.std([r.value for r in runs], ddof=1)
    assert spread > 0.01
    assert min(r.uncertainty.value for r in runs) > spread / 1.5
    for stem in ("fd", "fd_inf"):
        same = measure(stem, real, real.clone())
        assert (same.uncertainty, same.warnings[-1]) == (
            None, "no uncertainty is known: both sets are equal, or their features do not vary"
        )


def test_moments_alone_have_a_distance_and_no_error():
    real, fake = draw(300, 12, 1), draw(200, 12, 2) * 1.2
    value = measure("fd", real, side(None, kept=kept_moments(fake), n=200))
    assert value.value == pytest.approx(frechet_distance(real, fake), rel=1e-12)
    assert (value.n_fake, value.uncertainty, value.warnings[-1]) == (
        200, None, "no uncertainty is known: the samples are given by their moments alone"
    )


def test_one_image_is_unavailable():
    with pytest.raises(Unavailable, match="at least 2 images, not 1"):
        frechet_distance(draw(10, 3, 0), draw(1, 3, 0))


def test_each_published_count_has_its_own_protocol():
    counts = {p.stem: (p.num, p.published) for p in frechet.PROTOCOLS}
    assert counts == {
        "fd": (None, ("fid", "inception-v3")),
        "fd50k_full": (50_000, ("fid50k_full", "inception-v3")),
        "fd10k_full": (10_000, ("fid10k_full", "inception-v3")),
        "fd5k_full": (5_000, ("fid5k_full", "inception-v3")),
        "intra_fd": (None, ("intra_fid", "inception-v3")),
        "fd_inf": (None, ("fid_inf", "inception-v3")),
    }


def test_moments_of_an_unknown_count_give_the_distance():
    real, fake = moments(draw(300, 12, 1)), moments(draw(200, 12, 2) * 1.2)
    unknown = Moments(0, real.mean, real.cov)
    assert frechet_distance_from_moments(unknown, fake) == frechet_distance_from_moments(real, fake)
