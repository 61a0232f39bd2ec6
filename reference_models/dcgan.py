"""DCGAN: deep convolutional generative adversarial networks.

"Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks",
Alec Radford, Luke Metz, Soumith Chintala. ICLR 2016, arXiv:1511.06434.
Official code: https://github.com/Newmu/dcgan_code (faces/train_uncond_dcgan.py, mnist/train_cond_dcgan.py).

Two architectures are the authors': Figure 1 (64 x 64) and the conditional network of their MNIST code (28 x 28).
Other sizes 4 * 2^k take Figure 1 with fewer or more stages. This is a convention and not in the paper.

Deviations from the paper and its code:
1. Samples are drawn with the running moments of batch norm (momentum 0.1), so that a sample does not depend on its
   neighbours. The official code uses the moments of the batch.
2. At 28 x 28, images in [-1, 1] are mapped to the official [0, 1] at the networks' doors.
3. With `num_classes`, Figure 1 gets the label at every layer, as the MNIST code's network does. The paper has no such
   network.
4. A minibatch trains D and then G. The official loop gives each minibatch to one of the two in turn, so that an epoch
   here holds twice its updates.
5. Figure 1's batch norm has epsilon 1e-5 and D's logit a bias; the official code has 1e-8 and no bias.
"""

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ganbench.gan import GAN, Batch, minimize
from reference_models.layers import down_conv, lrelu, up_conv, with_label

down = partial(down_conv, kernel=5, bias=False)  # halves the image
up = partial(up_conv, kernel=5, bias=False)  # doubles it

# --- Figure 1 ---


