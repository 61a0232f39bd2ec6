"""`ganbench doctor`: what this machine has, and what ganbench has put into its data folder."""

import sys

import click

from ganbench.base.errors import UserError, printable
from ganbench.cli.options import common, examples


@click.command(epilog=examples(
    ("The report", "ganbench doctor"),
    ("How it looks to a run that may not download", "ganbench doctor --offline"),
    ("Remove decoded training images that nobody uses", "ganbench doctor --clean --yes"),
))
@click.option("--clean", is_flag=True, help="List decoded training images, ask, and remove those that nobody uses.")
@click.option("--features", is_flag=True, help="With --clean: cached features too. They are made again when needed.")
@click.option("--yes", is_flag=True, help="With --clean: remove without asking.")
@common
def doctor(quiet: bool, clean: bool, features: bool, yes: bool) -> None:
    """Show what is here, what is missing, what would mend it.

    Data sets, weights, devices, parts from other packages. Nothing is downloaded.
    """
    try:
        from ganbench.doctor import listed, removable, remove, report
    except (ImportError, OSError) as error:  # a library that cannot be loaded is an OSError
        raise UserError(f"a package cannot be imported ({error}): install ganbench again.") from error

    if not clean:
        if features or yes:
            raise UserError(f"{'--features' if features else '--yes'} belongs to --clean: give --clean too.")
        for line in report():
            click.echo(printable(line))
        return
    entries = removable(features)
    free = [entry for entry in entries if not entry.why_kept]
    if free and not yes and not sys.stdin.isatty():
        raise UserError("--clean asks before it removes anything, and there is no terminal: give --yes.")
    for entry in entries:
        click.echo(printable(listed(entry)))
    if not free:
        click.echo("nothing to remove")
    if not free or not (yes or click.confirm(f"Remove {len(free)} of {len(entries)}?", err=True)):
        return
    failed = [entry for entry in free if not remove(entry)]
    for entry in failed:
        click.echo(f"not removed, in use or not allowed: {entry.what} ({entry.paths[0]})", err=True)
    click.echo(f"removed {len(free) - len(failed)} of {len(entries)}")
