"""The truncation curve: fidelity against variety as latents are drawn closer and closer to their mode.

    z ~ p(z), each element with |z_i| > threshold drawn anew until it is within

Brock et al. (2018), "Large Scale GAN Training for High Fidelity Natural Image Synthesis", arXiv:1809.11096, Section
3.1: a smaller threshold raises the Inception Score; the Fréchet distance first falls, then rises as variety is lost.
`truncation_fd` and `truncation_score` are those two metrics (Heusel et al., 2017; Salimans et al., 2016), of 5,000
samples at each threshold and, without a suffix, untruncated: BigGAN's own curves are of 50,000. Range [0, inf), lower
is better, and [1, K], higher is better. Many generators do not bear truncation and show artefacts; those of the paper
were trained with orthogonal regularisation for it.

The elements of z have to be independent and continuous. A threshold that no draw exceeds (of a uniform prior) or hardly
any draw keeps to has no value. Classes are drawn uniformly. Uncertainties are those of the two metrics.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Side, Unavailable, Value
from ganbench.metrics.frechet import PROTOCOLS as FRECHET
from ganbench.metrics.inception_score import PROTOCOLS as SCORE

THRESHOLDS = (2.0, 1.5, 1.0, 0.75, 0.5, 0.25, 0.1)
SAMPLES = 5_000
BATCH = 500
RAREST = 1e-3  # share of draws within the threshold, below which there is no point in waiting for them
DISTINCT = 100  # values that a continuous element takes at least, in 5,000 draws

_FD = next(p for p in FRECHET if p.stem == "fd")
_SCORE = next(p for p in SCORE if p.stem == "score")


@dataclass(frozen=True)
class Point:
    """Samples at one threshold (None: untruncated): features N x d, and logits N x K where there are classes."""

    threshold: float | None
    features: Tensor
    logits: Tensor | None

    @property
    def suffix(self) -> str:
        return "" if self.threshold is None else f"@{self.threshold}"

    def __len__(self) -> int:
        return len(self.features)


def truncated_latents(
    sample_latent: Callable[[int, torch.Generator], Tensor], n: int, threshold: float, generator: torch.Generator
) -> Tensor:
    """n latents of which no element is further than `threshold` from 0: those that are, are drawn anew. n x d.

    Does not return where the prior never comes so near.
    """
    z = sample_latent(n, generator).clone()
    while len(rows := (z.abs() > threshold).any(1).nonzero()[:, 0]):
        fresh = sample_latent(len(rows), generator)
        z[rows] = torch.where(z[rows].abs() > threshold, fresh, z[rows])
    return z


def usable_thresholds(z: Tensor, thresholds: tuple[float, ...]) -> list[float]:
    """Those that some element of N x d draws exceeds, and that each element keeps to often enough.

    Raises Unavailable where an element is not continuous.
    """
    distinct = z.sort(0).values.diff(dim=0).ne(0).sum(0) + 1
    if (codes := int((distinct < min(DISTINCT, len(z))).sum())) > 0:
        raise Unavailable(f"{codes} of the {z.shape[1]} elements of the latent are not continuous: no truncation")
    within = {t: (z.abs() <= t).double().mean(0) for t in thresholds}
    return [t for t, share in within.items() if share.min() >= RAREST and share.min() < 1]


def _points(inputs: Inputs) -> list[Point]:
    model, generator, embed = inputs.model, inputs.generator, inputs.embed
    assert model
    assert model.generate
    assert model.sample_latent
    assert embed
    sample_latent, generate = model.sample_latent, model.generate

    def point(z: Tensor, threshold: float | None) -> Point:
        outputs = []
        for rows in z.split(BATCH):
            y = torch.randint(model.num_classes, (len(rows),), generator=generator) if model.num_classes else None
            images = generate(rows, y)
            if not torch.isfinite(images).all():
                raise Unavailable("some generated images are not finite: the model is broken")
            outputs.append(embed((images * 127.5 + 128).clamp(0, 255).to(torch.uint8)))
        logits = [x for _, x in outputs if x is not None]
        return Point(threshold, torch.cat([x for x, _ in outputs]), torch.cat(logits) if logits else None)

    z = sample_latent(SAMPLES, generator)
    thresholds = usable_thresholds(z, THRESHOLDS)
    truncated = (truncated_latents(sample_latent, SAMPLES, t, generator) for t in thresholds)
    return [point(z, None), *map(point, truncated, thresholds)]


def _curve(inputs: Inputs, protocol: Protocol) -> list[Value]:
    """The metric of `protocol` at each point, as if the samples there were the generated images."""
    points: list[Point] = inputs.share("truncated samples", lambda: _points(inputs))
    values = []
    for p in points:
        side = Side(torch.zeros(len(p), 1, 1, 1, dtype=torch.uint8), features=p.features, logits=p.logits)
        [value] = protocol.compute(replace(inputs, fake=side, shared={}))
        details = {**value.details, "threshold": p.threshold, "samples": len(p)}
        values.append(replace(value, suffix=p.suffix, details=details))
    return values


def _distances(inputs: Inputs) -> list[Value]:
    return _curve(inputs, _FD)


def _scores(inputs: Inputs) -> list[Value]:
    return _curve(inputs, _SCORE)


PROTOCOLS = [
    Protocol(
        stem="truncation_fd",
        version=1,
        summary=f"Fréchet distance of features of {SAMPLES:,} samples, untruncated and at each threshold",
        source="Brock et al. 2018, arXiv:1809.11096, Sec. 3.1",
        direction="lower",
        compute=_distances,
        needs=frozenset({"model.generate", "embed", "real.features"}),
    ),
    Protocol(
        stem="truncation_score",
        version=1,
        summary=f"Inception Score of {SAMPLES:,} samples, 10 splits, untruncated and at each threshold",
        source="Brock et al. 2018, arXiv:1809.11096, Sec. 3.1",
        direction="higher",
        compute=_scores,
        needs=frozenset({"model.generate", "embed"}),
    ),
]
