"""One recipe, group, model, metric, extractor or data set, described: what `ganbench show` prints.

`kinds_of` says what a name stands for, and `describe` returns a dict of plain values with a key `kind`. Everything is
read from where it stands: docstrings, signatures, recipes, and what `ganbench validate` and `ganbench doctor` find out.
"""

import difflib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ganbench import doctor, recipes
from ganbench.base import registry
from ganbench.base.data_spec import name_in
from ganbench.base.device import describe_device
from ganbench.base.errors import UserError
from ganbench.evaluation import measure
from ganbench.features import FeatureExtractor
from ganbench.gan import capabilities
from ganbench.recipes import Group, Recipe
from ganbench.reproduction import validation
from ganbench.reproduction.run import DEFAULT_EXTRACTOR
from ganbench.training import cost
from ganbench.training.growth import growth_in_words

KINDS = ("recipes", "groups", "models", "metrics", "extractors", "datasets")
ABOUT_ERRORS = re.compile("standard error|uncertaint|standard deviation|spread", re.IGNORECASE)
MATCHES = 3  # similar names that a message offers at most

Description = dict[str, Any]


# --- Names ---


def kinds_of(name: str) -> list[str]:
    """Return the KINDS that have something of that name. A name that ends with .toml is a path to a recipe or group.

    Raises UserError if there is none; the message offers similar names.
    """
    if name.endswith(".toml"):
        return ["recipes" if recipes.lookup(name)[0] is None else "groups"]
    found = [kind for kind in KINDS if kind != "metrics" and name in _names(kind)]
    if _request(name) is not None:
        found.insert(sum(KINDS.index(kind) < KINDS.index("metrics") for kind in found), "metrics")
    if not found:
        raise UserError(f"unknown name '{name}'.{_similar(name, KINDS)}")
    return found


def require(kind: str, name: str) -> None:
    """Raise UserError if there is nothing of that kind and name; the message offers similar names of the kind."""
    if name.endswith(".toml") and kind in ("recipes", "groups"):
        return
    if (_request(name) is None) if kind == "metrics" else name not in _names(kind):
        raise UserError(f"unknown {kind[:-1]} '{name}'.{_similar(name, (kind,))}")


def _names(kind: str) -> list[str]:
    if kind == "recipes":
        return list(recipes.installed().recipes)
    if kind == "groups":
        return list(recipes.installed().groups)
    if kind == "metrics":
        names = [re.sub("<extractor>$", e, n) for n in measure.metric_names() for e in registry.names("extractors")]
        return list(dict.fromkeys([*measure.protocols(), *names]))
    return registry.names(kind)


def _request(name: str) -> measure.Request | None:
    try:
        return measure.parse_metrics([name], DEFAULT_EXTRACTOR)[0]
    except UserError:
        return None


def _similar(name: str, kinds: tuple[str, ...]) -> str:
    """The end of a message about an unknown name."""
    known: dict[str, tuple[str, str]] = {}  # in small letters: the name and its kind
    for kind in kinds:
        for each in _names(kind):
            known.setdefault(each.lower(), (each, kind[:-1]))
    close = [name.lower()] if name.lower() in known else difflib.get_close_matches(name.lower(), known, n=MATCHES)
    if not close:
        instead = _as_metric(name) if "metrics" in kinds else ""
        return instead or " `ganbench list` names everything that there is."
    return " Did you mean " + " or ".join("'{}' ({})".format(*known[each]) for each in close) + "?"


def _as_metric(name: str) -> str:
    """The answer to a metric's name in another tool, "" if it is none."""
    try:
        measure.parse_metrics([name], DEFAULT_EXTRACTOR)
    except UserError as error:
        answer = str(error).partition("'.")[2]
        return "" if answer.startswith(" Known:") else answer
    return ""


# --- Descriptions ---


def describe(kind: str, name: str, device: torch.device | None = None) -> Description:
    """Return the description of a thing: plain values, ready for JSON.

    kind: one of KINDS, which must have the name. device: if it is given, steps of a recipe are timed on it.
    """
    describers: dict[str, Callable[[str], Description]] = {
        "recipes": lambda name: _recipe(name, device), "groups": _group, "models": _model, "metrics": _metric,
        "extractors": _extractor, "datasets": _dataset,
    }
    return {"kind": kind[:-1], "name": name, **describers[kind](name)}


