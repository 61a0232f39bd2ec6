"""Every input of every command, given every hostile value of its kind: one line, exit code 2, nothing written.

The commands and their inputs come from the command line itself, so that a new input without a row fails a test. All
cases run in one child process, under limits of memory, file size and time; the parent stops it if it hangs.
"""

import contextlib
import fcntl
import io
import json
import os
import pickle
import re
import resource
import shutil
import signal
import socket
import stat
import struct
import sys
import time
import traceback
import zipfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from support import RECIPE, ROOT, save_tiny, write_png, write_recipe

from ganbench import cli
from ganbench.base.errors import printable
from ganbench.data.datasets.digits import digits
from ganbench.reporting import results
from ganbench.reporting.results import Measurement, Result

SECONDS = 30  # of one case
MEMORY = 3 << 30  # above what is in use
FILE_SIZE = 1 << 26
ALL_SECONDS = 900  # of the child; on an idle core it takes half a minute

# --- What each command takes ---

EVALUATE = ["evaluate", "--metrics", "fd_pixels", "--num", "20"]
OF_DIGITS = [*EVALUATE, "--images", "digits:test", "--reference", "digits:test"]
OF_FOLDER = [*EVALUATE, "--num", "4", "--images", "images", "--reference", "digits:test"]
NEIGHBOURS = ["neighbours", "--images", "digits:test", "--reference", "digits:test", "--num", "4"]
STATISTICS = ["statistics", "images", "--extractor", "pixels"]
SAMPLE = ["sample", "--ckpt", "tiny.safetensors", "--num", "4"]
TRAVERSE = ["traverse", "--ckpt", "tiny.safetensors"]
INVERT = ["invert", "--num", "2", "--steps", "1", "--restarts", "1", "--loss", "pixels"]
INVERT_DIGITS = [*INVERT, "--ckpt", "tiny.safetensors", "--images", "digits:test"]
REPRODUCE = ["reproduce", "tiny.toml", "--dry-run"]
BASELINE = ["baseline", "tiny.toml"]

