"""The inputs of an evaluation: its networks, held-out images, the cache of features, and how a set is described."""

from pathlib import Path
from typing import Any

from ganbench import features
from ganbench.base.data_spec import of_classes
from ganbench.base.errors import UserError
from ganbench.data import datasets
from ganbench.data.datasets import Dataset
from ganbench.data.sources import Samples, from_dataset
from ganbench.evaluation import measure
from ganbench.features import FeatureExtractor


def needed_extractors(requests: list[measure.Request]) -> list[str]:
    """Return the sorted names of the extractors that the requests use, without those of the model itself."""
    return sorted({r.extractor for r in requests if r.extractor} - set(measure.OWN))


def make_extractors(requests: list[measure.Request], weights: dict[str, Path]) -> dict[str, FeatureExtractor]:
    """Return the extractors that the requests need, by name, each with its weights if any were given.

    Raises UserError for weights of an extractor that is not used.
    """
    needed = needed_extractors(requests)
    for name in weights:
        if name not in needed:
            used = ", ".join(needed) or "none"
            raise UserError(f"--weights {name}=...: no metric asked for uses that extractor (used: {used}).")
    return {name: features.create(name, weights.get(name), not datasets.offline()) for name in needed}


def held_out_of(reference: Dataset) -> Samples | None:
    """Return the other split of the same set, the real images of the row of real data; None if there is no other.

    If the reference is a class subset, return those classes of the other split; if it is a row range, return the whole
    other split.
    """
    own = reference.whole_split
    if own not in ("train", "test"):
        return None
    other = "train" if own == "test" else "test"
    return from_dataset(datasets.load(f"{reference.name}:{other}{of_classes(reference.split.removeprefix(own))}"))


def cache_folder() -> Path:
    """Return the folder in which features of reference sets are cached."""
    return datasets.data_root() / "features"


def describe(samples: Samples) -> dict[str, Any]:
    """Return origin, count and shape of a set, for a result."""
    n, c, h, w = samples.images.shape
    return {**samples.origin, "count": n, "shape": [c, h, w], "labels": samples.labels is not None}
