"""Several processes under torchrun: ranks, decisions, gradients, batch norm, and rows gathered from all processes.

Call `start` first and `stop` last. Without torchrun there is one process, with rank 0 and world size 1, and nothing is
exchanged. Functions that exchange values must be called by all processes in the same order.

The processes may wait for each other as long as all of them live: rank 0 may compute a metric for an hour. Each one
counts up a heartbeat every few seconds; if one is silent for longer than GANBENCH_TIMEOUT, the others end and name it.
"""

import contextlib
import hashlib
import json
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import Store
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from ganbench.base.errors import UserError

PATIENCE_SECONDS = 600.0  # default of GANBENCH_TIMEOUT: how long a silent process is waited for
BEAT_SECONDS = 2.0
TELL_AFTER_SECONDS = 5.0  # of waiting for the others to start
# Of one exchange, in which the others may wait while rank 0 computes. It ends a run whose processes have lost step.
EXCHANGE = timedelta(days=1)

_watch: "_Watch | None" = None


def start() -> None:
    """Join the process group if torchrun started several processes.

    Gloo serves tensors on the CPU, such as gathered rows. NCCL serves tensors on GPUs, such as gradients.
    Raises UserError if the environment does not say where the others are, and if they do not come.
    """
    global _watch
    if several() and not dist.is_initialized():
        patience = _patience()
        where, rank, world = _address(), _number("RANK", None, 0, _world_size() - 1), _world_size()
        store = _join(rank, world, where, patience)
        _watch = _Watch(_connect(where, BEAT_SECONDS * 5), rank, world, patience)
        _watch.start()
        cuda = torch.cuda.is_available() and dist.is_nccl_available()
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=EXCHANGE)


def stop() -> None:
    """Wait for the other processes, then leave the process group."""
    global _watch
    if _is_distributed():
        dist.barrier()
        if _watch is not None:
            _watch.leave()
            _watch = None
        dist.destroy_process_group()


def several() -> bool:
    """Return True if the environment says that this is one of several processes. They need not have joined yet."""
    return _world_size() > 1


def _number(name: str, default: int | None, least: int, most: int) -> int:
    """Return a whole number from the environment. Raises UserError for anything else."""
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal() or len(text) > 9 or not least <= int(text) <= most:
        raise UserError(
            f"{name}={text} in the environment must be a whole number from {least} to {most}: start with torchrun."
        )
    return int(text)


def _world_size() -> int:
    return _number("WORLD_SIZE", 1, 1, 10**6)


def _address() -> tuple[str, int]:
    """Return host and port of the store through which the processes find each other. Raises UserError if unknown."""
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        world = _world_size()
        raise UserError(
            f"WORLD_SIZE={world} says that this is one of {world} processes, but the environment has no "
            f"{' and no '.join(missing)}: start with torchrun, or unset WORLD_SIZE."
        )
    return os.environ["MASTER_ADDR"], _number("MASTER_PORT", None, 1, 65535)


def _patience() -> float:
    """Return GANBENCH_TIMEOUT, in seconds. Raises UserError if it is no number of seconds."""
    text = os.environ.get("GANBENCH_TIMEOUT")
    if not text:
        return PATIENCE_SECONDS
    with contextlib.suppress(ValueError):
        seconds = float(text)
        if math.isfinite(seconds) and 1 <= seconds <= 10**6:
            return seconds
    raise UserError(f"GANBENCH_TIMEOUT={text} must be a number of seconds, 1 to 1,000,000: correct it, or unset it.")


def _connect(where: tuple[str, int], seconds: float, server: bool = False) -> Store:
    """Return a new connection to the store of these processes. Raises OSError or RuntimeError if there is none in time.

    server: this process serves the store.
    """
    host, port = where
    if server:
        socket.getaddrinfo(host, port)
    else:  # torch would print a stack of calls for each attempt that fails
        socket.create_connection(where, timeout=seconds).close()
    store = dist.TCPStore(
        host, port, is_master=server, timeout=timedelta(seconds=seconds), wait_for_workers=False, multi_tenant=True
    )
    run, attempt = (os.environ.get(f"TORCHELASTIC_{name}", "") for name in ("RUN_ID", "RESTART_COUNT"))
    return dist.PrefixStore(f"ganbench/{run}/{attempt}", store)


