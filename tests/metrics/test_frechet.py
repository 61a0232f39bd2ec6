"""The Fréchet distance against closed forms, scipy and torch-fidelity; its standard error by simulation."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from ganbench.metrics import Unavailable, frechet
from ganbench.metrics.frechet import frechet_distance


def draw(n, d, seed, rank=None, dtype=torch.float32):
    """Correlated, skewed features N x d, like those behind a ReLU; of lower rank if asked for."""
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
    """tr (S_r S_f)^(1/2) as the nuclear norm of the N x M matrix of centred products: no covariance is formed."""
    x, y = real.double().numpy(), fake.double().numpy()
    a, b = (x - x.mean(0)) / (len(x) - 1) ** 0.5, (y - y.mean(0)) / (len(y) - 1) ** 0.5
    nuclear = scipy.linalg.svd(a @ b.T, compute_uv=False, lapack_driver="gesvd").sum()
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * nuclear


def by_torch_fidelity(real, fake):
    moments = [fid_features_to_statistics(x.double()) for x in (real, fake)]
    return fid_statistics_to_metric(*moments, verbose=False)[KEY_METRIC_FID]


@pytest.mark.parametrize(("n", "m", "d"), [(300, 300, 2), (200, 150, 16), (1000, 700, 64), (500, 400, 200)])
def test_it_equals_torch_fidelity_scipy_and_the_nuclear_norm_on_regular_covariances(n, m, d):
    real, fake = draw(n, d, 1), draw(m, d, 2) * 1.3 + 0.2
    value, _ = frechet_distance(real, fake)
    assert value == pytest.approx(by_torch_fidelity(real, fake), rel=1e-9)
    assert value == pytest.approx(by_sqrtm(real, fake), rel=1e-9)
    assert value == pytest.approx(by_singular_values(real, fake), rel=1e-12)


@pytest.mark.parametrize(
    ("n", "m", "d", "rank"), [(24, 20, 256, None), (3, 40, 30, None), (40, 3, 30, None), (300, 200, 64, 8)]
)
def test_singular_covariances_lose_no_digits(n, m, d, rank):
    real, fake = draw(n, d, 1, rank), draw(m, d, 2, rank) * 1.3 + 0.2
    value, _ = frechet_distance(real, fake)
    # torch-fidelity takes the root of a product of covariances, which keeps half the digits where it is singular.
    assert value == pytest.approx(by_singular_values(real, fake), rel=1e-12)
    assert value == pytest.approx(by_torch_fidelity(real, fake), rel=1e-6)


def test_features_in_several_chunks_give_the_same(monkeypatch):
    real, fake = draw(301, 12, 1), draw(150, 12, 2) * 1.2
    whole = frechet_distance(real, fake)
    monkeypatch.setattr(frechet, "CHUNK", 50)
    assert frechet_distance(real, fake) == pytest.approx(whole, rel=1e-12)


def test_one_dimension_has_the_closed_form():
    # (mu_r - mu_f)^2 + (sigma_r - sigma_f)^2, with the unbiased deviations
    real, fake = draw(50, 1, 1), draw(70, 1, 2) * 3 + 1
    x, y = real.double().numpy(), fake.double().numpy()
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert frechet_distance(real, fake)[0] == pytest.approx(expected, rel=1e-12)


def test_axis_parallel_gaussians_have_the_closed_form():
    # Whitened samples have exactly the moments that are asked for: |delta|^2 + sum (sigma_r - sigma_f)^2.
    def exact(n, scale, shift, seed):
        x = np.random.RandomState(seed).randn(n, len(scale))
        q = np.linalg.qr(x - x.mean(0))[0] * (n - 1) ** 0.5
        return torch.from_numpy(q * scale + shift)

    real = exact(90, np.array([1.0, 2.0, 0.5]), np.zeros(3), 1)
    fake = exact(60, np.array([2.0, 0.1, 0.5]), np.array([0.0, 1.0, -2.0]), 2)
    assert frechet_distance(real, fake)[0] == pytest.approx(5 + 1 + 1.9**2, rel=1e-12)


@pytest.mark.parametrize(("n", "d", "rank"), [(100, 10, None), (10, 100, None), (100, 50, 5)])
def test_a_set_against_itself_is_zero_to_rounding(n, d, rank):
    x = draw(n, d, 3, rank)
    total_variance = x.double().var(0).sum().item()
    value, error = frechet_distance(x, x.clone())
    assert 0 <= value <= 1e-12 * total_variance
    assert 0 <= error <= 1e-10 * total_variance


@given(shift=st.floats(-100, 100), scale=st.floats(0.01, 100), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_it_is_symmetric_ignores_a_common_shift_and_grows_with_the_square_of_the_scale(shift, scale, seed):
    real, fake = draw(40, 5, seed, dtype=torch.float64), draw(30, 5, seed + 1, dtype=torch.float64) + 0.5
    value, error = frechet_distance(real, fake)
    assert frechet_distance(fake, real) == pytest.approx((value, error), rel=1e-8)
    assert frechet_distance(real * scale + shift, fake * scale + shift)[0] == pytest.approx(value * scale**2, rel=1e-6)


def gaussians(seed, n, m, d, shift, scale):
    g = torch.Generator().manual_seed(seed)
    real = torch.randn(n, d, generator=g) * torch.linspace(0.5, 1.5, d)
    return real, torch.randn(m, d, generator=g) * scale + shift


@pytest.mark.parametrize(
    ("n", "m", "d", "shift", "scale"),
    [(400, 300, 4, 0.5, 1.3), (400, 300, 4, 0.0, 2.0), (300, 500, 3, 1.0, 1.0)],
)
def test_the_standard_error_is_the_standard_deviation_over_fresh_draws(n, m, d, shift, scale):
    runs = np.array([frechet_distance(*gaussians(seed, n, m, d, shift, scale)) for seed in range(200)])
    # 200 draws know a standard deviation to 5 %.
    assert np.sqrt((runs[:, 1] ** 2).mean()) == pytest.approx(runs[:, 0].std(ddof=1), rel=0.15)


def test_the_standard_error_counts_both_sets():
    few_fakes = np.mean([frechet_distance(*gaussians(seed, 5000, 50, 3, 1.0, 1.0))[1] for seed in range(5)])
    few_reals = np.mean([frechet_distance(*gaussians(seed, 50, 5000, 3, 1.0, 1.0))[1] for seed in range(5)])
    many = np.mean([frechet_distance(*gaussians(seed, 5000, 5000, 3, 1.0, 1.0))[1] for seed in range(5)])
    assert min(few_fakes, few_reals) > 4 * many


def test_one_image_has_no_covariance():
    with pytest.raises(Unavailable, match="at least 2 images, not 1"):
        frechet_distance(draw(10, 3, 0), draw(1, 3, 0))


def test_a_published_count_has_a_protocol_of_its_own():
    counts = {p.stem: (p.num, p.published) for p in frechet.PROTOCOLS}
    assert counts == {
        "fd": (None, ("fid", "inception-v3")),
        "fd50k_full": (50_000, ("fid50k_full", "inception-v3")),
        "fd10k_full": (10_000, ("fid10k_full", "inception-v3")),
        "fd5k_full": (5_000, ("fid5k_full", "inception-v3")),
    }
