"""Triple-GAN: a classifier and a generator play against one discriminator of pairs of image and label.

"Triple Generative Adversarial Nets",
Chongxuan Li, Kun Xu, Jun Zhu, Bo Zhang. NeurIPS 2017, arXiv:1703.02291.
Official code: https://github.com/zhenxuan00/triple-gan (x2y_yz2x_xy2p_ssl_mnist.py, _svhn.py, _cifar10.py).

C answers for images without a label, G makes images of given labels, and D is to call neither's pairs real. So C and G
each learn the joint distribution of images and labels, and C's errors no longer hurt G as those of a discriminator with
two roles would.

Unconfirmed: all numbers are those of the code, not of the paper's text; the paper may have another weight of the pseudo
discriminative loss on CIFAR-10. C's weight decay is what the code computes: of the last layer on MNIST, and of nothing
on SVHN, where the term names a layer that has no weights.

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

from ganbench.gan import GAN, Batch, minimize

G_BATCH = 200
ALPHA = 0.5  # share of C's pairs, against G's, among those that D is to call fake
AVERAGED = 0.01  # a <- a + 0.01 (c - a) after each step of C
ALONE_LR, ALONE_UNLABELLED, ALONE_BALANCE = 3e-4, 500, 0.3  # while C is trained alone


class Setting(NamedTuple):
    """What the code sets for one data set. Epochs count from 1 and begin after C was trained alone.

    c_batch: labelled and unlabelled images of C's batch. d_batch: labelled and pseudo-labelled ones that D is to call
    real. w_adversarial: the weight of C's adversarial loss. u_weight: the weight of C's loss R_U of unlabelled images,
    reached after u_ramp epochs. p_weight, p_epoch: the weight of the pseudo discriminative loss and its first epoch.
    lr, c_lr: rates, multiplied by 0.995 and c_decay each epoch after epoch 300. c_beta1: of C's Adam up to epoch 251
    and after its ramp.
    """

    image_shape: tuple[int, int, int]
    c_batch: tuple[int, int]
    d_batch: tuple[int, int]
    w_adversarial: float
    u_weight: float
    u_ramp: int
    p_weight: float
    p_epoch: int
    lr: float
    c_lr: float
    c_decay: float
    c_beta1: tuple[float, float]


SETTINGS = {
    "mnist": Setting(
        (1, 28, 28), c_batch=(100, 100), d_batch=(1, 400), w_adversarial=1.0, u_weight=1e-3, u_ramp=0, p_weight=0.1,
        p_epoch=300, lr=1e-3, c_lr=1e-3, c_decay=0.995, c_beta1=(0.5, 0.5),
    ),
    "svhn": Setting(
        (3, 32, 32), c_batch=(200, 200), d_batch=(20, 180), w_adversarial=0.01, u_weight=1e-3, u_ramp=0, p_weight=0.03,
        p_epoch=200, lr=3e-4, c_lr=3e-4, c_decay=0.995, c_beta1=(0.5, 0.5),
    ),
    "cifar10": Setting(
        (3, 32, 32), c_batch=(100, 100), d_batch=(40, 160), w_adversarial=0.01, u_weight=100.0, u_ramp=80, p_weight=0.1,
        p_epoch=200, lr=3e-4, c_lr=3e-3, c_decay=0.99, c_beta1=(0.9, 0.5),
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
    """Passes that normalise by their own batch and leave the running moments of `net` as they are (deviation 5)."""
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
    """-E log p(y | x), p kept from 1e-6 to 1 - 1e-6 as in the code (deviation 7)."""
    return -clipped_log(logits.softmax(1)).gather(1, y[:, None]).mean()


def clipped_log(p: Tensor) -> Tensor:
    return p.clamp(1e-6, 1 - 1e-6).log()


def entropy_and_balance(logits: Tensor, weight: float) -> Tensor:
    """0.3 E H[p(y | u)] + weight * CE(uniform, E p(y | u)): sure of each image, and of each class equally often."""
    p = logits.softmax(1)
    return -0.3 * (p * clipped_log(p)).sum(1).mean() - weight * clipped_log(p.mean(0)).mean()


# --- Networks for MNIST: images in [0, 1] (deviation 6) ---


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


class MnistDiscriminator(nn.Module):
    """D: 1000, 500, 250, 250, 250, 1 fully connected, ReLU, weights of norm 1, y and noise at every layer."""

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

    def unlabelled_loss(self, logits: Tensor, u: Tensor, weight: float) -> Tensor:
        """0.3 H + weight * balance + 1e-4 |last layer's weights|^2"""
        return entropy_and_balance(logits, weight) + 1e-4 * self.out.weight.square().sum()


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


