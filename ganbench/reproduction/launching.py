"""Launching: the runs of a plan as jobs, on this machine or by Slurm, through submitit.

Each job's output lies in `<out>/jobs/`. jobs.py is what runs inside a job.
"""

import importlib.util
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ganbench.base.errors import UserError
from ganbench.base.files import require_writable
from ganbench.reproduction.jobs import POLL_SECONDS, SAVE_SECONDS, Job, Work

TELL_EVERY_SECONDS = 30.0
DEFAULTS: dict[str, dict[str, Any]] = {
    "local": {"timeout_min": 60 * 24 * 365},
    "slurm": {"timeout_min": 60 * 24},
}
REQUEUES = 1000  # a long run may go through a short queue as often as it needs to


class Stopped(Exception):
    """Somebody asked this process to end. It has told the jobs, and they have saved where they were."""

    def __init__(self, signum: int):
        super().__init__("interrupted; the jobs have saved where they were")
        self.signum = signum


def run_locally(
    jobs: list[Job], out: Path, parameters: dict[str, Any], at_once: int | None, say: Callable[[str], None]
) -> dict[Job, str]:
    """Run the jobs on this machine, and wait; return the reasons of those that failed.

    parameters: of submitit. at_once: how many run at a time; None: one. Raises UserError as `make_executor` does,
    before anything is written, and Stopped.
    """
    executor = make_executor("local", _folder(out), parameters, at_once)
    own_gpus = any(key.endswith("gpus_per_node") for key in parameters)
    return run(jobs, executor, at_once or 1, own_gpus, say)


def submit_to_slurm(jobs: list[Job], out: Path, parameters: dict[str, Any], at_once: int | None) -> list[str]:
    """Submit the jobs to Slurm, and return their ids without waiting.

    parameters: of submitit. at_once: how many run at a time; None: no limit. Raises UserError as `make_executor` and
    `submit` do.
    """
    return submit(jobs, make_executor("slurm", _folder(out), parameters, at_once))


def _folder(out: Path) -> Path:
    """The folder of jobs below a folder of results. Raises UserError if it cannot be written."""
    require_writable(out / "jobs" / "log", "--out")
    return out / "jobs"


def parse_args(items: tuple[str, ...]) -> dict[str, Any]:
    """Return parameters of submitit from KEY=VALUE; a value is JSON (a number, true, a list), or text.

    Raises UserError for any other form, and for a key that is given twice.
    """
    found: dict[str, Any] = {}
    for item in items:
        key, given, text = item.partition("=")
        if not given or not key.isidentifier():
            raise UserError(f"--launcher-arg '{item}': write KEY=VALUE, as in slurm_partition=gpu or timeout_min=600.")
        if key in found:
            raise UserError(f"--launcher-arg {key} is given twice.")
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = text
    return found


def make_executor(launcher: str, folder: Path, parameters: dict[str, Any], at_once: int | None) -> Any:
    """Return submitit's executor with these parameters, which keeps its files in `folder`.

    Raises UserError if there is no submitit or no Slurm, and if submitit refuses a parameter; nothing is written then.
    """
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--launcher {launcher} needs submitit, which is not installed: pip install 'ganbench[launch]'."
        ) from error
    import logging

    logging.getLogger("submitit").setLevel(logging.CRITICAL)  # it writes to stdout
    parameters = {**DEFAULTS[launcher], "name": "ganbench", **parameters}
    if launcher == "slurm" and at_once is not None:
        parameters["slurm_array_parallelism"] = at_once

    try:
        with tempfile.TemporaryDirectory() as trial:  # submitit makes its folder before it looks at the parameters
            _make(launcher, Path(trial), parameters)
    except RuntimeError as error:
        raise UserError(f"--launcher {launcher} cannot be used here: {_first_line(error)}") from error
    return _make(launcher, folder, parameters)


def check_parameters(parameters: dict[str, Any]) -> None:
    """Raise UserError if submitit refuses a parameter, with or without Slurm. Without submitit, nothing is checked."""
    if importlib.util.find_spec("submitit") is not None:
        with tempfile.TemporaryDirectory() as trial:
            _make("debug", Path(trial), parameters)


