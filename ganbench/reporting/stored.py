"""The stored results of a folder: the table of `ganbench table`, and the run that `ganbench check` looks for.

Runs lie in `<out>/runs/<recipe>/<run>/result.json`, pages in `<out>/tables/<name>.md`.
"""

from pathlib import Path

from ganbench import recipes
from ganbench.base.errors import UserError, did_you_mean
from ganbench.recipes import Recipe
from ganbench.reporting import pages, regression, results, tables
from ganbench.reporting.regression import Check
from ganbench.reporting.results import Result


def table(
    out: Path, name: str | None = None, dataset: str | None = None, budget: str | None = None, form: str = "md"
) -> tuple[str, Path | None]:
    """Return the table of all recipes, of those on a data set, or of one recipe or group; and the page it rebuilt.

    name: of a recipe or a group; its page is rebuilt from the full and short runs, if there is one. budget: show the
    runs on that budget; None: the full runs, and if a recipe has none, its short ones. form: md, csv or latex.
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
    return tables.render(rows, form, columns), page


def _recipes_on(dataset: str | None) -> dict[str, Recipe]:
    """All installed recipes by name; with a data set, those that train on it."""
    everything = [recipes.read(path) for path in recipes.available().values()]
    data_of = {recipe.name: recipe.train.data.partition(":")[0] for recipe in everything}
    if dataset is not None and dataset not in data_of.values():
        known = sorted(set(data_of.values()))
        raise UserError(f"--dataset {dataset}: no recipe is on it.{did_you_mean(dataset, known)}")
    return {recipe.name: recipe for recipe in everything if dataset in (None, data_of[recipe.name])}


def _results(recipe: Recipe, out: Path) -> list[Result]:
    return [result for _, result in results.load_all(out / "runs" / recipe.name)]


def check(baseline: Path, result: Path | None, runs: Path) -> tuple[Path, list[Check]]:
    """Compare a result with a baseline, metric by metric. Return the result's file and the checks.

    Without a result, take the newest one below `runs` of the baseline's recipe, seed and overrides.
    Raises UserError for a file that cannot be read, and if there is no such run.
    """
    base, tolerances = regression.load_baseline(baseline)
    if result is None:
        result = _newest_run(base, baseline, runs)
    return result, regression.compare(base, tolerances, results.load(result))


def _newest_run(base: Result, file: Path, runs: Path) -> Path:
    """The newest result of the recipe, seed and overrides of a baseline, which `file` holds."""
    wanted = (base.recipe or {}).get("name")
    if wanted is None:
        raise UserError(f"the baseline {file} is of no recipe, so there is no run to look for: name the RESULT file.")
    found = [(result.created, path) for path, result in results.load_all(runs) if _run_of(result) == _run_of(base)]
    if not found:
        changed = f" and the overrides {base.overrides}" if base.overrides else ""
        raise UserError(
            f"no result of recipe '{wanted}' with seed {base.seed}{changed} in {runs}: name the RESULT file."
        )
    return max(found)[1]


def _run_of(result: Result) -> tuple[object, ...]:
    """The recipe, seed and overrides that a result is of."""
    return (result.recipe or {}).get("name"), result.seed, result.overrides
