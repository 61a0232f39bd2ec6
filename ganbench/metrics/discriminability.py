"""Discriminability: how often a classifier of real images assigns a sample to the class requested of the generator.

    discriminability = mean over samples of [ argmax_k C(x)_k = y ]

Source: Odena et al. (2017), "Conditional Image Synthesis with Auxiliary Classifier GANs", arXiv:1610.09585, Section
4.1: the accuracy of a pretrained network on the samples. It is measured again after the samples are reduced (bilinear)
to fewer pixels and resized back to the network's input. If the accuracy does not fall, the generator has not used its
resolution. Range [0, 1], higher is better; the upper limit is the accuracy on real images. The other metrics of this
file are the paper's analysis by class:

    gaining_classes@r   share of classes whose accuracy is higher at native size than at r pixels a side (Figure 3:
                        84.4 % of ImageNet's classes at 128 against 32). The default r is a quarter of the side.
    diverse_classes     share of classes whose samples have a mean MS-SSIM below the largest class mean of the training
                        images (Figure 5: 84.7 % below 0.25); `shrunk-window` MS-SSIM, 100 pairs per class and set.
    accuracy_diversity_correlation
                        Pearson's r, over classes, of accuracy and mean MS-SSIM (Figure 6: -0.16). Range [-1, 1], with
                        no better or worse. r < 0: the classes with more variety are classified better.

Discriminability has other names: it is the top-1 accuracy of CVAE-GAN (Bao et al., 2017, arXiv:1703.10155, Table 1: a
classifier of real faces on 53,000 samples) and the controllability of SGAN (Deng et al., 2017, arXiv:1711.00889: a
network trained on real digits; the paper's error is 1 minus this).

Standard errors of shares are binomial, with two successes and two failures added (Agresti and Coull, 1998), so that
they are not 0 at 100 %. They are over the samples; for a share of classes they are over the classes, for fixed
accuracies and MS-SSIM. The standard error of r is half the interval of one standard error by Fisher's z.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from ganbench.metrics.contract import (
    ImageSet,
    Inputs,
    Protocol,
    Unavailable,
    Uncertainty,
    Value,
    known,
    require_answers,
    require_classes,
    require_labels,
    require_logits,
)
from ganbench.metrics.ms_ssim import Pairs, over_pairs, pairs_within_classes, rows_of

PAIRS = 100  # per class
BATCH = 1 << 20  # pixels of the first images of the pairs, to bound the memory


def proportion(hits: Tensor) -> tuple[float, float]:
    """Return the share of N booleans that are True, in [0, 1], and its standard error.

    Raises Unavailable if N is 0. Source of the error: Agresti and Coull (1998).
    """
    n, successes = len(hits), int(hits.sum())
    if n == 0:
        raise Unavailable("a share needs at least 1 image, not 0")
    p = (successes + 2) / (n + 4)
    return successes / n, math.sqrt(p * (1 - p) / (n + 4))


def accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the share of N samples whose largest logit is at the label, in [0, 1], and its standard error.

    logits: floating N x K. labels: int64 N in [0, K).
    Raises Unavailable if there are no samples.
    Source: Odena et al. (2017), Section 4.1.

    >>> value, error = accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0]))
    >>> value, round(error, 3)
    (0.75, 0.171)
    """
    require_answers(logits, labels)
    return proportion(logits.argmax(1) == labels)


def lower_resolutions(side: int) -> tuple[int, ...]:
    """Return the powers of two from 4 to below the side, descending: 28 -> 16, 8, 4; 128 -> 64, 32, 16, 8, 4."""
    return tuple(1 << k for k in range(12, 1, -1) if 1 << k < side)


