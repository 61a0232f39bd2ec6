"""Tables: which results count, digits that the error warrants, and cells that survive their format."""

import csv
import dataclasses
import io
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import ROOT, write_recipe

from ganbench import recipes
from ganbench.recipes import Reported
from ganbench.reporting import tables
from ganbench.reporting.results import Measurement, Result
from ganbench.reporting.tables import number, printed, render, rows


def measured(value, error=None, metric="fd_pixels", direction="lower", **more):
    uncertainty = None if error is None else {"value": error, "kind": "standard error", "over": "the bootstrap"}
    return Measurement(metric, "p", direction, value, uncertainty, **more)


def result(*measurements, seed=0, version=1, **more):
    training = {"steps": 6000, "seconds": 90}
    return Result(
        {}, None, list(measurements), seed=seed, recipe={"name": "tiny", "version": version}, training=training, **more
    )


@pytest.fixture
def recipe(place):
    return recipes.read(write_recipe(place))


# --- Numbers ---


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (12.3456, 0.234, "12.35 ± 0.23"),
        (12.3456, 2.34, "12.3 ± 2.3"),
        (1234.56, 23.4, "1235 ± 23"),
        (1234.56, 234.0, "1235 ± 234"),
        (0.000123456, 0.0000123, "0.000123 ± 0.000012"),
        (0.0, 0.01, "0.000 ± 0.010"),
        (-1.5, 0.5, "-1.50 ± 0.50"),
        (12.3456, None, "12.35"),
        (12.3456, 0.0, "12.35"),
        (0.98765, None, "0.9877"),
        (None, None, ""),
        (None, 0.1, ""),
        (0.99972223, 0.0000080, "0.9997222 ± 0.0000080"),  # the longest that is written out
        (1234567.0, 23.0, "1234567 ± 23"),
        (10.0, 1.7e-20, "10 ± 1.7e-20"),  # an error below the digits of the value
        (12.3456789, 0.0000021, "12.34568 ± 2.1e-06"),
        (0.0, 1e-20, "0 ± 1e-20"),
        (1.234e-12, 1e-13, "1.23e-12 ± 1e-13"),  # many zeros
        (5e-324, 5e-324, "4.9e-324 ± 4.9e-324"),
        (1e300, 2e299, "1e+300 ± 2e+299"),
        (-1.5e300, 1e-300, "-1.5e+300 ± 1e-300"),
        (1e300, 0.5, "1e+300 ± 0.5"),
        (0.5, 1e300, "0.5 ± 1e+300"),
    ],
)
def test_a_number_has_two_digits_of_its_error_or_four_of_its_own(value, error, text):
    assert number(value, error) == text


FINITE = st.floats(-1e300, 1e300)


@given(FINITE, FINITE.map(abs).filter(bool))
def test_any_value_and_error_can_be_read_and_is_the_value(value, error):
    text = number(value, error)
    assert len(text) <= len("-1.234567e-300 ± 1.2e-300")
    shown, shown_error = map(float, text.split(" ± "))
    assert abs(shown - value) <= max(0.051 * error, 0.51e-6 * abs(value))
    assert shown_error == pytest.approx(error, rel=0.051)


@pytest.mark.parametrize(
    ("value", "std", "text"),
    [
        (8.25, 0.07, "8.25 ± 0.07"),
        (8.2, 0.12, "8.20 ± 0.12"),
        (0.0298, None, "0.0298"),
        (48.29, None, "48.29"),
        (5.0, 0.5, "5.0 ± 0.5"),
        (8.25, 1.5e-10, "8.25 ± 1.5e-10"),
        (1e-12, None, "1e-12"),
    ],
)
def test_a_papers_number_gets_no_digits_that_the_paper_does_not_give(value, std, text):
    assert printed(Reported("m", value, "s", std=std)) == text


# --- Rows ---


def test_a_recipe_that_was_not_run_shows_its_metrics_as_not_run(recipe):
    (row,) = rows(recipe, [])
    assert (row["metric"], row["ours"], row["paper"], row["verdict"], row["seeds"]) == (
        "fd_pixels",
        "not run",
        "1.5",
        "not run",
        "0",
    )


def test_a_row_sets_ours_beside_real_data_and_the_paper(recipe):
    (row,) = rows(recipe, [result(measured(1.0, 0.1), real=[measured(0.25, 0.01)])])
    assert row["dataset"] == "digits:train"
    assert row["recipe"] == "tiny"
    assert row["metric"] == "fd_pixels ↓"
    assert row["ours"] == "1.00 ± 0.10"
    assert row["real data"] == "0.250 ± 0.010"
    assert row["paper"] == "1.5"
    assert row["difference"] == "-0.5"
    assert row["verdict"] == "better (one seed)"
    assert (row["seeds"], row["steps"], row["deviations"]) == ("1", "6,000", "1")


