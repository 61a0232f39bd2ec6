"""BiGAN: an encoder learnt beside the generator, against a discriminator of pairs.

"Adversarial Feature Learning",
Jeff Donahue, Philipp Krähenbühl, Trevor Darrell. ICLR 2017, arXiv:1605.09782.
Official code: https://github.com/jeffdonahue/bigan (train_mnist.sh; it has no autoencoder).

BiGAN and what Table 1 compares it with, on the permutation-invariant networks for MNIST: the features of a plain
discriminator (D), the latent regressor (LR), the joint latent regressor (JLR), autoencoders with l2 and l1 errors (AE).
The networks are those of the code: 1024 units, no biases, batch norm without gain and shift, z joined again at the
second layer. `convolutional` takes the networks of DCGAN's kind instead, for images of 4 * 2^k.

Unconfirmed: the autoencoders' form (here the mean over pixels of |x - G(E(x))| or of its square, z squashed to (-1, 1)
as elsewhere) and their features (the encoder's last hidden layer, as for BiGAN); the split of Table 1 (its caption says
test; the code's default is 10,000 held-out training images, and the figures fit those).

Deviations from the paper and its code:
1. Between two evaluations batch norm keeps running moments, which only unfinished runs are sampled with.
2. Images in [-1, 1] are mapped to the code's [0, 1] at the doors of the permutation-invariant networks.
3. The convolutional networks are not the paper's for ImageNet (AlexNet's encoder, crops of 112 from 128): they follow
   the same rules (z joined at every layer of G and D, batch norm but at the first layer) with DCGAN's layers.
4. An epoch's last, incomplete batch is left out: 468 steps an epoch of 60,000 images, not 469.
5. The falling rate falls with every step; in the code once an epoch, which is at most 2.3 % ahead.
6. Neighbours are looked up among all 60,000 training images; in the code among 50,000 of them.

What Table 1 can tell: in the log of the official README (trained on 50,000 images, 10,000 held out) the last hidden
layer of BiGAN's *untrained* encoder has 96.84 %, after 25 epochs 96.28, 200: 97.14, 400: 97.35.
"""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ganbench.gan import GAN, Batch, minimize_together


def linear(cin: int, cout: int) -> nn.Linear:
    return nn.Linear(cin, cout, bias=False)


def norm(width: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(width, eps=1e-8, affine=False)


def norm2d(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-8, affine=False)


def lrelu(h: Tensor) -> Tensor:
    return F.leaky_relu(h, 0.2)


# --- Permutation-invariant networks (net.py, mnist_mlp) ---


class Encoder(nn.Module):
    """x -> 1024, leaky ReLU -> 1024, batch norm, leaky ReLU -> d."""

    def __init__(self, shape: tuple[int, int, int], width: int, latent_dim: int):
        super().__init__()
        pixels = shape[0] * shape[1] * shape[2]
        self.fc1, self.fc2, self.bn2, self.out = (
            linear(pixels, width), linear(width, width), norm(width), linear(width, latent_dim)
        )  # fmt: skip

    def features(self, x: Tensor) -> Tensor:
        h = lrelu(self.fc1((x.flatten(1) + 1) / 2))  # deviation 2
        return lrelu(self.bn2(self.fc2(h)))  # N x 1024, the last hidden layer

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x))  # N x d, not squashed


class Generator(nn.Module):
    """z -> 1024, batch norm, ReLU -> 1024 (of h and of z), batch norm, ReLU -> sigmoid."""

    def __init__(self, shape: tuple[int, int, int], width: int, latent_dim: int):
        super().__init__()
        self.shape = shape
        self.fc1, self.bn1 = linear(latent_dim, width), norm(width)
        self.fc2, self.z2, self.bn2 = linear(width, width), linear(latent_dim, width), norm(width)
        self.out = linear(width, shape[0] * shape[1] * shape[2])

    def forward(self, z: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.fc1(z)))
        h = F.relu(self.bn2(self.fc2(h) + self.z2(z)))
        return 2 * torch.sigmoid(self.out(h).float()).unflatten(1, self.shape) - 1  # deviation 2


