"""The stored results of a folder: the table of `ganbench table`, and the runs that `ganbench check` looks for.

Runs lie in `<out>/runs/<recipe>/<run>/result.json`, pages in `<out>/tables/<name>.md`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ganbench import recipes
from ganbench.base.errors import UserError, did_you_mean
from ganbench.recipes import Recipe
from ganbench.reporting import baseline as baselines
from ganbench.reporting import narrow, pages, regression, results, tables
from ganbench.reporting.baseline import Baseline
from ganbench.reporting.comparable import differences, subject, without_copies
from ganbench.reporting.regression import Change, Check
from ganbench.reporting.results import Result


def table(
    out: Path, name: str | None = None, dataset: str | None = None, budget: str | None = None, form: str = "md",
    width: int | None = None,
) -> tuple[str, Path | None]:
    """Return the table of all recipes, of those on a data set, or of one recipe or group; and the page it rebuilt.

    name: of a recipe or a group; its page is rebuilt from the full and short runs, if there is one. budget: show the
    runs on that budget; None: the full runs, and if a recipe has none, its short ones. form: md, csv or latex.
    width: of the terminal that Markdown has to fit, or None.
    Raises UserError for an unknown name, and for a data set that no recipe is on.
    """
    if name is not None and dataset is not None:
        raise UserError("give either a NAME or --dataset.")
    group, found = (None, _recipes_on(dataset)) if name is None else recipes.lookup(name)
    stored = [(recipe, _results(recipe, out)) for recipe in found.values()]
    overrides = None if budget is None else {} if budget == "full" else {"budget": budget}
    if overrides:
        stored = [(recipe, own) for recipe, own in stored if tables.counted(recipe, own, overrides)]
    if group is not None:
        rows, columns = tables.group_rows(group, stored, overrides), tables.GROUP_COLUMNS
    else:
        parts = [tables.rows(recipe, own, overrides) for recipe, own in stored]
        rows = [row for part in parts for row in (part if name is not None else tables.without_blanks(part))]
        columns = tables.COLUMNS
    page = None
    if name is not None and not overrides:
        for recipe, own in stored:
            if own:
                page = pages.write(recipe, own, out / "tables", group)
        if page is not None and group is not None:
            page = pages.write_group(group, stored, out / "tables")
        if page is not None:
            pages.refresh_index(out)
    return narrow.markdown(rows, columns, width) if form == "md" else tables.render(rows, form, columns), page


def _recipes_on(dataset: str | None) -> dict[str, Recipe]:
    """All installed recipes by name; with a data set, those that train on it."""
    everything = list(recipes.installed().recipes.values())
    data_of = {recipe.name: recipe.train.data.partition(":")[0] for recipe in everything}
    if dataset is not None and dataset not in data_of.values():
        known = sorted(set(data_of.values()))
        raise UserError(f"--dataset {dataset}: no recipe is on it.{did_you_mean(dataset, known)}")
    return {recipe.name: recipe for recipe in everything if dataset in (None, data_of[recipe.name])}


def _results(recipe: Recipe, out: Path) -> list[Result]:
    return [result for _, result in results.load_all(out / "runs" / recipe.name)]


# --- The check ---


@dataclass(frozen=True)
class Checked:
    """The outcome of a check. files: of the new runs. head: lines that stand above the table. remarks: for stderr."""

    files: list[Path]
    checks: list[Check]
    head: list[str]
    remarks: list[str]


def check(
    file: Path, given: Sequence[Path], runs: Path, false_alarms: float | None = None
) -> Checked:
    """Check results against a baseline, metric by metric.

    file: of the baseline. given: files of results; without any, the newest run below `runs` of the baseline's recipe
    and overrides is taken (and of its seed, if the baseline is a result file). false_alarms: instead of the baseline's.
    Raises UserError for a file that cannot be read, and if there is no such run.
    """
    base = baselines.load(file)
    found = _given(given) if given else _runs_of(base, file, runs)[-1:]
    found, remarks = without_copies(found)
    head = regression.head(base, len(found), false_alarms)
    ours = {(r.get("created"), r.get("subject"), r.get("seed")) for r in base.runs if r.get("created")}
    for path, result in found:
        if (result.created, subject(result) or None, result.seed) in ours:
            head.append(f"{path} is a run of the baseline itself: nothing new was checked.")
        for key in ("version", "budget"):
            old, new = ((of.recipe or {}).get(key) for of in (base.of, result))
            if old != new and base.of.recipe and result.recipe:
                remarks.append(f"{path}: the {key} of the recipe is {new}, and {old} in the baseline")
    return Checked([path for path, _ in found], regression.compare(base, found, false_alarms), head, remarks)


def update(file: Path, given: Sequence[Path], runs: Path) -> tuple[list[Change], Baseline, list[str]]:
    """Write a baseline anew with other runs and its own settings. Return what changes, the new one, and remarks.

    given: files of results; without any, all runs below `runs` of the baseline's recipe and overrides are taken, of the
    recipe's version in the newest of them.
    """
    old = baselines.load(file)
    found = _given(given)
    if not found:
        every = _runs_of(replace(old, seed=None), file, runs)
        version = (every[-1][1].recipe or {}).get("version")
        found = [(path, result) for path, result in every if (result.recipe or {}).get("version") == version]
    made, remarks = baselines.make(found)
    new, changes = regression.updated(old, made)
    baselines.save(new, file)
    return changes, new, remarks


def _given(files: Sequence[Path]) -> list[tuple[Path, Result]]:
    return [(path, results.load(path)) for path in files]


def _runs_of(base: Baseline, file: Path, runs: Path) -> list[tuple[Path, Result]]:
    """Return the stored results of a baseline's recipe, overrides and seed (if it has one), the newest last."""
    wanted = (base.of.recipe or {}).get("name")
    if wanted is None:
        raise UserError(f"the baseline {file} is of no recipe, so there is no run to look for: name the RESULT file.")
    found = [
        (path, result) for path, result in results.load_all(runs)
        if (result.recipe or {}).get("name") == wanted and result.overrides == base.of.overrides
        and base.seed in (None, result.seed)
    ]
    if not found:
        seed = "" if base.seed is None else f" with seed {base.seed}"
        changed = f" and the overrides {base.of.overrides}" if base.of.overrides else ""
        raise UserError(f"no result of recipe '{wanted}'{seed}{changed} in {runs}: name the RESULT file.")
    return sorted(found, key=lambda pair: (pair[1].created, pair[0]))


