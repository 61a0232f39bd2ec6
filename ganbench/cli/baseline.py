"""`ganbench baseline`: the values of several runs, for `ganbench check` to compare new ones with."""

import sys
from pathlib import Path

import click

from ganbench.base.errors import UserError, shortened
from ganbench.base.files import require_writable
from ganbench.cli import terminal
from ganbench.cli.options import (
    COUNT,
    FILE,
    FOLDER,
    common,
    device_option,
    examples,
    is_first_process,
    parse_weights,
    parse_whole_numbers,
    parse_words,
)
from ganbench.recipes import BUDGETS, Recipe
from ganbench.reporting.results import Result

COLUMNS = ("metric", "mean", "spread of runs", "runs", "tolerance", "sees", "note")
Found = list[tuple[Path, Result]]


@click.command(epilog=examples(
    ("Five seeds of a recipe; stored runs are not done again", "ganbench baseline my-recipe.toml --out baseline.json"),
    ("Of a short run, so that CI can repeat it", "ganbench baseline my-recipe.toml --steps 5 --out baseline.json"),
    ("Of files that are there", "ganbench baseline seed0.json seed1.json seed2.json --out baseline.json"),
))
@click.argument("targets", nargs=-1, required=True, metavar="RECIPE | RESULT.json...")
@click.option("--out", type=FILE, required=True, help="The baseline's file.")
@click.option("--seeds", help="Seeds, as 0,1,2 or 0-9; each is a run.  [default: 0-4]")
@click.option("--budget", type=click.Choice(BUDGETS), help="Of shorter runs, as `reproduce` makes them.")
@click.option("--steps", type=COUNT, help="Of runs of another length.")
@click.option(
    "--false-alarms", type=float, default=0.01, show_default=True, metavar="RATE",
    help="How often a check may fail although nothing has changed.",
)
@click.option("--two-sided", metavar="METRICS", help="Metrics that may not change in either direction: a,b.")
@device_option
@click.option("--results", type=FOLDER, help="Where runs are looked for and stored.  [default: results]")
@click.option("--fresh", is_flag=True, help="Make all runs again.")
@click.option(
    "--weights", multiple=True, metavar="EXTRACTOR=FILE",
    help="Weights of an extractor. Others than the published ones give its metrics another name.",
)
@common
def baseline(
    targets: tuple[str, ...], out: Path, seeds: str | None, budget: str | None, steps: int | None, false_alarms: float,
    two_sided: str | None, device: str | None, results: Path | None, fresh: bool, weights: tuple[str, ...], quiet: bool,
) -> None:
    """Measure several seeds, for `ganbench check` to compare with.

    Of a RECIPE, the runs that are missing are trained and evaluated. Of result files, their values are taken. The
    tolerance of a check comes from the spread over the runs: take five or more, since one knows sampling only.
    """
    from ganbench.reporting import baseline as baselines
    from ganbench.reporting import regression, tables
    from ganbench.reporting import results as stored

    baselines.require_rate(false_alarms, "--false-alarms")
    require_writable(out, "--out")
    sides = parse_words(two_sided, "--two-sided") or []
    if all(name.endswith(".json") for name in targets):
        of_runs = {
            "--seeds": seeds, "--budget": budget, "--steps": steps, "--device": device, "--results": results,
            "--fresh": fresh or None, "--weights": weights or None,
        }
        if given := [option for option, value in of_runs.items() if value is not None]:
            raise UserError(f"{given[0]} is of the runs of a recipe, and {targets[0]} is a result: leave it out.")
        found = [(Path(name), stored.load(Path(name))) for name in targets]
    elif len(targets) > 1:
        raise UserError("give one RECIPE, or result files whose names end with .json.")
    else:
        overrides = {"budget": None if budget == "full" else budget, "steps": steps}
        found = _runs(
            targets[0], parse_whole_numbers(seeds or "0-4", "--seeds"),
            {key: value for key, value in overrides.items() if value is not None}, device, results or Path("results"),
            fresh, weights, quiet, sides,
        )
        if not is_first_process():
            return
    made, remarks = baselines.make(found, false_alarms, sides)
    if not any(map(made.can_fail, made.metrics)):
        names = ", ".join(kept.measurement.metric for kept in made.metrics)
        raise UserError(f"nothing could fail: {names} have no better or worse. Name some with --two-sided.")
    baselines.save(made, out)
    cells = []
    for kept, check in zip(made.metrics, regression.compare_with_itself(made), strict=True):
        of = kept.spread
        cells.append({
            "metric": check.metric, "mean": tables.number(of.mean), "spread of runs": tables.number(of.sd),
            "runs": str(of.runs), "tolerance": tables.number(check.tolerance), "sees": tables.number(check.sees),
            "note": check.reason,
        })
    click.echo("\n".join(regression.head(made, 1)) + "\n")
    click.echo(terminal.table(cells, COLUMNS), nl=False)
    for line in () if quiet else [*(f"note:    {text}" for text in remarks), f"baseline: {out}"]:
        click.echo(line, err=True)


