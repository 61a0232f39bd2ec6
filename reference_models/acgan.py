"""AC-GAN: the discriminator also names the class.

"Conditional Image Synthesis With Auxiliary Classifier GANs",
Augustus Odena, Christopher Olah, Jonathon Shlens. ICML 2017, arXiv:1610.09585. No official code was released.

Unconfirmed, because the text that could be read leaves it open:
- the start map of G at 128 x 128. Here it is 8 x 8 x 12, the only reading in which four doublings give 128 and the
  linear layer has 768 units;
- the CIFAR-10 networks, the prior of z (here N(0, I)), the form of G's adversarial term, and Adam's beta2 (printed as
  10^-3; here 0.999).

Deviations from the paper:
1. G minimises -log P(S = real | fake) instead of log P(S = fake | fake): the non-saturating form, as all public
   versions do.
2. Samples are drawn with the running moments of batch norm.
3. 28 x 28 has no network in the paper. G is the CIFAR-10 generator without its first stage, started at 7 x 7 x 192;
   D is Table 1's on 28 x 28 (it ends at 4 x 4 x 512).
"""

from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ganbench.gan import GAN, Batch, minimize
from reference_models.layers import GaussianNoise, normal_start, up_conv, with_label

# Size of the images: side and maps of the linear layer's output, then maps of each transposed convolution but the last.
G_PLAN = {
    28: (7, 192, (96,)),  # deviation 3
    32: (4, 24, (192, 96)),  # CIFAR-10: linear 384 = 4 * 4 * 24
    128: (8, 12, (384, 256, 192)),  # Table 1: linear 768 = 8 * 8 * 12
}
D_MAPS = (16, 32, 64, 128, 256, 512)  # 3x3, strides 2 and 1 in turn


class Generator(nn.Module):
    """[z, c] -> linear, ReLU -> transposed 5x5 convolutions of stride 2, batch norm, ReLU -> tanh (Table 1)."""

    def __init__(self, size: int, channels: int, classes: int, latent_dim: int):
        super().__init__()
        side, first, maps = G_PLAN[size]
        self.start = (first, side, side)
        self.project = nn.Linear(latent_dim + classes, first * side * side)
        layers: list[nn.Module] = []
        for cin, cout in pairwise((first, *maps)):
            layers += [up_conv(cin, cout), nn.BatchNorm2d(cout), nn.ReLU()]
        self.body = nn.Sequential(*layers, up_conv(maps[-1], channels), nn.Tanh())

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        return self.body(F.relu(self.project(with_label(z, c))).unflatten(1, self.start))


class Discriminator(nn.Module):
    """Six 3x3 convolutions with dropout 0.5 and leaky ReLU 0.2, then 1 + K logits: source S and class C (Table 1)."""

    def __init__(self, size: int, channels: int, classes: int, noise_std: float):
        super().__init__()
        layers: list[nn.Module] = []
        for i, (cin, cout) in enumerate(pairwise((channels, *D_MAPS))):
            stride = 2 - i % 2
            size = -(-size // stride)
            norm = nn.BatchNorm2d(cout) if i else nn.Identity()  # no batch norm at the input
            conv = nn.Conv2d(cin, cout, 3, stride, padding=1)
            layers += [GaussianNoise(noise_std), conv, norm, nn.LeakyReLU(0.2), nn.Dropout(0.5)]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.out = nn.Linear(D_MAPS[-1] * size * size, 1 + classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.out(self.body(x))
        return out[:, 0], out[:, 1:]  # S: N, C: N x K


class ACGAN(GAN):
    """AC-GAN (Odena, Olah, Shlens, 2017).

    image_size: 28, 32 (CIFAR-10) or 128 (Table 1). noise_std: standard deviation of Gaussian noise on the activations
    of D, as in Salimans et al. (2016).
    """

    def __init__(
        self, image_size: int = 32, channels: int = 3, num_classes: int = 10, latent_dim: int = 100,
        noise_std: float = 0.0, g_lr: float = 2e-4, d_lr: float = 2e-4,
    ):
        super().__init__()
        if image_size not in G_PLAN:
            raise ValueError(f"image_size must be one of {sorted(G_PLAN)}, not {image_size}")
        self.image_shape = (channels, image_size, image_size)
        self.num_classes, self.latent_dim, self.g_lr, self.d_lr = num_classes, latent_dim, g_lr, d_lr
        self.G = Generator(image_size, channels, num_classes, latent_dim)
        self.D = Discriminator(image_size, channels, num_classes, noise_std)
        normal_start(self, 0.02)

    def source_loss(self, real_logit: Tensor, fake_logit: Tensor) -> Tensor:
        """-L_S = -E log P(S = real | x) - E log P(S = fake | G(z, c))   (Equation 2)"""
        return F.softplus(-real_logit).mean() + F.softplus(fake_logit).mean()

    def class_loss(self, real_logits: Tensor, y: Tensor, fake_logits: Tensor, c: Tensor) -> Tensor:
        """-L_C = -E log P(C = y | x) - E log P(C = c | G(z, c))   (Equation 3)"""
        return F.cross_entropy(real_logits, y) + F.cross_entropy(fake_logits, c)

    def g_loss(self, fake_logit: Tensor, fake_logits: Tensor, c: Tensor) -> Tensor:
        """-E log P(S = real | G(z, c)) - E log P(C = c | G(z, c)), the terms of L_C - L_S with G (deviation 1)"""
        return F.softplus(-fake_logit).mean() + F.cross_entropy(fake_logits, c)

    def optimizers(self) -> dict[str, Optimizer]:
        return {
            "D": Adam(self.D.parameters(), self.d_lr, betas=(0.5, 0.999)),
            "G": Adam(self.G.parameters(), self.g_lr, betas=(0.5, 0.999)),
        }

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        x, y = batch.x, batch.y
        if y is None:
            raise ValueError("AC-GAN needs labels")
        c = torch.randint(self.num_classes, (len(x),), device=x.device)
        fake = self.G(self.sample_latent(len(x)).to(x), self.one_hot(c))

        # D maximises L_S + L_C
        real_s, real_c = self.D(x)
        fake_s, fake_c = self.D(fake.detach())
        d_loss = minimize(self.source_loss(real_s, fake_s) + self.class_loss(real_c, y, fake_c, c), opt["D"])

        # G maximises L_C - L_S
        fake_s, fake_c = self.D(fake)
        g_loss = minimize(self.g_loss(fake_s, fake_c, c), opt["G"])
        return {"d_loss": d_loss, "g_loss": g_loss}

    def one_hot(self, c: Tensor) -> Tensor:
        return F.one_hot(c, self.num_classes).float()

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ N(0, I)"""
        return torch.randn(n, self.latent_dim, generator=generator)

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Images of the classes `y`; without them the classes are drawn uniformly."""
        c = torch.randint(self.num_classes, (n,), generator=generator) if y is None else y
        return self.generate(self.sample_latent(n, generator).to(self.device), c.to(self.device))

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z, c)"""
        if y is None:
            raise ValueError("AC-GAN needs labels")
        return self.G(z, self.one_hot(y))

    def classify(self, x: Tensor) -> Tensor:
        """Class logits of D, N x K."""
        return self.D(x)[1]
