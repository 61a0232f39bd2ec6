"""Progress and messages on stderr, so that stdout holds only the answer.

A `Reporter` prints messages and starts tasks. A task shows a progress bar on a terminal, and otherwise prints a line
every ten seconds, with the rate and the time left.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ganbench.base.errors import printable

LINE_EVERY_SECONDS = 10.0
BAR_WITHOUT_TIME_LEFT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"  # of tqdm
FIRST_LINE_SECONDS = 1.5  # so that a long silence is never the first thing that is seen


class Task:
    """Progress of one piece of long work.

    what: what is done, for the display. total: number of items. quiet: show nothing.
    The rate counts from the first report on. That report may hold the work of earlier sessions, in a resumed run.
    changes: counts at which the work for an item changes. The rate then counts from the last of them on, and the time
    left is that to the next one, because nothing is known of the items beyond it.
    """

    def __init__(self, what: str, total: int, quiet: bool, changes: Sequence[int] = ()):
        self.what, self.total, self.count, self.text = what, total, 0, ""
        self.changes = [*(count for count in sorted(changes) if 0 < count < total), total]
        self.quiet, self.last_line = quiet, time.monotonic() - max(LINE_EVERY_SECONDS - FIRST_LINE_SECONDS, 0.0)
        self.first: tuple[float, int] | None = None  # time and count of the first report
        self.bar: Any = None
        if not quiet and sys.stderr.isatty():
            from tqdm import tqdm

            form = None if self.changes == [total] else BAR_WITHOUT_TIME_LEFT
            self.bar = tqdm(
                total=total, desc=what, unit="", dynamic_ncols=True, leave=False, file=sys.stderr, bar_format=form
            )

    def advance(self, n: int) -> None:
        """Add n items to the count."""
        self.at(self.count + n)

    def at(self, count: int, text: str = "") -> None:
        """Set the number of items done, and a text about the state. An empty text keeps the last one."""
        now = time.monotonic()
        passed = any(self.count < change <= count for change in self.changes[:-1])
        self.count, self.text = count, text or self.text
        if passed and self.first is not None:
            self.first = now, count
        if self.first is None:
            self.first = now, count
            if self.bar is not None:
                self.bar.initial = self.bar.n = self.bar.last_print_n = count
                self.bar.start_t = self.bar.last_print_t = time.time()
        if self.bar is not None:
            self.bar.update(count - self.bar.n)
            if text:
                self.bar.set_postfix_str(self.text, refresh=False)
        elif not self.quiet and now - self.last_line > LINE_EVERY_SECONDS:
            self.last_line = now
            print(printable(self.line(now)), file=sys.stderr, flush=True)

    def line(self, now: float) -> str:
        """Return the state in one line. now: the monotonic time."""
        began, before = self.first or (now, self.count)
        done, words = self.count - before, [f"{self.what}: {self.count:,}/{self.total:,}"]
        if done > 0 and now > began:
            rate = done / (now - began)
            end = next((change for change in self.changes if change > self.count), self.total)
            beyond = "" if end == self.total else f" to {end:,}"
            words += [f"{rate:.1f}/s", f"{(end - self.count) / rate / 60:.1f} min left{beyond}"]
        return "  ".join([*words, self.text]).rstrip()


class Reporter:
    """Prints messages and progress to stderr. quiet: print nothing."""

    def __init__(self, quiet: bool = False):
        self.quiet = quiet

    def say(self, text: str) -> None:
        """Print a message; a file name in it may hold any characters."""
        if not self.quiet:
            print(printable(text), file=sys.stderr, flush=True)

    @contextmanager
    def task(self, what: str, total: int, changes: Sequence[int] = ()) -> Iterator[Task]:
        """Yield a task of `total` items, and close its bar in the end. changes: see `Task`."""
        task = Task(what, total, self.quiet, changes)
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
