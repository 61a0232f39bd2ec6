"""Several processes under torchrun: ranks, decisions, gradients, batch norm, and rows gathered from all processes.

Call `start` first and `stop` last. Without torchrun there is one process, with rank 0 and world size 1, and nothing is
exchanged. Functions that exchange values must be called by all processes in the same order.
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
    """Join the process group if torchrun started several processes.

    Gloo serves tensors on the CPU, such as gathered rows. NCCL serves tensors on GPUs, such as gradients.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        cuda = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")


def stop() -> None:
    """Wait for the other processes, then leave the process group."""
    if _is_distributed():
        dist.barrier()
        dist.destroy_process_group()


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the number of this process, from 0. Rank 0 computes metrics, writes files and prints messages."""
    return dist.get_rank() if _is_distributed() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if _is_distributed() else 1


def decide(choice: bool) -> bool:
    """Return rank 0's `choice` in every process. The call is also a barrier: no process passes before rank 0 calls."""
    if not _is_distributed():
        return choice
    flag = torch.tensor([int(choice)])
    dist.broadcast(flag, src=0)
    return bool(flag.item())


def first(text: str | None) -> str | None:
    """Return, in every process, the first text that is not None, in the order of the ranks; None if there is none.

    Use it for errors: if one process fails, all of them know the reason.
    """
    if not _is_distributed():
        return text
    texts: list[str | None] = [None] * world_size()
    dist.all_gather_object(texts, text)
    return next((t for t in texts if t is not None), None)


def from_first(value: Any) -> Any:
    """Return rank 0's `value`, any picklable object, in every process."""
    if not _is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def anybody(choice: int) -> int:
    """Return the largest `choice` of all processes in every process. Use it for a signal that any process may get."""
    if not _is_distributed():
        return choice
    flag = torch.tensor([choice])
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return int(flag.item())


def mean(values: Mapping[str, float]) -> dict[str, float]:
    """Return the mean of each value over all processes. The keys and their order must be the same in all of them."""
    if not _is_distributed():
        return dict(values)
    total = torch.tensor(list(values.values()), dtype=torch.float64)
    dist.all_reduce(total)
    return dict(zip(values, (total / world_size()).tolist(), strict=True))


# --- Training ---


def average_gradients(optimizer: Optimizer) -> None:
    """Make each step of `optimizer` use gradients averaged over all processes.

    If the loss is a mean over the batch, the average is the gradient of one process with the whole global batch. All
    gradients of a step are exchanged at once.
    """
    if not _is_distributed():
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
    """Return a version of `sample_latent` for training, in which each process gets its own rows of a global draw.

    One process alone would make the same global draw. The draws come from a new generator on the CPU, which starts
    with the current random state, so this state must be the same in all processes. The returned function has that
    generator as its attribute `shared`. A call that gives a generator is passed on unchanged.
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
    """Make every batch norm in `module` use the moments of the global batch in training mode."""
    if not _is_distributed():
        return
    for m in module.modules():
        if isinstance(m, _BatchNorm) and not isinstance(m, _GlobalMoments):
            m.__class__ = type(f"Global{type(m).__name__}", (_GlobalMoments, type(m)), {})


class _Sum(torch.autograd.Function):
    """Sum over all processes. The gradient is summed over all processes too."""

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
    """Batch norm over the global batch, of which every process holds an equal part."""

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
    """Return the rows of all processes, N x ..., in the order of the ranks, in every process.

    rows: a tensor on the CPU, n x ..., with the same dtype in all processes. n may differ between processes. Where n is
    0, the other dimensions are ignored.
    """
    if not _is_distributed():
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
    """Return the rows of all processes, N x ..., in the order of the ranks, in rank 0. Elsewhere return `rows`.

    rows: a tensor on the CPU, n x ..., with the same dtype in all processes. n may differ between processes.
    """
    if not _is_distributed():
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
