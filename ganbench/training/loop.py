"""The training loop of every model: batches, the model's own step, averaged weights, checkpoints, resuming.

`batches.py` has the order of the data, `run_folder.py` the files of a run, `health.py` the rules that notice trouble.
The order of the data depends on the seed and the step alone, and `state.pt` holds everything else, so that a run that
was killed goes on as if nothing had happened.
"""

import contextlib
import copy
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ganbench.base import distributed
from ganbench.base.errors import UserError, shortened
from ganbench.data.datasets import Dataset
from ganbench.data.datasets.decoded import for_training
from ganbench.data.images import grid, save_png, to_float, to_uint8
from ganbench.data.label_noise import with_label_noise
from ganbench.gan import GAN, Batch, capabilities, checkpoint
from ganbench.recipes import Recipe
from ganbench.training import health
from ganbench.training.batches import batches
from ganbench.training.growth import Span, span_at, spans
from ganbench.training.health import Health
from ganbench.training.run_folder import RunFolder
from ganbench.training.tensorboard import Board

SAVE_EVERY_SECONDS = 30.0
LOG_LINES = 200  # in a whole run
GRIDS = 10  # pictures in a whole run, unless the recipe says how often
FIRST_PICTURE_SECONDS = 30.0  # of training, after which a run without a picture gets its first one
GRID_COLUMNS = 10


class TrainingFailed(Exception):
    """The run cannot go on. The last healthy checkpoint is untouched."""


class Interrupted(Exception):
    """The run was asked to stop (Ctrl-C, SIGTERM) and has saved its state."""

    def __init__(self, signum: int, step: int):
        super().__init__(f"interrupted at step {step:,}, which is saved")
        self.signum = signum


@dataclass(frozen=True)
class Watch:
    """A metric that is measured during the run. score: measures a model that is in evaluation mode on its device."""

    name: str
    score: Callable[[GAN], float]
    higher_is_better: bool


@dataclass(frozen=True)
class Trained:
    """A finished run.

    seconds: training time, summed over interruptions. warnings: trouble in spite of which the recipe went on.
    best: step and value of the best watched metric, or None.
    """

    checkpoint: Path
    steps: int
    seconds: float
    warnings: tuple[str, ...] = ()
    best: tuple[int, float] | None = None


def train(
    recipe: Recipe, data: Dataset, folder: Path, seed: int, device: torch.device, commit: str = "",
    advance: Callable[[int, str], None] | None = None, fresh: bool = False,
    say: Callable[[str], None] | None = None, watch: Watch | None = None, board: bool = False, rewrite: bool = False,
) -> Trained:
    """Train a recipe to its end in `folder`, going on from `state.pt` if there is one.

    fresh: empty the folder first. advance(step, text): called after each step. say: called with each trouble. board:
    also write a TensorBoard log. rewrite: write the checkpoint of a finished run again. Under torchrun every process
    takes its part of each batch, and the first one writes.

    Raises UserError if recipe and data do not fit or another process works in the folder, TrainingFailed if losses or
    weights are not finite or other trouble ends the run, and Interrupted, after saving, on SIGINT or SIGTERM.
    """
    torch.manual_seed(seed)
    gan = new_model(recipe, data)  # a misfit is reported before anything is written or thrown away
    data = for_training(with_label_noise(data, recipe.train.label_noise), say=say or (lambda text: None))
    place = RunFolder(folder)
    with place.lock() if distributed.rank() == 0 else contextlib.nullcontext():
        if fresh and distributed.rank() == 0:
            place.empty()
        with _asked_to_stop() as asked:
            run = _Run(gan, recipe, data, place, seed, device, commit)
            with (
                Board(place.path / "tensorboard", run.step) if board and distributed.rank() == 0 else Board() as mirror
            ):
                return run.to_the_end(advance or (lambda step, text: None), say or (lambda text: None),
                                      watch, mirror, asked, rewrite)


