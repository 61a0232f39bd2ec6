"""StyleGAN against the equations, tables and schedules of Karras, Laine, Aila (2019)."""

import math
import os
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import write_recipe
from torch import nn

from ganbench import recipes
from ganbench.data.datasets import load
from ganbench.gan import Batch
from ganbench.training import loop
from ganbench.training.growth import recipe_spans, span_at, spans
from ganbench.training.loop import train
from ganbench.training.run_folder import CHECKPOINT, LOG
from reference_models.layers import Blur, EqualisedRate, double, halve
from reference_models.stylegan import StyleGAN, WGANGPStyleGAN, mixed, widths_of

CPU = torch.device("cpu")
TRADITIONAL = {"styles": False, "constant": False, "noise": False, "mixing": 0.0, "mapping_layers": 0}
ROWS = {
    "B": TRADITIONAL, "C": {"constant": False, "noise": False, "mixing": 0.0}, "D": {"noise": False, "mixing": 0.0},
    "E": {"mixing": 0.0}, "F": {},
}


def small(kind=StyleGAN, **kwargs):
    torch.manual_seed(0)
    return kind(**{
        "image_size": 16, "start_size": 4, "channels": 1, "latent_dim": 4, "fmap_base": 32, "fmap_max": 6,
        "mapping_layers": 2, **kwargs,
    })


def images(n, side=16, channels=1, seed=0):
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def params(module):
    return sum(p.numel() for p in module.parameters())


def shaken(model):
    """The model with all parameters moved, so that none is where its initialisation put it."""
    generator = torch.Generator().manual_seed(9)
    for p in model.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=generator)
    return model


# --- Networks ---


@pytest.mark.parametrize(("row", "millions"), [("B", 23.1), ("C", None), ("D", None), ("E", None), ("F", 26.2)])
def test_parameters_at_1024_are_counted_by_hand(row, millions):
    """Without the layers to and from RGB at 4 x 4, where no training begins."""
    with torch.device("meta"):
        model = StyleGAN(**ROWS[row])
    w = widths_of(1024, 8192, 512)
    on = {"styles": True, "constant": True, "noise": True, "mapping_layers": 8} | ROWS[row]
    assert w == [512, 512, 512, 512, 256, 128, 64, 32, 16]
    layers = [(None, w[0]), (w[0], w[0])]
    for below, above in pairwise(w):
        layers += [(below, above), (above, above)]
    g = on["mapping_layers"] * (512 * 512 + 512) + 16 * 512 * (1 if on["constant"] else 512)
    for cin, cout in layers:
        g += (9 * cin * cout if cin else 0) + cout  # a convolution and a bias
        g += on["noise"] * cout + on["styles"] * (512 + 1) * 2 * cout
    assert params(model.G) == g + sum(3 * n + 3 for n in w[1:])
    d = 9 * 513 * 512 + 512 + 16 * 512 * 512 + 512 + 513 + sum(3 * n + n for n in w[1:])
    for below, above in pairwise(w):
        d += 9 * above * above + above + 9 * above * below + below
    assert params(model.D) == d
    if millions:
        assert params(model.G) / 1e6 == pytest.approx(millions, abs=0.05)


