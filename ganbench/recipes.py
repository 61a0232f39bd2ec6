"""Recipes: what to train on what, how it is evaluated, and what the paper reported. One TOML file a recipe.

A key that is not known is an error, so that a misspelt option cannot be ignored silently. A group, in a folder `groups`
beside the recipes, names those that make a table of a paper.
"""

import dataclasses
import hashlib
import math
import re
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from ganbench.base import registry
from ganbench.base.data_spec import apart, of_classes
from ganbench.base.errors import UserError, did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLE = re.compile(
    rb"[ \t]*\[{1,2}[ \t]*(?!budget\b)[A-Za-z][\w.-]*[ \t]*\]{1,2}[ \t]*(#.*)?$"
)  # another than a budget

# A generator on the CPU takes the low 32 bits of its seed: beyond them seeds would repeat each other.
MAX_SEED = 2**32 - 1

PRECISIONS = ("float32", "bf16")
BUDGETS = ("smoke", "short", "full")
SYNTHETIC = "synthetic"  # data of the model's own shape: what a smoke run takes where it names no other
HELD_OUT = ("test", "val", "valid")
GROUPS = "groups"  # the folder of groups within a folder of recipes

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
    """The data and the schedule.

    data: as `datasets.load` takes it; `{seed}` in it, and in what is evaluated against, is the run's seed, so that the
    seeds of a recipe can be models of different classes. resize: done to every image, real ones too, in the words of
    --resize; '' for none. steps: updates of G. ema_decay: 0 evaluates the last weights instead of their average.
    labels: how many images of `data` have their label, as many of each class, drawn by the seed; 0: all. With few
    labels a batch is `batch_size` of the labelled images and `unlabelled_batch_size` of all. precision: 'float32', or
    'bf16' for products in bfloat16 with weights, sums and updates in float32. batch_norm: of several processes,
    whether moments are over the 'global' batch or over each one's 'local' part.
    """

    data: str
    batch_size: int
    steps: int
    ema_decay: float = 0.0
    labels: int = 0
    unlabelled_batch_size: int = 0
    precision: str = "float32"
    batch_norm: str = "global"
    resize: str = ""

    def identity(self) -> dict[str, Any]:
        """All that decides the course of a run but its length: no step depends on how many there will be."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "steps" and v != defaults[k]}


@dataclass(frozen=True)
class WatchSpec:
    """What is looked at while a run goes on; no weight depends on it.

    grid_every: steps between pictures of samples; 0: ten over the run. on_trouble: 'stop' ends a run whose losses
    explode, whose generator collapses or whose discriminator has won; 'go on' only says so. metric: measured every
    `every` steps on `num` samples against the training images; the checkpoint of its best value is kept beside the
    last.
    """

    grid_every: int = 0
    on_trouble: str = "stop"
    metric: str = ""
    every: int = 0
    num: int = 2000


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
class Budget:
    """What a shorter run changes of its recipe; what is None it leaves as it is.

    `smoke`: seconds on one core with nothing downloaded, to see that everything works. `short`: minutes to an hour or
    two, to see something. args: laid over the model's, so that schedules among its arguments shrink with the run.
    """

    steps: int
    batch_size: int | None = None
    unlabelled_batch_size: int | None = None
    labels: int | None = None
    ema_decay: float | None = None
    num: int | None = None
    metrics: list[str] | None = None
    data: str | None = None
    args: dict[str, Any] = field(default_factory=dict)

    def changes(self) -> dict[str, Any]:
        """All that it sets, for a result."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v not in (None, {})}


