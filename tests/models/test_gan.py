"""Adversarial nets: the theory of Section 4, losses, networks, start, schedule and steps against loops of their own."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ganbench.gan import Batch
from reference_models import gan
from reference_models.gan import AdversarialNets, ConvolutionalAdversarialNets, SaturatingAdversarialNets

SMALL = {"g_units": 24, "d_units": 8}


def new(kind=AdversarialNets, **args):
    torch.manual_seed(0)
    return kind(**args)


def images(n=8, shape=(1, 28, 28), seed=0):
    """Smooth images in [-1, 1], each with another brightness."""
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed)).cumsum(3)
    return 2 * x / x.amax((1, 2, 3), keepdim=True) - 1


def params(net):
    return sum(p.numel() for p in net.parameters())


# --- Theory: Propositions 1 and 2, Theorem 1 ---


@pytest.mark.parametrize(
    ("p", "q"), [((8, 6, 4, 2), (2, 4, 6, 8)), ((1, 4, 10, 5), (8, 8, 2, 2)), ((3, 7, 5, 5), (3, 7, 5, 5))]
)
def test_the_best_discriminator_is_p_over_p_plus_q_and_its_value_the_jensen_shannon_divergence(p, q):
    """D is a table of one logit a category, and batches hold each category as often as p and q say: in 20ths."""
    model, logits = new(**SMALL), nn.Parameter(torch.zeros(len(p), dtype=torch.float64))
    categories = torch.arange(len(p))
    real, fake = (categories.repeat_interleave(torch.tensor(counts)) for counts in (p, q))
    descent = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=0)

    def loss():
        descent.zero_grad()
        value = model.d_loss(logits[real], logits[fake])
        value.backward()
        return value

    descent.step(loss)
    p, q = (np.array(counts) / 20 for counts in (p, q))
    mean = (p + q) / 2
    jsd = 0.5 * (p * np.log(p / mean)).sum() + 0.5 * (q * np.log(q / mean)).sum()
    np.testing.assert_allclose(torch.sigmoid(logits).detach().numpy(), p / (p + q), rtol=1e-6)
    value = -2 * loss().item()  # V(D, G) = E log D(x) + E log(1 - D(G(z)))
    assert value == pytest.approx(-math.log(4) + 2 * jsd, rel=1e-9)
    assert (value == pytest.approx(-math.log(4), rel=1e-9)) == (tuple(p) == tuple(q))
    saturating = new(SaturatingAdversarialNets, **SMALL).g_loss(logits[fake]).item()  # G's term of V
    assert saturating == pytest.approx((q * np.log(q / (p + q))).sum(), rel=1e-6)


# --- Losses ---


def test_losses_are_their_closed_forms():
    real, fake = torch.randn(7, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    p, q = (1 / (1 + np.exp(-logit.numpy())) for logit in (real, fake))
    model, saturating = new(**SMALL), new(SaturatingAdversarialNets, **SMALL)
    d = -0.5 * (np.log(p).mean() + np.log(1 - q).mean())
    assert model.d_loss(real, fake).item() == pytest.approx(d, rel=1e-12)
    assert saturating.d_loss(real, fake).item() == pytest.approx(d, rel=1e-12)
    assert model.g_loss(fake).item() == pytest.approx(-np.log(q).mean(), rel=1e-12)
    assert saturating.g_loss(fake).item() == pytest.approx(np.log(1 - q).mean(), rel=1e-12)


# --- Networks and start ---


def dense(*sizes):
    return sum(a * b + b for a, b in sizes)


def test_the_networks_have_the_layers_of_the_code():
    with torch.device("meta"):
        mnist, conv = AdversarialNets(), ConvolutionalAdversarialNets()
        cifar = AdversarialNets(32, 3, g_units=8000, d_units=1600)
        tfd = AdversarialNets(48, g_units=8000, d_units=1200, pretrain_steps=1)
    assert params(mnist.G) == dense((100, 1200), (1200, 1200), (1200, 784))
    assert params(mnist.D) == dense((784, 1200), (240, 1200), (240, 1))
    assert params(cifar.G) == dense((100, 8000), (8000, 8000), (8000, 3072))
    assert params(cifar.D) == dense((3072, 8000), (1600, 8000), (1600, 1))
    assert params(tfd.G) == dense((100, 8000), (8000, 100), (100, 8000), (8000, 8000), (8000, 2304))
    assert params(tfd.D) == dense((2304, 6000), (1200, 6000), (1200, 1))
    assert params(conv.G) == dense((100, 8000), (8000, 8000)) + 80 * 3 * 25 + 3 * 32 * 32
    convolutions = (3 * 64 + 32 * 64) * 64 + 64 + 64 + 32 * 384 * 25 + 384  # kernels of 8 x 8, 8 x 8, 5 x 5
    assert params(conv.D) == convolutions + dense((192 * 5 * 5, 2500), (500, 1))
    for model in (mnist, conv):
        assert [m.p for m in model.D if isinstance(m, nn.Dropout)] == [0.2] + [0.5] * (4 if model is conv else 2)
        assert not [m for m in model.G.modules() if isinstance(m, nn.Dropout)]


def test_the_convolutional_discriminator_halves_33_15_and_9_with_partial_windows():
    model = new(ConvolutionalAdversarialNets, g_maps=2, d_maps=4, d_units=6)
    sides, h = [], images(2, (3, 32, 32))
    for layer in model.D:
        h = layer(h)
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            sides.append(h.shape[-1])
    assert sides == [33, 16, 15, 7, 9, 5]
    assert model.G(model.sample_latent(2)).shape == (2, 3, 32, 32)


def test_weights_start_in_the_ranges_of_the_code():
    def largest(p):
        return p.abs().max().item()

    for size, hidden, out in ((28, 0.05, 0.05), (32, 0.05, 0.5)):
        model = new(image_size=size, g_units=200, d_units=40)
        assert largest(model.G.hidden[0].weight) == pytest.approx(hidden, rel=0.01)
        assert largest(model.G.hidden[2].weight) == pytest.approx(hidden, rel=0.01)
        assert largest(model.G.out.weight) == pytest.approx(out, rel=0.01)
        assert model.G.out.weight.std().item() == pytest.approx(out / math.sqrt(3), rel=0.02)
        assert all(largest(p) == 0 for p in model.parameters() if p.ndim == 1)
        assert all(largest(p) == pytest.approx(0.005, rel=0.03) for p in model.D.parameters() if p.ndim > 1)
    tfd = new(image_size=48, g_units=200, d_units=40, pretrain_steps=1)
    assert ((tfd.G.out.weight != 0).sum(1) == 100).all()
    assert tfd.G.out.weight[tfd.G.out.weight != 0].std().item() == pytest.approx(1, rel=0.01)
    biases = {name: set(p.tolist()) for name, p in tfd.G.named_parameters() if name.endswith("bias")}
    assert {name for name, values in biases.items() if values == {-2.0}} == {"hidden.2.bias", "prefix.2.bias"}
    assert {name for name, values in biases.items() if values == {0.0}} == {
        "hidden.0.bias", "prefix.0.bias", "out.bias"
    }


def test_latents_are_uniform_with_variance_one_for_mnist_and_gaussian_elsewhere():
    draws = {size: new(image_size=size, **SMALL).sample_latent(4000) for size in (28, 32)}
    for z in draws.values():
        assert z.mean().item() == pytest.approx(0, abs=0.01)
        assert z.var().item() == pytest.approx(1, rel=0.01)
    assert 0.99 * math.sqrt(3) < draws[28].max().item() < math.sqrt(3) < draws[32].max().item()


# --- Data ---


def test_the_first_samples_without_a_signal_are_the_mean_image():
    model, x = new(**SMALL), images(30)
    x[..., :2] = -1  # always black: the logit is bounded, as in the code
    model.begin(x.split(7))
    mean = ((x.double() + 1) / 2).mean(0).numpy()
    expected = np.log(np.clip(mean, 1e-7, 1 - 1e-7) / (1 - np.clip(mean, 1e-7, 1 - 1e-7)))
    np.testing.assert_allclose(model.G.out.bias.detach().view(28, 28).numpy(), expected[0], rtol=1e-5, atol=1e-6)
    nn.init.zeros_(model.G.out.weight)
    np.testing.assert_allclose(model.sample(2)[1].detach().numpy(), 2 * mean - 1, atol=1e-5)


def test_networks_for_cifar_see_images_of_mean_zero_and_norm_55():
    model, x = new(image_size=32, channels=3, **SMALL), images(6, (3, 32, 32))
    x[5] = 0.25  # a constant image has no contrast to divide by
    seen = model.seen(x).flatten(1).double()
    centred = x.flatten(1).double() - x.flatten(1).double().mean(1, keepdim=True)
    expected = 55 * centred[:5] / centred[:5].square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(seen[:5], expected, rtol=1e-4, atol=1e-5)
    assert seen[5].abs().max() < 1e-4
    model.begin(x.split(4))
    assert model.brightness.item() == pytest.approx(x.mean().item(), rel=1e-5)
    norms = centred.square().sum(1).sqrt()
    assert model.contrast.item() == pytest.approx(norms.mean().item() / 55, rel=1e-5)
    # An image that has the mean brightness and contrast comes back from what the networks see of it.
    mean_image = x.mean() + centred[:1].view(1, 3, 32, 32).float() * (norms.mean() / norms[0]).float()
    inside = mean_image.clamp(-1, 1)
    torch.testing.assert_close(model.shown(model.seen(mean_image)), inside, rtol=1e-4, atol=1e-4)
    assert not model.G.out.bias.any()


# --- Schedule and steps ---


def test_the_rate_falls_with_updates_and_momentum_rises_with_epochs():
    model = new(lr=0.1, steps_per_epoch=500, **SMALL)
    assert model.rate(0) == 0.1
    assert model.rate(125_000) == pytest.approx(0.1 / 1.000004**125_000)
    assert model.rate(10_000_000) == 1e-6
    for update, momentum in ((0, 0.5), (499, 0.5), (500, 0.5 + 0.2 / 249), (62_250, 0.6), (124_500, 0.7), (10**6, 0.7)):
        assert model.momentum(update) == pytest.approx(momentum, abs=5e-4 if update == 62_250 else 1e-12)
    opt = model.optimizers()
    model.set_schedule(opt, 124_500)
    for optimizer in opt.values():
        (group,) = optimizer.param_groups
        assert group["lr"] == model.rate(124_500)
        assert group["momentum"] == pytest.approx(0.7 * 1.000004, rel=1e-12)


@pytest.mark.parametrize("kind", [AdversarialNets, SaturatingAdversarialNets])
def test_ten_steps_are_those_of_a_loop_written_from_the_formulas(kind, monkeypatch):
    """In float64 and without dropout: velocities hold the rate, and both networks step from the same weights."""
    monkeypatch.setattr(torch.Tensor, "float", lambda of: of)
    monkeypatch.setattr(gan, "DECAY", 1.2)  # so that a rate outside the velocity would show
    model = new(kind, lr=0.1, steps_per_epoch=2, **SMALL).double()
    model.D.eval()
    for p in model.D.parameters():
        nn.init.normal_(p, 0, 0.05)
    opt = model.optimizers()
    g, d = ([w.detach().clone().requires_grad_() for w in net.parameters()] for net in (model.G, model.D))
    velocity = {w: torch.zeros_like(w) for w in (*g, *d)}
    g_out, g_hidden = g[:2], g[2:]  # in the order of the modules: out, hidden

    def generated(z):
        h = (z @ g_hidden[0].T + g_hidden[1]).clamp(min=0)
        h = (h @ g_hidden[2].T + g_hidden[3]).clamp(min=0)
        return 1 / (1 + (-(h @ g_out[0].T + g_out[1])).exp())

    def probability(x):
        h = (x @ d[0].T + d[1]).view(len(x), 8, 5).max(2).values
        h = (h @ d[2].T + d[3]).view(len(x), 8, 5).max(2).values
        return 1 / (1 + (-(h @ d[4].T + d[5])[:, 0]).exp())

    draws = torch.Generator().manual_seed(5)
    for t in range(10):
        x = images(seed=t).double()
        z = torch.randn(8, 100, generator=draws, dtype=torch.float64)
        monkeypatch.setattr(model, "sample_latent", lambda n, z=z: z)
        model.training_step(Batch(x, None, t), opt)
        real, fake = probability((x.flatten(1) + 1) / 2), probability(generated(z))
        of_d = torch.autograd.grad(
            -0.5 * (real.log().mean() + (1 - fake).log().mean()), d, retain_graph=True
        )
        of_g = torch.autograd.grad(-fake.log().mean() if kind is AdversarialNets else (1 - fake).log().mean(), g)
        for w, gradient in zip((*g, *d), (*of_g, *of_d), strict=True):
            velocity[w] = (0.5 + 0.2 * (t // 2) / 249) * velocity[w] - 0.1 / 1.2**t * gradient
            w.data += velocity[w]
    for net, weights in ((model.G, g), (model.D, d)):
        for p, w in zip(net.parameters(), weights, strict=True):
            torch.testing.assert_close(p, w, rtol=1e-9, atol=1e-12)


def test_the_second_stage_of_tfd_begins_anew_with_a_prefix_and_the_trained_layers():
    model = new(image_size=48, g_units=40, d_units=8, lr=0.05, steps_per_epoch=1, pretrain_steps=3)
    opt, x = model.optimizers(), images(6, (1, 48, 48))

    def copies(net):
        return [p.detach().clone() for p in net.parameters()]

    def step(number):
        model.training_step(Batch(x, None, number), opt)

    prefix = model.G.prefix.requires_grad_()
    nn.init.uniform_(prefix[2].weight, -1, 1)
    model.bound_norms()
    before, z = copies(prefix), model.sample_latent(2)
    for number in range(3):
        step(number)
    for a, b in zip(before, prefix.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=0)  # not trained in the first stage
    for p in model.D.parameters():
        nn.init.ones_(p)
    trained = copies(model.G.hidden)
    samples = model.generate(z)
    assert opt["D"].param_groups[0]["lr"] == pytest.approx(0.05 / 1.000004**2, rel=1e-9)
    step(3)
    assert opt["D"].param_groups[0]["lr"] == 0.05
    assert opt["D"].param_groups[0]["momentum"] == 0.5
    assert max(p.abs().max() for p in model.D.parameters() if p.ndim > 1) < 0.03  # 0.005 and one step
    assert all((a - b).abs().max() < 0.1 for a, b in zip(trained, model.G.hidden.parameters(), strict=True))
    assert (samples - model.generate(z)).abs().max() > 0.01
    shown = model.generate(z)
    model.G.prefix_used.fill_(False)
    torch.testing.assert_close(model.generate(prefix(z)), shown)


def test_the_weights_of_a_unit_of_tfd_have_a_norm_of_at_most_19365():
    model = new(image_size=48, g_units=40, d_units=8)
    with torch.no_grad():
        model.G.hidden[2].weight[0] = 3.0
        direction = model.G.hidden[2].weight[0] / model.G.hidden[2].weight[0].norm()
        short = model.G.hidden[0].weight[0].clone()
    model.bound_norms()
    torch.testing.assert_close(model.G.hidden[2].weight[0], 1.9365 * direction)
    torch.testing.assert_close(model.G.hidden[0].weight[0], short)
    norms = [m.weight.norm(dim=1).max() for m in model.modules() if isinstance(m, nn.Linear)]
    assert max(norms) <= 1.9366
    free = new(**SMALL)
    nn.init.ones_(free.G.out.weight)
    free.bound_norms()
    assert (free.G.out.weight == 1).all()


# --- Learning ---


def test_it_learns_to_draw_an_image_of_the_training_set():
    """Networks as small as these find one of the four images, and draw nothing else."""
    x = torch.rand(4, 1, 7, 7, generator=torch.Generator().manual_seed(3)).round()
    x = 2 * x.repeat_interleave(4, 2).repeat_interleave(4, 3) - 1
    model = new(g_units=64, d_units=16, lr=0.1)
    model.begin([x])
    for p in model.D.parameters():
        if p.ndim > 1:
            nn.init.uniform_(p, -0.05, 0.05)  # from the code's start D needs hundreds of steps more
    opt = model.optimizers()

    def distance():
        with torch.no_grad():
            samples = model.eval().sample(50, generator=torch.Generator().manual_seed(0))
        return (samples[:, None] - x).square().mean((2, 3, 4)).amin(1).mean().item()

    before = distance()
    for step in range(600):
        model.train().training_step(Batch(x.repeat(8, 1, 1, 1), None, step), opt)
    assert before > 0.7
    assert distance() < 0.1 * before
