"""Precision, recall, density, coverage against `prdc`, torch-fidelity, and what is known of equal distributions."""

import numpy as np
import prdc
import pytest
import torch
from torch_fidelity.metric_prc import calculate_precision_recall_full

from ganbench.metrics import Unavailable, manifold


def gaussians(n, m, d, shift=0.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    real = torch.randn(n, d, generator=g, dtype=torch.float64)
    return real, torch.randn(m, d, generator=g, dtype=torch.float64) + shift


def values(real, fake, k, closed, chunk=2048):
    n = manifold.neighbourhoods(real, fake, k, closed, chunk)
    return {
        f.__name__: f(n).mean().item()
        for f in (manifold.precision, manifold.recall, manifold.density, manifold.coverage)
    }


@pytest.mark.parametrize(("n", "m", "d", "shift"), [(60, 50, 3, 0.3), (200, 200, 16, 0.5), (150, 300, 8, 2.0)])
def test_all_four_equal_prdc_with_open_balls(n, m, d, shift):
    real, fake = gaussians(n, m, d, shift)
    theirs = prdc.compute_prdc(real.numpy(), fake.numpy(), nearest_k=5)
    ours = values(real, fake, 5, closed=False)
    for name in ours:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-12, abs=1e-12), name


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_equal_torch_fidelity_with_closed_balls(k):
    real, fake = gaussians(120, 90, 6, 0.8)
    precision, recall = calculate_precision_recall_full(fake, real, k)
    ours = values(real, fake, k, closed=True)
    assert (ours["precision"], ours["recall"]) == pytest.approx((precision, recall), rel=1e-6)


def test_the_demo_of_prdc():
    # Its README: 10,000 reals and fakes, N(0, I) in 1,000 dimensions; here a tenth of both.
    rng = np.random.RandomState(0)
    real, fake = rng.normal(size=(1000, 100)), rng.normal(size=(1000, 100))
    theirs = prdc.compute_prdc(real, fake, nearest_k=5)
    ours = values(torch.from_numpy(real), torch.from_numpy(fake), 5, closed=False)
    assert ours == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_coverage_of_equal_distributions_is_one_minus_two_to_the_minus_k_and_density_one(k):
    real, fake = gaussians(3000, 3000, 4)
    ours = values(real, fake, k, closed=False)
    assert ours["coverage"] == pytest.approx(1 - 2.0**-k, abs=0.02)
    assert ours["density"] == pytest.approx(1, abs=0.05)


def test_a_set_against_itself_is_all_ones_with_closed_balls():
    real, _ = gaussians(100, 1, 5)
    ours = values(real, real.clone(), 3, closed=True)
    assert (ours["precision"], ours["recall"], ours["coverage"]) == (1, 1, 1)


def test_far_apart_sets_have_nothing_in_common():
    real, fake = gaussians(100, 100, 5, shift=100.0)
    assert values(real, fake, 3, closed=True) == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_a_collapsed_generator_is_precise_and_has_no_recall_or_coverage():
    real, _ = gaussians(400, 1, 5)
    centre = real.mean(0) + 1e-3 * torch.randn(400, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = values(real, centre, 3, closed=True)
    assert ours["precision"] == 1
    assert ours["recall"] < 0.01
    assert ours["coverage"] < 0.2


def test_chunks_change_nothing():
    real, fake = gaussians(97, 83, 6, 0.2)
    assert values(real, fake, 3, True, chunk=10) == values(real, fake, 3, True)


def test_an_image_is_not_its_own_neighbour_even_among_duplicates():
    real = torch.tensor([[0.0], [0.0], [5.0], [6.0]], dtype=torch.float64)
    assert manifold.radii(real, 1).tolist() == [0, 0, 1, 1]


def test_too_few_images_are_said_so():
    real, fake = gaussians(3, 10, 2)
    with pytest.raises(Unavailable, match="more than 3 images"):
        manifold.neighbourhoods(real, fake, 3, closed=True)
