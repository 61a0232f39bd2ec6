"""Verdicts: the rule by number, against scipy's Student's t."""

import math

import pytest
from scipy import stats

from ganbench.recipes import Reported, Rival
from ganbench.reporting import verdicts
from ganbench.reporting.results import Measurement
from ganbench.reporting.verdicts import Summary, half_width, judge, summarise


def measured(value, error=None):
    uncertainty = None if error is None else {"value": error, "kind": "standard error", "over": "the bootstrap"}
    return Measurement("m", "p", "lower", value, uncertainty)


def paper(value, std=None, **more):
    return Reported("m", value, "s", std=std, **more)


def rivals(*values, metric="m"):
    return [Rival(metric, value, f"row {value}") for value in values]


# --- Over seeds ---


def test_one_seed_has_its_own_error_and_several_their_standard_deviation():
    assert summarise([measured(4.0, 0.5)]) == Summary(4.0, 0.5, "the bootstrap (standard error)", 1)
    assert summarise([measured(4.0)]) == Summary(4.0, None, "", 1)
    several = summarise([measured(v, 0.5) for v in (1.0, 2.0, 6.0)])
    assert (several.value, several.seeds) == (3.0, 3)
    assert several.error == pytest.approx(7**0.5)  # ((-2)^2 + (-1)^2 + 3^2) / 2
    assert summarise([measured(None), measured(4.0, 0.5)]).value == 4.0
    assert summarise([measured(None), measured(4.0, 0.5)]).seeds == 1
    assert summarise([measured(None)]) is None
    assert summarise([]) is None


# --- The interval ---


def test_the_quantiles_are_students():
    for df, t in verdicts.STUDENT.items():
        assert t == pytest.approx(stats.t.ppf(0.975, df), abs=1e-6)
    assert pytest.approx(stats.norm.ppf(0.975), abs=1e-6) == verdicts.NORMAL
    for df in (1, 1.99, 7.5, 20.5, 23, 59.9, 500, 1e9):  # never a shorter interval than the true one
        lower = max(n for n in verdicts.STUDENT if n <= df)
        assert verdicts._student(df) == verdicts.STUDENT[lower] >= stats.t.ppf(0.975, df) - 1e-6
    assert verdicts._student(math.inf) == verdicts.NORMAL


@pytest.mark.parametrize("values", [(0.0664, 0.0282), (3.0, 4.0, 8.0), (1.0, 1.5, 0.5, 2.0, 0.75, 1.25)], ids=len)
def test_the_interval_of_several_seeds_is_the_t_interval_of_their_mean(values):
    ours = summarise([measured(v, 0.1) for v in values])
    low, high = stats.t.interval(0.95, len(values) - 1, loc=ours.value, scale=stats.sem(values))
    assert half_width(ours, paper(1.0)) == pytest.approx((high - low) / 2, rel=1e-6)


def test_the_interval_of_one_seed_is_the_measurements_own():
    assert half_width(Summary(1.0, 0.25, "", 1), paper(1.0)) == pytest.approx(stats.norm.ppf(0.975) * 0.25)
    assert half_width(Summary(1.0, 0.3, "", 1), paper(1.0, 0.4)) == pytest.approx(stats.norm.ppf(0.975) * 0.5)
    assert half_width(Summary(1.0, None, "", 1), paper(1.0, 0.4)) is None


def test_the_papers_spread_over_runs_makes_it_welchs_interval():
    """With equal numbers of whole degrees of freedom the table's quantile is exact: compare with scipy's Welch test."""
    values, theirs = (1.0, 2.0, 3.0, 4.0), (2.0, 3.0, 4.0, 5.0)  # equal variances: 6 degrees of freedom
    std = stats.tstd(theirs)
    interval = stats.ttest_ind(values, theirs, equal_var=False).confidence_interval(0.95)
    h = half_width(summarise([measured(v) for v in values]), paper(3.5, std, runs=4))
    assert h == pytest.approx((interval.high - interval.low) / 2, rel=1e-6)
    # Unequal ones have 3.9 degrees of freedom, of which 3 are taken.
    theirs = (2.0, 3.2, 4.0, 7.0)
    test = stats.ttest_ind(values, theirs, equal_var=False)
    s = math.hypot(stats.sem(values), stats.sem(theirs))
    h = half_width(summarise([measured(v) for v in values]), paper(4.05, stats.tstd(theirs), runs=4))
    assert h == pytest.approx(stats.t.ppf(0.975, math.floor(test.df)) * s, rel=1e-6)
    assert h > (test.confidence_interval(0.95).high - test.confidence_interval(0.95).low) / 2


def test_the_papers_spread_over_an_unknown_number_of_runs_is_taken_whole_and_as_known():
    values, std = (1.0, 2.0, 3.0, 4.0), 2.0
    ours = stats.sem(values)
    s = math.hypot(ours, std)
    df = s**4 / (ours**4 / 3)  # the paper's has infinitely many
    assert df > 120
    assert half_width(summarise([measured(v) for v in values]), paper(2.0, std)) == pytest.approx(
        stats.t.ppf(0.975, 120) * s, rel=1e-6
    )


# --- Which verdict ---


