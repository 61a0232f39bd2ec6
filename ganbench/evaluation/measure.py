"""Measuring: names of metrics become protocols, and each protocol is handed what it looks at.

What all protocols look at is collected first. Then one pass over each set of images serves them all. A name such as
`fd_mnist-cnn` is a protocol's stem and an extractor; `fid` is a published protocol; a stem alone, such as
`discriminability`, takes the default extractor. With other weights than the published ones, `fid` becomes
`fd_inception-v3@<hash>`.
"""

import math
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ganbench.base import distributed, registry
from ganbench.base.errors import UserError, did_you_mean, shortened
from ganbench.base.precision import full_float32
from ganbench.base.standard_output import user_code
from ganbench.data.sources import Samples, take
from ganbench.evaluation import protocols as installed
from ganbench.evaluation.feature_store import FeatureStore, Wanted
from ganbench.evaluation.metric_hints import hint
from ganbench.features import FeatureExtractor, Features
from ganbench.features.small_cnn import fit_classifier
from ganbench.metrics import Inputs, Model, Protocol, Side, Unavailable
from ganbench.reporting.results import Measurement

# Extractors that are parts of the model under test, used like any other: `nn_transfer_encoder`.
OWN = {
    "encoder": "an encoder",
    "encoder-hidden": "an encoder with a hidden layer to show",
    "discriminator": "features of its discriminator",
}
MISSING = {
    "real": "there is no reference: give --reference",
    "fake": "there are no generated images: give --images or --ckpt",
    "held_out": "there are no real images beside the reference to test on",
}
WORDS = {"real": "the reference has", "fake": "the images have", "held_out": "the held-out images have"}
LACKS = {
    "generate": "does not say how it turns a latent into an image",
    "encode": "has no encoder",
    "reconstruct": "does not reconstruct images",
    "classify": "is no classifier",
    "code_log_likelihood": "has no codes",
    "pyramid": "does not generate level by level from the image alone",
}


@dataclass(frozen=True)
class Request:
    """A metric that was asked for: its protocol, and the name of its extractor if it needs one."""

    name: str
    protocol: Protocol
    extractor: str | None


def protocols() -> dict[str, Protocol]:
    """Return all installed protocols by stem. This loads every package of metrics."""
    return installed.installed()


def metric_names() -> list[str]:
    """Return the names that `--metrics` takes: stems, `stem_<extractor>`, and published names."""
    found = []
    for stem, p in protocols().items():
        found += [f"{stem}_<extractor>"] if p.needs_extractor else [stem]
        found += [p.published[0]] if p.published else []
    return found


def parse_metrics(metrics: list[str], default_extractor: str) -> list[Request]:
    """Return the requests for names from the command line or a recipe, in their order.

    default_extractor: for stems that need an extractor and stand alone. Raises UserError for an unknown metric or
    extractor, and for one that is asked for twice.
    """
    extractors = [*registry.names("extractors"), *OWN]
    requests: list[Request] = []
    for name in metrics:
        known = installed.knowing(name, extractors)
        published = {p.published[0]: p for p in known.values() if p.published}
        if name in published:
            protocol = published[name]
            assert protocol.published
            request = Request(name, protocol, protocol.published[1])
        elif name in known:
            request = Request(name, known[name], default_extractor if known[name].needs_extractor else None)
        else:
            match = next((s for s in sorted(known, key=len, reverse=True) if name.startswith(s + "_")), None)
            if match is None or not known[match].needs_extractor:
                kept = {p.published[0]: (p.stem, p.published[1]) for p in known.values() if p.published}
                instead = hint(name, kept, {stem: p.needs_extractor for stem, p in known.items()})
                besides = "".join(f" Besides, {line}" for line in installed.faults())
                raise UserError(f"unknown metric '{shortened(name, 80)}'.{instead}{besides}")
            extractor = name[len(match) + 1 :]
            if extractor not in extractors:
                raise UserError(
                    f"metric '{shortened(name, 80)}': unknown extractor '{shortened(extractor, 60)}'."
                    f"{did_you_mean(extractor.casefold(), extractors)}"
                )
            request = Request(name, known[match], extractor)
        if any(request.protocol is r.protocol and request.extractor == r.extractor for r in requests):
            raise UserError(f"the metric '{name}' is asked for twice.")
        requests.append(request)
    return requests


