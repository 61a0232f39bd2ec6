"""Decode many image files in processes of their own, in order, ahead of the reader.

Each of `workers()` threads feeds one process (`ganbench.data.decoder`). A chunk is decoded while the network computes,
and its pixels are read from a pipe straight into a tensor. Values do not depend on the number of workers. With 0
workers, images are decoded in the process of the caller.
"""

import contextlib
import math
import mmap
import os
import subprocess
import sys
import threading
import zipfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from ganbench.base.errors import UserError
from ganbench.data.decoder import receive, send
from ganbench.data.decoding import Array, Decoding, File, decode_all

VARIABLE = "GANBENCH_WORKERS"
MOST = 256  # processes
CHUNK_BYTES, CHUNK_FILES = 4 << 20, 128  # of pixels and images that one task decodes at most
AHEAD = 2  # chunks that each worker may be ahead of the reader


def workers() -> int:
    """Return the number of decoding processes: GANBENCH_WORKERS (`--workers`) if it is set, else the usable cores.

    Under torchrun, the cores are shared by the local processes. Raises UserError for a value that is no number.
    """
    text = os.environ.get(VARIABLE, "")
    if text:
        if not text.isdecimal() or len(text) > 4 or int(text) > MOST:
            raise UserError(f"{VARIABLE}={text[:20]}: give a whole number of 0 to {MOST}.")
        return int(text)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    here = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, cores // max(1, int(here) if here.isdecimal() else 1))


def decode_files(
    files: Sequence[File], how: Decoding, shape: tuple[int, int, int], first: str, parallel: int | None = None
) -> Iterator[Tensor]:
    """Yield the pixels of the files in their order, in chunks: uint8 n x C x H x W.

    shape: (C, H, W) that every image must have. first: the file of which that shape is. parallel: processes; None takes
    `workers()`. Raises UserError for the first file that cannot be decoded, and if a process is killed.
    """
    c, h, w = shape
    size = max(1, min(CHUNK_FILES, CHUNK_BYTES // (c * h * w)))
    chunks = [files[i : i + size] for i in range(0, len(files), size)]
    number = min(workers() if parallel is None else parallel, len(chunks))
    if not number:
        archives: dict[str, zipfile.ZipFile] = {}
        for chunk in chunks:
            pixels = _buffer((len(chunk), *shape))
            decode_all(list(chunk), how, (h, w, c), first, pixels, archives)
            yield torch.from_numpy(pixels)
        return
    with _Pool(number) as pool:
        waiting: deque[Future[Array]] = deque()
        for chunk in chunks:
            waiting.append(pool.submit(list(chunk), how, shape, first))
            if len(waiting) > AHEAD * number:
                yield torch.from_numpy(waiting.popleft().result())
        while waiting:
            yield torch.from_numpy(waiting.popleft().result())


class _Pool:
    """Threads that each own a process. Leaving the context kills the processes, whatever they are doing."""

    def __init__(self, number: int):
        self.threads = ThreadPoolExecutor(number, thread_name_prefix="decoder")
        self.own = threading.local()
        self.lock = threading.Lock()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.closed = False

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.closed = True
            processes = list(self.processes)
        for process in processes:
            process.kill()
        self.threads.shutdown(wait=True, cancel_futures=True)
        for process in processes:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # what was still to be written is of no use now
                        pipe.close()
            process.wait()

    def submit(self, files: list[File], how: Decoding, shape: tuple[int, int, int], first: str) -> "Future[Array]":
        return self.threads.submit(self._decode, files, how, shape, first)

    def _process(self) -> "subprocess.Popen[bytes]":
        """The process of this thread, started when it is first needed."""
        process: subprocess.Popen[bytes] | None = getattr(self.own, "process", None)
        if process is None:
            with self.lock:
                if self.closed:
                    raise UserError("reading was stopped.")
                process = subprocess.Popen(
                    [sys.executable, "-m", "ganbench.data.decoder"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    env=_environment(),
                )
                self.processes.append(process)
            self.own.process = process
        return process

    def _decode(self, files: list[File], how: Decoding, shape: tuple[int, int, int], first: str) -> Array:
        process, (c, h, w) = self._process(), shape
        assert process.stdin is not None
        assert process.stdout is not None
        pixels = _buffer((len(files), *shape))
        try:
            send(process.stdin, (files, how, (h, w, c), first))
            problem = receive(process.stdout)
            if problem is not None:
                raise UserError(problem)
            if process.stdout.readinto(pixels.data.cast("B")) < pixels.nbytes:  # type: ignore[attr-defined]
                raise EOFError
        except (EOFError, OSError) as error:
            code = process.wait()
            how_it_ended = f"was killed by signal {-code}, perhaps because memory ran out" if code < 0 else (
                f"ended with code {code}")
            raise UserError(
                f"a process that decodes images {how_it_ended}, at {files[0].name}: try fewer with --workers."
            ) from error
        return pixels


def _buffer(shape: tuple[int, ...]) -> Array:
    """An array with pages of its own, which go back to the system with it.

    The allocator of C keeps what threads allocate and another one frees: gigabytes for images of 512 pixels.
    """
    return np.frombuffer(mmap.mmap(-1, math.prod(shape)), np.uint8).reshape(shape)


def _environment() -> dict[str, str]:
    """The environment of a decoder: the modules that this process sees, and one thread."""
    path = os.pathsep.join(p or os.curdir for p in sys.path)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