class Discriminator(nn.Module):
    """x -> 1024, leaky ReLU -> 1024 (of h and of z), batch norm, leaky ReLU -> logit. latent_dim 0: of x alone."""

    def __init__(self, shape: tuple[int, int, int], width: int, latent_dim: int):
        super().__init__()
        pixels = shape[0] * shape[1] * shape[2]
        self.fc1, self.fc2, self.bn2, self.out = (
            linear(pixels, width),
            linear(width, width),
            norm(width),
            linear(width, 1),
        )
        self.z2 = linear(latent_dim, width) if latent_dim else None

    def features(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        h = self.fc2(lrelu(self.fc1((x.flatten(1) + 1) / 2)))  # deviation 2
        if self.z2 is not None:
            h = h + self.z2(z)
        return lrelu(self.bn2(h))  # N x 1024

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        return self.out(self.features(x, z)).squeeze(1).float()  # N


# --- Convolutional networks (deviation 3) ---


class ConvEncoder(nn.Module):
    """S x S -> ... -> 4 x 4 by 5x5 convolutions of stride 2 -> d."""

    def __init__(self, shape: tuple[int, int, int], width: int, latent_dim: int):
        super().__init__()
        widths = [width << s for s in range((shape[1] // 4).bit_length() - 1)]
        inputs = [shape[0], *widths[:-1]]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 5, stride=2, padding=2, bias=False) for a, b in zip(inputs, widths, strict=True)
        )
        self.bns = nn.ModuleList([nn.Identity(), *(norm2d(w) for w in widths[1:])])
        self.out = linear(widths[-1] * 16, latent_dim)

    def features(self, x: Tensor) -> Tensor:
        for conv, bn in zip(self.convs, self.bns, strict=True):
            x = lrelu(bn(conv(x)))
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x))


