"""The check for CI: a result against a committed baseline, metric by metric.

A baseline is a result file, with an optional `"tolerances": {metric: allowed change for the worse}` beside its keys.
Where none is given, the tolerance is three times the combined uncertainty of both values. Only a change for the worse
fails; for a metric without a direction any does.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ganbench.base.errors import UserError
from ganbench.base.files import atomic_path, read_json
from ganbench.reporting.results import Measurement, Result, parse

SIGMAS = 3.0
FAILURES = ("regression", "missing", "unavailable", "protocol changed")


@dataclass(frozen=True)
class Check:
    """One line of the check. verdict: 'ok', 'improved', or one of FAILURES."""

    metric: str
    baseline: float | None
    value: float | None
    tolerance: float | None
    verdict: str

    @property
    def failed(self) -> bool:
        return self.verdict in FAILURES


def load_baseline(path: Path) -> tuple[Result, dict[str, float]]:
    """The baseline's result and its tolerances. Raises UserError for anything that is not one."""
    value = read_json(path, "baseline")
    tolerances = value.pop("tolerances", {}) if isinstance(value, dict) else {}
    if not isinstance(tolerances, dict) or not all(_is_tolerance(t) for t in tolerances.values()):
        raise UserError(f"the baseline {path}: 'tolerances' must map metrics to numbers that are not negative.")
    baseline = parse(value, path, "baseline")
    known = [m.metric for m in baseline.measurements]
    for metric in tolerances:
        if metric not in known:
            raise UserError(
                f"the baseline {path}: there is a tolerance for '{metric}' but no measurement. "
                f"It has {', '.join(known)}."
            )
    if not any(m.value is not None for m in baseline.measurements):
        raise UserError(f"the baseline {path} has no measured value to compare with.")
    return baseline, tolerances


def _is_tolerance(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def compare(baseline: Result, tolerances: dict[str, float], result: Result) -> list[Check]:
    """One check for each metric that the baseline has a value of, in its order."""
    return [
        _check(m, tolerances.get(m.metric), result.measurement(m.metric))
        for m in baseline.measurements
        if m.value is not None
    ]


def _check(base: Measurement, tolerance: float | None, new: Measurement | None) -> Check:
    assert base.value is not None
    if new is None:
        return Check(base.metric, base.value, None, tolerance, "missing")
    if new.value is None:
        return Check(base.metric, base.value, None, tolerance, "unavailable")
    if identity(base) != identity(new):
        return Check(base.metric, base.value, new.value, tolerance, "protocol changed")
    if tolerance is None:
        tolerance = SIGMAS * math.hypot(base.error or 0.0, new.error or 0.0)
    tolerance = max(tolerance, 1e-9 * abs(base.value))  # two prints of one number
    change = new.value - base.value
    worse = {"lower": change, "higher": -change, "none": abs(change)}[base.direction]
    verdict = (
        "regression" if worse > tolerance else "improved" if base.direction != "none" and -worse > tolerance else "ok"
    )
    return Check(base.metric, base.value, new.value, tolerance, verdict)


def identity(m: Measurement) -> tuple[Any, ...]:
    """Formula, version, network and counts of a measurement: two values are comparable if these are equal."""
    extractor = m.extractor or {}
    return m.protocol, extractor.get("name"), extractor.get("version"), extractor.get("sha256"), m.n_fake, m.n_real


def write_junit(checks: list[Check], path: Path) -> None:
    """JUnit XML, a test case a metric, atomically."""
    failures = sum(c.failed for c in checks)
    suite = ElementTree.Element("testsuite", name="ganbench check", tests=str(len(checks)), failures=str(failures))
    for c in checks:
        case = ElementTree.SubElement(suite, "testcase", classname="ganbench", name=c.metric)
        text = f"{c.verdict}: value {c.value}, baseline {c.baseline}, tolerance {c.tolerance}"
        if c.failed:
            ElementTree.SubElement(case, "failure", message=text)
        else:
            ElementTree.SubElement(case, "system-out").text = text
    root = ElementTree.Element("testsuites")
    root.append(suite)
    with atomic_path(path) as part:
        ElementTree.ElementTree(root).write(part, encoding="utf-8", xml_declaration=True)
