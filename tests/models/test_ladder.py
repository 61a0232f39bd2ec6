"""The ladder network against the equations and the code of Rasmus et al. (2015), and EBGAN-LN."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ganbench.gan import Batch
from reference_models import ladder
from reference_models.ladder import BOTTOM, EBGANLN, Combinator, Encoder, Ladder, Path

WIDTHS = (784, 1000, 500, 250, 250, 250, 10)
SMALL = {"image_size": 4, "classes": 3, "hidden": (7, 5), "costs": (1000.0, 10.0, 0.1, 0.1)}
EPS = 1e-10


def seeded(make, *args, **kwargs):
    torch.manual_seed(0)
    return make(*args, **kwargs)


def small_ebgan(**kwargs):
    return seeded(EBGANLN, **SMALL | {"costs": (1000.0, 0.0, 0.0, 0.0), "g_width": 9, "latent_dim": 5} | kwargs)


def batch(n=12, size=4, classes=3, step=0, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(2 * n, 1, size, size, generator=g) * 2 - 1
    return Batch(x[:n], torch.arange(n) % classes, step, x[n:])


def array(t):
    return t.detach().double().numpy()


def params(module):
    return sum(p.numel() for p in module.parameters())


# --- Networks ---


def test_the_networks_have_the_layers_of_the_code():
    model = seeded(Ladder)
    weights = 784 * 1000 + 1000 * 500 + 500 * 250 + 2 * 250 * 250 + 250 * 10
    units = 1000 + 500 + 3 * 250 + 10
    assert params(model.E) == weights + units + 10  # beta of each unit, gamma of the top alone
    assert params(model.V) == weights + 10 * (784 + units)  # ten numbers a unit, the image's too
    for net, scale in ((model.E, WIDTHS[:-1]), (model.V, WIDTHS[1:])):
        stds = [linear.weight.std().item() for linear in net.linears]
        assert stds == pytest.approx([1 / math.sqrt(fan_in) for fan_in in scale], rel=0.05)
    assert params(seeded(EBGANLN).G) == 100 * 800 + 800 * 800 + 800 * 784 + 784 + 4 * 800


def by_hand(encoder, x):
    """The clean path in numpy: z of each layer, moments of W h, and logits."""
    h, z, moments = x, [x], []
    for linear, beta in zip(encoder.linears, encoder.betas, strict=True):
        pre = h @ array(linear.weight).T
        mean, std = pre.mean(0), np.sqrt(pre.var(0) + EPS)
        z.append((pre - mean) / std)
        moments.append((mean, std))
        h = np.maximum(z[-1] + array(beta), 0)
    return z, moments, array(encoder.gamma) * (z[-1] + array(encoder.betas[-1]))


def shaken(model):
    """The same model with biases and gains that are not at their start."""
    for name, p in model.named_parameters():
        if "beta" in name or "gamma" in name or name.endswith(".a"):
            nn.init.normal_(p, 0.5, 0.3)
    return model


def test_a_clean_path_is_the_codes():
    encoder = shaken(seeded(Ladder, **SMALL)).E
    x = torch.rand(12, 16)
    z, moments, logits = by_hand(encoder, array(x))
    (path,) = encoder(x, moments=True)
    for ours, theirs in zip(path.z, z, strict=True):
        np.testing.assert_allclose(array(ours), theirs, rtol=1e-5, atol=1e-6)
    for (mean, std), (m, s) in zip(path.moments, moments, strict=True):
        np.testing.assert_allclose(array(mean), m, atol=1e-6)
        np.testing.assert_allclose(array(std), s, rtol=1e-5)
    np.testing.assert_allclose(array(path.logits), logits, rtol=1e-5, atol=1e-6)


def test_batches_are_normalised_apart_and_noise_enters_every_layer_and_the_image():
    encoder = Encoder((16, 400, 300, 3), noise=0.2, input_noise=0.3)
    x, u = torch.rand(50, 16), 5 * torch.rand(60, 16)
    together, alone = encoder(x, u), [encoder(x)[0], encoder(u)[0]]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a.logits, b.logits, rtol=1e-4, atol=1e-5)
    (path,) = encoder(u, corrupted=True)
    assert (path.z[0] - u).std().item() == pytest.approx(0.3, rel=0.1)
    for z in path.z[1:]:  # norm has variance 1, and the noise is added after it
        assert z.var(0, correction=0).mean().item() == pytest.approx(1 + 0.2**2, rel=0.02)
    assert torch.equal(encoder(x)[0].logits, encoder(x)[0].logits)


def test_the_combinator_is_the_codes_function_of_ten_numbers():
    g = seeded(Combinator, 5)
    z, u = torch.randn(6, 5), torch.randn(6, 5)
    assert torch.equal(g(z, u), torch.zeros(6, 5))  # at the start
    nn.init.normal_(g.a)
    a, zn, un = array(g.a), array(z), array(u)

    def sigmoid(t):
        return 1 / (1 + np.exp(-t))

    mu = a[0] * sigmoid(a[1] * un + a[2]) + a[3] * un + a[4]
    v = a[5] * sigmoid(a[6] * un + a[7]) + a[8] * un + a[9]
    np.testing.assert_allclose(array(g(z, u)), (zn - mu) * v + mu, rtol=1e-4, atol=1e-5)


def test_the_decoder_goes_from_the_softmax_of_the_corrupted_logits_to_the_image():
    model = shaken(seeded(Ladder, **SMALL))
    (path,) = model.E(torch.rand(12, 16), corrupted=True)
    (estimates,) = model.V(path)
    logits = array(path.logits)
    below = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for layer in (3, 2, 1, 0):
        if layer < 3:
            below = below @ array(model.V.linears[layer].weight).T
        u = (below - below.mean(0)) / np.sqrt(below.var(0) + EPS)
        below = array(model.V.combinators[layer](path.z[layer], torch.tensor(u).float()))
        np.testing.assert_allclose(array(estimates[layer]), below, rtol=1e-4, atol=1e-5)


# --- Losses ---


def test_the_cost_is_the_weighted_mean_square_of_each_layer_normalised_by_the_clean_moments():
    model = shaken(seeded(Ladder, **SMALL))
    u = torch.rand(12, 16)
    estimates = [torch.randn(12, w) for w in (16, 7, 5, 3)]
    z, moments, _ = by_hand(model.E, array(u))
    expected = 1000 * np.square(array(estimates[0]) - z[0]).mean()
    for weight, own, estimate, (mean, std) in zip((10, 0.1, 0.1), z[1:], estimates[1:], moments, strict=True):
        expected += weight * np.square((array(estimate) - mean) / std - own).mean()
    assert model.denoising_loss(model.clean_path(u), estimates).item() == pytest.approx(expected, rel=1e-5)


def test_the_cost_at_the_bottom_alone_is_the_energy_over_the_pixels_and_needs_no_clean_path():
    model = small_ebgan()
    u, estimate = torch.rand(12, 16), torch.rand(12, 16)
    clean = model.clean_path(u)
    assert isinstance(clean, Path)
    assert len(clean.z) == 1
    expected = 1000 / 16 * np.square(array(estimate - u)).sum(1).mean()
    assert model.denoising_loss(clean, [estimate]).item() == pytest.approx(expected, rel=1e-5)
    assert ladder.energy(u, estimate).shape == (12,)


def test_the_targets_of_the_layers_are_part_of_the_gradient():
    model = shaken(seeded(Ladder, **SMALL))
    u = torch.rand(12, 16)
    estimates = [torch.zeros(12, w) for w in (16, 7, 5, 3)]  # nothing but the targets depends on the encoder
    model.denoising_loss(model.clean_path(u), estimates).backward()
    assert all(float(linear.weight.grad.abs().sum()) > 0 for linear in model.E.linears)


def test_the_hinge_is_the_margin_of_each_image_at_the_weight_of_the_energy():
    model = small_ebgan()
    fake = torch.tensor([0.0, 3.0, 12.0, 100.0])
    assert model.hinge_loss(fake, 10.0).item() == pytest.approx(1000 / 16 * (10 + 7) / 4)
    assert model.g_loss(fake).item() == pytest.approx(115 / 4)


# --- Schedules ---


def test_the_margin_falls_from_16_to_0_in_60000_steps():
    model = seeded(EBGANLN)
    steps = (0, 15000, 30000, 59999, 60000, 120000, 179999)
    assert [model.margin_at(step) for step in steps] == pytest.approx([16, 12, 8, 16 / 60000, 0, 0, 0])
    assert model.margin_at(60000) == 0.0


@pytest.mark.parametrize(
    ("make", "args", "expected"),
    [
        (Ladder, {}, {0: 2e-3, 60300: 2e-3, 75150: 1e-3, 89999: 2e-3 / 29700}),
        (EBGANLN, {}, {0: 5e-4, 120000: 5e-4, 150000: 2.5e-4, 179999: 5e-4 / 60000}),
        (Ladder, {"lr": 2e-4, "constant_steps": 80000, "decay_steps": 40000}, {80000: 2e-4, 100000: 1e-4}),
    ],
)
def test_the_rate_is_constant_and_then_falls_linearly_to_0(make, args, expected):
    model = make(**args | {"image_size": 4, "hidden": (4, 4, 4, 4, 4)})
    opt = model.optimizers()
    for step, rate in expected.items():
        model.set_rates(opt, step)
        assert [opt[name].param_groups[0]["lr"] for name in "EV"] == pytest.approx([rate] * 2)
    if make is EBGANLN:
        assert opt["G"].param_groups[0]["lr"] == 2.5e-4
        assert opt["E"].defaults["betas"] == (0.5, 0.999)


def test_g_moves_while_there_is_a_margin_and_rests_afterwards():
    model = small_ebgan(margin_steps=5)
    opt = model.optimizers()
    before = [p.detach().clone() for p in model.G.parameters()]
    losses = model.training_step(batch(step=5), opt)
    assert all(torch.equal(a, b) for a, b in zip(before, model.G.parameters(), strict=True))
    assert set(losses) == {"class_loss", "denoising_loss"}
    assert set(model.training_step(batch(step=4), opt)) == {"class_loss", "denoising_loss", "hinge_loss", "g_loss"}
    assert not any(torch.equal(a, b) for a, b in zip(before, model.G.parameters(), strict=True))


def test_without_a_margin_a_step_is_that_of_the_ladder_network():
    first, second = small_ebgan(), seeded(Ladder, **SMALL | {"costs": (1000.0, 0, 0, 0), "lr": 5e-4, "beta1": 0.5})
    second.load_state_dict({k: v for k, v in first.state_dict().items() if not k.startswith("G.")})
    for model in (first, second):
        torch.manual_seed(1)
        opt = model.optimizers()
        for step in (60000, 60001):
            model.training_step(batch(step=step), opt)
    ours = first.state_dict()
    assert all(torch.equal(v, ours[k]) for k, v in second.state_dict().items())


# --- Gradients ---


def test_the_generators_gradient_goes_through_the_target_too():
    """With an estimate that is held fixed, the gradient of |z^ - x|^2 is 2 (x - z^)."""
    x, estimate = torch.rand(3, 16, requires_grad=True), torch.rand(3, 16)
    ladder.energy(x, estimate).sum().backward()
    torch.testing.assert_close(x.grad, 2 * (x.detach() - estimate))

    model = small_ebgan(noise=0.0, input_noise=0.0)
    fake = torch.rand(6, 16, requires_grad=True)

    def energies(through, target):
        return ladder.energy(target, model.V(*model.E(through))[0][0]).sum()

    shaken(model)
    (whole,) = torch.autograd.grad(energies(fake, fake), fake)
    parts = [torch.autograd.grad(energies(a, b), fake)[0] for a, b in ((fake, fake.detach()), (fake.detach(), fake))]
    torch.testing.assert_close(whole, parts[0] + parts[1])
    assert float(parts[1].norm()) > 0.01 * float(whole.norm())


def test_the_discriminators_losses_do_not_reach_g_and_the_generators_do_not_reach_e_and_v(monkeypatch):
    model = small_ebgan()
    seen = []

    def together(*objectives):
        for loss, optimizers in objectives:
            seen.append((loss, optimizers))
        return [loss.detach() for loss, _ in objectives]

    monkeypatch.setattr(ladder, "minimize_together", together)
    monkeypatch.setattr(ladder, "minimize", lambda loss, o: together((loss, [o]))[0])
    opt = model.optimizers()
    model.training_step(batch(), opt)
    (d_loss, d_opt), (g_loss, g_opt) = seen
    assert d_opt == [opt["E"], opt["V"]]
    assert g_opt == [opt["G"]]
    of_g = torch.autograd.grad(d_loss, list(model.G.parameters()), retain_graph=True, allow_unused=True)
    assert all(g is None for g in of_g)  # the fake images of D's step are detached
    of_g = torch.autograd.grad(g_loss, list(model.G.parameters()))
    assert all(float(g.abs().sum()) > 0 for g in of_g)


# --- Moments, answers, training ---


def test_the_test_uses_moments_of_the_clean_path_of_labelled_images_unbiased():
    model = seeded(Ladder, **SMALL, moment_batches=3)
    model.train()
    batches = [batch(seed=seed) for seed in range(4)]
    model.finish(iter(batches))
    assert not model.training
    first = [array((b.x.flatten(1) + 1) / 2) @ array(model.E.linears[0].weight).T for b in batches[:3]]
    norm = model.E.norms[0]
    np.testing.assert_allclose(array(norm.running_mean), np.mean([h.mean(0) for h in first], 0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(array(norm.running_var), np.mean([h.var(0, ddof=1) for h in first], 0), rtol=1e-4)
    assert norm.momentum == 0.1
    x = batches[0].x
    assert torch.equal(model.classify(x), model.classify(x))  # no noise
    torch.testing.assert_close(model.classify(x[:5]), model.classify(x)[:5])


def test_a_corrupted_pass_leaves_the_moments_alone():
    model = seeded(Ladder, **SMALL).train()
    before = [n.running_mean.clone() for n in model.E.norms]
    model.E(torch.rand(12, 16), torch.rand(12, 16), corrupted=True)
    assert all(torch.equal(a, n.running_mean) for a, n in zip(before, model.E.norms, strict=True))


def test_images_without_labels_are_asked_for():
    x = torch.zeros(4, 1, 4, 4)
    with pytest.raises(ValueError, match="images with labels and images without"):
        small_ebgan().training_step(Batch(x, torch.zeros(4, dtype=torch.int64), 0), {})


def test_costs_are_as_many_as_layers():
    with pytest.raises(ValueError, match="costs must have 7 numbers, of the image and of 6 layers"):
        Ladder(costs=(1.0, 2.0))


@pytest.mark.parametrize("make", [Ladder, EBGANLN])
def test_it_learns_three_patterns_from_one_label_each_and_denoises(make):
    """Twelve noisy copies of each of three images; one label a class."""
    g = torch.Generator().manual_seed(3)
    patterns = (torch.rand(3, 1, 4, 4, generator=g) > 0.5).float() * 2 - 1
    labels = torch.arange(36) % 3
    u = (patterns[labels] + 0.2 * torch.randn(36, 1, 4, 4, generator=g)).clamp(-1, 1)
    args = SMALL | {"hidden": (32, 16), "costs": (100.0, 0.0, 0.0, 0.0), "lr": 5e-3}
    model = seeded(make, **args, **({"g_width": 16, "margin": 2.0, "margin_steps": 50} if make is EBGANLN else {}))
    model.train()
    opt = model.optimizers()
    rows = torch.tensor([0, 1, 2, 0, 1, 2])
    losses = [model.training_step(Batch(u[rows], labels[rows], step, u), opt) for step in range(100)]
    model.finish(Batch(u[:12], labels[:12], 200, u) for _ in range(10))
    assert torch.equal(model.classify(u).argmax(1), labels)
    assert losses[-1]["denoising_loss"] < 0.5 * losses[0]["denoising_loss"]
    assert F.cross_entropy(model.classify(u), labels) < 0.2


def test_bottom_is_the_cost_of_the_image_alone():
    assert BOTTOM == (1000.0, 0, 0, 0, 0, 0, 0)
    assert seeded(EBGANLN).costs == BOTTOM
