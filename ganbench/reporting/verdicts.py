"""Verdicts: whether our value reproduces the paper's, and whether the measurement could have told.

The list of verdicts stands at the top of `tables.py`. This is how the four that compare are found, for ours m, the
paper's value p and the difference d = m - p.

1. The interval of d. It is d ± h with h = t s and s^2 = s_ours^2 + s_paper^2, at 95 %.

   - Over n seeds, m is their mean and s_ours their standard deviation over sqrt(n), with n - 1 degrees of freedom.
   - One seed has the measurement's own uncertainty instead. It comes from many images, so that t is 1.96. It does not
     cover the choice of the seed, and the verdict says so: `reproduced (one seed)`.
   - s_paper is the paper's own ±, taken as known; 0 if there is none. Papers seldom say what their ± is. If it is a
     spread over runs, it is too large for an error of their mean, and the interval too wide: the cautious side, since
     an interval that is too wide gives `inconclusive`. If the recipe knows the number of runs, s_paper is their
     standard deviation over the root of it, with as many degrees of freedom less one.
   - t is Student's at the degrees of freedom of Welch and Satterthwaite, rounded down: s^4 over the sum of
     s_i^4 / df_i. With one uncertain side alone this is the t interval of the mean.

2. The precision that is needed. A value agrees with many others if its interval is wide. So h may be at most the
   distance from p to its next rival: the nearest other value of the same metric in the same column of a paper's table
   (`recipes.rivals`). Without a rival it may be at most a quarter of |p|.

3. The verdict. 0 outside of d ± h: `better` on the metric's good side, else `not reproduced`. 0 inside:
   `reproduced` if h is small enough and no rival lies within m ± h too, else `inconclusive`. A measurement without any
   uncertainty is `inconclusive`: its interval is not known.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ganbench.recipes import Reported, Rival
from ganbench.reporting.results import Measurement

NORMAL = 1.959964
# The 0.975 quantiles of Student's t by degrees of freedom. Between two of them, the fewer degrees are taken.
STUDENT = {
    1: 12.706205, 2: 4.302653, 3: 3.182446, 4: 2.776445, 5: 2.570582, 6: 2.446912, 7: 2.364624, 8: 2.306004,
    9: 2.262157, 10: 2.228139, 11: 2.200985, 12: 2.178813, 13: 2.160369, 14: 2.144787, 15: 2.131450, 16: 2.119905,
    17: 2.109816, 18: 2.100922, 19: 2.093024, 20: 2.085963, 25: 2.059539, 30: 2.042272, 40: 2.021075, 60: 2.000298,
    120: 1.979930,
}
WITHOUT_RIVAL = 0.25  # of the paper's value


@dataclass(frozen=True)
class Summary:
    """One metric of one recipe over its seeds.

    value: mean over seeds. error: standard deviation over seeds if there are several, else the measurement's own
    uncertainty, or None. over: what `error` is taken over.
    """

    value: float
    error: float | None
    over: str
    seeds: int


def summarise(measurements: Sequence[Measurement]) -> Summary | None:
    """Return the mean over seeds and its spread; None if nothing was measured."""
    measured = [m for m in measurements if m.value is not None]
    values = [float(m.value) for m in measured if m.value is not None]
    if not values:
        return None
    if len(values) > 1:
        over = f"{len(values)} seeds (standard deviation)"
        return Summary(statistics.fmean(values), statistics.stdev(values), over, len(values))
    (one,) = measured
    over = f"{one.uncertainty['over']} ({one.uncertainty['kind']})" if one.uncertainty else ""
    return Summary(values[0], one.error, over, 1)


@dataclass(frozen=True)
class Verdict:
    """A verdict and what it rests on.

    half_width: of the interval of the difference; None if no uncertainty is known. needed: the half-width that
    `reproduced` allows at most. rival: what `needed` is the distance to; None: a quarter of the paper's value.
    paper_half_width: the half-width that the paper's ± has alone, however many seeds we run.
    """

    text: str
    half_width: float | None = None
    needed: float | None = None
    rival: Rival | None = None
    paper_half_width: float = 0.0

    def __str__(self) -> str:
        return self.text


def judge(ours: Summary | None, reported: Reported, direction: str, rivals: Sequence[Rival] = ()) -> Verdict:
    """Return the verdict on one reported value, by the rule at the top of this file.

    direction: 'lower', 'higher' or 'none' (is better). rivals: of the recipe; those of other metrics are passed over.
    """
    if not reported.comparable:
        return Verdict("not comparable")
    if ours is None:
        return Verdict("unavailable")
    others = [r for r in rivals if r.metric == reported.metric and r.value != reported.value]
    rival = min(others, key=lambda r: abs(r.value - reported.value), default=None)
    needed = abs(rival.value - reported.value) if rival else WITHOUT_RIVAL * abs(reported.value)
    h = half_width(ours, reported)
    difference = ours.value - reported.value
    if h is None:
        text = "inconclusive"
    elif abs(difference) > h:
        good = direction != "none" and (difference > 0) == (direction == "higher")
        text = "better" if good else "not reproduced"
    else:
        told = h <= needed and all(abs(ours.value - r.value) > h for r in others)
        text = "reproduced" if told else "inconclusive"
    paper = _student(_paper_df(reported)) * _paper_error(reported)
    return Verdict(f"{text} (one seed)" if ours.seeds == 1 else text, h, needed, rival, paper)


def half_width(ours: Summary, reported: Reported) -> float | None:
    """Return half of the width of the 95 % interval of the difference; None if our uncertainty is not known."""
    if ours.error is None:
        return None
    several = ours.seeds > 1
    parts = [
        (ours.error / math.sqrt(ours.seeds), ours.seeds - 1.0 if several else math.inf),
        (_paper_error(reported), _paper_df(reported)),
    ]
    variance = sum(s**2 for s, _ in parts)
    uncertain = sum(s**4 / df for s, df in parts)
    return _student(variance**2 / uncertain if uncertain else math.inf) * math.sqrt(variance)


def _paper_error(reported: Reported) -> float:
    """Return one standard error of the paper's value: its own ±, over the root of the runs that it is a spread of."""
    return (reported.std or 0.0) / math.sqrt(max(reported.runs, 1))


def _paper_df(reported: Reported) -> float:
    return reported.runs - 1.0 if reported.runs > 1 else math.inf


def _student(df: float) -> float:
    """Return the 0.975 quantile of Student's t: for df between two of the table's, that of the lower."""
    return NORMAL if df == math.inf else STUDENT[max(n for n in STUDENT if n <= max(df, 1) + 1e-9)]
