"""`ganbench neighbours`: a picture of what a generator may have copied."""

from pathlib import Path
from typing import Any

import click

from ganbench.base import registry
from ganbench.base.errors import UserError
from ganbench.base.files import require_writable
from ganbench.cli.options import (
    COUNT,
    FILE,
    SEED,
    SOURCES,
    WholeNumber,
    common,
    device_option,
    examples,
    parse_weights,
    reading,
)


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
@click.option("--weights", multiple=True, metavar="EXTRACTOR=FILE", help="Its weights, instead of the published ones.")
@reading
@click.option("--num", type=COUNT, default=1000, show_default=True, help="Samples to look at.")
@click.option("--rows", type=WholeNumber(1, 100), default=10, show_default=True, help="Samples to show.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the samples.")
@device_option
@click.option("--out", type=FILE, required=True, help="The PNG to write.")
@common
def neighbours(extractor: str | None, weights: tuple[str, ...], out: Path, quiet: bool, **options: Any) -> None:
    """Draw samples beside their nearest training images.

    Those that are nearest to one come first: what a generator that has memorised its training set would show.
    """
    if (options["ckpt"] is None) == (options["images"] is None):
        raise UserError("give either --model NAME --ckpt FILE or --images SOURCE.")
    if options["images"] is not None and options["reference"] is None:
        raise UserError("give the training images with --reference.")
    require_writable(out, "--out")
    if extractor is not None:
        registry.require("extractors", extractor)
    files = parse_weights(weights)
    if unused := [name for name in files if name != extractor]:
        raise UserError(f"--weights {unused[0]}=...: give --extractor {unused[0]} too.")

    from ganbench.base.progress import Reporter
    from ganbench.evaluation.neighbours import Request, draw_from

    request = Request(out, extractor=extractor, weights=files.get(extractor or ""), **options)
    distances, measure = draw_from(request, Reporter(quiet))
    click.echo(f"{out}  ({measure}: {distances[0]:.4g} to {distances[-1]:.4g})")
