"""What the tests share: no network, a folder of their own, and the command line in this process."""

import os

# One thread a process: the tests' arrays are small, and threads that wait for a busy core cost more than they bring.
os.environ["OMP_NUM_THREADS"] = "1"

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import Outcome, everything_below, save_tiny, write_png

from ganbench import cli
from ganbench.data.datasets.digits import digits

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded, and nothing that lies on this machine by chance is found."""
    monkeypatch.setenv("GANBENCH_OFFLINE", "1")
    monkeypatch.setenv("GANBENCH_DATA", str(tmp_path / "data"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the working directory."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    # As for the installed command, whose own folder is on the path and the working directory is not.
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    return work


@pytest.fixture
def ganbench(place: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """The command line in this process: `ganbench("list", "models")`. A traceback fails the test."""

    def show(message: Warning | str, category: type[Warning], file: str, line: int, *_: object) -> None:
        print(warnings.formatwarning(message, category, file, line), file=sys.stderr)

    def run(*args: object) -> Outcome:
        capfd.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", ResourceWarning)
            warnings.showwarning = show  # to stderr, where a user would see them
            with pytest.raises(SystemExit) as stop:
                cli.main([str(a) for a in args], prog_name="ganbench")
        out, err = capfd.readouterr()
        return Outcome(int(stop.value.code or 0), out, err)

    return run


@pytest.fixture
def refuses(ganbench: Callable[..., Outcome], place: Path) -> Callable[..., str]:
    """`refuses(words, *args)`: exit code 2, one line on stderr that holds all the words, and nothing written."""

    def run(words: list[str], *args: object) -> str:
        before = everything_below(place)
        done = ganbench(*args)
        assert done.code == 2, done
        assert done.out == ""
        assert done.err.startswith("ganbench: error: "), done.err
        assert done.err.endswith("\n"), done.err
        assert done.err.count("\n") == 1, done.err
        for word in words:
            assert word in done.err, f"{word!r} is not in: {done.err}"
        assert everything_below(place) == before
        return done.err

    return run


@pytest.fixture
def folder(place: Path) -> Path:
    """Twelve 8 x 8 digits as PNG files, without labels."""
    for i, image in enumerate(digits("test", place, False).images[:12, 0]):
        write_png(place / "images" / f"{i:02}.png", image.numpy())
    return place / "images"


@pytest.fixture
def ckpt(place: Path) -> Path:
    """A checkpoint of an untrained tiny DCGAN of digits."""
    return save_tiny(place / "tiny.safetensors")
