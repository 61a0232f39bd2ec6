"""`ganbench validate`: a recipe or a group is checked without training or downloading anything.

Every name in it is looked up, its model is built without weights (on torch's meta device), and the report says what a
run would need: data sets, weights, steps, parameters, images. Every mistake is found that does not take images or
weights to find.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ganbench import doctor, recipes
from ganbench.base import registry
from ganbench.base.data_spec import apart, name_in
from ganbench.base.errors import UserError
from ganbench.data import datasets, resizing
from ganbench.data.datasets import Dataset, UnknownSplit
from ganbench.data.datasets.folder import find_split, folder_and_split
from ganbench.data.label_noise import with_label_noise
from ganbench.evaluation import measure
from ganbench.evaluation.inputs import needed_extractors
from ganbench.evaluation.measure import Request
from ganbench.evaluation.subject import METHODS
from ganbench.gan import GAN, capabilities, checkpoint
from ganbench.recipes import SYNTHETIC, Group, Recipe
from ganbench.reproduction.run import DEFAULT_EXTRACTOR, watched_metric, with_synthetic_data
from ganbench.training.growth import Span, growth_in_words, spans
from ganbench.training.loop import require_fit


class Fault(NamedTuple):
    """A mistake in a recipe: the table and the key that it stands in, and what is wrong and what to do."""

    table: str
    key: str
    text: str

    def said(self, file: Path, budget: str = "") -> str:
        """Return the line that names file and key. budget: the table of a budget that has the mistake, if one has."""
        tables = [f"budget '{budget}'" if budget else self.table, f"'{self.key}'"]
        return ", ".join([str(file), *filter(None, tables)]) + f": {self.text}"


@dataclass(frozen=True)
class Needs:
    """The needs of a full run of a recipe.

    parameters: of all its networks. networks: parameters of each. data, extractors: their names. spans: the stages of
    its training.
    """

    recipe: Recipe
    parameters: int = 0
    networks: dict[str, int] = field(default_factory=dict)
    data: list[str] = field(default_factory=list)
    extractors: list[str] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """The findings in a file. faults: a line each, none if it is right. lines: what its runs would need."""

    faults: list[str]
    lines: list[str] = field(default_factory=list)


def validate(name: str) -> Report:
    """Check a recipe or a group: a path to a .toml file, or the name of an installed one. Raises nothing."""
    try:
        path = _file_of(name)
        group, members, faults = _members(path)
    except UserError as error:
        return Report([str(error)])
    needs = []
    for file, recipe in members:
        found, need = check(recipe, file)
        faults += found
        needs.append(need)
    if group is not None:
        faults += _faults_of_group(group, [recipe for _, recipe in members], path)
    return Report(list(dict.fromkeys(faults)), _lines(group, needs))


def _file_of(name: str) -> Path:
    """The file of that name. Raises UserError for an unknown name, and for one of a recipe and of a group."""
    if name.endswith(".toml"):
        return Path(name)
    files, groups = recipes.available(), recipes.available_groups()
    if (name in files) == (name in groups):
        recipes.lookup(name)  # raises: it is neither, or both
    return files[name] if name in files else groups[name]


def _members(path: Path) -> tuple[Group | None, list[tuple[Path, Recipe]], list[str]]:
    """The group in a file, or None; its recipes, or the one that the file is, with their files; faults in these.

    Raises UserError for a file that is neither.
    """
    try:
        group = recipes.read_group(path)
    except UserError:  # it is no group, or a wrong one: `lookup` knows which, and what to say
        _, found = recipes.lookup(str(path))
        return None, [(path, recipe) for recipe in found.values()], []
    members, faults = [], []
    for name in group.recipes:
        try:
            file = path.parent / name if name.endswith(".toml") else _file_of(name)
            members.append((file, recipes.read(file)))
        except UserError as error:
            faults.append(f"{path}, 'recipes': {error}")
    return group, members, faults


def _faults_of_group(group: Group, members: list[Recipe], path: Path) -> Iterator[str]:
    """Faults in the metrics that a group shows, and in those of its rivals."""
    shown = {name for recipe in members for name in (*recipe.evaluate.metrics, *(r.metric for r in recipe.reported))}
    for metric in group.metrics:
        if metric not in shown and plain(metric) not in shown:
            yield f"{path}, 'metrics': no recipe of the group measures or reports '{metric}': drop it, or add it there."
    for i, rival in enumerate(group.rival):
        if reason := _why_unknown(rival.metric):
            yield f"{path}, 'rival'[{i}], 'metric': {reason}"
    for i, row in enumerate(group.absent):
        if row.metric and (reason := _why_unknown(row.metric)):
            yield f"{path}, 'absent'[{i}], 'metric': {reason}"
    by_name = {recipe.name: recipe for recipe in members}
    for i, order in enumerate(group.order):
        if reason := _why_no_order(order.metric):
            yield f"{path}, 'order'[{i}], 'metric': {reason}"
        for recipe in (by_name.get(recipes.name_of(name)) for name in (order.better, order.worse)):
            if recipe and plain(order.metric) not in recipe.evaluate.metrics:
                yield f"{path}, 'order'[{i}]: '{recipe.name}' does not measure '{order.metric}': add it to that recipe."


def _why_no_order(metric: str) -> str:
    """The reason why nothing can be better than another by this metric; '' if it has a direction."""
    if reason := _why_unknown(metric):
        return reason
    (request,) = measure.parse_metrics([plain(metric)], DEFAULT_EXTRACTOR)
    directed = request.protocol.direction != "none"
    return "" if directed else f"'{metric}' has no direction, in which one recipe is better: take another metric."


def check(recipe: Recipe, file: Path) -> tuple[list[str], Needs]:
    """Check a recipe and its budgets; return a line for each fault, and what a full run needs. file: for the lines."""
    full = [*_faults_of_text(recipe), *_faults(recipe)]
    lines = [fault.said(file) for fault in full]
    for budget in recipe.budget:
        lines += [fault.said(file, budget) for fault in _faults(recipe.at(budget)) if fault not in full]
    if full:
        return lines, Needs(recipe)
    spec = recipe.of_seed(0)
    gan = _build(spec)
    requests = measure.parse_metrics([*spec.evaluate.metrics, *watched_metric(spec)], DEFAULT_EXTRACTOR)
    specs = spec.train.data, spec.evaluate.reference, spec.evaluate.real
    data = list(dict.fromkeys(_data_name(text) for text in specs))
    stages = spans(gan, recipe.train.batch_size)
    return lines, Needs(recipe, parameters(gan), networks(gan), data, needed_extractors(requests), stages)


def parameters(gan: GAN) -> int:
    """Return the number of parameters of a model."""
    return sum(p.numel() for p in gan.parameters())


def networks(gan: GAN) -> dict[str, int]:
    """Return the number of parameters of each network of a model that has any."""
    counts = {name: sum(p.numel() for p in net.parameters()) for name, net in gan.named_children()}
    return {name: count for name, count in counts.items() if count}


def _faults_of_text(recipe: Recipe) -> Iterator[Fault]:
    """Faults in what a recipe says of its paper."""
    if not recipe.deviations or not all(text.strip() for text in recipe.deviations):
        yield Fault("", "deviations", "say in a sentence each how the recipe differs from its paper: a list of texts.")
    for i, reported in enumerate(recipe.reported):
        if reason := _why_unknown(reported.metric):
            yield Fault(f"'reported'[{i}]", "metric", reason)


def plain(metric: str) -> str:
    """The metric that a value is of: NAME@32, of images reduced to 32 pixels, and NAME@w are values of NAME."""
    return metric.partition("@")[0]


def _why_unknown(metric: str) -> str:
    """The reason why there is no metric of a paper's value; '' if there is one."""
    try:
        measure.parse_metrics([plain(metric)], DEFAULT_EXTRACTOR)
    except UserError as error:
        return str(error)
    return ""


