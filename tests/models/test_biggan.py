"""BigGAN against the equations of Brock, Donahue and Simonyan (2019), and the counts of the first author's code."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn.utils import parametrize
from torch.optim import SGD

from ganbench.gan import Batch
from ganbench.metrics.truncation import truncated_latents
from reference_models.biggan import BigGAN, BigGANDeep
from reference_models.layers import ConditionalBatchNorm, SelfAttention, largest_singular_values

SMALL = {"image_size": 32, "num_classes": 4, "g_width": 8, "d_width": 8, "latent_dim": 8, "embed_dim": 4,
         "attention": 16, "n_critic": 1, "standing": 3}
TABLES = {**SMALL, "embed_dim": 0, "attention": 0, "init_std": 0.02, "ortho": 0.0}


def small(make=BigGAN, **changes):
    torch.manual_seed(0)
    return make(**{**SMALL, **changes})


def data(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, 8, 8, generator=generator).repeat_interleave(4, 2).repeat_interleave(4, 3) * 2 - 1
    return Batch(x, torch.arange(n) % 4, 0)


def array(t):
    return t.detach().double().numpy()


def params(net):
    return sum(p.numel() for p in net.parameters())


def raw_weights(net):
    """The weights that an optimiser sees, by the name of their layer."""
    return {name.removesuffix(".parametrizations.weight.original").removesuffix(".weight"): p
            for name, p in net.named_parameters() if p.ndim > 1}


# --- Losses ---


def test_the_losses_are_the_hinge():
    model, real, fake = small(), torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 0.4, 2.0])
    assert model.d_loss(real, fake).item() == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1 + 1.4 + 3) / 4)
    assert model.g_loss(fake).item() == pytest.approx(-(-3 + 0.4 + 2) / 4)


@pytest.mark.parametrize("make", [BigGAN, BigGANDeep])
def test_the_penalty_is_half_the_papers_and_its_gradient_that_of_the_code(make):
    model = small(make, ortho=0.3).double()
    weights = raw_weights(model.G)
    embedding = weights.pop("embed")
    loss = model.penalty()
    loss.backward()
    total, shapes = 0.0, set()
    for name, p in weights.items():
        w = array(p).reshape(len(p), -1)  # rows are outputs: W^T of the paper
        off = (w @ w.T) * (1 - np.eye(len(w)))
        total += (off**2).sum()
        shapes.add(len(w) > w.shape[1])
        np.testing.assert_allclose(array(p.grad).reshape(w.shape), 0.3 * 2 * off @ w, rtol=1e-6, atol=1e-12,
                                   err_msg=name)
    assert shapes == {True, False}  # the penalty is computed in two ways
    assert loss.item() == pytest.approx(0.3 / 2 * total, rel=1e-9)
    assert embedding.grad is None


# --- Networks ---


def count(side_g, side_d, size, g, d, z, embed, classes, attention, deep):
    """Parameters of G and D by hand. side_g, side_d: multiples of the widths."""

    def conv(cin, cout, k):
        return cout * (cin * k * k + 1)

    def attend(c):
        return 2 * (c * c // 8) + 2 * (c * c // 2) + 1

    cg, cd = [g * k for k in side_g], [d * k for k in side_d]
    sides = [8 << i for i in range(len(cg) - 1)]
    part = z // len(cg) if embed and not deep else z
    condition = embed + part if embed else classes
    first = part + (embed if deep else 0)
    total = classes * embed + (first + 1) * 16 * cg[0] + 2 * cg[-1] + conv(cg[-1], 3, 3)
    for cin, cout in pairwise(cg):
        if deep:
            for out in (cin, cout):
                h = cin // 4
                total += conv(cin, h, 1) + 2 * conv(h, h, 3) + conv(h, out, 1) + 2 * condition * (cin + 3 * h)
        else:
            total += conv(cin, cout, 3) + conv(cout, cout, 3) + conv(cin, cout, 1) + 2 * condition * (cin + cout)
    of_g = total + (attend(cg[sides.index(attention) + 1]) if attention else 0)
    total = (cd[-1] + 1) + classes * cd[-1]
    if deep:
        total += conv(3, cd[0], 3)
        for cin, cout in pairwise(cd):
            h = cout // 4
            total += conv(cin, h, 1) + conv(cout, h, 1) + 2 * (2 * conv(h, h, 3) + conv(h, cout, 1))
            total += conv(cin, cout - cin, 1) if cout > cin else 0
    else:
        halved = 2 if size == 32 else len(sides)
        for i, (cin, cout) in enumerate(pairwise([3, *cd])):
            total += conv(cin, cout, 3) + conv(cout, cout, 3)
            total += conv(cin, cout, 1) if i < halved or cin != cout else 0
    after = [size >> (i + 1) for i in range(len(cd))]
    of_d = total + (attend(cd[after.index(attention) + deep]) if attention else 0)
    return of_g, of_d


G_OF = {32: (1, 1, 1, 1), 64: (16, 16, 8, 4, 2), 128: (16, 16, 8, 4, 2, 1), 256: (16, 16, 8, 8, 4, 2, 1)}
D_OF = {32: (1, 1, 1, 1), 64: (1, 2, 4, 8, 16), 128: (1, 2, 4, 8, 16, 16), 256: (1, 2, 4, 8, 8, 16, 16)}


@pytest.mark.parametrize(
    ("deep", "size", "width", "z", "embed", "classes", "attention", "official"),
    [
        (False, 32, 256, 128, 0, 10, 0, (4_304_387, 4_207_361)),
        (False, 32, 384, 80, 128, 10, 0, (9_231_875, 9_456_769)),
        (False, 64, 96, 100, 128, 1000, 32, (70_222_212, 45_511_970)),
        (False, 128, 96, 120, 128, 1000, 64, (70_433_988, 87_982_370)),
        (False, 256, 96, 140, 128, 1000, 64, (82_235_844, 99_225_890)),
        (True, 32, 256, 128, 128, 10, 0, (3_079_299, 651_649)),
        (True, 64, 128, 128, 128, 1000, 32, (49_829_636, 20_951_554)),
        (True, 128, 128, 128, 128, 1000, 64, (50_244_484, 34_590_210)),
        (True, 256, 128, 128, 128, 1000, 64, (55_736_708, 38_247_426)),
    ],
)
def test_the_networks_have_as_many_parameters_as_the_authors(
    deep, size, width, z, embed, classes, attention, official
):
    def counted(g, d):
        return count(G_OF[size], D_OF[size], size, g, d, z, embed, classes, attention, deep)

    assert counted(width, width) == official
    if width * size <= 16384:  # the layers are the same in a narrow form, which is built in no time
        model = (BigGANDeep if deep else BigGAN)(
            image_size=size, num_classes=classes, g_width=8, d_width=16, latent_dim=z, embed_dim=embed,
            attention=attention, init_std=0.02,
        )
        assert (params(model.G), params(model.D)) == counted(8, 16)


def sides_of_attention(net, *inputs):
    """Side of the maps that each attention of a network sees."""
    sides = []
    for m in net.modules():
        if isinstance(m, SelfAttention):
            m.register_forward_hook(lambda m, given, out: sides.append(given[0].shape[-1]))
    net(*inputs)
    return sides


@pytest.mark.parametrize(("make", "size", "z"), [(BigGAN, 32, 8), (BigGAN, 64, 10), (BigGANDeep, 32, 8)])
def test_attention_looks_at_the_maps_of_the_side_that_is_asked_for(make, size, z):
    for side in (8, 16):
        model = small(make, image_size=size, latent_dim=z, attention=side)
        z_, y = model.sample_latent(2), torch.tensor([0, 3])
        assert sides_of_attention(model.G, z_, y) == [side]
        assert sides_of_attention(model.D, model.generate(z_, y), y) == [side]


def outputs(model, z, y):
    """Output of G's first layer and of each of its blocks."""
    found = []
    watched = (model.G.project, *model.G.blocks)
    hooks = [m.register_forward_hook(lambda m, given, out: found.append(out)) for m in watched]
    with torch.no_grad():
        model.G(z, y)
    for hook in hooks:
        hook.remove()
    return found


