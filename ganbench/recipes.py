"""Recipes: what to train on what, how to evaluate it, and what the paper reported. One TOML file a recipe.

An unknown key is an error, so that a misspelt option cannot be ignored silently. A group names the recipes that make a
table of a paper. A tree of recipes holds both: recipes at its top or in one folder a paper, groups in `groups/` at its
top or in the `tables/` of a paper's folder.
"""

import dataclasses
import fnmatch
import functools
import hashlib
import math
import os
import re
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from ganbench.base import label_noise, registry, schema
from ganbench.base.data_spec import apart, of_classes
from ganbench.base.errors import UserError, did_you_mean, printable
from ganbench.base.files import read_bytes
from ganbench.base.label_noise import LabelNoise
from ganbench.base.standard_output import user_code

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# PyTorch's CPU generator takes the low 32 bits of a seed: larger seeds would repeat smaller ones.
MAX_SEED = 2**32 - 1

PRECISIONS = ("float32", "bf16")
BUDGETS = ("smoke", "short", "full")
SYNTHETIC = "synthetic"  # images of the model's own shape: the data of a smoke run that names no others
HELD_OUT = ("test", "val", "valid")
GROUP_FOLDERS = ("groups", "tables")  # in these folders of a tree each TOML file is a group
NOT_IN_THE_FILE = {"sha256", "members"}  # fields that reading fills in
MOST_BYTES = 1 << 20  # of a recipe's file
MOST_BYTES_OF_A_NAME = 150
NO_FILE_NAME = re.compile(r"^[.\s-]|[/\\:*?\"<>|\n\t]|[.\s]$")  # what a name has that is no file name on every system

ANOTHER_TABLE = re.compile(rb"[ \t]*\[{1,2}[ \t]*(?!budget\b)[A-Za-z][\w.-]*[ \t]*\]{1,2}[ \t]*(#.*)?$")
A_BUDGET = re.compile(rb"^(?=[ \t]*\[[ \t]*budget\b)", re.MULTILINE)
# A TOML file in a tree is a recipe if it has one of these tables, in either notation.
A_RECIPE = re.compile(rb"^[ \t]*(\[[ \t]*(model|train|evaluate)\b|(model|train|evaluate)[ \t]*=)", re.MULTILINE)

_PACKAGE = Path(__file__).parent
# A wheel holds the recipes in the package; in a checkout they are the top-level folder.
BUNDLED = _PACKAGE / "benchmarks" if (_PACKAGE / "benchmarks").is_dir() else _PACKAGE.parent / "benchmarks"


# --- What a recipe and a group hold ---


class Printed(float):
    """A number that remembers with how many decimals it was written: 2.30 has two, 1e3 has -3.

    >>> Printed("2.30").decimals, Printed("1.5e3").decimals, Printed("2.30") == 2.3
    (2, -2, True)
    """

    decimals: int

    def __new__(cls, text: str | float) -> "Printed":
        number = super().__new__(cls, text)
        mantissa, _, exponent = str(text).replace("_", "").lower().partition("e")
        number.decimals = len(mantissa.partition(".")[2]) - int(exponent or 0)
        return number