def _faults(recipe: Recipe) -> Iterator[Fault]:
    """Faults in what is run: model, data, metrics. recipe: as it is run on one of its budgets."""
    recipe = recipe.of_seed(0)
    gan = None
    try:
        registry.require("models", recipe.model.name)
        gan = _build(recipe)
    except UserError as error:
        key = "name" if recipe.model.name not in registry.names("models") else "args"
        yield Fault("model", key, str(error).removeprefix(f"{recipe.name}: "))
    try:
        if gan is not None:
            spans(gan, recipe.train.batch_size)
    except UserError as error:
        yield Fault("model", "name", str(error))
        return
    yield from _faults_of_data(recipe, gan)
    yield from _faults_of_metrics(recipe, gan)


def _build(recipe: Recipe) -> GAN:
    return build(recipe.model.name, recipe.model.args, recipe.name)


def build(name: str, args: dict[str, Any], whose: str) -> GAN:
    """Return a model without weights. Raises UserError, beginning with `whose`, for its arguments."""
    try:
        with torch.device("meta"):
            return checkpoint.make_model(name, args, whose)
    except UserError:  # a constructor may look at the weights that it draws: let it
        with torch.random.fork_rng(devices=[]):
            return checkpoint.make_model(name, args, whose)


def _faults_of_data(recipe: Recipe, gan: GAN | None) -> Iterator[Fault]:
    """Faults in the names of data sets, and in what is known of their images. gan: None if it cannot be built."""
    resize = None
    try:
        resize = resizing.parse(recipe.train.resize) if recipe.train.resize else None
    except UserError as error:
        yield Fault("train", "resize", str(error))
    if recipe.train.data == SYNTHETIC:  # of the model's shape
        if gan is None:
            return
        with torch.device("meta"):
            recipe = with_synthetic_data(recipe)
    data = None
    try:
        data = _look_up(recipe.train.data, resize)
        if data is not None and gan is not None:
            require_fit(gan, recipe, data)
    except UserError as error:
        yield Fault("train", "data", str(error).removeprefix(f"recipe '{recipe.name}': "))
    try:
        if data is not None:
            with_label_noise(data, recipe.train.label_noise)
    except UserError as error:
        yield Fault("train", "label_noise", str(error))
    for key, text in (("reference", recipe.evaluate.reference), ("real", recipe.evaluate.real)):
        if key == "real" and _is_whole_folder(recipe.train.data):  # such a folder has no real images to spare
            continue
        try:
            _look_up(text, resize)
        except UserError as error:
            yield Fault("evaluate", key, str(error))


