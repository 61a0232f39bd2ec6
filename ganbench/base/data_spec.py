"""What a user writes to name data: `NAME`, `NAME:split`, `folder:PATH`, `folder:PATH:split`, and a part of one.

A part is rows, `mnist:train[:50000]`, or classes by their numbers, `folder:imagenet:train[classes 70-79]`.
"""

import re
from pathlib import Path

from ganbench.base.errors import UserError

NUMBER = r"(?:\d|\{seed\})+"  # in a recipe a run's seed is still to be put in
PART = re.compile(
    rf"(?P<whole>.*)(?P<part>\[(?:(?P<a>\d*):(?P<b>\d*)|classes (?P<first>{NUMBER})-(?P<last>{NUMBER}))\])"
)


def name_in(spec: str) -> str:
    """The data set's name: what stands before a split or a part."""
    return re.split(r"[:\[]", spec, maxsplit=1)[0]


def apart(spec: str) -> tuple[str, str]:
    """What is named, and the part `[...]` of it, or ''. A folder that exists is one, whatever its name ends with."""
    match = PART.fullmatch(spec)
    if match is None or (name_in(spec) == "folder" and Path(spec.removeprefix("folder:")).exists()):
        return spec, ""
    return match["whole"], match["part"]


def rows_in(spec: str, n: int) -> tuple[int, int] | None:
    """(a, b) of the part `[a:b]` of n rows; None where the part is none of rows."""
    match = PART.fullmatch(apart(spec)[1])
    if match is None or match["a"] is None:
        return None
    return int(match["a"] or 0), int(match["b"] or n)


def classes_in(spec: str) -> range | None:
    """The classes of the part `[classes a-b]`, by their numbers in the whole set; None where the part is none such.

    Raises UserError where a seed is still to be put in.
    """
    match = PART.fullmatch(apart(spec)[1])
    if match is None or match["first"] is None:
        return None
    if "{seed}" in match["part"]:
        raise UserError(f"'{spec}': {{seed}} is for recipes, write the classes.")
    return range(int(match["first"]), int(match["last"]) + 1)


def of_classes(part: str) -> str:
    """The part `[...]` where it is one of classes, which every split has; '' for rows, which are of one split."""
    return part if part.startswith("[classes ") else ""


def class_part(classes: range) -> str:
    """The part of these classes: `[classes 70-79]`."""
    return f"[classes {classes.start}-{classes.stop - 1}]"
