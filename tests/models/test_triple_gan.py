"""Triple-GAN: the game of three, C's losses, schedules, batches and networks, by number."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import count, few_labels, sigmoid, softmax
from torch import nn

from ganbench.gan import Batch
from reference_models import triple_gan
from reference_models.layers import ZCA, MeanOnlyNorm
from reference_models.triple_gan import SETTINGS, TripleGAN, colour_networks, cross_entropy, split_in_proportion

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
A, B, C = torch.tensor([1.5, -0.5]), torch.tensor([-2.0, 0.3]), torch.tensor([0.7, 0.1, -1.0])


def new(**args):
    torch.manual_seed(0)
    return TripleGAN(**args).train()


def last_layer(net):
    return [layer for layer in net.modules() if isinstance(layer, nn.Linear)][-1]


# --- Losses ---


def test_d_weighs_cs_and_gs_pairs_by_one_half_each():
    expected = -np.log(sigmoid(A)).mean() - 0.5 * np.log(1 - sigmoid(B)).mean() - 0.5 * np.log(1 - sigmoid(C)).mean()
    assert float(new().d_loss(A, B, C)) == pytest.approx(expected, rel=1e-6)


def test_g_minimises_half_the_non_saturating_loss():
    assert float(new().g_loss(C)) == pytest.approx(-0.5 * np.log(sigmoid(C)).mean(), rel=1e-6)


def test_the_adversarial_loss_of_c_has_a_gradient_by_the_probability_of_its_answer_alone():
    m = new()
    logits, d = LOGITS.clone().requires_grad_(), A.clone().requires_grad_()
    loss = m.c_adversarial_loss(logits, d.detach())
    p, cost = softmax(LOGITS), -np.log(sigmoid(A))
    top, rows = p.argmax(1), np.arange(2)
    assert loss.item() == pytest.approx(0.5 * (p[rows, top] * cost).mean(), rel=1e-6)
    # d p_top / d logit_k = p_top (1[k = top] - p_k)
    expected = 0.5 / 2 * cost[:, None] * p[rows, top][:, None] * (np.eye(3)[top] - p)
    np.testing.assert_allclose(torch.autograd.grad(loss, logits)[0].numpy(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("data", "weight"), [("mnist", 1.0), ("svhn", 0.01), ("cifar10", 0.01)])
def test_cs_loss_is_the_sum_of_its_terms(data, weight, monkeypatch):
    m, b = new(), few_labels()
    m.setting = SETTINGS[data]
    m.C.eval()
    m.D.eval()
    monkeypatch.setattr(m.D, "forward", lambda x, y: x.mean((1, 2, 3)) + y[:, 3])  # without noise
    logits = m.C(b.u)
    d = b.u.mean((1, 2, 3)) + (logits.argmax(1) == 3)
    p = logits.softmax(1)
    entropy, balance = -(p * p.log()).sum(1).mean(), -p.mean(0).log().mean()
    r_u = 0.3 * entropy + 0.2 * balance + 1e-4 * last_layer(m.C).weight.square().sum()
    adversarial = 0.5 * (p.amax(1) * F.softplus(-d)).mean()
    expected = weight * adversarial + F.cross_entropy(m.C(b.x), b.y) + r_u
    assert m.c_loss(b.x, b.y, b.u, None, 0.2).item() == pytest.approx(expected.item(), rel=1e-4)
    fake = (b.u, torch.arange(20) % 10)
    pseudo = {"mnist": 0.1, "svhn": 0.03, "cifar10": 0.1}[data] * F.cross_entropy(m.C(b.u), fake[1])
    assert m.c_loss(b.x, b.y, b.u, fake, 0.2).item() == pytest.approx((expected + pseudo).item(), rel=1e-4)


def test_probabilities_are_kept_from_0_and_1():
    loss = cross_entropy(torch.tensor([[40.0, 0.0]]), torch.tensor([1]))
    assert float(loss) == pytest.approx(-math.log(1e-6), rel=1e-5)


def test_the_pi_model_compares_two_noisy_passes():
    m, u = new(), torch.randn(3, 3, 16, 16)
    m.data, m.C = "cifar10", colour_networks(100, 10, "cifar10")[1]
    torch.manual_seed(1)
    loss = m.unlabelled_loss(m.C(u), u, 100.0).item()
    torch.manual_seed(1)
    p, q = softmax(m.C(u).detach()), softmax(m.C(u).detach())
    assert loss == pytest.approx(100 * ((p - q) ** 2).mean(), rel=1e-4)
    assert loss > 0


# --- Schedules and batches ---


def test_batches_follow_the_number_of_labels():
    expected = {20: ((20, 500), (1, 400)), 50: ((50, 200), (1, 400)), 100: ((100, 100), (1, 400)),
                200: ((100, 100), (2, 400))}
    assert {n: (new(labels=n).setting.c_batch, new(labels=n).setting.d_batch) for n in expected} == expected
    assert SETTINGS["svhn"].d_batch == (20, 180)
    assert SETTINGS["cifar10"].d_batch == (40, 160)
    assert [len(p) for p in split_in_proportion(torch.arange(500), 100, 400)] == [100, 400]


def test_d_sees_labelled_and_pseudo_labelled_pairs_then_cs_then_gs(monkeypatch):
    m, seen = new(), []
    x, u = torch.zeros(200, 1, 28, 28), torch.ones(500, 1, 28, 28)
    forward = m.D.forward

    def record(x, y):
        seen.append((x.detach(), y))
        return forward(x, y)

    monkeypatch.setattr(m.D, "forward", record)
    bias = last_layer(m.C).bias
    threes = lambda x: 9 * F.one_hot(torch.full((len(x),), 3), 10).float() + bias + 0 * x.sum()  # noqa: E731
    monkeypatch.setattr(m.C, "forward", threes)
    m.training_step(Batch(x, torch.full((200,), 7), 0, u), m.optimizers() | {"C": torch.optim.SGD(m.C.parameters(), 0)})
    (real, y_real), (_, y_c), (_, y_g), *_ = seen
    assert [len(s[0]) for s in seen] == [401, 100, 200, 200, 100]
    assert not real[0].any()
    assert (real[1:] == 1).all()
    assert y_real.argmax(1).tolist() == [7] + [3] * 400
    assert y_c.argmax(1).tolist() == [3] * 100
    assert y_g.sum(0).tolist() == [20.0] * 10


def test_the_pseudo_discriminative_loss_begins_at_its_epoch(monkeypatch):
    for data, epoch in (("mnist", 300), ("svhn", 200), ("cifar10", 200)):
        assert SETTINGS[data].r_p[1] == epoch
    assert new(p_epoch=7).setting.r_p == (0.1, 7)
    m, given = new(epoch_steps=2), []
    c_loss = m.c_loss
    monkeypatch.setattr(m, "c_loss", lambda x, y, u, fake, w_u: given.append(fake) or c_loss(x, y, u, fake, w_u))
    opt = m.optimizers()
    for step in (597, 598):  # the last step of epoch 299, the first of epoch 300
        m.training_step(few_labels(step=step), opt)
    assert given[0] is None
    assert given[1][0].shape == (8, 1, 28, 28)  # 200 with 500 unlabelled ones, 8 with 20
    assert not given[1][0].requires_grad


def test_weights_rates_and_beta1_follow_the_code():
    m = new()
    opt = m.optimizers()

    def rates(data, epoch):
        m.setting = SETTINGS[data]
        m.set_rates(opt, epoch)
        g, c = opt["G"].param_groups[0], opt["C"].param_groups[0]
        assert opt["D"].param_groups[0]["lr"] == g["lr"]
        return g["lr"], c["lr"], c["betas"][0]

    assert rates("mnist", 300) == (1e-3, 1e-3, 0.5)
    assert rates("svhn", 310) == pytest.approx((3e-4 * 0.995**10, 3e-4 * 0.995**10, 0.5))
    assert rates("cifar10", 251) == (3e-4, 3e-3, 0.9)
    assert rates("cifar10", 302) == pytest.approx((3e-4 * 0.995**2, 3e-3 * 0.99**2, 0.5), rel=1e-3)
    assert [m.w_u(e) for e in (1, 81, 500)] == [0.0, 100.0, 100.0]
    assert m.w_u(41) == pytest.approx(100 * math.exp(-1.25))
    m.setting = SETTINGS["mnist"]
    assert m.w_u(1) == 1e-3


# --- Training ---


def test_c_is_trained_alone_first_with_a_strong_balance_and_then_begins_with_a_new_adam():
    m = new(pretrain_steps=2)
    opt, b = m.optimizers(), few_labels()
    before = {k: v.clone() for k, v in m.state_dict().items()}
    torch.manual_seed(3)
    losses = m.training_step(b, opt)
    assert list(losses) == ["c_loss"]
    twin = new()
    torch.manual_seed(3)
    expected = cross_entropy(twin.C(b.x[:4]), b.y[:4]), twin.unlabelled_loss(twin.C(b.u), b.u, 0.3)
    assert losses["c_loss"].item() == pytest.approx(sum(expected).item(), rel=0.2)  # up to dropout
    m.training_step(few_labels(step=1), opt)
    moved = {k.partition(".")[0] for k, v in m.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"C", "C_average"}
    assert (opt["C"].param_groups[0]["lr"], opt["C"].param_groups[0]["betas"]) == (3e-4, (0.9, 0.999))
    assert set(m.training_step(few_labels(step=2), opt)) == {"d_loss", "g_loss", "c_loss"}
    assert {float(s["step"]) for s in opt["C"].state.values()} == {1.0}


def test_a_handful_of_images_is_learnt(monkeypatch):
    monkeypatch.setattr(triple_gan, "ALONE_LR", 3e-3)
    m = new(pretrain_steps=60)
    opt = m.optimizers()
    losses = [m.training_step(few_labels(20, 10, step), opt)["c_loss"] for step in range(60)]
    assert losses[-1] < losses[0] / 1.5
    m.C.eval()
    b = few_labels(10, 10)
    assert (m.C(b.x).argmax(1) == b.y).all()


def test_every_network_moves_under_bfloat16():
    m = new(epoch_steps=1)
    opt = m.optimizers()
    before = {n: [p.detach().clone() for p in getattr(m, n).parameters()] for n in opt}
    for step in (400, 401):  # with the pseudo discriminative loss
        with torch.autocast("cpu", torch.bfloat16):
            losses = m.training_step(few_labels(step=step), opt)
        assert all(v.dtype == torch.float32 for v in losses.values())
    for n in opt:
        assert all(not torch.equal(a, b) for a, b in zip(before[n], getattr(m, n).parameters(), strict=True)), n


def test_the_average_of_c_starts_at_zero_and_takes_its_moments_too():
    m = new(pretrain_steps=2)
    opt = m.optimizers()
    assert not any(v.any() for v in m.C_average.state_dict().values())
    expected = {k: torch.zeros_like(v) for k, v in m.C.state_dict().items() if v.is_floating_point()}
    for step in range(3):  # alone, and with the others
        m.training_step(few_labels(step=step), opt)
        expected = {k: a + 0.01 * (m.C.state_dict()[k] - a) for k, a in expected.items()}
    assert any(k.endswith("running_var") for k in expected)
    for k, a in expected.items():
        torch.testing.assert_close(m.C_average.state_dict()[k], a)
    x = few_labels().x
    m.eval()
    assert torch.equal(m.classify(x), m.C_average(x))


def test_only_unlabelled_images_move_the_moments_of_c():
    m, b = new(), few_labels()
    moments = []
    for x in (b.x, -b.x):
        m.load_state_dict(new().state_dict())
        torch.manual_seed(5)
        m.c_loss(x, b.y, b.u, (x, b.y), 1e-3)
        m.answers(x)
        moments.append(next(c for c in m.C if isinstance(c, nn.BatchNorm2d)).running_mean.clone())
    assert torch.equal(*moments)
    assert moments[0].any()


# --- Networks ---


def test_networks_have_the_codes_parameters():
    m = new()
    assert count(m.G) == 110 * 500 + 1000 + 510 * 500 + 1000 + 510 * 784 + 2 * 784
    assert count(m.D) == 795 * 1000 + 1021 * 500 + 511 * 250 + 261 * 250 * 2 + 261
    assert count(m.C) == 25 * 32 + 9 * (32 * 64 + 64 * 64 + 64 * 128 + 128 * 128) + 2 * (32 + 64 * 2 + 128 * 2) + 1290
    m = new(data="cifar10")
    nine = 9 * (3 * 128 + 2 * 128**2 + 128 * 256 + 2 * 256**2 + 256 * 512) + 512 * 256 + 256 * 128 + 128 * 10
    assert count(m.C) == nine + 2 * (3 * 128 + 3 * 256 + 512 + 256 + 128 + 10)
    assert count(m.D) == 9 * (13 * 32 + 42 * 32 + 42 * 64 + 74 * 64 + 74 * 128 + 138 * 128) + 448 + 138 + 2
    assert count(m.G) == 110 * 8192 + 25 * (522 * 256 + 266 * 128 + 138 * 3) + 8192 + 256 + 128 + 2 * 3
    assert isinstance(m.whiten, ZCA)
    assert isinstance(new().whiten, nn.Identity)


def test_on_cifar10_begin_whitens_and_starts_c_on_the_first_hundred_images():
    m, seen = new(data="cifar10"), []
    m.whiten = ZCA((3, 16, 16))
    m.C.register_forward_hook(lambda net, args, out: seen.append(len(args[0])))
    images = torch.randn(120, 3, 16, 16)
    m.begin(iter([images[:110], images[110:]]))
    assert seen == [100]
    torch.testing.assert_close(m.whiten.mean, images.mean(0), rtol=0, atol=1e-5)
    assert all((c.conv.g != 1).all() for c in m.C.modules() if isinstance(c, MeanOnlyNorm))


def test_samples_follow_the_label_and_the_latent():
    m = new()
    m.training_step(few_labels(), m.optimizers())
    m.eval()
    z, y = m.sample_latent(3), torch.tensor([1, 2, 3])
    assert z.shape == (3, 100)
    assert 0 <= float(z.min()) < float(z.max()) <= 1
    x = m.generate(z, y)
    assert x.shape == (3, 1, 28, 28)
    assert not torch.equal(x, m.generate(z, y.flip(0)))
    with pytest.raises(ValueError, match="labels"):
        m.generate(z)


def test_other_data_is_refused():
    with pytest.raises(ValueError, match="mnist, svhn, cifar10"):
        TripleGAN(data="stl10")
