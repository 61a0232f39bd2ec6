"""Tables: ours beside the paper's, derived from results and recipes; never a source of numbers.

The verdict on a value of the paper:

- `not run`: the recipe has no result without overrides, or the paper's row has no recipe: the group says why.
- `not comparable`: the recipe says that protocol, data or length differ from the paper's; its note says how.
- `unavailable`: the measurement could not be made; the result says why.
- `better`, `not reproduced`: the 95 % interval of the difference does not contain 0. The difference is on the metric's
  good side, or on the bad one; a metric without a direction has no good side.
- `reproduced`: the interval contains 0, and is narrow enough that the next rival row of the table lies outside; without
  a rival, narrow enough to see a change of a quarter of the paper's value.
- `inconclusive`: the interval contains 0 and is wider than that.
- `... (one seed)`: the interval is the measurement's own and does not cover the choice of the seed.
- `short: 28,080 of 187,200 steps, not comparable` (or `smoke: ...`): a run on a budget. It stands beside the paper's
  number to be looked at, and has no difference. Short runs stand in for full ones if there are none, else beneath.

An order of two recipes that the paper claims has a row and verdicts of its own: `orders.py`.

The interval is Student's t of the mean over seeds, widened by the paper's own ±: `verdicts.py` says how, and why.
The ± in a cell is another one: the standard deviation over seeds, or of one seed the measurement's own uncertainty.

A result counts (`counted`) if it is of the recipe's present version and present budget, without other overrides: what
`--steps` or `--data` changed is in no table.
"""

import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from ganbench.base.errors import printable
from ganbench.recipes import Absent, Group, Order, Printed, Recipe, Reported, Rival, name_of, rivals
from ganbench.reporting import orders
from ganbench.reporting.comparable import without_copies
from ganbench.reporting.results import Measurement, Result
from ganbench.reporting.verdicts import Summary, Verdict, judge, summarise

COLUMNS = (
    "dataset", "recipe", "metric", "ours", "real data", "paper", "protocol", "difference", "verdict", "seeds", "steps",
    "deviations",
)
GROUP_COLUMNS = tuple(c for c in COLUMNS if c != "dataset")
RESULT_COLUMNS = ("metric", "value", "± over", "real data", "n", "n real", "notes")
FORMATS = ("md", "csv", "latex")
DIGITS = 7  # of a value at most: features are float32, which has no more
PLACES = 8  # decimals at most
SHORT = {"budget": "short"}  # overrides of the runs that stand in for full ones, or beneath them
LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "↓": r"$\downarrow$", "↑": r"$\uparrow$", "<": r"$<$", ">": r"$>$", **{c: "\\" + c for c in "&%$#_{}"},
})


# --- Cells ---


def number(value: float | None, error: float | None = None) -> str:
    """Return a value with two significant digits of its error; without an error, with four of its own.

    The value has at most DIGITS digits. If its error is below them, or takes more than PLACES decimals, each of the two
    is rounded by itself, in scientific notation where that is shorter.

    >>> number(12.3456, 0.234), number(10.0, 1.7e-20), number(1.234e-12, 1e-13)
    ('12.35 ± 0.23', '10 ± 1.7e-20', '1.23e-12 ± 1e-13')
    """
    if value is None:
        return ""
    if error is None or not error > 0:
        return f"{value:.4g}"
    places = 1 - math.floor(math.log10(error))
    digits = places + 1 + math.floor(math.log10(abs(value) or error))
    if digits <= DIGITS and places <= PLACES and max(abs(value), error) < 10**DIGITS:
        return f"{value:.{max(0, places)}f} ± {error:.{max(0, places)}f}"
    return f"{value:.{min(max(digits, 1), DIGITS)}g} ± {error:.2g}"


def printed(r: Reported) -> str:
    """Return a paper's number with the digits that the recipe gives: 2.30 as 2.30."""
    numbers = [repr(x) for x in (r.value, r.std) if x is not None]
    written = [x.decimals for x in (r.value, r.std) if isinstance(x, Printed)]
    places = max((*written, *(len(text.partition(".")[2]) for text in numbers if "e" not in text)), default=0)
    return " ± ".join(f"{float(text):.{places}f}" if "e" not in text else f"{float(text):g}" for text in numbers)


def dataset_name(data: str) -> str:
    """Return the name of a recipe's data in a table: `mnist:train` as it is, a folder by its last name."""
    kind, _, path = data.partition(":")
    return Path(path).name if kind == "folder" else data


def arrow(direction: str) -> str:
    """Return the end of a metric's name that shows which direction is better."""
    return {"lower": " ↓", "higher": " ↑"}.get(direction, "")


# --- Rows ---


