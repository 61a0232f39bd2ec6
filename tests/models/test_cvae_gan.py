"""CVAE-GAN: its losses against closed forms, its networks against the published ones, its centres by number."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from ganbench.data.images import to_float
from ganbench.gan import Batch
from reference_models import cvae_gan
from reference_models.cvae_gan import CGAN, CVAE, CVAEGAN, FMCGAN, Centres

TINY = {"image_size": 8, "channels": 1, "num_classes": 3, "latent_dim": 4, "width": 4}


def new(cls=CVAEGAN, **args):
    torch.manual_seed(0)
    return cls(**{**TINY, **args}).train()


def batch(n=12, size=8, channels=1, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.rand(n, channels, size, size, generator=generator) * 2 - 1, torch.arange(n) % classes, 0)


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def count(module):
    return sum(p.numel() for p in module.parameters())


# --- Networks ---


@pytest.fixture(scope="module")
def full():
    return CVAEGAN(num_classes=530).eval()


def test_the_networks_for_128_have_the_papers_shapes(full):
    x, c = torch.zeros(1, 3, 128, 128), full.one_hot(torch.tensor([7]))
    with torch.inference_mode():
        assert [t.shape for t in full.E(x, c)] == [(1, 256)] * 2
        assert full.encoder_features(x).shape == (1, 1024)
        assert full.G(torch.zeros(1, 256), c).shape == (1, 3, 128, 128)
        assert [t.shape for t in full.D(x)] == [(1, 1), (1, 512 * 4 * 4)]
        assert [t.shape for t in full.C(x)] == [(1, 530), (1, 4096)]


def test_the_encoder_for_128_is_googlenet_with_the_class_at_the_last_layer(full):
    """torchvision's has kernels of 3 where the paper has 5, and no other difference in its body."""
    theirs = torchvision.models.googlenet(weights=None, aux_logits=False, init_weights=False)
    fives = sum((25 - 9) * s[3] * s[4] for s in cvae_gan.GOOGLENET if s != "max")
    assert count(full.E.body) == count(theirs) - count(theirs.fc) + fives
    assert full.E.out.weight.shape == (2 * 256, 1024 + 530)


def test_the_encoders_body_is_torchvisions_googlenet_but_for_the_fives():
    theirs = torchvision.models.googlenet(weights=None, aux_logits=False, init_weights=False, transform_input=False)
    body, features = cvae_gan.googlenet(3)
    blocks = [m for m in body if isinstance(m, cvae_gan.Inception)]
    for ours, name in zip(blocks, ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"), strict=True):
        their = getattr(theirs, f"inception{name}")
        cin = ours.branches[0][0].in_channels
        assert [b[0].in_channels for b in ours.branches[:3]] == [cin] * 3
        assert [ours.branches[0][0].out_channels, ours.branches[1][3].out_channels,
                ours.branches[2][3].out_channels, ours.branches[3][1].out_channels] == [
            their.branch1.conv.out_channels, their.branch2[1].conv.out_channels,
            their.branch3[1].conv.out_channels, their.branch4[1].conv.out_channels]
        assert ours(torch.zeros(1, cin, 4, 4)).shape[2:] == (4, 4)
    assert features == 1024


def test_the_generator_for_128_has_two_linear_layers_and_the_papers_six_convolutions(full):
    convs = [m for m in full.G.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [(m.out_channels, m.kernel_size[0]) for m in convs] == [
        (256, 3), (256, 3), (128, 5), (92, 5), (64, 5), (3, 5)
    ]
    assert [m.in_features for m in full.G.modules() if isinstance(m, nn.Linear)] == [256 + 530, 1024]


def test_the_classifier_for_128_is_alexnet(full):
    convs = [m for m in full.C.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.out_channels, m.kernel_size[0], m.stride[0]) for m in convs] == [
        (96, 11, 4), (256, 5, 1), (384, 3, 1), (384, 3, 1), (256, 3, 1)
    ]
    linears = [m for m in full.C.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == [(256 * 9, 4096), (4096, 4096), (4096, 530)]


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (16, 3), (28, 1), (32, 3)])
def test_small_networks_fit_their_images(size, channels):
    model = new(image_size=size, channels=channels).eval()
    x = batch(2, size, channels).x
    assert model.reconstruct(x).shape == x.shape
    assert model.discriminator_features(x).shape == (2, model.D.features)