def _runs(
    name: str, seeds: list[int], overrides: dict[str, object], device: str | None, out: Path, fresh: bool,
    weights: tuple[str, ...], quiet: bool, sides: list[str],
) -> Found:
    """Return a run of each seed: stored ones of this version of the recipe, and new ones in the place of the rest.

    sides: metrics that the recipe must measure; an unknown one is refused before anything is trained.

    Ends the program with 1 if a training failed, and with 130 or 143 if it was interrupted.
    """
    from ganbench import recipes
    from ganbench.base.progress import Reporter
    from ganbench.reporting import stored
    from ganbench.reporting.results import RESULT

    group, members = recipes.lookup(name)
    if group is not None:
        raise UserError(f"'{name}' is a group of recipes, and a baseline is of one: {', '.join(members)}.")
    ((called, recipe),) = members.items()
    measured = recipe.override(overrides).evaluate.metrics  # a budget that it does not have is refused at once
    for side in sides:
        if side.partition("@")[0] not in measured:
            raise UserError(f"--two-sided {shortened(side)}: the recipe measures {', '.join(measured)}.")
    reporter = Reporter(quiet or not is_first_process())
    found = {} if fresh else stored.runs_of_seeds(recipe, seeds, overrides, out)
    for seed, (path, _) in sorted(found.items()):
        reporter.say(f"{recipe.name} seed {seed}: already done, {path} (--fresh does it again)")
    if missing := [seed for seed in seeds if seed not in found]:
        made = _make(called, recipe, missing, overrides, device, out, fresh, weights, reporter)
        found |= {seed: (folder / RESULT, result) for seed, (folder, result) in made.items()}
    return [found[seed] for seed in seeds]


def _make(
    called: str, recipe: Recipe, seeds: list[int], overrides: dict[str, object], device: str | None, out: Path,
    fresh: bool, weights: tuple[str, ...], reporter: object,
) -> dict[int, tuple[Path, Result]]:
    """Train and evaluate the seeds, and return folder and result of each."""
    from ganbench.base.progress import Reporter
    from ganbench.reproduction.plan import Plan
    from ganbench.training.loop import Interrupted

    assert isinstance(reporter, Reporter)
    plan = Plan({called: recipe}, overrides, seeds, out, fresh, False, parse_weights(weights))
    plan.require_weights_used()
    try:
        outcome = plan.run_here(device, reporter)
    except Interrupted as stop:
        click.echo(f"ganbench: {stop}; the same command goes on from there", err=True)
        sys.exit(128 + stop.signum)
    except KeyboardInterrupt:
        click.echo("ganbench: interrupted; the same command goes on from the last checkpoint", err=True)
        sys.exit(130)
    for failure in outcome.failures:
        click.echo(f"ganbench: {failure}", err=True)
    if outcome.failures:
        click.echo("ganbench: no baseline is written, because not all seeds were measured", err=True)
        sys.exit(1)
    made = {}
    for seed, run in zip(seeds, outcome.done, strict=True):
        if run.result.seed != seed:
            raise UserError(
                f"{run.folder} holds a run of seed {run.result.seed}, not of {seed}: is it a copy? Remove it, or give "
                "--fresh."
            )
        made[seed] = run.folder, run.result
    return made
