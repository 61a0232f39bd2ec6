"""BigGAN: class-conditional GANs at scale, with truncated latents, and BigGAN-deep.

"Large Scale GAN Training for High Fidelity Natural Image Synthesis",
Andrew Brock, Jeff Donahue, Karen Simonyan. ICLR 2019, arXiv:1809.11096.
The official code was not released; the first author's own is https://github.com/ajbrock/BigGAN-PyTorch.

Networks and parameter counts are those of that code: `biggan` at 32, 64, 128 and 256 pixels, `biggan-deep` likewise.
At 32 pixels two forms are public. `embed_dim=0`, the form of its CIFAR-10 script: a table of gains and shifts for each
layer in the place of the shared embedding, one latent for all layers, no attention, weights from N(0, .02).
Otherwise StudioGAN's: the shared embedding, a part of z for every block, attention at 16 x 16, orthogonal weights.

Unconfirmed, because the text that could be read leaves it open:
- the number of passes of the standing statistics (16 in the code; here 100, from memory of the paper);
- Adam's epsilon (1e-6 in the code's ImageNet scripts, 1e-8 in its CIFAR-10 script).

Deviations from the paper and its code:
1. The penalty R is half the paper's, because the code adds 2 beta (W W^T o (1 - I)) W to the gradient, half of what the
   paper's equation gives. The same beta then means the same gradient.
2. R leaves out the tables of gains and shifts, which the code regularises as if classes were outputs.
3. A pass in training moves u before v in spectral norm; the code begins with v.
4. Biases start at 0; the code keeps PyTorch's uniform start.
5. The averaged G has the running moments of G itself until the standing statistics are taken at the end. The code
   averages the moments too.
6. With accumulation each chunk has batch-norm moments of its own, as in the code. The paper's are of the whole batch.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from ganbench.gan import GAN, Batch, minimize
from reference_models.layers import (
    ConditionalBatchNorm,
    DownBlock,
    FirstDownBlock,
    SelfAttention,
    UpBlock,
    conv3,
    double,
    halve,
    largest_singular_values,
    normal_start,
    orthogonal_start,
    spectral_norm,
)

# Channels by image size, in multiples of a width: of G at 4 x 4 and after each doubling, and of D after each block.
G_WIDTHS = {32: (1, 1, 1, 1), 64: (16, 16, 8, 4, 2), 128: (16, 16, 8, 4, 2, 1), 256: (16, 16, 8, 8, 4, 2, 1)}
D_WIDTHS = {32: (1, 1, 1, 1), 64: (1, 2, 4, 8, 16), 128: (1, 2, 4, 8, 16, 16), 256: (1, 2, 4, 8, 8, 16, 16)}


def channels_of(table: dict[int, tuple[int, ...]], size: int, width: int) -> list[int]:
    """Return the channels of a network for images of this size."""
    return [width * k for k in table[size]]


def halvings(size: int) -> int:
    """Number of halvings in D: down to 4 x 4, of 32 x 32 images down to 8 x 8."""
    return 2 if size == 32 else (size // 4).bit_length() - 1


def start(net: nn.Module, std: float, but: Iterable[nn.Module] = ()) -> None:
    """Draw the weights, N(0, std^2) or orthogonal (std 0); then normalise all but these layers by spectral norm."""
    if std:
        normal_start(net, std)
    else:
        orthogonal_start(net)
    spectral_norm(net, eps=1e-6, but=but)


# --- BigGAN ---


class Generator(nn.Module):
    """z, y -> 4x4 -> ... -> SxS by residual blocks, whose batch norms see the class and a part of z.

    z is split into equal parts: the first becomes the 4 x 4 maps, each block gets one beside the embedding of y.
    embed_dim 0: blocks see y alone, through tables of their own, and the maps are made of all of z.
    """

    def __init__(
        self, size: int, channels: int, classes: int, width: int, latent_dim: int, embed_dim: int, attention: int,
        init_std: float,
    ):
        super().__init__()
        widths = channels_of(G_WIDTHS, size, width)
        self.classes, self.parts = classes, len(widths) if embed_dim else 1
        part = latent_dim // self.parts
        self.embed = nn.Embedding(classes, embed_dim) if embed_dim else None
        self.project = nn.Linear(part, widths[0] * 16)
        self.blocks = nn.ModuleList(
            UpBlock(cin, cout, embed_dim + part if embed_dim else classes) for cin, cout in pairwise(widths)
        )
        self.attention = attention_of(widths[1:], [8 << k for k in range(len(self.blocks))], attention)
        self.norm, self.out = nn.BatchNorm2d(widths[-1]), conv3(widths[-1], channels)
        start(self, init_std, self.tables())

    def tables(self) -> list[nn.Module]:
        """Layers that look up a vector of a class. They have neither spectral norm nor the orthogonal penalty."""
        if self.embed is not None:
            return [self.embed]
        return [m for norm in self.modules() if isinstance(norm, ConditionalBatchNorm) for m in (norm.gain, norm.shift)]

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        first, *rest = z.chunk(self.parts, 1)
        if self.embed is None:
            conditions = [F.one_hot(y, self.classes).to(z.dtype)] * len(self.blocks)
        else:
            e = self.embed(y)
            conditions = [torch.cat([e, part], 1) for part in rest]
        h = self.project(first).unflatten(1, (-1, 4, 4))
        for i, (block, c) in enumerate(zip(self.blocks, conditions, strict=True)):
            h = look(self.attention, i, block(h, c))
        return picture(self.out(F.relu(self.norm(h))))


class Discriminator(nn.Module):
    """x, y -> logit: residual blocks, the sum over pixels h, w^T h + b + embedding(y)^T h (projection)."""

    def __init__(self, size: int, channels: int, classes: int, width: int, attention: int, init_std: float):
        super().__init__()
        widths, downs = channels_of(D_WIDTHS, size, width), halvings(size)
        blocks: list[nn.Module] = [FirstDownBlock(channels, widths[0])]
        blocks += [DownBlock(a, b, down=i < downs, hidden=b) for i, (a, b) in enumerate(pairwise(widths), 1)]
        self.blocks = nn.ModuleList(blocks)
        self.attention = attention_of(widths, sides(size, len(widths)), attention)
        self.logit, self.embed = nn.Linear(widths[-1], 1), nn.Embedding(classes, widths[-1])
        start(self, init_std)

    def features(self, x: Tensor) -> Tensor:
        """h, N x C."""
        h = x
        for i, block in enumerate(self.blocks):
            h = look(self.attention, i, block(h))
        return wide(F.relu(h)).sum((2, 3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return projection(self, self.features(x), y)


def sides(size: int, blocks: int) -> list[int]:
    """Side of the maps after each block of D."""
    return [size >> min(i + 1, halvings(size)) for i in range(blocks)]


def attention_of(widths: list[int], after: list[int], side: int) -> nn.ModuleDict:
    """Self-attention after the first block whose maps have this side, by the block's number; empty if side is 0."""
    if not side:
        return nn.ModuleDict()
    block = after.index(side)
    return nn.ModuleDict({str(block): SelfAttention(widths[block])})


