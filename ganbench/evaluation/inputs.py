"""The inputs of an evaluation: its networks, held-out images, the cache of features, and how a set is described."""

from pathlib import Path
from typing import Any

from ganbench import features
from ganbench.base import registry
from ganbench.base.data_spec import of_classes
from ganbench.base.errors import UserError
from ganbench.data import datasets
from ganbench.data.datasets import Dataset
from ganbench.data.sources import Options, Samples, from_dataset
from ganbench.evaluation import measure
from ganbench.features import FeatureExtractor

# Extractors that are offered in place of one whose weights are missing, the better ones first.
REPLACEMENTS = ("efficientnet-lite0", "pixels")


def extractors_here() -> list[str]:
    """Return the extractors to offer in place of one that is missing: those that need no download, the best first."""
    return [name for name in REPLACEMENTS if name in registry.names("extractors") and features.is_bundled(name)]


def make_extractor(name: str, weights: Path | None) -> FeatureExtractor:
    """Return an extractor for --extractor. weights: a file in place of the published ones.

    Raises UserError as `features.create` does, and offers an extractor that is here if the published weights are not.
    """
    try:
        return features.create(name, weights, not datasets.offline())
    except UserError as error:
        here = [other for other in extractors_here() if other != name]
        if weights is not None or not here:
            raise
        raise UserError(f"{error} Over a network that is here, for other numbers: --extractor {here[0]}.") from error


def needed_extractors(requests: list[measure.Request]) -> list[str]:
    """Return the sorted names of the extractors that the requests use, without those of the model itself."""
    return sorted({r.extractor for r in requests if r.extractor} - set(measure.OWN))


def make_extractors(
    requests: list[measure.Request], weights: dict[str, Path], download: bool | None = None
) -> tuple[dict[str, FeatureExtractor], dict[str, str]]:
    """Return the extractors that the requests need, by name, and why those that are missing cannot be used.

    weights: files by extractor, instead of the published ones. download: whether weights may be downloaded; None:
    unless offline. Raises UserError for weights that the user gave and that are of no use.
    """
    needed = needed_extractors(requests)
    for name in weights:
        if name not in needed:
            used = ", ".join(needed) or "none"
            raise UserError(f"--weights {name}=...: no metric asked for uses that extractor (used: {used}).")
    found, missing = {}, {}
    for name in needed:
        try:
            found[name] = features.create(
                name, weights.get(name), not datasets.offline() if download is None else download
            )
        except UserError as error:
            if name in weights:
                raise
            missing[name] = str(error)
    return found, missing


def held_out_of(reference: Dataset, options: Options | None = None) -> Samples | None:
    """Return the other split of the same set, the real images of the row of real data; None if there is no other.

    If the reference is a class subset, return those classes of the other split; if it is a row range, return the whole
    other split. options: how a folder is read.
    """
    own = reference.whole_split
    if own not in ("train", "test"):
        return None
    name = f"folder:{reference.where}" if reference.where else reference.name
    spec = f"{name}:{'train' if own == 'test' else 'test'}{of_classes(reference.split.removeprefix(own))}"
    if not reference.where:
        return from_dataset(datasets.load(spec))
    try:
        how = None if options is None else options.decoding
        data = datasets.load(spec, how=how, progress=None if options is None else options.progress)
    except datasets.UnknownSplit:
        return None
    return from_dataset(data, options)


def cache_folder() -> Path:
    """Return the folder in which features of reference sets are cached."""
    return datasets.data_root() / "features"


def describe(samples: Samples) -> dict[str, Any]:
    """Return origin, count and shape of a set, for a result."""
    n, c, h, w = samples.images.shape
    return {**samples.origin, "count": n, "shape": [c, h, w], "labels": samples.labels is not None}
