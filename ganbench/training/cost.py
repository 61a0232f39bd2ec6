"""The cost of a run on this machine, from a few of the model's own steps on random images of the right shape.

    Cost(step_seconds=0.04, timed=5) * 3,000 steps = 2 minutes

Nothing is stored and no data set is needed. Steps on a part of the batch come first: they show whether the whole batch
fits into memory, and whether one step of it takes longer than anybody waits for an estimate.
"""

import math
import os
import statistics
import tempfile
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ganbench.base import memory
from ganbench.base.device import peak_memory
from ganbench.base.errors import UserError, shortened
from ganbench.data.datasets import Dataset
from ganbench.gan import GAN
from ganbench.recipes import Recipe, TrainSpec
from ganbench.training.growth import Span, recipe_spans, without_weights
from ganbench.training.loop import timed_steps

STEPS = 5  # that are timed
MOST_SECONDS = 5.0  # after which no further step is timed
LONGEST_STEP = 10.0  # seconds; a longer step is estimated from two parts of the batch
PART = 8  # the first steps are on this part of the batch
IMAGES = 512  # in the random data set, at least
COPIES = 5  # of the weights: gradients, two moments of Adam and an average


@dataclass(frozen=True)
class Cost:
    """The seconds of a training step, or None and the reason why they are unknown.

    timed: number of whole steps that were timed; 0: estimated from steps on parts of the batch. For a model that
    grows, the seconds are the mean over the recipe's steps, and `timed` is the smallest number of any size.
    """

    step_seconds: float | None
    timed: int = 0
    reason: str = ""


def measure(recipe: Recipe, device: torch.device) -> Cost:
    """Return the cost of a recipe's training step on a device. The random numbers of the caller are untouched."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            return _measure(recipe.of_seed(0), device)
        except (MemoryError, torch.OutOfMemoryError):
            return Cost(None, reason="a step does not fit into memory")
        except Exception as error:  # a model's step may fail on random images in any way
            if "allocate memory" in str(error):
                return Cost(None, reason="a step does not fit into memory")
            text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            return Cost(None, reason=f"a step on random images failed ({shortened(' '.join(text.split()))})")


def _measure(recipe: Recipe, device: torch.device) -> Cost:
    """Measure a step of each size that the recipe's model grows to, and weigh it with the steps that have that size."""
    stages = recipe_spans(recipe)
    ends = [min(span.stop or recipe.train.steps, recipe.train.steps) for span in stages]
    costs: dict[tuple[int, int], Cost] = {}
    total, counted = 0.0, 0
    for span, end in zip(stages, ends, strict=True):
        size = span.batch_size, span.image_size
        if end <= span.first:
            continue
        if size not in costs:
            costs[size] = _measure_stage(recipe, device, span)
            if costs[size].step_seconds is None:
                return costs[size]
        total, counted = total + (end - span.first) * (costs[size].step_seconds or 0.0), counted + end - span.first
    return Cost(total / counted, min(cost.timed for cost in costs.values()))


def _measure_stage(recipe: Recipe, device: torch.device, span: Span) -> Cost:
    """Measure the steps of one stage."""
    recipe = replace(recipe, train=replace(recipe.train, batch_size=span.batch_size))
    on_cpu, train = device.type == "cpu", recipe.train
    gan = without_weights(recipe)
    weights = sum(p.numel() * p.element_size() for p in gan.parameters())
    fixed = (COPIES + bool(train.ema_decay)) * weights
    data_size = math.prod(gan.image_shape) * _count(gan, train)
    if on_cpu and fixed + data_size > (free := memory.available()):
        least = memory.in_words(fixed + data_size)
        return Cost(None, reason=f"at least {least} of memory are needed, {memory.in_words(free)} are free")
    data = random_images(gan, train)
    part = _part(train, PART)
    if part is not None:
        before, seconds = _resident(), _of_a_part(recipe, part, data, device, span)
        ratio = train.batch_size / part.batch_size
        grown = max(0, peak_memory(device) - before) if on_cpu else 0
        needed = min(grown, fixed) + round(max(0, grown - fixed) * ratio)
        if on_cpu and needed > (free := memory.available()):
            return Cost(
                None, reason=f"about {memory.in_words(needed)} of memory are needed, {memory.in_words(free)} are free"
            )
        if seconds is not None and seconds * ratio > LONGEST_STEP:
            whole = _extrapolated(recipe, part, seconds, data, device, span)
            if whole > LONGEST_STEP:
                return Cost(whole)
    times: list[float] = []
    with closing(_timed(recipe, data, device, span)) as steps:
        next(steps)
        for seconds in steps:
            times.append(seconds)
            if len(times) == STEPS or sum(times) > MOST_SECONDS:
                break
    return Cost(statistics.median(times), len(times))


def _of_a_part(recipe: Recipe, part: TrainSpec, data: Dataset, device: torch.device, span: Span) -> float | None:
    """The seconds of a step on a part of the batch, the shorter of two; None for a model whose batch has one size."""
    try:
        less = replace(span, batch_size=part.batch_size)
        with closing(_timed(replace(recipe, train=part), data, device, less)) as steps:
            next(steps)  # the first step prepares kernels and memory
            return min(next(steps), next(steps))  # another process may have taken the core meanwhile
    except (UserError, ValueError, RuntimeError, AssertionError):
        return None


def _extrapolated(
    recipe: Recipe, part: TrainSpec, seconds: float, data: Dataset, device: torch.device, span: Span
) -> float:
    """The seconds of a whole step on the line through a part of the batch and one of twice its size.

    Some of a step does not depend on the batch: eight times an eighth would be too much.
    """
    whole = recipe.train.batch_size
    twice = _part(recipe.train, PART // 2)
    longer = None if twice is None else _of_a_part(recipe, twice, data, device, span)
    if twice is None or longer is None:
        return seconds * whole / part.batch_size
    slope = max(0.0, longer - seconds) / (twice.batch_size - part.batch_size)
    return longer + slope * (whole - twice.batch_size)


def _timed(recipe: Recipe, data: Dataset, device: torch.device, span: Span) -> Generator[float, None, None]:
    with tempfile.TemporaryDirectory() as empty:
        yield from timed_steps(recipe, data, Path(empty), device, span)


def _count(gan: GAN, train: TrainSpec) -> int:
    return max(IMAGES, train.batch_size, train.unlabelled_batch_size, train.labels, gan.num_classes, gan.classes)


def random_images(gan: GAN, train: TrainSpec) -> Dataset:
    """Return random images of the model's shape, with labels, enough for a batch. gan: may be on the meta device."""
    n = _count(gan, train)
    images = torch.randint(256, (n, *gan.image_shape), dtype=torch.uint8)
    return Dataset("random", "train", images, torch.arange(n) % (gan.num_classes or gan.classes or 10))


def _part(train: TrainSpec, share: int) -> TrainSpec | None:
    """The schedule with one of `share` parts of the batch; None if the batch is small."""
    if min(train.batch_size, train.unlabelled_batch_size or train.batch_size) < 2 * PART:
        return None
    return replace(
        train, batch_size=train.batch_size // share, unlabelled_batch_size=train.unlabelled_batch_size // share
    )


def _resident() -> int:
    """Memory of this process now, in bytes; its peak where nothing tells."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return peak_memory(torch.device("cpu"))
