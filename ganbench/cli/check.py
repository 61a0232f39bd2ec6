"""`ganbench check`: a result against a baseline, for CI."""

import sys
from pathlib import Path

import click

from ganbench.base.files import require_writable
from ganbench.cli.options import FILE, common, examples, results_option


@click.command(epilog=examples(
    ("One file against another", "ganbench check baseline.json result.json --junit junit.xml"),
    ("The newest run of the baseline's recipe", "ganbench check baseline.json --out results"),
))
@click.argument("baseline", type=FILE)
@click.argument("result", type=FILE, required=False)
@click.option("--junit", type=FILE, help="Also write JUnit XML, for a CI system to show.")
@results_option
@common
def check(baseline: Path, result: Path | None, junit: Path | None, out: Path, quiet: bool) -> None:
    """Check a result against a baseline; exit 1 if worse.

    For CI: a metric that is worse by more than its tolerance fails, and so does one that is missing.
    Without RESULT, the newest run of the baseline's recipe, seed and overrides is taken.
    """
    from ganbench.reporting import regression, stored, tables

    if junit is not None:
        require_writable(junit, "--junit")
    result, checks = stored.check(baseline, result, out / "runs")
    cells = [
        {
            "metric": c.metric,
            "value": tables.number(c.value),
            "baseline": tables.number(c.baseline),
            "tolerance": tables.number(c.tolerance),
            "verdict": c.verdict,
        }
        for c in checks
    ]
    click.echo(tables.render(cells, columns=("metric", "value", "baseline", "tolerance", "verdict")), nl=False)
    if junit is not None:
        regression.write_junit(checks, junit)
    failed = [c.metric for c in checks if c.failed]
    if failed:
        click.echo(f"ganbench: check failed: {', '.join(failed)} ({result} against {baseline})", err=True)
        sys.exit(1)
