"""Tables: ours beside the paper's, derived from results and recipes; never a source of numbers.

The rule of each verdict, for a value of the paper and the mean of ours over seeds:

- `not run`: no result of this recipe without overrides.
- `not comparable`: the recipe says that protocol, data or length differ from the paper's; its note says how.
- `unavailable`: the measurement could not be made; the result says why.
- `reproduced`: |ours - paper's| <= 2 s, with s^2 = s_ours^2 + s_paper^2. s_ours is the standard deviation over seeds
  where there are several, else the measurement's own uncertainty; s_paper is the paper's own +-, or 0.
- `better`, `not reproduced`: outside of that, on the metric's good or bad side (without a direction: `not reproduced`).
- `short: 28,080 of 187,200 steps, not comparable` (or `smoke: ...`): a run on a budget. It stands beside the paper's
  number to be looked at, and has no difference. Short runs stand in for full ones where there are none, else beneath.

Which results count in a table is the rule of `counted`: of the recipe's present version (and present budget), without
overrides; what `--steps` or `--data` changed is in no table.
"""

import math
import statistics
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ganbench.recipes import Group, Recipe, Reported
from ganbench.reporting.results import Measurement, Result

COLUMNS = (
    "dataset",
    "recipe",
    "metric",
    "ours",
    "real data",
    "paper",
    "difference",
    "verdict",
    "seeds",
    "steps",
    "deviations",
)
GROUP_COLUMNS = tuple(c for c in COLUMNS if c != "dataset")
FORMATS = ("md", "csv", "latex")
SHORT = {"budget": "short"}  # the overrides of runs that stand in for full ones, or beneath them
LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "↓": r"$\downarrow$", "↑": r"$\uparrow$", "<": r"$<$", ">": r"$>$", **{c: "\\" + c for c in "&%$#_{}"},
})


@dataclass(frozen=True)
class Summary:
    """One metric of one recipe over its seeds. error: see the rule above; over: what it is taken over."""

    value: float
    error: float | None
    over: str
    seeds: int


def summarise(measurements: list[Measurement]) -> Summary | None:
    """Mean over seeds and its spread; None where nothing was measured."""
    values = [m.value for m in measurements if m.value is not None]
    if not values:
        return None
    if len(values) > 1:
        return Summary(
            statistics.fmean(values), statistics.stdev(values), f"{len(values)} seeds (standard deviation)", len(values)
        )
    one = next(m for m in measurements if m.value is not None)
    over = f"{one.uncertainty['over']} ({one.uncertainty['kind']})" if one.uncertainty else ""
    return Summary(values[0], one.error, over, 1)


def verdict(ours: Summary | None, reported: Reported, direction: str) -> str:
    """The verdict on one reported value, by the rule at the top of this file."""
    if not reported.comparable:
        return "not comparable"
    if ours is None:
        return "unavailable"
    s = math.hypot(ours.error or 0.0, reported.std or 0.0)
    difference = ours.value - reported.value
    if abs(difference) <= 2 * s:
        return "reproduced"
    good = (difference > 0) == (direction == "higher")
    return "better" if direction != "none" and good else "not reproduced"


def number(value: float | None, error: float | None = None) -> str:
    """A value with as many digits as its error warrants (two significant ones of the error); four without an error."""
    if value is None:
        return ""
    if error is None or not error > 0:
        return f"{value:.4g}"
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{places}f} ± {error:.{places}f}"


def printed(r: Reported) -> str:
    """A paper's number with no more digits than the recipe gives."""
    places = max(len(f"{x!r}".partition(".")[2]) for x in (r.value, r.std or r.value))
    texts = [f"{x:.{places}f}" if "e" not in f"{x!r}" else f"{x:g}" for x in (r.value, r.std) if x is not None]
    return " ± ".join(texts)


def dataset_name(data: str) -> str:
    """What a table calls the data of a recipe: `mnist:train` as it is, a folder by its last name."""
    kind, _, path = data.partition(":")
    return Path(path).name if kind == "folder" else data


