"""The order of the data. Every batch is a function of the seed and the step, and so the same after a resume.

A data set is one uint8 tensor, in memory or mapped from a file. A batch is taken by index where the data set is: on the
training device if it fits there. It is converted to float on the training device.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from ganbench.data.datasets import Dataset
from ganbench.data.datasets.decoded import is_mapped
from ganbench.data.images import to_float
from ganbench.gan import Batch
from ganbench.recipes import TrainSpec
from ganbench.training.growth import Span, reduced


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """Return the permutation of 0..n-1 of one epoch, int64."""
    return torch.randperm(n, generator=torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**32))


def endless(n: int, seed: int, start: int, count: int) -> Tensor:
    """Concatenate the permutations of 0..n-1 of epochs 0, 1, 2, ...; return items start..start+count-1, int64."""
    first, last = start // n, (start + count - 1) // n
    orders = torch.cat([epoch_order(n, seed, epoch) for epoch in range(first, last + 1)])
    return orders[start - first * n :][:count]


def labelled_rows(labels: Tensor, count: int, seed: int) -> Tensor:
    """Draw the few rows whose labels may be seen: `count` rows, int64, equally many of each class.

    If the number of classes does not divide `count`, the seed draws the classes that have one row more.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    classes, shuffled = int(labels.max()) + 1, labels[order]
    larger = set(torch.randperm(classes, generator=generator)[: count % classes].tolist())
    return torch.cat([order[shuffled == c][: count // classes + (c in larger)] for c in range(classes)])


def batches(
    data: Dataset, train: TrainSpec, seed: int, start: int, stop: int | None, device: torch.device,
    share: tuple[int, int] = (0, 1), spans: Sequence[Span] = (),
) -> Iterator[Batch]:
    """Yield the batches of steps start..stop-1, or without end if `stop` is None.

    Each epoch is a new permutation of all images; its last incomplete batch is dropped. The few labelled images of a
    semi-supervised recipe are permuted anew whenever all were used, without a gap. share: (r, w) yields the r-th of w
    equal parts of each batch. spans: the stages of a growing model, each of which begins with a new epoch; none: one
    stage with the recipe's batch.
    """
    images = data.images[:]
    if device.type != "cuda" or _fits(images, device):
        images = images.to(device)
    taken = _taken(images, data.labels, train, seed, start, stop, share, spans or [Span(train.batch_size)])
    if images.device.type != device.type or is_mapped(images):  # a batch may have to wait for the disk
        taken = _ahead(taken, pinned=device.type == "cuda")
    for item in taken:
        x, y, u = (t if t is None else t.to(device, non_blocking=True) for t in (item.x, item.y, item.u))
        assert x is not None
        yield Batch(to_float(x), y, item.step, None if u is None else to_float(u), item.shown)


class _Taken(NamedTuple):
    """The parts of a `Batch`, where the images are: x and u are uint8."""

    x: Tensor
    y: Tensor | None
    step: int
    u: Tensor | None
    shown: int = 0


def _taken(
    images: Tensor, labels: Tensor | None, train: TrainSpec, seed: int, start: int, stop: int | None,
    share: tuple[int, int], spans: Sequence[Span],
) -> Iterator[_Taken]:
    """Yield what `batches` yields before the conversion to float, on the device of the images."""
    device, n = images.device, len(images)
    few = None
    if train.labels and labels is not None:
        few = labelled_rows(labels, train.labels, seed).to(device)
    labels = None if labels is None else labels.to(device)
    epoch, order, labelled, earlier = -1, torch.empty(0), torch.empty(0), 0  # earlier: epochs of the stages before
    for span in spans:
        size = span.batch_size if few is None else train.unlabelled_batch_size
        per_epoch = n // size
        for step in span.steps(start, stop):
            own_epoch, place = divmod(step - span.first, per_epoch)
            if earlier + own_epoch != epoch:
                epoch = earlier + own_epoch
                order = epoch_order(n, seed, epoch).to(device)
                if few is not None:  # for the whole epoch at once, so that no step copies to the device
                    count = train.batch_size * per_epoch
                    labelled = few[endless(len(few), seed, epoch * count, count).to(device)]
            rows, shown = _part(order[place * size :][:size], share), span.shown_before(step)
            x = reduced(images[rows], span.image_size)
            if few is None or labels is None:
                yield _Taken(x, None if labels is None else labels[rows], step, None, shown)
            else:
                own = _part(labelled[place * train.batch_size :][: train.batch_size], share)
                yield _Taken(images[own], labels[own], step, x, shown)
        if span.stop is not None:
            earlier += -(-(span.stop - span.first) // per_epoch)


def _ahead(items: Iterator[_Taken], pinned: bool) -> Iterator[_Taken]:
    """Yield the items. The next one is taken in a thread meanwhile.

    pinned: into memory that a GPU copies from while the host goes on.
    """

    def take() -> _Taken | None:
        item = next(items, None)
        if item is None or not pinned:
            return item
        x, y, u = (t if t is None else t.pin_memory() for t in (item.x, item.y, item.u))
        assert x is not None
        return _Taken(x, y, item.step, u, item.shown)

    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        waiting = thread.submit(take)
        while (item := waiting.result()) is not None:
            waiting = thread.submit(take)
            yield item


def _fits(images: Tensor, device: torch.device) -> bool:
    """Return True if images take at most half of the free memory of a GPU."""
    free, _ = torch.cuda.mem_get_info(device)
    return images.numel() <= free // 2


def _part(rows: Tensor, share: tuple[int, int]) -> Tensor:
    """The r-th of w equal parts of the rows, share = (r, w)."""
    rank, world = share
    n = len(rows) // world
    return rows[rank * n :][:n]
