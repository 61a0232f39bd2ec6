"""Prediction of y from z and of z from y against scikit-learn, and for independent and identical latents and labels."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.svm import SVC

from ganbench.metrics import Inputs, Model, Side, Unavailable, mutual_predictability
from ganbench.metrics.mutual_predictability import y_from_z, z_from_y


def draw(n, seed=0, of_y=1.0, d=3, classes=4):
    """Return latents that contain the label with weight `of_y`, and labels."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (n,), generator=g)
    z = torch.randn(n, d, generator=g) + of_y * torch.nn.functional.one_hot(y, classes)[:, :d]
    return z, y


def measure(stem, z, y, seed=0):
    """Measure images whose pixels encode their index, with an encoder that looks up the latent."""
    index = torch.arange(len(y))
    images = torch.stack([index % 256, index // 256], 1).view(-1, 1, 1, 2).to(torch.uint8)
    model = Model("test", encode=lambda x: z[x[:, 0, 0, 0].long() + 256 * x[:, 0, 0, 1].long()])
    protocol = next(p for p in mutual_predictability.PROTOCOLS if p.stem == stem)
    empty = Side(images[:0])
    inputs = Inputs(empty, empty, Side(images, y), torch.Generator().manual_seed(seed), model=model)
    [value] = protocol.compute(inputs)
    return value


def test_y_from_z_equals_scikit_learns_svc():
    (z, y), (t, truth) = draw(300), draw(150, 1)
    value, error = y_from_z(z, y, t, truth)
    assert value == SVC().fit(z.double().numpy(), y.numpy()).score(t.double().numpy(), truth.numpy())
    p = (round(value * 150) + 2) / 154
    assert error == pytest.approx((p * (1 - p) / 154) ** 0.5, rel=1e-12)


def test_z_from_y_equals_the_explained_variance_of_a_regression_on_the_label():
    (z, y), (t, truth) = draw(300), draw(150, 1)
    value, error = z_from_y(z, y, t, truth)
    hot = torch.nn.functional.one_hot
    predicted = LinearRegression().fit(hot(y, 4).numpy(), z.double().numpy()).predict(hot(truth, 4).numpy())
    left = ((t.double().numpy() - predicted) ** 2).sum()
    all_of_it = ((t.double().numpy() - z.double().numpy().mean(0)) ** 2).sum()
    assert value == pytest.approx(1 - left / all_of_it, rel=1e-9)
    # scikit-learn uses the mean of the test images, which is almost the same.
    assert value == pytest.approx(r2_score(t, predicted, multioutput="variance_weighted"), abs=0.02)
    assert error > 0


@pytest.mark.parametrize("of_y", [0.0, 1.0])
def test_the_error_of_z_from_y_equals_the_deviation_over_new_test_images(of_y):
    z, y = draw(1000, 0, of_y)
    values, errors = np.array([z_from_y(z, y, *draw(200, s, of_y)) for s in range(1, 300)]).T
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(ddof=1), rel=0.15)


def test_independent_latents_predict_nothing_and_labels_as_latents_everything():
    z, y = draw(1000, of_y=0)
    apart = measure("y_from_z", z, y)
    assert apart.value == pytest.approx(apart.details["chance"], abs=4 * apart.uncertainty.value)
    apart = measure("z_from_y", z, y)
    assert apart.value == pytest.approx(0, abs=max(4 * apart.uncertainty.value, 0.02))
    hot = torch.nn.functional.one_hot(y, 4).float()
    assert measure("y_from_z", hot, y).value == 1
    assert measure("z_from_y", hot, y).value == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("stem", ["y_from_z", "z_from_y"])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_unit_of_z_does_not_matter(stem, scale):
    z, y = draw(200)
    assert measure(stem, z * scale, y).value == pytest.approx(measure(stem, z, y).value, abs=1e-5)


def test_nine_tenths_of_at_most_ten_thousand_images_train_and_one_tenth_tests():
    z, y = draw(205)
    value = measure("z_from_y", z, y)
    assert (value.details, value.n_real) == ({"train": 184, "test": 21}, 205)
    z, y = draw(10_050)
    value = measure("z_from_y", z, y)
    assert (value.details, value.n_real) == ({"train": 9000, "test": 1000}, 10_000)


def test_inputs_that_cannot_be_predicted_are_unavailable():
    z, y = draw(40)
    with pytest.raises(Unavailable, match="needs at least 2 classes"):
        measure("y_from_z", z, 0 * y)
    with pytest.raises(Unavailable, match="the latents do not vary"):
        measure("z_from_y", 0 * z + 5, y)
    for stem in ("y_from_z", "z_from_y"):
        with pytest.raises(Unavailable, match="needs at least 20 images, not 19"):
            measure(stem, z[:19], y[:19])
        with pytest.raises(Unavailable, match="not finite"):
            measure(stem, z / 0, y)
    for protocol in mutual_predictability.PROTOCOLS:
        side = Side(torch.zeros(40, 1, 2, 2, dtype=torch.uint8))
        with pytest.raises(Unavailable, match="no labels"):
            protocol.compute(Inputs(side, side, side, torch.Generator()))
        with pytest.raises(Unavailable, match="no model with an encoder"):
            protocol.compute(Inputs(side, side, Side(side.images, y), torch.Generator()))
        with pytest.raises(Unavailable, match="no real images beside the reference"):
            protocol.compute(Inputs(side, side, None, torch.Generator()))
