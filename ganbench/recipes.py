"""Recipes: what to train on what, how it is evaluated, and what the paper reported. One TOML file a recipe.

A key that is not known is an error, so that a misspelt option cannot be ignored silently.
"""

import dataclasses
import hashlib
import math
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from ganbench import registry
from ganbench.errors import UserError, did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# A generator on the CPU takes the low 32 bits of its seed: beyond them seeds would repeat each other.
MAX_SEED = 2**32 - 1

PRECISIONS = ("float32", "bf16")

_PACKAGE = Path(__file__).parent
# In a wheel the recipes lie in the package; in a checkout they are the top-level folder.
BUNDLED = _PACKAGE / "benchmarks" if (_PACKAGE / "benchmarks").is_dir() else _PACKAGE.parent / "benchmarks"


@dataclass(frozen=True)
class ModelSpec:
    """Which reference model, and its constructor's arguments."""

    name: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainSpec:
    """The schedule.

    steps: updates of G. ema_decay: 0 evaluates the last weights instead of their average. labels: how many images of
    `data` have their label, as many of each class, drawn by the seed; 0: all. With few labels a batch is `batch_size`
    of the labelled images and `unlabelled_batch_size` of all. precision: 'float32', or 'bf16' for products in bfloat16
    with weights, sums and updates in float32.
    """

    data: str
    batch_size: int
    steps: int
    ema_decay: float = 0.0
    labels: int = 0
    unlabelled_batch_size: int = 0
    precision: str = "float32"

    def identity(self) -> dict[str, Any]:
        """All that decides the course of a run but its length: no step depends on how many there will be."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "steps" and v != defaults[k]}


@dataclass(frozen=True)
class EvaluateSpec:
    """The protocol. `num` generated images, labels balanced where the model takes them, against `reference`.

    `real` is the split whose images make the table's row of real data.
    """

    metrics: list[str]
    num: int
    reference: str
    real: str


@dataclass(frozen=True)
class Reported:
    """One number of the paper.

    comparable: False where our protocol or data differ; `note` then says how. unconfirmed: the number could not be
    checked against the paper's text. std: the paper's own +-, or None.
    """

    metric: str
    value: float
    source: str
    std: float | None = None
    comparable: bool = True
    unconfirmed: bool = False
    note: str = ""


@dataclass(frozen=True)
class Recipe:
    """One recipe. `version` rises with every change that could move a number."""

    name: str
    version: int
    title: str
    paper: str
    model: ModelSpec
    train: TrainSpec
    evaluate: EvaluateSpec
    reported: list[Reported] = field(default_factory=list)
    deviations: list[str] = field(default_factory=list)
    sha256: str = ""

    def replace(self, steps: int | None = None, data: str | None = None) -> "Recipe":
        """The recipe with overrides from the command line: other `steps`, other `data` (then also the reference).

        `data` names a set (`mnist`, `folder:PATH`), or one of its splits; the other of train and test is the real data.
        """
        train, evaluate = self.train, self.evaluate
        if steps is not None:
            train = dataclasses.replace(train, steps=steps)
        if data is not None:
            base, _, split = data.rpartition(":")
            if split not in ("train", "test"):
                base, split = data, "train"
            other = "train" if split == "test" else "test"
            train = dataclasses.replace(train, data=data)
            evaluate = dataclasses.replace(evaluate, reference=f"{base}:{split}", real=f"{base}:{other}")
        return dataclasses.replace(self, train=train, evaluate=evaluate)


def _parse(cls: type, value: Any, where: str) -> Any:
    """`value` as an instance of the dataclass `cls`; any mistake becomes a UserError that says where."""
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a table.")
    kinds = get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.name != "sha256"}
    for key in value:
        if key not in fields:
            raise UserError(f"{where}: unknown key '{key}'.{did_you_mean(key, list(fields))}")
    for name, f in fields.items():
        if name not in value and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}: the key '{name}' is missing.")
    return cls(**{key: _convert(kinds[key], item, f"{where}, '{key}'") for key, item in value.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _parse(kind, value, where)  # type: ignore[arg-type]
    if get_origin(kind) in (Union, types.UnionType):  # float | None
        kind = next(k for k in get_args(kind) if k is not type(None))
    if get_origin(kind) is list:
        if not isinstance(value, list):
            raise UserError(f"{where} must be a list.")
        return [_convert(get_args(kind)[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if get_origin(kind) is dict:
        kind = dict
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where} must be a finite number, not {value!r}.")
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"{where} must be of type {kind.__name__}, not {value!r}.")
    return value


def read(path: Path) -> Recipe:
    """Read and validate a recipe file.

    Raises UserError that names the file and the key: unreadable, not TOML, unknown or missing keys, wrong types, a
    schedule that is not positive, no metric, or a name that is not the file's.
    """
    try:
        raw = path.read_bytes()
        table = tomllib.loads(raw.decode("utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"the recipe {path} is not valid TOML: {error}.") from error
    recipe: Recipe = _parse(Recipe, table, str(path))
    if recipe.name != path.stem:
        raise UserError(f"{path}: the name '{recipe.name}' must be that of the file.")
    for key, number in (
        ("train, 'steps'", recipe.train.steps),
        ("train, 'batch_size'", recipe.train.batch_size),
        ("evaluate, 'num'", recipe.evaluate.num),
    ):
        if number < 1:
            raise UserError(f"{path}, {key} must be at least 1, not {number}.")
    if not recipe.evaluate.metrics:
        raise UserError(f"{path}, evaluate, 'metrics' must name at least one metric (`ganbench list metrics`).")
    if recipe.train.precision not in PRECISIONS:
        raise UserError(
            f"{path}, train, 'precision' must be one of {', '.join(PRECISIONS)}, not '{recipe.train.precision}'."
        )
    if (recipe.train.labels > 0) != (recipe.train.unlabelled_batch_size > 0) or recipe.train.labels < 0:
        raise UserError(f"{path}, train: 'labels' and 'unlabelled_batch_size' go together, both at least 1.")
    if not 0 <= recipe.train.ema_decay < 1:
        raise UserError(f"{path}, train, 'ema_decay' must be in [0, 1), not {recipe.train.ema_decay}.")
    return dataclasses.replace(recipe, sha256=hashlib.sha256(raw).hexdigest())


def available() -> dict[str, Path]:
    """Every installed recipe's file, by name. A third party's entry point is the folder that holds its recipes."""
    found: dict[str, Path] = {}
    for name in registry.names("recipes"):
        folder: Path | Callable[[], Path] = registry.load("recipes", name)
        for file in sorted(Path(folder() if callable(folder) else folder).glob("*.toml")):
            found.setdefault(file.stem, file)
    return found


def find(name: str) -> Recipe:
    """The recipe of that name, or of that path if it ends with .toml. Raises UserError for an unknown one."""
    if name.endswith(".toml"):
        return read(Path(name))
    files = available()
    if name not in files:
        raise UserError(f"unknown recipe '{name}'.{did_you_mean(name, list(files))} A path to a .toml file works too.")
    return read(files[name])
