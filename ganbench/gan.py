"""The contract that a reference model fulfils.

A reference model is one `torch.nn.Module` in one file that can be read beside the paper. The training loop knows only
`optimizers` and `training_step`; the evaluation knows only `sample` and what else the model is capable of. Images are
float in [-1, 1] here, N x C x H x W.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# What a paper may give its model beside `sample`; a metric names the ones it needs.
CAPABILITIES = (
    "sample", "sample_latent", "generate", "encode", "reconstruct", "classify", "discriminator_features",
)  # fmt: skip


class Batch(NamedTuple):
    """What one training step sees.

    x: float N x C x H x W in [-1, 1]. y: int64 N, or None. step: updates of G before this one.
    """

    x: Tensor
    y: Tensor | None
    step: int


class GAN(nn.Module):
    """Base of all reference models: three attributes and three methods to fill in.

    The constructor takes keyword arguments of plain types only: they are stored in the checkpoint, which needs
    nothing else.
    """

    image_shape: tuple[int, int, int]  # C, H, W
    num_classes: int = 0  # 0: the model takes no labels

    def optimizers(self) -> dict[str, Optimizer]:
        """New optimisers by the name of the network that they update, with the paper's settings."""
        raise NotImplementedError

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        """One pass through the paper's Algorithm 1. Returns the losses, detached, for the log."""
        raise NotImplementedError

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """n images in [-1, 1]; `y` (int64 n) asks for classes. Randomness comes from `generator` (on the CPU) alone."""
        raise NotImplementedError

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws from the prior of z. Drawn on the CPU, so that a seed gives the same z on every device."""
        raise NotImplementedError

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z), or G(z, y): images in [-1, 1] of latents as `sample_latent` draws them; on the model's device."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


def capabilities(model: GAN) -> list[str]:
    """Those of CAPABILITIES that the model's class has."""
    return [c for c in CAPABILITIES if getattr(type(model), c, None) not in (None, getattr(GAN, c, None))]


def minimize(loss: Tensor, optimizer: Optimizer) -> Tensor:
    """One step of `optimizer` down `loss`; returns the detached loss.

    The gradient is taken with respect to the parameters of this optimiser only, as the paper's equation says: nothing
    is computed for, or left behind in, the other networks.
    """
    params: list[Any] = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=params)
    optimizer.step()
    return loss.detach()