def _recipe(name: str, device: torch.device | None) -> Description:
    path = Path(name) if name.endswith(".toml") else recipes.available()[name]
    recipe = recipes.read(path)
    faults, needs = validation.check(recipe, path)
    train, evaluate = recipe.train, recipe.evaluate
    return {
        "name": recipe.name,
        "title": recipe.title,
        "paper": recipe.paper,
        "version": recipe.version,
        "file": str(path),
        "faults": faults,
        "model": {**asdict(recipe.model), "parameters": needs.parameters, "networks": needs.networks},
        "training": {
            **asdict(train), "budgets": {budget: recipe.at(budget).train.steps for budget in recipe.budget},
            "stages": [asdict(span) for span in needs.spans if len(needs.spans) > 1],
            "growing": growth_in_words(needs.spans, train.steps),
        },
        "cost": None if device is None or faults else _cost(recipe, device, len(needs.spans) > 1),
        "evaluation": {"num": evaluate.num, "reference": evaluate.reference, "real": evaluate.real},
        "data": [_finding(doctor.dataset(each)) for each in needs.data],
        "extractors": [_finding(doctor.extractor(each)) for each in needs.extractors],
        "metrics": _metrics(recipe),
        "deviations": list(recipe.deviations),
        "commands": [f"ganbench reproduce {name}", *(f"ganbench reproduce {name} --budget {b}" for b in recipe.budget)],
    }


def _cost(recipe: Recipe, device: torch.device, grows: bool) -> Description:
    """Hours of training on this machine: of the full run, and of each budget that leaves a step as it is."""
    found = cost.measure(recipe, device)
    hours = {}
    if found.step_seconds is not None:
        hours["full"] = recipe.train.steps * found.step_seconds / 3600
        for name, budget in recipe.budget.items():
            changed = {"batch_size", "unlabelled_batch_size", "data", "args"} & set(budget.changes())
            if not changed and name != "smoke" and not grows:
                hours[name] = budget.steps * found.step_seconds / 3600
    return {**asdict(found), "hours": hours, "device": describe_device(device)}


def _finding(found: doctor.Finding) -> Description:
    return {"name": found.name, "here": found.ok, "text": found.text}


def _metrics(recipe: Recipe) -> list[Description]:
    """The metrics that a recipe measures or its paper reports, each with the paper's values."""
    names = dict.fromkeys([*recipe.evaluate.metrics, *(r.metric for r in recipe.reported)])
    described = []
    for name in names:
        request = _request(name.partition("@")[0])
        described.append({
            "name": name,
            "direction": request.protocol.direction if request else "none",
            "measured": name in recipe.evaluate.metrics,
            "reported": [{k: v for k, v in asdict(r).items() if k != "metric"}
                         for r in recipe.reported if r.metric == name],
        })
    return described


def _group(name: str) -> Description:
    found, members = recipes.lookup(name)
    assert isinstance(found, Group)
    return {
        "name": found.name,
        "title": found.title,
        "paper": found.paper,
        "recipes": [{"name": each, "title": recipe.title} for each, recipe in members.items()],
        "metrics": found.metrics or list(dict.fromkeys(r.metric for each in members.values() for r in each.reported)),
        "commands": [f"ganbench reproduce {name}", f"ganbench table {name}"],
    }


def _model(name: str) -> Description:
    cls = registry.load("models", name)
    doc = _paragraphs(_docstring(cls.__module__))
    gan = validation.build(name, {}, f"the model '{name}'")
    using = [recipe for recipe in recipes.installed().recipes.values() if recipe.model.name == name]
    source = next((text for text in doc if '"' in text), "")
    arguments = inspect.signature(cls).parameters.values()
    return {
        "title": registry.summary("models", name),
        "about": doc[0] if doc else "",
        "source": source,
        "deviations": _numbered(doc),
        "arguments": {
            p.name: None if p.default is inspect.Parameter.empty else p.default
            for p in arguments if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        },
        "about_arguments": _paragraphs(inspect.cleandoc(cls.__doc__ or ""))[1:],
        "image_shape": list(gan.image_shape),
        "classes": gan.num_classes or gan.classes,
        "parameters": validation.parameters(gan),
        "networks": validation.networks(gan),
        "capabilities": capabilities(gan),
        "recipes": [{"name": recipe.name, "title": recipe.title} for recipe in using],
    }


