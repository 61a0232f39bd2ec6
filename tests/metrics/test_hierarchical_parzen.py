"""The hierarchical Parzen estimate is an exact density of images: against multivariate normals and parzen_ll."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from ganbench.evaluation.subject import under_test
from ganbench.metrics import Inputs, Model, Side, Unavailable, hierarchical_parzen
from ganbench.metrics.hierarchical_parzen import SIGMAS, area_reduction, details, window_log_likelihood
from ganbench.metrics.parzen import parzen_log_likelihood
from reference_models.lapgan import LAPGAN, area_weights

NOTHING = Side(torch.zeros(0, 1, 1, 1, dtype=torch.uint8))
[PROTOCOL] = hierarchical_parzen.PROTOCOLS


@pytest.fixture(autouse=True)
def few_windows(monkeypatch):
    for name, n in {"TEST": 12, "VALIDATION": 6, "WINDOWS": 3, "COARSEST_WINDOWS": 5}.items():
        monkeypatch.setattr(hierarchical_parzen, name, n)


def images(n, side=7, channels=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, channels, side, side), generator=g, dtype=torch.uint8)


def measure(model, seed=0, **sets):
    real, held_out = sets.get("real", images(9)), sets.get("held_out", images(12, seed=1))
    return PROTOCOL.compute(
        Inputs(Side(real), NOTHING, Side(held_out), torch.Generator().manual_seed(seed), model=model)
    )


def flat_model(sides, scale=100.0):
    """Every sample of a level is 0 at the coarsest level, and the true coarser level spread out at the others."""

    def pyramid(x):
        levels = [x.double() / scale]
        for small in reversed(sides[:-1]):
            r = area_reduction(levels[0].shape[3], small)
            levels.insert(0, r @ levels[0] @ r.T)
        return [level.float() for level in levels]

    def sample_level(k, x, generator):
        if not k:
            return torch.zeros(len(x), x.shape[1], sides[0], sides[0])
        back = torch.linalg.pinv(area_reduction(sides[k], sides[k - 1]))
        return (back @ pyramid(x)[k - 1].double() @ back.T).float()

    return Model("flat", pyramid=pyramid, sample_level=sample_level)


def test_windows_that_all_points_share_give_parzens_density():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 5, generator=g, dtype=torch.float64), torch.randn(9, 5, generator=g, dtype=torch.float64)
    found = window_log_likelihood(torch.cdist(x, y) ** 2, 5, (0.3, 1.0))
    torch.testing.assert_close(found, parzen_log_likelihood(x, y, (0.3, 1.0)))


@pytest.mark.parametrize("sides", [(7,), (4, 7), (2, 4, 7), (3, 6)])
def test_the_value_is_the_log_density_of_the_image_that_the_levels_imply(sides):
    """With one window a level, the image is normal: its covariance in pixels is computed by pseudo-inverses."""
    test = images(12, sides[-1], seed=1)
    values = measure(flat_model(sides), real=images(9, sides[-1]), held_out=test)
    sigma = [values[0].details[f"sigma_{side}"] for side in sides]
    cov = sigma[0] ** 2 * np.eye(sides[0] ** 2)
    for k in range(1, len(sides)):
        r = area_reduction(sides[k], sides[k - 1]).numpy()
        d = np.kron(r, r)
        back = np.linalg.pinv(d)
        cov = back @ cov @ back.T + sigma[k] ** 2 * (np.eye(sides[k] ** 2) - back @ d)
    x = test.double().flatten(2).numpy()  # both channels are independent
    for value, unit in zip(values, (255, 100), strict=True):
        logs = multivariate_normal(cov=cov * (100 / unit) ** 2).logpdf(x / unit).sum(1)
        assert value.value == pytest.approx(logs.mean(), rel=1e-5)
        assert value.uncertainty.value == pytest.approx(logs.std(ddof=1) / 12**0.5, rel=1e-4)
        assert value.details["deviation_over_images"] == pytest.approx(logs.std(ddof=1), rel=1e-4)
    assert [v.suffix for v in values] == ["", "@standardised"]
    assert (values[0].n_real, values[0].n_fake) == (12, 3)


def test_sigma_is_the_best_of_each_level_on_validation_images_alone():
    values = measure(flat_model((4, 7)))
    valid = images(9)[torch.randperm(9, generator=torch.Generator().manual_seed(0))[:6]].double() / 100
    r = area_reduction(7, 4)
    low = r @ valid @ r.T
    back = torch.linalg.pinv(r)
    rest = valid - back @ low @ back.T
    for side, part, dims in ((4, low, 32), (7, rest, 2 * (49 - 16))):
        square = part.flatten(1).square().sum(1)
        logs = [(-square / (2 * s * s) - dims * np.log(s)).mean().item() for s in SIGMAS]
        assert values[0].details[f"sigma_{side}"] == SIGMAS[int(np.argmax(logs))]


def test_details_and_the_reduced_image_keep_lengths_and_volumes():
    x = torch.randn(5, 2, 14, 14, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    part, volume = details(x, 8)
    r = area_reduction(14, 8)
    back = torch.linalg.pinv(r)
    fixed = back @ r @ x @ r.T @ back.T
    torch.testing.assert_close(part.square().sum(1), (x - fixed).flatten(1).square().sum(1))
    assert part.shape == (5, 2 * (14**2 - 8**2))
    d = np.kron(r.numpy(), r.numpy())
    assert volume == pytest.approx(2 * np.linalg.slogdet(d @ d.T)[1] / 2, rel=1e-9)


def test_lapgans_pyramid_is_measured_and_its_windows_depend_on_the_true_coarser_levels():
    torch.testing.assert_close(area_weights(14, 8).double(), area_reduction(14, 8), rtol=0, atol=1e-6)
    torch.manual_seed(0)
    gan = LAPGAN(sides=(4, 9), g_units=8, d_units=8, g_planes=4, d_planes=4)
    real, test = images(9, 9, 3), images(12, 9, 3, seed=1)
    gan.begin([real / 127.5 - 1])
    model = under_test(gan, "lapgan", {}, torch.device("cpu"))
    values = measure(model, real=real, held_out=test)
    assert all(np.isfinite(v.value) for v in values)
    slope = -gan.std.double().log().sum().item() + 243 * np.log(2)  # pixels of [0, 1] to [-1, 1] to the model's unit
    assert values[0].value - values[1].value == pytest.approx(slope, rel=1e-5)
    assert measure(model, real=real, held_out=test)[0].value == values[0].value
    labelled = under_test(
        LAPGAN(sides=(4, 9), num_classes=3, g_units=8, d_units=8, g_planes=4, d_planes=4), "l", {}, torch.device("cpu")
    )
    assert labelled.pyramid is labelled.sample_level is None


def test_other_levels_other_sizes_and_broken_samples_are_refused():
    good = flat_model((4, 7))
    for changed, reason in (
        ({"pyramid": lambda x: [x[..., :4, :4] / 100, x / 100]}, "means over equal areas"),
        ({"pyramid": lambda x: [good.pyramid(x)[0], x.double().square().float()]}, "shifted and scaled"),
        ({"sample_level": lambda k, x, g: good.sample_level(k, x, g) * float("nan")}, "not finite"),
    ):
        model = Model("bad", **{"pyramid": good.pyramid, "sample_level": good.sample_level, **changed})
        with pytest.raises(Unavailable, match=reason):
            measure(model)
    with pytest.raises(Unavailable, match="one size"):
        measure(good, held_out=images(12, 8))
    with pytest.raises(Unavailable, match="not 0 and 12"):
        measure(good, real=images(0))