def test_results_with_overrides_or_of_another_version_do_not_count(recipe):
    others = [
        result(measured(1.0), overrides={"steps": 5}),
        result(measured(1.0), version=2),
        result(measured(1.0), version=None),
    ]
    assert rows(recipe, others) == rows(recipe, [])
    assert rows(recipe, [*others, result(measured(1.0))]) == rows(recipe, [result(measured(1.0))])


def test_a_run_on_a_budget_says_its_length_and_has_no_verdict(recipe):
    budget = recipes.Budget(steps=6000, num=20)
    recipe = dataclasses.replace(
        recipe, budget={"short": budget}, train=dataclasses.replace(recipe.train, steps=187200)
    )
    ran = result(measured(1.5, 0.1), overrides=tables.SHORT)
    short = dataclasses.replace(ran, recipe={**ran.recipe, "budget": budget.changes()})
    assert rows(recipe, [short], {}) == rows(recipe, [])  # no row of the reproduction
    (row,) = rows(recipe, [short], tables.SHORT)
    assert rows(recipe, [short]) == [row]  # which stands in for one where there is none
    full = result(measured(1.0))
    assert rows(recipe, [short, full]) == rows(recipe, [full])
    assert row["verdict"] == "short: 6,000 of 187,200 steps, not comparable"
    assert (row["ours"], row["paper"], row["difference"], row["steps"]) == ("1.50 ± 0.10", "1.5", "", "6,000")
    longer = dataclasses.replace(recipe, budget={"short": recipes.Budget(steps=7000)})
    assert tables.counted(longer, [short], tables.SHORT) == []  # of a budget that is no more
    assert tables.counted(recipe, [ran], tables.SHORT) == []


def test_the_data_set_of_a_row_is_that_of_the_run(recipe):
    training = {"steps": 6, "data": "folder:a/faces"}
    other = dataclasses.replace(result(measured(1.0), overrides={"steps": 6}), training=training)
    assert rows(recipe, [other], {"steps": 6})[0]["dataset"] == "faces"


def test_a_measurement_that_could_not_be_made_is_unavailable(recipe):
    (row,) = rows(recipe, [result(measured(None, reason="no weights"))])
    assert (row["ours"], row["verdict"], row["difference"]) == ("unavailable", "unavailable", "")


def test_a_reported_metric_that_was_not_measured_keeps_its_row(recipe):
    table = rows(recipe, [result(measured(1.0, metric="ms_ssim", direction="none"))])
    assert [(r["metric"], r["ours"], r["verdict"]) for r in table] == [
        ("ms_ssim", "1", ""),
        ("fd_pixels", "unavailable", "unavailable"),
    ]


def test_each_reported_value_of_a_metric_has_a_row(recipe):
    more = dataclasses.replace(
        recipe, reported=[*recipe.reported, Reported("fd_pixels", 0.9, "elsewhere", unconfirmed=True)]
    )
    table = rows(more, [result(measured(1.0, 0.1))])
    assert [(r["paper"], r["verdict"]) for r in table] == [
        ("1.5", "better (one seed)"), ("0.9 (unconfirmed)", "reproduced (one seed)")
    ]


def test_a_value_of_two_protocols_has_two_rows_that_are_told_apart(recipe):
    twice = dataclasses.replace(recipe, reported=[
        Reported("fd_pixels", 1.5, "Table 1", protocol="the caption: test images"),
        Reported("ms_ssim", 1.5, "Table 1", protocol="the code: held-out images", note="Its default."),
    ])
    table = rows(twice, [result(measured(1.5, 0.01), measured(2.5, 0.01, "ms_ssim", "none"))])
    assert [(r["metric"], r["paper"], r["protocol"], r["verdict"]) for r in table] == [
        ("fd_pixels ↓", "1.5", "the caption: test images", "reproduced (one seed)"),
        ("ms_ssim", "1.5", "the code: held-out images", "not reproduced (one seed)"),
    ]
    head, _, *lines = render(table).splitlines()
    assert head.index("| paper") < head.index("| protocol") < head.index("| verdict")
    assert ["held-out" in line for line in lines] == [False, True]
    assert "protocol" not in render(rows(recipe, [result(measured(1.5))]))  # nothing to tell apart
    not_run = rows(twice, [])
    assert [(r["metric"], r["protocol"]) for r in not_run] == [
        ("fd_pixels", "the caption: test images"), ("ms_ssim", "the code: held-out images")
    ]