# (command, parameter): its kind, and a command line in which {} stands for the hostile value.
ROWS: dict[tuple[str, str], tuple[str, list[str]]] = {
    ("baseline", "targets"): ("result", ["baseline", "{}", "--out", "new.json"]),
    ("baseline", "out"): ("out", ["baseline", "good.json", "--out={}"]),
    ("baseline", "seeds"): ("text", [*BASELINE, "--out", "new.json", "--seeds={}"]),
    ("baseline", "two_sided"): ("text", ["baseline", "good.json", "--out", "new.json", "--two-sided={}"]),
    ("baseline", "device"): ("text", [*BASELINE, "--out", "new.json", "--device={}"]),
    ("baseline", "results"): ("folder", [*BASELINE, "--out", "new.json", "--results={}"]),
    ("baseline", "weights"): ("text", [*BASELINE, "--out", "new.json", "--weights={}"]),
    ("check", "baseline"): ("baseline", ["check", "{}", "good.json"]),
    ("check", "results"): ("result", ["check", "base.json", "{}"]),
    ("check", "junit"): ("out", ["check", "base.json", "good.json", "--junit={}"]),
    ("check", "out"): ("folder", ["check", "base.json", "--out={}"]),
    ("compare", "a"): ("result", ["compare", "{}", "good.json"]),
    ("compare", "b"): ("result", ["compare", "good.json", "{}"]),
    ("evaluate", "model"): ("text", [*EVALUATE, "--ckpt", "tiny.safetensors", "--model={}"]),
    ("evaluate", "ckpt"): ("checkpoint", [*EVALUATE, "--ckpt={}"]),
    ("evaluate", "images"): ("source", [*EVALUATE, "--reference", "digits:test", "--images={}"]),
    ("evaluate", "reference"): ("source", [*EVALUATE, "--images", "digits:test", "--reference={}"]),
    ("evaluate", "held_out"): ("source", [*OF_DIGITS, "--held-out={}"]),
    ("evaluate", "image_labels"): ("labels", [*OF_FOLDER, "--image-labels={}"]),
    ("evaluate", "reference_labels"): (
        "labels", [*EVALUATE, "--images", "digits:test", "--reference", "images", "--reference-labels={}"]
    ),
    ("evaluate", "resize"): ("text", [*OF_DIGITS, "--resize={}"]),
    ("evaluate", "latent"): ("text", [*OF_DIGITS, "--latent={}"]),
    ("evaluate", "metrics"): ("text", ["evaluate", "--images", "digits:test", "--metrics={}"]),
    ("evaluate", "class_map"): ("class map", [*OF_FOLDER, "--image-labels", "labels.csv", "--class-map={}"]),
    ("evaluate", "extractor"): ("text", [*OF_DIGITS, "--extractor={}"]),
    ("evaluate", "weights"): ("weights", [*OF_DIGITS, "--metrics", "fd_small-cnn", "--weights=small-cnn={}"]),
    ("evaluate", "resolutions"): ("text", [*OF_DIGITS, "--resolutions={}"]),
    ("evaluate", "device"): ("text", [*OF_DIGITS, "--device={}"]),
    ("evaluate", "out"): ("out", [*OF_DIGITS, "--out={}"]),
    ("figures", "result"): ("result", ["figures", "{}", "--out", "new.png"]),
    ("figures", "out"): ("out", ["figures", "good.json", "--out={}"]),
    ("invert", "model"): ("text", [*INVERT_DIGITS, "--out", "new", "--model={}"]),
    ("invert", "ckpt"): ("checkpoint", [*INVERT, "--images", "digits:test", "--out", "new", "--ckpt={}"]),
    ("invert", "images"): ("source", [*INVERT, "--ckpt", "tiny.safetensors", "--out", "new", "--images={}"]),
    ("invert", "resize"): ("text", [*INVERT_DIGITS, "--out", "new", "--resize={}"]),
    ("invert", "image_labels"): (
        "labels", [*INVERT, "--ckpt", "tiny.safetensors", "--images", "images", "--out", "new", "--image-labels={}"]
    ),
    ("invert", "latent"): ("text", [*INVERT_DIGITS, "--out", "new", "--latent={}"]),
    ("invert", "device"): ("text", [*INVERT_DIGITS, "--out", "new", "--device={}"]),
    ("invert", "out"): ("folder", [*INVERT_DIGITS, "--out={}"]),
    ("merge", "parts"): ("npz", ["merge", "{}", "--out", "new.npz"]),
    ("merge", "out"): ("out", ["merge", "moments.npz", "--out={}"]),
    ("neighbours", "model"): ("text", ["neighbours", "--ckpt", "tiny.safetensors", "--out", "new.png", "--model={}"]),
    ("neighbours", "ckpt"): ("checkpoint", ["neighbours", "--num", "4", "--out", "new.png", "--ckpt={}"]),
    ("neighbours", "images"): (
        "source", ["neighbours", "--num", "4", "--reference", "digits:test", "--out", "new.png", "--images={}"]
    ),
    ("neighbours", "reference"): (
        "source", ["neighbours", "--num", "4", "--images", "digits:test", "--out", "new.png", "--reference={}"]
    ),
    ("neighbours", "extractor"): ("text", [*NEIGHBOURS, "--out", "new.png", "--extractor={}"]),
    ("neighbours", "weights"): (
        "weights", [*NEIGHBOURS, "--extractor", "small-cnn", "--out", "new.png", "--weights=small-cnn={}"]
    ),
    ("neighbours", "resize"): ("text", [*NEIGHBOURS, "--out", "new.png", "--resize={}"]),
    ("neighbours", "image_labels"): (
        "labels", ["neighbours", "--num", "4", "--images", "images", "--reference", "digits:test", "--out", "new.png",
                   "--image-labels={}"]
    ),
    ("neighbours", "latent"): ("text", [*NEIGHBOURS, "--out", "new.png", "--latent={}"]),
    ("neighbours", "device"): ("text", [*NEIGHBOURS, "--out", "new.png", "--device={}"]),
    ("neighbours", "out"): ("out", [*NEIGHBOURS, "--out={}"]),
    ("reproduce", "names"): ("recipe", ["reproduce", "{}", "--out", "new"]),
    ("reproduce", "seeds"): ("text", [*REPRODUCE, "--seeds={}"]),
    ("reproduce", "data"): ("text", [*REPRODUCE, "--data={}"]),
    ("reproduce", "device"): ("text", ["reproduce", "tiny.toml", "--out", "new", "--device={}"]),
    ("reproduce", "out"): ("folder", ["reproduce", "tiny.toml", "--steps", "1", "--out={}"]),
    ("reproduce", "launcher_args"): ("text", [*REPRODUCE, "--launcher", "local", "--launcher-arg={}"]),
    ("reproduce", "weights"): ("text", [*REPRODUCE, "--weights={}"]),
    ("sample", "model"): ("text", [*SAMPLE, "--grid", "new.png", "--model={}"]),
    ("sample", "ckpt"): ("checkpoint", ["sample", "--num", "4", "--grid", "new.png", "--ckpt={}"]),
    ("sample", "mix"): ("text", [*SAMPLE, "--grid", "new.png", "--mix={}"]),
    ("sample", "labels"): ("text", [*SAMPLE, "--grid", "new.png", "--labels={}"]),
    ("sample", "grid"): ("out", [*SAMPLE, "--grid={}"]),
    ("sample", "out"): ("out", [*SAMPLE, "--out={}"]),
    ("sample", "device"): ("text", [*SAMPLE, "--grid", "new.png", "--device={}"]),
    ("show", "name"): ("recipe", ["show", "{}", "--no-cost"]),
    ("show", "device"): ("text", ["show", "tiny.toml", "--device={}"]),
    ("statistics", "source"): ("source", ["statistics", "{}", "--extractor", "pixels", "--out", "new.npz"]),
    ("statistics", "extractor"): ("text", ["statistics", "images", "--out", "new.npz", "--extractor={}"]),
    ("statistics", "weights"): (
        "weights", ["statistics", "images", "--extractor", "small-cnn", "--out", "new.npz", "--weights=small-cnn={}"]
    ),
    ("statistics", "out"): ("out", [*STATISTICS, "--out={}"]),
    ("statistics", "shard"): ("text", [*STATISTICS, "--out", "new.npz", "--shard={}"]),
    ("statistics", "launcher_args"): (
        "text", [*STATISTICS, "--out", "new.npz", "--launcher", "local", "--shards", "2", "--launcher-arg={}"]
    ),
    ("statistics", "resize"): ("text", [*STATISTICS, "--out", "new.npz", "--resize={}"]),
    ("statistics", "image_labels"): ("labels", [*STATISTICS, "--out", "new.npz", "--image-labels={}"]),
    ("statistics", "latent"): ("text", [*STATISTICS, "--out", "new.npz", "--latent={}"]),
    ("statistics", "device"): ("text", [*STATISTICS, "--out", "new.npz", "--device={}"]),
    ("table", "name"): ("recipe", ["table", "{}"]),
    ("table", "dataset"): ("text", ["table", "--dataset={}"]),
    ("table", "out"): ("folder", ["table", "tiny.toml", "--out={}"]),
    ("train-classifier", "data"): ("source", ["train-classifier", "{}", "--out", "new.safetensors"]),
    ("train-classifier", "out"): ("out", ["train-classifier", "digits:train[:20]", "--out={}"]),
    ("traverse", "model"): ("text", [*TRAVERSE, "--out", "new.png", "--model={}"]),
    ("traverse", "ckpt"): ("checkpoint", ["traverse", "--out", "new.png", "--ckpt={}"]),
    ("traverse", "device"): ("text", [*TRAVERSE, "--out", "new.png", "--device={}"]),
    ("traverse", "out"): ("out", [*TRAVERSE, "--out={}"]),
    ("validate", "names"): ("recipe", ["validate", "{}"]),
}