def look(attention: nn.ModuleDict, block: int, h: Tensor) -> Tensor:
    """h after the attention that follows this block, if there is any."""
    return attention[str(block)](h) if str(block) in attention else h


def wide(h: Tensor) -> Tensor:
    """h in float32, or in float64 if it is."""
    return h.to(torch.promote_types(h.dtype, torch.float32))


def picture(h: Tensor) -> Tensor:
    """Images in (-1, 1)."""
    return torch.tanh(wide(h))


def projection(net: nn.Module, h: Tensor, y: Tensor) -> Tensor:
    """w^T h + b + embedding(y)^T h, N   (Miyato and Koyama, 2018); not in bfloat16, which a linear layer would use"""
    return ((net.logit.weight + net.embed(y)) * h).sum(1) + net.logit.bias  # type: ignore[union-attr, operator]


# --- BigGAN-deep: two bottleneck blocks at each size, and shortcuts without weights in G ---


class DeepUpBlock(nn.Module):
    """(norm, ReLU, conv) four times, 1x1, 3x3, 3x3, 1x1 on a quarter of the channels; + the first channels of h.

    up: double before the 3 x 3 convolutions.
    """

    def __init__(self, cin: int, cout: int, condition: int, up: bool):
        super().__init__()
        hidden = cin // 4
        self.norms = nn.ModuleList(ConditionalBatchNorm(w, condition) for w in (cin, hidden, hidden, hidden))
        self.convs = nn.ModuleList(
            [nn.Conv2d(cin, hidden, 1), conv3(hidden, hidden), conv3(hidden, hidden), nn.Conv2d(hidden, cout, 1)]
        )
        self.cout, self.resample = cout, double if up else nn.Identity()

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        r = h
        for i, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            r = F.relu(norm(r, c))
            r = conv(self.resample(r) if i == 1 else r)
        return r + self.resample(h[:, : self.cout])


