"""Ladder network, alone and as the discriminator of an energy-based GAN (EBGAN-LN).

"Semi-Supervised Learning with Ladder Networks",
Antti Rasmus, Mathias Berglund, Mikko Honkala, Harri Valpola, Tapani Raiko. NeurIPS 2015, arXiv:1507.02672.
Official code: https://github.com/CuriousAI/ladder (ladder.py, run.py, nn.py).

The encoder E classifies; the decoder V denoises every layer of E with the help of the layer above. The form with a cost
at the bottom layer alone is also that of Pezeshki, Fan, Brakel, Courville, Bengio, "Deconstructing the Ladder Network
Architecture", ICML 2016, arXiv:1511.06430.

EBGAN-LN is from Section 4.2 of Zhao, Mathieu, LeCun, "Energy-based Generative Adversarial Network", ICLR 2017,
arXiv:1609.03126, which has no official code. Its discriminator is the ladder network (E and V), its energy the cost at
the bottom layer, and its baseline is the ladder network alone.

Unconfirmed:
- how EBGAN-LN is composed. Here L_D = CE + w (E(x) + [m - E(G(z))]^+), where w is the weight of the bottom layer;
- its hyper-parameters: the margin starts at 16 and falls to 0 in the first 60,000 steps; then G is switched off. They
  and those of its baseline (weight 1000, lr 2e-4, beta1 0.5, 120,000 steps) were recalled, not read;
- its generator, whether the fall of the margin is linear, and whether fake images are normalised and corrupted as real
  ones are. Here they are, with moments of their own.

Deviations from the paper and its code:
1. The learning rate falls to 0 at the end, as the paper says. In the last version of the code it does not: its schedule
   changes a number that the optimiser does not read.
2. Moments for the test are averaged over `moment_batches` labelled batches after training, where the code takes each
   labelled image once. If these batches are a multiple of the labelled set, both are the same up to the shares.
3. The ladder network draws no samples. Its `sample` shows what the decoder makes of images of uniform noise.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ganbench.gan import GAN, Batch, minimize, minimize_together
from reference_models.layers import gaussian_noise, normal

EPS = 1e-10  # of batch norm
BOTTOM = (1000.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)

# --- Networks: images in [0, 1] inside ---


def normalise(norm: nn.BatchNorm1d, batches: Sequence[Tensor], tracked: int | None = None) -> list[Tensor]:
    """Each batch by its own moments in training, or by the running ones in evaluation.

    tracked: number of the batch whose moments the running ones follow.
    """
    return [
        F.batch_norm(h, None, None, training=True, eps=EPS) if norm.training and i != tracked else norm(h)
        for i, h in enumerate(batches)
    ]


class Path(NamedTuple):
    """One batch on its way up. z: z of layers 0 (the image) to L. moments: mean and deviation of W h, if asked for."""

    logits: Tensor
    z: list[Tensor]
    moments: list[tuple[Tensor, Tensor]]


class Encoder(nn.Module):
    """x -> 1000 -> 500 -> 250 -> 250 -> 250 -> K: z = norm(W h) + noise, h = ReLU(z + beta), K logits gamma (z + beta).

    noise, input_noise: deviation of the noise of the layers and of the image, on the corrupted path.
    """

    def __init__(self, widths: Sequence[int], noise: float, input_noise: float):
        super().__init__()
        self.noise, self.input_noise = noise, input_noise
        self.linears = nn.ModuleList(
            normal(nn.Linear(a, b, bias=False), 1 / math.sqrt(a)) for a, b in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(w, eps=EPS, affine=False) for w in widths[1:])
        self.betas = nn.ParameterList(torch.zeros(w) for w in widths[1:])
        self.gamma = nn.Parameter(torch.ones(widths[-1]))

    def forward(
        self, *batches: Tensor, corrupted: bool = False, tracked: int | None = None, moments: bool = False
    ) -> list[Path]:
        """The clean or the corrupted paths of several batches of images in [0, 1], N x d, each normalised alone."""
        sizes = [len(x) for x in batches]
        h = torch.cat(batches)
        h = gaussian_noise(h, self.input_noise) if corrupted else h
        paths = [Path(h, [z], []) for z in h.split(sizes)]
        for linear, norm, beta in zip(self.linears, self.norms, self.betas, strict=True):
            pre = linear(h).float().split(sizes)
            z = torch.cat(normalise(norm, pre, tracked))
            z = gaussian_noise(z, self.noise) if corrupted else z
            h = F.relu(z + beta)
            for path, own, before in zip(paths, z.split(sizes), pre, strict=True):
                path.z.append(own)
                if moments:
                    var, mean = torch.var_mean(before, 0, correction=0)
                    path.moments.append((mean, (var + EPS).sqrt()))
        logits = (self.gamma * (z + beta)).split(sizes)
        return [path._replace(logits=own) for path, own in zip(paths, logits, strict=True)]


class Combinator(nn.Module):
    """g(z~, u) = (z~ - mu(u)) v(u) + mu(u), where mu and v are a1 sigmoid(a2 u + a3) + a4 u + a5   (Section 3.2)

    Each unit has its own ten numbers a: those of mu, then those of v.
    """

    def __init__(self, width: int):
        super().__init__()
        start = torch.zeros(10, width)
        start[1] = start[6] = 1.0
        self.a = nn.Parameter(start)

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        a = self.a
        mu = a[0] * torch.sigmoid(a[1] * u + a[2]) + a[3] * u + a[4]
        v = a[5] * torch.sigmoid(a[6] * u + a[7]) + a[8] * u + a[9]
        return (z - mu) * v + mu


class Decoder(nn.Module):
    """z^_l = g(z~_l, u_l) from the top down, u_L = norm(softmax of the logits), u_l = norm(V z^_(l + 1))."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.linears = nn.ModuleList(
            normal(nn.Linear(b, a, bias=False), 1 / math.sqrt(b)) for a, b in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(w, eps=EPS, affine=False) for w in widths)
        self.combinators = nn.ModuleList(Combinator(w) for w in widths)

    def forward(self, *paths: Path) -> list[list[Tensor]]:
        """The estimates z^_0 to z^_L of each path; the running moments follow the first path."""
        sizes = [len(path.logits) for path in paths]
        estimates: list[list[Tensor]] = [[] for _ in paths]
        below = torch.cat([path.logits.softmax(1) for path in paths])
        for layer in reversed(range(len(self.norms))):
            if layer < len(self.linears):
                below = self.linears[layer](below).float()
            u = torch.cat(normalise(self.norms[layer], below.split(sizes), tracked=0))
            below = self.combinators[layer](torch.cat([path.z[layer] for path in paths]), u)
            for own, estimate in zip(estimates, below.split(sizes), strict=True):
                own.insert(0, estimate)
        return estimates


