"""CGAN: networks, losses, the class in both networks, the schedule, and steps against a loop written from formulas."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ganbench.gan import Batch
from reference_models import cgan
from reference_models.cgan import CGAN

SMALL = {"num_classes": 3, "g_width": 6, "d_units": 8, "y_units": 2}


def new(**args):
    torch.manual_seed(0)
    return CGAN(**args)


def images(n=8, seed=0):
    x = torch.rand(n, 1, 28, 28, generator=torch.Generator().manual_seed(seed)).cumsum(3)
    return 2 * x / x.amax((1, 2, 3), keepdim=True) - 1


def test_the_networks_have_the_layers_of_section_4():
    def dense(*sizes):
        return sum(a * b + b for a, b in sizes)

    model = new()
    count = {name: sum(p.numel() for p in net.parameters()) for name, net in model.named_children()}
    assert count == {
        "G": dense((100, 200), (10, 1000), (1200, 1200), (1200, 784)),
        "D": dense((784, 240 * 5), (10, 50 * 5), (240 + 50, 240 * 4), (240, 1)),
    }
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]
    for net, limit in ((model.G, 0.05), (model.D, 0.005)):
        for p in net.parameters():
            assert p.abs().max().item() == pytest.approx(limit if p.ndim > 1 else 0.0, rel=0.05)
    z = model.sample_latent(1000)
    assert -math.sqrt(3) <= z.min() < -1.73 < 1.73 < z.max() <= math.sqrt(3)
    assert z.var().item() == pytest.approx(1, rel=0.01)


def test_losses_are_their_closed_forms():
    real, fake = torch.randn(7, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    p, q = (1 / (1 + np.exp(-logit.numpy())) for logit in (real, fake))
    model = new(**SMALL)
    assert model.d_loss(real, fake).item() == pytest.approx(-0.5 * (np.log(p).mean() + np.log(1 - q).mean()), rel=1e-12)
    assert model.g_loss(fake).item() == pytest.approx(-np.log(q).mean(), rel=1e-12)


def test_output_biases_start_at_the_logits_of_the_mean_image():
    model, x = new(**SMALL), images(30)
    x[..., :2] = -1  # always black
    model.begin(x.split(7))
    nn.init.zeros_(model.G.out.weight)
    mean = ((x.double() + 1) / 2).mean(0).clamp(1e-7, 1 - 1e-7)
    torch.testing.assert_close(model.G.out.bias.double().view_as(mean), (mean / (1 - mean)).log(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.sample(2)[0].double(), 2 * mean - 1, rtol=1e-4, atol=1e-5)


def test_the_rate_falls_with_updates_and_momentum_rises_with_epochs():
    model = new(**SMALL)
    assert model.rate(0) == 0.1
    assert model.rate(125_000) == pytest.approx(0.1 / 1.00004**125_000)
    assert model.rate(287_000) > model.rate(288_000) == 1e-6  # the floor is reached after about 287,800 updates
    for update, momentum in ((0, 0.5), (499, 0.5), (500, 0.5 + 0.2 / 249), (124_500, 0.7), (10**6, 0.7)):
        assert model.momentum(update) == pytest.approx(momentum)


def test_ten_steps_are_those_of_a_loop_written_from_the_formulas(monkeypatch):
    """In float64 and without dropout: D sees x with its class, and G(z|y) with the same class."""
    monkeypatch.setattr(torch.Tensor, "float", lambda of: of.double())
    monkeypatch.setattr(cgan, "DECAY", 1.2)  # so that a rate outside the velocity would show
    model = new(lr=0.1, steps_per_epoch=2, **SMALL).double()
    for m in model.modules():
        if isinstance(m, nn.Dropout):
            m.eval()
    for p in model.D.parameters():
        nn.init.normal_(p, 0, 0.05)
    opt = model.optimizers()
    w = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    velocity = {name: torch.zeros_like(p) for name, p in w.items()}

    def layer(name, h):
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def maxout(name, h, pieces):
        return layer(name, h).view(len(h), -1, pieces).max(2).values

    def generated(z, y):
        h = torch.cat([layer("G.z", z), layer("G.y", y)], 1).clamp(min=0)
        return 1 / (1 + (-layer("G.out", layer("G.joint", h).clamp(min=0))).exp())

    def probability(x, y):
        h = torch.cat([maxout("D.x.0", x, 5), maxout("D.y.0", y, 5)], 1)
        return 1 / (1 + (-layer("D.out", maxout("D.joint.0", h, 4))).exp())

    draws = torch.Generator().manual_seed(5)
    for t in range(10):
        x, z = images(seed=t).double(), torch.rand(8, 100, generator=draws, dtype=torch.float64)
        classes = torch.randint(3, (8,), generator=draws)
        y = torch.eye(3, dtype=torch.float64)[classes]
        monkeypatch.setattr(model, "sample_latent", lambda n, z=z: z)
        model.training_step(Batch(x, classes, t), opt)
        real, fake = probability((x.flatten(1) + 1) / 2, y), probability(generated(z, y), y)
        for letter, loss in (("D", -0.5 * (real.log().mean() + (1 - fake).log().mean())), ("G", -fake.log().mean())):
            names = [name for name in w if name.startswith(letter)]
            gradients = torch.autograd.grad(loss, [w[name] for name in names], retain_graph=True)
            for name, gradient in zip(names, gradients, strict=True):
                velocity[name] = (0.5 + 0.2 * (t // 2) / 249) * velocity[name] - 0.1 / 1.2**t * gradient
        for name, p in w.items():
            p.data += velocity[name]
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, w[name], rtol=1e-9, atol=1e-12)


def test_g_needs_the_class_and_sample_draws_it():
    model = new(**SMALL).eval()
    with pytest.raises(ValueError, match="class of each image"):
        model.generate(model.sample_latent(2))
    z = model.sample_latent(200, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (200,), generator=generator)
    assert y.bincount(minlength=3).min() > 40
    z = model.sample_latent(200, generator)
    with torch.no_grad():
        drawn = model.sample(200, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(drawn, model.generate(z, y))


def test_it_learns_to_draw_an_image_of_its_class():
    """Networks as small as these learn the image of one class first, and draw it for the others too."""
    patterns = torch.rand(3, 1, 7, 7, generator=torch.Generator().manual_seed(3)).round()
    patterns = 2 * patterns.repeat_interleave(4, 2).repeat_interleave(4, 3) - 1
    y = torch.arange(3).repeat(10)
    model = new(num_classes=3, g_width=20, d_units=24, y_units=6)
    model.begin([patterns[y]])
    for name, p in model.D.named_parameters():
        if name.endswith("weight"):
            nn.init.uniform_(p, -0.05, 0.05)  # from the usual start D needs hundreds of steps more
    opt = model.optimizers()

    def distances():
        with torch.no_grad():
            samples = model.eval().sample(30, y, torch.Generator().manual_seed(0))
        return (samples - patterns[y]).square().mean((1, 2, 3)).view(10, 3).mean(0)

    before = distances().min().item()
    for step in range(400):
        model.train().training_step(Batch(patterns[y], y, step), opt)
    assert before > 0.5
    assert distances().min().item() < 0.1 * before
