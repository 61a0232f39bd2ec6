"""BiGAN: an encoder learnt beside the generator, against a discriminator of pairs.

"Adversarial Feature Learning",
Jeff Donahue, Philipp Krähenbühl, Trevor Darrell. ICLR 2017, arXiv:1605.09782.
Official code: https://github.com/jeffdonahue/bigan (train_mnist.sh; it has no autoencoder).

This file has BiGAN and the models that Table 1 compares with it, on the permutation-invariant networks for MNIST: the
features of a plain discriminator (D), the latent regressor (LR), the joint latent regressor (JLR), and autoencoders
with l2 and l1 errors (AE). The networks are those of the code: 1024 units, no biases, batch norm without gain and
shift, z joined again at the second layer. `convolutional` takes networks like DCGAN's instead, for images of 4 * 2^k.

Unconfirmed:
- the form of the autoencoders (here the mean over pixels of |x - G(E(x))| or of its square, z squashed to (-1, 1) as
  elsewhere) and their features (here the encoder's last hidden layer, as for BiGAN);
- the split of Table 1: the caption says test, but its figures fit the code's default, 10,000 held-out training images.

Deviations from the paper and its code:
1. Between two evaluations batch norm keeps running moments, which only unfinished runs are sampled with.
2. Images in [-1, 1] are mapped to the code's [0, 1] at the doors of the model. The permutation-invariant D and E read
   G's sigmoid itself, so that a pixel of 1e-9 stays one.
3. The convolutional networks are not the paper's for ImageNet (AlexNet's encoder, crops of 112 from 128): they follow
   the same rules (z joined at every layer of G and D, batch norm but at the first layer) with DCGAN's layers.
4. An epoch's last, incomplete batch is left out: 468 steps an epoch of 60,000 images, not 469.
5. The falling rate falls with every step; in the code once an epoch, which is at most 2.3 % ahead.
6. Neighbours are looked up among all 60,000 training images; in the code among 50,000 of them.

Table 1 tells little: in the log of the official README (50,000 training images, 10,000 held out) the last hidden layer
of BiGAN's encoder has 96.84 % before training, and 96.28, 97.14, 97.35 after 25, 200, 400 epochs.
"""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import islice, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ganbench.gan import GAN, Batch, minimize_together
from reference_models.layers import down_conv, lrelu, up_conv

linear = partial(nn.Linear, bias=False)
norm1d = partial(nn.BatchNorm1d, eps=1e-8, affine=False)
norm2d = partial(nn.BatchNorm2d, eps=1e-8, affine=False)
Shape = tuple[int, int, int]  # C, H, W
Objectives = dict[str, tuple[Tensor, str]]  # name: loss, and the networks that minimise it

# --- Permutation-invariant networks (net.py, mnist_mlp): images in [0, 1] (deviation 2) ---


class Reader(nn.Module):
    """E(x) or D(x, z): x -> 1024, leaky ReLU -> 1024, batch norm, leaky ReLU -> outputs, not squashed.

    joined: size of the z that is added at the second layer; 0: none.
    """

    def __init__(self, shape: Shape, width: int, outputs: int, joined: int = 0):
        super().__init__()
        self.fc1, self.fc2, self.bn2 = linear(math.prod(shape), width), linear(width, width), norm1d(width)
        self.out = linear(width, outputs)
        self.z2 = linear(joined, width) if joined else None

    def features(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """The last hidden layer, N x 1024."""
        h = self.fc2(lrelu(self.fc1(x.flatten(1))))
        return lrelu(self.bn2(h if self.z2 is None else h + self.z2(z)))

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        return self.out(self.features(x, z)).float()


class Generator(nn.Module):
    """z -> 1024, batch norm, ReLU -> 1024 (of h and of z), batch norm, ReLU -> sigmoid."""

    def __init__(self, shape: Shape, width: int, latent_dim: int):
        super().__init__()
        self.shape = shape
        self.fc1, self.bn1 = linear(latent_dim, width), norm1d(width)
        self.fc2, self.z2, self.bn2 = linear(width, width), linear(latent_dim, width), norm1d(width)
        self.out = linear(width, math.prod(shape))

    def forward(self, z: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.fc1(z)))
        h = F.relu(self.bn2(self.fc2(h) + self.z2(z)))
        return torch.sigmoid(self.out(h).float()).unflatten(1, self.shape)


