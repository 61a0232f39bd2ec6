"""Pages: a Markdown file a recipe and a group, in `<out>/tables/`, and their index `<out>/README.md`.

All of it is derived from results, recipes and the notes in `<out>/notes/`, and can be made anew at any time.
"""

import posixpath
import re
import textwrap
from collections import Counter, defaultdict
from pathlib import Path

from ganbench import recipes as installed
from ganbench.base.errors import UserError
from ganbench.base.files import read_text, write_text
from ganbench.recipes import Group, Recipe, Reported
from ganbench.reporting import results as stored
from ganbench.reporting.results import Result
from ganbench.reporting.tables import (
    GROUP_COLUMNS,
    SHORT,
    counted,
    dataset_name,
    group_rows,
    judged,
    number,
    overrides_shown,
    printed,
    render,
    rows,
)

INDEX = "README.md"
MARK = "<!-- Written by `ganbench table --index`. -->"  # whatever else is called README.md is not overwritten
SHORT_RUNS = "## Short runs: not comparable with the paper"
KINDS = (
    "reproduced", "better", "inconclusive", "not reproduced", "short", "not comparable", "unavailable", "not run",
)
ORDERS = """\
The last rows are orders that the paper claims. Ours is the value of the recipe that should be better beside the
other's, and the difference is ± half of its 95 % interval:"""
INDEX_COLUMNS = ("recipe", "paper", "data", "verdict", "length", "seeds", "date", "note")
FOLDERS = """\
- `runs/<recipe>/<run>/`: the results, `result.json` (never edited), with losses and a sample grid; no checkpoints.
- `tables/`: pages made from the results, ours beside the paper's; `notes/`: what was seen of each recipe's runs.
- `analyses/`: evaluations of these runs and of real images that no recipe asks for.
"""
Stored = list[tuple[Recipe, list[Result]]]


# --- The page of a recipe ---


def write(recipe: Recipe, results: list[Result], folder: Path, group: Group | None = None) -> Path:
    """Write `<folder>/<recipe>.md` from the results that count, and return its path.

    Runs on the budget `short` stand beneath the full ones, in a table of their own, or in their place. The recipe's
    note, `notes/<recipe>.md` beside the folder, stands beneath the tables.

    group: one that is at hand, whose values are rivals too.
    """
    first = overrides_shown(recipe, results)
    runs = counted(recipe, results, first)
    parts = [f"# {recipe.name}\n", render(rows(recipe, runs, first, group))]
    short = counted(recipe, results, SHORT)
    if short and first != SHORT:
        parts += [f"{SHORT_RUNS}\n", render(rows(recipe, short, SHORT)), "\n".join(map(_origin, short)) + "\n"]
    if note := note_of(recipe.name, folder):
        parts += ["## Notes\n", note, "## Recipe and runs\n"]
    parts += [provenance(recipe, runs, group)]
    if short:
        changes = ", ".join(f"{k} = {v}" for k, v in recipe.budget["short"].changes().items())
        parts += [f"`--budget short`: {changes}.\n"]
    path = folder / f"{recipe.name}.md"
    write_text(path, "\n".join(parts))
    return path


def provenance(recipe: Recipe, results: list[Result], group: Group | None = None) -> str:
    """Return what stands behind a recipe's table as Markdown: runs, deviations, sources, verdicts and warnings."""
    lines = [f"{recipe.title}. Paper: {recipe.paper}. Recipe `{recipe.name}` version {recipe.version}.", ""]
    lines += [f"Evaluated: {recipe.evaluate.num:,} samples, reference `{recipe.evaluate.reference}`, "
              f"real data row: `{recipe.evaluate.real}` against the reference."]
    if recipe.train.label_noise:
        lines += [f"Noise on the labels of the training images: {recipe.train.label_noise}. The images of the "
                  "evaluation have their true labels."]
    lines += map(_origin, results)
    if recipe.deviations:
        lines += ["", "Deviations from the paper:", *(f"{i}. {d}" for i, d in enumerate(recipe.deviations, 1))]
    if recipe.reported:
        lines += ["", "Reported values:", *map(_source, recipe.reported)]
    if verdicts := _verdicts(recipe, results, group):
        lines += ["", "Verdicts, by the 95 % interval of ours minus the paper's:", *verdicts]
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


