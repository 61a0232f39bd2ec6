"""Schemas of files that people edit and crashes leave: which keys a value has, and of which kind each of them is.

A schema is built of the kinds below. `require` holds a value against it. An error names the field with its path, what
was found there and what belongs there:

>>> point = Table({"x": Number(), "name": Text()}, {"tags": List(Text())})
>>> require(point, {"x": 1.5, "name": "a", "tags": []}, "the file p.json", "make it again")
>>> require(point, {"x": "1.5", "name": "a"}, "the file p.json", "make it again")
Traceback (most recent call last):
...
ganbench.base.errors.UserError: the file p.json: 'x' must be a finite number, not the text '1.5': make it again.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ganbench.base.errors import UserError, did_you_mean, printable, shortened

MOST_TEXT = 100_000  # characters
MOST_DEPTH = 50
LARGEST = 2**63 - 1


class Misfit(ValueError):
    """A value that does not fit its schema. The message begins with the field's path in quotes."""

    def __init__(self, at: str, problem: str):
        super().__init__(f"'{at}' {problem}" if at else f"it {problem}")


class Kind(Protocol):
    """The kind of a value."""

    def check(self, value: Any, at: str) -> None:
        """Raise Misfit if the value is not of this kind. at: the path of its field."""


def require(kind: Kind, value: Any, whose: str, remedy: str) -> None:
    """Raise UserError if a value is not of its kind. whose: the file, as a subject. remedy: what the user can do."""
    try:
        kind.check(value, "")
    except Misfit as error:
        raise UserError(f"{whose}: {error}: {remedy}.") from error


def described(value: Any) -> str:
    """Return a value in a few words, for a message.

    >>> described(True), described("x" * 100)[:20], described([1, 2]), described(10**400)
    ('true', "the text 'xxxxxxxxxx", 'a list', 'a number of 401 digits or more')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        line = shortened(value, 60).replace("\n", "\\n").replace("\t", "\\t")
        return f"the text '{printable(line)}'"
    if isinstance(value, int) and abs(value) > LARGEST:
        return f"a number of {int(value.bit_length() * math.log10(2)) + 1} digits or more"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, dict):
        return "a table"
    return "a list" if isinstance(value, list | tuple) else f"of type {type(value).__name__}"


@dataclass(frozen=True)
class Number:
    """A finite number, at least `least`; no truth value."""

    least: float = -math.inf

    def check(self, value: Any, at: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            raise Misfit(at, f"must be a finite number, not {described(value)}")
        if value < self.least:
            raise Misfit(at, f"must be at least {self.least:g}, not {described(value)}")


@dataclass(frozen=True)
class Whole:
    """A whole number from `least` to `most`; no truth value."""

    least: int = 0
    most: int = LARGEST

    def check(self, value: Any, at: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not self.least <= value <= self.most:
            words = f"of {self.least} or more" if self.most == LARGEST else f"from {self.least} to {self.most}"
            raise Misfit(at, f"must be a whole number {words}, not {described(value)}")


@dataclass(frozen=True)
class Flag:
    """A truth value."""

    def check(self, value: Any, at: str) -> None:
        if not isinstance(value, bool):
            raise Misfit(at, f"must be true or false, not {described(value)}")


@dataclass(frozen=True)
class Text:
    """A text of at most `most` characters; a line: without control characters. choices: all that it may be."""

    most: int = MOST_TEXT
    line: bool = False
    choices: tuple[str, ...] = ()

    def check(self, value: Any, at: str) -> None:
        if not isinstance(value, str):
            raise Misfit(at, f"must be a text, not {described(value)}")
        if len(value) > self.most:
            raise Misfit(at, f"must be at most {self.most:,} characters, not {len(value):,}")
        if self.line and (printable(value) != value or "\n" in value or "\t" in value):
            raise Misfit(at, f"must be a line without control characters, not {described(value)}")
        if self.choices and value not in self.choices:
            raise Misfit(at, f"must be one of {', '.join(self.choices)}, not {described(value)}")


@dataclass(frozen=True)
class Maybe:
    """A value of the kind, or null."""

    kind: Kind

    def check(self, value: Any, at: str) -> None:
        if value is not None:
            self.kind.check(value, at)


@dataclass(frozen=True)
class List:
    """A list of values of one kind. unique: the key that no two of its tables share."""

    kind: Kind
    unique: str = ""

    def check(self, value: Any, at: str) -> None:
        if not isinstance(value, list | tuple):
            raise Misfit(at, f"must be a list, not {described(value)}")
        for i, item in enumerate(value):
            self.kind.check(item, f"{at}[{i}]")
        if self.unique:
            seen: set[Any] = set()
            for i, key in enumerate(item[self.unique] for item in value):
                if key in seen:
                    raise Misfit(f"{at}[{i}].{self.unique}", f"stands twice in the list: {described(key)}")
                seen.add(key)


@dataclass(frozen=True)
class Table:
    """A table: keys that must be there, and keys that may. others: the kind of all other keys; None: there are none."""

    required: Mapping[str, Kind] = field(default_factory=dict)
    optional: Mapping[str, Kind] = field(default_factory=dict)
    others: Kind | None = None

    def check(self, value: Any, at: str) -> None:
        if not isinstance(value, dict):
            raise Misfit(at, f"must be a table, not {described(value)}")
        start = f"{at}." if at else ""
        for key in self.required:
            if key not in value:
                raise Misfit(f"{start}{key}", "is missing")
        for key, item in value.items():
            if not isinstance(key, str) or len(key) > MOST_TEXT:
                raise Misfit(at, f"has a key that is no text or too long: {described(key)}")
            name = f"{start}{printable(shortened(key, 60))}"
            kind = self.required.get(key) or self.optional.get(key) or self.others
            if kind is None:
                close = did_you_mean(key, [*self.required, *self.optional], "-").strip(" -")
                raise Misfit(name, f"is an unknown key{f' ({close})' if close else ''}")
            kind.check(item, name)


@dataclass(frozen=True)
class Anything:
    """A value that is looked at elsewhere, or not at all."""

    def check(self, value: Any, at: str) -> None:
        pass


@dataclass(frozen=True)
class Plain:
    """A value of JSON or TOML of any form: its numbers are finite, its texts bounded, its nesting too."""

    depth: int = MOST_DEPTH

    def check(self, value: Any, at: str) -> None:
        if value is None or isinstance(value, bool):
            return
        if isinstance(value, str):
            Text().check(value, at)
        elif isinstance(value, int):
            Whole(-LARGEST - 1).check(value, at)
        elif isinstance(value, float):
            Number().check(value, at)
        elif isinstance(value, list | tuple | dict):
            if self.depth == 0:
                raise Misfit(at, f"is nested more than {MOST_DEPTH} levels deep")
            inner = Plain(self.depth - 1)
            (Table(others=inner) if isinstance(value, dict) else List(inner)).check(value, at)
        else:
            raise Misfit(at, f"must be a plain value, not {described(value)}")


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond a float
        return False
