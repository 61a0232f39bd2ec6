"""The contract of a metric: what it may look at, what it returns, and what a named protocol fixes.

A protocol over the features of a network has a stem: `fd` over `mnist-cnn` is `fd_mnist-cnn`. The names of published
protocols (`fid`, `kid`, `inception_score`) are kept for the published network with its published weights.
"""

from collections.abc import Callable, MutableMapping
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

    images: uint8 N x C x H x W. labels: int64 N or None. features: float32 N x d, logits: float32 N x K, where the
    protocol needs them. logits_at: logits of the images reduced to r pixels, by r. kept: what metrics have derived of
    this set alone, by a name that holds a version; for a reference it outlives the process.
    """

    images: Tensor
    labels: Tensor | None = None
    features: Tensor | None = None
    logits: Tensor | None = None
    logits_at: dict[int, Tensor] = field(default_factory=dict)
    kept: MutableMapping[str, dict[str, Tensor]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def keep(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What is derived from this set's features alone and takes long (moments, radii): made once, then kept.

        `name` ends with a version, which rises whenever `make` would give something else: 'moments/1'.
        """
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]


@dataclass(frozen=True)
class Model:
    """What a metric may ask of the generative model under test. None: its paper gives it no such thing.

    Everything goes in and comes out on the CPU, in evaluation mode and without gradients, in batches of any size.
    Images come in as uint8 N x C x H x W.

    sample_latent(n, generator): draws from the prior of z, float32 n x d. generate(z, y): float32 images in [-1, 1] of
    latents and, where there are classes, labels int64 n. encode(images): E(x), float32 N x d. reconstruct(images):
    float32 images in [-1, 1]. classify(images): logits float32 N x K.
    num_classes: 0 where the model takes no labels. args: the constructor's arguments.
    """

    name: str
    num_classes: int = 0
    args: dict[str, Any] = field(default_factory=dict)
    sample_latent: Callable[[int, torch.Generator], Tensor] | None = None
    generate: Callable[[Tensor, Tensor | None], Tensor] | None = None
    encode: Callable[[Tensor], Tensor] | None = None
    reconstruct: Callable[[Tensor], Tensor] | None = None
    classify: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Inputs:
    """What a protocol may look at; what it did not name in `needs` may be missing.

    real: the reference. fake: what is measured. held_out: real images that are not in `real`.
    model: the generative model. embed: the protocol's extractor, for images that the metric makes: (features float32
    N x d, logits float32 N x K or None) of uint8 images, or of float32 ones in the same units (0 to 255) where they
    differ by less than a level.
    fit: trains the bundled classifier on uint8 images and labels, and returns images -> logits.
    """

    real: Side
    fake: Side
    held_out: Side | None
    generator: torch.Generator
    shared: dict[str, Any] = field(default_factory=dict)
    model: Model | None = None
    embed: Callable[[Tensor], tuple[Tensor, Tensor | None]] | None = None
    fit: Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]] | None = None

    def share(self, key: str, make: Callable[[], Any]) -> Any:
        """What several protocols need of the same two sets (distances, say): made by the first, kept for the others."""
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]


SIDES = ("real", "fake", "held_out")
PARTS = ("images", "labels", "features", "logits")
CAPABILITIES = ("generate", "encode", "reconstruct", "classify")  # `generate` brings `sample_latent` along
NEEDS = frozenset({f"{s}.{p}" for s in SIDES for p in PARTS} | {f"model.{c}" for c in CAPABILITIES} | {"embed", "fit"})


@dataclass(frozen=True)
class Protocol:
    """A formula with everything fixed.

    stem: the name, to which `_<extractor>` is added where an extractor is needed.
    needs: of NEEDS, for instance 'fake.features', 'held_out.labels', 'model.generate'. What is missing is said in words
    before `compute` is called.
    published: (name, extractor) of the published protocol, if the stem over that extractor is one.
    num: exact count of fake images that the protocol demands, or None.
    resolutions: sides to which fake images are also reduced, from their own side: `fake.logits_at`.
    by_moments: True if mean and covariance of the real features serve in their place: `real.kept["moments/1"]`.
    real_row: which real set plays `fake` in the row of real data; 'none' where that makes no sense.
    """

    stem: str
    version: int
    summary: str
    source: str
    direction: Direction
    compute: Callable[[Inputs], list[Value]]
    needs: frozenset[str] = frozenset({"fake.images"})
    published: tuple[str, str] | None = None
    num: int | None = None
    resolutions: Callable[[int], tuple[int, ...]] | None = None
    real_row: Literal["held_out", "reference", "none"] = "held_out"
    by_moments: bool = False

    @property
    def needs_extractor(self) -> bool:
        return "embed" in self.needs or any(n.endswith((".features", ".logits")) for n in self.needs)

    @property
    def asks_model(self) -> bool:
        """True if it looks at a model, and so cannot be measured of images alone."""
        return any(n.startswith("model.") for n in self.needs)

    def needs_side(self, side: str) -> bool:
        """True if it looks at that set at all: 'real', 'fake' or 'held_out'."""
        return any(n.startswith(side + ".") for n in self.needs)


def require_features(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Features of both sets as they came (float32), N x d and M x d.

    Raises Unavailable where there are none, one is not finite, or the sets differ in d (images of two sizes).
    """
    real, fake = features_of(inputs.real), features_of(inputs.fake)
    if real.shape[1] != fake.shape[1]:
        raise Unavailable(f"{real.shape[1]} features of real images and {fake.shape[1]} of fake ones")
    return real, fake


def features_of(side: Side) -> Tensor:
    """The features N x d as they came (float32), or Unavailable if there are none or any is not finite."""
    if side.features is None:
        raise Unavailable("no features")
    return _finite(side.features, "features")


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
