"""Linear separability: how well a hyperplane in latent space tells apart what a classifier tells apart in the images.

    separability = exp( sum_i H(Y_i | X_i) )

Karras et al. (2019), "A Style-Based Generator Architecture for Generative Adversarial Networks", arXiv:1812.04948,
Section 4.2. For attribute i, Y_i is the classifier's answer on an image and X_i that of a linear SVM, fitted to the
same latents; H is in nats. As in the official code: only the half of the samples on which the classifier is most
confident, `LinearSVC` with its defaults, entropies of the very samples that it was fitted to. Range [1, inf): 1 where
hyperplanes tell everything, lower is better.

What is not the paper's. It has 40 classifiers of one binary attribute each; here the attributes are the extractor's
classes, one against the rest (one attribute where there are two), and confidence is the probability of the class that
was answered: so one half of the samples serves all attributes, and values compare under one extractor alone. 10,000
samples in Z, half of them kept, where the paper has 200,000 in Z and W: a hyperplane fits few samples too easily, so
compare at equal counts and dimensions of z. A generator that is told the class does not take it from z.

The standard error is the delta method's over the samples that were kept, with the separators given: the logarithm is to
first order a mean over samples of -log p(y_i|x_i), summed over attributes. As for a proportion, a unit is added to the
sum of squares, so that it is not 0 where every sample is told.
"""

import math
import warnings

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Uncertainty, Value

SAMPLES, KEPT = 10_000, 5_000
BATCH = 500


def most_confident(logits: Tensor, keep: int) -> Tensor:
    """Rows of the `keep` of N x K logits with the largest probability of their answer, the most confident first.

    Of two classes at least. Ties by the order of the rows. int64 `keep`.
    """
    logits = logits.double()
    top = logits.max(1, keepdim=True)
    rest = logits.scatter(1, top.indices, -math.inf).logsumexp(1)
    return (top.values[:, 0] - rest).argsort(descending=True, stable=True)[:keep]  # log-odds: they tell 1 from nearly 1


def attributes(logits: Tensor) -> Tensor:
    """Binary answers of a classifier: N x K for K classes, one against the rest, N x 1 for two. bool."""
    answers = logits.argmax(1)
    if logits.shape[1] == 2:
        return answers[:, None] == 1
    return torch.nn.functional.one_hot(answers, logits.shape[1]).bool()


def separators(z: Tensor, y: Tensor) -> Tensor:
    """What a linear SVM fitted to N x d latents and N x A binary attributes says of the same latents: bool N x A.

    An attribute that all samples share, or none has, is told without one.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    inputs, predicted = z.double().numpy(), y.clone()
    for i in range(y.shape[1]):
        if 0 < int(y[:, i].sum()) < len(y):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # the official code takes it as it is, too
                # The primal problem has the same solution as the default's dual one, and is not drawn at random.
                svm = LinearSVC(dual=False).fit(inputs, y[:, i].numpy())
            predicted[:, i] = torch.from_numpy(svm.predict(inputs))
    return predicted


def conditional_entropies(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """H(Y|X) in nats of each of A columns of binary N x A, and the surprise -log p(y|x) of each sample: A, N x A."""
    x, y = x.bool(), y.bool()
    surprise = torch.zeros(x.shape, dtype=torch.float64)
    for said in (False, True):
        for true in (False, True):
            both = (x == said) & (y == true)
            share = both.sum(0).double() / (x == said).sum(0).clamp(min=1)
            surprise += torch.where(both, -share.clamp(min=1e-300).log(), 0.0)
    return surprise.mean(0), surprise


def linear_separability(x: Tensor, y: Tensor) -> tuple[float, float]:
    """exp of the summed H(Y|X) of binary N x A answers, of separators and of the classifier; and its standard error.

    Raises Unavailable without samples.
    """
    if not len(x):
        raise Unavailable("an entropy needs at least 1 sample")
    entropies, surprise = conditional_entropies(x, y)
    of_sample = surprise.sum(1)
    squares = (of_sample - of_sample.mean()).square().sum().item()
    score = math.exp(entropies.sum().item())
    return score, score * math.sqrt(squares + 1) / len(x)


def _compute(inputs: Inputs) -> list[Value]:
    model, generator, embed = inputs.model, inputs.generator, inputs.embed
    assert model
    assert model.generate
    assert model.sample_latent
    assert embed
    z = model.sample_latent(SAMPLES, generator)
    outputs = []
    for rows in z.split(BATCH):
        y = torch.randint(model.num_classes, (len(rows),), generator=generator) if model.num_classes else None
        images = model.generate(rows, y)
        if not torch.isfinite(images).all():
            raise Unavailable("some generated images are not finite: the model is broken")
        answer = embed((images * 127.5 + 128).clamp(0, 255).to(torch.uint8))[1]
        if answer is None:
            raise Unavailable("this extractor has no classes")
        outputs.append(answer)
    logits = torch.cat(outputs)
    if not torch.isfinite(logits).all():
        raise Unavailable("some logits are not finite: the extractor or the images are broken")
    if logits.shape[1] < 2:
        raise Unavailable("this extractor has no two classes")

    kept = most_confident(logits, KEPT)
    truth = attributes(logits[kept])
    said = separators(z[kept], truth)
    value, error = linear_separability(said, truth)
    told = ("the generator is given the class, which z then says little about",) if model.num_classes else ()
    details = {
        "samples": SAMPLES, "kept": len(kept), "attributes": truth.shape[1],
        "attributes_seen": int((truth.any(0) & ~truth.all(0)).sum()),
        "accuracy": (said == truth).double().mean().item(),
    }
    uncertainty = Uncertainty(error, "standard error", "the samples kept, given the separators (delta method)")
    return [Value(value, uncertainty, 0, SAMPLES, details=details, warnings=told)]


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