@dataclass(frozen=True)
class ModelSpec:
    """A reference model's name, and the arguments of its constructor."""

    name: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainSpec:
    """The data and the schedule.

    data: as `datasets.load` takes it. `{seed}` in it, and in the reference, is the run's seed, so that the seeds of a
    recipe can be models of different classes.
    batch_size, steps: images a batch, and updates of G.
    ema_decay: decay of the averaged weights; 0 evaluates the last weights instead.
    ema_start: steps until averaging begins; before, the average is the weights themselves.
    labels: number of labelled images, drawn by the seed, as many of each class or one more of some classes; 0: all
    images have their label.
    unlabelled_batch_size: with `labels`, a batch is `batch_size` labelled images and this many of all.
    precision: 'float32', or 'bf16' for products in bfloat16 with weights, sums and updates in float32.
    batch_norm: with several processes, moments are over the 'global' batch or over each process's 'local' part.
    resize: done to every image, real ones too, in the words of --resize; '' for none.
    label_noise: noise on the labels of the training images; the images of the evaluation keep their true labels.
    """

    data: str
    batch_size: int
    steps: int
    ema_decay: float = 0.0
    ema_start: int = 0
    labels: int = 0
    unlabelled_batch_size: int = 0
    precision: str = "float32"
    batch_norm: str = "global"
    resize: str = ""
    label_noise: LabelNoise | None = None

    def identity(self) -> dict[str, Any]:
        """Return all that decides the course of a run except its length: no step depends on the number of steps."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "steps" and v != defaults[k]}


@dataclass(frozen=True)
class WatchSpec:
    """How a run is watched while it goes on; no weight depends on it.

    grid_every: steps between sample grids; 0: ten grids over the run. One more comes within its first minute.
    on_trouble: 'stop' ends a run whose losses explode, whose generator collapses or whose discriminator has won;
    'go on' only says so.
    metric: measured every `every` steps on `num` samples against the training images. The checkpoint of its best value
    is kept beside the last one.
    limits: the largest healthy value of losses and of other logged values, by name. A value that stays above it for ten
    logged steps in a row is trouble.
    """

    grid_every: int = 0
    on_trouble: str = "stop"
    limits: dict[str, float] = field(default_factory=dict)
    metric: str = ""
    every: int = 0
    num: int = 2000


@dataclass(frozen=True)
class EvaluateSpec:
    """The protocol: `num` generated images against `reference`, with balanced labels where the model takes labels.

    real: the split whose images make the table's row of real data.
    """

    metrics: list[str]
    num: int
    reference: str
    real: str


@dataclass(frozen=True)
class Reported:
    """One number of the paper.

    A number that can be read as measured by two protocols stands twice, each time with its own metric and `protocol`.

    std: the paper's own ±, or None. runs: if that ± is the standard deviation of this many runs, their number; else 0.
    comparable: False if our protocol or data differ; `note` then says how.
    unconfirmed: the number could not be checked against the paper's text.
    protocol: in a few words, the protocol that is assumed, for the table; '' if the paper leaves no doubt.
    """

    metric: str
    value: float
    source: str
    std: float | None = None
    runs: int = 0
    comparable: bool = True
    unconfirmed: bool = False
    protocol: str = ""
    note: str = ""


@dataclass(frozen=True)
class Budget:
    """The changes of a shorter run to its recipe; None leaves a value as it is.

    `smoke`: seconds on one core with nothing downloaded, to see that everything works.
    `short`: minutes to an hour or two, to see something.
    args: laid over the model's arguments, so that schedules among them shrink with the run.
    """

    steps: int
    batch_size: int | None = None
    unlabelled_batch_size: int | None = None
    labels: int | None = None
    ema_decay: float | None = None
    ema_start: int | None = None
    num: int | None = None
    metrics: list[str] | None = None
    data: str | None = None
    args: dict[str, Any] = field(default_factory=dict)

    def changes(self) -> dict[str, Any]:
        """Return what the budget sets, as a result records it."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v not in (None, {})}