class Generator(nn.Module):
    """z -> 4x4 -> 8x8 -> ... -> SxS, the width halving; batch norm everywhere but at the output (Figure 1, S = 64)."""

    def __init__(self, size: int, channels: int, classes: int, latent_dim: int, width: int):
        super().__init__()
        stages = (size // 4).bit_length() - 1  # 64 -> 4
        widths = [width << s for s in reversed(range(stages))]  # width 128, S 64: 1024, 512, 256, 128
        self.project = nn.Linear(latent_dim + classes, widths[0] * 16, bias=False)
        self.bns = nn.ModuleList(nn.BatchNorm2d(w) for w in widths)
        self.ups = nn.ModuleList(up(cin + classes, cout) for cin, cout in pairwise((*widths, channels)))

    def forward(self, z: Tensor, y: Tensor | None) -> Tensor:
        h = self.project(with_label(z, y)).unflatten(1, (-1, 4, 4))
        for bn, conv in zip(self.bns, self.ups, strict=True):
            h = conv(with_label(F.relu(bn(h)), y))
        return torch.tanh(h)


class Discriminator(nn.Module):
    """S x S -> ... -> 4x4 -> logit, the width doubling; no batch norm at the input, leaky ReLU 0.2."""

    def __init__(self, size: int, channels: int, classes: int, width: int):
        super().__init__()
        stages = (size // 4).bit_length() - 1
        widths = [width << s for s in range(stages)]  # 128, 256, 512, 1024
        self.downs = nn.ModuleList(down(cin + classes, cout) for cin, cout in pairwise((channels, *widths)))
        self.bns = nn.ModuleList([nn.Identity(), *(nn.BatchNorm2d(w) for w in widths[1:])])
        self.logit = nn.Linear(widths[-1] * 16 + classes, 1)

    def features(self, x: Tensor, y: Tensor | None) -> list[Tensor]:
        """All convolutional feature maps."""
        h, maps = x, []
        for conv, bn in zip(self.downs, self.bns, strict=True):
            h = lrelu(bn(conv(with_label(h, y))))
            maps.append(h)
        return maps

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        return self.logit(with_label(self.features(x, y)[-1].flatten(1), y)).squeeze(1)  # N


# --- mnist/train_cond_dcgan.py: batch norm without gain and shift ---

norm1d = partial(nn.BatchNorm1d, eps=1e-8, affine=False)
norm2d = partial(nn.BatchNorm2d, eps=1e-8, affine=False)


class MnistGenerator(nn.Module):
    """[z, y] -> 1024 -> 7x7x128 -> 14x14x64 -> 28x28, the label joined at every layer."""

    def __init__(self, channels: int, classes: int, latent_dim: int):
        super().__init__()
        self.fc1, self.bn1 = nn.Linear(latent_dim + classes, 1024, bias=False), norm1d(1024)
        self.fc2, self.bn2 = nn.Linear(1024 + classes, 128 * 7 * 7, bias=False), norm1d(128 * 7 * 7)
        self.up3, self.bn3 = up(128 + classes, 64), norm2d(64)
        self.up4 = up(64 + classes, channels)

    def forward(self, z: Tensor, y: Tensor | None) -> Tensor:
        h = F.relu(self.bn1(self.fc1(with_label(z, y))))
        h = F.relu(self.bn2(self.fc2(with_label(h, y)))).unflatten(1, (128, 7, 7))
        h = F.relu(self.bn3(self.up3(with_label(h, y))))
        return 2 * torch.sigmoid(self.up4(with_label(h, y))) - 1  # deviation 2


class MnistDiscriminator(nn.Module):
    """[x, y] -> 14x14x64 -> 7x7x128 -> 1024 -> logit, the label joined at every layer."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.down1 = down(channels + classes, 64)
        self.down2, self.bn2 = down(64 + classes, 128), norm2d(128)
        self.fc3, self.bn3 = nn.Linear(128 * 7 * 7 + classes, 1024, bias=False), norm1d(1024)
        self.logit = nn.Linear(1024 + classes, 1, bias=False)

    def features(self, x: Tensor, y: Tensor | None) -> list[Tensor]:
        """All convolutional feature maps."""
        h1 = lrelu(self.down1(with_label((x + 1) / 2, y)))  # deviation 2
        h2 = lrelu(self.bn2(self.down2(with_label(h1, y))))
        return [h1, h2]

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        h = with_label(self.features(x, y)[-1].flatten(1), y)
        h = lrelu(self.bn3(self.fc3(h)))
        return self.logit(with_label(h, y)).squeeze(1)  # N


# --- The model ---


class DCGAN(GAN):
    """DCGAN (Radford, Metz, Chintala, 2016).

    image_size: 28 for the MNIST network, else 4 * 2^k for Figure 1. num_classes: 0 trains without labels.
    g_width, d_width: maps of the layer next to the image (Figure 1: 128).
    """

    G: Any
    D: Any

    def __init__(
        self, image_size: int = 64, channels: int = 3, num_classes: int = 0, latent_dim: int = 100,
        g_width: int = 128, d_width: int = 128, lr: float = 2e-4, weight_decay: float = 1e-5,
    ):
        super().__init__()
        if image_size != 28 and (image_size < 8 or image_size & (image_size - 1)):
            raise ValueError(f"image_size must be 28 or a power of two from 8 on, not {image_size}")
        self.image_shape = (channels, image_size, image_size)
        self.num_classes, self.latent_dim, self.lr, self.weight_decay = num_classes, latent_dim, lr, weight_decay
        if image_size == 28:
            self.G = MnistGenerator(channels, num_classes, latent_dim)
            self.D = MnistDiscriminator(channels, num_classes)
        else:
            self.G = Generator(image_size, channels, num_classes, latent_dim, g_width)
            self.D = Discriminator(image_size, channels, num_classes, d_width)
        for name, p in self.named_parameters():  # weights N(0, .02), gains N(1, .02), biases 0
            nn.init.zeros_(p) if name.endswith("bias") else nn.init.normal_(p, float(p.ndim == 1), 0.02)

    def d_loss(self, real_logit: Tensor, fake_logit: Tensor) -> Tensor:
        """-E log D(x) - E log(1 - D(G(z)))"""
        return F.softplus(-real_logit).mean() + F.softplus(fake_logit).mean()

    def g_loss(self, fake_logit: Tensor) -> Tensor:
        """-E log D(G(z)), the non-saturating form"""
        return F.softplus(-fake_logit).mean()

    def optimizers(self) -> dict[str, Optimizer]:
        def adam(net: nn.Module) -> Adam:
            return Adam(net.parameters(), self.lr, betas=(0.5, 0.999), weight_decay=self.weight_decay)

        return {"D": adam(self.D), "G": adam(self.G)}

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        x, y = batch.x, self.one_hot(batch.y)
        z = self.sample_latent(len(x)).to(x)
        fake = self.G(z, y)
        d_loss = minimize(self.d_loss(self.D(x, y), self.D(fake.detach(), y)), opt["D"])
        g_loss = minimize(self.g_loss(self.D(fake, y)), opt["G"])
        return {"d_loss": d_loss, "g_loss": g_loss}

    def one_hot(self, y: Tensor | None) -> Tensor | None:
        """int64 N to float N x K; None where the model takes no labels."""
        return F.one_hot(y, self.num_classes).float() if self.num_classes and y is not None else None

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ U(-1, 1)^100"""
        return torch.rand(n, self.latent_dim, generator=generator) * 2 - 1

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Images of the classes `y`; a conditional model without them draws classes uniformly."""
        if self.num_classes and y is None:
            y = torch.randint(self.num_classes, (n,), generator=generator).to(self.device)
        return self.generate(self.sample_latent(n, generator).to(self.device), y)

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z), or G(z, y) of the conditional model."""
        return self.G(z, self.one_hot(y))

    def discriminator_features(self, x: Tensor) -> Tensor:
        """All of D's convolutional maps, max-pooled to 4 x 4 and flattened (Section 5.1).

        Raises ValueError for a conditional model.
        """
        if self.num_classes:
            raise ValueError("D of a conditional DCGAN has no features of an image alone")
        return torch.cat([F.adaptive_max_pool2d(h, 4).flatten(1) for h in self.D.features(x, None)], 1)
