"""The device that computes: choose it, describe it in a result, measure the memory that it used."""

import os
import sys

import torch

from ganbench.base.errors import UserError


def choose_device(name: str | None) -> torch.device:
    """Return the device with this name. For None, return the GPU if there is one, otherwise the CPU.

    Raises UserError if the device cannot be used here.
    """
    if name is None:
        # Under torchrun, each process takes the GPU with its local rank.
        return (
            torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # fails on 'meta', whose tensors have no values
    except Exception as error:  # backends that are missing raise errors of many types
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise UserError(
            f"--device '{name}' cannot be used here ({reason}). `ganbench doctor` lists the devices."
        ) from error
    return device


def describe_device(device: torch.device) -> str:
    """Return the device's name for a result: "cpu (2 threads)", or the GPU's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu ({threads} thread{'s' * (threads > 1)})" if device.type == "cpu" else str(device)


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process so far, in bytes, or 0 if unknown.

    On a CUDA device it is the peak of torch's allocator, otherwise the peak resident memory of the process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows has no such module
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, KiB elsewhere
    return peak if sys.platform == "darwin" else peak * 1024