def test_d_for_mnist_is_dcgans_without_labels():
    """64 and 128 maps by 5x5 convolutions, 1,024 units; counted by hand: weights, one bias, gains and shifts."""
    model = CVAEGAN(image_size=28, channels=1)
    assert count(model.D) == (25 * 64 + 64) + (25 * 64 * 128 + 2 * 128) + (6272 * 1024 + 2 * 1024) + (1024 + 1)
    assert model.D.features == 1024


def test_other_sizes_and_reductions_are_refused():
    with pytest.raises(ValueError, match="reduction must be"):
        CVAEGAN(image_size=28, reduction="none")
    for size in (4, 14, 30, 100):
        with pytest.raises(ValueError, match="power of two"):
            CVAEGAN(image_size=size)


def test_the_class_is_heard_beside_z_from_the_start():
    """An initialisation at the scale of z's 256 weights would leave it a sixteenth of z's voice."""
    weight = new(latent_dim=256, width=32).G.fc1.weight.detach()
    z, c = normal(1000, 256, seed=0) @ weight[:, :256].T, weight[:, 256:]
    assert 0.5 < float(c.std() / z.std()) < 2


# --- Losses ---


def test_l_kl_is_the_divergence_of_gaussians():
    mean, log_var = normal(5, 4, seed=0), normal(5, 4, seed=1)
    q = torch.distributions.Normal(mean.double(), (0.5 * log_var).exp().double())
    wanted = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(new().kl_loss(mean, log_var).double(), wanted, rtol=1e-5, atol=0)
    means = new(reduction="mean").kl_loss(mean, log_var).double()
    torch.testing.assert_close(means, wanted / 4, rtol=1e-5, atol=0)


def test_l_d_is_the_cross_entropy_of_real_reconstructed_and_sampled_images():
    logits = [normal(6, seed=i) for i in range(3)]
    real, fake, prior = (1 / (1 + np.exp(-t.double().numpy())) for t in logits)
    wanted = -np.log(real).mean() - np.log(1 - fake).mean() - np.log(1 - prior).mean()
    assert float(new().d_loss(*logits)) == pytest.approx(wanted, rel=1e-5)


def test_l_c_is_the_cross_entropy_of_real_images():
    logits, y = normal(6, 3, seed=0), torch.arange(6) % 3
    p = torch.softmax(logits.double(), 1)[torch.arange(6), y]
    assert float(new().c_loss(logits, y)) == pytest.approx(float(-p.log().mean()), rel=1e-5)


@pytest.mark.parametrize(("reduction", "over"), [("sum", np.sum), ("mean", np.mean)])
def test_l_g_is_half_the_squared_distances_of_pixels_and_of_features_pair_by_pair(reduction, over):
    x, fake = normal(5, 1, 8, 8, seed=0), normal(5, 1, 8, 8, seed=1)
    fs = [normal(5, 7, seed=i) for i in range(4)]
    wanted = [
        0.5 * np.mean([over((p - q) ** 2) for p, q in zip(a.double().numpy(), b.double().numpy(), strict=True)])
        for a, b in ((x, fake), (fs[0], fs[1]), (fs[2], fs[3]))
    ]
    parts = new(reduction=reduction).g_losses(x, fake, *fs)
    assert [float(part) for part in parts] == pytest.approx(wanted, rel=1e-5)
    assert float(new(CVAE, reduction=reduction).g_loss(x, fake)) == pytest.approx(wanted[0], rel=1e-5)


def test_l_gd_is_half_the_squared_distance_of_the_mean_features():
    model = new()
    real, fake = normal(6, model.D.features, seed=0), normal(6, model.D.features, seed=1)
    wanted = 0.5 * np.sum((real.double().numpy().mean(0) - fake.double().numpy().mean(0)) ** 2)
    assert float(model.gd_loss(real, fake)) == pytest.approx(wanted, rel=1e-5)
    means = new(reduction="mean").gd_loss(real, fake)
    assert float(means) == pytest.approx(wanted / model.D.features, rel=1e-5)


