"""Perceptual path length: how much the image changes for a small step along a path between two latents.

    PPL = E[ d( G(slerp(z1, z2; t)), G(slerp(z1, z2; t + eps)) ) / eps^2 ],   eps = 1e-4

Source: Karras et al. (2019), "A Style-Based Generator Architecture for Generative Adversarial Networks",
arXiv:1812.04948, Section 4.1. `ppl` draws t uniformly from (0, 1) (the paper's 'full'). `ppl_end` uses t = 0,
like the official code for 'end'; by symmetry this equals t in {0, 1}. As in the official code, distances below the 1st
and above the 99th percentile are excluded. Range [0, inf), lower is better: a smooth generator changes evenly.

d is the squared Euclidean distance of an extractor's features; with the network and weights of LPIPS it is LPIPS. There
are 10,000 paths (100,000 in the paper), and images are neither cropped nor reduced. Along a path the direction follows
slerp, and the length changes linearly. If the generator normalises z, as in the paper, this is the official path. For
other generators it stays in the shell where the prior has its mass. (The paths of a uniform prior can leave its cube.)
A conditional generator gets one class for each path, drawn uniformly. If the model names other latent spaces than Z,
there is a value for each: `@w` is StyleGAN's W, where paths are straight lines between the images w of the same z, and
noise of the generator's own is fixed. The value in Z agrees with torch-fidelity's PPL for
the same latents.

Images are never rounded to grey levels: rounding alone would turn a value of 31 into 1147. They are float32, whose
rounding r still adds r^2 / eps^2 to each distance. The share of rounding is measured on some of the paths with a step
of 4 eps, where it is 16 times smaller (curvature changes this estimate by about 0.3 %). Above 1 % there is a warning,
above 10 % no value. Such a large share is caused by TF32, by an extractor that rounds, by a generator with its own
noise, or by a generator that hardly changes. For a trained AC-GAN of 28 x 28 pixels and the features of a small CNN,
the value is within 1e-4 of the value in float64.

The standard error is that of a trimmed mean over the paths, from the Winsorised variance.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Space, Unavailable, Value, known, require_rows, require_tensor

PATHS = 10_000
EPSILON = 1e-4
TRIM = 0.01  # share of the distances that is excluded at each end
BATCH = 500  # paths at a time, with two images each
CHECKED, WIDER = 500, 4  # number of paths on which rounding is measured, and factor of the step there
WARN, REFUSE = 0.01, 0.1  # shares of rounding in the value above which there is a warning, and no value


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Interpolate from `a` (t = 0) to `b` (t = 1): the direction follows the great circle, the length is linear.

    a, b: N x d latents. t: N. Returns float64 N x d. If the latents are parallel or one is 0, the great circle is not
    unique, and the path is a straight line.
    """
    a, b, t = a.double(), b.double(), t.double()[:, None]
    length_a, length_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    unit_a, unit_b = a / length_a.clamp(min=1e-300), b / length_b.clamp(min=1e-300)
    omega = (unit_a * unit_b).sum(1, keepdim=True).clamp(-1, 1).acos()
    direction = (((1 - t) * omega).sin() * unit_a + (t * omega).sin() * unit_b) / omega.sin()
    circle = (omega.sin() > 1e-7) & (length_a * length_b > 0)
    return torch.where(circle, direction * (length_a + t * (length_b - length_a)), a + t * (b - a))


def lerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Interpolate from `a` (t = 0) to `b` (t = 1) on a straight line. a, b: N x d. t: N. Returns float64 N x d."""
    return torch.lerp(a.double(), b.double(), t.double()[:, None])


def path_lengths(
    generate: Callable[[Tensor, Tensor | None], Tensor], embed: Callable[[Tensor], tuple[Tensor, Tensor | None]],
    a: Tensor, b: Tensor, t: Tensor, labels: Tensor | None = None, epsilon: float = EPSILON, straight: bool = False,
) -> Tensor:
    """Return the squared distance of features over epsilon^2 for one step on each path: float64 N, at least 0.

    generate: maps float32 latents n x d and labels (int64 n or None) to images in [-1, 1]. embed: maps float32 images
    in 0..255 to (features n x k, logits). a, b: floating N x d, the ends of the paths. t: floating N in [0, 1], the
    start of each step. labels: int64 N, or None for an unconditional generator. epsilon: length of the step in t.
    straight: straight paths, as in W; otherwise the paths of `slerp`, as in Z.
    Source: Karras et al. (2019), Section 4.1.

    >>> z, t = torch.tensor([[1.0, 0.0]]), torch.zeros(1)
    >>> lengths = path_lengths(lambda z, y: z, lambda images: (images / 127.5, None), z, 3 * z, t, epsilon=0.5)
    >>> lengths.round(decimals=3)  # a straight path of length 2
    tensor([4.], dtype=torch.float64)
    """
    require_rows(a, b, names=("a", "b"))
    require_tensor(b, "b", "N x d", n=len(a))
    require_tensor(t, "t", "N", n=len(a))
    parts, path = [], lerp if straight else slerp
    for i in range(0, len(a), BATCH):
        rows = slice(i, i + BATCH)
        steps = [path(a[rows], b[rows], t[rows] + e).float() for e in (0.0, epsilon)]
        y = None if labels is None else labels[rows].repeat(2)
        images = (generate(torch.cat(steps), y) + 1) * 127.5
        before, after = embed(images)[0].double().chunk(2)
        parts.append((after - before).square().sum(1) / epsilon**2)
    return torch.cat(parts)


def trimmed(x: Tensor) -> Tensor:
    """Return True for each value from the 1st to the 99th percentile, both rounded outwards to a value: bool N."""
    low = torch.quantile(x, TRIM, interpolation="lower")
    return (x >= low) & (x <= torch.quantile(x, 1 - TRIM, interpolation="higher"))


def perceptual_path_length(distances: Tensor) -> tuple[float, float]:
    """Return the mean distance between the 1st and the 99th percentile, in [0, inf), and its standard error.

    distances: float64 N, the result of `path_lengths`.
    Source: Karras et al. (2019), Section 4.1, and its official code.

    >>> value, error = perceptual_path_length(torch.cat([torch.arange(100.0), torch.tensor([1e6])]).double())
    >>> value, round(error, 2)
    (50.0, 2.97)
    """
    require_tensor(distances, "distances", "N")
    if len(distances) < 2:
        raise ValueError(f"a mean with its error needs at least 2 paths, not {len(distances)}")
    kept = distances[trimmed(distances)]
    winsorised = distances.clamp(kept.min(), kept.max())
    return kept.mean().item(), (winsorised.std() / (1 - 2 * TRIM) / math.sqrt(len(distances))).item()


def _compute(inputs: Inputs, end: bool) -> list[Value]:
    model, generator = inputs.model, inputs.generator
    assert model
    assert model.sample_latent
    a, b = model.sample_latent(PATHS, generator), model.sample_latent(PATHS, generator)
    t = torch.rand(PATHS, generator=generator, dtype=torch.float64) * (not end)
    y = torch.randint(model.num_classes, (PATHS,), generator=generator) if model.num_classes else None
    first, *others = model.spaces
    values, reasons = [_measure(inputs, first, a, b, t, y)], []
    for space in others:
        try:
            values.append(_measure(inputs, space, space.of(a, y), space.of(b, y), t, y))
        except Unavailable as reason:
            reasons.append(f"no value in {space.name.upper()}: {reason}")
    return [replace(values[0], warnings=(*values[0].warnings, *reasons)), *values[1:]]


def _measure(inputs: Inputs, space: Space, a: Tensor, b: Tensor, t: Tensor, y: Tensor | None) -> Value:
    """Return the path length in one latent space, whose latents a and b are the ends of the paths."""
    assert inputs.embed
    distances = path_lengths(space.generate, inputs.embed, a, b, t, y, straight=space.straight)
    if not torch.isfinite(distances).all():
        raise Unavailable("some features of generated images are not finite: the generator or the extractor is broken")
    value, error = perceptual_path_length(distances)

    checked = slice(CHECKED)
    wide_steps = path_lengths(
        space.generate, inputs.embed, a[checked], b[checked], t[checked], None if y is None else y[checked],
        WIDER * EPSILON, space.straight,
    )
    kept = trimmed(distances)[checked]
    narrow, wide = distances[checked][kept].mean().item(), wide_steps[kept].mean().item()
    rounding = max(narrow - wide, 0.0) / (1 - WIDER**-2) / narrow if narrow > 0 else 0.0
    if rounding > REFUSE:
        raise Unavailable(
            f"{rounding:.0%} of the path length is rounding or noise: the images or their features are not smooth in "
            f"the latent at steps of {EPSILON}"
        )
    warnings = (f"{rounding:.1%} of the value is rounding, because the step is so small",) if rounding > WARN else ()
    alike = "all paths have one length"
    uncertainty, unknown = known(error, f"{PATHS:,} paths (trimmed mean)", value, alike)
    details = {"paths": PATHS, "epsilon": EPSILON, "rounding": float(f"{rounding:.2g}")}
    return Value(value, uncertainty, 0, PATHS, space.suffix, details, (*warnings, *unknown))


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
