"""Baselines: what a check compares new runs with, in a file that is committed and reviewed.

A baseline holds the values of several runs of one recipe, with their sampling errors, so that a check knows how much
runs scatter that differ in nothing but the seed. `docs/result-json.md` describes the file key by key. An older form is
a result file, with optional `tolerances`, `two_sided` and `false_alarms` beside its keys: a baseline of one run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ganbench.base.errors import UserError, did_you_mean
from ganbench.base.files import read_json, write_json
from ganbench.reporting.comparable import differences, is_number, subject, why_no_number, without_copies
from ganbench.reporting.intervals import Spread, spread
from ganbench.reporting.results import Measurement, Result, parse

FORMAT = 1  # of the file; raise it if an older ganbench would misread the new form
FALSE_ALARMS = 0.01
LEAST_FALSE_ALARMS, MOST_FALSE_ALARMS = 1e-6, 0.5
SETTINGS = ("false_alarms", "two_sided", "tolerances")  # keys that people edit
SETS = ("recipe", "fake", "reference", "held_out")
KEYS = ("baseline", *SETTINGS, "covers", *SETS, "overrides", "runs", "measurements")
FAKE_KEYS = ("kind", "model", "count", "shape", "labels", "resize", "channels", "alpha")  # shared by all seeds
NETWORK_KEYS = ("name", "version", "sha256")
MEASUREMENT_KEYS = ("metric", "protocol", "direction", "extractor", "n_real", "n_fake", "values", "errors")
DIRECTIONS = ("lower", "higher", "none")


@dataclass(frozen=True)
class Kept:
    """One metric of a baseline.

    measurement: its identity, without a value. values, errors: of the runs that have it.
    """

    measurement: Measurement
    values: tuple[float, ...]
    errors: tuple[float | None, ...]

    @property
    def spread(self) -> Spread:
        """Mean and scatter over the runs."""
        return spread(self.values, self.errors)


@dataclass(frozen=True)
class Baseline:
    """Values of one or more runs, and how strictly new runs are judged.

    of: what all runs share: recipe, overrides, sets of images. Its measurements have no values; these are in `metrics`.
    runs: for each run its seed, creation time, commit, device and subject (`comparable.subject`).
    seed: of the run to look for; None: any. false_alarms: chance of a failed check although nothing has changed.
    two_sided: metrics that may not change for the better either. tolerances: set by hand, in the metric's unit.
    """

    of: Result
    runs: list[dict[str, Any]]
    metrics: list[Kept]
    seed: int | None = None
    false_alarms: float = FALSE_ALARMS
    two_sided: tuple[str, ...] = ()
    tolerances: dict[str, float] = field(default_factory=dict)

    @property
    def subjects(self) -> int:
        """Number of models that were measured; runs without a known subject count as one model each."""
        known = [str(run.get("subject") or "") for run in self.runs]
        return len({s for s in known if s}) + known.count("")

    @property
    def covers(self) -> str:
        """What the tolerance covers, in words."""
        if len(self.runs) == 1:
            return "sampling only: one run says nothing of other seeds"
        if self.subjects == 1:
            return f"sampling only: all {len(self.runs)} results are of one model"
        return f"sampling and training: the spread over {len(self.runs)} runs"

    def has_two_sides(self, metric: str, direction: str) -> bool:
        """Return True if a change in either direction fails: named in `two_sided`, or without a direction but with a
        tolerance that was set by hand."""
        return metric in self.two_sided or (direction == "none" and metric in self.tolerances)

    def can_fail(self, kept: Kept) -> bool:
        """Return True if a change of this metric can fail a check."""
        m = kept.measurement
        return m.direction != "none" or self.has_two_sides(m.metric, m.direction)

    def to_json(self) -> dict[str, Any]:
        """Return the baseline as it stands in its file (docs/result-json.md)."""
        return {
            "baseline": FORMAT,
            "false_alarms": self.false_alarms,
            "two_sided": list(self.two_sided),
            "tolerances": self.tolerances,
            "covers": self.covers,
            **{key: getattr(self.of, key) for key in SETS},
            "overrides": self.of.overrides,
            "runs": self.runs,
            "measurements": [
                {
                    **{key: getattr(kept.measurement, key) for key in MEASUREMENT_KEYS[:-2]},
                    "values": list(kept.values),
                    "errors": list(kept.errors),
                }
                for kept in self.metrics
            ],
        }


# --- Making ---


def make(
    found: Sequence[tuple[Path, Result]], false_alarms: float = FALSE_ALARMS, two_sided: Sequence[str] = (),
    tolerances: dict[str, float] | None = None,
) -> tuple[Baseline, list[str]]:
    """Return the baseline of these results, and remarks on copies and on metrics that it does not have.

    Raises UserError for results that may not be compared with one another, for numbers that are not finite, for two
    results of one model beside others, and for metrics named in `two_sided` that were not measured.
    """
    kept, remarks = without_copies(found)
    (first_path, first), *others = kept
    subjects = [subject(result) for _, result in kept]
    if len(set(subjects)) > 1:
        for i, name in enumerate(subjects):
            if name and name in subjects[:i]:
                raise UserError(
                    f"{kept[subjects.index(name)][0]} and {kept[i][0]} measure one model: they are no two runs. Give "
                    "one result a model."
                )
    for path, result in others:
        for key in ("name", "version", "budget"):
            mine, its = ((r.recipe or {}).get(key) for r in (first, result))
            if mine != its:
                raise UserError(f"{first_path} and {path} are no runs of one recipe: '{key}' is {mine} and {its}.")
        if result.overrides != first.overrides:
            raise UserError(
                f"{first_path} and {path} are no runs of one kind: overrides {first.overrides} and {result.overrides}."
            )
    metrics = []
    for name in dict.fromkeys(m.metric for _, result in kept for m in result.measurements):
        values: list[tuple[Path, Result, Measurement]] = []
        for path, result in kept:
            m = result.measurement(name)
            if m is None or m.value is None:
                remarks.append(f"{path} has no {name}" + (f": {m.reason}" if m and m.reason else ""))
                continue
            if why := why_no_number(m):
                raise UserError(f"{path}: {name} cannot be in a baseline: {why}. Make the result again.")
            if values and (why_not := differences(values[0][1:], (result, m), (str(values[0][0]), str(path)))):
                raise UserError(f"{name} cannot be compared over the runs: {'; '.join(why_not)}.")
            values.append((path, result, m))
        if values:
            metrics.append(_kept([m for _, _, m in values], values[0][0]))
    if not metrics:
        raise UserError(f"{first_path} has no measured value, so it cannot be a baseline.")
    names = [kept.measurement.metric for kept in metrics]
    for name in two_sided:
        if name not in names:
            raise UserError(f"the baseline cannot hold '{name}' on two sides: not measured.{did_you_mean(name, names)}")
    of = Result(
        fake=first.fake and {k: first.fake[k] for k in FAKE_KEYS if k in first.fake}, reference=first.reference,
        held_out=first.held_out, measurements=[kept.measurement for kept in metrics], recipe=first.recipe,
        overrides=first.overrides,
    )
    runs = [_run(result) for _, result in kept]
    return Baseline(of, runs, metrics, None, false_alarms, tuple(two_sided), dict(tolerances or {})), remarks


def _kept(measurements: list[Measurement], path: Path) -> Kept:
    m = measurements[0]
    network = m.extractor and {key: m.extractor.get(key) for key in NETWORK_KEYS}
    values = tuple(float(x.value) for x in measurements if x.value is not None)
    identity = Measurement(m.metric, m.protocol, m.direction, n_real=m.n_real, n_fake=m.n_fake, extractor=network)
    kept = Kept(identity, values, tuple(x.error for x in measurements))
    _require_spread(kept, path)
    return kept


def _require_spread(kept: Kept, path: Path) -> None:
    try:
        kept.spread  # noqa: B018
    except OverflowError as error:
        raise UserError(f"{path}: {kept.measurement.metric} cannot be in a baseline: {error}.") from error


def _run(result: Result) -> dict[str, Any]:
    """Return what a baseline keeps of a run, to say where its values come from."""
    env = result.environment
    run = {
        "seed": result.seed, "created": result.created, "commit": env.get("commit", ""), "dirty": env.get("dirty"),
        "device": env.get("device", ""), "torch": (env.get("packages") or {}).get("torch", ""),
        "subject": subject(result),
    }
    return {key: value for key, value in run.items() if value not in ("", None)}


# --- Files ---


def save(baseline: Baseline, path: Path) -> None:
    """Write a baseline as JSON, atomically."""
    write_json(path, baseline.to_json())


def load(path: Path) -> Baseline:
    """Return the baseline in a file of either form.

    Raises UserError that names the file and the key: unreadable, a newer form, an unknown key, a wrong type, a number
    that is not finite, a tolerance or a side for a metric that it does not have, and nothing that a check could judge.
    """
    value = read_json(path, "baseline")
    if isinstance(value, dict) and "baseline" in value:
        found = _parse(value, f"the baseline {path}")
    else:
        found = _parse_result(value, path)
    names = [kept.measurement.metric for kept in found.metrics]
    for metric in found.tolerances:
        if metric not in names:
            raise UserError(
                f"the baseline {path}: there is a tolerance for '{metric}' but no measurement. "
                f"It has {', '.join(names)}."
            )
    for metric in found.two_sided:
        if metric not in names:
            hint = did_you_mean(metric, names)
            raise UserError(f"the baseline {path}, 'two_sided': there is no measurement '{metric}'.{hint}")
    if not any(map(found.can_fail, found.metrics)):
        raise UserError(
            f"the baseline {path} has nothing that could fail: {', '.join(names)} have no better or worse. Name those "
            "that must not change in 'two_sided'."
        )
    return found


def _parse_result(value: Any, path: Path) -> Baseline:
    """Return the baseline that a result file is, with its settings."""
    settings = {key: value.pop(key) for key in SETTINGS if key in value} if isinstance(value, dict) else {}
    settings = _settings(settings, f"the baseline {path}")
    result = parse(value, path, "baseline")
    for m in result.measurements:
        if why := why_no_number(m):
            raise UserError(f"the baseline {path}: {m.metric} cannot be checked against: {why}. Make it again.")
    metrics = [
        Kept(replace(m, value=None, uncertainty=None), (float(m.value),), (m.error,))
        for m in result.measurements if m.value is not None
    ]
    if not metrics:
        raise UserError(f"the baseline {path} has no measured value to compare with.")
    for kept in metrics:
        _require_spread(kept, path)
    return Baseline(result, [_run(result)], metrics, result.seed, **settings)


def _settings(value: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the settings in a baseline as arguments of `Baseline`. Raises UserError for wrong ones."""
    found: dict[str, Any] = {}
    tolerances = value.get("tolerances", {})
    if not isinstance(tolerances, dict) or not all(is_number(t) and t >= 0 for t in tolerances.values()):
        raise UserError(f"{where}: 'tolerances' must map metrics to finite numbers that are not negative.")
    found["tolerances"] = tolerances
    two_sided = value.get("two_sided", [])
    if not isinstance(two_sided, list) or not all(isinstance(name, str) for name in two_sided):
        raise UserError(f"{where}: 'two_sided' must be a list of metrics.")
    found["two_sided"] = tuple(two_sided)
    rate = value.get("false_alarms", FALSE_ALARMS)
    require_rate(rate, f"{where}: 'false_alarms'")
    found["false_alarms"] = float(rate)
    return found


