"""Improved-GAN against the equations and the code of Salimans et al. (2016)."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ganbench.gan import Batch
from reference_models import improved_gan
from reference_models.improved_gan import (
    ConvDiscriminator,
    ConvGenerator,
    GaussianNoise,
    ImprovedGAN,
    ImprovedGANMinibatch,
    MinibatchDiscrimination,
    WeightNorm,
)


def seeded(make, *args, **kwargs):
    torch.manual_seed(0)
    return make(*args, **kwargs)


def small_conv(**kwargs):
    return seeded(ImprovedGAN, image_size=32, channels=3, width=4, lr=3e-4, **kwargs)


def small_minibatch(**kwargs):
    return seeded(ImprovedGANMinibatch, width=4, kernels=6, **kwargs)


def images(n, shape=(1, 28, 28), seed=0):
    """Squares of 4 x 4 pixels of random brightness."""
    x = torch.rand(n, shape[0], shape[1] // 4, shape[2] // 4, generator=torch.Generator().manual_seed(seed))
    return 2 * x.repeat_interleave(4, 2).repeat_interleave(4, 3) - 1


def logits(n, seed=0, k=10):
    return 3 * torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def lse(a):
    return np.log(np.exp(a.double().numpy()).sum(1))


def params(module):
    return sum(p.numel() for p in module.parameters())


# --- Losses ---


def test_the_labelled_loss_is_the_logit_of_the_class_against_all_k():
    a, y = logits(7), torch.tensor([0, 1, 2, 3, 4, 5, 9])
    expected = np.mean(-a.double().numpy()[np.arange(7), y.numpy()] + lse(a))
    assert seeded(ImprovedGAN).labelled_loss(a, y).item() == pytest.approx(expected, rel=1e-6)


def test_the_unlabelled_loss_is_the_three_terms_of_the_code():
    real, fake = logits(7, 1), logits(5, 2)
    softplus = [np.log1p(np.exp(lse(a))) for a in (real, fake)]
    expected = -0.5 * lse(real).mean() + 0.5 * softplus[0].mean() + 0.5 * softplus[1].mean()
    assert seeded(ImprovedGAN).unlabelled_loss(real, fake).item() == pytest.approx(expected, rel=1e-6)


def test_the_unlabelled_loss_is_that_of_k_plus_1_classes_whose_last_logit_is_zero():
    real, fake = logits(7, 1), logits(5, 2)
    of_all = [F.pad(a, (0, 1)).double().softmax(1)[:, -1] for a in (real, fake)]
    expected = -0.5 * (1 - of_all[0]).log().mean() - 0.5 * of_all[1].log().mean()
    assert seeded(ImprovedGAN).unlabelled_loss(real, fake).item() == pytest.approx(expected.item(), rel=1e-6)


def test_features_are_matched_by_squares_on_mnist_and_by_absolutes_by_the_convolutional_networks():
    real, fake = torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    assert seeded(ImprovedGAN).g_loss(real, fake).item() == pytest.approx((1 + 9) / 2)
    assert small_conv().g_loss(real, fake).item() == pytest.approx((1 + 3) / 2)


def test_the_minibatch_model_minimises_the_logarithm_of_one_minus_d():
    fake = logits(5, 2)
    z = np.exp(lse(fake))
    assert small_minibatch().g_loss(fake).item() == pytest.approx(np.log(1 - z / (z + 1)).mean(), rel=1e-6)


# --- Layers ---


@pytest.mark.parametrize(
    ("layer", "shape", "lengths"),
    [
        (nn.Linear(7, 4, bias=False), (50, 7), lambda w: w.square().sum(1).sqrt()),
        (nn.Conv2d(3, 4, 3, 2, 1, bias=False), (20, 3, 8, 8), lambda w: w.square().sum((1, 2, 3)).sqrt()),
        (nn.ConvTranspose2d(3, 4, 5, 2, 2, 1, bias=False), (20, 3, 4, 4), lambda w: w.square().sum((0, 2, 3)).sqrt()),
    ],
)
def test_weight_norm_scales_each_output_by_the_length_of_its_weights(layer, shape, lengths):
    norm, x = WeightNorm(layer, train_scale=True), torch.randn(shape)
    norm.scale.data.uniform_(0.5, 2)
    norm.bias.data.normal_()
    by = [1, -1] + [1] * (len(shape) - 2)
    expected = layer(x) * (norm.scale.flatten() / lengths(layer.weight)).view(by) + norm.bias.view(by)
    torch.testing.assert_close(norm(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [nn.Linear(7, 4, bias=False), nn.ConvTranspose2d(7, 4, 5, 2, 2, 1, bias=False)])
@pytest.mark.parametrize("std", [1.0, 0.1])
def test_after_the_data_dependent_start_outputs_have_mean_0_and_the_asked_deviation(layer, std):
    norm, x = (
        WeightNorm(layer, init_std=std),
        3 + 5 * torch.randn((300, 7) if layer.weight.ndim == 2 else (20, 7, 4, 4)),
    )
    norm.starting = True
    started = norm(x)
    norm.starting = False
    h = norm(x)
    assert torch.equal(h, started)
    dims = [d for d in range(h.ndim) if d != 1]
    torch.testing.assert_close(h.mean(dims), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(h.std(dims, correction=0), torch.full((4,), std), rtol=1e-4, atol=0)


def test_the_early_form_has_no_average_and_its_rate_falls():
    model = seeded(ImprovedGAN, early=True, lr=0.001, epochs=300)
    assert model.D_average is None
    model.begin(images(1200).split(1000))
    model.eval()
    assert torch.equal(model.classify(images(3)), model.D(images(3))[0])
    optimizers = model.optimizers()
    for epoch, rate in ((0, 0.001), (200, 0.001), (250, 0.0005), (299, 0.00001), (300, 0.0)):
        model.set_rates(optimizers, epoch * 600)
        assert [o.param_groups[0]["lr"] for o in optimizers.values()] == pytest.approx([rate, rate], abs=1e-12)
    with pytest.raises(ValueError, match="image_size must be 28"):
        ImprovedGAN(image_size=32, early=True)


def test_a_scale_is_trained_only_where_it_is_asked_for():
    model = seeded(ImprovedGAN)
    scales = [name for name, _ in model.D.named_parameters() if name.endswith("scale")]
    assert scales == ["out.1.scale"]
    assert len([name for name, _ in model.D.named_buffers() if name.endswith("scale")]) == 5
    assert [name for name, _ in model.G.named_parameters() if name.endswith("scale")] == ["out.scale"]


def test_noise_has_its_deviation_and_is_absent_at_evaluation():
    noise, h = GaussianNoise(0.3), torch.ones(200, 500)
    torch.manual_seed(0)
    out = noise(h)
    assert out.mean().item() == pytest.approx(1, abs=0.005)
    assert out.std().item() == pytest.approx(0.3, rel=0.01)
    assert noise.eval()(h) is h


def test_minibatch_discrimination_is_the_sum_over_the_other_images():
    layer, h = seeded(MinibatchDiscrimination, 6, 3, 5), torch.randn(4, 6)
    layer.log_scale.data.normal_(0, 0.3)
    theta = layer.theta.detach().double().numpy()
    scale = layer.log_scale.detach().double().exp().numpy()
    expected = np.zeros((4, 3))
    for b in range(3):
        rows = theta[b] / np.linalg.norm(theta[b], axis=1, keepdims=True) * scale[b][:, None]  # 5 x 6
        m = h.double().numpy() @ rows.T
        for i in range(4):
            expected[i, b] = sum(np.exp(-np.abs(m[i] - m[j]).sum()) for j in range(4) if j != i) - 1
    out = layer(h)
    assert out.shape == (4, 6 + 3)
    assert torch.equal(out[:, :6], h)
    np.testing.assert_allclose(out[:, 6:].detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_start_of_minibatch_discrimination_sets_distances_and_the_mean_feature():
    layer, h = seeded(MinibatchDiscrimination, 6, 3, 5), 4 * torch.randn(30, 6)
    layer.starting = True
    layer(h)
    layer.starting = False
    d = layer.distances(h) + torch.full((30,), math.inf).diag()
    torch.testing.assert_close(0.5 * d.amin(2).mean(1), torch.ones(3), rtol=1e-4, atol=0)
    torch.testing.assert_close(layer(h)[:, 6:].mean(0), torch.zeros(3), rtol=0, atol=1e-4)


# --- Networks ---


def test_the_mnist_networks_have_the_layers_of_the_code():
    model = seeded(ImprovedGAN)
    thetas = [tuple(m.layer.weight.shape) for m in model.D.modules() if isinstance(m, WeightNorm)]
    assert thetas == [(1000, 784), (500, 1000), (250, 500), (250, 250), (250, 250), (10, 250)]
    assert [m.std for m in model.D.modules() if isinstance(m, GaussianNoise)] == [0.3, 0.5, 0.5, 0.5, 0.5, 0.5]
    weights = 784 * 1000 + 1000 * 500 + 500 * 250 + 2 * 250 * 250 + 250 * 10
    assert params(model.D) == weights + 1000 + 500 + 3 * 250 + 10 + 10  # biases, the last scale
    assert params(model.G) == 100 * 500 + 500 * 500 + 500 * 784 + 500 + 500 + 784 + 784  # shifts, bias, scale
    stds = [m.layer.weight.std().item() for m in model.D.modules() if isinstance(m, WeightNorm)]
    assert stds == pytest.approx([0.1] * 6, rel=0.05)
    assert model.D.features(images(3)).shape == (3, 250)


@pytest.mark.parametrize("width", [96, 64])
def test_the_convolutional_discriminator_has_the_layers_of_the_code(width):
    net = seeded(ConvDiscriminator, 3, 10, width, nn.Dropout(0.2))
    w, v = width, 2 * width
    shapes = [tuple(m.layer.weight.shape) for m in net.modules() if isinstance(m, WeightNorm)]
    assert shapes == [
        (w, 3, 3, 3), (w, w, 3, 3), (w, w, 3, 3), (v, w, 3, 3), (v, v, 3, 3), (v, v, 3, 3), (v, v, 3, 3),
        (v, v, 1, 1), (v, v, 1, 1), (10, v),
    ]  # fmt: skip
    weights = 9 * (3 * w + 2 * w * w + w * v + 3 * v * v) + 2 * v * v + 10 * v
    assert params(net) == weights + 3 * w + 6 * v + 10 + 10
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.2, 0.5, 0.5]


def test_the_convolutional_discriminator_goes_from_32_to_16_to_8_to_6():
    net = seeded(ConvDiscriminator, 3, 10, 4, nn.Dropout(0.2))
    sides, h = [], images(1, (3, 32, 32))
    for layer in net.body:
        h = layer(h)
        sides.append(h.shape[-1])
    assert sides == [32, 32, 32, 16, 16, 16, 16, 8, 8, 6, 6, 6]
    torch.testing.assert_close(
        net.eval().features(images(2, (3, 32, 32))), net.body(images(2, (3, 32, 32))).mean((2, 3))
    )


def test_the_convolutional_generator_has_the_layers_of_the_code():
    net = seeded(ConvGenerator, 3, 100)
    shapes = [tuple(p.shape) for name, p in net.named_parameters() if name.endswith("weight")]
    assert shapes == [(8192, 100), (512, 256, 5, 5), (256, 128, 5, 5), (128, 3, 5, 5)]
    assert params(net) == 819200 + 25 * (512 * 256 + 256 * 128 + 128 * 3) + 8192 + 256 + 128 + 3 + 3
    assert net(torch.rand(2, 100)).shape == (2, 3, 32, 32)


def test_batch_norm_has_a_shift_and_no_gain():
    norm, h = improved_gan.batch_norm(4), 2 + 3 * torch.randn(50, 4)
    assert [name for name, _ in norm.named_parameters()] == ["bias"]
    norm.bias.data.fill_(0.5)
    expected = (h - h.mean(0)) / (h.var(0, correction=0) + 1e-6).sqrt() + 0.5
    torch.testing.assert_close(norm(h), expected)


def test_mnist_images_are_in_0_to_1_inside_the_networks():
    model = seeded(ImprovedGAN).eval()
    x = images(3)
    assert torch.equal(model.D.features(x), model.D.body((x.flatten(1) + 1) / 2))
    z = torch.rand(3, 100)
    h = F.softplus(model.G.bn2(model.G.fc2(F.softplus(model.G.bn1(model.G.fc1(z))))))
    torch.testing.assert_close(model.G(z), 2 * torch.sigmoid(model.G.out(h)).view(3, 1, 28, 28) - 1)


def test_only_minibatch_discrimination_looks_at_neighbours_and_only_within_a_batch():
    a, b = images(3, (3, 32, 32), 0), images(3, (3, 32, 32), 1)
    plain, minibatch = small_conv().D.eval(), small_minibatch().D.eval()
    for net in (plain, minibatch):
        torch.testing.assert_close(net(a, b)[0], net(a)[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(net(a, b)[1], net(b)[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(plain(a[:2])[0], plain(a)[0][:2], rtol=1e-4, atol=1e-6)
    assert (minibatch(a[:2])[0] - minibatch(a)[0][:2]).abs().max() > 1e-3


def test_losses_are_float32_under_mixed_precision():
    x = images(4)
    model = seeded(ImprovedGAN)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.D(x)[0].dtype == model.D.features(x).dtype == model.G(torch.rand(4, 100)).dtype == torch.float32
        losses = model.training_step(Batch(x, torch.arange(4), 0, x.repeat(2, 1, 1, 1)), model.optimizers())
        assert small_minibatch().D(images(2, (3, 32, 32)))[0].dtype == torch.float32
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())


# --- Start, optimiser, schedule, average ---


def test_the_start_looks_at_the_data_in_d_and_on_mnist_not_in_g():
    model = seeded(ImprovedGAN)
    model.begin(images(1200).split(1000))
    scales = [m.scale for m in model.D.modules() if isinstance(m, WeightNorm)]
    assert all((s - 1).abs().max() > 0.01 for s in scales)
    assert torch.equal(model.G.out.scale, torch.ones_like(model.G.out.scale))
    out = model.D(images(500, seed=3))[0]
    assert out.mean().item() == pytest.approx(0, abs=0.2)
    assert out.std(0).mean().item() == pytest.approx(1, abs=0.2)
    average = model.D_average.state_dict()
    assert all(torch.equal(v, average[k]) for k, v in model.D.state_dict().items())
    assert not any(m.starting for m in model.modules() if isinstance(m, WeightNorm))


def test_the_start_sets_the_last_layers_of_the_convolutional_networks_to_a_deviation_of_a_tenth():
    for model in (small_conv(), small_minibatch()):
        model.begin([images(100, (3, 32, 32))])
        logits = model.D(images(100, (3, 32, 32)))[0]
        assert logits.std(0).mean().item() == pytest.approx(0.1, rel=0.3)
        before_tanh = torch.atanh(model.G(torch.rand(50, 100)))
        assert before_tanh.std((0, 2, 3)).mean().item() == pytest.approx(0.1, rel=0.1)
        assert before_tanh.mean().item() == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("fused", [False, True])
def test_adam_has_its_epsilon_under_the_root(fused):
    net = nn.Linear(1, 3, bias=False)
    p = net.weight.detach().double().numpy().ravel().copy()
    optimizer = improved_gan.adam(net, 0.01)
    optimizer.param_groups[0].update(fused=fused, foreach=False)
    m = v = np.zeros(3)
    for t in range(1, 6):
        g = np.array([1e-6, 1e-4, 1.0]) * (-1) ** (t // 3) * t  # below, at and above the root of epsilon
        net.weight.grad = torch.tensor(g, dtype=torch.float32).view(3, 1)
        optimizer.step()
        m, v = 0.5 * m + 0.5 * g, 0.999 * v + 0.001 * g**2
        p -= 0.01 * (m / (1 - 0.5**t)) / np.sqrt(v / (1 - 0.999**t) + 1e-8)
        np.testing.assert_allclose(net.weight.detach().numpy().ravel(), p, rtol=2e-5, atol=1e-8)
        if t == 3:  # as after a resume
            saved, optimizer = optimizer.state_dict(), improved_gan.adam(net, 0.01)
            optimizer.load_state_dict(saved)


def test_the_rate_falls_to_0_over_the_last_third_of_the_epochs():
    model = small_conv(epochs=1200, epoch_steps=500)
    optimizers = model.optimizers()
    for epoch in (0, 799, 800, 801, 1000, 1199, 1300):
        model.set_rates(optimizers, epoch * 500 + 499)
        rate = max(0.0003 * min(3 - epoch / 400, 1), 0)
        assert [o.param_groups[0]["lr"] for o in optimizers.values()] == pytest.approx([rate, rate], abs=1e-12)


def test_the_rate_stays_on_mnist():
    model = seeded(ImprovedGAN)
    optimizers = model.optimizers()
    model.set_rates(optimizers, 179_999)
    assert [o.param_groups[0]["lr"] for o in optimizers.values()] == [0.003, 0.003]


def test_the_average_is_that_of_the_code_corrected_for_its_start_at_zero():
    model = small_conv()
    p, a = model.D.out.bias, np.zeros(10)
    for step in range(5):
        p.data.normal_()
        a = a + 1e-4 * (p.detach().double().numpy() - a)
        model.average(step)
        corrected = a / (1 - (1 - 1e-4) ** (step + 1))
        np.testing.assert_allclose(model.D_average.out.bias.numpy(), corrected, rtol=1e-4, atol=1e-6)
    p.data.fill_(1e4)
    before = model.D_average.out.bias.clone()
    model.average(179_999)
    torch.testing.assert_close(model.D_average.out.bias - before, 1e-4 * (1e4 - before), rtol=1e-3, atol=1e-5)


def test_the_average_classifies():
    model = seeded(ImprovedGAN).eval()
    model.D_average.out[1].bias.data.copy_(torch.arange(10.0))
    assert torch.equal(model.classify(images(2)), model.D_average(images(2))[0])
    assert model.classify(images(2)).argmax(1).tolist() == [9, 9]
    assert not hasattr(small_minibatch(), "classify")


# --- The training step ---


def test_the_first_half_of_the_unlabelled_images_is_d_s_and_the_second_g_s(monkeypatch):
    model, u = seeded(ImprovedGAN), images(8)
    seen = {}
    d_step, features = model.d_step, model.D.features

    def of_d(batch, mine, opt):
        seen["d"] = mine
        losses = d_step(batch, mine, opt)
        monkeypatch.setattr(model.D, "features", of_g)
        return losses

    def of_g(x):
        seen.setdefault("g", x)
        assert torch.is_grad_enabled() != (x is seen["g"])  # nothing is learnt through the real features
        return features(x)

    monkeypatch.setattr(model, "d_step", of_d)
    model.training_step(Batch(images(3, seed=1), torch.arange(3), 0, u), model.optimizers())
    assert torch.equal(seen["d"], u[:4])
    assert torch.equal(seen["g"], u[4:])


def test_d_s_loss_moves_d_alone_and_g_s_loss_g_alone():
    model = seeded(ImprovedGAN)
    optimizers = model.optimizers()
    x = images(4)
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    model.d_step(Batch(x, torch.arange(4), 0, None), x, optimizers)
    moved = {k.partition(".")[0] for k, p in model.named_parameters() if not torch.equal(p, before[k])}
    assert moved == {"D"}
    gradients = torch.autograd.grad(
        model.g_loss(model.D.features(x).detach(), model.D.features(model.G(torch.rand(4, 100)))),
        list(model.G.parameters()),
    )
    assert all(g.abs().max() > 0 for g in gradients)


def test_g_takes_three_steps_for_each_of_d_with_minibatch_discrimination():
    model, x = small_minibatch(), images(4, (3, 32, 32))
    optimizers = model.optimizers()
    for step in range(2):
        model.training_step(Batch(x, torch.arange(4), step, x), optimizers)
    steps = {k: {int(s["step"]) for s in o.state.values()} for k, o in optimizers.items()}
    assert steps == {"D": {2}, "G": {6}}


def test_it_says_what_it_lacks():
    x = images(4)
    for model, batch in (
        (seeded(ImprovedGAN), Batch(x, torch.arange(4), 0)),
        (seeded(ImprovedGAN), Batch(x, None, 0, x)),
        (small_minibatch(), Batch(images(4, (3, 32, 32)), torch.arange(4), 0)),
    ):
        with pytest.raises(ValueError, match="needs"):
            model.training_step(batch, model.optimizers())
    with pytest.raises(ValueError, match="28 or 32"):
        ImprovedGAN(image_size=64)
    with pytest.raises(ValueError, match="must be 32"):
        ImprovedGANMinibatch(image_size=28)


def test_a_few_images_are_learnt_by_heart():
    model, x, y = seeded(ImprovedGAN), images(20), torch.arange(20) % 10
    model.begin([x])
    optimizers = model.optimizers()
    losses = [model.training_step(Batch(x, y, step, x), optimizers) for step in range(70)]
    first, last = ({k: sum(s[k].item() for s in part) for k in part[0]} for part in (losses[:4], losses[-4:]))
    assert last["labelled_loss"] < first["labelled_loss"] / 20
    assert last["d_loss"] < first["d_loss"] / 5
    assert (model.eval().classify(x).argmax(1) == y).all()


def test_g_learns_to_match_the_features_of_a_fixed_d():
    model, x = seeded(ImprovedGAN), images(20)
    model.begin([x])
    model.D.eval()  # without noise
    optimizer = model.optimizers()["G"]
    losses = []
    for _ in range(40):
        losses.append(model.g_loss(model.D.features(x).detach(), model.D.features(model.G(model.sample_latent(20)))))
        improved_gan.minimize(losses[-1], optimizer)
    assert sum(losses[-5:]) < sum(losses[:5]) / 4
