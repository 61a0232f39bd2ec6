"""Evaluation: one pass an extractor over each set, shared by all metrics; then the metrics.

Names: `fd_mnist-cnn` is a protocol's stem and an extractor; `fid` is a published protocol; `discriminability` alone
takes the default extractor. With other weights than the published ones `fid` becomes `fd_inception-v3@<hash>`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ganbench import registry
from ganbench.errors import UserError, did_you_mean
from ganbench.features import FeatureExtractor, extract
from ganbench.metrics import Inputs, Protocol, Side, Unavailable
from ganbench.results import Measurement
from ganbench.sources import Samples, take

Progress = Callable[[str, int], Callable[[int], None]]  # (what, total) -> advance(n)


@dataclass(frozen=True)
class Request:
    """One metric that was asked for: its protocol, and the name of the extractor where it needs one."""

    name: str
    protocol: Protocol
    extractor: str | None


def protocols() -> dict[str, Protocol]:
    """All installed protocols, by stem."""
    return {p.stem: p for entry in registry.names("metrics") for p in registry.load("metrics", entry)}


def metric_names() -> list[str]:
    """What `--metrics` understands: stems without an extractor, `stem_<extractor>`, and the published names."""
    found = []
    for stem, p in protocols().items():
        found += [f"{stem}_<extractor>"] if p.needs_extractor else [stem]
        found += [p.published[0]] if p.published else []
    return found


def parse_metrics(metrics: list[str], default_extractor: str) -> list[Request]:
    """Requests from the names on the command line or in a recipe. Raises UserError for an unknown or repeated one."""
    known = protocols()
    published = {p.published[0]: p for p in known.values() if p.published}
    extractors = registry.names("extractors")
    requests: list[Request] = []
    for name in metrics:
        if name in published:
            protocol = published[name]
            assert protocol.published
            request = Request(name, protocol, protocol.published[1])
        elif name in known:
            request = Request(name, known[name], default_extractor if known[name].needs_extractor else None)
        else:
            stem, _, extractor = name.partition("_")
            match = next((s for s in sorted(known, key=len, reverse=True) if name.startswith(s + "_")), None)
            if match is None or not known[match].needs_extractor:
                choices = [*published, *known]
                raise UserError(f"unknown metric '{name}'.{did_you_mean(stem if stem in known else name, choices)}")
            extractor = name[len(match) + 1 :]
            if extractor not in extractors:
                raise UserError(
                    f"metric '{name}': unknown extractor '{extractor}'.{did_you_mean(extractor, extractors)}"
                )
            request = Request(name, known[match], extractor)
        if any(request.protocol is r.protocol and request.extractor == r.extractor for r in requests):
            raise UserError(f"the metric '{name}' is asked for twice.")
        requests.append(request)
    return requests


def reduce(images: Tensor, side: int) -> Tensor:
    """uint8 images reduced to side x side pixels (bilinear, antialiased, rounded)."""
    small = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True, align_corners=False)
    return small.round().clamp(0, 255).to(torch.uint8)


def evaluate(
    requests: list[Request], extractors: dict[str, FeatureExtractor], fake: Samples, reference: Samples | None,
    held_out: Samples | None, device: torch.device, batch_size: int | None = None, seed: int = 0,
    resolutions: tuple[int, ...] | None = None, progress: Progress = lambda what, total: lambda n: None,
) -> tuple[list[Measurement], list[Measurement]]:  # fmt: skip
    """Measure everything asked for: (of the fake images, of the real ones that make the table's row of real data).

    extractors: by name, at least those the requests name. held_out: real images that are not in the reference; a draw
    of as many as there are fakes is measured in their place.
    batch_size: of the extractors, 16 on the CPU (its cache is small) and 256 elsewhere where it is None.
    resolutions: instead of the protocols' own lower resolutions. Raises UserError where channels differ between the
    sets.
    """
    for other, what in ((reference, "the reference"), (held_out, "the held-out images")):
        if other is not None and other.images.shape[1] != fake.images.shape[1]:
            a, b = fake.images.shape[1], other.images.shape[1]
            raise UserError(
                f"the images have {a} channel{'s' * (a > 1)} and {what} {b}: convert one to the other's kind first."
            )
    batch_size = batch_size or (16 if device.type == "cpu" else 256)
    cache: dict[tuple[int, str, int], tuple[Tensor, Tensor | None]] = {}
    shared: dict[tuple[int, str | None], dict[str, object]] = {}
    origins = {id(s): label for s, label in ((reference, "reference"), (held_out, "held-out"), (fake, "samples")) if s}

    def run(samples: Samples, name: str, side: int) -> tuple[Tensor, Tensor | None]:
        """Features and logits of a set (reduced to `side`, or as it is for 0): computed once."""
        key = (id(samples), name, side)
        if key not in cache:
            images = reduce(samples.images, side) if side else samples.images
            what = f"{name}, {origins[id(samples)]}" + (f" at {side} px" if side else "")
            out = extract(extractors[name], images, batch_size, device, progress(what, len(images)))
            cache[key] = (out.features, out.logits)
        return cache[key]

    def side_of(samples: Samples, request: Request, reduced: bool) -> Side:
        p, features, logits, logits_at = request.protocol, None, None, {}
        if request.extractor is not None:
            features, logits = run(samples, request.extractor, 0)
            if reduced and p.resolutions and logits is not None:
                for r in resolutions or p.resolutions(min(samples.images.shape[2:])):
                    logits_at[r] = run(samples, request.extractor, r)[1]
        return Side(
            samples.images, samples.labels, features, logits, {r: v for r, v in logits_at.items() if v is not None}
        )

    def measure(request: Request, of: Samples) -> list[Measurement]:
        p = request.protocol
        extractor = extractors[request.extractor] if request.extractor else None
        name = metric_name(request, extractor)
        base = Measurement(
            name, protocol_id(p), p.direction, extractor=extractor.describe() if extractor else None, source=p.source
        )
        try:
            if reference is None and "features" in p.needs:
                raise Unavailable("there is no reference: give --reference")
            if p.num is not None and of is fake and len(of.images) != p.num:
                raise Unavailable(
                    f"this protocol is of {p.num:,} samples, and there are {len(of.images):,}: give --num {p.num}"
                )
            if "labels" in p.needs and of.labels is None:
                raise Unavailable("the images have no labels")
            needs_real = "features" in p.needs
            empty = Side(of.images[:0])
            fake_side = side_of(of, request, reduced=True)
            real_side = side_of(reference, request, False) if needs_real and reference else empty
            held = Side(held_out.images, held_out.labels) if held_out else None
            between = shared.setdefault((id(of), request.extractor), {})
            inputs = Inputs(real_side, fake_side, held, torch.Generator().manual_seed(seed), between)
            values = p.compute(inputs)
            if not all(math.isfinite(v.value) for v in values):
                raise Unavailable("the formula gave no finite number")
        except Unavailable as reason:
            return [replace(base, reason=str(reason))]
        # Real images may be fewer than the protocol's samples; the row stays, and says so.
        fewer = (f"{len(of.images):,} images, not {p.num:,}",) if p.num is not None and len(of.images) != p.num else ()
        return [
            replace(base, metric=name + v.suffix, value=v.value, n_real=v.n_real, n_fake=v.n_fake, details=v.details,
                     warnings=(*fewer, *v.warnings), uncertainty=None if v.uncertainty is None else vars(v.uncertainty))
            for v in values
        ]  # fmt: skip

    # As many real images as generated ones, where there are more: most metrics can only be compared at equal counts.
    unseen = held_out and take(held_out, min(len(held_out.images), len(fake.images)), "the held-out images", seed)
    origins[id(unseen)] = "held-out"
    measurements, real = [], []
    for request in requests:
        measurements += measure(request, fake)
        player = reference if request.protocol.real_row == "reference" else unseen
        if player is not None:
            real += measure(request, player)
    return measurements, real


def metric_name(request: Request, extractor: FeatureExtractor | None) -> str:
    """The name that the value may carry: a published one only over the published weights."""
    p = request.protocol
    if extractor is None:
        return p.stem
    if p.published and p.published[1] == extractor.name and extractor.official:
        return p.published[0]
    return f"{p.stem}_{extractor.title}"


def protocol_id(p: Protocol) -> str:
    """Stem, version and what is fixed, e.g. 'fd/1: Fréchet distance of features'."""
    return f"{p.stem}/{p.version}: {p.summary}"
