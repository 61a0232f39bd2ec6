"""Metrics: pure functions of (real, fake), and named protocols that fix everything about how one is measured.

Each file holds one formula with its source, and at its foot `PROTOCOLS`. A protocol over the features of a
network has a stem: `fd` over `mnist-cnn` is `fd_mnist-cnn`. The names of published protocols (`fid`, `kid`,
`inception_score`) are kept for the published network with its published weights.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Direction = Literal["lower", "higher", "none"]


class Unavailable(Exception):
    """The measurement cannot be made; the message says why. Reported as such, never as a number."""


@dataclass(frozen=True)
class Uncertainty:
    """value: one standard error or standard deviation, in the metric's own unit. over: what it is taken over."""

    value: float
    kind: Literal["standard error", "standard deviation"]
    over: str


@dataclass(frozen=True)
class Value:
    """What a formula yields. suffix: ends the metric's name where one protocol yields several ('@16')."""

    value: float
    uncertainty: Uncertainty | None
    n_real: int
    n_fake: int
    suffix: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Side:
    """One set of images and what an extractor made of it.

    images: uint8 N x C x H x W. labels: int64 N or None. features: float32 N x d, logits: float32 N x K, where
    asked for. logits_at: logits of the images reduced to r pixels, by r.
    """

    images: Tensor
    labels: Tensor | None = None
    features: Tensor | None = None
    logits: Tensor | None = None
    logits_at: dict[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Inputs:
    """What a protocol may look at.

    real: the reference. fake: what is measured. held_out: real images that are not in `real`, or None.
    """

    real: Side
    fake: Side
    held_out: Side | None
    generator: torch.Generator
    shared: dict[str, Any] = field(default_factory=dict)

    def share(self, key: str, make: Callable[[], Any]) -> Any:
        """What several protocols need of the same two sets (distances, say): made by the first, kept for the others."""
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]


@dataclass(frozen=True)
class Protocol:
    """A formula with everything fixed.

    stem: the name, to which `_<extractor>` is added where an extractor is needed.
    needs: of 'features', 'logits', 'labels'.
    published: (name, extractor) of the published protocol, if the stem over that extractor is one.
    num: exact count of fake images that the protocol demands, or None.
    resolutions: sides to which images are also reduced, from their own side.
    real_row: which real set plays `fake` in the row of real data.
    """

    stem: str
    version: int
    summary: str
    source: str
    direction: Direction
    compute: Callable[[Inputs], list[Value]]
    needs: frozenset[str] = frozenset()
    published: tuple[str, str] | None = None
    num: int | None = None
    resolutions: Callable[[int], tuple[int, ...]] | None = None
    real_row: Literal["held_out", "reference"] = "held_out"

    @property
    def needs_extractor(self) -> bool:
        return bool(self.needs & {"features", "logits"})


def require_features(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Features of both sets in float64, N x d and M x d.

    Raises Unavailable where there are none, one is not finite, or the sets differ in d (images of two sizes).
    """
    real, fake = inputs.real.features, inputs.fake.features
    if real is None or fake is None:
        raise Unavailable("no features")
    if real.shape[1] != fake.shape[1]:
        raise Unavailable(f"{real.shape[1]} features of real images and {fake.shape[1]} of fake ones")
    return _finite(real, "features").double(), _finite(fake, "features").double()


def require_logits(side: Side) -> Tensor:
    """The logits N x K, or Unavailable if there are none or any is not finite."""
    if side.logits is None:
        raise Unavailable("this extractor has no classes")
    return _finite(side.logits, "logits")


def require_labels(side: Side) -> Tensor:
    """The labels, or Unavailable if there are none."""
    if side.labels is None:
        raise Unavailable("the images have no labels")
    return side.labels


def _finite(x: Tensor, what: str) -> Tensor:
    if not torch.isfinite(x).all():
        raise Unavailable(f"some {what} are not finite: the extractor or the images are broken")
    return x