def _make(cluster: str, folder: Path, parameters: dict[str, Any]) -> Any:
    """Return submitit's executor. Raises UserError for a parameter that it refuses, and RuntimeError without Slurm."""
    import submitit

    made = submitit.AutoExecutor(folder=folder, cluster=cluster, slurm_max_num_timeout=REQUEUES)
    try:
        made.update_parameters(**parameters)
    except (NameError, AssertionError, ValueError, TypeError) as error:
        raise UserError(f"--launcher-arg: submitit refuses it: {_first_line(error)}") from error
    return made


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".") + "."


def submit(jobs: list[Job], executor: Any) -> list[str]:
    """Hand the jobs to Slurm, several as one array, and return their ids without waiting.

    Raises UserError, with the words of sbatch, if they are not taken.
    """
    if not jobs:
        return []
    try:
        return [j.job_id for j in executor.submit_array([Work(job.args) for job in jobs])]
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        said = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise UserError(f"the jobs were not submitted: {said[-1]}.") from error


def run(jobs: list[Job], executor: Any, at_once: int, own_gpus: bool, say: Callable[[str], None]) -> dict[Job, str]:
    """Run the jobs on this machine, at most `at_once` at a time, and wait; return the reasons of those that failed.

    own_gpus: submitit gives each job its accelerators; False: each job gets one that this process sees, the one with
    the fewest jobs. SIGINT and SIGTERM raise Stopped after the jobs have saved.
    """
    environment: dict[str, str | None] = {}
    if not own_gpus:  # submitit would hide all accelerators
        environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [] if own_gpus else accelerators()
    busy: dict[Job, str] = {}
    if at_once > 1 and "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // at_once))
    waiting, failed = list(jobs), dict[Job, str]()
    running: dict[Job, tuple[Any, float]] = {}
    told = time.monotonic()
    with _asked_to_stop() as asked:
        while (waiting or running) and not asked:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                if gpus:
                    busy[job] = min(gpus, key=[*busy.values()].count)
                    environment = {**environment, "CUDA_VISIBLE_DEVICES": busy[job]}
                with _ctrl_c_ignored():
                    running[job] = executor.submit(Work(job.args, environment)), time.monotonic()
                number = len(jobs) - len(waiting)
                say(f"[{number}/{len(jobs)}] {job.title}: begun, {running[job][0].paths.stderr}")
            time.sleep(POLL_SECONDS)
            tell = time.monotonic() - told > TELL_EVERY_SECONDS
            told = time.monotonic() if tell else told
            for job, (handle, began) in list(running.items()):
                if not handle.done():
                    if tell:
                        say(f"{job.title}: {_last_line(handle.paths.stderr)}")
                    continue
                del running[job]
                busy.pop(job, None)
                ended = "done"
                if not handle.paths.result_pickle.exists():
                    failed[job] = _last_line(handle.paths.stderr) or f"see {handle.paths.stderr}"
                    ended = "failed"
                say(f"{job.title}: {ended} after {(time.monotonic() - began) / 60:.1f} min")
        if asked:
            handles = [handle for handle, _ in running.values()]
            for handle in handles:
                if not handle.done():
                    os.kill(int(handle.job_id), signal.SIGTERM)  # a local job's id is its process id
            until = time.monotonic() + SAVE_SECONDS
            while not all(handle.done() for handle in handles) and time.monotonic() < until:
                time.sleep(POLL_SECONDS)
            raise Stopped(asked[0])
    return failed


def accelerators() -> list[str]:
    """Return the accelerators that this process sees, as CUDA_VISIBLE_DEVICES names them; none is touched."""
    import torch

    seen = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in named.split(",")] if named else [str(i) for i in range(seen)]
    return names[:seen]


def _last_line(path: Path) -> str:
    """The last line of a job's stderr, without the program's name; '' if there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    last = next((line for line in reversed(lines) if line.strip()), "").strip()
    return last.removeprefix("ganbench: ").removeprefix("error: ").removeprefix("training failed: ")


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """Start child processes that ignore Ctrl-C: the waiting parent forwards the stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """Collect the signals that ask for an end, instead of ending."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, lambda number, frame: asked.append(number))
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
