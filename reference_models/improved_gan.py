"""Improved-GAN: a discriminator that names the class, learnt from few labels; a generator that matches its features.

"Improved Techniques for Training GANs",
Tim Salimans, Ian Goodfellow, Wojciech Zaremba, Vicki Cheung, Alec Radford, Xi Chen. NeurIPS 2016, arXiv:1606.03498.
Official code: https://github.com/openai/improved-gan (mnist_svhn_cifar10: train_*_feature_matching.py,
train_cifar_minibatch_discrimination.py, nn.py).

The two semi-supervised models of the paper are here: feature matching, whose classifier is better, and minibatch
discrimination, whose samples are. Where paper and code differ, this file follows the code: the unsupervised loss is
halved; features are matched by mean squares on MNIST and by mean absolutes on SVHN and CIFAR-10 (Section 3.1: squares);
D is narrower on SVHN than on CIFAR-10 (Section 6.3: the same); an image's closeness to itself is no minibatch feature;
Adam's epsilon is under the root.

Unconfirmed:
- the models of Table 3. The scripts lack virtual batch norm, historical averaging and one-sided label smoothing;
- the state of the MNIST script that made Table 1. The paper appeared on 10 June 2016. The scripts of 9 and 12 June have
  Adam at 0.001, falling to 0 over the last third, and no averaged weights (`early`, lr 0.001, epochs 300). The script
  of 14 June and later has 0.003 to the end and averaged weights (the defaults). The state nearest to the paper is the
  better guess. The script of 9 June alone also has a data-dependent start of G's output layer; with it D wins here
  within an epoch and G collapses (20 and 200 labels, bfloat16 and float32), so `early` is the form of 12 June.

Deviations from the paper and its code:
1. Samples are drawn with the running moments of batch norm (momentum 0.1), where the code uses those of the batch.
2. The two batches without labels, of D and of G, are halves of one batch of one stream; in the code each has a
   permutation of its own.
3. The average of D's weights is divided by 1 - 0.9999^t, where the code's starts at zero and stays so: after 180,000
   steps both are the same to 2e-8.
4. The data-dependent start looks at 500 training images of any class; the code's are labelled on SVHN and CIFAR-10.
5. Pixels are divided by 127.5, on CIFAR-10 too, where the code divides by 128.
6. The lengths of weight norm are exact, without the code's 1e-6 under the root.
7. The minibatch model has no classifier here: its answer depends on the other images of the batch.
"""

import copy
import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ganbench.gan import GAN, Batch, minimize
from reference_models.layers import (
    GaussianNoise,
    MinibatchDiscrimination,
    StartedWeightNorm,
    data_dependent_start,
    normal,
    shift_norm,
    up_conv,
)

AVERAGE_RATE = 1e-4  # a += 1e-4 (p - a)

# --- Permutation-invariant networks (train_mnist_feature_matching.py): images in [0, 1] inside ---


class Generator(nn.Module):
    """z -> 500, batch norm, softplus -> 500, batch norm, softplus -> weight-normalised sigmoid."""

    def __init__(self, shape: tuple[int, int, int], latent_dim: int):
        super().__init__()
        self.shape = shape
        self.fc1, self.bn1 = nn.Linear(latent_dim, 500, bias=False), shift_norm(500)
        self.fc2, self.bn2 = nn.Linear(500, 500, bias=False), shift_norm(500)
        out = nn.Linear(500, math.prod(shape), bias=False)
        for layer in (self.fc1, self.fc2, out):
            nn.init.xavier_uniform_(layer.weight)
        self.out = StartedWeightNorm(out, train_scale=True, init_std=0)

    def forward(self, z: Tensor) -> Tensor:
        h = F.softplus(self.bn1(self.fc1(z).float()))
        h = F.softplus(self.bn2(self.fc2(h).float()))
        return 2 * torch.sigmoid(self.out(h).float()).unflatten(1, self.shape) - 1


