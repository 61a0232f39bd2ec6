"""InfoGAN: networks, losses, codes and steps against the paper's tables and equations."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from ganbench.gan import Batch
from reference_models import infogan
from reference_models.infogan import GANWithQ, InfoGAN

SMALL = {"width": 8, "noise_dim": 6}
SVHN = {"image_size": 32, "channels": 3, "categorical": [10] * 4, "continuous": 4, "noise_dim": 124}
CELEBA = {"image_size": 32, "channels": 3, "categorical": [10] * 10, "continuous": 0, "noise_dim": 128}
FACES = {"image_size": 32, "channels": 1, "categorical": [], "continuous": 5, "noise_dim": 128}
CHAIRS = {"image_size": 64, "channels": 1, "categorical": [20] * 3, "continuous": 1, "noise_dim": 128}


def fc(a, b):
    return a * b + b


def conv(a, b):
    return 16 * a * b + b


def bn(n):
    return 2 * n


# G, the layers that D and Q share, and the last layers of D and Q, from Tables 1, 2, 3, 4 and 6. With learnt deviations
# Q has two numbers for each continuous code.
TABLES = {
    "mnist": ({}, 74, [
        fc(74, 1024) + bn(1024) + fc(1024, 6272) + bn(6272) + conv(128, 64) + bn(64) + conv(64, 1),
        conv(1, 64) + conv(64, 128) + bn(128) + fc(6272, 1024) + bn(1024),
        fc(1024, 1), fc(1024, 128) + bn(128) + fc(128, 12),
    ]),
    "svhn": ({**SVHN, "fixed_std": False}, 168, [
        fc(168, 1792) + bn(1792) + conv(448, 256) + bn(256) + conv(256, 128) + conv(128, 64) + conv(64, 3),
        conv(3, 64) + conv(64, 128) + bn(128) + conv(128, 256) + bn(256),
        fc(4096, 1), fc(4096, 128) + bn(128) + fc(128, 48),
    ]),
    "celeba": ({**CELEBA, "fixed_std": False}, 228, [
        fc(228, 1792) + bn(1792) + conv(448, 256) + bn(256) + conv(256, 128) + conv(128, 64) + conv(64, 3),
        conv(3, 64) + conv(64, 128) + bn(128) + conv(128, 256) + bn(256),
        fc(4096, 1), fc(4096, 128) + bn(128) + fc(128, 100),
    ]),
    "faces": ({**FACES, "fixed_std": False}, 133, [
        fc(133, 1024) + bn(1024) + fc(1024, 8192) + bn(8192) + conv(128, 64) + bn(64) + conv(64, 1),
        conv(1, 64) + conv(64, 128) + bn(128) + fc(8192, 1024) + bn(1024),
        fc(1024, 1), fc(1024, 10),
    ]),
    "chairs": ({**CHAIRS, "fixed_std": False}, 189, [
        fc(189, 1024) + bn(1024) + fc(1024, 16384) + bn(16384) + 2 * (conv(256, 256) + bn(256))
        + conv(256, 128) + bn(128) + conv(128, 64) + bn(64) + conv(64, 1),
        conv(1, 64) + conv(64, 128) + bn(128) + conv(128, 256) + bn(256) + 2 * (conv(256, 256) + bn(256))
        + fc(16384, 1024) + bn(1024),
        fc(1024, 1), fc(1024, 62),
    ]),
}


@pytest.mark.parametrize(("args", "latent", "counts"), TABLES.values(), ids=TABLES)
def test_the_networks_have_the_parameters_of_the_papers_tables(args, latent, counts):
    with torch.device("meta"):
        model = InfoGAN(**args)
        assert model.sample_latent(2).shape == (2, latent)
        assert model.G(model.sample_latent(2)).shape == (2, *model.image_shape)
    networks = (model.G, model.D.shared, model.D.d_out, model.D.q_out)
    assert [sum(p.numel() for p in net.parameters()) for net in networks] == counts


def test_the_start_is_that_of_the_code():
    torch.manual_seed(0)
    model = InfoGAN()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            assert float(layer.weight.detach().abs().max()) <= 0.04  # cut at two deviations
            assert float(layer.weight.detach().std()) == pytest.approx(0.02 * 0.88, rel=0.1)
        elif isinstance(layer, nn.Linear | nn.ConvTranspose2d):
            assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.15), name
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            assert float(layer.weight.detach().mean()) == pytest.approx(1, abs=0.01)
            assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.3)
            assert (layer.eps, layer.momentum) == (1e-5, 0.1)
        if hasattr(layer, "bias") and layer.bias is not None:
            assert not layer.bias.any()


def test_layers_of_stride_1_keep_the_size_and_see_one_pixel_before_and_two_behind():
    layer = infogan.same_conv(1, 1)
    nn.init.ones_(layer[1].weight)
    nn.init.zeros_(layer[1].bias)
    x = torch.zeros(1, 1, 6, 6)
    x[0, 0, 3, 3] = 1
    seen = layer(x)[0, 0] > 0
    assert seen.nonzero().unique().tolist() == [1, 2, 3, 4]  # rows and columns r with 3 in r - 1 .. r + 2
    assert seen.shape == (6, 6)


def test_grey_networks_work_in_0_to_1_and_colour_networks_in_minus_1_to_1():
    grey, colour = InfoGAN(**SMALL), InfoGAN(**{**SVHN, "width": 8})
    x = torch.rand(4, 1, 28, 28) * 2 - 1
    assert torch.allclose(grey.D.shared[0](x), (x + 1) / 2)
    assert isinstance(colour.D.shared[0], nn.Conv2d)
    logits = torch.randn(50)
    assert torch.allclose(grey.G.squash(logits), 2 / (1 + (-logits).exp()) - 1, atol=1e-6)
    assert torch.equal(colour.G.squash(logits), logits.tanh())


# --- Codes ---


def test_the_latent_is_noise_then_one_hot_categories_then_uniform_codes():
    model = InfoGAN(width=4, categorical=[3, 5], continuous=2, noise_dim=7)
    z = model.sample_latent(4000, torch.Generator().manual_seed(0))
    assert [(c.name, c.columns, c.values) for c in model.codes()] == [
        ("c1", slice(7, 10), 3), ("c2", slice(10, 15), 5), ("c3", slice(15, 16), 0), ("c4", slice(16, 17), 0),
    ]
    assert [c.entropy for c in model.codes()] == pytest.approx([math.log(3), math.log(5), math.log(2), math.log(2)])
    for part, k in ((z[:, 7:10], 3), (z[:, 10:15], 5)):
        assert torch.equal(part.sum(1), torch.ones(4000))
        assert set(part.flatten().tolist()) == {0.0, 1.0}
        assert stats.chisquare(part.sum(0).numpy()).pvalue > 1e-4
        assert part.shape[1] == k
    for column in (*range(7), 15, 16):
        assert stats.kstest(z[:, column].numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-4


@pytest.mark.parametrize("fixed_std", [True, False])
@pytest.mark.parametrize(("categorical", "continuous"), [([3, 5], 2), ([4], 0), ([], 3)])
def test_log_q_is_that_of_scipys_distributions(categorical, continuous, fixed_std):
    model = InfoGAN(categorical=categorical, continuous=continuous, fixed_std=fixed_std, **SMALL)
    g = torch.Generator().manual_seed(0)
    z = model.sample_latent(20, g).double()
    q = torch.randn(20, sum(categorical) + continuous * (1 if fixed_std else 2), generator=g).double()
    found = model.log_q(q, z).numpy()
    assert found.shape == (20, len(categorical) + continuous)
    at, column = 0, 0
    for k in categorical:
        p = np.exp(q[:, at : at + k].numpy())
        value = z[:, 6 + at : 6 + at + k].argmax(1).numpy()
        expected = np.log(p[np.arange(20), value] / p.sum(1))
        assert found[:, column] == pytest.approx(expected, rel=1e-9)
        at, column = at + k, column + 1
    for i in range(continuous):
        std = 1 if fixed_std else np.exp(q[:, at + continuous + i].numpy()) ** 0.5
        expected = stats.norm(q[:, at + i].numpy(), std).logpdf(z[:, 6 + at + i].numpy())
        assert found[:, column + i] == pytest.approx(expected, rel=1e-9)


def test_q_of_an_image_is_the_head_that_the_code_reads():
    model = InfoGAN(**SMALL).eval()
    x, z = torch.rand(5, 1, 28, 28) * 2 - 1, model.sample_latent(5)
    with torch.inference_mode():
        q = model.D.q_out(model.D.shared(x))
        assert torch.equal(model.classify(x), q[:, :10])
        assert torch.equal(model.code_log_likelihood(x, z), model.log_q(q, z))
    with pytest.raises(ValueError, match="no categorical code"):
        InfoGAN(categorical=[], **SMALL).classify(x)


@pytest.mark.parametrize(
    ("args", "said"),
    [({"image_size": 64, "channels": 3}, "28 and 1, 32 and 3"), ({"categorical": [], "continuous": 0}, "one code"),
     ({"categorical": [1]}, "two values"), ({"continuous": -1}, "one code")],
)
def test_arguments_that_make_no_infogan_are_refused(args, said):
    with pytest.raises(ValueError, match=said):
        InfoGAN(**args)


# --- Losses and steps ---


def test_the_losses_are_those_of_the_equations():
    model = InfoGAN(categorical=[3], continuous=2, lambda_disc=0.5, lambda_cont=0.1, **SMALL)
    g = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(9, generator=g).double() for _ in range(2))
    q = torch.randn(9, 5, generator=g).double()
    z = model.sample_latent(9, g).double()

    def sigmoid(a):
        return 1 / (1 + np.exp(-a.numpy()))

    expected = -np.log(sigmoid(real)).mean() - np.log(1 - sigmoid(fake)).mean()
    assert model.d_loss(real, fake).item() == pytest.approx(expected, rel=1e-9)
    assert model.g_loss(fake).item() == pytest.approx(-np.log(sigmoid(fake)).mean(), rel=1e-9)
    logs = model.log_q(q, z).numpy().mean(0)
    expected = -0.5 * (logs[0] + math.log(3)) - 0.1 * (logs[1] + logs[2] + 2 * math.log(2))
    assert model.info_loss(q, z).item() == pytest.approx(expected, rel=1e-9)
    g_loss = torch.tensor(2.0).double()
    assert model.g_objective(g_loss, q, z).item() == pytest.approx(2 + expected, rel=1e-9)
    assert GANWithQ.g_objective(model, g_loss, q, z) is g_loss


def test_with_a_perfect_q_the_bound_of_a_categorical_code_is_its_entropy():
    model = InfoGAN(continuous=0, **SMALL)
    z = model.sample_latent(50)
    assert model.info_loss(100 * z[:, 6:], z).item() == pytest.approx(-math.log(10), rel=1e-6)
    assert model.info_loss(torch.zeros(50, 10), z).item() == pytest.approx(0, abs=1e-6)


def moved(model, name):
    """Names of the networks that a step moves if only the optimiser `name` has a rate above 0."""
    x = torch.rand(12, 1, 28, 28) * 2 - 1
    opt = model.train().optimizers()
    parts = {"G": model.G, "shared": model.D.shared, "d_out": model.D.d_out, "q_out": model.D.q_out}
    for other in set(opt) - {name}:
        opt[other].param_groups[0]["lr"] = 0.0
    before = {n: [p.detach().clone() for p in net.parameters()] for n, net in parts.items()}
    model.training_step(Batch(x, None, 0), opt)
    return {n for n, net in parts.items()
            if any(not torch.equal(a, b) for a, b in zip(before[n], net.parameters(), strict=True))}


@pytest.mark.parametrize("model", [InfoGAN, GANWithQ])
def test_ds_optimiser_moves_d_q_and_what_they_share_and_gs_moves_g(model):
    torch.manual_seed(0)
    assert moved(model(**SMALL), "D") == {"shared", "d_out", "q_out"}
    assert moved(model(**SMALL), "G") == {"G"}
    opt = model(**SMALL).optimizers()
    assert {n: (o.param_groups[0]["lr"], o.param_groups[0]["betas"][0]) for n, o in opt.items()} == {
        "D": (2e-4, 0.5), "G": (1e-3, 0.5),
    }


def test_g_gets_the_gradient_of_the_bound_in_infogan_alone():
    """Q's answer alone depends on lambda: a large one changes G's step in InfoGAN, and D's in both."""
    ends = {}
    for model in (InfoGAN, GANWithQ):
        for weight in (0.0, 50.0):
            torch.manual_seed(0)
            m = model(lambda_disc=weight, lambda_cont=weight, **SMALL).train()
            opt = m.optimizers()
            opt["D"].param_groups[0]["lr"] = 0.0  # so that G plays against the same D
            torch.manual_seed(1)
            m.training_step(Batch(torch.rand(12, 1, 28, 28) * 2 - 1, None, 0), opt)
            ends[model, weight] = torch.cat([p.detach().flatten() for p in m.G.parameters()])
    assert torch.equal(ends[GANWithQ, 0.0], ends[GANWithQ, 50.0])
    assert torch.equal(ends[InfoGAN, 0.0], ends[GANWithQ, 0.0])
    assert not torch.equal(ends[InfoGAN, 0.0], ends[InfoGAN, 50.0])


def test_on_a_handful_of_images_d_tells_samples_and_q_reads_the_code_within_a_hundred_steps():
    """G needs some 200 steps at full width before its samples are images: that is left to the runs."""
    g = torch.Generator().manual_seed(0)
    images = F.interpolate(torch.randn(8, 1, 7, 7, generator=g).sign(), scale_factor=4.0)
    torch.manual_seed(0)
    model = InfoGAN(width=8, categorical=[4], continuous=0, noise_dim=6, d_lr=1e-3).train()
    opt = model.optimizers()
    losses = [model.training_step(Batch(images.repeat(3, 1, 1, 1), None, step), opt) for step in range(100)]
    assert float(losses[0]["d_loss"]) > 1.3
    assert float(losses[-1]["d_loss"]) < 0.9
    assert float(losses[0]["info_loss"]) > -0.2
    assert -math.log(4) < float(losses[-1]["info_loss"]) < -0.7
