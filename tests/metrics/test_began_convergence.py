"""BEGAN's measure of convergence against closed forms, and its standard error against new samples."""

import math

import numpy as np
import pytest
import torch

from ganbench.metrics import Inputs, Model, Side, Unavailable, began_convergence
from ganbench.metrics.began_convergence import convergence_measure, reconstruction_loss

NOTHING = Side(torch.zeros(0, 1, 1, 1, dtype=torch.uint8))
[PROTOCOL] = began_convergence.PROTOCOLS


def images(n, level=127.5, std=30.0):
    x = torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(n)) * std + level
    return x.clamp(0, 255).to(torch.uint8)


def measure(real, generate=lambda z, y: z.view(-1, 1, 6, 6) * 0.2, reconstruct=None, seed=0, classes=0, **args):
    model = Model(
        "test", classes, args, sample_latent=lambda n, g: torch.randn(n, 36, generator=g), generate=generate,
        reconstruct=reconstruct or (lambda x: x / 127.5 - 0.9),
    )
    [value] = PROTOCOL.compute(Inputs(Side(real), NOTHING, None, torch.Generator().manual_seed(seed), model=model))
    return value


def test_the_loss_is_the_mean_absolute_difference_over_pixels_and_channels():
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(5, 3, 4, 4, generator=g), torch.rand(5, 3, 4, 4, generator=g)
    assert reconstruction_loss(x, y).numpy() == pytest.approx(np.abs(x - y).numpy().mean((1, 2, 3)), rel=1e-6)
    assert reconstruction_loss(x, x).tolist() == [0] * 5
    assert reconstruction_loss(x, y).dtype == torch.float64


@pytest.mark.parametrize(
    ("real", "fake", "gamma", "expected"),
    [
        ([0.1, 0.3], [0.5, 0.1], 0.5, 0.2 + 0.2),  # 0.1 - 0.3
        ([0.4, 0.4], [0.1, 0.1], 0.5, 0.4 + 0.1),  # 0.2 - 0.1
        ([0.4, 0.4], [0.2, 0.2], 0.5, 0.4),  # the equilibrium
        ([0.4, 0.4], [0.4, 0.4], 1.0, 0.4),
        ([0.0, 0.0], [0.0, 0.0], 0.7, 0.0),
    ],
)
def test_the_value_follows_the_formula_of_the_paper(real, fake, gamma, expected):
    assert convergence_measure(torch.tensor(real), torch.tensor(fake), gamma)[0] == pytest.approx(expected, abs=1e-7)


def test_the_protocol_reconstructs_images_and_samples():
    # D adds 0.1 to its input: L(x) = L(G(z)) = 0.1.
    value = measure(images(70), gamma=0.3)
    assert value.value == pytest.approx(0.1 + 0.07, rel=1e-5)
    assert value.uncertainty is None
    assert value.warnings == ("no uncertainty is known: all images and all samples have one loss",)
    assert value.details == pytest.approx({"gamma": 0.3, "loss_real": 0.1, "loss_fake": 0.1}, rel=1e-5)
    assert (value.n_real, value.n_fake) == (70, 5000)


def test_samples_are_clipped_and_rounded_to_grey_levels():
    seen = []

    def reconstruct(x):
        seen.append(x)
        return torch.zeros(x.shape)

    value = measure(images(70, 255, 0), lambda z, y: torch.full((len(z), 1, 6, 6), 1.7), reconstruct, gamma=1)
    assert all(x.dtype == torch.uint8 for x in seen)
    assert value.details == {"gamma": 1, "loss_real": 1.0, "loss_fake": 1.0}
    fine = measure(images(70), lambda z, y: torch.full((len(z), 1, 6, 6), 0.1), reconstruct, gamma=1)
    assert fine.details["loss_fake"] == pytest.approx(0.1, abs=1 / 255)


def test_the_protocol_draws_at_most_5000_reference_images():
    assert measure(images(5100), gamma=0.5).n_real == 5000


def test_classes_are_drawn_if_the_model_takes_labels():
    asked = []
    measure(images(9), lambda z, y: asked.append(y) or z.view(-1, 1, 6, 6), classes=3, gamma=0.5)
    assert set(torch.cat(asked).tolist()) == {0, 1, 2}
    measure(images(9), lambda z, y: asked.append(y) or z.view(-1, 1, 6, 6), gamma=0.5)
    assert asked[-1] is None


@pytest.mark.parametrize("args", [{}, {"gamma": None}, {"gamma": "0.5"}, {"gamma": True}])
def test_a_model_without_gamma_is_unavailable(args):
    with pytest.raises(Unavailable, match="the model 'test' has no argument 'gamma'"):
        measure(images(9), **args)


@pytest.mark.parametrize("gamma", [-0.1, 1.5, math.nan])
def test_gamma_outside_0_to_1_is_unavailable(gamma):
    with pytest.raises(Unavailable, match="between 0 and 1"):
        measure(images(9), gamma=gamma)


def test_a_model_with_outputs_that_are_not_finite_is_unavailable():
    with pytest.raises(Unavailable, match="reconstructions are not finite"):
        measure(images(9), reconstruct=lambda x: x * math.nan, gamma=0.5)
    with pytest.raises(Unavailable, match="generated images are not finite"):
        measure(images(9), lambda z, y: z.view(-1, 1, 6, 6) * math.inf, gamma=0.5)


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_images_are_unavailable(n):
    with pytest.raises(Unavailable, match=f"needs at least 2 images of the reference, not {n}"):
        measure(images(n), gamma=0.5)
    with pytest.raises(Unavailable, match=f"not {n} and 5"):
        convergence_measure(torch.rand(n), torch.rand(5), 0.5)


@pytest.mark.parametrize("mean", [0.2, 0.1, 0.104, 0.05], ids=["above", "equilibrium", "beside it", "below"])
@pytest.mark.parametrize("gamma", [0.5, 0.9])
def test_the_interval_of_the_standard_error_covers_the_truth(mean, gamma):
    g = torch.Generator().manual_seed(0)

    def draw(n, mean):
        return mean * (0.4 * torch.randn(n, generator=g, dtype=torch.float64)).exp() / math.exp(0.08)

    mean *= gamma / 0.5
    truth = 0.2 + abs(gamma * 0.2 - mean)
    runs = np.array([convergence_measure(draw(300, 0.2), draw(400, mean), gamma) for _ in range(400)])
    assert 0.90 <= np.mean(abs(runs[:, 0] - truth) <= 1.96 * runs[:, 1]) <= 0.99