def test_the_verdict_knows_the_rivals_of_the_table(place):
    for name, value in (("a", "1.5"), ("b", "1.4")):
        write_recipe(place, {"value = 1.5": f"value = {value}"}, name)
    (place / "pair.toml").write_text('name = "pair"\ntitle = "t"\npaper = "p"\nrecipes = ["a.toml", "b.toml"]\n')
    group, found = recipes.lookup(str(place / "pair.toml"))
    one = [result(measured(1.51, 0.1))]
    runs = [(member, one) for member in found.values()]
    assert [r["verdict"] for r in tables.group_rows(group, runs)] == ["inconclusive (one seed)"] * 2
    assert rows(group.members[0], one)[0]["verdict"] == "reproduced (one seed)"  # alone, and in no table
    ((reported, difference, verdict),) = tables.judged(group.members[0], one, group)
    assert (reported.value, verdict.rival.source, verdict.rival.value) == (1.5, "b", 1.4)
    assert difference == pytest.approx(0.01)


def test_a_papers_number_is_shown_with_the_digits_that_it_was_given_with():
    shown = [tables.printed(recipes.Reported("m", recipes.Printed(v), "s", None if e is None else recipes.Printed(e)))
             for v, e in (("2.30", None), ("8.80", "0.05"), ("0.8", "0.10"), ("1e-3", None))]
    assert shown == ["2.30", "8.80 ± 0.05", "0.80 ± 0.10", "0.001"]


def test_rows_of_the_paper_that_no_recipe_makes_come_last_with_their_reason(place):
    write_recipe(place, {}, "a")
    absent = (
        '[[absent]]\nrow = "DBN"\nreason = "another model"\nmetric = "fd_pixels"\nvalue = 138.0\nstd = 2.0\n'
        '[[absent]]\nrow = "tags"\nreason = "its data are not public"\n'
    )
    (place / "one.toml").write_text('name = "one"\ntitle = "t"\npaper = "p"\nrecipes = ["a.toml"]\n' + absent)
    group, found = recipes.lookup(str(place / "one.toml"))
    for overrides, results in (({}, []), ({}, [result(measured(1.51, 0.1))])):
        first, *others = tables.group_rows(group, [(member, results) for member in found.values()], overrides)
        assert first["recipe"] == "a"
        assert [[row[c] for c in ("recipe", "metric", "ours", "paper", "verdict")] for row in others] == [
            ["DBN", "fd_pixels", "not run", "138.0 ± 2.0", "not run: another model"],
            ["tags", "", "not run", "", "not run: its data are not public"],
        ]
        assert all(set(row) >= set(tables.COLUMNS) for row in others)
    beneath = tables.group_rows(group, [(member, []) for member in found.values()], tables.SHORT)
    assert not [row for row in beneath if row["recipe"] in ("DBN", "tags")]


ORDER = """
import dataclasses, pathlib, sys
from ganbench import recipes
from ganbench.reporting import tables
recipe = recipes.read(pathlib.Path(sys.argv[1]))
reported = [recipes.Reported(m, 1.0, "s") for m in ("z", "a", "q", "b", "m")]
print([r["metric"] for r in tables.rows(dataclasses.replace(recipe, reported=reported), [])])
"""


def test_rows_come_in_the_recipes_order_in_every_process(place):
    path = write_recipe(place)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for seed in "123":
        done = subprocess.run(
            [sys.executable, "-c", ORDER, path], env={**env, "PYTHONHASHSEED": seed}, capture_output=True, text=True
        )
        assert done.stdout == "['fd_pixels', 'z', 'a', 'q', 'b', 'm']\n", done.stderr


# --- Formats ---

NASTY = [{"metric": "a_b | c", "value": "5 % & ~ ^ { } # $ \\ < ±", "notes": "two\nlines"}]


def test_markdown_cells_cannot_break_the_table():
    lines = render(NASTY, "md", ("metric", "value", "notes")).splitlines()
    assert len(lines) == 3
    assert {len(line) for line in lines} == {len(lines[0])}
    assert r"a_b \| c" in lines[2]
    assert "two lines" in lines[2]


def test_csv_reads_back_as_it_was():
    text = render(NASTY, "csv", ("metric", "value", "notes"))
    assert list(csv.DictReader(io.StringIO(text))) == NASTY


def test_latex_escapes_what_latex_would_take_as_its_own():
    line = render(NASTY, "latex", ("metric", "value", "notes")).splitlines()[4]
    assert line.startswith(
        r"a\_b | c & 5 \% \& \textasciitilde{} \textasciicircum{} \{ \} \# \$ \textbackslash{} $<$ $\pm$"
    )


def test_an_empty_column_is_left_out_and_an_empty_table_is_no_error():
    assert render([{"metric": "a", "value": ""}], "md", ("metric", "value")).splitlines()[0] == "| metric |"
    for form in tables.FORMATS:
        assert render([], form).endswith("\n")