@dataclass(frozen=True)
class Recipe:
    """One recipe. `version` rises with every change that could move a number.

    sha256: of the file without its budgets, which no full run depends on.
    """

    name: str
    version: int
    title: str
    paper: str
    model: ModelSpec
    train: TrainSpec
    evaluate: EvaluateSpec
    watch: WatchSpec = field(default_factory=WatchSpec)
    reported: list[Reported] = field(default_factory=list)
    deviations: list[str] = field(default_factory=list)
    budget: dict[str, Budget] = field(default_factory=dict)
    sha256: str = ""

    def at(self, budget: str) -> "Recipe":
        """The recipe as it is run on a budget. Raises UserError for one that it does not have."""
        if budget == "full":
            return self
        if budget not in self.budget:
            raise UserError(
                f"recipe '{self.name}' has no budget '{budget}': add a table [budget.{budget}] with its 'steps'."
            )
        b = self.budget[budget]

        def changed(spec: Any, *keys: str) -> Any:
            return dataclasses.replace(spec, **{k: v for k in keys if (v := getattr(b, k)) is not None})

        train = changed(self.train, "steps", "batch_size", "unlabelled_batch_size", "labels", "ema_decay")
        model = dataclasses.replace(self.model, args={**self.model.args, **b.args})
        watch = dataclasses.replace(self.watch, metric="", every=0) if budget == "smoke" else self.watch
        evaluate = changed(self.evaluate, "num", "metrics")
        shorter = dataclasses.replace(self, model=model, train=train, evaluate=evaluate, watch=watch)
        return shorter.replace(data=b.data or (SYNTHETIC if budget == "smoke" else None))

    def of_seed(self, seed: int) -> "Recipe":
        """The recipe of one run: with its seed in the names of the data."""

        def named(spec: Any, *keys: str) -> Any:
            return dataclasses.replace(spec, **{k: getattr(spec, k).replace("{seed}", str(seed)) for k in keys})

        train, evaluate = named(self.train, "data"), named(self.evaluate, "reference", "real")
        return dataclasses.replace(self, train=train, evaluate=evaluate)

    def override(self, overrides: dict[str, Any]) -> "Recipe":
        """The recipe with what the command line changes: 'budget', and on top of it 'steps' and 'data'."""
        return self.at(overrides.get("budget", "full")).replace(overrides.get("steps"), overrides.get("data"))

    def replace(self, steps: int | None = None, data: str | None = None) -> "Recipe":
        """The recipe with overrides from the command line: other `steps`, other `data` (then also the reference).

        `data` names a set (`mnist`, `folder:PATH`), one of its splits, or rows or classes of one. The other split is
        the real data: the recipe's own for a folder, else the other of train and test. Of a folder the classes are
        those that the recipe takes.
        """
        train, evaluate = self.train, self.evaluate
        if steps is not None:
            train = dataclasses.replace(train, steps=steps)
        if data is not None:
            folder = data.startswith("folder:")
            whole, part = apart(data)
            part = part or (of_classes(apart(train.data)[1]) if folder else "")
            base, _, split = whole.rpartition(":")
            if split not in ("train", *HELD_OUT):
                base, split = whole, "train"
            own = apart(evaluate.real)[0].rpartition(":")[2]
            other = "train" if split != "train" else own if folder and own in HELD_OUT else "test"
            resize = "" if data.startswith(SYNTHETIC) else train.resize  # those are made in the size that is needed
            train = dataclasses.replace(train, data=whole + part, resize=resize)
            evaluate = dataclasses.replace(
                evaluate, reference=f"{base}:{split}{part}", real=f"{base}:{other}{of_classes(part)}"
            )
        return dataclasses.replace(self, train=train, evaluate=evaluate)


