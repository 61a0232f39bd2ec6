"""Images from a generator: a checkpoint's model, or a network in a file of its own (TorchScript or ONNX).

The network of a file is called with latents z (float32 N x d, of a prior) and, where it has classes, with labels
(int64 N; balanced: 0, 1, ..., K-1, 0, ...). It returns N x 1|3 x H x W: uint8, or float in [-1, 1].

TorchScript is a program: loading the file runs what it holds, with the rights of the user. A pickled checkpoint is
never unpickled here. ONNX is data, and runs on the CPU.
"""

import contextlib
import math
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganbench.base import distributed
from ganbench.base.errors import UserError
from ganbench.base.files import sha256_of
from ganbench.data.images import to_uint8
from ganbench.data.sources.samples import Options, Samples, row_major, with_fingerprint
from ganbench.gan import GAN, capabilities

SUFFIXES = (".pt", ".ts", ".torchscript", ".onnx")
BATCH = 500


def _unit(n: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    z = torch.randn(n, math.prod(shape), generator=generator)
    return (z / z.norm(dim=1, keepdim=True)).view(n, *shape)


# What z is drawn from. The last two, and their names, are those of torch-fidelity's generators.
PRIORS: dict[str, Callable[[int, tuple[int, ...], torch.Generator], Tensor]] = {
    "normal": lambda n, shape, generator: torch.randn(n, *shape, generator=generator),
    "uniform": lambda n, shape, generator: torch.rand(n, *shape, generator=generator) * 2 - 1,
    "uniform_0_1": lambda n, shape, generator: torch.rand(n, *shape, generator=generator),
    "unit": _unit,
}


@torch.inference_mode()
def generate(
    gan: GAN, num: int, seed: int, device: torch.device, labels: Tensor | None = None, batch_size: int = BATCH,
    advance: Callable[[int], None] | None = None, first_class: int = 0,
) -> Samples:
    """`num` samples of a generator, quantised to uint8. Without `labels` they are balanced: 0, 1, ..., K-1, 0, ...

    first_class: what the generator's class 0 is called in the samples' labels, where it was trained on a part of a set.
    Batches are drawn from one seeded generator in steps of `batch_size`, which is part of what makes the samples.
    Under torchrun each process runs its share of the batches, and all have all samples in the end.
    Raises UserError where the generator yields NaN.
    """
    gan = gan.to(device).eval()
    if labels is None and gan.num_classes:
        labels = torch.arange(num) % gan.num_classes
    # Latents apart from the network are needed to share the work; a model that has none runs whole in each process.
    share = distributed.world_size() > 1 and {"sample_latent", "generate"} <= set(capabilities(gan))

    def batch(n: int, y: Tensor | None, generator: torch.Generator, index: int, mine: bool) -> Tensor | None:
        y = None if y is None else y.to(device)
        if not share:
            return gan.sample(n, y, generator)
        z = gan.sample_latent(n, generator)
        return gan.generate(z.to(device), y) if mine else None

    images = _draw(batch, num, seed, labels, batch_size, advance, share, "the generator cannot be evaluated: {}. Take "
                   "an earlier checkpoint.")
    labels = None if labels is None else labels + first_class
    return Samples(images, labels, {"kind": "generator", "seed": seed, "batch_size": batch_size})


def _draw(
    batch: Callable[[int, Tensor | None, torch.Generator, int, bool], Tensor | None], num: int, seed: int,
    labels: Tensor | None, batch_size: int, advance: Callable[[int], None] | None, share: bool, nan: str,
) -> Tensor:
    """Batches of images in turn, as uint8; with `share` each process keeps its own until all are brought together.

    batch(n, y, generator, index, mine) draws latents from the generator, and returns images if they are `mine`.
    nan: the words for images that hold NaN.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = -(-num // batch_size)
    rank, world = (distributed.rank(), distributed.world_size()) if share else (0, 1)
    mine = range(rank * batches // world, (rank + 1) * batches // world)
    parts, problem = [torch.empty(0, dtype=torch.uint8)], None
    for index in range(batches):
        n = min(batch_size, num - index * batch_size)
        y = None if labels is None else labels[index * batch_size : index * batch_size + n]
        try:
            images = batch(n, y, generator, index, index in mine)
            if images is not None:
                parts.append((images if images.dtype == torch.uint8 else to_uint8(images)).cpu())
        except ValueError as error:
            problem = nan.format(error)
        except UserError as error:
            problem = str(error)
        if problem:
            break
        if advance:
            advance(n)
    if share:
        problem = distributed.first(problem)
    if problem:
        raise UserError(problem)
    images = row_major(torch.cat(parts[1:])) if len(parts) > 1 else parts[0]
    return distributed.all_gather(images) if share else images


def open_generator(path: Path, num: int | None, seed: int, options: Options) -> Samples:
    """`num` images of the network in a file. Raises UserError, naming it, for whatever keeps it from making them."""
    if not path.is_file():
        raise UserError(f"cannot read images from '{path}': there is no such file.")
    if num is None:
        raise UserError(f"'{path}' makes as many images as you like: say how many with --num.")
    load = _onnx if path.suffix.lower() == ".onnx" else _torchscript
    network = load(path, options, seed)
    labels = torch.arange(num) % network.classes if network.classes else None
    low, high = math.inf, -math.inf

    def batch(n: int, y: Tensor | None, generator: torch.Generator, index: int, mine: bool) -> Tensor | None:
        nonlocal low, high
        z = PRIORS[network.prior](n, network.latent, generator)
        if not mine:
            return None
        images = _images(network.call(z, y, index), path, n)
        if images.dtype != torch.uint8:
            low, high = min(low, images.min().item()), max(high, images.max().item())
        return images

    share = distributed.world_size() > 1
    advance = options.progress(f"sample {num:,}", num)
    images = _draw(batch, num, seed, labels, BATCH, advance, share, f"{path} cannot be evaluated: {{}}.")
    bounds = distributed.all_gather(torch.tensor([[low, high]], dtype=torch.float64))
    low, high = bounds[:, 0].min().item(), bounds[:, 1].max().item()
    # Images in [-1, 1] reach below zero, and what a network overshoots it overshoots by little.
    if low <= high and (low >= 0 or max(-low, high) > 16):
        raise UserError(f"{path} returned floats of {low:.3g} to {high:.3g}, not of -1 to 1: return those, or uint8.")
    origin = {"kind": network.kind, "name": path.name, "sha256": network.sha256, "seed": seed, "batch_size": BATCH,
              "latent": list(network.latent), "prior": network.prior, "classes": network.classes}
    return with_fingerprint(images, labels, origin)


@dataclass(frozen=True)
class _Network:
    """latent: shape of one z. classes: 0 if it takes no labels. call(z, y, index of the batch): what it returns."""

    kind: str
    sha256: str
    latent: tuple[int, ...]
    prior: str
    classes: int
    call: Callable[[Tensor, Tensor | None, int], Any]


def _images(out: Any, path: Path, n: int) -> Tensor:
    """What a network returned, if it is n images."""
    if not isinstance(out, Tensor):
        raise UserError(f"{path} must return one tensor of images, not {type(out).__name__}.")
    if out.ndim != 4 or len(out) != n or out.shape[1] not in (1, 3) or not out.numel():
        raise UserError(f"{path} was asked for {n} images N x 1|3 x H x W and returned shape {tuple(out.shape)}.")
    if out.dtype != torch.uint8 and not out.is_floating_point():
        raise UserError(f"{path} must return uint8, or floats in [-1, 1], not {out.dtype}.")
    return out


def _last_line(error: BaseException) -> str:
    """The line in which torch and ONNX Runtime say what is wrong, after their tracebacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200].rstrip(".")


