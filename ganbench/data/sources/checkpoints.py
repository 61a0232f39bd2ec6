"""Samples of a checkpoint, drawn on request and written to a PNG or npz."""

from pathlib import Path

import numpy as np
import torch

from ganbench.base.device import choose_device
from ganbench.base.errors import UserError
from ganbench.base.files import atomic_path
from ganbench.base.progress import Reporter
from ganbench.data import images
from ganbench.data.sources.generators import generate
from ganbench.data.sources.samples import Samples
from ganbench.gan import checkpoint

COLUMNS = 10  # of a grid


def draw(
    ckpt: Path, model: str | None, num: int, labels: str | None, seed: int, device: str | None, reporter: Reporter
) -> Samples:
    """Return `num` samples of a checkpoint, uint8 N x C x H x W.

    model: the name that the checkpoint must have, or None. labels: comma-separated classes, repeated to `num`; None:
    balanced. Raises UserError for a checkpoint that cannot be read, and for labels that the model does not take.
    """
    gan, meta = checkpoint.load(ckpt, model)
    y = None
    if labels is not None:
        classes = _classes(labels, gan.num_classes)
        y = torch.tensor([classes[i % len(classes)] for i in range(num)])
    with reporter.task("sample", num) as task:
        return generate(
            gan, num, seed, choose_device(device), y, advance=task.advance, first_class=meta.first_class
        )


def _classes(text: str, known: int) -> list[int]:
    """The classes in a comma-separated text, of a model that knows classes 0 to `known` - 1."""
    if not known:
        raise UserError("--labels: this model takes no labels.")
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = [-1]
    if not all(0 <= value < known for value in values):
        raise UserError(f"--labels must be classes 0 to {known - 1}, separated by commas, not '{text}'.")
    return values


def write_grid(samples: Samples, path: Path) -> None:
    """Write a PNG with the samples, ten to a row, sorted by class."""
    order = torch.arange(len(samples.images)) if samples.labels is None else samples.labels.argsort(stable=True)
    images.save_png(images.grid(samples.images[order], COLUMNS), path)


def write_npz(samples: Samples, path: Path) -> None:
    """Write an npz that `open_source` reads: arr_0, uint8 N x H x W x C, and arr_1, the labels if there are any."""
    arrays = {"arr_0": samples.images.permute(0, 2, 3, 1).numpy()}
    if samples.labels is not None:
        arrays["arr_1"] = samples.labels.numpy()
    with atomic_path(path) as part, open(part, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
