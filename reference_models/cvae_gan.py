"""CVAE-GAN: a conditional VAE whose decoder is the generator of a GAN, trained with asymmetric losses.

"CVAE-GAN: Fine-Grained Image Generation through Asymmetric Training",
Jianmin Bao, Dong Chen, Fang Wen, Houqiang Li, Gang Hua. ICCV 2017, arXiv:1703.10155.
No official code was released.

This file has CVAE-GAN and the models that Table 1 compares with it: CVAE (E and G alone), CGAN (G against the
cross-entropies of D and C) and FM-CGAN (G matches mean features of D and C, without an encoder). The training is
asymmetric: D and C learn by cross-entropy, G and E by matching features.

Unconfirmed, because the paper's text could not be read and its equations are known at second hand:
- the optimiser (here Adam, 2e-4, beta1 0.5), batch size, length and initialisation (PyTorch's, but for the class in G);
- the decay of the moving centres, and how their gradient is taken (see `Centres`);
- whether norms and the KL are sums or means over elements (`reduction`; always means over the batch). The equations
  read as sums; re-implementations take means. Means weigh the KL and the centres more against the pixels, so that the
  two are different models: the MNIST recipes run both;
- that L_GC compares the centres of the same class;
- the sizes of G's two linear layers (1024, 2 x 2 x 1024) and of D (DCGAN's with a fifth convolution), the details of
  GoogLeNet and AlexNet at 128 x 128 (here without auxiliary classifiers, dropout and local response normalisation), and
  what f_C is (here, as for f_D, the input of the last linear layer);
- which images share a forward pass of D and C. Here real, reconstructed and sampled images run apart: batch norm takes
  the mean of each kind away before f_D;
- the weights of the terms in the baselines (CVAE: those of CVAE-GAN; CGAN, FM-CGAN: equal ones).

Deviations from the paper:
1. Without labels `encode` and `reconstruct` take the class from C: c = argmax C(x). CVAE has no C and asks for labels.
2. Networks for images other than 128 x 128 are not in the paper. They have its make-up in small: E, D and C are 4x4
   convolutions of stride 2 (C and D end as at 128 x 128: C in linear layers without batch norm, D as in DCGAN), G has
   two linear layers and transposed convolutions. At 28 x 28, D is that of DCGAN's MNIST code, f_D its 1,024 units.
3. Samples use the running moments of batch norm.
4. The class enters G at another scale than E: in E it joins the features with PyTorch's initial weights, in G it has
   initial weights U(-1, 1).
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ganbench.gan import GAN, Batch, minimize_together
from reference_models.layers import down_conv, up_conv, with_label

Shape = tuple[int, int, int]  # C, H, W
Objectives = dict[str, tuple[Tensor, str]]  # name: loss, and the networks that minimise it

# --- Networks ---

# GoogLeNet's modules: 1x1; 3x3 after its reduction; 5x5 after its reduction; 1x1 after the pool. "max": 3x3, stride 2.
GOOGLENET: tuple[tuple[int, ...] | str, ...] = (
    (64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), "max",
    (192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64), (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128), "max",
    (256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128),
)
G_CONVS = ((256, 3), (256, 3), (128, 5), (92, 5), (64, 5))  # maps and kernels; the sixth, 5x5, gives the image


def conv(cin: int, cout: int, kernel: int, stride: int = 1, padding: int | None = None) -> list[nn.Module]:
    """Convolution, batch norm, ReLU."""
    padding = kernel // 2 if padding is None else padding
    return [nn.Conv2d(cin, cout, kernel, stride, padding, bias=False), nn.BatchNorm2d(cout), nn.ReLU()]


class Inception(nn.Module):
    """GoogLeNet's module: four branches side by side."""

    def __init__(self, cin: int, one: int, reduce3: int, three: int, reduce5: int, five: int, pool: int):
        super().__init__()
        self.branches = nn.ModuleList([
            nn.Sequential(*conv(cin, one, 1)),
            nn.Sequential(*conv(cin, reduce3, 1), *conv(reduce3, three, 3)),
            nn.Sequential(*conv(cin, reduce5, 1), *conv(reduce5, five, 5)),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), *conv(cin, pool, 1)),
        ])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def googlenet(channels: int) -> tuple[nn.Module, int]:
    """N x C x 128 x 128 -> N x 1024, and 1024."""
    layers: list[nn.Module] = [*conv(channels, 64, 7, 2), nn.MaxPool2d(3, 2, 1), *conv(64, 64, 1), *conv(64, 192, 3)]
    layers.append(nn.MaxPool2d(3, 2, 1))  # 192 x 16 x 16
    width = 192
    for spec in GOOGLENET:
        if isinstance(spec, str):
            layers.append(nn.MaxPool2d(3, 2, 1))
        else:
            layers.append(Inception(width, *spec))
            width = spec[0] + spec[2] + spec[4] + spec[5]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), width


