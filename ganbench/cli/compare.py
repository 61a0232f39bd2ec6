"""`ganbench compare`: two results side by side, or several a side."""

import json
from pathlib import Path

import click

from ganbench.base.errors import UserError
from ganbench.cli import terminal
from ganbench.cli.options import common, examples

COLUMNS = ("metric", "a", "b", "b - a", "p", "verdict")


@click.command(epilog=examples(
    ("Is the new model better, or is it noise?", "ganbench compare old.json new.json"),
    ("Several seeds a side", "ganbench compare old0.json,old1.json new0.json,new1.json"),
    ("Against a stored run", "ganbench compare results/runs/dcgan-digits/seed0/result.json new.json"),
))
@click.argument("a", metavar="A.json[,A2.json...]")
@click.argument("b", metavar="B.json[,B2.json...]")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as one JSON object.")
@common
def compare(a: str, b: str, as_json: bool, quiet: bool) -> None:
    """Two results side by side, and what is noise.

    B minus A with one standard error, and whether the difference is larger than chance. Several results a side, joined
    by commas, are runs with different seeds: their means are compared by Welch's t. The p-values are corrected for the
    number of metrics (Holm).
    """
    from ganbench.reporting import comparison, results, tables
    from ganbench.reporting.comparable import without_copies

    sides, remarks = [], []
    for text in (a, b):
        kept, lines = without_copies([(path, results.load(path)) for path in _files(text)])
        sides.append(kept)
        remarks += lines
    found = comparison.compare(sides[0], sides[1])
    head = comparison.head(found, len(sides[0]), len(sides[1]))
    if as_json:
        value = {
            "a": [str(path) for path, _ in sides[0]],
            "b": [str(path) for path, _ in sides[1]],
            "error": "one standard error",
            "level": comparison.LEVEL,
            "correction": "Holm",
            "comparisons": [vars(c) for c in found],
        }
        click.echo(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False))
    else:
        cells = [
            {
                "metric": c.metric,
                "a": tables.number(c.a, c.a_error),
                "b": tables.number(c.b, c.b_error),
                "b - a": tables.number(c.difference, c.error),
                "p": "" if c.p is None else f"{c.p:.2g}",
                "verdict": c.verdict,
            }
            for c in found
        ]
        click.echo("\n".join(head) + "\n")
        click.echo(terminal.table(cells, COLUMNS), nl=False)
    for line in () if quiet else remarks:
        click.echo(f"note:    {line}", err=True)


def _files(text: str) -> list[Path]:
    """Return the files of one side: their names between commas, or one file whose name has commas itself."""
    if Path(text).exists():
        return [Path(text)]
    names = text.split(",")
    if not all(names):
        raise UserError(f"'{text}' has an empty name: write files separated by commas, without spaces.")
    return [Path(name) for name in names]
