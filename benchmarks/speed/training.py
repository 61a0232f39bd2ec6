"""Training steps beside a plain PyTorch loop of the same model.

The plain loop is what a careful author writes: torchvision's ToTensor and Normalize in a shuffled DataLoader (in the
main process, and with two workers), Adam as it comes, D's and then G's loss backwards through everything, and no log.
Ours is the step of `ganbench.training`: batches by index from uint8 in memory, fused Adam, channels-last, gradients of
the named network alone, and bfloat16 products where a case says so.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from benchmarks.speed import Case
from ganbench.data.datasets import Dataset
from ganbench.gan import checkpoint
from ganbench.recipes import EvaluateSpec, ModelSpec, Recipe, TrainSpec
from ganbench.training.batches import batches
from ganbench.training.loop import _Run
from ganbench.training.run_folder import RunFolder

CPU = torch.device("cpu")
STEPS = 5
DCGAN = {"g_width": 64, "d_width": 64}
BIGGAN = {"image_size": 32, "num_classes": 10, "g_width": 32, "d_width": 32, "latent_dim": 80, "attention": 16,
          "n_critic": 1, "g_lr": 2e-4, "d_lr": 2e-4, "beta1": 0.5}
CASES: list[tuple[str, str, dict[str, Any], int, float, float]] = [  # title, model, arguments, batch, goals
    ("DCGAN, 28 px", "dcgan", {"image_size": 28, "channels": 1, "num_classes": 10}, 64, 1.3, 1.8),
    ("DCGAN, 32 px", "dcgan", {"image_size": 32, "channels": 3, **DCGAN}, 64, 1.3, 1.8),
    ("AC-GAN, 28 px", "acgan", {"image_size": 28, "channels": 1}, 100, 1.0, 1.0),
    ("BiGAN, permutation-invariant MNIST", "bigan", {}, 128, 2.0, 2.0),
    ("SN-GAN, 32 px", "sngan", {"g_width": 32, "d_width": 32, "n_critic": 1, "g_batch": 1}, 32, 1.0, 1.3),
    ("BigGAN, 32 px", "biggan", BIGGAN, 32, 1.0, 1.3),
]


def cases() -> Iterator[Case]:
    """Yield DCGAN at 28 and 32 px, AC-GAN, BiGAN, SN-GAN and BigGAN, each in float32 and with products in bfloat16."""
    for title, model, args, batch_size, goal, goal_bf16 in CASES:
        data = images(checkpoint.make_model(model, args, title).image_shape)
        for precision in ("float32", "bf16") if torch.backends.mkldnn.is_available() else ("float32",):
            peers = {f"plain loop, {w} workers": plain(model, args, data, batch_size, w) for w in (0, 2)}
            yield Case(
                f"{title}, batch {batch_size}, {precision}: {STEPS} steps",
                ours(model, args, data, batch_size, precision),
                peers, goals=dict.fromkeys(peers, goal if precision == "float32" else goal_bf16), repeats=5,
                count=STEPS * batch_size, unit="images", agree=agree,
            )


def images(shape: tuple[int, int, int]) -> Dataset:
    """Draw 10,000 smooth images with ten labels."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(10_000, shape[0], 7, 7, generator=g) * 255
    return Dataset("smooth", "train", F.interpolate(coarse, shape[1:]).to(torch.uint8), torch.arange(10_000) % 10)


def ours(model: str, args: dict[str, Any], data: Dataset, batch_size: int, precision: str) -> Callable[[], float]:
    """Return a function that takes STEPS more steps of one run and returns their mean d_loss."""
    train = replace(TrainSpec("smooth", batch_size, 10**9), precision=precision)
    recipe = Recipe(model, 1, "", "", ModelSpec(model, args), train, EvaluateSpec([], 1, "", ""))
    torch.manual_seed(0)
    gan = checkpoint.make_model(model, args, model)
    run = _Run(gan, recipe, data, RunFolder(Path(tempfile.mkdtemp())), 0, CPU, "")
    stream = batches(data, train, 0, 0, None, CPU)

    def steps() -> float:
        return float(torch.stack([run.one_step(b)["d_loss"] for b in islice(stream, STEPS)]).float().mean())

    return steps


class Pictures(TorchDataset[tuple[Tensor, int]]):
    """A data set that handles an image as those of torchvision do."""

    def __init__(self, data: Dataset):
        self.data = data
        n = data.images.shape[1]
        self.transform = transforms.Compose([
            transforms.ToPILImage(), transforms.ToTensor(), transforms.Normalize([0.5] * n, [0.5] * n)
        ])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        assert self.data.labels is not None
        return self.transform(self.data.images[i]), int(self.data.labels[i])


def plain(model: str, args: dict[str, Any], data: Dataset, batch_size: int, workers: int) -> Callable[[], float]:
    """Return a function that takes STEPS more steps of a plain loop and returns their mean d_loss."""
    torch.manual_seed(0)
    gan: Any = checkpoint.make_model(model, args, model).train()
    adam = {name: Adam(getattr(gan, name).parameters(), 2e-4, betas=(0.5, 0.999)) for name in gan.optimizers()}
    loader = DataLoader(
        Pictures(data), batch_size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )
    step = {"dcgan": _dcgan, "acgan": _acgan, "bigan": _bigan, "sngan": _sngan, "biggan": _biggan}[model]

    def forever() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from loader

    stream = forever()
    return lambda: float(torch.stack([step(gan, adam, x, y).detach() for x, y in islice(stream, STEPS)]).mean())


