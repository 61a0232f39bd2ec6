"""`--class-map`: which class of the reference, or of a classifier, a class of the images is.

A pair `a=b` says that class a of the images is class b of the reference. If b is no class of the reference, it is one
of the classifier that a metric uses, and a may then be a class of the reference too. A class is called by its name, or
by its number in a set whose classes have no names.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from ganbench.base.errors import UserError, did_you_mean, shortened
from ganbench.base.files import read_json
from ganbench.data.sources.samples import Samples, plain_name

OPTION = "--class-map"
MOST = 100_000  # pairs
LONGEST = 1000  # characters of a name
NUMBER = re.compile(r"\d{1,9}", re.ASCII)
MOST_CLASSES = 10**9
MAKERS = ("generator", "torchscript", "onnx", "callable")  # few of their images may not have all of their classes
MOST_OFFERED = 1000  # classes that are looked at for a misspelt one
FORM = "write a=b,c=d with classes of the images on the left, or the name of a JSON file with an object of these"


def parse(text: str) -> dict[str, str]:
    """Return the pairs in `a=b,c=d` or in a file FILE.json, in their order.

    Raises UserError for any other text or content, for an empty name, and for a class that stands twice on the left.

    >>> parse("katze=cat, hund=dog")
    {'katze': 'cat', 'hund': 'dog'}
    """
    if text.lower().endswith(".json"):
        given = read_json(Path(text), "class map", "write an object: {\"class of the images\": \"class\"}")
        if not isinstance(given, dict) or not all(_is_class(value) for value in given.values()):
            raise UserError(f"{OPTION} {shortened(text)}: it must be one object of names or numbers: {FORM}.")
        pairs = [(key.strip(), str(value).strip()) for key, value in given.items()]
    else:
        parts = [part.partition("=") for part in text.split(",")]
        if not all(equals for _, equals, _ in parts):
            raise UserError(f"{OPTION} '{shortened(text, 80)}': {FORM}.")
        pairs = [(a.strip(), b.strip()) for a, _, b in parts]
    what = f"{OPTION} '{shortened(text, 80)}'"
    if not pairs or not all(0 < len(name) <= LONGEST for pair in pairs for name in pair):
        raise UserError(f"{what} has no pairs, or an empty or endless name: {FORM}.")
    if len(pairs) > MOST:
        raise UserError(f"{what} has {len(pairs):,} pairs: at most {MOST:,} are read.")
    found: dict[str, str] = {}
    for a, b in pairs:
        if a in found:
            raise UserError(f"{what}: '{shortened(a, 80)}' stands twice on the left: leave one of them.")
        found[a] = b
    return found


def _is_class(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)


class Pair(NamedTuple):
    """A pair that is not of a class of the reference. label: that of class a in the samples, or None if it has none."""

    a: str
    b: str
    label: int | None


def to_reference(
    samples: Samples, reference: Samples | None, pairs: Mapping[str, str]
) -> tuple[Samples, list[Pair]]:
    """Return the samples with labels of the reference, and the pairs whose right side is no class of the reference.

    Classes without a pair are matched by their names as `aligned` does; classes that the reference lacks follow after
    its own. The pairs become a part of the origin.
    Raises UserError if the samples have no labels, for a class on the left that the samples do not have or that stands
    there twice, and if a class of images without a pair cannot be matched by a name.
    """
    labels = samples.labels
    if labels is None:
        raise UserError(f"{OPTION}: the images have no labels: leave it out, or give them class folders or a CSV.")
    samples = replace(samples, origin={**samples.origin, "class_map": dict(pairs)})
    of_images = _Labels(samples)
    of_reference = None if reference is None or reference.labels is None else _Labels(reference, exactly=True)
    lookup: dict[int, int] = {}
    rest: list[Pair] = []
    seen: set[int] = set()
    for a, b in pairs.items():
        label, target = of_images(a), None if of_reference is None else of_reference(b)
        if label in seen:
            raise UserError(f"{OPTION}: '{shortened(a, 80)}' is a class that stands twice on the left.")
        seen |= set() if label is None else {label}
        if target is None:
            rest.append(Pair(a, b, label))
        elif label is None:
            raise UserError(f"{OPTION}: the images have no class '{shortened(a, 80)}'.{_known(a, samples)}")
        else:
            lookup[label] = target
    by_name = of_reference is not None and is_named(samples) and reference is not None and is_named(reference)
    if reference is None or not (lookup or by_name):
        return samples, rest
    names = list(reference.classes)
    if by_name:
        index = {plain_name(name): i for i, name in enumerate(reference.classes)}
        for label, name in enumerate(samples.classes):
            if label in lookup:
                continue
            if plain_name(name) not in index:
                index[plain_name(name)] = len(names)
                names.append(name)
            lookup[label] = index[plain_name(name)]
    elif not is_named(samples) and not is_named(reference):
        lookup |= {label: label for label in labels.unique().tolist() if label not in lookup}
    values, rows = labels.unique(return_inverse=True)
    if without := [label for label in values.tolist() if label not in lookup]:
        name = shortened(called(samples.classes, without[0]), 80)
        raise UserError(f"{OPTION} says nothing of class '{name}' of the images: add {name}=CLASS.")
    moved = torch.tensor([lookup[label] for label in values.tolist()])[rows]
    rest = [pair._replace(label=None if pair.label is None else lookup.get(pair.label)) for pair in rest]
    return replace(samples, labels=moved, classes=tuple(names) if int(moved.max()) < len(names) else ()), rest


def to_classifier(
    samples: Samples, pairs: Iterable[Pair], network: str, classes: tuple[str, ...], reference: Samples | None = None
) -> dict[int, int]:
    """Return the class of a classifier for each label.

    samples: with labels of the reference. pairs: those that `to_reference` left. network: the classifier's name.
    classes: their names, or () if they have numbers alone. Classes without a pair are matched by their names.
    reference: its classes are offered in place of a misspelt one.
    Raises UserError for a class on the left that neither samples nor reference have, and for one on the right that the
    classifier does not have.
    """
    numbered = all(name.isdecimal() for name in classes)
    exact, plain = _indices(() if numbered else classes)
    of_labels = _Labels(samples)
    found: dict[int, int] = {}
    for a, b, label in pairs:
        label = of_labels(a) if label is None else label
        if label is None:
            raise UserError(f"{OPTION}: the images have no class '{shortened(a, 80)}'.{_known(a, samples)}")
        target = exact.get(b, plain.get(plain_name(b)))
        if target is None and numbered and NUMBER.fullmatch(b) and (not classes or int(b) < len(classes)):
            target = int(b)
        if target is None:
            known = [*(reference.classes if reference is not None else ()), *classes]
            form = f", whose classes are 0 to {len(classes) - 1}" if classes else ", whose classes have numbers"
            known = [name for name in known[:MOST_OFFERED] if not name.isdecimal()]
            raise UserError(
                f"{OPTION}: '{shortened(b, 80)}' is a class neither of the reference nor of {network}"
                f"{form if numbered else ''}.{did_you_mean(b, known, 'Write one of their classes.')}"
            )
        found[label] = target
    of_names = {name: i for i, name in enumerate(classes)} if numbered else plain
    for label, name in enumerate(samples.classes):
        key = name if numbered else plain_name(name)
        if key in of_names:
            found.setdefault(label, of_names[key])
    return found


def refuse_unused(pairs: Iterable[Pair], reference: Samples | None) -> None:
    """Raise UserError for the first of these pairs: no metric uses a classifier whose class it could name."""
    for pair in pairs:
        known = list(reference.classes) if reference is not None and reference.labels is not None else []
        b = shortened(pair.b, 80)
        raise UserError(
            f"{OPTION}: '{b}' is no class of {'the' if known else 'a'} reference, and no metric asked for compares "
            f"labels with a classifier."
            f"{did_you_mean(b, known[:MOST_OFFERED], 'Write a class of the reference, or leave the option out.')}"
        )


def is_named(samples: Samples) -> bool:
    """Return True if the classes of a set have names, and not numbers alone."""
    return not all(name.isdecimal() for name in samples.classes)


def called(classes: tuple[str, ...], label: int) -> str:
    """Return the name of a class, or its number."""
    return classes[label] if label < len(classes) else str(label)


class _Labels:
    """The label of a class from what it is called, or None for a class that a set does not have.

    exactly: a class that has a name is not called by its number. Samples of a model are, even if names are known.
    """

    def __init__(self, samples: Samples, exactly: bool = False):
        self.exact, self.plain = _indices(samples.classes if is_named(samples) else ())
        named, made = is_named(samples), samples.origin.get("kind") in MAKERS
        self.numbers = not named or (not exactly and samples.origin.get("kind") == "generator")
        seen = 0 if samples.labels is None else int(samples.labels.max()) + 1
        self.count = len(samples.classes) or (MOST_CLASSES if made else seen)

    def __call__(self, text: str) -> int | None:
        if self.numbers and NUMBER.fullmatch(text):
            return int(text) if int(text) < self.count else None
        return self.exact.get(text, self.plain.get(plain_name(text)))


def _indices(classes: tuple[str, ...]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the labels of classes by name and by plain name; the first of several classes with one name counts."""
    backwards = [(name, label) for label, name in reversed(list(enumerate(classes)))]
    return dict(backwards), {plain_name(name): label for name, label in backwards}


def _known(word: str, samples: Samples) -> str:
    """Return the end of a message about a class that a set does not have."""
    if is_named(samples):
        return did_you_mean(word, list(samples.classes[:MOST_OFFERED]), "Write one of their classes.")
    return f" Their classes: 0 to {len(samples.classes) - 1}." if samples.classes else " Their classes have numbers."
