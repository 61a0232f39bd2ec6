"""A picture of what a generator may have copied: samples, each beside the training images that are nearest to it."""

from pathlib import Path

import torch
from torch import Tensor

from ganbench import features
from ganbench.base.device import choose_device
from ganbench.base.errors import UserError
from ganbench.data import datasets, sources
from ganbench.data.images import grid, save_png, to_rgb
from ganbench.features import FeatureExtractor, extract
from ganbench.gan import checkpoint
from ganbench.metrics import Unavailable, nearest_training_images

NEIGHBOURS = 7


def draw_from(
    ckpt: Path | None, model: str | None, images: str | None, reference: str | None, extractor: str | None, num: int,
    rows: int, seed: int, device: str | None, out: Path,
) -> tuple[Tensor, str]:
    """Draw the neighbours of a checkpoint's samples, or of a source of images; return distances and their measure.

    Give either ckpt, with the name of its model or None, or images. reference: the training images; None: those that
    the checkpoint names. extractor: its name; None: compare pixels. num: how many samples are looked at.
    Raises UserError for anything that cannot be read, and whatever `draw` raises.
    """
    where = choose_device(device)
    if ckpt is not None:
        gan, meta = checkpoint.load(ckpt, model)
        reference = reference or meta.data or None
        if reference is None:
            raise UserError(f"{ckpt} does not say what it was trained on: give --reference.")
        real = sources.open_source(reference)
        fake = sources.generate(gan, num, seed, where)
    else:
        assert images is not None
        assert reference is not None
        real, fake = sources.open_source(reference), sources.open_source(images)
        fake = sources.take(fake, min(num, len(fake.images)), images, seed)
    net = features.create(extractor, None, not datasets.offline()) if extractor else None
    return draw(fake.images, real.images, rows, out, net, where), "L1 of pixels" if net is None else net.title


def draw(
    fake: Tensor, real: Tensor, rows: int, out: Path, extractor: FeatureExtractor | None, device: torch.device,
    neighbours: int = NEIGHBOURS,
) -> Tensor:
    """Write a PNG: the `rows` samples nearest to a training image, nearest first, each followed by its neighbours.

    fake, real: uint8 N x C x H x W. By pixel L1 as in AC-GAN's check (Odena et al., 2017), or by Euclidean distance of
    an extractor's features. Returns the distances of the rows drawn to their first neighbour, float64.
    Raises UserError where there are fewer training images than neighbours, or the sizes differ.
    """
    try:
        if extractor is None:
            at, distances = nearest_training_images(real, fake, neighbours)
        else:
            of_real, of_fake = (extract(extractor, x, None, device).features for x in (real, fake))
            at, distances = nearest_training_images(of_real, of_fake, neighbours)
    except Unavailable as reason:
        raise UserError(f"the neighbours cannot be drawn: {reason}.") from reason
    order = distances[:, 0].sort(stable=True).indices[:rows]
    if fake.shape[1] != real.shape[1]:
        fake, real = to_rgb(fake), to_rgb(real)
    picture = torch.cat([torch.cat([fake[i : i + 1], real[at[i]]]) for i in order.tolist()])
    save_png(grid(picture, 1 + neighbours), out)
    return distances[order, 0]