def evaluate(
    requests: list[Request], store: FeatureStore, fake: Samples | None, reference: Samples | None,
    held_out: Samples | None, seed: int = 0, resolutions: tuple[int, ...] | None = None, model: Model | None = None,
    unavailable: dict[str, str] | None = None, class_maps: dict[str, dict[int, int]] | None = None,
    row_of_real: bool = True,
) -> tuple[list[Measurement], list[Measurement]]:
    """Measure every request. Returns the measurements of the generated images, and those of the row of real data.

    store: makes and caches features by the extractors that the requests name. fake: the generated images; None if only
    representations are measured. held_out: real images that are not in the reference; the row of real data uses them,
    subsampled to the number of generated images. resolutions: replace the protocols' own lower resolutions.
    unavailable: why an extractor cannot be used, by its name. class_maps: the class of an extractor for each label, by
    its name, where the user says which it is. row_of_real: False leaves that row out.
    Raises UserError if the sets differ in their channels.
    """
    for other, what in ((reference, "the reference"), (held_out, "the held-out images")):
        if fake is None or other is None or not len(other.images):  # moments have no channels
            continue
        if other.images.shape[1] != fake.images.shape[1]:
            a, b = fake.images.shape[1], other.images.shape[1]
            raise UserError(
                f"the images have {a} channel{'s' * (a > 1)} and {what} {b}: convert one to the other's kind first."
            )
    # Most metrics can only be compared at equal counts: use at most as many real images as generated ones.
    num = len(fake.images) if fake is not None else None
    unseen = held_out and take(held_out, num and min(len(held_out.images), num), "the held-out images", seed)
    if fake is not None:
        store.name(fake, "samples")
    for samples, what in ((reference, "reference"), (held_out, "held-out"), (unseen, "held-out")):
        if samples is not None:
            store.name(samples, what, keep=True)

    bench = _Bench(store, reference, held_out, seed, resolutions, model, unavailable or {}, class_maps or {})
    played = []  # each request with the set that plays the generated images, and whether this is the row of real data
    for request in requests:
        played.append((request, fake, False))
        player = {"reference": reference, "held_out": unseen, "none": None}[request.protocol.real_row]
        if row_of_real and player is not None and not request.protocol.asks_model:
            played.append((request, player, True))
    bench.gather(played)
    measurements: list[Measurement] = []
    of_real: list[Measurement] = []
    for request, of, real in played:
        (of_real if real else measurements).extend(bench.measure(request, of, real))
    return measurements, of_real