@dataclass(frozen=True)
class Recipe:
    """One recipe. `version` rises with every change that could move a number.

    sha256: hash of the file without its budgets, since no full run depends on them.
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
        """Return the recipe as it is run on a budget. Raises UserError if it has no such budget."""
        if budget == "full":
            return self
        if budget not in self.budget:
            raise UserError(
                f"recipe '{self.name}' has no budget '{budget}': add a table [budget.{budget}] with its 'steps'."
            )
        b = self.budget[budget]

        def changed(spec: Any, *keys: str) -> Any:
            return dataclasses.replace(spec, **{k: v for k in keys if (v := getattr(b, k)) is not None})

        train = changed(self.train, "steps", "batch_size", "unlabelled_batch_size", "labels", "ema_decay", "ema_start")
        model = dataclasses.replace(self.model, args={**self.model.args, **b.args})
        watch = dataclasses.replace(self.watch, metric="", every=0) if budget == "smoke" else self.watch
        evaluate = changed(self.evaluate, "num", "metrics")
        shorter = dataclasses.replace(self, model=model, train=train, evaluate=evaluate, watch=watch)
        return shorter.replace(data=b.data or (SYNTHETIC if budget == "smoke" else None))

    def of_seed(self, seed: int) -> "Recipe":
        """Return the recipe of one run: its seed stands in the names of the data."""

        def named(spec: Any, *keys: str) -> Any:
            return dataclasses.replace(spec, **{k: getattr(spec, k).replace("{seed}", str(seed)) for k in keys})

        train, evaluate = named(self.train, "data"), named(self.evaluate, "reference", "real")
        return dataclasses.replace(self, train=train, evaluate=evaluate)

    def override(self, overrides: dict[str, Any]) -> "Recipe":
        """Return the recipe with the changes of the command line: 'budget', and on top of it 'steps' and 'data'."""
        return self.at(overrides.get("budget", "full")).replace(overrides.get("steps"), overrides.get("data"))

    def replace(self, steps: int | None = None, data: str | None = None) -> "Recipe":
        """Return the recipe with other `steps`, or with other `data`, which then are also the reference.

        `data` names a set (`mnist`, `folder:PATH`), one of its splits, or rows or classes of one. Real data come from
        the other split: for a folder the recipe's own, else the other one of train and test. A folder is reduced to
        the classes that the recipe takes.
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
            resize = "" if data.startswith(SYNTHETIC) else train.resize  # synthetic images have the size they need
            train = dataclasses.replace(train, data=whole + part, resize=resize)
            evaluate = dataclasses.replace(
                evaluate, reference=f"{base}:{split}{part}", real=f"{base}:{other}{of_classes(part)}"
            )
        return dataclasses.replace(self, train=train, evaluate=evaluate)


@dataclass(frozen=True)
class Rival:
    """A value of the paper's table that another value of it has to be told from.

    A group gives it for a row of the paper that is no recipe of the group, or that has another metric there.
    source: which row it is. recipes: the rows that it stands beside; default: all of the group.
    """

    metric: str
    value: float
    source: str
    recipes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Absent:
    """A row of the paper's table that no recipe makes: another paper's model, or an experiment that cannot be run.

    row, reason: its name, and why no recipe makes it.
    metric, value, std: its number, a rival of the other rows'; without them the paper has none.
    recipes: the rows that it stands beside; default: all of the group.
    """

    row: str
    reason: str
    metric: str = ""
    value: float | None = None
    std: float | None = None
    recipes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Order:
    """A claim of the paper about two rows of its table: one comes out better than the other.

    claim: the paper's, in a few words. metric: by which; it has a direction, and both recipes measure it.
    better, worse: names of recipes of the group. source: where the paper says so, with its numbers.
    """

    claim: str
    metric: str
    better: str
    worse: str
    source: str


@dataclass(frozen=True)
class Group:
    """Recipes that make a table of a paper, in the order of its rows.

    recipes: names of installed recipes, or paths to .toml files from the group's folder.
    metrics: those that the table shows; default: those with reported values.
    rival: further values of the paper's table (see `rivals`).
    absent: further rows of the paper's table, shown as not run.
    order: which recipes come out better than which, as the paper says: each gets a verdict of its own.
    members: the recipes themselves, once `lookup` has read them.
    """

    name: str
    title: str
    paper: str
    recipes: list[str]
    metrics: list[str] = field(default_factory=list)
    rival: list[Rival] = field(default_factory=list)
    absent: list[Absent] = field(default_factory=list)
    order: list[Order] = field(default_factory=list)
    members: list[Recipe] = field(default_factory=list)


# --- Reading ---


def read(path: Path) -> Recipe:
    """Read and validate a recipe file.

    Raises UserError that names the file and the key: unreadable, not TOML, unknown or missing keys, wrong types, a
    schedule that is not positive, no metric, a budget that does not come last, or a name that is not the file's.
    """
    raw, table = _toml(path, "recipe")
    recipe: Recipe = _parse(Recipe, table, str(path))
    _check_name(recipe.name, path)
    for name in recipe.budget:
        if name not in BUDGETS[:-1]:
            raise UserError(f"{path}, 'budget': unknown budget '{name}'.{did_you_mean(name, list(BUDGETS[:-1]))}")
    own, *budgets = A_BUDGET.split(raw)
    if any(ANOTHER_TABLE.match(line) for part in budgets for line in part.splitlines()):
        raise UserError(f"{path}: the budgets must come last, after all other tables.")
    _check(recipe, str(path))
    for name in recipe.budget:
        _check(recipe.at(name), f"{path}, budget '{name}'")
    return dataclasses.replace(recipe, sha256=hashlib.sha256(own.rstrip() + b"\n" if budgets else raw).hexdigest())


