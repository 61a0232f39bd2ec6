"""Triple-GAN: a classifier and a generator play against one discriminator of pairs of image and label.

"Triple Generative Adversarial Nets",
Chongxuan Li, Kun Xu, Jun Zhu, Bo Zhang. NeurIPS 2017, arXiv:1703.02291.
Official code: https://github.com/zhenxuan00/triple-gan (x2y_yz2x_xy2p_ssl_mnist.py, _svhn.py, _cifar10.py).

C labels images, G makes images of given labels, and D tells the pairs of both from real ones. So C and G each learn the
joint distribution of images and labels, and C's errors do not hurt G as those of a discriminator with two roles would.

Unconfirmed: the numbers of the paper's text; all numbers here are the code's. The paper may have another weight of the
pseudo discriminative loss on CIFAR-10. C's weight decay is what the code computes: of the last layer on MNIST, and of
nothing on SVHN, where the term names a layer that has no weights.

Deviations from the paper and its code:
1. G minimises -log D(G(y, z), y), as in the code; the paper's log(1 - D) saturates.
2. The expectation over C's answers is taken at the most likely one (the code's default), weighted by its probability.
3. The unlabelled batches of C and D are parts of one stream; in the code each has a permutation of its own.
4. Samples use running moments of batch norm, where the code takes those of the batch.
5. C's running moments are those of unlabelled images alone, as the code's are on CIFAR-10; on MNIST and SVHN it mixes
   in labelled and generated ones. They are of the variance, not of 1 / standard deviation.
6. Images of CIFAR-10 are (v - 127.5) / 127.5; the code divides by 128. Those of MNIST are mapped to the code's [0, 1]
   at the networks' doors.
7. Probabilities are kept from 1e-6 to 1 - 1e-6 in C's cross-entropies on CIFAR-10 too, and gradients that are not
   finite end the run instead of counting as zero.
8. The test set is looked at once, after the last step; the code does so after every epoch.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain
from math import exp
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

import reference_models.layers as layers
from ganbench.gan import GAN, Batch, minimize
from reference_models.layers import Affine, ConditionalSequential, Float32, GaussianNoise, JoinLabel, WeightNorm

G_BATCH = 200
ALPHA = 0.5  # share of C's pairs, against G's, among those that D is to call fake
AVERAGED = 0.01  # rate of C's average
ALONE_LR, ALONE_UNLABELLED, ALONE_BALANCE = 3e-4, 500, 0.3  # while C is trained alone


class Setting(NamedTuple):
    """The code's settings of one data set. Epochs count from 1 and begin after C was trained alone."""

    image_shape: tuple[int, int, int]
    c_batch: tuple[int, int]  # labelled and unlabelled images in C's batch
    d_batch: tuple[int, int]  # labelled and pseudo-labelled images that D is to call real
    w_adversarial: float  # weight of C's adversarial loss
    r_p: tuple[float, int]  # weight of the pseudo discriminative loss R_P, and its first epoch
    r_u: tuple[float, int] = (1e-3, 0)  # weight of R_U, C's loss of unlabelled images, and the epochs of its ramp
    lr: float = 3e-4  # rates of D and G, and of C; in each epoch after 300 they fall by the factors 0.995 and c_decay
    c_lr: float = 3e-4
    c_decay: float = 0.995
    c_beta1: tuple[float, float] = (0.5, 0.5)  # beta1 of C's Adam up to epoch 251, and after its ramp


SETTINGS = {
    "mnist": Setting((1, 28, 28), (100, 100), (1, 400), w_adversarial=1.0, r_p=(0.1, 300), lr=1e-3, c_lr=1e-3),
    "svhn": Setting((3, 32, 32), (200, 200), (20, 180), w_adversarial=0.01, r_p=(0.03, 200)),
    "cifar10": Setting((3, 32, 32), (100, 100), (40, 160), w_adversarial=0.01, r_p=(0.1, 200), r_u=(100.0, 80),
                       c_lr=3e-3, c_decay=0.99, c_beta1=(0.9, 0.5)),
}


# --- Networks: each layer of G and D gets y. w: their width ---


