"""`ganbench statistics`: the moments of a set's features in a file, to measure Fréchet distances without the images.

The file is an npz as pytorch-fid and guided-diffusion (ADM) read it: `mu` (d) and `sigma` (d x d, N - 1), float64.
With them go `n`, how many images; `extractor`, the network's name; and `sha256`, of its weights: a distance over
another network or of too few images can then be refused. Over Inception-v3 there are also `mu_s` and `sigma_s`, of
the spatial features of sFID, without which ADM's evaluator does not take the others; and it reads images too
(`with_images`): `arr_0`, uint8 N x H x W x C, and `arr_1`, their labels. `features` are float32 N x d.

One pass over the images makes all of it, batch by batch: N does not change the memory, unless features are kept. One
machine can make one shard of a set (see `shards`).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ganbench import features
from ganbench.base import memory
from ganbench.base.device import choose_device
from ganbench.base.errors import UserError
from ganbench.base.progress import Reporter
from ganbench.data import resizing, sources
from ganbench.data.sources import Samples
from ganbench.data.streams import batches
from ganbench.evaluation import npz, shards
from ganbench.evaluation.inputs import make_extractor
from ganbench.evaluation.listing import open_listed
from ganbench.evaluation.shards import Part, Shard
from ganbench.features import FeatureExtractor
from ganbench.metrics.frechet import MomentsAccumulator


@dataclass(frozen=True)
class Request:
    """What `ganbench statistics` is asked for.

    source, num, seed: images, as `sources.open_source` takes them. extractor, weights: the network, and its file
    instead of the published one. out: the npz. with_images, with_features: keep them in the file too.
    shard: measure this one alone, and write a part. force: make a part that is there again.
    batch_size: None leaves it to the extractor. device: by name; None: the accelerator if there is one.
    resize, channels, alpha, image_labels, latent, prior, classes, generator_batch: how to read the source, in the words
    of the command line.
    """

    source: str
    out: Path
    extractor: str = "inception-v3"
    weights: Path | None = None
    with_images: bool = False
    with_features: bool = False
    shard: Shard | None = None
    force: bool = False
    num: int | None = None
    seed: int = 0
    batch_size: int | None = None
    device: str | None = None
    resize: str | None = None
    channels: str | None = None
    alpha: str | None = None
    image_labels: Path | None = None
    latent: str | None = None
    prior: str | None = None
    classes: int | None = None
    generator_batch: int | None = None

    def options(self, device: torch.device, reporter: Reporter) -> sources.Options:
        """Return how to read the source. Raises UserError for an option that cannot be read."""
        return sources.Options(
            labels_file=self.image_labels, resize=None if self.resize is None else resizing.parse(self.resize),
            latent=None if self.latent is None else sources.parse_latent(self.latent), prior=self.prior,
            classes=self.classes, device=device, progress=reporter.progress, say=reporter.say, channels=self.channels,
            alpha=self.alpha, generator_batch=self.generator_batch,
        )


def run(request: Request, reporter: Reporter) -> None:
    """Write the file of moments, or the part file of a shard, that is asked for.

    A part that is there and finished is not made again.
    Raises UserError for a source or an option that cannot be used, fewer than two images, weights that cannot be had,
    too little memory, and features that are not finite.
    """
    device = choose_device(request.device)
    samples = open_listed(request.source, request.num, request.seed, request.options(device, reporter))
    total = len(samples.images)
    if total < 2:
        raise UserError(f"'{request.source}' is one image: a covariance needs at least two.")
    rows = request.shard.rows(total) if request.shard else range(total)
    networks = {
        name: make_extractor(name, request.weights)
        for name in shards.networks_of(request.extractor)
    }
    if request.shard:
        part = describe(samples, request.shard, networks, request.with_features)
        if not request.force:
            finished, remark = shards.is_finished(request.out, part)
            if remark:
                reporter.say(remark)
            if finished:
                return
    where = f"shard {request.shard} of {request.source}" if request.shard else request.source
    found = measure(samples, rows, networks, request.batch_size, device, request.with_features, where, reporter)
    if request.shard:
        shards.write(request.out, part, found.moments, found.features)
        return
    arrays = shards.arrays_of(found.moments, request.extractor, networks[request.extractor].sha256)
    if found.features is not None:
        arrays["features"] = found.features.numpy()
    if request.with_images:
        n, c, h, w = samples.images.shape
        arrays["arr_0"] = npz.Stream((n, h, w, c), np.dtype(np.uint8), _channels_last(samples))
        if samples.labels is not None:
            arrays["arr_1"] = samples.labels.numpy()
    npz.write(request.out, arrays)


def describe(
    samples: Samples, shard: Shard, networks: dict[str, FeatureExtractor], with_features: bool
) -> Part:
    """Return what the part file of a shard is a part of. networks: by name, that of the features first."""
    images = {k: v for k, v in samples.origin.items() if k not in ("name", "left_out", "labels_from")}
    images["shape"] = list(samples.images.shape[1:])
    about = {name: {"version": network.version, "sha256": network.sha256} for name, network in networks.items()}
    name = str(samples.origin.get("name", ""))
    return Part(shard, len(samples.images), name, images, next(iter(networks)), about, with_features)


@dataclass(frozen=True)
class Found:
    """What a pass over some rows gives: moments by extractor, and the features of the first one, float32, if kept."""

    moments: dict[str, MomentsAccumulator]
    features: Tensor | None


def _features(network: FeatureExtractor, batch: Tensor, device: torch.device) -> Tensor:
    """Features, float32 N x d. Raises UserError if they are of another shape or type, or not finite."""
    try:
        return features.embed(network, batch, device).features
    except (TypeError, ValueError) as error:
        raise UserError(f"{error}: the extractor or the images are broken.") from error


def measure(
    samples: Samples, rows: range, networks: dict[str, FeatureExtractor], batch_size: int | None, device: torch.device,
    keep: bool, what: str, reporter: Reporter,
) -> Found:
    """Run networks over some rows of a set, in one pass, and return the moments of their features.

    keep: keep the features of the first network too. what: the name of these rows, for messages.
    Raises UserError if the moments or features do not fit into memory, before any is made, and if a feature is not
    finite.
    """
    networks = {name: network.to(device) for name, network in networks.items()}
    first = next(iter(networks))
    one = next(batches(samples.images, 1, slice(rows.start, rows.start + 1)))
    widths = [_features(network, one, device).shape[1] for network in networks.values()]
    shards.require_memory(widths, what)
    if keep:
        memory.require(4 * len(rows) * widths[0], f"{what}: features of {len(rows):,} images")
    kept = torch.empty(len(rows), widths[0]) if keep else None
    sizes = {name: batch_size or net.batch_size(device, samples.images.shape) for name, net in networks.items()}
    moments = {name: MomentsAccumulator() for name in networks}
    advance: Callable[[int], None] = reporter.progress(f"{' + '.join(networks)}, {what}", len(rows))
    done = 0
    whole = len(rows) == len(samples.images)
    for batch in batches(samples.images, math.lcm(*sizes.values()), None if whole else slice(rows.start, rows.stop)):
        for name, network in networks.items():
            for at, some in enumerate(batch.split(sizes[name])):
                out = _features(network, some, device)
                moments[name].update(out)
                if kept is not None and name == first:
                    start = done + at * sizes[name]
                    kept[start : start + len(out)] = out
        done += len(batch)
        advance(len(batch))
    return Found(moments, kept)


def _channels_last(samples: Samples) -> Iterator[npz.Array]:
    for batch in batches(samples.images, 256):
        yield batch.permute(0, 2, 3, 1).contiguous().numpy()
