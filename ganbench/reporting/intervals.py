"""Intervals and corrected p-values in plain Python: a check and a comparison start without scipy.

- Prediction interval of one more run: Hahn and Meeker, Statistical Intervals, 1991, Section 4.6.
- Welch's t: Welch, Biometrika 34, 1947. Correction for many tests: Holm, Scand. J. Statist. 6, 1979.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

POWER = 0.9  # probability with which a check sees the regression that it names


def student_tail(t: float, df: float) -> float:
    """Return P(T > t) of Student's t with `df` degrees of freedom; `math.inf` is the normal distribution.

    >>> round(student_tail(2.776445, 4), 6)
    0.025
    """
    if t < 0:
        return 1 - student_tail(-t, df)
    if df == math.inf:
        return math.erfc(t / math.sqrt(2)) / 2
    return _incomplete_beta(df / (df + t * t), df / 2, 0.5) / 2


@functools.lru_cache(maxsize=1024)
def student_quantile(tail: float, df: float) -> float:
    """Return the t with P(T > t) = `tail`, for a tail of 0 to 0.5, both excluded: the upper quantile of Student's t.

    >>> round(student_quantile(0.025, 4), 6)
    2.776445
    """
    low, high = 0.0, 1.0
    while student_tail(high, df) > tail:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, df) > tail else (low, middle)
    return (low + high) / 2


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b), by its continued fraction (Lentz's method)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(1 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    total = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        before = total
        for step in (even, odd):
            d, c = 1 / (1 + step * d), 1 + step / c
            total *= c * d
        if abs(total - before) <= 1e-15 * abs(total):
            break
    return front * total / a


@dataclass(frozen=True)
class Spread:
    """One metric over independent runs.

    sd: standard deviation between the runs, which contains their sampling error; None for a single run.
    sampling: one standard error of sampling of one run (root mean square over the runs); None if none is known.
    """

    mean: float
    sd: float | None
    sampling: float | None
    runs: int


def spread(values: Sequence[float], errors: Sequence[float | None]) -> Spread:
    """Return mean, standard deviation and sampling error of at least one run. Raises OverflowError for huge numbers."""
    k = len(values)
    known = [e for e in errors if e is not None]
    mean = math.fsum(x / k for x in values)
    sd = math.hypot(*(x - mean for x in values)) / math.sqrt(k - 1) if k > 1 else None
    sampling = math.hypot(*known) / math.sqrt(len(known)) if known else None
    if not all(math.isfinite(x) for x in (mean, sd or 0.0, sampling or 0.0)):
        raise OverflowError("the values are too large")
    return Spread(mean, sd, sampling, k)


def prediction(base: Spread, runs: int, tail: float) -> float:
    """Return how far the mean of `runs` new runs lies above the mean of the old ones with probability `tail`.

    From k old runs with standard deviation s it is t s sqrt(1/runs + 1/k), with the upper quantile t of Student's t at
    k - 1 degrees of freedom. It is never less than sampling alone has: the same with the normal quantile and the
    sampling error. One old run knows sampling alone; without a sampling error it knows nothing, and the answer is 0.

    >>> round(prediction(Spread(10.0, 2.0, None, 5), 1, 0.025), 3)  # 2.776 x 2 x sqrt(1 + 1/5)
    6.083
    """
    factor = math.sqrt(1 / runs + 1 / base.runs)
    alone = student_quantile(tail, math.inf) * (base.sampling or 0.0)
    return factor * max(alone, student_quantile(tail, base.runs - 1) * base.sd if base.sd is not None else 0.0)


def difference(a: Spread, b: Spread) -> tuple[float, float] | None:
    """Return one standard error of b's mean minus a's, and its degrees of freedom; None if no uncertainty is known.

    - Several runs on both sides: Welch's t.
    - Several on one side, one on the other: the one run is taken to scatter as the others do.
    - One run a side: their sampling errors, which do not cover the choice of the seed.
    """
    if a.sd is None and b.sd is None:
        if a.sampling is None or b.sampling is None:
            return None
        return math.hypot(a.sampling, b.sampling), math.inf
    if a.sd is None or b.sd is None:
        several, one = (b, a) if a.sd is None else (a, b)
        assert several.sd is not None
        error = several.sd * math.sqrt(1 + 1 / several.runs)
        sampling = math.hypot(one.sampling or 0.0, (several.sampling or 0.0) / math.sqrt(several.runs))
        return max(error, sampling), several.runs - 1.0
    parts = [(s.sd**2 / s.runs, s.runs - 1) for s in (a, b) if s.sd is not None]
    variance = sum(v for v, _ in parts)
    uncertain = sum(v**2 / df for v, df in parts)
    return math.sqrt(variance), variance**2 / uncertain if uncertain else math.inf


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's method, in the given order.

    If those below a level are called differences, the chance of even one false one is at most that level.

    >>> holm([0.01, 0.5, 0.02])
    [0.03, 0.5, 0.04]
    """
    corrected, least = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        least = max(least, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = least
    return corrected
