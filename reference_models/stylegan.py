"""StyleGAN: a mapping network turns z into w, and w sets the style of each layer of a growing generator.

"A Style-Based Generator Architecture for Generative Adversarial Networks",
Tero Karras, Samuli Laine, Timo Aila. 2018, CVPR 2019, arXiv:1812.04948.
Official code: https://github.com/NVlabs/stylegan (TensorFlow), with which the paper's numbers were made.

Table 1 adds one part after the other; an argument of the model switches each:
- A: ProGAN, from 4 x 4 on: B without `blur`;
- B: bilinear resampling, from 8 x 8 on: no `styles`, `constant`, `noise`, `mixing` and `mapping_layers`;
- C: the mapping network and styles; D: a constant in the place of z as G's input; E: noise; F: mixing, the default.
FFHQ's rows B to F have the non-saturating loss with R1. All of CelebA-HQ, and row A, have WGAN-GP (`stylegan-wgangp`).

Where the paper is silent, the code decides:
- a style scales by 1 + A(w), so that its scale starts at one; the instance norm follows the activation;
- the gradients of R1 and WGAN-GP are taken with respect to the image enlarged to the final size. For images of s x s of
  a model of S x S their norm is s / S of that with respect to the s x s pixels;
- a batch has one point of mixing: all its images take the second w from the same layer on, or none does;
- moments of Adam begin anew whenever a fade begins and whenever one ends.

Unconfirmed: Table 1 for CelebA-HQ but for rows A and F, and that FFHQ's row A has WGAN-GP.

Deviations from the paper:
1. No labels: the code can learn classes, and the paper's numbers are without.
2. Where latents are compared (path length, separability), the noise is the same for all images; the code draws new
   noise for each minibatch of paths, and for each image whose separability is measured. All other samples have noise of
   their own, which is a function of z.
3. A fade begins at alpha = 0, and the fade, the batch and the rate follow every step; in the code, every fourth.
4. Samples are clipped to [-1, 1]; no loss sees clipped images.
5. The moving average of G takes the weights after the step; in the code those before G's step.
6. The layers to and from RGB at sizes before the first stage do not exist; the code has them and never trains them.
"""

import math
import zlib
from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ganbench.gan import GAN, Batch, LatentSpace, Stage, minimize
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

# --- Networks: level k has images of 4 * 2^k pixels and G's layers 2k, 2k + 1; in a fade to it, alpha rises to 1 ---


def conv(cin: int, cout: int, kernel: int = 3, gain: float = math.sqrt(2), bias: bool = True) -> nn.Module:
    """Convolution with equalised learning rate that keeps the size."""
    return EqualisedRate(nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=bias), gain)