def read_group(path: Path) -> Group:
    """Read and validate a group's file. Raises UserError that names the file and the key."""
    group: Group = _parse(Group, _toml(path, "group")[1], str(path))
    _check_name(group.name, path)
    if not group.recipes or len(set(group.recipes)) < len(group.recipes):
        raise UserError(f"{path}, 'recipes' must name at least one recipe, and none twice.")
    for rival in group.rival:
        if strange := [name for name in rival.recipes if name not in group.recipes]:
            raise UserError(f"{path}, 'rival': '{strange[0]}' is none of the group's recipes.")
    for order in group.order:
        if strange := [name for name in (order.better, order.worse) if name not in group.recipes]:
            raise UserError(f"{path}, 'order': '{strange[0]}' is none of the group's recipes.")
        if order.better == order.worse:
            raise UserError(f"{path}, 'order': '{order.better}' cannot be better than itself.")
    for row in group.absent:
        if strange := [name for name in row.recipes if name not in group.recipes]:
            raise UserError(f"{path}, 'absent': '{strange[0]}' is none of the group's recipes.")
        if bool(row.metric) != (row.value is not None) or (row.std is not None and (row.value is None or row.std < 0)):
            raise UserError(
                f"{path}, 'absent': '{row.row}' needs 'metric' and 'value' together, and 'std' of at least 0 with them."
            )
    return group


def _toml(path: Path, what: str) -> tuple[bytes, dict[str, Any]]:
    """Return the bytes of a TOML file and its content: finite numbers of 64 bits, texts without control characters."""
    raw = read_bytes(path, what, MOST_BYTES)
    whose = f"the {what} {path}"
    try:
        table = tomllib.loads(raw.decode("utf-8"), parse_float=_number)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{whose} is not valid TOML: it is not UTF-8 text (byte {error.start + 1}). Save it as UTF-8."
        ) from error
    except RecursionError as error:
        raise UserError(f"{whose} is not valid TOML: it is nested too deeply. Write it flat.") from error
    except ValueError as error:  # TOMLDecodeError is one; a number of thousands of digits is another
        raise UserError(f"{whose} is not valid TOML: {error}.") from error
    _check_plain(table, whose)
    return raw, {key: value if key == "reported" else _plain(value) for key, value in table.items()}


def _number(text: str) -> float:
    return float(text) if "n" in text else Printed(text)  # inf, nan: refused later on


def _plain(value: Any) -> Any:
    """Return a value of a TOML file with plain floats: only a paper's numbers keep their decimals."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return float(value) if isinstance(value, float) else value


def _check_plain(value: Any, where: str, depth: int = 0) -> None:
    """Raise UserError for a number that is not finite or too large, for control characters, and for deep nesting."""
    if depth > schema.MOST_DEPTH:
        raise UserError(f"{where} is nested more than {schema.MOST_DEPTH} levels deep: write it flat.")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_plain(key, f"{where}, a key")
            _check_plain(item, f"{where}, '{key}'", depth + 1)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _check_plain(item, f"{where}[{i}]", depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where} must be a finite number, not {value!r}.")
    elif isinstance(value, int) and not -schema.LARGEST <= value <= schema.LARGEST:
        raise UserError(f"{where} must be a number of at most 64 bits, not {schema.described(value)}.")
    elif isinstance(value, str) and (printable(value) != value or len(value) > schema.MOST_TEXT):
        raise UserError(f"{where} must be a text without control characters, not {schema.described(value)}.")


def _check_name(name: str, path: Path) -> None:
    """Raise UserError if a name is not that of its file, or could not name a folder of runs and a page."""
    if name != path.stem:
        raise UserError(f"{path}: the name '{name}' must be that of the file.")
    if not name or NO_FILE_NAME.search(name) or printable(name) != name or len(name.encode()) > MOST_BYTES_OF_A_NAME:
        raise UserError(
            f"{path}: the name '{name}' cannot name a folder of runs on every system: rename file and recipe, with "
            f"letters, digits, '-' and '_' (at most {MOST_BYTES_OF_A_NAME} of them)."
        )


def _parse(cls: type, value: Any, where: str) -> Any:
    """Return `value` as an instance of the dataclass `cls`; any mistake becomes a UserError that says where."""
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a table.")
    kinds = _type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.name not in NOT_IN_THE_FILE}
    for key in value:
        if key not in fields:
            raise UserError(f"{where}: unknown key '{key}'.{did_you_mean(key, list(fields))}")
    for name, f in fields.items():
        if name not in value and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}: the key '{name}' is missing.")
    return cls(**{key: _convert(kinds[key], item, f"{where}, '{key}'") for key, item in value.items()})


@functools.cache
def _type_hints(cls: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields; resolving them takes longer than reading a file."""
    return get_type_hints(cls)