# --- Convolutional networks (deviation 3): images in [-1, 1] ---


class ConvReader(nn.Module):
    """E(x) or D(x, z): S x S -> ... -> 4 x 4 by 5x5 convolutions of stride 2 -> outputs, not squashed.

    joined: size of the z that is added at every layer after the first; 0: none.
    """

    def __init__(self, shape: Shape, width: int, outputs: int, joined: int = 0):
        super().__init__()
        widths = [width << s for s in range((shape[1] // 4).bit_length() - 1)]  # one for each halving down to 4 x 4
        self.convs = nn.ModuleList(down_conv(a, b, bias=False) for a, b in pairwise((shape[0], *widths)))
        self.bns = nn.ModuleList([nn.Identity(), *(norm2d(w) for w in widths[1:])])
        self.zs = nn.ModuleList(linear(joined, w) for w in widths[1:]) if joined else None
        self.out = linear(widths[-1] * 16, outputs)

    def features(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """The last feature map, flattened."""
        for i, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            x = conv(x)
            if i and self.zs is not None:
                x = x + self.zs[i - 1](z)[:, :, None, None]
            x = lrelu(bn(x))
        return x.flatten(1)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        return self.out(self.features(x, z)).float()


class ConvGenerator(nn.Module):
    """z -> 4 x 4 -> ... -> S x S by transposed 5x5 convolutions of stride 2, z added at every layer, tanh."""

    def __init__(self, shape: Shape, width: int, latent_dim: int):
        super().__init__()
        widths = [width << s for s in reversed(range((shape[1] // 4).bit_length() - 1))]
        self.project = linear(latent_dim, widths[0] * 16)
        self.bns = nn.ModuleList(norm2d(w) for w in widths)
        self.zs = nn.ModuleList(linear(latent_dim, w) for w in widths[1:])
        self.convs = nn.ModuleList(up_conv(a, b, bias=False) for a, b in pairwise((*widths, shape[0])))

    def forward(self, z: Tensor) -> Tensor:
        h = self.project(z).unflatten(1, (-1, 4, 4))
        for i, (bn, conv) in enumerate(zip(self.bns, self.convs, strict=True)):
            h = conv(F.relu(bn(h if i == 0 else h + self.zs[i - 1](z)[:, :, None, None])))
        return torch.tanh(h.float())


# --- All rows of Table 1 ---


class Table1(GAN):
    """Networks, optimisers, schedule and latent of every row of Table 1.

    The learning rate is `lr` for `constant_steps`, then decays exponentially to lr / 100 over `decay_steps`: 200 epochs
    each in the code. moment_batches: number of batches for batch norm's moments in the evaluation.
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
    ):
        super().__init__()
        if convolutional and (image_size < 8 or image_size & (image_size - 1)):
            raise ValueError(f"image_size of convolutional networks must be a power of two from 8 on, not {image_size}")
        self.image_shape = (channels, image_size, image_size)
        self.latent_dim, self.lr, self.weight_decay, self.convolutional = latent_dim, lr, weight_decay, convolutional
        self.constant_steps, self.decay_steps, self.moment_batches = constant_steps, decay_steps, moment_batches
        generator, reader = (ConvGenerator, ConvReader) if convolutional else (Generator, Reader)
        self.G = generator(self.image_shape, width, latent_dim)
        if "D" in self.networks:
            self.D = reader(self.image_shape, width, outputs=1, joined=latent_dim if self.joint else 0)
        if "E" in self.networks:
            self.E = reader(self.image_shape, width, outputs=latent_dim)
        for p in self.parameters():
            nn.init.normal_(p, 0.0, 0.02)
        for name in set(self.networks) & set(self.zero_at_first):
            nn.init.zeros_(getattr(self, name).out.weight)

    def inside(self, x: Tensor) -> Tensor:
        """Images in [-1, 1] in the range of the networks."""
        return x if self.convolutional else (x + 1) / 2

    def outside(self, x: Tensor) -> Tensor:
        """Images of the networks in [-1, 1]."""
        return x if self.convolutional else 2 * x - 1

    def objectives(self, x: Tensor) -> Objectives:
        """Losses of one forward pass, each with the networks that it moves; a loss without any is only logged.

        x: images in the range of the networks.
        """
        raise NotImplementedError

    def optimizers(self) -> dict[str, Optimizer]:
        return {
            name: Adam(net.parameters(), self.lr, betas=(0.5, 0.999), eps=1e-8, weight_decay=self.weight_decay)
            for name, net in self.named_children()
        }

    def set_rates(self, opt: Mapping[str, Optimizer], step: int) -> None:
        """lr, then lr * 0.01^(share of the decay that has passed) (deviation 5)."""
        passed = min(max(step - self.constant_steps, 0) / self.decay_steps, 1.0)
        for optimizer in opt.values():
            optimizer.param_groups[0]["lr"] = self.lr * 0.01**passed

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        """All networks step at once, each down its objective."""
        self.set_rates(opt, batch.step)
        objectives = self.objectives(self.inside(batch.x))
        minimize_together(*((loss, [opt[n] for n in networks]) for loss, networks in objectives.values() if networks))
        return {name: loss.detach() for name, (loss, _) in objectives.items()}

    @torch.no_grad()
    def finish(self, batches: Iterable[Batch]) -> None:
        """Recompute batch norm's moments as plain averages over `moment_batches` batches (the code's "deploy")."""
        norms = [m for m in self.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        for m in norms:
            m.reset_running_stats()
            m.momentum = None
        self.train()
        for batch in islice(batches, self.moment_batches):
            self.observe(batch.x)
        self.eval()
        for m in norms:
            m.momentum = 0.1

    def observe(self, x: Tensor) -> None:
        """A forward pass of every network on what the evaluation gives it."""
        raise NotImplementedError

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ U(-1, 1)^d"""
        return torch.rand(n, self.latent_dim, generator=generator) * 2 - 1

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return self.generate(self.sample_latent(n, generator).to(self.device))

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z)"""
        return self.outside(self.G(z))


class WithEncoder(Table1):
    """The rows that have an encoder."""

    def code(self, x: Tensor) -> Tensor:
        """E(x), squashed to (-1, 1) by 2 sigmoid - 1, N x d. x: as in `objectives`."""
        return 2 * torch.sigmoid(self.E(x)) - 1

    def encode(self, x: Tensor) -> Tensor:
        """E(x), squashed to (-1, 1), N x d."""
        return self.code(self.inside(x))

    def encoder_features(self, x: Tensor) -> Tensor:
        """The last hidden layer of E, N x 1024: Table 1 looks up neighbours in it."""
        return self.E.features(self.inside(x))

    def reconstruct(self, x: Tensor) -> Tensor:
        """G(E(x))"""
        return self.generate(self.encode(x))


class WithDiscriminator(Table1):
    """The rows that have a discriminator."""

    def d_loss(self, real_logit: Tensor, fake_logit: Tensor) -> Tensor:
        """1/2 [-E_x log D(x, E(x)) - E_z log(1 - D(G(z), z))]   (Equation 2), or D of images alone"""
        return 0.5 * (F.softplus(-real_logit).mean() + F.softplus(fake_logit).mean())

    def discriminator_features(self, x: Tensor) -> Tensor:
        """The last hidden layer of D, N x 1024."""
        return self.D.features(self.inside(x))

    def observe(self, x: Tensor) -> None:
        self.G(self.sample_latent(len(x)).to(x))
        self.discriminator_features(x)


# --- The rows ---


class BiGAN(WithEncoder, WithDiscriminator):
    """BiGAN (Donahue, Krähenbühl, Darrell, 2017)."""

    joint = True
    game = "d_loss", "ge_loss"

    def ge_loss(self, real_logit: Tensor, fake_logit: Tensor) -> Tensor:
        """1/2 [-E_x log(1 - D(x, E(x))) - E_z log D(G(z), z)], the inverse objective   (Section 3.4)"""
        return 0.5 * (F.softplus(real_logit).mean() + F.softplus(-fake_logit).mean())

    def objectives(self, x: Tensor) -> Objectives:
        z = self.sample_latent(len(x)).to(x)
        real_logit, fake_logit = self.D(x, self.code(x)), self.D(self.G(z), z)
        return {"d_loss": (self.d_loss(real_logit, fake_logit), "D"),
                "ge_loss": (self.ge_loss(real_logit, fake_logit), "GE")}

    def discriminator_features(self, x: Tensor) -> Tensor:
        """The last hidden layer of D at (x, E(x)), N x 1024."""
        return self.D.features(self.inside(x), self.encode(x))


class PlainGAN(WithDiscriminator):
    """Row D: a GAN, whose discriminator's last hidden layer is the feature."""

    networks = "GD"

    def g_loss(self, fake_logit: Tensor) -> Tensor:
        """-E_z log D(G(z))"""
        return F.softplus(-fake_logit).mean()

    def objectives(self, x: Tensor) -> Objectives:
        fake_logit = self.D(self.G(self.sample_latent(len(x)).to(x)))
        return {"d_loss": (self.d_loss(self.D(x), fake_logit), "D"), "g_loss": (self.g_loss(fake_logit), "G")}


class LatentRegressor(PlainGAN, WithEncoder):
    """Row LR: a GAN, and an encoder that learns to find z again in G(z); G learns nothing from it."""

    networks = "GDE"
    zero_at_first = "DE"

    def e_loss(self, e: Tensor, z: Tensor) -> Tensor:
        """Cross-entropy of sigmoid(e) with (z + 1) / 2, mean over the batch and the d dimensions"""
        return F.binary_cross_entropy_with_logits(e, (z + 1) / 2)

    def objectives(self, x: Tensor) -> Objectives:
        z = self.sample_latent(len(x)).to(x)
        fake = self.G(z)
        fake_logit = self.D(fake)
        return {"d_loss": (self.d_loss(self.D(x), fake_logit), "D"), "g_loss": (self.g_loss(fake_logit), "G"),
                "e_loss": (self.e_loss(self.E(fake.detach()), z), "E")}

    def observe(self, x: Tensor) -> None:
        super().observe(x)
        self.encode(x)


class JointLatentRegressor(LatentRegressor):
    """Row JLR: as LR, and G helps: it minimises -E log D(G(z)) + 1/4 of the regression, and E its share of that.

    On MNIST G was seen to end on black images, to which a D without biases answers 0 whatever it learns.
    """

    game = "d_loss", "ge_loss"

    def objectives(self, x: Tensor) -> Objectives:
        z = self.sample_latent(len(x)).to(x)
        fake = self.G(z)
        fake_logit, e_loss = self.D(fake), self.e_loss(self.E(fake), z)
        return {"d_loss": (self.d_loss(self.D(x), fake_logit), "D"),
                "ge_loss": (self.g_loss(fake_logit) + 0.25 * e_loss, "GE"), "e_loss": (e_loss, "")}


class AutoencoderL2(WithEncoder):
    """Row AE (l2)."""

    networks = "GE"
    game = None

    def reconstruction_loss(self, x: Tensor, back: Tensor) -> Tensor:
        """E (x - G(E(x)))^2, images in [0, 1]"""
        return ((x - back) / 2).square().mean()

    def objectives(self, x: Tensor) -> Objectives:
        loss = self.reconstruction_loss(self.outside(x), self.outside(self.G(self.code(x))))
        return {"reconstruction_loss": (loss, "GE")}

    def observe(self, x: Tensor) -> None:
        self.reconstruct(x)


class AutoencoderL1(AutoencoderL2):
    """Row AE (l1)."""

    def reconstruction_loss(self, x: Tensor, back: Tensor) -> Tensor:
        """E |x - G(E(x))|, images in [0, 1]"""
        return ((x - back) / 2).abs().mean()
