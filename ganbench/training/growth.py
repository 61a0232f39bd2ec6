"""The stages of a model that grows, counted in steps: the batch of a step, and the images shown before it.

    stages 100 images of 4 x 4 in batches of 30, then 8 x 8 in batches of 10:
    steps 0..3 show 120 images of 4 x 4; from step 4 on, each step shows 10 of 8 x 8

A model gives its stages in images (`GAN.stages`). A model that does not grow has one stage without end.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ganbench.base.errors import UserError
from ganbench.gan import GAN, Stage, checkpoint
from ganbench.gan.checks import name_of
from ganbench.recipes import Recipe


@dataclass(frozen=True)
class Span:
    """A stage in steps first..stop-1; without end if stop is None.

    shown: images shown before its first step. image_size: side of its images; 0: that of the data.
    ema_decay: None means the recipe's.
    """

    batch_size: int
    first: int = 0
    stop: int | None = None
    shown: int = 0
    image_size: int = 0
    ema_decay: float | None = None

    def shown_before(self, step: int) -> int:
        """Return the number of images shown before a step of this stage."""
        return self.shown + (step - self.first) * self.batch_size

    def steps(self, start: int, stop: int | None) -> Iterator[int]:
        """Yield the stage's steps that lie in start..stop-1; stop None: those from start on."""
        start = max(start, self.first)
        ends = [end for end in (self.stop, stop) if end is not None]
        yield from range(start, min(ends)) if ends else itertools.count(start)


def spans(gan: GAN, batch_size: int) -> list[Span]:
    """Return the stages of a model's training. batch_size: the recipe's.

    A stage ends with the step that shows its last image. A stage that the one before has overrun is left out.
    Raises UserError if the model does not say them as its contract asks.
    """
    stages = gan.stages(batch_size)
    _require_stages(gan, stages)
    found, step, shown, end = [], 0, 0, 0
    for i, stage in enumerate(stages):
        end += stage.images
        count = -(-(end - shown) // stage.batch_size)
        if i + 1 == len(stages):
            found.append(Span(stage.batch_size, step, None, shown, stage.image_size, stage.ema_decay))
        elif count > 0:
            found.append(Span(stage.batch_size, step, step + count, shown, stage.image_size, stage.ema_decay))
            step, shown = step + count, shown + count * stage.batch_size
    return found or [Span(batch_size)]


def without_weights(recipe: Recipe) -> GAN:
    """Return the recipe's model on torch's meta device; with weights if its constructor looks at those that it draws.

    Raises UserError if its arguments do not fit.
    """
    make = partial(checkpoint.make_model, recipe.model.name, recipe.model.args, f"recipe '{recipe.name}'")
    try:
        with torch.device("meta"):
            return make()
    except UserError:
        with torch.random.fork_rng(devices=[]):
            return make()


def recipe_spans(recipe: Recipe) -> list[Span]:
    """Return the stages of a recipe's training. Raises UserError if its model cannot be built or has wrong stages."""
    return spans(without_weights(recipe), recipe.train.batch_size)


def changes(spans: Sequence[Span]) -> list[int]:
    """Return the steps at which the size of the images or of the batch changes."""
    return [
        after.first for before, after in itertools.pairwise(spans)
        if (before.batch_size, before.image_size) != (after.batch_size, after.image_size)
    ]


def growth_in_words(spans: Sequence[Span], steps: int) -> str:
    """Return what a model that grows is shown in so many steps; "" for a model that does not grow.

    >>> growth_in_words([Span(8, 0, 5, 0, 4), Span(2, 5, None, 40, 16)], 10)
    'batches of 8 to 2 images, 50 images in all, from 4 x 4 to 16 x 16 pixels, which are reached at step 5'
    """
    if len(spans) < 2:
        return ""
    seen = [span for span in spans if span.first < steps]
    last, sizes = seen[-1], [span.batch_size for span in seen]
    reached = next(span.first for span in seen if span.image_size == last.image_size)
    batches = f"{max(sizes)} to {min(sizes)}" if max(sizes) > min(sizes) else str(sizes[0])
    return (
        f"batches of {batches} images, {last.shown_before(steps):,} images in all, from {seen[0].image_size} x "
        f"{seen[0].image_size} to {last.image_size} x {last.image_size} pixels, which are reached at step {reached:,}"
    )


def span_at(spans: Sequence[Span], step: int) -> Span:
    """Return the stage that a step belongs to."""
    return next(span for span in reversed(spans) if span.first <= step)


def reduced(images: Tensor, side: int) -> Tensor:
    """Reduce uint8 images N x C x H x W to side x side by means over squares, rounded; side 0 leaves them as they are.

    >>> reduced(torch.tensor([[[[0, 1], [2, 255]]]], dtype=torch.uint8), 1)
    tensor([[[[64]]]], dtype=torch.uint8)
    """
    if side in (0, images.shape[-1]):
        return images
    return F.avg_pool2d(images.float(), images.shape[-1] // side).round().to(torch.uint8)


def _require_stages(gan: GAN, stages: object) -> None:
    """Raise UserError unless these are stages of the model."""
    if not isinstance(stages, tuple | list) or not all(isinstance(stage, Stage) for stage in stages):
        raise UserError(f"{name_of(gan)}: `stages` must return a tuple of `Stage`. Mend that model.")
    _, height, width = gan.image_shape
    for stage in stages:
        numbers = stage.images, stage.batch_size, stage.image_size
        if not all(type(n) is int and n > 0 for n in numbers):
            raise UserError(f"{name_of(gan)}: the numbers of {stage} must be whole and positive. Mend that model.")
        if height != width or width % stage.image_size:
            raise UserError(
                f"{name_of(gan)}: images of {width} x {height} cannot be reduced to the {stage.image_size} x "
                f"{stage.image_size} of {stage}. Mend that model."
            )
        if stage.ema_decay is not None and not 0 <= stage.ema_decay < 1:
            raise UserError(f"{name_of(gan)}: `ema_decay` of {stage} must be in [0, 1). Mend that model.")
