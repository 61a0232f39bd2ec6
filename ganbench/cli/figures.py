"""`ganbench figures`: pictures of a result."""

from pathlib import Path

import click

from ganbench.base.files import require_writable
from ganbench.cli.options import FILE, common, examples


@click.command(epilog=examples(
    ("An evaluation that was kept with --out", "ganbench figures result.json --out figures.png"),
    ("A run", "ganbench figures results/runs/acgan-mnist/seed0/result.json --out acgan.png"),
))
@click.argument("result", type=FILE)
@click.option("--out", type=FILE, required=True, help="The PNG to write.")
@common
def figures(result: Path, out: Path, quiet: bool) -> None:
    """Draw AC-GAN's analysis of a result.

    Four panels: accuracy by resolution, the classes that gain by it, the diversity of classes, and accuracy against
    diversity. The result must hold discriminability, gaining_classes, diverse_classes and
    accuracy_diversity_correlation. Needs ganbench[figures].
    """
    require_writable(out, "--out")
    from ganbench.reporting import results
    from ganbench.reporting.figures import acgan_figures

    acgan_figures(results.load(result), out, f"the result {result}")
    click.echo(str(out))
