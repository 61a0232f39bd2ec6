"""Memorisation: are the generated images copies of training images?

Two shares. The first looks at features: with t the training sample nearest to a fake f, and t' the training sample
nearest to t,

    auth_share = mean over fakes of 1[ 0 < d(f, t) >= d(t, t') ]

Alaa et al. (2022), "How Faithful is your Synthetic Data? Sample-level Metrics for Evaluating and Auditing Generative
Models", arXiv:2102.08921, Section 3.3: a sample nearer to a training sample than any other training sample is, is not
authentic (the paper prints a percentage, 0 to 100). A copy is never authentic here, not even of a sample that is in the
training set twice. Range [0, 1], higher is better; its ceiling is the row of real images.

The second looks at pixels: nearest neighbours among the training images in L1, as in Odena et al. (2017),
"Conditional Image Synthesis with Auxiliary Classifier GANs", arXiv:1610.09585, Section 4.4, which shows them as a
picture. What is near is what held-out real images say is near. With h of them, L1 distances D_1 <= ... <= D_h to
their nearest training images, and j = max(1, floor((h + 1) / 100)),

    memorised_share = mean over fakes of 1[ L1 distance to the nearest training image <= D_j ]

Range [0, 1], lower is better. New real images get j / (h + 1), about 1 %, and a generator that copies gets 1. One that
makes simple images (blank ones, say) is near to simple training images without having copied them, and gets more too:
look at the pairs, which `details` lists. Of more than 1,000 images on either side, 1,000 are drawn.

Standard errors: auth_share over the samples of both sets, by subsampling as for precision and recall, and never less
than that over the fakes alone (by cluster: those at the same training sample go together); memorised_share over the
fakes (binomial, with two successes and two failures added) and over the held-out images (by the order statistics
about D_j).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ganbench.metrics.contract import Inputs, Protocol, Unavailable, Uncertainty, Value, require_features
from ganbench.metrics.distances import Rows, exact, mean, squared_distances, tile, usual
from ganbench.metrics.manifold import neighbours_of, subsampled_errors
from ganbench.metrics.nearest_neighbour import nearest

QUERIES = 1000  # images on either side whose nearest training images are looked for: each is compared with all of them
CLOSEST = 10  # pairs that are listed
NEAR = 100  # one held-out image in so many is 'near'
CROWDED = 10  # more than one candidate in so many is many
ROUNDING = 1 + 1e-4  # of sums in float32, generously
BLOCK = 4  # pixels a side of the blocks whose sums bound an L1 distance from below


def nearest_training_images(real: Tensor, fake: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """The k nearest of N real images (or features) to each of M fakes: indices int64 M x k, distances float64 M x k.

    Images, uint8 x C x H x W: by L1 over pixels, 0 to 255 each. Features, floating x d: Euclidean. Ascending; the
    first of equals first. Raises Unavailable for fewer than k reals, or images of two sizes.
    """
    if len(real) < k:
        raise Unavailable(f"{k} nearest training images need at least {k} of them, not {len(real)}")
    if real.shape[1:] != fake.shape[1:]:
        raise Unavailable("generated and real images differ in size")
    if not len(fake):
        return torch.zeros(0, k, dtype=torch.int64), torch.zeros(0, k, dtype=torch.float64)
    return _nearest_l1(real, fake, k) if real.dtype == torch.uint8 else _nearest_euclidean(real, fake, k)


def _nearest_l1(real: Tensor, fake: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """By L1. Sums over blocks of pixels differ by no more than the pixels do, which rules out most candidates.

    Where many are left, since a query is far from all, float32 says which are near; whole numbers have the last word.
    """
    sums_real, sums_fake = (_block_sums(s) for s in (real, fake))
    pixels = real.flatten(1)
    indices, distances = [], []
    for queries, sums in zip(fake.flatten(1).split(64), sums_fake.split(64), strict=True):
        bounds = torch.cdist(sums, sums_real, p=1)
        likely = bounds.topk(k, largest=False).indices
        reach = torch.stack([_l1(q, pixels[some]).max() for q, some in zip(queries, likely, strict=True)]) * ROUNDING
        if (crowded := (bounds <= reach[:, None]).sum(1) > len(real) // CROWDED).any():
            some = queries[crowded].float()
            bounds[crowded] = torch.cat([torch.cdist(some, part.float(), p=1) for part in pixels.split(2048)], 1)
            reach[crowded] = bounds[crowded].topk(k, largest=False).values[:, -1] * ROUNDING
        for query, bound, most in zip(queries, bounds, reach, strict=True):
            candidates = (bound <= most).nonzero().squeeze(1)
            exactly, order = _l1(query, pixels[candidates]).sort(stable=True)
            indices.append(candidates[order[:k]])
            distances.append(exactly[:k])
    return torch.stack(indices), torch.stack(distances).double()


def _block_sums(images: Tensor) -> Tensor:
    """Sums over blocks of pixels, channel by channel: float32 N x blocks."""
    parts = images.split(1024)
    return torch.cat([F.avg_pool2d(p.float(), BLOCK, ceil_mode=True, divisor_override=1).flatten(1) for p in parts])


def _l1(query: Tensor, images: Tensor) -> Tensor:
    """Sum of absolute differences of one uint8 image and n: int64."""
    larger, smaller = torch.maximum(images, query), torch.minimum(images, query)
    return (larger - smaller).sum(1, dtype=torch.int64)


def _nearest_euclidean(real: Tensor, fake: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Euclidean: ranked by products in float64, with exact distances."""
    x, y = usual(fake), usual(real)
    centre = mean(y.double())
    points = Rows(y.double(), centre)
    indices, distances = [], []
    for first in range(0, len(x), 256):
        some = Rows(x[first : first + 256].double(), centre)
        n = len(some.rows)
        d = torch.cat([tile(some, (0, n), points, columns, torch.float64) for columns in points.spans], 1)
        at = d.topk(min(k + 3, len(y)), largest=False).indices.sort(dim=1).values
        rows = torch.arange(n)[:, None].expand_as(at)
        squared = exact(some.rows, rows.flatten(), y, at.flatten()).view(n, -1)
        squared, order = squared.sort(dim=1, stable=True)
        indices.append(at.gather(1, order)[:, :k])
        distances.append(squared[:, :k].sqrt())
    return torch.cat(indices), torch.cat(distances)