def _dcgan(gan: Any, opt: dict[str, Adam], x: Tensor, y: Tensor) -> Tensor:
    hot = F.one_hot(y, 10).float() if gan.num_classes else None
    ones, zeros = torch.ones(len(x)), torch.zeros(len(x))
    fake = gan.G(torch.rand(len(x), gan.latent_dim) * 2 - 1, hot)
    opt["D"].zero_grad()
    d_loss = F.binary_cross_entropy_with_logits(gan.D(x, hot), ones)
    d_loss = d_loss + F.binary_cross_entropy_with_logits(gan.D(fake.detach(), hot), zeros)
    d_loss.backward()
    opt["D"].step()
    opt["G"].zero_grad()
    F.binary_cross_entropy_with_logits(gan.D(fake, hot), ones).backward()
    opt["G"].step()
    return d_loss


def _acgan(gan: Any, opt: dict[str, Adam], x: Tensor, y: Tensor) -> Tensor:
    ones, zeros, c = torch.ones(len(x)), torch.zeros(len(x)), torch.randint(10, (len(x),))
    fake = gan.G(torch.randn(len(x), gan.latent_dim), F.one_hot(c, 10).float())
    opt["D"].zero_grad()
    (real_s, real_c), (fake_s, fake_c) = gan.D(x), gan.D(fake.detach())
    bce, ce = F.binary_cross_entropy_with_logits, F.cross_entropy
    d_loss = bce(real_s, ones) + bce(fake_s, zeros) + ce(real_c, y) + ce(fake_c, c)
    d_loss.backward()
    opt["D"].step()
    opt["G"].zero_grad()
    fake_s, fake_c = gan.D(fake)
    (bce(fake_s, ones) + ce(fake_c, c)).backward()
    opt["G"].step()
    return d_loss


def _bigan(gan: Any, opt: dict[str, Adam], x: Tensor, y: Tensor) -> Tensor:
    ones, zeros = torch.ones(len(x)), torch.zeros(len(x))
    z = torch.rand(len(x), gan.latent_dim) * 2 - 1
    bce = F.binary_cross_entropy_with_logits
    x = (x + 1) / 2
    real, fake = gan.D(x, 2 * torch.sigmoid(gan.E(x)) - 1).flatten(), gan.D(gan.G(z), z).flatten()
    d_loss, ge_loss = (bce(real, ones) + bce(fake, zeros)) / 2, (bce(real, zeros) + bce(fake, ones)) / 2
    d, ge = list(gan.D.parameters()), [*gan.G.parameters(), *gan.E.parameters()]
    grads = [*torch.autograd.grad(d_loss, d, retain_graph=True), *torch.autograd.grad(ge_loss, ge)]
    for p, grad in zip([*d, *ge], grads, strict=True):
        p.grad = grad
    for optimizer in opt.values():
        optimizer.step()
    return d_loss


def _sngan(gan: Any, opt: dict[str, Adam], x: Tensor, y: Tensor) -> Tensor:
    opt["D"].zero_grad()
    fake = gan.G(torch.randn(len(x), gan.latent_dim)).detach()
    d_loss = F.relu(1 - gan.D(x)).mean() + F.relu(1 + gan.D(fake)).mean()
    d_loss.backward()
    opt["D"].step()
    opt["G"].zero_grad()
    (-gan.D(gan.G(torch.randn(len(x), gan.latent_dim))).mean()).backward()
    opt["G"].step()
    return d_loss


def _biggan(gan: Any, opt: dict[str, Adam], x: Tensor, y: Tensor) -> Tensor:
    def fake() -> tuple[Tensor, Tensor]:
        c = torch.randint(10, (len(x),))
        return gan.G(torch.randn(len(x), gan.latent_dim), c), c

    opt["D"].zero_grad()
    images, c = fake()
    d_loss = F.relu(1 - gan.D(x, y)).mean() + F.relu(1 + gan.D(images.detach(), c)).mean()
    d_loss.backward()
    opt["D"].step()
    opt["G"].zero_grad()
    g_loss = -gan.D(*fake()).mean()
    for w in (p.flatten(1) for name, p in gan.G.named_parameters() if p.ndim > 1 and name != "embed.weight"):
        g_loss = g_loss + gan.ortho / 2 * (w @ w.T * (1 - torch.eye(len(w)))).square().sum()
    g_loss.backward()
    opt["G"].step()
    return d_loss


def agree(ours: object, theirs: dict[str, object]) -> None:
    """Require about the same loss of D after the same number of steps from the same weights."""
    assert isinstance(ours, float)
    for name, loss in theirs.items():
        assert isinstance(loss, float)
        assert abs(ours - loss) < 0.1 * abs(loss) + 0.1, f"{name}: {loss:.3f}, ours {ours:.3f}"