class Discriminator(nn.Module):
    """x -> 1000 -> 500 -> 250 -> 250 -> 250 -> K: weight norm, ReLU, and Gaussian noise on the input of every layer."""

    def __init__(self, shape: tuple[int, int, int], classes: int):
        super().__init__()

        def layer(cin: int, cout: int, noise: float, train_scale: bool = False) -> list[nn.Module]:
            linear = normal(nn.Linear(cin, cout, bias=False), 0.1)
            return [GaussianNoise(noise, fused=True), StartedWeightNorm(linear, train_scale)]

        layers: list[nn.Module] = []
        for i, (cin, cout) in enumerate(pairwise((math.prod(shape), 1000, 500, 250, 250, 250))):
            layers += [*layer(cin, cout, noise=0.5 if i else 0.3), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.out = nn.Sequential(*layer(250, classes, noise=0.5, train_scale=True))

    def features(self, x: Tensor) -> Tensor:
        """f(x): the last hidden layer, before its noise, N x 250."""
        return self.body((x.flatten(1) + 1) / 2).float()

    def forward(self, *batches: Tensor) -> tuple[Tensor, ...]:
        """The K logits of each batch."""
        logits = self.out(self.features(torch.cat(batches))).float()
        return logits.split([len(x) for x in batches])


# --- Convolutional networks (train_svhn_*.py, train_cifar_*.py) ---


class ConvGenerator(nn.Module):
    """z -> 4x4x512 -> 8x8x256 -> 16x16x128 -> 32x32: transposed 5x5 convolutions, batch norm, ReLU; tanh."""

    def __init__(self, channels: int, latent_dim: int):
        super().__init__()

        def up(cin: int, cout: int) -> nn.Module:
            return normal(up_conv(cin, cout, bias=False), 0.05)

        self.body = nn.Sequential(
            normal(nn.Linear(latent_dim, 512 * 16, bias=False), 0.05), shift_norm(512 * 16), nn.ReLU(),
            nn.Unflatten(1, (512, 4, 4)),
            up(512, 256), shift_norm(256, nn.BatchNorm2d), nn.ReLU(),
            up(256, 128), shift_norm(128, nn.BatchNorm2d), nn.ReLU(),
            StartedWeightNorm(up(128, channels), train_scale=True, init_std=0.1),
        )

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.body(z).float())


class ConvDiscriminator(nn.Module):
    """Nine convolutions with weight norm and leaky ReLU 0.2, the mean over pixels, and K logits.

    corruption: layer on the images, dropout 0.2 or Gaussian noise. kernels: of minibatch discrimination; 0: none.
    """

    def __init__(self, channels: int, classes: int, width: int, corruption: nn.Module, kernels: int = 0):
        super().__init__()

        def conv(cin: int, cout: int, kernel: int = 3, stride: int = 1, padding: int = 0) -> nn.Module:
            layer = normal(nn.Conv2d(cin, cout, kernel, stride, padding, bias=False), 0.05)
            return nn.Sequential(StartedWeightNorm(layer), nn.LeakyReLU(0.2))

        w, v = width, 2 * width
        self.body = nn.Sequential(
            corruption,
            conv(channels, w, padding=1), conv(w, w, padding=1), conv(w, w, stride=2, padding=1), nn.Dropout(0.5),
            conv(w, v, padding=1), conv(v, v, padding=1), conv(v, v, stride=2, padding=1), nn.Dropout(0.5),
            conv(v, v), conv(v, v, kernel=1), conv(v, v, kernel=1),
        )
        self.minibatch = MinibatchDiscrimination(v, kernels, 5) if kernels else nn.Identity()
        out = normal(nn.Linear(v + kernels, classes, bias=False), 0.05)
        self.out = StartedWeightNorm(out, train_scale=True, init_std=0.1)

    def features(self, x: Tensor) -> Tensor:
        """f(x): the means over pixels, N x 2 width."""
        return self.body(x).float().mean((2, 3))

    def forward(self, *batches: Tensor) -> tuple[Tensor, ...]:
        """The K logits of each batch; only minibatch discrimination looks from one image to another."""
        f = self.features(torch.cat(batches)).split([len(x) for x in batches])
        return tuple(self.out(self.minibatch(h)).float() for h in f)


# --- The models ---


def adam(net: nn.Module, lr: float) -> Adam:
    """Adam with epsilon under the root: p -= lr m / sqrt(v + 1e-8)   (nn.py, adam_updates)"""
    optimizer = Adam(net.parameters(), lr, betas=(0.5, 0.999), eps=0.0)
    optimizer.register_step_pre_hook(add_epsilon)
    return optimizer


