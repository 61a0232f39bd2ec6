"""SSGAN against the equations of Odena (2016)."""

import numpy as np
import pytest
import torch

from ganbench import recipes
from ganbench.gan import Batch
from reference_models import ssgan
from reference_models.ssgan import CNN, SSGAN, RealFakeGAN


def seeded(make, **kwargs):
    torch.manual_seed(0)
    return make(**{"width": 8, **kwargs})


def images(n, shape=(1, 28, 28), seed=0):
    """Squares of 4 x 4 pixels of random brightness."""
    x = torch.rand(n, shape[0], shape[1] // 4, shape[2] // 4, generator=torch.Generator().manual_seed(seed))
    return 2 * x.repeat_interleave(4, 2).repeat_interleave(4, 3) - 1


def logits(n, seed=0, k=11):
    return 3 * torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def log_p(a):
    a = a.double().numpy()
    return a - np.log(np.exp(a).sum(1, keepdims=True))


def params(module):
    return sum(p.numel() for p in module.parameters())


def moved(model, before):
    return {k.partition(".")[0] for k, p in model.named_parameters() if not torch.equal(p, before[k])}


# --- Losses ---


def test_d_descends_the_likelihood_of_n_plus_1_classes_over_the_joint_minibatch():
    real, fake, y = logits(4, 1), logits(4, 2), torch.tensor([0, 3, 9, 3])
    expected = -(log_p(real)[np.arange(4), y.numpy()].sum() + log_p(fake)[:, 10].sum()) / 8
    assert seeded(SSGAN).d_loss(real, y, fake).item() == pytest.approx(expected, rel=1e-6)


def test_g_ascends_the_same_likelihood_and_its_gradient_vanishes_where_d_is_sure():
    fake = logits(6, 2).requires_grad_()
    loss = seeded(SSGAN).g_loss(fake)
    assert loss.item() == pytest.approx(log_p(fake.detach())[:, 10].mean(), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, fake)
    p = np.exp(log_p(fake.detach()))
    expected = (np.eye(11)[10] - p) / 6  # d log p_FAKE / d l_k = [k = FAKE] - p_k
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-6)
    sure = torch.zeros(6, 11).index_fill(1, torch.tensor(10), 30.0).requires_grad_()
    (gradient,) = torch.autograd.grad(seeded(SSGAN).g_loss(sure), sure)
    assert gradient.abs().max() < 1e-11


def test_with_real_and_fake_alone_both_losses_are_those_of_the_minimax_game():
    real, fake = logits(5, 1, 2), logits(5, 2, 2)
    model = seeded(RealFakeGAN)
    d = [1 / (1 + np.exp(-(a[:, 0] - a[:, 1]).double().numpy())) for a in (real, fake)]
    y = model.targets(Batch(images(5), torch.arange(5), 0))
    assert model.d_loss(real, y, fake).item() == pytest.approx(
        -(np.log(d[0]).mean() + np.log(1 - d[1]).mean()) / 2, rel=1e-6
    )
    assert model.g_loss(fake).item() == pytest.approx(np.log(1 - d[1]).mean(), rel=1e-6)


# --- Networks ---


def test_the_networks_have_the_layers_of_the_docstrings():
    model = SSGAN()
    assert params(model.G) == 100 * 64 * 49 + 2 * 64 + 64 * 32 * 25 + 2 * 32 + 32 * 25 + 1
    assert params(model.D) == 25 * 32 + 32 + 25 * 32 * 64 + 64 + 64 * 49 * 11 + 11
    assert params(RealFakeGAN().D) == 25 * 32 + 32 + 25 * 32 * 64 + 64 + 64 * 49 * 2 + 2
    assert params(CNN().D) == params(model.D)
    weights = [p for name, p in model.named_parameters() if name.endswith("weight") and p.ndim > 1]
    assert [p.std().item() for p in weights] == pytest.approx([0.02] * 6, rel=0.1)
    assert model.G(model.sample_latent(3)).shape == (3, 1, 28, 28)
    assert model.D(images(3)).shape == (3, 11)
    assert SSGAN(image_size=32, channels=3, width=8).sample(2).shape == (2, 3, 32, 32)
    with pytest.raises(ValueError, match="multiple of 4"):
        SSGAN(image_size=30)


def test_the_latent_is_uniform_from_minus_one_to_one():
    z = seeded(SSGAN).sample_latent(2000, torch.Generator().manual_seed(0))
    assert z.shape == (2000, 100)
    assert (z.min().item(), z.max().item()) == pytest.approx((-1, 1), abs=1e-3)
    assert z.square().mean().item() == pytest.approx(1 / 3, rel=0.01)


