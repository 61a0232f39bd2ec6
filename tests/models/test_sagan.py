"""SAGAN: places of attention, what stands in its place, networks at 128 pixels by number, spectral norm, two rates."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from ganbench import recipes
from ganbench.base.errors import UserError
from ganbench.gan import Batch, checkpoint
from reference_models.layers import ConditionalBatchNorm, SelfAttention
from reference_models.sagan import Residual

TINY = {"g_width": 8, "d_width": 8, "latent_dim": 6}


def new(**args):
    torch.manual_seed(0)
    return checkpoint.make_model("sagan", {**TINY, **args}, "test")


def batch(n=6, step=0):
    x = torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(step)) * 2 - 1
    return Batch(x, torch.arange(n) % 10, step)


# --- Losses and rates ---


def test_the_hinge_losses_are_their_formulas():
    real, fake = torch.tensor([-2.0, 0.25, 3.0]), torch.tensor([-4.0, -0.5, 0.5, 2.0])
    assert float(new().d_loss(real, fake)) == pytest.approx((3 + 0.75 + 0) / 3 + (0 + 0.5 + 1.5 + 3) / 4)
    assert float(new().g_loss(fake)) == pytest.approx(0.5)


def test_d_learns_four_times_as_fast_as_g():
    groups = {name: o.param_groups[0] for name, o in new().optimizers().items()}
    assert {name: group["lr"] for name, group in groups.items()} == {"G": 1e-4, "D": 4e-4}
    assert {group["betas"] for group in groups.values()} == {(0.0, 0.9)}


def test_a_step_has_fresh_latents_for_each_update():
    model, seen = new(n_critic=2).train(), []
    model.G.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.training_step(batch(8), model.optimizers())
    assert [len(z) for z in seen] == [4, 4, 4]
    assert len(torch.cat(seen).unique(dim=0)) == 12


# --- Networks ---


def conv(cin, cout, kernel=3):
    return cout * (cin * kernel**2 + 1)


def up(cin, cout, classes):
    return 2 * (cin + cout) * classes + conv(cin, cout) + conv(cout, cout) + conv(cin, cout, 1)


def down(cin, cout, change=True):
    """The hidden width is that of the output, as in the code; SN-GAN's is that of the input."""
    return conv(cin, cout) + conv(cout, cout) + change * conv(cin, cout, 1)


def attention(width):
    return 2 * width * (width // 8) + 2 * width * (width // 2) + 1


@pytest.mark.parametrize(("side", "g_width", "d_width"), [(0, 0, 0), (8, 1024, 512), (16, 512, 256), (32, 256, 128),
                                                          (64, 128, 64)])
def test_the_networks_at_128_pixels_have_as_many_parameters_as_the_layers_of_the_code(side, g_width, d_width):
    with torch.device("meta"):
        args = {"image_size": 128, "num_classes": 1000, "g_width": 64, "d_width": 64, "latent_dim": 128}
        model, residual = (new(**args, attention=side, block=block) for block in ("attention", "residual"))
    widths = (1024, 1024, 512, 256, 128, 64)
    g = 129 * 16 * 1024 + sum(up(a, b, 1000) for a, b in pairwise(widths)) + 2 * 64 + conv(64, 3)
    d = conv(3, 64) + conv(64, 64) + conv(3, 64, 1) + down(64, 128) + down(128, 256) + down(256, 512)
    d += down(512, 1024) + down(1024, 1024, False) + 1025 + 1000 * 1024
    for name, plain, width in (("G", g, g_width), ("D", d, d_width)):
        assert sum(p.numel() for p in getattr(model, name).parameters()) == plain + (attention(width) if side else 0)
        # The residual block in attention's place has as many weights, and no gamma.
        assert sum(p.numel() for p in getattr(residual, name).parameters()) == plain + (
            attention(width) - 1 if side else 0
        )


@pytest.mark.parametrize(("size", "side", "block", "kind"), [
    (32, 8, "attention", SelfAttention), (32, 16, "attention", SelfAttention), (32, 16, "residual", Residual),
    (64, 32, "attention", SelfAttention), (128, 8, "attention", SelfAttention), (128, 64, "attention", SelfAttention),
])
def test_the_block_sees_maps_of_the_named_side_once_in_each_network(size, side, block, kind):
    model, seen = new(image_size=size, attention=side, block=block), []
    for module in model.modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[-1]))
    with torch.no_grad():
        y = torch.tensor([0, 1])
        assert model.D(model.G(torch.zeros(2, 6), y), y).shape == (2,)
    assert seen == [side, side]