def _convert(kind: Any, value: Any, where: str) -> Any:
    """Return `value` as the type `kind` of a field: a dataclass, a list, a dict or a plain value."""
    if get_origin(kind) in (Union, types.UnionType):  # float | None
        kind = next(k for k in get_args(kind) if k is not type(None))
    if dataclasses.is_dataclass(kind):
        return _parse(kind, value, where)  # type: ignore[arg-type]
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


def _check(recipe: Recipe, where: str) -> None:
    """Raise UserError for values that cannot be trained or evaluated with."""
    for key, number in (
        ("train, 'steps'", recipe.train.steps),
        ("train, 'batch_size'", recipe.train.batch_size),
        ("evaluate, 'num'", recipe.evaluate.num),
    ):
        if number < 1:
            raise UserError(f"{where}, {key} must be at least 1, not {number}.")
    if not recipe.evaluate.metrics:
        raise UserError(f"{where}, evaluate, 'metrics' must name at least one metric (`ganbench list metrics`).")
    for key, choice, choices in (
        ("train, 'precision'", recipe.train.precision, PRECISIONS),
        ("train, 'batch_norm'", recipe.train.batch_norm, ("global", "local")),
        ("watch, 'on_trouble'", recipe.watch.on_trouble, ("stop", "go on")),
    ):
        if choice not in choices:
            raise UserError(f"{where}, {key} must be one of {', '.join(choices)}, not '{choice}'.")
    for key, number, least in (
        ("'version'", recipe.version, 0),
        ("train, 'labels'", recipe.train.labels, 0),
        ("train, 'unlabelled_batch_size'", recipe.train.unlabelled_batch_size, 0),
        ("train, 'ema_start'", recipe.train.ema_start, 0),
        ("watch, 'grid_every'", recipe.watch.grid_every, 0),
        ("watch, 'every'", recipe.watch.every, 0),
        ("watch, 'num'", recipe.watch.num, 2),
    ):
        if number < least:
            raise UserError(f"{where}, {key} must be at least {least}, not {number}.")
    if bool(recipe.watch.metric) != (recipe.watch.every > 0):
        raise UserError(f"{where}, watch: 'metric' and 'every' go together.")
    for name, most in recipe.watch.limits.items():
        if isinstance(most, bool) or not isinstance(most, int | float):
            raise UserError(f"{where}, watch, 'limits', '{name}' must be a number, not {most!r}.")
    if (recipe.train.labels > 0) != (recipe.train.unlabelled_batch_size > 0):
        raise UserError(f"{where}, train: 'labels' and 'unlabelled_batch_size' go together, both at least 1.")
    noise = recipe.train.label_noise
    if noise is not None and (wrong := label_noise.fault(noise)):
        raise UserError(f"{where}, train, 'label_noise', '{wrong[0]}' {wrong[1]}.")
    if not 0 <= recipe.train.ema_decay < 1:
        raise UserError(f"{where}, train, 'ema_decay' must be in [0, 1), not {recipe.train.ema_decay}.")
    if recipe.train.ema_start and not recipe.train.ema_decay:
        raise UserError(f"{where}, train: 'ema_start' goes with 'ema_decay'.")
    for i, r in enumerate(recipe.reported):
        if r.runs < 0 or (r.runs and r.std is None):
            raise UserError(f"{where}, 'reported'[{i}]: 'runs' is at least 1, and goes with 'std'.")
        if r.std is not None and r.std < 0:
            raise UserError(f"{where}, 'reported'[{i}], 'std' must be at least 0, not {r.std}.")


