"""Improved-GAN: a discriminator that names the class, learnt from few labels; a generator that matches its features.

"Improved Techniques for Training GANs",
Tim Salimans, Ian Goodfellow, Wojciech Zaremba, Vicki Cheung, Alec Radford, Xi Chen. NeurIPS 2016, arXiv:1606.03498.
Official code: https://github.com/openai/improved-gan (mnist_svhn_cifar10: train_*_feature_matching.py,
train_cifar_minibatch_discrimination.py, nn.py).

The paper's two semi-supervised models: feature matching, whose classifier is better, and minibatch discrimination,
whose samples are. Where paper and code differ this is the code: the unsupervised loss is halved; features are matched
by mean squares on MNIST and by mean absolutes on SVHN and CIFAR-10 (Section 3.1: squares); D is narrower on SVHN than
on CIFAR-10 (Section 6.3: the same); an image's closeness to itself is no minibatch feature; Adam's epsilon is under
the root.

Unconfirmed: what the models of Table 3 had beside what the code has. Virtual batch norm, historical averaging and
one-sided label smoothing are in none of these scripts, and left out here. The state of the MNIST script that Table 1
was made with: the paper appeared on 10 June 2016. The scripts of 9 and 12 June have Adam at 0.001, falling to 0 over
the last third, and no averaged weights (`early=True, lr=0.001, epochs=300`). The script of 14 June and later has 0.003
to the end and averaged weights (the defaults). The state nearest before the paper is the better guess. The script of 9
June alone also gives G's output layer a data-dependent start; with it D wins here within an epoch and G collapses (20
and 200 labels, bfloat16 and float32), so that the form of 12 June is taken.

Deviations from the paper and its code:
1. Samples are drawn with the running moments of batch norm (momentum 0.1), where the code uses those of the batch.
2. The two batches without labels, of D and of G, are halves of one batch of one stream; in the code each has a
   permutation of its own.
3. The average of D's weights is divided by 1 - 0.9999^t, where the code's starts at zero and stays so: after 180,000
   steps both are the same to 2e-8.
4. The data-dependent start looks at 500 training images of any class; the code's are
   labelled on SVHN and CIFAR-10.
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

AVERAGE_RATE = 1e-4  # a += 1e-4 (p - a)


def lrelu(h: Tensor) -> Tensor:
    return F.leaky_relu(h, 0.2)


# --- Layers (nn.py) ---


class WeightNorm(nn.Module):
    """A layer whose weights are scale theta / |theta|, a length for each output, and a bias (deviation 6).

    train_scale: if False, the scale stays at its start. init_std: standard deviation of the outputs after the
    data-dependent start; 0 means no such start.
    """

    def __init__(self, layer: nn.Module, train_scale: bool = False, init_std: float = 1.0):
        super().__init__()
        assert isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
        self.layer, self.init_std, self.starting = layer, init_std, False
        self.dim = 1 if isinstance(layer, nn.ConvTranspose2d) else 0  # theta's outputs
        ones = torch.ones([n if d == self.dim else 1 for d, n in enumerate(layer.weight.shape)])
        self.bias = nn.Parameter(torch.zeros(ones.numel()))
        self.scale: Tensor
        if train_scale:
            self.scale = nn.Parameter(ones)
        else:
            self.register_buffer("scale", ones)

    def forward(self, x: Tensor) -> Tensor:
        if self.starting and self.init_std:
            self.start(self.linear(x, torch.zeros_like(self.bias)))
        return self.linear(x, self.bias)

    def linear(self, x: Tensor, bias: Tensor) -> Tensor:
        weight = torch._weight_norm(self.layer.weight, self.scale, self.dim)
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, bias)
        if isinstance(self.layer, nn.Conv2d):
            return F.conv2d(x, weight, bias, self.layer.stride, self.layer.padding)
        return F.conv_transpose2d(x, weight, bias, 2, 2, 1)

    @torch.no_grad()
    def start(self, h: Tensor) -> None:
        """Scale and bias with which these outputs have mean 0 and deviation init_std (Salimans and Kingma, 2016)."""
        dims = [d for d in range(h.ndim) if d != 1]
        ratio = self.init_std / h.float().std(dims, correction=0)
        self.bias.copy_(-h.float().mean(dims) * ratio)
        self.scale.mul_(ratio.view_as(self.scale))


class GaussianNoise(nn.Module):
    """h + N(0, std^2) while training."""

    def __init__(self, std: float):
        super().__init__()
        self.std = std

    def forward(self, h: Tensor) -> Tensor:
        return torch.add(h, torch.randn(h.shape, device=h.device), alpha=self.std) if self.training else h


class MinibatchDiscrimination(nn.Module):
    """[h, o(h)]: how close an image is to the others of its batch, by B kernels of C dimensions each (Section 3.2).

    o(h_i)_b = sum over j != i of exp(-|M_ib - M_jb|_1), + bias_b; M_i = T h_i with rows of T of length exp(log_scale).
    """

    def __init__(self, width: int, kernels: int, dims: int):
        super().__init__()
        self.theta = nn.Parameter(0.05 * torch.randn(kernels, dims, width))
        self.log_scale = nn.Parameter(torch.zeros(kernels, dims))
        self.bias = nn.Parameter(torch.full((kernels,), -1.0))
        self.starting = False

    def forward(self, h: Tensor) -> Tensor:
        distances = self.distances(h)
        if self.starting:
            self.start(distances)
            distances = self.distances(h)
        o = (-distances).exp().sum(2).T - 1  # less exp(0), an image's closeness to itself
        return torch.cat([h, o + self.bias], 1)

    def distances(self, h: Tensor) -> Tensor:
        """|M_ib - M_jb|_1, B x N x N."""
        t = self.theta * (self.log_scale.exp() / self.theta.norm(dim=2)).unsqueeze(2)
        m = F.linear(h, t.flatten(0, 1)).unflatten(1, self.log_scale.shape).transpose(0, 1).float()
        return torch.cdist(m, m, p=1.0)

    @torch.no_grad()
    def start(self, distances: Tensor) -> None:
        """Half the mean distance to the nearest other becomes 1, and then o has mean 0."""
        itself = torch.full(distances.shape[1:2], math.inf, device=distances.device).diag()
        half = 0.5 * (distances + itself).amin(2).mean(1)
        self.log_scale.sub_(half.log().unsqueeze(1))
        self.bias.copy_(1 - (-distances / half.view(-1, 1, 1)).exp().sum(2).mean(1))


def normal(layer: nn.Module, std: float) -> nn.Module:
    """The layer with weights from N(0, std^2)."""
    assert isinstance(layer.weight, Tensor)
    nn.init.normal_(layer.weight, 0.0, std)
    return layer


def batch_norm(width: int, norm: type[nn.BatchNorm1d | nn.BatchNorm2d] = nn.BatchNorm1d) -> nn.Module:
    """Batch norm with a shift and no gain."""
    layer = norm(width, eps=1e-6)
    layer.weight = None  # type: ignore[assignment]
    return layer


# --- Permutation-invariant networks (train_mnist_feature_matching.py) ---


class Generator(nn.Module):
    """z -> 500, batch norm, softplus -> 500, batch norm, softplus -> weight-normalised sigmoid."""

    def __init__(self, shape: tuple[int, int, int], latent_dim: int):
        super().__init__()
        self.shape = shape
        self.fc1, self.bn1 = nn.Linear(latent_dim, 500, bias=False), batch_norm(500)
        self.fc2, self.bn2 = nn.Linear(500, 500, bias=False), batch_norm(500)
        out = nn.Linear(500, math.prod(shape), bias=False)
        for layer in (self.fc1, self.fc2, out):
            nn.init.xavier_uniform_(layer.weight)
        self.out = WeightNorm(out, train_scale=True, init_std=0)

    def forward(self, z: Tensor) -> Tensor:
        h = F.softplus(self.bn1(self.fc1(z).float()))
        h = F.softplus(self.bn2(self.fc2(h).float()))
        return 2 * torch.sigmoid(self.out(h).float()).unflatten(1, self.shape) - 1  # the code's images are in [0, 1]


class Discriminator(nn.Module):
    """x -> 1000 -> 500 -> 250 -> 250 -> 250 -> K, weight norm, ReLU, and Gaussian noise on the input of every layer."""

    def __init__(self, shape: tuple[int, int, int], classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        widths = (math.prod(shape), 1000, 500, 250, 250, 250)
        for i, (cin, cout) in enumerate(pairwise(widths)):
            layers += [GaussianNoise(0.5 if i else 0.3), WeightNorm(normal(nn.Linear(cin, cout, bias=False), 0.1))]
            layers += [nn.ReLU()]
        self.body = nn.Sequential(*layers)
        last = normal(nn.Linear(widths[-1], classes, bias=False), 0.1)
        self.out = nn.Sequential(GaussianNoise(0.5), WeightNorm(last, train_scale=True))

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer, before its noise, N x 250."""
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
            return normal(nn.ConvTranspose2d(cin, cout, 5, 2, padding=2, output_padding=1, bias=False), 0.05)

        self.body = nn.Sequential(
            normal(nn.Linear(latent_dim, 512 * 16, bias=False), 0.05), batch_norm(512 * 16), nn.ReLU(),
            nn.Unflatten(1, (512, 4, 4)),
            up(512, 256), batch_norm(256, nn.BatchNorm2d), nn.ReLU(),
            up(256, 128), batch_norm(128, nn.BatchNorm2d), nn.ReLU(),
            WeightNorm(up(128, channels), train_scale=True, init_std=0.1),
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.body(z).float())


