"""The check for CI: it fails for what got worse, and only for that, and for numbers that may not be compared."""

import dataclasses
import json
from xml.etree import ElementTree

import pytest

from ganbench.base.errors import UserError
from ganbench.reporting import results
from ganbench.reporting.regression import FAILURES, Check, compare, load_baseline, write_junit
from ganbench.reporting.results import Measurement, Result

NETWORK = {"name": "pixels", "version": "1", "sha256": "ab"}


def measured(value, error=None, direction="lower", **changes):
    uncertainty = None if error is None else {"value": error, "kind": "standard error", "over": "x"}
    m = Measurement("m", "fd/1: x", direction, value, uncertainty, 10, 20, NETWORK)
    return dataclasses.replace(m, **changes)


def check(base, new, tolerance=None):
    (one,) = compare(
        Result({}, None, [base]), {} if tolerance is None else {"m": tolerance}, Result({}, None, [new] if new else [])
    )
    assert one.failed == (one.verdict in FAILURES)
    return one.verdict


@pytest.mark.parametrize(
    ("direction", "change", "verdict"),
    [
        ("lower", +1.51, "regression"),
        ("lower", +1.49, "ok"),
        ("lower", -1.49, "ok"),
        ("lower", -1.51, "improved"),
        ("higher", -1.51, "regression"),
        ("higher", -1.49, "ok"),
        ("higher", +1.49, "ok"),
        ("higher", +1.51, "improved"),
        ("none", +1.51, "regression"),
        ("none", -1.51, "regression"),
        ("none", +1.49, "ok"),
        ("none", -1.49, "ok"),
    ],
)
def test_only_three_combined_errors_for_the_worse_are_a_regression(direction, change, verdict):
    assert check(measured(10.0, 0.3, direction), measured(10.0 + change, 0.4, direction)) == verdict


@pytest.mark.parametrize(
    ("change", "verdict"), [(0.201, "regression"), (0.199, "ok"), (-0.201, "improved"), (-0.199, "ok")]
)
def test_a_tolerance_that_was_set_takes_the_place_of_the_errors(change, verdict):
    assert check(measured(10.0, 5.0), measured(10.0 + change, 5.0), 0.2) == verdict


def test_without_errors_only_the_rounding_of_a_print_is_allowed():
    assert check(measured(10.0), measured(10.0)) == "ok"
    assert check(measured(10.0), measured(10.0 + 1e-9)) == "ok"
    assert check(measured(10.0), measured(10.0 + 1e-7)) == "regression"
    assert check(measured(10.0), measured(10.0 + 1e-7), 0) == "regression"
    assert check(measured(-10.0), measured(-10.0 + 1e-9)) == "ok"


def test_a_metric_that_is_not_there_any_more_fails():
    assert check(measured(10.0), None) == "missing"


def test_a_metric_that_could_not_be_measured_fails():
    assert check(measured(10.0), measured(None, reason="no weights")) == "unavailable"


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": "fd/2: x"},
        {"n_fake": 21},
        {"n_real": 11},
        {"extractor": None},
        {"extractor": {**NETWORK, "name": "other"}},
        {"extractor": {**NETWORK, "version": "2"}},
        {"extractor": {**NETWORK, "sha256": "cd"}},
    ],
    ids=str,
)
def test_values_of_different_protocols_are_not_compared(change):
    assert check(measured(10.0), measured(5.0, **change)) == "protocol changed"
    assert check(measured(10.0), measured(10.0, **change)) == "protocol changed"


def test_what_the_baseline_could_not_measure_is_not_checked_and_the_order_is_its_own():
    base = Result({}, None, [measured(1.0, metric="b"), measured(None, metric="x"), measured(1.0, metric="a")])
    new = Result({}, None, [measured(1.0, metric="a"), measured(1.0, metric="new"), measured(1.0, metric="b")])
    assert [c.metric for c in compare(base, {}, new)] == ["b", "a"]


def test_a_baseline_is_a_result_with_tolerances_beside_it(tmp_path):
    path = tmp_path / "base.json"
    result = Result({}, None, [measured(1.0)])
    results.save(result, path)
    assert load_baseline(path) == (result, {})
    path.write_text(json.dumps({**json.loads(path.read_text()), "tolerances": {"m": 0.5}}))
    assert load_baseline(path) == (result, {"m": 0.5})
    with pytest.raises(UserError, match=r"unexpected keyword argument 'tolerances'"):
        results.load(path)  # a result has none


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_tolerance_that_nothing_could_break_is_refused(tmp_path, bad):
    results.save(Result({}, None, [measured(1.0)]), tmp_path / "base.json")
    value = json.loads((tmp_path / "base.json").read_text())
    (tmp_path / "base.json").write_text(json.dumps({**value, "tolerances": {"m": bad}}))
    with pytest.raises(UserError, match="not valid JSON"):
        load_baseline(tmp_path / "base.json")


def test_the_junit_file_parses_and_counts_the_failures(tmp_path):
    checks = [
        Check("a & <b>", 1.0, 2.0, 0.1, "regression"),
        Check("c", 1.0, 1.0, 0.1, "ok"),
        Check("d", 1.0, None, None, "missing"),
        Check("e", 1.0, 0.5, 0.1, "improved"),
    ]
    write_junit(checks, tmp_path / "junit.xml")
    root = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert root.tag == "testsuites"
    (suite,) = root
    assert (suite.get("tests"), suite.get("failures")) == ("4", "2")
    cases = {case.get("name"): case for case in suite}
    assert set(cases) == {"a & <b>", "c", "d", "e"}
    failed = {name for name, case in cases.items() if case.find("failure") is not None}
    assert failed == {"a & <b>", "d"}
    message = cases["a & <b>"].find("failure").get("message")
    assert "regression" in message
    assert "2.0" in message
    assert "1.0" in message
    assert (tmp_path / "junit.xml").read_text(encoding="utf-8").startswith("<?xml")


def test_a_change_for_the_better_is_no_failure_and_everything_else_but_ok_is():
    assert not Check("a", 1.0, 1.0, 0.0, "ok").failed
    assert not Check("a", 1.0, 1.0, 0.0, "improved").failed
    assert all(
        Check("a", 1.0, 1.0, 0.0, v).failed for v in ("regression", "missing", "unavailable", "protocol changed")
    )
