"""The contract between ganbench and a reference model.

A reference model is one `torch.nn.Module` in one file that can be read beside the paper. It subclasses `GAN`. Training
calls `begin`, `optimizers`, `training_step` and `finish`; evaluation calls `sample` and the other CAPABILITIES that the
class defines. Images are float N x C x H x W in [-1, 1], labels int64 N in 0..K-1.

A complete model of images of 8 x 8 pixels, without labels:

    >>> import torch
    >>> import torch.nn.functional as F
    >>> from torch import nn
    >>> from torch.optim import Adam
    >>> from ganbench.gan import GAN, Batch, capabilities, minimize

    >>> class TinyGAN(GAN):
    ...     def __init__(self, latent_dim=4, lr=1e-3):  # plain values with defaults: a checkpoint stores them
    ...         super().__init__()
    ...         self.image_shape, self.latent_dim, self.lr = (1, 8, 8), latent_dim, lr
    ...         self.G = nn.Sequential(nn.Linear(latent_dim, 64), nn.Tanh(), nn.Unflatten(1, self.image_shape))
    ...         self.D = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    ...
    ...     def optimizers(self):
    ...         return {"D": Adam(self.D.parameters(), self.lr), "G": Adam(self.G.parameters(), self.lr)}
    ...
    ...     def training_step(self, batch, opt):
    ...         fake = self.G(self.sample_latent(len(batch.x)).to(batch.x))
    ...         d_loss = F.softplus(-self.D(batch.x)).mean() + F.softplus(self.D(fake.detach())).mean()
    ...         d_loss = minimize(d_loss, opt["D"])
    ...         g_loss = minimize(F.softplus(-self.D(fake)).mean(), opt["G"])
    ...         return {"d_loss": d_loss, "g_loss": g_loss}
    ...
    ...     def sample_latent(self, n, generator=None):
    ...         return torch.randn(n, self.latent_dim, generator=generator)
    ...
    ...     def generate(self, z, y=None):
    ...         return self.G(z)
    ...
    ...     def sample(self, n, y=None, generator=None):
    ...         return self.generate(self.sample_latent(n, generator).to(self.device))

It can be trained and evaluated:

    >>> model = TinyGAN()
    >>> losses = model.training_step(Batch(x=torch.zeros(16, 1, 8, 8), y=None, step=0), model.optimizers())
    >>> sorted(losses)
    ['d_loss', 'g_loss']
    >>> model.sample(3).shape
    torch.Size([3, 1, 8, 8])
    >>> capabilities(model)
    ['sample', 'sample_latent', 'generate']

A model that grows during training says its `stages`. The training loop does the rest, the same for every such model:

- A stage begins with the first step before which as many images were shown as all earlier stages have. `Batch.shown`
  is this number of images, from which the model knows its stage and, in a fade, how far it has come.
- A batch has the stage's number of images, reduced to the stage's size by means over squares of pixels, rounded to
  whole numbers of 0..255 as in image files.
- With each stage after the first, the optimisers begin anew: their moments are forgotten.

The model has all its parameters from the beginning. Parameters without a gradient do not move, and neither does their
moving average. `sample` returns images of `image_shape` in every stage, enlarged if need be. A buffer, which the
training step fills, tells it the stage: the averaged model and a checkpoint get it from there.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# Methods that a model may define; a metric names those that it needs. `GAN` describes the first three.
# x is float N x C x H x W in [-1, 1]. A method that its configuration rules out raises ValueError with the reason.
#   encode(x)                  -> float N x d, latents of the images
#   encoder_features(x)        -> float N x ..., a hidden layer of the encoder
#   reconstruct(x)             -> float N x C x H x W in [-1, 1], G(E(x))
#   classify(x)                -> float N x K, class logits
#   discriminator_features(x)  -> float N x ..., a hidden layer of the discriminator
#   codes()                    -> tuple of `Code`, the parts of z that the model is trained to find again in G(z)
#   code_log_likelihood(x, z)  -> float N x codes, log Q(c | x) of each code c in z for x = G(z), in nats
#   pyramid(x)                 -> list of float N x C x s x s, x at each level, coarsest first, in the model's own unit
#   sample_level(k, x, generator) -> float N x C x s x s, samples of level k given the true level k - 1 of x
#   inversion_loss(x)          -> function of N images G(z) to float N: how far each is from x, to be lowered over z
#   latent_spaces()            -> tuple of `LatentSpace`: Z, and the spaces between z and the image, such as W
#   generate_truncated(z, psi) -> float N x C x H x W in [-1, 1], G(z), where psi draws its latents to their mean
#   generate_mixed(z, z2, start, stop) -> float N x C x H x W in [-1, 1], G(z), but layers start..stop-1 get z2
#   scales(z)                  -> list of float N x C x s x s in [-1, 1], coarsest first, the last one is G(z)
CAPABILITIES = (
    "sample", "sample_latent", "generate", "encode", "encoder_features", "reconstruct", "classify",
    "discriminator_features", "codes", "code_log_likelihood", "pyramid", "sample_level", "inversion_loss",
    "latent_spaces", "generate_truncated", "generate_mixed", "scales",
)


class Batch(NamedTuple):
    """The data of one training step.

    x: images, float N x C x H x W in [-1, 1].
    y: labels of x, int64 N, or None if the data set has none.
    step: number of updates of G before this one.
    u: images without labels, float M x C x H x W in [-1, 1], in semi-supervised training; otherwise None. With u, x and
    y are drawn from the few labelled images.
    shown: number of images x of all steps before this one, over all processes.
    """

    x: Tensor
    y: Tensor | None
    step: int
    u: Tensor | None = None
    shown: int = 0


class Stage(NamedTuple):
    """A part of the training of a model that grows.

    images: number of images shown in it. The last stage of a model has no end.
    batch_size: images of a batch, over all processes.
    image_size: side of the batch's images; it divides that of `image_shape`.
    ema_decay: decay of the averaged weights in this stage; None: that of the recipe.
    """

    images: int
    batch_size: int
    image_size: int
    ema_decay: float | None = None


class Code(NamedTuple):
    """An interpretable code c: a part of the latent z that the model is trained to find again in the image.

    name: the paper's, such as 'c1'. start: its first column in z.
    values: number of values of a categorical code. They are equally likely, and z has them as a one-hot vector. 0 means
    a continuous code, one column that is uniform in [-1, 1].

    >>> Code("c1", start=62, values=10).columns
    slice(62, 72, None)
    """

    name: str
    start: int
    values: int = 0

    @property
    def columns(self) -> slice:
        """The columns of z that hold the code."""
        return slice(self.start, self.start + max(self.values, 1))

    @property
    def entropy(self) -> float:
        """H(c) in nats; for a continuous code, the differential entropy."""
        return math.log(self.values or 2)


class LatentSpace(NamedTuple):
    """A space between z and the image: G(z) = generate(of(z, y), y), with all noise that G adds by itself fixed.

    name: 'z', 'w'. of(z, y): latents of this space, float n x d, from latents z and labels (int64 n or None).
    generate(w, y): images, float n x C x H x W in [-1, 1], from latents of this space. All are on the model's device.
    straight: paths between latents are straight lines; otherwise they follow the sphere.
    """

    name: str
    of: Callable[[Tensor, Tensor | None], Tensor]
    generate: Callable[[Tensor, Tensor | None], Tensor]
    straight: bool = False


class GAN(nn.Module):
    """Base class of all reference models.

    A subclass defines `optimizers`, `training_step` and `sample`, and the other methods that its paper has. Its
    constructor takes keyword arguments of plain types, each with a default. A checkpoint stores these arguments and the
    weights, and nothing else is needed to build the model again. Required methods raise NotImplementedError here.
    """

    # C, H, W of the images.
    image_shape: tuple[int, int, int]
    # Number of classes that `sample` can be asked for, or 0.
    num_classes: int = 0
    # Number of classes of the labels that training needs, for a model whose `sample` takes no labels.
    classes: int = 0
    # Names of the adversarial losses of D and G, which show whether D has won; None if G has no such loss.
    game: tuple[str, str] | None = ("d_loss", "g_loss")
    # Names of what a training step returns for the log beside the losses: a control variable, a measure of convergence.
    logged: tuple[str, ...] = ()

    def begin(self, chunks: Iterable[Tensor]) -> None:
        """Prepare the model once, before the first step. Examples are a whitening or a data-dependent initialisation.

        chunks: all training images, each once, as float n x C x H x W in [-1, 1] with n at most 1,000, on the model's
        device. Store the results in parameters and buffers: a resumed run loads these and does not call `begin`.
        """

    def stages(self, batch_size: int) -> tuple[Stage, ...]:
        """Return the stages of a model that grows, in their order; none for a model that does not grow.

        batch_size: the recipe's, for stages that have none of their own.
        """
        return ()

    def optimizers(self) -> dict[str, Optimizer]:
        """Return new optimisers with the paper's settings.

        A key is the name of the attribute that holds the network: "D" updates exactly the parameters of `self.D`.
        """
        raise NotImplementedError

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        """Make one pass through the paper's training algorithm. Returns the losses for the log.

        opt: the optimisers that `optimizers` returned. A loss is a detached scalar whose name ends with "_loss"; other
        detached scalars have the names in `logged`.
        """
        raise NotImplementedError

    def finish(self, batches: Iterable[Batch]) -> None:
        """Change the trained weights once, after the last step. An example is to recompute the moments of batch norm.

        batches: training batches without end; take as many as the paper does. The changed weights are evaluated, and
        longer training continues from the unchanged ones.
        """

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Return n images, float32 n x C x H x W in [-1, 1], on the model's device.

        y: classes, int64 n; without y, a conditional model draws them. generator: the only source of randomness, on
        the CPU, so that a seed determines the images.
        """
        raise NotImplementedError

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Return n draws from the prior of z, float n x d or n x any shape.

        With a generator, draw on the CPU, so that a seed gives the same z on every device. Without one, draw on torch's
        default device, which is the model's device during training.
        """
        raise NotImplementedError

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Return G(z), or G(z, y) of a conditional model: float n x C x H x W in [-1, 1].

        z: latents as `sample_latent` draws them. y: classes, int64 n. Both are on the model's device.
        """
        raise NotImplementedError

    def codes(self) -> tuple[Code, ...]:
        """Return the codes of z: parts of it that the model is trained to find again in G(z)."""
        raise NotImplementedError

    def code_log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log Q(c | x) of each code c in z, in nats: float n x codes, in the order of `codes`.

        x: the samples G(z), float n x C x H x W in [-1, 1]. z: their latents.
        """
        raise NotImplementedError

    def latent_spaces(self) -> tuple[LatentSpace, ...]:
        """Return the latent spaces whose paths and planes are measured; the first one is Z."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """The device that holds the parameters."""
        return next(self.parameters()).device


def capabilities(model: GAN) -> list[str]:
    """Return the names in CAPABILITIES that the model's class defines, in the same order."""
    return [c for c in CAPABILITIES if getattr(type(model), c, None) not in (None, getattr(GAN, c, None))]


