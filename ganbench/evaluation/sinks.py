"""What a pass over images keeps: all features, their moments alone, or the pixels of some rows.

A sink takes batches in order. `piece()` returns what it holds for a file, so that an interrupted pass can go on.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ganbench.base import distributed, memory
from ganbench.features import Features
from ganbench.metrics.frechet import MOST, MomentsAccumulator


class FeatureSink:
    """Features and logits of n images, float32 n x d and n x K."""

    def __init__(self, n: int, what: str):
        self.n, self.what, self.done, self.saved = n, what, 0, 0
        self.rows: dict[str, Tensor] = {}

    def take(self, out: Features) -> None:
        """Keep the output of one batch. Raises UserError if there is not enough memory for all of them."""
        outputs = {"features": out.features} | ({} if out.logits is None else {"logits": out.logits})
        if not self.rows:
            size = sum(4 * self.n * x[0].numel() for x in outputs.values())
            memory.require(size, f"{self.what} of {self.n:,} images")
            self.rows = {name: torch.empty(self.n, *x.shape[1:]) for name, x in outputs.items()}
        for name, x in outputs.items():
            self.rows[name][self.done : self.done + len(x)] = x
        self.done += len(out.features)

    def bytes(self) -> int:
        """How much memory all features take."""
        return sum(x.numel() * x.element_size() for x in self.rows.values())

    def piece(self) -> dict[str, Tensor]:
        """The rows that came since the last piece."""
        start, self.saved = self.saved, self.done
        return {name: x[start : self.done] for name, x in self.rows.items()}

    def go_on(self, pieces: Sequence[dict[str, Tensor]]) -> None:
        """Go on from pieces in their order."""
        for piece in pieces:
            self.take(Features(piece["features"], piece.get("logits")))
        self.saved = self.done

    def gathered(self) -> Features:
        """The features of all processes, in every process."""
        held = {name: x[: self.done] for name, x in self.rows.items()}
        if distributed.world_size() == 1:
            return Features(held.get("features", torch.empty(0)), held.get("logits"))
        names = {name for of_one in distributed.gather_objects(sorted(held)) for name in of_one}
        found = {name: distributed.all_gather(held.get(name, torch.empty(0))) for name in sorted(names)}
        return Features(found.get("features", torch.empty(0)), found.get("logits"))


class MomentSink:
    """Mean and covariance of the features of n images, and at most MOST of their rows: n does not change the memory.

    n, start: number of images, and the row of the set that this process begins with.
    """

    def __init__(self, n: int, start: int = 0):
        self.step = -(-n // MOST)
        self.next = start
        self.moments = MomentsAccumulator()
        self.some = torch.empty(0)  # allocated once: small pieces between large ones would tear the heap to pieces
        self.kept = 0

    @property
    def done(self) -> int:
        return len(self.moments)

    def take(self, out: Features) -> None:
        """Keep the moments of one batch."""
        self.moments.update(out.features)
        self._keep(out.features[-self.next % self.step :: self.step])
        self.next += len(out.features)

    def _keep(self, rows: Tensor) -> None:
        if not len(self.some):
            self.some = torch.empty(MOST, rows.shape[1])
        self.some[self.kept : self.kept + len(rows)] = rows
        self.kept += len(rows)

    def piece(self) -> dict[str, Tensor]:
        """All that is kept so far."""
        return {"some": self.some[: self.kept], **self.moments.state()} if self.done else {}

    def go_on(self, piece: dict[str, Tensor]) -> None:
        """Go on from a piece."""
        self.moments = MomentsAccumulator.from_state({k: v for k, v in piece.items() if k != "some"})
        self.next += self.done
        self._keep(piece["some"])

    def gathered(self) -> dict[str, dict[str, Tensor]]:
        """Moments and some rows of the images of all processes, under the names of `Side.kept`."""
        some = self.some[: self.kept]
        if distributed.world_size() > 1:
            some = distributed.all_gather(some)
            states = distributed.gather_objects(self.moments.state())
            self.moments = MomentsAccumulator()
            for state in states:
                self.moments.merge(MomentsAccumulator.from_state(state))
        found = self.moments.moments()
        return {
            "moments/1": {"n": torch.tensor(found.n), "mean": found.mean, "cov": found.cov},
            "some/1": {"rows": some},
        }


class PixelSink:
    """The pixels of some rows of a set, int64, sorted, without repetitions."""

    def __init__(self, rows: Tensor, shape: Sequence[int], start: int = 0):
        memory.require(len(rows) * math.prod(shape[1:]), f"{len(rows):,} images that metrics look at")
        self.rows, self.next = rows, start
        self.parts = [torch.empty(0, *shape[1:], dtype=torch.uint8)]

    def take(self, images: Tensor) -> None:
        """Keep those of the rows that are in this batch."""
        low, high = torch.searchsorted(self.rows, torch.tensor([self.next, self.next + len(images)])).tolist()
        if high > low:
            self.parts.append(images[self.rows[low:high] - self.next])
        self.next += len(images)

    def gathered(self) -> Tensor:
        """The pixels of all rows, in every process."""
        pixels = torch.cat(self.parts)
        return distributed.all_gather(pixels) if distributed.world_size() > 1 else pixels
