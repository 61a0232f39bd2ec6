"""MSG-GAN: the discriminator sees the generator's images at all scales at once, in the place of growing networks.

"MSG-GAN: Multi-Scale Gradients for Generative Adversarial Networks",
Animesh Karnewar, Oliver Wang. 2019, CVPR 2020, arXiv:1903.06048.
Official code: https://github.com/akanimax/msg-stylegan-tf (TensorFlow), which has MSG-StyleGAN alone. The author's
https://github.com/akanimax/BMSG-GAN is of an earlier version: relativistic hinge loss, one minibatch statistic.

`msg_gan` is MSG-ProGAN: ProGAN's networks with WGAN-GP. `msg_gan-style` is MSG-StyleGAN: StyleGAN's generator without
mixing, ProGAN's discriminator with a binomial filter, the non-saturating loss with R1.

Where sources differ, the official code decides:
- Adam with betas 0 and 0.99 and a rate of 0.003; the paper's text has RMSprop with the same rate;
- the minibatch statistic, over groups of 4 images, is at the start of each block of D;
- the combine function of MSG-StyleGAN is a 1 x 1 convolution of [activation, image], without bias and activation;
- R1 is a mean over scales. An image at one scale also acts through its coarser copies, which are means of it, and its
  gradient counts them.

Unconfirmed: that WGAN-GP's penalty is a mean over scales as well, its lambda and drift, which are ProGAN's; that
MSG-ProGAN has ProGAN's pixel norm after each convolution; and which scales Table 5 calls coarse, middle and fine.

Deviations from the paper:
1. No labels: the code can learn classes, and the paper's numbers are without.
2. Samples are clipped to [-1, 1]; no loss sees clipped images.
3. The moving average of G takes the weights after the step; in the code those before G's step.
4. Samples of MSG-StyleGAN have noise of their own, which is a function of z. In the code it is drawn anew.
"""

import math
import zlib
from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ganbench.gan import GAN, Batch, LatentSpace, minimize
from reference_models.layers import (
    AdaIN,
    Blur,
    EqualisedRate,
    MinibatchStd,
    NoiseInput,
    PixelNorm,
    double,
    halve,
    lrelu,
)

# --- Networks: level k has images of 4 * 2^k pixels. Lists of images hold the connected levels, coarsest first ---


def conv(cin: int, cout: int, kernel: int = 3, gain: float = math.sqrt(2), bias: bool = True) -> nn.Module:
    """Convolution with equalised learning rate that keeps the size."""
    return EqualisedRate(nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=bias), gain)


def at_least_float32(h: Tensor) -> Tensor:
    """h, in float32 if it is less precise: after the layers that mixed precision may compute in bfloat16."""
    return h.to(torch.promote_types(h.dtype, torch.float32))


class Generator(nn.Module):
    """z -> 4 x 4 -> 8 x 8 -> ...: ProGAN's layers. An image o_k = r(h_k) leaves each connected level   (Section 2.1)"""

    def __init__(self, widths: list[int], channels: int, latent_dim: int, levels: list[int]):
        super().__init__()

        def layer(linear: nn.Module) -> list[nn.Module]:
            return [linear, nn.LeakyReLU(0.2), PixelNorm()]

        first = EqualisedRate(nn.ConvTranspose2d(latent_dim, widths[0], 4))  # 1 x 1 -> 4 x 4
        self.norm = PixelNorm()
        self.first = nn.Sequential(
            nn.Unflatten(1, (latent_dim, 1, 1)), *layer(first), *layer(conv(widths[0], widths[0]))
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(*layer(conv(cin, cout)), *layer(conv(cout, cout))) for cin, cout in pairwise(widths)
        )
        self.to_rgb = nn.ModuleDict({str(k): conv(widths[k], channels, kernel=1, gain=1) for k in levels})

    def forward(self, z: Tensor) -> list[Tensor]:
        h = self.first(self.norm(z))
        features = [h] + [h := block(double(h)) for block in self.blocks]
        return [at_least_float32(rgb(features[int(k)])) for k, rgb in self.to_rgb.items()]


