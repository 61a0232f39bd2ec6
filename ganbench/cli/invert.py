"""`ganbench invert`: latents of given images, by gradient descent."""

from pathlib import Path
from typing import Any

import click

from ganbench.base import registry
from ganbench.cli.options import (
    COUNT,
    FILE,
    FOLDER,
    SEED,
    SOURCES,
    Number,
    WholeNumber,
    common,
    device_option,
    examples,
    reading,
)


@click.command(epilog=examples(
    ("By the model's own loss", "ganbench invert --ckpt ylg.safetensors --images photos/ --out found"),
    ("By pixels, as for a model without one",
     "ganbench invert --ckpt ylg.safetensors --images photos --loss pixels --out z"),
))
@click.option("--model", help="The reference model of --ckpt.")
@click.option("--ckpt", type=FILE, required=True, help="A checkpoint (.safetensors) of a model that generates from z.")
@click.option("--images", required=True, help=f"Images to invert: {SOURCES}.")
@reading
@click.option("--num", type=COUNT, default=8, show_default=True, help="How many of them, drawn with the seed.")
@click.option("--label", type=WholeNumber(0, 10**6), help="Class of all images. Default: their own labels.")
@click.option("--loss", type=click.Choice(("model", "pixels")), default="model", show_default=True,
              help="What is lowered: the model's own loss, or the mean squared error of pixels.")
@click.option("--steps", type=WholeNumber(1, 10**6), default=1000, show_default=True, help="Steps of Adam.")
@click.option("--restarts", type=WholeNumber(1, 1000), default=8, show_default=True,
              help="Starts for each image. The one with the lowest loss counts.")
@click.option("--rate", type=Number(1e-6, 10), default=0.07, show_default=True, help="Adam's learning rate.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the choice of images and of the starts.")
@device_option
@click.option("--out", type=FOLDER, required=True, help="The folder to make.")
@common
def invert(quiet: bool, **options: Any) -> None:
    """Find latents for which a model makes given images.

    The folder gets a PNG for each image, the original beside what was found, and inversion.json with all errors. Images
    that the model was not trained on show what it can make.
    """
    model: str | None = options["model"]
    if model is not None:
        registry.require("models", model)

    from ganbench.base.progress import Reporter
    from ganbench.evaluation.inversion import Request, run

    out: Path = options["out"]
    report = run(Request(**options), Reporter(quiet))
    errors = []
    for name in ("reconstruction_mse", "reconstruction_l1"):
        mean = report[name]
        spread = "" if mean["standard_error"] is None else f" +- {mean['standard_error']:.2g}"
        errors.append(f"{name} {mean['value']:.4g}{spread}")
    click.echo(f"{out}  ({', '.join(errors)}; {len(report['each'])} images)")
