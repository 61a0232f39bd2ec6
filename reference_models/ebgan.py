"""EBGAN: the discriminator is an energy, the reconstruction error of an autoencoder.

"Energy-based Generative Adversarial Network",
Junbo Zhao, Michael Mathieu, Yann LeCun. ICLR 2017, arXiv:1609.03126.
There is no official code.

EBGAN and EBGAN-PT (`pt_weight` 0.1) differ by the weight of the pulling-away term; the GAN of the grid search on MNIST
stands beside them. The model of the semi-supervised table, EBGAN-LN, is in ladder.py with its ladder network.

Unconfirmed, because the appendix could not be read:
- the reduction of the energy. Equation 13 is a norm, which is the default: the margins 20, 40 and 80 that are recalled
  for sides of 64, 128 and 256 double with the side, as norms do;
- all convolutional networks, their start, the rates of Adam, and the lengths of all runs. The networks for 64 pixels
  are those that re-implementations agree on; those for 128 and 256 are recalled;
- of the grid search: z, batch norm in G and none in D, dropout 0.5, the linear output of the decoder, beta1, and the
  non-saturating form of the GAN's g_loss.

Deviations from the paper:
1. Images of the grid search are 28 x 28; the paper pads them to 32 x 32.
2. The output of the decoder is linear at all sizes. Re-implementations end it with tanh, some after batch norm.
3. The margin is given as a norm, and moves with the reduction: it cuts at the same distance of an image from its
   reconstruction.
4. Samples are drawn with the running moments of batch norm.
"""

import math
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from ganbench.gan import GAN, Batch, minimize
from reference_models.layers import Affine, down_conv, normal_start, up_conv

Shape = tuple[int, int, int]
linear = partial(nn.Linear, bias=False)  # before batch norm
down = partial(down_conv, kernel=4)  # halves the image
up = partial(up_conv, kernel=4)  # doubles it

# --- Fully connected networks of the grid search (Table 1): images in [0, 1] inside ---


class Generator(nn.Module):
    """z -> (width, batch norm, ReLU) for all layers but the last -> sigmoid."""

    def __init__(self, shape: Shape, latent_dim: int, width: int, layers: int):
        super().__init__()
        self.shape = shape
        body: list[nn.Module] = []
        for a, b in pairwise([latent_dim, *[width] * (layers - 1)]):
            body += [linear(a, b), nn.BatchNorm1d(b), nn.ReLU()]
        self.body = nn.Sequential(*body, nn.Linear(width, math.prod(shape)))

    def forward(self, z: Tensor) -> Tensor:
        return 2 * torch.sigmoid(self.body(z).float()).unflatten(1, self.shape) - 1


def hidden_layers(shape: Shape, width: int, layers: int, dropout: float) -> nn.Sequential:
    """x -> (width, ReLU, dropout) for each of the layers."""
    body: list[nn.Module] = [Affine(0.5, 0.5), nn.Flatten()]
    for a, b in pairwise([math.prod(shape), *[width] * layers]):
        body += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*body)


class Autoencoder(nn.Module):
    """An encoder of all layers but one, and a decoder of one; `layers` counts both."""

    def __init__(self, shape: Shape, width: int, layers: int, dropout: float):
        super().__init__()
        self.encoder = hidden_layers(shape, width, layers - 1, dropout)
        self.decoder = nn.Sequential(nn.Linear(width, math.prod(shape)), nn.Unflatten(1, shape), Affine(2, -1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The code Enc(x), N x d, and the reconstruction Dec(Enc(x))."""
        code = self.encoder(x)
        return code.float(), self.decoder(code).float()


class Discriminator(nn.Module):
    """The GAN's D: `layers` layers, of which the last is the logit."""

    def __init__(self, shape: Shape, width: int, layers: int, dropout: float):
        super().__init__()
        self.body, self.out = hidden_layers(shape, width, layers - 1, dropout), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x)).squeeze(1).float()


# --- Convolutional networks: CelebA and LSUN (64 x 64), ImageNet (128 x 128 and 256 x 256) ---