def alexnet(channels: int) -> tuple[nn.Module, int]:
    """N x C x 128 x 128 -> N x 4096, and 4096."""
    return nn.Sequential(
        nn.Conv2d(channels, 96, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),  # 96 x 15 x 15
        nn.Conv2d(96, 256, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2),  # 256 x 7 x 7
        nn.Conv2d(256, 384, 3, 1, 1), nn.ReLU(), nn.Conv2d(384, 384, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten(),  # 256 x 3 x 3
        nn.Linear(2304, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(),
    ), 4096


def dcgan(shape: Shape, width: int) -> tuple[nn.Module, int]:
    """The body of DCGAN's discriminator, N x C x S x S -> N x F, and F."""
    if shape[1] == 28:
        return nn.Sequential(
            down_conv(shape[0], 64, 5), nn.LeakyReLU(0.2),
            down_conv(64, 128, 5, bias=False), nn.BatchNorm2d(128), nn.LeakyReLU(0.2), nn.Flatten(),
            nn.Linear(128 * 7 * 7, 1024, bias=False), nn.BatchNorm1d(1024), nn.LeakyReLU(0.2),
        ), 1024
    side, widths = (4, [64, 128, 256, 512, 512]) if shape[1] == 128 else halvings(shape[1], width)
    layers: list[nn.Module] = [down_conv(shape[0], widths[0], 4), nn.LeakyReLU(0.2)]
    for cin, cout in pairwise(widths):
        layers += [down_conv(cin, cout, 4, bias=False), nn.BatchNorm2d(cout), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Flatten()), widths[-1] * side * side


def halvings(size: int, width: int) -> tuple[int, list[int]]:
    """The side at which the small networks end (7 of 28, else 4), and the widths on the way there (deviation 2)."""
    side = 7 if size % 7 == 0 else 4
    return side, [width << s for s in range((size // side).bit_length() - 1)]


def conv_norm_relu(cin: int, cout: int) -> list[nn.Module]:
    return conv(cin, cout, 4, 2, 1)


def conv_relu(cin: int, cout: int) -> list[nn.Module]:
    return [down_conv(cin, cout, 4), nn.ReLU()]


def small(shape: Shape, width: int, halve: Callable[[int, int], list[nn.Module]]) -> tuple[nn.Module, int]:
    """N x C x S x S -> N x 8 width by layers that halve the image and a linear one, and 8 width (deviation 2)."""
    side, widths = halvings(shape[1], width)
    layers = [m for a, b in pairwise((shape[0], *widths)) for m in halve(a, b)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * side * side, 8 * width), nn.ReLU()), 8 * width


class Encoder(nn.Module):
    """E(x, c) -> mean and log-variance of z: GoogLeNet, with c joined at the last linear layer."""

    def __init__(self, shape: Shape, classes: int, latent_dim: int, width: int):
        super().__init__()
        self.body, features = googlenet(shape[0]) if shape[1] == 128 else small(shape, width, conv_norm_relu)
        self.out = nn.Linear(features + classes, 2 * latent_dim)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x).float()

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = self.out(with_label(self.features(x), c)).float().chunk(2, 1)
        return mean, log_var  # N x d each


class Generator(nn.Module):
    """G(z, c): two linear layers, then transposed convolutions of stride 2 with batch norm and ReLU, tanh."""

    def __init__(self, shape: Shape, classes: int, latent_dim: int, width: int):
        super().__init__()
        channels, size, _ = shape
        convs: tuple[tuple[int, int], ...] = G_CONVS
        hidden, self.start, last = 1024, (1024, 2, 2), 5
        if size != 128:  # deviation 2
            side, widths = halvings(size, width)
            convs = tuple((w, 4) for w in reversed(widths[:-1]))
            hidden, self.start, last = 8 * width, (widths[-1], side, side), 4
        self.fc1 = nn.Linear(latent_dim + classes, hidden)
        self.fc2 = nn.Linear(hidden, self.start[0] * self.start[1] ** 2)
        with torch.no_grad():  # of c one entry is 1, beside all of z: at the scale of z's weights it would be drowned
            self.fc1.weight[:, latent_dim:].uniform_(-1, 1)
        layers: list[nn.Module] = []
        cin = self.start[0]
        for cout, kernel in convs:
            layers += [up_conv(cin, cout, kernel, bias=False), nn.BatchNorm2d(cout), nn.ReLU()]
            cin = cout
        self.body = nn.Sequential(*layers, up_conv(cin, channels, last))

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        h = F.relu(self.fc2(F.relu(self.fc1(with_label(z, c)))))
        return torch.tanh(self.body(h.unflatten(1, self.start)).float())


class Critic(nn.Module):
    """D(x), whose output is a logit (N x 1), or C(x), whose outputs are the logits of P(c|x) (N x K).

    It returns them and f, the input of its last linear layer: f_D or f_C, N x F.
    """

    def __init__(self, body: nn.Module, features: int, outputs: int):
        super().__init__()
        self.body, self.features, self.out = body, features, nn.Linear(features, outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f = self.body(x)
        return self.out(f).float(), f.float()


class Centres(nn.Module):
    """Moving averages of mean features, a row for each group: a <- decay a + (1 - decay) (the batch's mean).

    A batch has few images of a class; their mean alone would pull every sample towards one image. The output has the
    value of the moving average and the gradient of the batch's mean. A row starts at the first mean that it sees.
    """

    rows: Tensor
    seen: Tensor

    def __init__(self, groups: int, features: int, decay: float):
        super().__init__()
        self.decay = decay
        self.register_buffer("rows", torch.zeros(groups, features))
        self.register_buffer("seen", torch.zeros(groups, dtype=torch.bool))

    def forward(self, f: Tensor, group: Tensor) -> Tensor:
        """All centres, G x F, after a batch of features N x F in `group` (int64 N)."""
        counts = torch.zeros(len(self.rows), device=f.device).index_add(0, group, f.new_ones(len(f)))
        present = (counts > 0)[:, None]
        means = torch.zeros_like(self.rows).index_add(0, group, f) / counts.clamp(min=1)[:, None]
        with torch.no_grad():
            moved = torch.where(self.seen[:, None], self.rows.lerp(means, 1 - self.decay), means)
            self.rows.copy_(torch.where(present, moved, self.rows))
            self.seen |= present.squeeze(1)
        return self.rows.clone() + (means - means.detach()) * present


# --- All rows of Table 1 ---


class Table1(GAN):
    """Networks, losses, optimisers and prior of every row of Table 1.

    width: maps of the first layer of the networks that are not the paper's (deviation 2). lambda_kl, lambda_g,
    lambda_gd, lambda_gc: weights of L_KL, L_G, L_GD and L_GC, in the rows that have them. reduction: norms and KL are
    the "sum" or the "mean" over elements. centre_decay: decay of the moving centres.
    """

    networks = "EGDC"
    matches_means = False  # does G follow L_GD and L_GC?
    game: tuple[str, str] | None = None  # G follows features, but for CGAN's
    E: Any
    G: Any
    D: Any
    C: Any
    real_D: Any
    fake_D: Any
    real_C: Any
    fake_C: Any

    def __init__(
        self, image_size: int = 128, channels: int = 3, num_classes: int = 10, latent_dim: int = 256, width: int = 32,
        lambda_kl: float = 3.0, lambda_g: float = 1.0, lambda_gd: float = 1e-3, lambda_gc: float = 1e-3,
        reduction: str = "sum", centre_decay: float = 0.9, lr: float = 2e-4,
    ):
        super().__init__()
        if image_size != 28 and (image_size < 8 or image_size & (image_size - 1)):
            raise ValueError(f"image_size must be 28 or a power of two from 8 on, not {image_size}")
        if reduction not in ("sum", "mean"):
            raise ValueError(f"reduction must be 'sum' or 'mean', not '{reduction}'")
        self.image_shape = shape = (channels, image_size, image_size)
        self.reduce = torch.sum if reduction == "sum" else torch.mean
        self.num_classes, self.latent_dim, self.lr = num_classes, latent_dim, lr
        self.lambda_kl, self.lambda_g, self.lambda_gd, self.lambda_gc = lambda_kl, lambda_g, lambda_gd, lambda_gc
        if "E" in self.networks:
            self.E = Encoder(shape, num_classes, latent_dim, width)
        self.G = Generator(shape, num_classes, latent_dim, width)
        if "D" in self.networks:
            self.D = Critic(*dcgan(shape, width), 1)
            self.C = Critic(*(alexnet(channels) if image_size == 128 else small(shape, width, conv_relu)), num_classes)
        if self.matches_means:
            self.real_D, self.fake_D = (Centres(1, self.D.features, centre_decay) for _ in range(2))
            self.real_C, self.fake_C = (Centres(num_classes, self.C.features, centre_decay) for _ in range(2))

    def objectives(self, x: Tensor, y: Tensor) -> Objectives:
        """Losses of one forward pass, each with the networks that it moves; a loss without any is only logged."""
        raise NotImplementedError

    def optimizers(self) -> dict[str, Optimizer]:
        return {n: Adam(getattr(self, n).parameters(), self.lr, betas=(0.5, 0.999)) for n in self.networks}

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        """All networks step at once, each down its objective."""
        if batch.y is None:
            raise ValueError("CVAE-GAN and its baselines need labels")
        objectives = self.objectives(batch.x, batch.y)
        minimize_together(*((loss, [opt[n] for n in networks]) for loss, networks in objectives.values() if networks))
        return {name: loss.detach() for name, (loss, _) in objectives.items()}

    def squared_distance(self, a: Tensor, b: Tensor) -> Tensor:
        """||a - b||^2 over the elements, for each of N."""
        return self.reduce((a - b).square().flatten(1), 1)

    def one_hot(self, c: Tensor) -> Tensor:
        return F.one_hot(c, self.num_classes).float()

    def from_prior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x_p = G(z_p, c_p) of z_p ~ N(0, I) and random classes c_p, as many as x; and c_p."""
        c = torch.randint(self.num_classes, (len(x),), device=x.device)
        return self.G(self.sample_latent(len(x)).to(x), self.one_hot(c)), c

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ N(0, I)"""
        return torch.randn(n, self.latent_dim, generator=generator)

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Images of the classes `y`; without them the classes are drawn uniformly."""
        c = torch.randint(self.num_classes, (n,), generator=generator) if y is None else y
        return self.generate(self.sample_latent(n, generator).to(self.device), c.to(self.device))

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z, c)"""
        if y is None:
            raise ValueError("G needs the classes of its images: give y")
        return self.G(z, self.one_hot(y))


class WithEncoder(Table1):
    """The rows that have an encoder."""

    def kl_loss(self, mean: Tensor, log_var: Tensor) -> Tensor:
        """L_KL = 1/2 sum (mu^2 + exp(log var) - log var - 1)"""
        return 0.5 * self.reduce(mean.square() + log_var.exp() - log_var - 1, 1).mean()

    def posterior(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z = mu + exp(log var / 2) eps of E(x, c), and its mean and log-variance."""
        mean, log_var = self.E(x, self.one_hot(y))
        return mean + torch.exp(0.5 * log_var) * torch.randn_like(mean), mean, log_var

    def class_of(self, x: Tensor) -> Tensor:
        """argmax C(x)   (deviation 1)"""
        if "C" not in self.networks:
            raise ValueError("a CVAE has no classifier to tell the class of an image: give the classes y")
        return self.C(x)[0].argmax(1)

    def encode(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The mean of E(x, c), N x d."""
        return self.E(x, self.one_hot(self.class_of(x) if y is None else y))[0]

    def encoder_features(self, x: Tensor) -> Tensor:
        """The last hidden layer of E, before c is joined."""
        return self.E.features(x)

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """G(E(x, c), c)"""
        c = self.class_of(x) if y is None else y
        return self.generate(self.encode(x, c), c)


class WithCritics(Table1):
    """The rows that have D and C."""

    def d_loss(self, real_logit: Tensor, *fake_logits: Tensor) -> Tensor:
        """L_D = -E log D(x_r) - E log(1 - D(x_f)) - E log(1 - D(x_p))"""
        return F.softplus(-real_logit).mean() + torch.stack([F.softplus(s).mean() for s in fake_logits]).sum()

    def c_loss(self, real_logits: Tensor, y: Tensor) -> Tensor:
        """L_C = -E log P(c_r | x_r)"""
        return F.cross_entropy(real_logits, y)

    def gd_loss(self, real_f: Tensor, fake_f: Tensor) -> Tensor:
        """L_GD = 1/2 ||mean f_D(x_r) - mean f_D(x_p)||^2, of moving means"""
        everything = torch.zeros(len(real_f), dtype=torch.int64, device=real_f.device)
        real, fake = self.real_D(real_f.detach(), everything), self.fake_D(fake_f, everything)
        return 0.5 * self.squared_distance(real, fake).sum()

    def gc_loss(self, real_f: Tensor, y: Tensor, fake_f: Tensor, c: Tensor) -> Tensor:
        """L_GC = 1/2 sum_c ||mean f_C(x_r of class c) - mean f_C(x_p of class c)||^2, of moving means"""
        real, fake = self.real_C(real_f.detach(), y), self.fake_C(fake_f, c)
        both = self.real_C.seen & self.fake_C.seen
        return 0.5 * (self.squared_distance(real, fake) * both).sum()

    def classify(self, x: Tensor) -> Tensor:
        """Class logits of C, N x K."""
        return self.C(x)[0]

    def discriminator_features(self, x: Tensor) -> Tensor:
        """f_D(x), N x F_D."""
        return self.D(x)[1]


# --- The rows ---


class CVAEGAN(WithEncoder, WithCritics):
    """CVAE-GAN (Bao et al., 2017). Its arguments are those of `Table1`, as for the baselines."""

    matches_means = True

    def g_losses(
        self, x: Tensor, fake: Tensor, real_d: Tensor, fake_d: Tensor, real_c: Tensor, fake_c: Tensor
    ) -> tuple[Tensor, ...]:
        """L_G = 1/2 (||x_r - x_f||^2 + ||f_D(x_r) - f_D(x_f)||^2 + ||f_C(x_r) - f_C(x_f)||^2), its three terms"""
        pairs = ((x, fake), (real_d.detach(), fake_d), (real_c.detach(), fake_c))
        return tuple(0.5 * self.squared_distance(a, b).mean() for a, b in pairs)

    def objectives(self, x: Tensor, y: Tensor) -> Objectives:
        z, mean, log_var = self.posterior(x, y)
        fake = self.G(z, self.one_hot(y))  # x_f
        prior, c = self.from_prior(x)  # x_p, c_p
        (real_s, real_d), (fake_s, fake_d), (prior_s, prior_d) = self.D(x), self.D(fake), self.D(prior)
        (real_k, real_c), (_, fake_c), (_, prior_c) = self.C(x), self.C(fake), self.C(prior)

        kl, parts = self.kl_loss(mean, log_var), self.g_losses(x, fake, real_d, fake_d, real_c, fake_c)
        pixel, matched_d, matched_c = parts
        g = pixel + matched_d + matched_c
        gd, gc = self.gd_loss(real_d, prior_d), self.gc_loss(real_c, y, prior_c, c)
        # G minimises l2 L_G + l3 L_GD + l4 L_GC and E minimises l1 L_KL + l2 L_G: the terms of this sum with each
        ge = self.lambda_kl * kl + self.lambda_g * g + self.lambda_gd * gd + self.lambda_gc * gc
        return {
            "c_loss": (self.c_loss(real_k, y), "C"), "d_loss": (self.d_loss(real_s, fake_s, prior_s), "D"),
            "ge_loss": (ge, "GE"), "kl_loss": (kl, ""), "pixel_loss": (pixel, ""), "matched_d_loss": (matched_d, ""),
            "matched_c_loss": (matched_c, ""), "gd_loss": (gd, ""), "gc_loss": (gc, ""),
        }


class CVAE(WithEncoder):
    """CVAE-GAN's baseline CVAE: E and G alone, KL and pixels."""

    networks = "EG"

    def g_loss(self, x: Tensor, fake: Tensor) -> Tensor:
        """1/2 ||x_r - x_f||^2"""
        return 0.5 * self.squared_distance(x, fake).mean()

    def objectives(self, x: Tensor, y: Tensor) -> Objectives:
        z, mean, log_var = self.posterior(x, y)
        kl, g = self.kl_loss(mean, log_var), self.g_loss(x, self.generate(z, y))
        return {"ge_loss": (self.lambda_kl * kl + self.lambda_g * g, "GE"), "kl_loss": (kl, ""), "g_loss": (g, "")}


class CGAN(WithCritics):
    """CVAE-GAN's baseline CGAN: G against the cross-entropies of D and C, without an encoder."""

    networks = "GDC"
    game = GAN.game

    def g_loss(self, fake_logit: Tensor, fake_logits: Tensor, c: Tensor) -> Tensor:
        """-E log D(x_p) - E log P(c_p | x_p)"""
        return F.softplus(-fake_logit).mean() + F.cross_entropy(fake_logits, c)

    def objectives(self, x: Tensor, y: Tensor) -> Objectives:
        fake, c = self.from_prior(x)
        fake_s = self.D(fake)[0]
        return {
            "c_loss": (self.c_loss(self.C(x)[0], y), "C"), "d_loss": (self.d_loss(self.D(x)[0], fake_s), "D"),
            "g_loss": (self.g_loss(fake_s, self.C(fake)[0], c), "G"),
        }


class FMCGAN(WithCritics):
    """CVAE-GAN's baseline FM-CGAN: G matches mean features of D, and of C class by class, without an encoder."""

    networks = "GDC"
    matches_means = True

    def objectives(self, x: Tensor, y: Tensor) -> Objectives:
        fake, c = self.from_prior(x)
        (real_s, real_d), (fake_s, fake_d) = self.D(x), self.D(fake)
        (real_k, real_c), (_, fake_c) = self.C(x), self.C(fake)
        gd, gc = self.gd_loss(real_d, fake_d), self.gc_loss(real_c, y, fake_c, c)
        return {
            "c_loss": (self.c_loss(real_k, y), "C"), "d_loss": (self.d_loss(real_s, fake_s), "D"),
            "g_loss": (self.lambda_gd * gd + self.lambda_gc * gc, "G"), "gd_loss": (gd, ""), "gc_loss": (gc, ""),
        }
