"""Results: one JSON file a run, written once and never edited. Tables, frames and checks are derived from it.

This module imports neither torch nor pandas at its top, so that tables and checks start at once.
"""

import datetime
import functools
import html
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ganbench import __version__
from ganbench.base import schema
from ganbench.base.errors import UserError
from ganbench.base.files import read_json, write_json

NORMAL = 1.959964  # the 0.975 quantile of the normal distribution
SCHEMA = 1
RESULT = "result.json"

# The schema of the file (docs/result-json.md). Of an object with further keys, those that ganbench reads are listed.
_TEXT, _NAME, _LINES = schema.Text(), schema.Text(500, line=True), schema.List(schema.Text())
_WHOLE, _FLAG, _PLAIN = schema.Whole(), schema.Flag(), schema.Plain()
_IMAGES = schema.Table({}, {
    "kind": _TEXT, "count": _WHOLE, "shape": schema.List(_WHOLE), "labels": _FLAG, "name": _TEXT, "split": _TEXT,
    "fingerprint": _TEXT, "model": _TEXT, "checkpoint_sha256": _TEXT, "sha256": _TEXT, "seed": _WHOLE,
}, _PLAIN)
_MEASUREMENT = schema.Table(
    {"metric": _NAME, "protocol": _TEXT, "direction": schema.Text(choices=("lower", "higher", "none"))},
    {
        "value": schema.Maybe(schema.Number()),
        "uncertainty": schema.Maybe(schema.Table({"value": schema.Number(0), "kind": _TEXT, "over": _TEXT})),
        "n_real": _WHOLE, "n_fake": _WHOLE, "source": _TEXT, "details": schema.Table(others=_PLAIN),
        "extractor": schema.Maybe(schema.Table({"name": _NAME}, {
            "version": _NAME, "sha256": _NAME, "official": _FLAG, "source": _TEXT, "licence": _TEXT,
        }, _PLAIN)),
        "warnings": _LINES, "reason": _TEXT,
    },
)
_MEASUREMENTS = schema.List(_MEASUREMENT, unique="metric")
RESULT_SCHEMA = schema.Table(
    {"fake": schema.Maybe(_IMAGES), "reference": schema.Maybe(_IMAGES), "measurements": _MEASUREMENTS},
    {
        "held_out": schema.Maybe(_IMAGES), "real": _MEASUREMENTS, "seed": _WHOLE, "seconds": schema.Number(0),
        "peak_memory_bytes": _WHOLE, "created": schema.Text(100, line=True), "schema": schema.Whole(1),
        "recipe": schema.Maybe(schema.Table({"name": _NAME}, {
            "version": _WHOLE, "sha256": _NAME, "budget": schema.Table(others=_PLAIN),
        }, _PLAIN)),
        "overrides": schema.Table({}, {"budget": _TEXT, "steps": _WHOLE, "data": _TEXT}, _PLAIN),
        "training": schema.Maybe(schema.Table({}, {
            "model": schema.Table({}, {"name": _NAME, "args": schema.Table(others=_PLAIN)}, _PLAIN), "steps": _WHOLE,
            "batch_size": _WHOLE, "seconds": schema.Number(0), "data": _TEXT, "data_fingerprint": _TEXT,
            "commit": _TEXT, "warnings": _LINES, "recipe": _TEXT, "seed": schema.Maybe(_WHOLE),
            "label_noise": schema.Table({"kind": _TEXT, "rate": schema.Number(0), "seed": _WHOLE}),
        }, _PLAIN)),
        "environment": schema.Table({}, {
            "ganbench": _TEXT, "commit": _TEXT, "dirty": _FLAG, "python": _TEXT, "platform": _TEXT, "device": _TEXT,
            "packages": schema.Table(others=_TEXT), "cpus": schema.Maybe(_WHOLE),
        }, _PLAIN),
    },
)
# Columns of frames, with their types; Int64 is pandas' integer that can be missing.
RUN_COLUMNS = {
    "recipe": "object", "version": "Int64", "budget": "object", "overrides": "object", "seed": "int64",
    "steps": "Int64", "created": "object", "commit": "object", "path": "object",
}
METRIC_COLUMNS = {
    "metric": "object", "value": "float64", "error": "float64", "kind": "object", "over": "object", "real": "float64",
    "real_error": "float64", "direction": "object", "n_fake": "int64", "n_real": "int64", "extractor": "object",
    "protocol": "object", "reason": "object",
}


