"""Progress on stderr: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LINE_EVERY_SECONDS = 10.0


class Task:
    """One piece of long work. `advance(n)` counts on; `at(count, text)` sets the count and a text about the state."""

    def __init__(self, what: str, total: int, quiet: bool):
        self.what, self.total, self.count, self.text = what, total, 0, ""
        self.quiet, self.began = quiet, time.monotonic()
        self.bar: Any = None
        self.first, self.spoke = 0, self.began
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=what, unit="", dynamic_ncols=True, leave=False, file=sys.stderr)

    def advance(self, n: int) -> None:
        self.at(self.count + n)

    def at(self, count: int, text: str = "") -> None:
        if self.count == 0 and count > 1:
            self.first = count - 1  # resumed: the rate is of what this process did
        self.count, self.text = count, text or self.text
        if self.bar is not None:
            self.bar.update(count - self.bar.n)
            if text:
                self.bar.set_postfix_str(self.text, refresh=False)
        elif not self.quiet and time.monotonic() - self.spoke > LINE_EVERY_SECONDS:
            self.spoke = time.monotonic()
            rate = (count - self.first) / (self.spoke - self.began)
            left = (self.total - count) / rate if rate > 0 else 0
            print(
                f"{self.what}: {count:,}/{self.total:,}  {rate:.1f}/s  {left / 60:.1f} min left  {self.text}",
                file=sys.stderr,
                flush=True,
            )


class Reporter:
    """Says what is going on, unless it is to be quiet. Everything goes to stderr: stdout is for the answer."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, what: str, total: int) -> Iterator[Task]:
        task = Task(what, total, self.quiet)
        try:
            yield task
        finally:
            if task.bar is not None:
                task.bar.close()

    def progress(self, what: str, total: int) -> Callable[[int], None]:
        """For the evaluation: starts a task and returns its `advance`; the bar closes when the count is full."""
        task = Task(what, total, self.quiet)

        def advance(n: int) -> None:
            task.advance(n)
            if task.count >= total and task.bar is not None:
                task.bar.close()

        return advance
