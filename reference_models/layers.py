"""Layers that have a name of their own in the field and that several papers use.

Every layer names the paper that it comes from. Whole networks, losses, training steps and schedules are the papers'
own: they stand in each paper's file. Shapes: N images of a batch, C channels, H x W pixels, K classes.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

# --- Small helpers ---


def lrelu(h: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2, the slope of DCGAN (Radford, Metz, Chintala, 2016, Section 3)."""
    return F.leaky_relu(h, 0.2)


def with_label(h: Tensor, y: Tensor | None) -> Tensor:
    """Join the one-hot label y (N x K) to the features h: [h, y], N x (C + K) or N x (C + K) x H x W.

    A feature map gets y as K constant maps (Mirza and Osindero, 2014; the MNIST code of Radford et al., 2016). If y is
    None, return h.
    """
    if y is None:
        return h
    return torch.cat([h, y if h.ndim == 2 else y[:, :, None, None].expand(-1, -1, *h.shape[2:])], 1)


def down_conv(cin: int, cout: int, kernel: int = 5, bias: bool = True) -> nn.Conv2d:
    """Convolution of stride 2, which halves an even image: C x 2H x 2W -> C' x H x W (Radford et al., 2016)."""
    return nn.Conv2d(cin, cout, kernel, stride=2, padding=(kernel - 1) // 2, bias=bias)


def up_conv(cin: int, cout: int, kernel: int = 5, bias: bool = True) -> nn.ConvTranspose2d:
    """Transposed convolution of stride 2, which doubles the image: C x H x W -> C' x 2H x 2W (Radford et al., 2016)."""
    padding, extra = (kernel - 1) // 2, kernel % 2
    return nn.ConvTranspose2d(cin, cout, kernel, stride=2, padding=padding, output_padding=extra, bias=bias)


def gaussian_noise(h: Tensor, std: float) -> Tensor:
    """h + std e, where e ~ N(0, I) has the shape of h."""
    return h + std * torch.randn_like(h)


class GaussianNoise(nn.Module):
    """h + std e with e ~ N(0, I) in training; the identity in evaluation (Salimans et al., 2016).

    fused: draw e in float32 and let one operation scale and add it, which rounds once.
    """

    def __init__(self, std: float, fused: bool = False):
        super().__init__()
        self.std, self.fused = std, fused

    def forward(self, h: Tensor) -> Tensor:
        if not (self.training and self.std):
            return h
        if self.fused:
            return torch.add(h, torch.randn(h.shape, device=h.device), alpha=self.std)
        return gaussian_noise(h, self.std)


# --- Initialisation and averages of weights ---


def normal(layer: nn.Module, std: float) -> nn.Module:
    """Draw the layer's weights from N(0, std^2); return the layer."""
    assert isinstance(layer.weight, Tensor)
    nn.init.normal_(layer.weight, 0.0, std)
    return layer


def normal_start(net: nn.Module, std: float) -> None:
    """Draw the weights of all linear and convolutional layers from N(0, std^2) and set their biases to 0."""
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@torch.no_grad()
def update_average(average: nn.Module, net: nn.Module, rate: float) -> None:
    """Exponential moving average a <- a + rate (p - a) of all parameters and buffers; whole numbers are copied."""
    for a, p in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
        a.lerp_(p, rate) if a.is_floating_point() else a.copy_(p)


@contextmanager
def data_dependent_start(net: nn.Module) -> Iterator[None]:
    """Forward passes inside set the scales of all layers that have a data-dependent start (attribute `starting`)."""
    layers: list[Any] = [m for m in net.modules() if hasattr(m, "starting")]
    for layer in layers:
        layer.starting = True
    yield
    for layer in layers:
        layer.starting = False


# --- Weight normalisation ---


class WeightNorm(nn.Module):
    """Weight normalisation: the weights of `layer` are w = g v / sqrt(|v|^2 + eps) for each output.

    scaled: learn g, one for each output, from 1 on; otherwise g = 1. `layer` keeps v as its weight, and its bias.
    Salimans and Kingma, "Weight Normalization", 2016, Equation 2; eps is that of the code of Li et al. (2017).
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, scaled: bool = False, eps: float = 1e-6):
        super().__init__()
        self.layer, self.eps = layer, eps
        out = int(isinstance(layer, nn.ConvTranspose2d))  # the dimension of v that counts outputs
        self.axes = [d for d in range(layer.weight.ndim) if d != out]
        g = torch.ones([size if d == out else 1 for d, size in enumerate(layer.weight.shape)])
        self.g = nn.Parameter(g) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        v = self.layer.weight
        w = v * torch.rsqrt(v.square().sum(self.axes, keepdim=True) + self.eps)
        return functional_call(self.layer, {"weight": w if self.g is None else self.g * w}, x)


class StartedWeightNorm(nn.Module):
    """Weight normalisation with a bias and a data-dependent start: h = (scale v / |v|) x + bias, for each output.

    train_scale: learn the scale; otherwise it stays at its start. init_std: standard deviation of the outputs after the
    data-dependent start; 0 means no such start. pooled: divide at the start by one deviation for the whole layer,
    instead of one for each output. `layer` has no bias of its own and keeps v as its weight. The lengths |v| are exact.
    Salimans and Kingma, "Weight Normalization", 2016, Equation 2 and Section 3; the code of Salimans et al. (2016).
    """

    def __init__(self, layer: nn.Module, train_scale: bool = False, init_std: float = 1.0, pooled: bool = False):
        super().__init__()
        assert isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
        assert layer.bias is None
        self.layer, self.init_std, self.pooled, self.starting = layer, init_std, pooled, False
        self.dim = int(isinstance(layer, nn.ConvTranspose2d))  # the dimension of v that counts outputs
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
        """The layer with normalised weights and this bias."""
        layer, weight = self.layer, torch._weight_norm(self.layer.weight, self.scale, self.dim)
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, bias)
        if isinstance(layer, nn.Conv2d):
            return F.conv2d(x, weight, bias, layer.stride, layer.padding)
        return F.conv_transpose2d(x, weight, bias, layer.stride, layer.padding, layer.output_padding)

    @torch.no_grad()
    def start(self, h: Tensor) -> None:
        """Set scale and bias so that these outputs get mean 0 and standard deviation init_std."""
        dims = [d for d in range(h.ndim) if d != 1]
        deviation = h.float().std(dims, correction=0)
        ratio = self.init_std / (deviation.square().mean().sqrt() if self.pooled else deviation)
        self.bias.copy_(-h.float().mean(dims) * ratio)
        self.scale.mul_(ratio.expand_as(self.bias).view_as(self.scale))


# --- Normalisation of activations ---


class MeanOnlyNorm(nn.Module):
    """Weight-normalised convolution with mean-only batch norm: h = t - E t + shift, t = (g v / |v|) * x.

    E t is the mean over batch and pixels in training, and its running mean (momentum 0.001) in evaluation. Under
    `data_dependent_start` a training pass also divides g by the standard deviation of its outputs.
    Salimans and Kingma, "Weight Normalization", 2016, Section 4; code of Li et al., 2017 (zca_bn.py).
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
    """Batch norm with a shift and no gain: norm(h) + shift, where `norm` has neither (affine=False)."""

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d):
        super().__init__()
        self.norm, self.shift = norm, nn.Parameter(torch.zeros(norm.num_features))

    def forward(self, h: Tensor) -> Tensor:
        return self.norm(h) + self.shift.view(-1, *[1] * (h.ndim - 2))


