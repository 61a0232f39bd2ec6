"""CGAN: generator and discriminator are both given the class.

"Conditional Generative Adversarial Nets",
Mehdi Mirza, Simon Osindero. 2014, arXiv:1411.1784. No official code was released.

This file has the network of Section 4.1, for MNIST. The network for image tags (Section 4.2) makes word vectors from
photographs and is not here.

Unconfirmed, because the paper does not say:
- which hypercube z is uniform in ("the unit hypercube"). Here it is U(-sqrt 3, sqrt 3), of variance 1, as in the code
  named below. With U(0, 1) G took its randomness from dropout, without which all samples were one image at step 2,000;
- whether G was trained with log(1 - D) or with -log D. Here it is -log D, as in the code of Goodfellow et al. (2014),
  an author of which is the first author here;
- which layers have dropout of 0.5 ("on both the generator and discriminator"). Here all hidden layers;
- initial weights, the start of G's output bias, the speed at which momentum rises, and whether D and G step at once.
  All are as in that code: U(-0.05, 0.05) in G and U(-0.005, 0.005) in D, the logits of the mean image, 0.5 to 0.7 over
  250 epochs, at once;
- the length. The paper stops at the best log-likelihood of validation images, whose number it does not give. Here it
  is 250 epochs of 50,000 images, at whose end the rate is below 0.001.

Deviations from the paper:
1. Images in [-1, 1] are mapped to [0, 1] at the networks' doors.
2. The last weights are evaluated, not the best ones of the run.
3. An epoch's last, incomplete batch is left out.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from ganbench.gan import GAN, Batch, minimize_together
from reference_models.layers import Maxout

DECAY, LEAST_RATE = 1.00004, 1e-6  # the rate is divided by the first at every update, down to the second
MOMENTUM, SATURATES = (0.5, 0.7), 249  # momentum rises linearly over this many epochs
Shape = tuple[int, int, int]  # C, H, W


class Generator(nn.Module):
    """z -> 200, y -> 1000; both -> 1200 -> pixels. ReLU, then sigmoid: N x C x H x W in [0, 1]."""

    def __init__(self, shape: Shape, classes: int, latent_dim: int, width: int):
        super().__init__()
        self.shape = shape
        self.z, self.y = nn.Linear(latent_dim, width), nn.Linear(classes, 5 * width)
        self.joint, self.out = nn.Linear(6 * width, 6 * width), nn.Linear(6 * width, math.prod(shape))
        self.dropout = nn.Dropout(0.5)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        h = self.dropout(F.relu(torch.cat([self.z(z), self.y(y)], 1)))
        h = self.dropout(F.relu(self.joint(h)))
        return torch.sigmoid(self.out(h).float()).unflatten(1, self.shape)


class Discriminator(nn.Module):
    """x -> 240 maxout units of 5 pieces, y -> 50 of 5; both -> 240 of 4 -> logit."""

    def __init__(self, shape: Shape, classes: int, units: int, y_units: int):
        super().__init__()
        self.x = nn.Sequential(nn.Linear(math.prod(shape), units * 5), Maxout(5))
        self.y = nn.Sequential(nn.Linear(classes, y_units * 5), Maxout(5))
        self.joint = nn.Sequential(nn.Linear(units + y_units, units * 4), Maxout(4))
        self.out, self.dropout = nn.Linear(units, 1), nn.Dropout(0.5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.dropout(torch.cat([self.x(x.flatten(1)), self.y(y)], 1))
        return self.out(self.dropout(self.joint(h))).squeeze(1).float()  # N


class CGAN(GAN):
    """CGAN (Mirza, Osindero, 2014).

    g_width: units of G's layer of z (its layer of y has five times as many, the joint one six times). d_units, y_units:
    maxout units of D. steps_per_epoch: of the momentum's schedule.
    """

    G: Any
    D: Any

    def __init__(
        self, image_size: int = 28, channels: int = 1, num_classes: int = 10, latent_dim: int = 100,
        g_width: int = 200, d_units: int = 240, y_units: int = 50, lr: float = 0.1, steps_per_epoch: int = 500,
    ):
        super().__init__()
        self.image_shape = channels, image_size, image_size
        self.num_classes, self.latent_dim, self.lr, self.steps_per_epoch = num_classes, latent_dim, lr, steps_per_epoch
        self.G = Generator(self.image_shape, num_classes, latent_dim, g_width)
        self.D = Discriminator(self.image_shape, num_classes, d_units, y_units)
        for net, limit in ((self.G, 0.05), (self.D, 0.005)):
            for p in net.parameters():
                nn.init.zeros_(p) if p.ndim == 1 else nn.init.uniform_(p, -limit, limit)

    @torch.no_grad()
    def begin(self, chunks: Iterable[Tensor]) -> None:
        """Set G's output biases so that sigmoid(b) is the mean image."""
        n, total = 0, torch.zeros(self.image_shape, dtype=torch.float64)
        for x in chunks:
            n, total = n + len(x), total.to(x.device) + x.sum(0, dtype=torch.float64)
        self.G.out.bias.copy_(torch.logit((total / n + 1) / 2, 1e-7).flatten())

    def d_loss(self, real_logit: Tensor, fake_logit: Tensor) -> Tensor:
        """-1/2 [E_x log D(x|y) + E_z log(1 - D(G(z|y)|y))] = -V(D, G) / 2   (Equation 2)"""
        return 0.5 * (F.softplus(-real_logit).mean() + F.softplus(fake_logit).mean())

    def g_loss(self, fake_logit: Tensor) -> Tensor:
        """-E_z log D(G(z|y)|y), the non-saturating form"""
        return F.softplus(-fake_logit).mean()

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
        rate, momentum = self.rate(step), self.momentum(step)
        for group in (group for optimizer in opt.values() for group in optimizer.param_groups):
            group["lr"], group["momentum"] = rate, momentum * self.rate(max(step - 1, 0)) / rate

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        """D sees each image with its class, and each generated image with the class that it was generated for."""
        assert batch.y is not None
        self.set_schedule(opt, batch.step)
        x, y = (batch.x + 1) / 2, self.one_hot(batch.y)  # deviation 1
        z = self.sample_latent(len(x)).to(x)
        real_logit, fake_logit = self.D(x, y), self.D(self.G(z, y), y)
        d_loss, g_loss = minimize_together(
            (self.d_loss(real_logit, fake_logit), [opt["D"]]), (self.g_loss(fake_logit), [opt["G"]])
        )
        return {"d_loss": d_loss, "g_loss": g_loss}

    def one_hot(self, y: Tensor) -> Tensor:
        """int64 N to float N x K"""
        return F.one_hot(y, self.num_classes).float()

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ U(-sqrt 3, sqrt 3)^100, of variance 1"""
        return (torch.rand(n, self.latent_dim, generator=generator) * 2 - 1) * math.sqrt(3)

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Images of the classes `y`; without them, classes are drawn uniformly."""
        if y is None:
            y = torch.randint(self.num_classes, (n,), generator=generator).to(self.device)
        return self.generate(self.sample_latent(n, generator).to(self.device), y)

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z|y)"""
        if y is None:
            raise ValueError("G of a conditional GAN needs the class of each image: give y")
        return 2 * self.G(z, self.one_hot(y)) - 1
