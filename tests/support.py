"""What tests call by name: processes of their own, files to read, a tiny model, a tiny recipe."""

import hashlib
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ganbench.gan import GAN, Batch, checkpoint

ROOT = Path(__file__).parent.parent
TINY = {"image_size": 8, "channels": 1, "num_classes": 10, "latent_dim": 4, "g_width": 4, "d_width": 4}


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


def process(*args: object, cwd: Path, **env: str) -> Outcome:
    """A Python of its own: `process("-m", "ganbench", "list", cwd=place)`."""
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


# What a command that trains and measures imports, which takes seconds of the processor.
PRELOADED = [
    "ganbench.cli", "ganbench.reproduction.run", "ganbench.training.loop", "reference_models.dcgan", "torch._dynamo",
    "sklearn.datasets", "scipy.linalg", "pandas",
]


def fork_server() -> Any:
    """A multiprocessing context: its server imports torch once, and forks a clean process for each start."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    return server


class Forked:
    """What `process` runs, begun in a fork that has imported torch and ganbench: `Forked("run.py", cwd=place)`.

    For tests of what several processes do, or of one that is killed; `process` is for tests of the start itself.
    """

    def __init__(self, *args: object, cwd: Path, **env: str):
        self.streams = tempfile.TemporaryDirectory()
        self.files = [Path(self.streams.name, name) for name in ("out", "err")]
        environment = {**os.environ, **env}
        self.process = fork_server().Process(
            target=_in_a_fork, args=([*map(str, args)], str(cwd), environment, self.files)
        )
        self.process.start()

    def kill(self) -> None:
        self.process.kill()

    def wait(self, seconds: float = 300) -> Outcome:
        """Exit code and output. A process that has not ended after so many seconds is killed, and fails the test."""
        self.process.join(seconds)
        late = self.process.exitcode is None
        if late:
            self.process.kill()
            self.process.join()
        out, err = (file.read_text() if file.exists() else "" for file in self.files)
        self.streams.cleanup()
        assert not late, f"not ended after {seconds} seconds: {err}"
        return Outcome(self.process.exitcode, out, err)


def _in_a_fork(args: list[str], cwd: str, environment: dict[str, str], files: list[Path]) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(files, 1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    torch.set_num_threads(1)
    sys.path.insert(0, cwd)
    if args[0] == "-m":
        sys.argv = args[1:]
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = args
        runpy.run_path(args[0], run_name="__main__")


def two_forked(*args: object, cwd: Path, **env: str) -> list[Forked]:
    """The two processes that torchrun would start, without torchrun: one of them may be stopped."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    env = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": "2", **env}
    return [Forked(*args, cwd=cwd, **env, RANK=rank) for rank in "01"]


def everything_below(folder: Path) -> dict[str, str]:
    """Path and hash of each file, to see that nothing was written or changed."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in sorted(folder.rglob("*"))
        if "__pycache__" not in p.parts
    }


def write_png(path: Path, array: np.ndarray) -> Path:
    """A PNG of uint8 H x W or H x W x C."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def tiny_dcgan(**args: Any) -> GAN:
    """A DCGAN of 8 x 8 digits with few weights, newly initialised: the same one each time."""
    torch.manual_seed(0)
    return checkpoint.make_model("dcgan", {**TINY, **args}, "test")


def save_tiny(path: Path, model: GAN | None = None) -> Path:
    """A checkpoint of an untrained tiny DCGAN of digits."""
    meta = checkpoint.Checkpoint("dcgan", TINY, data="digits:train")
    checkpoint.save(path, (model or tiny_dcgan()).state_dict(), meta)
    return path


RECIPE = """
name = "{name}"
version = 1
title = "A tiny recipe"
paper = "none"
deviations = ["Everything."]

[model]
name = "dcgan"
args = {{ image_size = 8, channels = 1, num_classes = 10, latent_dim = 4, g_width = 4, d_width = 4 }}

[train]
data = "digits:train"
batch_size = 16
steps = 6
ema_decay = 0.9

[evaluate]
metrics = ["fd_pixels"]
num = 40
reference = "digits:train"
real = "digits:test"

[[reported]]
metric = "fd_pixels"
value = 1.5
source = "nowhere"
"""


def write_recipe(folder: Path, changes: dict[str, str] | None = None, name: str = "tiny") -> Path:
    """A tiny recipe with replacements in its text: `write_recipe(place, {"steps = 6": "steps = 8"})`."""
    text = RECIPE.format(name=name)
    for old, new in (changes or {}).items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


# --- For models, in NumPy ---


def few_labels(labelled: int = 8, unlabelled: int = 20, step: int = 0) -> Batch:
    """A semi-supervised batch of ten images of 28 px that differ much, over and over."""
    x = torch.rand(10, 1, 7, 7, generator=torch.Generator().manual_seed(1)).round() * 2 - 1
    x = F.interpolate(x, scale_factor=4.0)
    rows, y = torch.arange(unlabelled) % 10, torch.arange(labelled) % 10
    return Batch(x[y], y, step, x[rows])


def sigmoid(x: torch.Tensor) -> np.ndarray:
    return 1 / (1 + np.exp(-x.detach().double().numpy()))


def softmax(x: torch.Tensor) -> np.ndarray:
    e = np.exp(x.detach().double().numpy())
    return e / e.sum(1, keepdims=True)


def count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())