class DeepDownBlock(nn.Module):
    """(ReLU, conv) four times, 1x1, 3x3, 3x3, 1x1 on a quarter of the channels; + [h, conv 1x1 of h].

    down: halve h, and the maps before the last convolution.
    """

    def __init__(self, cin: int, cout: int, down: bool):
        super().__init__()
        hidden = cout // 4
        self.convs = nn.ModuleList(
            [nn.Conv2d(cin, hidden, 1), conv3(hidden, hidden), conv3(hidden, hidden), nn.Conv2d(hidden, cout, 1)]
        )
        self.more = nn.Conv2d(cin, cout - cin, 1) if cout > cin else None
        self.resample = halve if down else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        r = h
        for i, conv in enumerate(self.convs):
            r = F.relu(r)
            r = conv(self.resample(r) if i == 3 else r)
        h = self.resample(h)
        return r + (h if self.more is None else torch.cat([h, self.more(h)], 1))


class DeepGenerator(nn.Module):
    """z, y -> 4x4 -> ... -> SxS: [embedding of y, z] makes the 4 x 4 maps and goes to every batch norm."""

    def __init__(
        self, size: int, channels: int, classes: int, width: int, latent_dim: int, embed_dim: int, attention: int,
        init_std: float,
    ):
        super().__init__()
        widths, condition = channels_of(G_WIDTHS, size, width), embed_dim + latent_dim
        self.embed = nn.Embedding(classes, embed_dim)
        self.project = nn.Linear(condition, widths[0] * 16)
        self.blocks = nn.ModuleList(
            DeepUpBlock(a, b, condition, up) for cin, cout in pairwise(widths)
            for a, b, up in ((cin, cin, False), (cin, cout, True))
        )
        blocks = range(len(self.blocks))
        self.attention = attention_of([widths[(i + 1) // 2] for i in blocks], [4 << (i + 1) // 2 for i in blocks],
                                      attention)
        self.norm, self.out = nn.BatchNorm2d(widths[-1]), conv3(widths[-1], channels)
        start(self, init_std, self.tables())

    def tables(self) -> list[nn.Module]:
        """As in `Generator`."""
        return [self.embed]

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        c = torch.cat([self.embed(y), z], 1)
        h = self.project(c).unflatten(1, (-1, 4, 4))
        for i, block in enumerate(self.blocks):
            h = look(self.attention, i, block(h, c))
        return picture(self.out(F.relu(self.norm(h))))


class DeepDiscriminator(nn.Module):
    """x, y -> logit, as `Discriminator`, after a convolution 3 x 3 by two bottleneck blocks at each size."""

    def __init__(self, size: int, channels: int, classes: int, width: int, attention: int, init_std: float):
        super().__init__()
        widths, downs = channels_of(D_WIDTHS, size, width), halvings(size)
        self.stem = conv3(channels, widths[0])
        self.blocks = nn.ModuleList(
            DeepDownBlock(a, b, down) for i, (cin, cout) in enumerate(pairwise(widths))
            for a, b, down in ((cin, cout, i < downs), (cout, cout, False))
        )
        after = [side for s in sides(size, len(widths) - 1) for side in (0, s)]  # attention after a pair
        self.attention = attention_of([widths[i // 2 + 1] for i in range(len(after))], after, attention)
        self.logit, self.embed = nn.Linear(widths[-1], 1), nn.Embedding(classes, widths[-1])
        start(self, init_std)

    def features(self, x: Tensor) -> Tensor:
        """h, N x C."""
        h = self.stem(x)
        for i, block in enumerate(self.blocks):
            h = look(self.attention, i, block(h))
        return wide(F.relu(h)).sum((2, 3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return projection(self, self.features(x), y)


# --- The models ---


class BigGAN(GAN):
    """BigGAN (Brock, Donahue, Simonyan, 2019).

    image_size: 32, 64, 128 or 256. g_width, d_width: the number that channels are multiples of, the code's "ch"; at 32
    pixels all channels, 4 ch. latent_dim: size of z, split equally over the 4 x 4 maps and the blocks of G. embed_dim:
    size of the shared embedding of classes; 0: tables for each layer, and no part of z for the blocks. attention: side
    of the maps with self-attention in G and D; 0: none. init_std: weights start from N(0, init_std^2); 0: orthogonal.
    ortho: beta. n_critic: updates of D for each one of G, which share a batch equally; G's batch is as large as one of
    D's. accumulation: chunks that each of these is passed in. standing: passes of the standing statistics.
    """

    logged = ("real_right", "fake_right", "g_sigma", "d_sigma")
    generator: type[nn.Module] = Generator
    discriminator: type[nn.Module] = Discriminator
    split = True  # z over the blocks

    def __init__(
        self, image_size: int = 128, channels: int = 3, num_classes: int = 1000, g_width: int = 96,
        d_width: int = 96, latent_dim: int = 120, embed_dim: int = 128, attention: int = 64, init_std: float = 0.0,
        ortho: float = 1e-4, g_lr: float = 5e-5, d_lr: float = 2e-4, beta1: float = 0.0, beta2: float = 0.999,
        eps: float = 1e-6, n_critic: int = 2, accumulation: int = 1, standing: int = 100,
    ):
        super().__init__()
        self.check(image_size, num_classes, latent_dim, embed_dim, attention)
        if min(n_critic, accumulation) < 1:
            raise ValueError("n_critic and accumulation must be at least 1")
        self.image_shape, self.num_classes = (channels, image_size, image_size), num_classes
        self.latent_dim = latent_dim
        self.ortho, self.n_critic, self.accumulation, self.standing = ortho, n_critic, accumulation, standing
        self.rates, self.adam = {"D": d_lr, "G": g_lr}, {"betas": (beta1, beta2), "eps": eps}
        self.G = self.generator(image_size, channels, num_classes, g_width, latent_dim, embed_dim, attention, init_std)
        self.D = self.discriminator(image_size, channels, num_classes, d_width, attention, init_std)

    def check(self, image_size: int, num_classes: int, latent_dim: int, embed_dim: int, attention: int) -> None:
        """Raise ValueError for arguments that do not fit together."""
        if image_size not in G_WIDTHS:
            raise ValueError(f"image_size must be one of {', '.join(map(str, G_WIDTHS))}, not {image_size}")
        if num_classes < 1:
            raise ValueError("BigGAN is conditional: num_classes must be at least 1")
        places = [side for side in sides(image_size, 8) if side >= 8]
        if attention and attention not in places:
            raise ValueError(f"attention must be 0 or one of {', '.join(map(str, places))}, not {attention}")
        if not (self.split or embed_dim):
            raise ValueError("BigGAN-deep has a shared embedding: embed_dim must be at least 1")
        parts = len(G_WIDTHS[image_size]) if self.split and embed_dim else 1
        if latent_dim % parts:
            raise ValueError(f"latent_dim must be a multiple of {parts} at {image_size} pixels, not {latent_dim}")

    # --- Losses ---

    def d_loss(self, real_logit: Tensor, fake_logit: Tensor) -> Tensor:
        """E max(0, 1 - D(x, y)) + E max(0, 1 + D(G(z, y), y)), the hinge loss   (Section 3)"""
        return F.relu(1 - real_logit).mean() + F.relu(1 + fake_logit).mean()

    def g_loss(self, fake_logit: Tensor) -> Tensor:
        """-E D(G(z, y), y)"""
        return -fake_logit.mean()

    def penalty(self) -> Tensor:
        """R = beta / 2 |W^T W o (1 - I)|_F^2, summed over the weights W of G   (Equation 3, halved: deviation 1)

        The columns of the paper's W are outputs. The sum of squares off the diagonal is that of all elements, which
        W^T W and W W^T share, less that of the diagonal.
        """
        spared = {id(p) for table in self.G.tables() for p in table.parameters()}
        total = torch.zeros((), device=self.device)
        with torch.autocast(self.device.type, enabled=False):
            for w in (p.flatten(1) for p in self.G.parameters() if p.ndim > 1 and id(p) not in spared):
                gram = w @ w.T if len(w) <= w.shape[1] else w.T @ w
                total = total + gram.square().sum() - w.square().sum(1).square().sum()
        return self.ortho / 2 * total

    # --- Training ---

    def optimizers(self) -> dict[str, Optimizer]:
        return {name: Adam(getattr(self, name).parameters(), rate, **self.adam) for name, rate in self.rates.items()}

    def training_step(self, batch: Batch, opt: Mapping[str, Optimizer]) -> dict[str, Tensor]:
        assert batch.y is not None
        for x, y in zip(batch.x.chunk(self.n_critic), batch.y.chunk(self.n_critic), strict=True):
            right: list[Tensor] = []
            d_loss = minimize(self.d_terms(x, y, right), opt["D"])
        g_loss = minimize(self.g_terms(x), opt["G"])
        real_right, fake_right = torch.stack(right).sum(0)
        return {
            "d_loss": d_loss, "g_loss": g_loss, "real_right": real_right, "fake_right": fake_right,
            "g_sigma": largest_singular_values(self.G).max(), "d_sigma": largest_singular_values(self.D).max(),
        }

    def d_terms(self, x: Tensor, y: Tensor, right: list[Tensor]) -> Iterator[Tensor]:
        """D's loss by chunks. right: gets D's shares of right answers on real and generated images, chunk by chunk."""
        for x_k, y_k in zip(x.chunk(self.accumulation), y.chunk(self.accumulation), strict=True):
            share = len(x_k) / len(x)
            z, c = self.draw(x_k)
            with torch.no_grad():
                fake = self.G(z, c)
            real_logit, fake_logit = self.D(torch.cat([x_k, fake]), torch.cat([y_k, c])).split(len(x_k))
            right.append(share * torch.stack([(real_logit > 0).float().mean(), (fake_logit < 0).float().mean()]))
            yield share * self.d_loss(real_logit, fake_logit)

    def g_terms(self, x: Tensor) -> Iterator[Tensor]:
        """G's loss by chunks as large as those of x, then the penalty."""
        for x_k in x.chunk(self.accumulation):
            z, c = self.draw(x_k)
            yield len(x_k) / len(x) * self.g_loss(self.D(self.G(z, c), c))
        if self.ortho:
            yield self.penalty()

    def draw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z ~ N(0, I), and classes drawn uniformly: as many as the images x, on their device."""
        return self.sample_latent(len(x)).to(x), torch.randint(self.num_classes, (len(x),), device=x.device)

    @torch.no_grad()
    def finish(self, batches: Iterable[Batch]) -> None:
        """Standing statistics: batch norm's moments become averages over `standing` batches of samples."""
        n = len(next(iter(batches)).x) // (self.n_critic * self.accumulation)
        self.eval()
        norms = [m for m in self.G.modules() if isinstance(m, nn.BatchNorm2d)]
        for m in norms:
            m.reset_running_stats()
            m.momentum = None
            m.train()
        like = torch.empty(max(n, 2), device=self.device)
        for _ in range(self.standing):
            self.G(*self.draw(like))
        self.eval()
        for m in norms:
            m.momentum = 0.1

    # --- Samples ---

    def sample_latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """z ~ N(0, I)"""
        return torch.randn(n, self.latent_dim, generator=generator)

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Images of the classes `y`; without them, of classes drawn uniformly."""
        z = self.sample_latent(n, generator).to(self.device)
        if y is None:
            y = torch.randint(self.num_classes, (n,), generator=generator).to(self.device)
        return self.generate(z, y)

    def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """G(z, y)"""
        assert y is not None
        return self.G(z, y)

    def discriminator_features(self, x: Tensor) -> Tensor:
        """D's last maps, summed over pixels: N x C."""
        return self.D.features(x)


class BigGANDeep(BigGAN):
    """BigGAN-deep: bottleneck blocks, and all of z beside the embedding of y everywhere   (Appendix B)"""

    generator, discriminator, split = DeepGenerator, DeepDiscriminator, False
