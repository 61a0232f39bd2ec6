"""The command line: stdout is the answer, stderr is progress and warnings.

Exit codes: 0 done, 1 a check or a training failed, 2 a user's mistake, 130 or 143 interrupted.

Heavy modules are imported inside the commands, so that `--help` and `list` return at once.
"""

import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from ganbench import __version__
from ganbench.base import registry
from ganbench.base.errors import UserError
from ganbench.base.files import require_writable
from ganbench.recipes import BUDGETS, MAX_SEED

FILE = click.Path(dir_okay=False, path_type=Path)
METRIC_NAMES = (
    "Those over a network's features take its name: fd_mnist-cnn. The published ones over inception-v3 are fid, "
    "fid50k_full, fid10k_full, fid5k_full, fid_inf, intra_fid, kid, inception_score, inception_score_1split, mind."
)
FOLDER = click.Path(file_okay=False, path_type=Path)
SEED = click.IntRange(0, MAX_SEED)
MANY = 10_000  # numbers in one option
SOURCES = (
    "a folder, FILE.zip, FILE.npz, NAME[:split], module:callable, or a generator in FILE.onnx or FILE.pt "
    "(TorchScript: loading it runs the code in it)"
)
LAUNCHERS = ("local", "slurm")
PRIORS = ("normal", "uniform", "uniform_0_1", "unit")


class Commands(click.Group):
    """Turns whatever can go wrong into one line on stderr and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
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
    if not _first():  # the same mistake in every process is said once
        sys.exit(2)
    click.echo(f"ganbench: error: {' '.join(message.split())}", err=True)
    sys.exit(2)


def _first() -> bool:
    """True in the process that speaks: the only one, or torchrun's first."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that every command has."""
    command = click.option("--quiet", is_flag=True, help="No progress and no remarks on stderr.")(command)
    return click.option("--offline", is_flag=True, help="Download nothing.", expose_value=False, callback=_set_offline)(
        command
    )


def _set_offline(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        os.environ["GANBENCH_OFFLINE"] = "1"


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="ganbench")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Evaluate and reproduce generative image models.

    A number is right, says which protocol it is, and carries its uncertainty, or it is not printed.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@main.command("list")
@click.argument("kind", required=False, type=click.Choice([*registry.KINDS, "groups"]))
@common
def list_(kind: str | None, quiet: bool) -> None:
    """Models, datasets, metrics, extractors, recipes, groups."""
    titles = {"recipes": _recipe_titles, "groups": _group_titles}
    for k in [kind] if kind else [*registry.KINDS, "groups"]:
        if not kind:
            click.echo(f"{k}:")
        items = titles[k]() if k in titles else {n: registry.summary(k, n) for n in registry.names(k)}
        width = max(map(len, items), default=0)
        for name, text in items.items():
            click.echo(f"{'' if kind else '  '}{name.ljust(width)}  {text}")
        if k == "metrics":
            click.echo(f"{'' if kind else '  '}{METRIC_NAMES}")


def _recipe_titles() -> dict[str, str]:
    from ganbench import recipes

    return {name: recipes.read(path).title for name, path in recipes.available().items()}


def _group_titles() -> dict[str, str]:
    from ganbench import recipes

    groups = {name: recipes.read_group(path) for name, path in recipes.available_groups().items()}
    return {name: f"{group.title} ({len(group.recipes)} recipes)" for name, group in groups.items()}