@dataclass(frozen=True)
class Group:
    """Recipes that make a table of a paper, in the order of its rows. metrics: those it shows; default: the reported.

    A recipe is the name of an installed one, or a path to a .toml file from the group's folder.
    """

    name: str
    title: str
    paper: str
    recipes: list[str]
    metrics: list[str] = field(default_factory=list)


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
    if get_origin(kind) is dict and dataclasses.is_dataclass(get_args(kind)[1]) and isinstance(value, dict):
        return {key: _parse(get_args(kind)[1], item, f"{where}, '{key}'") for key, item in value.items()}
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
    schedule that is not positive, no metric, a budget that does not come last, or a name that is not the file's.
    """
    raw, table = _toml(path, "recipe")
    recipe: Recipe = _parse(Recipe, table, str(path))
    if recipe.name != path.stem:
        raise UserError(f"{path}: the name '{recipe.name}' must be that of the file.")
    for name in recipe.budget:
        if name not in BUDGETS[:-1]:
            raise UserError(f"{path}, 'budget': unknown budget '{name}'.{did_you_mean(name, list(BUDGETS[:-1]))}")
    own, *budgets = re.split(rb"^(?=[ \t]*\[[ \t]*budget\b)", raw, flags=re.MULTILINE)
    if any(TABLE.match(line) for part in budgets for line in part.splitlines()):
        raise UserError(f"{path}: the budgets must come last, after all other tables.")
    _check(recipe, str(path))
    for name in recipe.budget:
        _check(recipe.at(name), f"{path}, budget '{name}'")
    return dataclasses.replace(recipe, sha256=hashlib.sha256(own.rstrip() + b"\n" if budgets else raw).hexdigest())


def _toml(path: Path, what: str) -> tuple[bytes, dict[str, Any]]:
    """The bytes of a TOML file, and what they say."""
    try:
        raw = path.read_bytes()
        return raw, tomllib.loads(raw.decode("utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"the {what} {path} is not valid TOML: {error}.") from error


def _check(recipe: Recipe, where: str) -> None:
    """UserError for values that cannot be trained or evaluated with."""
    for key, number in (
        ("train, 'steps'", recipe.train.steps),
        ("train, 'batch_size'", recipe.train.batch_size),
        ("evaluate, 'num'", recipe.evaluate.num),
    ):
        if number < 1:
            raise UserError(f"{where}, {key} must be at least 1, not {number}.")
    if not recipe.evaluate.metrics:
        raise UserError(f"{where}, evaluate, 'metrics' must name at least one metric (`ganbench list metrics`).")
    if recipe.train.precision not in PRECISIONS:
        raise UserError(
            f"{where}, train, 'precision' must be one of {', '.join(PRECISIONS)}, not '{recipe.train.precision}'."
        )
    for key, choice, choices in (
        ("train, 'batch_norm'", recipe.train.batch_norm, ("global", "local")),
        ("watch, 'on_trouble'", recipe.watch.on_trouble, ("stop", "go on")),
    ):
        if choice not in choices:
            raise UserError(f"{where}, {key} must be one of {', '.join(choices)}, not '{choice}'.")
    if bool(recipe.watch.metric) != (recipe.watch.every > 0):
        raise UserError(f"{where}, watch: 'metric' and 'every' go together.")
    if (recipe.train.labels > 0) != (recipe.train.unlabelled_batch_size > 0) or recipe.train.labels < 0:
        raise UserError(f"{where}, train: 'labels' and 'unlabelled_batch_size' go together, both at least 1.")
    if not 0 <= recipe.train.ema_decay < 1:
        raise UserError(f"{where}, train, 'ema_decay' must be in [0, 1), not {recipe.train.ema_decay}.")


def read_group(path: Path) -> Group:
    """Read and validate a group's file. Raises UserError that names the file and the key."""
    group: Group = _parse(Group, _toml(path, "group")[1], str(path))
    if group.name != path.stem:
        raise UserError(f"{path}: the name '{group.name}' must be that of the file.")
    if not group.recipes or len(set(group.recipes)) < len(group.recipes):
        raise UserError(f"{path}, 'recipes' must name at least one recipe, and none twice.")
    return group


def _folders() -> list[Path]:
    """The installed folders of recipes. A third party's entry point is one, or a function that returns one."""
    found = []
    for name in registry.names("recipes"):
        folder: Path | Callable[[], Path] = registry.load("recipes", name)
        found.append(Path(folder() if callable(folder) else folder))
    return found


def available() -> dict[str, Path]:
    """Every installed recipe's file, by name."""
    found: dict[str, Path] = {}
    for folder in _folders():
        for file in sorted(folder.glob("*.toml")):
            found.setdefault(file.stem, file)
    return found


def available_groups() -> dict[str, Path]:
    """Every installed group's file, by name: those in the folders `groups` of the folders of recipes."""
    found: dict[str, Path] = {}
    for folder in _folders():
        for file in sorted((folder / GROUPS).glob("*.toml")):
            found.setdefault(file.stem, file)
    return found


def find(name: str) -> Recipe:
    """The recipe of that name, or of that path if it ends with .toml. Raises UserError for an unknown one."""
    if name.endswith(".toml"):
        return read(Path(name))
    files = available()
    if name not in files:
        known = [*files, *available_groups()]
        what = did_you_mean(name, known, "`ganbench list recipes` and `ganbench list groups` name those there are.")
        raise UserError(f"unknown recipe '{name}'.{what} A path to a .toml file works too.")
    return read(files[name])


def lookup(name: str) -> tuple[Group | None, dict[str, Recipe]]:
    """What a user names to be reproduced: a group and its recipes, or None and the one recipe of that name.

    The recipes are by their name or path. A name that ends with .toml is a path to either. Raises UserError for an
    unknown name, in the group too.
    """
    groups = available_groups()
    if name.endswith(".toml"):
        path = Path(name) if "recipes" in _toml(Path(name), "recipe")[1] else None
    else:
        path = groups.get(name)
        if path is not None and name in available():
            raise UserError(f"'{name}' is a recipe, {available()[name]}, and a group, {path}: give the path of one.")
    if path is None:
        return None, {name: find(name)}
    group = read_group(path)
    try:
        names = [str(path.parent / r) if r.endswith(".toml") else r for r in group.recipes]
        return group, {r: find(r) for r in names}
    except UserError as error:
        raise UserError(f"group '{group.name}': {error}") from error