def inputs() -> list[tuple[str, click.Parameter]]:
    """All inputs of the command line but flags, choices and numbers (which have tests of their own)."""
    numbers = click.types.IntParamType | click.types.FloatParamType
    return [
        (name, p) for name, command in cli.main.commands.items() for p in command.params
        if not (isinstance(p, click.Option) and p.is_flag) and not isinstance(p.type, click.Choice | numbers)
    ]


def test_every_input_of_every_command_has_a_row():
    assert sorted((name, p.name) for name, p in inputs()) == sorted(ROWS)


# --- Hostile values ---

SUFFIXES = {"source": [".npz", ".zip", "", ".pt", ".onnx", ".npy"], "checkpoint": [".safetensors", ".pt"],
            "weights": [".safetensors"], "result": [".json"], "baseline": [".json"], "class map": [".json"],
            "labels": [".csv"], "recipe": [".toml"], "npz": [".npz"]}
NAMES = {"escape": b"red\x1b[31m", "no-utf8": b"\xff\xfe", "newline": b"a\nb", "marks": "\u202eabc\u2028".encode()}
TEXTS = ["", " ", "x" * 5000, "\x1b[31mred", os.fsdecode(b"\xff"), "a\nb", "9" * 5000, "1e999", "%s{0}", "-1", "\u202e"]
CONTENTS = {
    "empty": b"", "text": b"no such thing\n", "not-utf8": b"\xff\xfe\x00\x01" * 9, "zeros": bytes(4096),
    "deep": b"[" * 100_000, "line": b"x" * 300_000,
}


