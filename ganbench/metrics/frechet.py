"""Fréchet distance between Gaussians fitted to the features of two sets; over Inception-v3's pool it is FID.

    d^2 = |mu_r - mu_f|^2 + tr(S_r + S_f - 2 (S_r S_f)^(1/2))

Heusel et al. (2017), "GANs Trained by a Two Time-Scale Update Rule ...", arXiv:1706.08500, Equation 6. Covariances
are unbiased (N - 1), sums in float64. Agrees with torch-fidelity and pytorch-fid on the same features. Range
[0, inf), lower is better. Biased upwards by roughly 1/N: compare only at equal counts.

With S = R'R on either side, the trace of the root is the sum of the singular values of R_r R_f': no covariance is
squared, so that singular ones (fewer images than features, constant pixels) lose no digits.

The standard error is the delta method's: the distance is a smooth function of the moments, so to first order it is a
mean over samples of an influence, whose variance is estimated from the same samples. With T the optimal transport map
from fake to real, the influence of a fake x is 2 (mu_f - mu_r)'(x - mu_f) + (x - mu_f)'(I - T)(x - mu_f), and that of
a real one is its mirror image. With R_r R_f' = U s V', T is W'W for W = s^(-1/2) U' R_r, and s^(-1/2) V' R_f the other
way round.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Uncertainty, Value, require_features

ENOUGH = 10_000  # below this FID's bias is large enough to reorder models
CHUNK = 8192  # rows at a time, to bound the memory


@dataclass(frozen=True)
class Moments:
    """Mean (d) and unbiased covariance of n samples, the latter as its root R (min(n, d) x d): R'R. float64."""

    n: int
    mean: Tensor
    root: Tensor


def moments(features: Tensor) -> Moments:
    """Moments of N x d features. Raises Unavailable for fewer than two samples."""
    if len(features) < 2:
        raise Unavailable(f"a covariance needs at least 2 images, not {len(features)}")
    x = features.double()
    n, mean = len(x), x.mean(0)
    root = x[:0]
    for rows in x.split(CHUNK):
        root = torch.linalg.qr(torch.cat([root, rows - mean]), mode="r").R
    return Moments(n, mean, root / math.sqrt(n - 1))


def _singular_values(m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, s, V' with m = U s V'; from m m', which is several times faster, while squaring leaves enough digits."""
    squares, u = torch.linalg.eigh(m @ m.T)
    if squares[0] > 1e-12 * squares[-1]:
        s = squares.sqrt()
        return u, s, (u / s).T @ m
    return torch.linalg.svd(m, full_matrices=False)


def frechet_distance(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """The squared Fréchet distance of N x d and M x d features, and its standard error over the samples of both.

    Identical sets give 0 to within 1e-12 of their total variance. Raises Unavailable for fewer than two samples.
    """
    m_real, m_fake = moments(real), moments(fake)
    u, s, vt = _singular_values(m_real.root @ m_fake.root.T)
    delta = m_fake.mean - m_real.mean
    distance = delta @ delta + m_real.root.square().sum() + m_fake.root.square().sum() - 2 * s.sum()

    scale = torch.where(s > 1e-12 * s.max(), s.rsqrt(), 0.0)[:, None]  # the pseudo-inverse where S is singular
    to_real, to_fake = scale * (u.T @ m_real.root), scale * (vt @ m_fake.root)
    variance = _influence(fake.double(), m_fake, delta, to_real).var() / m_fake.n
    variance += _influence(real.double(), m_real, -delta, to_fake).var() / m_real.n
    return max(distance.item(), 0.0), variance.sqrt().item()


def _influence(x: Tensor, own: Moments, delta: Tensor, transport: Tensor) -> Tensor:
    """2 delta'c + c'(I - W'W)c for the rows c of N x d samples less their mean, where W (k x d) is `transport`: N."""
    parts = []
    for rows in x.split(CHUNK):
        c = rows - own.mean
        parts.append(2 * c @ delta + c.square().sum(1) - (c @ transport.T).square().sum(1))
    return torch.cat(parts)


def _compute(inputs: Inputs) -> list[Value]:
    real, fake = require_features(inputs)
    distance, error = frechet_distance(real, fake)
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
        needs=frozenset({"real.features", "fake.features"}),
        published=(f"fid{suffix}", "inception-v3"),
        num=num,
    )


PROTOCOLS = [_protocol(None), _protocol(50_000), _protocol(10_000), _protocol(5_000)]
