"""Tables on a terminal: no line is wider than it, nothing is lost, and files and pipes get what they always got."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import write_recipe

from ganbench.cli import terminal
from ganbench.reporting import narrow, results
from ganbench.reporting.narrow import display_width, fitted, wrap
from ganbench.reporting.results import Measurement, Result
from ganbench.reporting.tables import COLUMNS, render

TEXTS = st.text("abcdefgh -_/.±字", max_size=60) | st.sampled_from(["", "not run", "mnist:train", "x" * 130])
ROWS = st.lists(st.fixed_dictionaries(dict.fromkeys(COLUMNS, TEXTS) | {"metric": TEXTS.filter(str.strip)}), max_size=5)


def squeezed(text):
    """A text without spaces: wrapping adds and removes them."""
    return "".join(text.split())


def said(text):
    """Everything that a table says, without spaces: cells of one line and of several, notes, heads and paragraphs."""
    found, chunk = set(), []
    for line in [*text.splitlines(), "|-"]:
        if line.startswith("| "):
            cells = [cell.strip() for cell in line[2:-2].split(" | ")]
            found |= set(map(squeezed, cells))
            chunk.append(cells)
        else:
            found |= {squeezed("".join(parts)) for parts in zip(*chunk, strict=True)}
            chunk = []
    others = "\n".join(line for line in text.splitlines() if not line.startswith("|"))
    found |= {squeezed(note) for note in re.findall(r"^\[\d+\] ((?:.|\n    )+)", others, re.MULTILINE)}
    return found, squeezed(others)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(30, 300))
def test_every_table_fits_and_says_all_that_it_holds(table, width):
    text = fitted(table, COLUMNS, width)
    plain = render(table, "md", COLUMNS)
    if not table or max(map(display_width, plain.splitlines())) <= width:
        assert text == plain
        return
    assert max(map(display_width, text.splitlines())) <= width
    cells, others = said(text)
    for row in table:
        for column, value in row.items():
            value = squeezed(value)
            assert not value or value in cells or squeezed(f"{column}{value}") in others or (
                squeezed(f"{column}:{value}") in others), (column, value)


ROW = dict.fromkeys(COLUMNS, "") | {"dataset": "mnist:train", "seeds": "1", "steps": "28,080"}
SHORT = "short: 28,080 of 187,200 steps, not comparable"
TABLE = [
    {**ROW, "recipe": "a-mnist", "metric": "nn_error ↓", "ours": "0.1150 ± 0.0032", "paper": "0.03", "verdict": SHORT},
    {**ROW, "recipe": "a-mnist", "metric": "fd_mnist-cnn ↓", "ours": "0.313 ± 0.011", "verdict": SHORT},
    {**ROW, "recipe": "b-mnist", "metric": "ms_ssim", "ours": "0.4740 ± 0.0076", "verdict": "not run"},
]


def test_what_a_recipe_shares_stands_above_it_and_long_cells_below():
    assert fitted(TABLE, COLUMNS, 70) == """\
dataset mnist:train, recipe a-mnist, seeds 1, steps 28,080
| metric         | ours            | paper | verdict |
|----------------|-----------------|-------|---------|
| nn_error ↓     | 0.1150 ± 0.0032 | 0.03  | [1]     |
| fd_mnist-cnn ↓ | 0.313 ± 0.011   |       | [1]     |

dataset mnist:train, recipe b-mnist, seeds 1, steps 28,080
| metric  | ours            | verdict |
|---------|-----------------|---------|
| ms_ssim | 0.4740 ± 0.0076 | not run |

[1] short: 28,080 of 187,200 steps, not comparable
"""


def test_cells_are_wrapped_and_columns_divided_before_rows_become_paragraphs():
    columns = ("metric", "ours", "verdict")
    table = [{"metric": "fd_mnist-cnn", "ours": "0.313 ± 0.011", "verdict": "not reproduced (one seed)"},
             {"metric": "ms_ssim", "ours": "0.4740 ± 0.0076", "verdict": "not run"}]
    assert fitted(table, columns, 46) == """\
