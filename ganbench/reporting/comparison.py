"""Two sets of results side by side: the difference with its standard error, and whether it is larger than chance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ganbench.base.errors import UserError
from ganbench.reporting.comparable import differences, subject, why_no_number
from ganbench.reporting.intervals import Spread, difference, holm, spread, student_tail
from ganbench.reporting.results import Measurement, Result

LEVEL = 0.05  # chance of one false difference or more in a table
Side = Sequence[tuple[Path, Result]]


@dataclass(frozen=True)
class Comparison:
    """One metric of two sides. Every error is one standard error of the number before it, or None if none is known.

    a, b: means over the side's runs. difference: b - a. p: of the two-sided test that it is 0, corrected for the number
    of metrics tested. verdict: 'b better', 'a better', 'different' (a metric without a direction), 'within noise', or
    why nothing can be said.
    """

    metric: str
    a: float | None = None
    a_error: float | None = None
    b: float | None = None
    b_error: float | None = None
    difference: float | None = None
    error: float | None = None
    p: float | None = None
    verdict: str = ""


def compare(a: Side, b: Side) -> list[Comparison]:
    """Return a comparison of each metric that either side has, in the order of the first result.

    a, b: at least one run each, without copies; several are runs with different seeds. `intervals.difference` says
    which errors are taken. The errors of both sides are taken as independent. They share the reference, so that for
    distances the error is too large rather than too small. A standard deviation over splits is used as if it were a
    standard error: it is larger.

    Raises UserError for two results of one model on a side.
    """
    for side in (a, b):
        seen: dict[str, Path] = {}
        for path, result in side:
            name = subject(result)
            if name and name in seen:
                raise UserError(
                    f"{seen[name]} and {path} measure one model: they are no two runs. Give one result a model."
                )
            seen[name] = path
    names = dict.fromkeys(m.metric for _, result in (*a, *b) for m in result.measurements)
    found = [_compare(name, a, b) for name in names]
    tested = [i for i, (c, _) in enumerate(found) if c.p is not None]
    corrected = holm([p for i in tested if (p := found[i][0].p) is not None])
    lines = [c for c, _ in found]
    for i, p in zip(tested, corrected, strict=True):
        lines[i] = replace(lines[i], p=p, verdict=_verdict(lines[i], found[i][1], p))
    return lines


def _verdict(c: Comparison, direction: str, p: float) -> str:
    if p > LEVEL or c.difference is None:
        return "within noise"
    if direction == "none":
        return "different"
    return "b better" if (c.difference > 0) == (direction == "higher") else "a better"


def _compare(name: str, a: Side, b: Side) -> tuple[Comparison, str]:
    """Return the comparison of one metric before the correction, and the metric's direction."""
    sides: list[list[tuple[Path, Result, Measurement]]] = []
    missing, wrong = [], []
    for which, side in (("a", a), ("b", b)):
        found = [(path, result, m) for path, result in side if (m := result.measurement(name)) and m.value is not None]
        wrong += [f"{why} in {path}" for path, _, m in found if (why := why_no_number(m))]
        if len(found) < len(side):
            missing.append(which if len(side) == 1 else f"all of {which}")
        sides.append(found)
    first = next(m for _, result in (*a, *b) if (m := result.measurement(name)))
    if wrong:
        return Comparison(name, verdict=f"cannot judge: {'; '.join(wrong)}"), first.direction
    try:
        spreads = [_spread(found) if found else None for found in sides]
    except OverflowError as why:
        return Comparison(name, verdict=f"cannot judge: {why}"), first.direction
    one, two = spreads
    shown = Comparison(name, *_shown(one), *_shown(two))
    if missing or one is None or two is None:
        return replace(shown, verdict=f"not measured in {' and '.join(missing)}"), first.direction
    base = sides[0][0]
    for which, found in zip("ab", sides, strict=True):
        for path, result, m in found:
            other = "b" if which == "b" else str(path)
            if why_not := differences(base[1:], (result, m), ("a", other)):
                return replace(shown, verdict=f"not comparable: {'; '.join(why_not)}"), first.direction
    gap = two.mean - one.mean
    if not math.isfinite(gap):
        return replace(shown, verdict="cannot judge: the values are too large"), first.direction
    try:
        tested = difference(one, two)
    except OverflowError:
        return replace(shown, verdict="cannot judge: the values are too large"), first.direction
    if tested is None:
        return replace(shown, difference=gap, verdict="no uncertainty"), first.direction
    error, df = tested
    p = 2 * student_tail(abs(gap) / error, df) if error > 0 else float(gap == 0)
    return replace(shown, difference=gap, error=error, p=min(p, 1.0)), first.direction


def _spread(found: list[tuple[Path, Result, Measurement]]) -> Spread:
    return spread([float(m.value) for *_, m in found if m.value is not None], [m.error for *_, m in found])


def _shown(of: Spread | None) -> tuple[float | None, float | None]:
    """Return a side's mean and one standard error of it."""
    if of is None:
        return None, None
    return of.mean, of.sampling if of.sd is None else of.sd / math.sqrt(of.runs)


def head(found: Sequence[Comparison], a: int, b: int) -> list[str]:
    """Return what the numbers of a table mean, in lines that stand above it. a, b: the number of runs of each side."""
    tests = sum(c.p is not None for c in found)
    if a > 1 and b > 1:
        how = f"{a} runs against {b}: the ± covers sampling and the choice of the seed (Welch's t)."
    elif a > 1 or b > 1:
        how = f"{a} against {b} runs: the one run is taken to scatter as the others do."
    else:
        how = "One run a side: the ± covers sampling, not the choice of the seed."
    corrected = f", corrected for {tests} tests (Holm)" if tests > 1 else ""
    return [how, f"± is one standard error; p is two-sided{corrected}; a difference is named at p <= {LEVEL:g}."]