def conv_norm(cin: int, cout: int, kernel: int, padding: int, slope: float = 0.0) -> list[nn.Module]:
    """Convolution, batch norm, and leaky ReLU of this slope or ReLU."""
    conv, activation = nn.Conv2d(cin, cout, kernel, padding=padding, bias=False), nn.LeakyReLU(slope)
    return [conv, nn.BatchNorm2d(cout, eps=1e-4), activation if slope else nn.ReLU()]


def mnist_networks(latent_dim: int, classes: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """G, C and D for MNIST, inside which images are in [0, 1] (deviation 6)."""

    def fc(noise: float, cin: int, cout: int) -> list[nn.Module]:
        return [GaussianNoise(noise), JoinLabel(), WeightNorm(nn.Linear(cin + classes, cout)), nn.ReLU()]

    G = ConditionalSequential(
        JoinLabel(), nn.Linear(latent_dim + classes, 500, bias=False), nn.BatchNorm1d(500, eps=1e-4), nn.Softplus(),
        JoinLabel(), nn.Linear(500 + classes, 500, bias=False), nn.BatchNorm1d(500, eps=1e-4), nn.Softplus(),
        JoinLabel(), WeightNorm(nn.Linear(500 + classes, 784), scaled=True), Float32(), nn.Sigmoid(),
        Affine(2.0, -1.0), nn.Unflatten(1, (1, 28, 28)),
    )
    C = nn.Sequential(
        Affine(0.5, 0.5), *conv_norm(1, 32, 5, 0), nn.MaxPool2d(2), nn.Dropout(0.5),
        *conv_norm(32, 64, 3, 1), *conv_norm(64, 64, 3, 0), nn.MaxPool2d(2), nn.Dropout(0.5),
        *conv_norm(64, 128, 3, 1), *conv_norm(128, 128, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(128, classes), Float32(),
    )
    D = ConditionalSequential(  # the second layer gets y twice, with noise and without, as in the code
        Affine(0.5, 0.5), nn.Flatten(), *fc(0.3, 784, 1000), JoinLabel(), *fc(0.5, 1000 + classes, 500),
        *fc(0.5, 500, 250), *fc(0.5, 250, 250), *fc(0.5, 250, 250),
        GaussianNoise(0.5), JoinLabel(), WeightNorm(nn.Linear(250 + classes, 1)), Float32(), nn.Flatten(0),
    )
    return G, C, D


def colour_networks(latent_dim: int, classes: int, data: str, w: int = 32) -> tuple[nn.Module, ...]:
    """G, C and D for images of 32 x 32. C has batch norm on SVHN, and mean-only batch norm on CIFAR-10."""

    def up(cin: int, cout: int) -> list[nn.Module]:
        norm = layers.ShiftNorm(nn.BatchNorm2d(cout, eps=1e-6, affine=False))
        return [JoinLabel(), layers.up_conv(cin + classes, cout, bias=False), norm, nn.ReLU()]

    def conv(cin: int, cout: int, stride: int, padding: int) -> list[nn.Module]:
        return [JoinLabel(), WeightNorm(nn.Conv2d(cin + classes, cout, 3, stride, padding)), nn.LeakyReLU(0.2)]

    G = ConditionalSequential(  # 512 x 4x4 -> 256 x 8x8 -> 128 x 16x16 -> 3 x 32x32
        JoinLabel(), nn.Linear(latent_dim + classes, 256 * w, bias=False),
        layers.ShiftNorm(nn.BatchNorm1d(256 * w, eps=1e-6, affine=False)), nn.ReLU(), nn.Unflatten(1, (16 * w, 4, 4)),
        *up(16 * w, 8 * w), *up(8 * w, 4 * w),
        JoinLabel(), WeightNorm(layers.up_conv(4 * w + classes, 3), scaled=True), Float32(), nn.Tanh(),
    )
    if data == "svhn":
        C = nn.Sequential(
            nn.Dropout(0.2), *nine_conv_layers(partial(conv_norm, slope=0.2), w), nn.Flatten(),
            nn.Linear(4 * w, classes, bias=False), nn.BatchNorm1d(classes, eps=1e-4), Float32(),
        )
    else:
        C = nn.Sequential(
            GaussianNoise(0.15), *nine_conv_layers(lambda *shape: [layers.MeanOnlyNorm(*shape), nn.LeakyReLU(0.1)], w),
            layers.MeanOnlyNorm(4 * w, classes, 1, 0), nn.Flatten(),
        )
    D = ConditionalSequential(
        nn.Dropout(0.2), *conv(3, w, 1, 1), *conv(w, w, 2, 1), nn.Dropout(0.2), *conv(w, 2 * w, 1, 1),
        *conv(2 * w, 2 * w, 2, 1), nn.Dropout(0.2), *conv(2 * w, 4 * w, 1, 0), *conv(4 * w, 4 * w, 1, 0),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), JoinLabel(), WeightNorm(nn.Linear(4 * w + classes, 1), scaled=True),
        Float32(), nn.Flatten(0),
    )
    return G, C, D


def nine_conv_layers(conv: Callable[[int, int, int, int], list[nn.Module]], w: int) -> list[nn.Module]:
    """32 -> 16 -> 8 -> 6, and the mean over places; `conv` takes maps in, maps out, kernel and padding."""
    a, b, c = 4 * w, 8 * w, 16 * w
    return [
        *conv(3, a, 3, 1), *conv(a, a, 3, 1), *conv(a, a, 3, 1), nn.MaxPool2d(2), nn.Dropout(0.5),
        *conv(a, b, 3, 1), *conv(b, b, 3, 1), *conv(b, b, 3, 1), nn.MaxPool2d(2), nn.Dropout(0.5),
        *conv(b, c, 3, 0), *conv(c, b, 1, 0), *conv(b, a, 1, 0), nn.AdaptiveAvgPool2d(1),
    ]


# --- Losses of C, and the model ---


def clipped_log(p: Tensor) -> Tensor:
    """log p, p kept from 1e-6 to 1 - 1e-6 as in the code (deviation 7)"""
    return p.clamp(1e-6, 1 - 1e-6).log()


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-E log p(y | x)"""
    return -clipped_log(logits.softmax(1)).gather(1, y[:, None]).mean()


def split_in_proportion(x: Tensor, *sizes: int) -> tuple[Tensor, ...]:
    """Cut x in the proportion of `sizes`, which is into just these sizes if x has their sum."""
    return x.tensor_split([len(x) * sum(sizes[: i + 1]) // sum(sizes) for i in range(len(sizes) - 1)])


class TripleGAN(GAN):
    """Triple-GAN (Li et al., 2017).

    data: the networks and schedules of 'mnist', 'svhn' or 'cifar10'. labels: the number of labelled images, on which
    the batches for MNIST depend. epoch_steps: steps in an epoch of the schedules. pretrain_steps: steps of C alone
    before the first epoch (the code has them on MNIST up to 100 labels). p_epoch: the first epoch of R_P; None: the
    code's for `data`. width: maps of D's first layer for colour images, in proportion to which all networks for those
    have maps.
    """

    num_classes = 10

    def __init__(self, data: str = "mnist", labels: int = 100, latent_dim: int = 100, epoch_steps: int = 600,
                 pretrain_steps: int = 0, p_epoch: int | None = None, width: int = 32):
        super().__init__()
        if data not in SETTINGS:
            raise ValueError(f"data must be one of {', '.join(SETTINGS)}, not {data!r}")
        self.data, self.setting, self.latent_dim, k = data, SETTINGS[data], latent_dim, self.num_classes
        if data == "mnist":
            c_batch, d_batch = (min(100, labels), max(100, 10000 // labels)), (max(labels // 100, 1), 400)
            self.setting = self.setting._replace(c_batch=c_batch, d_batch=d_batch)
        if p_epoch is not None:
            self.setting = self.setting._replace(r_p=(self.setting.r_p[0], p_epoch))
        self.image_shape, self.epoch_steps, self.pretrain_steps = self.setting.image_shape, epoch_steps, pretrain_steps
        networks = mnist_networks(latent_dim, k) if data == "mnist" else colour_networks(latent_dim, k, data, width)
        self.G, self.C, self.D = networks
        layers.normal_start(self, 0.05)
        if data == "mnist":
            layers.normal_start(self.C[-2], 0.01)  # the last layer
            layers.xavier_start(self.G)
            layers.normal_start(self.D, 0.1)
        self.whiten = layers.ZCA(self.image_shape) if data == "cifar10" else nn.Identity()  # for C alone
        self.C_average = copy.deepcopy(self.C).requires_grad_(False)  # what classifies; starts at zero, as in the code
        for a in self.C_average.state_dict().values():
            a.zero_()

    @torch.no_grad()
    def begin(self, chunks: Iterable[Tensor]) -> None:
        """On CIFAR-10, fit the whitening to all training images and let the first 100 start C's scales."""
        if isinstance(self.whiten, layers.ZCA):
            first = next(rest := iter(chunks))
            self.whiten.fit(chain([first], rest))
            with layers.moments_kept(self.C), layers.data_dependent_start(self.C):
                self.C(self.whiten(first[: self.setting.c_batch[1]]))

    # --- Losses ---

    def d_loss(self, real_logit: Tensor, c_logit: Tensor, g_logit: Tensor) -> Tensor:
        """-E log D(x, y) - alpha E_c log(1 - D(x, y)) - (1 - alpha) E_g log(1 - D(x, y))"""
        fake = ALPHA * F.softplus(c_logit).mean() + (1 - ALPHA) * F.softplus(g_logit).mean()
        return F.softplus(-real_logit).mean() + fake

    def g_loss(self, g_logit: Tensor) -> Tensor:
        """-(1 - alpha) E log D(G(y, z), y) (deviation 1)"""
        return (1 - ALPHA) * F.softplus(-g_logit).mean()

    def c_adversarial_loss(self, logits: Tensor, c_logit: Tensor) -> Tensor:
        """-alpha E p_C(y | u) log D(u, y), y = argmax p_C(y | u): a gradient by the probability alone (deviation 2)"""
        return ALPHA * (logits.softmax(1).amax(1) * F.softplus(-c_logit)).mean()

    def supervised_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """-E log p_C(y | x): R_L of labelled images, and the pseudo discriminative R_P of generated ones"""
        with layers.moments_kept(self.C):
            return cross_entropy(self.C(self.whiten(x)), y)

    def unlabelled_loss(self, logits: Tensor, u: Tensor, weight: float) -> Tensor:
        """R_U = 0.3 E H[p(y | u)] + weight CE(uniform, E p(y | u)), on MNIST + 1e-4 |weights of the last layer|^2.

        On CIFAR-10 it is weight E |p(y | u) - p'(y | u)|^2 / K of two passes with noise (Pi-model).
        """
        p = logits.softmax(1)
        if self.data == "cifar10":
            with layers.moments_kept(self.C):
                return weight * (p - self.C(u).softmax(1)).square().mean()
        loss = -0.3 * (p * clipped_log(p)).sum(1).mean() - weight * clipped_log(p.mean(0)).mean()
        return loss + 1e-4 * self.C[-2].weight.square().sum() if self.data == "mnist" else loss

    def c_loss(self, x: Tensor, y: Tensor, u: Tensor, fake: tuple[Tensor, Tensor] | None, w_u: float) -> Tensor:
        """w times the adversarial loss + R_L(x, y) + R_U(u) + alpha_P R_P(fake), the last from its first epoch on"""
        whitened = self.whiten(u)
        logits = self.C(whitened)
        with torch.no_grad():
            c_logit = self.D(u, self.one_hot(logits.argmax(1)))
        loss = self.setting.w_adversarial * self.c_adversarial_loss(logits, c_logit) + self.supervised_loss(x, y)
        loss = loss + self.unlabelled_loss(logits, whitened, w_u)
        return loss + self.setting.r_p[0] * self.supervised_loss(*fake) if fake else loss

    # --- Training ---

    def optimizers(self) -> dict[str, Optimizer]:
        networks = {"D": self.D, "G": self.G, "C": self.C}
        return {name: Adam(net.parameters(), self.setting.lr, betas=(0.5, 0.999)) for name, net in networks.items()}

    def set_rates(self, opt: Mapping[str, Optimizer], epoch: int) -> None:
        """Set rates and C's beta1, whose first value fades by exp(-((epoch - 251) / 2)^2 / 50) from epoch 251 on."""
        s, passed, (before, after) = self.setting, max(epoch - 300, 0), self.setting.c_beta1
        for name, optimizer in opt.items():
            optimizer.param_groups[0]["lr"] = s.c_lr * s.c_decay**passed if name == "C" else s.lr * 0.995**passed
        share = exp(-(max(epoch - 251, 0) ** 2) / 200)
        opt["C"].param_groups[0]["betas"] = (share * before + (1 - share) * after, 0.999)

    def w_u(self, epoch: int) -> float:
        """Weight of R_U: w exp(-5 (1 - t)^2), t = (epoch - 1) / ramp, and 0 in a ramp's first epoch."""
        weight, ramp = self.setting.r_u
        t = min((epoch - 1) / ramp, 1.0) if ramp else 1.0
        return weight * exp(-5 * (1 - t) ** 2) if t else 0.0

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        x, y, u, s = batch.x, batch.y, batch.u, self.setting
        if y is None or u is None:
            raise ValueError("Triple-GAN needs few labelled images and a stream of unlabelled ones")
        (x_c, x_d), (y_c, y_d) = (split_in_proportion(labelled, 1, 1) for labelled in (x, y))
        if batch.step < self.pretrain_steps:  # C alone
            opt["C"].param_groups[0].update(lr=ALONE_LR, betas=(0.9, 0.999))
            u = self.whiten(u[:ALONE_UNLABELLED])
            loss = self.supervised_loss(x_c, y_c) + self.unlabelled_loss(self.C(u), u, ALONE_BALANCE)
            c_loss = minimize(loss, opt["C"])
            layers.update_average(self.C_average, self.C, AVERAGED)
            return {"c_loss": c_loss}
        if batch.step == self.pretrain_steps:
            opt["C"].state.clear()  # training has an Adam of its own
        epoch = (batch.step - self.pretrain_steps) // self.epoch_steps + 1
        self.set_rates(opt, epoch)
        x_d, y_d = x_d[: s.d_batch[0]], y_d[: s.d_batch[0]]
        u_c, u_d = split_in_proportion(u, s.c_batch[1], s.d_batch[1])  # deviation 3
        n = G_BATCH * len(u) // (s.c_batch[1] + s.d_batch[1])
        y_g = torch.arange(n, device=x.device) * self.num_classes // n  # as many of each class

        # D
        with torch.no_grad():
            fake, y_uc, y_ud = self.fakes(y_g), self.answers(u_c), self.answers(u_d)
        real_logit = self.D(torch.cat([x_d, u_d]), self.one_hot(torch.cat([y_d, y_ud])))
        c_logit, g_logit = self.D(u_c, self.one_hot(y_uc)), self.D(fake, self.one_hot(y_g))
        d_loss = minimize(self.d_loss(real_logit, c_logit, g_logit), opt["D"])

        # G
        g_loss = minimize(self.g_loss(self.D(self.fakes(y_g), self.one_hot(y_g))), opt["G"])

        # C
        with torch.no_grad():
            pairs = (self.fakes(y_g), y_g) if epoch >= s.r_p[1] else None
        c_loss = minimize(self.c_loss(x_c, y_c, u_c, pairs, self.w_u(epoch)), opt["C"])
        layers.update_average(self.C_average, self.C, AVERAGED)
        return {"d_loss": d_loss, "g_loss": g_loss, "c_loss": c_loss}

    @torch.no_grad()
    def answers(self, u: Tensor) -> Tensor:
        """argmax_y p_C(y | u), C as it is in training."""
        with layers.moments_kept(self.C):
            return self.C(self.whiten(u)).argmax(1)

    def fakes(self, y: Tensor) -> Tensor:
        """G(y, z) of fresh latents."""
        return self.G(self.sample_latent(len(y)).to(y.device), self.one_hot(y))

    def one_hot(self, y: Tensor) -> Tensor:
        return F.one_hot(y, self.num_classes).float()

    # --- Sampling ---

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ U(0, 1)^100"""
        return torch.rand(n, self.latent_dim, generator=generator)

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Images of the classes `y`; without them the classes are drawn uniformly."""
        c = torch.randint(self.num_classes, (n,), generator=generator) if y is None else y
        return self.generate(self.sample_latent(n, generator).to(self.device), c.to(self.device))

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(y, z)"""
        if y is None:
            raise ValueError("Triple-GAN needs labels")
        return self.G(z, self.one_hot(y))

    def classify(self, x: Tensor) -> Tensor:
        """Logits N x 10 of the average of C."""
        return self.C_average(self.whiten(x))
