"""Many runs as jobs of their own, on this machine or by Slurm, through submitit.

A job is one recipe and one seed: `ganbench reproduce RECIPE --seeds N ...` in a process of its own, whose output lies
in `<out>/jobs/`. SIGTERM makes a job save where it is and end with 143. Before Slurm's time limit (its signal USR2) it
saves and puts itself back into the queue, and goes on from there.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ganbench.base.errors import UserError

POLL_SECONDS = 0.2
TELL_EVERY_SECONDS = 30.0
SAVE_SECONDS = 60.0  # how long a job that is asked to end may take to save
DEFAULTS: dict[str, dict[str, Any]] = {
    "local": {"timeout_min": 60 * 24 * 365},
    "slurm": {"timeout_min": 60 * 24},
}
REQUEUES = 1000  # a long run may go through a short queue as often as it needs to


class Stopped(Exception):
    """Somebody asked this process to end. The jobs have been told, and have saved where they were."""

    def __init__(self, signum: int):
        super().__init__("interrupted; the jobs have saved where they were")
        self.signum = signum


@dataclass(frozen=True)
class Job:
    """One run: the recipe as a user names it, the seed, and the arguments of `ganbench` that make it."""

    recipe: str
    seed: int
    args: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.recipe} seed {self.seed}"

    @property
    def command(self) -> str:
        """As it would be typed."""
        return shlex.join(["ganbench", *self.args])


class Work:
    """What submitit keeps in a file and calls in the job: one command, in a process of its own."""

    def __init__(self, args: tuple[str, ...], environment: dict[str, str | None] | None = None):
        self.args, self.environment = args, environment or {}
        self.asked = 0
        self.child: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        """Run the command to its end; where that is not 0 the job ends with the same code."""
        environment = {k: v for k, v in {**os.environ, **self.environment}.items() if v is not None}
        # A job that the scheduler has started before goes on from there instead of beginning afresh.
        again = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
        args = [a for a in self.args if not (again and a == "--fresh")]
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        # At a terminal, Ctrl-C is for the command that waits: it tells the jobs, once.
        local = os.environ.get("SUBMITIT_EXECUTOR") == "local"
        self.child = subprocess.Popen(
            [sys.executable, "-m", "ganbench", *args], env=environment, start_new_session=local, preexec_fn=_own_signals
        )
        while (code := self.child.poll()) is None:
            time.sleep(POLL_SECONDS)
        if code:
            raise SystemExit(128 + (self.asked or -code) if self.asked or code < 0 else code)

    def checkpoint(self) -> Any:
        """What submitit asks for before it puts the job back into the queue: save, and the same again."""
        from submitit.helpers import DelayedSubmission

        self._stop(signal.SIGTERM)
        until = time.monotonic() + SAVE_SECONDS
        while self.child is not None and self.child.poll() is None and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        return DelayedSubmission(Work(tuple(a for a in self.args if a != "--fresh"), self.environment))

    def _stop(self, number: int, frame: object = None) -> None:
        """Ask the command, once, to save and end.

        By SIGINT: a scheduler may have sent it SIGTERM too, and the same signal twice ends it without saving.
        """
        if not self.asked and self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGINT)
        self.asked = self.asked or number


def _own_signals() -> None:
    """In the new process: Ctrl-C as usual, and deaf to the scheduler's warning, which is for submitit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def parse_args(items: tuple[str, ...]) -> dict[str, Any]:
    """Parameters of submitit from KEY=VALUE; a value is JSON (a number, true, a list), or text."""
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
    """submitit's executor with these parameters. Raises UserError where there is no submitit, no Slurm, or where it
    refuses a parameter; then nothing has been written."""
    try:
        import submitit
    except ImportError as error:
        raise UserError(
            f"--launcher {launcher} needs submitit, which is not installed: pip install 'ganbench[launch]'."
        ) from error
    import logging
    import tempfile

    logging.getLogger("submitit").setLevel(logging.CRITICAL)  # its words would stand between ours on stdout
    parameters = {**DEFAULTS[launcher], "name": "ganbench", **parameters}
    if launcher == "slurm" and at_once is not None:
        parameters["slurm_array_parallelism"] = at_once

    def make(where: Path) -> Any:
        made = submitit.AutoExecutor(folder=where, cluster=launcher, slurm_max_num_timeout=REQUEUES)
        made.update_parameters(**parameters)
        return made

    try:
        with tempfile.TemporaryDirectory() as nowhere:  # it makes its folder before it looks at its parameters
            make(Path(nowhere))
    except RuntimeError as error:
        raise UserError(f"--launcher {launcher} cannot be used here: {_first_line(error)}") from error
    except (NameError, AssertionError, ValueError, TypeError) as error:
        raise UserError(f"--launcher-arg: submitit refuses it: {_first_line(error)}") from error
    return make(folder)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".") + "."


def submit(jobs: list[Job], executor: Any) -> list[str]:
    """Hand the jobs to Slurm, several as one array. Returns their ids, and does not wait."""
    if not jobs:
        return []
    try:
        return [j.job_id for j in executor.submit_array([Work(job.args) for job in jobs])]
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        said = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise UserError(f"the jobs were not submitted: {said[-1]}.") from error


def run(jobs: list[Job], executor: Any, at_once: int, own_gpus: bool, say: Callable[[str], None]) -> dict[Job, str]:
    """Run the jobs on this machine, at most `at_once` at a time, and wait. Returns the reasons of those that failed.

    own_gpus: submitit gives each job its accelerators; otherwise each has one of those that this process sees, the one
    with the fewest jobs. SIGINT and SIGTERM raise Stopped, once the jobs have saved.
    """
    environment: dict[str, str | None] = {}
    if not own_gpus:  # submitit would hide them all
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
                with _deaf_to_ctrl_c():
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
                    os.kill(int(handle.job_id), signal.SIGTERM)  # of a local job the id is that of its process
            until = time.monotonic() + SAVE_SECONDS
            while not all(handle.done() for handle in handles) and time.monotonic() < until:
                time.sleep(POLL_SECONDS)
            raise Stopped(asked[0])
    return failed


def accelerators() -> list[str]:
    """Those that this process sees, as CUDA_VISIBLE_DEVICES names them; none is touched."""
    import torch

    seen = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in named.split(",")] if named else [str(i) for i in range(seen)]
    return names[:seen]


def _last_line(path: Path) -> str:
    """The last line of a job's stderr, without the name of the program."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    last = next((line for line in reversed(lines) if line.strip()), "").strip()
    return last.removeprefix("ganbench: ").removeprefix("error: ").removeprefix("training failed: ")


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """What is started here inherits that Ctrl-C is not for it: who waits for it tells it."""
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
    """Signals that asked for an end."""
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
