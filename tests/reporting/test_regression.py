"""The check for CI: it fails for what got worse, as seldom as it says otherwise, and for all that it cannot judge."""

import dataclasses
import json
import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats

from ganbench.base.errors import UserError
from ganbench.reporting import baseline as baselines
from ganbench.reporting import results
from ganbench.reporting.baseline import Baseline, Kept
from ganbench.reporting.intervals import POWER
from ganbench.reporting.regression import (
    FAILURES,
    Check,
    compare,
    compare_with_itself,
    head,
    updated,
    write_junit,
)
from ganbench.reporting.results import Measurement, Result

NETWORK = {"name": "pixels", "version": "1", "sha256": "ab"}
NEW = Path("new.json")


def measured(value, error=None, direction="lower", metric="m", **changes):
    uncertainty = None if error is None else {"value": error, "kind": "standard error", "over": "x"}
    m = Measurement(metric, "fd/1: x", direction, value, uncertainty, 10, 20, NETWORK)
    return dataclasses.replace(m, **changes)


def result(*measurements, **fields):
    return Result(fields.pop("fake", {}), None, list(measurements), **fields)


def of_runs(*values, error=None, direction="lower", **settings):
    """A baseline of one metric over several runs."""
    found = [(Path(f"{i}.json"), result(measured(v, error, direction), seed=i)) for i, v in enumerate(values)]
    return baselines.make(found, **settings)[0]


def check(base, *new):
    (one,) = compare(base, [(NEW, result(*([m] if m else []))) for m in new])
    assert one.failed == (one.verdict in FAILURES)
    return one


RUNS = (9.0, 10.0, 11.0, 10.0)
HALF = stats.t.isf(0.01, 3) * stats.tstd(RUNS) * math.sqrt(1 + 1 / 4)


@pytest.mark.parametrize(
    ("direction", "change", "verdict"),
    [
        ("lower", +1.01, "regression"), ("lower", +0.99, "ok"), ("lower", -0.99, "ok"), ("lower", -1.01, "improved"),
        ("higher", -1.01, "regression"), ("higher", -0.99, "ok"), ("higher", 0.99, "ok"), ("higher", 1.01, "improved"),
    ],
)
def test_the_tolerance_is_the_prediction_interval_of_one_more_run(direction, change, verdict):
    one = check(of_runs(*RUNS, direction=direction), measured(10 + change * HALF, direction=direction))
    assert one.verdict == verdict
    assert one.tolerance == pytest.approx(HALF)
    assert one.runs == 4


def test_the_mean_of_several_new_runs_has_a_narrower_interval():
    half = stats.t.isf(0.01, 3) * stats.tstd(RUNS) * math.sqrt(1 / 3 + 1 / 4)
    for change, verdict in ((1.01, "regression"), (0.99, "ok")):
        new = [measured(10 + change * half + d) for d in (-0.3, 0.0, 0.3)]
        assert check(of_runs(*RUNS), *new).verdict == verdict


def test_the_new_run_cannot_widen_its_own_tolerance():
    assert check(of_runs(*RUNS, error=0.1), measured(10 + 1.01 * HALF, 1e300)).verdict == "regression"
    assert check(of_runs(10.0, error=0.1), measured(11.0, 1e300)).verdict == "regression"


def test_one_run_knows_its_sampling_error_only_and_says_so():
    base = of_runs(10.0, error=0.3)
    half = stats.norm.isf(0.01) * 0.3 * math.sqrt(2)
    assert check(base, measured(10 + 1.01 * half)).verdict == "regression"
    assert check(base, measured(10 + 0.99 * half)).verdict == "ok"
    assert "sampling only" in base.to_json()["covers"]
    assert "sampling only" in head(base, 1)[0]
    assert "sampling and training" in head(of_runs(*RUNS), 1)[0]


def test_several_samplings_of_one_model_know_sampling_only():
    same = [(Path(f"{i}"), result(measured(v), fake={"checkpoint_sha256": "aa", "seed": i}))
            for i, v in enumerate(RUNS)]
    assert "sampling only" in baselines.make(same)[0].covers
    other = (Path("other"), result(measured(1.0), fake={"checkpoint_sha256": "bb"}))
    with pytest.raises(UserError, match="0 and 1 measure one model"):
        baselines.make([*same[:2], other])


