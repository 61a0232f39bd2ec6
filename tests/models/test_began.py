"""BEGAN against the equations of Berthelot et al. (2017)."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from ganbench import recipes
from ganbench.gan import Batch
from ganbench.metrics.began_convergence import convergence_measure, reconstruction_loss
from reference_models.began import BEGAN


def small(**kwargs):
    torch.manual_seed(0)
    return BEGAN(**{"image_size": 16, "channels": 1, "width": 8, **kwargs})


def images(n, shape=(1, 16, 16), seed=0):
    """Squares of 4 x 4 pixels of random brightness."""
    x = torch.rand(n, shape[0], shape[1] // 4, shape[2] // 4, generator=torch.Generator().manual_seed(seed))
    return 2 * x.repeat_interleave(4, 2).repeat_interleave(4, 3) - 1


def params(module):
    return sum(p.numel() for p in module.parameters())


# --- Losses, equilibrium, k ---


@pytest.mark.parametrize("eta", [1, 2])
def test_l_is_the_mean_over_pixels_of_the_error_to_the_power_of_eta(eta):
    v, back = images(3, seed=1), images(3, seed=2)
    expected = (np.abs(v.double().numpy() - back.double().numpy()) ** eta).mean()
    loss = small(eta=eta).reconstruction_loss(v, back)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    if eta == 1:  # what the metric of a finished model measures
        assert reconstruction_loss(v, back).mean().item() == pytest.approx(loss.item(), rel=1e-6)


def test_the_losses_the_balance_and_the_measure_of_convergence_by_number():
    model = small(gamma=0.5)
    model.k.fill_(0.25)
    real, fake = torch.tensor(0.4), torch.tensor(0.3)
    assert model.d_loss(real, fake).item() == pytest.approx(0.4 - 0.25 * 0.3)
    assert model.g_loss(fake).item() == pytest.approx(0.3)
    assert model.balance(real, fake).item() == pytest.approx(0.2 - 0.3)
    assert model.convergence(real, fake).item() == pytest.approx(0.4 + 0.1)
    assert model.convergence(real, fake).item() == pytest.approx(
        convergence_measure(real.repeat(2), fake.repeat(2), 0.5)[0], rel=1e-6
    )


def test_k_by_number_and_within_0_and_1():
    model = small(gamma=0.5, lambda_k=0.1)
    assert model.k.item() == 0
    steps = [(0.4, 0.3), (0.8, 0.1), (0.8, 0.1), (0.2, 0.4), (40.0, 0.0), (1.0, 20.0)]
    # 0 + 0.1 (0.2 - 0.3) < 0; 0.1 (0.4 - 0.1) = 0.03; 0.06; 0.06 + 0.1 (0.1 - 0.4) = 0.03; 2.03 > 1; 1 + 0.1 (-19.5)
    for (real, fake), k in zip(steps, (0, 0.03, 0.06, 0.03, 1, 0), strict=True):
        model.update_k(torch.tensor(real), torch.tensor(fake))
        assert model.k.item() == pytest.approx(k, abs=1e-7)
    assert BEGAN(image_size=8, width=2).lambda_k == 0.001


def test_a_step_logs_the_k_that_it_used_and_leaves_the_next_one(monkeypatch):
    model = small(gamma=1.0, lambda_k=0.5)
    model.k.fill_(0.5)
    log = {k: v.item() for k, v in model.training_step(Batch(images(4), None, 0), model.optimizers()).items()}
    assert set(log) == {"d_loss", "g_loss", "real_loss", *model.logged}
    assert log["k"] == 0.5
    assert log["d_loss"] == pytest.approx(log["real_loss"] - 0.5 * log["g_loss"], rel=1e-5)
    assert log["balance"] == pytest.approx(log["real_loss"] - log["g_loss"], rel=1e-5)
    assert log["convergence"] == pytest.approx(log["real_loss"] + abs(log["balance"]), rel=1e-5)
    assert model.k.item() == pytest.approx(min(max(0.5 + 0.5 * log["balance"], 0), 1), rel=1e-5)
    assert "k" in model.state_dict()  # a resumed run goes on from it


# --- Networks ---


@pytest.mark.parametrize(("size", "n"), [(32, 64), (64, 128), (128, 128)])
def test_the_networks_have_the_layers_of_the_description(size, n):
    def conv(cin, cout):
        return 9 * cin * cout + cout

    with torch.device("meta"):
        model = BEGAN(image_size=size, width=n)
    widths = {32: [n, 2 * n, 3 * n], 64: [n, 2 * n, 3 * n, 4 * n], 128: [n, 2 * n, 3 * n, 4 * n, 5 * n]}[size]
    encoder = conv(3, n) + 2 * conv(n, n) + widths[-1] * 64 * 64 + 64
    for cin, cout in pairwise(widths):
        encoder += conv(cin, cin) + conv(cin, cout) + conv(cout, cout)
    decoder = 64 * 64 * n + 64 * n + 2 * len(widths) * conv(n, n) + conv(n, 3)
    assert params(model.D.encoder) == encoder
    assert params(model.D.decoder) == params(model.G) == decoder
    strides = [m.stride for m in model.D.encoder.modules() if isinstance(m, nn.Conv2d)]
    assert strides.count((2, 2)) == len(widths) - 1
    kinds = {type(m) for m in model.modules()}
    assert nn.ELU in kinds
    assert not kinds & {nn.BatchNorm2d, nn.Dropout, nn.ConvTranspose2d, nn.ReLU}


def test_the_parameters_at_128_are_those_that_the_docstring_names():
    with torch.device("meta"):
        assert params(BEGAN(image_size=128, width=128)) == pytest.approx(25.2e6, abs=0.05e6)


def test_the_outputs_are_linear_and_images_are_clipped():
    model = small().eval()
    model.G.out.bias.data.fill_(3.0)
    model.D.decoder.out.bias.data.fill_(-3.0)
    z = model.sample_latent(5, torch.Generator().manual_seed(0))
    assert z.shape == (5, 64)
    assert -1 <= z.min() < -0.9 < 0.9 < z.max() <= 1
    assert model.G(z).max() > 1
    assert torch.equal(model.generate(z), model.G(z).clamp(-1, 1))
    assert model.D(images(5)).min() < -1
    assert torch.equal(model.reconstruct(images(5)), model.D(images(5)).clamp(-1, 1))
    assert model.discriminator_features(images(5)).shape == (5, 64)


def test_arguments_that_fit_no_network_are_refused():
    for wrong, match in (
        ({"image_size": 28}, "power of two"), ({"gamma": 1.5}, "between 0 and 1"), ({"eta": 3}, "1 or 2"),
    ):
        with pytest.raises(ValueError, match=match):
            small(**wrong)


# --- The step ---


class Pixels(nn.Module):
    """A generator that is one image."""

    def __init__(self, v):
        super().__init__()
        self.v = nn.Parameter(v)

    def forward(self, z):
        return self.v.expand(len(z), -1, -1, -1)


class Scale(nn.Module):
    """An auto-encoder that multiplies by a."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, v):
        return self.a * v


