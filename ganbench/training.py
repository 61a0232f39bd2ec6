"""The one training loop: data by index from memory, the model's own step, averages, checkpoints, resume.

A run folder holds `checkpoint.safetensors` (what is evaluated), `state.pt` (all that resuming needs), `log.jsonl` and
`samples/`. The order of the data depends on the seed and the epoch alone, and `state.pt` carries the rest, so a run that was
killed goes on as if nothing had happened.
"""

import contextlib
import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganbench import checkpoint, registry
from ganbench.datasets import Dataset
from ganbench.errors import UserError
from ganbench.files import atomic_path, write_text
from ganbench.gan import GAN, Batch
from ganbench.images import grid, save_png, to_float, to_uint8
from ganbench.recipes import Recipe

CHECKPOINT, STATE, LOG = "checkpoint.safetensors", "state.pt", "log.jsonl"
SAVE_EVERY_SECONDS = 30.0
GRIDS = 10  # sample grids over a run
GRID_COLUMNS = 10


class TrainingFailed(Exception):
    """The run cannot go on (losses are not finite). The last good checkpoint is untouched."""


@dataclass(frozen=True)
class Trained:
    """A finished run. seconds: of training, over all its pieces."""

    checkpoint: Path
    steps: int
    seconds: float


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The permutation of 0..n-1 of an epoch: a function of seed and epoch, and so the same after a resume."""
    return torch.randperm(n, generator=torch.Generator().manual_seed((seed << 32) + epoch))


def batches(data: Dataset, batch_size: int, seed: int, start: int, stop: int, device: torch.device) -> Iterator[Batch]:
    """Batches of steps start..stop-1. Each epoch is a new permutation; its last incomplete batch is dropped."""
    per_epoch = len(data) // batch_size
    if per_epoch == 0:
        raise UserError(f"the data set '{data.name}' has {len(data)} images, fewer than one batch of {batch_size}.")
    images = data.images.to(device)
    labels = None if data.labels is None else data.labels.to(device)
    epoch, order = -1, torch.empty(0)
    for step in range(start, stop):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = epoch_order(len(data), seed, epoch).to(device)
        rows = order[step % per_epoch * batch_size :][:batch_size]
        yield Batch(to_float(images[rows]), None if labels is None else labels[rows], step)


def train(
    recipe: Recipe, data: Dataset, folder: Path, seed: int, device: torch.device, commit: str = "",
    advance: Callable[[int, str], None] | None = None,
) -> Trained:  # fmt: skip
    """Train a recipe to its end in `folder`, going on from `state.pt` if there is one.

    `advance(step, text)` is called after each step. Raises UserError where recipe and data do not fit, or another process
    works in the folder, and TrainingFailed where the losses are not finite.
    """
    with _lock(folder):
        return _train(recipe, data, folder, seed, device, commit, advance or (lambda step, text: None))


def _train(
    recipe: Recipe, data: Dataset, folder: Path, seed: int, device: torch.device, commit: str, advance: Callable[[int, str], None]
) -> Trained:
    torch.manual_seed(seed)
    gan = new_model(recipe, data).to(device).train()
    optimizers = gan.optimizers()
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            if "fused" in group:  # one kernel for all parameters: the same formula, a tenth of the time
                group.update(fused=True, foreach=False)
    average = copy.deepcopy(gan).requires_grad_(False) if recipe.train.ema_decay else None
    steps, start, seconds = recipe.train.steps, 0, 0.0
    identity = {"model": asdict(recipe.model), "train": asdict(recipe.train), "seed": seed, "data": data.fingerprint}
    state_file = folder / STATE
    if state_file.exists():
        saved = _read_state(state_file, identity)
        gan.load_state_dict(saved["model"])
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(saved["optimizers"][name])
        if average is not None:
            average.load_state_dict(saved["average"])
        torch.set_rng_state(saved["rng"].cpu())
        if device.type == "cuda":
            torch.cuda.set_rng_state(saved["cuda_rng"].cpu(), device)
        start, seconds = saved["step"], saved["seconds"]
    _cut_log(folder / LOG, start)

    def save(step: int) -> None:
        now = seconds + time.monotonic() - began
        state = {"identity": identity, "step": step, "seconds": now, "model": gan.state_dict(), "rng": torch.get_rng_state(),
                 "optimizers": {name: o.state_dict() for name, o in optimizers.items()},
                 "average": average.state_dict() if average is not None else {},
                 "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.empty(0)}  # fmt: skip
        with atomic_path(state_file) as part:
            torch.save(state, part)
        meta = checkpoint.Checkpoint(recipe.model.name, recipe.model.args, step, recipe.name, recipe.train.data, seed, commit)
        checkpoint.save(folder / CHECKPOINT, (gan if average is None else average).state_dict(), meta)

    began = saved_at = time.monotonic()
    log_every, grid_every = max(1, steps // 200), max(1, steps // GRIDS)
    folder.mkdir(parents=True, exist_ok=True)
    text = ""
    for batch in batches(data, recipe.train.batch_size, seed, start, steps, device):
        losses = gan.training_step(batch, optimizers)
        step = batch.step + 1
        if average is not None:
            _update_average(average, gan, recipe.train.ema_decay)
        if step % log_every == 0 or step == steps:
            values = {name: loss.item() for name, loss in losses.items()}
            if not all(math.isfinite(v) for v in values.values()):
                raise TrainingFailed(f"step {step}: the losses are not finite ({values}). The last good checkpoint is {folder / CHECKPOINT}.")
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
    if start < steps:
        save(steps)
        seconds += time.monotonic() - began
    return Trained(folder / CHECKPOINT, steps, seconds)


def new_model(recipe: Recipe, data: Dataset) -> GAN:
    """The recipe's model, newly initialised. Raises UserError where its arguments or its image shape do not fit."""
    cls = registry.load("models", recipe.model.name)
    try:
        gan: GAN = cls(**recipe.model.args)
    except (TypeError, ValueError) as error:
        raise UserError(f"recipe '{recipe.name}', model.args: {error}.") from error
    if gan.image_shape != tuple(data.images.shape[1:]):
        raise UserError(
            f"recipe '{recipe.name}': the model makes images of {gan.image_shape} (C, H, W) but '{data.name}' has "
            f"{tuple(data.images.shape[1:])}. Give data of that size, or another recipe."
        )
    if gan.num_classes:
        if data.labels is None:
            raise UserError(f"recipe '{recipe.name}': the model needs labels and '{data.name}' has none: put its images into class folders.")
        if int(data.labels.max()) >= gan.num_classes:
            raise UserError(f"recipe '{recipe.name}': '{data.name}' has more classes than the model's {gan.num_classes}.")
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
    for key, value in identity.items():
        if saved["identity"].get(key) != value:
            raise UserError(f"{path} belongs to another run (its {key} differs): give --fresh to begin again, or another --out.")
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


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; the system frees it when the process ends, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
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
        yield
    finally:
        os.close(handle)