def counted(recipe: Recipe, results: list[Result], overrides: dict[str, Any] | None = None) -> list[Result]:
    """Return the results that count in a table: of the recipe's present version, with exactly these overrides.

    A result on a budget counts if the recipe still has that budget as it was. The hash of the recipe's file is not
    compared: a change that could move a number raises the version. A copy of a run counts once.
    """
    wanted = overrides or {}
    budget = recipe.budget[wanted["budget"]].changes() if wanted.get("budget") in recipe.budget else None
    same = {"version": recipe.version, "budget": budget}
    found = [
        r for r in results if r.overrides == wanted and same.items() <= {"budget": None, **(r.recipe or {})}.items()
    ]
    return [r for _, r in without_copies([("", r) for r in found])[0]]


def overrides_shown(recipe: Recipe, results: list[Result]) -> dict[str, Any]:
    """Return the overrides of the runs to show by default: full runs, or if there are none, short ones."""
    return SHORT if counted(recipe, results, SHORT) and not counted(recipe, results) else {}


def rows(
    recipe: Recipe, results: list[Result], overrides: dict[str, Any] | None = None, group: Group | None = None
) -> list[dict[str, str]]:
    """Return the table's rows of one recipe: a row a metric, and a row for each reported value of no metric measured.

    A recipe that was not run shows the metrics that it would measure. Results that do not count are passed over
    (`counted`). A run with overrides is another experiment, and nothing in it is comparable with the paper.

    recipe: as it is in its file. overrides: None: those of `overrides_shown`. group: one that is at hand, whose values
    are rivals too.
    """
    overrides = overrides_shown(recipe, results) if overrides is None else overrides
    results = counted(recipe, results, overrides)
    budget = overrides.get("budget")
    trained_on = {(r.training or {}).get("data", recipe.train.data) for r in results}
    data = trained_on.pop() if len(trained_on) == 1 else recipe.train.data  # each seed may have its own classes
    ours = _by_metric(results)
    real: dict[str, Measurement] = {}
    for m in (m for result in results for m in result.real):
        real.setdefault(m.metric, m)
    steps = sorted({(r.training or {}).get("steps", 0) for r in results})
    shared = {"dataset": dataset_name(data), "recipe": recipe.name, "seeds": str(len(results)),
              "steps": ", ".join(f"{s:,}" for s in steps), "deviations": str(len(recipe.deviations))}
    reported: dict[str, list[Reported]] = defaultdict(list)  # in the recipe's order
    for r in recipe.reported:
        reported[r.metric].append(replace(r, comparable=False) if overrides else r)
    others = _rivals(recipe, results, overrides, group)
    measured = list(ours) if results else recipe.evaluate.metrics
    table = []
    for metric in [*measured, *(m for m in reported if m not in measured)]:
        summary = summarise(ours.get(metric, []))
        row = {**shared, "metric": metric + arrow(ours[metric][0].direction if metric in ours else "")}
        row["ours"] = number(summary.value, summary.error) if summary else ("not run" if not results else "unavailable")
        row["real data"] = number(real[metric].value, real[metric].error) if metric in real else ""
        for value in reported.get(metric, [None]):
            cells = _paper_cells(summary, value, _direction(ours, metric), bool(results), others)
            if budget and results:
                length = f"{row['steps']} of {recipe.train.steps:,} steps"
                cells["verdict"] = f"{budget}: {length}, not comparable"
            table.append({**row, **cells})
    return table


def _by_metric(results: list[Result]) -> dict[str, list[Measurement]]:
    found: dict[str, list[Measurement]] = defaultdict(list)
    for m in (m for result in results for m in result.measurements):
        found[m.metric].append(m)
    return found


def _direction(ours: dict[str, list[Measurement]], metric: str) -> str:
    return ours[metric][0].direction if metric in ours else "none"


def _rivals(
    recipe: Recipe, results: list[Result], overrides: dict[str, Any], group: Group | None
) -> list[Rival]:
    """Return the rivals of the recipe's values, if a verdict needs them: they are read from the files of groups."""
    needed = bool(results) and not overrides and any(r.comparable for r in recipe.reported)
    return rivals(recipe, group) if needed else []


def _paper_cells(
    summary: Summary | None, r: Reported | None, direction: str, ran: bool, others: list[Rival]
) -> dict[str, str]:
    """Return the cells that set one reported value beside ours."""
    if r is None:
        return {"paper": "", "protocol": "", "difference": "", "verdict": ""}
    return {
        "paper": printed(r) + (" (unconfirmed)" if r.unconfirmed else ""),
        "protocol": r.protocol,
        "difference": f"{summary.value - r.value:+.3g}" if summary and r.comparable else "",
        "verdict": str(judge(summary, r, direction, others)) if ran else "not run",
    }


