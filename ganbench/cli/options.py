"""Options that several commands share, the words in which their values are written, and examples for `--help`."""

import itertools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ganbench.base import registry
from ganbench.base.errors import UserError, shortened
from ganbench.recipes import MAX_SEED


class GivenPath(click.Path):
    """A path. An empty one, which would be the current folder, is refused.

    A file's path must not end with a slash, and a folder's must lead to a folder, or to where one can be made.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = os.fspath(value)
        if not text:
            self.fail("it is empty: give a path.", param, ctx)
        if not self.dir_okay and str(text).endswith(os.sep):
            said = f"'{shortened(str(text))}' ends with '{os.sep}', as a folder does"
            self.fail(f"{said}: give the path of a file.", param, ctx)
        found = super().convert(value, param, ctx)
        if not self.file_okay:
            there = os.path.abspath(text)
            while not os.path.lexists(there):
                there = os.path.dirname(there)
            if not os.path.isdir(there):
                self.fail(f"'{shortened(str(text))}' is no folder, and none can be made there.", param, ctx)
        return found


FILE = GivenPath(dir_okay=False, path_type=Path)
FOLDER = GivenPath(file_okay=False, path_type=Path)


class WholeNumber(click.IntRange):
    """A whole number from `least` to `most`; the message about another one names both, and is short."""

    def __init__(self, least: int, most: int):
        super().__init__(least, most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            number = int(str(value)[:20])  # Python refuses to read thousands of digits
        except ValueError:
            number = None
        if number is None or len(str(value)) > 20 or not self.min <= number <= self.max:  # type: ignore[operator]
            self.fail(
                f"it must be a whole number from {self.min} to {self.max}, not '{shortened(str(value), 24)}'.",
                param, ctx,
            )
        return number


class Number(click.FloatRange):
    """A number from `least` to `most`; the message about another one names both, and is short."""

    def __init__(self, least: float, most: float):
        super().__init__(least, most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not self.min <= number <= self.max:  # type: ignore[operator]
            said = shortened(str(value), 24)
            self.fail(f"it must be a number from {self.min:g} to {self.max:g}, not '{said}'.", param, ctx)
        return number


SEED = WholeNumber(0, MAX_SEED)
COUNT = WholeNumber(1, 10**9)  # of images or steps
BATCH_SIZE = WholeNumber(1, 100_000)
CLASSES = WholeNumber(1, 10**6)
JOBS = WholeNumber(1, 10_000)
PRIORS = ("normal", "uniform", "uniform_0_1", "unit")  # names as in data.sources.generators, which is heavy to import
SOURCES = (
    "a folder, FILE.zip, FILE.npz, NAME[:split], module:callable (modules of the current folder come first), or a "
    "generator in FILE.onnx or FILE.pt (TorchScript: loading it runs the code in it)"
)
MOST_NUMBERS = 10_000  # in one option

Command = TypeVar("Command", bound=Callable[..., Any])

device_option = click.option("--device", help="cpu, cuda, cuda:1, ... Default: an accelerator if there is one.")
results_option = click.option(
    "--out", type=FOLDER, default=Path("results"), show_default=True, help="Folder of results: where the runs are.",
)


def common(command: Command) -> Command:
    """Add the options that every command has."""
    for option in (
        click.option("--quiet", is_flag=True, help="No progress and no remarks on stderr."),
        click.option(
            "--offline", is_flag=True, expose_value=False, callback=_set_offline, help="Download nothing.",
        ),
    ):
        command = option(command)
    return command


def _set_offline(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        os.environ["GANBENCH_OFFLINE"] = "1"


def _set_workers(ctx: click.Context, param: click.Parameter, value: int | None) -> None:
    if value is not None:
        os.environ["GANBENCH_WORKERS"] = str(value)


def launcher_options(command: Command) -> Command:
    """Add the options that say how the jobs of a launcher run."""
    for option in reversed((
        click.option(
            "--launcher-arg", "launcher_args", multiple=True, metavar="KEY=VALUE",
            help="A parameter of submitit, such as slurm_partition=gpu or timeout_min=600.",
        ),
        click.option(
            "--jobs", "at_once", type=JOBS,
            help="How many jobs run at a time. Default: one with local, no limit with slurm.",
        ),
    )):
        command = option(command)
    return command


def reading(command: Command) -> Command:
    """Add the options that say how images are read if the source does not say it itself."""
    for option in reversed((
        click.option(
            "--resize", metavar="SIDE:METHOD",
            help="Bring every image of all sets to SIDE x SIDE pixels: SIDE:METHOD stretches, SIDE:crop-METHOD cuts "
            "the square in the centre first. METHOD: pil-bicubic, pil-bilinear, pil-lanczos or box, as Pillow does it "
            "on 8 bits.",
        ),
        click.option(
            "--image-labels", type=FILE, metavar="FILE.csv",
            help="Labels of the files in a folder or zip: columns file,label.",
        ),
        click.option(
            "--channels", type=click.Choice(("rgb", "l")),
            help="Convert image files to colour or to grey. Default: as they are, which must be all the same.",
        ),
        click.option(
            "--alpha", type=click.Choice(("white", "black")),
            help="Flatten image files with an alpha channel onto this background. Default: refuse them.",
        ),
        click.option(
            "--workers", type=WholeNumber(0, 256), expose_value=False, callback=_set_workers,
            help="Processes that decode image files; 0 decodes in this one. Default: the cores.",
        ),
        click.option(
            "--latent", metavar="D",
            help="Size of a generator's z, or its shape, as in 100x1x1. Default: read from its file (z_size of "
            "TorchScript, the input's shape of ONNX).",
        ),
        click.option(
            "--prior", type=click.Choice(PRIORS),
            help="Distribution of a generator's z; uniform is from -1 to 1. Default: read from its file (z_type), "
            "else normal.",
        ),
        click.option(
            "--classes", type=CLASSES,
            help="Number of classes of a conditional generator. Default: read from its file (num_classes).",
        ),
        click.option(
            "--generator-batch", type=BATCH_SIZE, metavar="N",
            help="Latents that a generator takes at a time, if it was traced for one batch size. Default: read from "
            "its file (the input's shape of ONNX), else any number.",
        ),
    )):
        command = option(command)
    return command


def parse_weights(items: tuple[str, ...]) -> dict[str, Path]:
    """Return files of weights by extractor, from EXTRACTOR=FILE. Raises UserError for any other form."""
    files = {}
    for item in items:
        name, _, file = item.partition("=")
        if not file or name not in registry.names("extractors"):
            raise UserError(
                f"--weights {item}: write EXTRACTOR=FILE, with one of {', '.join(registry.names('extractors'))}."
            )
        files[name] = Path(file)
    return files


def parse_words(text: str | None, option: str) -> list[str] | None:
    """Return the names in a comma-separated option; None if it was not given. Raises UserError for an empty name."""
    if text is None:
        return None
    words = [part.strip() for part in text.split(",")]
    if not all(words):
        raise UserError(
            f"{option} '{shortened(text)}' has an empty name: write names separated by commas, or leave the option out."
        )
    return words


def parse_whole_numbers(text: str, option: str) -> list[int]:
    """Return the numbers in `0,1,2`, `0-9` or both. Raises UserError for other text, repeated or too large numbers."""
    try:
        parts = [part.partition("-") for part in text.split(",")]
        ranges = [range(int(first), int(last if to else first) + 1) for first, to, last in parts]
        values = list(itertools.chain(*ranges)) if sum(map(len, ranges)) <= MOST_NUMBERS else []
    except (ValueError, OverflowError):
        values = []
    if not values or min(values) < 0 or max(values) > MAX_SEED or len(set(values)) < len(values):
        raise UserError(
            f"{option} must be different whole numbers of 0 to {MAX_SEED}, separated by commas, or a range like 0-9, "
            f"not '{shortened(text, 80)}'."
        )
    return values


def is_first_process() -> bool:
    """Return True in the process that speaks: the only one, or the first of torchrun."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


def examples(*titled: tuple[str, str]) -> str:
    """Return the foot of a `--help` from (title, command line) pairs; click keeps its lines as they are."""
    lines = [line for title, command in titled for line in (f"  # {title}", f"  {command}")]
    return "\n".join(["\b", "Examples:", *lines])
