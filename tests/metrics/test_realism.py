"""The formula of the Inception Score over all samples at once, and its standard error by the delta method."""

import importlib

import numpy as np
import pytest
import torch

from ganbench.metrics import Inputs, Side, Unavailable
from ganbench.metrics.inception_score import inception_score
from ganbench.metrics.realism import realism as score

realism = importlib.import_module("ganbench.metrics.realism")  # the package has a function of the same name

IMAGES = torch.zeros(0, 1, 8, 8, dtype=torch.uint8)


def draw(n, k=6, seed=0, sharpness=2.0):
    return sharpness * torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def test_realism_equals_the_inception_score_of_one_split_and_the_definition():
    logits = draw(300)
    value, _ = score(logits)
    assert value == pytest.approx(inception_score(logits, splits=1).item(), rel=1e-12)
    p = np.exp(logits.double().numpy())
    p /= p.sum(1, keepdims=True)
    assert value == pytest.approx(np.exp((p * np.log(p / p.mean(0))).sum(1).mean()), rel=1e-10)


def test_the_range_is_1_to_the_number_of_classes():
    assert score(draw(1).repeat(50, 1))[0] == pytest.approx(1, abs=1e-12)
    sure = 1e4 * torch.eye(6)
    value, error = score(sure[torch.arange(60) % 6])
    assert value == pytest.approx(6, rel=1e-12)
    # Equal divergences: the error is that of the classes' frequencies, the second order.
    g = torch.Generator().manual_seed(0)
    values = [score(sure[torch.randint(6, (60,), generator=g)])[0] for _ in range(400)]
    assert error == pytest.approx(np.std(values), rel=0.15)


def test_the_standard_error_equals_the_standard_deviation_over_new_samples():
    values, errors = np.array([score(draw(400, seed=s)) for s in range(300)]).T
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(ddof=1), rel=0.15)


def test_the_protocol_names_its_uncertainty_and_needs_two_images():
    [protocol] = realism.PROTOCOLS
    [value] = protocol.compute(Inputs(Side(IMAGES), Side(IMAGES, logits=draw(50)), None, torch.Generator()))
    assert (value.value, value.uncertainty.value) == score(draw(50))
    assert (value.n_fake, value.uncertainty.over) == (50, "the samples (delta method)")
    with pytest.raises(Unavailable, match="needs at least 2 images, not 1"):
        score(draw(1))
    with pytest.raises(Unavailable, match="no classes"):
        protocol.compute(Inputs(Side(IMAGES), Side(IMAGES), None, torch.Generator()))