class _Run:
    """Everything that changes during a run, and how it is saved."""

    def __init__(
        self, gan: GAN, recipe: Recipe, data: Dataset, place: RunFolder, seed: int, device: torch.device, commit: str
    ):
        self.recipe, self.data, self.place = recipe, data, place
        self.seed, self.device, self.commit = seed, device, commit
        self.identity = {
            "model": asdict(recipe.model), "train": recipe.train.identity(), "seed": seed, "data": data.fingerprint
        }
        self.first = distributed.rank() == 0
        saved = distributed.from_first(place.read_state(self.identity) if self.first and place.state.exists() else None)
        self.gan = gan.to(device).train()
        if saved is None:
            self.gan.begin(to_float(chunk).to(device) for chunk in data.images.split(1000))
        self.channels_last = any(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in gan.modules())
        if self.channels_last:
            self.gan.to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.gan).requires_grad_(False) if recipe.train.ema_decay else None
        self.optimizers = self.gan.optimizers()
        self.spans = spans(gan, recipe.train.batch_size)
        self.health = Health(data, gan.game, recipe.watch.limits)
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                if "fused" in group:  # one kernel for all parameters: the same formula, a tenth of the time
                    group.update(fused=True, foreach=False)
            optimizer.register_step_pre_hook(_one_layout)
            distributed.average_gradients(optimizer)
            if name == "G":
                optimizer.register_step_post_hook(self.health.update_of_g)
        self.step, self.seconds = 0, 0.0
        self.warnings: dict[str, str] = {}  # the first of each kind
        self.best: tuple[int, float] | None = None
        if saved is not None:
            self.restore(saved)
        self.began = time.monotonic()
        if distributed.world_size() > 1:
            if recipe.train.batch_norm == "global":
                distributed.share_moments(self.gan)
            self.gan.sample_latent = distributed.own_part(self.gan.sample_latent)  # type: ignore[method-assign]
        else:
            self.gan.sample_latent = drawn_on(device, self.gan.sample_latent)  # type: ignore[method-assign]

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from a saved state. Raises UserError if it does not fit the model or the length of the run."""
        try:
            self.gan.load_state_dict(saved["model"])
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(saved["optimizers"][name])
            if self.average is not None:
                self.average.load_state_dict(saved["average"])
            self.health.restore(saved["health"])
            self.warnings, self.best = saved["warnings"], saved["best"]
            torch.set_rng_state(saved["rng"].cpu())
            if self.device.type == "cuda" and len(saved["cuda_rng"]):  # empty if the run began on a CPU
                torch.cuda.set_rng_state(saved["cuda_rng"].cpu(), self.device)
        except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{self.place.state} is damaged or of another version of the model "
                f"({type(error).__name__}: {shortened(' '.join(str(error).split()))}): give --fresh to begin again."
            ) from error
        self.step, self.seconds = saved["step"], saved["seconds"]
        if self.step > self.recipe.train.steps:
            raise UserError(
                f"{self.place.state} has gone {self.step:,} steps, more than {self.recipe.train.steps:,}: give --fresh "
                "to begin again."
            )

    def to_the_end(
        self, advance: Callable[[int, str], None], say: Callable[[str], None], watch: Watch | None, board: Board,
        asked: list[int], rewrite: bool = False,
    ) -> Trained:
        """Run the remaining steps, save, and return the finished run."""
        train, looked, steps = self.recipe.train, self.recipe.watch, self.recipe.train.steps
        rank, world = distributed.rank(), distributed.world_size()
        if self.first and (remark := self.place.cut_log(self.step)):
            say(remark)
        log_every, grid_every = max(1, steps // LOG_LINES), looked.grid_every or max(1, steps // GRIDS)
        start, saved_at, text = self.step, time.monotonic(), ""
        first_picture_at = math.inf if self.place.has_samples() else saved_at + FIRST_PICTURE_SECONDS
        for batch in batches(self.data, train, self.seed, start, steps, self.device, (rank, world), self.spans):
            losses = self.one_step(batch)
            step = self.step
            if step % log_every == 0 or step == steps:
                values = distributed.mean({name: loss.item() for name, loss in losses.items()})
                self.require_finite(values, "the losses")
                self.note(values, board)
                self.heed(self.health.look_at_losses(values), say)
                text = "  ".join(f"{name} {v:.3f}" for name, v in values.items())
            if step % health.EVERY == 0:
                reason = self.look_at_samples() if self.first else None
                self.heed(distributed.first(reason), say)
            if watch and self.first and (step % looked.every == 0 or step == steps):
                self.measure(watch, board)
            if self.first and (step % grid_every == 0 or step == steps or time.monotonic() >= first_picture_at):
                self.picture(board)
                first_picture_at = math.inf
            if self.first and time.monotonic() - saved_at > SAVE_EVERY_SECONDS and step < steps:
                self.save()
                saved_at = time.monotonic()
            advance(step, text)
            signum = distributed.anybody(asked[0] if asked else 0)
            if signum and step < steps:
                if self.first:
                    self.save()
                raise Interrupted(signum, step)
        if start < steps or rewrite or distributed.decide(not self.place.checkpoint.exists()):
            self.finish()
        return Trained(self.place.checkpoint, steps, self.seconds, tuple(self.warnings.values()), self.best)

    def one_step(self, batch: Batch) -> dict[str, Tensor]:
        """Make the paper's step on this process's part of the batch, then update the averaged weights."""
        train, span = self.recipe.train, span_at(self.spans, batch.step)
        if batch.step == span.first:  # also after a resume
            for optimizer in self.optimizers.values():
                optimizer.state.clear()
        if self.channels_last:
            batch = _channels_last(batch)
        if distributed.world_size() > 1:  # other draws than latents differ by process, and are the same after a resume
            torch.manual_seed(hash((self.seed, batch.step, distributed.rank())))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=train.precision == "bf16"):
            losses = self.gan.training_step(batch, self.optimizers)
        if self.average is not None:
            decay = train.ema_decay if span.ema_decay is None else span.ema_decay
            _update_average(self.average, self.gan, decay if batch.step >= train.ema_start else 0.0)
        self.step = batch.step + 1
        return losses

    @property
    def evaluated(self) -> GAN:
        """The model that a checkpoint holds: with averaged weights if the recipe averages."""
        return self.gan if self.average is None else self.average

    def look_at_samples(self) -> str | None:
        """Return what is wrong with samples of the model, beside real images of the size that it has grown to."""
        return self.health.look_at_samples(self.evaluated, span_at(self.spans, self.step - 1).image_size)

    def note(self, line: Mapping[str, Any], board: Board) -> None:
        """Write a line to the log, and its numbers to TensorBoard."""
        if self.first:
            self.place.write({"step": self.step, **line})
            board.scalars(self.step, {k: v for k, v in line.items() if isinstance(v, float)})

    def heed(self, trouble: str | None, say: Callable[[str], None]) -> None:
        """Report trouble, and end the run unless the recipe says "go on"."""
        if trouble is None:
            return
        if self.recipe.watch.on_trouble == "stop":
            self.fail(f'{trouble}. To go on all the same: on_trouble = "go on" in the recipe\'s [watch]')
        kind = trouble.partition(" (")[0]
        if kind not in self.warnings:
            self.warnings[kind] = f"step {self.step:,}: {trouble}"
            say(self.warnings[kind])
            if self.first:
                self.place.write({"step": self.step, "warning": trouble})

    def fail(self, reason: str) -> None:
        """End the run. The files in its folder are those of an earlier, healthy step."""
        kept = f"The last good checkpoint is {self.place.checkpoint}."
        raise TrainingFailed(
            f"recipe '{self.recipe.name}', seed {self.seed}, step {self.step}: {reason}. "
            f"{kept if self.place.checkpoint.exists() else 'No checkpoint was written.'}"
        )

    def require_finite(self, values: Mapping[str, float], what: str) -> None:
        """Raise TrainingFailed if a value is not finite."""
        if not all(map(math.isfinite, values.values())):
            found = ", ".join(f"{name} {value}" for name, value in values.items() if not math.isfinite(value))
            self.fail(f"{what} are not finite ({found})")

    def measure(self, watch: Watch, board: Board) -> None:
        """Log the watched metric, and keep a checkpoint of its best value."""
        model = copy.deepcopy(self.evaluated).eval()
        value = watch.score(model)
        self.note({watch.name: value}, board)
        if self.best is None or (value > self.best[1] if watch.higher_is_better else value < self.best[1]):
            self.best = (self.step, value)
            checkpoint.save(self.place.best, model.state_dict(), self.metadata())

    def picture(self, board: Board) -> None:
        """Draw samples on a fixed latent, and interpolations between pairs of latents.

        No random number of the training is used up: the first picture is drawn at a step that depends on the clock.
        """
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            pictures = {"step": sample_grid(self.evaluated)}
            if "generate" in capabilities(self.gan):
                pictures["between"] = interpolation(self.evaluated)
        for name, image in pictures.items():
            save_png(image, self.place.samples(f"{name}-{self.step:06d}"))
            board.picture(self.step, name, image)

    def metadata(self) -> checkpoint.Checkpoint:
        """Metadata of a checkpoint of the present step."""
        model = self.recipe.model
        return checkpoint.Checkpoint(
            model.name, model.args, self.step, self.recipe.name, self.recipe.train.data, self.seed, self.commit
        )

    def random_state(self) -> Tensor:
        """State of the CPU generator that the next step draws from (the shared one when distributed)."""
        shared: torch.Generator | None = getattr(self.gan.sample_latent, "shared", None)
        return torch.get_rng_state() if shared is None else shared.get_state()

    def save(self, evaluated: GAN | None = None, rng: Tensor | None = None) -> None:
        """Replace checkpoint and state, each whole. Weights that are not finite never replace healthy ones."""
        tensors = {k: v.sum().item() for k, v in self.gan.state_dict().items() if v.is_floating_point()}
        self.require_finite(tensors, "the weights")
        state = {
            "identity": self.identity, "step": self.step, "seconds": self.seconds + time.monotonic() - self.began,
            "model": self.gan.state_dict(), "rng": self.random_state() if rng is None else rng,
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "average": self.average.state_dict() if self.average is not None else {},
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.empty(0),
            "health": self.health.state(), "warnings": self.warnings, "best": self.best,
        }
        checkpoint.save(self.place.checkpoint, (evaluated or self.evaluated).state_dict(), self.metadata())
        self.place.save_state(state)

    def finish(self) -> None:
        """Save for the last time: the checkpoint after the model's `finish`, the state as training left it."""
        evaluated = copy.deepcopy(self.evaluated)
        rng = self.random_state()
        share = (distributed.rank(), distributed.world_size())
        evaluated.finish(
            batches(self.data, self.recipe.train, self.seed, self.step, None, self.device, share, self.spans)
        )
        if self.first:
            self.save(evaluated, rng)
        distributed.decide(True)  # the other processes wait here until the files are whole
        self.seconds += time.monotonic() - self.began


