"""SGAN, structured GAN: a label y and a latent z kept apart by two adversarial and two collaborative games.

"Structured Generative Adversarial Networks",
Zhijie Deng, Hao Zhang, Xiaodan Liang, Luona Yang, Shizhen Xu, Jun Zhu, Eric P. Xing. NeurIPS 2017, arXiv:1711.00889.
Official code: https://github.com/thudzj/StructuredGAN (sgan_cifar10.py, sgan_svhn.py, generate.py), made from that of
Triple-GAN, https://github.com/zhenxuan00/triple-gan.

G(y, z) makes images; C reads y from an image and I reads z. The adversarial games L_xy and L_xz: D_xy judges pairs
(x, y), and D_xz judges pairs (x, z). The collaborative games R_y and R_z: C and I recover what G was given.

Unconfirmed: the numbers of the paper's text; all numbers here are the code's. No code trains on MNIST: G and I are
those of generate.py; C, D_xy, their batches, rates and weights are those of Triple-GAN for MNIST, to which the code
goes back, with 200 pairs in D_xy's batch. D_xz is unknown: here it is D_xy with z in the place of y. (The D_xz of
colour images, its convolutions made fully connected, wins at once: its loss is 0.1 after 100 steps.) The recipes for
MNIST give R_z the weight 0.1, which the code for SVHN had before its last change: with the paper's 1, this G writes z
into details that only I reads, and each class stays one image. C's weight decay is what the code computes: of the last
layer on MNIST, and of nothing on SVHN, where the term names a layer that has no weights.

Deviations from the paper and its code:
1. C takes one step before each step of D, I and G; the code takes all of an epoch's steps of C first.
2. The unlabelled batches of C, D_xy and I are parts of one stream; in the code each has a permutation of its own.
3. Samples, and I when it encodes, use running moments of batch norm, where the code takes those of the batch.
4. C's running moments, and I's, are those of unlabelled images alone, as the code's are for C on CIFAR-10; on SVHN it
   mixes in labelled and generated ones. They are of the variance, not of 1 / standard deviation.
5. Images of CIFAR-10 are (v - 127.5) / 127.5; the code divides by 128. Those of MNIST are mapped to the code's [0, 1]
   at the networks' doors.
6. Probabilities are kept from 1e-6 to 1 - 1e-6 in C's cross-entropies on CIFAR-10 too, and gradients that are not
   finite end the run instead of counting as zero.
7. The test set is looked at once, after the last step; the code does so after every epoch.
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
from ganbench.gan import GAN, Batch, minimize, minimize_together
from reference_models.layers import Affine, ConditionalSequential, Float32, GaussianNoise, JoinLabel, WeightNorm

BATCH = 200  # images in a batch of G, D_xy, D_xz and I
AVERAGED = 0.01  # rate of C's average


class Setting(NamedTuple):
    """The code's settings of one data set. Epochs count from 1 and begin after C was trained alone."""

    image_shape: tuple[int, int, int]
    c_batch: tuple[int, int, int]  # labelled, unlabelled and generated images in C's batch
    d_labelled: int  # labelled images from which D_xy's batch takes its own
    real: tuple[tuple[int, int, int, int], ...]  # real pairs of D_xy: first epoch; labelled, pseudo-labelled, generated
    w_g: tuple[float, float, float]  # weight of generated images in C's loss: start, slope and limit
    w_u: tuple[float, int] = (1e-3, 0)  # weight of U, C's loss of unlabelled images, and the epochs of its ramp
    lr: float = 3e-4  # rates of D, I and G, and of C; in each epoch after decay_from they fall by 0.995 and c_decay
    c_lr: float = 3e-4
    c_decay: float = 0.995
    decay_from: int = 300
    c_beta1: tuple[float, float] = (0.5, 0.5)  # beta1 of C's Adam up to epoch 251, and after its ramp
    alone: tuple[int, int, float, float] = (200, 200, 3e-4, 1e-3)  # C alone: labelled, unlabelled; rate, weight of U