def npy(shape: str, kind: str = "|u1", data: bytes = b"") -> bytes:
    """A .npy file whose header claims a shape."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "."), data)
    return buffer.getvalue()


def tensors(header: bytes, size: int | None = None, data: bytes = bytes(64)) -> bytes:
    """A .safetensors file with any header."""
    return struct.pack("<Q", len(header) if size is None else size) + header + data


def one_tensor(shape: str, end: str = "64") -> bytes:
    return tensors(b'{"x": {"dtype": "F32", "shape": %s, "data_offsets": [0, %s]}}' % (shape.encode(), end.encode()))


HUGE = "1" + 400 * "0"
OF_KIND = {
    ".npz": {
        "petabytes": zipped(arr_0__npy=npy("(1000000000000000, 8, 8, 1)")),
        "claims": zipped(arr_0__npy=npy("(100000000, 8, 8, 3)", data=bytes(100))),
        "huge": zipped(arr_0__npy=npy(f"({HUGE}, 8, 8, 1)")), "negative": zipped(arr_0__npy=npy("(-1, 8, 8, 1)")),
        "object": zipped(arr_0__npy=npy("(2,)", "|O", b"cos\nsystem\n(S'true'\ntR.")),
        "true": zipped(arr_0__npy=npy("(True, 8, 8, 1)", data=bytes(64))), "code": zipped(arr_0__npy=npy("(exit(),)")),
        "moments": zipped(mu__npy=npy("(3,)", "<f8", bytes(24)), sigma__npy=npy("(9000000, 9000000)", "<f8")),
        "deep": zipped(arr_0__npy=npy("(" * 200 + ")" * 200)),
    },
    ".zip": {
        "escapes": zipped(**{"..__png": b"x", "\x1b[31m__png": b"x"}), "none": zipped(),
        "bomb": zipped(a__png=bytes(1 << 27)), "texts": zipped(a__txt=b"x"),
    },
    ".safetensors": {
        "size": tensors(b"{}", 1 << 62), "size-negative": tensors(b"{}", (1 << 64) - 1), "deep": tensors(b"[" * 99_999),
        "beyond": one_tensor("[16]", "640000"), "petabytes": one_tensor("[1000000000000, 1000]", "4000000000000000"),
        "huge": one_tensor(f"[{HUGE}]"), "negative": one_tensor("[-16]"), "float": one_tensor("[1e999]"),
        "true": one_tensor("[true]", "4"), "list": tensors(b"[1]"), "overlap": one_tensor("[16]", "-64"),
        "not-utf8": tensors(b'{"\xff": 1}'), "metadata": tensors(b'{"__metadata__": {"ganbench": 3}}'),
    },
    ".csv": {
        "nul": b"file,label\n0.png\0,1\n", "digits": b"file,label\n0.png," + b"9" * 5000 + b"\n",
        "columns": b"file,label\n" + b"," * 200_000 + b"\n", "quote": b'file,label\n"' + b"x" * 200_000,
        "escape": b"file,label\nred\x1b[31m.png,1\n", "float": b"file,label\n0.png,1e999\n",
    },
    ".json": {
        "number": b"3", "infinite": b'{"measurements": 1e999}', "nan": b'{"measurements": NaN}', "list": b"[1]",
        "huge": f'{{"measurements": {HUGE}}}'.encode(), "digits": b'{"schema": ' + b"9" * 5000 + b"}",
        "twice": b'{"measurements": [], "measurements": []}',
        "deep-value": b'{"a": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    },
    ".toml": {"huge": f"name = {HUGE}".encode(), "deep": b"a = " + b"[" * 20_000, "nan": b"a = nan",
              "escape": b'name = "red \\u001b[31m"'},
    ".pt": {"zip": zipped(**{"x/data__pkl": b"cos\nsystem\n(S'true'\ntR."}), "pickle": b"\x80\x02]q\x00."},
    ".onnx": {"varint": b"\x08" + b"\xff" * 20},
    ".npy": {"images": npy("(4, 8, 8, 1)", data=bytes(256))},
}


def make_zoo(place: Path) -> dict[str, list[str]]:
    """Write all hostile files; return their names by suffix."""
    zoo = place / "zoo"
    zoo.mkdir()
    found: dict[str, list[str]] = {}
    for suffix in dict.fromkeys(s for many in SUFFIXES.values() for s in many):
        names = [f"zoo/gone{suffix}", f"zoo/{'x' * 300}{suffix}", f"zoo/empty{suffix}/beneath{suffix}"]
        for name, data in {**CONTENTS, **OF_KIND.get(suffix, {})}.items():
            if suffix or name == "text":
                (zoo / f"{name}{suffix}").write_bytes(data)
                names.append(f"zoo/{name}{suffix}")
        for data in NAMES.values():
            path = os.fsdecode(b"zoo/" + data + suffix.encode())
            (place / path).write_bytes(b"no such thing\n") if suffix else (place / path).mkdir()
            names.append(path)
        for name, make in {
            "fifo": os.mkfifo, "loop": lambda p: os.symlink(os.path.basename(p), p), "folder": os.mkdir,
            "dangling": lambda p: os.symlink("nowhere", p), "null": lambda p: os.symlink(os.devnull, p),
            "zero": lambda p: os.symlink("/dev/zero", p), "socket": _socket,
        }.items():
            make(str(zoo / f"{name}{suffix}"))
            names.append(f"zoo/{name}{suffix}")
        found[suffix] = names
    for name, make in {"with-fifo": os.mkfifo, "with-loop": lambda p: os.symlink(os.path.basename(p), p),
                       "with-socket": _socket, "with-zero": lambda p: os.symlink("/dev/zero", p)}.items():
        shutil.copytree(place / "images", zoo / name)
        make(str(zoo / name / "9.png"))
        found[""].append(f"zoo/{name}")
    (zoo / "in-a-loop").mkdir()
    (zoo / "in-a-loop" / "a").symlink_to("../in-a-loop")
    found[""] += ["zoo/in-a-loop", "zoo/folder:train", "folder:zoo/gone", "/proc/self/fd", "zoo/text:f"]
    return found


def _socket(path: str) -> None:
    here = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"/proc/self/fd/{here}/{os.path.basename(path)}")
    finally:
        os.close(here)


# These get every hostile file of their kind. The others, which share the code that reads it, get the common ones.
FIRST = {
    ("evaluate", "images"), ("evaluate", "ckpt"), ("evaluate", "weights"), ("evaluate", "image_labels"),
    ("evaluate", "class_map"), ("check", "baseline"), ("check", "results"), ("validate", "names"), ("merge", "parts"),
    ("table", "name"), ("statistics", "source"),
}
COMMON = {"gone", "empty", "text", "zeros", "fifo", "folder", "zero", "loop", "with-fifo", "claims", "deep"}
OUTS = ["", "zoo", "zoo/out-loop{}", "zoo/gone/", "zoo/text/a{}", "zoo/fifo.npz/a{}", "x" * 300 + "{}", "/dev/full/a{}",
        "zoo/out-loop.npz/a{}", "/proc/nowhere/a{}"]
ENDINGS = {"evaluate": ".json", "baseline": ".json", "check": ".xml", "merge": ".npz", "statistics": ".npz",
           "train-classifier": ".safetensors"}
FOLDERS = ["", "zoo/text", "zoo/loop", "zoo/fifo.npz", "zoo/null.npz", "x" * 300, "zoo/text/below", "/proc/nowhere"]


def values(command: str, parameter: str, kind: str, zoo: dict[str, list[str]]) -> list[str]:
    """All hostile values of one input."""
    if kind == "text":
        return TEXTS
    if kind == "folder":
        return FOLDERS[: -1 if command == "table" else None]  # which reads there, and finds nothing
    if kind == "out":
        ending = ".npz" if (command, parameter) == ("sample", "out") else ENDINGS.get(command, ".png")
        return [text.replace("{}", ending) for text in OUTS]
    paths = [name for suffix in SUFFIXES[kind] for name in zoo[suffix]]
    if (command, parameter) not in FIRST:
        paths = [path for path in paths if Path(path).stem in COMMON or not Path(path).stem.isascii()]
    return [*paths, "", TEXTS[2], TEXTS[3]]


# --- Files of which every value is replaced ---

WRONG = {"true": "true", "text": '"x"', "negative": "-1", "list": "[]", "table": "{}", "infinite": "1e999",
         "huge": HUGE, "nan": "NaN", "deep": "[" * 3000 + "]" * 3000}
NEVER = {"infinite", "huge", "nan", "deep"}  # not right anywhere


def good_result() -> dict:
    uncertainty = {"value": 0.1, "kind": "standard error", "over": "x"}
    made = Measurement("fd_pixels", "fd/1: x", "lower", 1.5, uncertainty, 10, 20, extractor={"name": "pixels"})
    data = {"kind": "dataset", "name": "digits", "count": 20, "shape": [1, 8, 8], "labels": True, "fingerprint": "a"}
    return Result(
        data, data, [made], [made], created=results.now(), recipe={"name": "tiny", "version": 1, "sha256": "a"},
        training={"steps": 6, "seconds": 1.0, "warnings": []}, environment={"torch": "2", "dirty": False}, seed=0,
    ).to_json()


def good_baseline() -> dict:
    return json.loads((ROOT / "tests/baselines/tiny-digits.json").read_text())


def replaced(value: object, where: tuple = ()) -> list[tuple[str, str]]:
    """The path and the name of the wrong value for each value below this one; of a list, for its first element."""
    found = []
    inside = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else []
    for key, inner in inside:
        path = (*where, key)
        found += [("/".join(map(str, path)), name) for name in WRONG]
        found += replaced(inner, path)
    return found


def with_wrong(value: object, path: str, name: str) -> str:
    """The JSON text with one value replaced."""
    value = json.loads(json.dumps(value))
    *way, last = path.split("/")
    inner = value
    for key in way:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    inner[int(last) if isinstance(inner, list) else last] = "@wrong@"
    return json.dumps(value).replace('"@wrong@"', WRONG[name])


def of_another_type() -> set[str]:
    """The cases in which a number, a text or a truth value is replaced by a value of another type."""
    found = set()
    for file, content in (("edit.json", good_result()), ("edit-base.json", good_baseline())):
        for path, name in replaced(content):
            value: Any = content
            for key in path.split("/"):
                value = value[int(key)] if isinstance(value, list) else value[key]
            wrong = json.loads(WRONG[name]) if name not in NEVER else None
            alike = type(wrong) is type(value) or (type(value) is float and type(wrong) is int)
            if isinstance(value, str | int | float) and name not in NEVER and not alike:
                found.add(f"{file} {path} {name}")
    return found


# --- The child process ---


class TooLong(BaseException):
    """A case that does not end."""


def stop(*_: object) -> None:
    raise TooLong


def snapshot(place: Path) -> dict[str, tuple]:
    found, folders = {}, [os.fspath(place)]
    for folder in folders:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name != "__pycache__":
                    found[entry.path] = state(entry.stat(follow_symlinks=False))
                    folders += [entry.path] * entry.is_dir(follow_symlinks=False)
    return found


def state(of: os.stat_result) -> tuple:
    folder = stat.S_ISDIR(of.st_mode)
    return (of.st_ino, of.st_mode) if folder else (of.st_ino, of.st_mode, of.st_size, of.st_mtime_ns)


def run_case(args: list[str], place: Path, streams: tuple[int, int], before: dict[str, tuple]) -> tuple[dict, dict]:
    """Run a command in this process, with its output in files. Return what it did, and the files that are there now.

    before: the files that are there.
    """
    for number in streams:
        os.ftruncate(number, 0)
        os.lseek(number, 0, os.SEEK_SET)
    began = time.process_time()
    code: object = "no exit"
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        cli.main(args, prog_name="ganbench")
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        code = traceback.format_exc()[-1500:]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    sys.stdout.flush()
    sys.stderr.flush()
    out, err = (os.pread(n, 100_000, 0).decode("utf-8", "backslashreplace") for n in streams)
    seconds, after = time.process_time() - began, snapshot(place)
    changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    for path in changed:  # the next case begins anew
        if path not in before:
            shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.unlink(path)
    after = snapshot(place) if changed else after
    return {"code": code, "out": out, "err": err, "changed": changed, "seconds": seconds}, after


def child(place: Path, report: Path, cases: dict[str, list[str]], edits: dict[str, tuple[str, str]]) -> None:
    """Run all cases, and write a line of JSON about each."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, resource.RLIM_INFINITY))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, stop)
    streams = []
    for number in (1, 2):
        file = os.open(report.parent / f"stream{number}", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        streams.append(file)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "w", errors="backslashreplace") for n in (1, 2))
    with open(report, "w") as lines:
        now = snapshot(place)
        for name, args in cases.items():
            if name in edits:
                file, text = edits[name]
                (place / file).write_text(text)
                now[os.fspath(place / file)] = state(os.lstat(place / file))
            lines.write(json.dumps({"name": name}) + "\n")
            lines.flush()
            outcome, now = run_case(args, place, (streams[0], streams[1]), now)
            lines.write(json.dumps(outcome) + "\n")
            lines.flush()


