"""SN-GAN: spectral normalisation of the discriminator, and its conditional form with a projection discriminator.

"Spectral Normalization for Generative Adversarial Networks",
Takeru Miyato, Toshiki Kataoka, Masanori Koyama, Yuichi Yoshida. ICLR 2018, arXiv:1802.05957.
"cGANs with Projection Discriminator", Takeru Miyato, Masanori Koyama. ICLR 2018, arXiv:1802.05637.
Official code: https://github.com/pfnet-research/sngan_projection; the CNN of the first paper's Table 3 is in
https://github.com/pfnet-research/chainer-gan-lib.

`sngan` is the first paper's: residual networks for 32, 48, 64 and 128 pixels (Tables 4 to 6 and the code; 48 pixels are
STL-10), or the CNN (`residual=False`), with the hinge loss. `sngan-bce` is its row with cross-entropy. With
`sngan-projection` G and D see the class: conditional batch norm in G, <V y, h> in D.

Unconfirmed, because the text that could be read leaves it open:
- the first weights of the CNN, here N(0, .02) as in its code, whose D is another than Table 3's;
- G's batch for the CNN, and whether its learning rates decay. Here it is as large as D's, and the rates are constant;
- the networks at 48 pixels beyond Table 5, because their code was never released.

Deviations from the paper and its code:
1. D sees real and generated images in one pass, so that u moves once an update, as in Algorithm 1. In the code it moves
   with each of two passes. torch's u moves before v, and fifteen power iterations precede training.
2. The code adds noise U(0, 1/128) to the images, whose levels are 1/128 apart. Here they have none.
3. The first update is D's; in the code it is G's.
4. Batch norm sees the whole batch. The code's ImageNet runs have one batch for each of four GPUs.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ganbench.gan import GAN, Batch, minimize
from reference_models.layers import (
    DownBlock,
    FirstDownBlock,
    UpBlock,
    conv3,
    down_conv,
    normal_start,
    spectral_norm,
    up_conv,
    xavier_start,
)

# Channels by image size, in multiples of a width: of G at first and after each doubling, and of D after each block.
G_WIDTHS = {32: (1, 1, 1, 1), 48: (8, 4, 2, 1), 64: (16, 8, 4, 2, 1), 128: (16, 16, 8, 4, 2, 1)}
D_WIDTHS = {32: (1, 1, 1, 1), 48: (1, 2, 4, 8, 16), 64: (1, 2, 4, 8, 16), 128: (1, 2, 4, 8, 16, 16)}
HALVINGS = {32: 2, 48: 4, 64: 5, 128: 5}  # the first blocks of D halve, the others keep the size
EPS = 2e-5  # of batch norm, Chainer's


def linear(h: Tensor, layer: nn.Linear) -> Tensor:
    """The layer's one output, N. Under mixed precision this is float32, as the hinge's margin needs."""
    logit = (layer.weight * h).sum(1)
    return logit if layer.bias is None else logit + layer.bias


# --- Residual networks ---


class Generator(nn.Module):
    """z, y -> 4x4 (48 pixels: 6x6) -> ... -> SxS by residual blocks; conditional batch norm if there are classes."""

    def __init__(self, size: int, channels: int, classes: int, latent_dim: int, width: int):
        super().__init__()
        widths = [width * k for k in G_WIDTHS[size]]
        self.classes, self.side = classes, size >> len(widths) - 1
        self.project = nn.Linear(latent_dim, widths[0] * self.side**2)
        self.blocks = nn.ModuleList(UpBlock(cin, cout, classes, eps=EPS) for cin, cout in pairwise(widths))
        self.norm, self.out = nn.BatchNorm2d(widths[-1], EPS), conv3(widths[-1], channels, gain=1)
        xavier_start(self.project)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        c = () if y is None else (F.one_hot(y, self.classes).to(z),)
        h = self.project(z).unflatten(1, (-1, self.side, self.side))
        for block in self.blocks:
            h = block(h, *c)
        return torch.tanh(self.out(F.relu(self.norm(h)))).float()


class Discriminator(nn.Module):
    """x, y -> logit: residual blocks, the sum over pixels h, psi^T h + b + <V y, h>   (projection paper, Equation 3)

    Without classes the last term is missing. At 32 pixels there is no b.
    """

    def __init__(self, size: int, channels: int, classes: int, width: int):
        super().__init__()
        widths = [width * k for k in D_WIDTHS[size]]
        blocks: list[nn.Module] = [FirstDownBlock(channels, widths[0])]
        for i, (cin, cout) in enumerate(pairwise(widths), start=1):
            blocks.append(DownBlock(cin, cout, down=i < HALVINGS[size]))
        self.blocks = nn.Sequential(*blocks)
        self.logit = nn.Linear(widths[-1], 1, bias=size != 32)
        xavier_start(self.logit)
        if classes:
            self.embed = nn.Embedding(classes, widths[-1])
            xavier_start(self.embed)
        spectral_norm(self)

    def features(self, x: Tensor) -> Tensor:
        """h, N x C in float32."""
        return F.relu(self.blocks(x)).float().sum((2, 3))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.features(x)
        logit = linear(h, self.logit)
        return logit if y is None else logit + (self.embed(y) * h).sum(1)


# --- The CNN, Table 3 ---


class ConvGenerator(nn.Module):
    """z -> 4x4 (48 pixels: 6x6) -> transposed 4x4 convolutions of stride 2, batch norm, ReLU -> 3x3, tanh."""

    def __init__(self, size: int, channels: int, latent_dim: int, width: int):
        super().__init__()
        widths = [8 * width, 4 * width, 2 * width, width]  # 512, 256, 128, 64
        side = size // 8
        layers: list[nn.Module] = [nn.Linear(latent_dim, widths[0] * side**2), nn.Unflatten(1, (-1, side, side))]
        for cin, cout in pairwise(widths):
            layers += [up_conv(cin, cout, kernel=4), nn.BatchNorm2d(cout, EPS), nn.ReLU()]
        self.body = nn.Sequential(*layers, conv3(width, channels), nn.Tanh())
        normal_start(self, 0.02)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.body(z).float()


class ConvDiscriminator(nn.Module):
    """x -> 3x3 convolutions of stride 1 and 4x4 of stride 2 in turn, 3x3, leaky ReLU 0.1 -> logit."""

    def __init__(self, size: int, channels: int, width: int):
        super().__init__()
        widths = [channels, width, 2 * width, 4 * width]  # 3, 64, 128, 256
        layers: list[nn.Module] = []
        for cin, cout in pairwise(widths):
            layers += [conv3(cin, cout), nn.LeakyReLU(0.1), down_conv(cout, cout, kernel=4), nn.LeakyReLU(0.1)]
        self.body = nn.Sequential(*layers, conv3(4 * width, 8 * width), nn.LeakyReLU(0.1), nn.Flatten())
        self.logit = nn.Linear(8 * width * (size // 8) ** 2, 1)
        normal_start(self, 0.02)
        spectral_norm(self)

    def features(self, x: Tensor) -> Tensor:
        """The last maps, flat, in float32."""
        return self.body(x).float()

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return linear(self.features(x), self.logit)


# --- The models ---


class SNGAN(GAN):
    """SN-GAN (Miyato, Kataoka, Koyama, Yoshida, 2018).

    image_size: 32, 48, 64 or 128; 32 or 48 for the CNN. num_classes: 0 trains without labels. g_width, d_width:
    channels at the image (residual networks at 32 pixels: of all blocks). residual: False for the CNN of Table 3.
    n_critic: updates of D for each of G, which share a batch; G's batch is `g_batch` times as large as one of D's.
    The learning rates are lr up to update `decay_from` of G and fall linearly to 0 at `decay_to`; decay_to 0: constant.
    """

    G: Any
    D: Any

    def __init__(
        self, image_size: int = 32, channels: int = 3, num_classes: int = 0, latent_dim: int = 128,
        g_width: int = 256, d_width: int = 128, residual: bool = True, n_critic: int = 5, g_batch: int = 2,
        lr: float = 2e-4, beta1: float = 0.0, beta2: float = 0.9, decay_from: int = 0, decay_to: int = 0,
    ):
        super().__init__()
        sizes = list(G_WIDTHS) if residual else [32, 48]
        if image_size not in sizes:
            raise ValueError(f"image_size must be one of {', '.join(map(str, sizes))}, not {image_size}")
        if num_classes and not residual:
            raise ValueError("the CNN has no conditional form: num_classes must be 0")
        if min(n_critic, g_batch) < 1:
            raise ValueError("n_critic and g_batch must be at least 1")
        if decay_to and decay_to <= decay_from:
            raise ValueError(f"decay_to must be 0 or more than decay_from, {decay_from}, not {decay_to}")
        self.image_shape, self.num_classes = (channels, image_size, image_size), num_classes
        self.latent_dim, self.n_critic, self.g_batch = latent_dim, n_critic, g_batch
        self.lr, self.betas, self.decay_from, self.decay_to = lr, (beta1, beta2), decay_from, decay_to
        if residual:
            self.G = Generator(image_size, channels, num_classes, latent_dim, g_width)
            self.D = Discriminator(image_size, channels, num_classes, d_width)
        else:
            self.G = ConvGenerator(image_size, channels, latent_dim, g_width)
            self.D = ConvDiscriminator(image_size, channels, d_width)

    def d_loss(self, real_logit: Tensor, fake_logit: Tensor) -> Tensor:
        """-V_D = E max(0, 1 - D(x)) + E max(0, 1 + D(G(z))), the hinge loss   (Equation 16)"""
        return F.relu(1 - real_logit).mean() + F.relu(1 + fake_logit).mean()

    def g_loss(self, fake_logit: Tensor) -> Tensor:
        """V_G = -E D(G(z))   (Equation 17)"""
        return -fake_logit.mean()

    def optimizers(self) -> dict[str, Optimizer]:
        return {name: Adam(getattr(self, name).parameters(), self.lr, betas=self.betas) for name in ("D", "G")}

    def rate(self, step: int) -> float:
        """The learning rate of both networks in this update of G."""
        if not self.decay_to:
            return self.lr
        return self.lr * min(1.0, max(0.0, (self.decay_to - step) / (self.decay_to - self.decay_from)))

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        if self.num_classes and batch.y is None:
            raise ValueError("the projection discriminator needs labels")
        for optimizer in opt.values():
            optimizer.param_groups[0]["lr"] = self.rate(batch.step)
        y = batch.y if self.num_classes else None
        for i, x in enumerate(batch.x.tensor_split(self.n_critic)):
            z, c = self.draw(len(x), x)
            with torch.no_grad():
                fake = self.G(z, c)
            classes = None if y is None or c is None else torch.cat([y.tensor_split(self.n_critic)[i], c])
            real_logit, fake_logit = self.D(torch.cat([x, fake]), classes).split(len(x))
            d_loss = minimize(self.d_loss(real_logit, fake_logit), opt["D"])
        z, c = self.draw(self.g_batch * len(x), x)
        g_loss = minimize(self.g_loss(self.D(self.G(z, c), c)), opt["G"])
        return {"d_loss": d_loss, "g_loss": g_loss}

    def draw(self, n: int, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """n draws of z ~ N(0, I), and of classes, uniformly, if there are classes; on the device of `like`."""
        c = torch.randint(self.num_classes, (n,), device=like.device) if self.num_classes else None
        return self.sample_latent(n).to(like), c

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ N(0, I)"""
        return torch.randn(n, self.latent_dim, generator=generator)

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Images of the classes `y`; a conditional model without them draws classes uniformly."""
        if self.num_classes:
            y = torch.randint(self.num_classes, (n,), generator=generator) if y is None else y
        return self.generate(self.sample_latent(n, generator).to(self.device), None if y is None else y.to(self.device))

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z), or G(z, y) of the conditional model."""
        if not self.num_classes:
            return self.G(z)
        if y is None:
            raise ValueError("G of a conditional SN-GAN needs labels")
        return self.G(z, y)

    def discriminator_features(self, x: Tensor) -> Tensor:
        """What D's logit is linear in: the sums over pixels h, N x C; the last maps of the CNN."""
        return self.D.features(x)


