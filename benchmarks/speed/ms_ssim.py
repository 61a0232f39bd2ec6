"""MS-SSIM of pairs of colour images beside pytorch-msssim, piq and torchmetrics.

pytorch-msssim and piq agree with ours if the window fits all five scales: from 176 px. torchmetrics agrees on one
channel only, because it averages over the channels before it multiplies the scales. Below 176 px each package computes
another measure, and values are not compared. pytorch-msssim then refuses; piq and torchmetrics get as many scales as
they accept, which is less work than our five.
"""

from collections.abc import Callable, Iterator

import piq
import pytorch_msssim
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as torchmetrics_ms_ssim

from benchmarks.speed import Case
from ganbench.metrics.ms_ssim import WEIGHTS, ms_ssim

PAIRS = 64


def cases() -> Iterator[Case]:
    """Yield 64 pairs of an image and its noisy copy, at 256, 128, 64 and 32 px; each package gets its own input."""
    torch.set_grad_enabled(False)
    for side, scales in ((256, 5), (128, 4), (64, 3), (32, 2)):
        a, b = pairs(side)
        x, y = a.float(), b.float()
        weights = WEIGHTS[:scales]
        peers: dict[str, Callable[[], Tensor]] = {}
        if side >= 176:
            peers["pytorch-msssim"] = lambda x=x, y=y: pytorch_msssim.ms_ssim(x, y, data_range=255, size_average=False)
        peers[f"piq, {scales} scales"] = lambda x=x, y=y, w=weights: piq.multi_scale_ssim(
            x, y, data_range=255.0, scale_weights=torch.tensor(w), reduction="none"
        )
        peers[f"torchmetrics, {scales} scales"] = lambda x=x, y=y, w=weights: torchmetrics_ms_ssim(
            x, y, data_range=255.0, betas=w, reduction="none"
        )
        yield Case(
            f"MS-SSIM, {side} px, {PAIRS} pairs", lambda a=a, b=b: ms_ssim(a, b), peers,
            goals=dict.fromkeys(peers, 2 if side >= 128 else 1), repeats=3, count=PAIRS, unit="pairs",
            agree=agree if side >= 176 else None,
        )


def pairs(side: int) -> tuple[Tensor, Tensor]:
    """Draw images, uint8 64 x 3 x side x side, and noisy copies of them."""
    g = torch.Generator().manual_seed(side)
    a = F.interpolate(torch.rand(PAIRS, 3, 7, 7, generator=g) * 255, (side, side), mode="bicubic")
    b = a + 40 * torch.randn(a.shape, generator=g)
    return a.round().clamp(0, 255).to(torch.uint8), b.round().clamp(0, 255).to(torch.uint8)


def agree(ours: object, theirs: dict[str, object]) -> None:
    """Require equal values to 1e-4, since the peers compute in float32; torchmetrics averages in another order."""
    assert isinstance(ours, Tensor)
    for name, values in theirs.items():
        assert isinstance(values, Tensor)
        error = (ours - values.double()).abs().max().item()
        assert error < (2e-3 if name.startswith("torchmetrics") else 1e-4), f"{name}: {error:.1e}"
