"""Text for people: as wide as the terminal, and as it always was in files and pipes."""

import shutil
import sys
import textwrap
from collections.abc import Iterable

from ganbench.reporting import narrow

NOT_A_TERMINAL = 110  # columns of wrapped text


def width() -> int | None:
    """Return the columns of the terminal that stdout is, or None if it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(rows: list[dict[str, str]], columns: tuple[str, ...]) -> str:
    """Return a table as Markdown; on a terminal in a form that fits its width."""
    return narrow.markdown(rows, columns, width())


def wrapped(text: str, columns: int, hanging: str = "    ") -> list[str]:
    """Return the lines of a text. hanging: stands before all but the first."""
    return textwrap.wrap(text, max(20, columns), subsequent_indent=hanging, break_on_hyphens=False) or [""]


def entry(label: str, paragraphs: Iterable[str], columns: int, indent: int = 14) -> list[str]:
    """Return the lines of a labelled entry: wrapped paragraphs beside the label. Without paragraphs there is none.

    Lines that begin with four spaces, formulas, are not wrapped.

    >>> entry("model", ["dcgan, 133,253 parameters"], 80)
    ['  model       dcgan, 133,253 parameters']
    """
    lines: list[str] = []
    for text in paragraphs:
        for line in text.split("\n"):
            hanging = "   " if line[:2] in ("- ", *(f"{n}." for n in range(10))) else ""
            lines += [line] if line.startswith("    ") else wrapped(line, columns - indent, hanging)
    labels = [f"  {label}".ljust(indent), *[" " * indent] * len(lines)]
    return [a + b for a, b in zip(labels, lines, strict=False)]
