"""Discriminability: how often a classifier of real images puts a sample into the class asked of the generator.

Odena et al. (2017), "Conditional Image Synthesis with Auxiliary Classifier GANs", arXiv:1610.09585, Section 4.1:
accuracy of a pretrained network on the samples, also after they are reduced (bilinear) to fewer pixels and resized
back to the network's input: a model whose accuracy does not fall has not used its resolution. Range [0, 1], higher
is better; the ceiling is what real images get.

The standard error is binomial, with two successes and two failures added (Agresti and Coull, 1998), so that it is
not 0 at 100 %.
"""

import math

from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Uncertainty, Value, require_labels, require_logits


def accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Share of N x K logits whose largest is at the label, and its standard error."""
    hits = int((logits.argmax(1) == labels).sum())
    p = (hits + 2) / (len(labels) + 4)
    return hits / len(labels), math.sqrt(p * (1 - p) / (len(labels) + 4))


def lower_resolutions(side: int) -> tuple[int, ...]:
    """Powers of two below the images' side, from 4 on, descending: 28 -> 16, 8, 4; 128 -> 64, 32, 16, 8, 4."""
    return tuple(1 << k for k in range(12, 1, -1) if 1 << k < side)


def _compute(inputs: Inputs) -> list[Value]:
    fake, labels = inputs.fake, require_labels(inputs.fake)
    native = require_logits(fake)
    classes = native.shape[1]
    if unknown := [c for c in labels.unique().tolist() if not 0 <= c < classes]:
        raise Unavailable(f"label {unknown[-1]} is beyond the extractor's {classes} classes")
    values = []
    for suffix, logits in (("", native), *((f"@{r}", fake.logits_at[r]) for r in fake.logits_at)):
        value, error = accuracy(logits, labels)
        hit = logits.argmax(1) == labels
        per_class = {str(c): round(hit[labels == c].double().mean().item(), 6) for c in labels.unique().tolist()}
        uncertainty = Uncertainty(error, "standard error", "the samples (binomial)")
        values.append(Value(value, uncertainty, 0, len(labels), suffix=suffix, details={"per_class": per_class}))
    return values


PROTOCOLS = [
    Protocol(
        stem="discriminability",
        version=1,
        summary="Accuracy of a pretrained classifier on the requested class, at native size and reduced",
        source="Odena et al. 2017, arXiv:1610.09585, Sec. 4.1",
        direction="higher",
        compute=_compute,
        needs=frozenset({"fake.logits", "fake.labels"}),
        resolutions=lower_resolutions,
    )
]
