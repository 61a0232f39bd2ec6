"""SGAN: both adversarial and both collaborative games, C's losses, schedules and networks, by number."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import count, few_labels, sigmoid, softmax
from torch import nn

from reference_models.layers import ZCA, MeanOnlyNorm, moments_kept
from reference_models.sgan import SETTINGS, SGAN, colour_networks, cross_entropy, split_in_proportion

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
A, B = torch.tensor([1.5, -0.5, 0.2]), torch.tensor([-2.0, 0.3, 1.0])


def new(**args):
    torch.manual_seed(0)
    return SGAN(**args).train()


def cifar_classifier():
    torch.manual_seed(0)
    return colour_networks(100, 10, "cifar10")[2]


def grads(loss, net):
    return torch.autograd.grad(loss, list(net.parameters()), retain_graph=True, allow_unused=True)


# --- Losses ---


def test_the_loss_of_both_discriminators_is_binary_cross_entropy():
    expected = -np.log(sigmoid(A)).mean() - np.log(1 - sigmoid(B)).mean()
    assert float(new().d_loss(A, B)) == pytest.approx(expected, rel=1e-6)


def test_r_z_is_half_the_squared_distance_of_each_latent():
    z, z_hat = torch.tensor([[0.0, 1.0, 0.5], [0.2, 0.4, 0.6]]), torch.tensor([[1.0, 1.0, 0.0], [0.2, 0.4, 1.6]])
    assert float(new().r_z_loss(z_hat, z)) == pytest.approx(0.5 * (1.25 + 1.0) / 2)
    n_z = 3  # (n_z / 2) * mean over images and dimensions, as the code has it
    assert float(new().r_z_loss(z_hat, z)) == pytest.approx(n_z / 2 * float((z_hat - z).square().mean()))


def test_r_y_is_the_cross_entropy_with_probabilities_kept_from_0_and_1():
    y = torch.tensor([2, 1])
    p = softmax(LOGITS)
    assert float(cross_entropy(LOGITS, y)) == pytest.approx(-np.log([p[0, 2], p[1, 1]]).mean(), rel=1e-6)
    logits = torch.tensor([[40.0, 0.0]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([1]))
    assert loss.item() == pytest.approx(-math.log(1e-6), rel=1e-5)
    assert not torch.autograd.grad(loss, logits)[0].any()  # beyond the limit nothing is learnt


def test_i_wants_its_pairs_called_fake_and_its_latents_right():
    expected = -np.log(1 - sigmoid(A)).mean()
    assert float(new().i_loss(A, torch.tensor(3.0))) == pytest.approx(expected + 3.0, rel=1e-6)
    assert float(new(r_z=0.0).i_loss(A, torch.tensor(3.0))) == pytest.approx(expected, rel=1e-6)


def test_g_is_in_four_games_and_the_ablations_leave_one_out():
    xy, xz = -np.log(sigmoid(A)).mean(), -np.log(sigmoid(B)).mean()
    r_y, r_z = torch.tensor(2.0), torch.tensor(5.0)
    assert float(new().g_loss(A, B, r_y, r_z)) == pytest.approx(xy + xz + 7, rel=1e-6)
    assert float(new(r_y=0.0).g_loss(A, B, r_y, r_z)) == pytest.approx(xy + xz + 5, rel=1e-6)
    assert float(new(r_z=0.0).g_loss(A, B, r_y, r_z)) == pytest.approx(xy + xz + 2, rel=1e-6)


def test_entropy_and_balance_are_their_formulas():
    m = new()
    m.data, m.C = "svhn", nn.Identity()  # logits in the place of images
    p = softmax(LOGITS)
    entropy, balance = -(p * np.log(p)).sum(1).mean(), -np.log(p.mean(0)).mean()
    assert float(m.unlabelled_loss(LOGITS, 0.0)) == pytest.approx(0.3 * entropy, rel=1e-6)
    assert float(m.unlabelled_loss(LOGITS, 0.7)) == pytest.approx(0.3 * entropy + 0.7 * balance, rel=1e-6)
    even = torch.zeros(4, 10)
    assert float(m.unlabelled_loss(even, 1e-3)) == pytest.approx((0.3 + 1e-3) * math.log(10), rel=1e-6)


def test_the_weight_decay_on_mnist_is_of_the_last_layer_alone():
    m, u = new().eval(), few_labels().u
    p = softmax(m.C(u))
    others = -0.3 * (p * np.log(p)).sum(1).mean() - 1e-3 * np.log(p.mean(0)).mean()
    *_, last = (layer for layer in m.C.modules() if isinstance(layer, nn.Linear))
    decay = 1e-4 * last.weight.square().sum().item()
    assert decay > 1e-6
    assert m.unlabelled_loss(u, 1e-3).item() - others == pytest.approx(decay, rel=0.05)


def test_the_pi_model_compares_two_noisy_passes():
    m, u = new(), torch.randn(3, 3, 16, 16)
    m.data, m.C = "cifar10", cifar_classifier()
    torch.manual_seed(1)
    loss = m.unlabelled_loss(u, 100.0).item()
    torch.manual_seed(1)
    p, q = softmax(m.C(u)), softmax(m.C(u))
    assert loss == pytest.approx(100 * ((p - q) ** 2).mean(), rel=1e-4)
    assert loss > 0
    m.C.eval()
    assert m.unlabelled_loss(u, 100.0).item() == 0  # no noise, no dropout


def test_c_learns_from_labels_from_unlabelled_and_from_generated_images():
    m, b = new(), few_labels()
    m.C.eval()
    supervised = cross_entropy(m.C(b.x), b.y).item()
    unlabelled = m.unlabelled_loss(b.u, 1e-3).item()
    assert m.c_loss(b.x, b.y, b.u, 1e-3).item() == pytest.approx(supervised + unlabelled, rel=1e-5)
    torch.manual_seed(3)
    with_generated = m.c_loss(b.x, b.y, b.u, 1e-3, 0.1).item()
    torch.manual_seed(3)
    fake, y = m.random_pairs(16)  # 200 with 100 labelled, 16 with 8
    expected = supervised + unlabelled + 0.1 * cross_entropy(m.C(fake), y).item()
    assert with_generated == pytest.approx(expected, rel=1e-5)
    assert not any(g is not None for g in grads(m.c_loss(b.x, b.y, b.u, 1e-3, 0.1), m.G))


def test_the_collaborative_games_reach_those_who_play_them():
    m = new()
    y = torch.arange(4)
    fake, z = m.fakes(y)
    r_z, r_y = m.r_z_loss(m.I(fake), z), cross_entropy(m.C(fake), y)
    for loss, players, others in ((r_z, (m.G, m.I), (m.C, m.D_xy, m.D_xz)), (r_y, (m.G, m.C), (m.I, m.D_xy, m.D_xz))):
        for net in players:
            assert all(g is not None and g.any() for g in grads(loss, net))
        for net in others:
            assert all(g is None for g in grads(loss, net))


# --- Schedules ---

CIFAR = {1: (184, 16, 0), 50: (184, 16, 0), 51: (168, 32, 0), 101: (152, 48, 0), 151: (136, 64, 0), 201: (120, 80, 0),
         251: (104, 96, 0), 301: (88, 112, 0), 351: (72, 128, 0), 401: (56, 144, 0), 451: (40, 160, 0),
         499: (40, 160, 0), 500: (50, 140, 10), 600: (50, 130, 20), 700: (50, 120, 30), 800: (50, 110, 40),
         900: (50, 100, 50), 1000: (50, 100, 50)}
SVHN = {1: (200, 0, 0), 9: (200, 0, 0), 10: (184, 16, 0), 19: (184, 16, 0), 50: (120, 80, 0), 99: (56, 144, 0),
        100: (40, 160, 0), 399: (40, 160, 0), 400: (40, 150, 10), 1000: (40, 150, 10)}


@pytest.mark.parametrize(("data", "table"), [("cifar10", CIFAR), ("svhn", SVHN), ("mnist", {1: (1, 199, 0)})])
def test_the_real_batch_follows_the_code(data, table, monkeypatch):
    m = new()
    m.setting = SETTINGS[data]
    monkeypatch.setattr(m.C, "forward", lambda x: F.one_hot(torch.full((len(x),), 3), 10).float())
    monkeypatch.setattr(m, "random_pairs", lambda n: (torch.full((n, 1), 2.0), torch.zeros(n, dtype=torch.int64)))
    x, u, y = torch.zeros(200, 1), torch.ones(200, 1), torch.zeros(200, dtype=torch.int64)

    def parts(epoch):
        drawn = m.real_pairs(x, y, u, epoch, 200)[0]
        return tuple(int((drawn == kind).sum()) for kind in (0, 1, 2))

    assert {epoch: parts(epoch) for epoch in table} == table
    assert all(sum(parts(epoch)) == 200 for epoch in range(1, 1001))


def test_real_pairs_are_labelled_then_pseudo_labelled_then_generated_images(monkeypatch):
    m = new()
    m.setting = m.setting._replace(real=SETTINGS["cifar10"].real)
    x, u = torch.zeros(200, 1, 28, 28), torch.ones(200, 1, 28, 28)
    y = torch.full((200,), 7)
    monkeypatch.setattr(m.C, "forward", lambda x: F.one_hot(torch.full((len(x),), 3), 10).float())
    for epoch, (labelled, pseudo, generated) in ((1, CIFAR[1]), (900, CIFAR[900])):
        x_m, y_m = m.real_pairs(x, y, u, epoch, 200)
        assert len(x_m) == len(y_m) == 200
        assert not x_m[:labelled].any()
        assert (y_m[:labelled] == 7).all()
        assert (x_m[labelled : labelled + pseudo] == 1).all()
        assert (y_m[labelled : labelled + pseudo] == 3).all()
        assert len(y_m[labelled + pseudo :].unique()) == (10 if generated else 0)
        assert not x_m.requires_grad


def test_batches_of_the_recipes_sizes_are_cut_into_the_codes():
    assert [len(p) for p in split_in_proportion(torch.arange(500), 100, 200, 200)] == [100, 200, 200]
    assert [len(p) for p in split_in_proportion(torch.arange(300), 100, 200)] == [100, 200]
    assert [len(p) for p in split_in_proportion(torch.arange(12), 100, 200, 200)] == [2, 5, 5]
    assert torch.equal(torch.cat(split_in_proportion(torch.arange(77), 3, 4, 5)), torch.arange(77))
    for labels, c_batch in ((20, (20, 500, 200)), (50, (50, 200, 200)), (100, (100, 100, 200))):
        m = new(labels=labels)
        assert m.setting.c_batch == c_batch
        assert (m.setting.d_labelled, m.setting.alone) == (labels, (labels, 500, 3e-4, 0.3))


def test_weights_ramp_by_epochs():
    m = new()
    m.setting = SETTINGS["cifar10"]
    assert [m.w_u(e) for e in (1, 81, 500)] == [0.0, 100.0, 100.0]
    assert m.w_u(2) == pytest.approx(100 * math.exp(-5 * (79 / 80) ** 2))
    assert m.w_u(41) == pytest.approx(100 * math.exp(-1.25))
    assert [m.w_g(e) for e in (3, 150, 300, 900)] == pytest.approx([0.01, 0.5, 1, 1])
    m.setting = SETTINGS["svhn"]
    assert [m.w_u(e) for e in (1, 500)] == [1e-3, 1e-3]
    assert [m.w_g(e) for e in (50, 100, 400, 850, 1000)] == pytest.approx([0, 0, 0.01, 0.025, 0.025])
    m.setting = SETTINGS["mnist"]
    assert [m.w_g(e) for e in (1, 299, 300, 1000)] == pytest.approx([0, 0, 0.1, 0.1])


def test_rates_and_adams_beta1_follow_the_code():
    m = new()
    opt = m.optimizers()

    def rates(data, epoch):
        m.setting = SETTINGS[data]
        m.set_rates(opt, epoch)
        assert len({opt[n].param_groups[0]["lr"] for n in ("D_xy", "D_xz", "G", "I")}) == 1
        return opt["G"].param_groups[0]["lr"], opt["C"].param_groups[0]["lr"], opt["C"].param_groups[0]["betas"][0]

    assert rates("cifar10", 1) == rates("cifar10", 200) == (3e-4, 3e-3, 0.9)
    assert rates("cifar10", 202) == pytest.approx((3e-4 * 0.995**2, 3e-3 * 0.99**2, 0.9))
    assert rates("cifar10", 271)[2] == pytest.approx(0.5 + 0.4 * math.exp(-2))
    assert rates("cifar10", 1000)[2] == pytest.approx(0.5)
    assert rates("svhn", 300) == (3e-4, 3e-4, 0.5)
    assert rates("svhn", 310) == pytest.approx((3e-4 * 0.995**10, 3e-4 * 0.995**10, 0.5))
    assert rates("mnist", 310) == pytest.approx((1e-3 * 0.995**10, 1e-3 * 0.995**10, 0.5))


def test_epochs_count_from_1_after_the_pretraining(monkeypatch):
    m, seen = new(epoch_steps=300, pretrain_steps=3600), []

    class Enough(Exception):
        """The rest of the step is not needed."""

    def set_rates(opt, epoch):
        seen.append(epoch)
        raise Enough

    monkeypatch.setattr(m, "set_rates", set_rates)
    for step in (3600, 3899, 3900, 303599):
        with pytest.raises(Enough):
            m.training_step(few_labels(step=step), m.optimizers())
    assert seen == [1, 1, 2, 1000]


# --- Training ---


def test_c_is_trained_alone_first_and_then_begins_with_a_new_adam():
    m = new(pretrain_steps=2)
    opt = m.optimizers()
    before = {k: v.clone() for k, v in m.state_dict().items()}
    for step in range(2):
        assert list(m.training_step(few_labels(step=step), opt)) == ["c_loss"]
    moved = {k.partition(".")[0] for k, v in m.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"C", "C_average"}
    assert opt["C"].param_groups[0]["lr"] == 3e-4
    assert opt["C"].param_groups[0]["betas"] == (0.9, 0.999)
    losses = m.training_step(few_labels(step=2), opt)
    assert set(losses) == {"c_loss", "d_xy_loss", "d_xz_loss", "i_loss", "g_loss", "r_y_loss", "r_z_loss"}
    assert {float(s["step"]) for s in opt["C"].state.values()} == {1.0}
    assert opt["C"].param_groups[0]["lr"] == 1e-3


def test_a_handful_of_images_is_learnt():
    m = new(pretrain_steps=60)
    opt = m.optimizers()
    m.setting = m.setting._replace(alone=(100, 500, 3e-3, 0.3))
    losses = [m.training_step(few_labels(10, 10, step), opt)["c_loss"] for step in range(60)]
    assert losses[-1] < losses[0] / 2
    m.C.eval()
    b = few_labels(10, 10)
    assert (m.C(b.x).argmax(1) == b.y).all()


def test_i_learns_to_find_the_latents_of_generated_images():
    m = new()
    opt = m.optimizers()
    losses = [m.training_step(few_labels(10, 25, step), opt)["r_z_loss"] for step in range(14)]
    assert losses[-1] < losses[0] / 2


def test_every_network_moves_under_bfloat16():
    m = new()
    opt = m.optimizers()
    before = {n: [p.detach().clone() for p in getattr(m, n).parameters()] for n in opt}
    for step in range(2):
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
    assert not any(p.requires_grad for p in m.C_average.parameters())


def test_only_unlabelled_images_move_the_moments_of_c():
    m, b = new(), few_labels()
    moments = {}
    for name, x in (("one", b.x), ("another", -b.x)):
        m.load_state_dict(new().state_dict())
        torch.manual_seed(5)
        m.c_loss(x, b.y, b.u, 1e-3, 0.1)
        moments[name] = m.C[2].running_mean.clone()
    assert torch.equal(moments["one"], moments["another"])
    assert moments["one"].any()
    with moments_kept(m.C):
        m.C(b.x)
    assert torch.equal(m.C[2].running_mean, moments["one"])
    m.C(b.x)
    assert not torch.equal(m.C[2].running_mean, moments["one"])


# --- Networks ---


def test_networks_for_mnist_have_the_codes_parameters():
    m = new()
    assert count(m.G) == 110 * 500 + 1000 + 510 * 500 + 1000 + 510 * 784 + 2 * 784
    assert count(m.D_xy) == 795 * 1000 + 1021 * 500 + 511 * 250 + 261 * 250 * 2 + 261
    assert count(m.C) == 25 * 32 + 9 * (32 * 64 + 64 * 64 + 64 * 128 + 128 * 128) + 2 * (32 + 64 * 2 + 128 * 2) + 1290
    assert count(m.I) == 16 * (64 + 64 * 128 + 128 * 256 + 256 * 512) + 2 * 960 + 513 * 100
    assert count(m.D_xz) == 885 * 1000 + 1101 * 500 + 601 * 250 + 351 * 250 + 351 * 250 + 351


def test_networks_for_32_by_32_have_the_codes_parameters():
    m = new(data="svhn")
    convs = 9 * (3 * 128 + 2 * 128**2 + 128 * 256 + 2 * 256**2 + 256 * 512) + 512 * 256 + 256 * 128 + 128 * 10
    assert count(m.C) == count(cifar_classifier()) == convs + 2 * (3 * 128 + 3 * 256 + 512 + 256 + 128 + 10)
    deconvs = 25 * (522 * 256 + 266 * 128 + 138 * 3)
    assert count(m.G) == 110 * 8192 + deconvs + 8192 + 256 + 128 + 2 * 3
    assert count(m.D_xy) == 9 * (13 * 32 + 42 * 32 + 42 * 64 + 74 * 64 + 74 * 128 + 138 * 128) + 448 + 138 + 2
    assert count(m.I) == 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512) + 2 * 960 + (4 * 512 + 1) * 100
    x_path = 25 * (3 * 128 + 128 * 256 + 256 * 512) + 128 + 2 * (256 + 512)
    assert count(m.D_xz) == x_path + 101 * 512 + 513 * 512 + (8192 + 512 + 1) * 1024 + 1025
    x, y, z = torch.randn(2, 3, 32, 32), m.one_hot(torch.tensor([0, 1])), torch.rand(2, 100)
    shapes = {k: tuple(v.shape) for k, v in {
        "C": m.C(x), "I": m.I(x), "D_xy": m.D_xy(x, y), "D_xz": m.D_xz(x, z), "G": m.G(z, y)}.items()}
    assert shapes == {"C": (2, 10), "I": (2, 100), "D_xy": (2,), "D_xz": (2,), "G": (2, 3, 32, 32)}


def test_weights_start_as_in_the_code():
    m = new()
    nets = {n: getattr(m, n).modules() for n in ("C", "D_xy", "G")}
    linear = {n: [layer for layer in net if isinstance(layer, nn.Linear)] for n, net in nets.items()}
    conv = [layer for layer in m.C.modules() if isinstance(layer, nn.Conv2d)][1]
    assert linear["C"][0].weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert conv.weight.std().item() == pytest.approx(0.05, rel=0.05)
    assert linear["D_xy"][1].weight.std().item() == pytest.approx(0.1, rel=0.05)
    assert linear["G"][1].weight.abs().max().item() == pytest.approx(math.sqrt(6 / 1010), rel=0.01)
    assert not any(layer.bias.any() for layer in m.modules() if isinstance(layer, nn.Linear) and layer.bias is not None)


def test_the_data_dependent_start_gives_every_layer_unit_spread_and_no_moments():
    m, x, seen = new(), torch.randn(20, 3, 16, 16), []
    m.C, m.whiten = cifar_classifier().train(), ZCA((3, 16, 16))
    torch.manual_seed(4)
    m.begin(iter([x]))
    convs = [layer for layer in m.C.modules() if isinstance(layer, MeanOnlyNorm)]
    assert len(convs) == 10
    assert not any(layer.running_mean.any() or layer.starting for layer in convs)
    for layer in convs:
        layer.register_forward_hook(lambda layer, args, out: seen.append(out.std((0, 2, 3), correction=0)))
    torch.manual_seed(4)  # the same noise and dropout
    with torch.no_grad():
        m.C(m.whiten(x))
    assert len(seen) == 10
    for std in seen:
        torch.testing.assert_close(std, torch.ones_like(std), rtol=1e-3, atol=1e-3)


def test_on_cifar10_begin_fits_the_whitening_and_starts_c_and_whitens_for_c_alone():
    m = new(data="cifar10")
    m.whiten = ZCA((3, 16, 16))
    images = torch.randn(20, 3, 16, 16)
    m.begin(iter([images[:12], images[12:]]))
    torch.testing.assert_close(m.whiten.mean, images.mean(0), rtol=0, atol=1e-5)
    assert all((c.conv.g != 1).all() for c in m.C.modules() if isinstance(c, MeanOnlyNorm))
    m.eval()
    torch.testing.assert_close(m.classify(images), m.C_average(m.whiten(images)))
    assert isinstance(new().whiten, nn.Identity)


# --- Evaluation ---


def test_an_image_is_reconstructed_from_its_class_and_its_latent():
    m = new()
    m.training_step(few_labels(), m.optimizers())
    m.eval()
    x = few_labels().x
    with torch.no_grad():
        z, y = m.encode(x), m.classify(x).argmax(1)
        assert z.shape == (len(x), 100)
        assert torch.equal(z, m.I(x))
        assert torch.equal(m.reconstruct(x), m.generate(z, y))
    z = m.sample_latent(1000)
    assert 0 <= float(z.min()) < 0.01
    assert 0.99 < float(z.max()) <= 1


def test_other_data_is_refused():
    with pytest.raises(ValueError, match="mnist, svhn, cifar10"):
        SGAN(data="stl10")