def test_an_answer_is_never_fake():
    model = seeded(SSGAN).eval()
    model.D.out.bias.data[10] = 1e3
    answers = model.classify(images(5))
    assert answers.shape == (5, 10)
    assert torch.equal(answers, model.D(images(5))[:, :10])
    assert not hasattr(seeded(RealFakeGAN), "classify")


# --- The step ---


def test_one_step_of_d_on_2m_images_and_one_of_g_on_m_new_ones(monkeypatch):
    model, x = seeded(SSGAN), images(6)
    opt = model.optimizers()
    seen, latents = [], []
    forward, draw = model.D.forward, model.sample_latent
    monkeypatch.setattr(model.D, "forward", lambda x: (seen.append(x.detach()), forward(x))[1])
    monkeypatch.setattr(model, "sample_latent", lambda n: (latents.append(draw(n)), latents[-1])[1])
    losses = model.training_step(Batch(x, torch.arange(6), 0, images(9, seed=1)), opt)
    assert [len(s) for s in seen] == [12, 6]
    assert torch.equal(seen[0][:6], x)  # and no image without a label
    assert len(latents) == 2
    assert not torch.equal(latents[0], latents[1])
    assert losses["d_loss"].item() == pytest.approx(np.log(11), rel=0.02)
    assert losses["g_loss"].item() == pytest.approx(-np.log(11), rel=0.05)


def test_each_model_moves_the_networks_that_the_paper_trains():
    for make, trained in ((SSGAN, {"D", "G"}), (CNN, {"D"}), (RealFakeGAN, {"D", "G"})):
        model = seeded(make)
        before = {k: p.detach().clone() for k, p in model.named_parameters()}
        opt = model.optimizers()
        model.training_step(Batch(images(6), torch.arange(6), 0), opt)
        assert moved(model, before) == trained == set(opt)
    model = seeded(SSGAN)
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    model.d_step(Batch(images(6), torch.arange(6), 0), model.optimizers())
    assert moved(model, before) == {"D"}


def test_the_cnn_is_d_of_the_gan_with_the_same_start_and_the_same_first_step():
    a, b = seeded(SSGAN), seeded(CNN)
    batch = Batch(images(6), torch.arange(6), 0)
    for model in (a, b):
        torch.manual_seed(1)
        model.d_step(batch, model.optimizers())
    assert all(torch.equal(p, b.state_dict()[k]) for k, p in a.state_dict().items())


def test_labels_are_needed_but_by_the_gan_of_real_and_fake():
    for make in (SSGAN, CNN):
        model = seeded(make)
        assert model.classes == 10
        with pytest.raises(ValueError, match="needs labels"):
            model.training_step(Batch(images(4), None, 0), model.optimizers())
    model = seeded(RealFakeGAN)
    assert model.classes == model.num_classes == 0
    model.training_step(Batch(images(4), None, 0), model.optimizers())


def test_a_few_images_are_learnt_by_heart_and_the_game_goes_on():
    model, x, y = seeded(SSGAN, d_lr=2e-3, g_lr=2e-3), images(20), torch.arange(20) % 10
    opt = model.optimizers()
    for step in range(60):
        model.training_step(Batch(x, y, step), opt)
    assert (model.eval().classify(x).argmax(1) == y).all()
    assert model.D(x).log_softmax(1)[:, 10].exp().max() < 0.5


def test_g_lowers_the_probability_of_fake_before_a_fixed_d():
    model, x, y = seeded(SSGAN, d_lr=2e-3, g_lr=2e-3), images(20), torch.arange(20) % 10
    opt = model.optimizers()
    for step in range(12):
        model.d_step(Batch(x, y, step), opt)
    losses = []
    for _ in range(30):
        losses.append(ssgan.minimize(model.g_loss(model.D(model.G(model.sample_latent(20)))), opt["G"]).item())
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 1


# --- Recipes ---


def test_the_recipes_of_table_1_carry_the_paper_s_accuracies_and_differ_by_labels_alone():
    table = {1000: (0.964, 0.965), 100: (0.928, 0.895), 50: (0.883, 0.859), 25: (0.802, 0.750)}
    members = recipes.lookup("ssgan-table1")[1].values()
    found = {(r.model.name, r.train.labels): r for r in members}
    assert len(found) == 8
    assert len({(r.train.steps, r.train.batch_size, r.train.precision) for r in members}) == 1
    args = {name: [r.model.args for r in members if r.model.name == name] for name in ("ssgan", "ssgan-cnn")}
    assert args["ssgan"] == [{"dropout": 0.5}] * 4
    assert args["ssgan-cnn"] == [{"dropout": 0.5, "d_lr": 1e-3}] * 4  # the paper, too, has a rate for each model
    for labels, accuracies in table.items():
        for name, accuracy in zip(("ssgan", "ssgan-cnn"), accuracies, strict=True):
            (reported,) = found[name, labels].reported
            assert (reported.metric, reported.value) == ("test_error", pytest.approx(1 - accuracy))