def test_each_part_of_z_enters_at_its_own_block_and_the_class_at_all_blocks():
    model = small().eval()
    for p in model.G.parameters():
        nn.init.normal_(p.data)
    z, y = model.sample_latent(2), torch.tensor([1, 2])
    before = outputs(model, z, y)
    for part in range(4):
        other = z.clone()
        other[:, 2 * part : 2 * part + 2] += 1
        changed = [not torch.allclose(a, b) for a, b in zip(before, outputs(model, other, y), strict=True)]
        assert changed == [i >= part for i in range(4)]
    changed = [not torch.allclose(a, b) for a, b in zip(before, outputs(model, z, y - 1), strict=True)]
    assert changed == [False, True, True, True]


def test_every_layer_of_deep_sees_all_of_z_and_the_class():
    model = small(BigGANDeep).eval()
    z, y = model.sample_latent(2), torch.tensor([1, 2])
    c = torch.cat([model.G.embed.weight[y], z], 1)
    seen = []
    for m in model.G.modules():
        if isinstance(m, ConditionalBatchNorm):
            m.register_forward_hook(lambda m, given, out: seen.append(given[1]))
    model.G.project.register_forward_hook(lambda m, given, out: seen.append(given[0]))
    model.G(z, y)
    assert len(seen) == 1 + 6 * 4
    assert all(torch.equal(c, s) for s in seen)


