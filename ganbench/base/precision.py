"""float32 that is float32: what a measurement needs, and what accelerators do not give by themselves."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Within it float32 products keep all their digits, whatever the process has allowed (TF32, bfloat16 inside)."""
    backends: Any = torch.backends
    places: list[tuple[Any, str, Any]]
    if hasattr(backends.cudnn, "conv"):  # torch 2.9 and later
        places = [(p, "fp32_precision", "ieee") for p in (
            backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv
        )]
    else:
        places = [(backends.cuda.matmul, "allow_tf32", False), (backends.cudnn, "allow_tf32", False)]
    before = [(place, field, getattr(place, field)) for place, field, _ in places]
    try:
        for place, field, value in places:
            setattr(place, field, value)
        yield
    finally:
        for place, field, value in before:
            setattr(place, field, value)
