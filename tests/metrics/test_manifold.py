"""Precision, recall, density, coverage against `prdc`, torch-fidelity, and known values of equal distributions."""

import math

import numpy as np
import prdc
import pytest
import torch
from torch_fidelity.metric_prc import calculate_precision_recall_full

from ganbench.metrics import Inputs, Side, Unavailable, manifold
from ganbench.metrics.distances import neighbours
from ganbench.metrics.manifold import Balls


def gaussians(n, m, d, shift=0.0, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    real = torch.randn(n, d, generator=g, dtype=dtype)
    return real, torch.randn(m, d, generator=g, dtype=dtype) + shift


def values(real, fake, k, closed, size=2048):
    [n] = manifold.neighbourhoods(real, fake, [Balls(k, closed)], size=size)
    return {name: formula(n).mean().item() for name, (formula, _) in manifold.FORMULAS.items()}


def by_definition(real, fake, k, closed):
    """The four values from all differences in float64; each sample's own row is excluded by its index."""
    inside = np.less_equal if closed else np.less
    x, y = real.numpy().astype(np.float64), fake.numpy().astype(np.float64)

    def squared(a, b):
        return np.array([np.square(row - b).sum(1) for row in a])

    def radii(a):
        return np.array([np.sort(np.delete(row, i))[k - 1] for i, row in enumerate(squared(a, a))])

    d = squared(x, y)
    in_real, in_fake = inside(d, radii(x)[:, None]), inside(d, radii(y))
    return {
        "precision": in_real.any(0).mean(),
        "recall": in_fake.any(1).mean(),
        "density": in_real.sum(0).mean() / k,
        "coverage": in_real.any(1).mean(),
    }


def measure(real, fake):
    sides = [Side(torch.zeros(len(s), 1, 1, 1, dtype=torch.uint8), features=s) for s in (real, fake)]
    inputs = Inputs(*sides, None, torch.Generator())
    return {p.stem: p.compute(inputs)[0] for p in manifold.PROTOCOLS}


# --- Against other implementations


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "m", "d", "shift"), [(60, 50, 3, 0.3), (200, 200, 16, 0.5), (150, 300, 8, 2.0)])
def test_all_four_values_equal_prdc_with_open_balls(n, m, d, shift, dtype):
    real, fake = gaussians(n, m, d, shift, dtype=dtype)
    theirs = prdc.compute_prdc(real.numpy(), fake.numpy(), nearest_k=5)
    assert values(real, fake, 5, closed=False) == pytest.approx(theirs, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_equal_torch_fidelity_with_closed_balls(k):
    real, fake = gaussians(120, 90, 6, 0.8)
    precision, recall = calculate_precision_recall_full(fake.double(), real.double(), k)
    ours = values(real, fake, k, closed=True)
    assert (ours["precision"], ours["recall"]) == pytest.approx((precision, recall), rel=1e-6)


def test_the_example_of_prdc():
    # Its README has 10,000 real and fake samples of N(0, I) in 1,000 dimensions; here both numbers are a tenth.
    rng = np.random.RandomState(0)
    real, fake = rng.normal(size=(1000, 100)), rng.normal(size=(1000, 100))
    theirs = prdc.compute_prdc(real, fake, nearest_k=5)
    ours = values(torch.from_numpy(real), torch.from_numpy(fake), 5, closed=False)
    assert ours == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_equal_distributions_have_coverage_one_minus_two_to_the_minus_k_and_density_one(k):
    real, fake = gaussians(3000, 3000, 4)
    ours = values(real, fake, k, closed=False)
    assert ours["coverage"] == pytest.approx(1 - 2.0**-k, abs=0.02)
    assert ours["density"] == pytest.approx(1, abs=0.05)


# --- Borders, copies, scales


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("scale", [1e-25, 1e-6, 1, 1e6, 1e25])
@pytest.mark.parametrize("offset", [0, 1000])
def test_copies_are_exactly_on_borders_at_any_scale_and_offset(closed, scale, offset):
    # Half of the samples are copies of real images, which lie exactly on borders of balls.
    real, fake = gaussians(120, 60, 40, seed=3)
    real = (real + offset) * scale
    fake = torch.cat([real[torch.arange(0, 120, 2)], (fake + offset) * scale])
    for k in (1, 3):
        assert values(real, fake, k, closed, size=50) == pytest.approx(by_definition(real, fake, k, closed), rel=1e-12)


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("levels", [2, 4])
def test_ties_between_whole_numbers_are_decided_exactly(closed, levels):
    g = torch.Generator().manual_seed(0)
    real, fake = (torch.randint(levels, (n, 12), generator=g).float() for n in (150, 130))
    for k in (1, 3, 5):
        assert values(real, fake, k, closed, size=64) == pytest.approx(by_definition(real, fake, k, closed), rel=1e-12)


@pytest.mark.parametrize("closed", [True, False])
def test_sets_with_duplicates_equal_the_definition(closed):
    g = torch.Generator().manual_seed(0)
    few = torch.randn(20, 30, generator=g) * 7 + 100
    real, fake = few[torch.randint(12, (150,), generator=g)], few[torch.randint(5, 20, (90,), generator=g)]
    for k in (1, 3, 5):
        assert values(real, fake, k, closed) == pytest.approx(by_definition(real, fake, k, closed), rel=1e-12)


@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-5])
def test_tight_clusters_far_apart_are_decided_exactly(spread):
    # Products in float32 have no correct digit of the distances within a cluster.
    g = torch.Generator().manual_seed(0)
    centres = 100 * torch.randn(4, 16, generator=g)
    real, fake = (centres[torch.arange(n) % 4] + spread * torch.randn(n, 16, generator=g) for n in (200, 160))
    for closed in (True, False):
        assert values(real, fake, 3, closed, size=64) == pytest.approx(by_definition(real, fake, 3, closed), rel=1e-12)