def test_the_blocks_of_deep_keep_the_first_channels_in_g_and_all_channels_in_d():
    model = small(BigGANDeep, image_size=64, latent_dim=8).eval()
    up, down = model.G.blocks[5], model.D.blocks[2]  # 64 -> 32 channels, 16 -> 32
    for block in (up, down):
        conv = block.convs[-1]
        conv.parametrizations.weight.original.data.zero_()
        conv.parametrizations.weight[0]._u.zero_()
        parametrize.remove_parametrizations(conv, "weight", leave_parametrized=False)
        conv.weight.data.zero_()
    h = torch.randn(2, 64, 4, 4)
    assert torch.equal(up(h, torch.randn(2, 12)), h[:, :32].repeat_interleave(2, 2).repeat_interleave(2, 3))
    h = torch.randn(2, 16, 4, 4)
    means = h.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    torch.testing.assert_close(down(h)[:, :16], means)
    torch.testing.assert_close(down(h)[:, 16:], down.more(means))


@pytest.mark.parametrize("args", [SMALL, TABLES])
def test_spectral_norm_is_on_every_layer_but_the_tables_of_g(args):
    model = small(**args)
    bare = {name for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Embedding)
            and not parametrize.is_parametrized(m)}
    tables = {f"G.blocks.{i}.norm{k}.{table}" for i in range(3) for k in (1, 2) for table in ("gain", "shift")}
    assert bare == ({"G.embed"} if args["embed_dim"] else tables)


def test_weights_start_orthogonal_or_normal_and_biases_at_zero():
    model = small(num_classes=50)
    for w in (array(p).reshape(len(p), -1) for net in (model.G, model.D) for p in raw_weights(net).values()):
        gram = w @ w.T if len(w) <= w.shape[1] else w.T @ w
        np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-5)
    assert all(not p.any() for name, p in model.named_parameters() if name.endswith("bias"))
    wide = small(**{**TABLES, "g_width": 64, "d_width": 64})
    stds = [p.std().item() for net in (wide.G, wide.D) for p in raw_weights(net).values() if p.numel() > 20_000]
    assert len(stds) > 8
    assert stds == pytest.approx([0.02] * len(stds), rel=0.05)


