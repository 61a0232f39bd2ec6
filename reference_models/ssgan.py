"""SSGAN: a discriminator that names the class of real images and has one class more, FAKE; learnt from few labels.

"Semi-Supervised Learning with Generative Adversarial Networks",
Augustus Odena. Workshop on Data-Efficient Machine Learning, ICML 2016, arXiv:1606.01583.
Official code: https://github.com/DoctorTeeth/supergan, which could not be read: it is no longer there.
The paper calls the model SGAN. Here this name belongs to Structured GAN (Deng et al., 2017).

The three models of the paper are here: the semi-supervised GAN, the classifier that stands beside it in Table 1, and
the ordinary GAN that its samples are compared with.

Unconfirmed, because the paper does not say it:
- the layers; they are "similar to" DCGAN's. Here they are two 5 x 5 convolutions of stride 2, and G is the mirror of D;
- optimiser, batch size, prior of z and length. Here Adam with beta1 0.5, 64, U(-1, 1)^100 (DCGAN's) and 3,000 steps;
- the learning rates, the best of a random search for each model. Here 2e-4, as in DCGAN, and 1e-3 for the CNN;
- how the few labels were drawn, how often, and whether they were as many of each class;
- whether images without labels were used. The objective has no term for them, so here they are not.

Deviations from the paper:
1. Algorithm 1 prints that G descends the negative log-likelihood. The text says that G maximises it, and that the
   non-saturating form was not used. This file follows the text.
2. D has no batch norm: D would tell generated images from real ones by the moments of their joint minibatch alone.
3. Samples are drawn with the running moments of G's batch norm.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ganbench.gan import GAN, Batch, minimize
from reference_models.layers import down_conv, lrelu, normal_start, up_conv

# --- Networks ---


class Generator(nn.Module):
    """z -> S/4 x S/4 x 2w -> S/2 x S/2 x w -> S x S: transposed 5x5 convolutions, batch norm, ReLU; tanh."""

    def __init__(self, size: int, channels: int, latent_dim: int, width: int):
        super().__init__()
        self.start = (2 * width, size // 4, size // 4)
        self.project = nn.Linear(latent_dim, 2 * width * (size // 4) ** 2, bias=False)
        self.bn1 = nn.BatchNorm2d(2 * width)
        self.up2, self.bn2 = up_conv(2 * width, width, bias=False), nn.BatchNorm2d(width)
        self.up3 = up_conv(width, channels)

    def forward(self, z: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.project(z).unflatten(1, self.start)))
        h = F.relu(self.bn2(self.up2(h)))
        return torch.tanh(self.up3(h).float())


class Discriminator(nn.Module):
    """D/C: S x S -> S/2 x S/2 x w -> S/4 x S/4 x 2w -> N + 1 logits, the last of FAKE: leaky ReLU 0.2 and dropout."""

    def __init__(self, size: int, channels: int, outputs: int, width: int, dropout: float):
        super().__init__()
        self.down1, self.down2 = down_conv(channels, width), down_conv(width, 2 * width)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(2 * width * (size // 4) ** 2, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.dropout(lrelu(self.down1(x)))
        h = self.dropout(lrelu(self.down2(h)))
        return self.out(h.flatten(1)).float()


# --- The models ---


class WithFake(GAN):
    """Networks, losses, step and latent of all models of the paper: D has N classes and FAKE."""

    game = None  # g_loss is at most 0, and tends to -0 where D wins
    G: Generator
    D: Discriminator

    def __init__(
        self, image_size: int, channels: int, classes: int, latent_dim: int, width: int, dropout: float, g_lr: float,
        d_lr: float,
    ):
        super().__init__()
        if image_size < 4 or image_size % 4:
            raise ValueError(f"image_size must be a multiple of 4, not {image_size}")
        self.image_shape = (channels, image_size, image_size)
        self.latent_dim, self.g_lr, self.d_lr = latent_dim, g_lr, d_lr
        self.G = Generator(image_size, channels, latent_dim, width)
        self.D = Discriminator(image_size, channels, classes + 1, width, dropout)
        normal_start(self, 0.02)

    def d_loss(self, real_logits: Tensor, y: Tensor, fake_logits: Tensor) -> Tensor:
        """-log p(y | x) and -log p(FAKE | G(z)), the mean over the joint minibatch of 2m images   (Algorithm 1)"""
        fake = torch.full((len(fake_logits),), fake_logits.shape[1] - 1, device=y.device)
        return F.cross_entropy(torch.cat([real_logits, fake_logits]), torch.cat([y, fake]))

    def g_loss(self, fake_logits: Tensor) -> Tensor:
        """E log p(FAKE | G(z)), which saturates where D is sure   (Section 2; deviation 1)"""
        return F.log_softmax(fake_logits, 1)[:, -1].mean()

    def optimizers(self) -> dict[str, Optimizer]:
        return {
            "D": Adam(self.D.parameters(), self.d_lr, betas=(0.5, 0.999)),
            "G": Adam(self.G.parameters(), self.g_lr, betas=(0.5, 0.999)),
        }

    def targets(self, batch: Batch) -> Tensor:
        """The classes of the real images, int64 N."""
        if batch.y is None:
            raise ValueError("SSGAN needs labels")
        return batch.y

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        d_loss = self.d_step(batch, opt)
        fake = self.G(self.sample_latent(len(batch.x)).to(batch.x))
        g_loss = minimize(self.g_loss(self.D(fake)), opt["G"])
        return {"d_loss": d_loss, "g_loss": g_loss}

    def d_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> Tensor:
        """D/C descends the negative log-likelihood of m images with labels and m generated ones."""
        x = batch.x
        with torch.no_grad():
            fake = self.G(self.sample_latent(len(x)).to(x))
        real_logits, fake_logits = self.D(torch.cat([x, fake])).split(len(x))
        return minimize(self.d_loss(real_logits, self.targets(batch), fake_logits), opt["D"])

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ U(-1, 1)^100"""
        return torch.rand(n, self.latent_dim, generator=generator) * 2 - 1

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.generate(self.sample_latent(n, generator).to(self.device))

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z)"""
        return self.G(z)


class SSGAN(WithFake):
    """Semi-supervised GAN (Odena, 2016).

    image_size: a multiple of 4. classes: N. width: maps of the layer next to the image.
    """

    def __init__(
        self, image_size: int = 28, channels: int = 1, classes: int = 10, latent_dim: int = 100, width: int = 32,
        dropout: float = 0.0, g_lr: float = 2e-4, d_lr: float = 2e-4,
    ):
        super().__init__(image_size, channels, classes, latent_dim, width, dropout, g_lr, d_lr)
        self.classes = classes

    def classify(self, x: Tensor) -> Tensor:
        """The N class logits of D/C; FAKE is left out, so that an answer is one of the classes."""
        return self.D(x)[:, :-1]


class CNN(SSGAN):
    """The classifier of Table 1: D/C of SSGAN, trained beside a G that is never updated."""

    def __init__(
        self, image_size: int = 28, channels: int = 1, classes: int = 10, latent_dim: int = 100, width: int = 32,
        dropout: float = 0.0, d_lr: float = 2e-4,
    ):
        super().__init__(image_size, channels, classes, latent_dim, width, dropout, d_lr=d_lr)
        self.G.requires_grad_(False)

    def optimizers(self) -> dict[str, Optimizer]:
        return {"D": super().optimizers()["D"]}

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        return {"d_loss": self.d_step(batch, opt)}


class RealFakeGAN(WithFake):
    """The GAN that SSGAN's samples are compared with: the same code with the targets REAL and FAKE alone."""

    def __init__(
        self, image_size: int = 28, channels: int = 1, latent_dim: int = 100, width: int = 32, dropout: float = 0.0,
        g_lr: float = 2e-4, d_lr: float = 2e-4,
    ):
        super().__init__(image_size, channels, 1, latent_dim, width, dropout, g_lr, d_lr)

    def targets(self, batch: Batch) -> Tensor:
        """REAL for every image, whatever its class."""
        return torch.zeros(len(batch.x), dtype=torch.int64, device=batch.x.device)