def test_at_the_start_attention_changes_nothing_so_that_without_it_all_else_is_equal():
    with_attention, without = new(attention=16).eval(), new(attention=0).eval()
    assert not hasattr(without.G.after[1], "gamma")
    shared = {k: v for k, v in with_attention.state_dict().items() if k in without.state_dict()}
    assert set(with_attention.state_dict()) - set(shared) == {
        k for k in with_attention.state_dict() if k.startswith(("G.after.1.", "D.after.0."))
    }
    without.load_state_dict(shared)
    z, y = torch.randn(4, 6), torch.arange(4)
    with torch.no_grad():
        x = with_attention.G(z, y)
        torch.testing.assert_close(x, without.G(z, y))
        torch.testing.assert_close(with_attention.D(x, y), without.D(x, y))


def test_the_narrow_recipes_differ_in_attention_alone():
    names = ("sagan-folder-cifar10-jpeg", "sagan-folder-cifar10-jpeg-no-attention")
    a, b = (recipes.find(name) for name in names)
    assert {**a.model.args, "attention": 0} == b.model.args
    assert a.model.args["attention"] == 16
    assert (a.train, a.evaluate, a.watch, a.deviations) == (b.train, b.evaluate, b.watch, b.deviations)
    other = recipes.find("sngan-projection-folder-cifar10-jpeg")
    assert (other.train, other.evaluate) == (a.train, a.evaluate)
    assert all(other.model.args[k] == a.model.args[k] for k in ("image_size", "num_classes", "g_width", "d_width"))


def test_all_weights_but_the_tables_of_batch_norm_are_divided_by_their_largest_singular_values():
    model = new()
    tables = [t for m in model.modules() if isinstance(m, ConditionalBatchNorm) for t in (m.gain, m.shift)]
    assert len(tables) == 12
    assert not any(t.weight.any() for t in tables)  # gains 1 and shifts 0
    normed = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding) and m not in tables]
    assert len(normed) == (1 + 3 * 3 + 1 + 4) + (3 * 2 + 2 * 2 + 2 + 4)
    for layer in normed:
        assert parametrize.is_parametrized(layer)
        for _ in range(200):
            layer.weight  # noqa: B018  (a pass in training takes a power iteration)
        with torch.no_grad():
            assert float(torch.linalg.matrix_norm(layer.weight.flatten(1), 2)) == pytest.approx(1, abs=5e-3)


def test_the_first_weights_are_glorots_of_gain_1():
    for name, p in new(g_width=32, d_width=32).named_parameters():
        if name.endswith("weight.original"):
            fans = (p.shape[0] + p.shape[1]) * p[0, 0].numel()
            assert float(p.detach().abs().max()) == pytest.approx((6 / fans) ** 0.5, rel=0.05), name


def test_the_projection_adds_the_inner_product_of_the_class_and_the_features():
    model = new().eval()
    x, y, other = batch().x, torch.zeros(6, dtype=torch.int64), torch.ones(6, dtype=torch.int64)
    with torch.no_grad():
        h, v = model.discriminator_features(x).double(), model.D.embed.weight.double()
        difference = model.D(x, other) - model.D(x, y)
    torch.testing.assert_close(difference.double(), h @ (v[1] - v[0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("args", "word"), [
    ({"image_size": 48}, "32, 64, 128"), ({"attention": 4}, "0, 8, 16"), ({"attention": 32}, "0, 8, 16"),
    ({"block": "dense"}, "residual"), ({"num_classes": 0}, "num_classes"), ({"g_width": 4}, "at least 8"),
])
def test_arguments_that_do_not_fit_are_refused(args, word):
    with pytest.raises(UserError, match=word):
        new(**args)