def add_epsilon(optimizer: Optimizer, *_: object) -> None:
    """Add 1e-8 (1 - b2) / b2 to the running v, which adds 1e-8 to the v that the next step corrects for its start."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if not optimizer.state[p]:  # before the first step
                step = torch.zeros((), device=p.device if group["fused"] else "cpu")
                optimizer.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        b2 = group["betas"][1]
        torch._foreach_add_([optimizer.state[p]["exp_avg_sq"] for p in group["params"]], 1e-8 * (1 - b2) / b2)


def log_z(logits: Tensor) -> Tensor:
    """log Z(x) = log sum_k exp l_k(x): the logit of D(x) = Z / (Z + 1), because l_{K+1} = 0   (Section 5)"""
    return logits.logsumexp(1)


class SemiSupervised(GAN):
    """Losses and step of D, optimisers, schedule, start and latent of both models.

    classes: K, the number of classes of the labels in training; samples take none. The learning rate stays at `lr` for
    two thirds of `epochs` (of `epoch_steps` each) and falls linearly to 0 in the last; with epochs = 0 it stays.
    """

    game = None  # G's loss is of features, or falls to 0 where D wins
    G: Any
    D: Any

    def __init__(self, classes: int, latent_dim: int, lr: float, epochs: int, epoch_steps: int):
        super().__init__()
        self.classes, self.latent_dim = classes, latent_dim
        self.lr, self.epochs, self.epoch_steps = lr, epochs, epoch_steps

    @torch.no_grad()
    def begin(self, chunks: Iterable[Tensor]) -> None:
        """The data-dependent start of G, from 100 latents, and of D, from 500 images (deviation 4)."""
        x = torch.cat([chunk[torch.randperm(len(chunk))[:100]] for chunk in chunks])
        with data_dependent_start(self):
            self.G(self.sample_latent(100).to(x))
            self.D(x[torch.randperm(len(x))[:500]])

    def labelled_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """L_supervised = -E log p(y | x, y < K + 1) = E [-l_y(x) + log Z(x)]   (Section 5)"""
        return F.cross_entropy(logits, y)

    def unlabelled_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """1/2 L_unsupervised = -1/2 E log D(x) - 1/2 E log(1 - D(G(z)))   (Section 5, halved as in the code)"""
        return 0.5 * (F.softplus(-log_z(real_logits)).mean() + F.softplus(log_z(fake_logits)).mean())

    def optimizers(self) -> dict[str, Optimizer]:
        return {"D": adam(self.D, self.lr), "G": adam(self.G, self.lr)}

    def set_rates(self, opt: Mapping[str, Optimizer], step: int) -> None:
        """lr min(3 - 3 epoch / epochs, 1): on CIFAR-10 min(3 - epoch / 400, 1) over 1200 epochs"""
        share = step // self.epoch_steps / self.epochs if self.epochs else 0.0
        for optimizer in opt.values():
            optimizer.param_groups[0]["lr"] = self.lr * max(0.0, min(3 - 3 * share, 1.0))

    def d_step(self, batch: Batch, u: Tensor, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        """D goes down both losses: of the labelled images, and of the unlabelled `u` against as many of G."""
        if batch.y is None:
            raise ValueError("Improved-GAN needs labels")
        with torch.no_grad():
            fake = self.G(self.sample_latent(len(u)).to(u))
        logits, real_logits, fake_logits = self.D(batch.x, u, fake)
        labelled_loss = self.labelled_loss(logits, batch.y)
        unlabelled_loss = self.unlabelled_loss(real_logits, fake_logits)
        d_loss = minimize(labelled_loss + unlabelled_loss, opt["D"])
        return {"d_loss": d_loss, "labelled_loss": labelled_loss.detach(), "unlabelled_loss": unlabelled_loss.detach()}

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ U[0, 1]^100"""
        return torch.rand(n, self.latent_dim, generator=generator)

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.generate(self.sample_latent(n, generator).to(self.device))

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z)"""
        return self.G(z)


class ImprovedGAN(SemiSupervised):
    """Feature matching (Salimans et al., 2016): the rows of Tables 1 and 2 and of SVHN.

    image_size: 28 for the permutation-invariant networks, or 32 for the convolutional ones. width: maps of the first
    three layers of the convolutional D, 96 on CIFAR-10 and 64 on SVHN. early: follow the MNIST script of 12 June 2016,
    in which D classifies with its own weights instead of their average.
    """

    def __init__(
        self, image_size: int = 28, channels: int = 1, classes: int = 10, latent_dim: int = 100, width: int = 96,
        lr: float = 3e-3, epochs: int = 0, epoch_steps: int = 600, early: bool = False,
    ):
        super().__init__(classes, latent_dim, lr, epochs, epoch_steps)
        if image_size not in (28, 32):
            raise ValueError(f"image_size must be 28 or 32, not {image_size}")
        if early and image_size != 28:
            raise ValueError("early is a form of the networks for MNIST: image_size must be 28")
        self.image_shape = (channels, image_size, image_size)
        if image_size == 28:
            self.G = Generator(self.image_shape, latent_dim)
            self.D = Discriminator(self.image_shape, classes)
        else:
            self.G = ConvGenerator(channels, latent_dim)
            self.D = ConvDiscriminator(channels, classes, width, nn.Dropout(0.2))
        self.D_average = None if early else copy.deepcopy(self.D).requires_grad_(False)

    def begin(self, chunks: Iterable[Tensor]) -> None:
        super().begin(chunks)
        if self.D_average is not None:
            self.D_average.load_state_dict(self.D.state_dict())

    def g_loss(self, real_features: Tensor, fake_features: Tensor) -> Tensor:
        """|E f(x) - E f(G(z))|^2 (Section 3.1), as a mean over f; of the convolutional D mean |E f(x) - E f(G(z))|"""
        difference = real_features.mean(0) - fake_features.mean(0)
        return difference.square().mean() if self.image_shape[1] == 28 else difference.abs().mean()

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        if batch.u is None:
            raise ValueError("Improved-GAN needs images without labels beside those with")
        self.set_rates(opt, batch.step)
        d_images, g_images = batch.u.chunk(2)  # deviation 2
        losses = self.d_step(batch, d_images, opt)
        self.average(batch.step)

        with torch.no_grad():
            real_features = self.D.features(g_images)
        fake_features = self.D.features(self.G(self.sample_latent(len(g_images)).to(g_images)))
        losses["g_loss"] = minimize(self.g_loss(real_features, fake_features), opt["G"])
        return losses

    @torch.no_grad()
    def average(self, step: int) -> None:
        """a += 1e-4 (p - a), over 1 - 0.9999^t: an average of trained weights alone (deviation 3)."""
        if self.D_average is not None:
            weight = AVERAGE_RATE / -math.expm1((step + 1) * math.log1p(-AVERAGE_RATE))
            torch._foreach_lerp_(list(self.D_average.parameters()), list(self.D.parameters()), weight)

    def classify(self, x: Tensor) -> Tensor:
        """K logits of D, with its averaged weights unless `early`, N x K."""
        return (self.D if self.D_average is None else self.D_average)(x)[0]


class ImprovedGANMinibatch(SemiSupervised):
    """Minibatch discrimination (Salimans et al., 2016): the samples of Table 3.

    width: maps of D's first three layers. kernels: of minibatch discrimination. g_steps: updates of G after each of D.
    """

    def __init__(
        self, image_size: int = 32, channels: int = 3, classes: int = 10, latent_dim: int = 100, width: int = 96,
        kernels: int = 100, g_steps: int = 3, lr: float = 3e-4, epochs: int = 0, epoch_steps: int = 500,
    ):
        super().__init__(classes, latent_dim, lr, epochs, epoch_steps)
        if image_size != 32:
            raise ValueError(f"image_size must be 32, not {image_size}")
        self.image_shape, self.g_steps = (channels, image_size, image_size), g_steps
        self.G = ConvGenerator(channels, latent_dim)
        self.D = ConvDiscriminator(channels, classes, width, GaussianNoise(0.2, fused=True), kernels)

    def g_loss(self, fake_logits: Tensor) -> Tensor:
        """E log(1 - D(G(z))), the minimax form"""
        return -F.softplus(log_z(fake_logits)).mean()

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        if batch.u is None:
            raise ValueError("Improved-GAN needs images without labels beside those with")
        self.set_rates(opt, batch.step)
        losses = self.d_step(batch, batch.u, opt)
        for _ in range(self.g_steps):
            (fake_logits,) = self.D(self.G(self.sample_latent(len(batch.u)).to(batch.u)))
            losses["g_loss"] = minimize(self.g_loss(fake_logits), opt["G"])
        return losses