def require_rate(rate: Any, what: str) -> None:
    """Raise UserError, beginning with `what`, if `rate` is no rate of false alarms."""
    if not is_number(rate) or not LEAST_FALSE_ALARMS <= rate <= MOST_FALSE_ALARMS:
        raise UserError(f"{what} must be a number of {LEAST_FALSE_ALARMS:g} to {MOST_FALSE_ALARMS:g}, not {rate!r}.")


def _parse(value: dict[str, Any], where: str) -> Baseline:
    """Return a baseline from its JSON value. Raises UserError that begins with `where`."""
    version = value["baseline"]
    if not isinstance(version, int) or isinstance(version, bool) or version != FORMAT:
        raise UserError(
            f"{where} has format {version!r}, and this ganbench reads {FORMAT}: update ganbench, or make it again."
        )
    _require_keys(value, KEYS, ("measurements", "runs"), where)
    for key in (*SETS, "overrides"):
        if not isinstance(value.get(key), dict | None):
            raise UserError(f"{where}: '{key}' must be an object or null.")
    for key in ("measurements", "runs"):
        if not isinstance(value[key], list) or not value[key] or not all(isinstance(x, dict) for x in value[key]):
            raise UserError(f"{where}: '{key}' must be a list of at least one object.")
    for run in value["runs"]:
        if not all(x is None or isinstance(x, str | int | float) for x in run.values()):
            raise UserError(f"{where}, 'runs': the values of a run must be texts or numbers.")
    metrics = [_parse_metric(m, len(value["runs"]), f"{where}, 'measurements'[{i}]")
               for i, m in enumerate(value["measurements"])]
    names = [kept.measurement.metric for kept in metrics]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: '{name}' stands in 'measurements' twice.")
    of = Result(
        measurements=[kept.measurement for kept in metrics], overrides=value.get("overrides") or {},
        **{key: value.get(key) for key in SETS},  # type: ignore[arg-type]
    )
    return Baseline(of, value["runs"], metrics, None, **_settings(value, where))


