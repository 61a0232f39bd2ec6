"""`ganbench statistics`: the moments of a set's features in a file, to measure Fréchet distances without the images.

The file is an npz as pytorch-fid and guided-diffusion (ADM) read it: `mu` (d) and `sigma` (d x d, N - 1), float64.
With them go `n`, how many images; `extractor`, the network's name; and `sha256`, of its weights: a distance over
another network or of too few images can then be refused. Over Inception-v3 there are also `mu_s` and `sigma_s`, of
the spatial features of sFID, without which ADM's evaluator does not take the others; and it reads images too
(`with_images`): `arr_0`, uint8 N x H x W x C, and `arr_1`, their labels.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ganbench import features
from ganbench.base.device import choose_device
from ganbench.base.errors import UserError
from ganbench.base.files import atomic_path
from ganbench.base.progress import Reporter
from ganbench.data import datasets, resizing, sources
from ganbench.data.sources import Samples
from ganbench.metrics.frechet import moments

SPATIAL = {"inception-v3": "inception-v3-spatial"}  # the extractor of mu_s and sigma_s, where there is one


def write_of_source(
    source: str, name: str, weights: Path | None, out: Path, with_images: bool, num: int | None, seed: int,
    batch_size: int | None, device: str | None, reporter: Reporter, *, resize: str | None = None,
    image_labels: Path | None = None, latent: str | None = None, prior: str | None = None, classes: int | None = None,
) -> None:
    """Open a source of images, as `sources.open_source` takes it, and `write` the moments of its features.

    num, seed: how many images, drawn under the seed. device: by name; None: the accelerator if there is one.
    resize, image_labels, latent, prior, classes: how the source is read, in the words of the command line.
    Raises UserError for a source or an option that cannot be used, and whatever `write` raises.
    """
    where = choose_device(device)
    options = sources.Options(
        labels_file=image_labels, resize=None if resize is None else resizing.parse(resize),
        latent=None if latent is None else sources.parse_latent(latent), prior=prior, classes=classes, device=where,
        progress=reporter.progress,
    )
    samples = sources.open_source(source, num, seed, options=options)
    write(samples, source, name, weights, out, with_images, batch_size, where, reporter.progress)


def write(
    samples: Samples, source: str, name: str, weights: Path | None, out: Path, with_images: bool = False,
    batch_size: int | None = None, device: torch.device | None = None,
    progress: Callable[[str, int], Callable[[int], None]] = lambda what, total: lambda n: None,
) -> None:
    """Write the moments of the features of `samples` by the extractor `name` to the npz `out`.

    source: the samples' name in messages. Raises UserError for fewer than two images, weights that cannot be had, and
    features that are not finite.
    """
    n = len(samples.images)
    if n < 2:
        raise UserError(f"'{source}' is one image: a covariance needs at least two.")
    extractor = features.create(name, weights, not datasets.offline())
    passes = [("mu", "sigma", name, extractor)]
    if name in SPATIAL:
        spatial = features.create(SPATIAL[name], weights, not datasets.offline())
        passes.append(("mu_s", "sigma_s", SPATIAL[name], spatial))
    arrays: dict[str, np.ndarray] = {}
    for mean, covariance, what, network in passes:
        advance = progress(f"{what}, {source}", n)
        rows = features.extract(network, samples.images, batch_size, device or torch.device("cpu"), advance).features
        if not torch.isfinite(rows).all():
            raise UserError(f"some features of {what} are not finite: the extractor or the images are broken.")
        found = moments(rows)
        arrays |= {mean: found.mean.numpy(), covariance: found.cov.numpy()}
    arrays |= {"n": np.array(n), "extractor": np.array(name), "sha256": np.array(extractor.sha256)}
    if with_images:
        arrays["arr_0"] = samples.images.permute(0, 2, 3, 1).numpy()
        if samples.labels is not None:
            arrays["arr_1"] = samples.labels.numpy()
    with atomic_path(out) as part, open(part, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
