"""Hierarchical Parzen estimate: the log-density of test images under a model that generates images level by level.

    log p(x) = log q_K(I_K) + sum over k < K of log q_k(I_k | I_{k+1}),       I_0 = x, I_{k+1} = d(I_k)

Source: Denton et al. (2015), "Deep Generative Image Models using a Laplacian Pyramid of Adversarial Networks",
arXiv:1506.05751, Section 4 and Appendix A; their text was not at hand, and all counts are unconfirmed. q_K has Gaussian
windows at 10,000 samples of the coarsest level. q_k has them at 128 samples of level k, which are drawn for each test
image, given its true I_{k+1}. d takes means over equal areas. It fixes a part of I_k, and q_k is a density of the other
part, in an orthonormal basis. Volumes are exact, so that p is a density of x. Each level has its own sigma of 20 values
from 0.05 to 3 in the model's own unit: the one with the highest mean log-density of 50 validation images, which are
drawn from the reference.

Two values in nats, with the range (-inf, inf); higher is better. One has pixels in [0, 1], as `parzen_ll`, the other,
`@standardised`, has pixels in the unit that the model learns (LAPGAN divides each pixel by its standard deviation over
the training images). All that is said of `parzen_ll` holds: compare values at equal counts, and think little of them.
Few windows in many dimensions give low values, and true coarser levels give high ones.

The standard error is over the 200 test images, for fixed samples and sigmas. All sums are in float64.
"""

import itertools
import math

import torch
from torch import Tensor

from ganbench.metrics.contract import Inputs, Model, Protocol, Unavailable, Value, known, require_tensor

TEST, VALIDATION = 200, 50
WINDOWS, COARSEST_WINDOWS = 128, 10_000
SIGMAS = tuple(0.05 * 60 ** (i / 19) for i in range(20))


def window_log_likelihood(squares: Tensor, dims: int, sigmas: tuple[float, ...] = SIGMAS) -> Tensor:
    """Return the log-density of N points under M Gaussian windows each, in nats: float64 S x N.

    squares: squared distances to the windows' centres, N x M. dims: dimensions d of the points. sigmas: S widths.
    Raises ValueError if a width is not positive or there is no window.

    >>> window_log_likelihood(torch.tensor([[0.0], [1.0]]), 1, (1.0,)).round(decimals=3)
    tensor([[-0.9190, -1.4190]], dtype=torch.float64)
    """
    require_tensor(squares, "squares", "N x M")
    if not sigmas or min(sigmas) <= 0 or not squares.shape[1]:
        raise ValueError("there must be a window and a width, and widths must be positive")
    half = squares.double() / 2
    found = [(-half / s**2).logsumexp(1) - dims * math.log(s * math.sqrt(2 * math.pi)) for s in sigmas]
    return torch.stack(found) - math.log(half.shape[1])


def area_reduction(n: int, m: int) -> Tensor:
    """Return the matrix R, float64 m x n, of means over m equal parts of n pixels: d(I) = R I R^T.

    >>> area_reduction(4, 2)
    tensor([[0.5000, 0.5000, 0.0000, 0.0000],
            [0.0000, 0.0000, 0.5000, 0.5000]], dtype=torch.float64)
    """
    edges = torch.arange(m + 1, dtype=torch.float64)[:, None] * n / m - torch.arange(n, dtype=torch.float64)
    return edges.clamp(0, 1).diff(dim=0) * m / n


def details(images: Tensor, m: int) -> tuple[Tensor, float]:
    """Return the part of images that d, their reduction to m x m, does not fix; and the log-volume of d.

    images: N x C x n x n. The part is float64 N x C (n^2 - m^2), coordinates in an orthonormal basis of the images that
    d makes 0. The log-volume v is that of d on the complement of these: log p(I) = log p(details, d(I)) + v.

    >>> flat, volume = details(torch.ones(1, 1, 2, 2), 1)
    >>> flat.abs().max() < 1e-9, round(volume, 3)  # d is the mean of 4 pixels: 1/2 of a unit vector's coordinate
    (tensor(True), -0.693)
    """
    require_tensor(images, "images", "N x C x H x W")
    n, reduction = images.shape[3], area_reduction(images.shape[3], m)
    q, _ = torch.linalg.qr(reduction.T, mode="complete")  # its first m columns span the rows of R
    turned = q.T @ images.double() @ q
    rest = torch.ones(n, n, dtype=torch.bool)
    rest[:m, :m] = False
    volume = 2 * m * torch.linalg.slogdet(reduction @ q[:, :m])[1].item() * images.shape[1]
    return turned[..., rest].flatten(1), volume


