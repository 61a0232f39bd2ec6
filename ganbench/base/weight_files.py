"""Files of weights, looked at before memory is taken: the header of a safetensors file, the archive of a pickle.

A file says which network it holds, and is not believed: `misfit` compares the network, built on torch's meta device
without memory, with the tensors that the file really has.
"""

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ganbench.base.errors import UserError, printable, shortened


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself. metadata: texts by key. tensors: meta tensors by name."""

    metadata: dict[str, str]
    tensors: dict[str, Tensor]


def read_header(path: Path) -> Header:
    """Return the header of a safetensors file; no tensor is read.

    Raises SafetensorError or OSError if the file is truncated, damaged or none.
    """
    with safe_open(path, framework="pt") as file:
        tensors = {}
        for key in file.keys():  # noqa: SIM118 (not a dict)
            part = file.get_slice(key)
            dtype = _DTYPES.get(part.get_dtype(), torch.uint8)
            tensors[key] = torch.empty(part.get_shape(), dtype=dtype, device="meta")
        return Header(dict(file.metadata() or {}), tensors)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, on the CPU. Raises SafetensorError or OSError for a damaged file."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)


def digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the names, types, shapes and values of a network's tensors, which may be in no file."""
    found = hashlib.sha256()
    for name, tensor in state.items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def misfit(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Return the first difference between the tensors of a network and those of a file, in words; '' if there is none.

    Names and shapes must be equal. Floats of any precision serve as floats.
    """
    lacking = [name for name in wanted if name not in found]
    if lacking:
        more = f", and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        return f"it has no tensor '{_short(lacking[0])}'{more}"
    for name, tensor in found.items():
        if name not in wanted:
            return f"it has the tensor '{_short(name)}', and the network has none of that name"
        if tensor.shape != wanted[name].shape:
            return f"its tensor '{_short(name)}' is {_shape(tensor)}, and that of the network {_shape(wanted[name])}"
        if tensor.is_floating_point() != wanted[name].is_floating_point():
            return f"its tensor '{_short(name)}' is {tensor.dtype}, and that of the network {wanted[name].dtype}"
    return ""


def require_whole_archive(path: Path, whose: str, remedy: str) -> None:
    """Raise UserError if a file of torch.save is a damaged zip archive, or would unpack to more than its own size.

    torch does not compare the checksums of the archive. A file that is no zip archive, as older versions of torch
    wrote it, is left to torch.

    whose: the file, as the subject of the message. remedy: what the user can do.
    """
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise UserError(f"{whose} is compressed, which torch.save never does: {remedy}.")
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise UserError(f"{whose} is damaged (its parts are larger than the file): {remedy}.")
            bad = archive.testzip()
    except (OSError, RuntimeError, NotImplementedError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{whose} is damaged ({_short(str(error))}): {remedy}.") from error
    if bad is not None:
        raise UserError(f"{whose} is damaged (the checksum of '{_short(bad)}' is wrong): {remedy}.")


def not_plain(tensors: Mapping[str, Tensor]) -> str:
    """Return why the tensors of a pickle are no weights, in words; '' if they are.

    A tensor must lie in memory as a whole: an expanded one would take memory that its file does not have.
    """
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            return f"its tensor '{_short(name)}' is not a plain one"
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            return f"its tensor '{_short(name)}' is larger than its data"
    return ""


def _short(name: str) -> str:
    return printable(shortened(name, 100))


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}