@main.command()
@click.argument("recipe")
@click.option("--seeds", default="0", show_default=True, help="Seeds, as 0,1,2 or 0-9; each is a run.")
@click.option(
    "--budget",
    type=click.Choice(BUDGETS),
    default="full",
    show_default=True,
    help="smoke: seconds, on synthetic images. short: minutes to an hour or two. Neither is comparable with the paper.",
)
@click.option("--data", help="Another training set: NAME or folder:PATH. Keeps the run out of the tables.")
@click.option("--steps", type=click.IntRange(min=1), help="Another length. Keeps the run out of the tables.")
@click.option("--device", help="cpu, cuda, cuda:1, ... Default: an accelerator if there is one.")
@click.option("--out", type=FOLDER, default=Path("results"), show_default=True, help="Where runs and tables go.")
@click.option("--fresh", is_flag=True, help="Throw an earlier run away and begin again.")
@click.option(
    "--launcher",
    type=click.Choice(LAUNCHERS),
    help="Each recipe and seed becomes a job of its own: local "
    "waits for them, slurm submits them. Needs ganbench[launch].",
)
@click.option(
    "--launcher-arg",
    "launcher_args",
    multiple=True,
    metavar="KEY=VALUE",
    help="A parameter of submitit, such as slurm_partition=gpu or timeout_min=600.",
)
@click.option(
    "--jobs",
    "at_once",
    type=click.IntRange(min=1),
    help="How many jobs run at a time. Default: one with local, no limit with slurm.",
)
@click.option("--dry-run", is_flag=True, help="Print the jobs, a command a line, and do nothing.")
@click.option(
    "--weights",
    multiple=True,
    metavar="EXTRACTOR=FILE",
    help="Weights of an extractor. Others than the published ones give its metrics another name.",
)
@click.option("--tensorboard", is_flag=True, help="Log to TensorBoard too. Needs ganbench[tensorboard].")
@click.option("--json", "as_json", is_flag=True, help="Print the results as one JSON object.")
@common
def reproduce(
    recipe: str, seeds: str, budget: str, data: str | None, steps: int | None, device: str | None, out: Path,
    fresh: bool, launcher: str | None, launcher_args: tuple[str, ...], at_once: int | None, dry_run: bool,
    weights: tuple[str, ...], tensorboard: bool, as_json: bool, quiet: bool,
) -> None:
    """Train and evaluate a recipe, or a group of them.

    RECIPE is the name of a recipe or a group (`ganbench list recipes`, `ganbench list groups`), or a path to a .toml
    file. An interrupted run goes on by itself, and one that is done is not done again.
    """
    from ganbench import recipes
    from ganbench.reproduction import launching

    group, found = recipes.lookup(recipe)
    given = {"budget": None if budget == "full" else budget, "steps": steps, "data": data}
    overrides = {k: v for k, v in given.items() if v is not None}
    for plain in found.values():
        plain.override(overrides)
    if data is not None and (kind := data.partition(":")[0]) != "folder":
        registry.require("datasets", kind)
    numbers = _whole_numbers(seeds, "--seeds")
    parameters = launching.parse_args(launcher_args)
    if launcher is None and (parameters or at_once):
        raise UserError(f"{'--launcher-arg' if parameters else '--jobs'} needs --launcher local or --launcher slurm.")

    from ganbench.base import distributed
    from ganbench.base.device import choose_device
    from ganbench.base.progress import Reporter
    from ganbench.reporting.results import RESULT
    from ganbench.reproduction.run import GRID, Plan
    from ganbench.training.loop import Interrupted
    from ganbench.training.run_folder import CHECKPOINT

    reporter = Reporter(quiet or not _first())
    plan = Plan(found, overrides, numbers, out, fresh, tensorboard, _weights(weights))
    plan.require_weights_used()
    try:
        if launcher is None and not dry_run:
            distributed.start()
            outcome = plan.run(choose_device(device), reporter)
            distributed.stop()
            if not _first():
                return
        else:
            todo = _as_jobs(plan, device, quiet, reporter)
            if dry_run:
                _print_jobs(todo, [""] * len(todo), as_json)
                return
            require_writable(out / "jobs" / "log", "--out")
            executor = launching.make_executor(str(launcher), out / "jobs", parameters, at_once)
            if launcher == "slurm":
                _print_jobs(todo, launching.submit(todo, executor), as_json)
                reporter.say("next:    the same command without --launcher, once they are done, for the table")
                return
            own_gpus = any(key.endswith("gpus_per_node") for key in parameters)
            failed = launching.run(todo, executor, at_once or 1, own_gpus, reporter.say)
            outcome = plan.collect({(job.recipe, job.seed): why for job, why in failed.items()})
    except (Interrupted, launching.Stopped) as stop:
        click.echo(f"ganbench: {stop}; the same command goes on from there", err=True)
        sys.exit(128 + stop.signum)
    except KeyboardInterrupt:
        click.echo("ganbench: interrupted; the same command goes on from the last checkpoint", err=True)
        sys.exit(130)
    results = {name: [run.result for run in runs] for name, runs in outcome.runs.items()}
    _print_results(group, found, results, outcome.failures, overrides, as_json)
    paths = plan.write_tables(group, outcome)
    done = [run for runs in outcome.runs.values() for run in runs]
    for run in done if group is None else []:
        reporter.say(f"samples: {run.folder / GRID}\nresult:  {run.folder / RESULT}")
    for path in paths[-1:]:
        reporter.say(f"table:   {path}")
    if overrides:
        what = ", ".join(f"{k} = {v}" for k, v in overrides.items())
        stays_out = "" if paths else ", and in no table"
        reporter.say(f"not comparable with the paper{stays_out}: run with {what}")
    if group is None and done:
        (plain,) = found.values()
        reporter.say(f"next:    ganbench evaluate --model {plain.model.name} --ckpt {done[0].folder / CHECKPOINT}")
    for failure in outcome.failures:
        click.echo(f"ganbench: {failure}", err=True)
    if outcome.failures:
        sys.exit(1)