class CrossEntropySNGAN(SNGAN):
    """The rows of Table 2 before the hinge loss: SN-GAN with the cross-entropies of Goodfellow et al. (2014)."""

    def d_loss(self, real_logit: Tensor, fake_logit: Tensor) -> Tensor:
        """-E log D(x) - E log(1 - D(G(z)))   (Equation 1, with D the sigmoid of the logit)"""
        return F.softplus(-real_logit).mean() + F.softplus(fake_logit).mean()

    def g_loss(self, fake_logit: Tensor) -> Tensor:
        """-E log D(G(z)), the non-saturating form"""
        return F.softplus(-fake_logit).mean()


class ProjectionSNGAN(SNGAN):
    """SN-GAN with classes: conditional batch norm and the projection discriminator (Miyato and Koyama, 2018).

    Arguments are those of SNGAN.
    """

    def __init__(
        self, image_size: int = 32, channels: int = 3, num_classes: int = 10, latent_dim: int = 128,
        g_width: int = 256, d_width: int = 128, n_critic: int = 5, g_batch: int = 2,
        lr: float = 2e-4, beta1: float = 0.0, beta2: float = 0.9, decay_from: int = 0, decay_to: int = 0,
    ):
        if num_classes < 1:
            raise ValueError("the projection discriminator needs classes: num_classes must be at least 1")
        super().__init__(
            image_size, channels, num_classes, latent_dim, g_width, d_width, True, n_critic, g_batch,
            lr, beta1, beta2, decay_from, decay_to,
        )