def test_l_gc_compares_the_centres_of_the_same_class_and_of_no_class_that_one_side_has_not_seen():
    model = new()
    real, fake = normal(6, model.C.features, seed=0), normal(6, model.C.features, seed=1)
    y, c = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 1, 1, 0, 0])  # no sample of class 2
    a, b = real.double().numpy(), fake.double().numpy()
    wanted = 0.5 * sum(np.sum((a[y == k].mean(0) - b[c == k].mean(0)) ** 2) for k in (0, 1))
    assert float(model.gc_loss(real, y, fake, c)) == pytest.approx(wanted, rel=1e-5)
    means = new(reduction="mean").gc_loss(real, y, fake, c)
    assert float(means) == pytest.approx(wanted / model.C.features, rel=1e-5)


def test_the_rows_cgan_has_cross_entropies_of_d_and_c():
    logit, logits, c = normal(6, seed=0), normal(6, 3, seed=1), torch.arange(6) % 3
    d, k = torch.sigmoid(logit.double()), torch.softmax(logits.double(), 1)[torch.arange(6), c]
    assert float(new(CGAN).g_loss(logit, logits, c)) == pytest.approx(float(-d.log().mean() - k.log().mean()), rel=1e-5)


# --- Moving centres ---


def test_a_centre_starts_at_its_first_mean_and_then_moves_by_a_tenth():
    centres = Centres(2, 1, decay=0.9)
    zero = torch.zeros(2, dtype=torch.int64)
    assert centres(torch.tensor([[1.0], [3.0]]), zero).tolist() == [[2.0], [0.0]]
    assert centres.seen.tolist() == [True, False]
    assert centres(torch.tensor([[12.0], [12.0]]), zero)[0].item() == pytest.approx(0.9 * 2 + 0.1 * 12)
    assert centres(torch.tensor([[5.0], [7.0]]), zero + 1).tolist() == [[pytest.approx(3.0)], [6.0]]


def test_a_centre_has_the_gradient_of_the_batchs_mean():
    centres = Centres(2, 3, decay=0.99)
    centres(normal(4, 3, seed=0), torch.tensor([0, 0, 1, 1]))
    f = normal(3, 3, seed=1).requires_grad_()
    out = centres(f, torch.tensor([0, 0, 0]))
    out[0, 0].backward(retain_graph=True)
    assert f.grad.tolist() == [[pytest.approx(1 / 3), 0.0, 0.0]] * 3
    f.grad = None
    out[1].sum().backward()  # of a class that the batch has not
    assert not f.grad.any()


def test_the_centres_forget_the_past_at_their_decay_and_live_in_the_checkpoint():
    centres = Centres(1, 1, decay=0.5)
    for value in (8.0, 0.0, 0.0, 0.0):
        centres(torch.tensor([[value]]), torch.tensor([0]))
    assert centres.rows.item() == 1.0
    assert {"real_D.rows", "fake_D.seen", "real_C.rows", "fake_C.rows"} <= new().state_dict().keys()
    assert not [k for k in new(CVAE).state_dict() if "rows" in k]


# --- One step of Algorithm 1 ---


def gradients(model, loss, network):
    return torch.autograd.grad(loss, list(getattr(model, network).parameters()), retain_graph=True, allow_unused=True)


def test_g_and_e_get_what_algorithm_1_gives_each_of_them():
    """G: l2 L_G + l3 L_GD + l4 L_GC. E: l1 L_KL + l2 L_G. By gradients of the parts, taken one by one."""
    model, data = new(), batch()
    objectives = model.objectives(data.x, data.y)
    assert {name: networks for name, (_, networks) in objectives.items() if networks} == {
        "c_loss": "C", "d_loss": "D", "ge_loss": "GE"
    }
    ge_loss, kl, gd, gc = (objectives[n][0] for n in ("ge_loss", "kl_loss", "gd_loss", "gc_loss"))
    g = sum(objectives[n][0] for n in ("pixel_loss", "matched_d_loss", "matched_c_loss"))
    assert float(gc.detach()) > 0
    for network, wanted in (("G", g + 1e-3 * gd + 1e-3 * gc), ("E", 3 * kl + g)):
        pairs = zip(gradients(model, ge_loss, network), gradients(model, wanted, network), strict=True)
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()) + 1e-8)
    for loss in (gd, gc):
        assert not any(t is not None for t in gradients(model, loss, "E"))


