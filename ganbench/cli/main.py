"""The command line: stdout is the answer, stderr is progress and warnings.

Exit codes: 0 done, 1 a check or a training failed, 2 a user's mistake, 130 or 143 interrupted.

Each command stands in a file of its own. Heavy modules are imported inside the commands, so that `--help` and `list`
return at once.
"""

import io
import os
import re
import sys
import traceback
from collections.abc import Callable
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
from ganbench.cli.invert import invert
from ganbench.cli.list_ import list_
from ganbench.cli.merge import merge
from ganbench.cli.neighbours import neighbours
from ganbench.cli.options import examples
from ganbench.cli.reproduce import reproduce
from ganbench.cli.sample import sample
from ganbench.cli.show import show
from ganbench.cli.statistics import statistics
from ganbench.cli.table import table
from ganbench.cli.train_classifier import train_classifier
from ganbench.cli.traverse import traverse
from ganbench.cli.validate import validate

MOST_CHARACTERS = 4000  # of a message: it may quote what somebody else wrote into a file
LONGEST_WORD = 400  # characters of a text of the user that a message repeats whole, such as a path

COMMANDS = (
    baseline, check, compare, doctor, evaluate, figures, invert, list_, merge, neighbours, reproduce, sample, show,
    statistics, table, train_classifier, traverse, validate,
)


class Commands(click.Group):
    """A group of commands that turns every error into one line on stderr and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        _prepare_output()
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
        except OSError as error:  # a full disk, a file that may not be read
            _fail(str(error))
        except Exception as error:
            if not _is_one_of_several():
                raise
            # Another process may have ended and closed the connection: its reason is the one to print.
            trace = traceback.format_exc()
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            _report(reason, lambda line: click.echo(f"{trace}ganbench: {line}", err=True))
            sys.exit(1)


def _fail(message: str) -> NoReturn:
    message = re.sub(r"\d{40,}", lambda digits: shortened(digits[0], 24), " ".join(message.split()))
    message = re.sub(rf"\S{{{LONGEST_WORD},}}", lambda word: shortened(word[0]), message)
    message = printable(shortened(message, MOST_CHARACTERS))

    def say(line: str) -> None:
        click.echo(f"ganbench: error: {line}", err=True)

    _report(message, say) if _is_one_of_several() else say(message)
    sys.exit(2)


def _is_one_of_several() -> bool:
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _report(reason: str, say: Callable[[str], None]) -> None:
    """Print a reason in one of the processes of torchrun."""
    from ganbench.base import distributed  # imports torch

    distributed.report_failure(reason, say)


class _Pipe(io.FileIO):
    """Standard output or error, whose reader may go, as `head` does: the command goes on to its files and exit code."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(data)


def _prepare_output() -> None:
    """Make stdout and stderr safe to write to.

    One that is closed leads nowhere, so that no file that is opened later takes its place. One whose reader has gone
    leads nowhere too. Characters that its encoding does not have are printed as escapes: file names hold any bytes.
    """
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        stream = getattr(sys, name)
        if number and (stream is None or (type(stream) is io.TextIOWrapper and stream.fileno() == number)):
            if stream is not None:
                stream.flush()
            encoding = "utf-8" if stream is None else stream.encoding
            buffer = io.BufferedWriter(_Pipe(number, "w", closefd=False))
            lines = number == 2 or (stream is not None and stream.line_buffering)
            stream = io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=lines)
            setattr(sys, name, stream)
        elif isinstance(stream, io.TextIOWrapper):
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
    try:
        os.getcwd()
    except OSError as error:
        if ctx.invoked_subcommand != "doctor":
            raise UserError("the working directory was deleted: change to another folder.") from error
        os.chdir(os.sep)  # the report names no file of the working directory
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _not_empty(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Refuse an option that is given as an empty text, such as a variable of a script that is not set."""
    if "" in (value if isinstance(value, tuple) else (value,)):
        raise click.BadParameter("it is empty: give a value, or leave the option out.", ctx, param)
    return value


for command in COMMANDS:
    for parameter in command.params:
        if isinstance(parameter.type, click.types.StringParamType) and parameter.callback is None:
            parameter.callback = _not_empty
    main.add_command(command)