def timed_steps(
    recipe: Recipe, data: Dataset, folder: Path, device: torch.device, span: Span | None = None
) -> Iterator[float]:
    """Train a new model without end, and yield the seconds of each step. folder: an empty one; nothing is stored.

    span: a stage of a growing model, whose first step is then made again and again.
    """
    run = _Run(new_model(recipe, data), recipe, data, RunFolder(folder), 0, device, "")
    if span is not None:
        run.spans = [dataclasses.replace(span, first=0, stop=None)]
    for batch in batches(data, recipe.train, 0, 0, None, device, spans=run.spans):
        began = time.monotonic()
        losses = run.one_step(batch if span is None else batch._replace(shown=span.shown))
        sum(loss.item() for loss in losses.values())  # waits for the device
        yield time.monotonic() - began


def new_model(recipe: Recipe, data: Dataset) -> GAN:
    """Return the recipe's model, newly initialised. Raises UserError if its arguments or the data do not fit."""
    gan = checkpoint.make_model(recipe.model.name, recipe.model.args, f"recipe '{recipe.name}'")
    require_fit(gan, recipe, data)
    return gan


def require_fit(gan: GAN, recipe: Recipe, data: Dataset) -> None:
    """Raise UserError if the recipe's model, whose weights may be on torch's meta device, cannot train on `data`."""
    whose, train = f"recipe '{recipe.name}'", recipe.train
    few, grown = train.labels > 0, spans(gan, train.batch_size)
    sizes = [span.batch_size for span in grown]
    if few and len(grown) > 1:
        raise UserError(
            f"{whose}: the model '{recipe.model.name}' grows, and cannot be trained with few labels. Remove [train] "
            "labels."
        )
    needed = train.unlabelled_batch_size if few else max(sizes)
    if len(data) < needed:
        raise UserError(
            f"{whose}: '{data.name}' has {len(data)} images, fewer than one batch of {needed}: give more images."
        )
    if any(size % distributed.world_size() for size in (*sizes, train.unlabelled_batch_size)):
        raise UserError(f"{whose}: its batches cannot be shared equally by {distributed.world_size()} processes.")
    try:
        gan.optimizers()  # look at learning rates and the like
    except Exception as error:  # optimisers refuse numbers with errors of many types
        raise UserError(
            f"{whose}: the optimisers of the model '{recipe.model.name}' refuse its arguments "
            f"{shortened(str(recipe.model.args), 500)} ({type(error).__name__}: {shortened(str(error))}). Correct "
            "[model] args."
        ) from error
    if gan.image_shape != tuple(data.images.shape[1:]):
        raise UserError(
            f"{whose}: the model makes images of {gan.image_shape} (C, H, W) but '{data.name}' has "
            f"{tuple(data.images.shape[1:])}. Give data of that size, or another recipe."
        )
    for name in recipe.watch.limits:
        if name not in gan.logged and not name.endswith("_loss"):
            known = ", ".join(gan.logged) or "none besides"
            raise UserError(
                f"{whose}: [watch] limits names '{name}', which the model does not log: name a loss, or one of its "
                f"other logged values ({known})."
            )
    classes = gan.num_classes or gan.classes
    if classes:
        if data.labels is None:
            raise UserError(
                f"{whose}: the model needs labels and '{data.name}' has none: put its images into class folders."
            )
        if int(data.labels.max()) >= classes:
            raise UserError(f"{whose}: '{data.name}' has more classes than the model's {classes}.")
        of_each = data.labels.bincount()
        if few and (train.labels < len(of_each) or train.labels > len(of_each) * int(of_each.min())):
            raise UserError(
                f"{whose}: {train.labels} labels cannot be shared equally by the {len(of_each)} classes of "
                f"'{data.name}', which have from {int(of_each.min())} images on. Correct [train] labels: at least one "
                "of each class, at most as many as the smallest class has."
            )


