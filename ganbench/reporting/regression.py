"""The check for CI: new runs against a committed baseline, metric by metric.

The tolerance is the half-width of a prediction interval: if nothing has changed, the mean of the new runs lies within
it of the baseline's mean. It comes from the spread over the baseline's runs, which contains the choice of the seed and
the sampling, and is never less than sampling alone gives (`intervals.prediction`). The baseline states the rate of
false alarms of a whole check. By Bonferroni's rule each of M metrics that can fail gets 1/M of it, whatever their
correlation. A metric with a direction is tested on its bad side only.

The new runs do not widen their own tolerance: their uncertainties are not used. Whatever cannot be judged fails.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

from ganbench.base.errors import UserError
from ganbench.base.files import atomic_path
from ganbench.reporting.baseline import Baseline, Kept
from ganbench.reporting.comparable import differences, subject, why_no_number
from ganbench.reporting.intervals import POWER, prediction
from ganbench.reporting.results import Measurement, Result

FAILURES = ("regression", "changed", "missing", "unavailable", "not comparable", "cannot judge")
PRINTED = 1e-9  # of the value: two prints of one number


@dataclass(frozen=True)
class Check:
    """One line of the check.

    baseline, value: means over runs. verdict: 'ok', 'improved', 'differs' (beyond the tolerance, in a metric without a
    direction that may change), or one of FAILURES. runs: of the baseline that have the metric. sees: the smallest
    regression that this check sees with a probability of `POWER`. reason: why it cannot be judged, or what to know.
    """

    metric: str
    baseline: float | None
    value: float | None
    tolerance: float | None
    verdict: str
    runs: int = 1
    sees: float | None = None
    reason: str = ""

    @property
    def failed(self) -> bool:
        """Return True if this line fails the check."""
        return self.verdict in FAILURES


def compare(
    baseline: Baseline, results: Sequence[tuple[Path, Result]], false_alarms: float | None = None
) -> list[Check]:
    """Return a check of each metric that the baseline has, in its order.

    results: at least one new run, without copies. false_alarms: instead of the baseline's own rate.
    Raises UserError for two results of one model, if the baseline is of several models.
    """
    seen: dict[str, Path] = {}
    for path, result in results:
        name = subject(result)
        if name and name in seen and baseline.subjects > 1:
            raise UserError(
                f"{seen[name]} and {path} measure one model: they are no two runs. Give one result a model."
            )
        seen[name] = path
    rate = baseline.false_alarms if false_alarms is None else false_alarms
    tests = sum(baseline.can_fail(k) and k.measurement.metric not in baseline.tolerances for k in baseline.metrics)
    return [_check(baseline, kept, results, rate / max(tests, 1)) for kept in baseline.metrics]


def compare_with_itself(baseline: Baseline) -> list[Check]:
    """Return the checks of one new run that has the baseline's own means: to show tolerances before there is a run."""
    means = [replace(kept.measurement, value=kept.spread.mean) for kept in baseline.metrics]
    return compare(baseline, [(Path(), replace(baseline.of, measurements=means))])


def _check(baseline: Baseline, kept: Kept, results: Sequence[tuple[Path, Result]], rate: float) -> Check:
    base, metric = kept.spread, kept.measurement.metric
    two_sided = baseline.has_two_sides(metric, kept.measurement.direction)
    neither = kept.measurement.direction == "none"
    tolerance = baseline.tolerances.get(metric)
    try:
        if tolerance is None:
            tolerance = prediction(base, len(results), rate / 2 if two_sided or neither else rate)
        tolerance = max(tolerance, PRINTED * abs(base.mean))
        sees = tolerance + prediction(base, len(results), 1 - POWER)
    except OverflowError:
        tolerance = sees = math.inf

    def line(verdict: str, value: float | None = None, reason: str = "") -> Check:
        finite = math.isfinite(tolerance)
        shown = (tolerance, sees) if finite else (None, None)
        return Check(metric, base.mean, value, shown[0], verdict, base.runs, shown[1], reason)

    values = []
    for path, result in results:
        m = result.measurement(metric)
        of = f" ({path})" if len(results) > 1 else ""
        if m is None:
            return line("missing", reason=f"not in the result{of}")
        if m.value is None:
            return line("unavailable", reason=f"{m.reason or 'no value'}{of}")
        if why := why_no_number(m):
            return line("cannot judge", reason=f"{why}{of}")
        if why_not := differences((baseline.of, kept.measurement), (result, m), ("the baseline", "the result")):
            return line("not comparable", float(m.value), "; ".join(why_not) + of)
        values.append(float(m.value))
    value = math.fsum(v / len(values) for v in values)
    change = value - base.mean
    if not math.isfinite(change) or not math.isfinite(tolerance):
        return line("cannot judge", value if math.isfinite(value) else None, "the numbers are too large")
    worse = {"lower": change, "higher": -change, "none": abs(change)}[kept.measurement.direction]
    return line(_verdict(worse, tolerance, neither, two_sided), value, _remark(kept, neither and not two_sided))


