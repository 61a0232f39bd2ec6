"""Checkpoints: a `.safetensors` file that holds the weights and names the model, so that `--ckpt FILE` is enough.

Use `save` and `load`; `make_model` builds a new model by name. Loading a checkpoint runs no code from the file. A
pickle (`.pt`, `.pth`) is read with torch's `weights_only=True`, and refused if it holds anything but plain values.
"""

import inspect
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ganbench import __version__
from ganbench.base import registry, schema, weight_files
from ganbench.base.data_spec import classes_in
from ganbench.base.errors import UserError, did_you_mean, printable, shortened
from ganbench.base.files import atomic_path, parse_json, sha256_of
from ganbench.base.standard_output import user_code
from ganbench.gan import GAN
from ganbench.gan.checks import require_model

ARGS = schema.Table(others=schema.Plain())
_LINE = schema.Text(10_000, line=True)
METADATA = schema.Table({"model": _LINE}, {
    "args": ARGS, "steps": schema.Whole(), "recipe": _LINE, "data": _LINE, "seed": schema.Maybe(schema.Whole()),
    "commit": _LINE, "version": _LINE, "sha256": _LINE,
})


@dataclass(frozen=True)
class Checkpoint:
    """Metadata of a checkpoint.

    model, args: name of the model, and its constructor arguments. steps: updates of G. recipe: name of the recipe, or
    empty. data: the training data as a data spec, such as "mnist:train". seed: of the training run, or None. commit:
    git commit of ganbench. version: version of ganbench. sha256: hash of the file, known after loading.
    """

    model: str
    args: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    recipe: str = ""
    data: str = ""
    seed: int | None = None
    commit: str = ""
    version: str = __version__
    sha256: str = ""

    @property
    def first_class(self) -> int:
        """The label in the whole data set of the model's class 0: above 0 after training on a class subset."""
        classes = classes_in(self.data)
        return classes.start if classes else 0


def save(path: Path, state: dict[str, Tensor], meta: Checkpoint) -> None:
    """Write a state dict and its metadata to `path`, atomically.

    Raises UserError if the file cannot be written, and TypeError if `meta.args` are not plain values.
    """
    # Clone, because the format refuses tensors that share memory, and models may tie their weights.
    tensors = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in state.items()}
    with atomic_path(path) as part:
        try:
            save_file(tensors, part, metadata={"ganbench": json.dumps(asdict(meta))})
        except SafetensorError as error:  # raised for a full disk
            raise OSError(str(error)) from error


def load(path: Path, model: str | None = None) -> tuple[GAN, Checkpoint]:
    """Return the model of a checkpoint, and its metadata.

    The model is on the CPU, in evaluation mode, and its parameters take no gradients.
    model: the name that the checkpoint must have. A pickle that holds only a state dict needs it.
    Raises UserError if the file is missing, damaged or not a checkpoint, or holds another model.
    """
    if not path.is_file():
        raise UserError(f"--ckpt {path}: no such file. Check the path.")
    if path.suffix in (".pt", ".pth"):
        state, meta = _load_pickle(path, model)
        _require_model(path, model, meta)
        _require_fit(meta, state, str(path))
    else:
        meta, tensors = _read_safetensors(path)
        _require_model(path, model, meta)
        _require_fit(meta, tensors, str(path))  # before any tensor is read
        try:
            state = weight_files.read_tensors(path)
        except (SafetensorError, OSError) as error:
            raise _truncated(path, error) from error
    return build(meta, state, str(path)), Checkpoint(**{**asdict(meta), "sha256": sha256_of(path)})


def _require_model(path: Path, model: str | None, meta: Checkpoint) -> None:
    if model and model != meta.model:
        raise UserError(
            f"--ckpt {path} is a checkpoint of '{meta.model}', not of '{model}': give --model {meta.model}."
        )


def make_model(name: str, args: dict[str, Any], whose: str) -> GAN:
    """Return a newly initialised model, on the CPU in training mode.

    args: arguments of its constructor. whose: where the arguments come from, as the first words of an error message.
    Raises UserError for an unknown model, and for arguments that the model refuses.
    """
    schema.require(ARGS, args, f"{whose}: the arguments of the model '{name}' cannot be right", "correct them")
    cls = registry.load("models", name)
    try:
        known = list(inspect.signature(cls).parameters)
    except (TypeError, ValueError) as error:
        raise UserError(f"{whose}: the model '{name}' does not say its arguments ({error}).") from error
    for key in args:
        if key not in known:
            raise UserError(f"{whose}: the model '{name}' has no argument '{key}'.{did_you_mean(key, known)}")
    try:
        with user_code():
            gan: GAN = cls(**args)
    except (Exception, SystemExit) as error:  # models refuse arguments with errors of many types
        raise UserError(
            f"{whose}: the model '{name}' refuses its arguments {shortened(str(args), 500)} "
            f"({type(error).__name__}: {shortened(str(error), 500)})."
        ) from error
    try:
        require_model(gan)
    except TypeError as error:
        raise UserError(f"{whose}: the model '{name}' cannot be used: {error}.") from error
    return gan


