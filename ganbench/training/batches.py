"""The order of the data. Every batch is a function of the seed and the step, and so the same after a resume.

A data set is in memory as one uint8 tensor; a batch is taken by index and converted to float on the training device.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from ganbench.data.datasets import Dataset
from ganbench.data.images import to_float
from ganbench.gan import Batch
from ganbench.recipes import TrainSpec


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """Return the permutation of 0..n-1 of one epoch, int64."""
    return torch.randperm(n, generator=torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**32))


def endless(n: int, seed: int, start: int, count: int) -> Tensor:
    """Concatenate the permutations of 0..n-1 of epochs 0, 1, 2, ...; return items start..start+count-1, int64."""
    first, last = start // n, (start + count - 1) // n
    orders = torch.cat([epoch_order(n, seed, epoch) for epoch in range(first, last + 1)])
    return orders[start - first * n :][:count]


def labelled_rows(labels: Tensor, count: int, seed: int) -> Tensor:
    """Draw the few rows whose labels may be seen: `count` rows, equally many of each class, int64."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    classes = int(labels.max()) + 1
    return torch.cat([order[labels[order] == c][: count // classes] for c in range(classes)])


def batches(
    data: Dataset, train: TrainSpec, seed: int, start: int, stop: int | None, device: torch.device,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Yield the batches of steps start..stop-1, or without end if `stop` is None.

    Each epoch is a new permutation of all images; its last incomplete batch is dropped. The few labelled images of a
    semi-supervised recipe are permuted anew whenever all were used, without a gap. share: (r, w) yields the r-th of w
    equal parts of each batch.
    """
    images = data.images.to(device)
    labels = None if data.labels is None else data.labels.to(device)
    few = None
    if train.labels and data.labels is not None:
        few = labelled_rows(data.labels, train.labels, seed).to(device)
    size = train.batch_size if few is None else train.unlabelled_batch_size
    per_epoch = len(data) // size
    epoch, order, labelled = -1, torch.empty(0), torch.empty(0)
    for step in range(start, stop) if stop is not None else itertools.count(start):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = epoch_order(len(data), seed, epoch).to(device)
            if few is not None:  # for the whole epoch at once, so that no step copies to the device
                n = train.batch_size * per_epoch
                labelled = few[endless(len(few), seed, epoch * n, n).to(device)]
        rows = _part(order[step % per_epoch * size :][:size], share)
        if few is None or labels is None:
            yield Batch(to_float(images[rows]), None if labels is None else labels[rows], step)
        else:
            own = _part(labelled[step % per_epoch * train.batch_size :][: train.batch_size], share)
            yield Batch(to_float(images[own]), labels[own], step, to_float(images[rows]))


def _part(rows: Tensor, share: tuple[int, int]) -> Tensor:
    """The r-th of w equal parts of the rows, share = (r, w)."""
    rank, world = share
    n = len(rows) // world
    return rows[rank * n :][:n]
