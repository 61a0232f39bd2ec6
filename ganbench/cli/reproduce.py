"""`ganbench reproduce`: recipes are trained and evaluated, here or as jobs."""

import sys
from pathlib import Path

import click

from ganbench.base import registry
from ganbench.base.errors import UserError
from ganbench.cli import terminal
from ganbench.cli.options import (
    COUNT,
    FOLDER,
    common,
    device_option,
    examples,
    is_first_process,
    launcher_options,
    parse_weights,
    parse_whole_numbers,
)
from ganbench.recipes import BUDGETS


@click.command(epilog=examples(
    ("Does everything work? A run of seconds", "ganbench reproduce acgan-mnist --budget smoke"),
    ("What is not done yet of these, in this order", "ganbench reproduce gan-table1 'infogan-*' --seeds 0-2 --dry-run"),
    ("All rows of a paper's table, as jobs", "ganbench reproduce bigan-table1 --launcher slurm --dry-run"),
))
@click.argument("names", nargs=-1, required=True, metavar="RECIPE|GROUP...")
@click.option("--seeds", default="0", show_default=True, help="Seeds, as 0,1,2 or 0-9; each is a run.")
@click.option(
    "--budget", type=click.Choice(BUDGETS), default="full", show_default=True,
    help="smoke: seconds, on synthetic images. short: minutes to an hour or two. Neither is comparable with the paper.",
)
@click.option("--data", help="Another training set: NAME or folder:PATH. Keeps the run out of the tables.")
@click.option("--steps", type=COUNT, help="Another length. Keeps the run out of the tables.")
@device_option
@click.option("--out", type=FOLDER, default=Path("results"), show_default=True, help="Where runs and tables go.")
@click.option("--fresh", is_flag=True, help="Throw an earlier run away and begin again.")
@click.option(
    "--launcher", type=click.Choice(["local", "slurm"]),
    help="Each recipe and seed becomes a job of its own: local waits for them, slurm submits them. "
    "Needs ganbench[launch].",
)
@launcher_options
@click.option("--dry-run", is_flag=True, help="Print the jobs, a command a line, and do nothing.")
@click.option(
    "--weights", multiple=True, metavar="EXTRACTOR=FILE",
    help="Weights of an extractor. Others than the published ones give its metrics another name.",
)
@click.option("--tensorboard", is_flag=True, help="Log to TensorBoard too. Needs ganbench[tensorboard].")
@click.option("--json", "as_json", is_flag=True, help="Print the results as one JSON object.")
@common
def reproduce(
    names: tuple[str, ...], seeds: str, budget: str, data: str | None, steps: int | None, device: str | None, out: Path,
    fresh: bool, launcher: str | None, launcher_args: tuple[str, ...], at_once: int | None, dry_run: bool,
    weights: tuple[str, ...], tensorboard: bool, as_json: bool, quiet: bool,
) -> None:
    """Train and evaluate recipes, or groups of them, in the order given.

    Each is the name of a recipe or a group (`ganbench list recipes`, `ganbench list groups`), a path to a .toml file,
    or a pattern such as 'bigan-*-mnist' that names of recipes fit. An interrupted run goes on by itself, and one that
    is done is not done again.
    """
    from ganbench import recipes
    from ganbench.reproduction import launching

    targets = recipes.lookup_all(names)
    found = {name: recipe for _, own in targets for name, recipe in own.items()}
    given = {"budget": None if budget == "full" else budget, "steps": steps, "data": data}
    overrides = {key: value for key, value in given.items() if value is not None}
    for own in found.values():
        own.override(overrides)  # a budget that it does not have is refused at once
    if data is not None and (kind := data.partition(":")[0]) != "folder":
        registry.require("datasets", kind)
    numbers = parse_whole_numbers(seeds, "--seeds")
    parameters = launching.parse_args(launcher_args)
    if launcher is None and (parameters or at_once):
        raise UserError(f"{'--launcher-arg' if parameters else '--jobs'} needs --launcher local or --launcher slurm.")

    from ganbench.base.progress import Reporter
    from ganbench.reproduction import answer
    from ganbench.reproduction.plan import Plan
    from ganbench.training.loop import Interrupted

    reporter = Reporter(quiet or not is_first_process())
    plan = Plan(found, overrides, numbers, out, fresh, tensorboard, parse_weights(weights))
    plan.require_weights_used()
    try:
        if dry_run:
            launching.check_parameters(parameters)
        if dry_run or launcher == "slurm":
            jobs = plan.jobs(device, quiet, reporter.say)
            ids = [""] * len(jobs) if dry_run else launching.submit_to_slurm(jobs, out, parameters, at_once)
            click.echo(answer.jobs_text(jobs, ids, as_json), nl=False)
            if not dry_run:
                reporter.say("next:    the same command without --launcher, once they are done, for the table")
            return
        if launcher == "local":
            jobs = plan.jobs(device, quiet, reporter.say)
            outcome = plan.collect(launching.run_locally(jobs, out, parameters, at_once, reporter.say))
        else:
            outcome = plan.run_here(device, reporter)
    except (Interrupted, launching.Stopped) as stop:
        click.echo(f"ganbench: {stop}; the same command goes on from there", err=True)
        sys.exit(128 + stop.signum)
    except KeyboardInterrupt:
        click.echo("ganbench: interrupted; the same command goes on from the last checkpoint", err=True)
        sys.exit(130)
    if not is_first_process():
        return
    lines = answer.finish(plan, targets, outcome)
    click.echo(answer.outcome_text(plan, targets, outcome, as_json, terminal.width()), nl=False)
    for line in lines:
        reporter.say(line)
    for failure in outcome.failures:
        click.echo(f"ganbench: {failure}", err=True)
    if outcome.failures:
        sys.exit(1)
