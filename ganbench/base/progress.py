"""Progress and messages on stderr, so that stdout holds only the answer.

A `Reporter` prints messages and starts tasks. A task shows a progress bar on a terminal, and otherwise prints a line
every ten seconds, with the rate and the time left.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ganbench.base.errors import printable

LINE_EVERY_SECONDS = 10.0


class Task:
    """Progress of one piece of long work.

    what: what is done, for the display. total: number of items. quiet: show nothing.
    """

    def __init__(self, what: str, total: int, quiet: bool):
        self.what, self.total, self.count, self.text = what, total, 0, ""
        self.quiet, self.began = quiet, time.monotonic()
        self.bar: Any = None
        self.count_before, self.last_line = 0, self.began
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=what, unit="", dynamic_ncols=True, leave=False, file=sys.stderr)

    def advance(self, n: int) -> None:
        """Add n items to the count."""
        self.at(self.count + n)

    def at(self, count: int, text: str = "") -> None:
        """Set the number of items done, and a text about the state. An empty text keeps the last one."""
        if self.count == 0 and count > 1:
            self.count_before = count - 1  # a resumed run: the rate counts only the work of this process
        self.count, self.text = count, text or self.text
        if self.bar is not None:
            self.bar.update(count - self.bar.n)
            if text:
                self.bar.set_postfix_str(self.text, refresh=False)
        elif not self.quiet and time.monotonic() - self.last_line > LINE_EVERY_SECONDS:
            self.last_line = time.monotonic()
            rate = (count - self.count_before) / (self.last_line - self.began)
            left = (self.total - count) / rate if rate > 0 else 0
            print(
                f"{self.what}: {count:,}/{self.total:,}  {rate:.1f}/s  {left / 60:.1f} min left  {self.text}",
                file=sys.stderr,
                flush=True,
            )


class Reporter:
    """Prints messages and progress to stderr. quiet: print nothing."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet

    def say(self, text: str) -> None:
        """Print a message; a file name in it may hold any characters."""
        if not self.quiet:
            print(printable(text), file=sys.stderr, flush=True)

    @contextmanager
    def task(self, what: str, total: int) -> Iterator[Task]:
        """Yield a task of `total` items, and close its bar in the end."""
        task = Task(what, total, self.quiet)
        try:
            yield task
        finally:
            if task.bar is not None:
                task.bar.close()

    def progress(self, what: str, total: int) -> Callable[[int], None]:
        """Start a task of `total` items and return its `advance`. The bar closes when all items are done."""
        task = Task(what, total, self.quiet)

        def advance(n: int) -> None:
            task.advance(n)
            if task.count >= total and task.bar is not None:
                task.bar.close()

        return advance