class ConvDiscriminator(nn.Module):
    """Nine convolutions with weight norm and leaky ReLU 0.2, the mean over places, and K logits.

    `corruption` of the images: dropout 0.2, or Gaussian noise. kernels: of minibatch discrimination; 0: none.
    """

    def __init__(self, channels: int, classes: int, width: int, corruption: nn.Module, kernels: int = 0):
        super().__init__()

        def conv(cin: int, cout: int, kernel: int = 3, stride: int = 1, padding: int = 0) -> nn.Module:
            layer = normal(nn.Conv2d(cin, cout, kernel, stride, padding, bias=False), 0.05)
            return nn.Sequential(WeightNorm(layer), nn.LeakyReLU(0.2))

        w, v = width, 2 * width
        self.body = nn.Sequential(
            corruption,
            conv(channels, w, padding=1), conv(w, w, padding=1), conv(w, w, stride=2, padding=1), nn.Dropout(0.5),
            conv(w, v, padding=1), conv(v, v, padding=1), conv(v, v, stride=2, padding=1), nn.Dropout(0.5),
            conv(v, v), conv(v, v, kernel=1), conv(v, v, kernel=1),
        )  # fmt: skip
        self.minibatch = MinibatchDiscrimination(v, kernels, 5) if kernels else nn.Identity()
        self.out = WeightNorm(normal(nn.Linear(v + kernels, classes, bias=False), 0.05), True, init_std=0.1)

    def features(self, x: Tensor) -> Tensor:
        """The means over places, N x 2 width."""
        return self.body(x).float().mean((2, 3))

    def forward(self, *batches: Tensor) -> tuple[Tensor, ...]:
        """The K logits of each batch; only minibatch discrimination looks from one image to another."""
        f = self.features(torch.cat(batches)).split([len(x) for x in batches])
        return tuple(self.out(self.minibatch(h)).float() for h in f)


