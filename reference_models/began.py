"""BEGAN: the discriminator is an auto-encoder, and a control variable keeps both losses in a fixed ratio.

"BEGAN: Boundary Equilibrium Generative Adversarial Networks",
David Berthelot, Thomas Schumm, Luke Metz. 2017, arXiv:1703.10717. No official code was released.

The layers follow the description of the paper as https://github.com/carpedm20/BEGAN-tensorflow reads it, on whose pages
an author of the paper commented.

Unconfirmed, because the text that could be read leaves it open:
- the layers. Those here have 25.2 million parameters at 128 x 128 with n = 128; the paper is quoted with 17.3 million;
- n for each size of images; skip connections from the first decoder tensor and vanishing residuals, which the paper is
  said to offer as refinements and which no code that could be read has. They are not here;
- Adam's betas (here 0.9 and 0.999), the batch (16), the initialisation (Glorot's uniform; biases 0);
- the learning rate: from 5e-5 to 1e-4, halved when the measure of convergence stalls;
- gamma of the CIFAR-10 experiment, and the size of its networks.

Deviations from the paper:
1. The learning rate is halved every 100,000 steps down to a floor of 2e-5, as in the code above.
2. k_t is clipped to [0, 1]. The paper says that it lies there, and its printed update does not clip.
3. D and G learn from one draw of z; the paper allows two, z_D and z_G.
4. The output layers are linear. Samples and reconstructions are clipped to [-1, 1]; no loss sees clipped images.
"""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ganbench.gan import GAN, Batch, minimize_together
from reference_models.layers import double, xavier_start

# --- Networks: 3 x 3 convolutions and ELU, two at each size; no normalisation ---


def conv(cin: int, cout: int, stride: int = 1) -> nn.Module:
    """3 x 3 convolution and ELU."""
    return nn.Sequential(nn.Conv2d(cin, cout, 3, stride, padding=1), nn.ELU())


class Encoder(nn.Module):
    """S x S x n -> S/2 x S/2 x 2n -> ... -> 8 x 8 -> h, which is linear; halved by convolutions of stride 2."""

    def __init__(self, size: int, channels: int, width: int, hidden_dim: int):
        super().__init__()
        widths = [width * (i + 1) for i in range(scales(size))]
        layers = [conv(channels, width), conv(width, width), conv(width, width)]
        for cin, cout in pairwise(widths):
            layers += [conv(cin, cin, stride=2), conv(cin, cout), conv(cout, cout)]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.out = nn.Linear(widths[-1] * 64, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x))


class Decoder(nn.Module):
    """h or z -> 8 x 8 x n -> ... -> S x S: n maps everywhere, doubled by nearest neighbours; G, and D's second half."""

    def __init__(self, size: int, channels: int, width: int, hidden_dim: int):
        super().__init__()
        self.start = (width, 8, 8)
        self.project = nn.Linear(hidden_dim, width * 64)
        self.body = nn.ModuleList(nn.Sequential(conv(width, width), conv(width, width)) for _ in range(scales(size)))
        self.out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        h = self.project(h).unflatten(1, self.start)
        for i, block in enumerate(self.body):
            h = block(double(h) if i else h)
        return self.out(h).float()


