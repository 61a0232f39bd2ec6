"""Samples of a checkpoint: `draw`, `draw_mixed` and `draw_scales` make them, the other functions write them to a file.

The command `ganbench sample` uses these functions.
"""

import math
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from numpy.lib import format as npy
from torch import Tensor

from ganbench.base import memory
from ganbench.base.device import choose_device
from ganbench.base.errors import UserError, shortened
from ganbench.base.files import atomic_path
from ganbench.base.progress import Reporter
from ganbench.data import images
from ganbench.data.sources.generators import BATCH, generate, images_at_once
from ganbench.data.sources.samples import Samples
from ganbench.data.streams import batches
from ganbench.gan import GAN, capabilities, checkpoint

COLUMNS = 10  # images in a row of a grid
MIXED = 6  # sources of a sheet of mixed images: so many rows and columns
SCALED = 8  # rows of a sheet of images at all scales


def draw(
    ckpt: Path, model: str | None, num: int, labels: str | None, seed: int, device: str | None, reporter: Reporter,
    truncation: float | None = None,
) -> Samples:
    """Return `num` samples of a checkpoint, uint8 N x C x H x W.

    model: the name that the checkpoint must have, or None. labels: classes separated by commas, repeated up to `num`;
    None takes balanced classes. device: the name of a device, or None (see `choose_device`). truncation: psi, for a
    model that truncates in a latent space of its own, or None.
    Raises UserError if the checkpoint cannot be read, and for labels or truncation that the model does not take.
    """
    gan, meta = checkpoint.load(ckpt, model)
    memory.require(num * (math.prod(gan.image_shape) + 16), f"--num {num:,}: its images")
    if truncation is not None:
        _truncate(gan, meta.model, truncation)
    y = None
    if labels is not None:
        classes = _classes(labels, gan.num_classes)
        y = torch.tensor([classes[i % len(classes)] for i in range(num)])
    with reporter.task("sample", num) as task:
        return generate(
            gan, num, seed, choose_device(device), y, advance=task.advance, first_class=meta.first_class
        )


def _truncate(gan: GAN, name: str, psi: float) -> None:
    """Let all samples of the model be truncated. Raises UserError if it cannot."""
    if "generate_truncated" not in capabilities(gan):
        raise UserError(f"--truncation: the model '{name}' has no latent space to truncate in. Leave --truncation out.")

    def generate_truncated(z: Tensor, y: Tensor | None = None) -> Tensor:
        return gan.generate_truncated(z, psi)  # type: ignore[operator]

    def sample(n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        return generate_truncated(gan.sample_latent(n, generator).to(gan.device))

    gan.generate, gan.sample = generate_truncated, sample  # type: ignore[method-assign]


@torch.inference_mode()
def draw_mixed(ckpt: Path, model: str | None, layers: range, seed: int, device: str | None) -> Tensor:
    """Return a sheet of mixed images, uint8 (MIXED + 1)^2 x C x H x W, row by row.

    The first row has the sources of the styles of `layers`, after a white image, and the first column the sources of
    all other styles and of the noise. Source: Karras et al. (2019), "A Style-Based Generator Architecture", Figure 3.
    Raises UserError if the checkpoint cannot be read, if the model mixes no styles, and if an image holds NaN.
    """
    gan, meta = checkpoint.load(ckpt, model)
    if "generate_mixed" not in capabilities(gan):
        raise UserError(f"--mix: the model '{meta.model}' has no styles to mix. Leave --mix out.")
    gan = gan.to(choose_device(device)).eval()
    z = gan.sample_latent(2 * MIXED, torch.Generator().manual_seed(seed)).to(gan.device)
    a, b = z[:MIXED].repeat_interleave(MIXED, 0), z[MIXED:].repeat(MIXED, 1)
    size = images_at_once(gan.image_shape)
    mix: Callable[..., Tensor] = gan.generate_mixed  # type: ignore[assignment]
    try:
        sources = torch.cat([images.to_uint8(gan.generate(some)).cpu() for some in z.split(size)])
        cells = torch.cat([
            images.to_uint8(mix(*some, layers.start, layers.stop)).cpu()
            for some in zip(a.split(size), b.split(size), strict=True)
        ])
    except ValueError as error:
        raise UserError(f"{ckpt}: no mixed images can be drawn: {error}.") from error
    corner = torch.full_like(sources[:1], 255)
    columns = torch.cat([sources[:MIXED, None], cells.unflatten(0, (MIXED, MIXED))], 1).flatten(0, 1)
    return torch.cat([corner, sources[MIXED:], columns])


@torch.inference_mode()
def draw_scales(ckpt: Path, model: str | None, seed: int, device: str | None) -> tuple[Tensor, int]:
    """Return a sheet of images at all scales, uint8 N x C x H x W, row by row, and the number of its columns.

    A row has one image at each scale that the generator makes, coarsest first, enlarged to its final size by nearest
    neighbours. Raises UserError if the checkpoint cannot be read, if the model makes its images at one scale only, and
    if an image holds NaN.
    """
    gan, meta = checkpoint.load(ckpt, model)
    if "scales" not in capabilities(gan):
        raise UserError(f"--scales: the model '{meta.model}' makes images at one scale only. Leave --scales out.")
    gan = gan.to(choose_device(device)).eval()
    z = gan.sample_latent(SCALED, torch.Generator().manual_seed(seed)).to(gan.device)
    scales: Callable[..., list[Tensor]] = gan.scales  # type: ignore[assignment]
    rows = []
    try:
        for some in z.split(images_at_once(gan.image_shape)):
            enlarged = [F.interpolate(x, gan.image_shape[1:], mode="nearest") for x in scales(some)]
            rows.append(torch.stack([images.to_uint8(x).cpu() for x in enlarged], 1))
    except ValueError as error:
        raise UserError(f"{ckpt}: no images at all scales can be drawn: {error}.") from error
    return torch.cat(rows).flatten(0, 1), rows[0].shape[1]


def parse_layers(text: str) -> range:
    """Read a range of layers. Raises UserError that names --mix.

    >>> parse_layers("0-3"), parse_layers("4")
    (range(0, 4), range(4, 5))
    """
    if not re.fullmatch(r"\d{1,3}(-\d{1,3})?", text, re.ASCII):
        raise UserError(f"--mix '{shortened(text, 80)}': write the first and the last layer, as 0-3.")
    first, _, last = text.partition("-")
    if int(last or first) < int(first):
        raise UserError(f"--mix '{text}': the last layer is before the first one.")
    return range(int(first), int(last or first) + 1)


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


def write_sheet(sheet: Tensor, path: Path, columns: int = MIXED + 1) -> None:
    """Write a PNG with the images of `draw_mixed` or `draw_scales`. Raises UserError if it cannot be written."""
    images.save_png(images.grid(sheet, columns), path)


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