class Discriminator(nn.Module):
    """D: 3x3 convolutions 32, 32 s2, 64, 64 s2, 128, 128 with weights of norm 1, y at every layer; global mean."""

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

    def unlabelled_loss(self, logits: Tensor, u: Tensor, weight: float) -> Tensor:
        """0.3 H + weight * balance"""
        return entropy_and_balance(logits, weight)


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

    def unlabelled_loss(self, logits: Tensor, u: Tensor, weight: float) -> Tensor:
        """weight * E (p(y | u) - p'(y | u))^2, the mean over classes too, of two passes with noise (Pi-model)."""
        with moments_kept(self):
            again = self(u).softmax(1)
        return weight * (logits.softmax(1) - again).square().mean()


# --- The model ---


def parts(x: Tensor, *sizes: int) -> tuple[Tensor, ...]:
    """x cut in the proportion of `sizes`: into just these sizes where x has their sum."""
    return x.tensor_split([len(x) * sum(sizes[: i + 1]) // sum(sizes) for i in range(len(sizes) - 1)])


class TripleGAN(GAN):
    """Triple-GAN (Li et al., 2017).

    `data`: whose networks and schedules, 'mnist', 'svhn' or 'cifar10'. `labels`: how many images have a label; they
    decide the batches on MNIST. `epoch_steps`: steps in an epoch of the schedules; `pretrain_steps`: of C alone, before
    the first epoch (the code does so on MNIST up to 100 labels).
    """

    C: Any
    num_classes = 10

    def __init__(
        self, data: str = "mnist", labels: int = 100, latent_dim: int = 100, epoch_steps: int = 600,
        pretrain_steps: int = 0,
    ):  # fmt: skip
        super().__init__()
        if data not in SETTINGS:
            raise ValueError(f"data must be one of {', '.join(SETTINGS)}, not {data!r}")
        setting = SETTINGS[data]
        if data == "mnist":
            c_batch, d_batch = (min(100, labels), max(100, 10000 // labels)), (max(labels // 100, 1), 400)
            setting = setting._replace(c_batch=c_batch, d_batch=d_batch)
        self.setting, self.image_shape, self.latent_dim = setting, setting.image_shape, latent_dim
        self.epoch_steps, self.pretrain_steps = epoch_steps, pretrain_steps
        k = self.num_classes
        self.G = MnistGenerator(latent_dim, k) if data == "mnist" else Generator(latent_dim, k)
        self.C = {"mnist": MnistClassifier, "svhn": SvhnClassifier, "cifar10": CifarClassifier}[data](k)
        self.D = MnistDiscriminator(k) if data == "mnist" else Discriminator(k)
        for m in self.modules():  # weights N(0, .05), biases 0
            if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(m.weight, 0.0, 0.05)
                if m.bias is not None:
                    nn.init.zeros_(m.bias)
        if data == "mnist":
            nn.init.normal_(self.C.out.weight, 0.0, 0.01)
            for layer in [m for m in self.G.modules() if isinstance(m, nn.Linear)]:
                nn.init.xavier_uniform_(layer.weight)
            for layer in [m for m in self.D.modules() if isinstance(m, nn.Linear)]:
                nn.init.normal_(layer.weight, 0.0, 0.1)
        self.whiten = ZCA(setting.image_shape) if data == "cifar10" else nn.Identity()  # for C alone
        self.C_average = copy.deepcopy(self.C).requires_grad_(False)  # what classifies; starts at zero, as in the code
        for a in self.C_average.state_dict().values():
            a.zero_()

    @torch.no_grad()
    def begin(self, chunks: Iterable[Tensor]) -> None:
        """On CIFAR-10: whitening of all training images, and C's data-dependent start on the first 100."""
        if not isinstance(self.whiten, ZCA):
            return
        chunks = iter(chunks)
        first = next(chunks)
        self.whiten.fit(chain([first], chunks))
        self.C.start(self.whiten(first[: self.setting.c_batch[1]]))

    def optimizers(self) -> dict[str, Optimizer]:
        networks = {"D": self.D, "G": self.G, "C": self.C}
        return {name: Adam(net.parameters(), self.setting.lr, betas=(0.5, 0.999)) for name, net in networks.items()}

    # --- Schedules ---

    def epoch(self, step: int) -> int:
        """1, 2, ... after C was trained alone."""
        return (step - self.pretrain_steps) // self.epoch_steps + 1

    def w_u(self, epoch: int) -> float:
        """Weight of C's loss of unlabelled images: w exp(-5 (1 - t)^2), t = (epoch - 1) / ramp; 0 in a ramp's first."""
        ramp = self.setting.u_ramp
        t = min((epoch - 1) / ramp, 1.0) if ramp else 1.0
        return self.setting.u_weight * exp(-5 * (1 - t) ** 2) if t else 0.0

    def c_beta1(self, epoch: int) -> float:
        """From the first to the second value, exp(-((epoch - 251) / 2)^2 / 50), from epoch 251 on."""
        before, after = self.setting.c_beta1
        share = exp(-(max(epoch - 251, 0) ** 2) / 200)
        return share * before + (1 - share) * after

    def set_rates(self, opt: Mapping[str, Optimizer], epoch: int) -> None:
        s, passed = self.setting, max(epoch - 300, 0)
        for name, optimizer in opt.items():
            optimizer.param_groups[0]["lr"] = s.c_lr * s.c_decay**passed if name == "C" else s.lr * 0.995**passed
        opt["C"].param_groups[0]["betas"] = (self.c_beta1(epoch), 0.999)

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
        with moments_kept(self.C):
            return cross_entropy(self.C(self.whiten(x)), y)

    def c_loss(self, x: Tensor, y: Tensor, u: Tensor, fake: tuple[Tensor, Tensor] | None, w_u: float) -> Tensor:
        """w times the adversarial loss + R_L(x, y) + R_U(u) + alpha_P R_P(fake), the last from its first epoch on"""
        whitened = self.whiten(u)
        logits = self.C(whitened)
        with torch.no_grad():
            c_logit = self.D(u, self.one_hot(logits.argmax(1)))
        loss = self.setting.w_adversarial * self.c_adversarial_loss(logits, c_logit) + self.supervised_loss(x, y)
        loss = loss + self.C.unlabelled_loss(logits, whitened, w_u)
        return loss + self.setting.p_weight * self.supervised_loss(*fake) if fake else loss

    # --- Training ---

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        x, y, u = batch.x, batch.y, batch.u
        if y is None or u is None:
            raise ValueError("Triple-GAN needs few labelled images and a stream of unlabelled ones")
        if batch.step < self.pretrain_steps:
            return {"c_loss": self.pretraining_step(x, y, u, opt["C"])}
        if batch.step == self.pretrain_steps:
            opt["C"].state.clear()  # training has an Adam of its own
        epoch, s = self.epoch(batch.step), self.setting
        self.set_rates(opt, epoch)
        (x_c, x_d), (y_c, y_d) = parts(x, 1, 1), parts(y, 1, 1)
        x_d, y_d = x_d[: s.d_batch[0]], y_d[: s.d_batch[0]]
        u_c, u_d = parts(u, s.c_batch[1], s.d_batch[1])  # deviation 3
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
            pairs = (self.fakes(y_g), y_g) if epoch >= s.p_epoch else None
        c_loss = minimize(self.c_loss(x_c, y_c, u_c, pairs, self.w_u(epoch)), opt["C"])
        self.update_average()
        return {"d_loss": d_loss, "g_loss": g_loss, "c_loss": c_loss}

    def pretraining_step(self, x: Tensor, y: Tensor, u: Tensor, optimizer: Optimizer) -> Tensor:
        """C alone, with more unlabelled images and a stronger balance."""
        optimizer.param_groups[0].update(lr=ALONE_LR, betas=(0.9, 0.999))
        u, (x, _), (y, _) = self.whiten(u[:ALONE_UNLABELLED]), parts(x, 1, 1), parts(y, 1, 1)
        loss = self.supervised_loss(x, y) + self.C.unlabelled_loss(self.C(u), u, ALONE_BALANCE)
        c_loss = minimize(loss, optimizer)
        self.update_average()
        return c_loss

    @torch.no_grad()
    def update_average(self) -> None:
        """a <- a + 0.01 (c - a) for C's parameters and its running moments."""
        for a, c in zip(self.C_average.state_dict().values(), self.C.state_dict().values(), strict=True):
            a.lerp_(c, AVERAGED) if a.is_floating_point() else a.copy_(c)

    @torch.no_grad()
    def answers(self, u: Tensor) -> Tensor:
        """argmax_y p_C(y | u), C as it is in training."""
        with moments_kept(self.C):
            return self.C(self.whiten(u)).argmax(1)

    def fakes(self, y: Tensor) -> Tensor:
        """G(y, z) of fresh latents."""
        return self.G(self.sample_latent(len(y)).to(y.device), self.one_hot(y))

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
            raise ValueError("Triple-GAN needs labels")
        return self.G(z, self.one_hot(y))

    def classify(self, x: Tensor) -> Tensor:
        """Logits N x 10 of the average of C."""
        return self.C_average(self.whiten(x))
