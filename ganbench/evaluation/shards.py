"""Moments of a set that is too large for one machine: its shards, the part file of each, and their merger.

The images of a source are cut into n contiguous shards, numbered 1 to n. Each is measured by itself, by machines that
know nothing of each other, into a part file. `merge` joins the parts into the file that one pass over all images
writes: counts, means and sums of squares around the mean give the same moments to a relative 1e-10.

A part is an npz: `part` (JSON: what it is a part of), `n`, `mean_NAME` (d) and `scatter_NAME` (d x d, the lower
triangle), float64, by the name of the extractor, `features` (float32 n x d) on request, and `checksum`.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ganbench.base import memory
from ganbench.base.errors import UserError, shortened
from ganbench.evaluation import npz
from ganbench.metrics.frechet import CHUNK, MomentsAccumulator

PROTOCOL = 1  # raise it when the cut into shards, or the content of a part, changes
SPATIAL = {"inception-v3": "inception-v3-spatial"}  # the extractor of mu_s and sigma_s, where there is one
UNIT = 256  # images: shards begin at multiples, so that their batches are those of one pass
TEXT = re.compile("([0-9]{1,7})/([0-9]{1,7})")


@dataclass(frozen=True)
class Shard:
    """Shard `number`, 1 to `of`, of a set."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def rows(self, total: int) -> range:
        """Return the rows of this shard among `total` images; the shards of a set differ by one unit at most.

        A unit is 256 images, or one image if there are not 256 for every shard. Raises UserError if there are fewer
        images than shards.

        >>> [list(Shard(i, 3).rows(7)) for i in (1, 2, 3)]
        [[0, 1], [2, 3], [4, 5, 6]]
        """
        if total < self.of:
            raise UserError(f"{self.of:,} shards of {total:,} images: choose at most one shard an image.")
        unit = UNIT if total >= UNIT * self.of else 1
        units = -(-total // unit)
        first, last = ((i * units // self.of) * unit for i in (self.number - 1, self.number))
        return range(first, min(last, total))


def parse(text: str, option: str = "--shard") -> Shard:
    """Return the shard in "3/64". Raises UserError for other text, and unless the number is 1 to the number of shards.

    >>> parse("3/64")
    Shard(number=3, of=64)
    """
    match = TEXT.fullmatch(text)
    number, of = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= of:
        raise UserError(f"{option} '{shortened(text, 80)}': write I/N, for shard I of N; I is 1 to N, as in 3/64.")
    return Shard(number, of)


@dataclass(frozen=True)
class Part:
    """What a part file is a part of.

    total: images in the whole source. source: its name. images: what identifies its images and how they are read, with
    their fingerprint. extractor: the network that was asked for. networks: version and SHA-256 of the weights of that
    network, and of the one of spatial features. features: whether rows of features are in the file.
    """

    shard: Shard
    total: int
    source: str
    images: dict[str, Any]
    extractor: str
    networks: dict[str, dict[str, str]]
    features: bool = False
    protocol: int = PROTOCOL

    def to_json(self) -> str:
        """Return this object as a JSON text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Part":
        """Return the object of a JSON text. Raises ValueError for anything else."""
        try:
            given = json.loads(text)
            if given["protocol"] != PROTOCOL:
                raise ValueError(f"it is of protocol {given['protocol']}, and this ganbench reads {PROTOCOL}")
            shard = given.pop("shard")
            part = cls(parse(f"{shard['number']}/{shard['of']}"), **given)
            if not (isinstance(part.total, int) and isinstance(part.images, dict) and isinstance(part.source, str)
                    and isinstance(part.features, bool) and part.extractor in part.networks
                    and all(set(about) == {"version", "sha256"} for about in part.networks.values())):
                raise ValueError("an entry is of another type")
            part.shard.rows(part.total)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, UserError) as error:
            raise ValueError(f"it does not say what it is a part of ({error})") from error
        return part

    def difference(self, other: "Part") -> str:
        """Say in which way two parts are not of one protocol, "" if they are: what this one has, and the other."""
        pairs: list[tuple[str, Any, Any]] = [
            ("protocol", self.protocol, other.protocol), ("extractor", self.extractor, other.extractor),
            ("number of shards", self.shard.of, other.shard.of), ("number of images", self.total, other.total),
        ]
        keys = sorted({*self.images, *other.images}, key=lambda key: (key == "fingerprint", key))  # the plainest first
        pairs += [(key, self.images.get(key), other.images.get(key)) for key in keys]
        for name in sorted({*self.networks, *other.networks}):
            here, there = self.networks.get(name, {}), other.networks.get(name, {})
            pairs += [(f"{key} of {name}", here.get(key), there.get(key)) for key in ("version", "sha256")]
        for what, mine, others in pairs:
            if mine != others:
                return f"{what} {_short(mine)}, not {_short(others)}"
        return ""


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:12]}..." if len(text) > 40 else text or "none"


def networks_of(name: str) -> list[str]:
    """Return the extractors whose moments go into a file over the extractor `name`: with Inception-v3's spatial one."""
    return [name, SPATIAL[name]] if name in SPATIAL else [name]


def require_memory(sizes: Sequence[int], what: str) -> None:
    """Raise UserError unless there is memory for the covariances of so many features, and for adding rows to them."""
    largest = max(sizes)
    memory.require(sum(24 * d * d + 8 * CHUNK * d for d in sizes), f"{what}: the covariance of {largest:,} features")


def write(path: Path, part: Part, moments: dict[str, MomentsAccumulator], features: Tensor | None) -> None:
    """Write a part file, atomically. moments: by extractor. Raises UserError if it cannot be written."""
    arrays: dict[str, npz.Array | npz.Stream] = {"part": np.array(part.to_json())}
    for name, accumulator in moments.items():
        state = accumulator.state()
        arrays |= {"n": state["n"].numpy(), f"mean_{name}": state["mean"].numpy(),
                   f"scatter_{name}": state["scatter"].numpy()}
    if features is not None:
        arrays["features"] = features.numpy()
    npz.write(path, arrays, checksum=True)


def read(path: Path) -> tuple[Part, dict[str, MomentsAccumulator]]:
    """Return a part, and the moments of its rows by extractor; everything in the file is verified.

    Raises UserError if the file is missing, damaged or no part.
    """
    part = read_part(path)
    try:
        arrays = npz.read(path, leave=("features",))
        found = {}
        for name in part.networks:
            state = {"n": arrays["n"], "mean": arrays[f"mean_{name}"], "scatter": arrays[f"scatter_{name}"]}
            if any(state[key].dtype != np.float64 or not np.isfinite(state[key]).all() for key in ("mean", "scatter")):
                raise ValueError(f"the moments of {name} are no finite float64")
            found[name] = MomentsAccumulator.from_state({k: torch.from_numpy(v) for k, v in state.items()})
            if found[name].n != len(part.shard.rows(part.total)) or not state["mean"].size:
                raise ValueError(f"it is of {found[name].n:,} images, and its shard has others")
    except npz.BROKEN as error:
        raise _damaged(path, error, part.shard) from error
    return part, found


def read_part(path: Path) -> Part:
    """Return what a file is a part of, without its arrays. Raises UserError if it is missing, damaged or no part."""
    if not path.is_file():
        raise UserError(f"there is no part file {path}: check the path.")
    try:
        return Part.from_json(npz.read_text(path, "part"))
    except KeyError as error:
        raise NoPart(f"{path} is no part file: give files that `ganbench statistics --shard` wrote.") from error
    except npz.BROKEN as error:
        raise _damaged(path, error) from error


class NoPart(UserError):
    """An npz that is whole and holds something else."""


class Damaged(UserError):
    """A part file that is cut or changed."""


def _damaged(path: Path, error: Exception, shard: Shard | None = None) -> Damaged:
    which = f"shard {shard}" if shard else "its shard"
    return Damaged(f"{path} is damaged ({' '.join(str(error).split())[:120]}): make {which} again.")


def is_finished(path: Path, wanted: Part) -> tuple[bool, str]:
    """Return whether a file holds the finished part that is wanted, and a remark about the file.

    A damaged part, and one without the features that are wanted, is to be made again.
    Raises UserError if the file is something else, which is not to be written over.
    """
    if not path.exists():
        return False, ""
    try:
        part, _ = read(path)
    except NoPart as error:
        raise UserError(f"--out {path} is there and is no part file: choose another, or give --force.") from error
    except Damaged as error:
        return False, str(error).replace(": make", "; ganbench makes")
    difference = part.difference(wanted)
    if part.shard.number != wanted.shard.number:
        difference = f"shard {part.shard}, not {wanted.shard}"
    if difference:
        raise UserError(f"--out {path} is there and is another part ({difference}): choose another, or give --force.")
    if wanted.features and not part.features:
        return False, f"{path} has no features: shard {part.shard} is made again"
    return True, f"{path} is there and whole: nothing to do (--force makes it again)"


def merge(paths: Sequence[Path], out: Path, allow_missing: bool = False) -> str:
    """Join part files, in any order, into a file of moments, and return a remark about it, or "".

    The file is that of `ganbench statistics`. If all parts hold features, so does the file, in the order of the rows.
    allow_missing: join an incomplete set; `missing` (int64) then names the shards that are missing, and `shards` says
    how many there are in all.
    Raises UserError if a part is damaged, there twice or of another protocol, or if parts are missing.
    """
    parts, missing = _sorted(paths)
    first = parts[0][1]
    if missing and not allow_missing:
        raise UserError(f"{_missing(missing, first.shard.of)}. Make them, or give --allow-missing.")
    joined = {name: MomentsAccumulator() for name in first.networks}
    sizes: dict[str, int] = {}
    for path, part in parts:
        now, moments = read(path)
        if now != part:
            raise UserError(f"{path} was changed while it was read: give the command again.")
        for name, accumulator in moments.items():
            d = len(accumulator.state()["mean"])
            if sizes.setdefault(name, d) != d:
                raise UserError(f"{path} has {d:,} features of {name}, and {parts[0][0]} has {sizes[name]:,}.")
            joined[name].merge(accumulator)
        if path == parts[0][0]:
            require_memory([*sizes.values()], str(out))
    count = len(joined[first.extractor])
    if count < 2:
        raise UserError("the parts hold one image in all: a covariance needs at least two.")
    arrays = arrays_of(joined, first.extractor, first.networks[first.extractor]["sha256"])
    if missing:
        arrays |= {"missing": np.array(missing), "shards": np.array(first.shard.of)}
    if all(part.features for _, part in parts):
        arrays["features"] = npz.Stream(
            (count, sizes[first.extractor]), np.dtype(np.float32), _features([path for path, _ in parts])
        )
    try:
        npz.write(out, arrays)
    except npz.BROKEN as error:
        raise UserError(f"the features of the parts cannot be joined ({error}): make the parts again.") from error
    without = sum(not part.features for _, part in parts)
    remarks = [_missing(missing, first.shard.of)] if missing else []
    if 0 < without < len(parts):
        remarks.append(f"features are left out: {without:,} of {len(parts):,} parts have none")
    return "; ".join(remarks)


def _missing(numbers: list[int], of: int) -> str:
    return f"missing are {len(numbers):,} of {of:,} shards: {in_ranges(numbers)}"


def arrays_of(
    moments: dict[str, MomentsAccumulator], extractor: str, sha256: str
) -> dict[str, npz.Array | npz.Stream]:
    """Return the arrays of a file of moments, from the moments by extractor."""
    arrays: dict[str, npz.Array | npz.Stream] = {}
    for name, accumulator in moments.items():
        found, suffix = accumulator.moments(), "" if name == extractor else "_s"
        arrays |= {f"mu{suffix}": found.mean.numpy(), f"sigma{suffix}": found.cov.numpy()}
    return arrays | {
        "n": np.array(len(moments[extractor])), "extractor": np.array(extractor), "sha256": np.array(sha256),
    }


def _features(paths: list[Path]) -> Iterator[npz.Array]:
    for path in paths:
        yield from npz.pieces(path, "features")


def _sorted(paths: Sequence[Path]) -> tuple[list[tuple[Path, Part]], list[int]]:
    """Return files and parts in the order of their shards, and the numbers that are missing.

    Raises UserError for a damaged part, one of another protocol, and one that is there twice.
    """
    parts = [(path, read_part(path)) for path in paths]
    first = parts[0]
    by_number: dict[int, Path] = {}
    for path, part in parts:
        if difference := part.difference(first[1]):
            raise UserError(f"{path} is of another protocol than {first[0]}: {difference}. Merge only parts of one.")
        if (other := by_number.setdefault(part.shard.number, path)) is not path:
            raise UserError(f"shard {part.shard} is there twice: {other} and {path}. Leave one of them out.")
    parts.sort(key=lambda item: item[1].shard.number)
    return parts, [i for i in range(1, first[1].shard.of + 1) if i not in by_number]


def in_ranges(numbers: Sequence[int], most: int = 12) -> str:
    """Return ascending whole numbers as text, of which `most` ranges are named.

    >>> in_ranges([1, 4, 5, 6])
    '1, 4-6'
    """
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    words = [f"{a}" if a == b else f"{a}-{b}" for a, b in ranges]
    return ", ".join(words[:most]) + (", ..." if len(words) > most else "")
