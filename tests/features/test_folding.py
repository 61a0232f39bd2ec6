"""Convolutions with batch norm folded in; oneDNN's own are used only for shapes on which they are right."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from ganbench.features import folding
from ganbench.features.folding import Convolution, Form

ACTIVATION = {"none": lambda x: x, "relu": F.relu, "relu6": F.relu6}


def state(c=5, out=6, kernel=(3, 1)):
    g = torch.Generator().manual_seed(0)
    return {
        "c.weight": torch.randn(out, c, *kernel, generator=g), "bn.weight": torch.rand(out, generator=g) + 0.5,
        "bn.bias": torch.randn(out, generator=g), "bn.running_mean": torch.randn(out, generator=g),
        "bn.running_var": torch.rand(out, generator=g) + 0.5,
    }


def convolution(c=5, out=6, kernel=(3, 1), stride=2, activation="relu", groups=1):
    entries = state(c // groups, out, kernel)
    weight, bias = folding.folded(entries, "c", "bn", (out, c // groups, *kernel), 1e-3)
    assert not entries
    form = Form((kernel[0] // 2, kernel[1] // 2), (stride, stride), activation, groups)
    return Convolution(weight, bias, form)


def batch(n, c=5, h=9, w=7, dtype=torch.float32):
    x = torch.randn(n, c, h, w, generator=torch.Generator().manual_seed(n))
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def public(module, x):
    return folding._public(x, module.weight, module.bias, module.form)


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("activation", list(ACTIVATION))
def test_it_is_convolution_then_batch_norm_then_the_activation(activation, groups):
    module, x, entries = convolution(8, 8, (3, 3), 2, activation, groups), batch(2, 8), state(8 // groups, 8, (3, 3))
    out = F.conv2d(x, entries["c.weight"], None, 2, 1, 1, groups)
    names = ("running_mean", "running_var", "weight", "bias")
    expected = ACTIVATION[activation](F.batch_norm(out, *(entries[f"bn.{k}"] for k in names), eps=1e-3))
    assert expected.max() > 6 or activation == "relu6"
    assert torch.allclose(module(x), expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(public(module, x), expected, rtol=1e-5, atol=1e-5)


def test_an_entry_that_is_missing_or_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"no c\.weight of \(6, 5, 3, 3\)"):
        folding.folded(state(), "c", "bn", (6, 5, 3, 3), 1e-3)
    entries = state()
    del entries["bn.running_var"]
    with pytest.raises(ValueError, match=r"no bn\.running_var of \(6,\)"):
        folding.folded(entries, "c", "bn", (6, 5, 3, 1), 1e-3)


@pytest.fixture
def fused(monkeypatch):
    """`fused(fault)` puts a product of our own in the place of oneDNN's; it returns the shapes that reach it."""

    def replace(fault):
        shapes = []

        def convolve(x, weight, bias, form):
            shapes.append(tuple(x.shape))
            return fault(x, folding._public(x, weight, bias, form))

        folding._agrees.cache_clear()
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
        monkeypatch.setattr(folding, "_reordered", lambda weight, form, shape: weight)
        monkeypatch.setattr(folding, "_fused", convolve)
        return shapes

    yield replace
    folding._agrees.cache_clear()


def raised(x, out):
    raise RuntimeError("could not create a primitive")


def one_channel(x, out):
    return out.index_fill(1, torch.tensor([2]), 0.0)


def one_pixel(x, out):
    out = out.clone()
    out[-1, -1, -1, -1] += 1
    return out


def batches_of_three(x, out):
    return out.roll(1, 0) if len(x) == 3 else out


@pytest.mark.parametrize("fault", [raised, one_channel, one_pixel, batches_of_three, lambda x, out: out[:, :, :-1]])
def test_a_wrong_convolution_costs_no_digit_in_any_batch(fused, fault):
    shapes, module = fused(fault), convolution()
    for n in (2, 3, 1, 3, 2):
        assert torch.equal(module(batch(n)), public(module, batch(n)))
    assert module.fused is folding.all_fused(torch.nn.Sequential(module)) is False
    tried = [(2, 5, 9, 7), (3, 5, 9, 7), (1, 5, 9, 7)]
    if fault is batches_of_three:  # the others are right, and used
        assert shapes == [(2, 5, 9, 7), *tried, (1, 5, 9, 7), (2, 5, 9, 7)]
    else:
        assert shapes == tried