def judged(recipe: Recipe, results: list[Result], group: Group | None = None) -> list[tuple[Reported, float, Verdict]]:
    """Return each reported value that full runs are compared with, the difference of ours from it, and the verdict."""
    results = counted(recipe, results)
    ours, others, found = _by_metric(results), _rivals(recipe, results, {}, group), []
    for r in recipe.reported:
        summary = summarise(ours.get(r.metric, []))
        if r.comparable and summary is not None:
            found.append((r, summary.value - r.value, judge(summary, r, _direction(ours, r.metric), others)))
    return found


def without_blanks(table: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the `rows` of one recipe; if it was not run, those with a paper's number, or the first if none has one."""
    ran = any(row["ours"] != "not run" for row in table)
    return table if ran else [row for row in table if row["paper"]] or table[:1]


def group_rows(
    group: Group, recipes: list[tuple[Recipe, list[Result]]], overrides: dict[str, Any] | None = None
) -> list[dict[str, str]]:
    """Return the joined table of a group: each recipe's `rows` of the metrics that it shows, absent rows, orders."""
    shown = set(group.metrics) or {r.metric for recipe, _ in recipes for r in recipe.reported}
    table = [row for recipe, results in recipes for row in rows(recipe, results, overrides, group)]
    table = [row for row in table if not shown or row["metric"].split(" ")[0] in shown]
    absent = [] if overrides else [_absent_row(row) for row in group.absent]
    stored = {recipe.name: (recipe, results) for recipe, results in recipes}
    here = [order for order in group.order if {name_of(order.better), name_of(order.worse)} <= stored.keys()]
    return table + absent + [_order_row(order, stored, overrides) for order in here]


def _order_row(
    order: Order, stored: dict[str, tuple[Recipe, list[Result]]], overrides: dict[str, Any] | None
) -> dict[str, str]:
    """Return the cells of a claim that one recipe comes out better than another.

    Both are taken at one length: that of `overrides`, else full runs if both have some, else short ones.
    """
    both = [stored[name_of(name)] for name in (order.better, order.worse)]
    lengths = [{}, SHORT] if overrides is None else [overrides]
    found = [(length, [counted(*side, length) for side in both]) for length in lengths]
    length, (better, worse) = next((pair for pair in found if all(pair[1])), found[0])
    judged = orders.judge(order, better, worse)
    budget = f"{length['budget']}: " if length and better and worse else ""
    direction = next((m.direction for r in better if (m := r.measurement(order.metric))), "none")
    cells = {"recipe": order.claim, "metric": order.metric + arrow(direction), "verdict": budget + judged.verdict}
    if judged.better and judged.worse and judged.difference is not None:
        cells["ours"] = f"{judged.better.mean:.4g} beside {judged.worse.mean:.4g}"
        cells["difference"] = number(judged.difference, judged.half_width)
        cells["seeds"] = ", ".join(map(str, sorted({judged.better.runs, judged.worse.runs})))
        steps = [(r.training or {}).get("steps", 0) for r in (*better, *worse)]
        cells["steps"] = ", ".join(f"{n:,}" for n in dict.fromkeys(steps))
    else:
        cells["ours"] = "not run" if not (better and worse) else "unavailable"
    return {**dict.fromkeys(COLUMNS, ""), **cells}


def _absent_row(row: Absent) -> dict[str, str]:
    """Return the cells of a row of the paper that no recipe makes."""
    paper = "" if row.value is None else printed(Reported(row.metric, row.value, row.row, row.std))
    cells = {"recipe": row.row, "metric": row.metric, "ours": "not run", "paper": paper}
    return {**dict.fromkeys(COLUMNS, ""), **cells, "verdict": f"not run: {row.reason}"}


def measurement_rows(result: Result) -> list[dict[str, str]]:
    """Return the rows of one evaluation: metric, value, value of real data, counts and remarks."""
    real = {m.metric: m for m in result.real}
    return [
        {
            "metric": m.metric + arrow(m.direction),
            "value": number(m.value, m.error) if m.value is not None else "unavailable",
            "± over": m.uncertainty["over"] if m.uncertainty else "",
            "real data": number(real[m.metric].value, real[m.metric].error) if m.metric in real else "",
            "n": f"{m.n_fake:,}" if m.n_fake else "",
            "n real": f"{m.n_real:,}" if m.n_real else "",
            "notes": "; ".join(text for text in (*m.warnings, m.reason) if text),
        }
        for m in result.measurements
    ]


# --- Formats ---


def render(table: list[dict[str, str]], form: str = "md", columns: tuple[str, ...] = COLUMNS) -> str:
    """Return the table as Markdown, CSV or LaTeX, with a closing newline. Only CSV keeps empty columns.

    Control characters, which reasons and warnings of somebody else's result may hold, become escapes.
    """
    table = [{column: printable(text) for column, text in row.items()} for row in table]
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