def authenticity(to_training: Tensor, within_training: Tensor) -> Tensor:
    """One value a fake: 1 where it is authentic. Distances (or their squares) to its nearest training sample, and from
    that one to the nearest other training sample."""
    return ((to_training >= within_training) & (to_training > 0)).double()


def _auth_share(inputs: Inputs) -> list[Value]:
    real, fake = (usual(s) for s in require_features(inputs))
    within = neighbours_of(inputs.real, real)
    at = nearest(fake, real)
    squared = exact(fake, torch.arange(len(fake)), real, at)
    training, which = at.unique(return_inverse=True)
    authentic = authenticity(squared, within.exactly(real, training, 1)[which])
    value, n = authentic.mean().item(), len(authentic)
    clusters = torch.zeros(len(training), dtype=torch.float64).index_add_(0, which, authentic - value)
    error = math.sqrt(clusters.square().sum().item() + 1) / n  # a share of 0 or 1 is not certain
    both = subsampled_errors(_roughly, real, fake)
    over = "the samples of both sets (subsampling)"
    if both is None:
        over = "the generated samples, by the training sample they are nearest to"
    uncertainty = Uncertainty(max(error, 0.0 if both is None else both.item()), "standard error", over)
    details = {"closest": _closest(torch.arange(n), at, squared.sqrt())}
    return [Value(value, uncertainty, len(real), n, details=details)]


def _roughly(real: Tensor, fake: Tensor) -> Tensor:
    """The share of authentic samples of small sets, in plain floating point."""
    centre = mean(real)
    x, y = real - centre, fake - centre
    within = squared_distances(x, x).fill_diagonal_(math.inf).amin(1)
    near, at = squared_distances(y, x).min(1)
    return authenticity(near, within[at]).mean()


def _memorised_share(inputs: Inputs) -> list[Value]:
    if inputs.held_out is None:
        raise Unavailable("no real images beside the reference to say what is near")
    real = inputs.real.images
    (rows, fake), (_, held_out) = (_some(s, inputs.generator) for s in (inputs.fake.images, inputs.held_out.images))
    if not min(len(fake), len(held_out)):
        raise Unavailable("the share needs at least 1 generated and 1 held-out image")
    at, near = (t.squeeze(1) for t in nearest_training_images(real, fake))
    usual_distances = nearest_training_images(real, held_out)[1].squeeze(1).sort().values
    h, n = len(held_out), len(fake)
    j = max(1, (h + 1) // NEAR)
    threshold = usual_distances[j - 1]
    hits = int((near <= threshold).sum())
    p = (hits + 2) / (n + 4)
    spread = max(1.0, math.sqrt(j * (1 - j / (h + 1))))
    low, high = (usual_distances[min(max(round(j - 1 + s), 0), h - 1)] for s in (-spread, spread))
    about = ((near <= high).double().mean() - (near <= low).double().mean()).item() / 2
    error = math.hypot(math.sqrt(p * (1 - p) / (n + 4)), about)
    details = {
        "threshold": threshold.item(),
        "expected_of_real_images": j / (h + 1),
        "held_out": h,
        "closest": _closest(rows, at, near),
    }
    warnings = (f"{h} held-out images: 'near' is a rough guess",) if h < NEAR - 1 else ()
    uncertainty = Uncertainty(error, "standard error", "the generated and the held-out images")
    return [Value(hits / n, uncertainty, len(real), n, details=details, warnings=warnings)]


def _some(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """At most QUERIES of the images, and which."""
    rows = torch.arange(len(images))
    if len(images) > QUERIES:
        rows = torch.randperm(len(images), generator=generator)[:QUERIES].sort().values
    return rows, images[rows]


def _closest(rows: Tensor, at: Tensor, distances: Tensor) -> list[dict[str, float]]:
    """The closest pairs: number of the generated image, of the training image, distance."""
    order = distances.sort(stable=True).indices[:CLOSEST]
    return [{"fake": int(rows[i]), "training": int(at[i]), "distance": float(distances[i])} for i in order.tolist()]


PROTOCOLS = [
    Protocol(
        stem="auth_share",
        version=1,
        summary="Share of samples farther from their nearest training sample than that is from its own nearest",
        source="Alaa et al. 2022, arXiv:2102.08921, Sec. 3.3",
        direction="higher",
        compute=_auth_share,
        needs=frozenset({"real.features", "fake.features"}),
    ),
    Protocol(
        stem="memorised_share",
        version=1,
        summary=f"Share of samples as near to a training image (pixels, L1) as one held-out image in {NEAR} is",
        source="after Odena et al. 2017, arXiv:1610.09585, Sec. 4.4",
        direction="lower",
        compute=_memorised_share,
        needs=frozenset({"real.images", "fake.images", "held_out.images"}),
    ),
]