def runs_of_seeds(
    recipe: Recipe, seeds: Sequence[int], overrides: dict[str, Any], out: Path
) -> dict[int, tuple[Path, Result]]:
    """Return the newest stored run of each seed that has one, of the recipe's present version with these overrides."""
    loaded = results.load_all(out / "runs" / recipe.name)
    fitting = tables.counted(recipe, [result for _, result in loaded], overrides)
    found: dict[int, tuple[Path, Result]] = {}
    for path, result in sorted(loaded, key=lambda pair: (pair[1].created, pair[0])):
        if result.seed in seeds and any(result is other for other in fitting):
            found[result.seed] = path, result
    return found


def remarks(out: Path, name: str | None = None) -> list[str]:
    """Return a line for each stored result that is a copy of another one, or cannot be averaged with its other seeds.

    name: of a recipe or a group; None: of all recipes that were run. Copies count once in tables.
    """
    folders = sorted((out / "runs").glob("*")) if name is None else [
        out / "runs" / recipe.name for recipe in recipes.lookup(name)[1].values()
    ]
    lines = []
    for folder in folders:
        kept, copies = without_copies(results.load_all(folder))
        lines += copies
        first: dict[str, tuple[Path, Result]] = {}
        for path, result in kept:
            recipe = result.recipe or {}
            data = (result.training or {}).get("data")  # each seed may have its own classes
            like = repr((recipe.get("version"), recipe.get("budget"), sorted(result.overrides.items()), data))
            other_path, other = first.setdefault(like, (path, result))
            why = [
                f"{m.metric} ({'; '.join(found)})" for m in result.measurements
                if (n := other.measurement(m.metric)) and n.value is not None and m.value is not None
                and (found := differences((other, n), (result, m), ("it", "this one")))
            ]
            if why:
                more = f", and {len(why) - 1} more" if len(why) > 1 else ""
                lines.append(f"{path} should not be averaged with {other_path}: {why[0]}{more}")
    return lines
