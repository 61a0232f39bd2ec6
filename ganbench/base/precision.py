"""Float32 with all its digits: measurements need it, and some devices and settings give less."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

MODES = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")  # oneDNN's own settings of the digits it keeps


@contextmanager
def full_float32() -> Iterator[None]:
    """Keep all digits of float32 products and convolutions within this context, and restore the settings afterwards.

    TF32 and bfloat16 that the process allows are switched off. If the environment makes oneDNN round its inputs, which
    torch cannot forbid, torch's own convolutions take its place.
    """
    backends: Any = torch.backends
    rounds = any(os.environ.get(mode, "STRICT").upper() not in ("", "STRICT") for mode in MODES)
    onednn = getattr(backends.mkldnn, "enabled", True)
    new = hasattr(backends.mkldnn, "matmul")  # torch 2.9 and later
    places = [backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv] if new else []
    before = [place.fp32_precision for place in places]
    products, convolutions = ("highest", False) if new else (
        torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    )
    try:
        for place in places:
            place.fp32_precision = "ieee"
        if not new:
            torch.set_float32_matmul_precision("highest")
            backends.cudnn.allow_tf32 = False
        if rounds:
            backends.mkldnn.enabled = False
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = "none"  # follows the settings above it, as it did if that gives the same value
            if place.fp32_precision != value:
                place.fp32_precision = value
        if not new:
            torch.set_float32_matmul_precision(products)
            backends.cudnn.allow_tf32 = convolutions
        if rounds:
            backends.mkldnn.enabled = onednn
