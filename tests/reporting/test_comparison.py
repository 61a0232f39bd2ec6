"""Two sides of a comparison: the sign, the error, the correction for many tests, and when there is none of it."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ganbench.base.errors import UserError
from ganbench.reporting.comparison import LEVEL, compare, head
from ganbench.reporting.results import Measurement, Result


def result(**values):
    measurements = [
        Measurement(
            name,
            f"{name}/1",
            direction,
            value,
            None if error is None else {"value": error, "kind": "standard error", "over": "x"},
        )
        for name, (value, error, direction) in values.items()
    ]
    return Result(fake={}, reference=None, measurements=measurements)


def runs(*values, error=0.1, direction="lower"):
    return [(Path(f"{i}.json"), result(fd=(v, error, direction))) for i, v in enumerate(values)]


def one(a, b):
    (c,) = compare(a, b)
    return c


@pytest.mark.parametrize(
    ("direction", "b", "verdict"),
    [("lower", 8.0, "b better"), ("lower", 12.0, "a better"), ("higher", 12.0, "b better"), ("none", 8.0, "different")],
)
def test_a_difference_beyond_chance_says_who_is_better(direction, b, verdict):
    c = one(runs(10.0, error=0.3, direction=direction), runs(b, error=0.4, direction=direction))
    assert c.verdict == verdict
    assert c.difference == pytest.approx(b - 10)
    assert (c.a_error, c.b_error, c.error) == (0.3, 0.4, pytest.approx(0.5))  # each is one standard error
    assert c.p == pytest.approx(2 * stats.norm.sf(4))


@pytest.mark.parametrize(("times", "verdict"), [(1.95, "within noise"), (1.97, "a better")])
def test_the_level_of_one_test_is_five_percent(times, verdict):
    assert one(runs(10.0, error=0.3), runs(10 + times * 0.5, error=0.4)).verdict == verdict


def test_several_runs_a_side_are_welchs_test():
    a, b = (3.2, 3.8, 3.3, 3.5), (2.9, 3.0, 2.5)
    c = one(runs(*a), runs(*b))
    assert c.p == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue)
    assert (c.a, c.a_error) == (pytest.approx(np.mean(a)), pytest.approx(stats.sem(a)))
    assert c.verdict == "b better"
    assert one(runs(*a), runs(3.0, 3.9)).verdict == "within noise"  # though the sampling errors are 0.1


def test_one_run_beside_several_is_as_uncertain_as_any_of_them():
    assert one(runs(3.2, 3.8, 3.3, 3.5), runs(2.9)).verdict == "within noise"
    assert one(runs(3.5), runs(2.9)).verdict == "b better"  # sampling alone
    assert one(runs(2.9), runs(3.2, 3.8, 3.3, 3.5)).verdict == "within noise"


def test_many_metrics_are_corrected_by_holms_rule():
    """Differences of 2.2 errors: the twentieth of many tests would be one by chance."""
    names = [f"m{i}" for i in range(10)]
    a = result(**dict.fromkeys(names, (1.0, 0.3, "lower")), free=(1.0, None, "lower"))
    b = result(**{n: (1.0 + (2.2 if i else 9.0) * 0.5, 0.4, "lower") for i, n in enumerate(names)},
               free=(9.0, None, "lower"))
    found = compare([(Path("a"), a)], [(Path("b"), b)])
    assert [c.verdict for c in found] == ["a better"] + 9 * ["within noise"] + ["no uncertainty"]
    assert found[1].p == pytest.approx(9 * 2 * stats.norm.sf(2.2))
    assert found[0].p == pytest.approx(10 * 2 * stats.norm.sf(9.0))
    (alone,) = compare([(Path("a"), result(m1=(1.0, 0.3, "lower")))], [(Path("b"), result(m1=(2.1, 0.4, "lower")))])
    assert alone.verdict == "a better"
    assert "corrected for 10 tests (Holm)" in head(found, 1, 1)[1]


def test_equal_sides_differ_as_seldom_as_stated():
    rng, n = np.random.default_rng(1), 400
    false = 0
    for _ in range(n):
        sides = [
            [(Path(f"{s}{i}"), result(**{f"m{j}": (float(rng.normal()), None, "lower") for j in range(4)}))
             for i in range(4)] for s in "ab"
        ]
        false += any(c.verdict != "within noise" for c in compare(*sides))
    assert false == pytest.approx(n * LEVEL, abs=3.5 * math.sqrt(n * LEVEL))


def test_the_head_says_what_the_errors_are():
    found = compare(runs(1.0), runs(2.0))
    assert "not the choice of the seed" in head(found, 1, 1)[0]
    assert "Welch" in head(found, 2, 3)[0]
    assert "as the others do" in head(found, 1, 3)[0]
    assert "one standard error" in head(found, 1, 1)[1]


def test_what_cannot_be_compared_is_said_in_words():
    a, b = (
        result(fd=(1.0, 0.1, "lower"), kd=(1.0, None, "lower")),
        result(kd=(2.0, 0.1, "lower"), ms=(0.3, 0.1, "none")),
    )
    assert [(c.metric, c.verdict) for c in compare([(Path("a"), a)], [(Path("b"), b)])] == [
        ("fd", "not measured in b"), ("kd", "no uncertainty"), ("ms", "not measured in a"),
    ]
    several = compare([(Path("a"), a), (Path("a2"), b)], [(Path("b"), b)])
    assert [c.verdict for c in several][0::2] == ["not measured in all of a and b", "not measured in all of a"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, "12.5", 10**400, True], ids=repr)
def test_a_number_that_is_none_is_not_compared_but_the_others_are(bad):
    good = result(fd=(1.0, 0.1, "lower"), kd=(5.0, 0.1, "lower"))
    for value, error in ((bad, 0.1), (1.0, bad)):
        for sides in ((result(fd=(value, error, "lower"), kd=(1.0, 0.1, "lower")), good),
                      (good, result(fd=(value, error, "lower"), kd=(1.0, 0.1, "lower")))):
            found = compare([(Path("a"), sides[0])], [(Path("b"), sides[1])])
            assert found[0].verdict.startswith("cannot judge: its ")
            assert found[0].difference is None
            assert found[1].verdict in ("a better", "b better")
            json.dumps([vars(c) for c in found], allow_nan=False)


def test_numbers_too_large_are_not_compared():
    assert one(runs(1.7e308), runs(-1.7e308)).verdict == "cannot judge: the values are too large"
    assert one(runs(1e200, -1e200), runs(1.0, 2.0)).verdict == "cannot judge: the values are too large"


def test_values_that_were_measured_in_another_way_are_not_compared():
    a = result(fd=(1.0, 0.1, "lower"))
    few = dataclasses.replace(a, measurements=[dataclasses.replace(a.measurements[0], value=5.0, n_fake=7)])
    c = one([(Path("a"), a)], [(Path("b"), few)])
    assert (c.verdict, c.difference, c.p) == ("not comparable: generated images: a has 0, b has 7", None, None)
    c = one([(Path("a"), a), (Path("a2.json"), few)], [(Path("b"), a)])
    assert c.verdict == "not comparable: generated images: a has 0, a2.json has 7"


def test_another_reference_is_no_better_or_worse():
    """Both were once said to be better or worse than each other against references of their own."""
    def on(split, size, value):
        reference = {"kind": "dataset", "name": "x", "split": split, "fingerprint": split * 8, "count": 10,
                     "shape": [3, size, size]}
        m = Measurement("fd", "fd/1", "lower", value, {"value": 0.1, "kind": "standard error", "over": "x"}, 10, 20)
        return [(Path(split), Result({"shape": [3, 64, 64]}, reference, [m]))]

    assert one(on("train", 32, 1.0), on("train", 32, 5.0)).verdict == "a better"
    assert one(on("train", 32, 1.0), on("test", 32, 5.0)).verdict.startswith("not comparable: reference, images")
    assert one(on("train", 32, 1.0), on("train", 64, 5.0)).verdict == (
        "not comparable: reference, shape: a has 3 x 32 x 32, b has 3 x 64 x 64"
    )


def test_two_results_of_one_model_are_no_two_runs():
    fake = {"checkpoint_sha256": "aa"}
    side = [(Path(p), dataclasses.replace(r, fake=fake)) for p, r in runs(1.0, 2.0)]
    with pytest.raises(UserError, match=r"0\.json and 1\.json measure one model"):
        compare(side, runs(1.0))
    assert one(side[:1], side[1:]).verdict == "a better"
