"""YLG: masks against a brute-force enumeration, the layer against a loop over queries, steps and inversion."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from ganbench.gan import Batch, capabilities
from reference_models import sagan, ylg
from reference_models.ylg import YLG, LocalAttention, masks

SMALL = {"g_width": 32, "d_width": 32, "latent_dim": 8, "attention": 8, "heads": 4}
NAMES = ("right to left, step 1", "right to left, step 2", "left to right, step 1", "left to right, step 2")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def array(t):
    return t.detach().double().numpy()


# --- Masks ---


def walk(side):
    """The cells (row, column) of a grid, one anti-diagonal after the other, each from its top right end down."""
    return [(row, total - row) for total in range(2 * side - 1) for row in range(side) if 0 <= total - row < side]


def may_attend(name, i, j, block):
    """Whether the i-th cell of a walk may attend to the j-th, said in words of the pattern."""
    same_block = i // block == j // block
    return {
        "left to right, step 1": same_block and j <= i,
        "left to right, step 2": j == i or (j + 1) % block == 0,
        "right to left, step 1": same_block and j >= i,
        "right to left, step 2": j == i or j % block == 0,
    }[name]


@pytest.mark.parametrize("side", [2, 4, 8])
def test_masks_are_those_of_a_walk_along_the_anti_diagonals(side):
    found, at = masks(side), walk(side)
    assert found.shape == (4, side**2, side**2)
    for name, mask in zip(NAMES, found, strict=True):
        for i, (row, column) in enumerate(at):
            for j, (other_row, other_column) in enumerate(at):
                allowed = bool(mask[row * side + column, other_row * side + other_column])
                assert allowed == may_attend(name, i, j, side), (name, i, j)


def test_cells_are_enumerated_by_their_distance_to_the_corner_ties_by_row():
    assert ylg.manhattan(4).tolist() == [0, 1, 4, 2, 5, 8, 3, 6, 9, 12, 7, 10, 13, 11, 14, 15]


@pytest.mark.parametrize("side", [4, 8, 16])
def test_two_steps_give_full_information_and_one_does_not(side):
    """An edge of the information-flow graph leads from j to i where the mask of (i, j) allows it."""
    rtl1, rtl2, ltr1, ltr2 = masks(side).double()
    for first, second in ((rtl1, rtl2), (ltr1, ltr2)):
        assert bool((second @ first > 0).all())  # a path from every input to every output
        assert not bool((first @ first > 0).all())
        assert not bool((first @ second > 0).all())  # the steps in the other order
    for mask in masks(side):
        assert not bool(mask.all())
        assert bool(mask.diagonal().all())
    assert not bool(masks(side).any(0).all())  # nor do all heads of one layer together
    assert float(masks(side).sum((1, 2)).max()) < 2 * side**3  # of the order of N sqrt(N)


# --- The layer ---


def by_a_loop(layer, h):
    """The layer's output in float64, one query of one head at a time, as the definition says."""
    x, side = array(h), layer.side
    heads, n = layer.heads, side**2
    allowed = [masks(side).numpy()[2 * (head >= heads // 2) + head % 2] for head in range(heads)]

    def conv(net):
        return np.einsum("oc,nchw->nohw", array(net.weight)[:, :, 0, 0], x)

    def pooled(maps):
        return maps.reshape(*maps.shape[:2], side, 2, side, 2).max((3, 5)).reshape(*maps.shape[:2], n)

    queries, keys, values = conv(layer.theta), pooled(conv(layer.phi)), pooled(conv(layer.g))
    c, d = keys.shape[1] // heads, values.shape[1] // heads
    read = np.zeros((len(x), values.shape[1], 2 * side, 2 * side))
    weights = np.zeros((len(x), heads, 4 * n, n))
    for image in range(len(x)):
        for head in range(heads):
            k, v = keys[image, head * c :][:c], values[image, head * d :][:d]
            for query, (row, column) in enumerate(np.ndindex(2 * side, 2 * side)):
                seen = np.flatnonzero(allowed[head][query % n])
                scores = np.exp(queries[image, head * c :, row, column][:c] @ k[:, seen])
                weights[image, head, query, seen] = scores / scores.sum()
                read[image, head * d : (head + 1) * d, row, column] = v[:, seen] @ scores / scores.sum()
    out = np.einsum("oc,nchw->nohw", array(layer.out.weight)[:, :, 0, 0], read)
    return x + layer.gamma.item() * out, weights


@pytest.mark.parametrize(("width", "side", "heads"), [(64, 8, 8), (32, 16, 4), (64, 8, 4)])
def test_the_layer_is_a_loop_over_queries(width, side, heads):
    layer, h = LocalAttention(width, side, heads).double(), 3 * torch.randn(2, width, side, side).double()
    assert torch.equal(layer(h), h)  # gamma starts at 0
    layer.gamma.data.fill_(0.7)
    expected, weights = by_a_loop(layer, h)
    np.testing.assert_allclose(array(layer(h)), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(array(layer.attention(h)), weights, rtol=1e-9, atol=1e-9)


def test_gradients_reach_only_the_keys_that_a_query_may_attend_to():
    layer = LocalAttention(32, 8, 4)
    layer.gamma.data.fill_(1.0)
    h = torch.randn(1, 32, 8, 8, requires_grad=True)
    query = 5  # of 64
    (gradient,) = torch.autograd.grad(layer(h)[0, :, query // 8, query % 8].square().sum(), h)
    reached = (gradient[0].abs().sum(0) > 0).view(4, 2, 4, 2).any(3).any(1).flatten()  # keys whose pixels matter
    seen = masks(4)[:, query % 16].any(0)
    seen[(query // 8 // 2) * 4 + query % 8 // 2] = True  # the query's own pixel
    assert torch.equal(reached, seen)
    assert not bool(seen.all())


@pytest.mark.parametrize(("width", "heads"), [(64, 6), (32, 8), (64, 0), (48, 4)])
def test_heads_that_do_not_divide_the_channels_are_refused(width, heads):
    with pytest.raises(ValueError, match="heads must be a multiple of 4"):
        LocalAttention(width, 8, heads)


# --- Networks, losses, steps ---


def shapes(net):
    return {name: tuple(p.shape) for name, p in net.state_dict().items()}


@pytest.mark.parametrize(("size", "attention", "width"), [(32, 16, 32), (128, 32, 16)])
def test_all_weights_are_those_of_sagan(size, attention, width):
    args = {"image_size": size, "attention": attention, "g_width": width, "d_width": width}
    ours = YLG(**args, heads=4)
    assert shapes(ours) == shapes(sagan.SAGAN(**args))
    for net in (ours.G, ours.D):
        (layer,) = (m for m in net.modules() if isinstance(m, LocalAttention))
        assert all(parametrize.is_parametrized(conv) for conv in (layer.theta, layer.phi, layer.g, layer.out))


@pytest.mark.parametrize("width", [256, 128])  # G's and D's at 128 pixels
def test_the_layer_costs_no_weight_more_than_dense_attention(width):
    """Counted by hand: theta and phi C^2 / 8, g and out C^2 / 2, and gamma."""
    layer = LocalAttention(width, 32, 8)
    assert sum(p.numel() for p in layer.parameters()) == 2 * width**2 // 8 + 2 * width**2 // 2 + 1
    assert layer.state_dict().keys() == dict(layer.named_parameters()).keys()  # masks are not stored


def test_losses_are_the_hinges_closed_form():
    model, real, fake = YLG(**SMALL), torch.randn(50) * 2, torch.randn(50) * 2
    r, f = array(real), array(fake)
    d_loss = np.maximum(0, 1 - r).mean() + np.maximum(0, 1 + f).mean()
    assert model.d_loss(real, fake).item() == pytest.approx(d_loss, rel=1e-6)
    assert model.g_loss(fake).item() == pytest.approx(-f.mean(), rel=1e-5)


def test_two_time_scales():
    for name, rate in (("G", 1e-4), ("D", 4e-4)):
        (group,) = YLG(**SMALL).optimizers()[name].param_groups
        assert (group["lr"], group["betas"]) == (rate, (0.0, 0.9))


def test_it_overfits_a_handful_of_images():
    """D tells four images from G's, and attention is in use: its gate has left 0 in both networks."""
    model = YLG(**SMALL, num_classes=2, g_lr=1e-5, d_lr=1e-3).train()
    x, y, opt = torch.rand(4, 3, 32, 32).round() * 2 - 1, torch.arange(4) % 2, model.optimizers()
    losses = [model.training_step(Batch(x, y, step), opt)["d_loss"].item() for step in range(14)]
    assert losses[0] > 1
    assert np.mean(losses[-4:]) < 0.5
    for net in (model.G, model.D):
        (layer,) = (m for m in net.modules() if isinstance(m, LocalAttention))
        assert layer.gamma.item() != 0


def test_products_in_bfloat16_change_little():
    model = YLG(**SMALL).eval()
    for m in model.modules():
        if isinstance(m, LocalAttention):
            nn.init.ones_(m.gamma)
    x, y = torch.rand(4, 3, 32, 32) * 2 - 1, torch.arange(4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = model.D(x, y)
    with torch.no_grad():
        whole = model.D(x, y)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("words", "args"),
    [
        ("image_size must be one of 32, 64, 128", {"image_size": 28}), ("at least 1", {"num_classes": 0}),
        ("attention must be one of 8, 16", {"attention": 0}), ("heads must be", {"g_width": 32}),
    ],
)
def test_arguments_that_make_no_network_are_refused(words, args):
    with pytest.raises(ValueError, match=words):
        YLG(**args)


# --- Inversion ---


def test_the_loss_of_inversion_weighs_ds_features_by_the_attention_that_they_receive():
    model = YLG(**{**SMALL, "d_width": 64, "heads": 8, "g_width": 64}).double().eval()
    assert "inversion_loss" in capabilities(model)
    x, fake = (torch.rand(3, 3, 32, 32).double() * 2 - 1 for _ in range(2))
    with torch.no_grad():
        found = array(model.inversion_loss(x)(fake))
        blocks = model.D.blocks[:2]  # the maps of 16 x 16 and of 8 x 8
        a, b = (array(blocks[1](blocks[0](images))) for images in (x, fake))
    (layer,) = (m for m in model.D.modules() if isinstance(m, LocalAttention))
    _, weights = by_a_loop(layer, torch.from_numpy(a))
    expected = np.zeros(3)
    for image in range(3):
        for head in range(4):  # of eight: the right-to-left half
            mean = np.zeros((4, 4))
            for key in range(16):
                given = weights[image, head, :, key]
                mean[key // 4, key % 4] = given[given > 0].mean()
            difference = (a - b)[image] * mean.repeat(2, 0).repeat(2, 1)
            expected[image] += math.sqrt((difference**2).sum())
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert model.inversion_loss(x)(x).tolist() == [0, 0, 0]


def test_an_image_of_the_model_has_a_lower_loss_at_its_own_latent_and_gradients_reach_z():
    model = YLG(**SMALL).eval()
    z, y = model.sample_latent(4), torch.arange(4)
    with torch.no_grad():
        x = model.generate(z, y)
    other = z.flip(0).requires_grad_()
    loss = model.inversion_loss(x)(model.generate(other, y))
    assert bool((loss > 0).all())
    (gradient,) = torch.autograd.grad(loss.sum(), other)
    assert bool((gradient.abs().sum(1) > 0).all())
    assert model.inversion_loss(x)(model.generate(z, y)).abs().max().item() < 1e-4