def _as_jobs(plan: Any, device: str | None, quiet: bool, reporter: Any) -> list[Any]:
    """A job for each run of the plan that is not done yet."""
    from ganbench.data.datasets import offline
    from ganbench.reproduction.launching import Job

    options = {**plan.overrides, "device": device, "out": plan.out}
    flags = {"--fresh": plan.fresh, "--tensorboard": plan.board, "--quiet": quiet, "--offline": offline()}
    args = [word for key, value in options.items() if value is not None for word in (f"--{key}", str(value))]
    args += [flag for flag, on in flags.items() if on]
    todo = plan.to_do()
    if done := len(plan.recipes) * len(plan.seeds) - len(todo):
        reporter.say(f"already done: {done} of {done + len(todo)} runs (--fresh does them again)")
    weights = {
        name: [word for item in plan.weights_of(recipe).items() for word in ("--weights", "{}={}".format(*item))]
        for name, recipe in plan.recipes.items()
    }
    return [Job(name, seed, ("reproduce", name, "--seeds", str(seed), *args, *weights[name])) for name, seed in todo]


def _print_jobs(jobs: list[Any], ids: list[str], as_json: bool) -> None:
    """A line a job: its id, where it has one, and its command."""
    if as_json:
        values = [
            {"id": i or None, "recipe": job.recipe, "seed": job.seed, "command": job.command}
            for i, job in zip(ids, jobs, strict=True)
        ]
        click.echo(json.dumps({"jobs": values}, indent=2))
        return
    for i, job in zip(ids, jobs, strict=True):
        click.echo(f"{i}  {job.command}" if i else job.command)


def _print_results(
    group: Any, found: dict[str, Any], results: dict[str, list[Any]], failures: list[Any], overrides: dict[str, Any],
    as_json: bool,
) -> None:
    """The answer of `reproduce`: the table of a recipe, or the joined one of a group, or JSON."""
    from ganbench.reporting import tables

    if as_json:
        values: list[dict[str, Any]] = [
            {"recipe": found[name].name, "results": [r.to_json() for r in of]} for name, of in results.items()
        ]
        value = values[0] if group is None else {"group": group.name, "recipes": values}
        if failures:
            value["failed"] = [{"recipe": f.recipe, "seed": f.seed, "reason": f.reason} for f in failures]
        click.echo(json.dumps(value, indent=2, allow_nan=False))
        return
    pairs = [(found[name], of) for name, of in results.items() if of]
    if group is not None:
        rows, columns = tables.group_rows(group, pairs, overrides), tables.GROUP_COLUMNS
    else:
        rows, columns = [row for plain, of in pairs for row in tables.rows(plain, of, overrides)], tables.COLUMNS
    if rows:
        click.echo(tables.render(rows, columns=columns), nl=False)


def _whole_numbers(text: str, option: str) -> list[int]:
    """The numbers in `0,1,2`, `0-9` or both."""
    try:
        parts = [part.partition("-") for part in text.split(",")]
        ranges = [range(int(first), int(last if to else first) + 1) for first, to, last in parts]
        values = list(itertools.chain(*ranges)) if sum(map(len, ranges)) <= MANY else []
    except (ValueError, OverflowError):
        values = []
    if not values or min(values) < 0 or max(values) > MAX_SEED or len(set(values)) < len(values):
        raise UserError(
            f"{option} must be different whole numbers of 0 to {MAX_SEED}, separated by commas, or a range like 0-9, "
            f"not '{text}'."
        )
    return values