# --- Finding ---


@dataclass(frozen=True)
class Installed:
    """All installed recipes and groups that can be read, by name, and a line about each file that cannot."""

    recipes: dict[str, Recipe]
    groups: dict[str, Group]
    faults: list[str]


def installed() -> Installed:
    """Return everything that is installed. A bad package does not keep the others from being read."""
    (files, two), (groups, two_groups) = _by_name(_recipe_files), _by_name(_group_files)
    faults = [*_opened()[1], *two.values(), *two_groups.values()]
    found = _readable(read, files, faults)
    return Installed(found, _readable(read_group, groups, faults), list(dict.fromkeys(faults)))


def _readable(reader: Callable[[Path], Any], files: dict[str, Path], faults: list[str]) -> dict[str, Any]:
    """Return what can be read, by name; add a line to `faults` for each file that cannot."""
    found = {}
    for name, path in files.items():
        try:
            found[name] = reader(path)
        except UserError as error:
            faults.append(str(error))
    return found


def available() -> dict[str, Path]:
    """Return every installed recipe's file, by name. `find` refuses a name that two files of one tree have."""
    return _by_name(_recipe_files)[0]


def available_groups() -> dict[str, Path]:
    """Return every installed group's file, by name. `lookup` refuses a name that two files of one tree have."""
    return _by_name(_group_files)[0]


def _recipe_files(tree: Path) -> Iterator[Path]:
    """Yield the recipes at the top of a tree and in its folders; a TOML file of another kind is none."""
    folders = [tree, *(p for p in tree.glob("*") if p.is_dir() and p.name not in GROUP_FOLDERS)]
    for file in (file for folder in folders for file in folder.glob("*.toml")):
        try:
            if file.is_file() and A_RECIPE.search(file.read_bytes()):
                yield file
        except OSError:  # reading it will say why
            yield file


def _group_files(tree: Path) -> Iterator[Path]:
    """Yield the groups of a tree: in `groups/` and `tables/` at its top and in its folders."""
    for folder in GROUP_FOLDERS:
        yield from tree.glob(f"{folder}/*.toml")
        yield from tree.glob(f"*/{folder}/*.toml")


