"""Checkpoints: a `.safetensors` file that says which model it is, so that `--model NAME --ckpt FILE` needs nothing else.

Loading one can run no code. A foreign `.pt` file is read with `weights_only=True` or refused.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ganbench import __version__, registry
from ganbench.errors import UserError
from ganbench.files import atomic_path, sha256_of
from ganbench.gan import GAN


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's metadata hold. steps: updates of G. recipe: its name, or empty. data: what it was trained on."""

    model: str
    args: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    recipe: str = ""
    data: str = ""
    seed: int | None = None
    commit: str = ""
    version: str = __version__
    sha256: str = ""  # of the file; filled in on loading


def save(path: Path, state: dict[str, Tensor], meta: Checkpoint) -> None:
    """Write the weights and their metadata atomically."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    with atomic_path(path) as part:
        save_file(tensors, part, metadata={"ganbench": json.dumps(asdict(meta))})


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
        raise UserError(f"--ckpt {path} is a checkpoint of '{meta.model}', not of '{model}': give --model {meta.model}.")
    return build(meta, state, str(path)), Checkpoint(**{**asdict(meta), "sha256": sha256_of(path)})


def build(meta: Checkpoint, state: dict[str, Tensor], name: str) -> GAN:
    """The model that `meta` describes with the weights `state`."""
    cls = registry.load("models", meta.model)
    try:
        gan: GAN = cls(**meta.args)
        gan.load_state_dict(state)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"--ckpt {name} does not fit the model '{meta.model}' of this version: {reason}.") from error
    return gan.eval().requires_grad_(False)


def _load_safetensors(path: Path) -> tuple[dict[str, Tensor], Checkpoint]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"--ckpt {path} is truncated or no safetensors file ({error}): copy or train it again.") from error
    if "ganbench" not in metadata:
        raise UserError(f"--ckpt {path} has no ganbench metadata: it was not written by ganbench, so its model is unknown.")
    try:
        return state, Checkpoint(**json.loads(metadata["ganbench"]))
    except (ValueError, TypeError) as error:
        raise UserError(f"--ckpt {path}: its metadata cannot be read ({error}); a newer ganbench may have written it.") from error


def _load_pickle(path: Path, model: str | None) -> tuple[dict[str, Tensor], Checkpoint]:
    """A state dict, or {"model", "args", "state_dict"}, from a pickle that holds nothing but tensors and plain values."""
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here; all mean that the file is not safe or not whole
        raise UserError(
            f"--ckpt {path} is refused: it is not a whole file of plain tensors, and reading more could run code. "
            "Save its state_dict() alone, or better as .safetensors."
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"--ckpt {path} holds a {type(value).__name__}, not a state dict.")
    state = value.get("state_dict", value)
    name = value.get("model", model) if "state_dict" in value else model
    if not name:
        raise UserError(f"--ckpt {path} does not say which model it is: give --model.")
    if not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"--ckpt {path} holds more than a state dict: save model.state_dict() alone.")
    return state, Checkpoint(model=name, args=value.get("args", {}) if "state_dict" in value else {})
