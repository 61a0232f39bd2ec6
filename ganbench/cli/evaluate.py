"""`ganbench evaluate`: metrics of a checkpoint or of images."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from ganbench.base import registry
from ganbench.base.errors import UserError
from ganbench.base.files import require_writable
from ganbench.cli import terminal
from ganbench.cli.options import (
    BATCH_SIZE,
    COUNT,
    FILE,
    SEED,
    SOURCES,
    common,
    device_option,
    examples,
    is_first_process,
    parse_weights,
    parse_whole_numbers,
    parse_words,
    reading,
)


@click.command(epilog=examples(
    ("Images that you made, against a training set", "ganbench evaluate --images samples/ --reference cifar10:train"),
    ("A checkpoint", "ganbench evaluate --ckpt model.safetensors --metrics fd_pixels --json"),
    ("Keep the result", "ganbench evaluate --images samples/ --metrics ms_ssim_all --out result.json"),
))
@click.option("--model", help="The reference model of --ckpt (`ganbench list models`).")
@click.option("--ckpt", type=FILE, help="A checkpoint (.safetensors) to draw samples from.")
@click.option("--images", help=f"Or images: {SOURCES}.")
@click.option(
    "--reference",
    help="Real images to compare with: NAME[:split], a folder, FILE.zip or FILE.npz. Default: the checkpoint's "
    "training set.",
)
@click.option("--reference-labels", type=FILE, metavar="FILE.csv", help="Like --image-labels, for the reference.")
@reading
@click.option(
    "--held-out", help="Real images that are not in the reference, to test on. Default: the other split of its set.",
)
@click.option("--metrics", help="Comma-separated (`ganbench list metrics`). Default: what fits the reference.")
@click.option("--num", type=COUNT, help="Number of images. Default: 10,000 of a checkpoint, else all.")
@click.option(
    "--num-reference", type=COUNT, metavar="N", help="Number of reference images, drawn under --seed. Default: all.",
)
@click.option(
    "--class-map", metavar="A=B,C=D",
    help="Which class of the reference, or of a classifier, a class of the images is: names or numbers; or FILE.json "
    "with an object of these. Default: the one of the same name.",
)
@click.option("--batch-size", type=BATCH_SIZE, help="Batch size of the extractors. Default: their own.")
@click.option("--extractor", help="For metrics named without one. Default: what fits the reference.")
@click.option(
    "--weights", multiple=True, metavar="EXTRACTOR=FILE",
    help="Weights of an extractor, instead of the published ones.",
)
@click.option(
    "--resolutions", help="Comma-separated sides for discriminability. Default: powers of two below the image's.",
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of samples and of draws.")
@device_option
@click.option("--no-cache", is_flag=True, help="Neither read nor keep features of the reference.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object and nothing else.")
@click.option("--out", type=FILE, help="Also write the result to this file, as JSON.")
@common
def evaluate(
    metrics: str | None, weights: tuple[str, ...], resolutions: str | None, as_json: bool, out: Path | None,
    quiet: bool, **options: Any,
) -> None:
    """Measure a checkpoint's samples, or any images; exit 1 if a metric of --metrics cannot be.

    Under torchrun the processes share the extraction of features: torchrun --nproc-per-node 2 -m -- ganbench evaluate
    ...
    """
    ckpt, images, model = options["ckpt"], options["images"], options["model"]
    if (ckpt is not None and images is not None) or (ckpt is None and images is None and options["reference"] is None):
        raise UserError("give either --model NAME --ckpt FILE or --images SOURCE.")
    if model is not None and ckpt is None:
        raise UserError(f"--model {model} needs --ckpt FILE.")
    for kind in ("model", "extractor"):
        if options[kind] is not None:
            registry.require(kind + "s", options[kind])
    options["weights"] = parse_weights(weights)
    sides = tuple(parse_whole_numbers(resolutions, "--resolutions")) if resolutions else None
    if sides and min(sides) < 1:
        raise UserError("--resolutions must be at least 1.")
    names = parse_words(metrics, "--metrics")
    if out is not None:
        require_writable(out, "--out")

    from ganbench.base import distributed
    from ganbench.base.progress import Reporter
    from ganbench.evaluation import run
    from ganbench.reporting import results, tables

    distributed.start()
    reporter = Reporter(quiet or not is_first_process())
    result = run.run(run.Request(metrics=names, resolutions=sides, **options), reporter)
    distributed.stop()
    if not is_first_process():
        return
    if out is not None:
        results.save(result, out)
        reporter.say(f"result: {out}")
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=2, allow_nan=False, ensure_ascii=False))
    else:
        click.echo(terminal.table(tables.measurement_rows(result), tables.RESULT_COLUMNS), nl=False)
    missing = [m.metric for m in result.measurements if m.value is None]
    if missing and (names or len(missing) == len(result.measurements)):
        click.echo(f"ganbench: not measured: {', '.join(missing)} (the reasons stand beside them)", err=True)
        sys.exit(1)
