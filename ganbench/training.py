"""The one training loop: data by index from memory, the model's own step, averages, checkpoints, resume.

A run folder holds `checkpoint.safetensors` (what is evaluated), `state.pt` (all that resuming needs), `log.jsonl` and
`samples/`. The order of the data depends on the seed and the epoch alone, and `state.pt` carries the rest, so a run
that was killed goes on as if nothing had happened.
"""

import contextlib
import copy
import itertools
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganbench import checkpoint
from ganbench.datasets import Dataset
from ganbench.errors import UserError
from ganbench.files import atomic_path, write_text
from ganbench.gan import GAN, Batch
from ganbench.images import grid, save_png, to_float, to_uint8
from ganbench.recipes import Recipe, TrainSpec

CHECKPOINT, STATE, LOG, LOCK = "checkpoint.safetensors", "state.pt", "log.jsonl", ".lock"
SAVE_EVERY_SECONDS = 30.0
GRIDS = 10  # sample grids over a run
GRID_COLUMNS = 10


class TrainingFailed(Exception):
    """The run cannot go on (losses or weights are not finite). The last good checkpoint is untouched."""


class Interrupted(Exception):
    """Somebody asked the run to stop (Ctrl-C, SIGTERM), and it has saved where it was."""

    def __init__(self, signum: int, step: int):
        super().__init__(f"interrupted at step {step:,}, which is saved")
        self.signum = signum


