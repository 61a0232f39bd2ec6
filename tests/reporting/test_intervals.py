"""Intervals in plain Python, against scipy; and whether they hold what they promise."""

import math

import numpy as np
import pytest
from scipy import stats

from ganbench.reporting.intervals import (
    Spread,
    difference,
    holm,
    prediction,
    spread,
    student_quantile,
    student_tail,
)


@pytest.mark.parametrize("df", [1, 1.7, 2, 4.5, 9, 200.3, 1e5, math.inf])
def test_student_agrees_with_scipy(df):
    for t in (-3.0, 0.0, 1e-3, 0.5, 2.0, 5.0, 1000.0):
        assert student_tail(t, df) == pytest.approx(stats.t.sf(t, df), rel=1e-8, abs=1e-300)
    for tail in (0.4, 0.025, 0.0025, 1e-6):
        assert student_quantile(tail, df) == pytest.approx(stats.t.isf(tail, df), rel=1e-8)


def test_spread_is_the_mean_the_standard_deviation_and_the_sampling_error():
    values = [3.0, 4.0, 8.0]
    assert spread(values, [3.0, None, 4.0]) == Spread(
        pytest.approx(5.0), pytest.approx(stats.tstd(values)), pytest.approx(math.sqrt(12.5)), 3
    )
    assert spread([2.0], [None]) == Spread(2.0, None, None, 1)
    with pytest.raises(OverflowError):
        spread([1.7e308, -1.7e308], [None, None])


def test_the_prediction_interval_is_the_textbooks():
    of = Spread(10.0, 2.0, None, 5)
    assert prediction(of, 1, 0.01) == pytest.approx(stats.t.isf(0.01, 4) * 2 * math.sqrt(1 + 1 / 5))
    assert prediction(of, 3, 0.01) == pytest.approx(stats.t.isf(0.01, 4) * 2 * math.sqrt(1 / 3 + 1 / 5))


def test_a_prediction_is_never_narrower_than_sampling_alone():
    alone = stats.norm.isf(0.01) * 0.5
    assert prediction(Spread(10.0, 1e-6, 0.5, 5), 1, 0.01) == pytest.approx(alone * math.sqrt(1.2))
    assert prediction(Spread(10.0, None, 0.5, 1), 1, 0.01) == pytest.approx(alone * math.sqrt(2))
    assert prediction(Spread(10.0, None, None, 1), 1, 0.01) == 0


@pytest.mark.parametrize("k", range(2, 11))
def test_new_runs_leave_the_interval_as_often_as_stated(k):
    """Many baselines of k normal runs, and the mean of one or three new runs of each."""
    rng, n = np.random.default_rng(k), 20_000
    old, three = rng.normal(size=(n, k)), rng.normal(size=(n, 3))
    for m, tail in ((1, 0.01), (3, 0.05)):
        half = np.array([prediction(spread(row, [None] * k), m, tail) for row in old[: n // 2]])
        gap = three[: n // 2, :m].mean(1) - old[: n // 2].mean(1)
        assert (gap > half).sum() == pytest.approx(n / 2 * tail, abs=3.5 * math.sqrt(n / 2 * tail))
        assert (gap < -half).sum() == pytest.approx(n / 2 * tail, abs=3.5 * math.sqrt(n / 2 * tail))


def test_two_sides_of_several_runs_are_welchs_test():
    a, b = [1.0, 2.0, 3.5, 4.0], [2.0, 5.0, 9.0]
    error, df = difference(spread(a, [None] * 4), spread(b, [None] * 3))
    test = stats.ttest_ind(b, a, equal_var=False)
    assert df == pytest.approx(test.df)
    gap = np.mean(b) - np.mean(a)
    assert 2 * student_tail(gap / error, df) == pytest.approx(test.pvalue)


def test_one_run_against_several_scatters_as_they_do():
    several, one = spread([1.0, 2.0, 3.0], [0.1] * 3), spread([9.0], [0.1])
    for sides in ((several, one), (one, several)):
        assert difference(*sides) == (pytest.approx(math.sqrt(1 + 1 / 3)), 2)
    loud = spread([9.0], [5.0])
    assert difference(several, loud)[0] == pytest.approx(math.hypot(5, 0.1 / math.sqrt(3)))


def test_one_run_a_side_has_the_sampling_errors():
    assert difference(spread([1.0], [0.3]), spread([2.0], [0.4])) == (pytest.approx(0.5), math.inf)
    assert difference(spread([1.0], [0.3]), spread([2.0], [None])) is None


def test_holms_correction_is_the_step_down_rule():
    assert holm([]) == []
    assert holm([0.04, 0.01, 0.03, 0.9]) == pytest.approx([0.09, 0.04, 0.09, 0.9])
    rng = np.random.default_rng(0)
    for p in rng.random((50, 6)) ** 3:
        corrected = holm(list(p))
        rejected, still = set(), True
        for rank, i in enumerate(np.argsort(p)):  # as Holm states it, at a level of 5 %
            still = still and p[i] <= 0.05 / (6 - rank)
            rejected |= {i} if still else set()
        assert {i for i, q in enumerate(corrected) if q <= 0.05} == rejected
