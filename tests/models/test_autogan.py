"""AutoGAN's networks and losses against the paper and the official code of Gong, Chang, Jiang and Wang (2019)."""

import itertools
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ganbench.gan import Batch
from reference_models import autogan
from reference_models.autogan import ARCHITECTURES, AutoGAN, Cell, Discriminator, Generator, Tokens, cells_of, choices

SPACE = [choices(cell) for cell in range(3)]


def seeded(make, *args, **kwargs):
    torch.manual_seed(0)
    return make(*args, **kwargs)


def small(**kwargs):
    return seeded(AutoGAN, **{"image_size": 16, "g_width": 8, "d_width": 8, "latent_dim": 4, "n_critic": 2, **kwargs})


def params(net):
    return sum(p.numel() for p in net.parameters())


def drawn(seed, stages=3):
    draw = random.Random(seed)
    return tuple(draw.randrange(k) for sizes in SPACE[:stages] for k in sizes)


# --- The search space ---


def test_the_space_has_the_choices_of_the_paper():
    assert [math.prod(sizes) for sizes in SPACE] == [36, 72, 144]
    assert sum(map(len, SPACE)) == 14
    a = cells_of(ARCHITECTURES["a"])
    assert a == [Tokens(1, 0, 1, 1), Tokens(1, 0, 0, 1, 1), Tokens(1, 0, 1, 0, 3)]
    assert cells_of(ARCHITECTURES["b"])[1:] == [Tokens(1, 0, 1, 1, 1), Tokens(1, 0, 1, 1, 3)]
    assert cells_of(ARCHITECTURES["c"]) == [a[0]._replace(norm=1), *a[1:]]


@pytest.mark.parametrize("arch", [
    (), (1, 0, 1), (2, 0, 1, 1), (1, -1, 1, 1), (1, 0, 1, 1, 1, 0, 0, 1, 2), (*ARCHITECTURES["a"], 0), (1, 0, 1.0, 1),
    (1, 0, 1, True),
])
def test_tokens_that_are_no_architecture_are_refused(arch):
    with pytest.raises(ValueError, match="arch must have 14 tokens"):
        cells_of(arch)