def _metric(name: str) -> Description:
    request = _request(name)
    assert request is not None
    p, extractor = request.protocol, request.extractor
    module = _module(p)
    doc = _paragraphs(_docstring(module))
    family = [other for other in measure.protocols().values() if _module(other) == module]
    return {
        "title": p.summary,
        "about": doc[0] if doc else "",
        "formula": [text for text in doc if text.startswith("    ") and not _is_code(text)],
        "source": p.source,
        "protocol": measure.protocol_id(p),
        "version": p.version,
        "direction": p.direction,
        "needs": sorted(p.needs),
        "extractor": extractor,
        "extractor_here": None if extractor in (None, *measure.OWN) else _finding(doctor.extractor(str(extractor))),
        "count": p.num,
        "real_row": p.real_row,
        "uncertainty": list(_about_errors(doc)),
        "names": [names for other in family for names in _names_of(other)],
        "recipes": _recipes_of(lambda r: r.protocol is p and r.extractor == extractor),
    }


def _module(p: measure.Protocol) -> str:
    """The module of a formula. `compute` may be a partial function."""
    return str(inspect.unwrap(getattr(p.compute, "func", p.compute)).__module__)


def _names_of(p: measure.Protocol) -> list[str]:
    """The names that `--metrics` takes for a protocol."""
    return [f"{p.stem}_<extractor>" if p.needs_extractor else p.stem, *([p.published[0]] if p.published else [])]


def _recipes_of(fits: Callable[[measure.Request], bool]) -> list[str]:
    """The recipes that evaluate by a metric that fits."""
    metrics = {recipe.name: recipe.evaluate.metrics for recipe in recipes.installed().recipes.values()}
    requests = {name: _request(name) for name in {name for names in metrics.values() for name in names}}
    fitting = {name for name, request in requests.items() if request is not None and fits(request)}
    return [recipe for recipe, names in metrics.items() if fitting & set(names)]


def _about_errors(doc: list[str]) -> Iterator[str]:
    """The text of a docstring about uncertainty: paragraphs that begin with it, and sentences in others."""
    for text in (text for text in doc if not text.startswith("    ")):
        sentences = re.split(r"(?<=[.:])\s+(?=[A-Z`])", text)
        if ABOUT_ERRORS.search(sentences[0]):
            yield text
        else:
            yield from (sentence for sentence in sentences if ABOUT_ERRORS.search(sentence))


def _extractor(name: str) -> Description:
    cls: type[FeatureExtractor] = registry.load("extractors", name)
    known = measure.protocols().values()
    return {
        "title": registry.summary("extractors", name),
        "about": _paragraphs(inspect.cleandoc(cls.__doc__ or ""))[1:],
        "version": cls.version,
        "licence": cls.licence,
        "source": cls.source,
        "weights": _finding(doctor.extractor(name)),
        "published_metrics": [p.published[0] for p in known if p.published and p.published[1] == name],
        "metrics": [f"{p.stem}_{name}" for p in known if p.needs_extractor and not _needs_classes(p)],
        "metrics_of_classes": [f"{p.stem}_{name}" for p in known if _needs_classes(p)],
        "recipes": _recipes_of(lambda r: r.extractor == name),
    }


def _needs_classes(p: measure.Protocol) -> bool:
    return any(need.endswith(".logits") for need in p.needs)


def _dataset(name: str) -> Description:
    doc = _paragraphs(inspect.cleandoc(registry.load("datasets", name).__doc__ or ""))
    return {
        "title": registry.summary("datasets", name),
        "about": doc[1:],
        "here": _finding(doctor.dataset(name)),
        "recipes": [r.name for r in recipes.installed().recipes.values() if name_in(r.train.data) == name],
        "commands": [f"ganbench evaluate --images SOURCE --reference {name}"],
    }


# --- Docstrings ---


def _docstring(module: str) -> str:
    """The docstring of an imported module."""
    return inspect.cleandoc(sys.modules[module].__doc__ or "")


def _paragraphs(doc: str) -> list[str]:
    """The paragraphs of a docstring. One of indented lines keeps them; the lines of others are joined, items apart."""
    found = []
    for block in re.split(r"\n\s*\n", doc.strip("\n")):
        if block.startswith("    "):
            found.append(block.rstrip())
        elif block.strip():
            found.append(re.sub(r"\n(?!\s*(?:- |\d+\. ))\s*", " ", block.strip()))
    return found


def _is_code(text: str) -> bool:
    """True for lines of Python, which are no formula."""
    try:
        compile(textwrap.dedent(text), "", "exec")
    except SyntaxError:
        return False
    return True


def _numbered(doc: list[str]) -> list[str]:
    """The items of the list of deviations in a model's docstring."""
    texts = (text for text in doc if text.startswith("Deviations"))
    return [re.sub(r"^\s*\d+\. ", "", line) for text in texts for line in text.split("\n")[1:]]
