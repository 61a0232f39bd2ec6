"""Do the intervals hold? `python -m benchmarks.calibration [STEM ...] [--out docs/calibration.md]`

Every protocol that claims a standard error is measured on 200 fresh draws, of the sets that the error is stated over,
from one synthetic population (labelled Gaussian features, class templates with noise as images, a linear generator).
A nominal 95 % interval, value +- 1.96 standard errors, should hold the expected value at these counts in about 95 % of
them; 90 to 99 % passes. The expected value is the mean over all draws, so that a bias that comes with the counts (the
Fréchet distance's) is not mixed up with the noise; the second table shows that bias for itself.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ganbench.evaluation import measure
from ganbench.metrics import Inputs, Model, Protocol, Side, Unavailable, frechet_distance

REPEATS, CLASSES, D, EDGE = 200, 5, 8, 16
N_REAL, N_FAKE, N_HELD_OUT = 400, 400, 300
FIXED = torch.Generator().manual_seed(0)
MEANS = 1.5 * torch.randn(CLASSES, D, generator=FIXED)
HEAD = torch.randn(D, CLASSES, generator=FIXED)
TEMPLATES = torch.rand(CLASSES, 1, 4, 4, generator=FIXED).repeat_interleave(4, 2).repeat_interleave(4, 3)
PIXELS = torch.randn(EDGE * EDGE, D, generator=FIXED) / EDGE
LATENT = torch.randn(4, EDGE * EDGE, generator=FIXED) / 2


def draw(n: int, g: torch.Generator, shift: float = 0.0, scale: float = 1.0) -> Side:
    """n labelled samples of the population; fakes are shifted and spread."""
    labels = torch.randint(CLASSES, (n,), generator=g)
    features = (MEANS[labels] + shift + scale * torch.randn(n, D, generator=g)).float()
    images = TEMPLATES[labels] + 0.15 * scale * torch.randn(n, 1, EDGE, EDGE, generator=g) + 0.1 * shift
    logits = features @ HEAD / 2 + torch.randn(n, CLASSES, generator=g)
    at = {r: logits * r / EDGE + 2 * torch.randn(n, CLASSES, generator=g) for r in (8, 4)}
    return Side((images * 255).clamp(0, 255).to(torch.uint8), labels, features, logits, at)


def embed(images: Tensor) -> tuple[Tensor, Tensor]:
    """A linear extractor."""
    features = images.float().flatten(1) / 255 @ PIXELS
    return features, features @ HEAD


def fit(images: Tensor, labels: Tensor):  # type: ignore[no-untyped-def]
    """A classifier by the nearest class mean."""
    means = torch.stack([images[labels == c].float().flatten(1).mean(0) for c in range(CLASSES)])
    return lambda x: -torch.cdist(x.float().flatten(1), means)


def levels(images: Tensor) -> list[Tensor]:
    """Images in [0, 1] at half their size, and as they are."""
    x = images.float() / 255
    return [torch.nn.functional.avg_pool2d(x, 2), x]


def sample_level(level: int, images: Tensor, g: torch.Generator) -> Tensor:
    """Templates with noise at half the size; then the true half doubled, with noise."""
    coarse = levels(images)[0]
    if not level:
        coarse = torch.nn.functional.avg_pool2d(TEMPLATES, 2)[torch.randint(CLASSES, (len(images),), generator=g)]
    x = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3) if level else coarse
    return x + 0.15 * torch.randn(x.shape, generator=g)


MODEL = Model(
    "linear", CLASSES, {"gamma": 0.5}, sample_latent=lambda n, g: torch.randn(n, 4, generator=g),
    generate=lambda z, y: (z @ LATENT + (0 if y is None else y[:, None] / CLASSES)).tanh().view(-1, 1, EDGE, EDGE),
    encode=lambda x: x.flatten(1).float() / 255 @ PIXELS, reconstruct=lambda x: x.float() / 255 - 0.5,
    classify=lambda x: embed(x)[1], codes={"c1": 0.7},
    code_log_likelihood=lambda z, y: torch.nn.functional.logsigmoid(z[:, :1]),
    pyramid=levels, sample_level=sample_level,
)


def inputs(repeat: int, over: str) -> Inputs:
    """A new draw of the sets that the error is stated over; the others stay as they are."""
    tested = "test" in over or "held-out" in over
    new = {"real": "both" in over or "images and" in over, "held_out": tested,
           "fake": not tested or "samples" in over or "generated" in over}
    sides = [
        draw(n, torch.Generator().manual_seed(10_000 * k + (repeat if new[side] else 0)), *population)
        for k, (side, n, population) in enumerate([
            ("real", N_REAL, ()), ("fake", N_FAKE, (0.3, 1.2)), ("held_out", N_HELD_OUT, ()),
        ])
    ]
    g = torch.Generator().manual_seed(100_000 + repeat)
    return Inputs(sides[0], sides[1], sides[2], g, model=MODEL, embed=embed, fit=fit)


def calibrate(protocol: Protocol, seconds: float) -> Iterator[str]:
    """One line of the table for each value that the protocol yields; fewer repetitions where `seconds` run out."""
    found: dict[str, list[tuple[float, float]]] = {}
    over = next((v.uncertainty.over for v in protocol.compute(inputs(0, "")) if v.uncertainty), "")
    if over.startswith("the classes"):
        yield f"| `{protocol.stem}` | | | | not simulated: there is one set of classes | | {over} |"
        return
    began = time.monotonic()
    for repeat in range(REPEATS):
        for v in protocol.compute(inputs(repeat, over)):
            if v.uncertainty is None or v.uncertainty.kind != "standard error":
                continue
            found.setdefault(v.suffix, []).append((v.value, v.uncertainty.value))
        if time.monotonic() - began > seconds and repeat >= 49:
            break
    for suffix, pairs in found.items():
        values, errors = [v for v, _ in pairs], [e for _, e in pairs]
        expected = statistics.fmean(values)
        covered = statistics.fmean(abs(v - expected) <= 1.96 * e for v, e in pairs)
        verdict = "" if 0.9 <= covered <= 0.99 else (" (too wide)" if covered > 0.99 else " (too narrow)")
        yield (
            f"| `{protocol.stem}{suffix}` | {expected:.4g} | {statistics.stdev(values):.2g} "
            f"| {statistics.fmean(errors):.2g} | {100 * covered:.0f} %{verdict} | {len(pairs)} | {over} |"
        )


def bias() -> Iterator[str]:
    """The Fréchet distance of two equal distributions at small counts: all of it is bias."""
    for d in (8, 64, 256):
        cells = []
        for n in (500, 1_000, 2_000, 5_000, 10_000):
            g = torch.Generator().manual_seed(n + d)
            pairs = [(torch.randn(n, d, generator=g), torch.randn(n, d, generator=g)) for _ in range(5)]
            values = [frechet_distance(real, fake) for real, fake in pairs]
            cells.append(f"{statistics.fmean(values):.3g}")
        yield f"| {d} | {' | '.join(cells)} |"


def main() -> None:
    known = measure.protocols()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration")
    parser.add_argument("stems", nargs="*", help="default: all")
    parser.add_argument("--seconds", type=float, default=60, help="for each protocol; at least 50 draws in any case")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Do the intervals hold?", "", ((main.__module__ and __doc__) or "").partition("\n\n")[2].strip(), "",
        f"{N_REAL} real, {N_FAKE} generated, {N_HELD_OUT} held-out images.", "",
        "| metric | mean | SD over draws | mean ± | covered | draws | ± over |", "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for stem in options.stems or sorted(known):
        protocol = known[stem]
        if protocol.num is not None:
            continue  # the same formula, at a count of its own
        try:
            new = list(calibrate(protocol, options.seconds))
        except Unavailable as reason:
            new = [f"| `{stem}` | | | | not on this population: {reason} | | |"]
        lines += new
        print("\n".join(new) or f"({stem} claims no standard error)", file=sys.stdout, flush=True)
    if not options.stems:
        about = "Two sets of one Gaussian distribution, whose distance is 0; mean of five draws at n samples a set."
        lines += ["", "## The bias of the Fréchet distance", "", about, "",
                  "| d | n = 500 | 1,000 | 2,000 | 5,000 | 10,000 |", "|---|---|---|---|---|---|", *bias()]
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
