"""Products of float32 keep all digits: broken fast paths are found out, and lowered precision is not used."""

import contextlib

import pytest
import torch
from support import ROOT, process

from ganbench.metrics import kernel, manifold, products, sliced_wasserstein
from ganbench.metrics.products import blas_product, keeps_digits, product

SHAPES = [(1, 1, 1), (3, 5, 1), (1, 40, 7), (64, 1, 8), (33, 17, 9), (300, 257, 100), (40, 30, 3000), (5, 2, 70_000)]
LARGE = (150, 100, 90)  # more multiplications than products.LARGE


@pytest.fixture(autouse=True)
def no_answers_kept():
    yield
    products._keeps_digits.cache_clear()


def rows(n, m, d, dtype=torch.float32):
    g = torch.Generator().manual_seed(n + m + d)
    return torch.randn(n, d, generator=g).to(dtype), torch.randn(m, d, generator=g).to(dtype)


def error(ours, a, b):
    """Relative to the norms of the rows, as rounding errors are."""
    norms = a.double().norm(dim=1)[:, None] * b.double().norm(dim=1)
    return ((ours.double() - a.double() @ b.double().T).abs() / norms).max().item()


def exactly(a, b):
    return (a.double() @ b.double().T).to(torch.int32 if a.dtype == torch.int8 else a.dtype)


def rounded(x, bits):
    """Float32 with `bits` binary digits: 8 as in bfloat16, 11 as in TF32."""
    mantissa, exponent = torch.frexp(x.double())
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent).float()


# --- The trial


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_right_product_passes_the_trial(shape, dtype):
    assert keeps_digits(exactly, *shape, dtype) is True


@pytest.mark.parametrize("shape", SHAPES)
def test_blas_passes_the_trial_because_any_order_of_summation_is_exact(shape):
    a, b = products._wide(*shape)
    assert torch.equal(a, a.round())
    assert torch.equal(b, b.round())
    assert (a.double().abs() @ b.double().abs().T).max() <= 2**24
    assert torch.equal(a @ b.T, exactly(a, b))
    assert keeps_digits(lambda a, b: a @ b.T, *shape, torch.float32) is True
    assert keeps_digits(lambda a, b: a.flip(1) @ b.flip(1).T, *shape, torch.float32) is True


def test_the_trial_of_bytes_contains_all_pairs_of_extreme_rows():
    for x in products._bytes(6, 7, 500):
        assert (x[0] == -128).all()
        assert (x[1] == 127).all()
        assert 0.2 < (x[2:] == -128).float().mean() + (x[2:] == 127).float().mean() < 0.5
        assert len(x.unique()) > 200