def _join(rank: int, world: int, where: tuple[str, int], patience: float) -> Store:
    """Return the store, once all processes have come. Raises UserError if they have not after `patience` seconds."""
    began, told, store, come = time.monotonic(), False, None, 0
    served_by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    while store is None or come < world:
        waited = time.monotonic() - began
        at = f"at {where[0]}:{where[1]} (MASTER_ADDR, MASTER_PORT)"
        who = f"{world - come} of {world} processes" if store is not None else "rank 0"
        if waited > patience:
            raise UserError(
                f"{waited:.0f} seconds have passed {at}, and {who} did not come: start all of them, with torchrun."
            )
        if waited > TELL_AFTER_SECONDS and not told:
            print(f"ganbench: rank {rank} waits {at} for {who}.", file=sys.stderr, flush=True)
            told = True
        try:
            if store is None:
                server = rank == 0 and not served_by_torchrun
                store = _connect(where, min(2.0, patience), server)
                store.add("come", 1)
            come = store.add("come", 0)
        except (OSError, RuntimeError) as error:
            if rank == 0 and not served_by_torchrun:
                reason = str(error).partition("\n")[0].rstrip(".")
                raise UserError(f"this process cannot serve the others {at}: {reason}. Correct the address.") from error
        time.sleep(0.05)
    store.set_timeout(EXCHANGE)
    return store


class _Watch(threading.Thread):
    """Counts up the heartbeat of this process, and ends this process if that of another one stands still."""

    def __init__(self, store: Store, rank: int, world: int, patience: float):
        super().__init__(daemon=True, name="heartbeat")
        self.store, self.own, self.world, self.patience = store, rank, world, patience
        self.left = threading.Event()

    def run(self) -> None:
        """Beat and look at the others until this process leaves."""
        seen, since = [-1] * self.world, [time.monotonic()] * self.world
        while not self.left.wait(min(BEAT_SECONDS, self.patience / 4)):
            try:
                self.store.add(f"beat {self.own}", 1)
                beats = [self.store.add(f"beat {rank}", 0) for rank in range(self.world)]
            except (OSError, RuntimeError):  # the store has ended, and with it the process that served it
                return
            now = time.monotonic()
            for rank, beat in enumerate(beats):
                if beat != seen[rank]:
                    seen[rank], since[rank] = beat, now
                elif now - since[rank] > self.patience and not self.left.is_set():
                    report_failure(
                        f"rank {rank} has been silent for {now - since[rank]:.0f} seconds: its process is stopped, or "
                        "its machine cannot be reached. GANBENCH_TIMEOUT sets how long is waited.",
                        lambda line: print(f"ganbench: error: {line}", file=sys.stderr, flush=True), named=True,
                    )
                    os._exit(2)  # the main thread may wait in an exchange for ever

    def leave(self) -> None:
        """Beat no more: the others leave too. A thread that still used the store when Python ends would abort it."""
        self.left.set()
        if threading.current_thread() is not self:
            self.join(self.patience)


def report_failure(reason: str, say: Callable[[str], None], named: bool = False) -> None:
    """Tell why this process fails: one process says it, by `say`, and the others are silent.

    The first failure counts: a connection that another process closed is no reason. The line names the rank, unless all
    processes fail for the same reason or it is `named` already. torchrun shows the same line at the end of its own
    report, whichever process it looks at. Call it right before the process ends.
    """
    line = reason if named or "RANK" not in os.environ else f"rank {os.environ['RANK']}: {reason}"
    # torchrun ends the other processes as soon as one has ended. This one ends by itself, with its own exit code.
    if "TORCHELASTIC_ERROR_FILE" in os.environ and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        store, world = _connect(_address(), 2.0), _world_size()
        first = store.compare_set("failure", "", reason).decode() == reason
        count = f"failures {hashlib.sha256(reason.encode()).hexdigest()}"
        if not first or store.add(count, 1) > 1:
            if _wait(3.0, lambda: store.check(["said"])):
                _write_error_file(store.get("said").decode(), later=1)
            return
        if not named and _wait(1.0, lambda: store.add(count, 0) == world):
            line = reason
    except (OSError, RuntimeError, UserError):  # nobody can be asked
        store = None
    _write_error_file(line)
    say(line)
    if store is not None:
        with contextlib.suppress(OSError, RuntimeError):
            store.set("said", line)


def _wait(seconds: float, until: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not (done := until()) and time.monotonic() < end:
        time.sleep(0.02)
    return done


def _write_error_file(line: str, later: int = 0) -> None:
    """Write the reason where torchrun looks for it.

    torchrun shows the file of the earliest failure among the processes that have ended when it looks: any of them may
    be alone. later: seconds by which this failure follows from that of another process.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        extra = {"py_callstack": line, "timestamp": str(int(time.time()) + later)}
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": {"message": line, "extraInfo": extra}}, file)


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


def gather_objects(value: Any) -> list[Any]:
    """Return the values of all processes, picklable objects, in the order of the ranks, in every process."""
    if not _is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