@dataclass(frozen=True)
class Measurement:
    """One number, or the reason why there is none.

    metric: its name, with the extractor's. protocol: formula and version, equal only for values that may be compared.
    value: None if it could not be made; then `reason` says why. uncertainty: {"value", "kind", "over"} or None.
    direction: 'lower', 'higher' or 'none' (is better).
    """

    metric: str
    protocol: str
    direction: str
    value: float | None = None
    uncertainty: dict[str, Any] | None = None
    n_real: int = 0
    n_fake: int = 0
    extractor: dict[str, Any] | None = None
    source: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    reason: str = ""

    @property
    def error(self) -> float | None:
        """One standard error (or deviation) of the value, in its unit; None if none is known."""
        return None if self.uncertainty is None else float(self.uncertainty["value"])

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval, value ± 1.96 standard errors; None if no standard error is known.

        A standard deviation over splits or seeds is not one.
        """
        if self.value is None or self.error is None or (self.uncertainty or {}).get("kind") != "standard error":
            return None
        return self.value - NORMAL * self.error, self.value + NORMAL * self.error


@dataclass(frozen=True)
class Result:
    """One evaluation with everything that somebody else needs to get the same figures.

    fake, reference, held_out: where the images came from, how many, and their fingerprints; fake is None if only
    representations were measured. real: the measurements of real images. recipe: name, version and SHA-256 of its file.
    overrides: what the command line changed of the recipe.
    """

    fake: dict[str, Any] | None
    reference: dict[str, Any] | None
    measurements: list[Measurement]
    held_out: dict[str, Any] | None = None
    real: list[Measurement] = field(default_factory=list)
    recipe: dict[str, Any] | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    training: dict[str, Any] | None = None
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    environment: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    schema: int = SCHEMA

    def measurement(self, metric: str) -> Measurement | None:
        """Return the measurement of that name, or None."""
        return next((m for m in self.measurements if m.metric == metric), None)

    def __getitem__(self, metric: str) -> Measurement:
        """Return the measurement of that name. Raises KeyError that names those there are."""
        found = self.measurement(metric)
        if found is None:
            raise KeyError(f"{metric}: measured were {', '.join(m.metric for m in self.measurements)}")
        return found

    def __str__(self) -> str:
        """The table of the command line."""
        from ganbench.reporting.tables import RESULT_COLUMNS, measurement_rows, render

        return render(measurement_rows(self), columns=RESULT_COLUMNS)

    def _repr_html_(self) -> str:
        """The table, for a notebook."""
        from ganbench.reporting.tables import RESULT_COLUMNS, measurement_rows

        rows = measurement_rows(self)
        columns = [c for c in RESULT_COLUMNS if any(row[c] for row in rows)]
        lines = [[html.escape(row[c]) for c in columns] for row in rows]
        head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in lines)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def to_json(self) -> dict[str, Any]:
        """Return the result as it stands in its file (docs/result-json.md)."""
        return asdict(self)

    def to_frame(self) -> Any:
        """Return a pandas.DataFrame with a row a metric; missing numbers are NaN.

        Columns: metric, value, error (one `kind`, such as 'standard error', over `over`), kind, over, real (the value
        of real images), real_error, direction, n_fake, n_real, extractor, protocol, reason (why there is no value).
        """
        return _frame(_rows(self), METRIC_COLUMNS)


def save(result: Result, path: Path) -> None:
    """Write a result as JSON, atomically."""
    write_json(path, result.to_json())


def load(path: Path, what: str = "result") -> Result:
    """Return the result in a file. Raises UserError that names it: missing, no JSON, no result, or a later schema."""
    return parse(read_json(path, what, _remedy(path)), path, what)


def parse(value: Any, path: Path, what: str = "result") -> Result:
    """Return a result from its JSON value. Raises UserError that names the field for a value that does not fit."""
    whose = f"the {what} {path}"
    if not isinstance(value, dict) or "measurements" not in value:
        raise UserError(f"{whose} is not a ganbench result: it has no measurements. Check the path.")
    version = value.get("schema", 1)
    fits = isinstance(version, int) and not isinstance(version, bool)
    if fits and version > SCHEMA:
        raise UserError(
            f"{whose} has schema {schema.described(version)}, and this ganbench reads {SCHEMA}: it was made by a newer "
            "ganbench. Update ganbench (pip install --upgrade ganbench)."
        )
    schema.require(RESULT_SCHEMA, value, f"{whose} is damaged or was edited", _remedy(path))
    lists = {key: [_measurement(m) for m in value.get(key, [])] for key in ("measurements", "real")}
    return Result(**{**value, "schema": version, **lists})


def _measurement(value: dict[str, Any]) -> Measurement:
    """Return a measurement from its JSON value, which fits the schema."""
    return Measurement(**{**value, "warnings": tuple(value.get("warnings", ()))})


def _remedy(path: Path) -> str:
    """Return what the user can do about a result that cannot be used."""
    if path.name == RESULT:
        return "restore it, or delete it and give the same `ganbench reproduce` again, which measures anew"
    return "make it again"


def is_not_measured(checkpoint: Path, steps: int, sha256: str) -> str:
    """Return a remark if the result beside a run's checkpoint measured another one of as many steps; else "".

    A result of fewer steps is no mistake: the run was lengthened. steps, sha256: of the checkpoint.
    """
    path = checkpoint.parent / RESULT
    if checkpoint.name != "checkpoint.safetensors" or not path.is_file():
        return ""
    try:
        beside = load(path)
    except UserError:  # nobody asked for that result
        return ""
    measured = (beside.fake or {}).get("checkpoint_sha256", sha256)
    if measured == sha256 or (beside.training or {}).get("steps") != steps:
        return ""
    return f"{checkpoint} is not the checkpoint that {path} measured (its SHA-256 differs): damaged or replaced?"


def load_all(folder: Path) -> list[tuple[Path, Result]]:
    """Return all results below a folder with their paths, in the order of these."""
    return [(path, load(path)) for path in sorted(folder.rglob(RESULT))]


def load_results(folder: Path) -> Any:
    """Return all results below a folder as one pandas.DataFrame: a row a metric of a run, by the runs' paths.

    The first columns are recipe, version, budget ('full', 'short' or 'smoke'), overrides (others, as `steps=100`),
    seed, steps, created, commit and path; then come those of `Result.to_frame`. Raises UserError for a file that is no
    result.
    """
    rows = [{**_run(result, path), **row} for path, result in load_all(folder) for row in _rows(result)]
    return _frame(rows, RUN_COLUMNS | METRIC_COLUMNS)


def _run(result: Result, path: Path) -> dict[str, Any]:
    """Return the cells that all rows of a run share."""
    recipe = result.recipe or {}
    others = [f"{k}={v}" for k, v in sorted(result.overrides.items()) if k != "budget"]
    return {
        "recipe": recipe.get("name", ""), "version": recipe.get("version"),
        "budget": result.overrides.get("budget", "full"), "overrides": " ".join(others), "seed": result.seed,
        "steps": (result.training or {}).get("steps"), "created": result.created,
        "commit": result.environment.get("commit", ""), "path": str(path),
    }


def _rows(result: Result) -> list[dict[str, Any]]:
    """Return a row for each measurement, beside that of real images."""
    real = {m.metric: m for m in result.real}
    return [
        {
            "metric": m.metric, "value": m.value, "error": m.error, "kind": (m.uncertainty or {}).get("kind", ""),
            "over": (m.uncertainty or {}).get("over", ""), "real": real[m.metric].value if m.metric in real else None,
            "real_error": real[m.metric].error if m.metric in real else None, "direction": m.direction,
            "n_fake": m.n_fake, "n_real": m.n_real, "extractor": (m.extractor or {}).get("name", ""),
            "protocol": m.protocol, "reason": m.reason,
        }
        for m in result.measurements
    ]


def _frame(rows: list[dict[str, Any]], columns: dict[str, str]) -> Any:
    import pandas  # here, so that tables and checks start without it

    return pandas.DataFrame(rows, columns=list(columns)).astype(columns)


def environment(device: str) -> dict[str, Any]:
    """Return versions, commit and machine, for a result. `device`: what the networks ran on."""
    packages = {}
    for name in ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pillow"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    commit, dirty = git_commit()
    return {"ganbench": __version__, "commit": commit, "dirty": dirty, "python": platform.python_version(),
            "packages": packages, "platform": platform.system() + " " + platform.machine(), "cpus": os.cpu_count(),
            "device": device}


@functools.cache
def git_commit() -> tuple[str, bool]:
    """Return the commit of the checkout that ganbench runs from, and whether it was changed; ('', False) if it is none.

    The answer is that of the first call: a long run asks at its start, since the checkout may change while it works.
    """
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return "", False

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *args], capture_output=True, text=True, timeout=20
        ).stdout.strip()

    try:
        # Results do not change the code that ran.
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results")
        return git("rev-parse", "HEAD"), bool(changed)
    except (OSError, subprocess.SubprocessError):
        return "", False


def now() -> str:
    """Return the time in UTC, to the second, as ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
