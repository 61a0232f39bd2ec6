"""`ganbench figures`: pictures of a result."""

from pathlib import Path

import click

from ganbench.base.files import require_writable
from ganbench.cli.options import FILE, common, examples


@click.command(epilog=examples(
    ("An evaluation that was kept with --out", "ganbench figures result.json --out figures.png"),
    ("A run", "ganbench figures results/runs/acgan-mnist/seed0/result.json --out acgan.png"),
    ("The truncation curve of a result that holds both", "ganbench figures result.json --kind truncation --out a.png"),
))
@click.argument("result", type=FILE)
@click.option("--out", type=FILE, required=True, help="The PNG to write.")
@click.option("--kind", type=click.Choice(["acgan", "truncation"]), help="What to draw.  [default: what RESULT holds]")
@common
def figures(result: Path, out: Path, kind: str | None, quiet: bool) -> None:
    """Draw what a result holds: AC-GAN's analysis, or else BigGAN's truncation curve.

    AC-GAN's analysis has four panels: accuracy by resolution, the classes that gain by it, the diversity of classes,
    and accuracy against diversity. The result must hold discriminability, gaining_classes, diverse_classes and
    accuracy_diversity_correlation.

    The truncation curve shows truncation_fd and truncation_score by threshold, and one against the other. The result
    must hold at least one of them. Needs ganbench[figures].
    """
    require_writable(out, "--out")
    from ganbench.reporting import results
    from ganbench.reporting.figures import acgan_figures, held, truncation_figures

    loaded = results.load(result)
    draw = {"acgan": acgan_figures, "truncation": truncation_figures}[kind or held(loaded)]
    draw(loaded, out, f"the result {result}")
    click.echo(str(out))