def test_d_is_a_linear_function_of_its_features_with_a_part_for_the_class():
    model, x, y = small().eval(), data(4).x, torch.tensor([0, 1, 2, 3])
    h = array(model.discriminator_features(x))
    maps = []
    model.D.blocks[-1].register_forward_hook(lambda m, given, out: maps.append(array(out)))
    logits = array(model.D(x, y))
    np.testing.assert_allclose(h, np.maximum(maps[0], 0).sum((2, 3)), rtol=1e-5)
    w, b, v = array(model.D.logit.weight)[0], array(model.D.logit.bias), array(model.D.embed.weight)
    np.testing.assert_allclose(logits, h @ w + b + (v * h).sum(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": 48}, "image_size must be one of 32, 64, 128, 256"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"latent_dim": 10}, "latent_dim must be a multiple of 4 at 32 pixels"),
        ({"attention": 12}, "attention must be 0 or one of 16, 8"),
        ({"n_critic": 0}, "n_critic and accumulation"),
        ({"make": BigGANDeep, "embed_dim": 0}, "embed_dim must be at least 1"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        small(**changes)


# --- Latents ---


def test_truncated_latents_follow_the_truncated_normal_distribution():
    model = small(latent_dim=80)
    z = truncated_latents(model.sample_latent, 500, 0.7, torch.Generator().manual_seed(0)).flatten().numpy()
    assert np.abs(z).max() <= 0.7
    assert stats.kstest(z, stats.truncnorm(-0.7, 0.7).cdf).pvalue > 0.01
    assert stats.kstest(model.sample_latent(500).flatten().numpy(), "norm").pvalue > 0.01


# --- Training ---


def still(model):
    """Optimisers that move nothing, so that the gradients of a step can be looked at."""
    return {name: SGD(getattr(model, name).parameters(), 0.0) for name in ("D", "G")}


@pytest.mark.parametrize("make", [BigGAN, BigGANDeep])
def test_chunks_of_a_batch_give_the_gradient_of_the_whole(make):
    """In evaluation mode: otherwise each chunk has moments of its own, and moves the vectors of spectral norm."""
    n = 7  # chunks of 3, 3 and 1
    drawn = torch.randn(2 * n, 8).double(), torch.arange(2 * n) % 4
    found = []
    for accumulation in (1, 3):
        model = small(make, accumulation=accumulation).double().eval()
        for p in model.parameters():
            p.data.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())).double())
        queue = [t.clone() for t in drawn]

        def draw(x, queue=queue):
            out = [t[: len(x)] for t in queue]
            queue[:] = [t[len(x) :] for t in queue]
            return out

        model.draw = draw
        batch = data(n)
        losses = model.training_step(batch._replace(x=batch.x.double()), still(model))
        found.append((losses, {name: p.grad for name, p in model.named_parameters()}))
        assert not len(queue[0])
    (losses, gradients), (losses3, gradients3) = found
    for name, value in losses.items():
        assert losses3[name].item() == pytest.approx(value.item(), abs=1e-6), name
    for name, gradient in gradients.items():
        np.testing.assert_allclose(array(gradients3[name]), array(gradient), rtol=0, atol=1e-6, err_msg=name)
        assert gradient.any() or name == "D.logit.bias", name  # whose terms may cancel


def test_a_step_makes_n_critic_updates_of_d_on_parts_of_the_batch_and_one_of_g():
    model, seen, steps = small(n_critic=3, accumulation=2), [], []
    model.D.register_forward_hook(lambda m, given, out: seen.append(given[0].detach()))
    optimizers = model.optimizers()
    for name, optimizer in optimizers.items():
        optimizer.register_step_post_hook(lambda *_, name=name: steps.append(name))
    batch = data(12)
    model.training_step(batch, optimizers)
    assert steps == ["D", "D", "D", "G"]
    assert torch.equal(torch.cat([x[:2] for x in seen[:6]]), batch.x)  # each once; two real images before two generated
    assert [len(x) for x in seen] == [4] * 6 + [2] * 2


