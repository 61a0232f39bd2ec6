"""Several processes under torchrun: who does what, and how their rows, gradients and moments come together.

Without torchrun there is one process, rank 0 of 1, and none of this does anything.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer


def start() -> None:
    """Join the other processes if torchrun started several. Rows are gathered on the CPU, gradients where they are."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        cuda = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")


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


def from_first(value: Any) -> Any:
    """Rank 0's value, in every process."""
    if not _together():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def anybody(choice: int) -> int:
    """The largest choice of all processes, in each of them."""
    if not _together():
        return choice
    flag = torch.tensor([choice])
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return int(flag.item())


def mean(values: Mapping[str, float]) -> dict[str, float]:
    """The mean over all processes of numbers that each of them has."""
    if not _together():
        return dict(values)
    total = torch.tensor(list(values.values()), dtype=torch.float64)
    dist.all_reduce(total)
    return dict(zip(values, (total / world_size()).tolist(), strict=True))


# --- Training ---


def average_gradients(optimizer: Optimizer) -> None:
    """Before each step of `optimizer`, its gradients become their means over all processes, in one exchange.

    A loss that is a mean over the batch then has the gradient that one process would have with the whole batch.
    """
    if not _together():
        return

    def average(opt: Optimizer, *_: object) -> None:
        grads = [p.grad for group in opt.param_groups for p in group["params"] if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        flat /= world_size()
        for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            g.copy_(part.view_as(g))

    optimizer.register_step_pre_hook(average)


def own_part(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A `sample_latent` for training: each process gets its rows of what one process would have drawn.

    The draws come from a generator that goes on from the present random state, alike in all processes. Where a
    generator is given, nothing changes.
    """
    shared = torch.Generator()
    shared.set_state(torch.get_rng_state())

    def sample_latent(n: int, generator: torch.Generator | None = None) -> Tensor:
        if generator is not None:
            return draw(n, generator)
        return draw(n * world_size(), shared)[rank() * n :][:n]

    sample_latent.shared = shared  # type: ignore[attr-defined]
    return sample_latent


def share_moments(module: nn.Module) -> None:
    """Let every batch norm in `module` use the moments of the global batch while it trains."""
    if not _together():
        return
    for m in module.modules():
        if isinstance(m, _BatchNorm) and not isinstance(m, _GlobalMoments):
            m.__class__ = type(f"Global{type(m).__name__}", (_GlobalMoments, type(m)), {})


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.clone()
        dist.all_reduce(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad


class _GlobalMoments(_BatchNorm):
    """Batch norm over the parts of a batch that all processes hold, equal in size."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training or self.running_mean is None):
            return super().forward(x)
        dims = [d for d in range(x.ndim) if d != 1]
        n = x.numel() // x.shape[1] * world_size()
        h = x if x.dtype == torch.float64 else x.float()
        mean = _Sum.apply(h.sum(dims)) / n
        shape = [1, -1] + [1] * (x.ndim - 2)
        centred = h - mean.view(shape)
        var = _Sum.apply(centred.square().sum(dims)) / n
        if self.training and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            with torch.no_grad():
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(var * n / (n - 1), momentum)
        out = centred * (var + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)


# --- Rows ---


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
