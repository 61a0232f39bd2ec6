"""Linear probes: the test accuracy of a linear classifier on frozen features.

    min over W, b of  mean_i loss(W f(x_i) + b, y_i) + lambda/2 |W|^2

The loss is the cross-entropy (multinomial logistic regression) or a one-against-rest squared hinge (L2-SVM),
sum_k max(0, 1 - t_ik s_ik)^2, with t = +1 for the class of the image and -1 for the others. Features are standardised
to mean 0 and variance 1 over the training images; the bias has no penalty. lambda is the best value from 10^-4 to 10 on
a validation split of the training images: 10,000 images, or a sixth if that is fewer. The probe is then fitted to all
training images. The test images are used only once.

Sources: Radford et al. (2016), "Unsupervised Representation Learning with DCGANs", arXiv:1511.06434, Section 5: L2-SVM
on features of the discriminator (there all layers, max-pooled to 4 x 4). Its protocol for SVHN uses 1,000 labels, the
same number for each class. This is `svm_probe_1000`, the mean over 10 draws of labels. Its lambda is the best on
average over the draws on the whole validation split. The official code does the same, and then tests on 100 new draws.
Standardisation and the grid of lambda are our interpretation. The logistic probe is that of Alain and Bengio (2016),
"Understanding intermediate layers using linear classifier probes", arXiv:1610.01644. The probes agree with
scikit-learn's LogisticRegression, and with LinearSVC if the penalty of its bias is made negligible. Range [0, 1],
higher is better; a paper's test error is 1 minus this.

The standard error is binomial over the test images. For draws of labels, the standard deviation over the draws is
given.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Uncertainty, Value, known, require_labelled
from ganbench.metrics.discriminability import proportion
from ganbench.metrics.nn_transfer import train_and_test

Loss = Literal["logistic", "squared hinge"]

STRENGTHS = tuple(10.0**k for k in range(1, -5, -1))  # from strong to weak: each solution is a good start for the next
VALIDATION = 10_000
LABELS, DRAWS = 1000, 10
# Largest gradient component at which a fit stops: scikit-learn's default while lambda is chosen, then a smaller one.
CHOOSING, FINAL = 1e-4, 1e-6


def linear_classifier(
    features: Tensor, classes: Tensor, num_classes: int, strength: float, loss: Loss, start: Tensor | None = None,
    tolerance: float = FINAL,
) -> Tensor:
    """Return W and b that minimise the regularised mean loss: float64 K x (d + 1), with the bias as the last column.

    features: floating N x d. classes: int64 N in [0, K). strength: lambda. start: initial weights, for instance the
    solution for another strength. tolerance: the fit stops if no component of the gradient is larger.
    The scores are features @ W.T + b.
    """
    from scipy.optimize import minimize

    x = F.pad(features.double(), (0, 1), value=1.0)
    n, d = x.shape
    own = F.one_hot(classes, num_classes).double()
    sign = 2 * own - 1

    def objective(flat):  # type: ignore[no-untyped-def]
        w = torch.from_numpy(flat).view(num_classes, d)
        scores = x @ w.T
        if loss == "logistic":
            log_p = scores.log_softmax(1)
            value, slope = -(own * log_p).sum(), log_p.exp() - own
        else:
            hinge = (1 - sign * scores).clamp_(min=0)
            value, slope = hinge.square().sum(), -2 * sign * hinge
        gradient = slope.T @ x / n
        gradient[:, :-1] += strength * w[:, :-1]
        total = value / n + strength / 2 * w[:, :-1].square().sum()
        return total.item(), gradient.flatten().numpy()

    first = torch.zeros(num_classes, d, dtype=torch.float64) if start is None else start
    found = minimize(objective, first.flatten().numpy(), jac=True, method="L-BFGS-B",
                     options={"maxiter": 1000, "gtol": tolerance, "ftol": 1e-14})
    return torch.from_numpy(found.x).view(num_classes, d)


def predict(weights: Tensor, features: Tensor) -> Tensor:
    """Return the class with the largest score for each of N x d features: int64 N."""
    return (features.double() @ weights[:, :-1].T + weights[:, -1]).argmax(1)


def standardise(train: Tensor, *others: Tensor) -> list[Tensor]:
    """Return all features standardised by mean and deviation of `train`, in float64; constant features become 0."""
    x = train.double()
    mean, deviation = x.mean(0), x.std(0, correction=0)
    varies = deviation > 1e-6 * x.abs().amax(0)  # more than rounding in float32
    scale = torch.where(varies, 1 / deviation, 0.0)
    return [(rows.double() - mean) * scale for rows in (train, *others)]


def split(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return random indices of training and of validation rows. Raises Unavailable for fewer than 6 images."""
    if n < 6:
        raise Unavailable(f"a validation split needs at least 6 labelled images, not {n}")
    order = torch.randperm(n, generator=generator)
    size = min(VALIDATION, n // 6)
    return order[size:], order[:size]


def probe(
    train: Tensor, train_labels: Tensor, test: Tensor, loss: Loss, generator: torch.Generator
) -> tuple[Tensor, float]:
    """Return the labels that a linear probe predicts for the test features, int64 M, and its regularisation strength.

    train, test: floating N x d and M x d features. train_labels: int64 N, any values. loss: 'logistic' or
    'squared hinge'. generator: draws the validation split.
    Raises Unavailable for fewer than 6 training images.
    Source: Radford et al. (2016), Section 5 (L2-SVM); Alain and Bengio (2016) (logistic).

    >>> train, labels = torch.tensor([[0.0], [0.1], [0.2], [1.0], [1.1], [1.2]]), torch.tensor([5, 5, 5, 8, 8, 8])
    >>> probe(train, labels, torch.tensor([[0.3], [0.9]]), "logistic", torch.Generator().manual_seed(0))[0]
    tensor([5, 8])
    """
    require_labelled(train, train_labels, test)
    x, t = standardise(train, test)
    names, classes = train_labels.unique(return_inverse=True)
    fit, validation = split(len(x), generator)
    x_fit, y_fit = x[fit], classes[fit]
    best, best_hits, chosen, weights = STRENGTHS[0], -1, None, None
    for strength in STRENGTHS:
        weights = linear_classifier(x_fit, y_fit, len(names), strength, loss, weights, CHOOSING)
        hits = int((predict(weights, x[validation]) == classes[validation]).sum())
        if hits > best_hits:
            best, best_hits, chosen = strength, hits, weights
    final = linear_classifier(x, classes, len(names), best, loss, chosen)
    return names[predict(final, t)], best


def few_labels_probe(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, labels: int, draws: int,
    generator: torch.Generator,
) -> tuple[Tensor, float]:
    """Return the test accuracy of an L2-SVM probe for each draw of labels, float64 `draws`, and its strength.

    train, test: floating N x d and M x d features. train_labels, test_labels: int64 N and M, any values. labels: total
    number of labels of a draw, the same number for each class. generator: draws the validation split and the labels.
    Raises Unavailable if a class has too few training images.
    Source: Radford et al. (2016), Section 5.2.

    >>> train, train_labels = torch.cat([torch.arange(6.0), torch.arange(20.0, 26.0)])[:, None], torch.arange(12) // 6
    >>> test, test_labels = torch.tensor([[1.0], [3.0], [22.0], [24.0]]), torch.tensor([0, 0, 1, 0])
    >>> generator = torch.Generator().manual_seed(0)
    >>> few_labels_probe(train, train_labels, test, test_labels, labels=2, draws=3, generator=generator)[0]
    tensor([0.7500, 0.7500, 0.7500], dtype=torch.float64)
    """
    require_labelled(train, train_labels, test, test_labels)
    x, t = standardise(train, test)
    names, classes = train_labels.unique(return_inverse=True)
    pool, validation = split(len(x), generator)
    each = labels // len(names)
    rows = [pool[classes[pool] == c] for c in range(len(names))]
    fewest = min(len(r) for r in rows)
    if each < 1 or fewest < each:
        raise Unavailable(
            f"{labels:,} labels of {len(names)} classes need at least {max(each, 1)} images of each class that are not "
            f"used for validation, and a class has {fewest}"
        )
    drawn = [torch.cat([r[torch.randperm(len(r), generator=generator)[:each]] for r in rows]) for _ in range(draws)]
    weights: list[Tensor | None] = [None] * draws
    best, best_hits, chosen = STRENGTHS[0], -1, weights
    for strength in STRENGTHS:
        found = [
            linear_classifier(x[d], classes[d], len(names), strength, "squared hinge", w, CHOOSING)
            for d, w in zip(drawn, weights, strict=True)
        ]
        hits = sum(int((predict(w, x[validation]) == classes[validation]).sum()) for w in found)
        if hits > best_hits:
            best, best_hits, chosen = strength, hits, [*found]
        weights = [*found]
    final = [
        linear_classifier(x[d], classes[d], len(names), best, "squared hinge", w)
        for d, w in zip(drawn, chosen, strict=True)
    ]
    return torch.stack([(names[predict(w, t)] == test_labels).double().mean() for w in final]), best


def _protocol(stem: str, loss: Loss, summary: str, source: str) -> Protocol:
    def compute(inputs: Inputs) -> list[Value]:
        train, train_labels, test, test_labels = train_and_test(inputs)
        answers, strength = probe(train, train_labels, test, loss, inputs.generator)
        value, error = proportion(answers == test_labels)
        uncertainty = Uncertainty(error, "standard error", "the test images (binomial)")
        return [Value(value, uncertainty, len(test), 0, details={"train": len(train), "lambda": strength})]

    return Protocol(
        stem=stem, version=1, summary=summary, source=source, direction="higher", compute=compute,
        needs=frozenset({"real.features", "real.labels", "held_out.features", "held_out.labels"}), real_row="none",
    )


def _few_labels(inputs: Inputs) -> list[Value]:
    train, train_labels, test, test_labels = train_and_test(inputs)
    accuracies, strength = few_labels_probe(train, train_labels, test, test_labels, LABELS, DRAWS, inputs.generator)
    classes = len(train_labels.unique())
    used = LABELS // classes * classes
    warnings = (f"{used:,} labels: {LABELS:,} cannot be divided by {classes} classes",) if used != LABELS else ()
    over, alike = f"{DRAWS} draws of labels", "all draws of labels have one accuracy"
    uncertainty, unknown = known(accuracies.std().item(), over, 1, alike, kind="standard deviation")
    details = {"train": used, "lambda": strength, "accuracies": [round(a, 6) for a in accuracies.tolist()]}
    return [Value(accuracies.mean().item(), uncertainty, len(test), 0, details=details, warnings=(*warnings, *unknown))]


PROTOCOLS = [
    _protocol(
        "linear_probe", "logistic", "Test accuracy of logistic regression on features",
        "Alain and Bengio 2016, arXiv:1610.01644",
    ),
    _protocol(
        "svm_probe", "squared hinge", "Test accuracy of a linear L2-SVM on features",
        "Radford et al. 2016, arXiv:1511.06434, Sec. 5.1",
    ),
    Protocol(
        stem="svm_probe_1000",
        version=1,
        summary="Test accuracy of a linear L2-SVM on features with 1,000 labels, 10 draws",
        source="Radford et al. 2016, arXiv:1511.06434, Sec. 5.2",
        direction="higher",
        compute=_few_labels,
        needs=frozenset({"real.features", "real.labels", "held_out.features", "held_out.labels"}),
        real_row="none",
    ),
]