def faded(old: Tensor, new: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) old + alpha new"""
    return torch.lerp(old, new, alpha)


def at_least_float32(h: Tensor) -> Tensor:
    """h, in float32 if it is less precise: after the layers that mixed precision may compute in bfloat16."""
    return h.to(torch.promote_types(h.dtype, torch.float32))


class Constant(nn.Module):
    """The learned constant in the place of an input, from 1 on (Section 2)."""

    def __init__(self, width: int):
        super().__init__()
        self.value = nn.Parameter(torch.ones(width, 4, 4))

    def forward(self, w: Tensor) -> Tensor:
        return self.value.expand(len(w), -1, -1, -1)


class Doubled(nn.Module):
    """Nearest neighbours, a convolution and the binomial filter: bilinear upsampling (Appendix C)."""

    def __init__(self, cin: int, cout: int, blur: bool):
        super().__init__()
        self.conv, self.blur = conv(cin, cout, bias=False), Blur() if blur else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        return self.blur(self.conv(double(h)))


class Layer(nn.Module):
    """A layer of G: what it begins with, + noise, + bias, leaky ReLU; then AdaIN, or pixel norm without styles."""

    def __init__(self, first: nn.Module, width: int, latent_dim: int, styles: bool, noise: bool):
        super().__init__()
        self.first, self.bias = first, nn.Parameter(torch.zeros(width, 1, 1))
        self.noise = NoiseInput(width) if noise else None
        self.style = AdaIN(width, latent_dim) if styles else None
        self.norm = PixelNorm()

    def forward(self, h: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        h = self.first(h)
        if self.noise is not None:
            h = self.noise(h, noise)
        h = lrelu(h + self.bias)
        return self.norm(h) if self.style is None else self.style(h, w)


class Generator(nn.Module):
    """z -> w by f, `mapping`; the w of each layer -> image by g, `forward`   (Figure 1)"""

    w_mean: Tensor

    def __init__(
        self, widths: list[int], channels: int, latent_dim: int, start: int, mapping_layers: int, styles: bool,
        constant: bool, noise: bool, blur: bool,
    ):
        super().__init__()

        def layer(first: nn.Module, width: int) -> Layer:
            return Layer(first, width, latent_dim, styles, noise)

        self.mapping = nn.Sequential(PixelNorm())
        for _ in range(mapping_layers):
            self.mapping += nn.Sequential(
                EqualisedRate(nn.Linear(latent_dim, latent_dim), rate=0.01), nn.LeakyReLU(0.2)
            )
        self.register_buffer("w_mean", torch.zeros(latent_dim))  # moving average of w
        dense = nn.Linear(latent_dim, 16 * widths[0], bias=False)
        self.input = Constant(widths[0]) if constant else nn.Sequential(
            EqualisedRate(dense, gain=math.sqrt(2) / 4), nn.Unflatten(1, (widths[0], 4, 4))
        )
        self.layers = nn.ModuleList(
            [layer(nn.Identity(), widths[0]), layer(conv(widths[0], widths[0], bias=False), widths[0])]
        )
        for cin, cout in pairwise(widths):
            self.layers += [layer(Doubled(cin, cout, blur), cout), layer(conv(cout, cout, bias=False), cout)]
        self.to_rgb = nn.ModuleDict(
            {str(k): conv(width, channels, kernel=1, gain=1) for k, width in enumerate(widths) if k >= start}
        )

    def forward(self, w: Tensor, level: int, alpha: float, noise: list[Tensor] | None = None) -> Tensor:
        """w: N x layers x d. noise: of each layer, N or 1 x 1 x side x side; None draws it."""
        h = below = self.input(w[:, 0])
        for k in range(level + 1):
            below = h
            for i in (2 * k, 2 * k + 1):
                h = self.layers[i](h, w[:, i], None if noise is None else noise[i])
        x = self.to_rgb[str(level)](h)
        if alpha < 1:
            x = faded(double(self.to_rgb[str(level - 1)](below)), x, alpha)
        return at_least_float32(x)


class Discriminator(nn.Module):
    """... -> 8 x 8 -> 4 x 4 -> D(x): ProGAN's, with the binomial filter before each mean over 2 x 2 (Appendix C)."""

    def __init__(self, widths: list[int], channels: int, last: int, start: int, blur: bool, group: int):
        super().__init__()

        def layer(linear: nn.Module) -> list[nn.Module]:
            return [linear, nn.LeakyReLU(0.2)]

        def down(cin: int, cout: int) -> nn.Module:  # the code filters, convolves, takes means, adds the bias
            first = [Blur()] if blur else []
            second = nn.Sequential(conv(cin, cout), nn.AvgPool2d(2))
            return nn.Sequential(*layer(conv(cin, cin)), *first, *layer(second))

        self.from_rgb = nn.ModuleDict(
            {str(k): conv(channels, width, kernel=1) for k, width in enumerate(widths) if k >= start}
        )
        self.blocks = nn.ModuleList(down(cin, cout) for cout, cin in pairwise(widths))  # to the level below
        self.head = nn.Sequential(
            MinibatchStd(group), *layer(conv(widths[0] + 1, widths[0])),
            *layer(EqualisedRate(nn.Conv2d(widths[0], last, 4))),  # 4 x 4 -> 1 x 1
            nn.Flatten(), EqualisedRate(nn.Linear(last, 1), gain=1),
        )

    def forward(self, x: Tensor, level: int, alpha: float) -> Tensor:
        h = lrelu(self.from_rgb[str(level)](x))
        for k in reversed(range(level)):
            h = self.blocks[k](h)
            if k + 1 == level and alpha < 1:
                h = faded(lrelu(self.from_rgb[str(k)](halve(x))), h, alpha)
        with torch.autocast(x.device.type, enabled=False):  # scores may be large, and their differences matter
            return self.head(at_least_float32(h)).squeeze(1)


def widths_of(image_size: int, base: int, most: int) -> list[int]:
    """Feature maps from 4 x 4 pixels to the final size: min(base / 2^(k + 1), most) at level k."""
    return [min(base >> (k + 1), most) for k in range(image_size.bit_length() - 2)]


# --- The model ---


