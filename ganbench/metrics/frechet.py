"""Fréchet distance between Gaussians fitted to the features of two sets; with Inception-v3's pool features it is FID.

    d^2 = |mu_r - mu_f|^2 + tr(S_r + S_f - 2 (S_r S_f)^(1/2))

Source: Heusel et al. (2017), "GANs Trained by a Two Time-Scale Update Rule ...", arXiv:1706.08500, Equation 6.
Covariances are unbiased (N - 1), sums are in float64. The result agrees with torch-fidelity and pytorch-fid on the same
features. Range [0, inf), lower is better. The distance is biased upwards by roughly 1/N: compare at equal counts only.

With S = R'R for each set, the trace of the matrix square root is the sum of the singular values of R_r R_f'. If there
are fewer images than features, R is the matrix of centred features: singular covariances then lose no digits, and small
sets give small problems. Otherwise R is the Cholesky factor, and the eigenvalues of R_r S_f R_r' give the squared
singular values. Squaring loses digits; the loss is bounded, and if it could matter (the sets are nearly equal) the
singular values are computed directly.

The standard error is that of the delta method. The distance is a smooth function of the moments: to first order it is a
mean of influences over the samples, and their variance is estimated from the same samples. With T the optimal transport
map from generated to real features, the influence of a generated x is
2 (mu_f - mu_r)'(x - mu_f) + (x - mu_f)'(I - T)(x - mu_f), and that of a real x follows by exchanging the sets. With
R_r R_f' = U s V', T is W'W for W = s^(-1/2) U' R_r; for the exchanged sets W is s^(-1/2) V' R_f. The standard error
does not include the bias, which is larger than the error if there are few images. There is no error if the distance is
0 up to rounding: the influences of equal sets vanish. The variance is estimated from at most 5,000 rows of a set.

Use in a training loop, with memory that does not grow with the number of images:

    reference, samples = moments(real_features), MomentsAccumulator()
    for batch in batches: samples.update(extract(batch))
    fid = frechet_distance_from_moments(reference, samples.moments())

Two metrics are derived from this distance. `intra_fd` is its mean over classes: Miyato and Koyama (2018), "cGANs with
Projection Discriminator", arXiv:1802.05637, Section 4. `fd_inf` is its limit for infinitely many generated images:
Chong and Forsyth (2020), "Effectively Unbiased FID and Inception Score and where to find them", arXiv:1911.07023,
Section 4. It is the intercept of a line, fitted over 1/n to the distances of 15 random subsets of n = 5,000 up to all
images. It is not clipped at 0, because an unbiased estimate can be slightly negative. The bias from the reference's
count remains, and so does the error of the linear model if subsets have hardly more images than features. Its standard
error is that of the first order, or that of the fitted line's intercept if this is larger.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganbench.metrics.contract import (
    NOTHING,
    Inputs,
    Protocol,
    Side,
    Unavailable,
    Uncertainty,
    Value,
    features_of,
    known,
    require_features,
    require_labels,
    require_rows,
    require_same_names,
)
from ganbench.metrics.products import blas_product

Array = NDArray[Any]  # float64

ENOUGH = 10_000  # with fewer images the bias of FID can change the order of models
CHUNK = 2048  # rows at a time, to bound the memory
MOST = 5_000  # rows for the variance of the influence: the error of a standard error is 1 / sqrt(2 * 5,000) = 1 %
SMALL = 512  # up to this number of features float64 and direct singular values cost little
EQUAL = 1e-10  # share of the total variance; a smaller distance is rounding
INDEFINITE = 1e-5  # share of the largest eigenvalue; a negative one below it is no rounding (see `check_moments`)
LOSS = 1e-8  # relative error of the distance that is accepted from squared singular values
INF_POINTS, INF_START = 15, 5000


@dataclass(frozen=True)
class Moments:
    """The moments of n samples (0: unknown): mean (float64 d) and unbiased covariance (float64 d x d).

    >>> moments(torch.tensor([[0.0, 0.0], [2.0, 4.0]])).cov
    tensor([[2., 4.],
            [4., 8.]], dtype=torch.float64)
    """

    n: int
    mean: Tensor
    cov: Tensor


class MomentsAccumulator:
    """Moments of rows that arrive in batches, in memory of d x d for any number of rows.

    Each chunk is centred on its own mean and merged with the previous rows by the pairwise update of Chan, Golub and
    LeVeque (1979). No digits are lost if the mean is far from 0 or changes during the update.

    >>> accumulator = MomentsAccumulator()
    >>> for batch in torch.arange(10.0).view(5, 2, 1):
    ...     accumulator.update(batch)
    >>> accumulator.moments().mean
    tensor([4.5000], dtype=torch.float64)
    """

    def __init__(self) -> None:
        self.n = 0  # rows that are included in mean and scatter
        self._waiting = 0  # rows in the buffer
        self._mean: Array = np.empty(0)
        self._scatter: Array = np.empty((0, 0))
        self._buffer: Array = np.empty((0, 0))

    def __len__(self) -> int:
        return self.n + self._waiting

    def update(self, rows: Tensor) -> None:
        """Add N x d rows of any floating dtype and device. Raises ValueError if d differs from earlier rows."""
        if rows.ndim != 2 or (len(self._mean) and rows.shape[1] != len(self._mean)):
            raise ValueError(f"rows of {len(self._mean) or 'd'} features are expected, not {tuple(rows.shape)}")
        if not len(self._mean):
            self._start(rows.shape[1])
        rows = rows.detach()
        while len(rows):
            take = min(CHUNK - self._waiting, len(rows))
            into = torch.from_numpy(self._buffer)[self._waiting : self._waiting + take]
            into.copy_(rows[:take])
            self._waiting, rows = self._waiting + take, rows[take:]
            if self._waiting == CHUNK:
                self._fold()

    def merge(self, other: "MomentsAccumulator") -> None:
        """Add all rows of another accumulator (of another process, for instance), which keeps its moments.

        Raises ValueError if d differs.
        """
        if not len(other):
            return
        other._fold()
        if not len(self._mean):
            self._start(len(other._mean))
        if len(self._mean) != len(other._mean):
            raise ValueError(f"rows of {len(self._mean)} features are expected, not {len(other._mean)}")
        self._fold()
        self._scatter += other._scatter
        self._join(other.n, other._mean, self._buffer[:0])

    def state(self) -> dict[str, Tensor]:
        """Return count, mean and sums of squares around the mean (lower triangle, float64), for `from_state`."""
        self._fold()
        return {
            "n": torch.tensor(self.n), "mean": torch.from_numpy(self._mean.copy()),
            "scatter": torch.from_numpy(np.tril(self._scatter)),
        }

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "MomentsAccumulator":
        """Return an accumulator that goes on from `state()`. Raises ValueError if its shapes do not fit together."""
        made, mean, scatter = cls(), state["mean"].double().numpy(), state["scatter"].double().numpy()
        if mean.ndim != 1 or scatter.shape != (len(mean), len(mean)):
            raise ValueError(f"a mean of {mean.shape} and sums of squares of {scatter.shape} do not belong together")
        if len(mean):
            made._start(len(mean))
            made.n, made._mean, made._scatter = int(state["n"]), mean.copy(), np.array(scatter, order="F")
        return made

    def moments(self) -> Moments:
        """Return the moments of all rows so far; more rows may follow. Raises Unavailable for fewer than two rows."""
        if len(self) < 2:
            raise Unavailable(f"a covariance needs at least 2 images, not {len(self)}")
        self._fold()
        cov = np.tril(self._scatter)
        cov += np.tril(cov, -1).T
        cov /= self.n - 1
        return Moments(self.n, torch.from_numpy(self._mean.copy()), torch.from_numpy(np.ascontiguousarray(cov)))

    def _start(self, d: int) -> None:
        self._mean = np.zeros(d)
        self._scatter = np.zeros((d, d), order="F")  # sums of squares around the mean, lower triangle
        self._buffer = np.empty((CHUNK + 1, d))  # the additional row is for the shift between two means

    def _fold(self) -> None:
        if not self._waiting:
            return
        rows = self._buffer[: self._waiting]
        mean = rows.mean(0)
        rows -= mean
        count, self._waiting = self._waiting, 0
        self._join(count, mean, rows)

    def _join(self, count: int, mean: Array, rows: Array) -> None:
        """Add `count` rows, given by their mean and by the centred rows that are not yet in the scatter."""
        from scipy.linalg.blas import dsyrk

        total = self.n + count
        shift = mean - self._mean
        rows = self._buffer[: len(rows) + 1]
        rows[-1] = math.sqrt(self.n * count / total) * shift
        self._scatter = dsyrk(1.0, rows.T, beta=1.0, c=self._scatter, lower=1, overwrite_c=1)
        self._mean += shift * (count / total)
        self.n = total


def moments(features: Tensor) -> Moments:
    """Return the mean (float64 d) and the unbiased covariance (float64 d x d) of features.

    features: N x d, any floating dtype and device.
    Raises Unavailable for fewer than two samples.

    >>> moments(torch.tensor([[0.0, 0.0], [2.0, 4.0]])).mean
    tensor([1., 2.], dtype=torch.float64)
    """
    require_rows(features, names=("features",))
    accumulator = MomentsAccumulator()
    accumulator.update(features)
    return accumulator.moments()


def check_moments(mean: Any, cov: Any, n: int = 0) -> Moments:
    """Return a mean and a covariance as float64 moments, if they can be those of n samples.

    mean: d. cov: d x d. n: number of samples, or 0 if it is unknown.
    Raises ValueError unless the shapes fit, all values are finite, n is 0 or at least 2, and the covariance is
    symmetric without a negative eigenvalue. An eigenvalue may be as low as -1e-5 of the largest, and two mirrored
    entries may differ by 1e-5 of the largest variance: rounding to float32 changes eigenvalues by at most 2^-24 d^(1/2)
    of the largest (3e-6 for d = 2,048), sums in float32 by a few times that, and a wrong matrix by far more.

    >>> check_moments([0.0, 1.0], [[2.0, 0.0], [0.0, 1.0]], n=10).mean
    tensor([0., 1.], dtype=torch.float64)
    """
    try:
        mean, cov = (torch.as_tensor(x).detach().cpu().to(torch.float64) for x in (mean, cov))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"mean and covariance must be arrays of numbers: {error}") from error
    _checked(Moments(n, mean, cov))
    return Moments(int(n), mean, cov if torch.equal(cov, cov.T) else (cov + cov.T) / 2)


def _checked(m: Moments) -> "_Gaussian":
    """The Gaussian of moments. Raises ValueError as `check_moments` says."""
    mean, cov = m.mean, m.cov
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)) or not len(mean):
        shapes = f"{tuple(mean.shape)} and {tuple(cov.shape)}"
        raise ValueError(f"mean and covariance must have the shapes (d,) and (d, d), not {shapes}")
    if isinstance(m.n, bool) or int(m.n) != m.n or m.n < 0 or m.n == 1:
        raise ValueError(f"moments must be those of at least 2 samples, or of 0 for an unknown number, not of {m.n}")
    if not (torch.isfinite(mean).all() and torch.isfinite(cov).all()):
        raise ValueError("mean and covariance must be finite")
    largest = cov.diagonal().abs().max().item()
    if (apart := (cov - cov.T).abs().max().item()) > INDEFINITE * largest:
        raise ValueError(f"a covariance must be symmetric, and two mirrored entries differ by {apart:.2g}")
    gaussian = _from_moments(m)
    assert gaussian.cov is not None
    if _cholesky(gaussian.cov) is None:
        values = gaussian.spectrum[0]
        if values[0] < -INDEFINITE * max(values[-1], 0.0):
            raise ValueError(
                f"a covariance has no negative eigenvalue, and this matrix has {values[0]:.2g} "
                f"(its largest is {values[-1]:.2g})"
            )
    return gaussian


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Return the squared Fréchet distance of two sets of features, in [0, inf).

    real, fake: N x d and M x d, any floating dtype and device. Identical sets give 0 to within 1e-12 of their total
    variance.
    Raises Unavailable if a set has fewer than two samples.
    Source: Heusel et al. (2017), Equation 6.

    >>> round(frechet_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0]])), 6)
    6.0
    """
    require_rows(real, fake)
    return _distance(_from_features(real), _from_features(fake))