@torch.no_grad()
def sample_grid(gan: GAN, rows: int = 10, seed: int = 0) -> Tensor:
    """Draw samples on a fixed latent as a uint8 picture, ten a row; with classes, a row a class, at most ten."""
    classes = min(gan.num_classes, rows) or rows
    y = torch.arange(classes).repeat_interleave(GRID_COLUMNS) if gan.num_classes else None
    n = classes * GRID_COLUMNS
    with _evaluating(gan):
        x = gan.sample(n, None if y is None else y.to(gan.device), torch.Generator().manual_seed(seed))
    return grid(to_uint8(x.float().nan_to_num(0.0)).cpu(), GRID_COLUMNS)


@torch.no_grad()
def interpolation(gan: GAN, rows: int = 10, seed: int = 0) -> Tensor:
    """Draw interpolations in ten equal steps between two latents, a row a pair, its class fixed. uint8 picture.

    A generator that has memorised its training images jumps from one to the next (Odena et al., 2017, Section 4.4).
    """
    classes = min(gan.num_classes, rows) or rows
    generator = torch.Generator().manual_seed(seed)
    a, b = gan.sample_latent(classes, generator), gan.sample_latent(classes, generator)
    weights = torch.linspace(0, 1, GRID_COLUMNS).view(1, -1, *[1] * (a.ndim - 1))
    z = (a[:, None] + weights * (b - a)[:, None]).flatten(0, 1)
    y = torch.arange(classes).repeat_interleave(GRID_COLUMNS) if gan.num_classes else None
    with _evaluating(gan):
        x = gan.generate(z.to(gan.device), None if y is None else y.to(gan.device))
    return grid(to_uint8(x.float().nan_to_num(0.0)).cpu(), GRID_COLUMNS)


