"""The command line: stdout is the answer, stderr is progress and warnings.

Exit codes: 0 done, 1 a check or a training failed, 2 a user's mistake, 130 or 143 interrupted.

Each command stands in a file of its own. Heavy modules are imported inside the commands, so that `--help` and `list`
return at once.
"""

import io
import os
import sys
from typing import Any, NoReturn

import click

from ganbench import __version__
from ganbench.base.errors import UserError, printable, shortened
from ganbench.cli.baseline import baseline
from ganbench.cli.check import check
from ganbench.cli.compare import compare
from ganbench.cli.doctor import doctor
from ganbench.cli.evaluate import evaluate
from ganbench.cli.figures import figures
from ganbench.cli.list_ import list_
from ganbench.cli.merge import merge
from ganbench.cli.neighbours import neighbours
from ganbench.cli.options import examples, is_first_process
from ganbench.cli.reproduce import reproduce
from ganbench.cli.sample import sample
from ganbench.cli.statistics import statistics
from ganbench.cli.table import table
from ganbench.cli.train_classifier import train_classifier
from ganbench.cli.validate import validate

MOST_CHARACTERS = 4000  # of a message: it may quote what somebody else wrote into a file

COMMANDS = (
    baseline, check, compare, doctor, evaluate, figures, list_, merge, neighbours, reproduce, sample, statistics,
    table, train_classifier, validate,
)


class Commands(click.Group):
    """A group of commands that turns every error into one line on stderr and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        _print_every_name()
        try:
            sys.exit(super().main(*args, **{**kwargs, "standalone_mode": False}) or 0)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "ganbench"
            _fail(f"{error.format_message()} See '{command} --help'.")
        except (UserError, click.ClickException) as error:
            _fail(str(error))
        except (KeyboardInterrupt, click.Abort):
            click.echo("ganbench: interrupted", err=True)
            sys.exit(130)
        except BrokenPipeError:  # the reader of a pipe has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except OSError as error:  # a full disk, a file that may not be read
            _fail(str(error))


def _fail(message: str) -> NoReturn:
    if is_first_process():  # every process makes the same mistake: say it once
        click.echo(f"ganbench: error: {printable(shortened(' '.join(message.split()), MOST_CHARACTERS))}", err=True)
    sys.exit(2)


def _print_every_name() -> None:
    """Print characters that the output's encoding does not have as escapes: file names may hold any bytes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=examples(
        ("Which data sets, weights and devices are here?", "ganbench doctor"),
        ("Does everything work? A run of seconds", "ganbench reproduce dcgan-digits --budget smoke"),
        ("Measure images that you made", "ganbench evaluate --images samples/ --reference cifar10:train"),
    ),
)
@click.version_option(__version__, prog_name="ganbench")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Evaluate and reproduce generative image models.

    A number is right, says which protocol it is, and carries its uncertainty, or it is not printed.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for command in COMMANDS:
    main.add_command(command)
