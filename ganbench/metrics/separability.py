"""Linear separability: how well hyperplanes in latent space separate the attributes that a classifier sees in images.

    separability = exp( sum_i H(Y_i | X_i) )

Source: Karras et al. (2019), "A Style-Based Generator Architecture for Generative Adversarial Networks",
arXiv:1812.04948, Section 4.2. For attribute i, Y_i is the classifier's prediction on an image, and X_i the prediction
of a linear SVM that is fitted to the latents; H is in nats. As in the official code, only the half of the samples with
the highest confidence of the classifier is used, `LinearSVC` has default settings, and the entropies are those of the
training samples of the SVM. Range [1, inf), lower is better: 1 if hyperplanes predict every attribute.

Differences from the paper:

- The paper has 40 classifiers with one binary attribute each. Here the attributes are the extractor's classes, one
  against the rest (a single attribute if there are two classes), and the confidence is the probability of the predicted
  class. One half of the samples therefore serves all attributes, and values can be compared for one extractor only.
- There are 10,000 samples, of which half are kept; the paper has 200,000. A hyperplane overfits few
  samples: compare at equal counts and equal dimensions of z.
- If the model names other latent spaces than Z, there is a value for each, from the same samples: `@w` is W, whose
  planes divide the images w of the same z. Noise of the generator's own is fixed.
- A conditional generator gets the class as an input and does not take it from z.

The standard error is that of the delta method over the kept samples, for fixed separators: to first order the logarithm
is a mean over samples of -log p(y_i|x_i), summed over attributes. As for a proportion, one is added to the sum of
squares, so that the error is not 0 if every sample is predicted correctly.
"""

import math
import warnings

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Uncertainty, Value, require_tensor

SAMPLES, KEPT = 10_000, 5_000
BATCH = 500


def most_confident(logits: Tensor, keep: int) -> Tensor:
    """Return the indices of the samples with the largest probability of the predicted class, descending: int64 `keep`.

    logits: floating N x K, K at least 2. In a tie the first sample wins.
    """
    logits = logits.double()
    top = logits.max(1, keepdim=True)
    rest = logits.scatter(1, top.indices, -math.inf).logsumexp(1)
    # Compare log-odds: they differ even if the probabilities are rounded to 1.
    return (top.values[:, 0] - rest).argsort(descending=True, stable=True)[:keep]


def attributes(logits: Tensor) -> Tensor:
    """Return the binary attributes that a classifier predicts: bool N x K, one against the rest; N x 1 for K = 2."""
    predicted = logits.argmax(1)
    if logits.shape[1] == 2:
        return predicted[:, None] == 1
    return torch.nn.functional.one_hot(predicted, logits.shape[1]).bool()


def separators(z: Tensor, y: Tensor) -> Tensor:
    """Return the predictions of linear SVMs that are fitted to the same latents and attributes: bool N x A.

    z: floating N x d latents. y: bool N x A attributes. A constant attribute needs no SVM.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    inputs, predicted = z.double().numpy(), y.clone()
    for i in range(y.shape[1]):
        if 0 < int(y[:, i].sum()) < len(y):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # the official code uses such solutions too
                # The primal problem has the same solution as the default dual problem, and its solver is deterministic.
                svm = LinearSVC(dual=False).fit(inputs, y[:, i].numpy())
            predicted[:, i] = torch.from_numpy(svm.predict(inputs))
    return predicted


def conditional_entropies(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return H(Y|X) of each attribute in nats, float64 A, and -log p(y|x) of each sample and attribute, float64 N x A.

    x, y: binary N x A, predictions of separators and of the classifier.
    """
    x, y = x.bool(), y.bool()
    surprise = torch.zeros(x.shape, dtype=torch.float64)
    for predicted in (False, True):
        for true in (False, True):
            both = (x == predicted) & (y == true)
            share = both.sum(0).double() / (x == predicted).sum(0).clamp(min=1)
            surprise += torch.where(both, -share.clamp(min=1e-300).log(), 0.0)
    return surprise.mean(0), surprise


def linear_separability(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the linear separability exp(sum_i H(Y_i|X_i)), in [1, inf), and its standard error.

    x, y: binary N x A, the predictions of the separators and of the classifier for N samples and A attributes.
    Raises Unavailable if there are no samples.
    Source: Karras et al. (2019), Section 4.2.

    >>> x, y = torch.tensor([[0], [0], [1], [1]]), torch.tensor([[0], [1], [1], [1]])
    >>> round(linear_separability(x, y)[0], 3)
    1.414
    """
    for values, name in ((x, "x"), (y, "y")):
        binary = isinstance(values, Tensor) and values.dtype == torch.bool
        require_tensor(values.long() if binary else values, name, "N x A", "real")
    if x.shape != y.shape:
        raise ValueError(f"x and y must have one shape, not {tuple(x.shape)} and {tuple(y.shape)}")
    if not len(x):
        raise Unavailable("an entropy needs at least 1 sample")
    entropies, surprise = conditional_entropies(x, y)
    per_sample = surprise.sum(1)
    squares = (per_sample - per_sample.mean()).square().sum().item()
    score = math.exp(entropies.sum().item())
    return score, score * math.sqrt(squares + 1) / len(x)


def _compute(inputs: Inputs) -> list[Value]:
    model, generator, embed = inputs.model, inputs.generator, inputs.embed
    assert model
    assert model.sample_latent
    assert embed
    z = model.sample_latent(SAMPLES, generator)
    outputs = []
    latents: list[list[Tensor]] = [[] for _ in model.spaces]
    for rows in z.split(BATCH):
        y = torch.randint(model.num_classes, (len(rows),), generator=generator) if model.num_classes else None
        images = model.spaces[0].generate(rows, y)
        for found, space in zip(latents, model.spaces, strict=True):
            found.append(space.of(rows, y))
        if not torch.isfinite(images).all():
            raise Unavailable("some generated images are not finite: the model is broken")
        batch_logits = embed((images * 127.5 + 128).clamp(0, 255).to(torch.uint8))[1]
        if batch_logits is None:
            raise Unavailable("this extractor has no classes")
        outputs.append(batch_logits)
    logits = torch.cat(outputs)
    if not torch.isfinite(logits).all():
        raise Unavailable("some logits are not finite: the extractor or the images are broken")
    if logits.shape[1] < 2:
        raise Unavailable("this extractor has fewer than two classes")

    kept = most_confident(logits, KEPT)
    truth = attributes(logits[kept])
    conditional = ("the generator is given the class, so that z says little about it",) if model.num_classes else ()
    values = []
    for found, space in zip(latents, model.spaces, strict=True):
        predicted = separators(torch.cat(found)[kept], truth)
        value, error = linear_separability(predicted, truth)
        details = {
            "samples": SAMPLES, "kept": len(kept), "attributes": truth.shape[1],
            "attributes_seen": int((truth.any(0) & ~truth.all(0)).sum()),
            "accuracy": (predicted == truth).double().mean().item(),
        }
        uncertainty = Uncertainty(error, "standard error", "the samples kept, given the separators (delta method)")
        values.append(Value(value, uncertainty, 0, SAMPLES, space.suffix, details, conditional))
    return values


PROTOCOLS = [
    Protocol(
        stem="separability",
        version=1,
        summary=f"Linear separability in Z of the extractor's classes, one against the rest, {KEPT:,} of {SAMPLES:,}",
        source="Karras et al. 2019, arXiv:1812.04948, Sec. 4.2",
        direction="lower",
        compute=_compute,
        needs=frozenset({"model.generate", "embed"}),
    )
]
