"""Tables: the verdict's rule by number, digits that the error warrants, and cells that survive their format."""

import csv
import dataclasses
import io
import os
import subprocess
import sys

import pytest
from support import ROOT, write_recipe

from ganbench import recipes
from ganbench.recipes import Reported
from ganbench.reporting import tables
from ganbench.reporting.results import Measurement, Result
from ganbench.reporting.tables import Summary, number, printed, render, rows, summarise, verdict


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


# --- Verdicts ---


@pytest.mark.parametrize(
    ("ours", "error", "paper", "std", "direction", "expected"),
    [
        (10.0, 1.0, 12.0, None, "lower", "reproduced"),  # 2 s is still within
        (10.0, 1.0, 12.001, None, "lower", "better"),
        (10.0, 1.0, 7.999, None, "lower", "not reproduced"),
        (10.0, 1.0, 12.001, None, "higher", "not reproduced"),
        (10.0, 1.0, 7.999, None, "higher", "better"),
        (10.0, 1.0, 12.001, None, "none", "not reproduced"),
        (10.0, 1.0, 7.999, None, "none", "not reproduced"),
        (10.0, 3.0, 20.0, 4.0, "lower", "reproduced"),  # s = 5
        (10.0, 3.0, 20.001, 4.0, "lower", "better"),
        (10.0, None, 10.0, None, "lower", "reproduced"),
        (10.0, None, 10.001, None, "lower", "better"),
        (10.0, None, 10.5, 0.25, "higher", "reproduced"),  # the paper's own error counts alone
        (10.0, None, 10.501, 0.25, "higher", "not reproduced"),
    ],
)
def test_the_verdict_is_two_combined_errors_wide_and_knows_the_direction(ours, error, paper, std, direction, expected):
    assert verdict(Summary(ours, error, "", 1), Reported("m", paper, "s", std=std), direction) == expected


def test_what_cannot_be_compared_is_not_compared():
    far = Reported("m", 1.0, "s", comparable=False)
    assert verdict(Summary(1.0, 1.0, "", 1), far, "lower") == "not comparable"
    assert verdict(None, far, "lower") == "not comparable"
    assert verdict(None, Reported("m", 1.0, "s"), "lower") == "unavailable"


def test_one_seed_has_its_own_error_and_several_their_standard_deviation():
    assert summarise([measured(4.0, 0.5)]) == Summary(4.0, 0.5, "the bootstrap (standard error)", 1)
    assert summarise([measured(4.0)]) == Summary(4.0, None, "", 1)
    several = summarise([measured(v, 0.5) for v in (1.0, 2.0, 6.0)])
    assert (several.value, several.seeds) == (3.0, 3)
    assert several.error == pytest.approx(7**0.5)  # ((-2)^2 + (-1)^2 + 3^2) / 2
    assert summarise([measured(None), measured(4.0, 0.5)]).value == 4.0
    assert summarise([measured(None)]) is None
    assert summarise([]) is None


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
    ],
)
def test_a_number_has_two_digits_of_its_error_or_four_of_its_own(value, error, text):
    assert number(value, error) == text


@pytest.mark.parametrize(
    ("value", "std", "text"),
    [
        (8.25, 0.07, "8.25 ± 0.07"),
        (8.2, 0.12, "8.20 ± 0.12"),
        (0.0298, None, "0.0298"),
        (48.29, None, "48.29"),
        (5.0, 0.5, "5.0 ± 0.5"),
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
    assert row["verdict"] == "better"
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
    assert [(r["paper"], r["verdict"]) for r in table] == [("1.5", "better"), ("0.9 (unconfirmed)", "reproduced")]


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


# --- The page of a recipe ---


def test_the_page_says_what_is_behind_the_numbers(recipe, tmp_path):
    env = {"device": "cpu (2 threads)", "commit": "0123456789abcdef", "dirty": True}
    one = result(
        measured(1.0, 0.1, warnings=("few samples",)), seed=4, environment=env, created="2020-01-01T00:00:00+00:00"
    )
    other = result(measured(9.0), overrides={"steps": 5}, seed=7)
    text = tables.write(recipe, [one, other], tmp_path / "tables").read_text(encoding="utf-8")
    assert text.startswith("# tiny\n\n| dataset")
    for part in (
        "Seed 4: 6,000 steps in 2 min on cpu (2 threads), commit `0123456789` (with local changes), 2020-01-01",
        "1. Everything.",
        "- fd_pixels 1.5: nowhere.",
        "one standard error over the bootstrap",
        "- fd_pixels: few samples",
        "40 samples, reference `digits:train`",
        "version 1",
    ):
        assert part in text, part
    assert "Seed 7" not in text


def test_the_page_has_the_value_of_each_seed(recipe):
    runs = [result(measured(0.0664, 0.0025)), result(measured(0.0282, 0.0017), seed=1), result(measured(None), seed=4)]
    line = "- fd_pixels: seed 0 0.0664 ± 0.0025, seed 1 0.0282 ± 0.0017, seed 4 unavailable\n"
    assert f"Each with its own ±:\n{line}" in tables.notes(recipe, runs)
    assert "Each with its own" not in tables.notes(recipe, runs[:1])


def test_trouble_in_a_run_is_said_under_its_table(recipe):
    healthy = result(measured(1.0))
    ended = dataclasses.replace(
        result(measured(2.0), seed=1), training={"steps": 6000, "warnings": ["step 500: the generator has collapsed"]}
    )
    assert "Warnings" not in tables.notes(recipe, [healthy])
    assert "- seed 1, training, step 500: the generator has collapsed\n" in tables.notes(recipe, [healthy, ended])