def _parse_metric(value: dict[str, Any], runs: int, where: str) -> Kept:
    _require_keys(value, MEASUREMENT_KEYS, tuple(k for k in MEASUREMENT_KEYS if k != "extractor"), where)
    for key in ("metric", "protocol"):
        if not isinstance(value[key], str):
            raise UserError(f"{where}: '{key}' must be a text.")
    where = f"{where} ({value['metric']})"
    if value["direction"] not in DIRECTIONS:
        raise UserError(f"{where}: 'direction' must be one of {', '.join(DIRECTIONS)}.")
    for key in ("n_real", "n_fake"):
        if not isinstance(value[key], int) or isinstance(value[key], bool) or value[key] < 0:
            raise UserError(f"{where}: '{key}' must be a whole number that is not negative.")
    if not isinstance(value.get("extractor"), dict | None):
        raise UserError(f"{where}: 'extractor' must be an object or null.")
    values, errors = value["values"], value["errors"]
    if not isinstance(values, list) or not 1 <= len(values) <= runs or not all(map(is_number, values)):
        raise UserError(f"{where}: 'values' must be 1 to {runs} finite numbers, one for each run that has the metric.")
    if not isinstance(errors, list) or len(errors) != len(values) or not all(
        e is None or (is_number(e) and e >= 0) for e in errors
    ):
        raise UserError(f"{where}: 'errors' must be a finite number that is not negative, or null, for each value.")
    identity: dict[str, Any] = {key: value.get(key) for key in MEASUREMENT_KEYS[:-2]}
    kept = Kept(Measurement(**identity), tuple(map(float, values)), tuple(e if e is None else float(e) for e in errors))
    try:
        kept.spread  # noqa: B018
    except OverflowError as error:
        raise UserError(f"{where}: {error}.") from error
    return kept


def _require_keys(value: dict[str, Any], known: tuple[str, ...], needed: tuple[str, ...], where: str) -> None:
    for key in value:
        if key not in known:
            raise UserError(f"{where}: unknown key '{key}'.{did_you_mean(key, list(known))}")
    for key in needed:
        if key not in value:
            raise UserError(f"{where}: the key '{key}' is missing.")
