"""How much memory this process may still take, and a refusal, in one line, of what needs more.

Call `require` before an allocation whose size an input decides.
"""

import contextlib
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
            return f"{amount:,.0f} {unit}" if amount >= 99.5 else f"{amount:.2g} {unit}"
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


def _cgroup(mounted: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Free bytes under the least limit of this process's control groups, of version 2 or 1, up to the root.

    A job of a scheduler has its limit in a group far below the root. Pages of files that nobody uses count as free.
    mounted: the folder of all groups. own: the file that names this process's groups.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        lines = []
    groups = [(mounted, "memory.max", "memory.current", "inactive_file", "")]
    groups += [(mounted / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "")]
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if not controllers:
            groups.append((*groups[0][:4], path))
        elif "memory" in controllers.split(","):
            groups.append((*groups[1][:4], path))
    free = UNKNOWN
    for root, limit, used, reclaimable, path in groups:
        folder = root / path.lstrip("/")
        while folder == root or root in folder.parents:
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                most, now = (int((folder / name).read_text()) for name in (limit, used))
                with contextlib.suppress(OSError, ValueError, KeyError):
                    counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                    now -= int(counts[reclaimable])
                free = min(free, most - now)
            folder = folder.parent
    return free


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