def counted(recipe: Recipe, results: list[Result], overrides: dict[str, Any] | None = None) -> list[Result]:
    """The results that count in a table: of the recipe's present version, and with exactly these overrides.

    Those on a budget also are of what that budget says now.
    """
    wanted = overrides or {}
    budget = recipe.budget[wanted["budget"]].changes() if wanted.get("budget") in recipe.budget else None
    same = {"version": recipe.version, "budget": budget}
    return [
        r for r in results if r.overrides == wanted and same.items() <= {"budget": None, **(r.recipe or {})}.items()
    ]


def overrides_shown(recipe: Recipe, results: list[Result]) -> dict[str, Any]:
    """Those of the runs to show where nothing else is asked for: the full ones, or where there are none the short."""
    return SHORT if counted(recipe, results, SHORT) and not counted(recipe, results) else {}


def rows(recipe: Recipe, results: list[Result], overrides: dict[str, Any] | None = None) -> list[dict[str, str]]:
    """The table's rows of one recipe: a row a metric, and a row for each reported value that no metric measures.

    A recipe that was not run shows the metrics that it would measure. Which results count, `counted` says. With
    overrides it is another experiment, and nothing in it is comparable with the paper; None: `overrides_shown`.
    `recipe`: as it is in its file.
    """
    overrides = overrides_shown(recipe, results) if overrides is None else overrides
    results = counted(recipe, results, overrides)
    budget = overrides.get("budget")
    trained_on = {(r.training or {}).get("data", recipe.train.data) for r in results}
    data = trained_on.pop() if len(trained_on) == 1 else recipe.train.data  # where each seed has its own classes
    ours: dict[str, list[Measurement]] = defaultdict(list)
    real: dict[str, Measurement] = {}
    for result in results:
        for m in result.measurements:
            ours[m.metric].append(m)
        for m in result.real:
            real.setdefault(m.metric, m)
    steps = sorted({(r.training or {}).get("steps", 0) for r in results})
    shared = {"dataset": dataset_name(data), "recipe": recipe.name, "seeds": str(len(results)),
              "steps": ", ".join(f"{s:,}" for s in steps), "deviations": str(len(recipe.deviations))}
    table = []
    reported: dict[str, list[Reported]] = defaultdict(list)  # in the recipe's order
    for r in recipe.reported:
        reported[r.metric].append(replace(r, comparable=False) if overrides else r)
    measured = list(ours) if results else recipe.evaluate.metrics
    for metric in [*measured, *(m for m in reported if m not in measured)]:
        summary = summarise(ours.get(metric, []))
        row = {**shared, "metric": metric + _arrow(ours[metric][0].direction if metric in ours else "")}
        row["ours"] = number(summary.value, summary.error) if summary else ("not run" if not results else "unavailable")
        row["real data"] = number(real[metric].value, real[metric].error) if metric in real else ""
        for r in reported.get(metric) or [None]:  # type: ignore[list-item]
            cells = _paper_cells(summary, r, ours, metric, bool(results))
            if budget and results:
                length = f"{row['steps']} of {recipe.train.steps:,} steps"
                cells["verdict"] = f"{budget}: {length}, not comparable"
            table.append({**row, **cells})
    return table


def without_blanks(table: list[dict[str, str]]) -> list[dict[str, str]]:
    """The `rows` of one recipe; of one that was not run those with a paper's number, or the first if there is none."""
    ran = any(row["ours"] != "not run" for row in table)
    return table if ran else [row for row in table if row["paper"]] or table[:1]


def group_rows(
    group: Group, recipes: list[tuple[Recipe, list[Result]]], overrides: dict[str, Any] | None = None
) -> list[dict[str, str]]:
    """The joined table of a group: each recipe's `rows` of the metrics that the group shows."""
    shown = set(group.metrics) or {r.metric for recipe, _ in recipes for r in recipe.reported}
    table = [row for recipe, results in recipes for row in rows(recipe, results, overrides)]
    return [row for row in table if not shown or row["metric"].split(" ")[0] in shown]


def rival_values(group: Group, recipe: Recipe) -> list[Reported]:
    """The reported values of a group's recipe that share a metric, so that a row does not say which of them it is."""
    shown = [r for r in recipe.reported if not group.metrics or r.metric in group.metrics]
    return [r for r in shown if sum(other.metric == r.metric for other in shown) > 1]


