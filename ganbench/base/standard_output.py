"""Keep standard output for the answer while code of the user runs."""

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
        kept = os.dup(1)
        os.dup2(2, 1)
    except (OSError, ValueError, AttributeError):  # stdout or stderr is closed: there is nothing to keep clean
        with redirect_stdout(sys.stderr):
            yield
        return
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
