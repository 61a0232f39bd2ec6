"""The door for Python code: what `ganbench evaluate` does, on what a notebook or a training loop has at hand.

    import ganbench
    result = ganbench.evaluate("samples/", reference="cifar10:train", metrics=["fid", "kid"])
    result["fid"].value, result["fid"].interval

    fid = ganbench.Accumulator(["fid", "kid"], reference="cifar10:train")
    for batch in batches:
        fid.update(batch)
    fid.compute()

The same numbers, names and messages as on the command line. A mistake raises `ganbench.UserError`.
"""

import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

from ganbench.base import registry
from ganbench.base.errors import UserError
from ganbench.base.progress import Reporter
from ganbench.data.sources import Options, Samples, samples_of
from ganbench.data.sources.objects import as_images, as_labels
from ganbench.evaluation import accumulating, run
from ganbench.gan import GAN
from ganbench.reporting import results
from ganbench.reporting.results import Result

P = ParamSpec("P")
T = TypeVar("T")

# Options of the command line, and what they are called here.
ARGUMENTS = {"image-labels": "labels", "ckpt": "ckpt", "no-cache": "cache"}
Range = tuple[float, float]


def _in_python_words(function: Callable[P, T]) -> Callable[P, T]:
    """Name arguments instead of options in the messages of a function: num= for --num."""

    def argument(option: re.Match[str]) -> str:
        return f"{ARGUMENTS.get(option[1], option[1].replace('-', '_'))}="

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            text = str(error).replace("--model NAME --ckpt FILE", "--ckpt")
            raise UserError(re.sub(r"--([a-z][a-z-]+)(?: (?:FILE|SOURCE|NAME|N)\b)?", argument, text)) from error

    return call


@_in_python_words
def evaluate(
    images: Any = None, reference: Any = None, metrics: str | Sequence[str] | None = None, *, labels: Any = None,
    reference_labels: Any = None, held_out: Any = None, held_out_labels: Any = None,
    ckpt: str | os.PathLike[str] | None = None, model: str | None = None, num: int | None = None,
    num_reference: int | None = None, value_range: Range | None = None,
    latent: int | Sequence[int] | None = None, prior: str | None = None, classes: int | None = None,
    generator_batch: int | None = None, resize: str | None = None, channels: str | None = None,
    alpha: str | None = None, class_map: str | None = None, extractor: str | None = None,
    weights: Mapping[str, str | os.PathLike[str]] | None = None, resolutions: Sequence[int] | None = None,
    batch_size: int | None = None, seed: int = 0, device: str | torch.device | None = None, cache: bool = True,
    quiet: bool = True,
) -> Result:
    """Measure generated images, or a model, and return the result.

    images: the generated images. A name of a source as --images takes it (a folder, FILE.zip, FILE.npz, a data set, a
    generator in a file); a tensor or an array, N x C x H x W, N x H x W x C or N x H x W, uint8 or floats in
    `value_range`; an iterable of such batches or of (images, labels), such as a DataLoader; a `GAN`, of which
    everything is measured that is measured of a checkpoint; another `nn.Module`, which makes images from latents; a
    function f(n, first), which returns images first, ..., first + n - 1. The last three need `num` (a GAN: 10,000).
    reference, held_out: real images, in the same forms but the last three. held_out: those that are not in the
    reference, to test on; by default the other split of its data set.
    metrics: names as --metrics takes them, in a list or with commas between; None: what fits the reference.
    labels, reference_labels, held_out_labels: int64 N for arrays without labels of their own; for files, the path of a
    CSV (not of held_out).
    value_range: (0, 1) or (-1, 1), say: of all floats, also those that a network returns.
    latent, prior, classes: of a network: the shape of a latent; 'normal' (default), 'uniform', 'uniform_0_1' or 'unit';
    the number of classes if it takes labels too.
    weights: files of weights by extractor. cache: keep features of the reference in the data folder. quiet: show no
    progress on stderr. device: None is the accelerator if there is one. The other arguments are those of the options.

    A metric that cannot be measured has no value and says why (`result["fid"].reason`). Raises UserError for every
    mistake that the caller can mend; an error that a function or a network raises is passed on.

    >>> import torch
    >>> noise = torch.Generator().manual_seed(0)
    >>> x = torch.randint(256, (64, 1, 8, 8), dtype=torch.uint8, generator=noise)
    >>> result = evaluate(x, reference="digits:train", metrics=["fd_pixels"], cache=False)
    >>> result["fd_pixels"].value > 5
    True
    >>> list(result.to_frame()["metric"])
    ['fd_pixels']
    """
    gan = images if isinstance(images, GAN) else None
    if sum(x is not None for x in (images, ckpt)) > 1 or (images is None and ckpt is None and reference is None):
        raise UserError("give either images= or ckpt=.")
    if model is not None and ckpt is None:
        raise UserError(f"model={model!r} needs ckpt=.")
    for kind, name in (("model", model), ("extractor", extractor)):
        if name is not None:
            registry.require(kind + "s", name)
    shape = (latent,) if isinstance(latent, int) else None if latent is None else tuple(latent)
    options = Options(latent=shape, prior=prior, classes=classes, generator_batch=generator_batch)
    of_text: dict[str, Any] = {}
    if images is not None and gan is None:
        if (source := _text(images)) is not None:
            of_text = {"image_labels": _path(labels, "labels"), "latent": shape and "x".join(map(str, shape)),
                       "prior": prior, "classes": classes, "generator_batch": generator_batch}
            images, labels = source, None
        else:
            images = samples_of(images, "images", num, seed, labels, value_range, options)
            num = None
    if reference is not None and (source := _text(reference)) is not None:
        of_text["reference_labels"] = _path(reference_labels, "reference_labels")
        reference = source
    elif reference is not None:
        reference = _real(reference, "reference", reference_labels, value_range)
    if held_out is not None and (source := _text(held_out)) is not None:
        held_out = source
    elif held_out is not None:
        held_out = _real(held_out, "held_out", held_out_labels, value_range)
    request = run.Request(
        model=model, ckpt=None if ckpt is None else Path(ckpt), images=None if gan is not None else images, gan=gan,
        reference=reference, held_out=held_out, metrics=_names(metrics), num=num, batch_size=batch_size,
        extractor=extractor, weights={name: Path(file) for name, file in (weights or {}).items()}, seed=seed,
        no_cache=not cache,
        resolutions=None if resolutions is None else tuple(resolutions), resize=resize,
        device=None if device is None else str(device), channels=channels, alpha=alpha,
        num_reference=num_reference, class_map=class_map, **of_text,
    )
    return run.run(request, Reporter(quiet))