def test_sets_of_equal_images_have_the_expected_values():
    one = torch.full((50, 8), 0.1)
    same = {"precision": 1, "recall": 1, "density": 50 / 3, "coverage": 1}
    assert values(one, one, 3, closed=True) == pytest.approx(same, rel=1e-12)
    assert values(one, one, 3, closed=False) == dict.fromkeys(same, 0)  # open balls of radius 0 are empty
    assert values(one, one + 1, 3, closed=True) == dict.fromkeys(same, 0)


def test_thousands_of_equal_images_are_fast():
    g = torch.Generator().manual_seed(0)
    real = torch.randn(3, 512, generator=g)[torch.arange(4000) % 3]
    assert values(real, real[:3000], 3, closed=True)["density"] == pytest.approx(4000 / 9, rel=1e-3)


def test_minus_zero_equals_zero():
    real = torch.zeros(8, 3)
    assert values(real, -real, 3, closed=True)["precision"] == 1
    assert neighbours(torch.cat([real, -real]), 3).equal.tolist() == [15] * 16


def test_a_set_against_itself_has_all_values_one_with_closed_balls():
    real, _ = gaussians(100, 1, 5)
    ours = values(real, real.clone(), 3, closed=True)
    assert (ours["precision"], ours["recall"], ours["coverage"]) == (1, 1, 1)


def test_distant_sets_have_all_values_zero():
    real, fake = gaussians(100, 100, 5, shift=100.0)
    assert values(real, fake, 3, closed=True) == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_a_collapsed_generator_has_high_precision_and_low_recall_and_coverage():
    real, _ = gaussians(400, 1, 5)
    centre = real.mean(0) + 1e-3 * torch.randn(400, 5, generator=torch.Generator().manual_seed(1))
    ours = values(real, centre, 3, closed=True)
    assert ours["precision"] == 1
    assert ours["recall"] < 0.01
    assert ours["coverage"] < 0.2


