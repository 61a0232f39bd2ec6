"""SAGAN: self-attention in the generator and in the discriminator.

"Self-Attention Generative Adversarial Networks",
Han Zhang, Ian Goodfellow, Dimitris Metaxas, Augustus Odena. ICML 2019, arXiv:1805.08318.
Official code: https://github.com/brain-research/self-attention-gan.

The networks at 128 pixels are the code's: SN-GAN's residual networks with projection, spectral norm in G too. They
start from Glorot's uniform weights of gain 1, and the hidden width of D's blocks is that of their outputs.

Attention is the code's form: values have C / 2 channels, and keys and values are max-pooled 2 x 2. The paper's text
gives values C / 8 channels and does not pool. `attention` is the side of the maps that have it, in G after the block
that makes them, and in D after the first block that does.

Unconfirmed, because the text that could be read leaves it open:
- the residual block that Table 1 puts in the place of attention. Here it is ReLU, conv 3x3 to C / 8 channels, ReLU,
  conv 1x1, which has exactly as many weights as attention;
- the networks for other sizes. At 32 pixels they are those of StudioGAN, SN-GAN's for CIFAR-10; at 64 pixels SN-GAN's.

Deviations from the paper and its code:
1. Running moments of batch norm have momentum 0.1; the code has 0.001 in the blocks and 0.0001 in the last layer.
2. Spectral norm moves u in G's step too; the code moves D's u with real images alone. torch's u moves before v.
3. The code draws u at random; here fifteen power iterations on the first weights precede training.
"""

from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ganbench.gan import GAN, Batch, minimize
from reference_models.layers import (
    ConditionalBatchNorm,
    DownBlock,
    FirstDownBlock,
    SelfAttention,
    UpBlock,
    conv3,
    spectral_norm,
    xavier_start,
)

# Channels by image size, in multiples of a width: of G at 4 x 4 and after each doubling, and of D after each block.
G_WIDTHS = {32: (1, 1, 1, 1), 64: (16, 8, 4, 2, 1), 128: (16, 16, 8, 4, 2, 1)}
D_WIDTHS = {32: (1, 1, 1, 1), 64: (1, 2, 4, 8, 16), 128: (1, 2, 4, 8, 16, 16)}
HALVINGS = {32: 2, 64: 5, 128: 5}  # the first blocks of D halve, the others keep the size


def sides_of_g(size: int) -> list[int]:
    """Side of the maps after each block of G."""
    return [8 << i for i in range(len(G_WIDTHS[size]) - 1)]


def sides_of_d(size: int) -> list[int]:
    """Side of the maps after each block of D."""
    return [size >> min(i, HALVINGS[size]) for i in range(1, len(D_WIDTHS[size]) + 1)]


# --- Networks ---


