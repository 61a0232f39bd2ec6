"""ProGAN: generator and discriminator grow together, from 4 x 4 pixels on.

"Progressive Growing of GANs for Improved Quality, Stability, and Variation",
Tero Karras, Timo Aila, Samuli Laine, Jaakko Lehtinen. 2017, ICLR 2018, arXiv:1710.10196.
Official code: https://github.com/tkarras/progressive_growing_of_gans (branch original-theano-version, with which the
paper's numbers were made; its later version for TensorFlow has other batches and rates).

Where the paper is silent, the code decides:
- moments of Adam begin anew whenever a fade begins and whenever one ends;
- the gradient of the penalty is taken with respect to the image enlarged to the final size. For images of s x s of a
  model of S x S its norm is s / S of that with respect to the s x s pixels;
- the penalty on the gradient is divided by the square of its target gamma, which is 750 on CIFAR-10 and 1 elsewhere;
- the statistic of the minibatch is over the whole batch;
- each step of D and each step of G draws its own z. On CIFAR-10 both networks step at once from one z.

Unconfirmed: the length and the width of the networks of Table 1 (h) and the wording of "mean of ten runs".

Deviations from the paper:
1. No labels: the code can learn classes by an auxiliary classifier, and the paper's numbers are without.
2. Row (g) and (h) of Table 1 alone can be built, and the other data sets' models: the networks of rows (a) to (f) have
   batch norm, layer norm or other rates.
3. A fade begins at alpha = 0, with images of the new size; in the code one step later.
4. Samples are clipped to [-1, 1]; no loss sees clipped images.
5. The learning rate's rise over the first images is the code's; the paper does not have it.
6. The moving average of G takes the weights after the step; in the code those before it.
"""

import math
from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ganbench.gan import GAN, Batch, Stage, minimize, minimize_together
from reference_models.layers import EqualisedRate, MinibatchStd, PixelNorm, double, halve, lrelu

# --- Networks: level k has images of 4 * 2^k pixels; in a fade to it, alpha rises from 0 to 1 (Section 2) ---


