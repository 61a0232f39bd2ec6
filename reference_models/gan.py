"""The original GAN: adversarial nets of fully connected and of convolutional maxout networks.

"Generative Adversarial Nets",
Ian J. Goodfellow, Jean Pouget-Abadie, Mehdi Mirza, Bing Xu, David Warde-Farley, Sherjil Ozair, Aaron Courville,
Yoshua Bengio. NIPS 2014, arXiv:1406.2661.
Official code: https://github.com/goodfeli/adversarial (Pylearn2: mnist.yaml, cifar10_fully_connected.yaml,
cifar10_convolutional.yaml, tfd_pretrain/).

The code differs from Algorithm 1 of the paper, and this file does what the code does:
- G minimises -log D(G(z)), which the paper only recommends early in training (Section 3). `gan-saturating` minimises
  log(1 - D(G(z))), the form of Equation 1;
- D and G step at once, from one forward pass with one dropout mask, and D's loss is halved;
- the learning rate falls with every update and the momentum rises with every epoch. The rate stands inside the
  velocity, so that a falling rate does not act on earlier gradients.

Unconfirmed:
- the lengths of the MNIST and CIFAR-10 runs: their configurations have no rule to stop;
- the number of images of TFD that one epoch has (98,058 without labels in Pylearn2's copy).

Deviations from the paper and its code:
1. Images in [-1, 1] are mapped to the code's [0, 1] at the networks' doors, and for CIFAR-10 to its global contrast
   normalisation (each image has mean 0 and norm 55).
2. Contrast normalisation has no inverse. Samples of CIFAR-10 networks get the mean brightness and the mean contrast of
   the training images, and are clipped. The code divides a sheet of samples by its largest value.
3. An epoch's last, incomplete batch is left out.
4. TFD is trained in one run where the code has two: after `pretrain_steps` two layers are put before G, D starts
   anew, and rate and momentum start again.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from ganbench.gan import GAN, Batch, minimize_together
from reference_models.layers import Float32, Maxout

DECAY, LEAST_RATE = 1.000004, 1e-6  # the rate is divided by the first at every update, down to the second
MOMENTUM, SATURATES = (0.5, 0.7), 249  # momentum rises linearly over this many epochs
CONTRAST = 55.0  # norm of a contrast-normalised image
PIECES = 5  # of a fully connected maxout unit
Shape = tuple[int, int, int]  # C, H, W


class Plan(NamedTuple):
    """The differences between the authors' fully connected networks.

    second: activation of G's second layer. output_range: of G's output weights, U(-r, r); 0: 100 weights of each pixel
    are N(0, 1) and the others 0. uniform: z is uniform, not Gaussian. contrast: images are contrast-normalised, and G's
    output is linear. max_norm: largest norm of a unit's weights; 0: not bounded.
    """

    second: type[nn.Module]
    output_range: float
    uniform: bool
    contrast: bool
    max_norm: float


PLANS = {
    28: Plan(nn.ReLU, 0.05, uniform=True, contrast=False, max_norm=0.0),  # MNIST
    32: Plan(nn.Sigmoid, 0.5, uniform=False, contrast=True, max_norm=0.0),  # CIFAR-10
    48: Plan(nn.Sigmoid, 0.0, uniform=False, contrast=False, max_norm=1.9365),  # TFD
}


def start(layer: nn.Module, weights: float, bias: float = 0.0) -> nn.Module:
    """Set the weights to U(-weights, weights) and the biases to one value. Returns the layer."""
    for name, p in layer.named_parameters(recurse=False):
        nn.init.constant_(p, bias) if name == "bias" else nn.init.uniform_(p, -weights, weights)
    return layer


def sparse_start(layer: nn.Linear, number: int) -> nn.Linear:
    """Set `number` weights of each unit, at random, to N(0, 1) and all others to 0. Returns the layer."""
    inputs = torch.rand_like(layer.weight).topk(min(number, layer.in_features), 1).indices
    with torch.no_grad():
        layer.weight.zero_().scatter_(1, inputs, torch.randn(inputs.shape))
        layer.bias.zero_()
    return layer


# --- Fully connected networks ---


class Generator(nn.Module):
    """z -> units, ReLU -> units, ReLU or sigmoid -> pixels, sigmoid or linear: N x C x H x W.

    prefixed: with z -> units, ReLU -> latent_dim, sigmoid before it, once `prefix_used` is set (TFD).
    """

    prefix_used: Tensor

    def __init__(self, shape: Shape, latent_dim: int, units: int, plan: Plan, prefixed: bool):
        super().__init__()
        self.shape = shape
        bias = -2.0 if plan.max_norm else 0.0  # of sigmoid hidden units; TFD only
        self.out = nn.Linear(units, math.prod(shape))
        start(self.out, plan.output_range) if plan.output_range else sparse_start(self.out, 100)
        self.hidden = nn.Sequential(
            start(nn.Linear(latent_dim, units), 0.05), nn.ReLU(), start(nn.Linear(units, units), 0.05, bias),
            plan.second(),
        )
        self.squash = nn.Identity() if plan.contrast else nn.Sigmoid()
        self.prefix = nn.Sequential(
            start(nn.Linear(latent_dim, units), 0.05), nn.ReLU(), start(nn.Linear(units, latent_dim), 0.05, bias),
            nn.Sigmoid(),
        ) if prefixed else None
        self.register_buffer("prefix_used", torch.tensor(False))

    def forward(self, z: Tensor) -> Tensor:
        if self.prefix is not None:
            z = torch.where(self.prefix_used, self.prefix(z), z)
        return self.squash(self.out(self.hidden(z)).float()).unflatten(1, self.shape)


def discriminator(shape: Shape, units: int) -> nn.Module:
    """x -> maxout -> maxout -> logit; dropout keeps 0.8 of the pixels and half of the hidden units."""
    sizes = math.prod(shape), units
    return nn.Sequential(
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(sizes[0], units * PIECES), Maxout(PIECES),
        nn.Dropout(0.5), nn.Linear(units, units * PIECES), Maxout(PIECES),
        nn.Dropout(0.5), nn.Linear(units, 1), Float32(), nn.Flatten(0),
    )


# --- Convolutional networks, 32 x 32 ---


class ConvGenerator(nn.Module):
    """z -> units, ReLU -> maps x 10 x 10, sigmoid -> transposed 5x5 convolution of stride 3 -> C x 32 x 32, linear.

    The output has a bias for each pixel.
    """

    def __init__(self, channels: int, latent_dim: int, maps: int):
        super().__init__()
        self.hidden = nn.Sequential(
            start(nn.Linear(latent_dim, maps * 100), 0.05), nn.ReLU(), start(nn.Linear(maps * 100, maps * 100), 0.05),
            nn.Sigmoid(), nn.Unflatten(1, (maps, 10, 10)),
        )
        self.out = start(nn.ConvTranspose2d(maps, channels, 5, stride=3, bias=False), 0.05)
        self.bias = nn.Parameter(torch.zeros(channels, 32, 32))

    def forward(self, z: Tensor) -> Tensor:
        return self.out(self.hidden(z)).float() + self.bias


def conv_discriminator(channels: int, maps: int, units: int) -> nn.Module:
    """Three maxout convolutions of two pieces, 33 -> 16, 15 -> 7, 9 -> 5 by max pooling; maxout units; logit."""
    return nn.Sequential(
        nn.Dropout(0.2), nn.Conv2d(channels, 2 * maps, 8, padding=4), Maxout(2), nn.MaxPool2d(4, 2, ceil_mode=True),
        nn.Dropout(0.5), nn.Conv2d(maps, 2 * maps, 8, padding=3), Maxout(2), nn.MaxPool2d(4, 2, ceil_mode=True),
        nn.Dropout(0.5), nn.Conv2d(maps, 12 * maps, 5, padding=3), Maxout(2), nn.MaxPool2d(2, 2, ceil_mode=True),
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(6 * maps * 25, units * PIECES), Maxout(PIECES),
        nn.Dropout(0.5), nn.Linear(units, 1), Float32(), nn.Flatten(0),
    )


# --- The models ---


class AdversarialNets(GAN):
    """Adversarial nets with fully connected networks (Goodfellow et al., 2014).

    image_size: 28 (MNIST), 32 (CIFAR-10) or 48 (TFD). g_units, d_units: units of a hidden layer of G, and maxout units
    of one of D. steps_per_epoch: of the momentum's schedule. pretrain_steps: see deviation 4; 0: one stage.
    """

    G: Any
    D: Any
    brightness: Tensor
    contrast: Tensor

    def __init__(
        self, image_size: int = 28, channels: int = 1, latent_dim: int = 100, g_units: int = 1200, d_units: int = 240,
        lr: float = 0.1, steps_per_epoch: int = 500, pretrain_steps: int = 0,
    ):
        super().__init__()
        if image_size not in PLANS:
            raise ValueError(f"image_size must be one of {sorted(PLANS)}, not {image_size}")
        shape = channels, image_size, image_size
        self.prepare(shape, latent_dim, PLANS[image_size], lr, steps_per_epoch, pretrain_steps)
        self.G = Generator(shape, latent_dim, g_units, self.plan, prefixed=pretrain_steps > 0)
        self.D = discriminator(shape, d_units)
        self.start_discriminator()

    def prepare(
        self, shape: Shape, latent_dim: int, plan: Plan, lr: float, steps_per_epoch: int, pretrain_steps: int = 0
    ) -> None:
        """Set everything but the networks."""
        self.image_shape, self.latent_dim, self.plan = shape, latent_dim, plan
        self.lr, self.steps_per_epoch, self.pretrain_steps = lr, steps_per_epoch, pretrain_steps
        self.register_buffer("brightness", torch.tensor(0.0))
        self.register_buffer("contrast", torch.tensor(0.5))

    def start_discriminator(self) -> None:
        """Set D to its initial weights."""
        for layer in self.D:
            start(layer, 0.005)

    @torch.no_grad()
    def begin(self, chunks: Iterable[Tensor]) -> None:
        """Set G's output biases so that sigmoid(b) is the mean image; for CIFAR-10, brightness and contrast of samples.

        Brightness is the mean pixel, and contrast the mean norm of an image around its own mean, over 55.
        """
        n, total, norms = 0, torch.zeros(self.image_shape, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for x in chunks:
            n, total = n + len(x), total.to(x.device) + x.sum(0, dtype=torch.float64)
            norms = norms.to(x.device) + (x - x.mean((1, 2, 3), keepdim=True)).flatten(1).norm(dim=1).sum().double()
        if self.plan.contrast:
            self.brightness.copy_(total.mean() / n)
            self.contrast.copy_(norms / n / CONTRAST)
        else:
            self.G.out.bias.copy_(torch.logit((total / n + 1) / 2, 1e-7).flatten())

    # --- Images and what the networks see (deviations 1 and 2) ---

    def seen(self, x: Tensor) -> Tensor:
        """Images in [-1, 1] as D sees them: in [0, 1], or contrast-normalised."""
        if not self.plan.contrast:
            return (x + 1) / 2
        centred = x - x.mean((1, 2, 3), keepdim=True)
        norm = centred.flatten(1).norm(dim=1)[:, None, None, None] / CONTRAST
        return centred / torch.where(norm < 1e-8, 1.0, norm)

    def shown(self, h: Tensor) -> Tensor:
        """Output of G as images in [-1, 1]."""
        if not self.plan.contrast:
            return 2 * h - 1
        return (self.brightness + self.contrast * h).clamp(-1, 1)

    # --- Losses ---

    def d_loss(self, real_logit: Tensor, fake_logit: Tensor) -> Tensor:
        """-1/2 [E_x log D(x) + E_z log(1 - D(G(z)))] = -V(D, G) / 2   (Equation 1)"""
        return 0.5 * (F.softplus(-real_logit).mean() + F.softplus(fake_logit).mean())

    def g_loss(self, fake_logit: Tensor) -> Tensor:
        """-E_z log D(G(z)), the non-saturating form   (Section 3)"""
        return F.softplus(-fake_logit).mean()

    # --- Training ---

    def optimizers(self) -> dict[str, Optimizer]:
        return {name: SGD(net.parameters(), self.lr, MOMENTUM[0]) for name, net in (("D", self.D), ("G", self.G))}

    def rate(self, update: int) -> float:
        """Learning rate of an update, counted from 0."""
        return max(self.lr * DECAY**-update, LEAST_RATE)

    def momentum(self, update: int) -> float:
        """Momentum of an update, counted from 0."""
        share = min(update // self.steps_per_epoch / SATURATES, 1.0)
        return MOMENTUM[0] + share * (MOMENTUM[1] - MOMENTUM[0])

    def set_schedule(self, opt: Mapping[str, Optimizer], step: int) -> None:
        """Set rate and momentum: v <- m v - rate g; weights <- weights + v.

        torch keeps the rate outside the velocity: a momentum of m rate(t - 1) / rate(t) gives the same weights.
        """
        update = step - self.pretrain_steps if step >= self.pretrain_steps else step
        rate, momentum = self.rate(update), self.momentum(update)
        for group in (group for optimizer in opt.values() for group in optimizer.param_groups):
            group["lr"], group["momentum"] = rate, momentum * self.rate(max(update - 1, 0)) / rate

    def start_second_stage(self, opt: Mapping[str, Optimizer]) -> None:
        """Put the prefix before G, start D anew and forget all velocities (deviation 4)."""
        self.G.prefix_used.fill_(True)
        self.start_discriminator()
        for optimizer in opt.values():
            optimizer.state.clear()

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        """Algorithm 1 with k = 1, where D and G step from one forward pass, as in the code."""
        if self.pretrain_steps and batch.step == self.pretrain_steps:
            self.start_second_stage(opt)
        self.set_schedule(opt, batch.step)
        z = self.sample_latent(len(batch.x)).to(batch.x)
        real_logit, fake_logit = self.D(self.seen(batch.x)), self.D(self.G(z))
        d_loss, g_loss = minimize_together(
            (self.d_loss(real_logit, fake_logit), [opt["D"]]), (self.g_loss(fake_logit), [opt["G"]])
        )
        self.bound_norms()
        return {"d_loss": d_loss, "g_loss": g_loss}

    @torch.no_grad()
    def bound_norms(self) -> None:
        """Scale the weights of each unit down to a norm of at most `max_norm`."""
        if limit := self.plan.max_norm:
            for layer in (m for m in self.modules() if isinstance(m, nn.Linear)):
                norm = layer.weight.norm(dim=1, keepdim=True)
                layer.weight.mul_(norm.clamp(max=limit) / (norm + 1e-7))

    # --- Samples ---

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ U(-sqrt 3, sqrt 3)^100 for MNIST, else N(0, I)"""
        if self.plan.uniform:
            return (torch.rand(n, self.latent_dim, generator=generator) * 2 - 1) * math.sqrt(3)
        return torch.randn(n, self.latent_dim, generator=generator)

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.generate(self.sample_latent(n, generator).to(self.device))

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z)"""
        return self.shown(self.G(z))


class SaturatingAdversarialNets(AdversarialNets):
    """Adversarial nets whose G descends the value function itself, as Algorithm 1 prints it."""

    def g_loss(self, fake_logit: Tensor) -> Tensor:
        """E_z log(1 - D(G(z)))   (Equation 1)"""
        return -F.softplus(fake_logit).mean()


class ConvolutionalAdversarialNets(AdversarialNets):
    """Adversarial nets for CIFAR-10 with a convolutional D and a "deconvolutional" G.

    g_maps: maps of G's 10 x 10 layer, whose hidden layers have 100 times as many units. d_maps: maps of D's first two
    convolutions; the third has six times as many. d_units: maxout units of D.
    """

    def __init__(
        self, channels: int = 3, latent_dim: int = 100, g_maps: int = 80, d_maps: int = 32, d_units: int = 500,
        lr: float = 0.004, steps_per_epoch: int = 312,
    ):
        GAN.__init__(self)
        self.prepare((channels, 32, 32), latent_dim, PLANS[32], lr, steps_per_epoch)
        self.G = ConvGenerator(channels, latent_dim, g_maps)
        self.D = conv_discriminator(channels, d_maps, d_units)
        self.start_discriminator()
