"""Comparing two results: the sign, the interval, and when there is none."""

import pytest

from ganbench.reporting.comparison import compare
from ganbench.reporting.results import Measurement, Result


def result(**values):
    measurements = [
        Measurement(
            name,
            f"{name}/1",
            direction,
            value,
            {"value": error, "kind": "standard error", "over": "x"} if error else None,
        )
        for name, (value, error, direction) in values.items()
    ]
    return Result(fake={}, reference=None, measurements=measurements)


@pytest.mark.parametrize(
    ("direction", "b", "verdict"),
    [("lower", 8.0, "b better"), ("lower", 12.0, "a better"), ("higher", 12.0, "b better"), ("none", 8.0, "different")],
)
def test_a_difference_beyond_the_interval_says_who_is_better(direction, b, verdict):
    (c,) = compare(result(fd=(10.0, 0.3, direction)), result(fd=(b, 0.4, direction)))
    assert c.verdict == verdict
    assert c.difference == pytest.approx(b - 10)
    assert c.half_width == pytest.approx(1.96 * 0.5)


def test_a_difference_within_the_interval_is_noise():
    (c,) = compare(result(fd=(10.0, 0.3, "lower")), result(fd=(10.97, 0.4, "lower")))
    assert c.verdict == "within noise"


def test_what_cannot_be_compared_is_said_in_words():
    a, b = (
        result(fd=(1.0, 0.1, "lower"), kd=(1.0, None, "lower")),
        result(kd=(2.0, 0.1, "lower"), ms=(0.3, 0.1, "none")),
    )
    assert [(c.metric, c.verdict) for c in compare(a, b)] == [
        ("fd", "not measured in b"), ("kd", "no uncertainty"), ("ms", "not measured in a"),
    ]


def test_different_counts_are_different_protocols():
    a = result(fd=(1.0, 0.1, "lower"))
    b = Result(fake={}, reference=None, measurements=[Measurement("fd", "fd/1", "lower", 5.0, n_fake=7)])
    (c,) = compare(a, b)
    assert (c.verdict, c.difference) == ("different protocols", None)
