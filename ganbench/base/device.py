"""The device that computes, its name for a result, and the memory that was used."""

import os
import sys

import torch

from ganbench.base.errors import UserError


def choose_device(name: str | None) -> torch.device:
    """The device of that name; for None the accelerator if there is one, else the CPU. UserError if it is not there."""
    if name is None:
        # Under torchrun each process has an accelerator of its own.
        return (
            torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # 'meta' has no values
    except Exception as error:  # every backend has its own way to be missing
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise UserError(
            f"--device '{name}' cannot be used here ({reason}). `ganbench doctor` lists the devices."
        ) from error
    return device


def describe_device(device: torch.device) -> str:
    """'cpu (2 threads)' or the accelerator's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu ({threads} thread{'s' * (threads > 1)})" if device.type == "cpu" else str(device)


def peak_memory(device: torch.device) -> int:
    """Largest memory so far in bytes: the process's on the CPU, the allocator's on an accelerator; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows keeps no such count
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
