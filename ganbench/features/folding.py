"""Convolutions of pretrained networks, made fast: batch norm folded in, the activation inside oneDNN's convolution.

Folding is done in float64, and images are channels last in memory. oneDNN's convolution with an activation is a private
function of torch. It is used only for shapes on which it agreed with torch's public convolution to the bit, on whole
numbers or binary fractions, whose sums are the same in any order.
"""

import contextlib
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[int, int]
MISSING = (AttributeError, RuntimeError, TypeError)  # a private function is not in this torch or for this processor

# By activation: its name in oneDNN and the numbers that go with it.
ACTIVATIONS: dict[str, tuple[str, list[float]]] = {
    "none": ("none", []), "relu": ("relu", []), "relu6": ("hardtanh", [0.0, 6.0]),
}


class Form(NamedTuple):
    """The kind of a convolution. groups: 1, or the number of channels (depthwise). activation: of ACTIVATIONS."""

    padding: Pair
    stride: Pair
    activation: str
    groups: int = 1


def take(state: dict[str, Tensor], key: str, shape: tuple[int, ...]) -> Tensor:
    """Remove an entry of that shape from `state` and return it. Raises ValueError if there is none."""
    value = state.pop(key, None)
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        raise ValueError(f"no {key} of {shape}")
    return value


def folded(
    state: dict[str, Tensor], convolution: str, norm: str, shape: tuple[int, ...], epsilon: float
) -> tuple[Tensor, Tensor]:
    """Take a convolution without bias and its batch norm from `state`: weight and bias of both in one, float32.

    convolution, norm: the names of the layers. shape: of the weight. Raises ValueError like `take`.
    """
    weight = take(state, f"{convolution}.weight", shape).double()
    gamma, beta, mean, variance = (
        take(state, f"{norm}.{k}", shape[:1]).double() for k in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / torch.sqrt(variance + epsilon)
    return (weight * scale.view(-1, 1, 1, 1)).float(), (beta - mean * scale).float()


class Convolution(nn.Module):
    """Convolution with bias, and activation, of N x C x H x W, channels last."""

    def __init__(self, weight: Tensor, bias: Tensor, form: Form):
        super().__init__()
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias)
        self.weight: Tensor
        self.bias: Tensor
        self.form = form
        self.fused = True  # all batches so far went through oneDNN's convolution with the activation
        self._prepared: dict[tuple[torch.device, torch.dtype], _Prepared] = {}  # each made at its first batch

    def forward(self, x: Tensor) -> Tensor:
        key = (x.device, x.dtype)
        if key not in self._prepared:
            self._prepared[key] = self._prepare(x)
        weight, bias, packed, packed_for = self._prepared[key]
        if packed is not None and _agrees(
            x.shape, x.stride(), weight.shape, packed_for, x.dtype, self.form, torch.get_num_threads()
        ):
            return _fused(x, packed, bias, self.form)
        self.fused = False
        return _public(x, weight, bias, self.form)

    def _prepare(self, x: Tensor) -> "_Prepared":
        """Weight and bias for the device and dtype of x."""
        weight, bias, packed = self.weight.to(x.dtype), self.bias.to(x.dtype), None
        if x.device.type == "cpu" and torch.backends.mkldnn.is_available():
            with contextlib.suppress(*MISSING):
                packed = _reordered(weight, self.form, x.shape)
        return _Prepared(weight, bias, packed, x.shape)


def all_fused(network: nn.Module) -> bool:
    """Return True if all convolutions of a network so far were oneDNN's with the activation."""
    return all(m.fused for m in network.modules() if isinstance(m, Convolution))


class _Prepared(NamedTuple):
    """Weight and bias in one dtype; the weight also in oneDNN's own layout for batches of one shape, or None."""

    weight: Tensor
    bias: Tensor
    packed: Tensor | None
    packed_for: torch.Size


