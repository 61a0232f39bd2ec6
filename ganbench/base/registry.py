"""Models, data sets, extractors, metrics and recipes by name, found by entry point.

Another package adds its own with an entry point in the group `ganbench.<kind>`; those of ganbench are found in the same
way. `names` and `summary` list them without importing them, because imports such as torch are slow. `load` imports one.
"""

import ast
import functools
import importlib.util
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from ganbench.base.errors import UserError, did_you_mean

KINDS = ("models", "datasets", "extractors", "metrics", "recipes")


@functools.cache
def entries(kind: str) -> dict[str, EntryPoint]:
    """Return the entry points of a kind, by name, in sorted order.

    kind: one of KINDS. Raises UserError if two packages provide the same name.
    """
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=f"ganbench.{kind}"):
        known = found.setdefault(entry.name, entry)
        if known.value != entry.value:
            raise UserError(
                f"two packages provide the {kind[:-1]} '{entry.name}': {known.value} and {entry.value}. Uninstall one."
            )
    return dict(sorted(found.items()))


def names(kind: str) -> list[str]:
    """Return the sorted names of everything of a kind that is installed."""
    return list(entries(kind))


def require(kind: str, name: str) -> None:
    """Raise UserError if nothing of this kind has the name. The message suggests or lists known names."""
    if name not in entries(kind):
        raise UserError(f"unknown {kind[:-1]} '{name}'.{did_you_mean(name, names(kind))}")


def load(kind: str, name: str) -> Any:
    """Import and return the object with this name: a class, a function, or a list of protocols.

    Raises UserError for an unknown name, and for an object that needs a package which is not installed.
    """
    require(kind, name)
    try:
        return entries(kind)[name].load()
    except ImportError as error:
        raise UserError(
            f"the {kind[:-1]} '{name}' needs a package that is not installed ({error}): install that package."
        ) from error


def summary(kind: str, name: str) -> str:
    """Return the first line of the object's docstring, or of its module's if it has none, without importing it.

    The line is read from the source. The result is "" if there is no source or no docstring.
    """
    module, _, attribute = entries(kind)[name].value.partition(":")
    source = _source(module)
    if source is None:
        return ""
    tree = ast.parse(source.read_text(encoding="utf-8"))
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