# --- What both models share ---


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
    """log sum_k exp l_k: the logit of D(x) = Z / (Z + 1), where l_{K+1} = 0."""
    return logits.logsumexp(1)


class SemiSupervised(GAN):
    """Losses of D, schedule, start and latent of both models.

    `classes`: K, how many the labels in training have; samples take none. `lr` stays for two thirds of `epochs` of
    `epoch_steps` and falls linearly to 0 in the last; epochs 0: it stays.
    """

    game = None  # G's loss is of features, or falls to 0 where D wins
    G: Any
    D: Any

    def __init__(self, classes: int, latent_dim: int, lr: float, epochs: int, epoch_steps: int):
        super().__init__()
        self.classes, self.latent_dim = classes, latent_dim
        self.lr, self.epochs, self.epoch_steps = lr, epochs, epoch_steps

    def optimizers(self) -> dict[str, Optimizer]:
        return {"D": adam(self.D, self.lr), "G": adam(self.G, self.lr)}

    def set_rates(self, opt: Mapping[str, Optimizer], step: int) -> None:
        """lr min(3 - 3 epoch / epochs, 1): on CIFAR-10 min(3 - epoch / 400, 1) over 1200 epochs"""
        share = step // self.epoch_steps / self.epochs if self.epochs else 0.0
        for optimizer in opt.values():
            optimizer.param_groups[0]["lr"] = self.lr * max(0.0, min(3 - 3 * share, 1.0))

    @torch.no_grad()
    def begin(self, chunks: Iterable[Tensor]) -> None:
        """The data-dependent start of G, from 100 latents, and of D, from 500 images (deviation 4)."""
        x = torch.cat([chunk[torch.randperm(len(chunk))[:100]] for chunk in chunks])
        layers = [m for m in self.modules() if isinstance(m, WeightNorm | MinibatchDiscrimination)]
        for layer in layers:
            layer.starting = True
        self.G(self.sample_latent(100).to(x))
        self.D(x[torch.randperm(len(x))[:500]])
        for layer in layers:
            layer.starting = False

    def labelled_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """-E log p(y | x, y < K + 1) = E [-l_y + log Z(x)]   (Section 5, L_supervised)"""
        return F.cross_entropy(logits, y)

    def unlabelled_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """-1/2 E log D(x) - 1/2 E log(1 - D(G(z))), D = Z / (Z + 1)   (Section 5, L_unsupervised, halved)"""
        return 0.5 * (F.softplus(-log_z(real_logits)).mean() + F.softplus(log_z(fake_logits)).mean())

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
        return {
            "d_loss": d_loss, "labelled_loss": labelled_loss.detach(), "unlabelled_loss": unlabelled_loss.detach()
        }  # fmt: skip

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ U[0, 1]^100"""
        return torch.rand(n, self.latent_dim, generator=generator)

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.generate(self.sample_latent(n, generator).to(self.device))

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z)"""
        return self.G(z)


