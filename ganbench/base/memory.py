"""How much memory this process may still take, and a refusal, in one line, of what needs more.

Call `require` before an allocation whose size an input decides.
"""

import os
from pathlib import Path

from ganbench.base.errors import UserError

UNKNOWN = 1 << 62  # where nothing tells the limit


def available() -> int:
    """Return the bytes that this process may still allocate: the least of free memory, cgroup limit and ulimit -v."""
    return max(0, min(_free(), _cgroup(), _address_space()))


def require(size: int, what: str) -> None:
    """Raise UserError if `size` bytes are more than is available. what: the subject of the message."""
    if size > (1 << 20) and size > (free := available()):
        raise UserError(f"{what}: {in_words(size)} of memory are needed, and {in_words(free)} are free: use fewer or "
                        "smaller ones, or a larger machine.")


def in_words(size: int) -> str:
    """Return a number of bytes for people.

    >>> in_words(1536 << 20)
    '1.5 GiB'
    """
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB")):
        if size >= 1 << (10 * power) or unit == "MiB":
            amount = size / (1 << (10 * power))
            return f"{amount:,.0f} {unit}" if amount >= 100 else f"{amount:.2g} {unit}"
    raise AssertionError


def _free() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return UNKNOWN


def _cgroup() -> int:
    """Free bytes under the limit of the control group, of version 2 or 1."""
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            return int(Path(limit).read_text()) - int(Path(used).read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return UNKNOWN


def _address_space() -> int:
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft == resource.RLIM_INFINITY:
            return UNKNOWN
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        return soft - pages * resource.getpagesize()
    except (ImportError, OSError, ValueError):
        return UNKNOWN
