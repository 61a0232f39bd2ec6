"""Fréchet distance between Gaussians fitted to the features of two sets; over Inception-v3's pool it is FID.

    d^2 = |mu_r - mu_f|^2 + tr(S_r + S_f - 2 (S_r S_f)^(1/2))

Heusel et al. (2017), "GANs Trained by a Two Time-Scale Update Rule ...", arXiv:1706.08500, Equation 6. Covariances are
unbiased (N - 1), sums in float64. Agrees with torch-fidelity and pytorch-fid on the same features. Range [0, inf), lower is
better. Biased upwards by roughly 1/N: compare only at equal counts.

The trace of the root is that of the symmetric (S_r^(1/2) S_f S_r^(1/2))^(1/2), which is exact for singular covariances.
The standard error is the delta method's: the distance is a smooth function of the moments, so to first order it is a mean over
samples of an influence, whose variance is estimated from the same samples. With T the optimal transport map from fake to real,
the influence of a fake x is 2 (mu_f - mu_r)'(x - mu_f) + (x - mu_f)'(I - T)(x - mu_f), and that of a real one is its mirror image.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ganbench.metrics import Inputs, Protocol, Unavailable, Uncertainty, Value, require_features

ENOUGH = 10_000  # below this FID's bias is large enough to reorder models


@dataclass(frozen=True)
class Moments:
    """Mean (d) and unbiased covariance (d x d) in float64 of n samples."""

    n: int
    mean: Tensor
    cov: Tensor


def moments(features: Tensor) -> Moments:
    """Moments of N x d features. Raises Unavailable for fewer than two samples."""
    if len(features) < 2:
        raise Unavailable(f"a covariance needs at least 2 images, not {len(features)}")
    x = features.double()
    mean = x.mean(0)
    centred = x - mean
    return Moments(len(x), mean, centred.T @ centred / (len(x) - 1))


def frechet_distance(real: Moments, fake: Moments) -> float:
    """The squared Fréchet distance (a float, >= 0). Identical moments give 0 to within 1e-9 of the total variance."""
    return _distance(real, fake)[0]


def _distance(real: Moments, fake: Moments) -> tuple[float, Tensor, Tensor]:
    """The distance and the transport maps fake -> real and real -> fake (d x d, symmetric; pseudo-inverse where singular)."""
    root, inverse_root = _roots(real.cov)
    middle = root @ fake.cov @ root
    eigenvalues, vectors = torch.linalg.eigh((middle + middle.T) / 2)
    eigenvalues = eigenvalues.clamp(min=0)
    keep = eigenvalues > eigenvalues[-1] * 1e-12
    sqrt = eigenvalues.sqrt()
    inverse_sqrt = torch.where(keep, 1 / sqrt.clamp(min=1e-300), 0.0)
    delta = real.mean - fake.mean
    distance = (delta @ delta + real.cov.trace() + fake.cov.trace() - 2 * sqrt.sum()).item()
    to_real = root @ (vectors * inverse_sqrt) @ vectors.T @ root
    to_fake = inverse_root @ (vectors * sqrt) @ vectors.T @ inverse_root
    return max(distance, 0.0), to_real, to_fake


def _roots(cov: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric square root of a positive semi-definite matrix, and its pseudo-inverse."""
    values, vectors = torch.linalg.eigh(cov)
    values = values.clamp(min=0)
    keep = values > values[-1] * 1e-12
    sqrt = values.sqrt()
    inverse = torch.where(keep, 1 / sqrt.clamp(min=1e-300), 0.0)
    return (vectors * sqrt) @ vectors.T, (vectors * inverse) @ vectors.T


def standard_error(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """Fréchet distance of two N x d feature matrices and its standard error over the samples of both sets."""
    m_real, m_fake = moments(real), moments(fake)
    distance, to_real, to_fake = _distance(m_real, m_fake)
    identity = torch.eye(len(m_real.mean), dtype=torch.float64)
    variance = 0.0
    for x, own, other, transport in ((fake, m_fake, m_real, to_real), (real, m_real, m_fake, to_fake)):
        centred = x.double() - own.mean
        influence = 2 * centred @ (own.mean - other.mean) + ((centred @ (identity - transport)) * centred).sum(1)
        variance += influence.var().item() / len(x)
    return distance, math.sqrt(variance)


def _compute(inputs: Inputs) -> list[Value]:
    real, fake = require_features(inputs.real), require_features(inputs.fake)
    distance, error = standard_error(real, fake)
    n, d = min(len(real), len(fake)), real.shape[1]
    warnings = []
    if n <= d:
        warnings.append(f"{n} images for {d} features: the covariance is singular, and the distance biased upwards")
    elif n < ENOUGH:
        warnings.append(f"fewer than {ENOUGH:,} images: biased upwards, comparable only at equal counts")
    uncertainty = Uncertainty(error, "standard error", "the samples of both sets (delta method)")
    return [Value(distance, uncertainty, len(real), len(fake), warnings=tuple(warnings))]


def _protocol(num: int | None) -> Protocol:
    suffix = "" if num is None else f"{num // 1000}k_full"
    return Protocol(
        stem=f"fd{suffix}",
        version=1,
        summary="Fréchet distance of features" + (f", {num:,} samples against the whole reference" if num else ""),
        source="Heusel et al. 2017, arXiv:1706.08500, Eq. 6",
        direction="lower",
        compute=_compute,
        needs=frozenset({"features"}),
        published=(f"fid{suffix}", "inception-v3"),
        num=num,
    )


PROTOCOLS = [_protocol(None), _protocol(50_000), _protocol(10_000), _protocol(5_000)]

