"""A job: one recipe and one seed, made by `ganbench reproduce RECIPE --seeds N ...` in a process of its own.

This is the side of a job: how its command is run, and how it is asked to save and end. launching.py is the side of the
process that starts jobs. SIGTERM makes a job save where it is and end with exit code 143. Before Slurm's time limit
(its signal USR2) it saves, puts itself back into the queue, and goes on from there.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

POLL_SECONDS = 0.2
SAVE_SECONDS = 60.0  # how long a job that is asked to end may take to save


@dataclass(frozen=True)
class Job:
    """One run: the recipe by the user's name for it, the seed, and the arguments of `ganbench` that make the run."""

    recipe: str
    seed: int
    args: tuple[str, ...]

    @property
    def title(self) -> str:
        """Return the job's name in messages."""
        return f"{self.recipe} seed {self.seed}"

    @property
    def command(self) -> str:
        """Return the command line as it would be typed."""
        return shlex.join(["ganbench", *self.args])


class Work:
    """One command in a process of its own. submitit keeps this object in a file and calls it in the job."""

    def __init__(self, args: tuple[str, ...], environment: dict[str, str | None] | None = None):
        self.args, self.environment = args, environment or {}
        self.asked = 0  # the signal that asked for the end; 0: none
        self.child: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        """Run the command to its end. If its exit code is not 0, the job ends with the same code."""
        environment = {k: v for k, v in {**os.environ, **self.environment}.items() if v is not None}
        # If the scheduler has started this job before, go on from there instead of beginning afresh.
        again = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
        args = [a for a in self.args if not (again and a == "--fresh")]
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        # At a terminal, Ctrl-C goes to a whole group of processes. A local job stands in a group of its own: the
        # command that waits for it tells it, once.
        local = os.environ.get("SUBMITIT_EXECUTOR") == "local"
        self.child = subprocess.Popen(
            [sys.executable, "-m", "ganbench", *args], env=environment, start_new_session=local, preexec_fn=_own_signals
        )
        while (code := self.child.poll()) is None:
            time.sleep(POLL_SECONDS)
        if code:
            raise SystemExit(128 + (self.asked or -code) if self.asked or code < 0 else code)

    def checkpoint(self) -> Any:
        """Save, and return the same work again: submitit calls this before it puts the job back into the queue."""
        from submitit.helpers import DelayedSubmission

        self._stop(signal.SIGTERM)
        until = time.monotonic() + SAVE_SECONDS
        while self.child is not None and self.child.poll() is None and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        return DelayedSubmission(Work(tuple(a for a in self.args if a != "--fresh"), self.environment))

    def _stop(self, number: int, frame: object = None) -> None:
        """Ask the command, once, to save and end.

        Use SIGINT: the scheduler may have sent SIGTERM to the command too, and the same signal twice ends it without
        saving.
        """
        if not self.asked and self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGINT)
        self.asked = self.asked or number


def _own_signals() -> None:
    """Set the signals of the new process: Ctrl-C works as usual, and submitit alone hears the scheduler's warning."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
