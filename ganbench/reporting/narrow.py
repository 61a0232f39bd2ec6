"""A table that fits the width of a terminal. Nothing of it is left out.

`fitted` prints the Markdown of `tables.render` if that is narrow enough. If not, each of these steps is taken until the
table fits:

1. A value that all rows of a recipe share stands above them; a value that all rows share stands below the table.
2. Long cells become footnotes.
3. Cells are wrapped, with a rule between the rows. No word is broken but a long name.
4. The columns are divided into several tables with the same first column.
5. A row becomes a paragraph, with a line a cell.
"""

import re
import unicodedata
from collections.abc import Sequence
from itertools import groupby

from ganbench.base.errors import printable
from ganbench.reporting.tables import COLUMNS, render

Row = dict[str, str]

OF_RECIPE = ("dataset", "recipe", "seeds", "steps", "deviations")  # what may stand above the rows of a recipe
LONG = 40  # columns; a longer cell becomes a footnote
LONGEST_WORD = 24  # columns; a longer word may be broken
LEAST_NAME = 16  # columns of a name, which may be broken after a mark
LEAST = 30  # columns of a terminal, at least
BREAKS = "-_/:,.@+"  # a name may be broken after these


def markdown(table: list[Row], columns: tuple[str, ...] = COLUMNS, width: int | None = None) -> str:
    """Return the table as Markdown, or for a terminal of that width as `fitted`."""
    return render(table, "md", columns) if width is None else fitted(table, columns, width)


def fitted(table: list[Row], columns: tuple[str, ...] = COLUMNS, width: int = 80) -> str:
    """Return the table in at most `width` columns (or LEAST, if that is more), with a closing newline."""
    width = max(width, LEAST)
    plain = render(table, "md", columns)
    if not table or max(map(display_width, plain.splitlines())) <= width:
        return plain
    rows = [{c: " ".join(printable(row.get(c, "")).split()) for c in columns} for row in table]
    columns = tuple(c for c in columns if any(row[c] for row in rows))
    blocks, above = _blocks(rows, columns)
    below = () if above or len(rows) == 1 else tuple(c for c in columns[1:] if len({row[c] for row in rows}) == 1)
    shown = [c for c in columns if c not in (*above, *below)]
    notes: dict[str, int] = {}
    parts = []
    for block in blocks:
        head = wrap(_named(block[0], above), width) if above else []
        filled = [c for c in shown if any(row[c] for row in block)]
        parts.append("\n".join([*head, *_lines(block, filled, width, notes)]))
    if below:
        parts.append("\n".join(wrap(f"in every row: {_named(rows[0], below)}", width)))
    if notes:
        parts.append("\n".join(line for text, n in notes.items() for line in wrap(f"[{n}] {text}", width, "    ")))
    return "\n\n".join(parts) + "\n"


