"""MSG-GAN against the equations, networks and tables of Karnewar and Wang (2020)."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from ganbench import recipes
from ganbench.gan import Batch
from reference_models.layers import Blur, EqualisedRate, MinibatchStd, update_average
from reference_models.msg_gan import COMBINE, MSGGAN, MSGStyleGAN, widths_of

MODELS = pytest.mark.parametrize("model", [MSGGAN, MSGStyleGAN])


def small(model=MSGGAN, **kwargs):
    torch.manual_seed(0)
    return model(**{"image_size": 16, "channels": 1, "latent_dim": 4, "fmap_base": 32, "fmap_max": 6, **kwargs})


def images(n, side=16, channels=1, seed=0):
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def params(module):
    return sum(p.numel() for p in module.parameters())


def means(x, side):
    """x reduced to side x side, by numpy."""
    n, c, full, _ = x.shape
    return torch.from_numpy(x.numpy().reshape(n, c, side, full // side, side, full // side).mean((3, 5)))


# --- Networks ---


@pytest.mark.parametrize("how", ["simple", "lin_cat", "cat_lin"])
def test_the_combine_functions_by_hand(how):
    """[a, o]; [a, r'(o)] with r' to half of a's channels; r'([a, o]) with r' to a's channels and without bias."""
    torch.manual_seed(0)
    combine, a, o = COMBINE[how](6, 3), torch.randn(2, 6, 4, 4), torch.randn(2, 3, 4, 4)
    if how == "simple":
        expected = np.concatenate([a, o], 1)
    else:
        inputs = o.numpy() if how == "lin_cat" else np.concatenate([a, o], 1)
        layer = combine.linear.layer
        assert (layer.bias is None) == (how == "cat_lin")
        assert layer.weight.shape == ((3, 3, 1, 1) if how == "lin_cat" else (6, 9, 1, 1))
        weight = layer.weight.detach().numpy()[..., 0, 0] * math.sqrt(2 / inputs.shape[1])
        linear = np.einsum("oc,nchw->nohw", weight, inputs)
        expected = np.concatenate([a, linear], 1) if how == "lin_cat" else linear
    assert np.allclose(combine(a, o).detach().numpy(), expected, atol=1e-5)
    assert combine.out == expected.shape[1]


@pytest.mark.parametrize("connect", ["all", "middle"])
@pytest.mark.parametrize(("combine", "extra"), [("simple", 3), ("lin_cat", None), ("cat_lin", 0)])
def test_parameters_are_counted_by_hand(combine, extra, connect):
    """At 1024 x 1024: ProGAN's layers, a statistic in each block of D, and what combines and makes images."""
    with torch.device("meta"):
        plain, styled = (m(combine=combine, connect=connect) for m in (MSGGAN, MSGStyleGAN))
    w = [512, 512, 512, 512, 256, 128, 64, 32, 16]
    assert w == widths_of(1024, 8192, 512)
    seen = range(8) if connect == "all" else (2, 3)  # levels beside the final one

    def conv(cin, cout, kernel=3):
        return kernel**2 * cin * cout + cout

    joined = [n + ((n // 2 if extra is None else extra) if k in seen else 0) for k, n in enumerate(w)]
    rgb = sum(conv(w[k], 3, 1) for k in (*seen, 8))
    g = conv(512, 512, 4) + conv(512, 512) + sum(conv(a, b) + conv(b, b) for a, b in pairwise(w)) + rgb
    d = conv(3, 16, 1) + conv(joined[0] + 1, 512) + conv(512, 512, 4) + 512 + 1
    d += sum(conv(joined[k] + 1, w[k]) + conv(w[k], w[k - 1]) for k in range(1, 9))
    if combine != "simple":
        d += sum(conv(3, w[k] // 2, 1) if combine == "lin_cat" else (w[k] + 3) * w[k] for k in seen)
    assert (params(plain.G), params(plain.D)) == (g, d)

    style = sum(2 * (2 * 512 * n + 2 * n) + 2 * n for n in w)  # two layers at each size: AdaIN and noise
    layers = 512 + conv(512, 512) + sum(conv(a, b) + conv(b, b) for a, b in pairwise(w))  # 512: a bias without conv
    assert (params(styled.G), params(styled.D)) == (8 * (512**2 + 512) + 16 * 512 + layers + style + rgb, d)


@MODELS
def test_every_block_of_d_begins_with_the_minibatch_statistic_and_combines_its_own_scale(model):
    d, seen = small(model, group=2).D, []
    assert [type(block[0]) for block in (*d.blocks, d.head)] == [MinibatchStd] * 3
    assert {block[0].group for block in (*d.blocks, d.head)} == {2}
    assert sum(isinstance(m, Blur) for m in d.modules()) == (2 if model is MSGStyleGAN else 0)
    assert not [m for m in small(model).G.modules() if isinstance(m, nn.Tanh)]
    for combine in d.combine.values():
        combine.register_forward_pre_hook(lambda module, inputs: seen.append([t.shape[2] for t in inputs]))
    with torch.no_grad():
        pyramid = [images(4, side) for side in (4, 8, 16)]
        scores = d(pyramid)
        for k in range(3):  # every scale changes the score
            other = [images(4, 4 * 2**j, seed=1) if j == k else x for j, x in enumerate(pyramid)]
            assert float((d(other) - scores).abs().min()) > 1e-5
    assert seen[:2] == [[8, 8], [4, 4]]


@pytest.mark.parametrize(("connect", "sides"), [
    ("none", [128]), ("coarse", [4, 8, 128]), ("middle", [16, 32, 128]), ("fine", [64, 128]),
    ("all", [4, 8, 16, 32, 64, 128]),
])
def test_the_ablation_connects_coarse_middle_or_fine_scales(connect, sides):
    model = small(image_size=128, fmap_base=256, fmap_max=4, connect=connect)
    x = images(2, 128)
    with torch.no_grad():
        fakes = model.fake(2)
        assert model.D(fakes).shape == (2,)
    assert [fake.shape for fake in fakes] == [(2, 1, side, side) for side in sides]
    for real, side in zip(model.scaled(x), sides, strict=True):
        torch.testing.assert_close(real, means(x, side), rtol=0, atol=1e-6)
    assert len(model.D.combine) == len(model.G.to_rgb) - 1 == len(sides) - 1


@MODELS
def test_a_gradient_reaches_each_layer_to_rgb_from_its_own_scale_alone(model):
    model = small(model)
    fakes = model.fake(4)
    weights = [rgb.layer.weight for rgb in model.G.to_rgb.values()]
    for k in range(3):
        others = [f if j == k else f.detach() for j, f in enumerate(fakes)]
        loss = model.g_loss(model.D(others))
        reached = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        assert [g is not None and float(g.abs().max()) > 0 for g in reached] == [j == k for j in range(3)]


def test_layers_have_their_constant_of_he():
    """gain / sqrt(fan_in): gain 1 for images and the score, rate 0.01 in the mapping network, otherwise sqrt(2)."""
    model = small(MSGStyleGAN)
    for name, layer in model.named_modules():
        if isinstance(layer, EqualisedRate):
            gain = 1 if "to_rgb" in name or "affine" in name or layer is model.D.head[-1] else math.sqrt(2)
            expected = gain / math.sqrt(layer.layer.weight[0].numel()) * (0.01 if "mapping" in name else 1)
            assert layer.scale == pytest.approx(expected), name


# --- Losses ---


def test_the_losses_by_number():
    real, fake, penalty = torch.tensor([1.0, -3.0]), torch.tensor([2.0, 5.0]), torch.tensor([0.25, 0.75])
    model = small(lambda_gp=3.0, eps_drift=0.5)
    assert model.d_loss(real, fake, penalty).item() == pytest.approx(3.5 - (-1) + 3 * 0.5 + 0.5 * 5)
    assert model.g_loss(fake).item() == -3.5

    def softplus(*values):
        return sum(math.log1p(math.exp(v)) for v in values) / len(values)

    style = small(MSGStyleGAN, gamma=4.0)
    expected = softplus(2, 5) + softplus(-1, 3) + 4 / 2 * 0.5
    assert style.d_loss(real, fake, penalty).item() == pytest.approx(expected)
    assert style.g_loss(fake).item() == pytest.approx(softplus(-2, -5))
    assert (small().lambda_gp, small().eps_drift, small(MSGStyleGAN).gamma) == (10, 0.001, 10)


class Linear(nn.Module):
    """D(x) = sum over scales of <a_s, x_s>."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.ParameterList(a)

    def forward(self, of):
        return sum((x * a).sum((1, 2, 3)) for x, a in zip(of, self.a, strict=True))


def test_wgan_gp_of_a_linear_critic_over_all_scales_in_closed_form():
    """grad D = a_s at scale s: the mean over scales of (|a_s| - 1)^2."""
    model, a = small(), [images(1, side, seed=side)[0] for side in (4, 8, 16)]
    model.D = Linear([v.clone() for v in a])
    penalty = model.penalty(*([images(5, side, seed=s) for side in (4, 8, 16)] for s in (0, 1)))
    norms = [math.sqrt((v.double().numpy() ** 2).sum()) for v in a]
    assert penalty.tolist() == pytest.approx([sum((n - 1) ** 2 for n in norms) / 3] * 5, rel=1e-5)
    slopes = torch.autograd.grad(penalty.mean(), list(model.D.a))
    for slope, v, norm in zip(slopes, a, norms, strict=True):
        torch.testing.assert_close(slope, 2 / 3 * (norm - 1) * v / norm, rtol=1e-4, atol=1e-6)


def test_every_scale_is_mixed_with_the_same_epsilon():
    model, seen = small(), []
    plain = model.D.forward
    model.D.forward = lambda of: seen.append(of) or plain(of)
    model.penalty([torch.zeros(5, 1, side, side) for side in (4, 8, 16)],
                  [torch.ones(5, 1, side, side) for side in (4, 8, 16)])
    (x_hat,) = seen
    epsilon = [x.flatten(1) for x in x_hat]  # between 0 and 1
    assert len(epsilon[0][:, 0].unique()) == 5
    assert all(torch.equal(e, epsilon[0][:, :1].expand_as(e)) for e in epsilon)


def test_r1_of_a_linear_critic_counts_the_way_over_coarser_copies():
    """Scale s also moves the coarser ones, as means: the gradient is a_s + (a_{s-1} + ...) enlarged / 4."""
    model, a = small(MSGStyleGAN, gamma=3.0), [images(1, side, seed=side)[0] for side in (4, 8, 16)]
    model.D = Linear([v.clone() for v in a])
    x, fakes = images(5), [images(5, side, seed=1) for side in (4, 8, 16)]
    slope, lengths = np.zeros((1, 2, 2)), []
    for v in a:
        slope = v.double().numpy() + slope.repeat(2, 1).repeat(2, 2) / 4
        lengths.append((slope**2).sum())
    without = model.d_loss(model.D(model.scaled(x)), model.D(fakes), torch.zeros(5)).item()
    loss = model.d_objective(x, fakes)
    assert loss.item() == pytest.approx(without + 3 / 2 * sum(lengths) / 3, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, model.D.a[2])
    (plain,) = torch.autograd.grad(
        model.d_loss(model.D(model.scaled(x)), model.D(fakes), torch.zeros(5)), model.D.a[2]
    )
    torch.testing.assert_close(gradient - plain, 3 * torch.from_numpy(slope).float() / 3, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("model", "combine"), [(MSGGAN, "simple"), (MSGGAN, "lin_cat"), (MSGStyleGAN, "cat_lin")])
def test_d_has_second_derivatives_through_every_layer_that_the_penalty_meets(model, combine):
    d = small(model, image_size=8, fmap_base=8, fmap_max=2, combine=combine).double().D
    names, weights = zip(*d.named_parameters(), strict=True)

    def score(x1, x2, *values):
        return torch.func.functional_call(d, dict(zip(names, values, strict=True)), ([x1, x2],))

    pyramid = [images(2, side).double().requires_grad_() for side in (4, 8)]
    assert score(*pyramid, *weights).dtype == torch.float64
    assert torch.autograd.gradgradcheck(score, (*pyramid, *weights), atol=1e-6, fast_mode=True)


# --- The step ---


@MODELS
def test_d_steps_then_g_each_with_its_own_latent_at_one_rate(model):
    model = small(model)
    drawn, plain = [], model.sample_latent
    model.sample_latent = lambda n, generator=None: drawn.append(n) or plain(n, generator)
    opt = model.optimizers()
    groups = [o.param_groups[0] for o in opt.values()]
    assert [(g["lr"], g["betas"], g["eps"]) for g in groups] == [(3e-3, (0.0, 0.99), 1e-8)] * 2
    assert model.stages(16) == ()
    log = model.training_step(Batch(images(4), None, 0), opt)
    assert drawn == [4, 4]
    assert set(log) == {"d_loss", "g_loss"}


@MODELS
def test_losses_are_finite_float32_under_mixed_precision(model):
    model = small(model)
    opt = model.optimizers()
    for step in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            log = model.training_step(Batch(images(4, seed=step), None, step), opt)
        assert all(v.dtype == torch.float32 and torch.isfinite(v) for v in log.values())
    assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for p in model.parameters())


def test_half_of_the_real_images_are_flipped():
    x = images(400, 8)
    assert small().real_images(x) is x
    mirrored = small(mirror=True).real_images(x)
    kept = (mirrored == x).flatten(1).all(1)
    assert 150 < int(kept.sum()) < 250
    assert torch.equal(mirrored[~kept], x[~kept].flip(3))


@MODELS
def test_a_few_images_are_learnt_by_heart(model):
    """Samples of the averaged weights come near to four images; grey ones have a distance of 0.8."""
    model = small(model, image_size=8, latent_dim=8, fmap_base=128, fmap_max=16, lr=6e-3)
    blocks = images(4, 2).sign().repeat_interleave(4, 2).repeat_interleave(4, 3) * 0.8
    opt, average = model.optimizers(), copy.deepcopy(model)
    for step in range(90):
        model.training_step(Batch(blocks.repeat(2, 1, 1, 1), None, step), opt)
        update_average(average, model, 0.1)
    with torch.no_grad():
        x = average.sample(64, generator=torch.Generator().manual_seed(1))
    assert (x[:, None] - blocks).square().mean((2, 3, 4)).sqrt().amin(1).mean() < 0.55  # RMS to the nearest image


# --- Samples, latents, arguments, recipes ---


def test_the_latent_spaces_of_msg_stylegan_and_its_truncation():
    model = small(MSGStyleGAN, truncated_layers=6).eval()
    z = torch.randn(3, 4)
    with torch.no_grad():
        for layer in model.G.layers:
            layer.noise.scale.fill_(0.1)
        z_space, w_space = model.latent_spaces()
        w = w_space.of(z, None)
        assert (z_space.name, w_space.name, w.shape) == ("z", "w", (3, 4))
        torch.testing.assert_close(w_space.generate(w, None), z_space.generate(z, None))
        model.G.w_mean.copy_(w.mean(0))
        torch.testing.assert_close(model.generate_truncated(z, 1.0), model.generate(z), rtol=1e-4, atol=1e-5)
        mean = model.render(model.styles(model.G.w_mean.expand(3, -1)), z)
        torch.testing.assert_close(model.generate_truncated(z, 0.0), mean)


def test_arguments_that_fit_no_network_are_refused():
    for wrong, match in (
        ({"image_size": 24}, "power of two"), ({"combine": "sum"}, "simple, lin_cat, cat_lin"),
        ({"connect": "some"}, "none, coarse, middle, fine, all"), ({"fmap_base": 4}, "leaves no feature map"),
    ):
        with pytest.raises(ValueError, match=match):
            small(**wrong)


def test_the_narrow_recipes_show_as_many_images_at_the_same_width_as_progan():
    narrow = [recipes.find(f"{name}-folder-cifar10-jpeg") for name in ("progan", "msg_gan")]
    narrow.append(recipes.find("msg_gan-folder-cifar10-jpeg-lr"))
    same = ("image_size", "latent_dim", "fmap_base", "fmap_max")
    assert len({(r.train.steps, r.train.batch_size, r.train.ema_decay, r.train.precision) for r in narrow}) == 1
    assert len({tuple(r.model.args[name] for name in same) for r in narrow}) == 1
    a, b = (dict(r.model.args) for r in narrow[1:])
    assert b.pop("lr") != 3e-3
    assert a == b