Loss = Tensor | Iterable[Tensor]


def minimize(loss: Loss, optimizer: Optimizer) -> Tensor:
    """Take one step of `optimizer` that lowers `loss`, a scalar. Returns the detached loss from before the step.

    Gradients are taken with respect to the parameters of this optimiser only, as in the paper's equation. No gradient
    is computed for, or left behind in, another network.

    An iterable of scalars is a loss that is the sum of these terms. The gradient of each term is taken before the next
    term is computed, so that a batch larger than memory can be passed in chunks (gradient accumulation).

    >>> w = nn.Parameter(torch.tensor(1.0))
    >>> loss = minimize(w.square(), torch.optim.SGD([w], lr=0.25))
    >>> loss.item(), w.item()
    (1.0, 0.5)
    >>> loss = minimize((part * w.square() for part in (0.5, 0.5)), torch.optim.SGD([w], lr=0.5))
    >>> loss.item(), w.item()
    (0.25, 0.0)
    """
    return minimize_together((loss, [optimizer]))[0]


def minimize_together(*objectives: tuple[Loss, list[Optimizer]]) -> list[Tensor]:
    """Take one step for each `(loss, optimizers)`, simultaneously. Returns the detached losses from before the step.

    All gradients are taken before any weight moves. Use it for papers that update several networks from one forward
    pass. A loss is a scalar, or an iterable of terms as in `minimize`.

    >>> x, y = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(3.0))
    >>> a, b = torch.optim.SGD([x], lr=1.0), torch.optim.SGD([y], lr=1.0)
    >>> losses = minimize_together((x * y, [a]), (-x * y, [b]))
    >>> x.item(), y.item()
    (-1.0, 5.0)
    """
    losses = []
    for i, (loss, optimizers) in enumerate(objectives):
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        params = [p for o in optimizers for group in o.param_groups for p in group["params"]]
        terms = []
        for term in [loss] if isinstance(loss, Tensor) else loss:
            # Autocast is for the forward pass. The backward pass takes its dtypes from there.
            with torch.autocast(term.device.type, enabled=False):
                term.backward(inputs=params, retain_graph=i + 1 < len(objectives))
            terms.append(term.detach())
        losses.append(terms[0] if len(terms) == 1 else torch.stack(terms).sum())
    with torch.autocast(losses[0].device.type, enabled=False):
        for _, optimizers in objectives:
            for optimizer in optimizers:
                optimizer.step()
    # Autocast caches low-precision copies of the weights, and the next forward pass must not use outdated ones.
    torch.clear_autocast_cache()
    return losses
