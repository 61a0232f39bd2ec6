"""Inversion of images: latents z for which a generator makes images like given ones, found by gradient descent.

    z* = argmin over z of loss(G(z)),   from several starts z ~ p(z), with Adam

The loss is the model's own, `inversion_loss`, such as YLG's distance of D's features weighted by D's attention, or the
mean squared error of the pixels. The restart that ends with the lowest loss counts. Its
error is that of the metrics `reconstruction_mse` and `reconstruction_l1`.

Source: Daras et al. (2020), "Your Local GAN", arXiv:1911.12287, and its code: 8 restarts of 1,000 steps of Adam with
rate 0.07. Its starts are from a truncated normal distribution; here they are from the model's own prior.

The command `ganbench invert` uses these functions.
"""

import math
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganbench import __version__
from ganbench.base import memory
from ganbench.base.device import choose_device
from ganbench.base.errors import UserError
from ganbench.base.files import require_writable, write_json
from ganbench.base.precision import full_float32
from ganbench.base.progress import Reporter, Task
from ganbench.base.registry import reason
from ganbench.base.standard_output import user_code
from ganbench.data import resizing, sources
from ganbench.data.images import grid, save_png, to_float, to_uint8
from ganbench.gan import GAN, capabilities, checkpoint
from ganbench.gan.checks import images_of, name_of
from ganbench.metrics.reconstruction import mean_absolute_errors, mean_squared_errors

PIXELS_AT_ONCE = 1 << 18  # of the images that gradients go through together: 256 of 32 x 32

Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Request:
    """The options of `ganbench invert`.

    ckpt, model: the checkpoint, and the name of its model or None. images: a source. out: the folder to write. num:
    number of images, drawn with `seed`, which determines the starts too. label: class of all images; None: their own.
    loss: 'model' or 'pixels'. steps, restarts, rate: of Adam, of each image, and Adam's learning rate. The others say
    how images are read, as in an evaluation.
    """

    ckpt: Path
    images: str
    out: Path
    model: str | None = None
    num: int = 8
    label: int | None = None
    loss: str = "model"
    steps: int = 1000
    restarts: int = 8
    rate: float = 0.07
    seed: int = 0
    device: str | None = None
    resize: str | None = None
    image_labels: Path | None = None
    latent: str | None = None
    prior: str | None = None
    classes: int | None = None
    channels: str | None = None
    alpha: str | None = None
    generator_batch: int | None = None


@dataclass(frozen=True)
class Inverted:
    """The latents found for N images. images: float32 N x C x H x W in [-1, 1], G(z) of the best restart.

    losses: of each restart after the last step, float64 N x restarts; NaN for one that diverged.
    """

    images: Tensor
    losses: Tensor