# --- Neighbours


def test_the_kth_distances_are_exact():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(120, 20, generator=g) + 50
    x[7] = x[3]
    x[60:64] = x[90]
    near = neighbours(x, 5, size=32)
    d = (x.double()[:, None] - x.double()).square().sum(2).fill_diagonal_(math.inf).sort(1).values[:, :5]
    assert ((near.squared - d).abs() <= near.error[:, None]).all()
    rows = torch.arange(120)
    for k in (1, 3, 5):
        assert near.exactly(x, rows, k).tolist() == pytest.approx(d[:, k - 1].tolist(), rel=1e-14, abs=0)


def test_an_image_is_not_its_own_neighbour_even_among_duplicates():
    real = torch.tensor([[0.0], [0.0], [5.0], [6.0]])
    near = neighbours(real, 1)
    assert near.exactly(real, torch.arange(4), 1).tolist() == [0, 0, 1, 1]


def test_tiles_change_nothing():
    real, fake = gaussians(97, 83, 6, 0.2)
    assert values(real, fake, 3, True, size=10) == values(real, fake, 3, True)


def test_the_neighbours_of_a_reference_are_computed_once():
    real, fake = gaussians(60, 50, 6)
    side = Side(torch.zeros(60, 1, 1, 1, dtype=torch.uint8), features=real)
    other = Side(torch.zeros(50, 1, 1, 1, dtype=torch.uint8), features=fake)
    for p in manifold.PROTOCOLS:
        p.compute(Inputs(side, other, None, torch.Generator()))
    kept = side.kept["neighbours/1"]
    assert all(isinstance(t, torch.Tensor) and len(t) == 60 for t in kept.values())
    again = Side(side.images, features=real, kept={"neighbours/1": {name: t.clone() for name, t in kept.items()}})
    for p in manifold.PROTOCOLS:
        fresh = Inputs(side, other, None, torch.Generator())
        assert p.compute(Inputs(again, other, None, torch.Generator())) == p.compute(fresh)


# --- Uncertainty


@pytest.mark.parametrize(("d", "shift", "scale"), [(8, 0.5, 1.0), (16, 0.0, 1.2)])
def test_intervals_cover_the_expected_value_at_their_nominal_rate(d, shift, scale):
    g = torch.Generator().manual_seed(0)
    means, errors = [], []
    for _ in range(25):
        real, fake = torch.randn(200, d, generator=g), scale * torch.randn(200, d, generator=g) + shift / d**0.5
        result = measure(real, fake)
        means.append([result[name].value for name in manifold.FORMULAS])
        errors.append([result[name].uncertainty.value for name in manifold.FORMULAS])
    means, errors = torch.tensor(means), torch.tensor(errors)
    ratio = errors.square().mean(0).sqrt() / means.std(0)
    assert ((ratio > 0.7) & (ratio < 1.8)).all(), ratio
    assert ((means - means.mean(0)).abs() <= 1.96 * errors).double().mean() >= 0.9


def test_a_share_of_one_has_an_error_and_small_sets_name_the_set_of_their_error():
    real, fake = gaussians(40, 40, 3)
    few = measure(real, real.clone())
    assert few["precision"].value == 1
    assert few["precision"].uncertainty.value == pytest.approx(1 / 40, rel=1e-9)
    assert "too few for both sets" in few["recall"].uncertainty.over
    real, fake = gaussians(100, 100, 3)
    assert measure(real, fake)["recall"].uncertainty.over == "the samples of both sets (subsampling)"


def test_too_few_images_are_unavailable():
    real, fake = gaussians(3, 10, 2)
    with pytest.raises(Unavailable, match="more than 3 images"):
        manifold.neighbourhoods(real, fake, [Balls(3, True)])
    with pytest.raises(Unavailable, match="need more than 5 images, not 3"):
        measure(fake, real)
