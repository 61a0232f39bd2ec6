"""The contract of a metric: its inputs, its result, and what a named protocol fixes.

A protocol over the features of a network has a stem: `fd` over `mnist-cnn` is `fd_mnist-cnn`. The names of published
protocols (`fid`, `kid`, `inception_score`) are reserved for the published network with its published weights.
"""

import typing
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Direction = Literal["lower", "higher", "none"]


class Unavailable(Exception):
    """The metric cannot be measured; the message is the reason, which is reported in place of a number."""


class ImageSet(typing.Protocol):
    """A set of images that may be larger than memory: uint8, of shape (N, C, H, W). A tensor has the same methods."""

    shape: torch.Size

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Tensor:
        """Return the images of a slice or of int64 rows, in their order."""

    def split(self, size: int, /) -> Iterator[Tensor]:
        """Yield all images in order, in batches of `size`."""


@dataclass(frozen=True)
class Uncertainty:
    """The uncertainty of a value.

    value: one standard error or standard deviation, in the unit of the metric. over: the source of the variation, for
    instance 'the samples of both sets'.
    """

    value: float
    kind: Literal["standard error", "standard deviation"]
    over: str


LEAST = 5  # samples for an error of the mean: the error of that error is then 1 / sqrt(2 * 4) = 35 %
NOTHING = 1e-7  # share of a value; a smaller error is rounding


def known(
    error: float, over: str, size: float, alike: str, n: int = LEAST,
    kind: Literal["standard error", "standard deviation"] = "standard error",
) -> tuple[Uncertainty | None, tuple[str, ...]]:
    """Return an uncertainty and no warning; or None and a warning that says why the data cannot tell the uncertainty.

    error, over, kind: the uncertainty. size: typical size of what varies; an error below NOTHING of it is rounding.
    alike: the reason in words if nothing varies. n: number of independent samples in the smallest set.

    >>> known(0.1, "the samples", size=3.0, alike="all samples are equal")
    (Uncertainty(value=0.1, kind='standard error', over='the samples'), ())
    >>> known(1e-17, "the samples", size=3.0, alike="all samples are equal")
    (None, ('no uncertainty is known: all samples are equal',))
    >>> known(0.1, "the samples", size=3.0, alike="all samples are equal", n=2)
    (None, ('no uncertainty is known: at least 5 images are needed for one, not 2',))
    """
    if n < LEAST:
        return None, (f"no uncertainty is known: at least {LEAST} images are needed for one, not {n}",)
    if not error > NOTHING * abs(size):
        return None, (f"no uncertainty is known: {alike}",)
    return Uncertainty(error, kind, over), ()