def test_arguments_that_no_network_has_are_refused():
    for wrong in ({"arch": (1, 0, 1, 1)}, {"image_size": 20}, {"image_size": 8}, {"n_critic": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            small(**wrong)


def test_every_sampled_architecture_runs_and_is_the_shared_generator_with_its_tokens():
    """Once for training, whose batch norm looks at the batch, and once for evaluation."""
    archs = [drawn(seed) for seed in range(14)]
    for at, size in enumerate(itertools.chain(*SPACE)):
        assert {arch[at] for arch in archs} == set(range(size)), "the sample lacks a token's value"
    shared = seeded(Generator, 16, 3, 4, 6, None)
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    for arch in archs:
        own, weights = Generator(16, 3, 4, 6, list(arch)), shared.state_dict()
        own.load_state_dict({name: weights[name].clone() for name in own.state_dict()})
        for training in (True, False):
            with torch.no_grad():
                a, b = own.train(training)(z), shared.train(training)(z, arch)
            assert a.shape == (5, 3, 16, 16)
            assert torch.equal(a, b)
        out = own.train()(z)
        assert all(g is not None for g in torch.autograd.grad(out.square().sum(), list(own.parameters())))


def test_an_earlier_stage_makes_smaller_images():
    shared = seeded(Generator, 32, 1, 4, 6, None)
    for stages, side in ((1, 8), (2, 16), (3, 32)):
        assert shared(torch.randn(2, 4), drawn(0, stages)).shape == (2, 1, side, side)


@pytest.mark.parametrize("tokens", [
    Tokens(0, 0, 0, 1, 3), Tokens(1, 1, 1, 0, 1), Tokens(0, 2, 2, 1, 2), Tokens(1, 2, 0, 1, 0), Tokens(0, 1, 1, 1, 3),
    Tokens(1, 0, 2, 1, 3),
], ids=str)
def test_a_cell_is_its_formula(tokens):
    width = 4
    cell = seeded(Cell, width, 2, tokens).eval()
    x, first, second = torch.randn(2, width, 8, 8), torch.randn(2, width, 4, 4), torch.randn(2, width, 8, 8)
    conv, norm, up = autogan.CONV[tokens.conv], autogan.NORM[tokens.norm], autogan.UP[tokens.up]

    def norm_of(h, layer):
        if norm == "instance":
            mean, var = h.mean((2, 3), keepdim=True), h.var((2, 3), keepdim=True, correction=0)
            return (h - mean) / (var + 1e-5).sqrt()
        return h if norm == "none" else h / math.sqrt(1 + 1e-5) * layer.weight.view(1, -1, 1, 1)

    def doubled(h, layer):
        if up == "deconv":
            return F.conv_transpose2d(h, layer.weight, layer.bias, stride=2)
        if up == "nearest":
            return h.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return F.interpolate(h, size=(2 * h.shape[2], 2 * h.shape[3]), mode="bilinear", align_corners=False)

    def block(layers, h, double):
        resize = (lambda t: doubled(t, layers.deconv)) if double else (lambda t: t)
        if conv == "pre":
            return F.conv2d(resize(norm_of(h, layers.norm).relu()), layers.conv.weight, layers.conv.bias, padding=1)
        return norm_of(F.conv2d(resize(h), layers.conv.weight, layers.conv.bias, padding=1), layers.norm).relu()

    h = block(cell.block1[conv], x, True)
    for bit, j, features, times in ((2, "0", first, 2), (1, "1", second, 1)):  # the lower bit is the nearer cell's
        if tokens.skip & bit:
            for i in range(times):
                features = doubled(features, cell.skip_deconvs[j][i] if up == "deconv" else None)
                if up == "bilinear" and times == 2:  # at once, not twice
                    features = F.interpolate(first, size=(16, 16), mode="bilinear", align_corners=False)
                    break
            h = h + F.conv2d(features, cell.skips[j].weight, cell.skips[j].bias)
    out = block(cell.block2[conv], h, False)
    if tokens.shortcut:
        out = out + F.conv2d(doubled(x, cell.shortcut_deconv), cell.shortcut.weight, cell.shortcut.bias)
    skip, found = cell(x, [first, second])
    assert found.shape == (2, width, 16, 16)
    torch.testing.assert_close(skip, h)
    torch.testing.assert_close(found, out)


# --- The networks of the code ---


def test_the_networks_have_the_codes_numbers_of_parameters():
    """Counted by hand from the code's layers; the sums are those of its files."""
    w = 256
    conv3, conv1 = 9 * w * w + w, w * w + w
    ends = (128 + 1) * 16 * w + 2 * w + 9 * w * 3 + 3  # linear layer; batch norm and the convolution to RGB
    of = {
        "a": 6 * conv3 + (0 + 1 + 2) * conv1 + 2 * conv1 + ends,  # skips, then shortcuts
        "b": 6 * conv3 + (0 + 1 + 2) * conv1 + 3 * conv1 + ends,
        "c": 6 * conv3 + (0 + 1 + 2) * conv1 + 2 * conv1 + ends + 2 * 2 * w,
    }
    assert of == {"a": 4405251, "b": 4471043, "c": 4406275}
    with torch.device("meta"):
        assert {k: params(Generator(32, 3, 128, w, arch)) for k, arch in ARCHITECTURES.items()} == of
        assert params(Generator(48, 3, 128, w, ARCHITECTURES["a"])) == of["a"] + (36 - 16) * w * 129
    d = 128
    first, others = (27 * d + d) + (9 * d * d + d) + (3 * d + d), 6 * (9 * d * d + d) + (d * d + d)
    assert params(seeded(Discriminator, 3, d)) == first + others + d == 1053824


def test_the_discriminator_sums_its_features_and_begins_with_fewer_blocks():
    net = seeded(Discriminator, 3, 8).eval()
    x = torch.randn(3, 3, 16, 16)
    for stages in (1, 2, 3):
        h = x
        for block in list(net.blocks)[:stages]:
            h = block(h)
        assert h.shape[2] == (8, 4, 4)[stages - 1]
        expected = F.relu(net.last(h)).flatten(2).sum(2) @ net.logit.weight.T
        torch.testing.assert_close(net(x, stages), expected.squeeze(1))
    assert net.logit.bias is None
    torch.testing.assert_close(torch.linalg.matrix_norm(net.logit.weight, 2), torch.tensor(1.0))


def test_the_starts_are_the_codes():
    model = seeded(AutoGAN, g_width=64, d_width=64)
    for m in model.G.modules():
        if isinstance(m, nn.Conv2d):  # Xavier, uniform; biases as PyTorch has them
            fan_in, fan_out = m.weight[0].numel(), m.weight.shape[0] * m.weight[0, 0].numel()
            bound = math.sqrt(6 / (fan_in + fan_out))
            assert 0.98 * bound < m.weight.abs().max() <= bound
            assert 0 < m.bias.abs().max() <= 1 / math.sqrt(fan_in)
    assert 0.005 < model.G.norm.weight.std() < 0.05
    v = model.D.blocks[1].conv1.parametrizations.weight.original
    assert 0.98 < v.abs().max() * math.sqrt(v[0].numel()) <= 1  # PyTorch's: uniform in +- 1 / sqrt(fan_in)


# --- Losses and steps ---


def test_the_losses_are_hinges():
    real, fake = np.array([2.0, 0.5, -1.0]), np.array([-3.0, 0.25, 1.0])
    d = np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean()
    assert AutoGAN.d_loss(torch.tensor(real), torch.tensor(fake)).item() == pytest.approx(d)
    assert AutoGAN.g_loss(torch.tensor(fake)).item() == pytest.approx(-fake.mean())


def test_a_step_is_n_critic_updates_of_d_and_one_of_g_with_its_own_batch(monkeypatch):
    model = small(n_critic=3, g_batch=2)
    opt, order, sizes = model.optimizers(), [], []
    for name, optimizer in opt.items():
        optimizer.register_step_post_hook(lambda *_, name=name: order.append(name))
    monkeypatch.setattr(model, "sample_latent", lambda n: sizes.append(n) or torch.randn(n, 4))
    model.training_step(Batch(torch.rand(12, 3, 16, 16), None, 0), opt)
    assert order == ["D", "G", "D", "D"]  # the code's order
    assert sizes == [4, 8, 4, 4]


def test_the_rates_are_constant_or_decay_linearly_to_0():
    batch = torch.rand(4, 3, 16, 16)
    for decay, rates in ((0, [2e-4, 2e-4, 2e-4]), (10, [2e-4, 1e-4, 0.0])):
        model = small(decay_to=decay)
        opt = model.optimizers()
        assert {o.defaults["betas"] for o in opt.values()} == {(0.0, 0.9)}
        for step, rate in zip((0, 5, 12), rates, strict=True):
            model.training_step(Batch(batch, None, step), opt)
            assert [o.param_groups[0]["lr"] for o in opt.values()] == pytest.approx([rate, rate])


def test_under_mixed_precision_losses_are_float32_and_all_of_g_learns():
    model = small()
    before = [p.detach().clone() for p in model.G.parameters()]
    with torch.autocast("cpu", torch.bfloat16):
        assert model.D(torch.rand(2, 3, 16, 16)).dtype == torch.float32
        model.training_step(Batch(torch.rand(8, 3, 16, 16), None, 0), model.optimizers())
    assert all(not torch.equal(a, b) for a, b in zip(before, model.G.parameters(), strict=True))


def test_it_learns_a_handful_of_images():
    x = torch.full((2, 3, 16, 16), -0.8)
    x[0, :, :, 8:] = 0.8
    x[1, :, 8:] = 0.8
    model = small(g_width=16, d_width=16, n_critic=1, g_batch=1, lr=2e-3)
    opt = model.optimizers()
    z = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))

    def distance():
        with torch.no_grad():
            return (model.eval().generate(z)[:, None] - x).square().mean((2, 3, 4)).amin(1).mean().item()

    before = distance()
    for step in range(100):
        model.train().training_step(Batch(x.repeat(4, 1, 1, 1), None, step), opt)
    assert distance() < before / 3
