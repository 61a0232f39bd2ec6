"""`ganbench doctor`: what this machine has."""

import click

from ganbench.base.errors import UserError
from ganbench.cli.options import common, examples


@click.command(epilog=examples(
    ("The report", "ganbench doctor"),
    ("How it looks to a run that may not download", "ganbench doctor --offline"),
))
@common
def doctor(quiet: bool) -> None:
    """Show what is here, what is missing, what would mend it.

    Data sets, weights, devices, parts from other packages. Nothing is downloaded.
    """
    try:
        from ganbench.doctor import report
    except (ImportError, OSError) as error:  # a library that cannot be loaded is an OSError
        raise UserError(f"a package cannot be imported ({error}): install ganbench again.") from error

    for line in report():
        click.echo(line)