def conv(cin: int, cout: int, kernel: int = 3, gain: float = math.sqrt(2)) -> nn.Module:
    """Convolution with equalised learning rate that keeps the size."""
    return EqualisedRate(nn.Conv2d(cin, cout, kernel, padding=kernel // 2), gain)


def faded(old: Tensor, new: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) old + alpha new   (Figure 2)"""
    return torch.lerp(old, new, alpha)


def at_least_float32(h: Tensor) -> Tensor:
    """h, in float32 if it is less precise: after the layers that mixed precision may compute in bfloat16."""
    return h.to(torch.promote_types(h.dtype, torch.float32))


class Generator(nn.Module):
    """z -> 4 x 4 -> 8 x 8 -> ...: nearest neighbours, two convolutions, each with leaky ReLU and pixel norm."""

    def __init__(self, widths: list[int], channels: int, latent_dim: int):
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
        self.to_rgb = nn.ModuleList(conv(width, channels, kernel=1, gain=1) for width in widths)

    def forward(self, z: Tensor, level: int, alpha: float) -> Tensor:
        h = below = self.first(self.norm(z))
        for block in self.blocks[:level]:
            below, h = h, block(double(h))
        x = self.to_rgb[level](h)
        if alpha < 1:
            x = faded(double(self.to_rgb[level - 1](below)), x, alpha)
        return at_least_float32(x)


class Discriminator(nn.Module):
    """... -> 8 x 8 -> 4 x 4 -> D(x): two convolutions and a mean over 2 x 2; at 4 x 4 the minibatch statistic."""

    def __init__(self, widths: list[int], channels: int, last: int):
        super().__init__()

        def layer(linear: nn.Module) -> list[nn.Module]:
            return [linear, nn.LeakyReLU(0.2)]

        self.from_rgb = nn.ModuleList(conv(channels, width, kernel=1) for width in widths)
        self.blocks = nn.ModuleList(  # from each level to the one below
            nn.Sequential(*layer(conv(cin, cin)), *layer(conv(cin, cout)), nn.AvgPool2d(2))
            for cout, cin in pairwise(widths)
        )
        self.head = nn.Sequential(
            MinibatchStd(group=0), *layer(conv(widths[0] + 1, widths[0])),
            *layer(EqualisedRate(nn.Conv2d(widths[0], last, 4))),  # 4 x 4 -> 1 x 1
            nn.Flatten(), EqualisedRate(nn.Linear(last, 1), gain=1),
        )

    def forward(self, x: Tensor, level: int, alpha: float) -> Tensor:
        h = lrelu(self.from_rgb[level](x))
        for k in reversed(range(level)):
            h = self.blocks[k](h)
            if k + 1 == level and alpha < 1:
                h = faded(lrelu(self.from_rgb[k](halve(x))), h, alpha)
        with torch.autocast(x.device.type, enabled=False):  # scores may be large, and their differences matter
            return self.head(at_least_float32(h)).squeeze(1)


def widths_of(image_size: int, base: int, most: int) -> list[int]:
    """Feature maps from 4 x 4 pixels to the final size: min(base / 2^(k + 1), most) at level k   (Table 2)."""
    return [min(base >> (k + 1), most) for k in range(image_size.bit_length() - 2)]


# --- The model ---


class ProGAN(GAN):
    """ProGAN (Karras, Aila, Laine, Lehtinen, 2018).

    image_size: final side, a power of two from 4 on. fmap_base, fmap_max: see `widths_of`; fmap_max bounds the latent
    too. stable_images, fade_images: images shown at each size before the next one is faded in, and during a fade.
    batch_sizes: images of a batch at 4, 8, 16, ... pixels; empty: the recipe's everywhere. target: gamma, to which the
    norm of D's gradient is drawn. ramp_images: images over which the learning rate rises. together: G and D step at
    once, from one z. mirror: flip half of the real images.
    """

    game = None  # the losses are an estimate of a distance
    logged = ("image_size", "alpha")
    shown: Tensor

    def __init__(
        self, image_size: int = 1024, channels: int = 3, latent_dim: int = 512, fmap_base: int = 8192,
        fmap_max: int = 512, stable_images: int = 600_000, fade_images: int = 600_000,
        batch_sizes: tuple[int, ...] = (), lr: float = 1e-3, ramp_images: int = 0, lambda_gp: float = 10.0,
        target: float = 1.0, eps_drift: float = 1e-3, together: bool = False, mirror: bool = False,
    ):
        super().__init__()
        if image_size < 4 or image_size & (image_size - 1):
            raise ValueError(f"image_size must be a power of two from 4 on, not {image_size}")
        if min(stable_images, fade_images) < 1:
            raise ValueError(f"stable_images and fade_images must be at least 1, not {stable_images} and {fade_images}")
        widths = widths_of(image_size, fmap_base, fmap_max)
        if widths[-1] < 1:
            raise ValueError(f"fmap_base {fmap_base} leaves no feature map at {image_size} x {image_size}")
        if batch_sizes and len(batch_sizes) < len(widths):
            raise ValueError(f"batch_sizes must be {len(widths)} numbers, for 4 to {image_size} pixels, or none")
        self.image_shape, self.latent_dim, self.top = (channels, image_size, image_size), latent_dim, len(widths) - 1
        self.stable_images, self.fade_images, self.batch_sizes = stable_images, fade_images, tuple(batch_sizes)
        self.lr, self.ramp_images, self.together, self.mirror = lr, ramp_images, together, mirror
        self.lambda_gp, self.target, self.eps_drift = lambda_gp, target, eps_drift
        self.G = Generator(widths, channels, latent_dim)
        self.D = Discriminator(widths, channels, min(fmap_base, fmap_max))
        self.register_buffer("shown", torch.zeros((), dtype=torch.int64))  # images, before the last step

    # --- Growing (Section 2) ---

    def stages(self, batch_size: int) -> tuple[Stage, ...]:
        """4 x 4; then at each doubled size a fade, and as long again or longer without change."""

        def stage(images: int, level: int) -> Stage:
            return Stage(images, self.batch_sizes[level] if self.batch_sizes else batch_size, 4 * 2**level)

        found = [stage(self.stable_images, 0)]
        for level in range(1, self.top + 1):
            found += [stage(self.fade_images, level), stage(self.stable_images, level)]
        return tuple(found)

    def growth(self, shown: int) -> tuple[int, float]:
        """The level and its alpha, once so many images were shown."""
        level, within = divmod(shown, self.stable_images + self.fade_images)
        if level >= self.top:
            return self.top, 1.0
        if within < self.stable_images:
            return level, 1.0
        return level + 1, (within - self.stable_images) / self.fade_images

    # --- Losses ---

    def d_loss(self, real: Tensor, fake: Tensor, penalty: Tensor) -> Tensor:
        """E D(G(z)) - E D(x) + lambda E penalty + eps_drift E D(x)^2   (Appendix A.1)"""
        drift = self.eps_drift * real.square().mean()
        return fake.mean() - real.mean() + self.lambda_gp * penalty.mean() + drift

    def g_loss(self, fake: Tensor) -> Tensor:
        """-E D(G(z))"""
        return -fake.mean()

    def penalty(self, x: Tensor, fake: Tensor, level: int, alpha: float) -> Tensor:
        """(|grad D(x^)|_2 - gamma)^2 / gamma^2 at x^ between x and G(z): N   (Appendix A.1, after Gulrajani et al.)"""
        between = torch.rand(len(x), 1, 1, 1, device=x.device, dtype=x.dtype)
        x_hat = torch.lerp(x, fake.detach(), between).requires_grad_()
        score = self.D(x_hat, level, alpha).sum()
        with torch.autocast(x.device.type, enabled=False):
            (gradient,) = torch.autograd.grad(score, x_hat, create_graph=True)
            norm = torch.linalg.vector_norm(at_least_float32(gradient).flatten(1), dim=1)
            enlarged = norm * 0.5 ** (self.top - level)  # with respect to the pixels of the final size
            return ((enlarged - self.target) / self.target).square()

    # --- Training ---

    def optimizers(self) -> dict[str, Optimizer]:
        def adam(net: nn.Module) -> Adam:
            return Adam(net.parameters(), self.lr, betas=(0.0, 0.99), eps=1e-8)

        return {"D": adam(self.D), "G": adam(self.G)}

    def set_rates(self, opt: Mapping[str, Optimizer], shown: int) -> None:
        """lr exp(-5 (1 - shown / ramp)^2) while fewer than `ramp` images were shown, then lr."""
        rest = max(0.0, 1 - shown / self.ramp_images) if self.ramp_images else 0.0
        for optimizer in opt.values():
            optimizer.param_groups[0]["lr"] = self.lr * math.exp(-5 * rest**2)

    def real_images(self, x: Tensor, alpha: float) -> Tensor:
        """The real images of a fade, mixed as the fakes are; half of them flipped if the model mirrors."""
        if self.mirror:
            x = torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x, x.flip(3))
        return faded(double(halve(x)), x, alpha) if alpha < 1 else x

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        """D steps, then G; or both at once."""
        self.set_rates(opt, batch.shown)
        self.shown.fill_(batch.shown)
        at = level, alpha = self.growth(batch.shown)
        x, n = self.real_images(batch.x, alpha), len(batch.x)
        with torch.set_grad_enabled(self.together):
            fake = self.fake(n, at)
        penalty = self.penalty(x, fake, level, alpha)
        if self.together:
            verdict = self.D(fake, *at)
            d_loss, g_loss = minimize_together(
                (self.d_loss(self.D(x, *at), verdict, penalty), [opt["D"]]), (self.g_loss(verdict), [opt["G"]])
            )
        else:
            verdict = self.D(fake, *at)
            d_loss = minimize(self.d_loss(self.D(x, *at), verdict, penalty), opt["D"])
            g_loss = minimize(self.g_loss(self.D(self.fake(n, at), *at)), opt["G"])
        size = torch.full((), 4.0 * 2**level, device=x.device)
        return {"d_loss": d_loss, "g_loss": g_loss, "image_size": size, "alpha": torch.full_like(size, alpha)}

    def fake(self, n: int, at: tuple[int, float]) -> Tensor:
        """G(z) at a level and alpha."""
        return self.G(self.sample_latent(n).to(self.device), *at)

    # --- Samples ---

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ N(0, I); G divides it by its length."""
        return torch.randn(n, self.latent_dim, generator=generator)

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.generate(self.sample_latent(n, generator).to(self.device))

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z) as far as it has grown, enlarged to the final size, clipped to [-1, 1]."""
        level, alpha = self.growth(int(self.shown))
        x = self.G(z, level, alpha)
        return F.interpolate(x, scale_factor=2.0 ** (self.top - level), mode="nearest").clamp(-1, 1)
