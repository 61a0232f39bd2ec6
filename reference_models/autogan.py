"""AutoGAN: neural architecture search for the generator of a GAN.

"AutoGAN: Neural Architecture Search for Generative Adversarial Networks",
Xinyu Gong, Shiyu Chang, Yifan Jiang, Zhangyang Wang. ICCV 2019, arXiv:1908.03835.
Official code: https://github.com/VITA-Group/AutoGAN.

G has three cells, each of which doubles the image. An architecture is the token vector of the code: convolution, norm,
upsampling and shortcut of cell 1; the same and the skips of cell 2; the same of cell 3. The paper's three best
architectures are ARCHITECTURES. `benchmarks/autogan/search.py` is the search: it trains a generator that holds every
choice (`arch=None`), whose cells are the same class.

Unconfirmed: whether the learning rate of the paper's runs decayed. The code has a linear decay to 0, which none of its
scripts switches on; `decay_to` is that decay. The figure of the paper has the skips first among a cell's tokens and
takes them before the incoming skips are added; here both are as in the code.

Deviations from the paper and its code:
1. A layer that the architecture does not use is not built. The code trains a found architecture with all layers of the
   search; those that are not used have no influence.
2. The forward passes add skips out of place, with the code's values: what leaves a cell holds its incoming skips too.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ganbench.gan import GAN, Batch, minimize
from reference_models.layers import DownBlock, FirstDownBlock, spectral_norm, weighted_layers

# --- The search space ---

CELLS = 3
CONV = ("post", "pre")  # activation after the convolution, or before
NORM = ("none", "batch", "instance")
UP = ("bilinear", "nearest", "deconv")
ARCHITECTURES = {  # the files autogan_cifar10_a, b and c of the code
    "a": (1, 0, 1, 1,  1, 0, 0, 1, 1,  1, 0, 1, 0, 3),
    "b": (1, 0, 1, 1,  1, 0, 1, 1, 1,  1, 0, 1, 1, 3),
    "c": (1, 1, 1, 1,  1, 0, 0, 1, 1,  1, 0, 1, 0, 3),
}


class Tokens(NamedTuple):
    """The choices of one cell. skip: bit 0 takes the features of the cell before, bit 1 those of the one before it."""

    conv: int
    norm: int
    up: int
    shortcut: int
    skip: int = 0


def choices(cell: int) -> tuple[int, ...]:
    """Return how many values each token of cell 0, 1 or 2 has; the first cell has no skips.

    >>> choices(0), choices(2)
    ((2, 3, 3, 2), (2, 3, 3, 2, 4))
    """
    own = (len(CONV), len(NORM), len(UP), 2)
    return (*own, 2**cell) if cell else own


def cells_of(arch: Sequence[int]) -> list[Tokens]:
    """Return the tokens of each cell: of one cell for 4 tokens, of two for 9, of three for 14.

    Raises ValueError for another number of tokens, and for a token out of its range.

    >>> cells_of((1, 0, 1, 1,  1, 0, 0, 1, 1))
    [Tokens(conv=1, norm=0, up=1, shortcut=1, skip=0), Tokens(conv=1, norm=0, up=0, shortcut=1, skip=1)]
    """
    found, rest = [], list(arch)
    for cell in range(CELLS):
        sizes, own = choices(cell), rest[: len(choices(cell))]
        if len(own) < len(sizes) or any(type(t) is not int or not 0 <= t < k for t, k in zip(own, sizes, strict=True)):
            raise ValueError(
                f"arch must have 14 tokens (2, 3, 3, 2; 2, 3, 3, 2, 2; 2, 3, 3, 2, 4 values), not {list(arch)}"
            )
        found.append(Tokens(*own))
        rest = rest[len(sizes) :]
        if not rest:
            return found
    raise ValueError(f"arch must have 14 tokens, not {len(arch)}")


# --- The generator ---


def deconv(width: int) -> nn.ConvTranspose2d:
    """Transposed convolution 2 x 2 of stride 2, which doubles the image."""
    return nn.ConvTranspose2d(width, width, 2, stride=2)


class ConvBlock(nn.Module):
    """Convolution 3x3, norm and ReLU: 'post' is [double,] conv, norm, ReLU, and 'pre' is norm, ReLU, [double,] conv.

    norms, ups: those that the block can be asked for; without ups it keeps the size.
    """

    def __init__(self, width: int, conv: str, norms: Sequence[str], ups: Sequence[str]):
        super().__init__()
        self.pre, self.doubles = conv == "pre", bool(ups)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width) if "batch" in norms else None
        self.deconv = deconv(width) if "deconv" in ups else None

    def forward(self, h: Tensor, norm: str, up: str) -> Tensor:
        if self.pre:
            return self.conv(self.doubled(F.relu(self.normed(h, norm)), up))
        return F.relu(self.normed(self.conv(self.doubled(h, up)), norm))

    def normed(self, h: Tensor, norm: str) -> Tensor:
        """h after the norm of that name; instance norm has neither gain nor shift."""
        if norm == "instance":
            return F.instance_norm(h)
        return self.norm(h) if norm == "batch" and self.norm is not None else h

    def doubled(self, h: Tensor, up: str) -> Tensor:
        """h, doubled if the block doubles."""
        return enlarged(h, 2, up, self.deconv) if self.doubles else h


def enlarged(h: Tensor, times: int, up: str, layer: nn.Module | None) -> Tensor:
    """h enlarged by interpolation of the name `up`, or by the layer for 'deconv'."""
    if up == "deconv" and layer is not None:
        return layer(h)
    return F.interpolate(h, scale_factor=float(times), mode=up)


class Cell(nn.Module):
    """One cell: N x C x H x W -> its skip features and its output, N x C x 2H x 2W each.

    h = block1(x) + sum over the chosen earlier cells of conv1x1(enlarged features); the output is
    block2(h) + conv1x1(doubled x), the second term with a shortcut only. h is also what later cells may take.
    earlier: number of cells before this one. tokens: build the layers of this choice alone; None builds all.
    """

    def __init__(self, width: int, earlier: int, tokens: Tokens | None = None):
        super().__init__()
        self.tokens, self.earlier = tokens, earlier
        convs = CONV if tokens is None else (CONV[tokens.conv],)
        norms = NORM if tokens is None else (NORM[tokens.norm],)
        ups = UP if tokens is None else (UP[tokens.up],)
        shortcut = tokens is None or tokens.shortcut
        self.block1 = nn.ModuleDict({conv: ConvBlock(width, conv, norms, ups) for conv in convs})
        self.block2 = nn.ModuleDict({conv: ConvBlock(width, conv, norms, ()) for conv in convs})
        self.shortcut = nn.Conv2d(width, width, 1) if shortcut else None
        self.shortcut_deconv = deconv(width) if shortcut and "deconv" in ups else None
        taken = list(range(earlier)) if tokens is None else self.taken(tokens.skip)
        self.skips = nn.ModuleDict({str(j): nn.Conv2d(width, width, 1) for j in taken})
        self.skip_deconvs = nn.ModuleDict({
            str(j): nn.Sequential(*(deconv(width) for _ in range(earlier - j))) for j in taken if "deconv" in ups
        })

    def taken(self, skip: int) -> list[int]:
        """Numbers of the earlier cells that the token chooses, the nearest by its lowest bit."""
        return [j for j in range(self.earlier) if skip >> (self.earlier - 1 - j) & 1]

    def forward(self, x: Tensor, features: Sequence[Tensor], tokens: Tokens | None = None) -> tuple[Tensor, Tensor]:
        tokens = tokens or self.tokens
        assert tokens is not None
        conv, norm, up = CONV[tokens.conv], NORM[tokens.norm], UP[tokens.up]
        h = self.block1[conv](x, norm, up)
        for j in self.taken(tokens.skip):
            layer = self.skip_deconvs[str(j)] if up == "deconv" else None
            h = h + self.skips[str(j)](enlarged(features[j], 2 ** (self.earlier - j), up, layer))
        out = self.block2[conv](h, norm, up)
        if tokens.shortcut and self.shortcut is not None:
            out = out + self.shortcut(enlarged(x, 2, up, self.shortcut_deconv))
        return h, out


class Generator(nn.Module):
    """z -> linear -> C x b x b -> cells -> batch norm, ReLU, conv 3x3, tanh; b is an eighth of the image's side.

    arch: the architecture. None builds every choice, and `forward` is given one of one to three cells, whose output of
    2b, 4b or 8b pixels becomes the image.
    """

    def __init__(self, size: int, channels: int, latent_dim: int, width: int, arch: Sequence[int] | None):
        super().__init__()
        self.start = (width, size // 2**CELLS, size // 2**CELLS)
        self.project = nn.Linear(latent_dim, width * self.start[1] ** 2)
        chosen = [None] * CELLS if arch is None else cells_of(arch)
        self.cells = nn.ModuleList(Cell(width, i, tokens) for i, tokens in enumerate(chosen))
        self.norm, self.to_image = nn.BatchNorm2d(width), nn.Conv2d(width, channels, 3, padding=1)
        for m in self.modules():  # other layers start as PyTorch has it
            if isinstance(m, nn.Conv2d):
                nn.init.xavier_uniform_(m.weight)
            elif isinstance(m, nn.BatchNorm2d):
                nn.init.normal_(m.weight, 1.0, 0.02)

    def forward(self, z: Tensor, arch: Sequence[int] | None = None) -> Tensor:
        h = self.project(z).unflatten(1, self.start)
        features: list[Tensor] = []
        chosen = [None] * CELLS if arch is None else cells_of(arch)
        for cell, tokens in zip(self.cells, chosen, strict=False):
            skip, h = cell(h, features, tokens)
            features.append(skip)
        return torch.tanh(self.to_image(F.relu(self.norm(h))))


# --- SN-GAN's discriminator ---


class Discriminator(nn.Module):
    """Residual blocks with spectral norm -> ReLU -> sum over pixels -> linear: N x 3 x S x S -> N.

    The first block and the second halve the image, two more keep it. The search begins with fewer blocks: `stages` of
    the first three, and the last one.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.blocks = nn.ModuleList([
            FirstDownBlock(channels, width), DownBlock(width, width), DownBlock(width, width, down=False),
        ])
        self.last, self.logit = DownBlock(width, width, down=False), nn.Linear(width, 1, bias=False)
        for layer in weighted_layers(self):
            layer.reset_parameters()  # PyTorch's start: the code's Xavier start does not reach weights under a norm
        spectral_norm(self)

    def forward(self, x: Tensor, stages: int = CELLS) -> Tensor:
        for block in self.blocks[:stages]:
            x = block(x)
        return self.logit(F.relu(self.last(x)).sum((2, 3))).squeeze(1).float()


