"""SGAN, structured GAN: a label y and a latent z kept apart by two adversarial and two collaborative games.

"Structured Generative Adversarial Networks",
Zhijie Deng, Hao Zhang, Xiaodan Liang, Luona Yang, Shizhen Xu, Jun Zhu, Eric P. Xing. NeurIPS 2017, arXiv:1711.00889.
Official code: https://github.com/thudzj/StructuredGAN (sgan_cifar10.py, sgan_svhn.py, generate.py), made from that of
Triple-GAN, https://github.com/zhenxuan00/triple-gan.

G(y, z) makes images; C reads y from an image and I reads z. D_xy tells pairs (x, y) apart and D_xz pairs (x, z): the
adversarial games. R_y and R_z ask C and I to find again what G was given: the collaborative games.

Unconfirmed: all numbers are those of the code, not of the paper's text. There is no code that trains on MNIST: G and I
are those of generate.py; C, D_xy, their batches, rates and weights are Triple-GAN's for MNIST, to which the code goes
back, with D_xy's batch at 200; D_xz, of which nothing is known, is D_xy with z in the place of y (that for colour
images with fully connected layers for convolutions wins at once: its loss is 0.1 after 100 steps). R_z weighs 0.1 in
the recipes for MNIST, as in the code for SVHN before its last change: with 1, the paper's, this G writes z into details
that only I reads, and each class stays one image. C's weight decay is what the code computes: of the last layer on
MNIST, and of nothing on SVHN, where the term names a layer that has no weights.

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from math import exp
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Adam, Optimizer

from ganbench.gan import GAN, Batch, minimize, minimize_together

BATCH = 200  # of G, D_xy, D_xz and I
AVERAGED = 0.01  # a <- a + 0.01 (c - a) after each step of C


class Setting(NamedTuple):
    """What the code sets for one data set. Epochs count from 1 and begin after C was trained alone.

    c_batch: labelled, unlabelled and generated images of C's batch; d_labelled: labelled ones at hand for D_xy's.
    alone: labelled and unlabelled ones while C is trained alone; alone_lr, alone_weight: its rate and weight of U then.
    u_weight: the weight of C's loss U of unlabelled images, reached after u_ramp epochs. w_g: start, slope and limit of
    the weight of generated images in C's loss. lr, c_lr: rates, multiplied by decay and c_decay each epoch after
    decay_from. c_beta1: of C's Adam up to epoch 251 and after its ramp. real: (first epoch, labelled, pseudo-labelled,
    generated) of D_xy's batch of real pairs.
    """

    image_shape: tuple[int, int, int]
    c_batch: tuple[int, int, int]
    d_labelled: int
    alone: tuple[int, int]
    alone_lr: float
    alone_weight: float
    u_weight: float
    u_ramp: int
    w_g: tuple[float, float, float]
    lr: float
    c_lr: float
    decay_from: int
    decay: float
    c_decay: float
    c_beta1: tuple[float, float]
    real: tuple[tuple[int, int, int, int], ...]


SETTINGS = {
    "mnist": Setting(
        (1, 28, 28), c_batch=(100, 100, 200), d_labelled=100, alone=(100, 500), alone_lr=3e-4, alone_weight=0.3,
        u_weight=1e-3, u_ramp=0, w_g=(299, 0.1, 0.1), lr=1e-3, c_lr=1e-3, decay_from=300, decay=0.995, c_decay=0.995,
        c_beta1=(0.5, 0.5), real=((1, 1, 199, 0),),
    ),
    "svhn": Setting(
        (3, 32, 32), c_batch=(200, 200, 200), d_labelled=200, alone=(200, 200), alone_lr=3e-4, alone_weight=1e-3,
        u_weight=1e-3, u_ramp=0, w_g=(100, 1 / 30000, 0.025), lr=3e-4, c_lr=3e-4, decay_from=300, decay=0.995,
        c_decay=0.995, c_beta1=(0.5, 0.5),
        real=((1, 200, 0, 0), *((10 * k, 200 - 16 * k, 16 * k, 0) for k in range(1, 11)), (400, 40, 150, 10)),
    ),
    "cifar10": Setting(
        (3, 32, 32), c_batch=(100, 100, 100), d_labelled=200, alone=(200, 200), alone_lr=3e-3, alone_weight=100.0,
        u_weight=100.0, u_ramp=80, w_g=(0, 1 / 300, 1.0), lr=3e-4, c_lr=3e-3, decay_from=200, decay=0.995, c_decay=0.99,
        c_beta1=(0.9, 0.5),
        real=(*((50 * k - 49, 200 - 16 * k, 16 * k, 0) for k in range(1, 11)),
              *((500 + 100 * k, 50, 140 - 10 * k, 10 + 10 * k) for k in range(5))),
    ),
}  # fmt: skip


# --- Layers ---


def lrelu(h: Tensor) -> Tensor:
    return F.leaky_relu(h, 0.2)


def noise(h: Tensor, std: float) -> Tensor:
    return h + std * torch.randn_like(h)


def with_label(h: Tensor, y: Tensor) -> Tensor:
    """[h, y]: the one-hot label y (N x K) joined to a vector, or as K constant maps to a feature map."""
    return torch.cat([h, y if h.ndim == 2 else y[:, :, None, None].expand(-1, -1, *h.shape[2:])], 1)


class WeightNorm(nn.Module):
    """`layer` with the weights g v / |v| for each output; g is learnt where `scaled`, else 1."""

    def __init__(self, layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, scaled: bool = False):
        super().__init__()
        self.layer, out = layer, int(isinstance(layer, nn.ConvTranspose2d))  # the dimension that counts outputs
        self.axes = [d for d in range(layer.weight.ndim) if d != out]
        g = torch.ones([size if d == out else 1 for d, size in enumerate(layer.weight.shape)])
        self.g = nn.Parameter(g) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        v = self.layer.weight
        w = v * torch.rsqrt(v.square().sum(self.axes, keepdim=True) + 1e-6)
        return functional_call(self.layer, {"weight": w if self.g is None else self.g * w}, x)


class MeanOnlyNorm(nn.Module):
    """A convolution with weight norm, less the mean of the batch, plus a shift (zca_bn.py).

    While `starting`, a pass is the data-dependent start: it divides g by the standard deviation of the outputs.
    """

    running_mean: Tensor

    def __init__(self, cin: int, cout: int, kernel: int, padding: int):
        super().__init__()
        self.conv = WeightNorm(nn.Conv2d(cin, cout, kernel, padding=padding, bias=False), scaled=True)
        self.shift = nn.Parameter(torch.zeros(cout, 1, 1))
        self.register_buffer("running_mean", torch.zeros(cout, 1, 1))
        self.track_running_stats, self.starting = True, False

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).float()
        mean = h.mean((0, 2, 3)).view_as(self.shift) if self.training else self.running_mean
        if self.training and self.track_running_stats:
            self.running_mean.lerp_(mean.detach(), 0.001)
        h = h - mean
        if self.starting and self.conv.g is not None:
            std = h.square().mean((0, 2, 3)).sqrt().view_as(self.shift)
            self.conv.g.div_(std[..., None])
            h = h / std
        return h + self.shift


class ShiftNorm(nn.Module):
    """Batch norm with a shift and no gain."""

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d):
        super().__init__()
        self.norm, self.shift = norm, nn.Parameter(torch.zeros(norm.num_features))

    def forward(self, h: Tensor) -> Tensor:
        return self.norm(h) + self.shift.view(-1, *[1] * (h.ndim - 2))


def up(cin: int, cout: int, bias: bool = True) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(cin, cout, 5, stride=2, padding=2, output_padding=1, bias=bias)  # 5x5, doubles


def norm1d(width: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(width, eps=1e-4)


def norm2d(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-4)


@contextmanager
def moments_kept(net: nn.Module) -> Iterator[None]:
    """Passes that normalise by their own batch and leave the running moments of `net` as they are (deviation 4)."""
    norms: list[Any] = [m for m in net.modules() if hasattr(m, "track_running_stats")]
    for m in norms:
        m.track_running_stats = False
    yield
    for m in norms:
        m.track_running_stats = True


class ZCA(nn.Module):
    """x -> (x - m) U (S + 1e-5)^(-1/2) U^T for images of mean m, covariance U S U^T; the identity until it is fit."""

    mean: Tensor
    matrix: Tensor

    def __init__(self, shape: tuple[int, int, int]):
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("matrix", torch.eye(self.mean.numel()))

    def fit(self, chunks: Iterable[Tensor]) -> None:
        n, total, products = 0, torch.zeros(()).double(), torch.zeros(()).double()
        for chunk in chunks:
            x = chunk.flatten(1).double()
            n, total, products = n + len(x), total.to(x) + x.sum(0), products.to(x) + x.T @ x
        mean = total / n
        if n < len(mean) and n == len(chunk):  # a handful of images: their own directions, and 1e-5 in all others
            _, spread, u = torch.linalg.svd(x - mean, full_matrices=False)
            s, u = spread.square() / n, u.T
        else:
            s, u = torch.linalg.eigh(products / n - torch.outer(mean, mean))
        self.mean.copy_(mean.view_as(self.mean))
        rest = 1e-5**-0.5
        self.matrix.copy_(u * ((s.clamp(min=0) + 1e-5) ** -0.5 - rest) @ u.T)
        self.matrix.diagonal().add_(rest)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return ((x - self.mean).flatten(1) @ self.matrix).view_as(x)


# --- Losses of classifiers ---


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-E log p(y | x), p kept from 1e-6 to 1 - 1e-6 as in the code (deviation 6)."""
    return -clipped_log(logits.softmax(1)).gather(1, y[:, None]).mean()


