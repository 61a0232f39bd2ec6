"""`python -m benchmarks.speed [FILE ...] [--out docs/speed.md]`: run the benchmarks and print the table of ratios."""

import argparse
import importlib
import platform
import sys
from pathlib import Path

import torch

from benchmarks.speed import Row, run

HERE = Path(__file__).parent
FILES = sorted(p.stem for p in HERE.glob("*.py") if not p.stem.startswith("_"))
ABOUT = """# Speed, beside other tools

Written by `python -m benchmarks.speed` (`pip install -e '.[bench]'`). Ours and theirs run in turn in one process on the
same inputs, and the outcomes are compared first; seconds are medians, the ratio is the median over rounds of theirs
over ours, with its extremes. Absolute figures move from machine to machine. MiB: what the memory grew by meanwhile.
"""
HEAD = "| what | ours | beside | theirs | ratio | goal | ours, MiB | theirs, MiB |\n|---|---|---|---|---|---|---|---|"


def line(row: Row) -> str:
    """One row as Markdown."""
    ours = f"{seconds(row.ours)}" + (f" ({row.rate})" if row.rate else "")
    goal = "" if row.goal is None else f"{row.goal:g}{'' if row.ratio >= row.goal else ' (missed)'}"
    ratio = f"{row.ratio:.2f} ({row.lowest:.2f} to {row.highest:.2f})"
    return (f"| {row.title} | {ours} | {row.peer} | {seconds(row.theirs)} | {ratio} | {goal} "
            f"| {row.ours_mib:,.0f} | {row.theirs_mib:,.0f} |")


def seconds(value: float) -> str:
    """A time to three digits."""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("files", nargs="*", choices=[*FILES, []], help=f"of {', '.join(FILES)}; default: all")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    machine = f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    lines = [ABOUT, machine, "", HEAD]
    print("\n".join(lines[1:]), flush=True)
    for name in options.files or FILES:
        for case in importlib.import_module(f"benchmarks.speed.{name}").cases():
            for row in run(case):
                lines.append(line(row))
                print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def processor() -> str:
    """The processor's name."""
    if sys.platform == "linux":
        for text in Path("/proc/cpuinfo").read_text().splitlines():
            if text.startswith("model name"):
                return text.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
