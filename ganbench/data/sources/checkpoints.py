"""Samples of a checkpoint: `draw` makes them, `write_grid` and `write_npz` write them to a file.

The command `ganbench sample` uses these functions.
"""

import math
import zipfile
from pathlib import Path

import torch
from numpy.lib import format as npy

from ganbench.base import memory
from ganbench.base.device import choose_device
from ganbench.base.errors import UserError, shortened
from ganbench.base.files import atomic_path
from ganbench.base.progress import Reporter
from ganbench.data import images
from ganbench.data.sources.generators import BATCH, generate
from ganbench.data.sources.samples import Samples
from ganbench.data.streams import batches
from ganbench.gan import checkpoint

COLUMNS = 10  # images in a row of a grid


def draw(
    ckpt: Path, model: str | None, num: int, labels: str | None, seed: int, device: str | None, reporter: Reporter
) -> Samples:
    """Return `num` samples of a checkpoint, uint8 N x C x H x W.

    model: the name that the checkpoint must have, or None. labels: classes separated by commas, repeated up to `num`;
    None takes balanced classes. device: the name of a device, or None (see `choose_device`).
    Raises UserError if the checkpoint cannot be read, and for labels that the model does not take.
    """
    gan, meta = checkpoint.load(ckpt, model)
    memory.require(num * (math.prod(gan.image_shape) + 16), f"--num {num:,}: its images")
    y = None
    if labels is not None:
        classes = _classes(labels, gan.num_classes)
        y = torch.tensor([classes[i % len(classes)] for i in range(num)])
    with reporter.task("sample", num) as task:
        return generate(
            gan, num, seed, choose_device(device), y, advance=task.advance, first_class=meta.first_class
        )


def _classes(text: str, known: int) -> list[int]:
    """Read classes separated by commas. Raises UserError unless all are from 0 to `known` - 1."""
    if not known:
        raise UserError("--labels: this model takes no labels. Leave --labels out.")
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = [-1]
    if not all(0 <= value < known for value in values):
        raise UserError(f"--labels must be classes 0 to {known - 1}, separated by commas, not '{shortened(text, 80)}'.")
    return values


def write_grid(samples: Samples, path: Path) -> None:
    """Write a PNG with the samples, ten in a row, sorted by class. Raises UserError if it cannot be written."""
    order = torch.arange(len(samples.images)) if samples.labels is None else samples.labels.argsort(stable=True)
    images.save_png(images.grid(samples.images[order], COLUMNS), path)


def write_npz(samples: Samples, path: Path) -> None:
    """Write an npz that `open_source` reads. Raises UserError if it cannot be written.

    `arr_0` holds the images, uint8 N x H x W x C. `arr_1` holds the labels, int64 N, if there are any.
    """
    n, c, h, w = samples.images.shape
    with atomic_path(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (n, h, w, c)})
            for batch in batches(samples.images, BATCH):
                file.write(batch.permute(0, 2, 3, 1).contiguous().numpy().data)
        if samples.labels is not None:
            with archive.open("arr_1.npy", "w", force_zip64=True) as file:
                npy.write_array(file, samples.labels.numpy())
