"""Memorisation: are the generated images copies of training images?

Two shares are defined. `auth_share` compares features. Let t be the training image nearest to a generated sample f, and
t' the training image nearest to t:

    auth_share = mean over f of 1[ 0 < d(f, t) >= d(t, t') ]

Source: Alaa et al. (2022), "How Faithful is your Synthetic Data? Sample-level Metrics for Evaluating and Auditing
Generative Models", arXiv:2102.08921, Section 3.3. A sample is not authentic if it is nearer to a training image than
every other training image is. (The paper reports a percentage, 0 to 100.) A copy is never authentic here, even if the
training set contains the copied image twice. Range [0, 1], higher is better; the upper limit is the row of real data.

`memorised_share` compares pixels. Nearest training images in L1 are also shown in Odena et al. (2017), "Conditional
Image Synthesis with Auxiliary Classifier GANs", arXiv:1610.09585, Section 4.4. Held-out real images define which
distance counts as near. Let D_1 <= ... <= D_h be the L1 distances of h held-out images to their nearest training
images, and j = max(1, floor((h + 1) / 100)):

    memorised_share = mean over f of 1[ L1 distance to the nearest training image <= D_j ]

Range [0, 1], lower is better. New real images get j / (h + 1), about 1 %, and a generator that copies gets 1. A
generator of simple images (blank ones, for instance) is near simple training images without copying, and gets a high
value too: look at the pairs that `details` lists. If a set has more than 1,000 images, 1,000 of them are drawn.

Standard errors. `auth_share`: over the samples of both sets, by subsampling as for precision and recall, and never less
than the error over the generated samples (clustered by their nearest training image). `memorised_share`: over the
generated samples (binomial, with two successes and two failures added) and over the held-out images (by the order
statistics around D_j).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ganbench.metrics.contract import (
    ImageSet,
    Inputs,
    Protocol,
    Unavailable,
    Uncertainty,
    Value,
    require_features,
    require_rows,
    require_tensor,
)
from ganbench.metrics.distances import Rows, exact, mean, squared_distances, tile, usual
from ganbench.metrics.manifold import neighbours_of, subsampled_errors
from ganbench.metrics.nearest_neighbour import nearest

QUERIES = 1000  # generated and held-out images, each compared with all training images
CLOSEST = 10  # pairs listed in the details
NEAR = 100  # one of 100 held-out images is near
CROWDED = 10  # the bound is too weak if it leaves more than a tenth of the training images as candidates
ROUNDING = 1 + 1e-4  # generous bound of the rounding of sums in float32
AT_ONCE = 1 << 28  # bytes of training images in memory beside the set
QUERIES_AT_ONCE = 64
BLOCK = 4  # side in pixels of the blocks whose sums give a lower bound of the L1 distance


def nearest_training_images(real: Tensor | ImageSet, fake: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """Return the k training images nearest to each generated image: indices int64 M x k, and distances float64 M x k.

    real, fake: N training and M generated images, uint8 N x C x H x W, compared by the sum of absolute differences of
    pixels (0 to 255), in one pass over the training images, which may be an ImageSet; or floating features N x d and
    M x d, compared by the Euclidean distance. The distances ascend; in a tie the first training image wins.
    Raises Unavailable if there are fewer than k training images or the images differ in size.
    Source: Odena et al. (2017), Section 4.4 (L1 on pixels).

    >>> real = torch.tensor([[[[0, 0]]], [[[10, 20]]]], dtype=torch.uint8)
    >>> nearest_training_images(real, torch.tensor([[[[9, 22]]]], dtype=torch.uint8))
    (tensor([[1]]), tensor([[3.]], dtype=torch.float64))
    """
    if isinstance(real, Tensor) and real.is_floating_point():
        require_rows(real, fake)
    else:
        if isinstance(real, Tensor) or not hasattr(real, "split"):
            require_tensor(real, "real", "N x C x H x W", "whole")
        require_tensor(fake, "fake", "N x C x H x W", "whole")
        if fake.dtype != torch.uint8 or (isinstance(real, Tensor) and real.dtype != torch.uint8):
            raise TypeError("real and fake must be images, uint8 N x C x H x W, or features, floating N x d")
    if len(real) < k:
        raise Unavailable(f"{k} nearest training images need at least {k} training images, not {len(real)}")
    if real.shape[1:] != fake.shape[1:]:
        raise Unavailable("generated and real images differ in size")
    if not len(fake):
        return torch.zeros(0, k, dtype=torch.int64), torch.zeros(0, k, dtype=torch.float64)
    if isinstance(real, Tensor) and real.dtype != torch.uint8:
        return _nearest_euclidean(real, fake, k)
    return _nearest_l1(real, fake, k)


def _nearest_l1(real: Tensor | ImageSet, fake: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Nearest images in L1, by one pass over the training images in parts of at most AT_ONCE bytes."""
    sums, queries = _block_sums(fake).split(QUERIES_AT_ONCE), fake.flatten(1).split(QUERIES_AT_ONCE)
    found = [(torch.zeros(len(q), 0, dtype=torch.int64), torch.zeros(len(q), 0, dtype=torch.int64)) for q in queries]
    first = 0
    for part in real.split(max(1, AT_ONCE // max(1, real.shape[1:].numel()))):
        part_sums, pixels = _block_sums(part), part.flatten(1)
        for i, (query, of_query) in enumerate(zip(queries, sums, strict=True)):
            found[i] = _nearer(query, of_query, pixels, part_sums, first, found[i], k)
        first += len(part)
    at, distances = (torch.cat(x) for x in zip(*found, strict=True))
    return at, distances.double()


def _nearer(
    queries: Tensor, sums: Tensor, pixels: Tensor, sums_real: Tensor, first: int, found: tuple[Tensor, Tensor], k: int
) -> tuple[Tensor, Tensor]:
    """Merge the nearest images so far with those of a part: preselect by a lower bound, decide in exact integers.

    queries, pixels: uint8 n x d and m x d. sums, sums_real: sums of blocks of both. first: index of the first row of
    the part. found: indices and distances of the nearest images so far, int64 n x up to k, ascending.
    The lower bound is the L1 distance of sums over blocks of pixels. If it leaves many candidates, because the query is
    far from all images, the distance of all pixels in float32 preselects.
    """
    bounds = torch.cdist(sums, sums_real, p=1)
    here = min(k, len(pixels))
    likely = bounds.topk(here, largest=False).indices
    near = torch.stack([_l1(q, pixels[some]) for q, some in zip(queries, likely, strict=True)])
    so_far = torch.cat([found[1], near], 1).sort(1).values
    reach = so_far[:, min(k, so_far.shape[1]) - 1] * ROUNDING
    if (crowded := (bounds <= reach[:, None]).sum(1) > len(pixels) // CROWDED).any():
        some = queries[crowded].float()
        bounds[crowded] = torch.cat([torch.cdist(some, part.float(), p=1) for part in pixels.split(2048)], 1)
        nearest = torch.cat([found[1][crowded], bounds[crowded].topk(here, largest=False).values], 1).sort(1).values
        reach[crowded] = nearest[:, min(k, nearest.shape[1]) - 1] * ROUNDING
    indices, distances = [], []
    for query, bound, limit, *before in zip(queries, bounds, reach, *found, strict=True):
        candidates = (bound <= limit).nonzero().squeeze(1)
        exact_distances, order = torch.cat([before[1], _l1(query, pixels[candidates])]).sort(stable=True)
        indices.append(torch.cat([before[0], candidates + first])[order[:k]])
        distances.append(exact_distances[:k])
    return torch.stack(indices), torch.stack(distances)


def _block_sums(images: Tensor) -> Tensor:
    """Sums over blocks of pixels in each channel: float32 N x blocks."""
    parts = images.split(1024)
    return torch.cat([F.avg_pool2d(p.float(), BLOCK, ceil_mode=True, divisor_override=1).flatten(1) for p in parts])


def _l1(query: Tensor, images: Tensor) -> Tensor:
    """Sums of absolute differences between one uint8 image and n images: int64 n."""
    larger, smaller = torch.maximum(images, query), torch.minimum(images, query)
    return (larger - smaller).sum(1, dtype=torch.int64)


def _nearest_euclidean(real: Tensor, fake: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Nearest features in Euclidean distance: preselect by products in float64, decide by exact distances."""
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
    """Return 1 for each authentic sample and 0 for each other one: float64 M.

    to_training: distance of each sample to its nearest training image, floating M. within_training: distance of that
    training image to the nearest other training image, floating M. Squared distances work too.
    Source: Alaa et al. (2022), Section 3.3.

    >>> authenticity(torch.tensor([0.0, 1.0, 3.0]), torch.tensor([0.0, 2.0, 2.0]))
    tensor([0., 0., 1.], dtype=torch.float64)
    """
    require_tensor(to_training, "to_training", "N")
    require_tensor(within_training, "within_training", "N", n=len(to_training))
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
    error = math.sqrt(clusters.square().sum().item() + 1) / n  # plus 1: a share of 0 or 1 is not certain
    both_sets = subsampled_errors(_share_of_small_sets, real, fake)
    over = "the samples of both sets (subsampling)"
    if both_sets is None:
        over = "the generated samples, by the training sample they are nearest to"
    uncertainty = Uncertainty(max(error, 0.0 if both_sets is None else both_sets.item()), "standard error", over)
    details = {"closest": _closest(torch.arange(n), at, squared.sqrt())}
    return [Value(value, uncertainty, len(real), n, details=details)]


def _share_of_small_sets(real: Tensor, fake: Tensor) -> Tensor:
    """The share of authentic samples of small sets, without exact decisions in ties."""
    centre = mean(real)
    x, y = real - centre, fake - centre
    within = squared_distances(x, x).fill_diagonal_(math.inf).amin(1)
    near, at = squared_distances(y, x).min(1)
    return authenticity(near, within[at]).mean()


def _memorised_share(inputs: Inputs) -> list[Value]:
    if inputs.held_out is None:
        raise Unavailable("there are no real images beside the reference to define which distance is near")
    real, rows = inputs.real.images, _drawn(inputs)
    if len({s.images.shape[1:] for s in (inputs.real, inputs.fake, inputs.held_out)}) > 1:
        raise Unavailable("generated and real images differ in size")
    h, n = len(rows["held_out"]), len(rows["fake"])
    queries = torch.cat([inputs.fake.images[rows["fake"]], inputs.held_out.images[rows["held_out"]]])
    at, distances = (t.squeeze(1) for t in nearest_training_images(real, queries))  # one pass over the training images
    near, real_distances = distances[:n], distances[n:].sort().values
    j = max(1, (h + 1) // NEAR)
    threshold = real_distances[j - 1]
    hits = int((near <= threshold).sum())
    p = (hits + 2) / (n + 4)
    spread = max(1.0, math.sqrt(j * (1 - j / (h + 1))))
    low, high = (real_distances[min(max(round(j - 1 + s), 0), h - 1)] for s in (-spread, spread))
    from_threshold = ((near <= high).double().mean() - (near <= low).double().mean()).item() / 2
    error = math.hypot(math.sqrt(p * (1 - p) / (n + 4)), from_threshold)
    details = {
        "threshold": threshold.item(),
        "expected_of_real_images": j / (h + 1),
        "held_out": h,
        "closest": _closest(rows["fake"], at[:n], near),
    }
    warnings = (f"{h} held-out images: the threshold is a rough estimate",) if h < NEAR - 1 else ()
    uncertainty = Uncertainty(error, "standard error", "the generated and the held-out images")
    return [Value(hits / n, uncertainty, len(real), n, details=details, warnings=warnings)]


def _drawn(inputs: Inputs) -> dict[str, Tensor]:
    """Rows that are looked at: at most QUERIES random generated and held-out images, in order, and all of the real."""
    if inputs.held_out is None:
        raise Unavailable("there are no real images beside the reference to define which distance is near")
    drawn = {}
    for name, side in (("fake", inputs.fake), ("held_out", inputs.held_out)):
        drawn[name] = torch.arange(len(side))
        if len(side) > QUERIES:
            drawn[name] = torch.randperm(len(side), generator=inputs.generator)[:QUERIES].sort().values
    if not min(map(len, drawn.values())):
        raise Unavailable("the share needs at least 1 generated and 1 held-out image")
    return {**drawn, "real": torch.arange(len(inputs.real))}


def _closest(rows: Tensor, at: Tensor, distances: Tensor) -> list[dict[str, float]]:
    """The closest pairs: index of the generated image, index of the training image, distance."""
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
        rows=_drawn,
    ),
]
