"""The answer to a plan: a table or JSON of what came of it, and remarks on where things lie and what comes next."""

import json
import shlex
from typing import Any

from ganbench.recipes import Group
from ganbench.reporting import narrow, tables
from ganbench.reporting.results import RESULT
from ganbench.reproduction.jobs import Job
from ganbench.reproduction.plan import Outcome, Plan
from ganbench.reproduction.run import GRID
from ganbench.training.run_folder import CHECKPOINT


def outcome_text(plan: Plan, group: Group | None, outcome: Outcome, as_json: bool, width: int | None = None) -> str:
    """Return the text on stdout: the table of the recipe or the joined one of the group ('' if nothing ran), or JSON.

    JSON holds every result, and the reasons of failures. width: of the terminal that a table has to fit, or None.
    """
    if as_json:
        return _dump(_outcome_value(plan, group, outcome))
    ran = [(plan.recipes[name], [run.result for run in runs]) for name, runs in outcome.runs.items() if runs]
    if group is not None:
        rows, columns = tables.group_rows(group, ran, plan.overrides), tables.GROUP_COLUMNS
    else:
        rows = [row for recipe, results in ran for row in tables.rows(recipe, results, plan.overrides)]
        columns = tables.COLUMNS
    return narrow.markdown(rows, columns, width) if rows else ""


def _outcome_value(plan: Plan, group: Group | None, outcome: Outcome) -> dict[str, Any]:
    recipes: list[dict[str, Any]] = [
        {"recipe": plan.recipes[name].name, "results": [run.result.to_json() for run in runs]}
        for name, runs in outcome.runs.items()
    ]
    value = recipes[0] if group is None else {"group": group.name, "recipes": recipes}
    if outcome.failures:
        value["failed"] = [{"recipe": f.recipe, "seed": f.seed, "reason": f.reason} for f in outcome.failures]
    return value


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


def finish(plan: Plan, group: Group | None, outcome: Outcome) -> list[str]:
    """Rebuild the tables; return lines that say where everything lies, what is not comparable, and what comes next."""
    paths = plan.write_tables(group, outcome)
    lines = []
    if group is None:
        lines += [f"samples: {run.folder / GRID}\nresult:  {run.folder / RESULT}" for run in outcome.done]
    lines += [f"table:   {path}" for path in paths[-1:]]
    if plan.overrides:
        changes = ", ".join(f"{key} = {value}" for key, value in plan.overrides.items())
        stays_out = "" if paths else ", and in no table"
        lines.append(f"not comparable with the paper{stays_out}: run with {changes}")
    if group is None and outcome.done:
        lines.append(f"next:    {shlex.join(_next(plan, outcome))}")
    return lines


def _next(plan: Plan, outcome: Outcome) -> list[str]:
    """The command that comes next: after a smoke run the full one, otherwise an evaluation by the recipe's metrics."""
    ((name, recipe),) = plan.recipes.items()
    if plan.overrides.get("budget") == "smoke":
        return ["ganbench", "reproduce", name]
    words = ["ganbench", "evaluate", "--model", recipe.model.name, "--ckpt", str(outcome.done[0].folder / CHECKPOINT)]
    weights = [f"{extractor}={file}" for extractor, file in plan.weights_of(recipe).items()]
    return [*words, "--metrics", ",".join(recipe.evaluate.metrics), *(w for x in weights for w in ("--weights", x))]
