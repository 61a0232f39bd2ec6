"""`ganbench train-classifier`: a small classifier of a labelled data set, and its test error."""

from pathlib import Path
from typing import NamedTuple

import torch

from ganbench.base.data_spec import apart, of_classes
from ganbench.base.errors import UserError
from ganbench.base.progress import Reporter
from ganbench.data import datasets
from ganbench.data.datasets import Dataset
from ganbench.data.datasets.folder import folder_and_split
from ganbench.data.sources import Samples, from_dataset
from ganbench.evaluation.inputs import held_out_of
from ganbench.features import create, extract, small_cnn

BATCH = 500


class Errors(NamedTuple):
    """How many of the held-out images a classifier takes for another class."""

    wrong: int
    of: int


def train(spec: str, out: Path, reporter: Reporter) -> Errors | None:
    """Train a SmallCNN on a data set as `datasets.load` takes it, and write its weights to `out`.

    Return its errors on the held-out images, which nothing else looks at; None if there are none with labels.
    Raises UserError for a set without labels, and for a class subset that does not begin with class 0.
    """
    data = datasets.load(spec)
    if data.first_class:
        raise UserError(f"'{spec}': a classifier numbers its classes as the whole set does: begin with class 0.")
    if data.labels is None:
        raise UserError(f"'{spec}' has no labels: put its images into class folders.")
    steps = small_cnn.TRAINING.epochs * (len(data) // small_cnn.TRAINING.batch_size)
    with reporter.task(f"train on {data.name}", steps) as task:
        small_cnn.train_classifier(
            data.images[:], data.labels, data.classes, out, data.name,
            advance=lambda text: task.at(task.count + 1, text),
        )
    test = _held_out(spec, data)
    if test is None or test.labels is None:
        return None
    logits = extract(create("small-cnn", out), test.images, BATCH, torch.device("cpu")).logits
    assert logits is not None
    return Errors(int((logits.argmax(1) != test.labels).sum()), len(test.labels))


def _held_out(spec: str, data: Dataset) -> Samples | None:
    """The other split of a data set; of a folder, its split folder `test` if it trains on `train`."""
    kind, _, rest = apart(spec)[0].partition(":")
    if kind != "folder":
        return held_out_of(data)
    path, _ = folder_and_split(rest)
    if data.whole_split != "train" or not (path / "test").is_dir():
        return None
    return from_dataset(datasets.load(f"folder:{path}:test{of_classes(apart(data.split)[1])}"))
