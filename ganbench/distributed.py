"""Several processes under torchrun: who does what, and how their rows come together in the first one.

Without torchrun there is one process, rank 0 of 1, and none of this does anything.
"""

import os

import torch
import torch.distributed as dist
from torch import Tensor


def start() -> None:
    """Join the other processes if torchrun started several. Rows are gathered on the CPU, so gloo serves everywhere."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")


def stop() -> None:
    """Leave the others, if there are any."""
    if _together():
        dist.barrier()
        dist.destroy_process_group()


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number; 0 does the arithmetic and speaks."""
    return dist.get_rank() if _together() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _together() else 1


def decide(choice: bool) -> bool:
    """What rank 0 has chosen, in every process."""
    if not _together():
        return choice
    flag = torch.tensor([int(choice)])
    dist.broadcast(flag, src=0)
    return bool(flag.item())


def first(text: str | None) -> str | None:
    """The text of the first process that has one, in every process: what went wrong in one is known to all."""
    if not _together():
        return text
    texts: list[str | None] = [None] * world_size()
    dist.all_gather_object(texts, text)
    return next((t for t in texts if t is not None), None)


def all_gather(rows: Tensor) -> Tensor:
    """Rows of all processes, in the order of their ranks, in each of them. The counts may differ.

    A process without rows may have them of any shape.
    """
    if not _together():
        return rows
    shapes: list[tuple[int, ...]] = [()] * world_size()
    dist.all_gather_object(shapes, tuple(rows.shape))
    shape = next((s[1:] for s in shapes if s[0]), tuple(rows.shape[1:]))
    padded = torch.zeros(max(s[0] for s in shapes), *shape, dtype=rows.dtype)
    if len(rows):
        padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in shapes]
    dist.all_gather(parts, padded)
    return torch.cat([part[: s[0]] for part, s in zip(parts, shapes, strict=True)])


def gather(rows: Tensor) -> Tensor:
    """Rows of all processes, in the order of their ranks, in rank 0; elsewhere what came in. The counts may differ."""
    if not _together():
        return rows
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)]))
    most = max(int(c) for c in counts)
    padded = torch.zeros(most, *rows.shape[1:], dtype=rows.dtype)
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts] if rank() == 0 else None
    dist.gather(padded, parts, dst=0)
    if parts is None:
        return rows
    return torch.cat([part[: int(c)] for part, c in zip(parts, counts, strict=True)])