def clipped_log(p: Tensor) -> Tensor:
    return p.clamp(1e-6, 1 - 1e-6).log()


def entropy_and_balance(logits: Tensor, weight: float) -> Tensor:
    """0.3 E H[p(y | u)] + weight * CE(uniform, E p(y | u)): sure of each image, and of each class equally often."""
    p = logits.softmax(1)
    return -0.3 * (p * clipped_log(p)).sum(1).mean() - weight * clipped_log(p.mean(0)).mean()


# --- Networks for MNIST: images in [0, 1] (deviation 5) ---


class MnistGenerator(nn.Module):
    """[z, y] -> 500, batch norm, softplus; [., y] -> 500, the same; [., y] -> 784 by weight norm, sigmoid."""

    def __init__(self, latent_dim: int, classes: int):
        super().__init__()
        self.fc1, self.bn1 = nn.Linear(latent_dim + classes, 500, bias=False), norm1d(500)
        self.fc2, self.bn2 = nn.Linear(500 + classes, 500, bias=False), norm1d(500)
        self.out = WeightNorm(nn.Linear(500 + classes, 784), scaled=True)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        h = F.softplus(self.bn1(self.fc1(with_label(z, y))))
        h = F.softplus(self.bn2(self.fc2(with_label(h, y))))
        return 2 * torch.sigmoid(self.out(with_label(h, y)).float()).unflatten(1, (1, 28, 28)) - 1