def test_a_step_by_hand_g_learns_through_d_s_answer_and_through_the_target():
    """With D(v) = a v, L(v) = (1 - a) mean |v|. So dL/dv = (1 - a) sign(v) / pixels, and dL/da = -mean |v|."""
    model, x, v, a, k = small(gamma=0.5), images(4), images(1, seed=5), 0.75, 0.4
    model.G, model.D = Pixels(v.clone()), Scale(a)
    model.k.fill_(k)
    opt = {name: torch.optim.SGD(getattr(model, name).parameters(), lr=1.0) for name in "DG"}
    model.set_rates = lambda opt, step: None
    log = model.training_step(Batch(x, None, 0), opt)
    mean_x, mean_v = x.abs().mean().item(), v.abs().mean().item()
    assert log["real_loss"].item() == pytest.approx((1 - a) * mean_x, rel=1e-5)
    assert log["g_loss"].item() == pytest.approx((1 - a) * mean_v, rel=1e-5)
    torch.testing.assert_close(model.G.v.detach(), v - (1 - a) * v.sign() / 256)  # the target alone gives sign(v) / 256
    assert model.D.a.item() == pytest.approx(a + mean_x - k * mean_v, rel=1e-5)
    balance = (1 - a) * (0.5 * mean_x - mean_v)
    assert model.k.item() == pytest.approx(k + 0.001 * balance, rel=1e-6)


def test_the_rate_is_halved_every_100_000_steps_down_to_its_floor():
    model = BEGAN(image_size=8, width=2)
    opt = model.optimizers()
    rates = {0: 1e-4, 99_999: 1e-4, 100_000: 5e-5, 200_000: 2.5e-5, 300_000: 2e-5, 900_000: 2e-5}
    for step, rate in rates.items():
        model.set_rates(opt, step)
        assert [o.param_groups[0]["lr"] for o in opt.values()] == pytest.approx([rate, rate])
    model = BEGAN(image_size=8, width=2, lr=1e-5)  # below the floor it stays
    opt = model.optimizers()
    model.set_rates(opt, 10**6)
    assert opt["G"].param_groups[0]["lr"] == 1e-5
    assert {o.param_groups[0]["betas"] for o in opt.values()} == {(0.9, 0.999)}


def test_losses_are_float32_under_mixed_precision():
    model = small()
    with torch.autocast("cpu", torch.bfloat16):
        log = model.training_step(Batch(images(4), None, 0), model.optimizers())
    assert all(v.dtype == torch.float32 and torch.isfinite(v) for v in log.values())


def test_a_few_images_are_learnt_by_heart_and_g_follows():
    model, x = small(gamma=0.5, lr=3e-3), images(8)
    opt = model.optimizers()
    log = [{k: v.item() for k, v in model.training_step(Batch(x, None, i), opt).items()} for i in range(100)]
    first, last = ({k: np.mean([s[k] for s in part]) for k in part[0]} for part in (log[:5], log[-20:]))
    assert last["real_loss"] < first["real_loss"] / 4
    assert last["convergence"] < first["convergence"] / 2
    assert (model.reconstruct(x) - x).abs().mean() < 0.1


# --- Recipes ---


def test_the_recipes_of_figure_3_differ_by_gamma_alone():
    members = [*recipes.lookup("began-figure3")[1].values()]
    assert [r.model.args.pop("gamma") for r in members] == [0.3, 0.5, 0.7]
    assert len({(str(r.model.args), str(r.train), str(r.evaluate)) for r in members}) == 1
    (score, _) = recipes.find("began-cifar10").reported
    assert (score.metric, score.value) == ("inception_score", 5.62)
