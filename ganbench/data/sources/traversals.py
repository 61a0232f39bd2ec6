"""Traversals of a checkpoint's codes: a picture of what each code changes in the image.

A row is one code. All images of a row have the same latent but for that code: a categorical code has a column for each
of its values, a continuous one goes from -2 to 2 in equal steps. Source: Chen et al. (2016), "InfoGAN", Figure 2, which
goes from -2 to 2 although the codes are trained in (-1, 1).

The command `ganbench traverse` uses these functions.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ganbench.base import memory
from ganbench.base.device import choose_device
from ganbench.base.errors import UserError
from ganbench.base.progress import Reporter
from ganbench.data import images
from ganbench.data.sources.generators import images_at_once
from ganbench.gan import GAN, Code, capabilities, checkpoint

LIMIT = 2.0  # of a continuous code


@dataclass(frozen=True)
class Traversals:
    """images: of each row, uint8 n x C x H x W, with n columns. codes: the code of each row."""

    images: list[Tensor]
    codes: list[Code]


def varied(z: Tensor, code: Code, columns: int) -> Tensor:
    """Return copies of one latent that differ in a code alone: float n x d, with a row for each value of the code.

    z: float d. columns: number of values of a continuous code, from -2 to 2; a categorical code has its own number.

    >>> varied(torch.zeros(3), Code("c2", start=1), 3)
    tensor([[ 0., -2.,  0.],
            [ 0.,  0.,  0.],
            [ 0.,  2.,  0.]])
    """
    values = torch.eye(code.values) if code.values else torch.linspace(-LIMIT, LIMIT, columns)[:, None]
    z = z.repeat(len(values), 1)
    z[:, code.columns] = values.to(z)
    return z


def draw(
    ckpt: Path, model: str | None, columns: int, latents: int, seed: int, device: str | None, reporter: Reporter
) -> Traversals:
    """Return the traversals of all codes of a checkpoint: `latents` rows for each code, one for each latent.

    model: the name that the checkpoint must have, or None. columns: images in the row of a continuous code, at least 2.
    seed: determines the latents, which are the same for all codes. A model with classes shows class 0, 1, ... in turn,
    another one for each latent. device: the name of a device, or None (see `choose_device`).
    Raises UserError if the checkpoint cannot be read, if the model has no codes, and if an image holds NaN.
    """
    gan, meta = checkpoint.load(ckpt, model)
    if not {"codes", "generate", "sample_latent"} <= set(capabilities(gan)):
        raise UserError(
            f"{ckpt}: the model '{meta.model}' has no codes to traverse. `ganbench sample` draws samples of it."
        )
    codes = list(gan.codes())
    each = math.prod(gan.image_shape)
    memory.require(latents * each * sum(code.values or columns for code in codes), "the images of the traversals")
    gan = gan.to(choose_device(device)).eval()
    z = gan.sample_latent(latents, torch.Generator().manual_seed(seed))
    rows = [(code, i) for code in codes for i in range(latents)]
    made = []
    with reporter.task("traverse", len(rows)) as task:
        for code, i in rows:
            y = i % gan.num_classes if gan.num_classes else None
            try:
                batches = _generated(gan, varied(z[i], code, columns), y)
                made.append(torch.cat([images.to_uint8(x).cpu() for x in batches]))
            except ValueError as error:
                raise UserError(f"the generator cannot be evaluated: {error}. Take an earlier checkpoint.") from error
            task.advance(1)
    return Traversals(made, [code for code, _ in rows])


@torch.inference_mode()
def _generated(gan: GAN, z: Tensor, y: int | None) -> Iterator[Tensor]:
    """Yield the images of latents in batches that bound the memory."""
    for some in z.split(images_at_once(gan.image_shape)):
        labels = None if y is None else torch.full((len(some),), y, device=gan.device)
        yield gan.generate(some.to(gan.device), labels).float()


def write_picture(traversals: Traversals, path: Path) -> None:
    """Write a PNG with a row for each traversal. Shorter rows end in white. Raises UserError if writing fails."""
    columns = max(map(len, traversals.images))
    white = torch.full((1, *traversals.images[0].shape[1:]), 255, dtype=torch.uint8)
    rows = [torch.cat([row, white.expand(columns - len(row), -1, -1, -1)]) for row in traversals.images]
    images.save_png(images.grid(torch.cat(rows), columns), path)
