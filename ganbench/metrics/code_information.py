"""InfoGAN's bound L_I: how much of a model's codes can be read in its images, in nats.

    L_I(G, Q) = E log Q(c | G(z, c)) + H(c) <= I(c; G(z, c))

Source: Chen et al. (2016), "InfoGAN: Interpretable Representation Learning by Information Maximizing Generative
Adversarial Nets", arXiv:1606.03657, Equations 4 and 5. c are the codes in the latent, and Q is the model's own network,
which reads them in the image. With several codes Q is a product, so that the bound is a sum over the codes; that of
each code has its name at the end ('@c1').

Higher is better. The range of a categorical code ends at its entropy H(c): ln K for K values, 2.30 for ten. H of a
continuous code is a differential entropy, ln 2 for U(-1, 1), and its bound has no maximum. If Q is poor, or keeps its
deviation at 1, the bound is negative although the mutual information is not. The official code adds the cross-entropy
of the uniform code with N(0, 1) in the place of ln 2, which is larger by 0.39 nats.

The paper logs L_I on training batches. The protocol measures a finished model on 5,000 samples, which are float images
as in training. The standard error is that of a mean over the samples.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Value, known, require_tensor

SAMPLES = 5_000
BATCH = 500


def information_bound(log_q: Tensor, entropy: float) -> tuple[float, float]:
    """Return E log Q(c | x) + H(c) in nats, at most I(c; x), and its standard error.

    log_q: log Q(c | x) for N draws of code and image, floating N. entropy: H(c) in nats.
    Raises Unavailable if there are fewer than two draws.
    Source: Chen et al. (2016), Equation 5.

    >>> value, error = information_bound(torch.tensor([0.5, 0.25]).log(), math.log(2))
    >>> round(value, 3), round(error, 3)
    (-0.347, 0.347)
    """
    require_tensor(log_q, "log_q", "N")
    if not math.isfinite(entropy):
        raise ValueError(f"entropy must be finite, not {entropy}")
    if len(log_q) < 2:
        raise Unavailable(f"a standard error needs at least 2 samples, not {len(log_q)}")
    log_q = log_q.double()
    return log_q.mean().item() + entropy, log_q.std().item() / math.sqrt(len(log_q))


def _values(log_q: Tensor, entropies: Mapping[str, float]) -> list[Value]:
    """L_I of all codes, and that of each code if there are several. log_q: float64 N x codes."""
    parts = [("", log_q.sum(1), sum(entropies.values()))]
    if len(entropies) > 1:
        parts += [(f"@{name}", log_q[:, i], entropy) for i, (name, entropy) in enumerate(entropies.items())]
    values = []
    for suffix, logs, entropy in parts:
        value, error = information_bound(logs, entropy)
        alike = "Q gives the codes of all samples one likelihood"
        uncertainty, unknown = known(error, f"{len(logs):,} samples", max(abs(value), entropy), alike, len(logs))
        details = {"entropy": entropy}
        values.append(Value(value, uncertainty, 0, len(logs), suffix, details=details, warnings=unknown))
    return values


def _compute(inputs: Inputs) -> list[Value]:
    model, generator = inputs.model, inputs.generator
    assert model
    assert model.code_log_likelihood
    assert model.sample_latent
    parts = []
    for start in range(0, SAMPLES, BATCH):
        n = min(BATCH, SAMPLES - start)
        y = torch.randint(model.num_classes, (n,), generator=generator) if model.num_classes else None
        parts.append(model.code_log_likelihood(model.sample_latent(n, generator), y).double())
    log_q = torch.cat(parts)
    if not torch.isfinite(log_q).all():
        raise Unavailable("some log-likelihoods of codes are not finite: the model is broken")
    return _values(log_q, model.codes)


PROTOCOLS = [
    Protocol(
        stem="code_information",
        version=1,
        summary=f"InfoGAN's bound L_I of the codes' mutual information with {SAMPLES:,} samples, in nats",
        source="Chen et al. 2016, arXiv:1606.03657, Eq. 5",
        direction="higher",
        compute=_compute,
        needs=frozenset({"model.code_log_likelihood"}),
        real_row="none",
    )
]