def test_new_results_of_one_model_are_no_several_runs():
    found = [(Path(f"{i}"), result(measured(v), fake={"checkpoint_sha256": str(i)})) for i, v in enumerate(RUNS)]
    same = [(Path(f"new{i}"), result(measured(9.0), fake={"checkpoint_sha256": "z", "seed": i})) for i in range(2)]
    with pytest.raises(UserError, match="new0 and new1 measure one model"):
        compare(baselines.make(found)[0], same)


def test_without_errors_only_the_rounding_of_a_print_is_allowed():
    base = of_runs(10.0)
    assert check(base, measured(10.0)).verdict == "ok"
    assert check(base, measured(10.0 + 1e-9)).verdict == "ok"
    assert check(base, measured(10.0 + 1e-7)).verdict == "regression"
    assert check(of_runs(-10.0), measured(-10.0 + 1e-9)).verdict == "ok"
    assert "any change fails" in check(base, measured(10.0)).reason


@pytest.mark.parametrize(
    ("change", "verdict"), [(0.201, "regression"), (0.199, "ok"), (-0.201, "improved"), (-0.199, "ok")]
)
def test_a_tolerance_that_was_set_takes_the_place_of_the_interval(change, verdict):
    for base in (of_runs(*RUNS, tolerances={"m": 0.2}), of_runs(10.0, error=5.0, tolerances={"m": 0.2})):
        assert check(base, measured(10.0 + change)).verdict == verdict


# --- Sides ---


@pytest.mark.parametrize(
    ("direction", "settings", "better", "worse"),
    [
        ("none", {}, "differs", "differs"),
        ("none", {"two_sided": ["m"]}, "changed", "changed"),
        ("none", {"tolerances": {"m": HALF}}, "changed", "changed"),
        ("lower", {"two_sided": ["m"]}, "changed", "regression"),
        ("lower", {}, "improved", "regression"),
    ],
)
def test_a_change_for_the_better_fails_only_where_the_baseline_says_so(direction, settings, better, worse):
    base = of_runs(*RUNS, direction=direction, **settings)
    assert check(base, measured(10 - 9 * HALF, direction=direction)).verdict == better
    assert check(base, measured(10 + 9 * HALF, direction=direction)).verdict == worse
    assert check(base, measured(10.0, direction=direction)).verdict == "ok"
    assert ("cannot fail" in check(base, measured(10.0, direction=direction)).reason) == (better == "differs")


def test_two_sides_share_the_rate_of_false_alarms():
    both = check(of_runs(*RUNS, direction="none", two_sided=["m"]), measured(10.0, direction="none"))
    assert both.tolerance == pytest.approx(stats.t.isf(0.005, 3) / stats.t.isf(0.01, 3) * HALF)


def test_metrics_that_can_fail_share_the_rate_of_false_alarms():
    """Bonferroni, without those that cannot fail and those with a tolerance that was set by hand."""
    def several(value, seed):
        names = {"a": "lower", "b": "higher", "c": "none", "d": "lower"}
        return result(*(measured(value, metric=n, direction=d) for n, d in names.items()), seed=seed)

    base, _ = baselines.make(
        [(Path(str(i)), several(v, i)) for i, v in enumerate(RUNS)], 0.02, tolerances={"d": 3.0}
    )
    found = {c.metric: c.tolerance for c in compare(base, [(NEW, several(10.0, 9))])}
    assert found["a"] == found["b"] == pytest.approx(HALF)
    assert found["d"] == 3.0
    assert {c.metric: c.tolerance for c in compare(base, [(NEW, several(10.0, 9))], 0.2)}["a"] == pytest.approx(
        stats.t.isf(0.1, 3) / stats.t.isf(0.01, 3) * HALF
    )


# --- Whether the rates hold ---


def simulated(k, n, rng, error, shift=None):
    """Checks of `n` unchanged new runs against baselines of k runs of normal values: three metrics that can fail and
    one that cannot. shift: what a check adds to metric `a` from its own lines, for the worse."""
    kinds = {"a": "lower", "b": "higher", "both": "none", "free": "none"}
    identities = {name: Measurement(name, "p", d) for name, d in kinds.items()}
    for _ in range(n):
        kept = [
            Kept(identities[name], tuple(float(v) for v in rng.normal(5, 1, k)), (error,) * k) for name in kinds
        ]
        base = Baseline(Result(None, None, []), [{"seed": i} for i in range(k)], kept, None, 0.05, ("both",))
        new = {name: float(v) for name, v in zip(kinds, rng.normal(5, 1, 4), strict=True)}
        if shift:
            new["a"] += shift(compare_with_itself(base)[0])
        measurements = [dataclasses.replace(identities[name], value=v) for name, v in new.items()]
        yield compare(base, [(NEW, Result(None, None, measurements))])