# --- The model ---


class AutoGAN(GAN):
    """AutoGAN (Gong, Chang, Jiang, Wang, 2019).

    arch: 14 tokens. image_size: a multiple of 8, from 16 on. A training step is one update of G: its batch is that of
    `n_critic` updates of D, and G's batch is `g_batch` times as large as one of D's. The learning rates fall linearly
    to 0 at update `decay_to` of G; 0: they are constant.
    """

    def __init__(
        self, arch: Sequence[int] = ARCHITECTURES["a"], image_size: int = 32, channels: int = 3, latent_dim: int = 128,
        g_width: int = 256, d_width: int = 128, n_critic: int = 5, g_batch: int = 2, lr: float = 2e-4,
        decay_to: int = 0,
    ):
        super().__init__()
        if image_size < 16 or image_size % 2**CELLS:
            raise ValueError(f"image_size must be a multiple of 8, from 16 on, not {image_size}")
        if len(cells_of(arch)) < CELLS:
            raise ValueError(f"arch must have 14 tokens, not {len(arch)}")
        if n_critic < 1 or g_batch < 1:
            raise ValueError("n_critic and g_batch must be at least 1")
        self.image_shape = (channels, image_size, image_size)
        self.latent_dim, self.n_critic, self.g_batch = latent_dim, n_critic, g_batch
        self.lr, self.decay_to = lr, decay_to
        self.G = Generator(image_size, channels, latent_dim, g_width, arch)
        self.D = Discriminator(channels, d_width)

    @staticmethod
    def d_loss(real_logit: Tensor, fake_logit: Tensor) -> Tensor:
        """E max(0, 1 - D(x)) + E max(0, 1 + D(G(z)))"""
        return F.relu(1 - real_logit).mean() + F.relu(1 + fake_logit).mean()

    @staticmethod
    def g_loss(fake_logit: Tensor) -> Tensor:
        """-E D(G(z))"""
        return -fake_logit.mean()

    def optimizers(self) -> dict[str, Optimizer]:
        return {
            "D": Adam(self.D.parameters(), self.lr, betas=(0.0, 0.9)),
            "G": Adam(self.G.parameters(), self.lr, betas=(0.0, 0.9)),
        }

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        """n_critic updates of D; G moves after the first of them, as in the code."""
        if self.decay_to:
            for optimizer in opt.values():
                optimizer.param_groups[0]["lr"] = self.lr * max(0.0, 1 - batch.step / self.decay_to)
        losses = {}
        for x in batch.x.tensor_split(self.n_critic):
            with torch.no_grad():
                fake = self.G(self.sample_latent(len(x)).to(x))
            losses["d_loss"] = minimize(self.d_loss(self.D(x), self.D(fake)), opt["D"])
            if "g_loss" not in losses:
                z = self.sample_latent(self.g_batch * len(x)).to(x)
                losses["g_loss"] = minimize(self.g_loss(self.D(self.G(z))), opt["G"])
        return losses

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ N(0, I)"""
        return torch.randn(n, self.latent_dim, generator=generator)

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.generate(self.sample_latent(n, generator).to(self.device))

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z)"""
        return self.G(z)