class ConvGenerator(nn.Module):
    """z -> 4 x 4 x width -> ... -> S x S by transposed 4x4 convolutions, the width halving; batch norm, ReLU, tanh.

    noisy: maps of noise are joined at the input of every doubling, 64 of them at 4 x 4, then 32, 16, ... (ImageNet). No
    layer is then narrower than 64, and a 3x3 convolution at full size makes the image.
    """

    def __init__(self, shape: Shape, latent_dim: int, width: int, noisy: bool):
        super().__init__()
        channels, size, _ = shape
        doublings = (size // 4).bit_length() - 1
        widths = [max(width >> s, 64) if noisy else width >> s for s in range(doublings + noisy)]
        self.project = linear(latent_dim, widths[0] * 16)
        self.noise = [(64 >> s, 4 << s, 4 << s) if noisy else (0, 4 << s, 4 << s) for s in range(doublings)]
        self.sizes = [latent_dim, *map(math.prod, self.noise)]
        outputs = [*widths[1:], *([] if noisy else [channels])]
        inputs = [w + extra for w, (extra, _, _) in zip(widths, self.noise, strict=False)]
        self.ups = nn.ModuleList(up(a, b, bias=b == channels) for a, b in zip(inputs, outputs, strict=True))
        self.bns = nn.ModuleList(nn.BatchNorm2d(w) for w in widths)
        self.out = nn.Conv2d(widths[-1], channels, 3, padding=1) if noisy else nn.Identity()

    def forward(self, z: Tensor) -> Tensor:
        z, *noise = z.split(self.sizes, 1)
        h = self.project(z).unflatten(1, (-1, 4, 4))
        for bn, conv, maps, shape in zip(self.bns, self.ups, noise, self.noise, strict=False):
            h = conv(torch.cat([F.relu(bn(h)), maps.unflatten(1, shape)], 1) if shape[0] else F.relu(bn(h)))
        if len(self.bns) > len(self.ups):
            h = F.relu(self.bns[-1](h))
        return torch.tanh(self.out(h).float())


class ConvAutoencoder(nn.Module):
    """S x S -> 64, 128, 256 maps at S/8 x S/8 -> back, by 4x4 convolutions; batch norm, leaky ReLU 0.2."""

    def __init__(self, shape: Shape, width: int):
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        encoder: list[nn.Module] = [down(shape[0], width), nn.LeakyReLU(0.2)]
        for a, b in pairwise(widths):
            encoder += [down(a, b, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2)]
        decoder: list[nn.Module] = []
        for a, b in pairwise(reversed(widths)):
            decoder += [up(a, b, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2)]
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder, up(width, shape[0]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The code Enc(x), flattened, and the reconstruction Dec(Enc(x))."""
        code = self.encoder(x)
        return code.flatten(1).float(), self.decoder(code).float()


# --- Energies ---

REDUCTIONS = ("norm", "sum", "mean")


def energy(x: Tensor, reconstruction: Tensor, reduction: str) -> Tensor:
    """D(x) = |Dec(Enc(x)) - x| (Equation 13), or its square as a sum or a mean over pixels, N"""
    error = (reconstruction - x).flatten(1)
    if reduction == "norm":
        return torch.linalg.vector_norm(error, dim=1)
    squares = error.square()
    return squares.sum(1) if reduction == "sum" else squares.mean(1)


def pulling_away(code: Tensor) -> Tensor:
    """f_PT(S) = 1 / (N (N - 1)) sum_(i != j) (S_i S_j / |S_i| |S_j|)^2   (Equation 14)"""
    n = len(code)
    unit = F.normalize(code, dim=1)
    squares = (unit @ unit.T).square()
    return (squares.sum() - squares.diagonal().sum()) / (n * (n - 1))


# --- The models ---


class EBGAN(GAN):
    """EBGAN (Zhao, Mathieu, LeCun, 2017), and EBGAN-PT with `pt_weight`.

    convolutional: networks for images of 32 x 32 and larger, or else those of the grid search. g_width, d_width: of
    layers, or of the maps at 4 x 4 and next to the image. g_layers, d_layers, dropout: of the grid search alone. noisy:
    noise enters every layer of G. margin: m, as a norm of errors of pixels in [0, 1] (grid search) or [-1, 1].
    """

    G: Any
    D: Any

    def __init__(
        self, image_size: int = 28, channels: int = 1, latent_dim: int = 100, convolutional: bool = False,
        g_width: int = 1600, d_width: int = 1024, g_layers: int = 5, d_layers: int = 2, dropout: float = 0.0,
        noisy: bool = False, margin: float = 10.0, reduction: str = "norm", pt_weight: float = 0.0,
        d_lr: float = 1e-3, g_lr: float = 1e-3, beta1: float = 0.5,
    ):
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, not '{reduction}'")
        if convolutional and (image_size < 16 or image_size & (image_size - 1)):
            raise ValueError(f"image_size must be a power of two from 16 on if convolutional, not {image_size}")
        if not convolutional:
            require_layers(g_layers, d_layers)
        self.image_shape = (channels, image_size, image_size)
        self.reduction, self.pt_weight, self.d_lr, self.g_lr, self.beta1 = reduction, pt_weight, d_lr, g_lr, beta1
        self.unit = 1.0 if convolutional else 0.5  # length of an error of 1 in [-1, 1]
        pixels = math.prod(self.image_shape)
        self.margin = {"norm": margin, "sum": margin**2, "mean": margin**2 / pixels}[reduction]
        if convolutional:
            self.G = ConvGenerator(self.image_shape, latent_dim, g_width, noisy)
            self.D = ConvAutoencoder(self.image_shape, d_width)
            normal_start(self.G, 0.002)
            normal_start(self.D, 0.02)
            self.latent_dim = sum(self.G.sizes)
        else:
            self.G = Generator(self.image_shape, latent_dim, g_width, g_layers)
            self.D = Autoencoder(self.image_shape, d_width, d_layers, dropout)
            self.latent_dim = latent_dim

    def energies(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """D(x), N, and the code Enc(x). The gradient goes through x as the target of the reconstruction, too."""
        code, reconstruction = self.D(x)
        return energy(self.unit * x, self.unit * reconstruction, self.reduction), code

    def d_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """L_D = E D(x) + E [m - D(G(z))]^+   (Equation 1)"""
        return real.mean() + F.relu(self.margin - fake).mean()

    def g_loss(self, fake: Tensor, code: Tensor) -> Tensor:
        """L_G = E D(G(z)) + lambda_PT f_PT(Enc(G(z)))   (Equation 2, Section 2.4)"""
        return fake.mean() + self.pt_weight * pulling_away(code) if self.pt_weight else fake.mean()

    def optimizers(self) -> dict[str, Optimizer]:
        betas = (self.beta1, 0.999)
        return {"D": Adam(self.D.parameters(), self.d_lr, betas), "G": Adam(self.G.parameters(), self.g_lr, betas)}

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        fake = self.G(self.sample_latent(len(batch.x)).to(batch.x))
        real_energy, fake_energy = self.energies(batch.x)[0], self.energies(fake.detach())[0]
        d_loss = minimize(self.d_loss(real_energy, fake_energy), opt["D"])
        g_loss = minimize(self.g_loss(*self.energies(fake)), opt["G"])
        return {"d_loss": d_loss, "g_loss": g_loss, "real_loss": real_energy.mean().detach()}

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ U(-1, 1)^100, and the noise of the layers"""
        return torch.rand(n, self.latent_dim, generator=generator) * 2 - 1

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.generate(self.sample_latent(n, generator).to(self.device))

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z)"""
        return self.G(z)

    def discriminator_features(self, x: Tensor) -> Tensor:
        """The code Enc(x), flattened."""
        return self.D(x)[0]


class GridGAN(GAN):
    """The GAN of the grid search (Table 1): G as in EBGAN, and a D with one logit.

    d_optimizer, g_optimizer: 'adam' or 'sgd'. lr: of both.
    """

    G: Any
    D: Any

    def __init__(
        self, image_size: int = 28, channels: int = 1, latent_dim: int = 100, g_width: int = 1600, d_width: int = 1024,
        g_layers: int = 5, d_layers: int = 2, dropout: float = 0.0, d_optimizer: str = "adam",
        g_optimizer: str = "adam", lr: float = 1e-3, beta1: float = 0.5,
    ):
        super().__init__()
        require_layers(g_layers, d_layers)
        self.image_shape, self.latent_dim = (channels, image_size, image_size), latent_dim
        if not {d_optimizer, g_optimizer} <= {"adam", "sgd"}:
            raise ValueError(f"optimisers must be adam or sgd, not '{d_optimizer}' and '{g_optimizer}'")
        self.d_optimizer, self.g_optimizer, self.lr, self.beta1 = d_optimizer, g_optimizer, lr, beta1
        self.G = Generator(self.image_shape, latent_dim, g_width, g_layers)
        self.D = Discriminator(self.image_shape, d_width, d_layers, dropout)

    def d_loss(self, real_logit: Tensor, fake_logit: Tensor) -> Tensor:
        """-E log D(x) - E log(1 - D(G(z)))"""
        return F.softplus(-real_logit).mean() + F.softplus(fake_logit).mean()

    def g_loss(self, fake_logit: Tensor) -> Tensor:
        """-E log D(G(z))"""
        return F.softplus(-fake_logit).mean()

    def optimizers(self) -> dict[str, Optimizer]:
        def optimizer(net: nn.Module, name: str) -> Optimizer:
            adam = name == "adam"
            return Adam(net.parameters(), self.lr, (self.beta1, 0.999)) if adam else SGD(net.parameters(), self.lr)

        return {"D": optimizer(self.D, self.d_optimizer), "G": optimizer(self.G, self.g_optimizer)}

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        fake = self.G(self.sample_latent(len(batch.x)).to(batch.x))
        d_loss = minimize(self.d_loss(self.D(batch.x), self.D(fake.detach())), opt["D"])
        return {"d_loss": d_loss, "g_loss": minimize(self.g_loss(self.D(fake)), opt["G"])}

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ U(-1, 1)^100"""
        return torch.rand(n, self.latent_dim, generator=generator) * 2 - 1

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.generate(self.sample_latent(n, generator).to(self.device))

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z)"""
        return self.G(z)


def require_layers(g_layers: int, d_layers: int) -> None:
    """Raise ValueError for networks without a hidden layer."""
    if min(g_layers, d_layers) < 2:
        raise ValueError(f"g_layers and d_layers must be 2 or more, not {g_layers} and {d_layers}")