def frechet_distance_from_moments(real: Moments, fake: Moments) -> float:
    """Return the squared Fréchet distance of two Gaussians, in [0, inf); their covariances may be singular.

    real, fake: moments with mean d and covariance d x d.
    Raises ValueError if they cannot be moments (see `check_moments`) or if d differs.
    Source: Heusel et al. (2017), Equation 6.

    >>> real = Moments(0, torch.zeros(2), torch.eye(2))
    >>> round(frechet_distance_from_moments(real, Moments(0, torch.ones(2), 4 * torch.eye(2))), 6)
    4.0
    """
    a, b = _checked(real), _checked(fake)
    if len(a.mean) != len(b.mean):
        raise ValueError(f"moments of {len(a.mean)} real and of {len(b.mean)} generated features cannot be compared")
    return _distance(a, b)


def frechet_distance_and_error(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """Return `frechet_distance(real, fake)` and its first-order standard error over the samples of both sets.

    Both together take about three times as long as the distance alone.
    """
    require_rows(real, fake)
    a, b = _from_features(real), _from_features(fake)
    distance, variance_real, variance_fake = _distance_and_variances(a, b, real, fake)
    return distance, math.sqrt(variance_real / a.n + variance_fake / b.n)


def frechet_standard_error(real: Tensor, fake: Tensor) -> float:
    """Return the first-order standard error of `frechet_distance(real, fake)` over the samples of both sets.

    real, fake: N x d and M x d, any floating dtype and device. The result is in [0, inf).
    Raises Unavailable if a set has fewer than two samples.
    Source: delta method.

    >>> round(frechet_standard_error(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0]])), 3)
    8.944
    """
    return frechet_distance_and_error(real, fake)[1]


# --- One set


@dataclass
class _Gaussian:
    """Mean and covariance of n samples. The covariance is given as S (d x d) or as a root R (r x d) with S = R'R."""

    n: int
    mean: Array
    cov: Array | None = None
    rows: Array | None = None

    @cached_property
    def root(self) -> Array:
        """R: the given rows, the Cholesky factor, or, if S is singular, scaled eigenvectors above rounding."""
        if self.rows is not None:
            return self.rows
        assert self.cov is not None
        if (factor := _cholesky(self.cov)) is not None:
            return factor
        values, vectors = self.spectrum
        kept = values > len(values) * np.finfo(float).eps * max(values[-1], 0.0)
        root: Array = np.sqrt(values[kept])[:, None] * vectors[:, kept].T
        return root

    @cached_property
    def spectrum(self) -> tuple[Array, Array]:
        """Eigenvalues, ascending, and eigenvectors of the covariance."""
        assert self.cov is not None
        values, vectors = np.linalg.eigh(self.cov)
        return values, vectors

    @cached_property
    def trace(self) -> float:
        """The total variance."""
        return float(np.trace(self.cov) if self.cov is not None else np.square(self.root).sum())

    def times(self, x: Array) -> Array:
        """x S for k x d."""
        product: Array = x @ self.cov if self.cov is not None else (x @ self.root.T) @ self.root
        return product


def _from_moments(m: Moments) -> _Gaussian:
    mean, cov = (x.detach().cpu().double().numpy() for x in (m.mean, m.cov))
    return _Gaussian(m.n, mean, cov)


def _from_features(x: Tensor) -> _Gaussian:
    """Gaussian fit of features. With n <= d the centred rows are the root, and S is never computed."""
    n, d = x.shape
    if n > d:
        return _from_moments(moments(x))
    if n < 2:
        raise Unavailable(f"a covariance needs at least 2 images, not {n}")
    rows = x.detach().cpu().double().numpy()
    mean = rows.mean(0)
    return _Gaussian(n, mean, rows=(rows - mean) / math.sqrt(n - 1))


def _cholesky(s: Array) -> Array | None:
    """The upper triangular R with S = R'R, or None if S is singular up to rounding."""
    from scipy.linalg.lapack import dpotrf

    factor, info = dpotrf(s.T, lower=0, clean=1)  # S is symmetric; the transpose has LAPACK's memory order
    smallest = np.square(np.diagonal(factor)).min(initial=np.inf)
    if info or smallest <= len(s) * np.finfo(float).eps * np.diagonal(s).max(initial=0.0):
        return None
    return np.asarray(factor)


# --- Two sets


def _squares(a: _Gaussian, b: _Gaussian) -> Array:
    """R_a S_b R_a', whose eigenvalues are the squared singular values of R_a R_b'."""
    from scipy.linalg.lapack import dsygst

    if b.cov is None:
        c = a.root @ b.root.T
        return np.asarray(c @ c.T)
    if a.rows is None and len(a.root) == len(b.cov):  # R_a is triangular: half the work
        upper, info = dsygst(b.cov.T, a.root, itype=2, lower=0)
        assert info == 0
        return np.asarray(upper).T  # only the lower triangle is set, and eigh reads only that
    return np.asarray((a.root @ b.cov) @ a.root.T)


def _rank(a: _Gaussian, b: _Gaussian) -> int:
    """An upper bound of the rank of R_a R_b': n centred rows have rank n - 1 at most. n is 0 if unknown."""
    return min(min(g.n - 1, len(g.mean)) if g.n else len(g.mean) for g in (a, b))


def _ordered(a: _Gaussian, b: _Gaussian) -> tuple[_Gaussian, _Gaussian]:
    """The Gaussian with the smaller root first: its root determines the size of the problem."""
    sides = [len(g.mean) if g.rows is None else len(g.rows) for g in (a, b)]
    return (a, b) if sides[0] <= sides[1] else (b, a)


def _distance(real: _Gaussian, fake: _Gaussian) -> float:
    a, b = _ordered(real, fake)
    if len(a.mean) > SMALL:
        total = _from_squares(a, b, np.linalg.eigvalsh(_squares(a, b)))
        if total is not None:
            return total
    return _from_singular_values(a, b, np.linalg.svd(a.root @ b.root.T, compute_uv=False))


def _from_singular_values(a: _Gaussian, b: _Gaussian, s: Array) -> float:
    delta = a.mean - b.mean
    return max(float(delta @ delta + a.trace + b.trace - 2 * s.sum()), 0.0)


def _from_squares(a: _Gaussian, b: _Gaussian, squares: Array) -> float | None:
    """The distance from squared singular values (ascending), or None if their rounding could change the result."""
    squares = squares[max(len(squares) - _rank(a, b), 0) :]
    if not len(squares):
        return None
    rounding = np.finfo(float).eps * squares[-1]
    s = np.sqrt(np.maximum(squares, 0.0))
    distance = _from_singular_values(a, b, s)
    loss = (rounding / np.maximum(s, math.sqrt(max(rounding, np.finfo(float).tiny)))).sum()
    return distance if loss <= LOSS * distance else None


def _distance_and_variances(
    real: _Gaussian, fake: _Gaussian, x: Tensor | None, y: Tensor | None
) -> tuple[float, float, float]:
    """The distance, and the variances of the influences of the real samples x and generated samples y (None: 0)."""
    a, b = _ordered(real, fake)
    distance: float | None = None
    if small := len(a.mean) <= SMALL:
        u, s, vt = np.linalg.svd(a.root @ b.root.T, full_matrices=False)
        distance, kept = _from_singular_values(a, b, s), s > 1e-12 * s.max(initial=0.0)
        u, s, vt = u[:, kept], s[kept, None], vt[kept]  # the pseudo-inverse, if S is singular
        to_a, to_b = u.T @ a.root / np.sqrt(s), vt @ b.root / np.sqrt(s)
    else:
        from scipy.linalg import eigh

        squares, u = eigh(_squares(a, b), driver="evd", check_finite=False)
        distance = _from_squares(a, b, squares)
        if distance is None:
            distance = _from_singular_values(a, b, np.linalg.svd(a.root @ b.root.T, compute_uv=False))
        kept = squares > 1e-14 * squares.max(initial=0.0)
        s = np.sqrt(squares[kept, None])
        to_a = u[:, kept].T @ a.root / np.sqrt(s)
        to_b = b.times(to_a) / s
    to_real, to_fake = (to_a, to_b) if a is real else (to_b, to_a)
    delta = fake.mean - real.mean
    scale = math.sqrt((real.trace + fake.trace) / len(delta) + float(np.square(delta).mean()))
    dtype = torch.float64 if small else torch.float32
    variance_fake = 0.0 if y is None else _variance(y, fake.mean, delta, to_real, scale, dtype)
    variance_real = 0.0 if x is None else _variance(x, real.mean, -delta, to_fake, scale, dtype)
    return distance, variance_real, variance_fake


def some_rows(x: Tensor) -> Tensor:
    """Return at most MOST evenly spaced rows of N x d, because a set may be ordered by class: rows 0, s, 2s, ..."""
    return x[:: max(1, -(-len(x) // MOST))]


def _variance(x: Tensor, mean: Array, delta: Array, transport: Array, scale: float, dtype: torch.dtype) -> float:
    """The variance of 2 delta'c + c'(I - W'W)c over the centred rows c of N x d samples; W is `transport` (k x d).

    scale: a typical deviation. All terms are divided by it, so that float32 neither overflows nor underflows.
    """
    if scale == 0.0:
        return 0.0
    x = some_rows(x.detach().cpu())
    centre, w = torch.from_numpy(mean), torch.from_numpy(transport).to(dtype)
    towards = torch.from_numpy(2 * delta / scale).to(dtype)
    parts = []
    for rows in x.split(CHUNK):
        c = ((rows.double() - centre) / scale).to(dtype)
        part = blas_product(c, towards[None])[:, 0].double() + c.square().sum(1, dtype=torch.float64)
        parts.append(part - blas_product(c, w).square_().sum(1, dtype=torch.float64))
    return torch.cat(parts).var().item() * scale**4


# --- Protocols


def _gaussian(side: Side) -> _Gaussian:
    """Gaussian fit of one set, from cached moments if that is cheaper. A set may consist of moments alone."""
    if side.features is not None and len(side.features) <= side.features.shape[1]:
        return _from_features(side.features)

    def make() -> dict[str, Tensor]:
        m = moments(features_of(side))
        return {"n": torch.tensor(m.n), "mean": m.mean, "cov": m.cov}

    kept = side.keep("moments/1", make)
    return _from_moments(Moments(int(kept["n"]), kept["mean"], kept["cov"]))


def _rows(side: Side) -> Tensor | None:
    """Features for the standard error: all of a set, or those that were kept beside its moments."""
    return side.some if side.features is None else side.features


def _sides(inputs: Inputs) -> tuple[_Gaussian, _Gaussian]:
    """Gaussian fits of both sets. Raises Unavailable like `require_features`."""
    for side in (inputs.real, inputs.fake):
        if side.features is not None or "moments/1" not in side.kept:
            features_of(side)
    real, fake = _gaussian(inputs.real), _gaussian(inputs.fake)
    if len(real.mean) != len(fake.mean):
        raise Unavailable(f"{len(real.mean)} features of real images and {len(fake.mean)} of fake ones")
    for gaussian, what in ((real, "real"), (fake, "generated")):
        if not (np.isfinite(gaussian.mean).all() and np.isfinite(gaussian.trace)):
            raise Unavailable(f"the moments of the {what} features are not finite")
    return real, fake


def _measured(inputs: Inputs) -> tuple[_Gaussian, _Gaussian, float, float, float]:
    """Both Gaussians, their distance and the variances of the influences, computed once for all protocols."""

    def make() -> tuple[_Gaussian, _Gaussian, float, float, float]:
        real, fake = _sides(inputs)
        return real, fake, *_distance_and_variances(real, fake, _rows(inputs.real), _rows(inputs.fake))

    found: tuple[_Gaussian, _Gaussian, float, float, float] = inputs.share("frechet distance", make)
    return found


def _over(inputs: Inputs) -> str:
    if _rows(inputs.real) is None:
        return "the generated samples (delta method); the reference is given by its moments"
    return "the samples of both sets (delta method)"


def _known(error: float, over: str, inputs: Inputs) -> tuple[Uncertainty | None, tuple[str, ...]]:
    """The uncertainty, or the reason why there is none: the first order vanishes if the sets are equal or constant."""
    real, fake, distance, *variances = _measured(inputs)
    rows = [x for x in (_rows(inputs.real), _rows(inputs.fake)) if x is not None]
    if _rows(inputs.fake) is None:
        return None, ("no uncertainty is known: the samples are given by their moments alone",)
    delta = fake.mean - real.mean
    whole = real.trace + fake.trace + float(delta @ delta)
    varies = distance > EQUAL * whole and math.sqrt(sum(variances)) > NOTHING * whole
    alike = "both sets are equal, or their features do not vary"
    return known(error if varies else 0.0, over, 0, alike, min(map(len, rows)))


def _too_few(n: int, d: int, what: str = "") -> tuple[str, ...]:
    if n <= d:
        return (f"{n} images{what} for {d} features: the covariance is singular, and the distance biased upwards",)
    if n < ENOUGH:
        return (f"fewer than {ENOUGH:,} images{what}: biased upwards, comparable only at equal counts",)
    return ()


def _compute(inputs: Inputs) -> list[Value]:
    real, fake, distance, variance_real, variance_fake = _measured(inputs)
    error = math.sqrt(variance_real / max(real.n, 1) + variance_fake / max(fake.n, 1))
    n = fake.n if _rows(inputs.real) is None else min(real.n, fake.n)
    uncertainty, unknown = _known(error, _over(inputs), inputs)
    return [Value(distance, uncertainty, real.n, fake.n, warnings=(*_too_few(n, len(fake.mean)), *unknown))]


def _compute_intra(inputs: Inputs) -> list[Value]:
    real, fake = require_features(inputs)
    labels_real, labels_fake = require_labels(inputs.real), require_labels(inputs.fake)
    require_same_names(inputs.fake.classes, inputs.real.classes, "the samples", "the reference")
    classes = torch.cat([labels_real, labels_fake]).unique().tolist()
    counts = {c: (int((labels_real == c).sum()), int((labels_fake == c).sum())) for c in classes}
    for c, (n, m) in counts.items():
        if min(n, m) < 2:
            raise Unavailable(f"every class needs at least 2 images in each set: class {c} has {n} and {m}")
    values, variance = {}, 0.0
    for c in classes:
        x, y = real[labels_real == c], fake[labels_fake == c]
        values[str(c)], v_real, v_fake = _distance_and_variances(_from_features(x), _from_features(y), x, y)
        variance += v_real / len(x) + v_fake / len(y)
    error = math.sqrt(variance) / len(classes)
    fewest = min(min(n) for n in counts.values())
    warnings = _too_few(fewest, real.shape[1], " in a class")
    mean = sum(values.values()) / len(values)
    over = "the samples of both sets (delta method), classes given"
    alike = "in every class both sets are equal, or their features do not vary"
    total_variance = sum(x.var(0, correction=0).sum(dtype=torch.float64).item() for x in (real, fake))
    uncertainty, unknown = known(error if mean > EQUAL * total_variance else 0.0, over, mean, alike, fewest)
    details = {"per_class": values}
    return [Value(mean, uncertainty, len(real), len(fake), details=details, warnings=(*warnings, *unknown))]


def subset_sizes(n: int) -> list[int]:
    """Return 15 sizes, evenly spaced from 5,000 (or n / 2, if that is smaller) to n. Raises Unavailable for n < 4."""
    if n < 4:
        raise Unavailable(f"an extrapolation over subsets of 2 and more needs at least 4 images, not {n}")
    return [int(size) for size in np.linspace(min(INF_START, n // 2), n, INF_POINTS)]


def _compute_inf(inputs: Inputs) -> list[Value]:
    sizes = subset_sizes(len(features_of(inputs.fake)))
    real, whole, distance, variance_real, variance_fake = _measured(inputs)
    fake = features_of(inputs.fake)
    n, d = fake.shape
    # The intercept of least squares is a weighted sum of the distances.
    inverse = 1 / np.array(sizes)
    centred = inverse - inverse.mean()
    weights = 1 / len(sizes) - inverse.mean() * centred / np.square(centred).sum()
    values, share = [], torch.zeros(n, dtype=torch.float64)
    for size, weight in zip(sizes, weights, strict=True):
        if size == n:
            drawn = torch.arange(n)
            values.append(distance)
        else:
            drawn = torch.randperm(n, generator=inputs.generator)[:size]
            values.append(_distance(real, _from_features(fake[drawn])))
        share[drawn] += weight / size
    # To first order each distance is a mean of influences over its subset, so that the intercept weights each sample by
    # its share. This includes the overlap and the draw of the subsets.
    first_order = variance_real / max(real.n, 1) + variance_fake * share.square().sum().item()
    residuals = np.array(values) - np.polyval(np.polyfit(inverse, values, 1), inverse)
    of_line = np.square(residuals).sum() / (len(sizes) - 2) * np.square(weights).sum()  # the error of an intercept
    over = _over(inputs).replace("method)", "method) and draw of subsets")
    uncertainty, unknown = _known(math.sqrt(max(first_order, of_line)), over, inputs)
    warnings = []
    if sizes[0] < INF_START:
        warnings.append(f"subsets from {sizes[0]:,} images, not {INF_START:,}: {n:,} images are few")
    if sizes[0] <= d:
        warnings.append(f"subsets of {sizes[0]:,} images for {d} features: the distance is not linear in 1/n there")
    slope = float(centred @ np.array(values) / np.square(centred).sum())
    details = {"sizes": sizes, "distances": values, "slope": slope}
    value = float(weights @ np.array(values))
    return [Value(value, uncertainty, real.n, whole.n, details=details, warnings=(*warnings, *unknown))]


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
        by_moments=True,
        fake_by_moments=True,
    )


PROTOCOLS = [
    _protocol(None),
    _protocol(50_000),
    _protocol(10_000),
    _protocol(5_000),
    Protocol(
        stem="intra_fd",
        version=1,
        summary="Fréchet distance of features within each class, mean over classes",
        source="Miyato & Koyama 2018, arXiv:1802.05637, Sec. 4",
        direction="lower",
        compute=_compute_intra,
        needs=frozenset({"real.features", "real.labels", "fake.features", "fake.labels"}),
        published=("intra_fid", "inception-v3"),
    ),
    Protocol(
        stem="fd_inf",
        version=1,
        summary=f"Fréchet distance extrapolated to infinitely many samples, over {INF_POINTS} sizes",
        source="Chong & Forsyth 2020, arXiv:1911.07023, Sec. 4",
        direction="lower",
        compute=_compute_inf,
        needs=frozenset({"real.features", "fake.features"}),
        published=("fid_inf", "inception-v3"),
        by_moments=True,
    ),
]