def display_width(text: str) -> int:
    """Return the columns that a text takes on a terminal.

    >>> display_width("± 0.1"), display_width("数字")
    (5, 4)
    """
    return len(text) if text.isascii() else sum(
        0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def wrap(text: str, width: int, indent: str = "") -> list[str]:
    """Return the lines of a text; a word that is too long is broken. indent: stands before all lines but the first.

    >>> wrap("the metric fd_mnist-cnn", 9)
    ['the', 'metric', 'fd_mnist-', 'cnn']
    """
    lines, line = [], ""
    for word in text.split():
        joined = f"{line} {word}" if line.strip() else line + word
        if display_width(joined) <= width:
            line = joined
            continue
        if line.strip():
            if display_width(indent + word) > width and display_width(line) + 5 <= width:  # it is broken anyway
                line += " "
            else:
                lines.append(line)
                line = indent
        while display_width(line + word) > width:
            at = _break(word, width - display_width(line))
            lines.append(line + word[:at])
            line, word = indent, word[at:]
        line += word
    return [*lines, line]


def _break(word: str, width: int) -> int:
    """The number of characters of a word that fit, at least one: up to a mark if there is one."""
    fits = 1
    while fits < len(word) and display_width(word[: fits + 1]) <= width:
        fits += 1
    return next((i for i in range(fits, 1, -1) if word[i - 1] in BREAKS), fits)


def _blocks(rows: list[Row], columns: tuple[str, ...]) -> tuple[list[list[Row]], tuple[str, ...]]:
    """Rows by recipe, and the columns that stand above them; one block and none if that would save nothing."""
    blocks = [list(block) for _, block in groupby(rows, lambda row: row.get("recipe"))]
    same = tuple(c for c in OF_RECIPE if c in columns and all(len({row[c] for row in block}) == 1 for block in blocks))
    if "recipe" not in columns or len(blocks) == len(rows) or len(same) == len(columns):
        return [rows], ()
    return blocks, same


def _named(row: Row, columns: tuple[str, ...]) -> str:
    return ", ".join(f"{c} {row[c]}" for c in columns if row[c])


def _lines(rows: list[Row], columns: list[str], width: int, notes: dict[str, int]) -> list[str]:
    """The lines of one block of rows. notes: takes the long cells, with their numbers."""
    cells = [[row[c] for c in columns] for row in rows]
    if _total(_natural(cells, columns)) > width:
        for row in cells:
            for i in range(1, len(row)):
                if display_width(row[i]) > LONG:
                    row[i] = f"[{notes.setdefault(row[i], len(notes) + 1)}]"
    natural, least = _natural(cells, columns), _least(cells, columns)
    groups = _divided(cells, least, width)
    if groups is None:
        return _paragraphs(cells, columns, width)
    lines: list[str] = []
    for group in groups:
        widths = _shrunk([natural[i] for i in group], [least[i] for i in group], width)
        picked = [[row[i] for i in group] for row in cells]
        lines += [*([""] if lines else []), *_grid(picked, [columns[i] for i in group], widths)]
    return lines


def _natural(cells: list[list[str]], columns: list[str]) -> list[int]:
    """The width of each column without wrapping."""
    return [max(map(display_width, texts)) for texts in zip(columns, *cells, strict=True)]


def _least(cells: list[list[str]], columns: list[str]) -> list[int]:
    """The width to which each column may be wrapped."""
    least = []
    for i, texts in enumerate(zip(columns, *cells, strict=True)):
        natural = max(map(display_width, texts))
        words = [word for text in texts for word in text.split()]
        if columns[i] in ("metric", "recipe", "dataset") or not i:
            words = [piece for word in words for piece in re.split(f"(?<=[{BREAKS}])", word)]
            words.append(" " * LEAST_NAME)
        least.append(min(natural, LONGEST_WORD, max(map(display_width, words), default=1)))
    return least


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + 3 * len(widths) + 1


def _divided(cells: list[list[str]], least: list[int], width: int) -> list[list[int]] | None:
    """The columns of each table: all, or several times the ones that name the row and some others; None: too narrow."""
    everything = list(range(len(least)))
    if _total(least) <= width:
        return [everything]
    named = next((n for n in range(1, len(least)) if len({tuple(row[:n]) for row in cells}) == len(cells)), len(least))
    names, groups = everything[:named], [everything[:named]]
    for i in everything[named:]:
        if _total([least[j] for j in (*groups[-1], i)]) > width:
            groups.append([*names])
        groups[-1].append(i)
    return groups if all(_total([least[i] for i in group]) <= width for group in groups) else None


def _shrunk(widths: list[int], least: list[int], width: int) -> list[int]:
    """Narrow the widest columns, none below its least width, until the table fits."""
    while _total(widths) > width:
        widest = max((i for i in range(len(widths)) if widths[i] > least[i]), key=lambda i: widths[i])
        widths[widest] -= 1
    return widths


def _grid(cells: list[list[str]], columns: list[str], widths: list[int]) -> list[str]:
    """The lines of one table."""
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    wrapped = any(display_width(text) > w for row in cells for text, w in zip(row, widths, strict=True))

    def lines(row: list[str]) -> list[str]:
        parts = [wrap(text, w) for text, w in zip(row, widths, strict=True)]
        return [
            "| " + " | ".join(
                text + " " * (w - display_width(text))
                for text, w in zip((part[k] if k < len(part) else "" for part in parts), widths, strict=True)
            ) + " |"
            for k in range(max(map(len, parts)))
        ]

    found = lines(columns)
    for i, row in enumerate(cells):
        found += [*([rule] if wrapped or not i else []), *lines(row)]
    return found


def _paragraphs(cells: list[list[str]], columns: list[str], width: int) -> list[str]:
    lines: list[str] = []
    for row in cells:
        lines += [""] if lines else []
        for column, text in zip(columns, row, strict=True):
            lines += wrap(f"{column}: {text}", width, "  ") if text else []
    return lines
