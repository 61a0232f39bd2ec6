"""TinyGAN: two small fully connected networks, for images of 8 x 8 pixels.

"Generative Adversarial Nets",
Ian J. Goodfellow, Jean Pouget-Abadie, Mehdi Mirza, et al. NeurIPS 2014, arXiv:1406.2661.
Official code: https://github.com/goodfeli/adversarial.

Deviations from the paper:
1. D has leaky ReLU in place of maxout and dropout.
2. Adam takes the place of SGD with momentum.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ganbench.gan import GAN, Batch, minimize


class TinyGAN(GAN):
    """TinyGAN (Goodfellow et al., 2014): fully connected, for images of 8 x 8 pixels."""

    def __init__(self, size: int = 8, channels: int = 1, latent_dim: int = 8, width: int = 64, lr: float = 1e-3):
        super().__init__()  # the arguments are plain values with defaults: a checkpoint stores them
        self.image_shape, self.latent_dim, self.lr = (channels, size, size), latent_dim, lr
        pixels = channels * size * size
        self.G = nn.Sequential(
            nn.Linear(latent_dim, width), nn.ReLU(), nn.Linear(width, pixels), nn.Tanh(),
            nn.Unflatten(1, self.image_shape),
        )
        self.D = nn.Sequential(nn.Flatten(), nn.Linear(pixels, width), nn.LeakyReLU(0.2), nn.Linear(width, 1))

    def d_loss(self, real_logit: Tensor, fake_logit: Tensor) -> Tensor:
        """-E log D(x) - E log(1 - D(G(z)))   (Equation 1)"""
        return F.softplus(-real_logit).mean() + F.softplus(fake_logit).mean()

    def g_loss(self, fake_logit: Tensor) -> Tensor:
        """-E log D(G(z))   (Section 3, the loss that does not saturate)"""
        return F.softplus(-fake_logit).mean()

    def optimizers(self) -> dict[str, Optimizer]:
        """Adam for each network. A key is the name of the network's attribute."""
        return {name: Adam(getattr(self, name).parameters(), self.lr, betas=(0.5, 0.999)) for name in ("D", "G")}

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        """Algorithm 1 with one step of each network. batch.x: N x C x H x W in [-1, 1]."""
        fake = self.G(self.sample_latent(len(batch.x)).to(batch.x))
        d_loss = minimize(self.d_loss(self.D(batch.x), self.D(fake.detach())), opt["D"])  # moves D alone
        g_loss = minimize(self.g_loss(self.D(fake)), opt["G"])
        return {"d_loss": d_loss, "g_loss": g_loss}

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ N(0, I), n x latent_dim."""
        return torch.randn(n, self.latent_dim, generator=generator)

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z), in [-1, 1]."""
        return self.G(z)

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """n images, drawn from `generator` alone, so that a seed determines them."""
        return self.generate(self.sample_latent(n, generator).to(self.device))
