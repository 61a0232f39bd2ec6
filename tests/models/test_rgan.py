"""rAC-GAN and rcGAN: losses and penalties against closed forms, what T = I makes of them, who learns from what."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import count, sigmoid, softmax
from torch import nn
from torch.nn.utils import parametrize

from ganbench.base.label_noise import transition_matrix
from ganbench.gan import Batch, checkpoint, minimize
from reference_models import rgan
from reference_models.rgan import FORMS, consistency, dequantised, gradient_penalty

TINY = {"image_size": 8, "latent_dim": 6, "g_width": 8, "d_width": 8, "n_critic": 2}
MODELS = ("racgan", "rcgan")
BASELINE = {"racgan": "racgan-acgan", "rcgan": "rcgan-cgan"}
NOISY = {"T": "symmetric", "rate": 0.7}


def new(name, **args):
    torch.manual_seed(0)
    return checkpoint.make_model(name, {**TINY, **args}, "test")


def batch(n=12, step=0, classes=10):
    x = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(step)) * 2 - 1
    return Batch(x, torch.arange(n) % classes, step)


def logits(n, k=10, seed=0):
    return 3 * torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def trained(model, steps=2):
    """The weights after some steps."""
    optimizers = model.train().optimizers()
    torch.manual_seed(1)
    for step in range(steps):
        model.training_step(batch(step=step), optimizers)
    return list(model.state_dict().values())


# --- Networks ---


def residual(cin, cout, plain=False):
    return cin * cout * 9 + cout + cout * cout * 9 + cout + (0 if plain else cin * cout + cout)


def test_the_networks_have_the_parameters_of_the_code():
    body = residual(3, 128) + residual(128, 128) + 2 * residual(128, 128, plain=True)
    g = 128 * 4096 + 4096 + 3 * (residual(256, 256) + 2 * 2 * 10 * 256) + 2 * 256 + 256 * 27 + 3
    for name, heads in (("racgan", 129 + 1290), ("rcgan", 128 + 1280)):
        model = checkpoint.make_model(name, {}, "test")
        assert (count(model.G), count(model.D)) == (g, body + heads)
    assert (g, body) == (4_304_387, 1_053_696)
    ct = checkpoint.make_model("racgan", {"form": "ctgan", "g_width": 128}, "test")
    assert (count(ct.G), count(ct.D)) == (1_218_307, body + 128 + 1290)  # deviation 6


def test_the_forms_are_those_of_the_codes_script():
    def numbers(form):
        return form.spectral, form.add, form.dropout, form.lambda_gp, form.lambda_ct, form.betas

    assert {name: numbers(form) for name, form in FORMS.items()} == {
        "sngan": (True, True, False, 0, 0, (0.0, 0.9)),
        "wgangp": (False, False, False, 10, 0, (0.0, 0.9)),
        "ctgan": (False, False, True, 10, 2, (0.0, 0.9)),
        "dcgan": (False, False, False, 0, 0, (0.5, 0.999)),
    }
    for name in FORMS:
        model = new("racgan", form=name)
        rates = [m.p for m in model.D.modules() if isinstance(m, nn.Dropout)]
        assert rates == {"ctgan": [0.2, 0.5, 0.5], "dcgan": []}.get(name, [0, 0, 0])
        layers = [m for m in (*model.D.modules(), *model.G.modules()) if isinstance(m, nn.Conv2d | nn.Linear)]
        normed = {m for m in layers if parametrize.is_parametrized(m)}
        expected = {m for m in model.D.modules() if isinstance(m, nn.Conv2d | nn.Linear)} - {model.D.classes}
        assert normed == (expected if name == "sngan" else set())
    assert parametrize.is_parametrized(new("rcgan").D.embed)


@pytest.mark.parametrize("form", ["sngan", "wgangp"])
def test_the_heads_take_sums_over_pixels_in_sngan_and_means_elsewhere(form):
    x, y = batch(4).x, torch.tensor([0, 3, 3, 9])
    ac, c = new("racgan", form=form).eval(), new("rcgan", form=form).eval()
    pool = (lambda h: h.sum((2, 3))) if form == "sngan" else (lambda h: h.mean((2, 3)))
    with torch.no_grad():
        h = ac.D.body(x)
        logit, classes, features = ac.D(x)
        torch.testing.assert_close(logit, ac.D.logit(pool(h))[:, 0])
        torch.testing.assert_close(classes, ac.D.classes(h.mean((2, 3))))
        torch.testing.assert_close(features, h.mean((2, 3)))
        h = pool(c.D.body(x))
        expected = h @ c.D.logit.weight[0] + (h * c.D.embed.weight[y]).sum(1)
        torch.testing.assert_close(c.D(x, y)[0], expected)


# --- Losses ---


@pytest.mark.parametrize("noise", [NOISY, {"T": "asymmetric", "rate": 0.7}, {"T": "asymmetric", "rate": 1.0}])
def test_forward_correction_is_the_likelihood_of_the_noisy_label(noise):
    a, y = logits(30), torch.arange(30) % 9  # a truck is never read at rate 1
    y[(y == 2) | (y == 4)] = 0  # neither is a bird or a deer
    t = np.array(transition_matrix(noise["T"], noise["rate"], 10))
    expected = -np.log((softmax(a) @ t)[np.arange(30), y.numpy()]).mean()
    a.requires_grad_()
    loss = new("racgan", **noise).class_loss(a, y)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    posterior = softmax(a) * t[:, y.numpy()].T  # the gradient is (p - p(true class | x, noisy label)) / N
    posterior /= posterior.sum(1, keepdims=True)
    np.testing.assert_allclose(a.grad.numpy(), (softmax(a) - posterior) / 30, atol=1e-6)


def test_adversarial_losses():
    real, fake = logits(20, 1, 1)[:, 0], logits(30, 1, 2)[:, 0]
    r, f = real.double().numpy(), fake.double().numpy()
    hinge = np.maximum(0, 1 - r).mean() + np.maximum(0, 1 + f).mean()
    entropy = -np.log(sigmoid(real)).mean() - np.log(1 - sigmoid(fake)).mean()
    expected = {
        "sngan": (hinge, -f.mean()), "dcgan": (entropy, -np.log(sigmoid(fake)).mean()),
        **dict.fromkeys(("wgangp", "ctgan"), (f.mean() - r.mean(), -f.mean())),
    }
    for name, (d, g) in expected.items():
        assert FORMS[name].d_loss(real, fake).item() == pytest.approx(d, rel=1e-5)
        assert FORMS[name].g_loss(fake).item() == pytest.approx(g, rel=1e-5)


def test_the_gradient_penalty_of_a_linear_critic():
    w, seen = nn.Parameter(logits(1, 12)[0] / 4), []
    x, fake = torch.rand(5, 3, 2, 2), torch.rand(5, 3, 2, 2)

    def critic(images):
        seen.append(images.detach())
        return images.flatten(1) @ w, images.flatten(1)

    loss = gradient_penalty(critic, x, fake)
    loss.backward()
    length = w.detach().norm()
    assert loss.item() == pytest.approx(float((length - 1) ** 2), rel=1e-5)
    torch.testing.assert_close(w.grad, 2 * (length - 1) * w.detach() / length)
    a = ((seen[0] - fake) / (x - fake)).flatten(1)  # one number an image: its place between x and G(z)
    assert float(a.std(1).max()) < 1e-3
    assert 0 <= float(a.min()) < float(a.max()) <= 1
    assert float(a.mean(1).std()) > 0.05


def test_the_gradient_penalty_is_a_mean_over_images():
    x, fake = torch.rand(3, 1, 2, 2), torch.rand(3, 1, 2, 2)
    slopes = torch.tensor([0.5, 1.0, 3.0])  # of an image each: |grad| = slope * 2
    loss = gradient_penalty(lambda images: ((images.flatten(1) * slopes[:, None]).sum(1), images), x, fake)
    assert loss.item() == pytest.approx(np.mean([(2 * s - 1) ** 2 for s in (0.5, 1.0, 3.0)]), rel=1e-5)


@pytest.mark.parametrize("margin", [0.0, 0.7])
def test_the_consistency_term_of_a_linear_critic_with_dropout(margin):
    w, x = logits(1, 8)[0], torch.rand(6, 8, generator=torch.Generator().manual_seed(3))
    masks = [2 * (torch.rand(6, 8, generator=torch.Generator().manual_seed(s)) < 0.5) for s in (1, 2)]
    passes = [((m * x) @ w, m * x) for m in masks]
    gap = ((masks[0] - masks[1]) * x).double().numpy()
    each = 2 * (gap @ w.double().numpy()) ** 2 + 2 * 0.1 * (gap**2).mean(1)
    assert (each < margin).any() or not margin
    expected = np.maximum(each - margin, 0).mean()
    assert consistency(*passes, 2.0, margin).item() == pytest.approx(expected, rel=1e-5)


def test_ct_gan_passes_the_real_images_a_second_time_and_weighs_both_penalties():
    model = new("rcgan", form="ctgan")
    x, fake, calls = batch(4).x, batch(4, step=1).x, []

    def critic(images):
        calls.append(images)
        return 3 * images.flatten(1)[:, 0], images.flatten(1)

    terms = model.penalties(critic, x, fake, (torch.zeros(4), x.flatten(1)))
    assert torch.equal(calls[1], x)
    assert terms["penalty_loss"].item() == pytest.approx(10 * (3 - 1) ** 2, rel=1e-5)
    assert terms["consistency_loss"].item() == pytest.approx(2 * (3 * x[:, 0, 0, 0]).square().mean().item(), rel=1e-5)
    a, b = (model.D(x, torch.arange(4))[0] for _ in range(2))
    assert not torch.equal(a, b)  # dropout


# --- T ---


def test_the_true_label_is_drawn_from_its_law_given_the_noisy_one():
    n = 20000
    model = new("racgan", T="asymmetric", rate=0.7)
    assert torch.allclose(model.T.sum(1), torch.ones(10))
    for noisy, law in ((1, {1: 1 / 1.7, 9: 0.7 / 1.7}), (5, {5: 0.3, 3: 0.7}), (9, {9: 1.0}), (6, {6: 1.0})):
        drawn = model.true_label(torch.full((n,), noisy)).bincount(minlength=10) / n
        assert drawn.tolist() == pytest.approx([law.get(c, 0.0) for c in range(10)], abs=0.015)
    drawn = new("rcgan", **NOISY).true_label(torch.full((n,), 4)).bincount(minlength=10) / n
    assert drawn.tolist() == pytest.approx([0.37 if c == 4 else 0.07 for c in range(10)], abs=0.015)
    assert set(new("racgan", T="asymmetric", rate=1.0).true_label(torch.full((99,), 9)).tolist()) == {9}


@pytest.mark.parametrize("form", ["sngan", "ctgan", "dcgan"])
@pytest.mark.parametrize("name", MODELS)
def test_with_t_the_identity_a_step_is_the_baselines_to_the_bit(name, form, monkeypatch):
    """The oracle uses labels as they are, and cross-entropy; it draws a random number a label to keep the others."""
    ours, baseline = (trained(new(n, form=form)) for n in (name, BASELINE[name]))
    monkeypatch.setattr(rgan.LabelNoiseGAN, "true_label", lambda self, y: (torch.rand(len(y), 1), y)[1])
    monkeypatch.setattr(rgan.RACGAN, "class_loss", lambda self, a, y: -a.log_softmax(1)[range(len(y)), y].mean())
    plain = trained(new(BASELINE[name], form=form))
    assert all(torch.equal(a, b) for a, b in zip(ours, baseline, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_with_noise_a_step_is_another_one(name):
    robust, baseline = trained(new(name, **NOISY), 1), trained(new(BASELINE[name]), 1)
    assert not all(torch.equal(a, b) for a, b in zip(robust, baseline, strict=True))


def test_the_class_loss_without_noise_is_cross_entropy_image_by_image():
    model, a = new("racgan"), logits(10)
    for i in range(10):
        y = torch.tensor([i])
        assert torch.equal(model.class_loss(a[i : i + 1], y), F.cross_entropy(a[i : i + 1], y))


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("racgan", {"T": "random"}, "kind must be one of symmetric, asymmetric"),
        ("racgan", {"rate": 1.5}, "rate must be in"),
        ("racgan", {"T": "asymmetric", "rate": 0.5, "num_classes": 3}, "of the 10 or 100 classes of CIFAR, not of 3"),
        ("racgan-acgan", {"rate": 0.7}, "a baseline has T = I"),
        ("rcgan-cgan", {"T": "asymmetric"}, "a baseline has T = I"),
        ("rcgan", {"T": "estimated"}, "takes pretrain_steps"),
        ("rcgan", {"form": "gan"}, "form must be one of sngan, wgangp, ctgan, dcgan"),
        ("rcgan", {"image_size": 20}, "multiple of 8"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(name, args, words):
    with pytest.raises(Exception, match=words):
        new(name, **args)


# --- Steps ---


@pytest.mark.parametrize("form", ["sngan", "ctgan"])
@pytest.mark.parametrize("name", MODELS)
def test_the_terms_of_each_loss_reach_the_networks_that_they_name(name, form):
    model, x, y = new(name, form=form, **NOISY).train(), batch(6).x, torch.arange(6)
    g, d = list(model.G.parameters()), list(model.D.parameters())

    def reached(loss, parameters):
        return [p is not None and bool(p.any()) for p in torch.autograd.grad(loss, parameters, allow_unused=True,
                                                                             retain_graph=True)]

    for term in model.d_terms(x, y).values():
        assert not any(reached(term, g))
        assert any(reached(term, d))
    terms = model.g_terms(y)
    assert set(terms) == ({"g_loss", "g_class_loss"} if name == "racgan" else {"g_loss"})
    for term in terms.values():
        assert any(reached(term, g))
    assert "T" not in dict(model.named_parameters())


@pytest.mark.parametrize("name", MODELS)
def test_a_step_is_five_updates_of_d_and_one_of_g_on_twice_the_images(name, monkeypatch):
    model, order, asked, judged = new(name, n_critic=5, **NOISY), [], [], []
    optimizers = model.optimizers()
    names = {id(o): n for n, o in optimizers.items()}
    monkeypatch.setattr(rgan, "minimize", lambda loss, o: (order.append(names[id(o)]), minimize(loss, o))[1])
    model.G.register_forward_pre_hook(lambda _, args: asked.append(args[1].argmax(1)))
    model.D.register_forward_pre_hook(lambda _, args: judged.append(args))
    b = batch(20)
    model.training_step(b, optimizers)
    assert order == [*5 * ["D"], "G"]
    assert [len(y) for y in asked] == [4, 4, 4, 4, 4, 8]
    if name == "rcgan":  # D sees noisy labels alone, the same for real and generated images; G moves with the last ones
        for k in range(5):
            assert torch.equal(judged[2 * k][1], b.y[4 * k :][:4])
            assert torch.equal(judged[2 * k + 1][1], b.y[4 * k :][:4])
        assert torch.equal(judged[10][1], b.y[16:].repeat(2))
    assert not torch.equal(torch.cat(asked[:5]), b.y)  # G is asked for true labels


def test_the_rates_fall_linearly_to_zero():
    model = new("rcgan", decay_steps=100000)
    optimizers = model.optimizers()
    for step, rate in ((0, 2e-4), (50000, 1e-4), (99999, 2e-9), (120000, 0.0)):
        model.training_step(batch(step=0)._replace(step=step), optimizers)
        assert [o.param_groups[0]["lr"] for o in optimizers.values()] == pytest.approx([rate, rate], rel=1e-6)
        assert {o.param_groups[0]["betas"] for o in optimizers.values()} == {(0.0, 0.9)}


def test_bytes_become_the_codes_dequantised_pixels():
    k = torch.arange(256.0).repeat(4, 1)
    u = 128 * (dequantised(k / 127.5 - 1) + 1) - k
    assert -1e-3 < float(u.min()) < 0.1
    assert 0.9 < float(u.max()) < 1 + 1e-3


# --- Learning ---


def coloured(n, step, t):
    """Images of one colour a class, with noise on pixels and labels."""
    generator = torch.Generator().manual_seed(step)
    true = torch.randint(3, (n,), generator=generator)
    x = (1.6 * torch.eye(3)[true] - 0.8)[:, :, None, None] + 0.1 * torch.randn(n, 3, 8, 8, generator=generator)
    return Batch(x.clamp(-1, 1), t[true].multinomial(1, generator=generator)[:, 0], step)


def test_an_unknown_t_is_read_off_anchor_points_and_then_stays():
    t = torch.tensor([[0.8, 0.2, 0.0], [0.0, 0.6, 0.4], [0.3, 0.0, 0.7]])
    model = new("racgan", T="estimated", pretrain_steps=60, num_classes=3, lr=5e-3).train()
    optimizers = model.optimizers()
    before = [p.clone() for p in (*model.G.parameters(), *model.D.parameters())]
    for step in range(60):
        assert set(model.training_step(coloured(128, step, t), optimizers)) == {"c_loss"}
    assert float((model.T - t).abs().max()) < 0.06
    assert torch.allclose(model.T.sum(1), torch.ones(3), atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(before, (*model.G.parameters(), *model.D.parameters()), strict=True))
    estimate, classifier = model.T.clone(), [p.clone() for p in model.C.parameters()]
    losses = model.training_step(coloured(12, 60, t), optimizers)
    assert set(losses) == {"d_loss", "d_class_loss", "g_loss", "g_class_loss"}
    assert torch.equal(model.T, estimate)
    assert all(torch.equal(a, b) for a, b in zip(classifier, model.C.parameters(), strict=True))
    assert optimizers["G"].param_groups[0]["lr"] == 5e-3  # the rates fall from here on


@pytest.mark.parametrize("name", ["racgan", "racgan-acgan"])
def test_noisy_labels_teach_racgans_class_head_the_true_class_and_acgans_how_noisy_they_are(name):
    t = torch.tensor(transition_matrix("symmetric", 0.6, 3))
    model = new(name, form="wgangp", num_classes=3, lr=2e-3, **({"rate": 0.6} if name == "racgan" else {})).train()
    optimizer = model.optimizers()["D"]
    for step in range(40):
        b = coloured(128, step, t)
        minimize(model.class_loss(model.D(b.x)[1], b.y), optimizer)
    with torch.no_grad():
        p = model.classify((1.6 * torch.eye(3) - 0.8)[:, :, None, None].expand(3, 3, 8, 8)).softmax(1)
    expected = torch.eye(3) if name == "racgan" else t
    assert float((p - expected).abs().max()) < 0.15


def test_a_handful_of_images_is_learnt():
    images = torch.full((2, 3, 8, 8), -0.8)
    images[0, :, :, 4:] = images[1, :, 4:] = 0.8
    model = new("rcgan", num_classes=2, n_critic=1, lr=2e-3, decay_steps=0, rate=0.5)
    optimizers, true = model.optimizers(), torch.arange(8) // 4
    noisy = torch.where(torch.arange(8) % 4 == 3, 1 - true, true)

    def distance():
        with torch.no_grad():
            x = model.eval().sample(32, torch.arange(32) % 2, torch.Generator().manual_seed(0))
        return (x[:, None] - images).square().mean((2, 3, 4)).amin(1).mean().item()

    before = distance()
    for step in range(80):
        model.train().training_step(Batch(images[true], noisy, step), optimizers)
    assert distance() < before / 4
