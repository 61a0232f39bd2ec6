"""SN-GAN: losses by number, the layer tables, spectral norm, the projection, the schedule, a handful of images."""

import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from ganbench.base.errors import UserError
from ganbench.gan import Batch, checkpoint, minimize

TINY = {"g_width": 8, "d_width": 8, "latent_dim": 6, "n_critic": 1, "g_batch": 1}
CNN = {"residual": False, **TINY}


def new(name="sngan", **args):
    torch.manual_seed(0)
    return checkpoint.make_model(name, {**TINY, **args}, "test")


def batch(model, n=6, step=0):
    x = torch.rand(n, *model.image_shape, generator=torch.Generator().manual_seed(step)) * 2 - 1
    return Batch(x, torch.arange(n) % model.num_classes if model.num_classes else None, step)


# --- Losses ---


def test_the_hinge_and_the_cross_entropy_are_their_formulas():
    real, fake = torch.tensor([-2.0, 0.25, 3.0]), torch.tensor([-4.0, -0.5, 0.5, 2.0])
    r, f = real.numpy(), fake.numpy()
    hinge, bce = new(), new("sngan-bce", residual=False)
    assert float(hinge.d_loss(real, fake)) == pytest.approx((3 + 0.75 + 0) / 3 + (0 + 0.5 + 1.5 + 3) / 4)
    assert float(hinge.g_loss(fake)) == pytest.approx(0.5)
    p, q = 1 / (1 + np.exp(-r)), 1 / (1 + np.exp(-f))
    assert float(bce.d_loss(real, fake)) == pytest.approx(-np.log(p).mean() - np.log(1 - q).mean(), rel=1e-5)
    assert float(bce.g_loss(fake)) == pytest.approx(-np.log(q).mean(), rel=1e-5)
    assert float(new("sngan-projection").d_loss(real, fake)) == float(hinge.d_loss(real, fake))


# --- Networks: the tables of the papers, counted by hand ---


def conv(cin, cout, kernel=3):
    return cout * (cin * kernel**2 + 1)


def up(cin, cout, classes=0):
    """Two batch norms, two 3x3 convolutions, and the 1x1 convolution beside them."""
    norms = 2 * (cin + cout) * (classes or 1)
    return norms + conv(cin, cout) + conv(cout, cout) + conv(cin, cout, 1)


def first(cout):
    return conv(3, cout) + conv(cout, cout) + conv(3, cout, 1)


def down(cin, cout, side=True):
    return conv(cin, cin) + conv(cin, cout) + side * conv(cin, cout, 1)


def end_of_g(width):
    return 2 * width + conv(width, 3)