def test_the_signs_of_a_collapse_are_logged():
    model = small().eval()
    model.D.logit.bias.data.fill_(0.3)
    batch, drawn = data(8), (torch.randn(8, 8), torch.arange(8) % 4)
    model.draw = lambda x: drawn
    with torch.no_grad():
        real, fake = model.D(batch.x, batch.y), model.D(model.G(*drawn), drawn[1])
        model.G.blocks[1].conv1.parametrizations.weight.original.mul_(70)
    found = model.training_step(batch, still(model))
    assert set(model.logged) <= set(found)
    assert found["real_right"].item() == (real > 0).float().mean().item()
    assert found["fake_right"].item() == (fake < 0).float().mean().item()
    assert found["g_sigma"].item() == pytest.approx(70, rel=1e-3)  # orthogonal weights have the singular value 1
    assert found["d_sigma"].item() == pytest.approx(1, rel=1e-3)
    assert found["g_sigma"] == largest_singular_values(model.G).max()


@pytest.mark.parametrize("args", [SMALL, TABLES, {**SMALL, "make": BigGANDeep}])
def test_the_moments_at_the_end_are_averages_over_passes_of_samples(args):
    model = small(**args).train()
    model.training_step(data(6), model.optimizers())
    before = {name: p.clone() for name, p in model.state_dict().items() if "running" not in name and "num" not in name}
    norms = {name: m for name, m in model.G.named_modules() if isinstance(m, nn.BatchNorm2d)}
    seen = {name: [] for name in norms}
    for name, m in norms.items():
        m.register_forward_hook(lambda m, given, out, name=name: seen[name].append(array(given[0])))
    model.finish(iter([data(6)]))
    for name, m in norms.items():
        assert [len(h) for h in seen[name]] == [6, 6, 6]
        means = [h.mean((0, 2, 3)) for h in seen[name]]
        np.testing.assert_allclose(array(m.running_mean), np.mean(means, 0), atol=1e-5)
        variances = [h.transpose(1, 0, 2, 3).reshape(h.shape[1], -1).var(1, ddof=1) for h in seen[name]]
        np.testing.assert_allclose(array(m.running_var), np.mean(variances, 0), rtol=1e-4, atol=1e-6)
        assert m.momentum == 0.1
    assert not model.training
    assert not any(m.training for m in model.modules())
    assert all(torch.equal(p, model.state_dict()[name]) for name, p in before.items())


def test_a_step_in_bfloat16_has_finite_losses_in_float32():
    model = small().train()
    with torch.autocast("cpu", torch.bfloat16):
        found = model.training_step(data(8), model.optimizers())
    assert all(v.dtype == torch.float32 and torch.isfinite(v) for v in found.values())
    model.eval()
    x, y = data(8).x, data(8).y
    with torch.autocast("cpu", torch.bfloat16):
        h, logits = array(model.D.features(x)), array(model.D(x, y))
    w, b, v = array(model.D.logit.weight)[0], array(model.D.logit.bias), array(model.D.embed.weight)[y]
    np.testing.assert_allclose(logits, h @ w + b + (v * h).sum(1), rtol=1e-5, atol=1e-6)  # bfloat16 has 3 digits


def test_it_learns_a_bright_and_a_dark_class():
    model = small(num_classes=2, g_lr=1e-2, d_lr=1e-2, ortho=0.0).train()
    optimizers, y = model.optimizers(), torch.arange(8) % 2
    x = torch.where(y == 0, 0.7, -0.7)[:, None, None, None].expand(-1, 3, 32, 32).contiguous()
    for _ in range(40):
        model.training_step(Batch(x, y, 0), optimizers)
    model.finish(iter([Batch(x, y, 0)]))
    with torch.no_grad():
        samples = model.sample(20, torch.arange(20) % 2, torch.Generator().manual_seed(0)).mean((1, 2, 3))
    bright, dark = samples[0::2].mean(), samples[1::2].mean()  # single samples may still lie between
    assert bright > 0.2
    assert dark < -0.2
