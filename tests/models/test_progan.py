"""ProGAN against the equations, tables and schedules of Karras et al. (2018)."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ganbench import recipes
from ganbench.gan import GAN, Batch
from ganbench.training.growth import recipe_spans, span_at, spans
from reference_models.layers import EqualisedRate, double, halve
from reference_models.progan import ProGAN, widths_of


def small(**kwargs):
    torch.manual_seed(0)
    return ProGAN(**{"image_size": 16, "channels": 1, "latent_dim": 4, "fmap_base": 32, "fmap_max": 6, **kwargs})


def images(n, side=16, channels=1, seed=0):
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def params(module):
    return sum(p.numel() for p in module.parameters())


# --- Networks ---


def test_feature_maps_are_those_of_table_2():
    assert widths_of(1024, 8192, 512) == [512, 512, 512, 512, 256, 128, 64, 32, 16]
    assert widths_of(128, 2048, 512) == [512, 512, 256, 128, 64, 32]
    assert widths_of(32, 4096, 128) == [128] * 4


@pytest.mark.parametrize(("size", "base", "most", "millions"), [(1024, 8192, 512, 23.1), (32, 4096, 128, None)])
def test_parameters_are_counted_by_hand(size, base, most, millions):
    with torch.device("meta"):
        model = ProGAN(image_size=size, latent_dim=most, fmap_base=base, fmap_max=most)
    w = widths_of(size, base, most)

    def conv(cin, cout, kernel=3):
        return kernel**2 * cin * cout + cout

    g = conv(most, w[0], 4) + conv(w[0], w[0])
    d = conv(w[0] + 1, w[0]) + conv(w[0], most, 4) + most + 1
    for below, above in pairwise(w):
        g += conv(below, above) + conv(above, above)
        d += conv(above, above) + conv(above, below)
    assert params(model.G) == g + sum(conv(n, 3, 1) for n in w)
    assert params(model.D) == d + sum(conv(3, n, 1) for n in w)
    if millions:
        assert params(model.G) / 1e6 == pytest.approx(millions, abs=0.05)
        assert params(model.D) / 1e6 == pytest.approx(millions, abs=0.05)


def test_each_layer_has_its_constant_of_he_at_run_time():
    """gain / sqrt(fan_in), gain sqrt(2) but 1 for images and for the score; weights are drawn from N(0, 1)."""
    model = small(latent_dim=5, fmap_max=300, fmap_base=600)
    for name, layer in model.named_modules():
        if isinstance(layer, EqualisedRate):
            weight = layer.layer.weight.detach()
            fan_in = 5 * 16 if "first" in name and weight.shape[0] == 5 else weight[0].numel()
            gain = 1 if "to_rgb" in name or isinstance(layer.layer, nn.Linear) else math.sqrt(2)
            assert layer.scale == pytest.approx(gain / math.sqrt(fan_in)), name
            assert float(layer.layer.bias.detach().abs().max()) == 0
            if weight.numel() > 10_000:
                assert float(weight.std()) == pytest.approx(1, abs=0.03)
    g = small().G
    rgb = g.to_rgb[2]  # the weights that work on the features
    features = torch.randn(2, 4, 3, 3)
    by_hand = np.einsum("oc,nchw->nohw", rgb.layer.weight[..., 0, 0].detach().numpy() / 2, features.numpy())
    assert np.allclose(rgb(features).detach().numpy(), by_hand, atol=1e-6)


def test_a_latent_is_divided_by_its_length():
    g, z = small().G, torch.randn(3, 4)
    for level in range(3):
        torch.testing.assert_close(g(z, level, 1.0), g(7 * z, level, 1.0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", [1, 2])
def test_a_fade_mixes_two_paths_in_both_networks(level):
    model, z, x = small(), torch.randn(6, 4), images(6, 4 * 2**level)
    with torch.no_grad():
        old, new = model.G(z, level - 1, 1.0), model.G(z, level, 1.0)
        for alpha in (0.0, 0.25, 0.9):
            mixed = model.G(z, level, alpha)
            torch.testing.assert_close(mixed, (1 - alpha) * double(old) + alpha * new, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.D(x, level, 0.0), model.D(halve(x), level - 1, 1.0), rtol=1e-5, atol=1e-6)

        block = model.D.blocks[level - 1](F.leaky_relu(model.D.from_rgb[level](x), 0.2))
        skip = F.leaky_relu(model.D.from_rgb[level - 1](halve(x)), 0.2)
        h = 0.7 * skip + 0.3 * block
        for k in reversed(range(level - 1)):
            h = model.D.blocks[k](h)
        torch.testing.assert_close(model.D(x, level, 0.3), model.D.head(h).squeeze(1), rtol=1e-5, atol=1e-6)


def test_d_sees_how_much_the_images_of_a_batch_differ():
    d = small().D
    with torch.no_grad():
        alone, among = d(images(1).repeat(4, 1, 1, 1), 2, 1.0), d(torch.cat([images(1), images(3, seed=1)]), 2, 1.0)
    assert torch.allclose(alone, alone[:1].expand(4))
    assert float((alone[0] - among[0]).abs()) > 1e-4


# --- Growing ---


def test_alpha_and_size_by_the_number_of_images_shown():
    model = small(stable_images=600, fade_images=400)
    expected = {
        0: (0, 1), 599: (0, 1), 600: (1, 0), 700: (1, 0.25), 999: (1, 399 / 400), 1000: (1, 1), 1599: (1, 1),
        1600: (2, 0), 1800: (2, 0.5), 2000: (2, 1), 10**9: (2, 1),
    }
    assert {shown: model.growth(shown) for shown in expected} == expected
    assert [tuple(stage) for stage in model.stages(16)] == [
        (600, 16, 4, None), (400, 16, 8, None), (600, 16, 8, None), (400, 16, 16, None), (600, 16, 16, None)]
    sizes = small(batch_sizes=(9, 5, 2)).stages(16)
    assert [stage.batch_size for stage in sizes] == [9, 5, 5, 2, 2]


def test_the_loop_and_the_model_agree_on_the_stage_of_every_step():
    model = small(stable_images=90, fade_images=50, batch_sizes=(16, 9, 4))
    stages, starts = spans(model, 1), set()
    for step in range(100):
        span = span_at(stages, step)
        level, alpha = model.growth(span.shown_before(step))
        assert 4 * 2**level == span.image_size
        starts |= {(span.first, alpha < 1)}
    assert [fades for _, fades in sorted(starts)] == [False, True, False, True, False]


def test_samples_of_a_model_that_grows_are_enlarged_to_its_final_size():
    model, z = small(stable_images=10, fade_images=10).eval(), torch.randn(3, 4)
    with torch.no_grad():
        for shown, level, alpha in ((0, 0, 1.0), (15, 1, 0.5), (100, 2, 1.0)):
            model.shown.fill_(shown)
            side = 4 * 2**level
            small_images = model.G(z, level, alpha).clamp(-1, 1)
            enlarged = small_images.repeat_interleave(16 // side, 2).repeat_interleave(16 // side, 3)
            assert torch.equal(model.generate(z), enlarged)


def test_real_images_of_a_fade_are_mixed_with_their_own_means_and_half_are_flipped():
    x = images(400, 8)
    means = x.numpy().reshape(400, 1, 4, 2, 4, 2).mean((3, 5)).repeat(2, 2).repeat(2, 3)
    assert np.allclose(small().real_images(x, 0.25).numpy(), 0.75 * means + 0.25 * x.numpy(), atol=1e-6)
    assert small().real_images(x, 1.0) is x
    mirrored = small(mirror=True).real_images(x, 1.0)
    kept = (mirrored == x).flatten(1).all(1)
    assert 150 < int(kept.sum()) < 250
    assert torch.equal(mirrored[~kept], x[~kept].flip(3))


def test_the_learning_rate_rises_over_the_first_images():
    model = small(ramp_images=40_000)
    opt = model.optimizers()
    for shown, rate in ((0, math.exp(-5)), (20_000, math.exp(-1.25)), (40_000, 1), (10**7, 1)):
        model.set_rates(opt, shown)
        assert [o.param_groups[0]["lr"] for o in opt.values()] == pytest.approx([1e-3 * rate] * 2)
    flat = small().optimizers()
    small().set_rates(flat, 0)
    assert {(o.param_groups[0]["lr"], o.param_groups[0]["betas"], o.param_groups[0]["eps"]) for o in flat.values()} == {
        (1e-3, (0.0, 0.99), 1e-8)}


# --- Losses ---


def test_the_losses_by_number():
    model = small(lambda_gp=3.0, eps_drift=0.5)
    real, fake, penalty = torch.tensor([1.0, -3.0]), torch.tensor([2.0, 5.0]), torch.tensor([0.25, 0.75])
    assert model.d_loss(real, fake, penalty).item() == pytest.approx(3.5 - (-1) + 3 * 0.5 + 0.5 * 5)
    assert model.g_loss(fake).item() == -3.5
    assert (small().lambda_gp, small().eps_drift, small().target) == (10, 0.001, 1)


class Linear(nn.Module):
    """D(x) = <a, x>."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(a)

    def forward(self, x, level, alpha):
        return (x * self.a).sum((1, 2, 3))


