"""BEGAN's measure of convergence: the auto-encoder's loss plus the distance of the game from its equilibrium.

    M = L(x) + | gamma L(x) - L(G(z)) |,        L(v) = mean over pixels of |v - D(v)|

Source: Berthelot et al. (2017), "BEGAN: Boundary Equilibrium Generative Adversarial Networks", arXiv:1703.10717,
Section 3.4. The discriminator D is an auto-encoder, and gamma = E L(G(z)) / E L(x) at the equilibrium. The paper
measures it on training batches; the protocol measures a finished model on 5,000 reference images and 5,000 samples.
Pixels are in [-1, 1]; samples are clipped and rounded to grey levels, like images. Range [0, inf), lower is better.
Use it to compare checkpoints of one model only: every model has its own D and its own gamma.

The standard error is that of the delta method, over images and samples. Near the equilibrium the absolute value has a
kink, and the larger of its two slopes is used. Trained models are near the equilibrium, where M is slightly too large.
"""

import math

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Model, Protocol, Unavailable, Value, known, require_tensor

IMAGES = 5_000
BATCH = 500


def reconstruction_loss(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Return L of each image, the mean absolute difference over channels and pixels: float64 N, in [0, 2].

    images, reconstructions: floating N x C x H x W in [-1, 1].
    """
    return (images - reconstructions).abs().flatten(1).mean(1, dtype=torch.float64)


def convergence_measure(real: Tensor, fake: Tensor, gamma: float) -> tuple[float, float]:
    """Return BEGAN's measure of convergence in [0, inf) and its standard error.

    real, fake: reconstruction losses L(x) of N real images and L(G(z)) of M samples, floating N and M. gamma: the ratio
    of both losses at the equilibrium, in [0, 1].
    Raises Unavailable if there are fewer than two real images or samples.
    Source: Berthelot et al. (2017), Section 3.4.

    >>> value, error = convergence_measure(torch.tensor([0.3, 0.5]), torch.tensor([0.1, 0.2]), gamma=0.5)
    >>> round(value, 3), round(error, 3)
    (0.45, 0.158)
    """
    require_tensor(real, "real", "N")
    require_tensor(fake, "fake", "N")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must be between 0 and 1, not {gamma}")
    if min(len(real), len(fake)) < 2:
        raise Unavailable(
            f"a standard error needs at least 2 real images and 2 samples, not {len(real)} and {len(fake)}"
        )
    real, fake = real.double(), fake.double()
    balance = (gamma * real.mean() - fake.mean()).item()
    variance_real, variance_fake = (x.var().item() / len(x) for x in (real, fake))
    near = abs(balance) < 2 * math.sqrt(gamma**2 * variance_real + variance_fake)
    slope = 1 + gamma if near or balance > 0 else 1 - gamma
    return real.mean().item() + abs(balance), math.sqrt(slope**2 * variance_real + variance_fake)


def _gamma(model: Model) -> float:
    gamma = model.args.get("gamma")
    if isinstance(gamma, bool) or not isinstance(gamma, int | float):
        raise Unavailable(f"the model '{model.name}' has no argument 'gamma', which defines its equilibrium")
    if not 0 <= gamma <= 1:
        raise Unavailable(f"gamma needs to be between 0 and 1, and it is {gamma} in the model '{model.name}'")
    return float(gamma)


def _losses(model: Model, images: Tensor) -> Tensor:
    """L of each of N uint8 images: float64 N."""
    assert model.reconstruct
    parts = [reconstruction_loss(batch / 127.5 - 1, model.reconstruct(batch)) for batch in images.split(BATCH)]
    losses = torch.cat(parts)
    if not torch.isfinite(losses).all():
        raise Unavailable("some reconstructions are not finite: the model is broken")
    return losses


def _drawn(inputs: Inputs) -> dict[str, Tensor]:
    """Rows of the images of the reference."""
    if len(inputs.real) < 2:
        raise Unavailable(f"needs at least 2 images of the reference, not {len(inputs.real)}")
    return {"real": torch.randperm(len(inputs.real), generator=inputs.generator)[:IMAGES]}


def _compute(inputs: Inputs) -> list[Value]:
    model, generator = inputs.model, inputs.generator
    assert model
    assert model.generate
    assert model.sample_latent
    gamma = _gamma(model)
    real = inputs.real.images[_drawn(inputs)["real"]]
    fake_parts = []
    for start in range(0, IMAGES, BATCH):
        n = min(BATCH, IMAGES - start)
        y = torch.randint(model.num_classes, (n,), generator=generator) if model.num_classes else None
        images = model.generate(model.sample_latent(n, generator), y)
        if not torch.isfinite(images).all():
            raise Unavailable("some generated images are not finite: the model is broken")
        fake_parts.append(_losses(model, (images * 127.5 + 128).clamp(0, 255).to(torch.uint8)))
    losses_real, losses_fake = _losses(model, real), torch.cat(fake_parts)
    value, error = convergence_measure(losses_real, losses_fake, gamma)
    over, alike = "the images and the samples (delta method)", "all images and all samples have one loss"
    uncertainty, unknown = known(error, over, value, alike, min(len(losses_real), len(losses_fake)))
    details = {"gamma": gamma, "loss_real": losses_real.mean().item(), "loss_fake": losses_fake.mean().item()}
    return [Value(value, uncertainty, len(losses_real), len(losses_fake), details=details, warnings=unknown)]


PROTOCOLS = [
    Protocol(
        stem="began_convergence",
        version=1,
        summary=f"BEGAN's measure of convergence, {IMAGES:,} images and samples, pixels in [-1, 1]",
        source="Berthelot et al. 2017, arXiv:1703.10717, Sec. 3.4",
        direction="lower",
        compute=_compute,
        needs=frozenset({"model.generate", "model.reconstruct", "real.images"}),
        rows=_drawn,
    )
]
