"""BEGAN's measure of convergence: how well the auto-encoder does, and how far the game is from its equilibrium.

    M = L(x) + | gamma L(x) - L(G(z)) |,        L(v) = mean over pixels of |v - D(v)|

Berthelot et al. (2017), "BEGAN: Boundary Equilibrium Generative Adversarial Networks", arXiv:1703.10717, Section 3.4,
where D is the auto-encoder that is the discriminator, and gamma = E L(G(z)) / E L(x) at the equilibrium. The paper
reads it off the training batches; here it is of the finished model, over 5,000 images of the reference and 5,000
samples. Pixels are in [-1, 1]; samples are clipped and rounded to levels, as images are. Range [0, inf), lower is
better; it compares checkpoints of one model, and no model with another: each has its own D and its own gamma.

The standard error is the delta method's, over images and samples. Near the equilibrium, where the absolute value has
its kink, the larger of its two slopes is taken: that is where a trained model is, and M there is a little too large.
"""

import math

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Model, Protocol, Unavailable, Uncertainty, Value

IMAGES = 5_000
BATCH = 500


def reconstruction_loss(images: Tensor, reconstructions: Tensor) -> Tensor:
    """L of each image: mean absolute difference over pixels of two N x C x H x W in [-1, 1], float64 N."""
    return (images - reconstructions).abs().flatten(1).mean(1, dtype=torch.float64)


def convergence_measure(real: Tensor, fake: Tensor, gamma: float) -> tuple[float, float]:
    """M of the losses L(x) of N real images and L(G(z)) of M samples, and its standard error.

    Raises Unavailable for fewer than two of either.
    """
    if min(len(real), len(fake)) < 2:
        raise Unavailable(f"a standard error needs at least 2 images of each kind, not {len(real)} and {len(fake)}")
    real, fake = real.double(), fake.double()
    balance = (gamma * real.mean() - fake.mean()).item()
    of_real, of_fake = (x.var().item() / len(x) for x in (real, fake))
    near = abs(balance) < 2 * math.sqrt(gamma**2 * of_real + of_fake)
    slope = 1 + gamma if near or balance > 0 else 1 - gamma
    return real.mean().item() + abs(balance), math.sqrt(slope**2 * of_real + of_fake)


def _gamma(model: Model) -> float:
    gamma = model.args.get("gamma")
    if isinstance(gamma, bool) or not isinstance(gamma, int | float):
        raise Unavailable(f"the model '{model.name}' has no argument 'gamma', which says where its equilibrium is")
    if not 0 <= gamma <= 1:
        raise Unavailable(f"gamma needs to lie between 0 and 1, and that of the model '{model.name}' is {gamma}")
    return float(gamma)


def _losses(model: Model, images: Tensor) -> Tensor:
    """L of uint8 images."""
    assert model.reconstruct
    parts = [reconstruction_loss(batch / 127.5 - 1, model.reconstruct(batch)) for batch in images.split(BATCH)]
    losses = torch.cat(parts)
    if not torch.isfinite(losses).all():
        raise Unavailable("some reconstructions are not finite: the model is broken")
    return losses


def _compute(inputs: Inputs) -> list[Value]:
    model, generator = inputs.model, inputs.generator
    assert model
    assert model.generate
    assert model.sample_latent
    gamma = _gamma(model)
    if len(inputs.real) < 2:
        raise Unavailable(f"needs at least 2 images of the reference, not {len(inputs.real)}")
    real = inputs.real.images[torch.randperm(len(inputs.real), generator=generator)[:IMAGES]]
    of_fake = []
    for start in range(0, IMAGES, BATCH):
        n = min(BATCH, IMAGES - start)
        y = torch.randint(model.num_classes, (n,), generator=generator) if model.num_classes else None
        images = model.generate(model.sample_latent(n, generator), y)
        if not torch.isfinite(images).all():
            raise Unavailable("some generated images are not finite: the model is broken")
        of_fake.append(_losses(model, (images * 127.5 + 128).clamp(0, 255).to(torch.uint8)))
    of_real, samples = _losses(model, real), torch.cat(of_fake)
    value, error = convergence_measure(of_real, samples, gamma)
    uncertainty = Uncertainty(error, "standard error", "the images and the samples (delta method)")
    details = {"gamma": gamma, "loss_real": of_real.mean().item(), "loss_fake": samples.mean().item()}
    return [Value(value, uncertainty, len(of_real), len(samples), details=details)]


PROTOCOLS = [
    Protocol(
        stem="began_convergence",
        version=1,
        summary=f"BEGAN's measure of convergence, {IMAGES:,} images and samples, pixels in [-1, 1]",
        source="Berthelot et al. 2017, arXiv:1703.10717, Sec. 3.4",
        direction="lower",
        compute=_compute,
        needs=frozenset({"model.generate", "model.reconstruct", "real.images"}),
    )
]
