"""A picture of what a generator may have copied: samples, each beside the training images that are nearest to it."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ganbench.base import registry
from ganbench.base.data_spec import name_in
from ganbench.base.device import choose_device
from ganbench.base.errors import UserError
from ganbench.base.progress import Reporter
from ganbench.data import resizing, sources
from ganbench.data.images import grid, save_png, to_rgb
from ganbench.data.streams import Images
from ganbench.evaluation.inputs import make_extractor
from ganbench.features import FeatureExtractor, extract
from ganbench.gan import checkpoint
from ganbench.metrics import Unavailable, nearest_training_images

NEIGHBOURS = 7


@dataclass(frozen=True)
class Request:
    """The options of `ganbench neighbours`.

    ckpt, model: the checkpoint that is sampled, and the name of its model or None; or images: a source. reference: the
    training images; None: those that the checkpoint names. extractor: its name; None: compare pixels. weights: a file,
    instead of the published weights. num: how many samples are looked at. rows: how many are shown. The others say how
    images are read, as in an evaluation.
    """

    out: Path
    ckpt: Path | None = None
    model: str | None = None
    images: str | None = None
    reference: str | None = None
    extractor: str | None = None
    weights: Path | None = None
    num: int = 1000
    rows: int = 10
    seed: int = 0
    device: str | None = None
    resize: str | None = None
    image_labels: Path | None = None
    latent: str | None = None
    prior: str | None = None
    classes: int | None = None
    channels: str | None = None
    alpha: str | None = None
    generator_batch: int | None = None


def draw_from(request: Request, reporter: Reporter) -> tuple[Tensor, str]:
    """Draw the neighbours of a checkpoint's samples, or of a source of images; return distances and their measure.

    Raises UserError for anything that cannot be read, and whatever `draw` raises.
    """
    where, images, reference = choose_device(request.device), request.images, request.reference
    resize = None if request.resize is None else resizing.parse(request.resize)
    of_reference = sources.Options(
        resize=resize, channels=request.channels, alpha=request.alpha, progress=reporter.progress, say=reporter.say
    )
    of_images = replace(
        of_reference, labels_file=request.image_labels, prior=request.prior, classes=request.classes, device=where,
        latent=None if request.latent is None else sources.parse_latent(request.latent),
        generator_batch=request.generator_batch,
    )
    if request.ckpt is not None:
        given = of_images.of_a_generator() or ("--image-labels" if request.image_labels else "")
        if given:
            raise UserError(f"{given} says how --images SOURCE is read: give that instead of --ckpt, or leave it out.")
        gan, meta = checkpoint.load(request.ckpt, request.model)
        reference = reference or meta.data or None
        if reference is None:
            raise UserError(f"{request.ckpt} does not say what it was trained on: give --reference.")
        real = sources.open_source(reference, options=of_reference)
        fake = sources.resized(sources.generate(gan, request.num, request.seed, where), resize)
    else:
        assert images is not None
        assert reference is not None
        real = sources.open_source(reference, options=of_reference)
        makes_any = _makes_any_number(images)
        fake = sources.open_source(images, request.num if makes_any else None, request.seed, options=of_images)
        if not makes_any:
            fake = sources.take(fake, min(request.num, len(fake.images)), images, request.seed)
    extractor = request.extractor
    net = make_extractor(extractor, request.weights) if extractor else None
    distances = draw(fake.images[:], real.images, request.rows, request.out, net, where)
    return distances, "L1 of pixels" if net is None else net.title


def _makes_any_number(text: str) -> bool:
    """Return True for a generator in a file and for `module:callable`, which make as many images as are asked for."""
    path = Path(text)
    if path.suffix.lower() in sources.GENERATORS:
        return True
    known = {*registry.names("datasets"), "folder"}
    return ":" in text and not os.path.exists(path) and name_in(text) not in known and not sources.are_files(text)


def draw(
    fake: Tensor, real: Tensor | Images, rows: int, out: Path, extractor: FeatureExtractor | None, device: torch.device,
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
    pairs = [(fake[i : i + 1], real[at[i]]) for i in order.tolist()]
    if fake.shape[1] != real.shape[1]:
        pairs = [(to_rgb(sample), to_rgb(near)) for sample, near in pairs]
    picture = torch.cat([image for pair in pairs for image in pair])
    save_png(grid(picture, 1 + neighbours), out)
    return distances[order, 0]