class MnistPairsXY(nn.Module):
    """D_xy: 1000, 500, 250, 250, 250, 1 fully connected, ReLU, weights of norm 1, y and noise at every layer."""

    def __init__(self, classes: int):
        super().__init__()
        inputs = (784, 1000 + classes, 500, 250, 250, 250)
        outputs = (1000, 500, 250, 250, 250, 1)
        self.fcs = nn.ModuleList(WeightNorm(nn.Linear(a + classes, b)) for a, b in zip(inputs, outputs, strict=True))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = noise((x.flatten(1) + 1) / 2, 0.3)
        for i, fc in enumerate(self.fcs):
            if i == 1:
                h = with_label(h, y)  # once before the noise and once after it, as in the code
            h = fc(with_label(noise(h, 0.5) if i else h, y))
            h = F.relu(h) if i < 5 else h
        return h.squeeze(1).float()  # N


class MnistPairsXZ(nn.Module):
    """D_xz (not the paper's): D_xy with z in the place of y, and noise on z as on x."""

    def __init__(self, latent_dim: int):
        super().__init__()
        inputs, outputs = (784, 1000, 500, 250, 250, 250), (1000, 500, 250, 250, 250, 1)
        self.fcs = nn.ModuleList(WeightNorm(nn.Linear(a + latent_dim, b)) for a, b in zip(inputs, outputs, strict=True))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        h, z = noise((x.flatten(1) + 1) / 2, 0.3), noise(z, 0.3)
        for i, fc in enumerate(self.fcs):
            h = fc(with_label(noise(h, 0.5) if i else h, z))
            h = F.relu(h) if i < 5 else h
        return h.squeeze(1).float()  # N


