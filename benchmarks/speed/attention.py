"""YLG's local sparse attention beside the same masks over all logits, and beside dense attention with one head.

The plain form is what YLG's code does: all logits of all heads, of which the masks leave some. Ours computes these
alone, about sqrt(N) of N for each query, so that the ratio grows with the maps. Dense attention with one head is the
layer of SAGAN: it has as many weights, and other values. Each case is a forward and a backward pass of one layer.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.speed import Case
from reference_models.layers import SelfAttention
from reference_models.ylg import LocalAttention

CASES = ((32, 128, 8), (64, 128, 2))  # side of the maps, channels, images


class Masked(LocalAttention):
    """The layer by its definition: weights of all keys, of which the masks leave some."""

    def forward(self, h: Tensor) -> Tensor:
        values = self.by_head(self.pool(self.g(h)).flatten(2)).flatten(1, 2)
        a = (self.attention(h) @ values).mT.flatten(1, 2)
        return h + self.gamma * self.out(a.unflatten(2, h.shape[2:]))


def cases() -> Iterator[Case]:
    """Yield maps of 32 x 32 and of 64 x 64 pixels, eight heads."""
    for side, width, n in CASES:
        torch.manual_seed(side)
        ours, masked, dense = LocalAttention(width, side, 8), Masked(width, side, 8), SelfAttention(width)
        for layer in (ours, masked, dense):
            layer.load_state_dict(ours.state_dict())
            nn.init.ones_(layer.gamma)
        h = torch.randn(n, width, side, side)
        yield Case(
            f"YLG's attention, {side} px, {width} channels, {n} maps: forward and backward", step(ours, h),
            {"all logits, masked": step(masked, h), "dense, one head": step(dense, h)},
            goals={"all logits, masked": 2, "dense, one head": 0.8}, repeats=5, count=n, unit="maps", agree=agree,
        )


def step(layer: nn.Module, h: Tensor) -> Callable[[], Tensor]:
    """Return a function that computes the gradient of the sum of squares with respect to h."""

    def gradient() -> Tensor:
        x = h.clone().requires_grad_()
        (found,) = torch.autograd.grad(layer(x).square().sum(), x)
        return found

    return gradient


def agree(ours: object, theirs: dict[str, object]) -> None:
    """Require equal gradients of the two that are one function."""
    masked = theirs["all logits, masked"]
    assert isinstance(ours, Tensor)
    assert isinstance(masked, Tensor)
    torch.testing.assert_close(ours, masked, rtol=1e-3, atol=1e-3)