# --- The models ---


class ImprovedGAN(SemiSupervised):
    """Feature matching (Salimans et al., 2016): the rows of Tables 1 and 2 and of SVHN.

    `image_size`: 28 for the permutation-invariant networks, or 32 for the convolutional ones, where `width` is the maps
    of D's first three layers: 96 on CIFAR-10, 64 on SVHN. `early`: follow the MNIST script of 9 and 12 June 2016: D
    classifies with its own weights instead of their average.
    """

    def __init__(
        self, image_size: int = 28, channels: int = 1, classes: int = 10, latent_dim: int = 100, width: int = 96,
        lr: float = 3e-3, epochs: int = 0, epoch_steps: int = 600, early: bool = False,
    ):  # fmt: skip
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
        if self.D_average is not None:
            self.average(batch.step)

        with torch.no_grad():
            real_features = self.D.features(g_images)
        fake_features = self.D.features(self.G(self.sample_latent(len(g_images)).to(g_images)))
        losses["g_loss"] = minimize(self.g_loss(real_features, fake_features), opt["G"])
        return losses

    @torch.no_grad()
    def average(self, step: int) -> None:
        """a += 1e-4 (p - a), over 1 - 0.9999^t: an average of trained weights alone (deviation 3)."""
        weight = AVERAGE_RATE / -math.expm1((step + 1) * math.log1p(-AVERAGE_RATE))
        torch._foreach_lerp_(list(self.D_average.parameters()), list(self.D.parameters()), weight)

    def classify(self, x: Tensor) -> Tensor:
        """K logits of D, with its averaged weights unless `early`, N x K."""
        return (self.D if self.D_average is None else self.D_average)(x)[0]


class ImprovedGANMinibatch(SemiSupervised):
    """Minibatch discrimination (Salimans et al., 2016): the samples of Table 3.

    `width`: maps of D's first three layers. `kernels`: of minibatch discrimination. `g_steps`: updates of G after each
    of D.
    """

    def __init__(
        self, image_size: int = 32, channels: int = 3, classes: int = 10, latent_dim: int = 100, width: int = 96,
        kernels: int = 100, g_steps: int = 3, lr: float = 3e-4, epochs: int = 0, epoch_steps: int = 500,
    ):  # fmt: skip
        super().__init__(classes, latent_dim, lr, epochs, epoch_steps)
        if image_size != 32:
            raise ValueError(f"image_size must be 32, not {image_size}")
        self.image_shape, self.g_steps = (channels, image_size, image_size), g_steps
        self.G = ConvGenerator(channels, latent_dim)
        self.D = ConvDiscriminator(channels, classes, width, GaussianNoise(0.2), kernels)

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
