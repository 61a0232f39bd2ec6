"""`ganbench statistics`: moments of features in a file, of a whole set or of one shard of it."""

import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ganbench.base import registry
from ganbench.base.errors import UserError
from ganbench.base.files import require_writable
from ganbench.cli.options import (
    BATCH_SIZE,
    COUNT,
    FILE,
    SEED,
    WholeNumber,
    common,
    device_option,
    examples,
    launcher_options,
    parse_weights,
    reading,
)
from ganbench.reproduction.jobs import Job

OF_THE_LAUNCHER = {"source", "out", "shard", "count", "launcher", "launcher_args", "at_once"}
MOST_JOBS = 100_000


class ShardJob(Job):
    """A job that makes one shard; its seed is the shard's number."""

    @property
    def title(self) -> str:
        """Return the job's name in messages."""
        return f"shard {self.seed}"


@click.command(epilog=examples(
    ("For FID, to share in place of the images", "ganbench statistics folder:faces --out faces.npz"),
    ("A draw of the images, over another network",
     "ganbench statistics samples/ --extractor mnist-cnn --num 100 --out draw.npz"),
    ("One of 64 shards of a set, on any machine",
     "ganbench statistics digits --extractor pixels --shard 3/64 --out part-03.npz"),
))
@click.argument("source")
@click.option(
    "--extractor", default="inception-v3", show_default=True, help="The network (`ganbench list extractors`).",
)
@click.option("--weights", multiple=True, metavar="EXTRACTOR=FILE", help="Its weights, instead of the published ones.")
@click.option("--out", type=FILE, required=True, help="The npz to write.")
@click.option("--with-images", is_flag=True, help="Also arr_0, uint8 N x H x W x C, and arr_1, labels.")
@click.option("--with-features", is_flag=True, help="Also features, float32 N x d.")
@click.option(
    "--shard", metavar="I/N",
    help="Measure shard I of N alone, 1 to N: contiguous rows of the source. `ganbench merge` joins the files.",
)
@click.option("--force", is_flag=True, help="Make a shard again that is there.")
@click.option(
    "--launcher", type=click.Choice(["local", "slurm"]),
    help="Make --shards N as jobs, in the folder of parts beside --out: local waits and merges them, slurm submits "
    "them. Needs ganbench[launch].",
)
@click.option("--shards", "count", type=WholeNumber(1, MOST_JOBS), metavar="N", help="How many, with --launcher.")
@launcher_options
@click.option("--num", type=COUNT, help="Number of images, drawn under --seed. Default: all.")
@reading
@click.option("--batch-size", type=BATCH_SIZE, help="Batch size of the extractor. Default: its own.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of samples and of draws.")
@device_option
@common
@click.pass_context
def statistics(
    ctx: click.Context, source: str, extractor: str, weights: tuple[str, ...], out: Path, shard: str | None,
    launcher: str | None, count: int | None, launcher_args: tuple[str, ...], at_once: int | None, quiet: bool,
    **options: Any,
) -> None:
    """Write the moments of a set's features, to an npz.

    mu and sigma (float64, N - 1), and with them n, extractor and sha256. Such a file can be the --reference of
    Fréchet distances in place of its images. Images are read batch by batch: their number does not change the memory.
    """
    registry.require("extractors", extractor)
    files = parse_weights(weights)
    if unused := [name for name in files if name != extractor]:
        raise UserError(f"--weights {unused[0]}=...: the extractor is {extractor}.")
    if out.suffix != ".npz":
        raise UserError(f"--out {out}: the file must end with .npz.")
    require_writable(out, "--out")
    _require_together(launcher, count, shard, launcher_args, at_once, options)
    if launcher is not None:
        assert count is not None
        _launch(ctx, launcher, source, out, count, launcher_args, at_once, quiet)
        return

    from ganbench.base.progress import Reporter
    from ganbench.evaluation import shards
    from ganbench.evaluation import statistics as evaluation

    chosen = None if shard is None else shards.parse(shard)
    request = evaluation.Request(
        source, out, extractor=extractor, weights=files.get(extractor), shard=chosen, **options
    )
    evaluation.run(request, Reporter(quiet))
    click.echo(str(out))


def _require_together(
    launcher: str | None, count: int | None, shard: str | None, launcher_args: tuple[str, ...], at_once: int | None,
    options: dict[str, Any],
) -> None:
    """Raise UserError for options that do not go together."""
    for given, option in ((count, "--shards"), (launcher_args, "--launcher-arg"), (at_once, "--jobs")):
        if launcher is None and given:
            raise UserError(f"{option} needs --launcher local or --launcher slurm (for one shard: --shard I/N).")
    if launcher is not None and count is None:
        raise UserError(f"--launcher {launcher} needs --shards N: into how many shards the set is cut.")
    if launcher is not None and shard is not None:
        raise UserError("give either --shard I/N, for one shard, or --launcher and --shards N, for all of them.")
    sharded = launcher is not None or shard is not None
    if options["force"] and not sharded:
        raise UserError("--force is for --shard and --launcher: without them the file is always written anew.")
    if options["with_images"] and sharded:
        raise UserError("--with-images is for a whole set in one pass: leave it out, or leave the shards out.")


def _launch(
    ctx: click.Context, launcher: str, source: str, out: Path, count: int, launcher_args: tuple[str, ...],
    at_once: int | None, quiet: bool,
) -> None:
    """Make all shards as jobs, and merge them if they were made here."""
    from ganbench.base.progress import Reporter
    from ganbench.reproduction import launching

    parameters = launching.parse_args(launcher_args)
    reporter = Reporter(quiet)
    folder = out.with_name(f"{out.stem}-parts")
    parts = [folder / f"part-{i:0{len(str(count))}}-of-{count}.npz" for i in range(1, count + 1)]
    given = _given(ctx)
    jobs: list[Job] = [
        ShardJob(source, i, ("statistics", source, "--shard", f"{i}/{count}", "--out", str(part), *given))
        for i, part in enumerate(parts, 1)
    ]
    if launcher == "slurm":
        for job, number in zip(jobs, launching.submit_to_slurm(jobs, folder, parameters, at_once), strict=True):
            click.echo(f"{number}  {job.command}")
        reporter.say(f"next:    once they are done: ganbench merge {folder}/part-*-of-{count}.npz --out {out}")
        return
    try:
        failed = launching.run_locally(jobs, folder, parameters, at_once, reporter.say)
    except launching.Stopped as stop:
        click.echo("ganbench: interrupted; the same command makes the shards that are missing", err=True)
        sys.exit(128 + stop.signum)
    if failed:
        for job, reason in failed.items():
            click.echo(f"ganbench: {job.title}: {reason}", err=True)
        sys.exit(1)

    from ganbench.evaluation import shards

    if remark := shards.merge(parts, out):
        reporter.say(remark)
    click.echo(str(out))


def _given(ctx: click.Context) -> list[str]:
    """Return the options of this command line that are those of every job, as words."""
    from ganbench.data.datasets import offline

    words = ["--offline"] if offline() else []
    for option in ctx.command.params:
        name = str(option.name)
        if name in OF_THE_LAUNCHER or name not in ctx.params or isinstance(option, click.Argument):
            continue
        if ctx.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        assert isinstance(option, click.Option)
        value = ctx.params[name]
        if option.is_flag:
            words += option.opts[:1] if value else []
            continue
        for one in value if option.multiple else [value]:
            words += [option.opts[0], str(one)]
    return words
