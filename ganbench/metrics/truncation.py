"""The truncation curve: fidelity against variety for latents that are truncated more and more.

    z ~ p(z), each element with |z_i| > threshold is drawn again until |z_i| <= threshold

Source: Brock et al. (2018), "Large Scale GAN Training for High Fidelity Natural Image Synthesis", arXiv:1809.11096,
Section 3.1. A smaller threshold raises the Inception Score; the Fréchet distance first falls, then rises as variety is
lost. `truncation_fd` and `truncation_score` are these two metrics (Heusel et al., 2017; Salimans et al., 2016) of 5,000
samples: at each threshold and, without a suffix, untruncated. BigGAN's curves have 50,000 samples. Range [0, inf),
lower is better, and [1, K], higher is better. Many generators produce artefacts with truncation; the paper's generators
were trained with orthogonal regularisation to allow it.

The elements of z must be independent and continuous. A threshold has no value if no draw exceeds it (uniform prior) or
if almost every draw does. Classes are drawn uniformly. Uncertainties are those of the two metrics.
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
RAREST = 1e-3  # smallest usable share of draws within the threshold; below it, drawing again takes too long
DISTINCT = 100  # an element is continuous if it has at least so many distinct values in 5,000 draws

_FD = next(p for p in FRECHET if p.stem == "fd")
_SCORE = next(p for p in SCORE if p.stem == "score")


@dataclass(frozen=True)
class Point:
    """Samples at one threshold (None: untruncated): features N x d, and logits N x K of an extractor with classes."""

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
    """Return n latents with all elements in [-threshold, threshold], n x d: elements outside are drawn again.

    Does not return if the prior has no mass in this interval.
    """
    z = sample_latent(n, generator).clone()
    while len(rows := (z.abs() > threshold).any(1).nonzero()[:, 0]):
        fresh = sample_latent(len(rows), generator)
        z[rows] = torch.where(z[rows].abs() > threshold, fresh, z[rows])
    return z


def usable_thresholds(z: Tensor, thresholds: tuple[float, ...]) -> list[float]:
    """Return the thresholds that some element of N x d draws exceeds, and that each element is within often enough.

    Raises Unavailable if an element is not continuous.
    """
    distinct = z.sort(0).values.diff(dim=0).ne(0).sum(0) + 1
    if (discrete := int((distinct < min(DISTINCT, len(z))).sum())) > 0:
        raise Unavailable(
            f"{discrete} of the {z.shape[1]} elements of the latent are not continuous, and cannot be truncated"
        )
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
    """The metric of `protocol` at each point, with the samples of the point as the generated images."""
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
