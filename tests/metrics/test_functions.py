"""The formulas as plain functions of tensors."""

import inspect

import pytest
import torch

import ganbench.metrics
from ganbench.metrics import Inputs, Side, manifold

G = torch.Generator().manual_seed(0)
REAL, FAKE = torch.randn(80, 6, generator=G), torch.randn(70, 6, generator=G) * 0.8 + 0.3


def test_all_exported_names_exist_and_have_a_docstring():
    for name in ganbench.metrics.__all__:
        thing = getattr(ganbench.metrics, name)
        assert callable(thing), name
        assert inspect.getdoc(thing), name


@pytest.mark.parametrize("stem", ["precision", "recall", "density", "coverage"])
def test_neighbourhood_functions_equal_the_protocols(stem):
    [protocol] = [p for p in manifold.PROTOCOLS if p.stem == stem]
    images = torch.zeros(80, 1, 1, 1, dtype=torch.uint8)
    inputs = Inputs(Side(images, features=REAL), Side(images[:70], features=FAKE), None, torch.Generator())
    [value] = protocol.compute(inputs)
    assert getattr(ganbench.metrics, stem)(REAL, FAKE) == value.value
    assert getattr(ganbench.metrics, stem)(REAL, FAKE, k=12) != value.value


def test_distances_can_be_imported_by_name():
    from ganbench.metrics import frechet_distance, inception_score, kernel_distance, mmd_rbf, ms_ssim

    assert frechet_distance(REAL, FAKE) > frechet_distance(REAL, REAL) == pytest.approx(0, abs=1e-10)
    assert kernel_distance(REAL, FAKE).mean() > 0
    assert mmd_rbf(REAL, FAKE) > mmd_rbf(REAL, REAL) == 0
    assert inception_score(torch.zeros(50, 10)).tolist() == pytest.approx([1.0] * 10)
    flat = torch.full((2, 1, 16, 16), 7, dtype=torch.uint8)
    assert ms_ssim(flat, flat).tolist() == [1.0, 1.0]