@dataclass(frozen=True)
class Value:
    """One value of a metric.

    uncertainty: None if none is known; `warnings` then say why. n_real, n_fake: number of real and of generated images.
    suffix: the end of the metric's name if a protocol yields several values ('@16'). details: numbers for the result
    file.
    """

    value: float
    uncertainty: Uncertainty | None
    n_real: int
    n_fake: int
    suffix: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Side:
    """One set of images with the outputs of an extractor.

    images: uint8 N x C x H x W. If the protocol says which rows it looks at (`Protocol.rows`), this can be an ImageSet
    that has the pixels of these rows alone; length and shape are those of the whole set.
    labels: int64 N or None. classes: names of the labels' classes, in their order; () if unknown.
    features: float32 N x d, and logits: float32 N x K, if the protocol needs them. logits_at: the logits of the images
    reduced to r pixels, by r. kept: cached results that depend on this set alone, by name and version; the cache of a
    reference outlives the process.
    some: evenly spaced rows of the features, if moments alone are kept (`Protocol.by_moments`): rows 0, s, 2s, ... with
    s = ceil(N / frechet.MOST).
    """

    images: Tensor | ImageSet
    labels: Tensor | None = None
    features: Tensor | None = None
    logits: Tensor | None = None
    logits_at: dict[int, Tensor] = field(default_factory=dict)
    kept: MutableMapping[str, dict[str, Tensor]] = field(default_factory=dict)
    some: Tensor | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def keep(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the cached result of `make`, which is slow and depends on this set's features alone (moments, radii).

        name: ends with a version, 'moments/1'. Raise the version whenever the result of `make` changes.
        """
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]


@dataclass(frozen=True)
class Model:
    """The functions of the generative model under test. A function is None if the model does not have it.

    All tensors are on the CPU. The model runs in evaluation mode without gradients, in batches of any size. Images that
    go in are uint8 N x C x H x W, a tensor or an ImageSet.

    sample_latent(n, generator): n draws from the prior of z, float32 n x d; a model that has `generate` has it too.
    generate(z, y): float32 images in [-1, 1] from latents and, for a conditional model, labels int64 n. encode(images):
    E(x), float32 N x d. reconstruct(images): float32 images in [-1, 1]. classify(images): logits float32 N x K.
    codes: entropies H(c) in nats of the codes in z, by name and in their order. code_log_likelihood(z, y): log Q(c | x)
    of each code c in z for x = G(z, y), float32 N x codes.
    pyramid(images): the images at each level of a model that generates level by level without labels, coarsest first,
    float32 N x C x s x s in its own unit. sample_level(k, images, generator): samples of level k given the true level
    k - 1 of each image, in the same unit.
    latent_spaces: the spaces whose paths and planes are measured, if the model names them; see `spaces`.
    num_classes: 0 if the model takes no labels. args: arguments of the constructor.
    """

    name: str
    num_classes: int = 0
    args: dict[str, Any] = field(default_factory=dict)
    sample_latent: Callable[[int, torch.Generator], Tensor] | None = None
    generate: Callable[[Tensor, Tensor | None], Tensor] | None = None
    encode: Callable[[Any], Tensor] | None = None
    reconstruct: Callable[[Any], Tensor] | None = None
    classify: Callable[[Any], Tensor] | None = None
    codes: Mapping[str, float] = field(default_factory=dict)
    code_log_likelihood: Callable[[Tensor, Tensor | None], Tensor] | None = None
    pyramid: Callable[[Tensor], list[Tensor]] | None = None
    sample_level: Callable[[int, Tensor, torch.Generator], Tensor] | None = None
    latent_spaces: tuple["Space", ...] = ()

    @property
    def spaces(self) -> tuple["Space", ...]:
        """The latent spaces; Z alone if the model names none."""
        if self.latent_spaces or self.generate is None:
            return self.latent_spaces
        return (Space("z", lambda z, y: z, self.generate),)


@dataclass(frozen=True)
class Space:
    """A latent space of a model: G(z) = generate(of(z, y), y).

    name: 'z', 'w'. of(z, y): its latents, float32 n x d, from latents z and labels, int64 n or None. generate: float32
    images in [-1, 1] from its latents and labels. straight: paths are straight lines; otherwise they follow the sphere.
    """

    name: str
    of: Callable[[Tensor, Tensor | None], Tensor]
    generate: Callable[[Tensor, Tensor | None], Tensor]
    straight: bool = False

    @property
    def suffix(self) -> str:
        """The end of a metric's name for this space: none for Z, '@w' for W."""
        return "" if self.name == "z" else f"@{self.name}"


@dataclass(frozen=True)
class Inputs:
    """The inputs of a protocol. An input may be missing unless the protocol names it in `needs`.

    real: the reference. fake: the set that is measured. held_out: real images that are not in `real`. generator: the
    source of all random draws. shared: see `share`. model: the generative model.
    embed: the protocol's extractor, for images that the metric itself generates. It maps images to (features float32
    N x d, logits float32 N x K or None). The images are uint8; they are float32 in the same unit (0 to 255) if their
    differences are smaller than a grey level.
    classes_of_logits: names of the extractor's classes, in the order of its logits; () if unknown.
    class_of_label: the extractor's class for each label, where the user says which it is; None: the labels are classes.
    fit: trains the bundled classifier on uint8 images and labels, and returns a function from images to logits.
    """

    real: Side
    fake: Side
    held_out: Side | None
    generator: torch.Generator
    shared: dict[str, Any] = field(default_factory=dict)
    model: Model | None = None
    embed: Callable[[Any], tuple[Tensor, Tensor | None]] | None = None
    fit: Callable[[Tensor, Tensor], Callable[[Any], Tensor]] | None = None
    classes_of_logits: tuple[str, ...] = ()
    class_of_label: Mapping[int, int] | None = None

    def share(self, key: str, make: Callable[[], Any]) -> Any:
        """Return the result of `make` for the same two sets; the first of several protocols computes it."""
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]