| metric       | ours         | verdict      |
|--------------|--------------|--------------|
| fd_mnist-cnn | 0.313 ±      | not          |
|              | 0.011        | reproduced   |
|              |              | (one seed)   |
|--------------|--------------|--------------|
| ms_ssim      | 0.4740 ±     | not run      |
|              | 0.0076       |              |
"""
    assert fitted(table, columns, 32) == """\
| metric       | ours          |
|--------------|---------------|
| fd_mnist-cnn | 0.313 ± 0.011 |
|--------------|---------------|
| ms_ssim      | 0.4740 ±      |
|              | 0.0076        |

| metric       | verdict       |
|--------------|---------------|
| fd_mnist-cnn | not           |
|              | reproduced    |
|              | (one seed)    |
|--------------|---------------|
| ms_ssim      | not run       |
"""
    many = [{"metric": "m" * 20, "ours": "o" * 20, "verdict": ""}]
    assert fitted(many, columns, 30) == f"metric: {'m' * 20}\nours: {'o' * 20}\n"


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("", 5, [""]),
        ("one two", 7, ["one two"]),
        ("one two", 6, ["one", "two"]),
        ("abcdefgh", 3, ["abc", "def", "gh"]),
        ("ab-cdef", 4, ["ab-", "cdef"]),
        ("字字字", 4, ["字字", "字"]),
        ("a abcdef", 4, ["a", "abcd", "ef"]),
    ],
)
def test_words_are_broken_only_if_they_are_too_long(text, width, lines):
    assert wrap(text, width) == lines


def test_on_a_terminal_a_table_has_its_width_and_elsewhere_it_is_as_it_was(place):
    arguments = [sys.executable, "-m", "ganbench", "table", "--dataset", "mnist", "--quiet"]
    piped = subprocess.run(arguments, cwd=place, capture_output=True, check=True).stdout.decode()
    assert max(map(len, piped.splitlines())) > 100
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 72, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    with subprocess.Popen(arguments, cwd=place, stdout=slave, stderr=subprocess.DEVNULL, env=environment) as command:
        os.close(slave)
        shown = b""
        try:
            while part := os.read(master, 1 << 16):
                shown += part
        except OSError:  # the other end is closed
            pass
        os.close(master)
    assert command.returncode == 0
    lines = shown.decode().splitlines()
    assert 40 < max(map(display_width, lines)) <= 72
    (recipes,) = (i for i, column in enumerate(piped.splitlines()[0].split("|")) if column.strip() == "recipe")
    for line in piped.splitlines()[2:]:
        assert f"recipe {line.split('|')[recipes].strip()}," in " ".join(lines)


def test_the_page_of_a_recipe_does_not_depend_on_the_terminal(ganbench, place, monkeypatch):
    path = write_recipe(place)
    measured = Measurement("fd_pixels", "fd/1", "lower", 1.0, {"value": 0.1, "kind": "standard error", "over": "both"})
    training = {"steps": 6, "seconds": 9.0}
    run = Result({}, None, [measured], seed=0, recipe={"name": "tiny", "version": 1}, training=training)
    results.save(run, place / "out/runs/tiny/seed0/result.json")
    wide = ganbench("table", path, "--out", "out").out
    page = (place / "out/tables/tiny.md").read_bytes()
    monkeypatch.setattr(terminal, "width", lambda: 60)
    shown = ganbench("table", path, "--out", "out")
    assert max(map(len, shown.out.splitlines())) <= 60 < max(map(len, wide.splitlines()))
    assert (place / "out/tables/tiny.md").read_bytes() == page
    assert ganbench("table", path, "--out", "out", "--format", "csv").out.count("\n") == 2
    assert narrow.markdown(TABLE) == render(TABLE)
