"""Run the speed benchmarks and print the table of ratios: `python -m benchmarks.speed [--out docs/speed.md]`.

Each part runs in a process of its own, so that nothing a peer leaves behind (gradients switched off, threads, memory)
reaches the next one. `python -m benchmarks.speed PART` is such a process: it prints its rows as JSON, one on a line.
"""

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from benchmarks.speed import Row, run

HERE = Path(__file__).parent
PARTS = sorted(p.stem for p in HERE.glob("*.py") if not p.stem.startswith("_"))
ABOUT = """# Speed, beside other tools

Written by `python -m benchmarks.speed` (`pip install -e '.[bench]'`). Ours and theirs run in turn in one process on the
same inputs, and the outcomes are compared first; seconds are medians, the ratio is the median over rounds of theirs
over ours, with its extremes. Absolute figures move from machine to machine. MiB: what the memory grew by meanwhile.
"""
HEAD = "| what | ours | beside | theirs | ratio | goal | ours, MiB | theirs, MiB |\n|---|---|---|---|---|---|---|---|"
PROSE = "\n## "  # of the page: the first heading below the table, written by hand


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


def print_rows(part: str) -> None:
    """Run a part in this process and print its rows on stdout, as JSON; all other output goes to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        for case in importlib.import_module(f"benchmarks.speed.{part}").cases():
            for row in run(case):
                print(json.dumps(asdict(row)), file=out, flush=True)


def run_part(part: str, show: Callable[[Row], None]) -> bool:
    """Run a part in a process of its own and show each row when it comes; return False if the process fails."""
    command = [sys.executable, "-m", "benchmarks.speed", part]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        assert process.stdout is not None
        for text in process.stdout:
            show(Row(**json.loads(text)))
    return process.returncode == 0


def write(out: Path, lines: list[str]) -> None:
    """Write the page, and keep the prose below the table of an earlier one."""
    _, heading, prose = (out.read_text(encoding="utf-8") if out.exists() else "").partition(PROSE)
    out.write_text("\n".join(lines) + "\n" + heading + prose, encoding="utf-8")


def machine() -> str:
    """The processor, the number of threads and the version of torch."""
    import torch

    name = platform.processor()
    if sys.platform == "linux":
        models = [t for t in Path("/proc/cpuinfo").read_text().splitlines() if t.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> int:
    """Return the exit code: 1 if a part failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("part", nargs="?", choices=PARTS, help="run this part in this process; print its rows as JSON")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--out", type=Path, help="also write the table to this file; its prose is kept")
    options = parser.parse_args()
    if options.part:
        print_rows(options.part)
        return 0
    lines = [ABOUT, machine(), "", HEAD]
    print("\n".join(lines[1:]), flush=True)

    def show(row: Row) -> None:
        lines.append(line(row))
        print(lines[-1], flush=True)

    failed = [part for part in options.only or PARTS if not run_part(part, show)]
    if options.out:
        write(options.out, lines)
    if failed:
        print(f"These parts failed, and rows of theirs are missing: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
