"""The order of the data: every batch is a function of the seed and the step alone, and so the same after a resume.

Data sets are whole in memory as uint8 tensors; a batch is taken by index and made float on the device that trains.
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
    """The permutation of 0..n-1 of an epoch."""
    return torch.randperm(n, generator=torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**32))


def endless(n: int, seed: int, start: int, count: int) -> Tensor:
    """Items start..start+count-1 of the permutations of 0..n-1 of epochs 0, 1, 2, ..., one after the other."""
    first, last = start // n, (start + count - 1) // n
    orders = torch.cat([epoch_order(n, seed, epoch) for epoch in range(first, last + 1)])
    return orders[start - first * n :][:count]


def labelled_rows(labels: Tensor, count: int, seed: int) -> Tensor:
    """`count` rows, as many of each class, drawn by `seed`: the few images whose labels may be seen."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    classes = int(labels.max()) + 1
    return torch.cat([order[labels[order] == c][: count // classes] for c in range(classes)])


def batches(
    data: Dataset, train: TrainSpec, seed: int, start: int, stop: int | None, device: torch.device,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Batches of steps start..stop-1, or without end.

    Each epoch is a new permutation of all images; its last incomplete batch is dropped. Of few labelled images each
    permutation follows the one before without a gap. share: (r, w) takes the r-th of w equal parts of each batch.
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
            if few is not None:  # of the whole epoch at once: no step has to copy to the device
                n = train.batch_size * per_epoch
                labelled = few[endless(len(few), seed, epoch * n, n).to(device)]
        rows = _part(order[step % per_epoch * size :][:size], share)
        if few is None or labels is None:
            yield Batch(to_float(images[rows]), None if labels is None else labels[rows], step)
        else:
            own = _part(labelled[step % per_epoch * train.batch_size :][: train.batch_size], share)
            yield Batch(to_float(images[own]), labels[own], step, to_float(images[rows]))


def _part(rows: Tensor, share: tuple[int, int]) -> Tensor:
    rank, world = share
    n = len(rows) // world
    return rows[rank * n :][:n]