ROWS = {
    "32": ("sngan", {}, 129 * 16 * 256 + 3 * up(256, 256) + end_of_g(256),
           first(128) + down(128, 128) + 2 * down(128, 128, False) + 128),
    "32, 10 classes": ("sngan-projection", {}, 129 * 16 * 256 + 3 * up(256, 256, 10) + end_of_g(256),
                       first(128) + down(128, 128) + 2 * down(128, 128, False) + 128 + 10 * 128),
    "48": ("sngan", {"image_size": 48, "g_width": 64, "d_width": 64},
           129 * 36 * 512 + up(512, 256) + up(256, 128) + up(128, 64) + end_of_g(64),
           first(64) + down(64, 128) + down(128, 256) + down(256, 512) + down(512, 1024) + 1025),
    "64, 1,000 classes": (
        "sngan-projection", {"image_size": 64, "num_classes": 1000, "g_width": 64, "d_width": 64},
        129 * 16 * 1024 + up(1024, 512, 1000) + up(512, 256, 1000) + up(256, 128, 1000) + up(128, 64, 1000)
        + end_of_g(64),
        first(64) + down(64, 128) + down(128, 256) + down(256, 512) + down(512, 1024) + 1025 + 1000 * 1024),
    "128, 1,000 classes": (
        "sngan-projection", {"image_size": 128, "num_classes": 1000, "g_width": 64, "d_width": 64},
        129 * 16 * 1024 + up(1024, 1024, 1000) + up(1024, 512, 1000) + up(512, 256, 1000) + up(256, 128, 1000)
        + up(128, 64, 1000) + end_of_g(64),
        first(64) + down(64, 128) + down(128, 256) + down(256, 512) + down(512, 1024) + down(1024, 1024, False) + 1025
        + 1000 * 1024),
    "CNN, 32": ("sngan", {"residual": False, "g_width": 64, "d_width": 64},
                129 * 16 * 512 + conv(512, 256, 4) + conv(256, 128, 4) + conv(128, 64, 4) + 2 * (256 + 128 + 64)
                + conv(64, 3),
                conv(3, 64) + conv(64, 64, 4) + conv(64, 128) + conv(128, 128, 4) + conv(128, 256) + conv(256, 256, 4)
                + conv(256, 512) + 16 * 512 + 1),
    "CNN, 48": ("sngan", {"residual": False, "image_size": 48, "g_width": 64, "d_width": 64},
                129 * 36 * 512 + conv(512, 256, 4) + conv(256, 128, 4) + conv(128, 64, 4) + 2 * (256 + 128 + 64)
                + conv(64, 3),
                conv(3, 64) + conv(64, 64, 4) + conv(64, 128) + conv(128, 128, 4) + conv(128, 256) + conv(256, 256, 4)
                + conv(256, 512) + 36 * 512 + 1),
}


@pytest.mark.parametrize(("name", "args", "g", "d"), ROWS.values(), ids=ROWS)
def test_the_networks_have_as_many_parameters_as_the_tables_of_the_papers(name, args, g, d):
    with torch.device("meta"):
        model = checkpoint.make_model(name, args, "test")
    assert sum(p.numel() for p in model.G.parameters()) == g
    assert sum(p.numel() for p in model.D.parameters()) == d


@pytest.mark.parametrize(("size", "sides"), [(32, [16, 8, 8, 8]), (48, [24, 12, 6, 3, 3]), (64, [32, 16, 8, 4, 2]),
                                             (128, [64, 32, 16, 8, 4, 4])])
def test_the_maps_of_the_blocks_have_the_sides_of_the_code(size, sides):
    model, seen = new(image_size=size, g_width=1, d_width=1), []
    for block in (*model.G.blocks, *model.D.blocks):
        block.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-1]))
    with torch.no_grad():
        assert model.D(model.G(torch.zeros(2, 6))).shape == (2,)
    start = 6 if size == 48 else 4
    doublings = (size // start).bit_length() - 1
    assert seen == [start << i for i in range(1, doublings + 1)] + sides


@pytest.mark.parametrize(("name", "args"), [("sngan", {}), ("sngan", CNN), ("sngan-projection", {"image_size": 64})])
def test_every_weight_of_d_is_divided_by_its_largest_singular_value_and_none_of_g(name, args):
    model = new(name, **args)
    assert not any(parametrize.is_parametrized(m) for m in model.G.modules())
    assert not any("Norm" in type(m).__name__ for m in model.D.modules() if type(m).__name__ != "_SpectralNorm")
    layers = [m for m in model.D.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding)]
    assert len(layers) >= 8
    for layer in layers:
        for _ in range(200):
            layer.weight  # noqa: B018  (a pass in training takes a power iteration)
        with torch.no_grad():
            assert float(torch.linalg.matrix_norm(layer.weight.flatten(1), 2)) == pytest.approx(1, abs=5e-3)


