"""Results: one JSON file a run, written once and never edited. Tables and checks are derived from these.

No torch here: tables and checks start at once.
"""

import datetime
import functools
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ganbench import __version__
from ganbench.base.errors import UserError
from ganbench.base.files import read_json, write_json

SCHEMA = 1
RESULT = "result.json"


@dataclass(frozen=True)
class Measurement:
    """One number, or the reason why there is none.

    metric: its name, with the extractor's. protocol: formula and version, equal only for values that may be compared.
    value: None where it could not be made; then `reason` says why. uncertainty: {"value", "kind", "over"} or None.
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
        """One standard error (or deviation) of the value, in its unit; None where none is known."""
        return None if self.uncertainty is None else float(self.uncertainty["value"])


@dataclass(frozen=True)
class Result:
    """One evaluation with everything that somebody else needs to get the same figures.

    fake (None where only representations were measured), reference, held_out: where the images came from, how many,
    and their fingerprints. real: the measurements of real images. recipe: name, version, SHA-256 of its file;
    overrides: what the command line changed of it.
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
        """The measurement of that name, or None."""
        return next((m for m in self.measurements if m.metric == metric), None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def save(result: Result, path: Path) -> None:
    """Write a result as JSON, atomically."""
    write_json(path, result.to_json())


def load(path: Path, what: str = "result") -> Result:
    """Read a result. Raises UserError that names the file: missing, no JSON, no result, or of a later schema."""
    return parse(read_json(path, what), path, what)


def parse(value: Any, path: Path, what: str = "result") -> Result:
    """A result from its JSON value; keys beside those of a result are an error."""
    if not isinstance(value, dict) or "measurements" not in value:
        raise UserError(f"the {what} {path} is not a ganbench result: it has no measurements.")
    if value.get("schema") != SCHEMA:
        raise UserError(f"the {what} {path} has schema {value.get('schema')}, and this ganbench reads {SCHEMA}.")
    try:
        lists = {key: [_measurement(m) for m in value.get(key, [])] for key in ("measurements", "real")}
        result = Result(**{**value, **lists})
        for key in ("recipe", "training", "overrides", "environment"):
            if not isinstance(getattr(result, key) or {}, dict):
                raise TypeError(f"'{key}' is {getattr(result, key)!r}")
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"the {what} {path} is damaged or was edited ({error}): make it again.") from error
    return result


def _measurement(value: dict[str, Any]) -> Measurement:
    """A measurement from its JSON value. Raises TypeError, ValueError, KeyError or AttributeError for anything else."""
    m = Measurement(**{**value, "warnings": tuple(value.get("warnings", ()))})
    if not isinstance(m.metric, str) or m.direction not in ("lower", "higher", "none"):
        raise ValueError(f"metric {m.metric!r} has the direction {m.direction!r}")
    if m.value is not None:
        float(m.value)
    if m.uncertainty is not None:
        float(m.uncertainty["value"])
    return m


def load_all(folder: Path) -> list[tuple[Path, Result]]:
    """All results below a folder, in the order of their paths."""
    return [(path, load(path)) for path in sorted(folder.rglob(RESULT))]


def environment(device: str) -> dict[str, Any]:
    """Versions, commit and machine, for a result. `device` is what the networks ran on."""
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
    """Commit of the checkout that ganbench runs from and whether it was changed; ('', False) outside of one.

    As it was at the first call: a long run calls it at its start, since the checkout may move on while it works.
    """
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return "", False

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *args], capture_output=True, text=True, timeout=20
        ).stdout.strip()

    try:
        # What a run itself writes does not change the code that ran.
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results")
        return git("rev-parse", "HEAD"), bool(changed)
    except (OSError, subprocess.SubprocessError):
        return "", False


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
