"""Installed protocols of metrics: the package of a metric is loaded only if that metric is asked for.

ganbench's own protocols are always at hand. A package of somebody else is found by the name of its entry point, which
is the stem of its protocol; only for a name that no entry point has are all packages loaded. A package that is broken
is an error if its metric was asked for, and is left out otherwise.
"""

import functools
import json
import math
import numbers
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from ganbench.base import registry
from ganbench.base.errors import UserError, shortened
from ganbench.metrics import Side, Uncertainty, Value
from ganbench.metrics.contract import NEEDS, Protocol

KIND = "metrics"


def installed() -> dict[str, Protocol]:
    """Return all installed protocols by stem, without those of packages that cannot be loaded: `faults` names them."""
    return _loaded([*_bundled(), *_of_others()], [])


def faults() -> list[str]:
    """Return a line about each package of metrics that cannot be loaded."""
    lines: list[str] = []
    _loaded(_of_others(), lines)
    return lines


def knowing(name: str, extractors: Collection[str]) -> dict[str, Protocol]:
    """Return protocols by stem that say which metric a name is; all that can be loaded if the name is unknown.

    name: as in `--metrics`: a stem, `stem_<extractor>`, or a published name. The name is that of a bundled protocol if
    there is one, else that of the entry point with this name, or with the longest stem of it.
    Raises UserError if that entry point belongs to a package that cannot be loaded.
    """
    known = _loaded(_bundled(), None)
    others = _of_others()
    for entry in others:
        if name == entry or name.startswith(f"{entry}_"):
            registry.require_one(KIND, entry)
    if _is_whole(name, known):
        return known
    if name in others:
        return _loaded([name], None) | known
    if _is_over_an_extractor(name, known, extractors):
        return known
    stems = [entry for entry in others if name.startswith(f"{entry}_")]
    if stems:
        known = _loaded([max(stems, key=len)], None) | known
        if _is_over_an_extractor(name, known, extractors):
            return known
    return installed()


def _is_whole(name: str, known: dict[str, Protocol]) -> bool:
    """Return True for a published name or a stem."""
    return name in known or any(p.published and p.published[0] == name for p in known.values())


def _is_over_an_extractor(name: str, known: dict[str, Protocol], extractors: Collection[str]) -> bool:
    """Return True for a stem with an extractor."""
    stem = max((s for s in known if name.startswith(f"{s}_")), key=len, default=None)
    return stem is not None and known[stem].needs_extractor and name[len(stem) + 1 :] in extractors


def _bundled() -> list[str]:
    return [name for name in registry.names(KIND) if registry.is_bundled(KIND, name)]


def _of_others() -> list[str]:
    return [name for name in registry.names(KIND) if not registry.is_bundled(KIND, name)]


def _loaded(entries: Iterable[str], broken: list[str] | None) -> dict[str, Protocol]:
    """Return the protocols of entry points by stem. broken: takes a line about each one that cannot be loaded.

    Without `broken`, raises UserError for such a one.
    """
    found: dict[str, Protocol] = {}
    for entry in entries:
        protocols, fault = _of_entry(entry)
        if fault and broken is None:
            raise UserError(fault)
        if fault and broken is not None:
            broken.append(fault)
        for protocol in protocols:
            found.setdefault(protocol.stem, protocol)
    return found


@functools.cache
def _of_entry(entry: str) -> tuple[tuple[Protocol, ...], str]:
    """Return the protocols of an entry point and ""; or none and why it cannot be loaded. It is imported once."""
    try:
        found = tuple(registry.load(KIND, entry))
    except UserError as error:
        return (), str(error)
    for protocol in found:
        if wrong := _fault(protocol):
            package = registry.package_of(registry.entries(KIND)[entry])
            return (), f"the metric '{entry}' of the package '{package}': {wrong}. Mend that package."
    return found, ""


