"""`ganbench compare`: two results side by side."""

from pathlib import Path

import click

from ganbench.cli.options import FILE, common, examples


@click.command(epilog=examples(
    ("Is the new model better, or is it noise?", "ganbench compare old.json new.json"),
    ("Against a stored run", "ganbench compare results/runs/dcgan-digits/seed0/result.json new.json"),
))
@click.argument("a", type=FILE)
@click.argument("b", type=FILE)
@common
def compare(a: Path, b: Path, quiet: bool) -> None:
    """Two results side by side, and what is noise.

    B minus A, its 95 % interval, and whether it is larger than that.
    """
    from ganbench.reporting import comparison, results, tables

    cells = [
        {
            "metric": c.metric,
            "a": tables.number(c.a),
            "b": tables.number(c.b),
            "b - a": tables.number(c.difference, c.half_width),
            "verdict": c.verdict,
        }
        for c in comparison.compare(results.load(a), results.load(b))
    ]
    click.echo(tables.render(cells, columns=("metric", "a", "b", "b - a", "verdict")), nl=False)