def test_the_discriminator_sees_no_class_and_the_classifier_learns_from_real_images_alone():
    model, data = new(), batch()
    other = copy.deepcopy(model)
    torch.manual_seed(1)
    model.training_step(data, model.optimizers())
    for p in other.G.parameters():  # quite other fakes
        p.data.mul_(-1)
    torch.manual_seed(1)
    other.training_step(data, other.optimizers())
    assert all(torch.equal(a, b) for a, b in zip(model.C.parameters(), other.C.parameters(), strict=True))
    assert not torch.equal(model.D.out.weight, other.D.out.weight)


def test_the_networks_learn_with_adams_settings_of_the_reimplementations():
    for optimizer in new().optimizers().values():
        assert optimizer.defaults["lr"] == 2e-4
        assert optimizer.defaults["betas"] == (0.5, 0.999)


@pytest.mark.parametrize("cls", [CVAEGAN, CVAE, CGAN, FMCGAN])
def test_labels_are_asked_for(cls):
    model = new(cls)
    with pytest.raises(ValueError, match="labels"):
        model.training_step(batch()._replace(y=None), model.optimizers())
    with pytest.raises(ValueError, match="give y"):
        model.generate(torch.zeros(1, 4))


def test_the_rows_of_table_1_have_the_networks_that_they_name():
    assert {cls: "".join(sorted(new(cls).optimizers())) for cls in (CVAEGAN, CVAE, CGAN, FMCGAN)} == {
        CVAEGAN: "CDEG", CVAE: "EG", CGAN: "CDG", FMCGAN: "CDG"
    }


# --- What the encoder gives ---


def test_without_labels_the_class_is_the_classifiers_and_a_cvae_asks_for_it():
    model, data = new().eval(), batch()
    c = model.classify(data.x).argmax(1)
    assert torch.equal(model.encode(data.x), model.encode(data.x, c))
    assert torch.equal(model.encode(data.x, c), model.E(data.x, F.one_hot(c, 3).float())[0])
    assert torch.equal(model.reconstruct(data.x), model.generate(model.encode(data.x, c), c))
    assert not torch.equal(model.encode(data.x, c), model.encode(data.x, (c + 1) % 3))
    cvae = new(CVAE).eval()
    with pytest.raises(ValueError, match="give the classes"):
        cvae.encode(data.x)
    assert cvae.reconstruct(data.x, data.y).shape == data.x.shape


def test_z_is_a_draw_from_the_encoders_gaussian():
    model = new().eval()
    x, y = (t.repeat_interleave(4000, 0) for t in (batch(1).x, batch(1).y))
    z, mean, log_var = model.posterior(x, y)
    error = (0.5 * log_var[0]).exp().max().item() / math.sqrt(4000)
    torch.testing.assert_close(z.mean(0), mean[0], rtol=0, atol=5 * error)
    torch.testing.assert_close(z.std(0), (0.5 * log_var[0]).exp(), rtol=0.08, atol=0)


# --- It learns ---


def three_digits():
    from ganbench.data import datasets

    data = datasets.load("digits:train")
    rows = torch.cat([(data.labels == c).nonzero()[:4, 0] for c in range(3)])
    return Batch(to_float(data.images[rows]), data.labels[rows], 0)


@pytest.mark.parametrize("cls", [CVAEGAN, CVAE])
def test_a_tiny_one_reconstructs_a_handful_of_images(cls):
    model, data = new(cls, width=12, lr=3e-3), three_digits()
    opt = model.optimizers()

    def error():
        with torch.no_grad():
            model.eval()
            out = (model.reconstruct(data.x, data.y) - data.x).square().mean()
            model.train()
        return float(out)

    model.training_step(data, opt)
    before = error()
    for _ in range(80):
        losses = model.training_step(data, opt)
    assert error() < before / 4
    if cls is CVAEGAN:
        assert losses["c_loss"] < 0.1


@pytest.mark.parametrize("cls", [CVAEGAN, CVAE, FMCGAN])
def test_samples_of_a_tiny_one_are_nearest_to_the_mean_of_their_class(cls):
    model, data = new(cls, width=16, lr=2e-3), three_digits()
    opt = model.optimizers()
    for _ in range(150):
        model.training_step(data, opt)
    y = torch.arange(30) % 3
    with torch.no_grad():
        x = model.eval().sample(30, y, torch.Generator().manual_seed(0))
    means = torch.stack([data.x[data.y == c].mean(0) for c in range(3)])
    nearest = torch.cdist(x.flatten(1), means.flatten(1)).argmin(1)
    assert float((nearest == y).float().mean()) > 0.8
