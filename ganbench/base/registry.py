"""Models, data sets, extractors, metrics and recipes by name, found by entry point.

Another package adds its own with an entry point in the group `ganbench.<kind>`; those of ganbench are found in the same
way. `names` and `summary` list them without importing them, because imports such as torch are slow. `load` imports one.
A package that is broken breaks only what asks for it by name.
"""

import ast
import functools
import importlib.util
import os
from collections.abc import Iterable
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points
from pathlib import Path
from typing import Any

from ganbench.base.errors import UserError, did_you_mean, shortened
from ganbench.base.standard_output import user_code

KINDS = ("models", "datasets", "extractors", "metrics", "recipes")
OWN = "ganbench"  # the package whose parts are bundled
FORMS = {
    "models": "a class", "datasets": "a function", "extractors": "a class", "metrics": "a list of protocols",
    "recipes": "a folder, or a function that returns one",
}


@functools.cache
def _provided(kind: str) -> dict[str, list[EntryPoint]]:
    """Return the entry points of each name, in sorted order: more than one if packages provide the same name."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in _all(f"ganbench.{kind}"):
        known = found.setdefault(entry.name, [])
        if entry.value not in [other.value for other in known]:
            known.append(entry)
    return dict(sorted(found.items()))


def _all(group: str) -> Iterable[EntryPoint]:
    """Return the entry points of a group. A package whose list of them cannot be read is left out."""
    try:
        return entry_points(group=group)
    except Exception:  # one damaged list is enough, and its error is of any type
        found: list[EntryPoint] = []
        for package in distributions():
            try:
                found += [entry for entry in package.entry_points if entry.group == group]
            except Exception:
                continue
        return found


def entries(kind: str) -> dict[str, EntryPoint]:
    """Return the entry points of a kind, by name, in sorted order; the first one of a name that several provide.

    kind: one of KINDS.
    """
    return {name: provided[0] for name, provided in _provided(kind).items()}


def names(kind: str) -> list[str]:
    """Return the sorted names of everything of a kind that is installed."""
    return list(entries(kind))


def package_of(entry: EntryPoint) -> str:
    """Return the name of the package that an entry point belongs to, "" if it is unknown."""
    return _name(entry.dist) if entry.dist is not None else ""


@functools.cache
def _name(package: Distribution) -> str:
    """Return the name of a package, which is slow to read; all its entry points share the object."""
    return str(package.name)


def is_bundled(kind: str, name: str) -> bool:
    """Return True if ganbench itself provides this name, and no other package does."""
    return [package_of(entry) for entry in _provided(kind)[name]] == [OWN]


def require(kind: str, name: str) -> None:
    """Raise UserError if nothing of this kind has the name. The message suggests or lists known names."""
    if name not in entries(kind):
        raise UserError(f"unknown {kind[:-1]} '{name}'.{did_you_mean(name, names(kind))}")


def require_one(kind: str, name: str) -> None:
    """Raise UserError if nothing of this kind has the name, or if two packages provide it."""
    require(kind, name)
    first, *more = _provided(kind)[name]
    if more:
        raise UserError(
            f"two packages provide the {kind[:-1]} '{name}': {first.value} and {more[0].value}. Uninstall one."
        )


def load(kind: str, name: str) -> Any:
    """Import and return the object with this name: a class, a function, or a list of protocols.

    Raises UserError for an unknown name, for one that two packages provide, and for an object that cannot be imported,
    as a package that it needs is not installed, or as its module is broken, or that is of another form.
    """
    require_one(kind, name)
    entry = _provided(kind)[name][0]
    of = f" of the package '{package_of(entry)}'" if package_of(entry) not in ("", OWN) else ""
    what = f"the {kind[:-1]} '{name}'{of}"
    try:
        with user_code():
            found = entry.load()
    except ImportError as error:
        raise UserError(f"{what} needs a package that is not installed ({error}): install that package.") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the module is somebody else's, and may do anything, such as to exit
        raise UserError(f"{what} cannot be imported ({reason(error)}): mend or uninstall that package.") from error
    if not _fits(kind, found):
        raise UserError(f"{what} must be {FORMS[kind]}, and {entry.value} is {_described(found)}: mend that package.")
    return found


def faults(kind: str) -> list[str]:
    """Return a line about each part of another package that cannot be used. Those parts are imported."""
    found = []
    for name, provided in _provided(kind).items():
        if [package_of(entry) for entry in provided] != [OWN]:
            try:
                load(kind, name)
            except UserError as error:
                found.append(str(error))
    return found


def reason(error: BaseException) -> str:
    """Return an error of somebody else's code as one short line: its type and message.

    >>> reason(KeyError("size"))
    "KeyError: 'size'"
    """
    text = shortened(" ".join(str(error).split()), 300)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _fits(kind: str, found: Any) -> bool:
    """Return True if the object has the form of its kind, as far as that is seen without a call."""
    if kind == "metrics":
        return isinstance(found, list | tuple) and all(hasattr(p, "stem") and hasattr(p, "compute") for p in found)
    return callable(found) or (kind == "recipes" and isinstance(found, str | os.PathLike))


def _described(found: Any) -> str:
    return shortened(f"{found!r}", 60) if isinstance(found, int | float | str) else f"of type {type(found).__name__}"


def summary(kind: str, name: str) -> str:
    """Return the first line of the object's docstring, or of its module's if it has none, without importing it.

    The line is read from the source. The result is "" if there is no source that can be read, or no docstring.
    """
    module, _, attribute = entries(kind)[name].value.partition(":")
    try:
        source = _source(module)
        if source is None:
            return ""
        tree = ast.parse(source.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError, ImportError, RecursionError, MemoryError):
        return ""  # `load` says what is wrong with it
    nodes = [n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == attribute]
    doc = (ast.get_docstring(nodes[0]) if nodes else None) or ast.get_docstring(tree) or ""
    return doc.split("\n", 1)[0].rstrip(".")


def _source(module: str) -> Path | None:
    """Return the source file of a module, found without importing its package, which may be slow to import."""
    package, *rest = module.split(".")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent.joinpath(*rest)
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)
