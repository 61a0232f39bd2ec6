"""LAPGAN and CC-LAPGAN: one conditional GAN for each level of a Laplacian pyramid.

"Deep Generative Image Models using a Laplacian Pyramid of Adversarial Networks",
Emily Denton, Soumith Chintala, Arthur Szlam, Rob Fergus. NIPS 2015, arXiv:1506.05751.
Official code: https://github.com/facebook/eyescream (Torch7; folders cifar and lsun).

I_0 is the image and I_{k+1} = d(I_k). Level k < K learns the difference h_k = I_k - l_k given l_k = u(I_{k+1})
(Equation 3); the coarsest level learns I_K itself. With one level, the model is the code's GAN, the paper's baseline.
With `num_classes` it is CC-LAPGAN.

The levels share no weights, and each is conditioned on real images only. One training step trains every level once, on
one batch. It is the same as training them apart: the sum of the levels' losses has each level's own gradient, and SGD
treats every weight alone. Only the order of the data is shared.

Unconfirmed, because the paper's text was not at hand:
- the hidden layers at 8 x 8 (1,200 units in G and 600 in D; the code's defaults are 8,000 and 1,600) and the planes of
  the other levels (here 64, the code's default);
- all of STL-10 but the sizes; the coarsest level of LSUN, for which the code has no script (here as at 8 x 8);
- the numbers of the equations, and the filters d and u. Here they are the code's `image.scale`: d averages over areas,
  u is bilinear with the corners aligned. The paper speaks of blurring and decimating.

Deviations from the paper and its code:
1. A batch of n images gives n / 2 real pairs and n / 2 conditions of fakes for D, and its n images are the conditions
   for G. The code draws all of these independently. Its coarsest level has batches of 100, the others of 128; here all
   levels have one.
2. I_k is d of I_{k-1}, as in the paper. The code reduces the full image to each size.
3. An epoch of the schedule is `steps_per_epoch` steps at each level. The code's is 704 steps, and 900 at the coarsest.
4. Samples are clamped to [-1, 1] after the standardisation is undone. The last weights are evaluated; the authors keep
   the best ones by a nearest-neighbour distance on validation images.
5. `large`: both networks step on each batch. The code for LSUN leaves out D or G by a rule on D's two losses.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from ganbench.gan import GAN, Batch, minimize
from reference_models.layers import normal_start, with_label

Condition = Tensor | None

# --- The pyramid ---


def area_weights(n: int, m: int) -> Tensor:
    """The reduction of n pixels to m means over equal areas, as a matrix m x n: d(I) = R I R^T for every channel.

    >>> area_weights(3, 2)
    tensor([[0.6667, 0.3333, 0.0000],
            [0.0000, 0.3333, 0.6667]])
    """
    edges = torch.arange(m + 1, dtype=torch.float64)[:, None] * n / m - torch.arange(n, dtype=torch.float64)
    return (edges.clamp(0, 1).diff(dim=0) * m / n).float()


def enlarge(image: Tensor, side: int) -> Tensor:
    """u: bilinear, with the corners aligned."""
    return F.interpolate(image, size=(side, side), mode="bilinear", align_corners=True)


class LabelPlane(nn.Module):
    """Join the label to a map as one plane: one-hot y -> linear -> ReLU -> 1 x S x S (CC-LAPGAN)."""

    def __init__(self, side: int, classes: int):
        super().__init__()
        self.side, self.linear = side, nn.Linear(classes, side * side)

    def forward(self, h: Tensor, y: Condition) -> Tensor:
        return torch.cat([h, F.relu(self.linear(y)).view(-1, 1, self.side, self.side)], 1)


# --- Networks of the coarsest level (train_cifar.lua, train_cifar_classcond.lua) ---


class CoarsestGenerator(nn.Module):
    """[z, y] -> two hidden layers, ReLU and sigmoid (with labels: ReLU twice) -> I_K."""

    def __init__(self, shape: tuple[int, int, int], classes: int, latent_dim: int, units: int):
        super().__init__()
        self.hidden1, self.hidden2 = nn.Linear(latent_dim + classes, units), nn.Linear(units, units)
        self.out = nn.Linear(units, shape[0] * shape[1] * shape[2])
        self.shape, self.squash = shape, torch.relu if classes else torch.sigmoid
        if not classes:  # with labels the code keeps Torch's initialisation
            normal_start(self, 0.05)

    def forward(self, z: Tensor, low: Condition, y: Condition) -> Tensor:
        h = F.relu(self.hidden1(with_label(z, y)))
        return self.out(self.squash(self.hidden2(h))).unflatten(1, self.shape)


class CoarsestDiscriminator(nn.Module):
    """[I_K, y] -> two hidden layers with ReLU and dropout -> logit."""

    def __init__(self, shape: tuple[int, int, int], classes: int, units: int):
        super().__init__()
        layers: list[nn.Module] = []
        for width in (shape[0] * shape[1] * shape[2] + classes, units):
            layers += [nn.Linear(width, units), nn.ReLU(), nn.Dropout()]
        self.body = nn.Sequential(*layers, nn.Linear(units, 1))
        if not classes:
            normal_start(self, 0.005)

    def forward(self, h: Tensor, low: Condition, y: Condition) -> Tensor:
        return self.body(with_label(h.flatten(1), y)).squeeze(1)  # N


# --- Networks of the other levels (train_cifar_coarse_to_fine.lua and its classcond variant) ---


def same(cin: int, cout: int, kernel: int, groups: int = 1, bias: bool = True) -> nn.Conv2d:
    """Convolution that keeps the size."""
    return nn.Conv2d(cin, cout, kernel, padding=kernel // 2, groups=groups, bias=bias)


class Generator(nn.Module):
    """[z, l, y] -> 7x7, ReLU, 7x7, ReLU, 5x5 -> difference h; z is one plane of noise."""

    def __init__(self, channels: int, side: int, classes: int, planes: int):
        super().__init__()
        self.join = LabelPlane(side, classes) if classes else None
        cin = 1 + channels + bool(classes)
        self.body = nn.Sequential(
            same(cin, planes, 7), nn.ReLU(), same(planes, planes, 7), nn.ReLU(), same(planes, channels, 5)
        )

    def forward(self, z: Tensor, low: Tensor, y: Condition) -> Tensor:
        h = torch.cat([z.view(-1, 1, *low.shape[2:]), low], 1)
        return self.body(self.join(h, y) if self.join else h)


class Discriminator(nn.Module):
    """[l + h, y] -> 5x5, ReLU, 5x5 of stride 2, ReLU, dropout, linear -> logit; no padding."""

    def __init__(self, channels: int, side: int, classes: int, planes: int):
        super().__init__()
        self.join = LabelPlane(side, classes) if classes else None
        end = (side - 4 - 5) // 2 + 1
        self.body = nn.Sequential(
            nn.Conv2d(channels + bool(classes), planes, 5), nn.ReLU(), nn.Conv2d(planes, planes, 5, stride=2),
            nn.Flatten(), nn.ReLU(), nn.Dropout(), nn.Linear(planes * end * end, 1),
        )

    def forward(self, h: Tensor, low: Tensor, y: Condition) -> Tensor:
        image = low + h
        return self.body(self.join(image, y) if self.join else image).squeeze(1)  # N


# --- The large networks of LSUN (lsun/model.lua) ---


class PairNorm(nn.Module):
    """L2 norm over pairs of neighbouring planes: N x 2C x H x W -> N x C x H x W."""

    def forward(self, h: Tensor) -> Tensor:
        return h.unflatten(1, (-1, 2)).square().sum(2).clamp(min=1e-12).sqrt()


class LargeGenerator(nn.Module):
    """[z, l] -> five convolutions of 64, 368, 128, 224 and C planes, grouped; batch norm without gain after ReLU."""

    def __init__(self, channels: int, side: int, classes: int, planes: int):
        super().__init__()

        def layer(cin: int, cout: int, kernel: int, groups: int = 1, drop: bool = False) -> list[nn.Module]:
            norm = nn.BatchNorm2d(cout, affine=False)
            return [same(cin, cout, kernel, groups), nn.ReLU(), norm, *([nn.Dropout2d()] if drop else [])]

        self.body = nn.Sequential(
            *layer(1 + channels, 64, 7), *layer(64, 368, 7, 4, drop=True), *layer(368, 128, 7, 4), PairNorm(),
            *layer(64, 224, 5, 2, drop=True), same(224, channels, 7, bias=False),  # batch norm would undo a bias
            nn.BatchNorm2d(channels, affine=False),
        )

    def forward(self, z: Tensor, low: Tensor, y: Condition) -> Tensor:
        return self.body(torch.cat([z.view(-1, 1, *low.shape[2:]), low], 1))


class LargeDiscriminator(nn.Module):
    """l + h -> 48 3x3, 448 5x5 and 416 7x7 planes, grouped, ReLU, linear -> logit; no padding where there is room."""

    def __init__(self, channels: int, side: int, classes: int, planes: int):
        super().__init__()
        pad = int(side <= 12)  # at 8 x 8 the three layers would take more than there is
        end = side if pad else side - 12
        self.body = nn.Sequential(
            nn.Conv2d(channels, 48, 3, padding=pad), nn.ReLU(), nn.Conv2d(48, 448, 5, padding=2 * pad, groups=4),
            nn.ReLU(), nn.Conv2d(448, 416, 7, padding=3 * pad, groups=16), nn.ReLU(), nn.Flatten(),
            nn.Linear(416 * end * end, 1),
        )

    def forward(self, h: Tensor, low: Tensor, y: Condition) -> Tensor:
        return self.body(low + h).squeeze(1)  # N


# --- The model ---


class LAPGAN(GAN):
    """LAPGAN, and CC-LAPGAN with labels (Denton, Chintala, Szlam, Fergus, 2015).

    sides: sizes of the levels from I_K to I_0. g_units, d_units: of the coarsest level's hidden layers; g_planes,
    d_planes: of the other levels'. large: LSUN's networks there. momentum: of all levels but the coarsest, which begins
    at 0. Index 0 of G and D is the coarsest level.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, sides: tuple[int, ...] = (8, 14, 28), channels: int = 3, num_classes: int = 0, latent_dim: int = 100,
        g_units: int = 1200, d_units: int = 600, g_planes: int = 64, d_planes: int = 64, large: bool = False,
        lr: float = 0.02, lr_decay: float = 1.000004, momentum: float = 0.5, steps_per_epoch: int = 704,
    ):
        super().__init__()
        least = [1, *[8 if large else 9] * len(sides[1:])]
        if not sides or list(sides) != sorted(set(sides)) or any(a < b for a, b in zip(sides, least, strict=True)):
            raise ValueError(f"sides must grow, from 9 on above the coarsest (large: 8), not {tuple(sides)}")
        if large and num_classes:
            raise ValueError("the large networks take no labels: num_classes must be 0")
        self.sides, self.num_classes, self.latent_dim = tuple(sides), num_classes, latent_dim
        self.image_shape = (channels, sides[-1], sides[-1])
        self.lr, self.lr_decay, self.momentum, self.steps_per_epoch = lr, lr_decay, momentum, steps_per_epoch
        coarsest, finer = (channels, sides[0], sides[0]), sides[1:]
        g, d = (LargeGenerator, LargeDiscriminator) if large else (Generator, Discriminator)
        self.G = nn.ModuleList([CoarsestGenerator(coarsest, num_classes, latent_dim, g_units)])
        self.G.extend(g(channels, side, num_classes, g_planes) for side in finer)
        self.D = nn.ModuleList([CoarsestDiscriminator(coarsest, num_classes, d_units)])
        self.D.extend(d(channels, side, num_classes, d_planes) for side in finer)
        self.register_buffer("mean", torch.zeros(self.image_shape))
        self.register_buffer("std", torch.ones(self.image_shape))
        for small, side in pairwise(sides):
            self.register_buffer(f"reduce{small}", area_weights(side, small), persistent=False)

    def begin(self, chunks: Iterable[Tensor]) -> None:
        """Mean and deviation of every pixel over the training images (normalize of image.lua)."""
        n, total, squares = 0, torch.zeros(()).double(), torch.zeros(()).double()
        for chunk in chunks:
            x = chunk.double().cpu()
            n, total, squares = n + len(x), total + x.sum(0), squares + x.square().sum(0)
        mean = total / n
        self.mean.copy_(mean)
        self.std.copy_((squares / n - mean**2).clamp(min=0).sqrt() + 1e-7)

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """I_K, ..., I_0 of images x, standardised: each a mean over areas of the next."""
        levels = [(x - self.mean) / self.std]
        for small in reversed(self.sides[:-1]):
            weights = getattr(self, f"reduce{small}")
            levels.append(weights @ levels[-1] @ weights.T)
        return levels[::-1]

    def lows(self, levels: list[Tensor]) -> list[Condition]:
        """l_k = u(I_{k+1}) for each level; None at the coarsest."""
        return [None, *(enlarge(image, side) for image, side in zip(levels, self.sides[1:], strict=False))]

    def d_loss(self, real_logit: Tensor, fake_logit: Tensor) -> Tensor:
        """-1/2 E log D_k(h_k, l_k) - 1/2 E log(1 - D_k(G_k(z_k, l_k), l_k))   (half of Equation 2, as in the code)"""
        return 0.5 * (F.softplus(-real_logit).mean() + F.softplus(fake_logit).mean())

    def g_loss(self, fake_logit: Tensor) -> Tensor:
        """-E log D_k(G_k(z_k, l_k), l_k), the non-saturating form, as in the code"""
        return F.softplus(-fake_logit).mean()

    def optimizers(self) -> dict[str, Optimizer]:
        """A group of each optimiser is a level."""
        def sgd(levels: Any) -> SGD:
            return SGD([{"params": list(net.parameters())} for net in levels], self.lr)

        return {"D": sgd(self.D), "G": sgd(self.G)}

    def set_rates(self, opt: Mapping[str, Optimizer], step: int) -> None:
        """lr / decay^epoch from 1e-6 on; momentum + .0008 an epoch up to .7, with the dampening of Torch's SGD."""
        epoch = step // self.steps_per_epoch
        for optimizer in opt.values():
            for k, group in enumerate(optimizer.param_groups):
                momentum = min((self.momentum if k else 0.0) + 0.0008 * epoch, 0.7)
                rate = max(self.lr * self.lr_decay**-epoch, 1e-6)
                group.update(lr=rate, momentum=momentum, dampening=momentum)

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        """Every level steps once, D and then G (Algorithm of Goodfellow et al. for each pair of networks)."""
        self.set_rates(opt, batch.step)
        levels, y, n = self.pyramid(batch.x), self.one_hot(batch.y), len(batch.x) // 2
        lows = self.lows(levels)
        first, second = slice(0, n), slice(n, 2 * n)  # real pairs, conditions of fakes

        def of(rows: slice, *conditions: Condition) -> list[Condition]:
            return [None if c is None else c[rows] for c in conditions]
        d_losses, g_losses = {}, {}
        noise = self.split(self.sample_latent(n).to(batch.x))
        for side, image, low, z, g, d in zip(self.sides, levels, lows, noise, self.G, self.D, strict=True):
            h = image if low is None else image - low
            with torch.no_grad():
                fake = g(z, *of(second, low, y))
            real_logit, fake_logit = d(h[first], *of(first, low, y)), d(fake, *of(second, low, y))
            d_losses[f"d{side}_loss"] = self.d_loss(real_logit, fake_logit)
        d_loss = minimize(torch.stack([*d_losses.values()]).sum(), opt["D"])
        noise = self.split(self.sample_latent(len(batch.x)).to(batch.x))
        for side, low, z, g, d in zip(self.sides, lows, noise, self.G, self.D, strict=True):
            g_losses[f"g{side}_loss"] = self.g_loss(d(g(z, low, y), low, y))
        g_loss = minimize(torch.stack([*g_losses.values()]).sum(), opt["G"])
        k, parts = len(self.sides), {name: loss.detach() for name, loss in (d_losses | g_losses).items()}
        return {"d_loss": d_loss / k, "g_loss": g_loss / k, **parts}

    def one_hot(self, y: Tensor | None) -> Condition:
        """int64 N to float N x K; None where the model takes no labels."""
        return F.one_hot(y, self.num_classes).float() if self.num_classes and y is not None else None

    def split(self, z: Tensor) -> tuple[Tensor, ...]:
        """z of each level, the coarsest first: N x latent_dim, then N x side^2."""
        return z.split([self.latent_dim, *(side * side for side in self.sides[1:])], 1)

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z_K ~ U(-1, 1)^100 and a plane of U(-1, 1) for each other level, joined: N x d"""
        d = self.latent_dim + sum(side * side for side in self.sides[1:])
        return torch.rand(n, d, generator=generator) * 2 - 1

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Images of the classes `y`; CC-LAPGAN without them draws classes uniformly."""
        if self.num_classes and y is None:
            y = torch.randint(self.num_classes, (n,), generator=generator).to(self.device)
        return self.generate(self.sample_latent(n, generator).to(self.device), y)

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """I_K = G_K(z_K), then I_k = u(I_{k+1}) + G_k(z_k, u(I_{k+1})) down to k = 0   (Equation 5)"""
        image, label = None, self.one_hot(y)
        for side, z_k, g in zip(self.sides, self.split(z), self.G, strict=True):
            low = None if image is None else enlarge(image, side)
            h = g(z_k, low, label).float()
            image = h if low is None else low + h
        return (self.mean + self.std * image).clamp(-1, 1)

    def sample_level(self, level: int, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """u(I_{k+1}) + G_k(z_k, u(I_{k+1})) for the true I_{k+1} of images x, standardised; G_K(z_K) at level 0.

        Raises ValueError for CC-LAPGAN.
        """
        if self.num_classes:
            raise ValueError("a level of CC-LAPGAN also depends on the label, not on the image alone")
        side = self.sides[level]
        width = side * side if level else self.latent_dim
        z = (torch.rand(len(x), width, generator=generator) * 2 - 1).to(x)
        low = enlarge(self.pyramid(x)[level - 1], side) if level else None
        h = self.G[level](z, low, None)
        return h if low is None else low + h