def image_rounded(x, weight, bias, form):
    return folding._public(x.bfloat16().float(), weight, bias, form)


def weight_rounded(x, weight, bias, form):
    return folding._public(x, weight.bfloat16().float(), bias, form)


def another_limit(x, weight, bias, form):
    return folding._public(x, weight, bias, form._replace(activation="none")).clamp(0, 5.9)


def no_upper_limit(x, weight, bias, form):
    return folding._public(x, weight, bias, form._replace(activation="relu"))


def no_lower_limit(x, weight, bias, form):
    return folding._public(x, weight, bias, form._replace(activation="none")).clamp(max=6)


@pytest.mark.parametrize(("activation", "groups", "wrong"), [
    *(("relu", 1, wrong) for wrong in (image_rounded, weight_rounded, another_limit)),
    *(("relu6", groups, wrong) for groups in (1, 8)
      for wrong in (image_rounded, weight_rounded, another_limit, no_upper_limit, no_lower_limit)),
])
def test_a_convolution_that_rounds_its_inputs_or_cuts_elsewhere_is_not_used(
    fused, monkeypatch, activation, groups, wrong
):
    fused(lambda x, out: out)
    monkeypatch.setattr(folding, "_fused", wrong)
    module, x = convolution(8, 8, (3, 3), 1, activation, groups), batch(2, 8)
    assert torch.equal(module(x), public(module, x))
    assert module.fused is False


def test_a_right_convolution_is_used_for_each_shape_layout_and_dtype_after_one_trial(fused):
    shapes, module = fused(lambda x, out: out), convolution(activation="none")
    for _ in range(2):
        for x in (batch(2), batch(3), batch(3).contiguous(), batch(3, h=12), batch(3, dtype=torch.bfloat16)):
            module(x)
    assert len(shapes) == 5 * 3  # a trial and two uses of each
    assert module.fused is True


SHAPES = [(5, 6, (3, 1), 2, 1), (448, 384, (3, 3), 1, 1), (3, 8, (3, 3), 2, 1), (2048, 64, (1, 1), 1, 1),
          (64, 64, (5, 5), 2, 64)]


@pytest.mark.parametrize(("activation", "dtype"), [
    ("relu", torch.float32), ("relu", torch.bfloat16), ("relu6", torch.float32),
])
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_of_the_trial_are_exact_in_its_dtype(fused, shape, activation, dtype):
    """In float64 they are the same: otherwise a right convolution with another order of its sums would not be used."""
    seen = []

    def exact(x, weight, bias, form):
        x, weight, bias = (t.double() for t in (x, weight, bias))
        unit = min(t[t != 0].abs().min().item() for t in (x, bias))  # of the sums: 1, or a power of two below
        unit = min(unit, 1.0)
        assert unit == 2.0 ** round(torch.tensor(unit).log2().item())
        for t in (x / unit, weight, bias / unit):
            assert torch.equal(t, t.round())
        if dtype == torch.float32:  # every partial sum too
            sums = folding._public(x.abs(), weight.abs(), bias.abs(), form._replace(activation="none"))
            assert (sums / unit).max() < 2**24
        out = folding._public(x, weight, bias, form)
        assert out.max() < (2**24 if dtype == torch.float32 else 2**8)
        seen.append(out)
        return out.to(dtype)

    fused(lambda x, out: out)
    channels, width, kernel, stride, groups = shape
    x = batch(2, c=channels, dtype=dtype)
    form = Form((kernel[0] // 2, kernel[1] // 2), (stride, stride), activation, groups)
    with mock.patch.object(folding, "_fused", exact):
        assert folding._agrees(
            x.shape, x.stride(), (width, channels // groups, *kernel), x.shape, dtype, form, 1
        )
    [out] = seen
    assert 0.1 < (out == 0).double().mean() < 0.9  # the activation has something to do, and something to leave
    if activation == "relu6":
        assert (out == 6).double().mean() > 0.02
        assert ((out > 0) & (out < 6)).double().mean() > 0.1