def _require_fit(meta: Checkpoint, tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise UserError if the tensors of a file are not those of the model that `meta` describes.

    The model is built on torch's meta device, where it takes no memory. One that cannot be built there, as its
    constructor looks at its weights, is left to `build`.
    """
    try:
        with torch.device("meta"):
            gan = make_model(meta.model, meta.args, f"--ckpt {name}")
    except UserError:
        return
    wanted = gan.state_dict()
    if all(value.is_meta for value in wanted.values()) and (reason := weight_files.misfit(wanted, tensors)):
        raise _misfit(meta, name, reason)


def _misfit(meta: Checkpoint, name: str, reason: str) -> UserError:
    return UserError(
        f"--ckpt {name} does not fit the model '{meta.model}' of this version: {reason}. Give the checkpoint of this "
        "model, or the version of ganbench that wrote it."
    )


def build(meta: Checkpoint, state: dict[str, Tensor], name: str) -> GAN:
    """Return the model that `meta` describes, with the weights `state`, in evaluation mode and without gradients.

    name: the file, for error messages. Raises UserError if the weights do not fit the model: a tensor is missing, not
    known, or of another shape.
    """
    gan = make_model(meta.model, meta.args, f"--ckpt {name}")
    if reason := weight_files.misfit(gan.state_dict(), state):  # a model may load itself, and not be strict
        raise _misfit(meta, name, reason)
    try:
        gan.load_state_dict(state)
    except RuntimeError as error:
        raise _misfit(meta, name, shortened(" ".join(str(error).split()))) from error
    return gan.eval().requires_grad_(False)


def _read_safetensors(path: Path) -> tuple[Checkpoint, dict[str, Tensor]]:
    """Return the metadata of a checkpoint, and its tensors on the meta device."""
    try:
        header = weight_files.read_header(path)
    except (SafetensorError, OSError) as error:
        raise _truncated(path, error) from error
    if "ganbench" not in header.metadata:
        raise UserError(
            f"--ckpt {path} has no ganbench metadata, so its model is unknown: give a checkpoint that ganbench wrote."
        )
    remedy = "If a newer ganbench wrote it, update ganbench; else copy the file again, or train again"
    try:
        value = parse_json(header.metadata["ganbench"])
        METADATA.check(value, "")
    except ValueError as error:
        raise UserError(f"--ckpt {path}: the metadata cannot be read ({error}). {remedy}.") from error
    return Checkpoint(**value), header.tensors


def _truncated(path: Path, error: Exception) -> UserError:
    reason = shortened(printable(str(error)))
    return UserError(
        f"--ckpt {path} is truncated or not a safetensors file ({reason}): copy it again, or train again."
    )


def _load_pickle(path: Path, model: str | None) -> tuple[dict[str, Tensor], Checkpoint]:
    """Read a state dict, or a dict with "state_dict", "model" and "args", from a pickle of tensors and plain values."""
    weight_files.require_whole_archive(path, f"--ckpt {path} is refused: it", "copy it again, or train again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's version: the file is read, or refused below
            value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of many types; all mean that the file is unsafe or damaged
        raise UserError(
            f"--ckpt {path} is refused: it is damaged or holds more than plain tensors, so reading it could run code. "
            "Save only model.state_dict(), preferably as .safetensors."
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"--ckpt {path} holds a {type(value).__name__}, not a state dict: save model.state_dict().")
    wrapped = "state_dict" in value
    state = value["state_dict"] if wrapped else value
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f"--ckpt {path} holds a dict that is not a state dict: save only model.state_dict().")
    if reason := weight_files.not_plain(state):
        raise UserError(f"--ckpt {path} is refused: {reason}. Save model.state_dict().")
    name, args = (value.get("model", model), value.get("args", {})) if wrapped else (model, {})
    if not name:
        raise UserError(f"--ckpt {path} does not name its model: give --model.")
    if not isinstance(name, str) or not isinstance(args, dict):
        raise UserError(f"--ckpt {path}: 'model' must be a name, and 'args' a dict of arguments of the model.")
    return state, Checkpoint(model=name, args=args)