class AutoEncoder(nn.Module):
    """D: encoder and decoder."""

    def __init__(self, size: int, channels: int, width: int, hidden_dim: int):
        super().__init__()
        self.encoder = Encoder(size, channels, width, hidden_dim)
        self.decoder = Decoder(size, channels, width, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def scales(size: int) -> int:
    """Number of sizes from 8 x 8 to S x S: log2(S) - 2."""
    return size.bit_length() - 3


# --- The model ---


class BEGAN(GAN):
    """BEGAN (Berthelot, Schumm, Metz, 2017).

    image_size: a power of two from 8 on. gamma: diversity ratio E L(G(z)) / E L(x), which the game is kept at; a lower
    one gives sharper and less diverse images. width: n. hidden_dim: N_h; latent_dim: N_z. eta: exponent of L, 1 or 2.
    lambda_k: learning rate of k. The rate of Adam is `lr`, halved every `halve_every` steps down to `lr_floor`.
    """

    game = None  # the losses are errors of reconstruction, and k_t keeps their ratio
    logged = ("k", "balance", "convergence")
    k: Tensor

    def __init__(
        self, image_size: int = 64, channels: int = 3, gamma: float = 0.5, width: int = 128, hidden_dim: int = 64,
        latent_dim: int = 64, eta: int = 1, lambda_k: float = 0.001, lr: float = 1e-4, halve_every: int = 100_000,
        lr_floor: float = 2e-5,
    ):
        super().__init__()
        if image_size < 8 or image_size & (image_size - 1):
            raise ValueError(f"image_size must be a power of two from 8 on, not {image_size}")
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma must be between 0 and 1, not {gamma}")
        if eta not in (1, 2):
            raise ValueError(f"eta must be 1 or 2, not {eta}")
        self.image_shape = (channels, image_size, image_size)
        self.latent_dim, self.gamma, self.eta, self.lambda_k = latent_dim, gamma, eta, lambda_k
        self.lr, self.halve_every, self.lr_floor = lr, halve_every, lr_floor
        self.G = Decoder(image_size, channels, width, latent_dim)
        self.D = AutoEncoder(image_size, channels, width, hidden_dim)
        self.register_buffer("k", torch.zeros(()))  # k_0 = 0
        xavier_start(self)

    def reconstruction_loss(self, v: Tensor, back: Tensor) -> Tensor:
        """L(v) = |v - D(v)|^eta, a mean over pixels and images   (Equation 1)"""
        error = (v - back).abs()
        return (error if self.eta == 1 else error.square()).mean()

    def d_loss(self, real_loss: Tensor, fake_loss: Tensor) -> Tensor:
        """L_D = L(x) - k_t L(G(z_D))   (Section 3.4)"""
        return real_loss - self.k * fake_loss

    def g_loss(self, fake_loss: Tensor) -> Tensor:
        """L_G = L(G(z_G)), whose gradient reaches G through D's answer and through the target G(z)   (Section 3.4)"""
        return fake_loss

    def balance(self, real_loss: Tensor, fake_loss: Tensor) -> Tensor:
        """gamma L(x) - L(G(z_G)), which is 0 at the equilibrium   (Section 3.3)"""
        return self.gamma * real_loss - fake_loss

    def convergence(self, real_loss: Tensor, fake_loss: Tensor) -> Tensor:
        """M = L(x) + |gamma L(x) - L(G(z_G))|   (Section 3.4.1)"""
        return real_loss + self.balance(real_loss, fake_loss).abs()

    def optimizers(self) -> dict[str, Optimizer]:
        return {"D": Adam(self.D.parameters(), self.lr), "G": Adam(self.G.parameters(), self.lr)}

    def set_rates(self, opt: Mapping[str, Optimizer], step: int) -> None:
        """lr, halved every `halve_every` steps, but not below `lr_floor` (deviation 1)."""
        rate = max(self.lr * 0.5 ** (step // self.halve_every), min(self.lr, self.lr_floor))
        for optimizer in opt.values():
            optimizer.param_groups[0]["lr"] = rate

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        """Both networks step at once from one forward pass, then k does."""
        self.set_rates(opt, batch.step)
        x = batch.x
        fake = self.G(self.sample_latent(len(x)).to(x))
        real_back, fake_back = self.D(torch.cat([x, fake])).split(len(x))
        real_loss, fake_loss = self.reconstruction_loss(x, real_back), self.reconstruction_loss(fake, fake_back)
        k = self.k.clone()
        d_loss, g_loss = minimize_together(
            (self.d_loss(real_loss, fake_loss), [opt["D"]]), (self.g_loss(fake_loss), [opt["G"]])
        )
        real_loss = real_loss.detach()
        self.update_k(real_loss, g_loss)
        return {
            "d_loss": d_loss, "g_loss": g_loss, "real_loss": real_loss, "k": k,
            "balance": self.balance(real_loss, g_loss), "convergence": self.convergence(real_loss, g_loss),
        }

    @torch.no_grad()
    def update_k(self, real_loss: Tensor, fake_loss: Tensor) -> None:
        """k_{t+1} = k_t + lambda_k (gamma L(x) - L(G(z_G))), kept in [0, 1]   (Section 3.4; deviation 2)"""
        self.k.add_(self.lambda_k * self.balance(real_loss, fake_loss)).clamp_(0, 1)

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ U(-1, 1)^64"""
        return torch.rand(n, self.latent_dim, generator=generator) * 2 - 1

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.generate(self.sample_latent(n, generator).to(self.device))

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z), clipped to [-1, 1]."""
        return self.G(z).clamp(-1, 1)

    def reconstruct(self, x: Tensor) -> Tensor:
        """D(x), clipped to [-1, 1]."""
        return self.D(x).clamp(-1, 1)

    def discriminator_features(self, x: Tensor) -> Tensor:
        """h, the embedding of D, N x 64."""
        return self.D.encoder(x)
