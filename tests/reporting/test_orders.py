"""Orders that a paper claims: the verdict on each, and their rows in the table of a group."""

import dataclasses
import math

import pytest
from scipy import stats

from ganbench import recipes
from ganbench.base.errors import UserError
from ganbench.recipes import Order
from ganbench.reporting import orders, pages, tables
from ganbench.reporting.results import Measurement, Result
from ganbench.reproduction import validation

CLAIM = Order("attention helps", "fd_pixels", "a", "b", "Table 1: 18.65 and 22.96")


def measured(value, error, direction="lower", **how):
    uncertainty = None if error is None else {"kind": "standard error", "value": error, "over": "bootstrap"}
    return Measurement("fd_pixels", "fd/1", direction, value, uncertainty, n_real=9, n_fake=9, **how)


def result(m, seed=0, steps=100, recipe="a", budget=None):
    return Result(
        None, None, [m], seed=seed, created=f"2026-01-01T00:00:{seed:02d}", training={"steps": steps, "data": "digits"},
        recipe={"name": recipe, "version": 1, "budget": budget}, overrides={"budget": "short"} if budget else {},
    )


def runs(*values, error=0.1, **how):
    return [result(measured(value, error), seed, **how) for seed, value in enumerate(values)]


def test_several_seeds_are_judged_by_welchs_interval():
    """Against scipy's own interval of the difference."""
    a, b = [10.0, 11.5, 10.4], [13.0, 12.1, 14.9, 13.3]
    found = orders.judge(CLAIM, runs(*a), runs(*b))
    theirs = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert found.difference - found.half_width == pytest.approx(theirs.low, rel=1e-6)
    assert found.difference + found.half_width == pytest.approx(theirs.high, rel=1e-6)
    assert found.verdict == "as expected"
    assert orders.judge(CLAIM, runs(*b), runs(*a)).verdict == "the other way"


@pytest.mark.parametrize(
    ("a", "b", "error", "verdict"),
    [
        (10.0, 12.0, 1.0, "inconclusive (one seed)"),  # 2 of 1.96 sqrt(2)
        (10.0, 12.0, 0.7, "as expected (one seed)"),  # 2 of 1.96 x 0.7 sqrt(2) = 1.94
        (12.0, 10.0, 0.7, "the other way (one seed)"),
        (10.0, 12.0, None, "inconclusive (one seed)"),
    ],
)
def test_one_seed_has_the_measurements_own_uncertainty(a, b, error, verdict):
    found = orders.judge(CLAIM, runs(a, error=error), runs(b, error=error))
    assert found.verdict == verdict
    if error:
        assert found.half_width == pytest.approx(1.959964 * error * math.sqrt(2), rel=1e-5)


def test_more_is_better_where_the_metric_says_so():
    better, worse = result(measured(2.0, 0.1, "higher")), result(measured(1.0, 0.1, "higher"))
    assert orders.judge(CLAIM, [better], [worse]).verdict.startswith("as expected")
    assert orders.judge(CLAIM, [worse], [better]).verdict.startswith("the other way")


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (result(dataclasses.replace(measured(12.0, 0.1), n_fake=7)), "not comparable: generated images: a has 9, b"),
        (result(measured(12.0, -1.0)), "not comparable: its uncertainty is -1.0"),
        (result(measured(None, None)), "unavailable"),
        (None, "not run: b"),
    ],
)
def test_what_was_not_measured_alike_has_no_order(other, why):
    assert orders.judge(CLAIM, runs(10.0), [other] if other else []).verdict.startswith(why)


RECIPE = """
name = "{name}"
version = 1
title = "t"
paper = "A 2020, arXiv:2001.00001"
[model]
name = "dcgan"
args = {{ image_size = 8, width = 4, channels = 1 }}
[train]
data = "digits:train"
batch_size = 8
steps = 100
[evaluate]
metrics = ["fd_pixels"]
num = 100
reference = "digits:train"
real = "digits:test"
[budget.short]
steps = 10
"""
GROUP = """
name = "table"
title = "t"
paper = "p"
recipes = ["a.toml", "b.toml"]
[[order]]
claim = "attention helps"
metric = "fd_pixels"
better = "a.toml"
worse = "b.toml"
source = "Table 1: 18.65 and 22.96"
"""


@pytest.fixture
def group(place):
    for name in "ab":
        (place / f"{name}.toml").write_text(RECIPE.format(name=name))
    (place / "table.toml").write_text(GROUP)
    return place / "table.toml"


def last_row(group, a, b, overrides=None):
    found, members = recipes.lookup(str(group))
    *_, row = tables.group_rows(found, list(zip(members.values(), (a, b), strict=True)), overrides)
    return row


def test_a_table_ends_with_its_orders(group, place):
    row = last_row(group, runs(10.0, 10.2, recipe="a"), runs(12.0, 12.2, recipe="b"))
    assert [row[c] for c in ("recipe", "metric", "verdict", "seeds", "steps")] == [
        "attention helps", "fd_pixels ↓", "as expected", "2", "100",
    ]
    assert row["ours"] == "10.1 beside 12.1"
    assert row["difference"] == "-2.00 ± 0.61"  # 4.303 x 0.1414
    longer = last_row(group, runs(10.0, recipe="a"), runs(12.0, recipe="b", steps=150))
    assert [longer[c] for c in ("seeds", "steps")] == ["1", "100, 150"]
    assert last_row(group, [], runs(12.0, recipe="b"))["verdict"] == "not run: a.toml"
    found, members = recipes.lookup(str(group))
    page = pages.write_group(found, [(m, runs(1.0, recipe=m.name)) for m in members.values()], place / "out")
    assert "- attention helps: a.toml better than b.toml. Table 1: 18.65 and 22.96." in page.read_text()


def test_short_runs_stand_in_if_not_both_have_full_ones(group):
    short = {"steps": 10}
    a, b = runs(10.0, recipe="a", budget=short, steps=10), runs(12.0, recipe="b", budget=short, steps=10)
    assert last_row(group, a, b)["verdict"] == "short: as expected (one seed)"
    full = runs(15.0, recipe="a")
    assert last_row(group, [*full, *a], b)["ours"] == "10 beside 12"
    assert last_row(group, full, b)["verdict"] == "not run: b.toml"


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('worse = "b.toml"', 'worse = "c.toml"', "'order': 'c.toml' is none of the group's recipes"),
        ('worse = "b.toml"', 'worse = "a.toml"', "'order': 'a.toml' cannot be better than itself"),
        ('claim = "attention helps"\n', "", "the key 'claim' is missing"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(group, old, new, why):
    group.write_text(GROUP.replace(old, new))
    with pytest.raises(UserError, match=why):
        recipes.read_group(group)


@pytest.mark.parametrize(
    ("metric", "why"),
    [
        ("fd_pixel", "unknown"),
        ("ms_ssim_all", "'ms_ssim_all' has no direction"),
        ("kd_pixels", "'a' does not measure 'kd_pixels'"),
    ],
)
def test_validation_names_an_order_that_no_run_can_decide(group, metric, why):
    group.write_text(GROUP.replace('metric = "fd_pixels"', f'metric = "{metric}"'))
    found, members = recipes.lookup(str(group))
    faults = list(validation._faults_of_group(found, list(members.values()), group))
    assert why in faults[0]
    assert "'order'[0]" in faults[0]