def quarter(side: int) -> tuple[int, ...]:
    """Return a quarter of the side, at least 1: 128 -> 32, as in the paper."""
    return (max(1, side // 4),)


def class_accuracy(logits: Tensor, labels: Tensor) -> dict[int, float]:
    """Return the accuracy of N x K logits within each class of the labels (int64 N), in [0, 1]."""
    hit = (logits.argmax(1) == labels).double()
    return {c: hit[labels == c].mean().item() for c in labels.unique().tolist()}


def class_ms_ssim(
    images: Tensor | ImageSet, labels: Tensor, generator: torch.Generator, pairs: int = PAIRS
) -> dict[int, float]:
    """Return the mean MS-SSIM of random pairs within each class, in [0, 1].

    images: uint8 N x C x H x W. labels: int64 N. pairs: number of pairs per class.
    Raises Unavailable if a class has only one image.
    """
    return _means(images, pairs_within_classes(labels, pairs, generator))


def _means(images: Tensor | ImageSet, pairs: dict[int, Pairs]) -> dict[int, float]:
    """The mean MS-SSIM of the pairs of each class."""
    return {c: over_pairs(images, of_class, BATCH).mean().item() for c, of_class in pairs.items()}


def correlation(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return Pearson's r of two float64 vectors of n values, in [-1, 1], and its standard error by Fisher's z.

    x, y: accuracy and MS-SSIM of each class. Raises Unavailable for fewer than four classes or a constant vector.
    """
    if len(x) < 4:
        raise Unavailable(f"a correlation over classes needs at least 4 classes, not {len(x)}")
    for values, what in ((x, "accuracy"), (y, "MS-SSIM")):
        if values.max() - values.min() <= 1e-12:
            raise Unavailable(f"the {what} is the same in every class: a correlation needs classes that differ")
    a, b = x - x.mean(), y - y.mean()
    r = max(-1.0, min(1.0, (a @ b / (a.norm() * b.norm())).item()))
    z, error = math.atanh(max(-1 + 1e-15, min(1 - 1e-15, r))), 1 / math.sqrt(len(x) - 3)
    return r, (math.tanh(z + error) - math.tanh(z - error)) / 2


def _rounded(per_class: dict[int, float]) -> dict[str, float]:
    return {str(c): round(value, 6) for c, value in per_class.items()}


def _compute(inputs: Inputs) -> list[Value]:
    fake, native = inputs.fake, require_logits(inputs.fake)
    labels = require_classes(fake, native, inputs.classes_of_logits, inputs.class_of_label)
    values = []
    for suffix, logits in (("", native), *((f"@{r}", fake.logits_at[r]) for r in fake.logits_at)):
        value, error = accuracy(logits, labels)
        uncertainty = Uncertainty(error, "standard error", "the samples (binomial)")
        details = {"per_class": _rounded(class_accuracy(logits, labels))}
        values.append(Value(value, uncertainty, 0, len(labels), suffix=suffix, details=details))
    return values


def _gaining_classes(inputs: Inputs) -> list[Value]:
    fake, native = inputs.fake, require_logits(inputs.fake)
    labels = require_classes(fake, native, inputs.classes_of_logits, inputs.class_of_label)
    if not fake.logits_at:
        raise Unavailable("there are no logits of reduced images: a gain needs a lower resolution")
    at_native = class_accuracy(native, labels)
    values = []
    for r in fake.logits_at:
        reduced = class_accuracy(require_logits(replace(fake, logits=fake.logits_at[r])), labels)
        value, error = proportion(torch.tensor([at_native[c] > reduced[c] for c in at_native]))
        uncertainty = Uncertainty(error, "standard error", "the classes (binomial)")
        details = {"classes": len(at_native), "per_class": {"native": _rounded(at_native), f"@{r}": _rounded(reduced)}}
        values.append(Value(value, uncertainty, 0, len(labels), suffix=f"@{r}", details=details))
    return values


def _pairs_of_both(inputs: Inputs) -> tuple[dict[int, Pairs], dict[int, Pairs]]:
    """The pairs of `diverse_classes`, of generated and of real images."""
    fake_labels, real_labels = require_labels(inputs.fake), require_labels(inputs.real)
    fake = pairs_within_classes(fake_labels, PAIRS, inputs.generator)
    return fake, pairs_within_classes(real_labels, PAIRS, inputs.generator)


def _rows_of_both(inputs: Inputs) -> dict[str, Tensor]:
    fake, real = _pairs_of_both(inputs)
    return {"fake": rows_of(fake.values()), "real": rows_of(real.values())}


def _diverse_classes(inputs: Inputs) -> list[Value]:
    fake_pairs, real_pairs = _pairs_of_both(inputs)
    fake, real = _means(inputs.fake.images, fake_pairs), _means(inputs.real.images, real_pairs)
    threshold = max(real.values())
    value, error = proportion(torch.tensor([mean < threshold for mean in fake.values()]))
    fewest = min(int(require_labels(s).unique(return_counts=True)[1].min()) for s in (inputs.fake, inputs.real))
    uncertainty, unknown = known(error, "the classes (binomial)", value, "", fewest)
    details = {
        "variant": "shrunk-window", "pairs": PAIRS, "classes": len(fake), "threshold": round(threshold, 6),
        "per_class": {"fake": _rounded(fake), "real": _rounded(real)},
    }
    return [Value(value, uncertainty, len(inputs.real), len(inputs.fake), details=details, warnings=unknown)]


def _pairs_of_fake(inputs: Inputs) -> dict[int, Pairs]:
    """The pairs of `accuracy_diversity_correlation`."""
    return pairs_within_classes(require_labels(inputs.fake), PAIRS, inputs.generator)


def _correlation(inputs: Inputs) -> list[Value]:
    logits = require_logits(inputs.fake)
    labels = require_classes(inputs.fake, logits, inputs.classes_of_logits, inputs.class_of_label)
    accuracies = class_accuracy(logits, labels)
    if len(accuracies) < 4:
        raise Unavailable(f"a correlation over classes needs at least 4 classes, not {len(accuracies)}")
    similarities = _means(inputs.fake.images, _pairs_of_fake(inputs))
    x, y = (torch.tensor([by[c] for c in accuracies], dtype=torch.float64) for by in (accuracies, similarities))
    value, error = correlation(x, y)
    uncertainty, unknown = known(error, "the classes (Fisher's z)", 1, "the correlation of the classes is perfect")
    details = {"variant": "shrunk-window", "pairs": PAIRS, "classes": len(accuracies),
               "per_class": {"accuracy": _rounded(accuracies), "ms_ssim": _rounded(similarities)}}
    return [Value(value, uncertainty, 0, len(labels), details=details, warnings=unknown)]


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
    ),
    Protocol(
        stem="gaining_classes",
        version=1,
        summary="Share of classes that a pretrained classifier knows better at native size than reduced",
        source="Odena et al. 2017, arXiv:1610.09585, Fig. 3",
        direction="higher",
        compute=_gaining_classes,
        needs=frozenset({"fake.logits", "fake.labels"}),
        resolutions=quarter,
    ),
    Protocol(
        stem="diverse_classes",
        version=1,
        summary=f"Share of classes with an MS-SSIM (shrunk-window, {PAIRS} pairs) below the largest of the reference's",
        source="Odena et al. 2017, arXiv:1610.09585, Fig. 5",
        direction="higher",
        compute=_diverse_classes,
        needs=frozenset({"fake.images", "fake.labels", "real.images", "real.labels"}),
        rows=_rows_of_both,
    ),
    Protocol(
        stem="accuracy_diversity_correlation",
        version=1,
        summary="Correlation over classes of a pretrained classifier's accuracy and MS-SSIM (shrunk-window)",
        source="Odena et al. 2017, arXiv:1610.09585, Fig. 6",
        direction="none",
        compute=_correlation,
        needs=frozenset({"fake.images", "fake.labels", "fake.logits"}),
        rows=lambda inputs: {"fake": rows_of(_pairs_of_fake(inputs).values())},
    ),
]