def _paper_cells(
    summary: Summary | None, r: Reported | None, ours: dict[str, list[Measurement]], metric: str, ran: bool
) -> dict[str, str]:
    if r is None:
        return {"paper": "", "difference": "", "verdict": ""}
    cells = {"paper": printed(r) + (" (unconfirmed)" if r.unconfirmed else "")}
    cells["difference"] = f"{summary.value - r.value:+.3g}" if summary and r.comparable else ""
    direction = ours[metric][0].direction if metric in ours else "none"
    cells["verdict"] = verdict(summary, r, direction) if ran else "not run"
    return cells


def _arrow(direction: str) -> str:
    return {"lower": " ↓", "higher": " ↑"}.get(direction, "")


def notes(recipe: Recipe, results: list[Result]) -> str:
    """What belongs under a recipe's table: provenance, deviations, sources and warnings, as Markdown."""
    lines = [f"{recipe.title}. Paper: {recipe.paper}. Recipe `{recipe.name}` version {recipe.version}.", ""]
    lines += [f"Evaluated: {recipe.evaluate.num:,} samples, reference `{recipe.evaluate.reference}`, "
              f"real data row: `{recipe.evaluate.real}` against the reference."]
    lines += map(_origin, results)
    if recipe.deviations:
        lines += ["", "Deviations from the paper:", *(f"{i}. {d}" for i, d in enumerate(recipe.deviations, 1))]
    if recipe.reported:
        lines += ["", "Reported values:", *map(_source, recipe.reported)]
    uncertain = {m.metric: m.uncertainty for result in results[:1] for m in result.measurements if m.uncertainty}
    if uncertain and len(results) == 1:
        lines += ["", "± of ours:", *(f"- {k}: one {u['kind']} over {u['over']}" for k, u in uncertain.items() if u)]
    elif len(results) > 1:
        lines += ["", f"± of ours: standard deviation over {len(results)} seeds. Each with its own ±:"]
        lines += _of_each_seed(results)
    problems = {
        f"- {m.metric}: {text}"
        for result in results
        for m in result.measurements
        for text in (*m.warnings, m.reason)
        if text
    }
    for result in results:
        problems |= {f"- seed {result.seed}, training, {text}" for text in (result.training or {}).get("warnings", [])}
    if problems:
        lines += ["", "Warnings:", *sorted(problems)]
    return "\n".join(lines) + "\n"


def _source(r: Reported) -> str:
    """Where the paper reports a value, and what is to be known of it."""
    return f"- {r.metric} {printed(r)}: {r.source}. {r.note}".rstrip()


def _origin(result: Result) -> str:
    """How long a run took, where, and by which code."""
    env, training = result.environment, result.training or {}
    changed = " (with local changes)" if env.get("dirty") else ""
    return (
        f"Seed {result.seed}: {training.get('steps', 0):,} steps in {training.get('seconds', 0) / 60:.0f} min on "
        f"{env.get('device')}, commit `{env.get('commit', '')[:10]}`{changed}, {result.created}."
    )


def _of_each_seed(results: list[Result]) -> list[str]:
    """The values behind a mean over seeds, a line a metric: few runs that differ much agree with almost anything."""
    lines = []
    for metric in dict.fromkeys(m.metric for r in results for m in r.measurements):
        values = []
        for result in results:
            m = result.measurement(metric)
            value = number(m.value, m.error) if m and m.value is not None else "unavailable"
            values.append(f"seed {result.seed} {value}")
        lines.append(f"- {metric}: {', '.join(values)}")
    return lines


SHORT_RUNS = "## Short runs: not comparable with the paper"


