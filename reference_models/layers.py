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
from torch.nn.utils import parametrizations, parametrize

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


class JoinLabel(nn.Module):
    """with_label as a layer of ConditionalSequential."""

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        return with_label(h, y)


class ConditionalSequential(nn.Sequential):
    """Layers in sequence, of which every JoinLabel joins the condition y (N x K, such as one-hot labels) to its input.

    Mirza and Osindero, "Conditional Generative Adversarial Nets", 2014.
    """

    def forward(self, h: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            h = layer(h, y) if isinstance(layer, JoinLabel) else layer(h)
        return h


class Affine(nn.Module):
    """scale h + shift: Affine(0.5, 0.5) maps images from [-1, 1] to [0, 1], and Affine(2, -1) maps them back."""

    def __init__(self, scale: float, shift: float):
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, h: Tensor) -> Tensor:
        return self.scale * h + self.shift


class Float32(nn.Module):
    """h in float32: the end of the layers that mixed precision may compute in bfloat16."""

    def forward(self, h: Tensor) -> Tensor:
        return h.float()


def down_conv(cin: int, cout: int, kernel: int = 5, bias: bool = True) -> nn.Conv2d:
    """Convolution of stride 2, which halves an even image: C x 2H x 2W -> C' x H x W (Radford et al., 2016)."""
    return nn.Conv2d(cin, cout, kernel, stride=2, padding=(kernel - 1) // 2, bias=bias)


def up_conv(cin: int, cout: int, kernel: int = 5, bias: bool = True) -> nn.ConvTranspose2d:
    """Transposed convolution of stride 2, which doubles the image: C x H x W -> C' x 2H x 2W (Radford et al., 2016)."""
    padding, extra = (kernel - 1) // 2, kernel % 2
    return nn.ConvTranspose2d(cin, cout, kernel, stride=2, padding=padding, output_padding=extra, bias=bias)


class Maxout(nn.Module):
    """Maximum over groups of `pieces` neighbouring channels: N x (C pieces) x ... -> N x C x ....

    A maxout layer is a linear or convolutional layer of C pieces outputs followed by this.
    Goodfellow et al., "Maxout Networks", 2013, Section 3.
    """

    def __init__(self, pieces: int):
        super().__init__()
        self.pieces = pieces

    def forward(self, h: Tensor) -> Tensor:
        return h.unflatten(1, (-1, self.pieces)).amax(2)


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


# --- Random numbers, initialisation and averages of weights ---


def truncated_normal(
    *shape: int, bound: float = 2.0, std: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Draws from N(0, std^2) under the condition |z| <= bound std, float32 of this shape.

    It is the distribution of redrawing every value that lies outside: the truncation trick of Brock, Donahue, Simonyan,
    "Large Scale GAN Training", 2019, Section 3.1, and TensorFlow's initialiser (bound 2).
    """
    return nn.init.trunc_normal_(torch.empty(shape), 0.0, std, -bound * std, bound * std, generator=generator)


def weighted_layers(net: nn.Module) -> Iterator[Any]:
    """All linear, convolutional and embedding layers of `net`, itself included.

    Raises ValueError if one is parametrised (spectral_norm): a value written to its weight would be lost.
    """
    for layer in list(net.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.Embedding):
            if parametrize.is_parametrized(layer):
                raise ValueError("initialise the weights before spectral_norm, and apply it once")
            yield layer


def normal(layer: nn.Module, std: float) -> nn.Module:
    """Draw the layer's weights from N(0, std^2); return the layer."""
    assert isinstance(layer.weight, Tensor)
    nn.init.normal_(layer.weight, 0.0, std)
    return layer


def normal_start(net: nn.Module, std: float) -> None:
    """Draw the weights of all linear, convolutional and embedding layers from N(0, std^2); set their biases to 0."""
    for layer in weighted_layers(net):
        nn.init.normal_(layer.weight, 0.0, std)
        zero_bias(layer)


def xavier_start(net: nn.Module, gain: float = 1.0, but: Iterable[nn.Module] = ()) -> None:
    """Draw these weights from U(-a, a), a = gain sqrt(6 / (fan_in + fan_out)); set their biases to 0.

    but: layers that stay as they are, such as tables of a vector for each class.

    Glorot and Bengio, "Understanding the Difficulty of Training Deep Feedforward Neural Networks", 2010, Equation 16.
    """
    spared = set(but)
    for layer in weighted_layers(net):
        if layer not in spared:
            nn.init.xavier_uniform_(layer.weight, gain)
            zero_bias(layer)


def orthogonal_start(net: nn.Module) -> None:
    """Make the weights of these layers random orthogonal matrices, outputs x all else; set their biases to 0.

    Rows are orthonormal if they are at most as many as columns, else columns are.
    Saxe, McClelland, Ganguli, "Exact Solutions to the Nonlinear Dynamics of Learning", 2014; Brock et al., 2019.
    """
    for layer in weighted_layers(net):
        if not layer.weight.is_meta:  # without values; a decomposition of none is slow
            nn.init.orthogonal_(layer.weight)
        zero_bias(layer)


def zero_bias(layer: Any) -> None:
    """Set the bias of a layer to 0 if it has one."""
    if getattr(layer, "bias", None) is not None:
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
    try:
        yield
    finally:
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
    data-dependent start; 0 means no such start. `layer` has no bias of its own and keeps v as its weight. The lengths
    |v| are exact.
    Salimans and Kingma, "Weight Normalization", 2016, Equation 2 and Section 3; the code of Salimans et al. (2016).
    """

    def __init__(self, layer: nn.Module, train_scale: bool = False, init_std: float = 1.0):
        super().__init__()
        assert isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
        assert layer.bias is None
        self.layer, self.init_std, self.starting = layer, init_std, False
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
        padding: Any = layer.padding  # never a word: only Conv2d takes "same"
        return F.conv_transpose2d(x, weight, bias, layer.stride, padding, layer.output_padding)

    @torch.no_grad()
    def start(self, h: Tensor) -> None:
        """Set scale and bias so that these outputs get mean 0 and standard deviation init_std."""
        dims = [d for d in range(h.ndim) if d != 1]
        ratio = self.init_std / h.float().std(dims, correction=0)
        self.bias.copy_(-h.float().mean(dims) * ratio)
        self.scale.mul_(ratio.view_as(self.scale))


# --- Other rules for weights ---


def spectral_norm(net: nn.Module, eps: float = 1e-12, but: Iterable[nn.Module] = ()) -> nn.Module:
    """Spectral normalisation W / sigma(W) of every linear, convolutional and embedding layer of `net`; return `net`.

    but: layers that stay as they are, such as tables of a vector for each class.

    W is a matrix of outputs x all else. sigma is u^T W v, where each forward pass in training moves u and v by one
    power iteration, u = n(W v), v = n(W^T u), n(a) = a / max(|a|, eps); the gradient takes u and v as constants.
    Miyato, Kataoka, Koyama, Yoshida, "Spectral Normalization for GANs", 2018, Algorithm 1. This is torch's
    parametrisation: it updates u first, where the paper updates v first, and it begins with fifteen iterations on the
    weights that it finds. So initialise the weights before; they must not be all 0.
    """
    spared = set(but)
    for layer in weighted_layers(net):
        if layer not in spared:
            outputs = int(isinstance(layer, nn.ConvTranspose2d))  # the dimension that counts outputs
            norm = _SpectralNorm(layer.weight, n_power_iterations=1, dim=outputs, eps=eps)
            parametrize.register_parametrization(layer, "weight", norm)
    return net


class _SpectralNorm(parametrizations._SpectralNorm):
    """torch's spectral norm. Weights without values (on the meta device) take no power iteration, which is slow."""

    def _power_method(self, weight_mat: Tensor, n_power_iterations: int) -> None:
        if not weight_mat.is_meta:
            super()._power_method(weight_mat, n_power_iterations)


@torch.no_grad()
def largest_singular_values(net: nn.Module) -> Tensor:
    """|W v| of each layer under `spectral_norm`, before normalisation: estimates of the largest singular values.

    They come from the power iteration's v and are never too large. Float32, one for each layer, in the order of
    `net.modules()`. Brock, Donahue, Simonyan, "Large Scale GAN Training", 2019, Section 4.1 follow them through a run:
    those of G explode when training collapses.
    """
    values = []
    for layer in net.modules():
        if parametrize.is_parametrized(layer, "weight"):
            weights: Any = layer.parametrizations.weight  # type: ignore[union-attr]
            with torch.autocast(weights.original.device.type, enabled=False):
                values.append(torch.mv(weights[0]._reshape_weight_to_matrix(weights.original), weights[0]._v).norm())
    return torch.stack(values)


class EqualisedRate(nn.Module):
    """Equalised learning rate: `layer` with the weights c w, w ~ N(0, 1), c = gain / sqrt(fan_in), and bias 0.

    c is He's constant, applied at run time, so that Adam moves all layers at the same relative speed. rate: multiplier
    of the learning rate; weights start at w / rate, and weights and bias are multiplied by rate at run time.
    Karras, Aila, Laine, Lehtinen, "Progressive Growing of GANs", 2018, Section 4.1; rate: Karras, Laine, Aila,
    "A Style-Based Generator Architecture", 2019, Appendix C.
    """

    def __init__(
        self, layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, gain: float = math.sqrt(2), rate: float = 1.0
    ):
        super().__init__()
        self.layer, self.rate = layer, rate
        outputs = layer.weight.shape[int(isinstance(layer, nn.ConvTranspose2d))]
        self.scale = rate * gain / math.sqrt(layer.weight.numel() / outputs)
        nn.init.normal_(layer.weight, 0.0, 1 / rate)
        zero_bias(layer)

    def forward(self, x: Tensor) -> Tensor:
        weights = {"weight": self.scale * self.layer.weight}
        if self.layer.bias is not None and self.rate != 1:
            weights["bias"] = self.rate * self.layer.bias
        return functional_call(self.layer, weights, x)


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


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose gain and shift are linear in a condition c: h -> (1 + W_g c) norm(h) + W_b c, for each channel.

    h: N x C x H x W; c: N x `condition`, float. If c is a one-hot label, the columns of 1 + W_g and W_b are tables of
    gains and shifts by class, from 1 and 0 on (Miyato and Koyama, 2018; Dumoulin, Shlens, Kudlur, "A Learned
    Representation for Artistic Style", 2017). If c is an embedding beside a part of the latent, it is the
    layer of Brock et al., 2019, Appendix B. W_g and W_b start at 0.
    """

    def __init__(self, width: int, condition: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.norm = nn.BatchNorm2d(width, eps, momentum, affine=False)
        self.gain, self.shift = nn.Linear(condition, width, bias=False), nn.Linear(condition, width, bias=False)
        nn.init.zeros_(self.gain.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        return (1 + self.gain(c))[:, :, None, None] * self.norm(h) + self.shift(c)[:, :, None, None]


class PixelNorm(nn.Module):
    """x / sqrt(mean over channels of x^2 + eps), at every pixel: N x C or N x C x H x W.

    Karras et al., "Progressive Growing of GANs", 2018, Section 4.2.
    """

    def __init__(self, eps: float = 1e-8):
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + self.eps)


class AdaIN(nn.Module):
    """Adaptive instance norm: (1 + y_s) norm(h) + y_b for each channel, where [y_s, y_b] is linear in a style w.

    norm(h) has mean 0 and variance 1 over the pixels of each image and channel. h: N x C x H x W; w: N x `latent_dim`.
    The linear layer has an equalised learning rate with gain 1, and bias 0.
    Huang and Belongie, "Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization", 2017; Karras,
    Laine, Aila, "A Style-Based Generator Architecture", 2019, Equation 1; eps and gain of its code.
    """

    def __init__(self, width: int, latent_dim: int, eps: float = 1e-8):
        super().__init__()
        self.affine, self.eps = EqualisedRate(nn.Linear(latent_dim, 2 * width), gain=1), eps

    def forward(self, h: Tensor, w: Tensor) -> Tensor:
        scale, shift = self.affine(w)[:, :, None, None].chunk(2, 1)
        h = h.to(torch.promote_types(h.dtype, torch.float32))
        return (1 + scale) * F.instance_norm(h, eps=self.eps) + shift


class NoiseInput(nn.Module):
    """h + b e for each channel: e is one noise image for all channels, N(0, 1) at each pixel, and b starts at 0.

    h: N x C x H x W; noise: e, N or 1 x 1 x H x W; None draws it on h's device.
    Karras, Laine, Aila, "A Style-Based Generator Architecture", 2019, Section 2.
    """

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(width, 1, 1))

    def forward(self, h: Tensor, noise: Tensor | None = None) -> Tensor:
        if noise is None:
            noise = torch.randn(len(h), 1, *h.shape[2:], dtype=h.dtype, device=h.device)
        return h + self.scale * noise


@contextmanager
def moments_kept(net: nn.Module) -> Iterator[None]:
    """Training passes inside normalise by their own batch and leave all running moments of `net` as they are."""
    norms: list[Any] = [m for m in net.modules() if getattr(m, "track_running_stats", False)]
    for m in norms:
        m.track_running_stats = False
    try:
        yield
    finally:
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


class MinibatchStd(nn.Module):
    """Join one map that tells how much a group of images differs: N x C x H x W -> N x (C + 1) x H x W.

    Its value is sqrt(variance over the group + 1e-8), a mean over channels and pixels. Image n belongs to group n mod
    (N / size), where size is the largest number up to `group` that divides N; group 0 means the whole batch.
    Karras et al., "Progressive Growing of GANs", 2018, Section 3; groups as in its TensorFlow code.
    """

    def __init__(self, group: int = 4):
        super().__init__()
        self.group = group

    def forward(self, h: Tensor) -> Tensor:
        n = len(h)
        size = next(k for k in range(min(self.group or n, n), 0, -1) if n % k == 0)
        groups = h.to(torch.promote_types(h.dtype, torch.float32)).view(size, n // size, *h.shape[1:])
        variance = (groups - groups.mean(0)).square().mean(0)  # in steps: var over a few images is slow on a CPU
        spread = (variance + 1e-8).sqrt().mean((1, 2, 3))  # one for each group
        spread = spread.repeat(size).to(h.dtype).view(n, 1, 1, 1)
        return torch.cat([h, spread.expand(-1, 1, *h.shape[2:])], 1)


# --- Layers that look at all pixels ---


class SelfAttention(nn.Module):
    """h + gamma W_o a, where a_i = sum over j of softmax_j(theta(h_i)^T phi(h_j)) g(h_j), for every pixel i.

    theta, phi (C / 8 channels), g (C / 2) and W_o are 1 x 1 convolutions without biases. pooled: take phi and g after
    max-pooling 2 x 2, so that j counts a quarter of the pixels. gamma starts at 0.
    Zhang, Goodfellow, Metaxas, Odena, "Self-Attention GANs", 2019, Section 3; widths and pooling of its code.
    """

    def __init__(self, width: int, pooled: bool = True):
        super().__init__()
        self.theta = nn.Conv2d(width, width // 8, 1, bias=False)
        self.phi = nn.Conv2d(width, width // 8, 1, bias=False)
        self.g = nn.Conv2d(width, width // 2, 1, bias=False)
        self.out = nn.Conv2d(width // 2, width, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))
        self.pool = nn.MaxPool2d(2) if pooled else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        queries = self.theta(h).flatten(2).transpose(1, 2)  # N x HW x C/8
        keys, values = self.pool(self.phi(h)).flatten(2), self.pool(self.g(h)).flatten(2)  # N x . x HW/4
        attention = torch.bmm(queries, keys).softmax(2)
        a = torch.bmm(values, attention.transpose(1, 2)).unflatten(2, h.shape[2:])
        return h + self.gamma * self.out(a)


# --- Resampling ---


def double(h: Tensor) -> Tensor:
    """Nearest-neighbour upsampling by 2: every pixel becomes 2 x 2."""
    return F.interpolate(h, scale_factor=2.0, mode="nearest")


def halve(h: Tensor) -> Tensor:
    """Downsampling by 2: the mean of every 2 x 2 pixels."""
    return F.avg_pool2d(h, 2)


def bilinear(h: Tensor, size: int) -> Tensor:
    """Bilinear resampling to size x size pixels, whose centres are at (i + 1/2) / size of the side."""
    return F.interpolate(h, size=(size, size), mode="bilinear", align_corners=False)


class Blur(nn.Module):
    """Convolve each channel with the outer product of `taps` ([1, 2, 1]: binomial), divided by its sum; zeros outside.

    up: double by nearest neighbours first. down: halve by 2 x 2 means afterwards. Both need no other antialiasing.
    Zhang, "Making Convolutional Networks Shift-Invariant Again", 2019; Karras et al., StyleGAN, 2019, Section 2.
    """

    kernel: Tensor

    def __init__(self, taps: tuple[float, ...] = (1, 2, 1), up: bool = False, down: bool = False):
        super().__init__()
        self.up, self.down = up, down
        row = torch.tensor(taps) / sum(taps)
        self.register_buffer("kernel", torch.outer(row, row)[None, None], persistent=False)

    def forward(self, h: Tensor) -> Tensor:
        h = double(h) if self.up else h
        channels, side = h.shape[1], self.kernel.shape[-1]
        h = F.conv2d(h, self.kernel.to(h.dtype).expand(channels, -1, -1, -1), padding=side // 2, groups=channels)
        return halve(h) if self.down else h


# --- Residual blocks of SN-GAN ---


def conv3(cin: int, cout: int, gain: float = math.sqrt(2)) -> nn.Conv2d:
    """3 x 3 convolution with Glorot's uniform start and bias 0."""
    layer = nn.Conv2d(cin, cout, 3, padding=1)
    xavier_start(layer, gain)
    return layer


def shortcut(cin: int, cout: int) -> nn.Conv2d:
    """1 x 1 convolution with Glorot's uniform start and bias 0."""
    layer = nn.Conv2d(cin, cout, 1)
    xavier_start(layer)
    return layer


class UpBlock(nn.Module):
    """Residual block of a generator: norm, ReLU, double, conv 3x3, norm, ReLU, conv 3x3; + (double, conv 1x1).

    N x cin x H x W -> N x cout x 2H x 2W. condition: size of the c that conditional batch norm takes; 0 means plain
    batch norm. up: if False, keep the size, and the shortcut is h itself where cin = cout.
    Miyato et al., "Spectral Normalization for GANs", 2018, Appendix B and its code, after Gulrajani et al., 2017.
    """

    def __init__(self, cin: int, cout: int, condition: int = 0, up: bool = True, eps: float = 1e-5):
        super().__init__()

        def norm(width: int) -> nn.Module:
            return ConditionalBatchNorm(width, condition, eps) if condition else nn.BatchNorm2d(width, eps)

        self.norm1, self.conv1 = norm(cin), conv3(cin, cout)
        self.norm2, self.conv2 = norm(cout), conv3(cout, cout)
        self.shortcut = shortcut(cin, cout) if up or cin != cout else nn.Identity()
        self.resample = double if up else nn.Identity()

    def forward(self, h: Tensor, c: Tensor | None = None) -> Tensor:
        given = () if c is None else (c,)
        r = self.conv1(self.resample(F.relu(self.norm1(h, *given))))
        r = self.conv2(F.relu(self.norm2(r, *given)))
        return r + self.resample(self.shortcut(h))  # a 1x1 convolution and doubling commute


class DownBlock(nn.Module):
    """Residual block of a discriminator: ReLU, conv 3x3, ReLU, conv 3x3, halve; + (conv 1x1, halve).

    N x cin x 2H x 2W -> N x cout x H x W. down: if False, keep the size, and the shortcut is h itself where cin = cout.
    hidden: channels between the convolutions, cin by default (Brock et al., 2019: cout). No norm: apply spectral_norm.
    Miyato et al., "Spectral Normalization for GANs", 2018, Appendix B and its code.
    """

    def __init__(self, cin: int, cout: int, down: bool = True, hidden: int = 0):
        super().__init__()
        hidden = hidden or cin
        self.conv1, self.conv2 = conv3(cin, hidden), conv3(hidden, cout)
        self.shortcut = shortcut(cin, cout) if down or cin != cout else nn.Identity()
        self.resample = halve if down else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        r = self.conv2(F.relu(self.conv1(F.relu(h))))
        return self.resample(r) + self.resample(self.shortcut(h))


class FirstDownBlock(nn.Module):
    """First block of a discriminator, on images: conv 3x3, ReLU, conv 3x3, halve; + (halve, conv 1x1).

    It has no ReLU at its input, where negative pixels would be lost. N x cin x 2H x 2W -> N x cout x H x W.
    Miyato et al., "Spectral Normalization for GANs", 2018, the code's OptimizedBlock.
    """

    def __init__(self, cin: int, cout: int):
        super().__init__()
        self.conv1, self.conv2, self.shortcut = conv3(cin, cout), conv3(cout, cout), shortcut(cin, cout)

    def forward(self, x: Tensor) -> Tensor:
        return halve(self.conv2(F.relu(self.conv1(x)))) + self.shortcut(halve(x))


# --- Whitening ---


class ZCA(nn.Module):
    """ZCA whitening x -> (x - m) U (S + eps)^(-1/2) U^T for images of mean m and covariance U S U^T.

    It is the identity until `fit`. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009;
    eps = 1e-5 as in the code of Li et al. (2017).
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
