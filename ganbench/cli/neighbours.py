"""`ganbench neighbours`: a picture of what a generator may have copied."""

from pathlib import Path

import click

from ganbench.base import registry
from ganbench.base.errors import UserError
from ganbench.base.files import require_writable
from ganbench.cli.options import COUNT, FILE, SEED, SOURCES, common, device_option, examples


@click.command(epilog=examples(
    ("Samples of a checkpoint, by pixels", "ganbench neighbours --ckpt model.safetensors --out near.png"),
    ("By features", "ganbench neighbours --ckpt model.safetensors --extractor pixels --out n.png"),
    ("Images that you made", "ganbench neighbours --images samples/ --reference digits --out near.png"),
))
@click.option("--model", help="The reference model of --ckpt.")
@click.option("--ckpt", type=FILE, help="A checkpoint (.safetensors) to draw samples from.")
@click.option("--images", help=f"Or images: {SOURCES}.")
@click.option("--reference", help="The training images. Default: the checkpoint's training set.")
@click.option("--extractor", help="By Euclidean distance of its features. Default: by L1 distance of pixels.")
@click.option("--num", type=COUNT, default=1000, show_default=True, help="Samples to look at.")
@click.option("--rows", type=click.IntRange(1, 100), default=10, show_default=True, help="Samples to show.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the samples.")
@device_option
@click.option("--out", type=FILE, required=True, help="The PNG to write.")
@common
def neighbours(
    model: str | None, ckpt: Path | None, images: str | None, reference: str | None, extractor: str | None, num: int,
    rows: int, seed: int, device: str | None, out: Path, quiet: bool,
) -> None:
    """Draw samples beside their nearest training images.

    Those that are nearest to one come first: what a generator that has memorised its training set would show.
    """
    if (ckpt is None) == (images is None):
        raise UserError("give either --model NAME --ckpt FILE or --images SOURCE.")
    if images is not None and reference is None:
        raise UserError("give the training images with --reference.")
    require_writable(out, "--out")
    if extractor is not None:
        registry.require("extractors", extractor)

    from ganbench.evaluation.neighbours import draw_from

    distances, measure = draw_from(ckpt, model, images, reference, extractor, num, rows, seed, device, out)
    click.echo(f"{out}  ({measure}: {distances[0]:.4g} to {distances[-1]:.4g})")