def _settle(what: str, given: Any, known: Any, path: Path, option: str) -> Any:
    """What the user gave or the file says; UserError where the two differ or neither says anything."""
    if given is not None and known is not None and given != known:
        raise UserError(f"{option} {_text(given)}: {path} says {_text(known)}.")
    if given is None and known is None:
        raise UserError(f"{path} does not say {what}: give {option}.")
    return known if given is None else given


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _settle_classes(takes_labels: bool | None, options: Options, known: int | None, path: Path) -> int:
    """The number of classes, 0 where no labels are taken. takes_labels: None if both ways of calling it are right."""
    if takes_labels is False:
        if options.classes:
            raise UserError(f"--classes {options.classes}: {path} takes no labels.")
        return 0
    if takes_labels is None and not known and options.classes is None:
        return 0
    return int(_settle("how many classes it has", options.classes, known or None, path, "--classes"))


# --- TorchScript ---


def _torchscript(path: Path, options: Options, seed: int) -> _Network:
    """A module that `torch.jit.save` wrote; its attributes z_size, z_type and num_classes say what they say."""
    try:
        with zipfile.ZipFile(path) as archive:
            scripted = any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        scripted = False
    if not scripted:
        raise UserError(
            f"{path} is refused: it is no TorchScript, and a pickle could run code. Write the generator with "
            "torch.jit.save, or give a state dict of a reference model as --ckpt."
        )
    with _quiet():
        try:
            module = torch.jit.load(str(path), map_location=options.device).eval()
            arguments = module.forward.schema.arguments[1:]
        except Exception as error:  # whatever is wrong with the file, torch says it as a RuntimeError or as it likes
            raise UserError(f"{path} cannot be loaded as TorchScript ({_last_line(error)}).") from error
    required = sum(not a.has_default_value() for a in arguments)
    if required > 2 or not arguments:
        names = ", ".join(a.name for a in arguments) or "nothing"
        raise UserError(f"{path} must take latents, or latents and labels; its forward takes {names}.")
    size = _attribute(module, "z_size")
    flat = None if options.latent is None else math.prod(options.latent)
    size = _settle("the size of its latents", flat, size or None, path, "--latent")
    latent = options.latent or (size,)
    kind = getattr(module, "z_type", None)
    prior = options.prior or (kind if kind in PRIORS else "normal")
    takes_labels = True if required == 2 else False if len(arguments) == 1 else None
    classes = _settle_classes(takes_labels, options, _attribute(module, "num_classes"), path)

    def call(z: Tensor, y: Tensor | None, index: int) -> Any:
        inputs = [z.to(options.device)] + ([] if y is None else [y.to(options.device)])
        # Noise that the network draws for itself is fixed by the seed and the batch, whichever process draws it.
        with _quiet(), _own_random_state((seed << 24) + index, options.device), torch.inference_mode():
            try:
                return module(*inputs)
            except Exception as error:
                shapes = " and ".join(str(tuple(i.shape)) for i in inputs)
                raise UserError(f"{path} failed when called with {shapes}: {_last_line(error)}.") from error

    return _Network("torchscript", sha256_of(path), latent, prior, classes, call)