@dataclass(frozen=True)
class Trained:
    """A finished run. seconds: of training, over all its pieces."""

    checkpoint: Path
    steps: int
    seconds: float


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The permutation of 0..n-1 of an epoch: a function of seed and epoch, and so the same after a resume."""
    return torch.randperm(n, generator=torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**32))


def labelled_rows(labels: Tensor, count: int, seed: int) -> Tensor:
    """`count` rows, as many of each class, drawn by `seed`: the few images whose labels may be seen."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    classes = int(labels.max()) + 1
    return torch.cat([order[labels[order] == c][: count // classes] for c in range(classes)])


def batches(
    data: Dataset, train: TrainSpec, seed: int, start: int, stop: int | None, device: torch.device
) -> Iterator[Batch]:
    """Batches of steps start..stop-1, or without end. Each is a function of seed and step alone.

    Each epoch is a new permutation of all images; its last incomplete batch is dropped. Of few labelled images, each
    permutation is followed by the next without a gap.
    """
    images = data.images.to(device)
    labels = None if data.labels is None else data.labels.to(device)
    few = None
    if train.labels and data.labels is not None:
        few = labelled_rows(data.labels, train.labels, seed).to(device)
    size = train.batch_size if few is None else train.unlabelled_batch_size
    per_epoch = len(data) // size
    epoch, order = -1, torch.empty(0)
    for step in range(start, stop) if stop is not None else itertools.count(start):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = epoch_order(len(data), seed, epoch).to(device)
        rows = order[step % per_epoch * size :][:size]
        x = to_float(images[rows])
        if few is None:
            yield Batch(x, None if labels is None else labels[rows], step)
        else:
            assert labels is not None
            own = few[endless(len(few), seed, step * train.batch_size, train.batch_size).to(device)]
            yield Batch(to_float(images[own]), labels[own], step, x)


def endless(n: int, seed: int, start: int, count: int) -> Tensor:
    """Items start..start+count-1 of the permutations of 0..n-1 of epochs 0, 1, 2, ..., one after the other."""
    first, last = start // n, (start + count - 1) // n
    orders = torch.cat([epoch_order(n, seed, epoch) for epoch in range(first, last + 1)])
    return orders[start - first * n :][:count]


def train(
    recipe: Recipe, data: Dataset, folder: Path, seed: int, device: torch.device, commit: str = "",
    advance: Callable[[int, str], None] | None = None, fresh: bool = False,
) -> Trained:  # fmt: skip
    """Train a recipe to its end in `folder`, going on from `state.pt` if there is one; `fresh` empties it first.

    `advance(step, text)` is called after each step. Raises UserError where recipe and data do not fit, or another
    process works in the folder, TrainingFailed where losses or weights are not finite, and Interrupted, after saving,
    where SIGINT or SIGTERM asked for an end.
    """
    torch.manual_seed(seed)
    gan = new_model(recipe, data)  # what does not fit is said before anything is written or thrown away
    with _lock(folder):
        if fresh:
            _empty(folder)
        with _asked_to_stop() as asked:
            return _train(gan, recipe, data, folder, seed, device, commit, advance or (lambda step, text: None), asked)


def _train(
    gan: GAN,
    recipe: Recipe,
    data: Dataset,
    folder: Path,
    seed: int,
    device: torch.device,
    commit: str,
    advance: Callable[[int, str], None],
    asked: list[int],
) -> Trained:
    gan = gan.to(device).train()
    state_file = folder / STATE
    if not state_file.exists():
        gan.begin(to_float(chunk).to(device) for chunk in data.images.split(1000))
    optimizers = gan.optimizers()
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            if "fused" in group:  # one kernel for all parameters: the same formula, a tenth of the time
                group.update(fused=True, foreach=False)
    average = copy.deepcopy(gan).requires_grad_(False) if recipe.train.ema_decay else None
    steps, start, seconds = recipe.train.steps, 0, 0.0
    identity = {
        "model": asdict(recipe.model), "train": recipe.train.identity(), "seed": seed, "data": data.fingerprint
    }  # fmt: skip
    if state_file.exists():
        saved = _read_state(state_file, identity)
        try:
            gan.load_state_dict(saved["model"])
            for name, optimizer in optimizers.items():
                optimizer.load_state_dict(saved["optimizers"][name])
            if average is not None:
                average.load_state_dict(saved["average"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"{state_file} is of another version of the model: give --fresh to begin again.") from error
        torch.set_rng_state(saved["rng"].cpu())
        if device.type == "cuda" and len(saved["cuda_rng"]):  # empty if the run began on a CPU
            torch.cuda.set_rng_state(saved["cuda_rng"].cpu(), device)
        start, seconds = saved["step"], saved["seconds"]
        if start > steps:
            raise UserError(f"{state_file} has gone {start:,} steps, more than {steps:,}: give --fresh to begin again.")
    _cut_log(folder / LOG, start)

    def require_finite(step: int, values: dict[str, Any], what: str) -> None:
        if not all(map(math.isfinite, values.values())):
            last = (
                f"The last good checkpoint is {folder / CHECKPOINT}."
                if (folder / CHECKPOINT).exists()
                else "No checkpoint was written."
            )
            found = ", ".join(f"{name} {value}" for name, value in values.items() if not math.isfinite(value))
            raise TrainingFailed(
                f"recipe '{recipe.name}', seed {seed}, step {step}: {what} are not finite ({found}). {last}"
            )

    def save(step: int) -> None:
        require_finite(
            step, {k: v.sum().item() for k, v in gan.state_dict().items() if v.is_floating_point()}, "the weights"
        )
        now = seconds + time.monotonic() - began
        state = {"identity": identity, "step": step, "seconds": now, "model": gan.state_dict(),
                 "rng": torch.get_rng_state(), "optimizers": {name: o.state_dict() for name, o in optimizers.items()},
                 "average": average.state_dict() if average is not None else {},
                 "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.empty(0)}  # fmt: skip
        meta = checkpoint.Checkpoint(
            recipe.model.name, recipe.model.args, step, recipe.name, recipe.train.data, seed, commit
        )
        evaluated = gan if average is None else average
        if step == steps:
            evaluated = copy.deepcopy(evaluated)  # training may go on from the weights as they are
            evaluated.finish(batches(data, recipe.train, seed, steps, None, device))
        checkpoint.save(folder / CHECKPOINT, evaluated.state_dict(), meta)
        with atomic_path(state_file) as part:  # last: a state that says "done" has its checkpoint beside it
            torch.save(state, part)

    began = saved_at = time.monotonic()
    log_every, grid_every = max(1, steps // 200), max(1, steps // GRIDS)
    text = ""
    for batch in batches(data, recipe.train, seed, start, steps, device):
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.train.precision == "bf16"):
            losses = gan.training_step(batch, optimizers)
        step = batch.step + 1
        if average is not None:
            _update_average(average, gan, recipe.train.ema_decay)
        if step % log_every == 0 or step == steps:
            values = {name: loss.item() for name, loss in losses.items()}
            require_finite(step, values, "the losses")
            elapsed = seconds + time.monotonic() - began
            with open(folder / LOG, "a", encoding="utf-8") as log:
                log.write(json.dumps({"step": step, **values, "seconds": round(elapsed, 1)}) + "\n")
            text = "  ".join(f"{name} {v:.3f}" for name, v in values.items())
        if step % grid_every == 0 or step == steps:
            save_png(sample_grid(average or gan), folder / "samples" / f"step-{step:06d}.png")
        if time.monotonic() - saved_at > SAVE_EVERY_SECONDS and step < steps:
            save(step)
            saved_at = time.monotonic()
        advance(step, text)
        if asked and step < steps:
            save(step)
            raise Interrupted(asked[0], step)
    if start < steps or not (folder / CHECKPOINT).exists():
        save(steps)
        seconds += time.monotonic() - began
    return Trained(folder / CHECKPOINT, steps, seconds)


def new_model(recipe: Recipe, data: Dataset) -> GAN:
    """The recipe's model, newly initialised. Raises UserError where its arguments or the data do not fit."""
    if len(data) < recipe.train.batch_size:
        raise UserError(
            f"recipe '{recipe.name}': '{data.name}' has {len(data)} images, fewer than one batch of "
            f"{recipe.train.batch_size}: give more images."
        )
    gan = checkpoint.make_model(recipe.model.name, recipe.model.args, f"recipe '{recipe.name}'")
    if gan.image_shape != tuple(data.images.shape[1:]):
        raise UserError(
            f"recipe '{recipe.name}': the model makes images of {gan.image_shape} (C, H, W) but '{data.name}' has "
            f"{tuple(data.images.shape[1:])}. Give data of that size, or another recipe."
        )
    if gan.num_classes:
        if data.labels is None:
            raise UserError(
                f"recipe '{recipe.name}': the model needs labels and '{data.name}' has none: "
                "put its images into class folders."
            )
        if int(data.labels.max()) >= gan.num_classes:
            raise UserError(
                f"recipe '{recipe.name}': '{data.name}' has more classes than the model's {gan.num_classes}."
            )
    return gan


@torch.no_grad()
def sample_grid(gan: GAN, rows: int = 10, seed: int = 0) -> Tensor:
    """uint8 picture of samples: a row a class where the model has classes (at most ten), the same latent every time."""
    classes = min(gan.num_classes, rows) or rows
    y = torch.arange(classes).repeat_interleave(GRID_COLUMNS) if gan.num_classes else None
    training = gan.training
    gan.eval()
    n = classes * GRID_COLUMNS
    x = gan.sample(n, None if y is None else y.to(gan.device), torch.Generator().manual_seed(seed))
    gan.train(training)
    return grid(to_uint8(x.nan_to_num(0.0)).cpu(), GRID_COLUMNS)


@torch.no_grad()
def _update_average(average: GAN, gan: GAN, decay: float) -> None:
    """a <- decay a + (1 - decay) w for parameters; buffers (moments of batch norm, counters) are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(gan.parameters()), 1 - decay)
    for a, b in zip(average.buffers(), gan.buffers(), strict=True):
        a.copy_(b)


def _read_state(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}): give --fresh to begin again.") from error
    if not isinstance(saved, dict) or "identity" not in saved:
        raise UserError(f"{path} is not the state of a run: give --fresh to begin again.")
    for key, value in identity.items():
        if saved["identity"].get(key) != value:
            raise UserError(
                f"{path} belongs to another run (its {key} differs): give --fresh to begin again, or another --out."
            )
    return saved


def _cut_log(path: Path, step: int) -> None:
    """Drop the lines after `step`, which the resumed run writes again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = []
        for line in lines:
            with contextlib.suppress(ValueError):  # a line cut short by a kill
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
        write_text(path, "".join(kept))


def _empty(folder: Path) -> None:
    """Remove all of an earlier run but its lock, which this process holds."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """Signals that asked for an end: taken between two steps, so that nothing is half done. The second ends at once."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # Python takes signals there alone
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


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; the system frees it when the process ends, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}. Choose another --out.") from error
    try:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no flock on this system: two runs on one folder are not noticed
            pass
        except OSError:
            raise UserError(f"another process is training in {folder}: wait for it, or give another --out.") from None
        for part in folder.glob(".*.part"):  # what a killed process was writing
            part.unlink()
        yield
    finally:
        os.close(handle)