class Simple(nn.Module):
    """phi_simple(a, o) = [a, o]   (Section 2.1)"""

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.out = width + channels

    def forward(self, a: Tensor, o: Tensor) -> Tensor:
        return torch.cat([a, o.to(a.dtype)], 1)


class LinCat(nn.Module):
    """phi_lin_cat(a, o) = [a, r'(o)], where r' is a 1 x 1 convolution to half as many channels as a has"""

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.linear, self.out = conv(channels, max(width // 2, 1), kernel=1), width + max(width // 2, 1)

    def forward(self, a: Tensor, o: Tensor) -> Tensor:
        return torch.cat([a, self.linear(o)], 1)


class CatLin(nn.Module):
    """phi_cat_lin(a, o) = r'([a, o]), where r' is a 1 x 1 convolution to as many channels as a has"""

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.linear, self.out = conv(width + channels, width, kernel=1, bias=False), width

    def forward(self, a: Tensor, o: Tensor) -> Tensor:
        return self.linear(torch.cat([a, o.to(a.dtype)], 1))


COMBINE = {"simple": Simple, "lin_cat": LinCat, "cat_lin": CatLin}


class Discriminator(nn.Module):
    """o_1, ..., o_K -> D: each block combines its input with the image of its size, then looks at the minibatch."""

    def __init__(
        self, widths: list[int], channels: int, last: int, levels: list[int], combine: str, group: int, blur: bool
    ):
        super().__init__()
        self.levels = levels
        self.from_rgb = conv(channels, widths[-1], kernel=1)
        self.combine = nn.ModuleDict({str(k): COMBINE[combine](widths[k], channels) for k in levels[:-1]})
        inputs = [COMBINE[combine](w, channels).out if k in levels[:-1] else w for k, w in enumerate(widths)]

        def layer(linear: nn.Module) -> list[nn.Module]:
            return [linear, nn.LeakyReLU(0.2)]

        def down(joined: int, cin: int, cout: int) -> nn.Module:
            first = [MinibatchStd(group), *layer(conv(joined + 1, cin))]
            if blur:  # the code of StyleGAN filters, convolves, takes means, adds the bias
                return nn.Sequential(*first, Blur(), *layer(nn.Sequential(conv(cin, cout), nn.AvgPool2d(2))))
            return nn.Sequential(*first, *layer(conv(cin, cout)), nn.AvgPool2d(2))

        self.blocks = nn.ModuleList(  # from each level to the one below
            down(joined, cin, cout) for joined, (cout, cin) in zip(inputs[1:], pairwise(widths), strict=True)
        )
        self.head = nn.Sequential(
            MinibatchStd(group), *layer(conv(inputs[0] + 1, widths[0])),
            *layer(EqualisedRate(nn.Conv2d(widths[0], last, 4))),  # 4 x 4 -> 1 x 1
            nn.Flatten(), EqualisedRate(nn.Linear(last, 1), gain=1),
        )

    def forward(self, images: list[Tensor]) -> Tensor:
        of = dict(zip(map(str, self.levels), images, strict=True))
        h = lrelu(self.from_rgb(images[-1]))
        for k in range(len(self.blocks), -1, -1):
            if str(k) in self.combine:
                h = self.combine[str(k)](h, of[str(k)])
            if k:
                h = self.blocks[k - 1](h)
        with torch.autocast(h.device.type, enabled=False):  # scores may be large, and their differences matter
            return self.head(at_least_float32(h)).squeeze(1)


class Layer(nn.Module):
    """A layer of StyleGAN's generator: what it begins with, + noise, + bias, leaky ReLU, AdaIN."""

    def __init__(self, first: nn.Module, width: int, latent_dim: int):
        super().__init__()
        self.first, self.bias = first, nn.Parameter(torch.zeros(width, 1, 1))
        self.noise, self.style = NoiseInput(width), AdaIN(width, latent_dim)

    def forward(self, h: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        return self.style(lrelu(self.noise(self.first(h), noise) + self.bias), w)


class Doubled(nn.Module):
    """Nearest neighbours, a convolution and the binomial filter: bilinear upsampling."""

    def __init__(self, cin: int, cout: int):
        super().__init__()
        self.conv, self.blur = conv(cin, cout, bias=False), Blur()

    def forward(self, h: Tensor) -> Tensor:
        return self.blur(self.conv(double(h)))


class StyleGenerator(nn.Module):
    """z -> w by f, `mapping`; the w of each layer -> the images by g: StyleGAN's layers and those to RGB."""

    w_mean: Tensor

    def __init__(self, widths: list[int], channels: int, latent_dim: int, levels: list[int]):
        super().__init__()
        self.mapping = nn.Sequential(PixelNorm())
        for _ in range(8):
            self.mapping += nn.Sequential(
                EqualisedRate(nn.Linear(latent_dim, latent_dim), rate=0.01), nn.LeakyReLU(0.2)
            )
        self.register_buffer("w_mean", torch.zeros(latent_dim))  # moving average of w
        self.constant = nn.Parameter(torch.ones(widths[0], 4, 4))
        first = [nn.Identity(), conv(widths[0], widths[0], bias=False)]
        self.layers = nn.ModuleList(Layer(linear, widths[0], latent_dim) for linear in first)
        for cin, cout in pairwise(widths):
            pair = [Doubled(cin, cout), conv(cout, cout, bias=False)]
            self.layers += [Layer(linear, cout, latent_dim) for linear in pair]
        self.to_rgb = nn.ModuleDict({str(k): conv(widths[k], channels, kernel=1, gain=1) for k in levels})

    def forward(self, w: Tensor, noise: list[Tensor] | None = None) -> list[Tensor]:
        """w: N x layers x d. noise: of each layer, N x 1 x side x side; None draws it."""
        h, images = self.constant.expand(len(w), -1, -1, -1), []
        for i, layer in enumerate(self.layers):
            h = layer(h, w[:, i], None if noise is None else noise[i])
            if i % 2 and str(i // 2) in self.to_rgb:
                images.append(at_least_float32(self.to_rgb[str(i // 2)](h)))
        return images


def widths_of(image_size: int, base: int, most: int) -> list[int]:
    """Feature maps from 4 x 4 pixels to the final size: min(base / 2^(k + 1), most) at level k."""
    return [min(base >> (k + 1), most) for k in range(image_size.bit_length() - 2)]


CONNECTED = {"none": range(0), "coarse": range(2), "middle": range(2, 4), "fine": range(4, 99), "all": range(99)}


# --- The models ---


class MSGGAN(GAN):
    """MSG-ProGAN (Karnewar and Wang, 2020).

    image_size: final side, a power of two from 4 on. fmap_base, fmap_max: see `widths_of`; fmap_max bounds the latent
    too. combine: simple, lin_cat or cat_lin. connect: the scales that D sees beside the final one: all, none, coarse
    (4 and 8 pixels), middle (16 and 32) or fine (from 64 on). group: images whose spread D sees. mirror: flip half of
    the real images.
    """

    game: tuple[str, str] | None = None  # the losses are an estimate of a distance
    blur = False

    def __init__(
        self, image_size: int = 1024, channels: int = 3, latent_dim: int = 512, fmap_base: int = 8192,
        fmap_max: int = 512, lr: float = 3e-3, lambda_gp: float = 10.0, eps_drift: float = 1e-3,
        combine: str = "simple", connect: str = "all", group: int = 4, mirror: bool = False,
    ):
        super().__init__()
        if image_size < 4 or image_size & (image_size - 1):
            raise ValueError(f"image_size must be a power of two from 4 on, not {image_size}")
        for name, value, known in (("combine", combine, COMBINE), ("connect", connect, CONNECTED)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
        widths = widths_of(image_size, fmap_base, fmap_max)
        if widths[-1] < 1:
            raise ValueError(f"fmap_base {fmap_base} leaves no feature map at {image_size} x {image_size}")
        self.image_shape, self.latent_dim, self.top = (channels, image_size, image_size), latent_dim, len(widths) - 1
        self.lr, self.lambda_gp, self.eps_drift, self.mirror = lr, lambda_gp, eps_drift, mirror
        self.levels = [k for k in range(self.top) if k in CONNECTED[connect]] + [self.top]
        self.G: nn.Module = self.new_generator(widths)
        last = min(fmap_base, fmap_max)
        self.D = Discriminator(widths, channels, last, self.levels, combine, group, self.blur)

    def new_generator(self, widths: list[int]) -> nn.Module:
        """G with these feature maps."""
        return Generator(widths, self.image_shape[0], self.latent_dim, self.levels)

    # --- Losses ---

    def d_loss(self, real: Tensor, fake: Tensor, penalty: Tensor) -> Tensor:
        """E D(G(z)) - E D(x) + lambda E penalty + eps_drift E D(x)^2   (ProGAN, Appendix A.1)"""
        drift = self.eps_drift * real.square().mean()
        return fake.mean() - real.mean() + self.lambda_gp * penalty.mean() + drift

    def g_loss(self, fake: Tensor) -> Tensor:
        """-E D(G(z))"""
        return -fake.mean()

    def d_objective(self, x: Tensor, fakes: list[Tensor]) -> Tensor:
        """L_D with WGAN-GP."""
        reals = self.scaled(x)
        return self.d_loss(self.D(reals), self.D(fakes), self.penalty(reals, fakes))

    def penalty(self, reals: list[Tensor], fakes: list[Tensor]) -> Tensor:
        """Mean over scales s of (|grad_{x^_s} D(x^)|_2 - 1)^2: N   (Section 2.2)

        x^_s = (1 - e) x_s + e G(z)_s, with one e ~ U(0, 1) for all scales of an image.
        """
        between = torch.rand(len(reals[0]), 1, 1, 1, device=reals[0].device, dtype=reals[0].dtype)
        x_hat = [torch.lerp(x, fake.detach(), between).requires_grad_() for x, fake in zip(reals, fakes, strict=True)]
        lengths = [torch.linalg.vector_norm(slope, dim=1) for slope in self.slopes(self.D(x_hat), x_hat)]
        return (torch.stack(lengths) - 1).square().mean(0)

    def slopes(self, score: Tensor, images: list[Tensor]) -> list[Tensor]:
        """Gradient of each score for its image at each scale, in a row: N x pixels each."""
        with torch.autocast(score.device.type, enabled=False):
            gradients = torch.autograd.grad(score.sum(), images, create_graph=True)
            return [at_least_float32(g).flatten(1) for g in gradients]

    # --- Training ---

    def optimizers(self) -> dict[str, Optimizer]:
        def adam(net: nn.Module) -> Adam:
            return Adam(net.parameters(), self.lr, betas=(0.0, 0.99), eps=1e-8)

        return {"D": adam(self.D), "G": adam(self.G)}

    def real_images(self, x: Tensor) -> Tensor:
        """The real images; half of them flipped if the model mirrors."""
        if self.mirror:
            x = torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x, x.flip(3))
        return x

    def scaled(self, x: Tensor) -> list[Tensor]:
        """x at each connected level, coarsest first: means over 2 x 2 pixels, again and again."""
        at = [x]
        for _ in range(self.top):
            at.append(halve(at[-1]))
        return [at[self.top - k] for k in self.levels]

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        """D steps, then G, each with its own z."""
        x, n = self.real_images(batch.x), len(batch.x)
        with torch.no_grad():
            fakes = self.fake(n)
        d_loss = minimize(self.d_objective(x, fakes), opt["D"])
        g_loss = minimize(self.g_loss(self.D(self.fake(n))), opt["G"])
        return {"d_loss": d_loss, "g_loss": g_loss}

    def fake(self, n: int) -> list[Tensor]:
        """G(z) at each connected level."""
        return self.G(self.sample_latent(n).to(self.device))

    # --- Samples ---

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ N(0, I); G divides it by its length."""
        return torch.randn(n, self.latent_dim, generator=generator)

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.generate(self.sample_latent(n, generator).to(self.device))

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z) at its final size, clipped to [-1, 1]."""
        return self.scales(z)[-1]

    def scales(self, z: Tensor) -> list[Tensor]:
        """G(z) at each connected level, coarsest first, clipped to [-1, 1]."""
        return [x.clamp(-1, 1) for x in self.G(z)]


class MSGStyleGAN(MSGGAN):
    """MSG-StyleGAN: StyleGAN's generator, and the non-saturating logistic loss with R1.

    gamma: of R1. truncated_layers: the layers that truncation in W concerns.
    """

    game = ("d_loss", "g_loss")
    blur = True

    def __init__(
        self, image_size: int = 1024, channels: int = 3, latent_dim: int = 512, fmap_base: int = 8192,
        fmap_max: int = 512, lr: float = 3e-3, gamma: float = 10.0, combine: str = "cat_lin", connect: str = "all",
        group: int = 4, mirror: bool = False, truncated_layers: int = 8,
    ):
        super().__init__(
            image_size, channels, latent_dim, fmap_base, fmap_max, lr, combine=combine, connect=connect, group=group,
            mirror=mirror,
        )
        self.gamma, self.truncated_layers = gamma, truncated_layers

    def new_generator(self, widths: list[int]) -> nn.Module:
        """G with these feature maps."""
        return StyleGenerator(widths, self.image_shape[0], self.latent_dim, self.levels)

    def d_loss(self, real: Tensor, fake: Tensor, penalty: Tensor) -> Tensor:
        """E softplus(D(G(z))) + E softplus(-D(x)) + gamma / 2 E penalty"""
        return F.softplus(fake).mean() + F.softplus(-real).mean() + self.gamma / 2 * penalty.mean()

    def g_loss(self, fake: Tensor) -> Tensor:
        """E softplus(-D(G(z)))"""
        return F.softplus(-fake).mean()

    def d_objective(self, x: Tensor, fakes: list[Tensor]) -> Tensor:
        """L_D with R1, whose penalty is a mean over scales s of |grad_{x_s} D(x)|^2 at real x."""
        reals = self.scaled(x.detach().requires_grad_())
        real = self.D(reals)
        lengths = [slope.square().sum(1) for slope in self.slopes(real, reals)]
        return self.d_loss(real, self.D(fakes), torch.stack(lengths).mean(0))

    def fake(self, n: int) -> list[Tensor]:
        """G(z) at each connected level; notes the mean of w."""
        w = self.G.mapping(self.sample_latent(n).to(self.device)).float()
        with torch.no_grad():
            self.G.w_mean.lerp_(w.mean(0), 0.005)
        return self.G(self.styles(w))

    # --- Latents: z, w = f(z), and the w of each layer ---

    def styles(self, w: Tensor) -> Tensor:
        """w for each layer: N x layers x d."""
        return w[:, None].expand(-1, 2 * self.top + 2, -1)

    def generate_truncated(self, z: Tensor, psi: float) -> Tensor:
        """G(z) with w' = w_mean + psi (w - w_mean) in the first layers, and noise of its own for each z."""
        w = self.G.mapping(z)
        few = torch.arange(2 * self.top + 2, device=w.device) < self.truncated_layers
        near = torch.lerp(self.G.w_mean, w, psi)
        return self.render(torch.where(few[:, None], self.styles(near), self.styles(w)), z)

    def latent_spaces(self) -> tuple[LatentSpace, ...]:
        """Z and W."""
        z = LatentSpace("z", lambda z, y: z, lambda z, y: self.render(self.styles(self.G.mapping(z))))
        w = LatentSpace("w", lambda z, y: self.G.mapping(z), lambda w, y: self.render(self.styles(w)), straight=True)
        return z, w

    def scales(self, z: Tensor) -> list[Tensor]:
        """G(z) at each connected level, with noise of its own for each z."""
        return [x.clamp(-1, 1) for x in self.G(self.styles(self.G.mapping(z)), self.noise(z))]

    def render(self, styles: Tensor, z: Tensor | None = None) -> Tensor:
        """g(w) at its final size, clipped to [-1, 1]. z: decides the noise."""
        return self.G(styles, self.noise(torch.zeros(1, 1) if z is None else z))[-1].clamp(-1, 1)

    def noise(self, z: Tensor) -> list[Tensor]:
        """Noise for each layer, a function of each row of z alone: its bits are the seed."""
        sides = [4 * 2 ** (i // 2) for i in range(2 * self.top + 2)]
        seeds = [zlib.crc32(row.numpy().tobytes()) for row in z.detach().float().cpu()]
        flat = torch.stack(
            [torch.randn(sum(s * s for s in sides), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        ).to(self.device)
        return [part.view(-1, 1, s, s) for part, s in zip(flat.split([s * s for s in sides], 1), sides, strict=True)]
