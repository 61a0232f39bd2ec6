"""Speed of ganbench beside its peers: both run in turn in one process, and only the ratio counts.

`python -m benchmarks.speed` runs all parts and prints the table of `docs/speed.md`. A part is a file beside this one.
It has `cases()`, a generator of `Case`, so that the data of one case is freed before the next.
"""

import os
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Case:
    """One comparison. ours, peers: calls to be timed, on the same inputs. unit: the things that `count` counts.

    goals: the ratio to reach, by peer. repeats: interleaved rounds, whose median counts. agree: raises AssertionError
    if the outcomes differ from each other, since a fast wrong answer is no answer.
    """

    title: str
    ours: Callable[[], object]
    peers: dict[str, Callable[[], object]]
    goals: dict[str, float] = field(default_factory=dict)
    repeats: int = 5
    warm_up: int = 1
    count: int = 0
    unit: str = ""
    agree: Callable[[object, dict[str, object]], None] | None = None


@dataclass
class Row:
    """One line of the table. seconds: medians. ratio: median over rounds of theirs / ours, with its extremes."""

    title: str
    peer: str
    ours: float
    theirs: float
    ratio: float
    lowest: float
    highest: float
    goal: float | None
    ours_mib: float
    theirs_mib: float
    rate: str = ""


class Peak:
    """Largest growth of this process's memory within the context, in MiB: sampled, because memory is also freed."""

    def __enter__(self) -> "Peak":
        self.mib, self._open, self._base = 0.0, True, self._now()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        self._thread.join()

    def _now(self) -> float:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def _watch(self) -> None:
        while self._open:
            self.mib = max(self.mib, self._now() - self._base)
            time.sleep(0.002)


def run(case: Case) -> list[Row]:
    """Time a case in rounds, in which ours and each peer run once: one row for each peer."""
    calls = {"ours": case.ours, **case.peers}
    outcomes = {name: call() for name, call in calls.items() for _ in range(max(case.warm_up, 1))}
    if case.agree:
        ours = outcomes.pop("ours")
        case.agree(ours, outcomes)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    memory = dict.fromkeys(calls, 0.0)
    for _ in range(case.repeats):
        for name, call in calls.items():
            with Peak() as peak:
                began = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - began)
            memory[name] = max(memory[name], peak.mib)
    ours = statistics.median(seconds["ours"])
    rows = []
    for name in case.peers:
        ratios = [theirs / own for theirs, own in zip(seconds[name], seconds["ours"], strict=True)]
        theirs = statistics.median(seconds[name])
        rate = f"{case.count / ours:,.0f} {case.unit}/s" if case.count else ""
        rows.append(Row(case.title, name, ours, theirs, statistics.median(ratios), min(ratios), max(ratios),
                        case.goals.get(name), memory["ours"], memory[name], rate))
    return rows