SIDES = ("real", "fake", "held_out")
PARTS = ("images", "labels", "features", "logits")
CAPABILITIES = ("generate", "encode", "reconstruct", "classify", "code_log_likelihood", "pyramid")
NEEDS = frozenset({f"{s}.{p}" for s in SIDES for p in PARTS} | {f"model.{c}" for c in CAPABILITIES} | {"embed", "fit"})


@dataclass(frozen=True)
class Protocol:
    """A formula with all its settings fixed.

    stem: the name, to which `_<extractor>` is added if the protocol needs an extractor.
    version, summary: part of the protocol's id, which results store: only values with equal ids are compared.
    source: the paper and its equation.
    needs: a subset of NEEDS, for instance 'fake.features', 'held_out.labels', 'model.generate'. If one is missing, the
    reason is reported and `compute` is not called.
    published: (name, extractor) of the published protocol, if the stem with that extractor is one.
    num: the exact number of generated images that the protocol requires, or None.
    resolutions: maps the side of the generated images to smaller sides, at which they are also classified:
    `fake.logits_at`.
    by_moments, fake_by_moments: True if the mean and covariance of the real or of the generated features can replace
    them: `kept["moments/1"]`, with `Side.some` for the standard error.
    rows: the images whose pixels `compute` reads.
        'all'       all of them, as one tensor.
        'stream'    all of them, in order: by `images.split(n)`, or by handing `images` to a function of the model or to
                    `embed`. The images may be an ImageSet that does not fit into memory.
        a function  the int64 rows of each side that it reads, in any order. It gets the Inputs of `compute` without
                    features and logits, and must not look at pixels: length, shape and labels are right. Its generator
                    has the seed of the one that `compute` gets, so that both draw the same rows. `compute` reads
                    `images[rows]`, in the numbers of the whole set; other rows may be missing. It raises Unavailable
                    under the same conditions as `compute`.
    real_row: the real set that takes the place of `fake` in the row of real data; 'none' if there is no such row.
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
    fake_by_moments: bool = False
    rows: Callable[[Inputs], dict[str, Tensor]] | Literal["all", "stream"] = "all"

    @property
    def needs_extractor(self) -> bool:
        return "embed" in self.needs or any(n.endswith((".features", ".logits")) for n in self.needs)

    @property
    def asks_model(self) -> bool:
        """True if the protocol uses a model, so that images alone are not enough."""
        return any(n.startswith("model.") for n in self.needs)

    def needs_side(self, side: str) -> bool:
        """True if the protocol uses that set: 'real', 'fake' or 'held_out'."""
        return any(n.startswith(side + ".") for n in self.needs)


def require_features(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Return the features of the real and of the generated images: N x d and M x d, float32, unchanged.

    Raises Unavailable if features are missing or not finite, or if d differs (images of two sizes).

    >>> images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    >>> real, fake = Side(images, features=torch.zeros(2, 3)), Side(images, features=torch.ones(2, 3))
    >>> require_features(Inputs(real, fake, None, torch.Generator()))[1].sum()
    tensor(6.)
    """
    real, fake = features_of(inputs.real), features_of(inputs.fake)
    if real.shape[1] != fake.shape[1]:
        raise Unavailable(f"{real.shape[1]} features of real images and {fake.shape[1]} of fake ones")
    return real, fake


def features_of(side: Side) -> Tensor:
    """Return the features of one set: N x d, float32, unchanged.

    Raises Unavailable if features are missing or not finite.

    >>> features_of(Side(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), features=torch.ones(2, 3))).shape
    torch.Size([2, 3])
    """
    if side.features is None:
        raise Unavailable("no features")
    return _finite(side.features, "features")


def require_logits(side: Side) -> Tensor:
    """Return the logits of one set: N x K, float32.

    Raises Unavailable if the extractor is not a classifier or if a logit is not finite.

    >>> require_logits(Side(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), logits=torch.eye(2))).argmax(1)
    tensor([0, 1])
    """
    if side.logits is None:
        raise Unavailable("this extractor has no classes")
    return _finite(side.logits, "logits")