SETTINGS = {
    "mnist": Setting((1, 28, 28), (100, 100, 200), 100, real=((1, 1, 199, 0),), w_g=(299, 0.1, 0.1), lr=1e-3, c_lr=1e-3,
                     alone=(100, 500, 3e-4, 0.3)),
    "svhn": Setting((3, 32, 32), (200, 200, 200), 200, w_g=(100, 1 / 30000, 0.025),
                    real=((1, 200, 0, 0), *((10 * k, 200 - 16 * k, 16 * k, 0) for k in range(1, 11)),
                          (400, 40, 150, 10))),
    "cifar10": Setting((3, 32, 32), (100, 100, 100), 200, w_g=(0, 1 / 300, 1.0), w_u=(100.0, 80), c_lr=3e-3,
                       c_decay=0.99, decay_from=200, c_beta1=(0.9, 0.5), alone=(200, 200, 3e-3, 100.0),
                       real=(*((50 * k - 49, 200 - 16 * k, 16 * k, 0) for k in range(1, 11)),
                             *((500 + 100 * k, 50, 140 - 10 * k, 10 + 10 * k) for k in range(5)))),
}


# --- Networks: each layer of G and D_xy gets y. w: their width ---


def conv_norm(cin: int, cout: int, kernel: int, padding: int, stride: int = 1, slope: float = 0.2) -> list[nn.Module]:
    """Convolution, batch norm, and leaky ReLU of this slope or ReLU."""
    conv, activation = nn.Conv2d(cin, cout, kernel, stride, padding, bias=False), nn.LeakyReLU(slope)
    return [conv, nn.BatchNorm2d(cout, eps=1e-4), activation if slope else nn.ReLU()]


class MnistDiscriminator(ConditionalSequential):
    """D_xy: weights of norm 1; the second layer gets y twice, with noise and without, as in the code.

    D_xz (not the paper's) has z in the place of y; every layer gets it once, and it is as noisy as x.
    """

    def __init__(self, width: int, is_xz: bool):
        def fc(cin: int, cout: int) -> list[nn.Module]:
            return [JoinLabel(), WeightNorm(nn.Linear(cin + width, cout)), nn.ReLU()]

        noise, y_again = GaussianNoise(0.5), [] if is_xz else [JoinLabel()]
        super().__init__(
            *fc(784, 1000), *y_again, noise, *fc(1000 + width * len(y_again), 500), noise, *fc(500, 250),
            noise, *fc(250, 250), noise, *fc(250, 250), noise, *fc(250, 1)[:2], Float32(), nn.Flatten(0),
        )
        self.is_xz = is_xz

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = layers.gaussian_noise((x.flatten(1) + 1) / 2, 0.3)
        return super().forward(x, layers.gaussian_noise(condition, 0.3) if self.is_xz else condition)


