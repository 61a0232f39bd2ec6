"""Full float32 precision within a context, for any settings of process and environment; the settings are restored."""

import pytest
import torch
import torch.nn.functional as F
from support import ROOT, process

from ganbench.base.precision import MODES, full_float32

backends = torch.backends
NEW = hasattr(backends.mkldnn, "matmul")  # torch 2.9 and later


def settings():
    if not NEW:
        return [backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32]
    places = (backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
    return [place.fp32_precision for place in places]


def errors():
    """Relative errors of a product and of a convolution on the CPU."""
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(300, 500, generator=g), torch.randn(400, 500, generator=g)
    x, w = torch.randn(1, 64, 20, 20, generator=g), torch.randn(64, 64, 3, 3, generator=g)
    pairs = (a @ b.T, a.double() @ b.double().T), (F.conv2d(x, w), F.conv2d(x.double(), w.double()))
    return [((ours - exact).norm() / exact.norm()).item() for ours, exact in pairs]


def lower(where):
    """Allow the process bfloat16 or TF32."""
    if where == "products":
        torch.set_float32_matmul_precision("medium")
    elif NEW:
        {"everywhere": backends, "convolutions": backends.mkldnn.conv}[where].fp32_precision = "bf16"
    else:
        backends.cudnn.allow_tf32 = True


@pytest.fixture(params=["nowhere", "products", "everywhere", "convolutions"])
def lowered(request):
    before = settings()
    if request.param != "nowhere":
        lower(request.param)
    yield request.param
    if NEW:
        backends.fp32_precision = "none"
        backends.mkldnn.conv.fp32_precision = "none"
    else:
        backends.cudnn.allow_tf32 = before[1]
    torch.set_float32_matmul_precision("highest")
    if NEW:
        for place in (backends.cuda.matmul, backends.mkldnn.matmul):
            place.fp32_precision = "none"


def test_precision_is_full_inside_and_the_settings_are_restored(lowered):
    before, outside = settings(), errors()
    with full_float32():
        assert set(settings()) <= {"ieee", False}
        assert max(errors()) < 1e-6
    assert settings() == before
    assert errors() == pytest.approx(outside, rel=1e-3)


def test_the_settings_are_restored_after_an_error(lowered):
    before = settings()
    with pytest.raises(ZeroDivisionError), full_float32():
        raise ZeroDivisionError
    assert settings() == before


@pytest.mark.skipif(not NEW, reason="torch before 2.9 has one setting")
def test_an_inherited_setting_is_inherited_again():
    try:
        backends.fp32_precision = "bf16"
        with full_float32():
            pass
        assert backends.mkldnn.matmul.fp32_precision == backends.mkldnn.conv.fp32_precision == "bf16"
        backends.fp32_precision = "ieee"
        assert backends.mkldnn.matmul.fp32_precision == backends.mkldnn.conv.fp32_precision == "ieee"
    finally:
        backends.fp32_precision = "none"


@pytest.mark.parametrize("mode", MODES)
def test_environment_variables_of_onednn_have_no_effect_inside(mode):
    code = (
        "import torch; from test_precision import errors; from ganbench.base.precision import full_float32\n"
        "before = torch.backends.mkldnn.enabled\n"
        "with full_float32():\n"
        "    print(max(errors()) < 1e-6)\n"
        "print(torch.backends.mkldnn.enabled == before)"
    )
    path = f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests' / 'base'}"
    done = process("-c", code, cwd=ROOT, OMP_NUM_THREADS="1", PYTHONPATH=path, **{mode: "BF16"})
    assert done.out.split() == ["True", "True"], done