def require_labels(side: Side) -> Tensor:
    """Return the labels of one set: int64 N, none below 0.

    Raises Unavailable if some images have no labels.

    >>> require_labels(Side(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), labels=torch.tensor([3, 7])))
    tensor([3, 7])
    """
    if side.labels is None:
        raise Unavailable("the images have no labels")
    if negative := int((side.labels < 0).sum()):
        raise Unavailable(f"the metric needs a label for every image, and {negative:,} are below 0")
    return side.labels


SURE = 1e-3  # probability below which labels are not taken for those of more classes


def require_classes(
    side: Side, logits: Tensor, names: tuple[str, ...], class_of_label: Mapping[int, int] | None = None
) -> Tensor:
    """Return the labels of one set, int64 N, if they mean the classes of a classifier.

    logits: the classifier's answers, M x K. names: its classes, or () if unknown. class_of_label: its class for each
    label, where they are known; then these are returned.
    Raises Unavailable if there are no labels, or unless there are as many classes and, where both are named, under the
    same names; named labels may also be the first of the classifier's classes. Unnamed labels of fewer classes are
    refused if they would hardly leave out so many classes by chance.

    >>> side = Side(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([1, 0]), classes=("cat", "hot dog"))
    >>> require_classes(side, torch.zeros(2, 2), ("Cat", "hot_dog"))
    tensor([1, 0])
    """
    labels, known_classes = require_labels(side), logits.shape[1]
    if class_of_label is not None:
        values, rows = labels.unique(return_inverse=True)
        if without := [c for c in values.tolist() if c not in class_of_label]:
            name = side.classes[without[0]] if without[0] < len(side.classes) else without[0]
            raise Unavailable(f"the class map says nothing of class '{name}'")
        found = torch.tensor([class_of_label[c] for c in values.tolist()], dtype=torch.int64)
        if len(found) and int(found.max()) >= known_classes:
            raise Unavailable(f"the class map has class {int(found.max())}, and the extractor has {known_classes}")
        return found[rows]
    if unknown := [c for c in labels.unique().tolist() if c >= known_classes]:
        raise Unavailable(f"label {unknown[-1]} is not one of the extractor's {known_classes} classes")
    if side.classes and len(side.classes) < len(names):  # the first classes of the classifier, under its names
        require_same_names(side.classes, names[: len(side.classes)], "the images", "the extractor")
        return labels
    if side.classes and len(side.classes) != known_classes:
        raise Unavailable(f"the images have {len(side.classes)} classes, and the extractor has {known_classes}")
    require_same_names(side.classes, names, "the images", "the extractor")
    used = int(labels.max()) + 1 if len(labels) else known_classes
    if not side.classes and (used / known_classes) ** len(labels) < SURE:
        raise Unavailable(f"the labels are those of {used} classes, and the extractor has {known_classes}")
    return labels


def require_same_names(a: tuple[str, ...], b: tuple[str, ...], of_a: str, of_b: str) -> None:
    """Raise Unavailable if two sets of classes have other names; capitals, spaces, - and _ do not count.

    a, b: names in the order of the labels, or () if unknown. of_a, of_b: whose they are.

    >>> require_same_names(("T-shirt", "top"), ("t_shirt", "Top"), "the images", "the reference")
    """
    if not a or not b:
        return
    if len(a) != len(b):
        raise Unavailable(f"{of_a} have {len(a)} classes and {of_b} {len(b)}")
    plain = str.maketrans("", "", " -_")
    for label, (x, y) in enumerate(zip(a, b, strict=True)):
        if x.casefold().translate(plain) != y.casefold().translate(plain):
            raise Unavailable(f"the classes differ: label {label} is '{x}' in {of_a} and '{y}' in {of_b}")


def compare_labels(train: Side, test: Side, of_train: str, of_test: str, refuse: bool = False) -> tuple[str, ...]:
    """Return warnings about classes that only one of two sets has.

    refuse: a test class without a training image makes the value meaningless. It does not if training images are
    generated, because leaving out a class is a fault of the generator.
    Raises Unavailable if there are no labels, if the names of classes differ, or if the sets have no class in common.

    >>> images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    >>> a, b = Side(images, torch.tensor([0, 1])), Side(images, torch.tensor([1, 2]))
    >>> compare_labels(a, b, "the samples", "the test images")
    ('1 of the test classes have no training image: 2', '1 of the training classes have no test image: 0')
    """
    require_same_names(train.classes, test.classes, of_train, of_test)
    seen, asked = (set(require_labels(side).tolist()) for side in (train, test))
    if not seen & asked:
        if not seen or not asked:
            return ()
        raise Unavailable(f"no class in common: labels {_some(seen)} of {of_train}, and {_some(asked)} of {of_test}")
    warnings = []
    if unseen := asked - seen:
        if refuse:
            raise Unavailable(f"{of_train} have no image of {len(unseen)} classes of {of_test}: {_some(unseen)}")
        warnings.append(f"{len(unseen)} of the test classes have no training image: {_some(unseen)}")
    if untested := seen - asked:
        warnings.append(f"{len(untested)} of the training classes have no test image: {_some(untested)}")
    return tuple(warnings)