def _words(text: str | None, option: str) -> list[str] | None:
    """The parts of a comma-separated option; None where it was not given."""
    if text is None:
        return None
    words = [part.strip() for part in text.split(",")]
    if not all(words):
        raise UserError(
            f"{option} '{text}' has an empty name: write names separated by commas, or leave the option out."
        )
    return words


def reading(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options for how images are read, where the source does not say itself."""
    for option in reversed([
        click.option("--resize", metavar="SIDE:METHOD", help="Bring every image of all sets to SIDE x SIDE pixels: "
                     "SIDE:METHOD stretches, SIDE:crop-METHOD cuts the square in the centre first. METHOD: "
                     "pil-bicubic, pil-bilinear, pil-lanczos or box, as Pillow does it on 8 bits."),
        click.option("--image-labels", type=FILE, metavar="FILE.csv",
                     help="Labels of a folder's or zip's files: columns file,label."),
        click.option("--latent", metavar="D", help="Size of a generator's z, or its shape, as in 100x1x1. "
                     "Default: what its file says (z_size of TorchScript, the input's shape of ONNX)."),
        click.option("--prior", type=click.Choice(PRIORS), help="What a generator's z is drawn from; uniform is "
                     "of -1 to 1. Default: what its file says (z_type), else normal."),
        click.option("--classes", type=click.IntRange(min=1), help="How many classes a conditional generator has. "
                     "Default: what its file says (num_classes)."),
    ]):
        command = option(command)
    return command


def _weights(items: tuple[str, ...]) -> dict[str, Path]:
    """Files by extractor, from EXTRACTOR=FILE."""
    files = {}
    for item in items:
        name, _, file = item.partition("=")
        if not file or name not in registry.names("extractors"):
            raise UserError(
                f"--weights {item}: write EXTRACTOR=FILE, with one of {', '.join(registry.names('extractors'))}."
            )
        files[name] = Path(file)
    return files


@main.command()
@click.option("--model", help="The reference model of --ckpt (`ganbench list models`).")
@click.option("--ckpt", type=FILE, help="A checkpoint (.safetensors) to draw samples from.")
@click.option("--images", help=f"Or images: {SOURCES}.")
@click.option(
    "--reference",
    help="Real images to compare with: NAME[:split], a folder, FILE.zip or FILE.npz. Default: the checkpoint's "
    "training set.",
)
@click.option("--reference-labels", type=FILE, metavar="FILE.csv", help="As --image-labels, of the reference.")
@reading
@click.option(
    "--held-out", help="Real images that are not in the reference, to test on. Default: the other split of its set."
)
@click.option("--metrics", help="Comma-separated (`ganbench list metrics`). Default: what fits the reference.")
@click.option("--num", type=click.IntRange(min=1), help="How many images. Default: 10,000 of a checkpoint, else all.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Of the extractors. Default: their own.")
@click.option("--extractor", help="For metrics named without one. Default: what fits the reference.")
@click.option(
    "--weights", multiple=True, metavar="EXTRACTOR=FILE", help="Weights of an extractor, instead of the published ones."
)
@click.option(
    "--resolutions", help="Comma-separated sides for discriminability. Default: powers of two below the image's."
)
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of samples and of draws.")
@click.option("--device", help="cpu, cuda, ... Default: an accelerator if there is one.")
@click.option("--no-cache", is_flag=True, help="Neither read nor keep features of the reference.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object and nothing else.")
@click.option("--out", type=FILE, help="Also write the result to this file, as JSON.")
@common
def evaluate(
    metrics: str | None, weights: tuple[str, ...], resolutions: str | None, as_json: bool, out: Path | None,
    quiet: bool, **options: Any,
) -> None:
    """Measure a checkpoint's samples, or any images.

    Under torchrun the processes share the extraction of features: torchrun --nproc-per-node 2 -m ganbench evaluate ...
    """
    ckpt, images, model = options["ckpt"], options["images"], options["model"]
    if (ckpt is not None and images is not None) or (ckpt is None and images is None and options["reference"] is None):
        raise UserError("give either --model NAME --ckpt FILE or --images SOURCE.")
    if model is not None and ckpt is None:
        raise UserError(f"--model {model} needs --ckpt FILE.")
    for kind in ("model", "extractor"):
        if options[kind] is not None:
            registry.require(kind + "s", options[kind])
    options["weights"] = _weights(weights)
    sides = tuple(_whole_numbers(resolutions, "--resolutions")) if resolutions else None
    if sides and min(sides) < 1:
        raise UserError("--resolutions must be at least 1.")
    names = _words(metrics, "--metrics")
    if out is not None:
        require_writable(out, "--out")

    from ganbench.base import distributed
    from ganbench.base.progress import Reporter
    from ganbench.evaluation import run
    from ganbench.reporting import tables

    distributed.start()
    reporter = Reporter(quiet or not _first())
    request = run.Request(metrics=names, resolutions=sides, **options)
    result = run.run(request, reporter)
    distributed.stop()
    if not _first():
        return
    if out is not None:
        from ganbench.reporting import results

        results.save(result, out)
        reporter.say(f"result: {out}")
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=2, allow_nan=False, ensure_ascii=False))
    else:
        click.echo(tables.render(tables.measurement_rows(result), columns=tables.RESULT_COLUMNS), nl=False)


@main.command()
@click.option("--model", help="The reference model of --ckpt.")
@click.option("--ckpt", type=FILE, required=True, help="A checkpoint (.safetensors).")
@click.option("--num", type=click.IntRange(min=1), default=100, show_default=True, help="How many samples.")
@click.option("--labels", help="Comma-separated classes, repeated to --num. Default: balanced.")
@click.option("--grid", type=FILE, help="Write a PNG with the samples, ten to a row.")
@click.option("--out", type=FILE, help="Write an npz: arr_0 uint8 N x H x W x C, and arr_1 labels.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the samples.")
@click.option("--device", help="cpu, cuda, ... Default: an accelerator if there is one.")
@common
def sample(
    model: str | None,
    ckpt: Path,
    num: int,
    labels: str | None,
    grid: Path | None,
    out: Path | None,
    seed: int,
    device: str | None,
    quiet: bool,
) -> None:
    """Draw samples from a checkpoint, to a PNG or npz."""
    if grid is None and out is None:
        raise UserError("give --grid FILE.png or --out FILE.npz.")
    if model is not None:
        registry.require("models", model)
    if out is not None and out.suffix != ".npz":
        raise UserError(f"--out {out}: the file must end with .npz.")
    for path, option in ((grid, "--grid"), (out, "--out")):
        if path is not None:
            require_writable(path, option)

    import numpy as np
    import torch

    from ganbench.base.device import choose_device
    from ganbench.base.files import atomic_path
    from ganbench.base.progress import Reporter
    from ganbench.data import images, sources
    from ganbench.gan import checkpoint

    gan, meta = checkpoint.load(ckpt, model)
    y = None
    if labels is not None:
        wanted = _classes(labels, gan.num_classes)
        y = torch.tensor([wanted[i % len(wanted)] for i in range(num)])
    reporter = Reporter(quiet)
    with reporter.task("sample", num) as task:
        drawn = sources.generate(
            gan, num, seed, choose_device(device), y, advance=task.advance, first_class=meta.first_class
        )
    if grid is not None:
        order = drawn.labels.argsort(stable=True) if drawn.labels is not None else torch.arange(num)
        images.save_png(images.grid(drawn.images[order], 10), grid)
        click.echo(str(grid))
    if out is not None:
        arrays = {"arr_0": drawn.images.permute(0, 2, 3, 1).numpy()}
        if drawn.labels is not None:
            arrays["arr_1"] = drawn.labels.numpy()
        with atomic_path(out) as part, open(part, "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        click.echo(str(out))


@main.command()
@click.argument("source")
@click.option(
    "--extractor", default="inception-v3", show_default=True, help="The network (`ganbench list extractors`)."
)
@click.option("--weights", multiple=True, metavar="EXTRACTOR=FILE", help="Its weights, instead of the published ones.")
@click.option("--out", type=FILE, required=True, help="The npz to write.")
@click.option("--with-images", is_flag=True, help="Also arr_0, uint8 N x H x W x C, and arr_1, labels.")
@click.option("--num", type=click.IntRange(min=1), help="How many images, drawn under --seed. Default: all.")
@reading
@click.option("--batch-size", type=click.IntRange(min=1), help="Of the extractor. Default: 16 on the CPU, else 256.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of samples and of draws.")
@click.option("--device", help="cpu, cuda, ... Default: an accelerator if there is one.")
@common
def statistics(
    source: str, extractor: str, weights: tuple[str, ...], out: Path, with_images: bool, num: int | None,
    resize: str | None, image_labels: Path | None, latent: str | None, prior: str | None, classes: int | None,
    batch_size: int | None, seed: int, device: str | None, quiet: bool,
) -> None:
    """Write the moments of a set's features, to an npz.

    mu and sigma (float64, N - 1), and with them n, extractor and sha256. Such a file can be the --reference of
    Fréchet distances in place of its images.
    """
    registry.require("extractors", extractor)
    files = _weights(weights)
    if unused := [name for name in files if name != extractor]:
        raise UserError(f"--weights {unused[0]}=...: the extractor is {extractor}.")
    if out.suffix != ".npz":
        raise UserError(f"--out {out}: the file must end with .npz.")
    require_writable(out, "--out")

    from ganbench.base.device import choose_device
    from ganbench.base.progress import Reporter
    from ganbench.data import resizing, sources
    from ganbench.evaluation import statistics

    reporter, where = Reporter(quiet), choose_device(device)
    options = sources.Options(
        labels_file=image_labels, resize=None if resize is None else resizing.parse(resize),
        latent=None if latent is None else sources.parse_latent(latent), prior=prior, classes=classes, device=where,
        progress=reporter.progress,
    )
    samples = sources.open_source(source, num, seed, options=options)
    statistics.write(
        samples, source, extractor, files.get(extractor), out, with_images, batch_size, where, reporter.progress
    )
    click.echo(str(out))


def _classes(text: str, known: int) -> list[int]:
    if not known:
        raise UserError("--labels: this model takes no labels.")
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = [-1]
    if not all(0 <= v < known for v in values):
        raise UserError(f"--labels must be classes 0 to {known - 1}, separated by commas, not '{text}'.")
    return values


@main.command()
@click.argument("name", required=False)
@click.option(
    "--format", "form", type=click.Choice(["md", "csv", "latex"]), default="md", show_default=True, help="Of the table."
)
@click.option("--dataset", help="Only recipes on this data set.")
@click.option(
    "--budget",
    type=click.Choice(BUDGETS),
    help="Of the runs on that budget alone; smoke and short ones are not comparable with the paper. "
    "Default: the full runs, and where a recipe has none its short ones.",
)
@click.option("--out", type=FOLDER, default=Path("results"), show_default=True, help="Where the runs are.")
@common
def table(
    name: str | None, form: str, dataset: str | None, budget: str | None, out: Path, quiet: bool
) -> None:
    """Ours beside the paper's, of all recipes or of one.

    Derived from the stored results; of recipes that were not run it shows what the paper reports.
    With a NAME, of a recipe or a group, the page <out>/tables/NAME.md is rebuilt too.
    """
    from ganbench import recipes
    from ganbench.reporting import results, tables

    if name is not None and dataset is not None:
        raise UserError("give either a NAME or --dataset.")
    group, found = (None, {}) if name is None else recipes.lookup(name)
    if name is None:
        everything = [recipes.read(path) for path in recipes.available().values()]
        sets = sorted({r.train.data.partition(":")[0] for r in everything})
        if dataset is not None and dataset not in sets:
            from ganbench.base.errors import did_you_mean

            raise UserError(f"--dataset {dataset}: no recipe is on it.{did_you_mean(dataset, sets)}")
        found = {r.name: r for r in everything if dataset in (None, r.train.data.partition(":")[0])}
    stored = [(r, [x for _, x in results.load_all(out / "runs" / r.name)]) for r in found.values()]
    overrides = None if budget is None else {} if budget == "full" else {"budget": budget}
    if overrides:
        stored = [(r, of) for r, of in stored if tables.counted(r, of, overrides)]
    parts = [tables.rows(r, of, overrides) for r, of in stored]
    rows = [row for part in parts for row in (part if name is not None else tables.without_blanks(part))]
    if group is not None:
        rows = tables.group_rows(group, stored, overrides)
    click.echo(tables.render(rows, form, tables.COLUMNS if group is None else tables.GROUP_COLUMNS), nl=False)
    if name is not None and not overrides and any(of for _, of in stored):
        for recipe, of in stored:
            if of:
                path = tables.write(recipe, of, out / "tables")
        if group is not None:
            path = tables.write_group(group, stored, out / "tables")
        if not quiet:
            click.echo(f"table:   {path}", err=True)


@main.command()
@click.argument("baseline", type=FILE)
@click.argument("result", type=FILE, required=False)
@click.option("--junit", type=FILE, help="Also write JUnit XML, for a CI system to show.")
@click.option(
    "--out", type=FOLDER, default=Path("results"), show_default=True, help="Where to look for RESULT if none is given."
)
@common
def check(baseline: Path, result: Path | None, junit: Path | None, out: Path, quiet: bool) -> None:
    """Check a result against a baseline; exit 1 if worse.

    For CI: a metric that is worse by more than its tolerance fails, and so does one that is missing.
    Without RESULT, the newest run of the baseline's recipe, seed and overrides is taken.
    """
    from ganbench.reporting import regression, results, tables

    if junit is not None:
        require_writable(junit, "--junit")
    base, tolerances = regression.load_baseline(baseline)
    if result is None:
        wanted = (base.recipe or {}).get("name")
        if wanted is None:
            raise UserError(
                f"the baseline {baseline} is of no recipe, so there is no run to look for: name the RESULT file."
            )
        found = [(r.created, p) for p, r in results.load_all(out / "runs") if _same_run(r, base)]
        if not found:
            changed = f" and the overrides {base.overrides}" if base.overrides else ""
            raise UserError(
                f"no result of recipe '{wanted}' with seed {base.seed}{changed} in {out / 'runs'}: "
                "name the RESULT file."
            )
        result = max(found)[1]
    checks = regression.compare(base, tolerances, results.load(result))
    cells = [
        {"metric": c.metric, "value": tables.number(c.value), "baseline": tables.number(c.baseline),
         "tolerance": tables.number(c.tolerance), "verdict": c.verdict} for c in checks
    ]
    click.echo(tables.render(cells, columns=("metric", "value", "baseline", "tolerance", "verdict")), nl=False)
    if junit is not None:
        regression.write_junit(checks, junit)
    failed = [c.metric for c in checks if c.failed]
    if failed:
        click.echo(f"ganbench: check failed: {', '.join(failed)} ({result} against {baseline})", err=True)
        sys.exit(1)


def _same_run(a: Any, b: Any) -> bool:
    """True if two results are of one recipe, seed and overrides."""
    return ((a.recipe or {}).get("name"), a.seed, a.overrides) == ((b.recipe or {}).get("name"), b.seed, b.overrides)


@main.command()
@click.argument("a", type=FILE)
@click.argument("b", type=FILE)
@common
def compare(a: Path, b: Path, quiet: bool) -> None:
    """Two results side by side, and what is noise.

    B minus A, its 95 % interval, and whether it is larger than that.
    """
    from ganbench.reporting import comparison, results, tables

    cells = [
        {
            "metric": c.metric,
            "a": tables.number(c.a),
            "b": tables.number(c.b),
            "b - a": tables.number(c.difference, c.half_width),
            "verdict": c.verdict,
        }
        for c in comparison.compare(results.load(a), results.load(b))
    ]
    click.echo(tables.render(cells, columns=("metric", "a", "b", "b - a", "verdict")), nl=False)


@main.command()
@click.option("--model", help="The reference model of --ckpt.")
@click.option("--ckpt", type=FILE, help="A checkpoint (.safetensors) to draw samples from.")
@click.option("--images", help=f"Or images: {SOURCES}.")
@click.option("--reference", help="The training images. Default: the checkpoint's training set.")
@click.option("--extractor", help="By Euclidean distance of its features. Default: by L1 distance of pixels.")
@click.option("--num", type=click.IntRange(min=1), default=1000, show_default=True, help="Samples to look at.")
@click.option("--rows", type=click.IntRange(1, 100), default=10, show_default=True, help="Samples to show.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the samples.")
@click.option("--device", help="cpu, cuda, ... Default: an accelerator if there is one.")
@click.option("--out", type=FILE, required=True, help="The PNG to write.")
@common
def neighbours(
    model: str | None, ckpt: Path | None, images: str | None, reference: str | None, extractor: str | None, num: int,
    rows: int, seed: int, device: str | None, out: Path, quiet: bool,
) -> None:
    """Draw samples beside their nearest training images.

    Those that are nearest to one come first: what a generator that has memorised its training set would show.
    """
    if (ckpt is None) == (images is None):
        raise UserError("give either --model NAME --ckpt FILE or --images SOURCE.")
    if images is not None and reference is None:
        raise UserError("give the training images with --reference.")
    require_writable(out, "--out")
    if extractor is not None:
        registry.require("extractors", extractor)

    from ganbench import features
    from ganbench.base.device import choose_device
    from ganbench.data import datasets, sources
    from ganbench.evaluation import neighbours as picture
    from ganbench.gan import checkpoint

    where = choose_device(device)
    if ckpt is not None:
        gan, meta = checkpoint.load(ckpt, model)
        reference = reference or meta.data or None
        if reference is None:
            raise UserError(f"{ckpt} does not say what it was trained on: give --reference.")
        real = sources.open_source(reference)
        fake = sources.generate(gan, num, seed, where)
    else:
        assert images is not None
        assert reference is not None
        real, fake = sources.open_source(reference), sources.open_source(images)
        fake = sources.take(fake, min(num, len(fake.images)), images, seed)
    net = features.create(extractor, None, not datasets.offline()) if extractor else None
    distances = picture.draw(fake.images, real.images, rows, out, net, where)
    shown = f"{distances[0]:.4g} to {distances[-1]:.4g}"
    click.echo(f"{out}  ({'L1 of pixels' if net is None else net.title}: {shown})")


@main.command()
@click.argument("result", type=FILE)
@click.option("--out", type=FILE, required=True, help="The PNG to write.")
@common
def figures(result: Path, out: Path, quiet: bool) -> None:
    """Draw AC-GAN's analysis of a result.

    Accuracy by resolution, classes that gain by it, diversity of classes, and one against the other: of a result with
    discriminability, gaining_classes, diverse_classes and accuracy_diversity_correlation. Needs ganbench[figures].
    """
    require_writable(out, "--out")
    from ganbench.reporting import results
    from ganbench.reporting.figures import acgan_figures

    acgan_figures(results.load(result), out)
    click.echo(str(out))


@main.command("train-classifier")
@click.argument("data")
@click.option("--out", type=FILE, required=True, help="The safetensors file to write.")
@common
def train_classifier(data: str, out: Path, quiet: bool) -> None:
    """Train a small classifier, for --extractor small-cnn.

    The recipe is that of the bundled mnist-cnn; the test error is read once, at the end.
    """
    from ganbench.base.device import choose_device
    from ganbench.base.progress import Reporter
    from ganbench.data import datasets
    from ganbench.evaluation.inputs import held_out_of
    from ganbench.features import create, extract, small_cnn

    require_writable(out, "--out")
    train = datasets.load(data)
    if train.first_class:
        raise UserError(f"'{data}': a classifier numbers its classes as the whole set does: begin with class 0.")
    if train.labels is None:
        raise UserError(f"'{data}' has no labels: put its images into class folders.")
    steps = small_cnn.TRAINING.epochs * (len(train) // small_cnn.TRAINING.batch_size)
    with Reporter(quiet).task(f"train on {train.name}", steps) as task:
        count = 0

        def advance(text: str) -> None:
            nonlocal count
            count += 1
            task.at(count, text)

        small_cnn.train_classifier(train.images, train.labels, train.classes, out, train.name, advance=advance)
    click.echo(str(out))
    test = held_out_of(train)
    if test is not None and test.labels is not None:
        net = create("small-cnn", out)
        logits = extract(net, test.images, 500, choose_device("cpu")).logits
        assert logits is not None
        wrong = int((logits.argmax(1) != test.labels).sum())
        click.echo(f"test error: {wrong} of {len(test.labels):,} ({100 * wrong / len(test.labels):.2f} %)")


@main.command()
@common
def doctor(quiet: bool) -> None:
    """What is here, what is missing, what would mend it.

    Data sets, weights, devices. Nothing is downloaded.
    """
    from ganbench.doctor import report

    for line in report():
        click.echo(line)