def _verdict(worse: float, tolerance: float, neither: bool, two_sided: bool) -> str:
    """Return the verdict of a finite change. neither: the metric has no better or worse."""
    if abs(worse) <= tolerance:
        return "ok"
    if neither or (two_sided and worse < 0):
        return "changed" if two_sided else "differs"
    return "regression" if worse > 0 else "improved"


def _remark(kept: Kept, may_change: bool) -> str:
    if may_change:
        return "no better or worse: cannot fail"
    if len(kept.values) == 1 and kept.errors[0] is None:
        return "one run without an uncertainty: any change fails"
    return ""


def head(baseline: Baseline, runs: int, false_alarms: float | None = None) -> list[str]:
    """Return what was compared and how, in a few lines that stand above the table of checks."""
    rate = baseline.false_alarms if false_alarms is None else false_alarms
    tests = sum(baseline.can_fail(k) and k.measurement.metric not in baseline.tolerances for k in baseline.metrics)
    what = f"Mean of {runs} runs" if runs > 1 else "One run"
    of = f"{len(baseline.runs)} runs" if len(baseline.runs) > 1 else "one run"
    over = f", over {tests} metrics (Bonferroni)" if tests > 1 else ""
    lines = [
        f"{what} against a baseline of {of}. The tolerance covers {baseline.covers}.",
        f"False alarms: {100 * rate:g} % of checks{over}. Sees: the smallest regression found with "
        f"{100 * POWER:g} % probability.",
    ]
    if baseline.tolerances:
        lines.append(f"Tolerance set by hand, with no rate of false alarms: {', '.join(sorted(baseline.tolerances))}.")
    return lines


def write_junit(checks: list[Check], path: Path) -> None:
    """Write JUnit XML, a test case a metric, atomically."""
    failures = sum(c.failed for c in checks)
    suite = ElementTree.Element("testsuite", name="ganbench check", tests=str(len(checks)), failures=str(failures))
    for c in checks:
        case = ElementTree.SubElement(suite, "testcase", classname="ganbench", name=_printable(c.metric))
        text = f"{c.verdict}: value {c.value}, baseline {c.baseline} ({c.runs} runs), tolerance {c.tolerance}"
        text = _printable(f"{text}; {c.reason}" if c.reason else text)
        if c.failed:
            ElementTree.SubElement(case, "failure", message=text)
        else:
            ElementTree.SubElement(case, "system-out").text = text
    root = ElementTree.Element("testsuites")
    root.append(suite)
    with atomic_path(path) as part:
        ElementTree.ElementTree(root).write(part, encoding="utf-8", xml_declaration=True)


def _printable(text: str) -> str:
    """Return a text without characters that XML does not have."""
    return "".join(c if c.isprintable() else " " for c in text)


# --- Updates ---


@dataclass(frozen=True)
class Change:
    """One metric of a baseline that is written anew. old, new: means over runs, or None. note: what else changes."""

    metric: str
    old: float | None
    new: float | None
    note: str


def updated(old: Baseline, new: Baseline) -> tuple[Baseline, list[Change]]:
    """Return the new baseline with the settings of the old one, and what changes in each metric.

    Settings of metrics that are gone go with them. Raises UserError if the new one would know less: one run in the
    place of several, or nothing that can fail.
    """
    if len(new.runs) == 1 < len(old.runs):
        raise UserError(
            f"the baseline is of {len(old.runs)} runs, and one run cannot take their place: it knows nothing of other "
            "seeds. Give several results."
        )
    by_name = [{kept.measurement.metric: kept for kept in baseline.metrics} for baseline in (old, new)]
    before, after = by_name
    both = Baseline(
        new.of, new.runs, new.metrics, None, old.false_alarms, tuple(n for n in old.two_sided if n in after),
        {n: t for n, t in old.tolerances.items() if n in after},
    )
    if not any(map(both.can_fail, both.metrics)):
        raise UserError(f"nothing in the new baseline could fail: {', '.join(after)} have no better or worse.")
    changes = []
    for name in dict.fromkeys((*before, *after)):
        was, now = before.get(name), after.get(name)
        notes = []
        if was is None or now is None:
            notes.append("new" if was is None else "not measured any more: dropped")
        else:
            sides: list[tuple[Result, Measurement]] = [(old.of, was.measurement), (new.of, now.measurement)]
            notes += differences(sides[0], sides[1], ("the old one", "the new one"))
            if len(was.values) != len(now.values):
                notes.append(f"{len(was.values)} runs before, {len(now.values)} now")
        changes.append(Change(name, _mean(was), _mean(now), "; ".join(notes)))
    return both, changes


def _mean(kept: Kept | None) -> float | None:
    return None if kept is None else kept.spread.mean