def _some(labels: set[int]) -> str:
    return ", ".join(map(str, sorted(labels)[:5])) + (", ..." if len(labels) > 5 else "")


def require_tensor(
    x: Any, name: str, shape: str, kind: Literal["floating", "whole", "real"] = "floating", n: int | None = None
) -> None:
    """Check an argument of a public function.

    shape: its axes, 'N x d'. kind: numbers that it may hold; 'real' are both. n: its number of rows, if that is given.
    Raises TypeError for another type, and ValueError for another shape or values that are not finite.
    """
    axes = shape.split(" x ")
    words = {"floating": "a floating tensor", "whole": "a tensor of whole numbers", "real": "a tensor of real numbers"}
    wanted = f"{name} must be {words[kind]} of shape {shape}"
    if not isinstance(x, Tensor):
        raise TypeError(f"{wanted}, not of type {type(x).__name__}")
    found = f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"
    floating = x.is_floating_point()
    whole = not floating and not x.is_complex() and x.dtype != torch.bool
    if not {"floating": floating, "whole": whole, "real": floating or whole}[kind]:
        raise TypeError(f"{wanted}, not {found}")
    if x.ndim != len(axes):
        raise ValueError(f"{wanted}, not {found}")
    if n is not None and len(x) != n:
        raise ValueError(f"{wanted} with {n} rows, not {found}")
    if floating and not torch.isfinite(x).all():
        raise ValueError(f"{name} must be finite")


def require_rows(*sets: Tensor, names: tuple[str, ...] = ("real", "fake")) -> None:
    """Check that arguments of a public function are features, floating N x d, finite and with one d.

    Raises TypeError for another type, and ValueError for another shape or values that are not finite.

    >>> require_rows(torch.zeros(3, 1, 8, 8))
    Traceback (most recent call last):
    ValueError: real must be a floating tensor of shape N x d, not float32 of shape (3, 1, 8, 8)
    """
    for x, name in zip(sets, names, strict=False):
        require_tensor(x, name, "N x d")
        if x.shape[1] != sets[0].shape[1]:
            raise ValueError(f"{names[0]} has {sets[0].shape[1]} features a row, and {name} has {x.shape[1]}")


def require_answers(logits: Tensor, labels: Tensor) -> None:
    """Check that arguments of a public function are logits, floating N x K, and labels, int64 N.

    Raises TypeError for another type, and ValueError for another shape or values that are not finite.
    """
    require_tensor(logits, "logits", "N x K")
    require_tensor(labels, "labels", "N", "whole", len(logits))


def require_labelled(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor | None = None,
    names: tuple[str, str, str, str] = ("train", "train_labels", "test", "test_labels"),
) -> None:
    """Check that arguments of a public function are features, floating N x d and M x d, and labels, int64 N and M.

    Raises TypeError for another type, and ValueError for another shape or values that are not finite.
    """
    require_rows(train, test, names=(names[0], names[2]))
    require_tensor(train_labels, names[1], "N", "whole", len(train))
    if test_labels is not None:
        require_tensor(test_labels, names[3], "N", "whole", len(test))


def pixels(side: Side) -> Tensor:
    """Return all images of a set as one tensor, uint8 N x C x H x W: for protocols with `rows='all'`.

    >>> pixels(Side(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))).shape
    torch.Size([2, 1, 8, 8])
    """
    return side.images if isinstance(side.images, Tensor) else side.images[:]


def _finite(x: Tensor, what: str) -> Tensor:
    if not torch.isfinite(x).all():
        raise Unavailable(f"some {what} are not finite: the extractor or the images are broken")
    return x