@pytest.mark.parametrize("k", range(2, 11))
def test_an_unchanged_recipe_fails_as_often_as_stated(k):
    n, rate = 1500, 1 - (1 - 0.05 / 3) ** 3  # independent metrics: hardly below the stated 5 %
    failed = sum(any(c.failed for c in checks) for checks in simulated(k, n, np.random.default_rng(k), None))
    assert failed == pytest.approx(n * rate, abs=3.5 * math.sqrt(n * rate))


def test_the_bound_of_sampling_makes_false_alarms_rarer_only():
    n = 1500
    failed = sum(any(c.failed for c in checks) for checks in simulated(3, n, np.random.default_rng(0), 0.8))
    assert 0 < failed < n * 0.05 + 3.5 * math.sqrt(n * 0.05)


@pytest.mark.parametrize("k", [2, 5, 10])
def test_a_regression_of_the_size_that_it_names_is_seen_as_often_as_it_says(k):
    n = 1000
    found = sum(
        checks[0].verdict == "regression"
        for checks in simulated(k, n, np.random.default_rng(k), None, lambda line: line.sees)
    )
    assert found == pytest.approx(n * POWER, abs=3.5 * math.sqrt(n * POWER * (1 - POWER)))


# --- What cannot be judged ---


def test_a_metric_that_is_not_there_or_has_no_value_fails():
    assert check(of_runs(*RUNS), None).verdict == "missing"
    assert check(of_runs(*RUNS), measured(10.0), None).verdict == "missing"
    gone = check(of_runs(*RUNS), measured(None, reason="no weights"))
    assert (gone.verdict, gone.reason) == ("unavailable", "no weights")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "12.5", "nan", True, 10**400], ids=repr)
@pytest.mark.parametrize("direction", ["lower", "higher", "none"])
def test_a_number_that_is_none_fails_and_says_why(bad, direction):
    base = of_runs(*RUNS, direction=direction, two_sided=["m"])
    one = check(base, measured(bad, direction=direction))
    assert one.verdict == "cannot judge"
    assert "its value is" in one.reason
    one = check(base, measured(1000.0, bad, direction=direction))
    assert one.verdict == "cannot judge"
    assert "its uncertainty is" in one.reason
    with pytest.raises(UserError, match="cannot be in a baseline: its value is"):
        of_runs(10.0, bad, direction=direction)
    with pytest.raises(UserError, match="cannot be in a baseline: its uncertainty is"):
        of_runs(10.0, 11.0, error=bad, direction=direction)


def test_numbers_too_large_to_count_with_fail():
    with pytest.raises(UserError, match=r"cannot be in a baseline: the values are too large"):
        of_runs(1.7e308, -1.7e308)
    assert check(of_runs(-1.7e308), measured(1.7e308)).verdict == "cannot judge"
    assert check(of_runs(1.0, error=1e200, tolerances={"m": 1.0}), measured(2.5)).verdict == "regression"
    huge = Kept(measured(None), (1.0, 1.7e308), (None, None))
    one = check(Baseline(Result({}, None, []), [{}, {}], [huge]), measured(5.0))
    assert one.verdict == "cannot judge"


@pytest.mark.parametrize(
    "change", [{"protocol": "fd/2: x"}, {"n_fake": 21}, {"n_real": 11}, {"extractor": None}], ids=str
)
def test_values_that_were_measured_in_another_way_are_not_compared(change):
    for value in (5.0, 10.0):
        one = check(of_runs(*RUNS), measured(value, **change))
        assert one.verdict == "not comparable"
        assert "the baseline has" in one.reason
    with pytest.raises(UserError, match="m cannot be compared over the runs: "):
        baselines.make([(Path("a"), result(measured(1.0))), (Path("b"), result(measured(2.0, **change), seed=1))])


def test_another_reference_is_no_comparison():
    """A real set of the same size under another fingerprint."""
    def on(fingerprint, value):
        reference = {"kind": "dataset", "name": "x", "split": "train", "fingerprint": fingerprint * 64, "count": 10}
        return Result({}, reference, [measured(value)])

    base, _ = baselines.make([(Path("a"), on("1", 9.0))], tolerances={"m": 1.0})
    (one,) = compare(base, [(NEW, on("2", 9.0))])
    assert one.verdict == "not comparable"
    assert "reference" in one.reason
    assert compare(base, [(NEW, on("1", 9.0))])[0].verdict == "ok"


