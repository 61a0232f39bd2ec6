"""EBGAN and the GAN of its grid search against the equations of Zhao, Mathieu and LeCun (2017)."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from benchmarks.ebgan import grid
from ganbench import recipes
from ganbench.gan import Batch, checkpoint
from ganbench.reporting import results
from ganbench.reporting.results import Measurement, Result
from reference_models import ebgan
from reference_models.ebgan import EBGAN, ConvGenerator, GridGAN, energy, pulling_away


def seeded(make, *args, **kwargs):
    torch.manual_seed(0)
    return make(*args, **kwargs)


def small(**kwargs):
    return seeded(EBGAN, **{"image_size": 8, "g_width": 16, "d_width": 12, "g_layers": 2, "latent_dim": 5} | kwargs)


def images(n=6, size=8, seed=0):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def array(t):
    return t.detach().double().numpy()


def params(module):
    return sum(p.numel() for p in module.parameters())


# --- Losses ---


@pytest.mark.parametrize("reduction", ["norm", "sum", "mean"])
def test_the_energy_is_the_norm_of_the_error_or_its_square_as_a_sum_or_a_mean(reduction):
    a, b = images(4), images(4, seed=1)
    squares = np.square(array(a) - array(b)).reshape(4, -1)
    expected = {"norm": np.sqrt(squares.sum(1)), "sum": squares.sum(1), "mean": squares.mean(1)}[reduction]
    np.testing.assert_allclose(array(energy(a, b, reduction)), expected, rtol=1e-5)


def test_the_margin_goes_with_the_reduction_and_cuts_at_the_same_images():
    a, b = images(50), 0.3 * images(50, seed=1)
    active = []
    for reduction in ("norm", "sum", "mean"):
        model = small(reduction=reduction, margin=5.0)
        assert model.margin == pytest.approx({"norm": 5, "sum": 25, "mean": 25 / 64}[reduction])
        active.append(energy(a, b, reduction) < model.margin)
    assert 5 < int(active[0].sum()) < 45
    assert torch.equal(active[0], active[1])
    assert torch.equal(active[0], active[2])


def test_ds_loss_has_the_margin_of_each_image():
    real, fake = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 8.0, 20.0, 10.0])
    assert small(margin=10.0).d_loss(real, fake).item() == pytest.approx(1.5 + (7 + 2) / 4)


def test_the_pulling_away_term_is_the_mean_squared_cosine_of_pairs():
    code = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    s = array(code)
    pairs = [
        (s[i] @ s[j] / np.linalg.norm(s[i]) / np.linalg.norm(s[j])) ** 2 for i in range(5) for j in range(5) if i != j
    ]
    assert pulling_away(code).item() == pytest.approx(sum(pairs) / (5 * 4), rel=1e-5)
    assert pulling_away(torch.eye(4)).item() == pytest.approx(0.0, abs=1e-6)
    assert pulling_away(torch.ones(4, 3) * torch.tensor([[1.0], [-2.0], [3.0], [4.0]])).item() == pytest.approx(1.0)


def test_gs_loss_adds_the_term_at_its_weight_to_the_energy():
    fake, code = torch.tensor([3.0, 8.0]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert small().g_loss(fake, code).item() == pytest.approx(5.5)
    assert small(pt_weight=0.1).g_loss(fake, code).item() == pytest.approx(5.5 + 0.1 * 0.5)


def test_the_gans_losses_are_the_logistic_ones():
    model = seeded(GridGAN, image_size=8, g_width=16, d_width=12)
    real, fake = torch.tensor([0.3, -2.0]), torch.tensor([1.5, -0.7, 4.0])
    d_real, d_fake = (1 / (1 + np.exp(-array(t))) for t in (real, fake))
    assert model.d_loss(real, fake).item() == pytest.approx(-np.log(d_real).mean() - np.log(1 - d_fake).mean())
    assert model.g_loss(fake).item() == pytest.approx(-np.log(d_fake).mean())


# --- Gradients ---


@pytest.mark.parametrize("reduction", ["norm", "sum", "mean"])
def test_the_generators_gradient_goes_through_the_target_too(reduction):
    model = small(reduction=reduction)
    x = images().requires_grad_()
    whole = torch.autograd.grad(model.energies(x)[0].sum(), x)[0]

    def part(through, target):
        back = model.D(through)[1]
        return torch.autograd.grad(energy(0.5 * target, 0.5 * back, reduction).sum(), x)[0]

    of_target, of_reconstruction = part(x.detach(), x), part(x, x.detach())
    torch.testing.assert_close(whole, of_target + of_reconstruction)
    assert float(of_target.norm()) > 0.1 * float(whole.norm())
    if reduction == "sum":  # of |r - x|^2 for images of half the range: (x - r) / 2
        torch.testing.assert_close(of_target, 0.5 * (x - model.D(x)[1]).detach())


@pytest.mark.parametrize("pt_weight", [0.0, 0.1])
def test_each_loss_moves_its_own_network_and_the_term_is_gs_alone(monkeypatch, pt_weight):
    model = small(pt_weight=pt_weight)
    seen = []
    monkeypatch.setattr(ebgan, "minimize", lambda loss, o: seen.append((loss, o)) or loss.detach())
    opt = model.optimizers()
    model.training_step(Batch(images(), None, 0), opt)
    (d_loss, d_opt), (g_loss, g_opt) = seen
    assert (d_opt, g_opt) == (opt["D"], opt["G"])
    grads = torch.autograd.grad(d_loss, list(model.G.parameters()), allow_unused=True, retain_graph=True)
    assert all(g is None for g in grads)
    assert all(float(g.abs().sum()) > 0 for g in torch.autograd.grad(g_loss, list(model.G.parameters())))
    torch.manual_seed(1)
    fake = model.G(model.sample_latent(6))
    real_energy, (fake_energy, code) = model.energies(images())[0], model.energies(fake)
    expected = real_energy.mean() + (model.margin - fake_energy).clamp_min(0).mean()
    torch.manual_seed(1)
    seen.clear()
    model.training_step(Batch(images(), None, 0), opt)
    assert seen[0][0].item() == pytest.approx(expected.item(), rel=1e-5)
    assert seen[1][0].item() == pytest.approx((fake_energy.mean() + pt_weight * pulling_away(code)).item(), rel=1e-5)


# --- Networks ---


def test_the_networks_of_the_grid_search_count_their_layers_as_table_1_does():
    model = seeded(EBGAN, g_layers=5, g_width=400, d_layers=4, d_width=128)
    hidden = 100 * 400 + 3 * 400 * 400  # no bias before batch norm
    assert params(model.G) == hidden + 4 * 2 * 400 + 400 * 784 + 784
    assert params(model.D) == 784 * 128 + 2 * 128 * 128 + 3 * 128 + 128 * 784 + 784  # three layers up, one down
    gan = seeded(GridGAN, g_layers=2, g_width=400, d_layers=4, d_width=128, dropout=0.5)
    assert params(gan.G) == 100 * 400 + 2 * 400 + 400 * 784 + 784
    assert params(gan.D) == 784 * 128 + 2 * 128 * 128 + 3 * 128 + 128 + 1
    assert [m.p for m in gan.D.modules() if isinstance(m, nn.Dropout)] == [0.5] * 3


def test_images_of_the_grid_search_are_in_0_to_1_inside():
    model = small()
    x = images()
    code, back = model.D(x)
    (first, *_), (last, *_) = (
        [m for m in net.modules() if isinstance(m, nn.Linear)] for net in (model.D.encoder, model.D.decoder)
    )
    inside = (x.flatten(1) + 1) / 2
    torch.testing.assert_close(code, first(inside).relu())
    torch.testing.assert_close(back.flatten(1), 2 * last(code) - 1)
    assert model.energies(x)[0].tolist() == pytest.approx(
        (last(code) - inside).norm(dim=1).tolist(), rel=1e-4
    )


def test_the_convolutional_networks_have_the_layers_that_the_docstring_names():
    model = seeded(EBGAN, image_size=64, channels=3, convolutional=True, g_width=1024, d_width=64)
    up = 16 * (1024 * 512 + 512 * 256 + 256 * 128 + 128 * 3) + 3
    assert params(model.G) == 100 * 16 * 1024 + up + 2 * (1024 + 512 + 256 + 128)
    down = 16 * (3 * 64 + 64 * 128 + 128 * 256) + 64
    assert params(model.D) == down + 16 * (256 * 128 + 128 * 64 + 64 * 3) + 3 + 2 * (128 + 256 + 128 + 64)
    assert model.D.encoder(torch.zeros(2, 3, 64, 64)).shape == (2, 256, 8, 8)
    for net, std in ((model.G, 0.002), (model.D, 0.02)):
        weights = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
        assert [w.std().item() for w in weights] == pytest.approx([std] * len(weights), rel=0.1)


@pytest.mark.parametrize(
    ("size", "width", "maps"),
    [(128, 1024, [1024, 512, 256, 128, 64, 64]), (256, 2048, [2048, 1024, 512, 256, 128, 64, 64])],
)
def test_noise_enters_every_doubling_of_the_generator_for_imagenet(size, width, maps):
    with torch.device("meta"):
        net = ConvGenerator((3, size, size), 100, width, noisy=True)
        image = net(torch.zeros(2, sum(net.sizes)))
    assert image.shape == (2, 3, size, size)
    assert [bn.num_features for bn in net.bns] == maps
    noise = [64, 32, 16, 8, 4, 2][: len(maps) - 1]
    assert net.noise == [(n, 4 << i, 4 << i) for i, n in enumerate(noise)]
    assert [conv.in_channels for conv in net.ups] == [m + n for m, n in zip(maps, noise, strict=False)]
    assert net.out.kernel_size == (3, 3)


def test_each_map_of_noise_moves_the_image():
    model = seeded(EBGAN, image_size=32, channels=3, convolutional=True, g_width=64, d_width=4, noisy=True).eval()
    for p in model.G.parameters():
        nn.init.normal_(p, 0, 0.2)
    z = model.sample_latent(1, torch.Generator().manual_seed(0))
    start, before = 0, model.generate(z)
    for size in model.G.sizes:
        other = z.clone()
        other[:, start : start + size] *= -1
        assert not torch.allclose(model.generate(other), before, atol=1e-4)
        start += size
    assert start == model.latent_dim


# --- Arguments, optimisers, training ---


def test_the_optimisers_are_those_of_table_1():
    opt = small().optimizers()
    assert all(isinstance(o, Adam) and o.defaults["lr"] == 1e-3 for o in opt.values())
    opt = GridGAN(image_size=8, g_width=4, d_width=4, d_optimizer="sgd", lr=0.01).optimizers()
    assert isinstance(opt["D"], SGD)
    assert isinstance(opt["G"], Adam)
    assert [o.defaults["lr"] for o in opt.values()] == [0.01, 0.01]


@pytest.mark.parametrize(
    ("make", "args", "message"),
    [
        (EBGAN, {"reduction": "max"}, "reduction must be one of norm, sum, mean, not 'max'"),
        (EBGAN, {"d_layers": 1}, "must be 2 or more, not 5 and 1"),
        (GridGAN, {"g_layers": 1}, "must be 2 or more, not 1 and 2"),
        (GridGAN, {"d_optimizer": "lion"}, "must be adam or sgd, not 'lion' and 'adam'"),
        (EBGAN, {"image_size": 48, "convolutional": True}, "a power of two from 16 on if convolutional, not 48"),
    ],
)
def test_arguments_that_make_no_model_are_refused(make, args, message):
    with pytest.raises(ValueError, match=message):
        make(**args)


@pytest.mark.parametrize("pt_weight", [0.0, 0.1])
def test_it_overfits_four_images(pt_weight):
    """Samples come near the images, and the energies of real and of generated images meet below the margin."""
    x = (images(4, 4, seed=2)).sign().repeat_interleave(2, 2).repeat_interleave(2, 3)
    model = small(g_width=64, d_width=32, margin=2.0, pt_weight=pt_weight, g_lr=1e-3).train()
    opt = model.optimizers()
    for step in range(400):
        losses = model.training_step(Batch(x.repeat(8, 1, 1, 1), None, step), opt)
    with torch.no_grad():
        fake = model.eval().sample(64, None, torch.Generator().manual_seed(0))
        nearest = torch.cdist(fake.flatten(1), x.flatten(1)).min(1).values
    between = torch.pdist(x.flatten(1)).mean()
    assert float(nearest.mean()) < 0.5 * float(between)
    assert losses["real_loss"] < 2.0


# --- The grid search ---


def test_the_grid_has_the_configurations_of_table_1_and_a_seed_draws_the_same_sample():
    assert len(grid.grid(grid.SIZES)) == 512
    assert len(grid.grid(grid.SIZES | grid.OPTIMISERS)) == 6144
    chosen = grid.sample(24, 0)
    assert chosen == grid.sample(24, 0) != grid.sample(24, 1)
    kinds = [kind for kind, *_ in chosen.values()]
    assert {kind: kinds.count(kind) for kind in kinds} == {"EBGAN": 24, "EBGAN-PT": 24, "GAN": 24}
    for name, (kind, _, number, args) in chosen.items():
        if kind == "EBGAN":  # EBGAN-PT shares its configurations
            assert chosen[name.replace("ebgan-mnist", "ebgan-mnist-pt")][3] == args | {"pt_weight": 0.1}
            assert grid.grid(grid.SIZES)[number] == args


def test_the_recipes_of_the_grid_are_a_group_and_their_results_a_histogram(tmp_path, capsys):
    assert grid.main([str(tmp_path / "grid"), "--each", "2", "--steps", "7"]) == 0
    group, members = recipes.lookup(capsys.readouterr().out.strip())
    assert len(members) == len(group.recipes) == 6
    for recipe in members.values():
        assert recipe.train.steps == 7
        with torch.device("meta"):
            checkpoint.make_model(recipe.model.name, recipe.model.args, recipe.name)
    with pytest.raises(SystemExit):
        grid.main([str(tmp_path / "grid"), "--each", "2", "--histogram", str(tmp_path / "none")])
    assert "no results of these configurations" in capsys.readouterr().err
    for i, recipe in enumerate(members.values()):
        measured = [Measurement(grid.METRIC, "modified_score/1", "higher", float(i))]
        file = tmp_path / "results" / "runs" / recipe.name / "seed0" / "result.json"
        file.parent.mkdir(parents=True)
        results.save(Result({}, {}, measured), file)
    assert grid.main([str(tmp_path / "grid"), "--each", "2", "--histogram", str(tmp_path / "results")]) == 0
    assert "EBGAN-PT: 2 configurations, mean 2.000, best 3.000" in capsys.readouterr().out
    assert (tmp_path / "grid" / "ebgan-grid.png").read_bytes().startswith(b"\x89PNG")