class Residual(nn.Module):
    """h + conv 1x1(ReLU(conv 3x3(ReLU(h)))), C / 8 channels inside: 5 C^2 / 4 weights, as many as attention."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width // 8, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width // 8, width, 1, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.conv2(F.relu(self.conv1(F.relu(h))))


def after_each_block(widths: list[int], sides: list[int], attention: int, block: str) -> nn.ModuleList:
    """The layer after each block of a network: the named one after the first of side `attention`, else nothing."""
    place = sides.index(attention) if attention else None
    kind = {"attention": SelfAttention, "residual": Residual}[block]
    return nn.ModuleList(kind(width) if i == place else nn.Identity() for i, width in enumerate(widths))


class Generator(nn.Module):
    """z, y -> 4x4 -> ... -> SxS by residual blocks with conditional batch norm; attention after one of them."""

    def __init__(self, size: int, channels: int, classes: int, latent_dim: int, width: int, attention: int, block: str):
        super().__init__()
        widths = [width * k for k in G_WIDTHS[size]]
        self.classes = classes
        self.project = nn.Linear(latent_dim, widths[0] * 16)
        self.blocks = nn.ModuleList(UpBlock(cin, cout, classes) for cin, cout in pairwise(widths))
        self.after = after_each_block(widths[1:], sides_of_g(size), attention, block)
        self.norm, self.out = nn.BatchNorm2d(widths[-1]), conv3(widths[-1], channels)
        norms = [m for m in self.modules() if isinstance(m, ConditionalBatchNorm)]
        tables = [table for m in norms for table in (m.gain, m.shift)]
        xavier_start(self, but=tables)
        spectral_norm(self, but=tables)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        c = F.one_hot(y, self.classes).to(z)
        h = self.project(z).unflatten(1, (-1, 4, 4))
        for block, after in zip(self.blocks, self.after, strict=True):
            h = after(block(h, c))
        return torch.tanh(self.out(F.relu(self.norm(h)))).float()


class Discriminator(nn.Module):
    """x, y -> logit: residual blocks, attention after one of them, the sum over pixels h, w^T h + b + v_y^T h."""

    def __init__(self, size: int, channels: int, classes: int, width: int, attention: int, block: str):
        super().__init__()
        widths = [width * k for k in D_WIDTHS[size]]
        blocks: list[nn.Module] = [FirstDownBlock(channels, widths[0])]
        for i, (cin, cout) in enumerate(pairwise(widths), start=1):
            blocks.append(DownBlock(cin, cout, down=i < HALVINGS[size], hidden=cout))
        self.blocks = nn.ModuleList(blocks)
        self.after = after_each_block(widths, sides_of_d(size), attention, block)
        self.logit, self.embed = nn.Linear(widths[-1], 1), nn.Embedding(classes, widths[-1])
        xavier_start(self)
        spectral_norm(self)

    def features(self, x: Tensor) -> Tensor:
        """h, N x C in float32."""
        h = x
        for block, after in zip(self.blocks, self.after, strict=True):
            h = after(block(h))
        return F.relu(h).float().sum((2, 3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.features(x)
        # Elementwise products stay float32 under mixed precision, as the hinge's margin needs.
        return (self.logit.weight * h).sum(1) + self.logit.bias + (self.embed(y) * h).sum(1)  # N


# --- The model ---


class SAGAN(GAN):
    """SAGAN (Zhang, Goodfellow, Metaxas, Odena, 2019).

    image_size: 32, 64 or 128. g_width, d_width: channels at the image (at 32 pixels, of all blocks). attention: side of
    the maps with attention in G and D; 0: none. block: 'attention', or 'residual' for the block of Table 1 in its
    place. n_critic: updates of D for each of G, which share a batch; G's batch is as large as one of D's.
    """

    def __init__(
        self, image_size: int = 32, channels: int = 3, num_classes: int = 10, latent_dim: int = 128,
        g_width: int = 256, d_width: int = 128, attention: int = 16, block: str = "attention", n_critic: int = 1,
        g_lr: float = 1e-4, d_lr: float = 4e-4, beta1: float = 0.0, beta2: float = 0.9,
    ):
        super().__init__()
        if image_size not in G_WIDTHS:
            raise ValueError(f"image_size must be one of {', '.join(map(str, G_WIDTHS))}, not {image_size}")
        if attention not in (places := [0, *sorted({*sides_of_g(image_size)} & {*sides_of_d(image_size)})]):
            raise ValueError(f"attention must be one of {', '.join(map(str, places))}, not {attention}")
        if block not in ("attention", "residual"):
            raise ValueError(f"block must be 'attention' or 'residual', not '{block}'")
        if min(num_classes, n_critic) < 1:
            raise ValueError("num_classes and n_critic must be at least 1")
        if min(g_width, d_width) < 8:
            raise ValueError("g_width and d_width must be at least 8: attention has an eighth of the channels")
        self.image_shape, self.num_classes = (channels, image_size, image_size), num_classes
        self.latent_dim, self.n_critic = latent_dim, n_critic
        self.g_lr, self.d_lr, self.betas = g_lr, d_lr, (beta1, beta2)
        self.G = Generator(image_size, channels, num_classes, latent_dim, g_width, attention, block)
        self.D = Discriminator(image_size, channels, num_classes, d_width, attention, block)

    def d_loss(self, real_logit: Tensor, fake_logit: Tensor) -> Tensor:
        """L_D = E max(0, 1 - D(x, y)) + E max(0, 1 + D(G(z), y)), the hinge loss   (Equation 4)"""
        return F.relu(1 - real_logit).mean() + F.relu(1 + fake_logit).mean()

    def g_loss(self, fake_logit: Tensor) -> Tensor:
        """L_G = -E D(G(z), y)   (Equation 4)"""
        return -fake_logit.mean()

    def optimizers(self) -> dict[str, Optimizer]:
        """Two time scales: D learns four times as fast as G (Section 4)."""
        return {
            "D": Adam(self.D.parameters(), self.d_lr, betas=self.betas),
            "G": Adam(self.G.parameters(), self.g_lr, betas=self.betas),
        }

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        if batch.y is None:
            raise ValueError("SAGAN needs labels")
        for x, y in zip(batch.x.tensor_split(self.n_critic), batch.y.tensor_split(self.n_critic), strict=True):
            z, c = self.draw(x)
            with torch.no_grad():
                fake = self.G(z, c)
            real_logit, fake_logit = self.D(torch.cat([x, fake]), torch.cat([y, c])).split(len(x))
            d_loss = minimize(self.d_loss(real_logit, fake_logit), opt["D"])
        z, c = self.draw(x)
        g_loss = minimize(self.g_loss(self.D(self.G(z, c), c)), opt["G"])
        return {"d_loss": d_loss, "g_loss": g_loss}

    def draw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z ~ N(0, I), and classes drawn uniformly: as many as the images x, on their device."""
        return self.sample_latent(len(x)).to(x), torch.randint(self.num_classes, (len(x),), device=x.device)

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ N(0, I)"""
        return torch.randn(n, self.latent_dim, generator=generator)

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Images of the classes `y`; without them the classes are drawn uniformly."""
        c = torch.randint(self.num_classes, (n,), generator=generator) if y is None else y
        return self.generate(self.sample_latent(n, generator).to(self.device), c.to(self.device))

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z, y)"""
        if y is None:
            raise ValueError("SAGAN needs labels")
        return self.G(z, y)

    def discriminator_features(self, x: Tensor) -> Tensor:
        """D's features before the class is seen: the sums over pixels h, N x C."""
        return self.D.features(x)
