"""BiGAN and the rows of its Table 1: losses by number, who learns from what, the schedule, the recomputed moments."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ganbench.gan import Batch, checkpoint, minimize_together

ROWS = ("bigan", "bigan-d", "bigan-lr", "bigan-jlr", "bigan-ae-l2", "bigan-ae-l1")
TINY = {"image_size": 8, "latent_dim": 6, "width": 32, "moment_batches": 5}


def new(row, **args):
    torch.manual_seed(0)
    return checkpoint.make_model(row, {**TINY, **args}, "test")


def images(n=24, seed=0):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def bce(p, target):
    """Binary cross-entropy by its definition, float64."""
    p = p.double()
    return -(target * p.log() + (1 - target) * (1 - p).log()).mean()


# --- Networks ---


@pytest.mark.parametrize("row", ROWS)
def test_the_networks_have_no_biases_and_no_gains(row):
    model = checkpoint.make_model(row, {}, "test")
    assert all(p.ndim == 2 for p in model.parameters())
    assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm1d)} == {1e-8}


def test_the_sizes_are_those_of_the_code():
    model = checkpoint.make_model("bigan", {}, "test")
    count = {name: sum(p.numel() for p in net.parameters()) for name, net in model.named_children()}
    assert count == {
        "E": 784 * 1024 + 1024 * 1024 + 1024 * 50,
        "G": 50 * 1024 + 1024 * 1024 + 50 * 1024 + 1024 * 784,
        "D": 784 * 1024 + 1024 * 1024 + 50 * 1024 + 1024,
    }
    x = torch.zeros(2, 1, 28, 28)
    assert model.eval().encode(x).shape == (2, 50)
    assert model.encoder_features(x).shape == model.discriminator_features(x).shape == (2, 1024)
    plain = checkpoint.make_model("bigan-d", {}, "test")
    assert sum(p.numel() for p in plain.D.parameters()) == 784 * 1024 + 1024 * 1024 + 1024


def test_weights_start_at_a_deviation_of_002_and_the_named_output_layers_at_zero():
    for row, zero in (("bigan", "D"), ("bigan-d", "D"), ("bigan-lr", "DE"), ("bigan-jlr", "DE"), ("bigan-ae-l2", "")):
        model = checkpoint.make_model(row, {}, "test")
        for name, p in model.named_parameters():
            at_zero = name in {f"{n}.out.weight" for n in zero}
            assert p.std().item() == pytest.approx(0.0 if at_zero else 0.02, rel=0.05), name


@pytest.mark.parametrize("row", ROWS)
def test_the_convolutional_networks_train_too(row):
    model = new(row, convolutional=True, width=8, image_size=16, channels=3)
    x = torch.rand(6, 3, 16, 16) * 2 - 1
    losses = model.training_step(Batch(x, None, 0), model.optimizers())
    assert all(torch.isfinite(v) for v in losses.values())
    assert model.eval().sample(3).shape == (3, 3, 16, 16)


# --- Losses ---


def test_bigans_losses_are_half_the_two_cross_entropies_and_each_others_inverse():
    model, real, fake = new("bigan"), torch.randn(50), torch.randn(50)
    p, q = torch.sigmoid(real), torch.sigmoid(fake)
    assert float(model.d_loss(real, fake)) == pytest.approx(float(bce(p, 1) + bce(q, 0)) / 2, rel=1e-5)
    assert float(model.ge_loss(real, fake)) == pytest.approx(float(bce(p, 0) + bce(q, 1)) / 2, rel=1e-5)


def test_the_rows_other_losses_are_their_closed_forms():
    logit, e, z = torch.randn(9), torch.randn(9, 4), torch.rand(9, 4) * 2 - 1
    plain, regressor = new("bigan-d"), new("bigan-lr")
    assert float(plain.g_loss(logit)) == pytest.approx(float(bce(torch.sigmoid(logit), 1)), rel=1e-5)
    assert float(regressor.e_loss(e, z)) == pytest.approx(
        float(bce(torch.sigmoid(e), ((z + 1) / 2).double())), rel=1e-5
    )
    x, back = torch.rand(3, 1, 2, 2) * 2 - 1, torch.rand(3, 1, 2, 2) * 2 - 1
    a, b = (x + 1) / 2, (back + 1) / 2  # the code's [0, 1]
    assert float(new("bigan-ae-l2").reconstruction_loss(x, back)) == pytest.approx(float(F.mse_loss(a, b)), rel=1e-5)
    assert float(new("bigan-ae-l1").reconstruction_loss(x, back)) == pytest.approx(float(F.l1_loss(a, b)), rel=1e-5)


def test_at_the_start_the_discriminator_knows_nothing():
    for row in ("bigan", "bigan-d", "bigan-lr"):
        model = new(row)
        losses = model.training_step(Batch(images(), None, 0), model.optimizers())
        assert float(losses["d_loss"]) == pytest.approx(math.log(2), abs=1e-6)


# --- Who learns from what ---


def objectives(model, monkeypatch):
    """The losses of one step with the networks that they move."""
    import sys

    seen = []
    opt = model.optimizers()
    owner = {id(o): name for name, o in opt.items()}

    def note(*pairs):
        seen.extend((loss.detach(), "".join(sorted(owner[id(o)] for o in optimizers))) for loss, optimizers in pairs)
        return minimize_together(*pairs)

    monkeypatch.setattr(sys.modules[type(model).__module__], "minimize_together", note)
    model.training_step(Batch(images(), None, 0), opt)
    return seen


@pytest.mark.parametrize(
    ("row", "moved"),
    [("bigan", ["D", "EG"]), ("bigan-d", ["D", "G"]), ("bigan-lr", ["D", "G", "E"]), ("bigan-jlr", ["D", "EG"]),
     ("bigan-ae-l2", ["EG"])],
)
def test_each_loss_moves_the_networks_of_its_equation_and_they_move_together(row, moved, monkeypatch):
    assert [names for _, names in objectives(new(row), monkeypatch)] == moved


def test_updates_are_simultaneous():
    """G and E step along the gradient at the weights that D had before its own step."""
    model, x = new("bigan"), images()
    nn.init.normal_(model.D.out.weight, 0, 0.1)
    torch.manual_seed(5)
    z = model.sample_latent(len(x))
    real, fake = model.D((x + 1) / 2, model.encode(x)), model.D(model.G(z), z)
    expected = torch.autograd.grad(model.ge_loss(real, fake), list(model.G.parameters()))
    torch.manual_seed(5)
    model.training_step(Batch(x, None, 0), model.optimizers())
    for p, g in zip(model.G.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g + 0, rtol=1e-4, atol=1e-7)


def test_lr_teaches_g_nothing_and_jlr_a_quarter():
    for row, weight in (("bigan-lr", 0.0), ("bigan-jlr", 0.25)):
        model, x = new(row), images()
        nn.init.normal_(model.E.out.weight, 0, 0.1)
        nn.init.normal_(model.D.out.weight, 0, 0.1)
        torch.manual_seed(5)
        z = model.sample_latent(len(x))
        fake = model.G(z)
        loss = model.g_loss(model.D(fake)) + weight * model.e_loss(model.E(fake), z)
        expected = torch.autograd.grad(loss, list(model.G.parameters()))
        torch.manual_seed(5)
        model.training_step(Batch(x, None, 0), model.optimizers())
        for p, g in zip(model.G.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, g, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("row", "weight"), [("bigan-lr", 0.0), ("bigan-jlr", 0.25)])
def test_ten_steps_of_the_regressors_are_those_of_a_loop_written_from_the_formulas(row, weight, monkeypatch):
    """In float64, with an Adam of its own: the weights agree to the last digits."""
    monkeypatch.setattr(torch.Tensor, "float", lambda of: of)
    model = new(row, lr=2e-3).double()
    opt = model.optimizers()
    g, d, e = ([w.detach().T.clone().requires_grad_() for w in net.parameters()] for net in (model.G, model.D, model.E))
    moments = {w: (torch.zeros_like(w), torch.zeros_like(w)) for w in (*g, *d, *e)}

    def normalised(h):
        centred = h - h.mean(0)
        return centred / (centred.square().mean(0) + 1e-8).sqrt()

    def generator(z):  # in the order of the parameters: fc1, fc2, z2, out
        h = normalised(z @ g[0]).clamp(min=0)
        return 1 / (1 + (-(normalised(h @ g[1] + z @ g[2]).clamp(min=0) @ g[3])).exp())

    def reader(x, w):
        h = x @ w[0]
        h = normalised(torch.maximum(h, 0.2 * h) @ w[1])
        return 1 / (1 + (-(torch.maximum(h, 0.2 * h) @ w[2])).exp())

    def adam(weights, gradients, t):
        for w, gradient in zip(weights, gradients, strict=True):
            gradient = gradient + 2.5e-5 * w.detach()
            m, v = moments[w]
            m.copy_(0.5 * m + 0.5 * gradient)
            v.copy_(0.999 * v + 0.001 * gradient**2)
            w.data -= 2e-3 * (m / (1 - 0.5**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)

    draws = torch.Generator().manual_seed(5)
    for t in range(1, 11):
        x, z = images(seed=t).double(), torch.rand(24, 6, generator=draws, dtype=torch.float64) * 2 - 1
        monkeypatch.setattr(model, "sample_latent", lambda n, z=z: z)
        model.training_step(Batch(x, None, t - 1), opt)
        fake = generator(z)
        real_p, fake_p, z_p = reader((x.flatten(1) + 1) / 2, d), reader(fake, d), reader(fake, e)
        regression = bce(z_p, (z + 1) / 2)
        of_d = torch.autograd.grad(0.5 * bce(real_p, 1.0) + 0.5 * bce(fake_p, 0.0), d, retain_graph=True)
        of_g = torch.autograd.grad(bce(fake_p, 1.0) + weight * regression, g, retain_graph=True)
        of_e = torch.autograd.grad((weight or 1.0) * regression, e)
        adam((*g, *d, *e), (*of_g, *of_d, *of_e), t)
    for net, weights in ((model.G, g), (model.D, d), (model.E, e)):
        for p, w in zip(net.parameters(), weights, strict=True):
            # A wrong term shows at 1e-3. Rounding, which Adam amplifies, differs between releases of torch.
            torch.testing.assert_close(p.T, w, rtol=1e-9, atol=1e-10)


def test_a_pixel_that_is_nearly_black_reaches_d_and_e_as_it_is():
    """Were it mapped to [-1, 1] and back, a sigmoid of 1e-9 would be 0, and nothing could be told from black images."""
    model = new("bigan-jlr")
    nn.init.constant_(model.G.out.weight, -1.0)
    seen = []
    for net in (model.D, model.E):
        net.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[0].detach()))
    model.training_step(Batch(images(), None, 0), model.optimizers())
    fakes = [x for x in seen if float(x.max()) < 0.1]
    assert len(fakes) == 2  # one for D, one for E
    for x in fakes:
        assert 0 < float(x.min()) < 1e-8


# --- Schedule and moments ---


def test_the_rate_is_constant_and_then_falls_to_a_hundredth():
    model = new("bigan", constant_steps=100, decay_steps=50)
    opt = model.optimizers()
    for step, rate in ((0, 2e-4), (100, 2e-4), (125, 2e-5), (150, 2e-6), (999, 2e-6)):
        model.set_rates(opt, step)
        assert [g["lr"] for o in opt.values() for g in o.param_groups] == [pytest.approx(rate)] * 3


@pytest.mark.parametrize("row", ROWS)
def test_recomputed_moments_are_averages_over_the_batches(row):
    model = new(row)
    batches = [Batch(images(seed=s), None, s) for s in range(9)]
    for b in batches[:3]:
        model.training_step(b, model.optimizers())
    weights = {k: v.clone() for k, v in model.named_parameters()}
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm1d)}
    means, variances = ({name: [] for name in norms} for _ in range(2))
    hooks = []
    for name, m in norms.items():

        def note(module, inputs, name=name):
            means[name].append(inputs[0].mean(0))
            variances[name].append(inputs[0].var(0))

        hooks.append(m.register_forward_pre_hook(note))
    model.finish(iter(batches))
    for hook in hooks:
        hook.remove()
    for name, m in norms.items():
        assert len(means[name]) == 5, name
        torch.testing.assert_close(m.running_mean, torch.stack(means[name]).mean(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(m.running_var, torch.stack(variances[name]).mean(0), rtol=1e-4, atol=1e-7)
        assert m.momentum == 0.1
    assert not model.training
    assert all(torch.equal(weights[k], v) for k, v in model.named_parameters())


# --- Learning ---


def test_the_autoencoders_and_bigan_learn_a_handful_of_images():
    x = images(8)
    for row in ("bigan-ae-l2", "bigan-ae-l1"):
        model = new(row, width=64, lr=2e-3)
        opt = model.optimizers()
        losses = [float(model.training_step(Batch(x, None, s), opt)["reconstruction_loss"]) for s in range(200)]
        assert losses[-1] < 0.3 * losses[0], row


def test_bigan_learns_that_images_are_black_or_white():
    x = torch.tensor([-1.0, 1.0]).repeat(16)[:, None, None, None].expand(-1, 1, 8, 8)
    model = new("bigan", width=64, lr=1e-3, weight_decay=0.0)
    opt = model.optimizers()

    def spread():
        with torch.no_grad():
            return float(model.eval().sample(200, generator=torch.Generator().manual_seed(0)).mean((1, 2, 3)).std())

    before = spread()
    for step in range(400):
        model.train().training_step(Batch(x, None, step), opt)
    model.finish(Batch(x, None, s) for s in range(10))
    assert before < 0.1
    assert spread() > 0.35