def test_a_layer_adds_noise_and_bias_and_then_its_style_decides_its_moments():
    """Noise, bias, leaky ReLU, instance norm, scale and shift: in numpy, in this order."""
    model = shaken(small().double())
    layer = model.G.layers[1]
    h, w, e = (torch.randn(shape, dtype=torch.float64) for shape in ((3, 6, 4, 4), (3, 4), (3, 1, 4, 4)))
    kernel = layer.first.layer.weight.detach() * math.sqrt(2) / math.sqrt(9 * 6)
    a = F.conv2d(h, kernel, padding=1).numpy()
    a = a + layer.noise.scale.detach().numpy() * e.numpy() + layer.bias.detach().numpy()
    a = np.where(a > 0, a, 0.2 * a)
    a = (a - a.mean((2, 3), keepdims=True)) / np.sqrt(a.var((2, 3), keepdims=True) + 1e-8)
    affine = layer.style.affine.layer
    style = w.numpy() @ affine.weight.detach().numpy().T / math.sqrt(4) + affine.bias.detach().numpy()
    scale, shift = style[:, :6, None, None], style[:, 6:, None, None]
    expected = (1 + scale) * a + shift
    out = layer(h, w, e).detach().numpy()
    np.testing.assert_allclose(out, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(out.mean((2, 3)), shift[:, :, 0, 0], atol=1e-9)
    np.testing.assert_allclose(out.std((2, 3)), np.abs(1 + scale[:, :, 0, 0]), rtol=1e-6)


def test_styles_start_at_scale_one_noise_at_zero_and_the_constant_at_one():
    model = small()
    assert torch.equal(model.G.input(torch.zeros(2, 4)), torch.ones(2, 6, 4, 4))
    h, w = torch.randn(2, 6, 4, 4), torch.zeros(2, 4)
    layer = model.G.layers[0]
    assert torch.equal(layer(h, w, torch.ones(1, 1, 4, 4)), layer(h, w, torch.zeros(1, 1, 4, 4)))
    torch.testing.assert_close(layer(h, w, None), F.instance_norm(F.leaky_relu(h, 0.2), eps=1e-8))


def test_the_traditional_generator_has_pixel_norm_and_takes_z_once():
    g = shaken(small(**TRADITIONAL)).G
    w = torch.randn(3, 6, 4)
    other = w.clone()
    other[:, 1:] = 7
    assert torch.equal(g(w, 2, 1.0), g(other, 2, 1.0))
    h = g.layers[0](torch.randn(2, 6, 4, 4), None, None)
    torch.testing.assert_close(h.square().mean(1), torch.ones(2, 4, 4), rtol=1e-4, atol=1e-4)
    assert g.input[0].scale == pytest.approx(math.sqrt(2) / 4 / math.sqrt(4))


def test_each_layer_has_its_constant_of_he_and_the_mapping_a_hundredth_of_the_rate():
    model = small(latent_dim=200, fmap_max=300, fmap_base=600)
    for name, layer in model.named_modules():
        if isinstance(layer, EqualisedRate):
            weight = layer.layer.weight.detach()
            gain = 1 if "to_rgb" in name or "affine" in name or name.endswith("head.6") else math.sqrt(2)
            rate = 0.01 if "mapping" in name else 1
            assert layer.scale == pytest.approx(rate * gain / math.sqrt(weight[0].numel())), name
            assert layer.layer.bias is None or float(layer.layer.bias.detach().abs().max()) == 0
            if weight.numel() > 10_000:
                assert float(weight.std()) == pytest.approx(1 / rate, rel=0.03), name
    z = torch.randn(4, 200)
    torch.testing.assert_close(model.G.mapping(z), model.G.mapping(9 * z), rtol=1e-3, atol=1e-5)


def test_both_networks_filter_where_they_resample_and_row_a_does_not():
    model, plain = small(), small(blur=False)
    assert sum(isinstance(m, Blur) for m in model.modules()) == 4  # G and D, from 4 to 8 and from 8 to 16
    assert not any(isinstance(m, Blur) for m in plain.modules())
    up, h = model.G.layers[2].first, torch.randn(1, 6, 4, 4)
    kernel = up.conv.layer.weight.detach() * up.conv.scale
    torch.testing.assert_close(up(h), Blur()(F.conv2d(double(h), kernel, padding=1)))
    down = model.D.blocks[0]
    assert [type(m) for m in down] == [EqualisedRate, nn.LeakyReLU, Blur, nn.Sequential, nn.LeakyReLU]


@pytest.mark.parametrize("row", ["B", "F"])
@pytest.mark.parametrize("level", [1, 2])
def test_a_fade_mixes_two_paths_in_both_networks(row, level):
    model, x = shaken(small(**ROWS[row])), images(4, 4 * 2**level)
    with torch.no_grad():
        w, noise = model.styles(torch.randn(4, 4)), model.noise(torch.randn(4, 4), level)
        old, new = model.G(w, level - 1, 1.0, noise), model.G(w, level, 1.0, noise)
        fading = model.G(w, level, 0.25, noise)
        torch.testing.assert_close(fading, 0.75 * double(old) + 0.25 * new, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.D(x, level, 0.0), model.D(halve(x), level - 1, 1.0), rtol=1e-4, atol=1e-4)


# --- Latents ---


def test_the_mean_of_w_is_a_moving_average_of_the_means_of_batches(monkeypatch):
    """Decay 0.995, once for each batch of fakes: that of D's step, then that of G's, before the mapping has moved."""
    model, drawn = small(mixing=0.0, fade_images=10, stable_images=10), []
    plain = model.sample_latent
    monkeypatch.setattr(model, "sample_latent", lambda n, generator=None: drawn.append(plain(n)) or drawn[-1])
    before = torch.randn(4)
    model.G.w_mean.copy_(before)
    start = small(mixing=0.0).G.mapping  # G's weights before the step
    model.training_step(Batch(images(8, 4), None, 0), model.optimizers())
    first, second = (start(z).mean(0) for z in drawn)
    expected = 0.995 * (0.995 * before + 0.005 * first) + 0.005 * second
    torch.testing.assert_close(model.G.w_mean, expected, rtol=1e-5, atol=1e-7)


def test_truncation_draws_the_first_layers_to_the_mean():
    model = small(truncated_layers=3)
    model.G.w_mean.copy_(torch.tensor([1.0, -2.0, 0.5, 0.0]))
    w = torch.randn(2, 4)
    for psi in (0.0, 0.7, 1.0, -0.5):
        styles = model.truncated(w, psi)
        near = model.G.w_mean + psi * (w - model.G.w_mean)
        expected = torch.stack([near] * 3 + [w] * 3, 1)
        torch.testing.assert_close(styles, expected)


def test_mixing_takes_the_second_style_from_one_layer_on():
    a, b = torch.zeros(2, 6, 4), torch.ones(2, 6, 4)
    for start in range(1, 7):
        assert mixed(a, b, start)[:, :, 0].tolist() == [[0.0] * start + [1.0] * (6 - start)] * 2


@pytest.mark.parametrize("layers", [2, 6])
def test_the_layer_of_mixing_is_uniform_with_its_probability(layers):
    model = small(mixing=0.75)
    found = torch.stack([model.crossover(layers) for _ in range(3000)]).long()
    counts = torch.bincount(found, minlength=layers + 1).double() / 3000
    assert counts[0] == 0
    assert counts[layers].item() == pytest.approx(0.25, abs=0.03)
    assert counts[1:layers].numpy() == pytest.approx(0.75 / (layers - 1), abs=0.03)
    assert all(int(small(mixing=0.0).crossover(layers)) == layers for _ in range(5))


def test_samples_have_noise_of_their_own_and_latent_spaces_share_one():
    model = shaken(small()).eval()
    model.shown.fill_(10**9)
    z = torch.randn(3, 4)
    with torch.no_grad():
        noise = model.noise(z, 2)
        assert [e.shape for e in noise] == [(3, 1, s, s) for s in (4, 4, 8, 8, 16, 16)]
        assert float((noise[4][0] - noise[4][1]).abs().mean()) > 0.5
        assert all(torch.equal(e[1:2], again) for e, again in zip(noise, model.noise(z[1:2], 2), strict=True))
        flat = torch.cat([e.flatten() for e in model.noise(torch.randn(30, 4), 2)])
        assert (flat.mean().item(), flat.std().item()) == pytest.approx((0, 1), abs=0.03)

        by_z, by_w = model.latent_spaces()
        assert (by_z.name, by_w.name, by_z.straight, by_w.straight) == ("z", "w", False, True)
        w = by_w.of(z, None)
        assert torch.equal(by_z.of(z, None), z)
        torch.testing.assert_close(w, model.G.mapping(z))
        torch.testing.assert_close(by_z.generate(z, None), by_w.generate(w, None))
        near = by_z.generate(z + 1e-4, None) - by_z.generate(z, None)
        assert 0 < float(near.abs().max()) < 0.1  # the same noise on both sides of a step
    assert [space.name for space in small(**TRADITIONAL).latent_spaces()] == ["z"]


# --- Growing ---


def test_alpha_size_rate_and_average_by_the_number_of_images_shown():
    model = small(
        start_size=8, image_size=32, stable_images=600, fade_images=400, batch_sizes=(64, 32, 16, 8),
        rates=(1.0, 2.0, 3.0, 4.0), half_life=1000,
    )
    expected = {
        0: (1, 1), 599: (1, 1), 600: (2, 0), 700: (2, 0.25), 1000: (2, 1), 1599: (2, 1), 1600: (3, 0), 1800: (3, 0.5),
        2000: (3, 1), 10**9: (3, 1),
    }
    assert {shown: model.growth(shown) for shown in expected} == expected
    assert [tuple(stage)[:3] for stage in model.stages(1)] == [
        (600, 32, 8), (400, 16, 16), (600, 16, 16), (400, 8, 32), (600, 8, 32)]
    for stage in model.stages(1):
        assert stage.ema_decay ** (1000 / stage.batch_size) == pytest.approx(0.5)
    opt = model.optimizers()
    model.set_rates(opt, 2)
    assert {(o.param_groups[0]["lr"], o.param_groups[0]["betas"], o.param_groups[0]["eps"]) for o in opt.values()} == {
        (3.0, (0.0, 0.99), 1e-8)}


def test_the_loop_and_the_model_agree_on_the_stage_of_every_step():
    model = small(start_size=8, image_size=32, stable_images=90, fade_images=50, batch_sizes=(99, 16, 9, 4))
    stages, starts = spans(model, 1), set()
    for step in range(100):
        span = span_at(stages, step)
        level, alpha = model.growth(span.shown_before(step))
        assert 4 * 2**level == span.image_size
        starts |= {(span.first, alpha < 1)}
    assert [fades for _, fades in sorted(starts)] == [False, True, False, True, False]


# --- Losses ---


def test_the_losses_by_number():
    real, fake, penalty = torch.tensor([1.0, -3.0]), torch.tensor([2.0, 5.0]), torch.tensor([0.25, 0.75])
    logistic = np.log1p(np.exp([2.0, 5.0])).mean() + np.log1p(np.exp([-1.0, 3.0])).mean()
    assert small(gamma=3.0).d_loss(real, fake, penalty).item() == pytest.approx(logistic + 1.5 * 0.5)
    assert small().g_loss(fake).item() == pytest.approx(np.log1p(np.exp([-2.0, -5.0])).mean())
    assert small().gamma == 10
    critic = small(WGANGPStyleGAN)
    assert critic.d_loss(real, fake, penalty).item() == pytest.approx(3.5 - (-1) + 10 * 0.5 + 0.001 * 5)
    assert critic.g_loss(fake).item() == -3.5
    assert (small().game, critic.game) == (("d_loss", "g_loss"), None)


class Linear(nn.Module):
    """D(x) = <a, x>."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(a)

    def forward(self, x, level, alpha):
        return (x * self.a).sum((1, 2, 3))


@pytest.mark.parametrize("side", [16, 8, 4])
@pytest.mark.parametrize("kind", [StyleGAN, WGANGPStyleGAN])
def test_the_penalty_of_a_linear_critic_in_closed_form(kind, side):
    """grad D = a everywhere. Images of s x s are a part of the 16 x 16, so that its length is |a| s / 16."""
    model, a = small(kind), images(1, side, seed=5)[0]
    model.D, level = Linear(a.clone()), int(math.log2(side)) - 2
    x, fake = images(5, side), images(5, side, seed=1)
    loss = model.d_objective(x, fake, (level, 1.0))
    scores = (x * a).sum((1, 2, 3)), (fake * a).sum((1, 2, 3))
    weight = model.gamma / 2 if kind is StyleGAN else model.lambda_gp
    penalty = (loss - model.d_loss(*scores, torch.zeros(1))).item() / weight
    norm, scale = math.sqrt((a.double().numpy() ** 2).sum()) * side / 16, (side / 16) ** 2
    assert penalty == pytest.approx(norm**2 if kind is StyleGAN else (norm - 1) ** 2, rel=1e-4, abs=1e-5)
    (slope,) = torch.autograd.grad(loss, model.D.a)
    free = Linear(a.clone())
    real, false = free(x, level, 1.0), free(fake, level, 1.0)
    (rest,) = torch.autograd.grad(model.d_loss(real, false, torch.zeros(1)), free.a)
    expected = 2 * scale * a if kind is StyleGAN else 2 * (norm - 1) / norm * scale * a
    torch.testing.assert_close((slope - rest) / weight, expected, rtol=1e-3, atol=1e-5)


def test_r1_is_on_the_gradient_of_the_image_enlarged_to_the_final_size():
    """As in the code, where every image that D sees has the final size and is reduced by D itself."""
    model, x = small(), images(4, 4)
    enlarged, x = double(double(x)).requires_grad_(), x.requires_grad_()
    (gradient,) = torch.autograd.grad(model.D(halve(halve(enlarged)), 0, 1.0).sum(), enlarged)
    ours = model.slope(model.D(x, 0, 1.0), x, 0)
    torch.testing.assert_close(ours.norm(dim=1), gradient.flatten(1).norm(dim=1))


def test_d_has_second_derivatives_through_every_layer_that_the_penalty_meets():
    """In float64 in a fade, with respect to the image and to all weights."""
    d = shaken(small(image_size=8, fmap_base=8, fmap_max=1, group=2).double()).D
    names, weights = zip(*d.named_parameters(), strict=True)

    def score(x, *values):
        return torch.func.functional_call(d, dict(zip(names, values, strict=True)), (x, 1, 0.4))

    x = images(2, 8).double().requires_grad_()
    assert score(x, *weights).dtype == torch.float64
    assert torch.autograd.gradgradcheck(score, (x, *weights), atol=1e-6)


# --- The step ---


@pytest.mark.parametrize(("kind", "looks"), [(StyleGAN, 3), (WGANGPStyleGAN, 4)])
@pytest.mark.parametrize(("mixing", "draws"), [(0.0, 2), (0.9, 4)])
def test_d_steps_then_g_each_with_latents_of_its_own(kind, looks, mixing, draws, monkeypatch):
    model = small(kind, mixing=mixing, fade_images=10, stable_images=10)
    drawn, looked, plain, forward = [], [], model.sample_latent, model.D.forward
    monkeypatch.setattr(model, "sample_latent", lambda n, generator=None: drawn.append(n) or plain(n))
    monkeypatch.setattr(model.D, "forward", lambda *args: looked.append(args[1:]) or forward(*args))
    log = model.training_step(Batch(images(4, 8), None, 0, shown=15), model.optimizers())
    assert drawn == [4] * draws
    assert looked == [(1, 0.5)] * looks
    assert set(log) == {"d_loss", "g_loss", "image_size", "alpha"}
    assert (log["image_size"].item(), log["alpha"].item(), int(model.shown)) == (8, 0.5, 15)


@pytest.mark.parametrize("row", ROWS)
def test_losses_are_finite_float32_under_mixed_precision(row):
    model = small(**ROWS[row] | {"image_size": 8}, fade_images=10, stable_images=10)
    opt = model.optimizers()
    for shown in (0, 15, 25):
        with torch.autocast("cpu", torch.bfloat16):
            x = images(4, 4 * 2 ** model.growth(shown)[0])
            log = model.training_step(Batch(x, None, 0, shown=shown), opt)
        assert all(v.dtype == torch.float32 and torch.isfinite(v) for v in log.values())
    assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for p in model.parameters())


def test_a_few_images_are_learnt_by_heart_while_the_model_grows():
    model = small(
        image_size=8, latent_dim=8, fmap_base=128, fmap_max=16, stable_images=320, fade_images=320, lr=5e-3, mixing=0.0,
        gamma=0.1,
    )
    blocks = images(4, 2).sign().repeat_interleave(4, 2).repeat_interleave(4, 3) * 0.8
    opt, z = model.optimizers(), torch.randn(64, 8, generator=torch.Generator().manual_seed(1))

    def distance():
        """Mean RMS difference between a sample and the nearest training image."""
        with torch.no_grad():
            return (model.generate(z)[:, None] - blocks).square().mean((2, 3, 4)).sqrt().amin(1).mean().item()

    before = distance()
    for step in range(160):
        shown = step * 8
        x = blocks.repeat(2, 1, 1, 1)
        model.training_step(Batch(x if model.growth(shown)[0] else halve(x), None, step, shown=shown), opt)
    assert distance() < before / 2


def test_a_run_that_ends_at_a_change_of_stage_goes_on_to_the_same_bits(place, monkeypatch):
    """Noise, mixing and the mean of w included; the stages begin at steps 0, 4 and 16."""
    recipe = recipes.read(write_recipe(place, {
        'name = "dcgan"': 'name = "stylegan"', "steps = 6": "steps = 18",
        "image_size = 8, channels = 1, num_classes = 10, latent_dim = 4, g_width = 4, d_width = 4":
            "image_size = 8, start_size = 4, channels = 1, latent_dim = 4, fmap_base = 16, fmap_max = 4, "
            "stable_images = 64, fade_images = 96, batch_sizes = [16, 8], mapping_layers = 2",
    }))
    data, plain = load("digits:train"), StyleGAN.training_step
    monkeypatch.setattr(os, "fsync", lambda file: None)
    train(recipe, data, place / "whole", 0, CPU)
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    for stop in (4, 11, 16):
        def training_step(self, batch, opt, stop=stop):
            if batch.step == stop:
                raise InterruptedError
            return plain(self, batch, opt)

        monkeypatch.setattr(StyleGAN, "training_step", training_step)
        with pytest.raises(InterruptedError):
            train(recipe, data, place / "parts", 0, CPU)
    monkeypatch.setattr(StyleGAN, "training_step", plain)
    train(recipe, data, place / "parts", 0, CPU)
    for name in (CHECKPOINT, LOG):
        assert (place / "whole" / name).read_bytes() == (place / "parts" / name).read_bytes()


def test_arguments_that_fit_no_network_are_refused():
    for wrong, match in (
        ({"image_size": 24}, "power of two"), ({"start_size": 32}, "above image_size"),
        ({"fade_images": 0}, "at least 1"), ({"fmap_base": 4}, "leaves no feature"),
        ({"batch_sizes": (4, 4)}, "3 numbers"), ({"rates": (0.1,)}, "3 numbers"),
        ({"styles": False}, "mixing = 0"), ({"styles": False, "mixing": 0.0}, "constant = False"),
    ):
        with pytest.raises(ValueError, match=match):
            small(**wrong)


# --- Recipes ---


@pytest.mark.parametrize("name", sorted(name for name in recipes.available() if name.startswith("stylegan")))
def test_the_recipes_show_as_many_images_as_the_code_and_reach_their_size(name):
    recipe = recipes.find(name)
    millions = 12 if name.endswith("ffhq-a") else 1.28 if "jpeg" in name else 25
    for budget in ("full", "short", "smoke"):
        shorter = recipe.at(budget)
        stages, steps = recipe_spans(shorter), shorter.train.steps
        assert stages[-1].first < steps, f"{budget} ends before its last stage"
        if budget == "full":
            last = stages[-1]
            assert last.image_size == recipe.model.args["image_size"]
            assert 0 <= last.shown_before(steps) - millions * 1e6 < last.batch_size


def test_rows_differ_in_what_the_paper_adds_and_in_nothing_else():
    ends = {row: "" if row == "F" else f"-{row.lower()}" for row in ROWS}
    args = {row: recipes.find(f"stylegan-folder-ffhq{end}").model.args for row, end in ends.items()}
    for row, switches in ROWS.items():
        assert args[row] == args["F"] | switches
    a = recipes.find("stylegan-wgangp-folder-ffhq-a").model.args
    assert a == args["B"] | {"start_size": 4, "blur": False}
    assert StyleGAN.__init__.__defaults__[:2] == (1024, 8)
