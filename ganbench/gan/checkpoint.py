"""Checkpoints: a `.safetensors` file that says which model it is, so that `--ckpt FILE` needs nothing else.

Loading one can run no code. A foreign `.pt` file is read with `weights_only=True` or refused.
"""

import inspect
import json
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ganbench import __version__
from ganbench.base import registry
from ganbench.base.data_spec import classes_in
from ganbench.base.errors import UserError, did_you_mean
from ganbench.base.files import atomic_path, sha256_of
from ganbench.gan import GAN


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's metadata hold.

    steps: updates of G. recipe: its name, or empty. data: what it was trained on.
    """

    model: str
    args: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    recipe: str = ""
    data: str = ""
    seed: int | None = None
    commit: str = ""
    version: str = __version__
    sha256: str = ""  # of the file; filled in on loading

    @property
    def first_class(self) -> int:
        """What the model's class 0 is called in the whole set, of which it may have been trained on a part."""
        classes = classes_in(self.data)
        return classes.start if classes else 0


def save(path: Path, state: dict[str, Tensor], meta: Checkpoint) -> None:
    """Write the weights and their metadata atomically."""
    # Cloned: the format refuses tensors that share memory, and models may tie their weights.
    tensors = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in state.items()}
    with atomic_path(path) as part:
        try:
            save_file(tensors, part, metadata={"ganbench": json.dumps(asdict(meta))})
        except SafetensorError as error:  # its way to say that the disk is full
            raise OSError(str(error)) from error


def load(path: Path, model: str | None = None) -> tuple[GAN, Checkpoint]:
    """The model of a checkpoint, in evaluation mode on the CPU, and its metadata.

    Raises UserError for a file that is missing, truncated, no checkpoint, or one of a model other than `model`.
    """
    if not path.is_file():
        raise UserError(f"--ckpt {path}: there is no such file.")
    if path.suffix in (".pt", ".pth"):
        state, meta = _load_pickle(path, model)
    else:
        state, meta = _load_safetensors(path)
    if model and model != meta.model:
        raise UserError(
            f"--ckpt {path} is a checkpoint of '{meta.model}', not of '{model}': give --model {meta.model}."
        )
    return build(meta, state, str(path)), Checkpoint(**{**asdict(meta), "sha256": sha256_of(path)})


def make_model(name: str, args: dict[str, Any], whose: str) -> GAN:
    """A newly initialised model with these constructor arguments.

    Raises UserError, beginning with `whose` arguments they are, for an unknown model and for arguments that it refuses.
    """
    cls = registry.load("models", name)
    known = list(inspect.signature(cls).parameters)
    for key in args:
        if key not in known:
            raise UserError(f"{whose}: the model '{name}' has no argument '{key}'.{did_you_mean(key, known)}")
    try:
        gan: GAN = cls(**args)
    except Exception as error:  # every model has its own way to refuse
        raise UserError(
            f"{whose}: the model '{name}' refuses its arguments {args} ({type(error).__name__}: {error})."
        ) from error
    return gan


def build(meta: Checkpoint, state: dict[str, Tensor], name: str) -> GAN:
    """The model that `meta` describes with the weights `state`."""
    gan = make_model(meta.model, meta.args, f"--ckpt {name}")
    try:
        gan.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"--ckpt {name} does not fit the model '{meta.model}' of this version: {reason}.") from error
    return gan.eval().requires_grad_(False)


def _load_safetensors(path: Path) -> tuple[dict[str, Tensor], Checkpoint]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"--ckpt {path} is truncated or no safetensors file ({error}): copy or train it again."
        ) from error
    if "ganbench" not in metadata:
        raise UserError(
            f"--ckpt {path} has no ganbench metadata: it was not written by ganbench, so its model is unknown."
        )
    try:
        meta = Checkpoint(**json.loads(metadata["ganbench"]))
        if not isinstance(meta.model, str) or not isinstance(meta.args, dict):
            raise TypeError("the model's name or arguments are of the wrong type")
        return state, meta
    except (ValueError, TypeError) as error:
        raise UserError(
            f"--ckpt {path}: its metadata cannot be read ({error}); a newer ganbench may have written it."
        ) from error


def _load_pickle(path: Path, model: str | None) -> tuple[dict[str, Tensor], Checkpoint]:
    """A state dict, or {"model", "args", "state_dict"}, from a pickle of nothing but tensors and plain values."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on the pickle's version: it is read, or refused below
            value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here; all mean that the file is not safe or not whole
        raise UserError(
            f"--ckpt {path} is refused: it is not a whole file of plain tensors, and reading more could run code. "
            "Save its state_dict() alone, or better as .safetensors."
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"--ckpt {path} holds a {type(value).__name__}, not a state dict.")
    wrapped = "state_dict" in value
    state = value["state_dict"] if wrapped else value
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f"--ckpt {path} holds something else than a state dict: save model.state_dict() alone.")
    name, args = (value.get("model", model), value.get("args", {})) if wrapped else (model, {})
    if not name:
        raise UserError(f"--ckpt {path} does not say which model it is: give --model.")
    if not isinstance(name, str) or not isinstance(args, dict):
        raise UserError(f"--ckpt {path}: 'model' must be a name and 'args' a dict of its arguments.")
    return state, Checkpoint(model=name, args=args)