def _look_up(spec: str, resize: resizing.Resize | None) -> Dataset | None:
    """The images of a data set, if it comes with a package; None if it is a folder or would have to be downloaded.

    Raises UserError for an unknown name or split.
    """
    name = name_in(spec)
    rest = apart(spec)[0].removeprefix(name).removeprefix(":")
    if name == "folder":
        path, split = folder_and_split(rest)
        if path.is_dir():
            find_split(path, split)
        return None
    registry.require("datasets", name)
    if name in doctor.EMBEDDED:
        return datasets.load(spec, resize=resize)
    get = registry.load("datasets", name)
    with tempfile.TemporaryDirectory() as empty:  # a set looks at its split first, and then into the folder
        try:
            get(rest or "train", Path(empty), False)
        except UnknownSplit:
            raise
        except Exception:  # it is missing from an empty folder, in words of its own
            return None
    return None


def _is_whole_folder(spec: str) -> bool:
    """True if the data are a folder that is there and has no splits."""
    whole = apart(spec)[0]
    if name_in(whole) != "folder":
        return False
    path, _ = folder_and_split(whole.removeprefix("folder:"))
    return path.is_dir() and find_split(path, None) == "all"


def _data_name(spec: str) -> str:
    """The data set's name without its split; a folder with its path."""
    whole = apart(spec)[0]
    name = name_in(whole)
    return f"folder:{folder_and_split(whole.removeprefix('folder:'))[0]}" if name == "folder" else name


