"""Discovery: models, data sets, extractors, metrics and recipes by entry point.

A third party adds its own by declaring an entry point in the group `ganbench.<kind>`; the bundled ones arrive by
the same door. Listing imports none of them: a summary is the first line of the docstring, read from the source.
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
    """Entry points of a kind, by name. Two packages that claim one name are an error, not a race."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=f"ganbench.{kind}"):
        known = found.setdefault(entry.name, entry)
        if known.value != entry.value:
            raise UserError(
                f"two packages provide the {kind[:-1]} '{entry.name}': {known.value} and {entry.value}. Uninstall one."
            )
    return dict(sorted(found.items()))


def names(kind: str) -> list[str]:
    """Sorted names of everything of a kind that is installed."""
    return list(entries(kind))


def require(kind: str, name: str) -> None:
    """Raise UserError, with the names that there are, for one that is not there. Imports nothing."""
    if name not in entries(kind):
        raise UserError(f"unknown {kind[:-1]} '{name}'.{did_you_mean(name, names(kind))}")


def load(kind: str, name: str) -> Any:
    """The object behind a name.

    Raises UserError for an unknown name, and for one whose package fails to import.
    """
    require(kind, name)
    try:
        return entries(kind)[name].load()
    except ImportError as error:
        raise UserError(f"the {kind[:-1]} '{name}' needs a package that is not installed: {error}.") from error


def summary(kind: str, name: str) -> str:
    """First line of the docstring of the object (or else of its module), without importing it."""
    module, _, attribute = entries(kind)[name].value.partition(":")
    source = _source(module)
    if source is None:
        return ""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    nodes = [n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == attribute]
    doc = (ast.get_docstring(nodes[0]) if nodes else None) or ast.get_docstring(tree) or ""
    return doc.split("\n", 1)[0].rstrip(".")


def _source(module: str) -> Path | None:
    """The file of a module, found without importing its package (which may be as heavy as torch)."""
    package, *rest = module.split(".")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent.joinpath(*rest)
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)