def test_what_the_baseline_could_not_measure_is_not_checked_and_the_order_is_its_own():
    base, remarks = baselines.make([(Path("f.json"), result(
        measured(1.0, metric="b"), measured(None, metric="x", reason="no labels"), measured(1.0, metric="a")
    ))])
    new = result(measured(1.0, metric="a"), measured(1.0, metric="new"), measured(1.0, metric="b"))
    assert [c.metric for c in compare(base, [(NEW, new)])] == ["b", "a"]
    assert remarks == ["f.json has no x: no labels"]


# --- JUnit ---


def test_the_junit_file_parses_and_counts_the_failures(tmp_path):
    checks = [
        Check("a & <b>", 1.0, 2.0, 0.1, "regression"),
        Check("c", 1.0, 1.0, 0.1, "ok"),
        Check("d", 1.0, None, None, "missing", reason="with\x00a\x1bcharacter"),
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
    for word in ("regression", "2.0", "1.0"):
        assert word in message
    assert "with a character" in cases["d"].find("failure").get("message")
    assert (tmp_path / "junit.xml").read_text(encoding="utf-8").startswith("<?xml")


def test_only_ok_improved_and_differs_are_no_failures():
    for verdict in ("ok", "improved", "differs"):
        assert not Check("a", 1.0, 1.0, 0.0, verdict).failed
    assert {"regression", "changed", "missing", "unavailable", "not comparable", "cannot judge"} == set(FAILURES)


# --- The file ---


def test_a_baseline_comes_back_from_its_file(tmp_path):
    base = of_runs(*RUNS, error=0.1, two_sided=["m"], tolerances={"m": 0.5}, false_alarms=0.02)
    baselines.save(base, tmp_path / "b.json")
    assert baselines.load(tmp_path / "b.json") == base
    assert json.loads((tmp_path / "b.json").read_text())["baseline"] == 1


def test_a_result_file_is_a_baseline_of_one_run_with_settings_beside_its_keys(tmp_path):
    path = tmp_path / "base.json"
    of = result(measured(1.0, 0.1), seed=4, recipe={"name": "tiny", "version": 1})
    results.save(of, path)
    old = baselines.load(path)
    assert (old.metrics[0].values, old.metrics[0].errors, old.seed, old.false_alarms) == ((1.0,), (0.1,), 4, 0.01)
    settings = {"tolerances": {"m": 0.5}, "two_sided": ["m"], "false_alarms": 0.1}
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    old = baselines.load(path)
    assert (old.tolerances, old.two_sided, old.false_alarms) == ({"m": 0.5}, ("m",), 0.1)
    with pytest.raises(UserError, match=r"base\.json"):
        results.load(path)  # a result has none


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"baseline": 2}, "has format 2, and this ganbench reads 1"),
        ({"baseline": "1"}, "has format '1'"),
        ({"false_alarms": 0}, "'false_alarms' must be a number of"),
        ({"false_alarms": True}, "'false_alarms' must be a number of"),
        ({"false_alarm": 0.1}, "unknown key 'false_alarm'. Did you mean 'false_alarms'"),
        ({"two_sided": "m"}, "'two_sided' must be a list"),
        ({"two_sided": ["n"]}, "there is no measurement 'n'"),
        ({"tolerances": {"n": 1}}, "a tolerance for 'n'"),
        ({"tolerances": {"m": -1}}, "'tolerances' must map"),
        ({"recipe": "tiny"}, "'recipe' must be an object"),
        ({"overrides": [1]}, "'overrides' must be an object"),
        ({"runs": []}, "'runs' must be a list of at least one"),
        ({"runs": [{"subject": []}] * 4}, "'runs': the values of a run must be texts or numbers"),
        ({"measurements": [3]}, "'measurements' must be a list"),
        ({"values": [1.0] * 5}, "(m): 'values' must be 1 to 4 finite numbers"),
        ({"values": []}, "'values' must be 1 to 4"),
        ({"values": ["9", 10, 11, 10]}, "'values' must be 1 to 4 finite"),
        ({"errors": [0.1]}, "'errors' must be"),
        ({"errors": [-0.1, 0, 0, 0]}, "'errors' must be"),
        ({"direction": "up"}, "'direction' must be one of lower, higher, none"),
        ({"direction": "none"}, "nothing that could fail: m have no better or worse"),
        ({"n_real": 1.5}, "'n_real' must be a whole number"),
        ({"protocol": None}, "'protocol' must be a text"),
        ({"extractor": "pixels"}, "'extractor' must be an object"),
        ({"colour": "red"}, "unknown key 'colour'"),
    ],
    ids=str,
)
def test_a_baseline_with_a_mistake_is_refused_with_its_key(tmp_path, change, words):
    value = of_runs(*RUNS, error=0.1).to_json()
    for key, new in change.items():
        (value if key in value or key in ("false_alarm", "colour") else value["measurements"][0])[key] = new
    (tmp_path / "b.json").write_text(json.dumps(value))
    with pytest.raises(UserError) as caught:
        baselines.load(tmp_path / "b.json")
    assert str(caught.value).startswith(f"the baseline {tmp_path / 'b.json'}")
    assert words in str(caught.value)