def _origin(result: Result) -> str:
    """Return how long a run took, where, and with which code."""
    env, training = result.environment, result.training or {}
    changed = " (with local changes)" if env.get("dirty") else ""
    return (
        f"Seed {result.seed}: {training.get('steps', 0):,} steps in {training.get('seconds', 0) / 60:.0f} min on "
        f"{env.get('device')}, commit `{env.get('commit', '')[:10]}`{changed}, {result.created}."
    )


def _source(r: Reported) -> str:
    """Return where the paper reports a value, by which protocol, and what is to be known of it."""
    protocol = f" ({r.protocol})" if r.protocol else ""
    return f"- {r.metric} {printed(r)}{protocol}: {r.source}. {r.note}".rstrip()


def _verdicts(recipe: Recipe, results: list[Result], group: Group | None) -> list[str]:
    """Return a line for each verdict: the interval it rests on, and how narrow that has to be."""
    lines = []
    for r, difference, v in judged(recipe, results, group):
        name = f"- {r.metric} {printed(r)}: {v}"
        if v.half_width is None:
            lines.append(f"{name}; the measurement has no uncertainty. More seeds would give one.")
            continue
        to_rival = v.rival and f"the distance to {v.rival.value:g} of {v.rival.source}"
        line = f"{name}; {difference:+.3g} ± {v.half_width:.3g}. *Reproduced* allows ± {v.needed:.3g}, "
        line += f"{to_rival or 'a quarter of the value'}."
        if v.paper_half_width > (v.needed or 0):
            line += f" The paper's own ± gives {v.paper_half_width:.3g} alone: more seeds cannot mend that."
        lines.append(line)
    return lines


def _of_each_seed(results: list[Result]) -> list[str]:
    """Return the values behind a mean over seeds, a line a metric: few runs that differ much agree with a lot."""
    lines = []
    for metric in dict.fromkeys(m.metric for r in results for m in r.measurements):
        values = []
        for result in results:
            m = result.measurement(metric)
            value = number(m.value, m.error) if m and m.value is not None else "unavailable"
            values.append(f"seed {result.seed} {value}")
        lines.append(f"- {metric}: {', '.join(values)}")
    return lines


# --- Notes ---


def note_of(name: str, folder: Path) -> str:
    """Return a recipe's note as it stands in a page in `folder`, or ''.

    Its headings are one level deeper, and its relative links lead to the same places from there.
    """
    path = _note_path(name, folder)
    if not path.is_file():
        return ""
    lines, code = [], False
    for line in read_text(path, "note").splitlines():
        code ^= line.startswith("```")
        if not code:
            line = re.sub(r"(\]\(|^\[[^\]]+\]: )([^\s)]+)", lambda m: m[1] + _from_a_page(m[2]), line)
            line = f"#{line}" if line.startswith("#") else line
        lines.append(line)
    return "\n".join(lines) + "\n"


def _note_path(name: str, folder: Path) -> Path:
    return folder.parent / "notes" / f"{name}.md"


def _from_a_page(target: str) -> str:
    """Return a link of a note as it reads from a page: both folders lie side by side."""
    if re.match(r"[a-z]+:|#|/", target):
        return target
    path, mark, anchor = target.partition("#")
    return posixpath.normpath(posixpath.join("..", "notes", path)) + mark + anchor


def _link_to_note(name: str, folder: Path) -> str:
    return f" ([note](../notes/{name}.md))" if _note_path(name, folder).is_file() else ""


# --- The page of a group ---