class MnistClassifier(nn.Module):
    """Five convolutions (32 of 5x5; 64, 64, 128, 128 of 3x3) with batch norm, ReLU; global mean -> 10 logits."""

    def __init__(self, classes: int):
        super().__init__()

        def conv(cin: int, cout: int, kernel: int, padding: int) -> list[nn.Module]:
            return [nn.Conv2d(cin, cout, kernel, padding=padding, bias=False), norm2d(cout), nn.ReLU()]

        self.body = nn.Sequential(
            *conv(1, 32, 5, 0), nn.MaxPool2d(2), nn.Dropout(0.5),
            *conv(32, 64, 3, 1), *conv(64, 64, 3, 0), nn.MaxPool2d(2), nn.Dropout(0.5),
            *conv(64, 128, 3, 1), *conv(128, 128, 3, 1),
        )  # fmt: skip
        self.out = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body((x + 1) / 2).mean((2, 3))).float()  # N x K

    def unlabelled_loss(self, u: Tensor, weight: float) -> Tensor:
        """0.3 H + weight * balance + 1e-4 |last layer's weights|^2"""
        return entropy_and_balance(self(u), weight) + 1e-4 * self.out.weight.square().sum()


# --- Networks for 32 x 32 ---


class Generator(nn.Module):
    """[z, y] -> 512 x 4x4 -> 256 x 8x8 -> 128 x 16x16 -> 3 x 32x32, y joined at every layer, tanh."""

    def __init__(self, latent_dim: int, classes: int):
        super().__init__()
        self.fc = nn.Linear(latent_dim + classes, 8192, bias=False)
        self.bn0 = ShiftNorm(nn.BatchNorm1d(8192, eps=1e-6, affine=False))
        self.up1, self.bn1 = up(512 + classes, 256, bias=False), ShiftNorm(nn.BatchNorm2d(256, eps=1e-6, affine=False))
        self.up2, self.bn2 = up(256 + classes, 128, bias=False), ShiftNorm(nn.BatchNorm2d(128, eps=1e-6, affine=False))
        self.out = WeightNorm(up(128 + classes, 3), scaled=True)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        h = F.relu(self.bn0(self.fc(with_label(z, y)))).unflatten(1, (512, 4, 4))
        h = F.relu(self.bn1(self.up1(with_label(h, y))))
        h = F.relu(self.bn2(self.up2(with_label(h, y))))
        return torch.tanh(self.out(with_label(h, y)).float())