class _Bench:
    """Hands each protocol what it needs, or says what is missing."""

    def __init__(
        self, store: FeatureStore, reference: Samples | None, held_out: Samples | None, seed: int,
        resolutions: tuple[int, ...] | None, model: Model | None, unavailable: dict[str, str],
        class_maps: dict[str, dict[int, int]],
    ):
        self.store, self.reference, self.held_out = store, reference, held_out
        self.seed, self.resolutions, self.model, self.unavailable = seed, resolutions, model, unavailable
        self.class_maps = class_maps
        self.failed: dict[tuple[int, bool], str] = {}  # why a protocol failed before its turn
        self.shared: dict[tuple[int, str | None], dict[str, object]] = {}
        self.classifiers: dict[tuple[int, int], Callable[[Tensor], Tensor]] = {}

    # --- What the protocols look at ---

    def gather(self, played: list[tuple[Request, Samples | None, bool]]) -> None:
        """Make what all protocols look at, in one pass over each set."""
        wanted: dict[int, tuple[Samples, Wanted]] = {}
        for request, of, real in played:
            try:
                sets = self.sets(request, of, real)
                rows = self.rows(request, sets)
                for side, samples in sets.items():
                    if samples is not None and request.protocol.needs_side(side) and not _moments_alone(samples):
                        _, of_set = wanted.setdefault(id(samples), (samples, Wanted()))
                        self.want(request, side, samples, rows.get(side), of_set)
            except Unavailable:
                continue  # `measure` gives the reason
            except (Exception, SystemExit) as error:  # of one protocol, which must not take the others with it
                self.failed[id(request), real] = installed.failure(request.protocol, error)
        for samples, of_set in wanted.values():
            self.store.gather(samples, of_set)

    def want(self, request: Request, side: str, samples: Samples, rows: Tensor | None, wanted: Wanted) -> None:
        """Add what a protocol looks at in one set."""
        p, name = request.protocol, request.extractor
        if name is not None and {f"{side}.features", f"{side}.logits"} & p.needs:
            wanted.add(name, 0, p.by_moments if side == "real" else side == "fake" and p.fake_by_moments)
            if side == "fake" and p.resolutions and f"{side}.logits" in p.needs:
                for r in self.resolutions or p.resolutions(min(samples.images.shape[2:])):
                    wanted.add(name, r, False)
        if f"{side}.images" in p.needs and p.rows != "stream":
            if rows is None:
                wanted.all_pixels = True
            else:
                wanted.rows.append(rows)

    def rows(self, request: Request, sets: dict[str, Samples | None]) -> dict[str, Tensor]:
        """Return the rows whose pixels a protocol looks at, by side. Raises Unavailable like the protocol."""
        p = request.protocol
        if not callable(p.rows):
            return {}
        sides = {side: self.empty(sets) for side in sets}
        for side, samples in sets.items():
            if samples is not None and p.needs_side(side):
                sides[side] = Side(samples.images, samples.labels, classes=samples.classes)
        return installed.require_rows(p.rows(self.as_inputs(request, sides, {})), sides)

    def sets(self, request: Request, of: Samples | None, real: bool) -> dict[str, Samples | None]:
        """Return the sets by side. Raises Unavailable for whatever the protocol needs and there is not."""
        p, store = request.protocol, self.store
        if request.extractor in OWN and request.extractor not in store.extractors:
            raise Unavailable(f"there is no model with {OWN[request.extractor]} to take features from")
        if request.extractor in self.unavailable:
            raise Unavailable(self.unavailable[request.extractor])
        self.require_model(p)
        sets = {"real": self.reference, "fake": of, "held_out": self.held_out}
        for side, missing in MISSING.items():
            samples = sets[side]
            if p.needs_side(side) and samples is None:
                raise Unavailable(missing)
            if f"{side}.labels" in p.needs and samples is not None and samples.labels is None:
                raise Unavailable(f"{WORDS[side]} no labels")
        if self.reference is not None and p.needs_side("real") and _moments_alone(self.reference):
            self.require_moments(request, self.reference)
        if self.reference is not None and p.by_moments and p.num is not None and "drawn" in self.reference.origin:
            raise Unavailable("this protocol is against the whole reference, and a draw of it was asked for")
        if p.num is not None and of is not None and not real and len(of.images) != p.num:
            raise Unavailable(
                f"this protocol is of {p.num:,} samples, and there are {len(of.images):,}: give --num {p.num}"
            )
        return sets

    # --- Measuring ---

    def measure(self, request: Request, of: Samples | None, real: bool = False) -> list[Measurement]:
        """Return the values of one protocol with `of` as the generated images, or the reason why there are none."""
        p = request.protocol
        extractor = self.store.extractors.get(request.extractor) if request.extractor else None
        base = Measurement(
            metric_name(request, extractor), protocol_id(p), p.direction,
            extractor=extractor.describe() if extractor else None, source=p.source,
        )
        try:
            if (id(request), real) in self.failed:
                raise Unavailable(self.failed[id(request), real])
            inputs = self.inputs(request, of, real)
            with full_float32(), user_code():
                values = installed.require_values(p.compute(inputs)) if distributed.rank() == 0 else []
            if not all(math.isfinite(v.value) for v in values):
                raise Unavailable("the formula gave no finite number")
        except (Unavailable, UserError) as reason:
            return [replace(base, reason=str(reason))]
        except (Exception, SystemExit) as error:  # of one formula, which must not take the others with it
            return [replace(base, reason=installed.failure(p, error))]
        if extractor is not None and extractor.report:
            base = replace(base, extractor={**extractor.describe(), "report": dict(extractor.report)})
        # There may be fewer real images than the protocol takes samples: the row is kept and says so.
        n = len(of.images) if of is not None else 0
        fewer = (f"{n:,} images, not {p.num:,}",) if real and p.num is not None and n != p.num else ()
        return [
            replace(base, metric=base.metric + v.suffix, value=v.value, n_real=v.n_real, n_fake=v.n_fake,
                    details=v.details, warnings=(*fewer, *v.warnings),
                    uncertainty=None if v.uncertainty is None else vars(v.uncertainty))
            for v in values
        ]

    def inputs(self, request: Request, of: Samples | None, real: bool) -> Inputs:
        """Collect what the protocol names in `needs`. Raises Unavailable for whatever does not exist."""
        p, sets = request.protocol, self.sets(request, of, real)
        sides = {
            side: self.side(request, side, samples) if samples is not None and p.needs_side(side) else self.empty(sets)
            for side, samples in sets.items()
        }
        # Protocols that see the same two sets through the same network share what they compute from both.
        return self.as_inputs(request, sides, self.shared.setdefault((id(of), request.extractor), {}))

    def as_inputs(self, request: Request, sides: dict[str, Side], shared: dict[str, object]) -> Inputs:
        p, name = request.protocol, request.extractor
        extractor = self.store.extractors.get(name or "")
        return Inputs(
            sides["real"], sides["fake"], sides["held_out"] if p.needs_side("held_out") else None,
            torch.Generator().manual_seed(self.seed), shared, self.model,
            self.store.embed(name) if name is not None and "embed" in p.needs else None, self.fit,
            classes_of_logits=() if extractor is None else extractor.classes,
            class_of_label=self.class_maps.get(name or ""),
        )

    def empty(self, sets: dict[str, Samples | None]) -> Side:
        """A side that the protocol does not look at."""
        some = next((s for s in sets.values() if s is not None), None)
        return Side(torch.zeros(0, *(some.images.shape[1:] if some is not None else (1, 1, 1)), dtype=torch.uint8))

    def fit(self, images: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
        """Train a classifier on these images, once for all protocols and rows that ask for it."""
        key = (id(images), id(labels))
        if key not in self.classifiers:
            self.classifiers[key] = fit_classifier(images, labels)
        return self.classifiers[key]

    def side(self, request: Request, which: str, samples: Samples) -> Side:
        """Return one set with the features and logits that the protocol names."""
        p, name, store = request.protocol, request.extractor, self.store
        if which == "real" and _moments_alone(samples):
            return self.by_moments(samples)
        out, logits_at = Features(torch.empty(0)), {}
        kept: MutableMapping[str, dict[str, Tensor]] = {}
        some = None
        if name is not None and {f"{which}.features", f"{which}.logits"} & p.needs:
            kept = store.kept(samples, name)
            if store.has_moments_alone(samples, name):
                some = kept["some/1"]["rows"]
            else:
                out = store.features(samples, name)
            if which == "fake" and p.resolutions and out.logits is not None:
                for r in self.resolutions or p.resolutions(min(samples.images.shape[2:])):
                    at = store.features(samples, name, r).logits
                    assert at is not None
                    logits_at[r] = at
        features = out.features if len(out.features) else None
        images = samples.images if p.rows == "stream" else store.images(samples)
        return Side(
            images, samples.labels, features, out.logits, logits_at, kept, some=some, classes=samples.classes,
        )

    def require_moments(self, request: Request, samples: Samples) -> None:
        """Raise Unavailable unless moments of features can be the reference of a protocol."""
        about = samples.origin.get("moments", {})
        if not request.protocol.by_moments:
            raise Unavailable("the reference is a file of moments: it serves Fréchet distances alone")
        extractor = self.store.extractors[request.extractor or ""]
        name, sha256 = about.get("extractor") or "inception-v3", about.get("sha256")
        if name != extractor.name or (sha256 or "") not in ("", extractor.sha256):
            raise Unavailable(f"the reference is a file of moments over {name}, not over {extractor.title}")
        if not sha256 and not extractor.official:  # others write no hash, and mean the published weights
            raise Unavailable(f"the reference is a file of moments over the published {name}, not {extractor.title}")

    def by_moments(self, samples: Samples) -> Side:
        """Return a reference that is a file of moments: mean and covariance of features, without images."""
        moments, about = samples.moments or {}, samples.origin.get("moments", {})
        kept = {"n": torch.tensor(int(about.get("n") or 0)), "mean": moments["mu"], "cov": moments["sigma"]}
        return Side(samples.images, kept={"moments/1": kept})

    def require_model(self, p: Protocol) -> None:
        """Raise Unavailable if the protocol asks the model for a capability that it does not have."""
        for need in sorted(n.removeprefix("model.") for n in p.needs if n.startswith("model.")):
            if self.model is None:
                raise Unavailable("this is measured of a model, not of images: give --model and --ckpt")
            if getattr(self.model, need) is None:
                raise Unavailable(f"the model '{self.model.name}' {LACKS[need]}")


def _moments_alone(samples: Samples) -> bool:
    """Return True for a reference that is a file of moments, without images."""
    return samples.moments is not None and not len(samples.images)


def metric_name(request: Request, extractor: FeatureExtractor | None) -> str:
    """Return the name that the value may carry: a published name needs the published weights."""
    p = request.protocol
    if extractor is None:  # the protocol is over none, or its network is missing
        if p.published and p.published[1] == request.extractor:
            return p.published[0]
        return f"{p.stem}_{request.extractor}" if request.extractor else p.stem
    if p.published and p.published[1] == extractor.name and extractor.official:
        return p.published[0]
    return f"{p.stem}_{extractor.title}"


def protocol_id(p: Protocol) -> str:
    """Return stem, version and summary, e.g. 'fd/1: Fréchet distance of features'."""
    return f"{p.stem}/{p.version}: {p.summary}"