class Generator(nn.Module):
    """z -> (width, batch norm, ReLU) for all layers but the last -> sigmoid."""

    def __init__(self, latent_dim: int, width: int, layers: int, pixels: int):
        super().__init__()
        body: list[nn.Module] = []
        for a, b in pairwise([latent_dim, *[width] * (layers - 1)]):
            body += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU()]
        self.body = nn.Sequential(*body, nn.Linear(width, pixels))

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.body(z).float())


# --- The models ---


def energy(x: Tensor, estimate: Tensor) -> Tensor:
    """E(x) = |z^_0 - x|^2, the sum over pixels in [0, 1], N"""
    return (estimate - x).square().sum(1)


class Ladder(GAN):
    """Ladder network (Rasmus et al., 2015).

    classes: K of the labels. costs: lambda_l of the image and of each layer, for mean squares. noise: of the layers;
    input_noise: of the image. The learning rate is `lr` for `constant_steps`, then falls linearly to 0 over
    `decay_steps`. moment_batches: labelled batches that the moments for the test are averaged over.
    """

    game: tuple[str, str] | None = None
    E: Any
    V: Any

    def __init__(
        self, image_size: int = 28, channels: int = 1, classes: int = 10,
        hidden: Sequence[int] = (1000, 500, 250, 250, 250),
        costs: Sequence[float] = (1000.0, 10.0, 0.1, 0.1, 0.1, 0.1, 0.1), noise: float = 0.3, input_noise: float = 0.3,
        lr: float = 2e-3, beta1: float = 0.9, constant_steps: int = 60300, decay_steps: int = 29700,
        moment_batches: int = 10,
    ):
        super().__init__()
        widths = [channels * image_size**2, *hidden, classes]
        if len(costs) != len(widths):
            raise ValueError(f"costs must have {len(widths)} numbers, of the image and of {len(widths) - 1} layers")
        self.image_shape, self.classes = (channels, image_size, image_size), classes
        self.costs, self.lr, self.beta1 = tuple(costs), lr, beta1
        self.constant_steps, self.decay_steps, self.moment_batches = constant_steps, decay_steps, moment_batches
        self.E, self.V = Encoder(widths, noise, input_noise), Decoder(widths)

    def class_loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """C_c = -E log P(y~ = t | x) of the corrupted path   (Section 3.3)"""
        return F.cross_entropy(logits, y)

    def denoising_loss(self, clean: Path, estimates: list[Tensor]) -> Tensor:
        """C_d = sum_l lambda_l / m_l E |z_l - z^_l,BN|^2   (Equation 1)

        z^_l,BN: the estimate, normalised by the mean and deviation of W h on the clean path; not at the image.
        """
        total = self.costs[0] * energy(clean.z[0], estimates[0]).mean() / len(clean.z[0][0])
        for layer, (mean, std) in enumerate(clean.moments, 1):
            error = clean.z[layer] - (estimates[layer] - mean) / std
            total = total + self.costs[layer] * error.square().mean()
        return total

    def clean_path(self, u: Tensor) -> Path:
        """The targets. At the image alone, the target is the image, and nothing has to be computed."""
        return self.E(u, moments=True)[0] if any(self.costs[1:]) else Path(u, [u], [])

    def optimizers(self) -> dict[str, Optimizer]:
        return {name: Adam(net.parameters(), self.lr, betas=(self.beta1, 0.999)) for name, net in self.named_children()}

    def set_rates(self, opt: Mapping[str, Optimizer], step: int) -> None:
        """lr min(1, share of `decay_steps` that is left)"""
        left = 1 - max(step - self.constant_steps, 0) / self.decay_steps
        for name in ("E", "V"):
            opt[name].param_groups[0]["lr"] = self.lr * max(left, 0.0)

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        x, u = self.both(batch)
        self.set_rates(opt, batch.step)
        labelled, unlabelled = self.E(x, u, corrupted=True)
        (estimates,) = self.V(unlabelled)
        class_loss = self.class_loss(labelled.logits, batch.y)
        denoising_loss = self.denoising_loss(self.clean_path(u), estimates)
        minimize_together((class_loss + denoising_loss, [opt["E"], opt["V"]]))
        self.observe(x)
        return {"class_loss": class_loss.detach(), "denoising_loss": denoising_loss.detach()}

    def both(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The labelled and the unlabelled images, flat and in [0, 1]."""
        if batch.u is None or batch.y is None:
            raise ValueError("a ladder network needs images with labels and images without")
        return (batch.x.flatten(1) + 1) / 2, (batch.u.flatten(1) + 1) / 2

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Let E's moments for the test follow those of the clean path of labelled images."""
        self.E(x, tracked=0)

    def finish(self, batches: Iterable[Batch]) -> None:
        """Average E's moments over `moment_batches` labelled batches (deviation 2)."""
        for norm in self.E.norms:
            norm.reset_running_stats()
            norm.momentum = None
        self.train()
        for batch in islice(batches, self.moment_batches):
            self.observe(self.both(batch)[0])
        self.eval()
        for norm in self.E.norms:
            norm.momentum = 0.1

    def classify(self, x: Tensor) -> Tensor:
        """K logits of the clean path, N x K."""
        return self.E((x.flatten(1) + 1) / 2)[0].logits

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Uniform noise in place of an image, in [0, 1]^d (deviation 3)."""
        return torch.rand(n, math.prod(self.image_shape), generator=generator)

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.generate(self.sample_latent(n, generator).to(self.device))

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """The decoder's images of noise (deviation 3)."""
        (path,) = self.E(z)
        image = self.V(path)[0][0].clamp(0, 1)
        return (2 * image - 1).unflatten(1, self.image_shape)


class EBGANLN(Ladder):
    """EBGAN-LN (Zhao, Mathieu, LeCun, 2017): the ladder network is the discriminator of an energy-based GAN.

    margin: m at the start, for energies that are sums over pixels in [0, 1]. It falls linearly to 0 over
    `margin_steps`; from then on G rests, and the model is a ladder network. g_lr: learning rate of G.
    """

    G: Any

    def __init__(
        self, image_size: int = 28, channels: int = 1, classes: int = 10,
        hidden: Sequence[int] = (1000, 500, 250, 250, 250),
        costs: Sequence[float] = BOTTOM, noise: float = 0.3, input_noise: float = 0.3,
        lr: float = 5e-4, beta1: float = 0.5, constant_steps: int = 120000, decay_steps: int = 60000,
        moment_batches: int = 10, g_lr: float = 2.5e-4, margin: float = 16.0, margin_steps: int = 60000,
        latent_dim: int = 100, g_width: int = 800, g_layers: int = 3,
    ):
        super().__init__(image_size, channels, classes, hidden, costs, noise, input_noise, lr, beta1, constant_steps,
                         decay_steps, moment_batches)
        self.g_lr, self.margin, self.margin_steps, self.latent_dim = g_lr, margin, margin_steps, latent_dim
        self.G = Generator(latent_dim, g_width, g_layers, math.prod(self.image_shape))

    def margin_at(self, step: int) -> float:
        """m of one step: from `margin` to 0 over `margin_steps`"""
        return self.margin * max(1 - step / self.margin_steps, 0.0)

    def hinge_loss(self, fake_energy: Tensor, margin: float) -> Tensor:
        """w E [m - E(G(z))]^+, the second half of L_D   (Equation 1 of EBGAN)"""
        return self.costs[0] / math.prod(self.image_shape) * F.relu(margin - fake_energy).mean()

    def g_loss(self, fake_energy: Tensor) -> Tensor:
        """L_G = E E(G(z))   (Equation 2 of EBGAN)"""
        return fake_energy.mean()

    def optimizers(self) -> dict[str, Optimizer]:
        opt = super().optimizers()
        opt["G"].param_groups[0]["lr"] = self.g_lr
        return opt

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        margin = self.margin_at(batch.step)
        if margin == 0:
            return super().training_step(batch, opt)
        x, u = self.both(batch)
        self.set_rates(opt, batch.step)
        fake = self.G(self.sample_latent(len(u)).to(u))

        labelled, unlabelled, generated = self.E(x, u, fake.detach(), corrupted=True)
        estimates, fake_estimates = self.V(unlabelled, generated)
        class_loss = self.class_loss(labelled.logits, batch.y)
        denoising_loss = self.denoising_loss(self.clean_path(u), estimates)
        hinge_loss = self.hinge_loss(energy(fake.detach(), fake_estimates[0]), margin)
        minimize_together((class_loss + denoising_loss + hinge_loss, [opt["E"], opt["V"]]))

        (estimates,) = self.V(*self.E(fake, corrupted=True))
        g_loss = minimize(self.g_loss(energy(fake, estimates[0])), opt["G"])
        self.observe(x)
        return {"class_loss": class_loss.detach(), "denoising_loss": denoising_loss.detach(),
                "hinge_loss": hinge_loss.detach(), "g_loss": g_loss}

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ U(-1, 1)^100"""
        return torch.rand(n, self.latent_dim, generator=generator) * 2 - 1

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.generate(self.sample_latent(n, generator).to(self.device))

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z)"""
        return 2 * self.G(z).unflatten(1, self.image_shape) - 1
