"""The answer to a plan: a table or JSON of what came of it, and remarks on where things lie and what comes next."""

import json
import shlex
from typing import Any

from ganbench.recipes import Group, Recipe
from ganbench.reporting import narrow, tables
from ganbench.reporting.results import RESULT
from ganbench.reproduction.jobs import Job
from ganbench.reproduction.plan import Outcome, Plan
from ganbench.reproduction.run import GRID
from ganbench.training.run_folder import CHECKPOINT

Targets = list[tuple[Group | None, dict[str, Recipe]]]  # what the user named: groups and recipes, as `lookup_all`


def outcome_text(plan: Plan, targets: Targets, outcome: Outcome, as_json: bool, width: int | None = None) -> str:
    """Return the text on stdout: a table for each recipe and group that was asked for ('' if nothing ran), or JSON.

    JSON holds every result, and the reasons of failures. width: of the terminal that a table has to fit, or None.
    """
    parts = [(plan.part(own), group, outcome.part(own)) for group, own in targets]
    if not as_json:
        return "\n".join(filter(None, (_table(*part, width) for part in parts)))
    values = [_value(*part) for part in parts]
    answer = values[0] if len(values) == 1 else {"targets": values}
    if outcome.failures:
        answer["failed"] = [{"recipe": f.recipe, "seed": f.seed, "reason": f.reason} for f in outcome.failures]
    return _dump(answer)


def _table(plan: Plan, group: Group | None, outcome: Outcome, width: int | None) -> str:
    """Return the table of a recipe, or the joined one of a group; '' if nothing ran."""
    ran = [(plan.recipes[name], [run.result for run in runs]) for name, runs in outcome.runs.items() if runs]
    if group is not None:
        rows, columns = tables.group_rows(group, ran, plan.overrides), tables.GROUP_COLUMNS
    else:
        rows = [row for recipe, results in ran for row in tables.rows(recipe, results, plan.overrides)]
        columns = tables.COLUMNS
    return narrow.markdown(rows, columns, width) if ran else ""


def _value(plan: Plan, group: Group | None, outcome: Outcome) -> dict[str, Any]:
    recipes: list[dict[str, Any]] = [
        {"recipe": plan.recipes[name].name, "results": [run.result.to_json() for run in runs]}
        for name, runs in outcome.runs.items()
    ]
    return recipes[0] if group is None else {"group": group.name, "recipes": recipes}


def jobs_text(jobs: list[Job], ids: list[str], as_json: bool) -> str:
    """Return the text on stdout: a line a job with its id, if it was submitted ('': not), and its command; or JSON."""
    pairs = list(zip(ids, jobs, strict=True))
    if as_json:
        values = [
            {"id": number or None, "recipe": job.recipe, "seed": job.seed, "command": job.command}
            for number, job in pairs
        ]
        return _dump({"jobs": values})
    return "".join(f"{number}  {job.command}\n" if number else f"{job.command}\n" for number, job in pairs)


def _dump(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def finish(plan: Plan, targets: Targets, outcome: Outcome) -> list[str]:
    """Rebuild the tables; return lines that say where everything lies, what is not comparable, and what comes next."""
    lines: dict[str, None] = {}  # each once
    written = False
    for group, own in targets:
        part, came = plan.part(own), outcome.part(own)
        paths = part.write_tables(group, came)
        written |= bool(paths)
        if group is None:
            lines |= dict.fromkeys(
                f"samples: {run.folder / GRID}\nresult:  {run.folder / RESULT}" for run in came.done
            )
        lines |= dict.fromkeys(f"table:   {path}" for path in paths[-1:])
    if plan.overrides:
        changes = ", ".join(f"{key} = {value}" for key, value in plan.overrides.items())
        stays_out = "" if written else ", and in no table"
        lines[f"not comparable with the paper{stays_out}: run with {changes}"] = None
    if len(targets) == 1 and targets[0][0] is None and outcome.done:
        lines[f"next:    {shlex.join(_next(plan, outcome))}"] = None
    return list(lines)


def _next(plan: Plan, outcome: Outcome) -> list[str]:
    """The command that comes next: after a smoke run the full one, otherwise an evaluation by the recipe's metrics."""
    ((name, recipe),) = plan.recipes.items()
    if plan.overrides.get("budget") == "smoke":
        return ["ganbench", "reproduce", name]
    words = ["ganbench", "evaluate", "--model", recipe.model.name, "--ckpt", str(outcome.done[0].folder / CHECKPOINT)]
    weights = [f"{extractor}={file}" for extractor, file in plan.weights_of(recipe).items()]
    return [*words, "--metrics", ",".join(recipe.evaluate.metrics), *(w for x in weights for w in ("--weights", x))]