@pytest.mark.parametrize("bits", [8, 11, 16])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("shape", [(3, 5, 2), (33, 17, 9), (300, 257, 100), (40, 30, 3000), (5, 2, 70_000)])
def test_fewer_digits_on_either_side_fail_the_trial(shape, side, bits):
    def multiply(a, b):
        a, b = (rounded(a, bits), b) if side == "left" else (a, rounded(b, bits))
        return exactly(a, b)

    assert keeps_digits(multiply, *shape, torch.float32) is False


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
@pytest.mark.parametrize("shape", [(64, 48, 7), (1, 48, 64), (64, 1, 64), (300, 257, 100)])
def test_one_wrong_entry_at_any_place_fails_the_trial(shape, dtype):
    n, m, _ = shape
    for i, j in ((0, 0), (n - 1, m - 1), (n // 2, 0), (0, m // 2)):
        def multiply(a, b, i=i, j=j):
            c = exactly(a, b)
            c[i, j] += 1
            return c

        assert keeps_digits(multiply, *shape, dtype) is False


@pytest.mark.parametrize("fault", [
    lambda c: c.flip(0), lambda c: c.flip(1), lambda c: c[:, :-1], lambda c: c.T, lambda c: c * float("nan"),
    lambda c: torch.zeros_like(c), lambda c: c.clamp(-(2**15), 2**15 - 1),
])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_entries_in_the_wrong_place_missing_or_saturated_fail_the_trial(fault, dtype):
    assert keeps_digits(lambda a, b: fault(exactly(a, b)), 30, 40, 50, dtype) is False


@pytest.mark.parametrize("kind", [AttributeError, NotImplementedError, RuntimeError, TypeError])
def test_a_product_that_raises_fails_the_trial(kind):
    def multiply(a, b):
        raise kind("not in this build")

    assert keeps_digits(multiply, 3, 4, 5, torch.float32) is False


def test_each_shape_and_number_of_threads_is_tried_once(monkeypatch):
    calls = []

    def multiply(a, b):
        calls.append((*a.shape, len(b)))
        return exactly(a, b)

    for shape in ((3, 4, 5), (3, 4, 5), (3, 4, 6), (3, 4, 5)):
        keeps_digits(multiply, *shape, torch.float32)
    assert calls == [(3, 5, 4), (3, 6, 4)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    keeps_digits(multiply, 3, 4, 5, torch.float32)
    assert len(calls) == 3


# --- What is used


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [*SHAPES, LARGE])
def test_products_equal_float64(shape, dtype):
    a, b = rows(*shape, dtype)
    limit = {torch.float32: 1e-6, torch.float64: 1e-15}[dtype]
    for multiply in (product, blas_product):
        c = multiply(a, b)
        assert c.dtype == dtype
        assert c.shape == shape[:2]
        assert error(c, a, b) < limit


def test_a_fast_path_is_used_if_it_is_exact_and_the_product_is_large(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(products, "_one_dnn", lambda a, b: calls.append(len(a)) or exactly(a, b))
    product(*rows(*LARGE))
    assert len(calls) == 2  # once to try the shape, once to use it
    product(*rows(*LARGE))
    assert len(calls) == 3
    product(*rows(20, 20, 20))
    product(*rows(*LARGE, torch.float64))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    product(*rows(*LARGE))
    assert len(calls) == 3


@pytest.mark.parametrize("fault", [
    lambda a, b, c: c.index_fill(1, torch.tensor([7]), 0.0),  # one column
    lambda a, b, c: c if len(b) % 16 == 0 else c + 1,  # shapes that are not multiples of 16
    lambda a, b, c: exactly(rounded(a, 8), rounded(b, 8)),
])
def test_a_wrong_fast_path_never_changes_a_product(monkeypatch, fault):
    a, b = rows(*LARGE)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(products, "_one_dnn", lambda a, b: fault(a, b, exactly(a, b)))
    assert error(product(a, b), a, b) < 1e-6


@contextlib.contextmanager
def lowered(how):
    """The process allows bfloat16 inside float32 products."""
    backends = torch.backends
    if how == "set_float32_matmul_precision":
        torch.set_float32_matmul_precision("medium")
    elif not hasattr(backends.mkldnn, "matmul"):
        pytest.skip("torch before 2.9 has one setting")
    else:
        {"all": backends, "oneDNN": backends.mkldnn.matmul}[how].fp32_precision = "bf16"
    try:
        yield
    finally:
        if how == "all":
            backends.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
        if hasattr(backends.mkldnn, "matmul"):
            backends.mkldnn.matmul.fp32_precision = "none"


@pytest.mark.parametrize("how", ["set_float32_matmul_precision", "all", "oneDNN"])
@pytest.mark.parametrize("shape", [(30, 20, 50), LARGE])
def test_lower_precision_set_by_the_process_is_not_used(shape, how):
    a, b = rows(*shape)
    with lowered(how):
        assert products.float32_is_lowered()
        assert error(product(a, b), a, b) < 1e-6
        assert error(blas_product(a, b), a, b) < 1e-6
    assert not products.float32_is_lowered()


@pytest.mark.parametrize("value", [
    lambda a, b: kernel.kernel_distance(a, b).mean(),
    lambda a, b: torch.tensor(kernel.mmd_rbf(a, b)),
    lambda a, b: torch.tensor(manifold.precision(a, b)),
    lambda a, b: sliced_wasserstein(a, b[:200], torch.Generator().manual_seed(0), 2, 16)[0].mean(),
])
def test_metrics_are_the_same_in_a_process_that_allows_fewer_digits(value):
    real, fake = rows(200, 210, 300)
    expected = value(real, fake * 1.1)
    with lowered("set_float32_matmul_precision"):
        assert value(real, fake * 1.1).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("mode", products.MODES)
def test_lower_precision_set_for_onednn_by_the_environment_is_not_used(mode):
    code = (
        "import torch; from ganbench.metrics import products as p\n"
        "a, b = torch.randn(150, 90), torch.randn(100, 90)\n"
        "exact = a.double() @ b.double().T\n"
        "print(p.float32_is_lowered(), *((f(a, b) - exact).norm() / exact.norm() < 1e-6 for f in (p.product, "
        "p.blas_product)), *((f(a[:1], b) - exact[:1]).norm() < 1e-4 for f in (p.product, p.blas_product)))"
    )
    done = process("-c", code, cwd=ROOT, OMP_NUM_THREADS="1", **{mode: "BF16"})
    assert done.out.split() == ["True", *["tensor(True)"] * 4], done
