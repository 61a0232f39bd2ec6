"""A picture of what a generator may have copied: samples, each beside the training images that are nearest to it."""

from pathlib import Path

import torch
from torch import Tensor

from ganbench.base.errors import UserError
from ganbench.data.images import grid, save_png, to_rgb
from ganbench.features import FeatureExtractor, extract
from ganbench.metrics import Unavailable, nearest_training_images

NEIGHBOURS = 7


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
