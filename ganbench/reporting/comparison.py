"""Two results side by side: the difference, its interval, and whether it is larger than noise."""

import math
from dataclasses import dataclass

from ganbench.reporting.regression import identity
from ganbench.reporting.results import Result

Z = 1.96  # a normal 95 % interval


@dataclass(frozen=True)
class Comparison:
    """One metric of two results.

    difference: b - a. half_width: of its 95 % interval; None where an uncertainty is missing.
    verdict: 'b better', 'a better', 'different' (a metric without a direction), 'within noise', or why they cannot be
    compared.
    """

    metric: str
    a: float | None
    b: float | None
    difference: float | None
    half_width: float | None
    verdict: str


def compare(a: Result, b: Result) -> list[Comparison]:
    """One comparison for each metric that either result has, in the order of `a`.

    The errors of both are taken as independent. They share the reference, so that for distances the interval is too
    wide rather than too narrow. A standard deviation over splits is used as if it were a standard error: it is larger.
    """
    names = [m.metric for m in a.measurements] + [m.metric for m in b.measurements if a.measurement(m.metric) is None]
    return [_compare(name, a, b) for name in names]


def _compare(name: str, a: Result, b: Result) -> Comparison:
    one, two = a.measurement(name), b.measurement(name)
    if one is None or two is None or one.value is None or two.value is None:
        which = " and ".join(which for which, m in (("a", one), ("b", two)) if m is None or m.value is None)
        values = [m.value if m else None for m in (one, two)]
        return Comparison(name, values[0], values[1], None, None, f"not measured in {which}")
    if identity(one) != identity(two):
        return Comparison(name, one.value, two.value, None, None, "different protocols")
    difference = two.value - one.value
    if one.error is None or two.error is None:
        return Comparison(name, one.value, two.value, difference, None, "no uncertainty")
    half_width = Z * math.hypot(one.error, two.error)
    if abs(difference) <= half_width:
        verdict = "within noise"
    elif one.direction == "none":
        verdict = "different"
    else:
        verdict = "b better" if (difference > 0) == (one.direction == "higher") else "a better"
    return Comparison(name, one.value, two.value, difference, half_width, verdict)