def in_a_child(
    place: Path, work: Path, cases: dict[str, list[str]], edits: dict[str, tuple[str, str]]
) -> dict[str, dict]:
    """Run the cases in a child process; return what each did, and stop the child if it takes too long."""
    report = work / "report"
    number = os.fork()
    if number == 0:
        try:
            child(place, report, cases, edits)
        except BaseException:
            with open(work / "failure", "w") as file:
                file.write(traceback.format_exc())
        finally:
            os._exit(0)
    end = time.monotonic() + ALL_SECONDS
    while time.monotonic() < end and os.waitpid(number, os.WNOHANG) == (0, 0):
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(number, signal.SIGKILL)
        os.waitpid(number, 0)
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    found = {line["name"]: outcome for line, outcome in zip(lines[::2], lines[1::2], strict=False)}
    failure = (work / "failure").read_text() if (work / "failure").exists() else ""
    missing = [name for name in cases if name not in found]
    assert not missing, f"the child ended at {missing[0]}: {failure}"
    return found


def all_cases(place: Path) -> tuple[dict[str, list[str]], dict[str, tuple[str, str]]]:
    """Write the files that the cases read. Return the arguments of each case, and the file that it needs anew."""
    for i, image in enumerate(digits("test", place, False).images[:4, 0]):
        write_png(place / "images" / f"{i}.png", image.numpy())
    (place / "labels.csv").write_text("file,label\n" + "".join(f"{i}.png,{i}\n" for i in range(4)))
    save_tiny(place / "tiny.safetensors")
    write_recipe(place)
    good, base = good_result(), good_baseline()
    (place / "good.json").write_text(json.dumps(good))
    (place / "base.json").write_text(json.dumps(base))
    np.savez(place / "moments.npz", mu=np.zeros(3), sigma=np.eye(3))
    zoo = make_zoo(place)
    for ending in (".png", ".json", ".xml", ".npz", ".safetensors"):
        link = place / f"zoo/out-loop{ending}"
        link.symlink_to(link.name)
    cases, edits = {}, {}
    for (command, parameter), (kind, args) in ROWS.items():
        for i, value in enumerate(values(command, parameter, kind, zoo)):
            filled = [arg.replace("{}", value) for arg in args]
            cases[f"{command} {parameter} {i}"] = [*filled, "--quiet"]  # a busy machine would show progress
    for file, content, args in (
        ("edit.json", good, ["check", "base.json", "edit.json"]),
        ("edit-base.json", base, ["check", "edit-base.json", "good.json"]),
    ):
        for path, name in replaced(content):
            key = f"{file} {path} {name}"
            cases[key], edits[key] = args, (file, with_wrong(content, path, name))
    for old in re.findall(r"^\w+ = .+$", RECIPE.format(name="edit"), re.MULTILINE):
        for name in WRONG:
            key = f"edit.toml {old} {name}"
            text = RECIPE.format(name="edit").replace(old, f"{old.split(' = ')[0]} = {WRONG[name].lower()}")
            cases[key], edits[key] = ["table", "edit.toml"], ("edit.toml", text)
    return cases, edits


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What each case did: by command, parameter and value, and by file and value that was replaced.

    The cases run once: the other workers of pytest-xdist wait, and read what the first one found.
    """
    several = "PYTEST_XDIST_WORKER" in os.environ
    root = tmp_path_factory.getbasetemp().parent if several else tmp_path_factory.mktemp("shared")
    file = root / "hostile.pickle"
    with open(root / "hostile.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            file.write_bytes(pickle.dumps(_outcomes(tmp_path_factory)))
        return pickle.loads(file.read_bytes())


def _outcomes(tmp_path_factory):
    place, work = tmp_path_factory.mktemp("place"), tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("GANBENCH_OFFLINE", "1")
        patch.setenv("GANBENCH_DATA", str(work / "data"))
        patch.setenv("GANBENCH_WORKERS", "0")
        patch.setattr(sys, "path", [p for p in sys.path if p])
        cases, edits = all_cases(place)
        return in_a_child(place, work, cases, edits), cases


def faults_of(outcome: dict, codes: tuple[int, ...] = (2,)) -> list[str]:
    """What is wrong about the end of a case."""
    code, err = outcome["code"], outcome["err"]
    if code not in codes:
        return [f"exit code {code}, not {codes}: {err[:300]}"]
    faults = [f"the file {path} was changed" for path in outcome["changed"] if code == 2]
    if code == 2 and not (err.startswith("ganbench: error: ") and err.count("\n") == 1):
        faults.append(f"not one line: {err[:600]}")
    if code == 2 and outcome["out"]:
        faults.append(f"stdout: {outcome['out'][:200]}")
    if len(err) > 5000 or printable(err) != err:
        faults.append(f"too long, or not printable: {err[:300]!r}")
    if outcome["seconds"] > SECONDS / 2:
        faults.append(f"{outcome['seconds']:.0f} seconds")
    return faults


@pytest.mark.parametrize(("command", "parameter"), ROWS, ids=lambda v: v)
def test_a_hostile_value_is_one_line_and_leaves_nothing(outcomes, command, parameter):
    found, cases = outcomes
    faults = []
    for name, outcome in found.items():
        if name.rpartition(" ")[0] == f"{command} {parameter}":
            faults += [f"{' '.join(cases[name])[:200]!r}: {fault}" for fault in faults_of(outcome)]
    assert not faults, "\n".join(faults)


def test_every_wrong_value_in_a_file_is_one_line(outcomes):
    found, _ = outcomes
    must_fail, faults = of_another_type(), []
    assert len(must_fail) > 200
    for name, outcome in found.items():
        if name.startswith("edit"):
            codes = (2,) if name in must_fail or name.rpartition(" ")[2] in NEVER else (0, 1, 2)
            faults += [f"{name}: {fault}" for fault in faults_of(outcome, codes)]
    assert not faults, "\n".join(faults)


def test_the_cases_are_many_and_their_time_is_bounded(outcomes):
    found, _ = outcomes
    assert len(found) > 2500
    assert sum(outcome["seconds"] for outcome in found.values()) < 120  # of the processor