def _reordered(weight: Tensor, form: Form, shape: Sequence[int]) -> Tensor:
    """The weight in oneDNN's own layout for batches of this shape."""
    ops: Any = torch._C._nn
    packed: Tensor = ops.mkldnn_reorder_conv2d_weight(
        weight.to_mkldnn(), form.padding, form.stride, [1, 1], form.groups, list(shape)
    )
    return packed


def _fused(x: Tensor, weight: Tensor, bias: Tensor, form: Form) -> Tensor:
    """Convolution and activation by oneDNN, with a weight in its own layout."""
    name, numbers = ACTIVATIONS[form.activation]
    return torch.ops.mkldnn._convolution_pointwise.default(
        x, weight, bias, form.padding, form.stride, [1, 1], form.groups, name, numbers, ""
    )


def _public(x: Tensor, weight: Tensor, bias: Tensor, form: Form) -> Tensor:
    """Convolution and activation by torch's public functions."""
    x = F.conv2d(x, weight, bias, form.stride, form.padding, 1, form.groups)
    if form.activation == "relu6":
        return x.clamp_(0.0, 6.0)
    return x.relu_() if form.activation == "relu" else x


@functools.cache
def _agrees(
    shape: Sequence[int], strides: Sequence[int], weight_shape: Sequence[int], packed_for: Sequence[int],
    dtype: torch.dtype, form: Form, threads: int,
) -> bool:
    """Return True if `_fused` equals `_public` to the bit in `_trial`, for exactly this shape and layout.

    False also where it raises an error.
    """
    values, weight, bias = _trial(shape, weight_shape, dtype, form)
    x = torch.empty_strided(shape, strides, dtype=dtype).copy_(values)
    try:
        fused = _fused(x, _reordered(weight, form, packed_for), bias, form)
    except MISSING:
        return False
    return torch.equal(fused, _public(x, weight, bias, form))


def _trial(
    shape: Sequence[int], weight_shape: Sequence[int], dtype: torch.dtype, form: Form
) -> tuple[Tensor, Tensor, Tensor]:
    """Images, weight and bias whose sums are exact in any order.

    They are whole numbers: each sum of float32 is below 2^24 in size, and each of bfloat16 below 2^8, so that both
    dtypes hold them. Half of the channels have many digits in the image, the others in the weight. ReLU6 cuts at 6,
    so that its sums are divided by a power of two which leaves many of them below.
    """
    wide = 2.0**13 if dtype == torch.float32 else 1.0
    even = torch.arange(shape[1]) % 2 == 0
    in_images, in_weight = torch.where(even, wide, 1.0), torch.where(even, 1.0, wide)
    x = _whole_numbers(shape, in_images, 0)
    if form.groups == 1:
        weight = _whole_numbers(weight_shape, in_weight, 1)
    else:  # depthwise: the channels of the image are the first axis of the weight
        weight = _whole_numbers((1, weight_shape[0], *weight_shape[2:]), in_weight, 1).transpose(0, 1)
    bias = _whole_numbers((1, weight_shape[0], 1, 1), torch.tensor(8.0), 2).flatten()
    if form.activation == "relu6":
        typical = 0.4 * wide * math.sqrt(math.prod(weight_shape[1:]))
        scale = 2.0 ** -max(0, round(math.log2(typical / 6)))
        x, bias = x * scale, bias * scale
    return x.to(dtype), weight.contiguous(memory_format=torch.channels_last).to(dtype), bias.to(dtype)


def _whole_numbers(shape: Sequence[int], size: Tensor, seed: int) -> Tensor:
    """Whole numbers in float32, channels last; those of channel c are up to size[c] in size."""
    n, c, h, w = shape
    noise = torch.rand(65_521, generator=torch.Generator().manual_seed(seed)) * 2 - 1  # a prime: rows differ
    values = noise.repeat(-(-n * c * h * w // len(noise)))[: n * c * h * w]
    return values.view(n, h, w, c).mul_(size).round_().permute(0, 3, 1, 2)