def _names(metrics: str | Sequence[str] | None) -> list[str] | None:
    """Return the names of metrics, which may stand in one text with commas between; None for none."""
    return [name.strip() for name in (metrics.split(",") if isinstance(metrics, str) else metrics or ())] or None


def _text(value: Any) -> str | None:
    """Return the name of a source; None for an object."""
    return os.fspath(value) if isinstance(value, str | os.PathLike) else None


def _path(value: Any, what: str) -> Path | None:
    if value is not None and not isinstance(value, str | os.PathLike):
        raise UserError(f"{what}= of files must be the path of a CSV, not {type(value).__name__}.")
    return None if value is None else Path(value)


def _real(value: Any, what: str, labels: Any, value_range: Range | None) -> Samples:
    """Return real images from a tensor, an array or an iterable of batches."""
    if callable(value) and not hasattr(value, "__iter__"):
        raise UserError(f"{what}: a generator makes no reference, which is a fixed set of images.")
    return samples_of(value, what, labels=labels, value_range=value_range)


class Accumulator:
    """Metrics of generated images that come batch by batch, against a reference that stays: for a training loop.

    Features are kept, 4 bytes a number; pixels are kept only if a metric looks at them. The reference is looked at
    once. The result of `compute` is that of `evaluate` on the same images in the same order, without a row of real
    data.

    Under torch.distributed each process updates with its own images, and all call `compute`, which is over all of them;
    the process group needs a backend for the CPU ("gloo", or "cpu:gloo,cuda:nccl").

    >>> import torch
    >>> noise = torch.Generator().manual_seed(0)
    >>> fd = Accumulator(["fd_pixels"], reference="digits:train", value_range=(0, 1), cache=False)
    >>> for _ in range(4):
    ...     fd.update(torch.rand(16, 1, 8, 8, generator=noise))
    >>> len(fd), fd.compute()["fd_pixels"].n_fake
    (64, 64)
    """

    @_in_python_words
    def __init__(
        self, metrics: str | Sequence[str] | None = None, reference: Any = None, *, reference_labels: Any = None,
        held_out: Any = None, held_out_labels: Any = None, value_range: Range | None = None,
        extractor: str | None = None, weights: Mapping[str, str | os.PathLike[str]] | None = None,
        resolutions: Sequence[int] | None = None, batch_size: int | None = None, seed: int = 0,
        device: str | torch.device | None = None, cache: bool = True,
    ):
        """The arguments are those of `evaluate`; value_range is of the batches too.

        Raises UserError as `evaluate` does, and for a metric that asks a model and not its images.
        """
        self.value_range = value_range
        if reference is not None and (source := _text(reference)) is not None:
            reference = source
        elif reference is not None:
            reference = _real(reference, "reference", reference_labels, value_range)
        if held_out is not None:
            held_out = _real(held_out, "held_out", held_out_labels, value_range)
        self.of = accumulating.Accumulator(
            _names(metrics), reference, held_out, extractor, {n: Path(file) for n, file in (weights or {}).items()},
            None if resolutions is None else tuple(resolutions), batch_size, seed,
            None if device is None else str(device), cache,
        )

    def __len__(self) -> int:
        """The number of images that have come to this process."""
        return self.of.count

    @_in_python_words
    def update(self, images: Any, labels: Any = None) -> None:
        """Add a batch: a tensor or an array of images as `evaluate` takes it, and labels, int64 n, or None.

        Raises UserError for anything else, for images of another shape than before, and for labels that come with some
        batches alone.
        """
        x = as_images(images, "the batch", self.value_range)
        self.of.update(x, None if labels is None else as_labels(labels, len(x), "the labels of the batch"))

    def compute(self) -> Result:
        """Return the result for all images so far; more can be added later. Raises UserError for fewer than two."""
        return self.of.compute()

    def merge(self, other: "Accumulator") -> None:
        """Add the images of another accumulator, which stays as it is, after these.

        Raises UserError for other metrics or networks, and for images of another shape.
        """
        self.of.merge(other.of)

    def reset(self) -> None:
        """Forget all images and keep what is known of the reference."""
        self.of.reset()


def load_results(folder: str | os.PathLike[str] = "results") -> Any:
    """Return all results below a folder as one pandas.DataFrame, a row a metric of a run (`results.load_results`)."""
    return results.load_results(Path(folder))
