"""Keep standard output for the answer while code of the user runs."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def user_code() -> Iterator[None]:
    """Send to stderr whatever is printed to stdout within this context, by Python or by a library in C.

    `--json` on stdout thus stays JSON whatever a callable or a plugin prints.
    """
    try:
        sys.stdout.flush()
        _flush()
        os.fstat(2)  # else the copy of 1 would take its place
        kept = os.dup(1)
        os.dup2(2, 1)
    except (OSError, ValueError, AttributeError):  # stdout or stderr is closed: there is nothing to keep clean
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            yield
        return
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _flush()
        os.dup2(kept, 1)
        os.close(kept)


def _flush() -> None:
    """Write what Python's first stdout and C's stdio still hold, while it goes to stderr."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.__stdout__.flush()  # type: ignore[union-attr]
    with contextlib.suppress(OSError, AttributeError, TypeError):  # TypeError: there is no such library on Windows
        ctypes.CDLL(None).fflush(None)
