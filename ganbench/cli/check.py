"""`ganbench check`: new runs against a baseline, for CI."""

import sys
from pathlib import Path

import click

from ganbench.base.errors import UserError
from ganbench.base.files import require_writable
from ganbench.cli import terminal
from ganbench.cli.options import FILE, common, examples, results_option

COLUMNS = ("metric", "value", "baseline", "tolerance", "sees", "verdict", "note")


@click.command(epilog=examples(
    ("One file against another", "ganbench check baseline.json result.json --junit junit.xml"),
    ("The newest run of the baseline's recipe", "ganbench check baseline.json --out results"),
    ("The change was meant: write the baseline anew", "ganbench check baseline.json result.json --update"),
))
@click.argument("baseline", type=FILE)
@click.argument("results", type=FILE, nargs=-1, metavar="[RESULT]...")
@click.option(
    "--false-alarms", type=float, metavar="RATE",
    help="How often a check may fail although nothing has changed. Default: what the baseline says, 0.01 if nothing.",
)
@click.option("--update", is_flag=True, help="Write the baseline anew from these runs, and print what changes.")
@click.option("--junit", type=FILE, help="Also write JUnit XML, for a CI system to show.")
@results_option
@common
def check(
    baseline: Path, results: tuple[Path, ...], false_alarms: float | None, update: bool, junit: Path | None, out: Path,
    quiet: bool,
) -> None:
    """Check new runs against a baseline; exit 1 if worse.

    For CI: a metric that is worse by more than its tolerance fails, and so does one that is missing or cannot be
    judged. Several RESULTs are runs with different seeds: their mean is checked. Without a RESULT, the newest run of
    the baseline's recipe and overrides is taken; with --update, all of them. `ganbench baseline` makes a baseline.
    """
    from ganbench.reporting import regression, stored, tables
    from ganbench.reporting.baseline import require_rate

    if update and (junit is not None or false_alarms is not None):
        raise UserError("--update checks nothing: leave --junit and --false-alarms out.")
    if update:
        require_writable(baseline, "BASELINE")
        changes, new, remarks = stored.update(baseline, results, out / "runs")
        cells = [
            {
                "metric": c.metric, "old": tables.number(c.old), "new": tables.number(c.new),
                "new - old": "" if c.old is None or c.new is None else f"{c.new - c.old:+.3g}", "note": c.note,
            }
            for c in changes
        ]
        click.echo(f"{baseline} is written anew. The tolerance covers {new.covers}.\n")
        click.echo(terminal.table(cells, ("metric", "old", "new", "new - old", "note")), nl=False)
        _say(remarks, quiet)
        return
    if false_alarms is not None:
        require_rate(false_alarms, "--false-alarms")
    if junit is not None:
        require_writable(junit, "--junit")
    done = stored.check(baseline, results, out / "runs", false_alarms)
    cells = [
        {
            "metric": c.metric,
            "value": tables.number(c.value),
            "baseline": tables.number(c.baseline),
            "tolerance": tables.number(c.tolerance),
            "sees": tables.number(c.sees),
            "verdict": c.verdict,
            "note": c.reason,
        }
        for c in done.checks
    ]
    click.echo("\n".join(done.head) + "\n")
    click.echo(terminal.table(cells, COLUMNS), nl=False)
    _say(done.remarks, quiet)
    if junit is not None:
        regression.write_junit(done.checks, junit)
    if failed := [c.metric for c in done.checks if c.failed]:
        files = ", ".join(map(str, done.files))
        click.echo(f"ganbench: check failed: {', '.join(failed)} ({files} against {baseline})", err=True)
        sys.exit(1)


def _say(remarks: list[str], quiet: bool) -> None:
    for line in () if quiet else remarks:
        click.echo(f"note:    {line}", err=True)
