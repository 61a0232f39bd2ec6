"""`ganbench train-classifier`: weights for the extractor small-cnn."""

from pathlib import Path

import click

from ganbench.base.files import require_writable
from ganbench.cli.options import FILE, common, examples


@click.command("train-classifier", epilog=examples(
    ("On a data set", "ganbench train-classifier fashion-mnist --out fashion.safetensors"),
    ("On your images, in class folders", "ganbench train-classifier folder:shapes --out shapes.safetensors"),
))
@click.argument("data")
@click.option("--out", type=FILE, required=True, help="The safetensors file to write.")
@common
def train_classifier(data: str, out: Path, quiet: bool) -> None:
    """Train a small classifier, for --extractor small-cnn.

    The recipe is that of the bundled mnist-cnn; the test error is read once, at the end.
    """
    from ganbench.base.progress import Reporter
    from ganbench.evaluation import classifier

    require_writable(out, "--out")
    errors = classifier.train(data, out, Reporter(quiet))
    click.echo(str(out))
    if errors is not None:
        click.echo(f"test error: {errors.wrong} of {errors.of:,} ({100 * errors.wrong / errors.of:.2f} %)")