@pytest.mark.parametrize(("side", "target"), [(16, 1.0), (16, 750.0), (8, 1.0), (4, 0.5)])
def test_the_penalty_of_a_linear_critic_in_closed_form(side, target):
    """grad D = a everywhere. Images of s x s are a part of the 16 x 16: (|a| s / 16 - gamma)^2 / gamma^2."""
    model, a = small(target=target), images(1, side, seed=5)[0]
    model.D = Linear(a.clone())
    level = int(math.log2(side)) - 2
    penalty = model.penalty(images(5, side), images(5, side, seed=1), level, 1.0)
    norm = math.sqrt((a.double().numpy() ** 2).sum()) * side / 16
    assert penalty.tolist() == pytest.approx([(norm - target) ** 2 / target**2] * 5, rel=1e-5)
    (slope,) = torch.autograd.grad(penalty.mean(), model.D.a)
    expected = 2 * (norm - target) / target**2 * (side / 16) ** 2 * a.double() / norm  # d/da of the closed form
    torch.testing.assert_close(slope, expected.float(), rtol=1e-4, atol=1e-9)


def test_the_penalty_is_on_the_gradient_of_the_image_enlarged_to_the_final_size():
    """As in the code, where every image that D sees has the final size and is reduced by D itself."""
    model, x = small(), images(3, 4)
    enlarged = double(double(x)).requires_grad_()
    (gradient,) = torch.autograd.grad(model.D(halve(halve(enlarged)), 0, 1.0).sum(), enlarged)
    expected = (gradient.flatten(1).norm(dim=1) - 1).square()
    torch.testing.assert_close(model.penalty(x, x, 0, 1.0), expected)  # at x^ = x, between x and itself