@pytest.mark.parametrize(
    ("ours", "paper_value", "direction", "expected"),
    [
        (10.0, 11.95, "lower", "reproduced"),  # 1.96 errors are within
        (10.0, 11.97, "lower", "better"),
        (10.0, 8.03, "lower", "not reproduced"),
        (10.0, 11.97, "higher", "not reproduced"),
        (10.0, 8.03, "higher", "better"),
        (10.0, 11.97, "none", "not reproduced"),
        (10.0, 8.03, "none", "not reproduced"),
    ],
)
def test_outside_of_the_interval_the_direction_decides(ours, paper_value, direction, expected):
    assert str(judge(Summary(ours, 1.0, "", 1), paper(paper_value), direction)) == f"{expected} (one seed)"
    several = Summary(ours, 2.0, "", 4)  # 2 / sqrt(4) = 1, but 3 degrees of freedom: 3.18
    assert str(judge(several, paper(paper_value), direction)) == "inconclusive"
    assert str(judge(several, paper(13.19), "lower")) == "better"


def test_one_seed_says_so_and_several_do_not():
    values = {1: "reproduced (one seed)", 2: "reproduced", 9: "reproduced"}
    for seeds, text in values.items():
        assert str(judge(Summary(10.0, 0.01, "", seeds), paper(10.0), "lower")) == text


def test_without_a_rival_a_change_of_a_quarter_must_be_seen():
    z = stats.norm.ppf(0.975)
    enough = judge(Summary(10.0, 2.49 / z, "", 1), paper(10.0), "lower")
    assert (str(enough), enough.needed, enough.rival) == ("reproduced (one seed)", 2.5, None)
    assert str(judge(Summary(10.0, 2.51 / z, "", 1), paper(10.0), "lower")) == "inconclusive (one seed)"
    assert judge(Summary(-9.0, 1.0, "", 1), paper(-8.0), "lower").needed == 2.0


def test_the_nearest_rival_must_be_told_apart():
    z = stats.norm.ppf(0.975)
    beside = rivals(3.0, 11.0, 8.5)
    close = judge(Summary(10.0, 0.99 / z, "", 1), paper(10.0), "lower", beside)
    assert (str(close), close.needed, close.rival.value) == ("reproduced (one seed)", 1.0, 11.0)
    assert str(judge(Summary(10.0, 1.01 / z, "", 1), paper(10.0), "lower", beside)) == "inconclusive (one seed)"
    # Ours lies between both, and cannot be told from the rival, though the interval is narrower than their distance.
    assert str(judge(Summary(10.6, 0.9 / z, "", 1), paper(10.0), "lower", beside)) == "inconclusive (one seed)"
    assert str(judge(Summary(9.4, 0.9 / z, "", 1), paper(10.0), "lower", rivals(11.0))) == "reproduced (one seed)"
    # A wide interval that lies on the other side has left the rival out by chance.
    assert str(judge(Summary(7.0, 3.5 / z, "", 1), paper(10.0), "lower", rivals(11.0))) == "inconclusive (one seed)"


def test_a_far_rival_asks_for_less_than_a_quarter_would():
    z = stats.norm.ppf(0.975)
    assert str(judge(Summary(10.0, 5 / z, "", 1), paper(10.0), "lower", rivals(20.0))) == "reproduced (one seed)"


def test_a_rival_of_another_metric_or_of_the_same_value_is_none():
    beside = [*rivals(10.001, metric="other"), *rivals(10.0)]
    assert judge(Summary(10.0, 1.0, "", 1), paper(10.0), "lower", beside) == judge(
        Summary(10.0, 1.0, "", 1), paper(10.0), "lower"
    )


def test_what_cannot_be_compared_is_not_compared():
    far = paper(1.0, comparable=False)
    assert str(judge(Summary(1.0, 1.0, "", 1), far, "lower")) == "not comparable"
    assert str(judge(None, far, "lower")) == "not comparable"
    assert str(judge(None, paper(1.0), "lower")) == "unavailable"
    assert str(judge(Summary(1.0, None, "", 1), paper(1.0), "lower")) == "inconclusive (one seed)"
    assert str(judge(Summary(1.0, None, "", 1), paper(99.0), "lower")) == "inconclusive (one seed)"


def test_two_seeds_of_improved_gan_that_differ_much_prove_nothing():
    """Table 1 with 50 labels: 664 and 282 wrong of 10,000, the paper 221 ± 136."""
    values = [0.0664, 0.0282]
    found = judge(summarise([measured(v) for v in values]), paper(0.0221, 0.0136), "lower")
    ours = stats.sem(values)
    s = math.hypot(ours, 0.0136)
    df = s**4 / ours**4
    assert str(found) == "inconclusive"
    assert found.half_width == pytest.approx(stats.t.ppf(0.975, int(df)) * s, rel=1e-6)
    assert found.needed == pytest.approx(0.0221 / 4)
    assert found.paper_half_width == pytest.approx(stats.norm.ppf(0.975) * 0.0136)


def test_a_hundred_labels_are_reproduced_by_one_seed():
    """Table 1 with 100 labels: 95 wrong of 10,000, the paper 93 ± 6.5."""
    error = math.sqrt(0.0095 * 0.9905 / 10000)
    assert str(judge(Summary(0.0095, error, "", 1), paper(0.0093, 0.00065), "lower")) == "reproduced (one seed)"