def test_the_projection_adds_the_inner_product_of_the_class_and_the_features():
    model = new("sngan-projection")
    x, y = batch(model).x, torch.tensor([0, 3, 3, 9, 1, 0])
    for _ in range(200):  # power iterations
        model.D.logit.weight, model.D.embed.weight  # noqa: B018
    model.eval()
    with torch.no_grad():
        h = model.discriminator_features(x).double().numpy()
        maps = model.D.blocks(x).double().numpy()
        logit = model.D(x, y).double().numpy()
    np.testing.assert_allclose(h, np.maximum(maps, 0).sum((2, 3)), rtol=1e-5)

    def normed(layer):
        w = layer.parametrizations.weight.original.detach().double().numpy()
        return w / np.linalg.svd(w)[1][0]

    psi, v = normed(model.D.logit)[0], normed(model.D.embed)
    assert model.D.logit.bias is None
    np.testing.assert_allclose(logit, [row @ psi + v[c] @ row for row, c in zip(h, y, strict=True)], rtol=1e-3)


def test_d_ends_in_float32_under_mixed_precision():
    model = new("sngan-projection")
    with torch.autocast("cpu", torch.bfloat16):
        assert model.D(batch(model).x, batch(model).y).dtype == torch.float32
        assert model.G(model.sample_latent(2), torch.tensor([0, 1])).dtype == torch.float32


# --- The step ---


def test_a_step_is_n_critic_updates_of_d_and_one_of_g_with_their_batches(monkeypatch):
    model = new(n_critic=3, g_batch=2).train()
    opt, seen = model.optimizers(), []
    owner = {id(o): name for name, o in opt.items()}
    model.D.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))

    def note(loss, optimizer):
        seen.append(owner[id(optimizer)])
        return minimize(loss, optimizer)

    monkeypatch.setattr(sys.modules[type(model).__module__], "minimize", note)
    model.training_step(batch(model, 12), opt)
    assert seen == [8, "D", 8, "D", 8, "D", 8, "G"]


def test_the_learning_rates_fall_linearly_from_decay_from_to_decay_to():
    model = new(decay_from=400, decay_to=450, lr=2e-4)
    assert [model.rate(step) for step in (0, 400, 425, 449, 450, 900)] == pytest.approx(
        [2e-4, 2e-4, 1e-4, 2e-4 / 50, 0, 0]
    )
    assert [new().rate(step) for step in (0, 10**9)] == [2e-4, 2e-4]
    opt = model.optimizers()
    model.training_step(batch(model, step=425), opt)
    assert [o.param_groups[0]["lr"] for o in opt.values()] == pytest.approx([1e-4, 1e-4])
    assert all(o.param_groups[0]["betas"] == (0.0, 0.9) for o in opt.values())


@pytest.mark.parametrize(("name", "args", "word"), [
    ("sngan", {"image_size": 40}, "32, 48, 64, 128"), ("sngan", {"residual": False, "image_size": 64}, "32, 48"),
    ("sngan", {"residual": False, "num_classes": 3}, "num_classes"), ("sngan", {"n_critic": 0}, "n_critic"),
    ("sngan", {"decay_from": 5, "decay_to": 5}, "decay_to"), ("sngan-projection", {"num_classes": 0}, "num_classes"),
])
def test_arguments_that_do_not_fit_are_refused(name, args, word):
    with pytest.raises(UserError, match=word):
        new(name, **args)


def test_a_handful_of_images_is_learned_by_class():
    """Two classes of one image each: samples of a class come close to its image, and closer than to the other's."""
    ramp = torch.linspace(-0.8, 0.8, 32).expand(1, 32, 32)
    images = torch.stack([ramp, ramp.mT.flip(1)])
    model = new("sngan-projection", channels=1, num_classes=2, g_width=16, d_width=16, lr=1e-3).train()
    opt = model.optimizers()
    y = torch.arange(8) % 2
    for step in range(120):
        model.training_step(Batch(images[y], y, step), opt)
    with torch.no_grad():
        samples = model.eval().sample(8, y, torch.Generator().manual_seed(0))
    error = (samples[:, None] - images[None]).square().mean((2, 3, 4))
    own = error.gather(1, y[:, None]).mean()
    other = error.gather(1, 1 - y[:, None]).mean()
    assert own < 0.15
    assert own < 0.6 * other
