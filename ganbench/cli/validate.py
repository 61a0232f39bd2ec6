"""`ganbench validate`: is a recipe right, and what would a run of it need?"""

import click

from ganbench.cli.list_ import end_with
from ganbench.cli.options import common, examples


@click.command(epilog=examples(
    ("A recipe of your own", "ganbench validate my-recipe.toml"),
    ("An installed recipe, and a group", "ganbench validate dcgan-digits bigan-table1"),
))
@click.argument("names", metavar="RECIPE...", nargs=-1, required=True)
@common
def validate(names: tuple[str, ...], quiet: bool) -> None:
    """Check recipes or groups without running them.

    RECIPE is a path to a .toml file, or the name of a recipe or a group. Every name in it is looked up, and the model
    is built without weights. Prints what a run would need: data sets, weights, steps, parameters, images. Trains
    nothing and downloads nothing. A mistake is a line on stderr, and the exit code is 2 then.
    """
    from ganbench.reproduction import validation

    faults: dict[str, None] = {}  # a recipe that is named twice has each of its faults once
    for name in dict.fromkeys(names):
        report = validation.validate(name)
        faults |= dict.fromkeys(report.faults)
        for line in report.lines if not report.faults else []:
            click.echo(line)
    end_with(list(faults), 2)