def _by_name(files: Callable[[Path], Iterator[Path]]) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the files of all installed trees by name, and a line about each name that two files of one tree have.

    If two trees have one name, the first tree's file is returned; if two files of a tree have it, the first file.
    """
    found: dict[str, Path] = {}
    faults: dict[str, str] = {}
    for tree in _trees():
        own: dict[str, Path] = {}
        for file in sorted(files(tree), key=lambda file: (file.name, file)):
            if file.stem in own and file.stem not in found:
                faults[file.stem] = f"two files are named '{file.stem}': {own[file.stem]} and {file}. Rename one."
            own.setdefault(file.stem, file)
        found = {**found, **own, **found}
    return found, faults


def _trees() -> list[Path]:
    """Return the installed trees of recipes that can be opened."""
    return _opened()[0]


def _opened() -> tuple[list[Path], list[str]]:
    """Return the installed trees of recipes, and a line about each package whose tree cannot be opened.

    An entry point is a folder, or a function that returns one.
    """
    found, faults = [], []
    for name in registry.names("recipes"):
        try:
            found.append(_tree(name))
        except UserError as error:
            faults.append(str(error))
    return found, faults


def _tree(name: str) -> Path:
    """Return the tree of one entry point. Raises UserError if it cannot be opened."""
    folder: str | Path | Callable[[], Path] = registry.load("recipes", name)
    try:
        with user_code():
            path = Path(folder() if callable(folder) else folder)
        os.listdir(path)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the function is somebody else's, and may do anything, such as to exit
        raise UserError(
            f"the recipes '{name}' of the package '{registry.package_of(registry.entries('recipes')[name])}' cannot be "
            f"opened ({registry.reason(error)}): mend or uninstall that package."
        ) from error
    return path


def find(name: str) -> Recipe:
    """Return the recipe of that name, or of that path if it ends with .toml. Raises UserError for an unknown one."""
    if name.endswith(".toml"):
        return read(Path(name))
    files, faults = _by_name(_recipe_files)
    if name in faults:
        raise UserError(faults[name])
    if name not in files:
        known = [*files, *available_groups()]
        what = did_you_mean(name, known, "`ganbench list recipes` and `ganbench list groups` name those there are.")
        broken = "".join(f" Besides, {line}" for line in _opened()[1])
        raise UserError(f"unknown recipe '{name}'.{what} A path to a .toml file works too.{broken}")
    return read(files[name])


def lookup(name: str) -> tuple[Group | None, dict[str, Recipe]]:
    """Return what a user names to be reproduced: a group and its recipes, or None and the one recipe of that name.

    The recipes are by their name or path. A name that ends with .toml is a path to either. Raises UserError for an
    unknown name, in the group too.
    """
    groups, faults = _by_name(_group_files)
    if name in faults:
        raise UserError(faults[name])
    if name.endswith(".toml"):
        path = Path(name) if "recipes" in _toml(Path(name), "recipe")[1] else None
    else:
        path = groups.get(name)
        if path is not None and name in available():
            raise UserError(f"'{name}' is a recipe, {available()[name]}, and a group, {path}: give the path of one.")
    if path is None:
        return None, {name: find(name)}
    return _with_members(read_group(path), path)


def lookup_all(names: Sequence[str]) -> list[tuple[Group | None, dict[str, Recipe]]]:
    """Return what `lookup` does for each name; a name with `*`, `?` or `[` stands for the recipes that it fits.

    Raises UserError as `lookup` does, and for a pattern that fits no recipe.
    """
    found = []
    for name in names:
        if name.endswith(".toml") or not set(name) & set("*?["):
            found.append(lookup(name))
            continue
        fitting = fnmatch.filter(available(), name)
        if not fitting:
            raise UserError(f"no recipe fits the pattern '{name}'; `ganbench list recipes` names those there are.")
        found += [lookup(recipe) for recipe in fitting]
    return found


def _with_members(group: Group, path: Path) -> tuple[Group, dict[str, Recipe]]:
    """Return the group, and its recipes by name or path."""
    try:
        names = [str(path.parent / r) if r.endswith(".toml") else r for r in group.recipes]
        members = {r: find(r) for r in names}
    except UserError as error:
        raise UserError(f"group '{group.name}': {error}") from error
    return dataclasses.replace(group, members=list(members.values())), members


def rivals(recipe: Recipe, group: Group | None = None) -> list[Rival]:
    """Return the values that each reported value of the recipe has to be told from, over all tables that it is in.

    A rival of a value is another value of the same metric in the same column of a table. Other recipes of the group
    are in the same column if they train on the same data with the same number of labels and the same label noise:
    otherwise they are another experiment. A recipe's own values are no rivals of each other (the error of one model,
    and of an ensemble of ten). The `rival` and `absent` tables of a group add rows that its recipes do not give.

    group: a group that is at hand, beside those that are installed.
    """
    tables = [group] if group is not None else []
    for path in available_groups().values():
        try:
            other_group = read_group(path)
            if recipe.name in map(name_of, other_group.recipes) and other_group.name != (group and group.name):
                tables.append(_with_members(other_group, path)[0])
        except UserError:  # `installed` says which file cannot be read
            continue
    found = []
    for table in tables:
        for other in table.members:
            if other.name != recipe.name and _column(other) == _column(recipe):
                found += [Rival(r.metric, r.value, other.name, [recipe.name]) for r in other.reported]
        absent = [Rival(a.metric, a.value, a.row, a.recipes) for a in table.absent if a.value is not None]
        found += [r for r in (*table.rival, *absent) if not r.recipes or recipe.name in map(name_of, r.recipes)]
    return found


def _column(recipe: Recipe) -> tuple[str, int, LabelNoise | None]:
    """Return what the recipes of a table's column share."""
    return recipe.train.data, recipe.train.labels, recipe.train.label_noise


def name_of(member: str) -> str:
    """Return the name of a group's recipe, which may be given as a path."""
    return Path(member).stem if member.endswith(".toml") else member
