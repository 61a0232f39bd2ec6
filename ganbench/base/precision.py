"""Full float32 precision for measurements: some devices and settings compute in TF32 or bfloat16.

Put a measurement inside `with full_float32():`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Environment variables that allow oneDNN to round its inputs.
MODES = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 products and convolutions in full precision within this context, then restore the settings.

    TF32 and bfloat16 are switched off. If an environment variable makes oneDNN round its inputs, torch cannot forbid
    it. In this case, torch's own convolutions replace those of oneDNN.
    """
    backends: Any = torch.backends
    onednn_rounds = any(os.environ.get(mode, "STRICT").upper() not in ("", "STRICT") for mode in MODES)
    onednn_enabled = getattr(backends.mkldnn, "enabled", True)
    new = hasattr(backends.mkldnn, "matmul")  # torch 2.9 and later: one setting per backend and operation
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
        if onednn_rounds:
            backends.mkldnn.enabled = False
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            # "none" inherits the more general setting. Keep it if this gives the old value, which was then inherited.
            place.fp32_precision = "none"
            if place.fp32_precision != value:
                place.fp32_precision = value
        if not new:
            torch.set_float32_matmul_precision(products)
            backends.cudnn.allow_tf32 = convolutions
        if onednn_rounds:
            backends.mkldnn.enabled = onednn_enabled
