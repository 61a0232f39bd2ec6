"""Images from a generator: `generate` samples a reference model, `open_generator` a TorchScript or ONNX file.

`of_module` samples a network in memory. Such a network is called with latents z, float32 N x d, drawn from a prior. If
it has classes, it is also called with balanced labels, int64 N: 0, 1, ..., K-1, 0, ... It returns images
N x 1|3 x H x W, as uint8 or float in [-1, 1].

A TorchScript file is a program, and loading it runs its code with the rights of the user. A pickled checkpoint is
refused, and never unpickled. An ONNX file is data; it runs on the CPU.
"""

import contextlib
import math
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ganbench.base import distributed, memory
from ganbench.base.errors import UserError, shortened
from ganbench.base.files import sha256_of
from ganbench.base.weight_files import digest
from ganbench.data.images import to_uint8
from ganbench.data.sources.samples import Options, Samples, row_major, with_fingerprint
from ganbench.data.streams import IN_MEMORY, Images, Made
from ganbench.gan import GAN, capabilities
from ganbench.gan.checks import images_of

SUFFIXES = (".pt", ".ts", ".torchscript", ".onnx")
BATCH = 500
BLOCK_BYTES = 256 << 20  # of the images of one block


def _unit_sphere(n: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    z = torch.randn(n, math.prod(shape), generator=generator)
    return (z / z.norm(dim=1, keepdim=True)).view(n, *shape)


# Distributions of z: (n, shape of one z, generator) -> float32 n x shape. torch-fidelity uses the names "normal",
# "uniform_0_1" and "unit" too.
PRIORS: dict[str, Callable[[int, tuple[int, ...], torch.Generator], Tensor]] = {
    "normal": lambda n, shape, generator: torch.randn(n, *shape, generator=generator),
    "uniform": lambda n, shape, generator: torch.rand(n, *shape, generator=generator) * 2 - 1,
    "uniform_0_1": lambda n, shape, generator: torch.rand(n, *shape, generator=generator),
    "unit": _unit_sphere,
}


Draw = Callable[[int, Tensor | None, torch.Generator, int, bool], Tensor | None]


def generate(
    gan: GAN, num: int, seed: int, device: torch.device, labels: Tensor | None = None, batch_size: int | None = None,
    advance: Callable[[int], None] | None = None, first_class: int = 0,
) -> Samples:
    """Return `num` samples of a reference model, quantised to uint8.

    At most IN_MEMORY bytes are made now. Larger sets are `Images` that are made when they are asked for, and dropped.
    labels: classes to sample, int64 `num`; None takes balanced classes 0, 1, ..., K-1, 0, ... batch_size: latents that
    are drawn together; None takes `block_size`. Seed and batch size determine the samples. advance: called with the
    number of images after each batch that is made now.
    first_class: label of the model's class 0 in the whole data set, added to the labels of the samples.
    Under torchrun, the processes share the batches that are made now, and each one returns all samples.
    Raises UserError if an image holds NaN.
    """
    memory.require(16 * num, f"{num:,} labels and rows")
    gan = gan.to(device).eval()
    if labels is None and gan.num_classes:
        labels = torch.arange(num) % gan.num_classes
    apart = {"sample_latent", "generate"} <= set(capabilities(gan))
    size = batch_size or block_size(gan.image_shape)
    together = images_at_once(gan.image_shape)

    @torch.inference_mode()
    def batch(n: int, y: Tensor | None, generator: torch.Generator, index: int, mine: bool) -> Tensor | None:
        y = None if y is None else y.to(device)
        if not apart:  # a model that cannot draw latents apart from the network generates all images
            return gan.sample(n, y, generator)
        if n <= together and mine:
            return gan.sample(n, y, generator)
        z = gan.sample_latent(n, generator)
        if not mine:
            return None
        parts = zip(z.split(together), [None] * n if y is None else y.split(together), strict=False)
        return torch.cat([gan.generate(some.to(device), of_some) for some, of_some in parts])

    message = "the generator cannot be evaluated: {}. Take an earlier checkpoint."
    def checked(n: int, y: Tensor | None, generator: torch.Generator, index: int, mine: bool) -> Tensor | None:
        return images_of(gan, n, lambda: batch(n, y, generator, index, mine), mine)

    blocks = _Blocks(checked, num, seed, labels, size, message)
    shape = (num, *gan.image_shape)
    images: Tensor | Images = Made(shape, size, blocks)
    if math.prod(shape) <= IN_MEMORY:
        images = _made_now(blocks, advance, apart and distributed.world_size() > 1)
    labels = None if labels is None else labels + first_class
    return Samples(images, labels, {"kind": "generator", "seed": seed, "batch_size": size})


def block_size(shape: Sequence[int]) -> int:
    """Return the number of latents that are drawn together for images of this shape (C, H, W): 500 up to 400 pixels."""
    size = BATCH
    while size > 16 and size * math.prod(shape) > BLOCK_BYTES:
        size //= 2
    return size


def images_at_once(shape: Sequence[int]) -> int:
    """Return how many images of this shape (C, H, W) a network makes at once, to bound the memory of its layers."""
    return max(1, (1 << 22) // math.prod(shape[1:]))


class _Blocks:
    """The blocks of a random draw: block i is a function of the seed and of i, in whatever order blocks are asked for.

    draw(n, y, generator, index, mine): draws the latents of block `index` from the generator, and returns its images if
    `mine` is True. The state of the generator before each block is kept, so that a block can be made again alone.
    message: error message for NaN, with {} for the details. Calling it with an index raises UserError for NaN.
    """

    def __init__(self, draw: Draw, num: int, seed: int, labels: Tensor | None, size: int, message: str):
        self.draw, self.num, self.labels, self.size, self.message = draw, num, labels, size, message
        self.generator = torch.Generator().manual_seed(seed)
        self.states = [self.generator.get_state()]

    def __len__(self) -> int:
        return -(-self.num // self.size)

    def __call__(self, index: int, mine: bool = True) -> Tensor:
        """Return the images of a block, uint8, or none of them if they are not `mine`."""
        while len(self.states) <= index:
            self._at(len(self.states) - 1, False)
        images = self._at(index, mine)
        return torch.empty(0, dtype=torch.uint8) if images is None else images

    def _at(self, index: int, mine: bool) -> Tensor | None:
        start = index * self.size
        n = min(self.size, self.num - start)
        self.generator.set_state(self.states[index])
        y = None if self.labels is None else self.labels[start : start + n]
        try:
            images = self.draw(n, y, self.generator, index, mine)
            images = images if images is None or images.dtype == torch.uint8 else to_uint8(images)
        except ValueError as error:
            raise UserError(self.message.format(error)) from error
        if len(self.states) == index + 1:
            self.states.append(self.generator.get_state())
        return None if images is None else row_major(images.cpu())


def _made_now(blocks: _Blocks, advance: Callable[[int], None] | None, share: bool) -> Tensor:
    """Return the images of all blocks. share: each process makes its share of them and receives those of the others."""
    rank, world = (distributed.rank(), distributed.world_size()) if share else (0, 1)
    mine = range(rank * len(blocks) // world, (rank + 1) * len(blocks) // world)
    parts, problem = [torch.empty(0, dtype=torch.uint8)], None
    for index in range(len(blocks)):
        try:
            made = blocks(index, index in mine)
        except UserError as error:
            problem = str(error)
            break
        if len(made):
            parts.append(made)
        if advance:
            advance(min(blocks.size, blocks.num - index * blocks.size))
    if share:
        problem = distributed.first(problem)
    if problem:
        raise UserError(problem)
    images = row_major(torch.cat(parts[1:])) if len(parts) > 1 else parts[0]
    return distributed.all_gather(images) if share else images


def open_generator(path: Path, num: int | None, seed: int, options: Options) -> Samples:
    """Return `num` samples of the network in a file. `seed` determines them.

    As those of `generate`, they are made now if they are few, and otherwise when they are asked for.
    Raises UserError if the file cannot be loaded, if the shape of z or the number of classes is not known, and if the
    network fails or returns anything but images.
    """
    if not path.is_file():
        raise UserError(f"cannot read images from '{path}': no such file. Check the path.")
    if num is None:
        raise UserError(f"'{path}' makes any number of images: give the number with --num.")
    load = _onnx if path.suffix.lower() == ".onnx" else _torchscript
    return _sampled(load(path, options, seed), str(path), path.name, num, seed, options)


def of_module(
    module: nn.Module, what: str, num: int, seed: int, options: Options, value_range: tuple[float, float] | None = None
) -> Samples:
    """Return `num` samples of a network in memory, which is called in evaluation mode on the device of its weights.

    what: its name for messages. value_range: of the floats that it returns; None means [-1, 1]. options: the shape of a
    latent, its prior (normal), the number of classes (0: the network takes latents alone), and generator_batch.
    Raises UserError as `open_generator` does. An error of the network itself is passed on.
    """
    if options.latent is None:
        raise UserError(f"{what}: give the shape of a latent, as latent=128 or latent=(100, 1, 1).")
    device = next((p.device for p in module.parameters()), options.device)
    low, high = value_range or (-1.0, 1.0)

    def run(z: Tensor, y: Tensor | None) -> Any:
        out = module(z.to(device)) if y is None else module(z.to(device), y.to(device))
        floats = isinstance(out, Tensor) and out.is_floating_point()
        return (out.float() - low) * (2 / (high - low)) - 1 if floats and value_range else out

    def call(z: Tensor, y: Tensor | None, index: int) -> Any:
        training = module.training
        module.eval()
        try:
            with _own_random_state((seed << 24) + index, device), torch.inference_mode():
                return _in_batches(run, z, y, options.generator_batch, what)
        finally:
            module.train(training)

    network = _Network(
        "module", digest(module.state_dict()), options.latent, options.prior or "normal", options.classes or 0,
        options.generator_batch, call,
    )
    return _sampled(network, what, type(module).__name__, num, seed, options)


def _sampled(network: "_Network", what: str, name: str, num: int, seed: int, options: Options) -> Samples:
    """Return `num` samples of a network. what: its name for messages. name: for the origin."""
    memory.require(16 * num, f"{num:,} labels and rows")
    labels = torch.arange(num) % network.classes if network.classes else None
    size, together, lazy, shape = BATCH, BATCH, False, (num, 0, 0, 0)
    if num > BATCH:  # two images tell the size of all
        z = PRIORS[network.prior](2, network.latent, torch.Generator().manual_seed(seed))
        y = None if labels is None else labels[:2]
        shape = (num, *_checked_images(network.call(z, y, 0), what, 2).shape[1:])
        size, together, lazy = block_size(shape[1:]), images_at_once(shape[1:]), math.prod(shape) > IN_MEMORY
    low, high = math.inf, -math.inf

    @torch.inference_mode()
    def batch(n: int, y: Tensor | None, generator: torch.Generator, index: int, mine: bool) -> Tensor | None:
        nonlocal low, high
        z = PRIORS[network.prior](n, network.latent, generator)
        if not mine:
            return None
        parts = []
        for start in range(0, n, together):
            some = z[start : start + together], None if y is None else y[start : start + together]
            images = _checked_images(network.call(*some, index + (start << 12)), what, len(some[0]))
            if images.dtype != torch.uint8:
                low, high = min(low, images.min().item()), max(high, images.max().item())
                images = to_uint8(images)
            parts.append(images.cpu())
        if lazy and index == len(blocks) - 1:
            require_range(low, high)
        return torch.cat(parts)

    def require_range(low: float, high: float) -> None:
        # Catch images in [0, 1] and in [0, 255]. Some networks leave [-1, 1] slightly: a moderate excess is allowed.
        if low <= high and (low >= 0 or max(-low, high) > 16):
            raise UserError(
                f"{what} returned floats of {low:.3g} to {high:.3g}, but images must be floats of -1 to 1, or uint8: "
                "scale its output."
            )

    blocks = _Blocks(batch, num, seed, labels, size, f"{what} cannot be evaluated: {{}}.")
    origin = {"kind": network.kind, "name": name, "sha256": network.sha256, "seed": seed, "batch_size": size,
              "latent": list(network.latent), "prior": network.prior, "classes": network.classes,
              **({"generator_batch": network.batch} if network.batch else {})}
    if lazy:
        return Samples(Made(shape, size, blocks), labels, origin)
    images = _made_now(blocks, options.progress(f"sample {num:,}", num), distributed.world_size() > 1)
    bounds = distributed.all_gather(torch.tensor([[low, high]], dtype=torch.float64))
    require_range(bounds[:, 0].min().item(), bounds[:, 1].max().item())
    return with_fingerprint(images, labels, origin)


@dataclass(frozen=True)
class _Network:
    """A generator in a file or in memory.

    latent: shape of one z. prior: key of PRIORS. classes: number of classes, or 0 if the network takes no labels.
    batch: the only number of latents that it takes at a time, or None if it takes any.
    call: (z, y, index of the batch) -> the output of the network.
    """

    kind: str
    sha256: str
    latent: tuple[int, ...]
    prior: str
    classes: int
    batch: int | None
    call: Callable[[Tensor, Tensor | None, int], Any]


_FIXED = "If it was exported for batches of one size, give that: --generator-batch {}."


def _in_batches(
    run: Callable[[Tensor, Tensor | None], Any], z: Tensor, y: Tensor | None, size: int | None, path: str | Path
) -> Any:
    """Run a network that takes `size` latents at a time, or any number for None; the last latent fills up a batch."""
    if size is None:
        return run(z, y)
    parts = []
    for start in range(0, len(z), size):
        rows = torch.arange(start, start + size).clamp(max=len(z) - 1)
        out = _checked_images(run(z[rows], None if y is None else y[rows]), path, size)
        parts.append(out[: len(z) - start])
    return torch.cat(parts)


def _checked_images(out: Any, path: str | Path, n: int) -> Tensor:
    """Return the output of a network. Raises UserError unless it is a tensor of n images."""
    if not isinstance(out, Tensor):
        raise UserError(f"{path} must return one tensor of images, not {type(out).__name__}.")
    if out.ndim != 4 or len(out) != n or out.shape[1] not in (1, 3) or not out.numel():
        hint = f" {_FIXED.format(len(out))}" if out.ndim == 4 and 0 < len(out) != n else ""
        raise UserError(
            f"{path} was asked for {n} images N x 1|3 x H x W, but returned shape {tuple(out.shape)}.{hint}"
        )
    if out.dtype != torch.uint8 and not out.is_floating_point():
        raise UserError(f"{path} must return uint8, or floats in [-1, 1], not {out.dtype}.")
    return out


def _last_line(error: BaseException) -> str:
    """Return the last line of an error, where torch and ONNX Runtime give the reason, after their tracebacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200].rstrip(".")


def _given_or_stored(what: str, given: Any, stored: Any, path: Path, option: str) -> Any:
    """Return the value that the user gave or the file stores. Raises UserError if they differ or both are missing."""
    if given is not None and stored is not None and given != stored:
        raise UserError(f"{option} {_as_text(given)}: {path} says {_as_text(stored)}. Leave {option} out.")
    if given is None and stored is None:
        raise UserError(f"{path} does not say {what}: give {option}.")
    return stored if given is None else given


def _as_text(value: Any) -> str:
    """Return a value as it is written on the command line."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _number_of_classes(takes_labels: bool | None, options: Options, stored: int | None, path: Path) -> int:
    """Return the number of classes, or 0 if the network is called without labels.

    takes_labels: None if labels are optional. stored: the number that the file stores.
    """
    if takes_labels is False:
        if options.classes:
            raise UserError(f"--classes {options.classes}: {path} takes no labels. Leave --classes out.")
        return 0
    if takes_labels is None and not stored and options.classes is None:
        return 0
    return int(_given_or_stored("how many classes it has", options.classes, stored or None, path, "--classes"))


# --- TorchScript ---


def _torchscript(path: Path, options: Options, seed: int) -> _Network:
    """Load a module that `torch.jit.save` wrote.

    Its attributes z_size, z_type and num_classes, if there, give the size of z, the prior and the number of classes, as
    in torch-fidelity.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            scripted = any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        scripted = False
    if not scripted:
        raise UserError(
            f"{path} is refused: it is not TorchScript, and reading a pickle could run code. {_advice(path)}"
        )
    with _plain_torchscript():
        try:
            module = torch.jit.load(str(path), map_location=options.device).eval()
            arguments = module.forward.schema.arguments[1:]
        except Exception as error:  # torch raises errors of many types for a bad file
            raise UserError(
                f"{path} cannot be loaded as TorchScript ({_last_line(error)}): write it again with torch.jit.save."
            ) from error
    required = sum(not a.has_default_value() for a in arguments)
    if required > 2 or not arguments:
        names = ", ".join(a.name for a in arguments) or "nothing"
        raise UserError(f"{path} must take latents, or latents and labels, but its forward takes {names}.")
    size = _attribute(module, "z_size")
    flat = None if options.latent is None else math.prod(options.latent)
    size = _given_or_stored("the size of its latents", flat, size or None, path, "--latent")
    latent = options.latent or (size,)
    kind = getattr(module, "z_type", None)
    prior = options.prior or (kind if kind in PRIORS else "normal")
    takes_labels = True if required == 2 else False if len(arguments) == 1 else None
    classes = _number_of_classes(takes_labels, options, _attribute(module, "num_classes"), path)

    def run(z: Tensor, y: Tensor | None) -> Any:
        inputs = [z.to(options.device)] + ([] if y is None else [y.to(options.device)])
        try:
            return module(*inputs)
        except Exception as error:
            shapes = " and ".join(str(tuple(i.shape)) for i in inputs)
            hint = "" if options.generator_batch else f" {_FIXED.format('N')}"
            raise UserError(f"{path} failed when called with {shapes}: {_last_line(error)}.{hint}") from error

    def call(z: Tensor, y: Tensor | None, index: int) -> Any:
        # The network may draw noise itself: make it depend only on the seed and the batch, not on the process.
        with _plain_torchscript(), _own_random_state((seed << 24) + index, options.device), torch.inference_mode():
            return _in_batches(run, z, y, options.generator_batch, path)

    return _Network("torchscript", sha256_of(path), latent, prior, classes, options.generator_batch, call)


def _advice(path: Path) -> str:
    """Return what to do about a file that is not TorchScript; a plain tensor in it is read, which runs no code."""
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # a pickle of anything else, or no file of torch
        held = None
    if isinstance(held, Tensor):
        return (
            f"It holds a tensor {held.dtype} of shape {tuple(held.shape)}: for uint8 images N x 1|3 x H x W, "
            f"numpy.savez('{path.stem}.npz', torch.load('{path}').numpy())."
        )
    return "Write the generator with torch.jit.save, or give a state dict of a reference model as --ckpt."


def _attribute(module: torch.jit.ScriptModule, name: str) -> int | None:
    """Return an attribute of the module if it is an integer from 0, otherwise None."""
    value = getattr(module, name, None)
    return value if isinstance(value, int) and value >= 0 else None


@contextlib.contextmanager
def _own_random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's random numbers within this context, and restore their state afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def _plain_torchscript() -> Iterator[None]:
    """Switch off torch's warnings that TorchScript is deprecated, and the optimiser of TorchScript.

    The optimiser would make the first batches differ from the later ones by rounding errors.
    """
    with warnings.catch_warnings(), torch.jit.optimized_execution(False):
        warnings.simplefilter("ignore")
        yield


# --- ONNX ---


ONNX_FLOATS = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64}
ONNX_INTEGERS = {"tensor(int64)": torch.int64, "tensor(int32)": torch.int32}


def _onnx(path: Path, options: Options, seed: int) -> _Network:
    """Load an ONNX graph. Its first input takes z, and has the shape of the latents. A second input takes labels."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"{path} needs a package that is not installed ({error}): pip install 'ganbench[onnx]'."
        ) from error
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # no log: errors are raised
    onnxruntime.set_seed(seed % 2**31)  # for noise that the graph draws itself
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"{path} cannot be loaded as ONNX ({_last_line(error)}): export it again.") from error
    inputs = session.get_inputs()
    described = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs) or "nothing"
    if not 1 <= len(inputs) <= 2 or inputs[0].type not in ONNX_FLOATS or len(inputs[0].shape) < 2:
        raise UserError(f"{path} must take latents of floats N x d, and labels if any, but takes {described}.")
    if len(inputs) == 2 and (inputs[1].type not in ONNX_INTEGERS or len(inputs[1].shape) != 1):
        raise UserError(f"{path} must take labels as N whole numbers, but takes {described}.")
    first, *shape = inputs[0].shape
    fixed = first if isinstance(first, int) else None
    if fixed and options.generator_batch not in (None, fixed):
        raise UserError(
            f"--generator-batch {options.generator_batch}: {path} says {fixed}. Leave --generator-batch out."
        )
    fixed = fixed or options.generator_batch
    stored = tuple(shape) if all(isinstance(d, int) for d in shape) else None
    latent = _given_or_stored("the size of its latents", options.latent, stored, path, "--latent")
    classes = _number_of_classes(len(inputs) == 2, options, None, path)

    def run(z: Tensor, y: Tensor | None) -> Tensor:
        given = {inputs[0].name: z.to(ONNX_FLOATS[inputs[0].type]).numpy()}
        if y is not None:
            given[inputs[1].name] = y.to(ONNX_INTEGERS[inputs[1].type]).numpy()
        try:
            return torch.from_numpy(session.run([session.get_outputs()[0].name], given)[0])
        except Exception as error:
            hint = "" if fixed else f" {_FIXED.format('N')}"
            raise UserError(f"{path} failed on latents of {tuple(z.shape)}: {_last_line(error)}.{hint}") from error

    def call(z: Tensor, y: Tensor | None, index: int) -> Any:
        return _in_batches(run, z, y, fixed, path)

    return _Network("onnx", sha256_of(path), latent, options.prior or "normal", classes, fixed, call)


def parse_latent(text: str) -> tuple[int, ...]:
    """Read the shape of one latent. Raises UserError that names --latent.

    >>> parse_latent("128"), parse_latent("100x1x1")
    ((128,), (100, 1, 1))
    """
    if not re.fullmatch(r"[1-9]\d{0,6}(x[1-9]\d{0,6}){0,3}", text, re.ASCII):
        raise UserError(f"--latent '{shortened(text, 80)}': write the size of z, or its shape: 128, or 100x1x1.")
    return tuple(map(int, text.split("x")))
