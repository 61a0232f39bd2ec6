"""LAPGAN: the pyramid, the losses by number, who learns from what, levels that are independent, the code's SGD."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ganbench.gan import Batch
from reference_models.lapgan import (
    LAPGAN,
    CoarsestDiscriminator,
    CoarsestGenerator,
    Discriminator,
    Generator,
    LargeDiscriminator,
    LargeGenerator,
    PairNorm,
    area_weights,
    enlarge,
)

TINY = {"sides": (4, 9, 18), "g_units": 24, "d_units": 16, "g_planes": 4, "d_planes": 4}


def new(**args):
    torch.manual_seed(0)
    return LAPGAN(**{**TINY, **args})


def images(n=12, side=18, seed=0, channels=3):
    """Smooth images in [-1, 1]."""
    x = torch.rand(n, channels, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(x, size=(side, side), mode="bilinear")


def labels(model, n):
    return torch.arange(n) % model.num_classes if model.num_classes else None


def count(net):
    return sum(p.numel() for p in net.parameters())


# --- The pyramid ---


def by_hand(x, m):
    """Means over m x m equal areas of one map: each pixel counts as much as lies in the area."""
    n = len(x)
    out = np.zeros((m, m))
    share = [[max(0, min((i + 1) * n / m, j + 1) - max(i * n / m, j)) for j in range(n)] for i in range(m)]
    for i in range(m):
        for j in range(m):
            area = np.outer(share[i], share[j])
            out[i, j] = (area * x).sum() / area.sum()
    return out


@pytest.mark.parametrize(("n", "m"), [(14, 8), (28, 14), (96, 64), (9, 4), (6, 6)])
def test_reducing_takes_means_over_equal_areas(n, m):
    x = np.random.default_rng(0).normal(size=(n, n))
    weights = area_weights(n, m).double().numpy()
    np.testing.assert_allclose(weights @ x @ weights.T, by_hand(x, m), atol=1e-6)
    if n % m == 0:
        expected = F.avg_pool2d(torch.from_numpy(x)[None], n // m)[0]
        np.testing.assert_allclose(weights @ x @ weights.T, expected, atol=1e-6)


def test_enlarging_is_linear_between_corners_that_stay():
    x = torch.tensor([[0.0, 1.0], [2.0, 5.0]])[None, None]
    row = lambda a, b: [a, a + (b - a) / 3, a + 2 * (b - a) / 3, b]  # noqa: E731
    columns = [row(a, b) for a, b in ((0.0, 2.0), (1.0, 5.0))]
    expected = [row(a, b) for a, b in zip(*columns, strict=True)]
    torch.testing.assert_close(enlarge(x, 4)[0, 0], torch.tensor(expected))


def test_each_level_is_standardised_and_reduced_from_the_next_and_differences_add_up():
    model, x = new(), images(40) * 0.3 + 0.2
    model.begin(x.split(7))
    np.testing.assert_allclose(model.mean, x.double().mean(0), atol=1e-6)
    np.testing.assert_allclose(model.std, x.double().std(0, correction=0), rtol=1e-4)
    levels = model.pyramid(x)
    assert [tuple(level.shape[1:]) for level in levels] == [(3, 4, 4), (3, 9, 9), (3, 18, 18)]
    np.testing.assert_allclose(levels[2], (x - x.mean(0)) / x.std(0, correction=0), atol=1e-3)
    np.testing.assert_allclose(levels[1], F.avg_pool2d(levels[2], 2), atol=1e-5)
    np.testing.assert_allclose(levels[0][3, 1], by_hand(levels[1][3, 1].double().numpy(), 4), atol=1e-5)
    lows = model.lows(levels)
    assert lows[0] is None
    torch.testing.assert_close(lows[2], F.interpolate(levels[1], size=(18, 18), mode="bilinear", align_corners=True))


# --- Networks ---


def test_the_networks_have_the_layers_of_the_code():
    k7, k5, c = 49, 25, 3
    coarse = CoarsestGenerator((3, 16, 16), 0, 100, 800), CoarsestDiscriminator((3, 16, 16), 0, 160)
    assert count(coarse[0]) == 101 * 800 + 801 * 800 + 801 * 768
    assert count(coarse[1]) == 769 * 160 + 161 * 160 + 161
    assert count(Generator(c, 32, 0, 64)) == (4 * k7 + 1) * 64 + (64 * k7 + 1) * 64 + (64 * k5 + 1) * 3
    assert count(Discriminator(c, 32, 0, 64)) == (3 * k5 + 1) * 64 + (64 * k5 + 1) * 64 + 64 * 12 * 12 + 1
    # with labels: a plane by a linear layer from the one-hot label, joined to the maps of both
    plane = 10 * 32 * 32 + 32 * 32
    assert count(Generator(c, 32, 10, 64)) == count(Generator(c, 32, 0, 64)) + plane + 64 * k7
    assert count(Discriminator(c, 32, 10, 64)) == count(Discriminator(c, 32, 0, 64)) + plane + 64 * k5
    assert count(CoarsestGenerator((3, 16, 16), 10, 100, 80)) == 111 * 80 + 81 * 80 + 81 * 768
    assert count(CoarsestDiscriminator((3, 16, 16), 10, 80)) == 779 * 80 + 81 * 80 + 81
    # LSUN: convolutions in groups, which divide the weights
    large = LargeGenerator(c, 16, 0, 0)
    assert count(large) == (
        (4 * k7 + 1) * 64 + (16 * k7 + 1) * 368 + (92 * k7 + 1) * 128 + (32 * k5 + 1) * 224 + 224 * k7 * 3
    )
    assert count(LargeDiscriminator(c, 32, 0, 0)) == (
        (3 * 9 + 1) * 48 + (12 * k5 + 1) * 448 + (28 * k7 + 1) * 416 + 416 * 20 * 20 + 1  # 166,400: as the code says
    )
    torch.testing.assert_close(PairNorm()(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)), torch.full((1, 1, 1, 1), 5.0))


def test_weights_start_as_in_the_scripts():
    coarse = LAPGAN(sides=(8,), g_units=300, d_units=300)
    assert [p.std().item() for p in coarse.G.parameters() if p.ndim > 1] == pytest.approx([0.05] * 3, rel=0.1)
    assert [p.std().item() for p in coarse.D.parameters() if p.ndim > 1] == pytest.approx([0.005] * 3, rel=0.1)
    assert all(not p.any() for p in coarse.parameters() if p.ndim == 1)
    for net, fan_in in ((CoarsestGenerator((3, 8, 8), 10, 100, 300).hidden2, 300),
                        (Generator(3, 14, 0, 64).body[2], 64 * 49)):
        bound = fan_in**-0.5  # Torch7: weights and biases from U(-a, a), a = 1 / sqrt(fan-in)
        for p in net.parameters():
            assert p.abs().max().item() == pytest.approx(bound, rel=0.05)


def test_the_second_hidden_layer_of_the_coarsest_generator_is_a_sigmoid_without_labels_and_relu_with_them():
    z = torch.randn(5, 6)
    for classes, squash in ((0, torch.sigmoid), (4, torch.relu)):
        g = CoarsestGenerator((1, 2, 2), classes, 6, 8)
        y = torch.eye(5, 4) if classes else None
        h = F.relu(g.hidden1(z if y is None else torch.cat([z, y], 1)))
        torch.testing.assert_close(g(z, None, y).flatten(1), g.out(squash(g.hidden2(h))))


def test_d_judges_the_sum_of_both_images_alone():
    d = Discriminator(3, 18, 0, 4).eval()
    h, low = images(5), images(5, seed=1)
    torch.testing.assert_close(d(h, low, None), d(h + low, torch.zeros_like(low), None))


@pytest.mark.parametrize("args", [{"sides": (8, 8)}, {"sides": (14, 8)}, {"sides": (4, 8)}, {"sides": ()},
                                  {"large": True, "num_classes": 10}])
def test_impossible_pyramids_are_refused(args):
    with pytest.raises(ValueError, match=r"sides must grow|num_classes must be 0"):
        new(**args)


# --- Losses ---


def test_the_losses_are_the_cross_entropies_of_the_code():
    model, real, fake = new(), torch.randn(50), torch.randn(50)
    p, q = (1 / (1 + np.exp(-a.double().numpy())) for a in (real, fake))
    both, targets = np.concatenate([p, q]), np.repeat([1, 0], 50)  # one batch, half real: BCECriterion averages over it
    expected = -(targets * np.log(both) + (1 - targets) * np.log(1 - both)).mean()
    assert model.d_loss(real, fake).item() == pytest.approx(expected, rel=1e-5)
    assert model.g_loss(fake).item() == pytest.approx(-np.log(q).mean(), rel=1e-5)


# --- The step ---


class Trace(nn.Module):
    """A network whose inputs are noted."""

    def __init__(self, net, seen, name):
        super().__init__()
        self.net, self.seen, self.name = net, seen, name

    def forward(self, *inputs):
        out = self.net(*inputs)
        self.seen.append((self.name, *(None if i is None else i.detach() for i in inputs), out.detach()))
        return out


@pytest.mark.parametrize("classes", [0, 3])
def test_every_level_sees_true_images_and_differences_and_fakes_of_true_conditions(classes):
    """Half the batch has the real pairs and the other half the conditions of fakes; G gets all conditions."""
    model = new(num_classes=classes)
    x, seen = images(), []
    y = labels(model, 12)
    model.begin([x])
    levels = model.pyramid(x)
    lows = model.lows(levels)
    opt = model.optimizers()
    for k in range(3):
        model.G[k], model.D[k] = Trace(model.G[k], seen, f"G{k}"), Trace(model.D[k], seen, f"D{k}")
    losses = model.training_step(Batch(x, y, 0), opt)
    assert [name for name, *_ in seen] == [
        "G0", "D0", "D0", "G1", "D1", "D1", "G2", "D2", "D2", "G0", "D0", "G1", "D1", "G2", "D2",
    ]
    one_hot = None if y is None else F.one_hot(y, 3).float()
    of = lambda t, rows: None if t is None else t[rows]  # noqa: E731
    first, second, both = slice(6), slice(6, 12), slice(12)
    noise = []
    for k in range(3):
        low = lows[k]
        h = levels[k] if low is None else levels[k] - low
        g, real, fake = seen[3 * k : 3 * k + 3]
        g_again, judged = seen[9 + 2 * k : 11 + 2 * k]
        for found, expected in (
            (real[1:4], (h[first], of(low, first), of(one_hot, first))),
            (g[2:4], (of(low, second), of(one_hot, second))),
            (fake[1:4], (g[-1], of(low, second), of(one_hot, second))),
            (g_again[2:4], (of(low, both), of(one_hot, both))),
            (judged[1:4], (g_again[-1], of(low, both), of(one_hot, both))),
        ):
            for a, b in zip(found, expected, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    torch.testing.assert_close(a, b)
        noise += [g[1], g_again[1]]
        side = model.sides[k]
        assert losses[f"d{side}_loss"].item() == pytest.approx(model.d_loss(real[-1], fake[-1]).item(), rel=1e-6)
        assert losses[f"g{side}_loss"].item() == pytest.approx(model.g_loss(judged[-1]).item(), rel=1e-6)
    assert [tuple(z.shape) for z in noise] == [(6, 100), (12, 100), (6, 81), (12, 81), (6, 324), (12, 324)]
    assert not torch.equal(noise[0], noise[1][:6])  # G gets new noise
    assert losses["d_loss"].item() == pytest.approx(np.mean([losses[f"d{s}_loss"].item() for s in model.sides]))
    assert losses["g_loss"].item() == pytest.approx(np.mean([losses[f"g{s}_loss"].item() for s in model.sides]))


@pytest.mark.parametrize("classes", [0, 3])
def test_a_level_learns_the_same_whatever_the_others_are(classes):
    """Training all levels at once is training each alone: other weights elsewhere change no bit of this level."""
    ends = []
    for strange in (False, True):
        model = new(num_classes=classes)
        model.begin([images()])
        if strange:
            for k in (0, 2):
                for p in (*model.G[k].parameters(), *model.D[k].parameters()):
                    nn.init.normal_(p, 0.0, 0.1)
        opt = model.optimizers()
        torch.manual_seed(1)
        for step in range(4):
            model.training_step(Batch(images(seed=step), labels(model, 12), step * 704), opt)
        ends.append([p.detach().clone() for p in (*model.G[1].parameters(), *model.D[1].parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    start = new(num_classes=classes)
    before = [*start.G[1].parameters(), *start.D[1].parameters()]
    assert not any(torch.equal(a, b) for a, b in zip(ends[0], before, strict=True))


def test_the_steps_are_those_of_torchs_sgd_with_dampening():
    """v <- m v + (1 - m) g from the first gradient on, w <- w - lr v, level by level; the schedules by number."""
    model = new(lr_decay=1.25, steps_per_epoch=2)
    opt = model.optimizers()
    weights = [opt[name].param_groups[k]["params"][0] for name in "DG" for k in range(3)]
    expected, velocities = [w.detach().clone() for w in weights], [None] * 6
    for step in range(6):
        epoch = step // 2
        model.training_step(Batch(images(seed=step), None, step), opt)
        lr, moments = 0.02 / 1.25**epoch, [0.0008 * epoch, 0.5 + 0.0008 * epoch, 0.5 + 0.0008 * epoch]
        for i, w in enumerate(weights):
            m, v = moments[i % 3], velocities[i]
            v = w.grad.clone() if v is None else m * v + (1 - m) * w.grad
            expected[i] = expected[i] - lr * v
            velocities[i] = v if m else None  # without momentum nothing is remembered
            torch.testing.assert_close(w.detach(), expected[i], rtol=1e-5, atol=1e-7)
        for optimizer in opt.values():
            assert [g["momentum"] for g in optimizer.param_groups] == pytest.approx(moments)
            assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([lr] * 3)
    model.set_rates(opt, 2 * 10**6)
    assert {g["lr"] for g in opt["G"].param_groups} == {1e-6}
    assert {g["momentum"] for g in opt["G"].param_groups} == {0.7}
    slow = new().optimizers()
    LAPGAN(**TINY).set_rates(slow, 704 * 250 + 703)
    assert slow["D"].param_groups[1]["momentum"] == pytest.approx(0.7)
    assert slow["D"].param_groups[0]["momentum"] == pytest.approx(0.2)
    assert slow["D"].param_groups[0]["lr"] == pytest.approx(0.02 / 1.000004**250)


# --- Samples ---


def test_sampling_goes_from_the_coarsest_to_the_finest_level():
    model = new(num_classes=3).eval()
    model.begin([images(30) * 0.1])
    z, y = model.sample_latent(5, torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1])
    assert z.shape == (5, 100 + 81 + 324)
    one_hot, z0, z1, z2 = F.one_hot(y, 3).float(), z[:, :100], z[:, 100:181], z[:, 181:]
    i2 = model.G[0](z0, None, one_hot)
    l1 = F.interpolate(i2, size=(9, 9), mode="bilinear", align_corners=True)
    i1 = l1 + model.G[1](z1, l1, one_hot)
    l0 = F.interpolate(i1, size=(18, 18), mode="bilinear", align_corners=True)
    i0 = l0 + model.G[2](z2, l0, one_hot)
    torch.testing.assert_close(model.generate(z, y), (model.mean + model.std * i0).clamp(-1, 1))


def test_a_level_is_sampled_given_the_true_coarser_image():
    model, x = new().eval(), images(7)
    model.begin([x])
    levels = model.pyramid(x)
    for k, side in enumerate((4, 9, 18)):
        found = model.sample_level(k, x, torch.Generator().manual_seed(3))
        width = 100 if k == 0 else side * side
        z = torch.rand(7, width, generator=torch.Generator().manual_seed(3)) * 2 - 1
        low = None if k == 0 else enlarge(levels[k - 1], side)
        h = model.G[k](z, low, None)
        torch.testing.assert_close(found, h if low is None else low + h)
    with pytest.raises(ValueError, match="label"):
        new(num_classes=3).sample_level(1, x)


def test_it_overfits_a_handful_of_images():
    """The coarsest level alone: samples come to lie near the four images, from far away."""
    torch.manual_seed(0)
    model = LAPGAN(sides=(4,), channels=1, g_units=64, d_units=64, lr=0.2)
    x = images(4, 4, channels=1).repeat(8, 1, 1, 1)
    model.begin([x])
    opt = model.optimizers()

    def distance():
        model.eval()
        with torch.no_grad():
            s = model.sample(64, generator=torch.Generator().manual_seed(0)).flatten(1)
        model.train()
        return torch.cdist(s, x[:4].flatten(1)).amin(1).mean().item()

    before = distance()
    for step in range(1200):
        model.training_step(Batch(x, None, step), opt)
    assert distance() < before / 4