@pytest.mark.parametrize("bad", ["NaN", "Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize(
    "old", ['"false_alarms": 0.01', '"m": 0.5', "[9.0, 10.0, 11.0, 10.0]", "[0.25, 0.25, 0.25, 0.25]"]
)
def test_a_baseline_with_a_number_that_nothing_could_break_is_refused(tmp_path, bad, old):
    text = json.dumps(of_runs(*RUNS, error=0.25, tolerances={"m": 0.5}).to_json())
    assert text.count(old) == 1
    number = old.rpartition(" ")[2].rstrip("]")
    (tmp_path / "b.json").write_text(text.replace(old, old.replace(number, bad)))
    with pytest.raises(UserError, match=r"b\.json"):
        baselines.load(tmp_path / "b.json")


@pytest.mark.parametrize("bad", ["NaN", "Infinity", "1e999"])
@pytest.mark.parametrize("old", ['"value": 12.0', '"value": 0.25', '"m": 0.5'])
def test_a_result_file_with_such_a_number_is_no_baseline(tmp_path, bad, old):
    value = {**result(measured(12.0, 0.25)).to_json(), "tolerances": {"m": 0.5}}
    text = json.dumps(value)
    assert text.count(old) == 1
    (tmp_path / "b.json").write_text(text.replace(old, old.split(" ")[0] + " " + bad))
    with pytest.raises(UserError, match=r"b\.json"):
        baselines.load(tmp_path / "b.json")


# --- Making and updating ---


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"recipe": {"name": "other", "version": 1}}, "no runs of one recipe: 'name' is tiny and other"),
        ({"recipe": {"name": "tiny", "version": 2}}, "no runs of one recipe: 'version' is 1 and 2"),
        ({"overrides": {"steps": 3}}, "no runs of one kind: overrides"),
    ],
    ids=str,
)
def test_runs_of_two_recipes_are_no_baseline(change, words):
    fields = {"recipe": {"name": "tiny", "version": 1}, "seed": 1}
    found = [(Path("a"), result(measured(1.0), **fields)), (Path("b"), result(measured(1.0), **{**fields, **change}))]
    with pytest.raises(UserError, match=words):
        baselines.make(found)


def test_a_copied_run_is_no_second_seed():
    one = result(measured(1.0), fake={"checkpoint_sha256": "aa"}, created="2026")
    base, remarks = baselines.make([(Path("a"), one), (Path("b"), one)])
    assert (len(base.runs), base.metrics[0].values) == (1, (1.0,))
    assert remarks == ["b is a copy of a: counted once"]


def test_an_update_keeps_the_settings_and_says_what_changes():
    old = of_runs(*RUNS, two_sided=["m"], false_alarms=0.2)
    more = [(Path(f"{i}"), result(measured(v, protocol="fd/2: x"), measured(1.0, metric="n"), seed=i))
            for i, v in enumerate((1.0, 2.0, 3.0))]
    new, changes = updated(old, baselines.make(more)[0])
    assert (new.two_sided, new.false_alarms, new.metrics[0].values) == (("m",), 0.2, (1.0, 2.0, 3.0))
    assert [(c.metric, c.old, c.new) for c in changes] == [("m", 10.0, 2.0), ("n", None, 1.0)]
    assert changes[0].note == (
        "protocol: the old one has fd/1: x, the new one has fd/2: x; 4 runs before, 3 now"
    )
    assert changes[1].note == "new"
    back, changes = updated(new, old)
    assert [c.note for c in changes][1] == "not measured any more: dropped"
    assert [k.measurement.metric for k in back.metrics] == ["m"]


def test_one_run_does_not_take_the_place_of_several():
    with pytest.raises(UserError, match="of 4 runs, and one run cannot take their place"):
        updated(of_runs(*RUNS), of_runs(10.0))