def run(request: Request, reporter: Reporter) -> dict[str, Any]:
    """Invert images with a checkpoint and write the folder; return the content of its inversion.json.

    The folder gets a PNG for each image, the original at the left, and inversion.json. It appears when all is done.
    Raises UserError for a folder with files in it, a checkpoint or images that cannot be read or do not fit each
    other, a model that generates from no latents or has no loss of its own, and labels that are missing or unknown.
    """
    require_writable(request.out / "inversion.json", "--out")
    if request.out.is_dir() and any(request.out.iterdir()):
        raise UserError(f"--out {request.out} has files in it: choose a new folder.")
    gan, meta = checkpoint.load(request.ckpt, request.model)
    if not {"generate", "sample_latent"} <= set(capabilities(gan)):
        raise UserError(f"{request.ckpt}: the model '{meta.model}' does not generate from latents alone.")
    if request.loss == "model" and "inversion_loss" not in capabilities(gan):
        raise UserError(f"{request.ckpt}: the model '{meta.model}' has no loss of its own: give --loss pixels.")
    where = choose_device(request.device)
    samples = sources.open_source(request.images, request.num, request.seed, options=sources.Options(
        resize=None if request.resize is None else resizing.parse(request.resize), labels_file=request.image_labels,
        latent=None if request.latent is None else sources.parse_latent(request.latent), prior=request.prior,
        classes=request.classes, generator_batch=request.generator_batch, channels=request.channels,
        alpha=request.alpha, device=where, progress=reporter.progress, say=reporter.say,
    ))
    shape = tuple(samples.images.shape[1:])
    if shape != tuple(gan.image_shape):
        given, wanted = (" x ".join(map(str, s)) for s in (shape, gan.image_shape))
        raise UserError(
            f"'{request.images}' has images of {given}, and '{meta.model}' makes {wanted}: give --resize "
            f"{gan.image_shape[1]}:pil-bicubic, and for files --channels {'l' if gan.image_shape[0] == 1 else 'rgb'}."
        )
    labels = _labels(request, gan, meta.first_class, samples.labels)
    needed = request.num * (32 * math.prod(shape) + 1024 * request.restarts)
    memory.require(needed, f"--num {request.num:,}: the images")
    x = to_float(samples.images[:])
    found = invert(gan.to(where), x, labels, request, reporter)
    rows = _errors(x, found, labels)
    report = {
        "ganbench": __version__, "model": meta.model, "checkpoint": {"sha256": meta.sha256, "steps": meta.steps},
        "images": samples.origin, "loss": request.loss, "steps": request.steps, "restarts": request.restarts,
        "rate": request.rate, "seed": request.seed,
        **{name: _mean([row[name] for row in rows]) for name in ("reconstruction_mse", "reconstruction_l1")},
        "each": rows,
    }
    _write(request.out, x, found.images, report)
    return report


def _labels(request: Request, gan: GAN, first_class: int, labels: Tensor | None) -> Tensor | None:
    """Return the classes of the images as the model counts them, int64 N; None for a model without classes."""
    if not gan.num_classes:
        if request.label is not None:
            raise UserError(f"--label {request.label}: this model takes no labels. Leave --label out.")
        return None
    if request.label is not None:
        labels = torch.full((request.num,), request.label)
    elif labels is None:
        raise UserError(
            f"the model has {gan.num_classes} classes, and '{request.images}' has no labels: give --label K, the class "
            "of all images."
        )
    of_model = labels - first_class
    if not bool(((of_model >= 0) & (of_model < gan.num_classes)).all()):
        known = f"the model knows the classes {first_class} to {first_class + gan.num_classes - 1}"
        if request.label is not None:
            raise UserError(f"--label {request.label}: {known}.")
        raise UserError(f"{known}, and an image is of another one: give --label K, the class of all images.")
    return of_model


