"""Orders: whether one recipe of a table comes out better than another, as its paper says.

A claim of a paper about an order (with attention is better than without) is often all that short runs can test. A group
states it in an `order` table, and it has a verdict of its own:

- `as expected`: the 95 % interval of the difference does not contain 0, and the recipe that should be better is.
- `the other way`: the interval does not contain 0, and the other recipe is better.
- `inconclusive`: the interval contains 0, or is not known.
- `not comparable`: the two were not measured alike; the verdict says in what they differ.
- `not run`: one of the two has no result; or one has full runs, and the other short ones alone.

The interval is Student's t of the difference of the means over seeds (`intervals.difference`). One seed a side has the
measurements' own uncertainties, which do not cover the choice of the seed, and the verdict says so: `(one seed)`.
Several orders of a table are judged one by one: at 95 % one of twenty true ties is called a difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ganbench.recipes import Order
from ganbench.reporting.comparable import differences, why_no_number
from ganbench.reporting.intervals import Spread, difference, spread, student_quantile
from ganbench.reporting.results import Measurement, Result

TAIL = 0.025  # of each side of the interval


@dataclass(frozen=True)
class Judged:
    """The verdict on an order and what it rests on; None for what is not known.

    better, worse: the two sides over their seeds. difference: better's mean minus worse's. half_width: of its 95 %
    interval.
    """

    verdict: str
    better: Spread | None = None
    worse: Spread | None = None
    difference: float | None = None
    half_width: float | None = None


def judge(order: Order, better: Sequence[Result], worse: Sequence[Result]) -> Judged:
    """Return the verdict on an order from results that count: of its two recipes, both at one length."""
    if missing := [name for name, side in ((order.better, better), (order.worse, worse)) if not side]:
        return Judged(f"not run: {' and '.join(missing)}")
    sides = [
        [(r, m) for r in side if (m := r.measurement(order.metric)) and m.value is not None] for side in (better, worse)
    ]
    if not all(sides):
        return Judged("unavailable")
    first, everything = sides[0][0], [pair for side in sides for pair in side]
    for result, m in everything:
        why = [why_no_number(m)] if why_no_number(m) else differences(first, (result, m), (order.better, order.worse))
        if why:
            return Judged(f"not comparable: {'; '.join(why)}")
    one, two = map(_spread, sides)
    gap, tested, half = one.mean - two.mean, difference(two, one), None
    verdict = "inconclusive"
    if tested is not None:
        half = student_quantile(TAIL, tested[1]) * tested[0]
        if abs(gap) > half and first[1].direction != "none":
            verdict = "as expected" if (gap > 0) == (first[1].direction == "higher") else "the other way"
    return Judged(f"{verdict} (one seed)" if one.runs == two.runs == 1 else verdict, one, two, gap, half)


def _spread(side: list[tuple[Result, Measurement]]) -> Spread:
    return spread([float(m.value) for _, m in side if m.value is not None], [m.error for _, m in side])