class StyleGAN(GAN):
    """StyleGAN (Karras, Laine, Aila, 2019), with the non-saturating logistic loss and R1.

    image_size, start_size: final and first side, powers of two from 4 on. fmap_base, fmap_max: see `widths_of`;
    fmap_max bounds the latent too. stable_images, fade_images: images shown at each size before the next one is faded
    in, and during a fade. batch_sizes, rates: images of a batch and learning rates at 4, 8, 16, ... pixels; empty: the
    recipe's and `lr` everywhere. half_life: images after which a weight counts half in the moving average. gamma: of
    R1. mirror: flip half of the real images.
    styles, constant, noise, blur, mapping_layers: Table 1's parts. mixing: probability of mixing. group: images whose
    spread D sees. truncated_layers: the layers that truncation in W concerns.
    """

    shown: Tensor
    logged = ("image_size", "alpha")

    def __init__(
        self, image_size: int = 1024, start_size: int = 8, channels: int = 3, latent_dim: int = 512,
        fmap_base: int = 8192, fmap_max: int = 512, stable_images: int = 600_000, fade_images: int = 600_000,
        batch_sizes: tuple[int, ...] = (), rates: tuple[float, ...] = (), lr: float = 1e-3, half_life: int = 10_000,
        gamma: float = 10.0, mirror: bool = False, mapping_layers: int = 8, styles: bool = True, constant: bool = True,
        noise: bool = True, mixing: float = 0.9, blur: bool = True, group: int = 4, truncated_layers: int = 8,
    ):
        super().__init__()
        for name, size in (("image_size", image_size), ("start_size", start_size)):
            if size < 4 or size & (size - 1):
                raise ValueError(f"{name} must be a power of two from 4 on, not {size}")
        if start_size > image_size:
            raise ValueError(f"start_size {start_size} is above image_size {image_size}")
        if min(stable_images, fade_images) < 1:
            raise ValueError(f"stable_images and fade_images must be at least 1, not {stable_images} and {fade_images}")
        if mixing and not styles:
            raise ValueError("styles = False leaves nothing to mix: set mixing = 0")
        if constant and not styles:
            raise ValueError("styles = False with constant = True keeps z from the image: set constant = False")
        widths = widths_of(image_size, fmap_base, fmap_max)
        if widths[-1] < 1:
            raise ValueError(f"fmap_base {fmap_base} leaves no feature map at {image_size} x {image_size}")
        for name, values in (("batch_sizes", batch_sizes), ("rates", rates)):
            if values and len(values) < len(widths):
                raise ValueError(f"{name} must be {len(widths)} numbers, for 4 to {image_size} pixels, or none")
        self.image_shape, self.latent_dim, self.top = (channels, image_size, image_size), latent_dim, len(widths) - 1
        self.start = start_size.bit_length() - 3
        self.stable_images, self.fade_images, self.batch_sizes = stable_images, fade_images, tuple(batch_sizes)
        self.lr, self.rates, self.half_life, self.gamma, self.mirror = lr, tuple(rates), half_life, gamma, mirror
        self.styled, self.noisy, self.mapped = styles, noise, mapping_layers > 0
        self.mixing, self.truncated_layers = mixing, truncated_layers
        self.G = Generator(
            widths, channels, latent_dim, self.start, mapping_layers, styles, constant, noise, blur
        )
        self.D = Discriminator(widths, channels, min(fmap_base, fmap_max), self.start, blur, group)
        self.register_buffer("shown", torch.zeros((), dtype=torch.int64))  # images, before the last step

    # --- Growing (Appendix C) ---

    def stages(self, batch_size: int) -> tuple[Stage, ...]:
        """The first size; then at each doubled size a fade, and as long again or longer without change."""

        def stage(images: int, level: int) -> Stage:
            size = self.batch_sizes[level] if self.batch_sizes else batch_size
            return Stage(images, size, 4 * 2**level, 0.5 ** (size / self.half_life))

        found = [stage(self.stable_images, self.start)]
        for level in range(self.start + 1, self.top + 1):
            found += [stage(self.fade_images, level), stage(self.stable_images, level)]
        return tuple(found)

    def growth(self, shown: int) -> tuple[int, float]:
        """The level and its alpha, once so many images were shown."""
        steps, within = divmod(shown, self.stable_images + self.fade_images)
        level = self.start + steps
        if level >= self.top:
            return self.top, 1.0
        if within < self.stable_images:
            return level, 1.0
        return level + 1, (within - self.stable_images) / self.fade_images

    # --- Losses (Appendix C) ---

    def d_loss(self, real: Tensor, fake: Tensor, penalty: Tensor) -> Tensor:
        """E softplus(D(G(z))) + E softplus(-D(x)) + gamma / 2 E penalty"""
        return F.softplus(fake).mean() + F.softplus(-real).mean() + self.gamma / 2 * penalty.mean()

    def g_loss(self, fake: Tensor) -> Tensor:
        """E softplus(-D(G(z)))"""
        return F.softplus(-fake).mean()

    def d_objective(self, x: Tensor, fake: Tensor, at: tuple[int, float]) -> Tensor:
        """L_D with R1, whose penalty is |grad D(x)|^2 at real x   (Mescheder, Geiger, Nowozin, 2018)"""
        x = x.detach().requires_grad_()
        real = self.D(x, *at)
        return self.d_loss(real, self.D(fake, *at), self.slope(real, x, at[0]).square().sum(1))

    def slope(self, score: Tensor, x: Tensor, level: int) -> Tensor:
        """Gradient of each score for its image, whose length is that for the pixels of the final size: N x pixels."""
        with torch.autocast(x.device.type, enabled=False):
            (gradient,) = torch.autograd.grad(score.sum(), x, create_graph=True)
            return at_least_float32(gradient).flatten(1) * 0.5 ** (self.top - level)

    # --- Training ---

    def optimizers(self) -> dict[str, Optimizer]:
        def adam(net: nn.Module) -> Adam:
            return Adam(net.parameters(), self.lr, betas=(0.0, 0.99), eps=1e-8)

        return {"D": adam(self.D), "G": adam(self.G)}

    def set_rates(self, opt: Mapping[str, Optimizer], level: int) -> None:
        """The learning rate of this size."""
        for optimizer in opt.values():
            optimizer.param_groups[0]["lr"] = self.rates[level] if self.rates else self.lr

    def real_images(self, x: Tensor, alpha: float) -> Tensor:
        """The real images of a fade, mixed as the fakes are; half of them flipped if the model mirrors."""
        if self.mirror:
            x = torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x, x.flip(3))
        return faded(double(halve(x)), x, alpha) if alpha < 1 else x

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        """D steps, then G."""
        self.shown.fill_(batch.shown)
        at = level, alpha = self.growth(batch.shown)
        self.set_rates(opt, level)
        x, n = self.real_images(batch.x, alpha), len(batch.x)
        with torch.no_grad():
            fake = self.fake(n, at)
        d_loss = minimize(self.d_objective(x, fake, at), opt["D"])
        g_loss = minimize(self.g_loss(self.D(self.fake(n, at), *at)), opt["G"])
        size = torch.full((), 4.0 * 2**level, device=x.device)
        return {"d_loss": d_loss, "g_loss": g_loss, "image_size": size, "alpha": torch.full_like(size, alpha)}

    def fake(self, n: int, at: tuple[int, float]) -> Tensor:
        """G(z) at a level and alpha, with mixing; notes the mean of w (Section 3.1, Appendix B)."""
        w = self.G.mapping(self.sample_latent(n).to(self.device)).float()
        with torch.no_grad():
            self.G.w_mean.lerp_(w.mean(0), 0.005)
        styles = self.styles(w)
        if self.mixing:
            other = self.styles(self.G.mapping(self.sample_latent(n).to(self.device)).float())
            styles = mixed(styles, other, self.crossover(2 * at[0] + 2))
        return self.G(styles, *at)

    def crossover(self, layers: int) -> Tensor:
        """The layer from which on the second w counts: 1 to layers - 1 with probability `mixing`, else `layers`."""
        mix, where = torch.rand(2, device=self.device)
        return torch.where(mix < self.mixing, 1 + (where * (layers - 1)).floor(), layers)

    # --- Latents: z, w = f(z), and the w of each layer ---

    def styles(self, w: Tensor) -> Tensor:
        """w for each layer: N x layers x d."""
        return w[:, None].expand(-1, 2 * self.top + 2, -1)

    def truncated(self, w: Tensor, psi: float) -> Tensor:
        """w' = w_mean + psi (w - w_mean) in the first layers, w in the others: N x layers x d   (Appendix B)"""
        few = torch.arange(2 * self.top + 2, device=w.device) < self.truncated_layers
        near = torch.lerp(self.G.w_mean, w, psi)
        return torch.where(few[:, None], self.styles(near), self.styles(w))

    def generate_truncated(self, z: Tensor, psi: float) -> Tensor:
        """G(z) truncated in W, with noise of its own for each z."""
        return self.render(self.truncated(self.G.mapping(z), psi), z)

    def generate_mixed(self, z: Tensor, z2: Tensor, start: int, stop: int) -> Tensor:
        """G(z), but layers start to stop - 1 have the styles of z2   (Figure 3)"""
        if not self.styled:
            raise ValueError("a generator without styles has nothing to mix")
        if stop > 2 * self.top + 2:
            raise ValueError(f"its layers are layers 0 to {2 * self.top + 1}")
        w, w2 = (self.styles(self.G.mapping(latent)) for latent in (z, z2))
        return self.render(mixed(mixed(w, w2, start), w, stop), z)

    def latent_spaces(self) -> tuple[LatentSpace, ...]:
        """Z, and W if there is a mapping network."""
        z = LatentSpace("z", lambda z, y: z, lambda z, y: self.render(self.styles(self.G.mapping(z))))
        w = LatentSpace("w", lambda z, y: self.G.mapping(z), lambda w, y: self.render(self.styles(w)), straight=True)
        return (z, w) if self.mapped else (z,)

    # --- Samples ---

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ N(0, I); f divides it by its length."""
        return torch.randn(n, self.latent_dim, generator=generator)

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.generate(self.sample_latent(n, generator).to(self.device))

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z) with noise of its own for each z."""
        return self.render(self.styles(self.G.mapping(z)), z)

    def render(self, styles: Tensor, z: Tensor | None = None) -> Tensor:
        """g(w) as far as it has grown, enlarged to the final size, clipped to [-1, 1]. z: decides the noise."""
        level, alpha = self.growth(int(self.shown))
        noise = self.noise(torch.zeros(1, 1) if z is None else z, level) if self.noisy else None
        x = self.G(styles, level, alpha, noise)
        return F.interpolate(x, scale_factor=2.0 ** (self.top - level), mode="nearest").clamp(-1, 1)

    def noise(self, z: Tensor, level: int) -> list[Tensor]:
        """Noise for each layer, a function of each row of z alone: its bits are the seed."""
        sides = [4 * 2 ** (i // 2) for i in range(2 * level + 2)]
        seeds = [zlib.crc32(row.numpy().tobytes()) for row in z.detach().float().cpu()]
        flat = torch.stack(
            [torch.randn(sum(s * s for s in sides), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        ).to(self.device)
        parts = flat.split([s * s for s in sides], 1)
        return [part.view(-1, 1, s, s) for part, s in zip(parts, sides, strict=True)]


def mixed(a: Tensor, b: Tensor, start: Tensor | int) -> Tensor:
    """The styles a, N x layers x d, but those of b from layer `start` on (Section 3.1)."""
    layer = torch.arange(a.shape[1], device=a.device)
    return torch.where((layer < start)[:, None], a, b)


class WGANGPStyleGAN(StyleGAN):
    """The same networks with WGAN-GP: Table 1's row A, and all of CelebA-HQ."""

    game = None  # the losses are an estimate of a distance
    lambda_gp, eps_drift = 10.0, 1e-3

    def d_loss(self, real: Tensor, fake: Tensor, penalty: Tensor) -> Tensor:
        """E D(G(z)) - E D(x) + lambda E penalty + eps_drift E D(x)^2   (Karras et al., 2018, Appendix A.1)"""
        drift = self.eps_drift * real.square().mean()
        return fake.mean() - real.mean() + self.lambda_gp * penalty.mean() + drift

    def g_loss(self, fake: Tensor) -> Tensor:
        """-E D(G(z))"""
        return -fake.mean()

    def d_objective(self, x: Tensor, fake: Tensor, at: tuple[int, float]) -> Tensor:
        """L_D, whose penalty is (|grad D(x^)|_2 - 1)^2 at x^ between x and G(z)   (Gulrajani et al., 2017)"""
        between = torch.rand(len(x), 1, 1, 1, device=x.device, dtype=x.dtype)
        x_hat = torch.lerp(x, fake, between).requires_grad_()
        norm = torch.linalg.vector_norm(self.slope(self.D(x_hat, *at), x_hat, at[0]), dim=1)
        return self.d_loss(self.D(x, *at), self.D(fake, *at), (norm - 1).square())