class ConvGenerator(nn.Module):
    """z -> 4 x 4 -> ... -> S x S by transposed 5x5 convolutions of stride 2, z added at every layer, tanh."""

    def __init__(self, shape: tuple[int, int, int], width: int, latent_dim: int):
        super().__init__()
        widths = [width << s for s in reversed(range((shape[1] // 4).bit_length() - 1))]
        outputs = [*widths[1:], shape[0]]
        self.project = linear(latent_dim, widths[0] * 16)
        self.bns = nn.ModuleList(norm2d(w) for w in widths)
        self.zs = nn.ModuleList(linear(latent_dim, w) for w in widths[1:])
        self.convs = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 5, stride=2, padding=2, output_padding=1, bias=False)
            for a, b in zip(widths, outputs, strict=True)
        )

    def forward(self, z: Tensor) -> Tensor:
        h = self.project(z).unflatten(1, (-1, 4, 4))
        for i, (bn, conv) in enumerate(zip(self.bns, self.convs, strict=True)):
            h = conv(F.relu(bn(h if i == 0 else h + self.zs[i - 1](z)[:, :, None, None])))
        return torch.tanh(h.float())


class ConvDiscriminator(nn.Module):
    """S x S -> ... -> 4 x 4, z added at every layer after the first -> logit. latent_dim 0: of x alone."""

    def __init__(self, shape: tuple[int, int, int], width: int, latent_dim: int):
        super().__init__()
        widths = [width << s for s in range((shape[1] // 4).bit_length() - 1)]
        inputs = [shape[0], *widths[:-1]]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 5, stride=2, padding=2, bias=False) for a, b in zip(inputs, widths, strict=True)
        )
        self.bns = nn.ModuleList(norm2d(w) for w in widths[1:])
        self.zs = nn.ModuleList(linear(latent_dim, w) for w in widths[1:]) if latent_dim else None
        self.out = linear(widths[-1] * 16, 1)

    def features(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        h = lrelu(self.convs[0](x))
        for i, (conv, bn) in enumerate(zip(self.convs[1:], self.bns, strict=True)):
            h = conv(h)
            if self.zs is not None:
                h = h + self.zs[i](z)[:, :, None, None]
            h = lrelu(bn(h))
        return h.flatten(1)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        return self.out(self.features(x, z)).squeeze(1).float()  # N


# --- What all rows of Table 1 share ---


def squash(e: Tensor) -> Tensor:
    """The encoder's output as a latent in (-1, 1): 2 sigmoid(e) - 1."""
    return 2 * torch.sigmoid(e.float()) - 1


def is_real(logit: Tensor) -> Tensor:
    """-E log D: the pair is called one of data."""
    return F.softplus(-logit).mean()


def is_fake(logit: Tensor) -> Tensor:
    """-E log(1 - D): the pair is called a generated one."""
    return F.softplus(logit).mean()


class Table1(GAN):
    """Networks, optimisers, schedule and latent of every row of Table 1.

    `constant_steps` at the rate `lr`, then `decay_steps` of exponential decay to lr / 100: 200 epochs each in the code.
    `moment_batches`: batches over which batch norm's moments are recomputed before the evaluation.
    """

    networks = "GDE"
    joint = False  # does D see z?
    zero_at_first = "D"  # networks whose output layer starts at zero, not at N(0, .02)
    G: Any
    D: Any
    E: Any

    def __init__(
        self, image_size: int = 28, channels: int = 1, latent_dim: int = 50, width: int = 1024,
        convolutional: bool = False, lr: float = 2e-4, weight_decay: float = 2.5e-5,
        constant_steps: int = 93600, decay_steps: int = 93600, moment_batches: int = 1000,
    ):  # fmt: skip
        super().__init__()
        if convolutional and (image_size < 8 or image_size & (image_size - 1)):
            raise ValueError(f"image_size of convolutional networks must be a power of two from 8 on, not {image_size}")
        self.image_shape = (channels, image_size, image_size)
        self.latent_dim, self.lr, self.weight_decay = latent_dim, lr, weight_decay
        self.constant_steps, self.decay_steps, self.moment_batches = constant_steps, decay_steps, moment_batches
        of = {"G": ConvGenerator, "D": ConvDiscriminator, "E": ConvEncoder} if convolutional else {
            "G": Generator, "D": Discriminator, "E": Encoder}  # fmt: skip
        for name in self.networks:
            joined = latent_dim if name != "D" or self.joint else 0
            self.add_module(name, of[name](self.image_shape, width, joined))
        for p in self.parameters():
            nn.init.normal_(p, 0.0, 0.02)
        for name in set(self.networks) & set(self.zero_at_first):
            nn.init.zeros_(getattr(self, name).out.weight)

    def optimizers(self) -> dict[str, Optimizer]:
        return {
            name: Adam(net.parameters(), self.lr, betas=(0.5, 0.999), eps=1e-8, weight_decay=self.weight_decay)
            for name, net in self.named_children()
        }

    def set_rates(self, opt: Mapping[str, Optimizer], step: int) -> None:
        """lr, then lr * 0.01^(share of the decay that has passed)."""
        passed = min(max(step - self.constant_steps, 0) / self.decay_steps, 1.0)
        for optimizer in opt.values():
            optimizer.param_groups[0]["lr"] = self.lr * 0.01**passed

    @torch.no_grad()
    def finish(self, batches: Iterable[Batch]) -> None:
        """Batch norm's moments as averages over `moment_batches` batches (the code's "deploy")."""
        norms = [m for m in self.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        for m in norms:
            m.reset_running_stats()
            m.momentum = None  # a plain average
        self.train()
        for batch in islice(batches, self.moment_batches):
            self.observe(batch.x)
        self.eval()
        for m in norms:
            m.momentum = 0.1

    def observe(self, x: Tensor) -> None:
        """A forward pass of every network as the evaluation uses it."""
        raise NotImplementedError

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ U(-1, 1)^d"""
        return torch.rand(n, self.latent_dim, generator=generator) * 2 - 1

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.generate(self.sample_latent(n, generator).to(self.device))

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z)"""
        return self.G(z)


class WithEncoder(Table1):
    """The rows that have an encoder."""

    def encode(self, x: Tensor) -> Tensor:
        """E(x) in (-1, 1), N x d."""
        return squash(self.E(x))

    def encoder_features(self, x: Tensor) -> Tensor:
        """The last hidden layer of E, N x 1024: what Table 1 looks up neighbours in."""
        return self.E.features(x)

    def reconstruct(self, x: Tensor) -> Tensor:
        """G(E(x))"""
        return self.G(self.encode(x))


# --- The rows of Table 1 ---


class BiGAN(WithEncoder):
    """BiGAN (Donahue, Krähenbühl, Darrell, 2017)."""

    joint = True
    game = "d_loss", "ge_loss"

    def d_loss(self, real_logit: Tensor, fake_logit: Tensor) -> Tensor:
        """1/2 [-E_x log D(x, E(x)) - E_z log(1 - D(G(z), z))]   (Equation 2)"""
        return 0.5 * (is_real(real_logit) + is_fake(fake_logit))

    def ge_loss(self, real_logit: Tensor, fake_logit: Tensor) -> Tensor:
        """1/2 [-E_x log(1 - D(x, E(x))) - E_z log D(G(z), z)], the inverse objective (Section 3.4)"""
        return 0.5 * (is_fake(real_logit) + is_real(fake_logit))

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        self.set_rates(opt, batch.step)
        x, z = batch.x, self.sample_latent(len(batch.x)).to(batch.x)
        real_logit, fake_logit = self.D(x, squash(self.E(x))), self.D(self.G(z), z)
        d_loss, ge_loss = minimize_together(
            (self.d_loss(real_logit, fake_logit), [opt["D"]]),
            (self.ge_loss(real_logit, fake_logit), [opt["G"], opt["E"]]),
        )
        return {"d_loss": d_loss, "ge_loss": ge_loss}

    def observe(self, x: Tensor) -> None:
        self.G(self.sample_latent(len(x)).to(x))
        self.D(x, squash(self.E(x)))

    def discriminator_features(self, x: Tensor) -> Tensor:
        """The last hidden layer of D at (x, E(x)), N x 1024."""
        return self.D.features(x, self.encode(x))


class PlainGAN(Table1):
    """Row D: a GAN, whose discriminator's last hidden layer is the feature."""

    networks = "GD"

    def d_loss(self, real_logit: Tensor, fake_logit: Tensor) -> Tensor:
        """1/2 [-E_x log D(x) - E_z log(1 - D(G(z)))]"""
        return 0.5 * (is_real(real_logit) + is_fake(fake_logit))

    def g_loss(self, fake_logit: Tensor) -> Tensor:
        """-E_z log D(G(z))"""
        return is_real(fake_logit)

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        self.set_rates(opt, batch.step)
        x, z = batch.x, self.sample_latent(len(batch.x)).to(batch.x)
        fake_logit = self.D(self.G(z))
        d_loss, g_loss = minimize_together(
            (self.d_loss(self.D(x), fake_logit), [opt["D"]]), (self.g_loss(fake_logit), [opt["G"]])
        )
        return {"d_loss": d_loss, "g_loss": g_loss}

    def observe(self, x: Tensor) -> None:
        self.G(self.sample_latent(len(x)).to(x))
        self.D(x)

    def discriminator_features(self, x: Tensor) -> Tensor:
        """The last hidden layer of D, N x 1024."""
        return self.D.features(x)


class LatentRegressor(PlainGAN, WithEncoder):
    """Row LR: a GAN, and an encoder that learns to find z again in G(z); G learns nothing from it."""

    networks = "GDE"
    zero_at_first = "DE"

    def e_loss(self, e: Tensor, z: Tensor) -> Tensor:
        """Cross-entropy of sigmoid(e) with (z + 1) / 2, mean over the batch and the d dimensions"""
        return F.binary_cross_entropy_with_logits(e.float(), (z + 1) / 2)

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        self.set_rates(opt, batch.step)
        x, z = batch.x, self.sample_latent(len(batch.x)).to(batch.x)
        fake = self.G(z)
        fake_logit = self.D(fake)
        d_loss, g_loss, e_loss = minimize_together(
            (self.d_loss(self.D(x), fake_logit), [opt["D"]]),
            (self.g_loss(fake_logit), [opt["G"]]),
            (self.e_loss(self.E(fake.detach()), z), [opt["E"]]),
        )
        return {"d_loss": d_loss, "g_loss": g_loss, "e_loss": e_loss}

    def observe(self, x: Tensor) -> None:
        super().observe(x)
        self.E(x)


class JointLatentRegressor(LatentRegressor):
    """Row JLR: as LR, and G helps: it minimises -E log D(G(z)) + 1/4 of the regression, and E its share of that.

    On MNIST G was seen to end on black images, to which a D without biases answers 0 whatever it learns.
    """

    game = "d_loss", "ge_loss"

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        self.set_rates(opt, batch.step)
        x, z = batch.x, self.sample_latent(len(batch.x)).to(batch.x)
        fake = self.G(z)
        fake_logit, e_loss = self.D(fake), self.e_loss(self.E(fake), z)
        d_loss, ge_loss = minimize_together(
            (self.d_loss(self.D(x), fake_logit), [opt["D"]]),
            (self.g_loss(fake_logit) + 0.25 * e_loss, [opt["G"], opt["E"]]),
        )
        return {"d_loss": d_loss, "ge_loss": ge_loss, "e_loss": e_loss.detach()}


class AutoencoderL2(WithEncoder):
    """Row AE (l2)."""

    networks = "GE"
    game = None

    def reconstruction_loss(self, x: Tensor, back: Tensor) -> Tensor:
        """E (x - G(E(x)))^2, images in [0, 1]"""
        return ((x - back) / 2).square().mean()

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        self.set_rates(opt, batch.step)
        loss = self.reconstruction_loss(batch.x, self.reconstruct(batch.x))
        (loss,) = minimize_together((loss, [opt["G"], opt["E"]]))
        return {"reconstruction_loss": loss}

    def observe(self, x: Tensor) -> None:
        self.reconstruct(x)


class AutoencoderL1(AutoencoderL2):
    """Row AE (l1)."""

    def reconstruction_loss(self, x: Tensor, back: Tensor) -> Tensor:
        """E |x - G(E(x))|, images in [0, 1]"""
        return ((x - back) / 2).abs().mean()