def write_group(group: Group, recipes: Stored, folder: Path) -> Path:
    """Write `<folder>/<group>.md`, the joined table of a group's recipes with their results, and return its path."""
    parts = [f"# {group.name}\n\n{group.title}. Paper: {group.paper}.\n"]
    parts += [render(group_rows(group, recipes), columns=GROUP_COLUMNS)]
    beneath = [(r, of) for r, of in recipes if counted(r, of, SHORT) and overrides_shown(r, of) != SHORT]
    if beneath:
        parts += [f"{SHORT_RUNS}\n", render(group_rows(group, beneath, SHORT), columns=GROUP_COLUMNS)]
    parts += ["Seeds, deviations, sources and errors of each row:\n"]
    lines = []
    for recipe, of in recipes:  # a recipe that was not run has no page
        name = f"[{recipe.name}]({recipe.name}.md)" if of else recipe.name
        lines += [f"- {name}: {recipe.title}, version {recipe.version}{_link_to_note(recipe.name, folder)}"]
        lines += [f"  {_source(r)}" for r in _alike(group, recipe)]
    if group.order:
        lines += ["", ORDERS, ""]
        lines += [f"- {o.claim}: {o.better} better than {o.worse}. {o.source}." for o in group.order]
    path = folder / f"{group.name}.md"
    write_text(path, "\n".join(parts) + "\n" + "\n".join(lines) + "\n")
    return path


def _alike(group: Group, recipe: Recipe) -> list[Reported]:
    """Return the values of a recipe that a row does not tell apart: they share a metric, or a value."""
    shown = [r for r in recipe.reported if not group.metrics or r.metric in group.metrics]
    return [r for r in shown if sum(r.metric == o.metric or r.value == o.value for o in shown) > 1]


# --- The index ---


def write_index(out: Path) -> Path:
    """Write `<out>/README.md`, a line for each recipe that was run, and return its path.

    Raises UserError if a file of that name is there that is not an index.
    """
    path = _index_path(out)
    write_text(path, _index(out))
    return path


def _index_path(out: Path) -> Path:
    """Return the path of the index. Raises UserError if a file is there that is none."""
    path = out / INDEX
    if path.exists() and not is_index(path):
        raise UserError(f"{path} is not an index that ganbench wrote, and is not overwritten: move it away.")
    return path


def refresh_index(out: Path) -> None:
    """Write the index of a folder anew if it has one: after a page has changed."""
    if is_index(out / INDEX):
        write_index(out)


def is_index(path: Path) -> bool:
    """Return whether the file is an index that ganbench wrote and may write anew."""
    try:
        return MARK in read_text(path, "page")
    except UserError:
        return False


def write_all(out: Path) -> list[Path]:
    """Write anew the page of each installed recipe and group that has results, and the index; return their paths.

    A page of a recipe or group without results is removed. Raises UserError as `write_index` does, before anything is
    written.
    """
    _index_path(out)
    folder, paths = out / "tables", []
    for recipe, of in _every_recipe(out):
        if of:
            paths.append(write(recipe, of, folder))
        else:
            (folder / f"{recipe.name}.md").unlink(missing_ok=True)
    for name in installed.installed().groups:
        try:
            group, members = installed.lookup(str(installed.available_groups()[name]))
        except UserError:  # one of its recipes cannot be read: its page stays as it is
            continue
        assert group is not None
        of_group = [(recipe, _results(recipe, out)) for recipe in members.values()]
        if any(of for _, of in of_group):
            paths.append(write_group(group, of_group, folder))
        else:
            (folder / f"{group.name}.md").unlink(missing_ok=True)
    return [*paths, write_index(out)]


def _every_recipe(out: Path) -> Stored:
    """Return every installed recipe with its stored results."""
    return [(recipe, _results(recipe, out)) for recipe in installed.installed().recipes.values()]


def _results(recipe: Recipe, out: Path) -> list[Result]:
    return [result for _, result in stored.load_all(out / "runs" / recipe.name)]


