"""`ganbench doctor`: what this machine has."""

import click

from ganbench.cli.options import common, examples


@click.command(epilog=examples(
    ("The report", "ganbench doctor"),
    ("How it looks to a run that may not download", "ganbench doctor --offline"),
))
@common
def doctor(quiet: bool) -> None:
    """Show what is here, what is missing, what would mend it.

    Data sets, weights, devices. Nothing is downloaded.
    """
    from ganbench.doctor import report

    for line in report():
        click.echo(line)
