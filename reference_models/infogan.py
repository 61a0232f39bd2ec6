"""InfoGAN: the generator keeps some of its inputs, the codes, legible in its images.

"InfoGAN: Interpretable Representation Learning by Information Maximizing Generative Adversarial Nets",
Xi Chen, Yan Duan, Rein Houthooft, John Schulman, Ilya Sutskever, Pieter Abbeel. NeurIPS 2016, arXiv:1606.03657.
Official code: https://github.com/openai/InfoGAN (MNIST alone).

The latent is [z, c]: noise, and codes that are categorical or uniform in (-1, 1). D sees no code. Q(c | x) shares all
layers of D but the last. This file also has the baseline of Figure 1: a GAN whose Q is trained, and whose G is not.

Unconfirmed, because paper and code differ or leave it open:
- the slope of the leaky ReLU: 0.1 in the paper, 0.01 in the code (`leak`);
- the deviation of Q for continuous codes: learnt in the paper, fixed at 1 in the code for MNIST (`fixed_std`);
- the codes for SVHN (two continuous ones in the text, four in Table 2) and for chairs (four categorical ones in the
  text, three in Table 6). The tables' numbers fit the size of their input;
- the last layer of Tables 1, 4 and 6, which has to double the image although they do not print its stride;
- whether the baseline's Q moves the layers that it shares with D. Here it does, so that only the loss of G differs.

Deviations from the paper and its code:
1. Logarithms are exact; the code adds 1e-8 inside.
2. Images in [-1, 1] are mapped to the code's [0, 1] at the doors of the networks for grey images.
3. L_I has the entropy of the uniform continuous code, ln 2. The code has its cross-entropy with N(0, 1) there; no
   gradient depends on it.
4. Samples and Q's answers use running moments of batch norm, over real images and samples alike; the code takes the
   moments of the batch, which holds one kind alone. Late in a run on MNIST, moments of one kind changed the cluster
   error by 0.2 points and L_I by 0.01. After a few hundred steps they differ much, and Q is to be distrusted.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ganbench.gan import GAN, Batch, Code, minimize
from reference_models.layers import Affine, down_conv, normal_start, up_conv


class Plan(NamedTuple):
    """Layers for one shape of images; a layer is (maps, stride).

    down: convolutions of D. hidden: units of the linear layer after them; 0: none. q_hidden: units of Q's own hidden
    layer; 0: none. first: units of G's first linear layer; 0: none. side, maps: what G's last linear layer makes.
    up: transposed convolutions of G but the last. norms: how many of these have batch norm.
    """

    down: tuple[tuple[int, int], ...]
    hidden: int
    q_hidden: int
    first: int
    side: int
    maps: int
    up: tuple[tuple[int, int], ...]
    norms: int


PLANS = {  # size and channels of the images
    (28, 1): Plan(((64, 2), (128, 2)), 1024, 128, 1024, 7, 128, ((64, 2),), 1),  # Table 1: MNIST
    (32, 3): Plan(  # Tables 2 and 3: SVHN and CelebA
        ((64, 2), (128, 2), (256, 2)), 0, 128, 0, 2, 448, ((256, 2), (128, 2), (64, 2)), 1
    ),
    (32, 1): Plan(((64, 2), (128, 2)), 1024, 0, 1024, 8, 128, ((64, 2),), 1),  # Table 4: faces
    (64, 1): Plan(  # Table 6: chairs
        ((64, 2), (128, 2), (256, 2), (256, 1), (256, 1)), 1024, 0, 1024, 8, 256,
        ((256, 1), (256, 1), (128, 2), (64, 2)), 4,
    ),
}


def same_conv(cin: int, cout: int) -> nn.Module:
    """4x4 convolution of stride 1 that keeps the size; transposed ones are the same up to a flip of the kernel."""
    return nn.Sequential(nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(cin, cout, 4))


class Generator(nn.Module):
    """[z, c] -> linear layers -> transposed 4x4 convolutions, batch norm and ReLU -> sigmoid, or tanh for colour."""

    def __init__(self, plan: Plan, channels: int, latent_dim: int):
        super().__init__()
        layers: list[nn.Module] = []
        width = latent_dim
        for units in (plan.first, plan.maps * plan.side**2):
            if units:
                layers += [nn.Linear(width, units), nn.BatchNorm1d(units), nn.ReLU()]
                width = units
        layers += [nn.Unflatten(1, (plan.maps, plan.side, plan.side))]
        cin = plan.maps
        for i, (cout, stride) in enumerate(plan.up):
            conv = up_conv(cin, cout, 4) if stride == 2 else same_conv(cin, cout)
            layers += [conv, nn.BatchNorm2d(cout) if i < plan.norms else nn.Identity(), nn.ReLU()]
            cin = cout
        layers += [up_conv(cin, channels, 4)]
        self.body = nn.Sequential(*layers)
        self.squash = nn.Tanh() if channels == 3 else nn.Sequential(nn.Sigmoid(), Affine(2, -1))  # deviation 2

    def forward(self, z: Tensor) -> Tensor:
        return self.squash(self.body(z).float())


class Discriminator(nn.Module):
    """D and Q: 4x4 convolutions with batch norm and leaky ReLU, then a logit of D and the parameters of Q(c | x)."""

    def __init__(self, plan: Plan, size: int, channels: int, leak: float, outputs: int):
        super().__init__()
        layers: list[nn.Module] = [] if channels == 3 else [Affine(0.5, 0.5)]  # deviation 2
        cin = channels
        for i, (cout, stride) in enumerate(plan.down):
            conv = down_conv(cin, cout, 4) if stride == 2 else same_conv(cin, cout)
            layers += [conv, nn.BatchNorm2d(cout) if i else nn.Identity(), nn.LeakyReLU(leak)]
            cin, size = cout, size // stride
        layers += [nn.Flatten()]
        features = cin * size**2
        if plan.hidden:
            layers += [nn.Linear(features, plan.hidden), nn.BatchNorm1d(plan.hidden), nn.LeakyReLU(leak)]
            features = plan.hidden
        self.shared = nn.Sequential(*layers)
        self.d_out = nn.Linear(features, 1)
        own: list[nn.Module] = []
        if plan.q_hidden:
            own = [nn.Linear(features, plan.q_hidden), nn.BatchNorm1d(plan.q_hidden), nn.LeakyReLU(leak)]
        self.q_out = nn.Sequential(*own, nn.Linear(plan.q_hidden or features, outputs))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.shared(x)
        return self.d_out(h)[:, 0].float(), self.q_out(h).float()


class InfoGAN(GAN):
    """InfoGAN (Chen, Duan, Houthooft, Schulman, Sutskever, Abbeel, 2016).

    image_size, channels: 28 and 1 (MNIST), 32 and 3 (SVHN, CelebA), 32 and 1 (faces), or 64 and 1 (chairs).
    categorical: number of values of each categorical code. continuous: number of continuous codes.
    noise_dim: size of the incompressible noise. fixed_std: Q's deviation is 1 for continuous codes.
    lambda_disc, lambda_cont: lambda for categorical and for continuous codes. width: maps of the first convolution; all
    other layers but Q's outputs are in proportion, and 64 is the paper's size.
    """

    def __init__(
        self, image_size: int = 28, channels: int = 1, categorical: tuple[int, ...] = (10,), continuous: int = 2,
        noise_dim: int = 62, fixed_std: bool = True, leak: float = 0.01, lambda_disc: float = 1.0,
        lambda_cont: float = 1.0, d_lr: float = 2e-4, g_lr: float = 1e-3, width: int = 64,
    ):
        super().__init__()
        if (image_size, channels) not in PLANS:
            shapes = ", ".join(f"{size} and {c}" for size, c in PLANS)
            raise ValueError(f"image_size and channels must be one of {shapes}, not {image_size} and {channels}")
        if continuous < 0 or any(k < 2 for k in categorical) or not (continuous or categorical):
            raise ValueError("an InfoGAN needs at least one code, and a categorical code at least two values")
        self.image_shape = (channels, image_size, image_size)
        self.categorical, self.continuous, self.noise_dim = tuple(categorical), continuous, noise_dim
        self.fixed_std, self.lambda_disc, self.lambda_cont = fixed_std, lambda_disc, lambda_cont
        self.d_lr, self.g_lr = d_lr, g_lr
        plan = scaled(PLANS[image_size, channels], width)
        self.G = Generator(plan, channels, noise_dim + sum(categorical) + continuous)
        parameters = sum(categorical) + continuous * (1 if fixed_std else 2)
        self.D = Discriminator(plan, image_size, channels, leak, parameters)
        normal_start(self, 0.02)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.normal_(layer.weight, 1.0, 0.02)
        for layer in self.D.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.trunc_normal_(layer.weight, 0.0, 0.02, -0.04, 0.04)

    def d_loss(self, real_logit: Tensor, fake_logit: Tensor) -> Tensor:
        """-V(D, G) = -E log D(x) - E log(1 - D(G(z, c)))   (Equation 1)"""
        return F.softplus(-real_logit).mean() + F.softplus(fake_logit).mean()

    def g_loss(self, fake_logit: Tensor) -> Tensor:
        """-E log D(G(z, c)), the non-saturating form of the code"""
        return F.softplus(-fake_logit).mean()

    def info_loss(self, q: Tensor, z: Tensor) -> Tensor:
        """-lambda L_I(G, Q) = -lambda (E log Q(c | x) + H(c)), a sum over the codes   (Equations 5 and 6)"""
        loss = q.new_zeros(())
        for code, log_q in zip(self.codes(), self.log_q(q, z).unbind(1), strict=True):
            loss = loss - (self.lambda_disc if code.values else self.lambda_cont) * (log_q.mean() + code.entropy)
        return loss

    def log_q(self, q: Tensor, z: Tensor) -> Tensor:
        """log Q(c | x) of each code c in z, N x codes: of a softmax, or of a normal density.

        q: parameters of Q, N x (logits of the categorical codes, means and logarithms of variances of the others).
        """
        sizes = [*self.categorical, self.continuous]
        *one_hot, c = z[:, self.noise_dim :].split(sizes, 1)
        *logits, mean = q[:, : sum(sizes)].split(sizes, 1)
        log_variance = torch.zeros_like(mean) if self.fixed_std else q[:, sum(sizes) :]
        disc = [(F.log_softmax(a, 1) * k).sum(1, keepdim=True) for a, k in zip(logits, one_hot, strict=True)]
        cont = -0.5 * (math.log(2 * math.pi) + log_variance + (c - mean).square() / log_variance.exp())
        return torch.cat([*disc, cont], 1)

    def optimizers(self) -> dict[str, Optimizer]:
        return {
            "D": Adam(self.D.parameters(), self.d_lr, betas=(0.5, 0.999)),
            "G": Adam(self.G.parameters(), self.g_lr, betas=(0.5, 0.999)),
        }

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        x = batch.x

        # min over D and Q of -V - lambda L_I
        z = self.sample_latent(len(x)).to(x)
        with torch.no_grad():
            fake = self.G(z)
        real_logit, _ = self.D(x)
        fake_logit, q = self.D(fake)
        d_loss, info_loss = self.d_loss(real_logit, fake_logit), self.info_loss(q, z)
        minimize(d_loss + info_loss, opt["D"])

        # min over G of V - lambda L_I, on new latents
        z = self.sample_latent(len(x)).to(x)
        fake_logit, q = self.D(self.G(z))
        g_loss = self.g_loss(fake_logit)
        minimize(self.g_objective(g_loss, q, z), opt["G"])
        return {"d_loss": d_loss.detach(), "g_loss": g_loss.detach(), "info_loss": info_loss.detach()}

    def g_objective(self, g_loss: Tensor, q: Tensor, z: Tensor) -> Tensor:
        """V - lambda L_I   (Equation 6)"""
        return g_loss + self.info_loss(q, z)

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """[z, c]: noise and continuous codes from U(-1, 1), categorical codes one-hot with equal probabilities."""
        noise = torch.rand(n, self.noise_dim, generator=generator) * 2 - 1
        one_hot = [F.one_hot(torch.randint(k, (n,), generator=generator), k).to(noise) for k in self.categorical]
        uniform = torch.rand(n, self.continuous, generator=generator) * 2 - 1
        return torch.cat([noise, *one_hot, uniform], 1)

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.generate(self.sample_latent(n, generator).to(self.device))

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z, c)"""
        return self.G(z)

    def codes(self) -> tuple[Code, ...]:
        """c1, c2, ...: the categorical codes, then the continuous ones."""
        found, start = [], self.noise_dim
        for i, values in enumerate((*self.categorical, *[0] * self.continuous), 1):
            found.append(Code(f"c{i}", start, values))
            start = found[-1].columns.stop
        return tuple(found)

    def code_log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log Q(c | x) of samples x, N x codes."""
        return self.log_q(self.D(x)[1], z)

    def classify(self, x: Tensor) -> Tensor:
        """Logits of Q for the first categorical code, N x K: categories that were found without labels."""
        if not self.categorical:
            raise ValueError("this InfoGAN has no categorical code, so that it does not classify")
        return self.D(x)[1][:, : self.categorical[0]]


def scaled(plan: Plan, width: int) -> Plan:
    """The plan with `width` maps in D's first convolution where the paper has 64."""

    def share(maps: int) -> int:
        return -(-maps * width // 64)

    layers = {"down": tuple((share(m), s) for m, s in plan.down), "up": tuple((share(m), s) for m, s in plan.up)}
    units = {name: share(getattr(plan, name)) for name in ("hidden", "q_hidden", "first", "maps")}
    return plan._replace(**layers, **units)


class GANWithQ(InfoGAN):
    """The baseline of Figure 1: a GAN whose Q is trained as InfoGAN's, while G does not maximise L_I."""

    def g_objective(self, g_loss: Tensor, q: Tensor, z: Tensor) -> Tensor:
        """V"""
        return g_loss
