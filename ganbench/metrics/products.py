"""Matrix products of float32 rows: use a fast path only for shapes for which a trial showed that it is exact.

A fast path can be wrong for some shapes and right for all others, and a process can lower the precision of float32
products (TF32, bfloat16). Neither may change a result:

- `keeps_digits` tries a fast path once for each shape, on whole numbers. Their product is the same in any order of
  summation, so that the trial has no tolerance.
- `product` and `blas_product` compute in float64 if the process lowers the precision of float32 products.

The trial does not need a second product: with whole-number vectors l and r, C = A B' gives l' C = (l' A) B' and
C r = A (B' r), in float64 without rounding (Freivalds, 1977). The entries of l and r are odd, so that a single wrong
entry of C is always detected.
"""

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Multiply = Callable[[Tensor, Tensor], Tensor]  # N x d and M x d -> N x M

LARGE = 1 << 20  # multiplications; smaller products gain nothing from oneDNN
PERIOD = 65_521  # length of the repeated random sequence; a prime, so that rows differ
ROWS = 1024  # rows of a float64 copy at a time, to bound the memory
MODES = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")  # oneDNN's own settings of the precision


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return a b' for N x d and M x d of one floating dtype: N x M, by oneDNN if it keeps all digits of float32.

    On some processors oneDNN is up to three times as fast as the BLAS that `torch.mm` calls.
    """
    n, m, d = len(a), len(b), a.shape[1]
    if (
        a.dtype == torch.float32
        and n * m * d > LARGE
        and torch.backends.mkldnn.is_available()
        and not float32_is_lowered()
        and keeps_digits(_one_dnn, n, m, d, torch.float32)
    ):
        return _one_dnn(a, b)
    return blas_product(a, b)


def blas_product(a: Tensor, b: Tensor) -> Tensor:
    """Return a b' for N x d and M x d of one floating dtype: N x M, with all digits of float32 in any process."""
    if a.dtype == torch.float32 and float32_is_lowered():
        exact = a.double()
        return torch.cat([F.linear(exact, part.double()).float() for part in b.split(ROWS)], 1)
    return F.linear(a, b)


def float32_is_lowered() -> bool:
    """Return True if the process lowers the precision of float32 products on the CPU."""
    if any(os.environ.get(mode, "STRICT").upper() not in ("", "STRICT") for mode in MODES):
        return True
    matmul: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if matmul is not None:  # torch 2.9 and later
        return matmul.fp32_precision not in ("none", "ieee")
    return torch.get_float32_matmul_precision() != "highest"


def _one_dnn(a: Tensor, b: Tensor) -> Tensor:
    dense: Tensor = F.linear(a.to_mkldnn(), b.to_mkldnn()).to_dense()
    return dense


# --- The trial


def keeps_digits(multiply: Multiply, n: int, m: int, d: int, dtype: torch.dtype) -> bool:
    """Return True if `multiply` is exact on whole numbers of this shape: N x d and M x d, float32 or int8.

    Return False if it raises an error. The operands are row-major. The result is cached for each shape and number of
    threads.
    """
    return _keeps_digits(multiply, n, m, d, dtype, torch.get_num_threads())


@cache
def _keeps_digits(multiply: Multiply, n: int, m: int, d: int, dtype: torch.dtype, threads: int) -> bool:
    a, b = _bytes(n, m, d) if dtype == torch.int8 else _wide(n, m, d)
    left, right = (2 * torch.randint(-8, 8, (k,), generator=_generator(k)).double() + 1 for k in (n, m))
    try:
        c = multiply(a, b)
    except (AttributeError, RuntimeError, TypeError):  # not in this torch, or on this processor
        return False
    return (
        c.shape == (n, m)
        and torch.equal(_from_left(left, c), _from_right(b, _from_left(left, a)))
        and torch.equal(_from_right(c, right), _from_right(a, _from_left(right, b)))
    )


def _wide(n: int, m: int, d: int) -> tuple[Tensor, Tensor]:
    """Whole numbers in float32, N x d and M x d, up to 2^20 in size, whose sums of products are at most 2^24 in size.

    Even columns of a and odd columns of b have many digits; the other columns are -1, 0 or 1.
    """
    size = torch.full((d,), min(2**20, 2**23 // max(d, 1)), dtype=torch.float32)
    size[:8] = 2**20
    even = torch.arange(d) % 2 == 0
    a = _noise(n, d, 0).mul_(torch.where(even, size, 1.0)).round_()
    b = _noise(m, d, 1).mul_(torch.where(even, 1.0, size)).round_()
    return a, b


def _bytes(n: int, m: int, d: int) -> tuple[Tensor, Tensor]:
    """int8 N x d and M x d, a third of it extreme values; the first two rows are all -128 and all 127.

    Extreme values detect instructions that sum pairs of products in 16 bits, where they overflow.
    """
    a, b = (_noise(k, d, seed).mul_(200).round_().clamp_(-128, 127).to(torch.int8) for seed, k in enumerate((n, m)))
    for x in (a, b):
        x[:1], x[1:2] = -128, 127
    return a, b


def _noise(rows: int, d: int, seed: int) -> Tensor:
    """Uniform in [-1, 1], float32 rows x d."""
    sequence = torch.rand(PERIOD, generator=_generator(seed)) * 2 - 1
    return sequence.repeat(-(-rows * d // PERIOD))[: rows * d].view(rows, d)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _from_right(x: Tensor, v: Tensor) -> Tensor:
    """x v in float64."""
    return torch.cat([part.double() @ v for part in x.split(ROWS)])


def _from_left(v: Tensor, x: Tensor) -> Tensor:
    """v' x in float64."""
    total = torch.zeros(x.shape[1], dtype=torch.float64)
    for weights, part in zip(v.split(ROWS), x.split(ROWS), strict=True):
        total += weights @ part.double()
    return total
