"""TinyGAN: two small fully connected networks that play the game of Goodfellow et al. (2014), arXiv:1406.2661.

Deviations from the paper: none is claimed, since this is a template and no reproduction.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ganbench.gan import GAN, Batch, minimize


class TinyGAN(GAN):
    """TinyGAN: fully connected, for images of 8 x 8 pixels.

    The arguments are plain values: a checkpoint stores them and needs nothing else.
    """

    def __init__(self, size: int = 8, channels: int = 1, latent_dim: int = 8, width: int = 64):
        super().__init__()
        self.image_shape, self.latent_dim = (channels, size, size), latent_dim
        pixels = channels * size * size
        self.G = nn.Sequential(
            nn.Linear(latent_dim, width), nn.ReLU(), nn.Linear(width, pixels), nn.Tanh(),
            nn.Unflatten(1, self.image_shape),
        )
        self.D = nn.Sequential(nn.Flatten(), nn.Linear(pixels, width), nn.LeakyReLU(0.2), nn.Linear(width, 1))

    # --- Losses: logits N x 1 ---

    def d_loss(self, real_logit: Tensor, fake_logit: Tensor) -> Tensor:
        """-E log D(x) - E log(1 - D(G(z)))   (Equation 1)"""
        return F.softplus(-real_logit).mean() + F.softplus(fake_logit).mean()

    def g_loss(self, fake_logit: Tensor) -> Tensor:
        """-E log D(G(z))   (Section 3, the loss that does not saturate)"""
        return F.softplus(-fake_logit).mean()

    # --- Training ---

    def optimizers(self) -> dict[str, Optimizer]:
        return {name: Adam(net.parameters(), 1e-3, betas=(0.5, 0.999)) for name, net in (("D", self.D), ("G", self.G))}

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        """Algorithm 1 with one step of each network. batch.x: N x C x H x W in [-1, 1]."""
        z = self.sample_latent(len(batch.x)).to(batch.x)
        d_loss = minimize(self.d_loss(self.D(batch.x), self.D(self.G(z).detach())), opt["D"])
        g_loss = minimize(self.g_loss(self.D(self.G(z))), opt["G"])
        return {"d_loss": d_loss, "g_loss": g_loss}

    # --- Sampling ---

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ N(0, I), n x latent_dim."""
        return torch.randn(n, self.latent_dim, generator=generator)

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z), in [-1, 1]."""
        return self.G(z)

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.generate(self.sample_latent(n, generator).to(self.device))
