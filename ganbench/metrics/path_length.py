"""Perceptual path length: how far the image moves for a small step along a path between two latents.

    PPL = E[ d( G(slerp(z1, z2; t)), G(slerp(z1, z2; t + eps)) ) / eps^2 ],   eps = 1e-4

Karras et al. (2019), "A Style-Based Generator Architecture for Generative Adversarial Networks", arXiv:1812.04948,
Section 4.1, in Z. `ppl` takes t uniform in (0, 1) ('full'), `ppl_end` t = 0, as the official code does for 'end': by
symmetry the same as t in {0, 1}. As there, distances below the 1st and above the 99th percentile are left out. Range
[0, inf), lower is better: a smooth generator moves evenly.

d is the squared Euclidean distance of an extractor's features: over LPIPS's own network and weights that is LPIPS.
10,000 paths, where the paper has 100,000; images are neither cropped nor reduced. Along the path directions go by
slerp and lengths linearly: for a generator that normalises z, as the paper's does, that is the official path, and for
others it does not leave the shell where the prior lives. (A uniform prior has corners; paths may leave its cube.)
With classes, each path has one, drawn uniformly. Agrees with torch-fidelity's PPL for the same latents.

Images are never rounded to levels: that alone would turn 31 into 1147. Yet they are float32, whose rounding r adds
r^2 / eps^2 to each distance. The share that it has is measured on some of the paths, by a step of 4 eps, where it is a
sixteenth (curvature shows there too, by some 0.3 %): it is warned of from 1 % on, and above 10 % there is no value. So
much comes of TF32, of an extractor that rounds, of a generator with noise of its own, or of one that hardly moves. For
a trained AC-GAN of 28 x 28 and the features of a small CNN the value is within 1e-4 of the one in float64.

The standard error is that of a trimmed mean, from the Winsorised variance, over the paths.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Uncertainty, Value

PATHS = 10_000
EPSILON = 1e-4
TRIM = 0.01  # of the distances at either end
BATCH = 500  # paths at a time: two images each
CHECKED, WIDER = 500, 4  # paths on which rounding is measured, and how much longer the step is there
WARN, REFUSE = 0.01, 0.1  # shares of the value that rounding may have


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """From `a` (t = 0) to `b` (t = 1) along the great circle, the length going linearly: N x d, N x d, N -> float64.

    A straight line where the two are parallel or one is 0: the great circle is not unique.
    """
    a, b, t = a.double(), b.double(), t.double()[:, None]
    length_a, length_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    unit_a, unit_b = a / length_a.clamp(min=1e-300), b / length_b.clamp(min=1e-300)
    omega = (unit_a * unit_b).sum(1, keepdim=True).clamp(-1, 1).acos()
    direction = (((1 - t) * omega).sin() * unit_a + (t * omega).sin() * unit_b) / omega.sin()
    circle = (omega.sin() > 1e-7) & (length_a * length_b > 0)
    return torch.where(circle, direction * (length_a + t * (length_b - length_a)), a + t * (b - a))


def path_lengths(
    generate: Callable[[Tensor, Tensor | None], Tensor], embed: Callable[[Tensor], tuple[Tensor, Tensor | None]],
    a: Tensor, b: Tensor, t: Tensor, labels: Tensor | None = None, epsilon: float = EPSILON,
) -> Tensor:
    """Squared distance of features over epsilon^2, for one step on each path: float64 N.

    generate: float32 latents n x d and labels to images in [-1, 1]. embed: float32 images in 0..255 to features n x k
    (and logits). a, b: the paths' ends, N x d. t: where the step begins, float64 N. labels: int64 N, or None.
    """
    parts = []
    for i in range(0, len(a), BATCH):
        rows = slice(i, i + BATCH)
        steps = [slerp(a[rows], b[rows], t[rows] + e).float() for e in (0.0, epsilon)]
        y = None if labels is None else labels[rows].repeat(2)
        images = (generate(torch.cat(steps), y) + 1) * 127.5
        before, after = embed(images)[0].double().chunk(2)
        parts.append((after - before).square().sum(1) / epsilon**2)
    return torch.cat(parts)


def trimmed(x: Tensor) -> Tensor:
    """Which of N values lie from their 1st to their 99th percentile, the nearest value outwards: bool N."""
    low = torch.quantile(x, TRIM, interpolation="lower")
    return (x >= low) & (x <= torch.quantile(x, 1 - TRIM, interpolation="higher"))


def perceptual_path_length(distances: Tensor) -> tuple[float, float]:
    """Mean of N distances, float64, less those beyond the 1st and 99th percentile; and its standard error."""
    kept = distances[trimmed(distances)]
    winsorised = distances.clamp(kept.min(), kept.max())
    return kept.mean().item(), (winsorised.std() / (1 - 2 * TRIM) / math.sqrt(len(distances))).item()


def _compute(inputs: Inputs, end: bool) -> list[Value]:
    model, generator = inputs.model, inputs.generator
    assert model
    assert model.generate
    assert model.sample_latent
    assert inputs.embed
    a, b = model.sample_latent(PATHS, generator), model.sample_latent(PATHS, generator)
    t = torch.rand(PATHS, generator=generator, dtype=torch.float64) * (not end)
    y = torch.randint(model.num_classes, (PATHS,), generator=generator) if model.num_classes else None
    distances = path_lengths(model.generate, inputs.embed, a, b, t, y)
    if not torch.isfinite(distances).all():
        raise Unavailable("some features of generated images are not finite: the generator or the extractor is broken")
    value, error = perceptual_path_length(distances)

    some = slice(CHECKED)
    wider = path_lengths(
        model.generate, inputs.embed, a[some], b[some], t[some], None if y is None else y[some], WIDER * EPSILON
    )
    ordinary = trimmed(distances)[some]
    here, there = distances[some][ordinary].mean().item(), wider[ordinary].mean().item()
    rounding = max(here - there, 0.0) / (1 - WIDER**-2) / here if here > 0 else 0.0
    if rounding > REFUSE:
        raise Unavailable(
            f"{rounding:.0%} of the path length is rounding or noise: images, or what the extractor makes of them, are "
            f"not smooth in the latent at steps of {EPSILON}"
        )
    warnings = (f"{rounding:.1%} of it is rounding, which a step this small shows",) if rounding > WARN else ()
    uncertainty = Uncertainty(error, "standard error", f"{PATHS:,} paths (trimmed mean)")
    details = {"paths": PATHS, "epsilon": EPSILON, "rounding": float(f"{rounding:.2g}")}
    return [Value(value, uncertainty, 0, PATHS, details=details, warnings=warnings)]


def _protocol(end: bool) -> Protocol:
    return Protocol(
        stem="ppl_end" if end else "ppl",
        version=1,
        summary=f"Perceptual path length in Z, {'at the ends of' if end else 'along'} {PATHS:,} paths",
        source="Karras et al. 2019, arXiv:1812.04948, Sec. 4.1",
        direction="lower",
        compute=partial(_compute, end=end),
        needs=frozenset({"model.generate", "embed"}),
    )


PROTOCOLS = [_protocol(end=False), _protocol(end=True)]
