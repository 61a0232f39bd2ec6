"""Data specs: the text with which a user names data.

A spec is `NAME`, `NAME:split`, `folder:PATH` or `folder:PATH:split`. A part in brackets may follow: a row range, as in
`mnist:train[:50000]`, or a class subset, as in `folder:imagenet:train[classes 70-79]`. This module takes specs apart;
`ganbench.data.datasets.load` opens the data.
"""

import os
import re

from ganbench.base.errors import UserError, shortened

NUMBER = r"(?:\d|\{seed\}){1,18}"  # a recipe may hold {seed}, which each run replaces by its seed
ROW = r"\d{0,18}"
PART = re.compile(
    rf"(?P<whole>.*)(?P<part>\[(?:(?P<a>{ROW}):(?P<b>{ROW})|classes (?P<first>{NUMBER})-(?P<last>{NUMBER}))\])"
)


def name_in(spec: str) -> str:
    """Return the name of the data set, without split and part.

    >>> name_in("mnist:train[:50000]")
    'mnist'
    """
    return re.split(r"[:\[]", spec, maxsplit=1)[0]


def apart(spec: str) -> tuple[str, str]:
    """Return the spec without its part, and the part with its brackets, or "" if there is none.

    If a whole spec `folder:PATH` names an existing folder, brackets at its end belong to the path.

    >>> apart("mnist:train[:50000]")
    ('mnist:train', '[:50000]')
    >>> apart("mnist")
    ('mnist', '')
    """
    match = PART.fullmatch(spec)
    if match is None or (name_in(spec) == "folder" and os.path.exists(spec.removeprefix("folder:"))):
        return spec, ""
    return match["whole"], match["part"]


def rows_in(spec: str, n: int) -> tuple[int, int] | None:
    """Return (a, b) if the spec has a row range `[a:b]`, otherwise None. n, the number of rows, stands for a missing b.

    The range is not checked against n. Raises UserError for a number of more than 15 digits.

    >>> rows_in("mnist:train[50000:]", 60000)
    (50000, 60000)
    """
    match = PART.fullmatch(apart(spec)[1])
    if match is None or match["a"] is None:
        return None
    return _whole(match["a"] or "0", spec), _whole(match["b"] or str(n), spec)


def classes_in(spec: str) -> range | None:
    """Return the labels a to b if the spec has a class subset `[classes a-b]`, otherwise None.

    The labels are those of the whole data set. Raises UserError if the subset still holds `{seed}`.

    >>> classes_in("cifar10[classes 2-4]")
    range(2, 5)
    """
    match = PART.fullmatch(apart(spec)[1])
    if match is None or match["first"] is None:
        return None
    if "{seed}" in match["part"]:
        raise UserError(f"'{spec}': {{seed}} is for recipes only: write numbers of classes.")
    return range(_whole(match["first"], spec), _whole(match["last"], spec) + 1)


def _whole(digits: str, spec: str) -> int:
    """Return the number. Raises UserError for one that no data set needs; Python cannot read thousands of digits."""
    if len(digits) > 15:
        raise UserError(f"'{shortened(spec, 80)}': {shortened(digits, 24)} is too large for a row or class.")
    return int(digits)


def of_classes(part: str) -> str:
    """Return the part if it is a class subset, otherwise "".

    Use it to name the same part of another split: every split has the classes, but a row range belongs to one split.

    >>> of_classes("[classes 70-79]"), of_classes("[:50000]")
    ('[classes 70-79]', '')
    """
    return part if part.startswith("[classes ") else ""


def class_part(classes: range) -> str:
    """Return the part of a spec that selects these labels.

    >>> class_part(range(70, 80))
    '[classes 70-79]'
    """
    return f"[classes {classes.start}-{classes.stop - 1}]"