def drawn_on(device: torch.device, draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a `sample_latent` for training that draws on the device, so that no step waits for a copy.

    If a generator is given, it draws as before.
    """

    def sample_latent(n: int, generator: torch.Generator | None = None) -> Tensor:
        if generator is not None:
            return draw(n, generator)
        with device:
            return draw(n)

    return sample_latent


@torch.no_grad()
def _one_layout(optimizer: Optimizer, *_: object) -> None:
    """Give gradients and the optimiser's tensors the memory layout of their parameter, before each step.

    Fused kernels on the CPU pair values by their place in memory. If a gradient is laid out in another way than its
    parameter, they take a wrong step and say nothing.
    """
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        if p.grad is not None and _laid_out_otherwise(p.grad, p):
            p.grad = torch.empty_like(p).copy_(p.grad)
        state = optimizer.state.get(p, {})
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == p.shape and _laid_out_otherwise(value, p):
                state[name] = torch.empty_like(p, dtype=value.dtype, device=value.device).copy_(value)


def _laid_out_otherwise(value: Tensor, p: Tensor) -> bool:
    """Return True if a tensor of the shape of p lies in memory in another order; axes of length 1 have no order."""
    a, b = value.stride(), p.stride()
    return a != b and any(i != j and n > 1 for i, j, n in zip(a, b, p.shape, strict=True))


def _channels_last(batch: Batch) -> Batch:
    """The batch in channels-last memory format, which is the fastest for convolutions on most devices."""
    x, u = (t if t is None else t.contiguous(memory_format=torch.channels_last) for t in (batch.x, batch.u))
    assert x is not None
    return batch._replace(x=x, u=u)


@contextlib.contextmanager
def _evaluating(gan: GAN) -> Iterator[None]:
    """Evaluation mode inside, the former mode afterwards."""
    training = gan.training
    gan.eval()
    yield
    gan.train(training)


@torch.no_grad()
def _update_average(average: GAN, gan: GAN, decay: float) -> None:
    """a <- decay a + (1 - decay) w for parameters; buffers (moments of batch norm, counters) are copied."""
    get_ema_multi_avg_fn(decay)(list(average.parameters()), list(gan.parameters()), 0)
    for a, b in zip(average.buffers(), gan.buffers(), strict=True):
        a.copy_(b)


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """Collect the signals that ask for an end; the loop heeds them between two steps. A second one ends at once."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread alone
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