def invert(gan: GAN, x: Tensor, labels: Tensor | None, request: Request, reporter: Reporter) -> Inverted:
    """Return what G makes at the latents that are found for images x, float32 N x C x H x W in [-1, 1].

    labels: their classes, int64 N, or None. The starts of image i depend on the seed and on i alone.
    Raises UserError if the model fails, and if all restarts of an image diverge.
    """
    generator, r = torch.Generator().manual_seed(request.seed), request.restarts
    together = max(1, PIXELS_AT_ONCE // (r * math.prod(x.shape[2:])))
    made, losses = [], []
    with reporter.task("invert", request.steps * -(-len(x) // together)) as task, full_float32():
        for rows in torch.arange(len(x)).split(together):
            z = torch.cat([gan.sample_latent(r, generator) for _ in rows]).to(gan.device)
            y = None if labels is None else labels[rows].repeat_interleave(r).to(gan.device)
            real = x[rows].repeat_interleave(r, 0).to(gan.device)
            images, values = _descend(gan, real, z, y, request, task)
            values = values.view(len(rows), r)
            best = values.nan_to_num(torch.inf, torch.inf, torch.inf).argmin(1)
            if not bool(values.gather(1, best[:, None]).isfinite().all()):
                raise UserError("all restarts of an image diverged: lower --rate, or take an earlier checkpoint.")
            made.append(images.unflatten(0, (len(rows), r))[torch.arange(len(rows)), best])
            losses.append(values)
    return Inverted(torch.cat(made), torch.cat(losses))


def _descend(
    gan: GAN, real: Tensor, z: Tensor, y: Tensor | None, request: Request, task: Task
) -> tuple[Tensor, Tensor]:
    """Return images and losses after the last step: float32 n x C x H x W and float64 n, on the CPU."""
    loss = _loss(gan, real, request.loss)
    z = z.detach().clone().requires_grad_()
    adam = torch.optim.Adam([z], request.rate)
    for _ in range(request.steps):
        fake = images_of(gan, len(z), lambda: gan.generate(z, y))
        assert fake is not None
        values = loss(fake)
        if not values.requires_grad:
            raise UserError(f"{name_of(gan)}: no gradient of its loss reaches z. It cannot be inverted.")
        (z.grad,) = torch.autograd.grad(values.sum(), z)
        adam.step()
        task.advance(1)
    with torch.no_grad():
        fake = images_of(gan, len(z), lambda: gan.generate(z, y))
        assert fake is not None
        return fake.float().cpu(), loss(fake).double().cpu()


def _loss(gan: GAN, real: Tensor, kind: str) -> Loss:
    """Return the distance of n generated images to the n real ones, each: float n."""
    if kind == "pixels":
        return lambda fake: (fake - real).square().flatten(1).mean(1)
    own: Loss = _called(gan, lambda: gan.inversion_loss(real))  # type: ignore[operator]
    if not callable(own):
        raise UserError(f"{name_of(gan)} returned no function as its inversion_loss. Mend that model.")

    def checked(fake: Tensor) -> Tensor:
        values = _called(gan, lambda: own(fake))
        if not isinstance(values, Tensor) or values.shape != (len(fake),) or not values.is_floating_point():
            raise UserError(f"{name_of(gan)}: its inversion_loss gives no float for each image. Mend that model.")
        return values

    return checked


def _called(gan: GAN, call: Callable[[], Any]) -> Any:
    """Return what a method of the model returns. Raises UserError that names the model if it fails."""
    try:
        with user_code():
            return call()
    except (Exception, SystemExit) as error:
        raise UserError(f"{name_of(gan)} has no loss for these images: {reason(error)}. Give --loss pixels.") from error


def _errors(x: Tensor, found: Inverted, labels: Tensor | None) -> list[dict[str, Any]]:
    """Return the entry of each image: its number, its class, losses of all restarts, errors of the best one."""
    l1, mse = mean_absolute_errors(x, found.images), mean_squared_errors(x, found.images)
    losses = [[v if math.isfinite(v) else None for v in row] for row in found.losses.tolist()]
    return [
        {
            "image": i, "label": None if labels is None else int(labels[i]),
            "loss": min(v for v in losses[i] if v is not None), "losses": losses[i],
            "reconstruction_mse": mse[i].item(), "reconstruction_l1": l1[i].item(),
        }
        for i in range(len(x))
    ]


def _mean(values: list[float]) -> dict[str, float | int | None]:
    """Return the mean over the images with its standard error, which one image does not have."""
    n, mean = len(values), math.fsum(values) / len(values)
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else None
    return {"value": mean, "standard_error": error, "count": n}


def _write(out: Path, real: Tensor, fake: Tensor, report: dict[str, Any]) -> None:
    """Write the folder under another name, and rename it when it is complete."""
    parent = Path(os.path.abspath(out)).parent
    parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".ganbench-", dir=parent))
    try:
        for i, pair in enumerate(zip(real, fake, strict=True)):
            save_png(grid(to_uint8(torch.stack(pair)), 2), work / f"{i:04}.png")
        write_json(work / "inversion.json", report)
        work.chmod(parent.stat().st_mode & 0o777)
        os.replace(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