class PairsXY(nn.Module):
    """D_xy: 3x3 convolutions 32, 32 s2, 64, 64 s2, 128, 128 with weights of norm 1, y at every layer; global mean."""

    def __init__(self, classes: int):
        super().__init__()
        plan = ((3, 32, 1, 1), (32, 32, 2, 1), (32, 64, 1, 1), (64, 64, 2, 1), (64, 128, 1, 0), (128, 128, 1, 0))
        self.convs = nn.ModuleList(
            WeightNorm(nn.Conv2d(a + classes, b, 3, stride, padding)) for a, b, stride, padding in plan
        )
        self.out = WeightNorm(nn.Linear(128 + classes, 1), scaled=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = x
        for i, conv in enumerate(self.convs):
            if i % 2 == 0:
                h = F.dropout(h, 0.2, self.training)
            h = lrelu(conv(with_label(h, y)))
        return self.out(with_label(h.mean((2, 3)), y)).squeeze(1).float()  # N


class PairsXZ(nn.Module):
    """D_xz: 5x5 convolutions of stride 2, 128, 256, 512, of x, and 512, 512 of z; together 1024 and 1."""

    def __init__(self, latent_dim: int):
        super().__init__()
        self.z = nn.Sequential(nn.Linear(latent_dim, 512), nn.LeakyReLU(0.2), nn.Linear(512, 512), nn.LeakyReLU(0.2))
        self.x = nn.Sequential(
            nn.Conv2d(3, 128, 5, 2, 2), nn.LeakyReLU(0.2),
            nn.Conv2d(128, 256, 5, 2, 2, bias=False), norm2d(256), nn.LeakyReLU(0.2),
            nn.Conv2d(256, 512, 5, 2, 2, bias=False), norm2d(512), nn.LeakyReLU(0.2), nn.Flatten(),
        )  # fmt: skip
        self.out = nn.Sequential(nn.Linear(8192 + 512, 1024), nn.LeakyReLU(0.2), nn.Linear(1024, 1))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.out(torch.cat([self.x(x), self.z(z)], 1)).squeeze(1).float()  # N


class Inference(nn.Module):
    """I: 4x4 convolutions of stride 2, 64, 128, 256, 512, with batch norm, leaky ReLU -> z, not squashed."""

    def __init__(self, shape: tuple[int, int, int], latent_dim: int):
        super().__init__()
        widths, side = (64, 128, 256, 512), shape[1] // 16
        self.zero_to_one = shape[0] == 1  # deviation 5
        layers: list[nn.Module] = []
        for a, b in zip((shape[0], *widths), widths, strict=False):
            layers += [nn.Conv2d(a, b, 4, 2, 1, bias=False), norm2d(b), nn.LeakyReLU(0.2)]
        self.body, self.out = nn.Sequential(*layers, nn.Flatten()), nn.Linear(512 * side * side, latent_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body((x + 1) / 2 if self.zero_to_one else x)).float()  # N x d


def nine(conv: Callable[[int, int, int, int], list[nn.Module]]) -> list[nn.Module]:
    """32 -> 16 -> 8 -> 6: the convolutions of both classifiers, `conv` of maps in, maps out, side and padding."""
    return [
        *conv(3, 128, 3, 1), *conv(128, 128, 3, 1), *conv(128, 128, 3, 1), nn.MaxPool2d(2), nn.Dropout(0.5),
        *conv(128, 256, 3, 1), *conv(256, 256, 3, 1), *conv(256, 256, 3, 1), nn.MaxPool2d(2), nn.Dropout(0.5),
        *conv(256, 512, 3, 0), *conv(512, 256, 1, 0), *conv(256, 128, 1, 0),
    ]  # fmt: skip


class SvhnClassifier(nn.Module):
    """Nine convolutions, 128, 256 and 512 to 128, with batch norm on every layer, the logits too; leaky ReLU 0.2."""

    def __init__(self, classes: int):
        super().__init__()

        def conv(cin: int, cout: int, kernel: int, padding: int) -> list[nn.Module]:
            return [nn.Conv2d(cin, cout, kernel, padding=padding, bias=False), norm2d(cout), nn.LeakyReLU(0.2)]

        self.body = nn.Sequential(nn.Dropout(0.2), *nine(conv))
        self.out, self.bn = nn.Linear(128, classes, bias=False), norm1d(classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.out(self.body(x).mean((2, 3)))).float()  # N x K

    def unlabelled_loss(self, u: Tensor, weight: float) -> Tensor:
        """0.3 H + weight * balance"""
        return entropy_and_balance(self(u), weight)


class CifarClassifier(nn.Module):
    """Those nine convolutions with Gaussian noise at the input, weight norm, mean-only batch norm; leaky ReLU 0.1."""

    def __init__(self, classes: int):
        super().__init__()

        def conv(cin: int, cout: int, kernel: int, padding: int) -> list[nn.Module]:
            return [MeanOnlyNorm(cin, cout, kernel, padding), nn.LeakyReLU(0.1)]

        self.body = nn.Sequential(*nine(conv))
        self.out = MeanOnlyNorm(128, classes, 1, 0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(noise(x, 0.15) if self.training else x).mean((2, 3), keepdim=True)
        return self.out(h).flatten(1).float()  # N x K

    @torch.no_grad()
    def start(self, u: Tensor) -> None:
        """The data-dependent start of g: outputs of every layer have standard deviation 1 on `u`."""
        convs = [m for m in self.modules() if isinstance(m, MeanOnlyNorm)]
        for m in convs:
            m.starting = True
        with moments_kept(self):
            self(u)
        for m in convs:
            m.starting = False

    def unlabelled_loss(self, u: Tensor, weight: float) -> Tensor:
        """weight * E (p(y | u) - p'(y | u))^2, the mean over classes too, of two passes with noise (Pi-model)."""
        with moments_kept(self):
            first = self(u).softmax(1)
        return weight * (first - self(u).softmax(1)).square().mean()


# --- The model ---


def parts(x: Tensor, *sizes: int) -> tuple[Tensor, ...]:
    """x cut in the proportion of `sizes`: into just these sizes where x has their sum."""
    return x.tensor_split([len(x) * sum(sizes[: i + 1]) // sum(sizes) for i in range(len(sizes) - 1)])


class SGAN(GAN):
    """SGAN (Deng et al., 2017).

    `data`: whose networks and schedules, 'mnist', 'svhn' or 'cifar10'. `labels`: how many images have a label; they
    decide C's batch on MNIST. `epoch_steps`: steps in an epoch of the schedules; `pretrain_steps`: of C alone, before
    the first epoch. `r_y`, `r_z`: weights of the collaborative games; the ablations have 0.
    """

    C: Any
    num_classes = 10
    game = "d_xy_loss", "g_loss"

    def __init__(
        self, data: str = "mnist", labels: int = 100, latent_dim: int = 100, epoch_steps: int = 300,
        pretrain_steps: int = 0, r_y: float = 1.0, r_z: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        if data not in SETTINGS:
            raise ValueError(f"data must be one of {', '.join(SETTINGS)}, not {data!r}")
        setting = SETTINGS[data]
        if data == "mnist":
            few = min(100, labels)
            setting = setting._replace(c_batch=(few, max(100, 10000 // labels), 200), d_labelled=few, alone=(few, 500))
        self.setting, self.image_shape, self.latent_dim = setting, setting.image_shape, latent_dim
        self.epoch_steps, self.pretrain_steps, self.r_y, self.r_z = epoch_steps, pretrain_steps, r_y, r_z
        k = self.num_classes
        self.G = MnistGenerator(latent_dim, k) if data == "mnist" else Generator(latent_dim, k)
        self.I = Inference(setting.image_shape, latent_dim)
        self.C = {"mnist": MnistClassifier, "svhn": SvhnClassifier, "cifar10": CifarClassifier}[data](k)
        self.D_xy = MnistPairsXY(k) if data == "mnist" else PairsXY(k)
        self.D_xz = MnistPairsXZ(latent_dim) if data == "mnist" else PairsXZ(latent_dim)
        for m in self.modules():  # weights N(0, .05), biases 0
            if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(m.weight, 0.0, 0.05)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)
        if data == "mnist":
            nn.init.normal_(self.C.out.weight, 0.0, 0.01)
            for layer in [m for m in self.G.modules() if isinstance(m, nn.Linear)]:
                nn.init.xavier_uniform_(layer.weight)
            for layer in [m for d in (self.D_xy, self.D_xz) for m in d.modules() if isinstance(m, nn.Linear)]:
                nn.init.normal_(layer.weight, 0.0, 0.1)
        self.whiten = ZCA(setting.image_shape) if data == "cifar10" else nn.Identity()  # for C alone
        self.C_average = copy.deepcopy(self.C).requires_grad_(False)  # what classifies; starts at zero, as in the code
        for a in self.C_average.state_dict().values():
            a.zero_()

    @torch.no_grad()
    def begin(self, chunks: Iterable[Tensor]) -> None:
        """On CIFAR-10: whitening of all training images, and C's data-dependent start on the first 200."""
        if not isinstance(self.whiten, ZCA):
            return
        chunks = iter(chunks)
        first = next(chunks)
        self.whiten.fit(chain([first], chunks))
        self.C.start(self.whiten(first[:BATCH]))

    def optimizers(self) -> dict[str, Optimizer]:
        networks = {"C": self.C, "D_xy": self.D_xy, "D_xz": self.D_xz, "I": self.I, "G": self.G}
        return {name: Adam(net.parameters(), self.setting.lr, betas=(0.5, 0.999)) for name, net in networks.items()}

    # --- Schedules ---

    def epoch(self, step: int) -> int:
        """1, 2, ... after C was trained alone."""
        return (step - self.pretrain_steps) // self.epoch_steps + 1

    def real_batch(self, epoch: int) -> tuple[int, int, int]:
        """How many of D_xy's 200 real pairs are labelled, pseudo-labelled and generated images."""
        _, labelled, pseudo, generated = [row for row in self.setting.real if row[0] <= epoch][-1]
        return labelled, pseudo, generated

    def w_u(self, epoch: int) -> float:
        """Weight of C's loss of unlabelled images: w exp(-5 (1 - t)^2), t = (epoch - 1) / ramp; 0 in a ramp's first."""
        ramp = self.setting.u_ramp
        t = min((epoch - 1) / ramp, 1.0) if ramp else 1.0
        return self.setting.u_weight * exp(-5 * (1 - t) ** 2) if t else 0.0

    def w_g(self, epoch: int) -> float:
        """Weight of generated images in C's loss."""
        start, slope, limit = self.setting.w_g
        return min(max((epoch - start) * slope, 0.0), limit)

    def c_beta1(self, epoch: int) -> float:
        """From the first to the second value, exp(-((epoch - 251) / 2)^2 / 50), from epoch 251 on."""
        before, after = self.setting.c_beta1
        share = exp(-(max(epoch - 251, 0) ** 2) / 200)
        return share * before + (1 - share) * after

    def set_rates(self, opt: Mapping[str, Optimizer], epoch: int) -> None:
        s, passed = self.setting, max(epoch - self.setting.decay_from, 0)
        for name, optimizer in opt.items():
            optimizer.param_groups[0]["lr"] = s.c_lr * s.c_decay**passed if name == "C" else s.lr * s.decay**passed
        opt["C"].param_groups[0]["betas"] = (self.c_beta1(epoch), 0.999)

    # --- Losses ---

    def d_loss(self, real_logit: Tensor, fake_logit: Tensor) -> Tensor:
        """-E log D(real pair) - E log(1 - D(fake pair)), of D_xy and of D_xz"""
        return F.softplus(-real_logit).mean() + F.softplus(fake_logit).mean()

    def r_y_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """R_y = -E log p_C(y | G(y, z))"""
        return cross_entropy(logits, y)

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
        """-E log p_C(y | x) + U(u; w_u) - w_g E log p_C(y | G(y, z)), U of each data set's own"""
        with moments_kept(self.C):
            loss = cross_entropy(self.C(self.whiten(x)), y)
            if w_g:
                fake, y_g = self.random_pairs(self.setting.c_batch[2] * len(x) // self.setting.c_batch[0])
                loss = loss + w_g * cross_entropy(self.C(self.whiten(fake)), y_g)
        return loss + self.C.unlabelled_loss(self.whiten(u), w_u)

    # --- Training ---

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        x, y, u = batch.x, batch.y, batch.u
        if y is None or u is None:
            raise ValueError("SGAN needs few labelled images and a stream of unlabelled ones")
        if batch.step < self.pretrain_steps:
            return {"c_loss": self.pretraining_step(x, y, u, opt["C"])}
        if batch.step == self.pretrain_steps:
            opt["C"].state.clear()  # training has an Adam of its own
        epoch, s = self.epoch(batch.step), self.setting
        self.set_rates(opt, epoch)
        (x_c, x_d), (y_c, y_d) = (parts(of, s.c_batch[0], s.d_labelled) for of in (x, y))
        u_c, u_d, u_i = parts(u, s.c_batch[1], BATCH, BATCH)  # deviation 2
        y_g = torch.arange(len(u_i), device=x.device) * self.num_classes // len(u_i)  # as many of each class

        # C (deviation 1)
        c_loss = minimize(self.c_loss(x_c, y_c, u_c, self.w_u(epoch), self.w_g(epoch)), opt["C"])
        self.update_average()

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
        with moments_kept(self.I):
            r_z = self.r_z_loss(self.I(fake), z)
        i_loss = minimize(self.i_loss(self.D_xz(u_i, z_i), r_z), opt["I"])

        # G
        with moments_kept(self.I), moments_kept(self.C):
            fake, z = self.fakes(y_g)
            r_y, r_z = self.r_y_loss(self.C(self.whiten(fake)), y_g), self.r_z_loss(self.I(fake), z)
        g_loss = minimize(self.g_loss(self.D_xy(fake, self.one_hot(y_g)), self.D_xz(fake, z), r_y, r_z), opt["G"])
        return {"c_loss": c_loss, "d_xy_loss": d_xy_loss, "d_xz_loss": d_xz_loss, "i_loss": i_loss, "g_loss": g_loss,
                "r_y_loss": r_y.detach(), "r_z_loss": r_z.detach()}  # fmt: skip

    def pretraining_step(self, x: Tensor, y: Tensor, u: Tensor, optimizer: Optimizer) -> Tensor:
        """C alone."""
        s, (labelled, unlabelled) = self.setting, self.setting.alone
        optimizer.param_groups[0].update(lr=s.alone_lr, betas=(0.9, 0.999))
        loss = self.c_loss(x[:labelled], y[:labelled], u[:unlabelled], s.alone_weight)
        c_loss = minimize(loss, optimizer)
        self.update_average()
        return c_loss

    @torch.no_grad()
    def update_average(self) -> None:
        """a <- a + 0.01 (c - a) for C's parameters and its running moments."""
        for a, c in zip(self.C_average.state_dict().values(), self.C.state_dict().values(), strict=True):
            a.lerp_(c, AVERAGED) if a.is_floating_point() else a.copy_(c)

    @torch.no_grad()
    def real_pairs(self, x: Tensor, y: Tensor, u: Tensor, epoch: int, n: int) -> tuple[Tensor, Tensor]:
        """n pairs that D_xy is to call real: labelled, unlabelled with C's answer, generated, in the epoch's shares."""
        labelled, pseudo, generated = (round(n * share / BATCH) for share in self.real_batch(epoch))
        x, y, u = x[:labelled], y[:labelled], u[:pseudo]
        if len(u):
            with moments_kept(self.C):
                x, y = torch.cat([x, u]), torch.cat([y, self.C(self.whiten(u)).argmax(1)])
        if generated:
            fake, y_g = self.random_pairs(generated)
            x, y = torch.cat([x, fake]), torch.cat([y, y_g])
        return x, y

    @torch.no_grad()
    def random_pairs(self, n: int) -> tuple[Tensor, Tensor]:
        """n generated images of random classes, and these."""
        y = torch.randint(self.num_classes, (n,), device=self.device)
        with moments_kept(self.G):
            return self.fakes(y)[0], y

    def fakes(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """G(y, z) of fresh latents, and these."""
        z = self.sample_latent(len(y)).to(y.device)
        return self.G(z, self.one_hot(y)), z

    def one_hot(self, y: Tensor) -> Tensor:
        return F.one_hot(y, self.num_classes).float()

    # --- Evaluation ---

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