def _squares(model: Model, level: int, levels: list[Tensor], images: Tensor, generator: torch.Generator) -> Tensor:
    """Squared distances of each image to its windows at a level, N x M."""
    assert model.sample_level
    if not level:
        many = images[torch.arange(COARSEST_WINDOWS) % len(images)]
        windows = _finite(model.sample_level(0, many, generator)).double().flatten(1)
        return torch.cdist(levels[0].double().flatten(1), windows, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    m = levels[level - 1].shape[3]
    truth = details(levels[level], m)[0]
    parts = []
    for image, own in zip(images, truth, strict=True):
        samples = _finite(model.sample_level(level, image.expand(WINDOWS, *image.shape), generator))
        parts.append((details(samples, m)[0] - own).square().sum(1))
    return torch.stack(parts)


def _finite(samples: Tensor) -> Tensor:
    if not torch.isfinite(samples).all():
        raise Unavailable("some samples of a level are not finite: the model is broken")
    return samples


def _levels(model: Model, images: Tensor) -> tuple[list[Tensor], float]:
    """The levels of the images, and log |dI_0 / dx| with x in [0, 1]. Raises Unavailable for another kind of model."""
    assert model.pyramid
    levels = model.pyramid(images)
    black, white = (model.pyramid(images[:1] * 0 + level)[-1].double() for level in (0, 255))
    slope = white - black
    if not torch.allclose(levels[-1].double(), black + slope * images / 255, rtol=1e-3, atol=1e-3) or not slope.all():
        raise Unavailable("the finest level is not the image with shifted and scaled pixels")
    for small, large in itertools.pairwise(levels):
        reduction = area_reduction(large.shape[3], small.shape[3])
        if not torch.allclose(reduction @ large.double() @ reduction.T, small.double(), rtol=1e-3, atol=1e-3):
            raise Unavailable("the levels are not means over equal areas of the next")
    return levels, slope.abs().log().sum().item()


def _drawn(inputs: Inputs) -> dict[str, Tensor]:
    """Rows of the validation images in the reference, and of the test images among the held-out ones."""
    if inputs.held_out is None:
        raise Unavailable("there are no real images beside the reference to test on")
    if len(inputs.real) < 1 or len(inputs.held_out) < 2:
        counts = f"not {len(inputs.real)} and {len(inputs.held_out)}"
        raise Unavailable(f"needs at least 1 validation image and 2 test images, {counts}")
    if inputs.real.images.shape[1:] != inputs.held_out.images.shape[1:]:
        raise Unavailable("the reference and the held-out images need to have one size")
    draw = {"real": (inputs.real, VALIDATION), "held_out": (inputs.held_out, TEST)}
    return {name: torch.randperm(len(side), generator=inputs.generator)[:n] for name, (side, n) in draw.items()}


def _compute(inputs: Inputs) -> list[Value]:
    model, rows = inputs.model, _drawn(inputs)
    assert model
    assert inputs.held_out
    valid, test = inputs.real.images[rows["real"]], inputs.held_out.images[rows["held_out"]]
    images = torch.cat([valid, test])
    levels, log_slope = _levels(model, images)
    own = torch.zeros(len(test), dtype=torch.float64)
    found: dict[str, float] = {}
    for level, truth in enumerate(levels):
        side = truth.shape[3]
        dims, volume = truth[0].numel(), 0.0
        if level:
            m = levels[level - 1].shape[3]
            dims, volume = truth.shape[1] * (side**2 - m**2), details(truth[:1], m)[1]
        likelihood = window_log_likelihood(_squares(model, level, levels, images, inputs.generator), dims)
        best = int(likelihood[:, : len(valid)].mean(1).argmax())
        own += likelihood[best, len(valid) :] + volume
        found |= {f"sigma_{side}": SIGMAS[best], f"level_{side}": likelihood[best, len(valid) :].mean().item()}
    ends = [side for side in (t.shape[3] for t in levels) if found[f"sigma_{side}"] in (SIGMAS[0], SIGMAS[-1])]
    warnings = tuple(f"the best sigma at {side} x {side} is at the end of the grid" for side in ends)
    value, deviation = own.mean().item(), own.std().item()
    uncertainty, unknown = known(
        deviation / math.sqrt(len(test)), "the test images", value, "all test images have one density", len(test)
    )
    found |= {"windows": WINDOWS, "validation_images": len(valid), "deviation_over_images": deviation}
    return [
        Value(v, uncertainty, len(test), WINDOWS, suffix=suffix, details=found, warnings=(*warnings, *unknown))
        for suffix, v in (("", value + log_slope), ("@standardised", value))
    ]


PROTOCOLS = [
    Protocol(
        stem="hierarchical_parzen_ll",
        version=1,
        summary=f"Log-likelihood (nats) of {TEST} test images by levels, {WINDOWS} windows given the true coarser",
        source="Denton et al. 2015, arXiv:1506.05751, App. A",
        direction="higher",
        compute=_compute,
        needs=frozenset({"model.pyramid", "real.images", "held_out.images"}),
        rows=_drawn,
        real_row="none",
    )
]