def mnist_networks(latent_dim: int, classes: int, w: int) -> tuple[nn.Module, ...]:
    """G, I, C, D_xy and D_xz for MNIST, inside which images are in [0, 1] (deviation 5)."""
    conv = partial(conv_norm, slope=0.0)
    G = ConditionalSequential(
        JoinLabel(), nn.Linear(latent_dim + classes, 500, bias=False), nn.BatchNorm1d(500, eps=1e-4), nn.Softplus(),
        JoinLabel(), nn.Linear(500 + classes, 500, bias=False), nn.BatchNorm1d(500, eps=1e-4), nn.Softplus(),
        JoinLabel(), WeightNorm(nn.Linear(500 + classes, 784), scaled=True), Float32(), nn.Sigmoid(),
        Affine(2.0, -1.0), nn.Unflatten(1, (1, 28, 28)),
    )
    C = nn.Sequential(
        Affine(0.5, 0.5), *conv(1, 32, 5, 0), nn.MaxPool2d(2), nn.Dropout(0.5),
        *conv(32, 64, 3, 1), *conv(64, 64, 3, 0), nn.MaxPool2d(2), nn.Dropout(0.5),
        *conv(64, 128, 3, 1), *conv(128, 128, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(128, classes), Float32(),
    )
    D_xy, D_xz = MnistDiscriminator(classes, is_xz=False), MnistDiscriminator(latent_dim, is_xz=True)
    return G, inference(1, 28, latent_dim, w), C, D_xy, D_xz


def inference(channels: int, side: int, latent_dim: int, w: int) -> nn.Module:
    """I for all images; z is not squashed."""
    conv = partial(conv_norm, kernel=4, padding=1, stride=2)
    return nn.Sequential(
        Affine(0.5, 0.5) if channels == 1 else nn.Identity(),
        *conv(channels, 2 * w), *conv(2 * w, 4 * w), *conv(4 * w, 8 * w), *conv(8 * w, 16 * w), nn.Flatten(),
        nn.Linear(16 * w * (side // 16) ** 2, latent_dim), Float32(),
    )


class DiscriminatorXZ(nn.Module):
    """D_xz: convolutions of x and fully connected layers of z, then of both."""

    def __init__(self, latent_dim: int, w: int):
        super().__init__()
        k, act = 16 * w, nn.LeakyReLU(0.2)
        self.z = nn.Sequential(nn.Linear(latent_dim, k), act, nn.Linear(k, k), act)
        self.x = nn.Sequential(
            layers.down_conv(3, 4 * w), act,
            *conv_norm(4 * w, 8 * w, 5, 2, stride=2), *conv_norm(8 * w, k, 5, 2, stride=2), nn.Flatten(),
        )
        self.out = nn.Sequential(nn.Linear(16 * k + k, 2 * k), act, nn.Linear(2 * k, 1))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.out(torch.cat([self.x(x), self.z(z)], 1)).squeeze(1).float()  # N


def colour_networks(latent_dim: int, classes: int, data: str, w: int = 32) -> tuple[nn.Module, ...]:
    """G, I, C, D_xy and D_xz for images of 32 x 32. C has batch norm on SVHN, and mean-only batch norm on CIFAR-10."""

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
            nn.Dropout(0.2), *nine_conv_layers(conv_norm, w), nn.Flatten(),
            nn.Linear(4 * w, classes, bias=False), nn.BatchNorm1d(classes, eps=1e-4), Float32(),
        )
    else:
        C = nn.Sequential(
            GaussianNoise(0.15), *nine_conv_layers(lambda *shape: [layers.MeanOnlyNorm(*shape), nn.LeakyReLU(0.1)], w),
            layers.MeanOnlyNorm(4 * w, classes, 1, 0), nn.Flatten(),
        )
    D_xy = ConditionalSequential(
        nn.Dropout(0.2), *conv(3, w, 1, 1), *conv(w, w, 2, 1), nn.Dropout(0.2), *conv(w, 2 * w, 1, 1),
        *conv(2 * w, 2 * w, 2, 1), nn.Dropout(0.2), *conv(2 * w, 4 * w, 1, 0), *conv(4 * w, 4 * w, 1, 0),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), JoinLabel(), WeightNorm(nn.Linear(4 * w + classes, 1), scaled=True),
        Float32(), nn.Flatten(0),
    )
    return G, inference(3, 32, latent_dim, w), C, D_xy, DiscriminatorXZ(latent_dim, w)


def nine_conv_layers(conv: Callable[[int, int, int, int], list[nn.Module]], w: int) -> list[nn.Module]:
    """32 -> 16 -> 8 -> 6, mean over places; `conv` takes maps in, maps out, kernel and padding."""
    a, b, c = 4 * w, 8 * w, 16 * w
    return [
        *conv(3, a, 3, 1), *conv(a, a, 3, 1), *conv(a, a, 3, 1), nn.MaxPool2d(2), nn.Dropout(0.5),
        *conv(a, b, 3, 1), *conv(b, b, 3, 1), *conv(b, b, 3, 1), nn.MaxPool2d(2), nn.Dropout(0.5),
        *conv(b, c, 3, 0), *conv(c, b, 1, 0), *conv(b, a, 1, 0), nn.AdaptiveAvgPool2d(1),
    ]


# --- Losses of C, and the model ---


def clipped_log(p: Tensor) -> Tensor:
    """log p, p kept from 1e-6 to 1 - 1e-6 as in the code (deviation 6)"""
    return p.clamp(1e-6, 1 - 1e-6).log()


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-E log p(y | x)"""
    return -clipped_log(logits.softmax(1)).gather(1, y[:, None]).mean()


def split_in_proportion(x: Tensor, *sizes: int) -> tuple[Tensor, ...]:
    """Cut x in the proportion of `sizes`, which is into just these sizes if x has their sum."""
    return x.tensor_split([len(x) * sum(sizes[: i + 1]) // sum(sizes) for i in range(len(sizes) - 1)])


class SGAN(GAN):
    """SGAN (Deng et al., 2017).

    data: the networks and schedules of 'mnist', 'svhn' or 'cifar10'. labels: the number of labelled images, on which
    C's batch for MNIST depends. epoch_steps: steps in an epoch of the schedules. pretrain_steps: steps of C alone
    before the first epoch. r_y, r_z: weights of the collaborative games; the ablations have 0. width: maps of the first
    layer of D_xy for colour images, in proportion to which all networks for those and I have maps.
    """

    num_classes = 10
    game = "d_xy_loss", "g_loss"

    def __init__(self, data: str = "mnist", labels: int = 100, latent_dim: int = 100, epoch_steps: int = 300,
                 pretrain_steps: int = 0, r_y: float = 1.0, r_z: float = 1.0, width: int = 32):
        super().__init__()
        if data not in SETTINGS:
            raise ValueError(f"data must be one of {', '.join(SETTINGS)}, not {data!r}")
        self.data, self.setting, self.latent_dim, k = data, SETTINGS[data], latent_dim, self.num_classes
        if data == "mnist":
            n, c_batch = min(100, labels), (min(100, labels), max(100, 10000 // labels), 200)
            self.setting = self.setting._replace(c_batch=c_batch, d_labelled=n, alone=(n, *self.setting.alone[1:]))
        self.image_shape, self.epoch_steps, self.pretrain_steps = self.setting.image_shape, epoch_steps, pretrain_steps
        self.r_y, self.r_z = r_y, r_z
        self.G, self.I, self.C, self.D_xy, self.D_xz = (
            mnist_networks(latent_dim, k, width) if data == "mnist" else colour_networks(latent_dim, k, data, width)
        )
        layers.normal_start(self, 0.05)
        if data == "mnist":
            layers.normal_start(self.C[-2], 0.01)  # the last layer
            layers.xavier_start(self.G)
            layers.normal_start(self.D_xy, 0.1)
            layers.normal_start(self.D_xz, 0.1)
        self.whiten = layers.ZCA(self.image_shape) if data == "cifar10" else nn.Identity()  # for C alone
        self.C_average = copy.deepcopy(self.C).requires_grad_(False)  # what classifies; starts at zero, as in the code
        for a in self.C_average.state_dict().values():
            a.zero_()

    @torch.no_grad()
    def begin(self, chunks: Iterable[Tensor]) -> None:
        """On CIFAR-10, fit the whitening to all training images and let the first 200 start C's scales."""
        if isinstance(self.whiten, layers.ZCA):
            first = next(rest := iter(chunks))
            self.whiten.fit(chain([first], rest))
            with layers.moments_kept(self.C), layers.data_dependent_start(self.C):
                self.C(self.whiten(first[:BATCH]))

    # --- Losses ---

    def d_loss(self, real_logit: Tensor, fake_logit: Tensor) -> Tensor:
        """-L_xy or -L_xz: -E log D(real pair) - E log(1 - D(fake pair))"""
        return F.softplus(-real_logit).mean() + F.softplus(fake_logit).mean()

    def r_z_loss(self, z_hat: Tensor, z: Tensor) -> Tensor:
        """R_z = -E log p_I(z | G(y, z)) = 1/2 E |I(G(y, z)) - z|^2, a Gaussian of unit variance, up to a constant"""
        return 0.5 * (z_hat - z).square().sum(1).mean()

    def i_loss(self, real_logit: Tensor, r_z: Tensor) -> Tensor:
        """-E log(1 - D_xz(x, I(x))) + R_z"""
        return F.softplus(real_logit).mean() + self.r_z * r_z

    def g_loss(self, xy_logit: Tensor, xz_logit: Tensor, r_y: Tensor, r_z: Tensor) -> Tensor:
        """-E log D_xy(G(y, z), y) - E log D_xz(G(y, z), z) + R_y + R_z"""
        return F.softplus(-xy_logit).mean() + F.softplus(-xz_logit).mean() + self.r_y * r_y + self.r_z * r_z

    def c_loss(self, x: Tensor, y: Tensor, u: Tensor, w_u: float, w_g: float = 0.0) -> Tensor:
        """-E log p_C(y | x) + U(u; w_u) - w_g E log p_C(y | G(y, z))"""
        with layers.moments_kept(self.C):
            loss = cross_entropy(self.C(self.whiten(x)), y)
            if w_g:
                fake, y_g = self.random_pairs(self.setting.c_batch[2] * len(x) // self.setting.c_batch[0])
                loss = loss + w_g * cross_entropy(self.C(self.whiten(fake)), y_g)
        return loss + self.unlabelled_loss(self.whiten(u), w_u)

    def unlabelled_loss(self, u: Tensor, weight: float) -> Tensor:
        """U = 0.3 E H[p(y | u)] + weight CE(uniform, E p(y | u)), on MNIST + 1e-4 |weights of the last layer|^2.

        On CIFAR-10 it is weight E |p(y | u) - p'(y | u)|^2 / K of two passes with noise (Pi-model).
        """
        if self.data == "cifar10":
            with layers.moments_kept(self.C):
                p = self.C(u).softmax(1)
            return weight * (p - self.C(u).softmax(1)).square().mean()
        p = self.C(u).softmax(1)
        loss = -0.3 * (p * clipped_log(p)).sum(1).mean() - weight * clipped_log(p.mean(0)).mean()
        return loss + 1e-4 * self.C[-2].weight.square().sum() if self.data == "mnist" else loss

    # --- Training ---

    def optimizers(self) -> dict[str, Optimizer]:
        networks = {"C": self.C, "D_xy": self.D_xy, "D_xz": self.D_xz, "I": self.I, "G": self.G}
        return {name: Adam(net.parameters(), self.setting.lr, betas=(0.5, 0.999)) for name, net in networks.items()}

    def set_rates(self, opt: Mapping[str, Optimizer], epoch: int) -> None:
        """Set rates and C's beta1, whose first value fades by exp(-((epoch - 251) / 2)^2 / 50) from epoch 251 on."""
        s, passed, (before, after) = self.setting, max(epoch - self.setting.decay_from, 0), self.setting.c_beta1
        for name, optimizer in opt.items():
            optimizer.param_groups[0]["lr"] = s.c_lr * s.c_decay**passed if name == "C" else s.lr * 0.995**passed
        share = exp(-(max(epoch - 251, 0) ** 2) / 200)
        opt["C"].param_groups[0]["betas"] = (share * before + (1 - share) * after, 0.999)

    def w_u(self, epoch: int) -> float:
        """Weight of U: w exp(-5 (1 - t)^2), t = (epoch - 1) / ramp, and 0 in a ramp's first epoch."""
        weight, ramp = self.setting.w_u
        t = min((epoch - 1) / ramp, 1.0) if ramp else 1.0
        return weight * exp(-5 * (1 - t) ** 2) if t else 0.0

    def w_g(self, epoch: int) -> float:
        """Weight of generated images in C's loss."""
        start, slope, limit = self.setting.w_g
        return min(max((epoch - start) * slope, 0.0), limit)

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        x, y, u, s = batch.x, batch.y, batch.u, self.setting
        if y is None or u is None:
            raise ValueError("SGAN needs few labelled images and a stream of unlabelled ones")
        if batch.step < self.pretrain_steps:  # C alone
            labelled, unlabelled, lr, w_u = s.alone
            opt["C"].param_groups[0].update(lr=lr, betas=(0.9, 0.999))
            c_loss = minimize(self.c_loss(x[:labelled], y[:labelled], u[:unlabelled], w_u), opt["C"])
            layers.update_average(self.C_average, self.C, AVERAGED)
            return {"c_loss": c_loss}
        if batch.step == self.pretrain_steps:
            opt["C"].state.clear()  # training has an Adam of its own
        epoch = (batch.step - self.pretrain_steps) // self.epoch_steps + 1
        self.set_rates(opt, epoch)
        (x_c, x_d), (y_c, y_d) = (split_in_proportion(of, s.c_batch[0], s.d_labelled) for of in (x, y))
        u_c, u_d, u_i = split_in_proportion(u, s.c_batch[1], BATCH, BATCH)  # deviation 2
        y_g = torch.arange(len(u_i), device=x.device) * self.num_classes // len(u_i)  # as many of each class

        # C (deviation 1)
        c_loss = minimize(self.c_loss(x_c, y_c, u_c, self.w_u(epoch), self.w_g(epoch)), opt["C"])
        layers.update_average(self.C_average, self.C, AVERAGED)

        # D_xy and D_xz
        x_m, y_m = self.real_pairs(x_d, y_d, u_d, epoch, len(u_i))
        z_i = self.I(u_i)
        with torch.no_grad():
            fake, z = self.fakes(y_g)
        d_xy_loss, d_xz_loss = minimize_together(
            (self.d_loss(self.D_xy(x_m, self.one_hot(y_m)), self.D_xy(fake, self.one_hot(y_g))), [opt["D_xy"]]),
            (self.d_loss(self.D_xz(u_i, z_i.detach()), self.D_xz(fake, z)), [opt["D_xz"]]),
        )

        # I
        with torch.no_grad():
            fake, z = self.fakes(y_g)
        with layers.moments_kept(self.I):
            r_z = self.r_z_loss(self.I(fake), z)
        i_loss = minimize(self.i_loss(self.D_xz(u_i, z_i), r_z), opt["I"])

        # G
        with layers.moments_kept(self.I), layers.moments_kept(self.C):
            fake, z = self.fakes(y_g)
            r_y, r_z = cross_entropy(self.C(self.whiten(fake)), y_g), self.r_z_loss(self.I(fake), z)
        g_loss = minimize(self.g_loss(self.D_xy(fake, self.one_hot(y_g)), self.D_xz(fake, z), r_y, r_z), opt["G"])
        return {"c_loss": c_loss, "d_xy_loss": d_xy_loss, "d_xz_loss": d_xz_loss, "i_loss": i_loss, "g_loss": g_loss,
                "r_y_loss": r_y.detach(), "r_z_loss": r_z.detach()}

    @torch.no_grad()
    def real_pairs(self, x: Tensor, y: Tensor, u: Tensor, epoch: int, n: int) -> tuple[Tensor, Tensor]:
        """n pairs that D_xy is to call real: labelled, unlabelled with C's answer, generated, in the epoch's shares."""
        shares = [row[1:] for row in self.setting.real if row[0] <= epoch][-1]
        labelled, pseudo, generated = (round(n * share / BATCH) for share in shares)
        x, y, u = x[:labelled], y[:labelled], u[:pseudo]
        if len(u):
            with layers.moments_kept(self.C):
                x, y = torch.cat([x, u]), torch.cat([y, self.C(self.whiten(u)).argmax(1)])
        if generated:
            fake, y_g = self.random_pairs(generated)
            x, y = torch.cat([x, fake]), torch.cat([y, y_g])
        return x, y

    @torch.no_grad()
    def random_pairs(self, n: int) -> tuple[Tensor, Tensor]:
        """Make n images of random classes; return both."""
        y = torch.randint(self.num_classes, (n,), device=self.device)
        with layers.moments_kept(self.G):
            return self.fakes(y)[0], y

    def fakes(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """G(y, z) of fresh latents z, and z."""
        z = self.sample_latent(len(y)).to(y.device)
        return self.G(z, self.one_hot(y)), z

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
            raise ValueError("SGAN needs labels")
        return self.G(z, self.one_hot(y))

    def classify(self, x: Tensor) -> Tensor:
        """Logits N x 10 of the average of C."""
        return self.C_average(self.whiten(x))

    def encode(self, x: Tensor) -> Tensor:
        """I(x), N x 100."""
        return self.I(x)

    def reconstruct(self, x: Tensor) -> Tensor:
        """G(argmax_y p_C(y | x), I(x))"""
        return self.generate(self.encode(x), self.classify(x).argmax(1))