def render(table: list[dict[str, str]], form: str = "md", columns: tuple[str, ...] = COLUMNS) -> str:
    """The table as Markdown, CSV or LaTeX, with a closing newline. Empty columns are left out of Markdown and LaTeX."""
    if form == "csv":
        import csv
        import io

        out = io.StringIO()
        writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
        return out.getvalue()
    columns = tuple(c for c in columns if any(row.get(c) for row in table))
    cells = [[row.get(c, "") for c in columns] for row in table]
    if form == "latex":
        body = "\n".join(" & ".join(c.translate(LATEX) for c in row) + r" \\" for row in cells)
        head = " & ".join(c.translate(LATEX) for c in columns) + r" \\"
        start = f"\\begin{{tabular}}{{{'l' * len(columns)}}}"
        return "\n".join([start, r"\toprule", head, r"\midrule", body, r"\bottomrule", r"\end{tabular}"]) + "\n"
    cells = [[text.replace("|", r"\|").replace("\n", " ") for text in row] for row in cells]
    widths = [max(len(c), *(len(row[i]) for row in cells)) if cells else len(c) for i, c in enumerate(columns)]

    def line(row: Any) -> str:
        return "| " + " | ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) + " |"

    return "\n".join([line(columns), "|" + "|".join("-" * (w + 2) for w in widths) + "|", *map(line, cells)]) + "\n"


def measurement_rows(result: Result) -> list[dict[str, str]]:
    """Rows for one evaluation: metric, value, the value of real data, counts and what is to be said."""
    real = {m.metric: m for m in result.real}
    return [
        {
            "metric": m.metric + _arrow(m.direction),
            "value": number(m.value, m.error) if m.value is not None else "unavailable",
            "± over": m.uncertainty["over"] if m.uncertainty else "",
            "real data": number(real[m.metric].value, real[m.metric].error) if m.metric in real else "",
            "n": f"{m.n_fake:,}" if m.n_fake else "",
            "n real": f"{m.n_real:,}" if m.n_real else "",
            "notes": "; ".join(text for text in (*m.warnings, m.reason) if text),
        }
        for m in result.measurements
    ]


RESULT_COLUMNS = ("metric", "value", "± over", "real data", "n", "n real", "notes")


def write(recipe: Recipe, results: list[Result], folder: Path) -> Path:
    """Write `<folder>/<recipe>.md` from those of the results that count, and return its path.

    Runs on the budget `short` stand beneath the full ones, in a table of their own, or in their place.
    """
    from ganbench.base.files import write_text

    first = overrides_shown(recipe, results)
    runs = counted(recipe, results, first)
    parts = [f"# {recipe.name}\n", render(rows(recipe, runs, first)), notes(recipe, runs)]
    if short := counted(recipe, results, SHORT):
        changes = ", ".join(f"{k} = {v}" for k, v in recipe.budget["short"].changes().items())
        if first != SHORT:
            parts += [f"{SHORT_RUNS}\n", render(rows(recipe, short, SHORT)), "\n".join(map(_origin, short)) + "\n"]
        parts += [f"`--budget short`: {changes}.\n"]
    path = folder / f"{recipe.name}.md"
    write_text(path, "\n".join(parts))
    return path


def write_group(group: Group, recipes: list[tuple[Recipe, list[Result]]], folder: Path) -> Path:
    """Write `<folder>/<group>.md`, the joined table of a group's recipes with their results, and return its path."""
    from ganbench.base.files import write_text

    parts = [f"# {group.name}\n\n{group.title}. Paper: {group.paper}.\n"]
    parts += [render(group_rows(group, recipes), columns=GROUP_COLUMNS)]
    beneath = [(r, of) for r, of in recipes if counted(r, of, SHORT) and overrides_shown(r, of) != SHORT]
    if beneath:
        parts += [f"{SHORT_RUNS}\n", render(group_rows(group, beneath, SHORT), columns=GROUP_COLUMNS)]
    parts += ["Seeds, deviations, sources and errors of each row:\n"]
    pages = []
    for recipe, of in recipes:  # one that was not run has no page
        name = f"[{recipe.name}]({recipe.name}.md)" if of else recipe.name
        pages += [f"- {name}: {recipe.title}, version {recipe.version}"]
        pages += [f"  {_source(r)}" for r in rival_values(group, recipe)]
    path = folder / f"{group.name}.md"
    write_text(path, "\n".join(parts) + "\n" + "\n".join(pages) + "\n")
    return path