def test_d_has_second_derivatives_through_every_layer_that_the_penalty_meets():
    """In float64 in a fade, with respect to the image and to all weights."""
    d = small(image_size=8, fmap_base=8, fmap_max=1).double().D
    names, weights = zip(*d.named_parameters(), strict=True)

    def score(x, *values):
        return torch.func.functional_call(d, dict(zip(names, values, strict=True)), (x, 1, 0.4))

    x = images(2, 8).double().requires_grad_()
    assert score(x, *weights).dtype == torch.float64
    assert torch.autograd.gradgradcheck(score, (x, *weights), atol=1e-6)


# --- The step ---


@pytest.mark.parametrize("together", [False, True])
def test_networks_step_one_after_the_other_or_both_from_one_latent(together):
    model = small(together=together, fade_images=10, stable_images=10)
    drawn, looked = [], []
    plain, forward = model.sample_latent, model.D.forward
    model.sample_latent = lambda n, generator=None: drawn.append(n) or plain(n, generator)
    model.D.forward = lambda *args: looked.append(args[1:]) or forward(*args)
    log = model.training_step(Batch(images(4, 8), None, 0, shown=15), model.optimizers())
    assert drawn == [4] * (1 if together else 2)
    assert looked == [(1, 0.5)] * (3 if together else 4)
    assert set(log) == {"d_loss", "g_loss", "image_size", "alpha"}
    assert (log["image_size"].item(), log["alpha"].item(), int(model.shown)) == (8, 0.5, 15)


def test_losses_are_finite_float32_under_mixed_precision():
    model = small(target=750.0, together=True, fade_images=10, stable_images=10)
    opt = model.optimizers()
    for shown in (0, 15, 35, 100):
        with torch.autocast("cpu", torch.bfloat16):
            x = images(4, 4 * 2 ** model.growth(shown)[0])
            log = model.training_step(Batch(x, None, 0, shown=shown), opt)
        assert all(v.dtype == torch.float32 and torch.isfinite(v) for v in log.values())
    assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for p in model.parameters())


def test_a_few_images_are_learnt_by_heart_while_the_model_grows():
    model = small(image_size=8, latent_dim=8, fmap_base=128, fmap_max=16, stable_images=320, fade_images=320, lr=3e-3)
    blocks = images(4, 2).sign().repeat_interleave(4, 2).repeat_interleave(4, 3) * 0.8
    opt, z = model.optimizers(), torch.randn(64, 8, generator=torch.Generator().manual_seed(1))

    def distance():
        """Mean RMS difference between a sample and the nearest training image."""
        with torch.no_grad():
            return (model.generate(z)[:, None] - blocks).square().mean((2, 3, 4)).sqrt().amin(1).mean().item()

    before = distance()
    for step in range(120):
        shown = step * 8
        x = blocks.repeat(2, 1, 1, 1)
        model.training_step(Batch(x if model.growth(shown)[0] else halve(x), None, step, shown=shown), opt)
    assert distance() < before / 2


def test_arguments_that_fit_no_network_are_refused():
    for wrong, match in (
        ({"image_size": 24}, "power of two"), ({"fade_images": 0}, "at least 1"),
        ({"batch_sizes": (4, 4)}, "3 numbers"), ({"fmap_base": 4}, "leaves no feature map"),
    ):
        with pytest.raises(ValueError, match=match):
            small(**wrong)


# --- Recipes ---


@pytest.mark.parametrize(("name", "millions", "size"), [
    ("progan-cifar10", 20, 32), ("progan-folder-celeba-hq", 19, 1024), ("progan-folder-lsun", 20, 256),
    ("progan-folder-celeba-128", 15, 128), ("progan-folder-celeba-128-g", 10, 128),
    ("progan-folder-cifar10-jpeg", 1.28, 32),
])
def test_the_recipes_show_as_many_images_as_the_code_and_reach_their_size(name, millions, size):
    recipe = recipes.find(name)
    for budget in ("full", "short", "smoke"):
        shorter = recipe.at(budget)
        stages, steps = recipe_spans(shorter), shorter.train.steps
        assert stages[-1].first < steps, f"{budget} ends before its last stage"
        if budget == "full":
            last = stages[-1]
            assert last.image_size == size
            assert 0 <= last.shown_before(steps) - millions * 1e6 < last.batch_size


def test_a_model_that_does_not_grow_says_no_stages():
    assert GAN().stages(16) == ()