def shift_norm(width: int, norm: type[nn.BatchNorm1d | nn.BatchNorm2d] = nn.BatchNorm1d) -> nn.Module:
    """Batch norm with a shift and no gain, in one operation: torch's layer without its `weight`.

    It differs from ShiftNorm by rounding and by the names of its parameters alone.
    """
    layer = norm(width, eps=1e-6)
    layer.weight = None  # type: ignore[assignment]
    return layer


@contextmanager
def moments_kept(net: nn.Module) -> Iterator[None]:
    """Training passes inside normalise by their own batch and leave all running moments of `net` as they are."""
    norms: list[Any] = [m for m in net.modules() if hasattr(m, "track_running_stats")]
    for m in norms:
        m.track_running_stats = False
    yield
    for m in norms:
        m.track_running_stats = True


# --- Layers that look at the batch ---


class MinibatchDiscrimination(nn.Module):
    """[h, o(h)]: how close an image is to the others of its batch, by B kernels of C dimensions each.

    o(h_i)_b = sum over j != i of exp(-|M_ib - M_jb|_1), + bias_b; M_i = T h_i, and the rows of T have the length
    exp(log_scale). N x width -> N x (width + kernels). Under `data_dependent_start` a pass sets scales and biases.
    Salimans et al., "Improved Techniques for Training GANs", 2016, Section 3.2 and its code (nn.py).
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
        """Half the mean distance to the nearest other image becomes 1, and then o has mean 0."""
        itself = torch.full(distances.shape[1:2], math.inf, device=distances.device).diag()
        half = 0.5 * (distances + itself).amin(2).mean(1)
        self.log_scale.sub_(half.log().unsqueeze(1))
        self.bias.copy_(1 - (-distances / half.view(-1, 1, 1)).exp().sum(2).mean(1))


# --- Whitening ---


class ZCA(nn.Module):
    """ZCA whitening x -> (x - m) U (S + eps)^(-1/2) U^T for images of mean m and covariance U S U^T.

    It is the identity until `fit`. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
    Appendix A; eps = 1e-5 as in the code of Li et al. (2017).
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, shape: tuple[int, int, int], eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("matrix", torch.eye(self.mean.numel()))

    def fit(self, chunks: Iterable[Tensor]) -> None:
        """Set mean and matrix from chunks of images, N x C x H x W each, in float64."""
        n, total, products = 0, torch.zeros(()).double(), torch.zeros(()).double()
        for chunk in chunks:
            x = chunk.flatten(1).double()
            n, total, products = n + len(x), total.to(x) + x.sum(0), products.to(x) + x.T @ x
        mean = total / n
        if n < len(mean) and n == len(chunk):  # a handful of images: their own directions, and eps in all others
            _, spread, u = torch.linalg.svd(x - mean, full_matrices=False)
            s, u = spread.square() / n, u.T
        else:
            s, u = torch.linalg.eigh(products / n - torch.outer(mean, mean))
        self.mean.copy_(mean.view_as(self.mean))
        rest = self.eps**-0.5
        self.matrix.copy_(u * ((s.clamp(min=0) + self.eps) ** -0.5 - rest) @ u.T)
        self.matrix.diagonal().add_(rest)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return ((x - self.mean).flatten(1) @ self.matrix).view_as(x)
