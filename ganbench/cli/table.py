"""`ganbench table`: our values beside the paper's, from the stored results."""

from pathlib import Path

import click

from ganbench.cli import terminal
from ganbench.cli.list_ import end_with
from ganbench.cli.options import common, examples, results_option
from ganbench.recipes import BUDGETS, installed


@click.command(epilog=examples(
    ("Everything that was run, beside what the papers report", "ganbench table"),
    ("One table of a paper", "ganbench table bigan-table1"),
    ("For a LaTeX file", "ganbench table --dataset mnist --format latex"),
))
@click.argument("name", required=False)
@click.option(
    "--format", "form", type=click.Choice(["md", "csv", "latex"]), default="md", show_default=True,
    help="Format of the table.",
)
@click.option("--dataset", help="Only recipes on this data set.")
@click.option(
    "--budget", type=click.Choice(BUDGETS),
    help="Only runs on that budget; smoke and short ones are not comparable with the paper. "
    "Default: the full runs, and if a recipe has none, its short ones.",
)
@click.option("--index", is_flag=True, help="Write all pages anew, and <out>/README.md, which leads to them.")
@results_option
@common
def table(
    name: str | None, form: str, dataset: str | None, budget: str | None, index: bool, out: Path, quiet: bool
) -> None:
    """Ours beside the paper's, of all recipes or of one.

    Derived from the stored results; a recipe that was not run shows what the paper reports.
    With a NAME, of a recipe or a group, the page <out>/tables/NAME.md is rebuilt too.
    """
    from ganbench.reporting import pages, stored

    text, page = stored.table(out, name, dataset, budget, form, terminal.width())
    written = {"table": page, "index": pages.write_all(out)[-1] if index else None}
    click.echo(text, nl=False)
    for line in () if quiet else stored.remarks(out, name):
        click.echo(f"note:    {line}", err=True)
    for what, path in written.items():
        if path is not None and not quiet:
            click.echo(f"{what}:   {path}", err=True)
    end_with(installed().faults)