def _attribute(module: torch.jit.ScriptModule, name: str) -> int | None:
    value = getattr(module, name, None)
    return value if isinstance(value, int) and value >= 0 else None


@contextlib.contextmanager
def _own_random_state(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks about TorchScript's age, and without its optimiser, which rounds the first batches
    otherwise than the later ones."""
    with warnings.catch_warnings(), torch.jit.optimized_execution(False):
        warnings.simplefilter("ignore")
        yield


# --- ONNX ---


ONNX_FLOATS = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64}
ONNX_INTEGERS = {"tensor(int64)": torch.int64, "tensor(int32)": torch.int32}


def _onnx(path: Path, options: Options, seed: int) -> _Network:
    """An ONNX graph. Its first input is z, whose shape says the latents' size; a second one takes labels."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"{path} needs a package that is not installed ({error}): pip install 'ganbench[onnx]'."
        ) from error
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # what is wrong is raised
    onnxruntime.set_seed(seed % 2**31)  # of the noise that the graph draws for itself
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"{path} cannot be loaded as ONNX ({_last_line(error)}).") from error
    inputs = session.get_inputs()
    described = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs) or "nothing"
    if not 1 <= len(inputs) <= 2 or inputs[0].type not in ONNX_FLOATS or len(inputs[0].shape) < 2:
        raise UserError(f"{path} must take latents of floats N x d, and labels if any; it takes {described}.")
    if len(inputs) == 2 and (inputs[1].type not in ONNX_INTEGERS or len(inputs[1].shape) != 1):
        raise UserError(f"{path} must take labels as N whole numbers; it takes {described}.")
    fixed, *shape = inputs[0].shape
    known = tuple(shape) if all(isinstance(d, int) for d in shape) else None
    latent = _settle("the size of its latents", options.latent, known, path, "--latent")
    classes = _settle_classes(len(inputs) == 2, options, None, path)

    def run(z: Tensor, y: Tensor | None) -> Tensor:
        given = {inputs[0].name: z.to(ONNX_FLOATS[inputs[0].type]).numpy()}
        if y is not None:
            given[inputs[1].name] = y.to(ONNX_INTEGERS[inputs[1].type]).numpy()
        return torch.from_numpy(session.run([session.get_outputs()[0].name], given)[0])

    def call(z: Tensor, y: Tensor | None, index: int) -> Tensor:
        step = fixed if isinstance(fixed, int) else len(z)  # a graph may be of one batch size
        parts = []
        for start in range(0, len(z), step):
            rows = torch.arange(start, start + step).clamp(max=len(z) - 1)  # a short batch is filled up, and cut again
            try:
                out = run(z[rows], None if y is None else y[rows])
            except Exception as error:
                raise UserError(f"{path} failed on latents of {tuple(z[rows].shape)}: {_last_line(error)}.") from error
            parts.append(out[: len(z) - start])
        return torch.cat(parts)

    return _Network("onnx", sha256_of(path), latent, options.prior or "normal", classes, call)


def parse_latent(text: str) -> tuple[int, ...]:
    """The shape of one latent that `128` or `100x1x1` says. Raises UserError that names --latent."""
    if not re.fullmatch(r"[1-9]\d{0,6}(x[1-9]\d{0,6}){0,3}", text, re.ASCII):
        raise UserError(f"--latent '{text}': write the size of z, or its shape: 128, or 100x1x1.")
    return tuple(map(int, text.split("x")))