def _faults_of_metrics(recipe: Recipe, gan: GAN | None) -> Iterator[Fault]:
    """Faults in the metrics of the evaluation and of [watch]: unknown ones, and ones that this model cannot have."""
    known: list[str] = []
    for name in recipe.evaluate.metrics:
        try:
            request = measure.parse_metrics([*known, name], DEFAULT_EXTRACTOR)[-1]
        except UserError as error:
            yield Fault("evaluate", "metrics", str(error))
            continue
        known.append(name)
        if reason := _why_unavailable(request, recipe, gan):
            yield Fault("evaluate", "metrics", f"'{name}' cannot be measured: {reason}.")
    for name in watched_metric(recipe):
        try:
            (request,) = measure.parse_metrics([name], DEFAULT_EXTRACTOR)
        except UserError as error:
            yield Fault("watch", "metric", str(error))
            continue
        if request.protocol.direction == "none":
            yield Fault("watch", "metric", f"'{name}' has no better or worse: name another metric.")
        elif request.protocol.asks_model or request.protocol.needs_side("held_out"):
            yield Fault("watch", "metric", f"'{name}' takes more than samples and training images: name another.")


def _why_unavailable(request: Request, recipe: Recipe, gan: GAN | None) -> str:
    """The reason why a recipe's evaluation would have no value of a metric; '' if there is none to see."""
    protocol, name = request.protocol, recipe.model.name
    if protocol.num is not None and recipe.evaluate.num != protocol.num:
        return f"it is of {protocol.num:,} images, and 'num' is {recipe.evaluate.num:,}: make 'num' {protocol.num}"
    if gan is None:
        return ""
    can = capabilities(gan)
    for need, lack in measure.LACKS.items():
        if f"model.{need}" in protocol.needs and need not in can:
            return f"the model '{name}' {lack}"
    if request.extractor in METHODS and METHODS[request.extractor] not in can:
        return f"the model '{name}' is none with {measure.OWN[request.extractor]}"
    if "fake.labels" in protocol.needs and not gan.num_classes:
        return f"it is of labelled images, and the model '{name}' takes no labels"
    return ""


def _lines(group: Group | None, needs: list[Needs]) -> list[str]:
    """The lines about a file that is right: its models, the length of its runs, its data sets and weights."""
    if group is None:
        lines = [line for need in needs for line in _lines_of_recipe(need)]
    else:
        width = max((len(need.recipe.name) for need in needs), default=0)
        lines = [f"{group.name}: right, {len(needs)} recipes ({group.title})"]
        lines += [
            f"  {need.recipe.name.ljust(width)}  {need.recipe.model.name}, {need.parameters:,} parameters, "
            f"{need.recipe.train.steps:,} steps, {need.recipe.evaluate.num:,} images evaluated"
            for need in needs
        ]
    lines += [str(doctor.dataset(name)) for name in dict.fromkeys(name for need in needs for name in need.data)]
    lines += [str(doctor.extractor(name)) for name in sorted({name for need in needs for name in need.extractors})]
    return lines


def _lines_of_recipe(need: Needs) -> list[str]:
    recipe, train, evaluate = need.recipe, need.recipe.train, need.recipe.evaluate
    images = f"{train.batch_size} images"
    if train.labels:
        images = f"{train.batch_size} images with labels and {train.unlabelled_batch_size} without"
    grows = growth_in_words(need.spans, train.steps)
    budgets = ", ".join(f"{name} {budget.steps:,} steps" for name, budget in recipe.budget.items())
    return [
        f"{recipe.name}: right ({recipe.title})",
        f"  model       {recipe.model.name}, {need.parameters:,} parameters",
        f"  training    {train.steps:,} steps of {images}" + (f"; {budgets}" if budgets else ""),
        *([f"  labels      with noise: {train.label_noise}"] if train.label_noise else []),
        *([f"  growing     {grows}"] if grows else []),
        f"  evaluation  {evaluate.num:,} images: {', '.join(evaluate.metrics)}",
    ]