def _fault(p: object) -> str:
    """Return what is wrong with an object that should be a protocol, "" if nothing is."""
    if not isinstance(p, Protocol):
        return f"it holds an object of type {type(p).__name__}, not a Protocol"
    forms = {
        "stem": isinstance(p.stem, str) and p.stem.isprintable() and "," not in p.stem and bool(p.stem.strip()),
        "version": isinstance(p.version, int), "summary": isinstance(p.summary, str),
        "source": isinstance(p.source, str), "direction": p.direction in ("lower", "higher", "none"),
        "compute": callable(p.compute),
        "needs": isinstance(p.needs, Collection) and all(isinstance(n, str) and n in NEEDS for n in p.needs),
        "published": p.published is None or (isinstance(p.published, tuple) and len(p.published) == 2),
        "num": p.num is None or isinstance(p.num, int),
        "resolutions": p.resolutions is None or callable(p.resolutions),
        "real_row": p.real_row in ("held_out", "reference", "none"),
        "rows": p.rows in ("all", "stream") or callable(p.rows),
    }
    wrong = next((name for name, ok in forms.items() if not ok), None)
    return "" if wrong is None else f"the field '{wrong}' of a protocol is {shortened(repr(getattr(p, wrong)), 80)}"


# --- What a protocol returns ---


def failure(protocol: Protocol, error: BaseException) -> str:
    """Return the reason why there is no value, in one line that names the metric."""
    return f"the metric '{protocol.stem}' failed: {registry.reason(error)}"


def require_rows(rows: dict[str, Tensor], sides: dict[str, Side]) -> dict[str, Tensor]:
    """Return what `Protocol.rows` returned. Raises TypeError or ValueError unless these are rows of the sides."""
    if not isinstance(rows, dict) or not all(isinstance(x, Tensor) and x.dtype == torch.int64 for x in rows.values()):
        raise TypeError("its `rows` must return int64 tensors by side")
    for side, x in rows.items():
        if side not in sides or x.ndim != 1 or (len(x) and not 0 <= int(x.min()) <= int(x.max()) < len(sides[side])):
            raise ValueError(f"its `rows` must return rows of {', '.join(sides)}, not these of '{side}'")
    return rows


def require_values(values: list[Value]) -> list[Value]:
    """Return what `Protocol.compute` returned, its numbers as Python's. Raises TypeError or ValueError for a wrong one.

    A wrong value would be found only when the result is written, after all work, or by the command that reads it.
    """
    if not isinstance(values, list | tuple) or not all(isinstance(v, Value) for v in values) or not values:
        raise TypeError(f"it must return a list of Value, not {shortened(repr(values), 80)}")
    if len({v.suffix for v in values}) < len(values):
        raise ValueError("two of its values have the same suffix")
    return [_require_value(v) for v in values]


def _require_value(v: Value) -> Value:
    error = v.uncertainty
    if not _is_number(v.value):
        raise TypeError(f"its value must be a number, not {shortened(repr(v.value), 80)}")
    if error is not None and not (
        isinstance(error, Uncertainty) and _is_number(error.value) and 0 <= error.value < math.inf
        and error.kind in get_args(Uncertainty.__annotations__["kind"]) and isinstance(error.over, str)
    ):
        raise ValueError(f"its uncertainty must be None, or finite and not negative, not {shortened(repr(error), 120)}")
    if not all(isinstance(n, int) and n >= 0 for n in (v.n_real, v.n_fake)):
        raise ValueError(f"its counts must be whole numbers, not {v.n_real!r} and {v.n_fake!r}")
    if not isinstance(v.suffix, str) or not all(isinstance(w, str) for w in (v.warnings if v.warnings else ())):
        raise TypeError("its suffix and its warnings must be texts")
    try:
        json.dumps(v.details, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as problem:
        raise TypeError(f"its details must be finite numbers and texts as JSON has them: {problem}") from problem
    return replace(
        v, value=float(v.value), uncertainty=None if error is None else replace(error, value=float(error.value))
    )


def _is_number(x: object) -> bool:
    return isinstance(x, numbers.Real) and not isinstance(x, bool)
