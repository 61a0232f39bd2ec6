"""The contract that a reference model fulfils.

A reference model is one `torch.nn.Module` in one file that can be read beside the paper. The training loop knows only
`begin`, `optimizers`, `training_step` and `finish`; the evaluation knows only `sample` and what else the model can do.
Images are float in [-1, 1] here, N x C x H x W.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# What a paper may give its model beside `sample`; a metric names the ones it needs.
CAPABILITIES = (
    "sample", "sample_latent", "generate", "encode", "encoder_features", "reconstruct", "classify",
    "discriminator_features",
)


class Batch(NamedTuple):
    """What one training step sees.

    x: float N x C x H x W in [-1, 1]. y: int64 N, or None. step: updates of G before this one.
    u: float M x C x H x W, images without labels from a stream of their own: of semi-supervised recipes alone, where x
    and y are of the few labelled images.
    """

    x: Tensor
    y: Tensor | None
    step: int
    u: Tensor | None = None


class GAN(nn.Module):
    """Base of all reference models: attributes and methods to fill in.

    The constructor takes keyword arguments of plain types only: they are stored in the checkpoint, which needs
    nothing else.
    """

    image_shape: tuple[int, int, int]  # C, H, W
    num_classes: int = 0  # that `sample` can be asked for; 0: none
    classes: int = 0  # of the labels that training sees, where `sample` takes none
    game: tuple[str, str] | None = ("d_loss", "g_loss")  # logged losses of D, and of G by D's verdict; None: no such G

    def begin(self, chunks: Iterable[Tensor]) -> None:
        """What the paper does once, before the first step, such as fitting a whitening or a data-dependent start.

        `chunks`: all training images, each once, float in [-1, 1], a thousand at a time. What is learnt goes into
        parameters and buffers, so that a run that goes on has it.
        """

    def optimizers(self) -> dict[str, Optimizer]:
        """New optimisers by the name of the network that they update, with the paper's settings."""
        raise NotImplementedError

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        """One pass through the paper's Algorithm 1. Returns the losses, detached, for the log."""
        raise NotImplementedError

    def finish(self, batches: Iterable[Batch]) -> None:
        """What the paper does once, between the last step and the evaluation, such as recomputing batch norm's moments.

        It changes the weights that are evaluated. `batches` are training batches without end: take what is needed.
        """

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """n images in [-1, 1]; `y` (int64 n) asks for classes. Randomness comes from `generator` (on the CPU) alone."""
        raise NotImplementedError

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws from the prior of z: by `generator`, on the CPU, so that a seed gives the same z on every device.

        Without one on torch's default device, which while a model trains is its own.
        """
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
    return minimize_together((loss, [optimizer]))[0]


def minimize_together(*objectives: tuple[Tensor, list[Optimizer]]) -> list[Tensor]:
    """Each `(loss, optimizers)`: one step of these optimisers down that loss. Returns the detached losses.

    All gradients are taken before any weight moves: for papers that update their networks simultaneously, from one
    forward pass.
    """
    # The forward pass decides the types of the gradients: mixed precision has nothing to say here.
    with torch.autocast(objectives[0][0].device.type, enabled=False):
        for i, (loss, optimizers) in enumerate(objectives):
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            params = [p for o in optimizers for group in o.param_groups for p in group["params"]]
            loss.backward(inputs=params, retain_graph=i + 1 < len(objectives))
        for _, optimizers in objectives:
            for optimizer in optimizers:
                optimizer.step()
    torch.clear_autocast_cache()  # it holds the weights of before the step, which the next forward pass must not see
    return [loss.detach() for loss, _ in objectives]
