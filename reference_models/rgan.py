"""rAC-GAN and rcGAN: generators of the true classes, learnt from wrong labels.

"Label-Noise Robust Generative Adversarial Networks",
Takuhiro Kaneko, Yoshitaka Ushiku, Tatsuya Harada. CVPR 2019, arXiv:1811.11165.
Official code: https://github.com/takuhirok/rGAN (trainers, models/resnet.py, scripts/train.sh).

Images come with noisy labels y~, whose true labels y^ are unknown; T[i, j] = p(y~ = j | y^ = i). G takes true labels.
rAC-GAN: the class head C of D names the true class, and is held against the noisy one through T. rcGAN: D judges pairs
of image and noisy label, and a generated image gets a label that T makes noisy. AC-GAN and cGAN are these two with
T = I, and in this file they are nothing else. All four stand on one of four GANs (`FORMS`).

Unconfirmed, because the paper's tables and appendix could not be read:
- whether the paper's symmetric noise may draw the true class again, as the code's does;
- its networks for the DCGAN form, which the code lacks: here DCGAN's layers, between widths as in FORMS["sngan"];
- how the paper estimates T. Here as in Patrini et al. (2017), whom it builds on: by anchor points.

Deviations from the paper and its code:
1. The class loss is computed from logarithms; the code adds 1e-8 to the probability.
2. The learning rate falls by the number of the step, at most two steps behind the code's.
3. G moves after the updates of D, with the labels of the last of them. The code moves it before those of the next step,
   with the same labels, so that the updates are the same ones.
4. With T estimated, the code's extra loss for hard cases (mutual information) is left out: its weight is unknown.
5. Samples are drawn with the running moments of batch norm, and every step is trained: the paper stops by the best FID.
6. AC-GAN's logit has no bias in WGAN-GP and CT-GAN: it cancels in their loss, and rounding alone would move it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ganbench.gan import GAN, Batch, minimize, transition_matrix
from reference_models.layers import (
    ConditionalBatchNorm,
    DownBlock,
    FirstDownBlock,
    UpBlock,
    conv3,
    down_conv,
    normal_start,
    spectral_norm,
    up_conv,
    xavier_start,
)

# --- Networks (models/resnet.py) ---


class Generator(nn.Module):
    """z -> S/8 x S/8 -> three residual blocks that double, conditional batch norm -> batch norm, conv 3x3, tanh."""

    def __init__(self, size: int, channels: int, classes: int, latent_dim: int, width: int):
        super().__init__()
        self.start = (width, size // 8, size // 8)
        self.project = nn.Linear(latent_dim, width * (size // 8) ** 2)
        self.blocks = nn.ModuleList(UpBlock(width, width, classes) for _ in range(3))
        self.norm, self.out = nn.BatchNorm2d(width), conv3(width, channels, gain=1)
        xavier_start(self.project)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        h = self.project(z).unflatten(1, self.start)
        for block in self.blocks:
            h = block(h, y)
        return torch.tanh(self.out(F.relu(self.norm(h))).float())


def body(channels: int, width: int, dropout: bool) -> nn.Sequential:
    """Residual blocks of D, S x S -> S/4 x S/4 of `width` channels; dropout 0.2, 0.5, 0.5 after all but the first."""
    p, q = (0.2, 0.5) if dropout else (0.0, 0.0)
    return nn.Sequential(
        FirstDownBlock(channels, width),
        DownBlock(width, width), nn.Dropout(p),
        DownBlock(width, width, down=False), nn.Dropout(q),
        DownBlock(width, width, down=False), nn.Dropout(q), nn.ReLU(),
    )


class DCGANGenerator(nn.Module):
    """z -> S/8 x S/8 -> three transposed convolutions 5x5 of stride 2, conditional batch norm before each, tanh."""

    def __init__(self, size: int, channels: int, classes: int, latent_dim: int, width: int):
        super().__init__()
        widths = (4 * width, 2 * width, width)
        self.start = (widths[0], size // 8, size // 8)
        self.project = nn.Linear(latent_dim, widths[0] * (size // 8) ** 2)
        self.convs = nn.ModuleList(up_conv(a, b) for a, b in zip(widths, (*widths[1:], channels), strict=True))
        normal_start(self, 0.02)
        self.norms = nn.ModuleList(ConditionalBatchNorm(w, classes) for w in widths)  # gains from 1, shifts from 0 on

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        h = self.project(z).unflatten(1, self.start)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            h = conv(F.relu(norm(h, y)))
        return torch.tanh(h.float())


def dcgan_body(channels: int, width: int, dropout: bool) -> nn.Sequential:
    """Convolutions 5x5 of stride 2 of D, S x S -> S/8 x S/8 of 4 `width` channels; batch norm but at the first."""
    net = nn.Sequential(
        down_conv(channels, width), nn.LeakyReLU(0.2),
        down_conv(width, 2 * width), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2),
        down_conv(2 * width, 4 * width), nn.BatchNorm2d(4 * width), nn.LeakyReLU(0.2),
    )
    normal_start(net, 0.02)
    return net


# --- Losses (L_adv) and penalties ---


def hinge_d(real: Tensor, fake: Tensor) -> Tensor:
    """E max(0, 1 - D(x)) + E max(0, 1 + D(G(z)))   (SN-GAN)"""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def critic_d(real: Tensor, fake: Tensor) -> Tensor:
    """E D(G(z)) - E D(x)   (WGAN)"""
    return fake.mean() - real.mean()


def critic_g(fake: Tensor) -> Tensor:
    """-E D(G(z))   (WGAN, and with the hinge)"""
    return -fake.mean()


def entropy_d(real: Tensor, fake: Tensor) -> Tensor:
    """-E log D(x) - E log(1 - D(G(z)))   (DCGAN)"""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def entropy_g(fake: Tensor) -> Tensor:
    """-E log D(G(z))   (DCGAN)"""
    return F.softplus(-fake).mean()


Critic = Callable[[Tensor], tuple[Tensor, Tensor]]  # images to logits, N, and features, N x C


def gradient_penalty(critic: Critic, x: Tensor, fake: Tensor) -> Tensor:
    """E (|grad D(x')| - 1)^2, x' = a x + (1 - a) G(z), with one a ~ U(0, 1) for each image   (WGAN-GP, Equation 3)"""
    a = torch.rand(len(x), 1, 1, 1, device=x.device)
    between = (a * x + (1 - a) * fake).requires_grad_()
    logits, _ = critic(between)
    with torch.autocast(x.device.type, enabled=False):
        (slope,) = torch.autograd.grad(logits.sum(), between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


def consistency(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], weight: float, margin: float = 0.0) -> Tensor:
    """E max(0, w (D - D')^2 + 0.1 w mean (f - f')^2 - M), two dropout passes D, D'   (CT-GAN, Equation 4)"""
    distance = (a[0] - b[0]).square() + 0.1 * (a[1] - b[1]).square().mean(1)
    return F.relu(weight * distance - margin).mean()


class Form(NamedTuple):
    """A GAN that takes labels: networks, loss, and the numbers of scripts/train.sh."""

    generator: Any
    body: Callable[[int, int, bool], nn.Sequential]
    d_loss: Callable[[Tensor, Tensor], Tensor]
    g_loss: Callable[[Tensor], Tensor]
    spectral: bool = False  # spectral norm in D
    add: bool = False  # sum over pixels, not their mean, before the logit
    dropout: bool = False
    lambda_gp: float = 0.0
    lambda_ct: float = 0.0
    betas: tuple[float, float] = (0.0, 0.9)
    maps: int = 1  # channels of the body's last map, in widths


FORMS = {
    "sngan": Form(Generator, body, hinge_d, critic_g, spectral=True, add=True),
    "wgangp": Form(Generator, body, critic_d, critic_g, lambda_gp=10.0),
    "ctgan": Form(Generator, body, critic_d, critic_g, dropout=True, lambda_gp=10.0, lambda_ct=2.0),
    "dcgan": Form(DCGANGenerator, dcgan_body, entropy_d, entropy_g, betas=(0.5, 0.999), maps=4),
}


class ClassDiscriminator(nn.Module):
    """x -> logit, class logits (N x K) and features (N x C): AC-GAN's; no spectral norm on the class head."""

    def __init__(self, form: Form, channels: int, classes: int, width: int):
        super().__init__()
        self.body, self.add = form.body(channels, width, form.dropout), form.add
        self.logit = nn.Linear(form.maps * width, 1, bias=form.d_loss is not critic_d)  # deviation 6
        self.classes = nn.Linear(form.maps * width, classes)
        xavier_start(self.logit)
        xavier_start(self.classes)
        if form.spectral:
            spectral_norm(self, but=[self.classes])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.body(x).float()
        f = h.mean((2, 3))
        logit = self.logit(h.sum((2, 3)) if self.add else f)
        return logit.squeeze(1).float(), self.classes(f).float(), f


class ProjectionDiscriminator(nn.Module):
    """x, y -> logit l(h) + <E[y], h>, and features (N x C): the projection discriminator of Miyato and Koyama, 2018."""

    def __init__(self, form: Form, channels: int, classes: int, width: int):
        super().__init__()
        self.body, self.add = form.body(channels, width, form.dropout), form.add
        self.logit = nn.Linear(form.maps * width, 1, bias=False)
        self.embed = nn.Embedding(classes, form.maps * width)
        xavier_start(self.logit)
        xavier_start(self.embed)
        if form.spectral:
            spectral_norm(self)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x).float()
        f = h.mean((2, 3))
        pooled = h.sum((2, 3)) if self.add else f
        return self.logit(pooled).squeeze(1).float() + (self.embed(y) * pooled).sum(1).float(), f


class Classifier(nn.Module):
    """x -> class logits, N x K: what noisy label an image has, for the estimate of T."""

    def __init__(self, channels: int, classes: int, width: int):
        super().__init__()
        self.body, self.classes = body(channels, width, False), nn.Linear(width, classes)
        xavier_start(self.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.body(x).float().mean((2, 3))).float()


# --- The models ---


class LabelNoiseGAN(GAN):
    """The base of the four models: G, T, the order of the updates, samples.

    form: 'sngan', 'wgangp', 'ctgan' or 'dcgan'. T, rate: the noise that the model expects, in the words of a recipe's
    `label_noise`; 'estimated': T is read off a classifier that is trained alone in the first `pretrain_steps` steps. A
    batch is that of `n_critic` updates of D; G's has `g_batch` times the images of one of them. decay_steps: the
    learning rates fall linearly to 0 over this many steps; 0: they are constant.
    """

    G: Any
    D: Any
    T: Tensor
    discriminator: Any
    robust = True  # False: T = I

    def __init__(
        self, image_size: int = 32, channels: int = 3, num_classes: int = 10, form: str = "sngan",
        T: str = "symmetric", rate: float = 0.0, latent_dim: int = 128, g_width: int = 256, d_width: int = 128,
        n_critic: int = 5, g_batch: int = 2, lr: float = 2e-4, decay_steps: int = 100000, pretrain_steps: int = 0,
    ):
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, not '{form}'")
        if image_size < 8 or image_size % 8:
            raise ValueError(f"image_size must be a multiple of 8, not {image_size}")
        if n_critic < 1 or g_batch < 1:
            raise ValueError("n_critic and g_batch must be at least 1")
        if not self.robust and (T, rate, pretrain_steps) != ("symmetric", 0, 0):
            raise ValueError("a baseline has T = I: give T and rate to the robust model")
        if (T == "estimated") != (pretrain_steps > 0) or (T == "estimated" and rate):
            raise ValueError("T = 'estimated' takes pretrain_steps and no rate, and another T takes no pretrain_steps")
        self.image_shape, self.num_classes, self.form = (channels, image_size, image_size), num_classes, FORMS[form]
        self.latent_dim, self.n_critic, self.g_batch = latent_dim, n_critic, g_batch
        self.lr, self.decay_steps, self.pretrain_steps = lr, decay_steps, pretrain_steps
        if self.form.d_loss is critic_d:
            self.game = None  # the sign of a distance does not say who has won
        self.G = self.form.generator(image_size, channels, num_classes, latent_dim, g_width)
        self.D = self.discriminator(self.form, channels, num_classes, d_width)
        if T == "estimated":
            self.C = Classifier(channels, num_classes, d_width)
            self.register_buffer("T", torch.zeros(num_classes, num_classes))
        else:
            self.register_buffer("T", torch.tensor(transition_matrix(T, rate, num_classes)))

    def d_terms(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The terms of D's loss on real images and their noisy labels, by name."""
        raise NotImplementedError

    def g_terms(self, y: Tensor) -> dict[str, Tensor]:
        """The terms of G's loss for noisy labels, by name."""
        raise NotImplementedError

    def penalties(self, critic: Critic, x: Tensor, fake: Tensor, first: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """The terms of D's loss that keep it smooth, by name. first: logits and features of the first pass of x."""
        terms = {}
        if self.form.lambda_gp:
            terms["penalty_loss"] = self.form.lambda_gp * gradient_penalty(critic, x, fake)
        if self.form.lambda_ct:
            terms["consistency_loss"] = consistency(first, critic(x), self.form.lambda_ct)
        return terms

    def true_label(self, y: Tensor) -> Tensor:
        """y^ ~ q(y^ | y~ = y) = T[y^, y] / sum over k of T[k, y]: true classes are equally likely."""
        q = self.T.T + 1e-30 * torch.eye(self.num_classes, device=y.device)  # a label that T never gives stays itself
        below = q.cumsum(1) / q.sum(1, keepdim=True)
        return (below[y] / below[y, -1:] <= torch.rand(len(y), 1, device=y.device)).sum(1)

    def fakes(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """G(z, y^), and y^, for noisy labels y."""
        true = self.true_label(y)
        return self.generate(self.sample_latent(len(y)).to(self.device), true), true

    def estimate(self, x: Tensor, y: Tensor, step: int, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        """Train the classifier; in the second half of these steps, look for anchors (Patrini et al., Equation 12).

        The anchor of class i is the image of the batch that most probably has the noisy label i. Row i of T is the mean
        over batches of the classifier's p(y~ | anchor of i).
        """
        logits, batches = self.C(x), step - self.pretrain_steps // 2 + 1
        if batches > 0:
            p = logits.detach().softmax(1)
            self.T += (p[p.argmax(0)] - self.T) / batches
        return {"c_loss": minimize(F.cross_entropy(logits, y), opt["C"])}

    def optimizers(self) -> dict[str, Optimizer]:
        nets = {name: net for name, net in self.named_children() if name in ("D", "G", "C")}
        return {name: Adam(net.parameters(), self.lr, betas=self.form.betas) for name, net in nets.items()}

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        """n_critic updates of D, each on new images, then one of G."""
        if batch.y is None:
            raise ValueError("rAC-GAN and rcGAN need labels")
        x = dequantised(batch.x)
        if batch.step < self.pretrain_steps:
            return self.estimate(x, batch.y, batch.step, opt)
        passed = (batch.step - self.pretrain_steps) / self.decay_steps if self.decay_steps else 0.0
        for optimizer in opt.values():
            optimizer.param_groups[0]["lr"] = self.lr * max(0.0, 1 - passed)
        losses: dict[str, Tensor] = {}
        for x_k, y_k in zip(x.tensor_split(self.n_critic), batch.y.tensor_split(self.n_critic), strict=True):
            terms = self.d_terms(x_k, y_k)
            minimize(total(terms), opt["D"])
            losses |= detached(terms)
        terms = self.g_terms(y_k.repeat(self.g_batch))
        minimize(total(terms), opt["G"])
        return losses | detached(terms)

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ N(0, I)"""
        return torch.randn(n, self.latent_dim, generator=generator)

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Images of the true classes `y`; without them the classes are drawn uniformly."""
        y = torch.randint(self.num_classes, (n,), generator=generator) if y is None else y
        return self.generate(self.sample_latent(n, generator).to(self.device), y.to(self.device))

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z, y^)"""
        if y is None:
            raise ValueError("rAC-GAN and rcGAN need labels")
        return self.G(z, F.one_hot(y, self.num_classes).float())

    def discriminator_features(self, x: Tensor) -> Tensor:
        """D's last map, averaged over the pixels, N x C."""
        return self.D.body(x).float().mean((2, 3))


def dequantised(x: Tensor) -> Tensor:
    """Images k / 127.5 - 1 of bytes k as the code has them: k / 128 - 1 + u, u ~ U(0, 1/128) for each pixel."""
    return (x + 1) * (127.5 / 128) - 1 + torch.rand_like(x) / 128


def total(terms: dict[str, Tensor]) -> Tensor:
    """Their sum."""
    return torch.stack(list(terms.values())).sum()


def detached(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The terms for the log."""
    return {name: loss.detach() for name, loss in terms.items()}


class RACGAN(LabelNoiseGAN):
    """rAC-GAN: C^ names the true class; through T it is held against the noisy label."""

    discriminator = ClassDiscriminator
    lambda_d, lambda_g = 1.0, 0.1  # weights of the class losses

    def class_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """L_rAC^r = -E log sum over y^ of C^(y^ | x^r) T[y^, y~^r]: forward correction"""
        return -torch.logsumexp(logits.log_softmax(1) + self.T.log().T[y], 1).mean()

    def d_terms(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """L_adv + lambda_r L_rAC^r, and the penalties: generated images have no class loss."""
        with torch.no_grad():
            fake, _ = self.fakes(y)
        logit, classes, features = self.D(x)
        return {
            "d_loss": self.form.d_loss(logit, self.D(fake)[0]),
            "d_class_loss": self.lambda_d * self.class_loss(classes, y),
            **self.penalties(lambda images: self.D(images)[::2], x, fake, (logit, features)),
        }

    def g_terms(self, y: Tensor) -> dict[str, Tensor]:
        """L_adv + lambda_g E[-log C^(y^ | G(z, y^))]: the true class, and no T"""
        fake, true = self.fakes(y)
        logit, classes, _ = self.D(fake)
        return {"g_loss": self.form.g_loss(logit), "g_class_loss": self.lambda_g * F.cross_entropy(classes, true)}

    def classify(self, x: Tensor) -> Tensor:
        """Class logits of C^, the true class, N x K."""
        return self.D(x)[1]


class RCGAN(LabelNoiseGAN):
    """rcGAN: D tells pairs (x^r, y~^r) from pairs (G(z, y^), y~), whose label is noisy too."""

    discriminator = ProjectionDiscriminator

    def d_terms(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """L_adv of pairs, and the penalties given the noisy label"""
        with torch.no_grad():
            fake, _ = self.fakes(y)
        first = self.D(x, y)
        return {
            "d_loss": self.form.d_loss(first[0], self.D(fake, y)[0]),
            **self.penalties(lambda images: self.D(images, y), x, fake, first),
        }

    def g_terms(self, y: Tensor) -> dict[str, Tensor]:
        """L_adv of pairs of a generated image and its noisy label"""
        return {"g_loss": self.form.g_loss(self.D(self.fakes(y)[0], y)[0])}


class ACGAN(RACGAN):
    """AC-GAN: rAC-GAN with T = I."""

    robust = False


class CGAN(RCGAN):
    """cGAN: rcGAN with T = I."""

    robust = False
