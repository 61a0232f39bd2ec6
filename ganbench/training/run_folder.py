"""The folder of a run: its files, the lock on it, and how it is read after a kill.

| file | content |
|---|---|
| `checkpoint.safetensors` | the weights that are evaluated |
| `best.safetensors` | the best weights so far, of recipes that watch a metric |
| `state.pt` | all that resuming needs |
| `log.jsonl` | losses; the same bytes however often the run was interrupted |
| `samples/` | pictures on a fixed latent |

Files are replaced whole, and older ones do not pile up.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ganbench.base import schema, weight_files
from ganbench.base.errors import UserError
from ganbench.base.files import atomic_path, read_bytes, write_text

CHECKPOINT, BEST, STATE, LOG, LOCK = (
    "checkpoint.safetensors", "best.safetensors", "state.pt", "log.jsonl", ".lock"
)

MOST_BYTES_OF_A_LOG = 1 << 30
_LINE = schema.Table({"step": schema.Whole()}, others=schema.Anything())


class _Tensor:
    """The kind of a tensor."""

    def check(self, value: Any, at: str) -> None:
        if not isinstance(value, torch.Tensor):
            raise schema.Misfit(at, f"must be a tensor, not {schema.described(value)}")


_TENSORS, _ANY = schema.Table(others=_Tensor()), schema.Anything()
# `torch.save` keeps tuples, lists and tensors; optimisers check their own part when they load it.
STATE_SCHEMA = schema.Table(
    {
        "identity": schema.Table(others=_ANY), "step": schema.Whole(), "seconds": schema.Number(0), "model": _TENSORS,
        "average": _TENSORS, "rng": _Tensor(), "cuda_rng": _Tensor(),
        "optimizers": schema.Table(others=schema.Table(others=_ANY)),
        "health": schema.Table({
            "updates": schema.Whole(), "won": schema.Whole(), "collapsed": schema.Whole(),
            "losses": schema.Table(others=schema.List(schema.Number())),
        }, others=_ANY),
        "warnings": schema.Table(others=schema.Text()), "best": schema.Maybe(schema.List(_ANY)),
    },
    others=_ANY,
)


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """The file of weights and metadata that are evaluated."""
        return self.path / CHECKPOINT

    @property
    def best(self) -> Path:
        """The checkpoint with the best watched metric."""
        return self.path / BEST

    @property
    def state(self) -> Path:
        """The file with all that resuming needs. It is written last, so that its checkpoint lies beside it."""
        return self.path / STATE

    @property
    def log(self) -> Path:
        """The log, one JSON object a line."""
        return self.path / LOG

    def samples(self, name: str) -> Path:
        """The file of a picture."""
        return self.path / "samples" / f"{name}.png"

    def has_samples(self) -> bool:
        """Return True if a picture of samples was drawn, by this process or an earlier one."""
        return any((self.path / "samples").glob("step-*.png"))

    def write(self, line: dict[str, Any]) -> None:
        """Append a line to the log. Raises UserError if it cannot be written, as on a full disk."""
        try:
            with open(self.log, "a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
        except OSError as error:
            raise UserError(
                f"cannot write {self.log}: {error.strerror}. Free some space; the same command then goes on."
            ) from error

    def cut_log(self, step: int) -> str:
        """Drop the lines after `step`: the resumed run writes them again. Return a remark on a damaged end, or "".

        A damaged last line is dropped: a kill cuts it short, and a power cut fills it with zeros. Raises UserError for
        damage elsewhere, which is not the work of a kill.
        """
        if not self.log.exists():
            return ""
        remark, kept = "", []
        lines = read_bytes(self.log, "log", MOST_BYTES_OF_A_LOG).removesuffix(b"\n").split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                if _step_of(line) <= step:
                    kept.append(line.decode("utf-8") + "\n")
            except ValueError as error:
                if number < len(lines):
                    raise UserError(
                        f"{self.log}, line {number}: {error}. Remove that line, or give --fresh to begin again."
                    ) from error
                if line:  # an empty log has one empty line
                    remark = f"{self.log}: the last line is damaged and was dropped ({error})"
        write_text(self.log, "".join(kept))
        return remark

    def save_state(self, state: dict[str, Any]) -> None:
        """Replace the state. Raises UserError if the disk is full."""
        with atomic_path(self.state) as part:
            try:
                torch.save(state, part)
            except RuntimeError as error:  # torch's way to report a full disk
                raise OSError("the file could not be written whole") from error

    def read_state(self, identity: dict[str, Any]) -> dict[str, Any]:
        """Return the state, on the CPU. Raises UserError for a broken file and for the state of another run."""
        remedy = "restore it, or give --fresh to begin again"
        weight_files.require_whole_archive(self.state, str(self.state), remedy)
        try:
            saved: dict[str, Any] = torch.load(self.state, map_location="cpu", weights_only=True)
        except Exception as error:
            reason = type(error).__name__
            raise UserError(f"{self.state} cannot be read ({reason}): {remedy}.") from error
        if not isinstance(saved, dict) or "identity" not in saved:
            raise UserError(f"{self.state} is not the state of a run: {remedy}.")
        schema.require(STATE_SCHEMA, saved, f"{self.state} is damaged", remedy)
        for key, value in identity.items():
            if saved["identity"].get(key) != value:
                raise UserError(
                    f"{self.state} belongs to another run (its {key} differs): give --fresh to begin again, or "
                    "another --out."
                )
        return saved

    def empty(self) -> None:
        """Remove all files of an earlier run except its lock, which this process holds."""
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder for this process. The system releases the lock when the process ends, even by a kill.

        Raises UserError if another process holds it, or if the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror}. Choose another --out.") from error
        try:
            try:
                import fcntl

                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except ImportError:  # no flock on this system: two runs on one folder are not noticed
                pass
            except OSError:
                raise UserError(
                    f"another process is training in {self.path}: wait for it, or give another --out."
                ) from None
            for part in self.path.rglob(".*.part"):  # left by a killed process
                part.unlink()
            yield
        finally:
            os.close(handle)


def _step_of(line: bytes) -> int:
    """Return the step of a line of the log. Raises ValueError that says what is wrong with the line."""
    try:
        value = json.loads(line.decode("utf-8"))  # a watched metric may be infinite
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error
    except (ValueError, RecursionError) as error:
        raise ValueError("it is not a JSON object") from error
    _LINE.check(value, "")
    step: int = value["step"]
    return step