def _index(out: Path) -> str:
    """Return the text of the index: what was reproduced, each recipe that was run, the others by paper."""
    every = _every_recipe(out)
    verdicts = {recipe.name: [row["verdict"] for row in rows(recipe, of) if row["paper"]] for recipe, of in every}
    found = Counter(_kind(verdict) for of in verdicts.values() for verdict in of)
    ran = [(recipe, of) for recipe, of in every if counted(recipe, of, overrides_shown(recipe, of))]
    full = sum(not overrides_shown(recipe, of) for recipe, of in ran)
    parts = [
        f"# Results\n\n{MARK}\n",
        f"{len(every)} recipes: {full} were run in full, {len(ran) - full} at short length, {len(every) - len(ran)} "
        f"not yet. They have {sum(found.values())} values of papers:\n",
        render([{kind: str(found[kind]) for kind in KINDS}], columns=KINDS),
        "*One seed*: the choice of the seed is not covered. *Inconclusive*: too wide an interval to tell.\n",
    ]
    if ran:
        lines = [_line(recipe, of, verdicts[recipe.name], out) for recipe, of in ran]
        parts += [render(lines, columns=INDEX_COLUMNS)]
    groups = [name for name in installed.installed().groups if (out / "tables" / f"{name}.md").is_file()]
    if groups:
        parts += [_wrapped("Tables of the papers:", [f"[{name}](tables/{name}.md)" for name in groups])]
    known = {recipe.name for recipe, _ in every}
    if others := sorted(p.name for p in (out / "runs").glob("*/") if p.is_dir() and p.name not in known):
        parts += [_wrapped("Runs of recipes that are not installed:", others)]
    of_paper: dict[str, list[str]] = defaultdict(list)
    for recipe in (recipe for recipe, _ in every if recipe not in [r for r, _ in ran]):
        link = f"[{recipe.name}](notes/{recipe.name}.md)" if _has_note(recipe.name, out) else recipe.name
        of_paper[cited(recipe.paper)].append(link)
    if of_paper:
        parts += ["## Not run\n", "".join(_wrapped(f"- {paper}:", names) for paper, names in of_paper.items())]
    return "\n".join([*parts, "## Folders\n", FOLDERS])


def _line(recipe: Recipe, of: list[Result], verdicts: list[str], out: Path) -> dict[str, str]:
    """Return the index's row of a recipe that was run: of its full runs, or if there are none, of its short ones."""
    shown = overrides_shown(recipe, of)
    runs = counted(recipe, of, shown)
    steps = ", ".join(f"{s:,}" for s in sorted({(r.training or {}).get("steps", 0) for r in runs}))
    compared = [verdict for verdict in verdicts if verdict != "not comparable"] or verdicts or ["no reported value"]
    return {
        "recipe": f"[{recipe.name}](tables/{recipe.name}.md)",
        "paper": cited(recipe.paper),
        "data": dataset_name(recipe.train.data).partition(":")[0],
        "verdict": "short" if shown else ", ".join(dict.fromkeys(compared)),
        "length": f"short: {steps} of {recipe.train.steps:,}" if shown else f"full: {steps}",
        "seeds": str(len(runs)),
        "date": max(r.created for r in runs)[:10],
        "note": f"[note](notes/{recipe.name}.md)" if _has_note(recipe.name, out) else "",
    }


def _wrapped(start: str, words: list[str]) -> str:
    """Return a line of words, in several lines of the source if it is long."""
    return textwrap.fill(
        f"{start} {', '.join(words)}", 120, subsequent_indent="  " * start.startswith("-"), break_long_words=False,
        break_on_hyphens=False,
    ) + "\n"


def _kind(verdict: str) -> str:
    """Return what the index counts a verdict as: without its number of seeds, and a run on a budget by its budget."""
    return verdict.partition(" (")[0].partition(":")[0]


def cited(paper: str) -> str:
    """Return how a text cites a paper of a recipe: `Odena et al. 2017`; a paper without a year as it is."""
    match = re.match(r"(.+?),? ((?:19|20)\d\d)\b", paper)
    if match is None:
        return paper
    first, *others = match[1].split(", ")
    return f"{first}{' et al.' if len(others) > 1 else ''.join(f' and {o}' for o in others)} {match[2]}"


def _has_note(name: str, out: Path) -> bool:
    return _note_path(name, out / "tables").is_file()
