"""Shares of copied training images, by features and by pixels, for copies and for new images."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ganbench.data.datasets.digits import digits
from ganbench.metrics import Inputs, Side, Unavailable, memorisation
from ganbench.metrics.memorisation import nearest_training_images

AUTH, MEMORISED = memorisation.PROTOCOLS


def images(n, seed, edge=10, channels=1, top=256):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(top, (n, channels, edge, edge), generator=g, dtype=torch.uint8)


def features(n, seed, d=6, scale=1.0):
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def authentic(real, fake):
    sides = (Side(torch.zeros(len(s), 1, 1, 1, dtype=torch.uint8), features=s) for s in (real, fake))
    [value] = AUTH.compute(Inputs(*sides, None, torch.Generator()))
    return value


def memorised(real, fake, held_out, seed=0):
    g = torch.Generator().manual_seed(seed)
    [value] = MEMORISED.compute(Inputs(Side(real), Side(fake), Side(held_out), g))
    return value


# --- Nearest training images


def all_l1(real, fake):
    x, y = (s.flatten(1).numpy().astype(np.int64) for s in (real, fake))
    return np.array([np.abs(x - row).sum(1) for row in y])


@given(
    n=st.integers(3, 150),
    edge=st.integers(1, 9),
    channels=st.sampled_from([1, 3]),
    top=st.sampled_from([2, 256]),
    k=st.integers(1, 3),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=40, deadline=None)
def test_pixels_are_compared_in_l1_and_the_first_image_wins_in_a_tie(n, edge, channels, top, k, seed):
    real, fake = images(n, seed, edge, channels, top), images(10, seed + 1, edge, channels, top)
    d = all_l1(real, fake)
    expected = d.argsort(1, kind="stable")[:, :k]
    at, distances = nearest_training_images(real, fake, k)
    assert at.tolist() == expected.tolist()
    assert distances.tolist() == np.take_along_axis(d, expected, 1).tolist()


@given(n=st.integers(1, 60), part=st.integers(1, 20), top=st.sampled_from([2, 256]), k=st.integers(1, 5),
       seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_training_images_in_parts_give_the_same_neighbours(n, part, top, k, seed):
    real, fake, k = images(n, seed, 4, top=top), images(9, seed + 1, 4), min(k, n)
    d = all_l1(real, fake)
    expected = d.argsort(1, kind="stable")[:, :k]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memorisation, "AT_ONCE", part * 16)
        at, distances = nearest_training_images(real, fake, k)
    assert at.tolist() == expected.tolist()
    assert distances.tolist() == np.take_along_axis(d, expected, 1).tolist()


def test_images_far_from_all_training_images_are_compared_exactly():
    real, fake = images(400, 0, 8, top=40), images(70, 1, 8)
    d = all_l1(real, fake)
    at, distances = nearest_training_images(real, fake, 2)
    assert at.tolist() == d.argsort(1, kind="stable")[:, :2].tolist()
    assert distances.tolist() == np.sort(d, 1)[:, :2].tolist()


def test_white_and_black_images_have_the_largest_distance():
    black, white = (torch.full((2, 3, 64, 64), v, dtype=torch.uint8) for v in (0, 255))
    assert nearest_training_images(black, white)[1].tolist() == [[255 * 3 * 64 * 64]] * 2


@pytest.mark.parametrize("offset", [0, 1000])
def test_features_are_compared_by_euclidean_distance(offset):
    real, fake = features(80, 0) + offset, features(20, 1) + offset
    d = np.linalg.norm(fake.double().numpy()[:, None] - real.double().numpy(), axis=2)
    at, distances = nearest_training_images(real, fake, 3)
    assert at.tolist() == d.argsort(1)[:, :3].tolist()
    assert distances.numpy() == pytest.approx(np.sort(d, 1)[:, :3], rel=1e-12)


def test_too_few_images_and_images_of_two_sizes_are_unavailable():
    with pytest.raises(Unavailable, match="need at least 3 training images, not 2"):
        nearest_training_images(images(2, 0), images(2, 0), 3)
    with pytest.raises(Unavailable, match="differ in size"):
        nearest_training_images(images(2, 0), images(2, 0, edge=9))


# --- Authenticity


@pytest.mark.parametrize(("n", "m", "d"), [(50, 40, 3), (120, 200, 16)])
def test_authenticity_equals_the_definition(n, m, d):
    real, fake = features(n, 0, d), features(m, 1, d, 1.1)
    x, y = real.double().numpy(), fake.double().numpy()
    to = np.linalg.norm(y[:, None] - x, axis=2)
    within = np.linalg.norm(x[:, None] - x, axis=2)
    np.fill_diagonal(within, np.inf)
    nearest = to.argmin(1)
    expected = (to.min(1) >= within.min(1)[nearest]).mean()
    value = authentic(real, fake)
    assert value.value == pytest.approx(expected, abs=1e-12)
    assert value.details["closest"][0]["distance"] == pytest.approx(to.min(), rel=1e-12)
    closest = value.details["closest"][0]
    assert (closest["fake"], closest["training"]) == divmod(int(to.argmin()), n)
    assert [pair["distance"] for pair in value.details["closest"]] == pytest.approx(np.sort(to.min(1))[:10].tolist())


def test_copies_and_near_copies_are_not_authentic_and_distant_samples_are():
    real = features(200, 0)
    assert authentic(real, real[:100].clone()).value == 0
    assert authentic(real, real + 1e-4 * features(200, 1)).value == 0
    assert authentic(real, real + 100).value == 1
    twice = torch.cat([real, real])
    assert authentic(twice, real).value == 0


def test_the_standard_error_of_authenticity_equals_the_deviation_over_new_samples():
    values, errors = [], []
    for i in range(40):
        value = authentic(features(200, 2 * i + 100), features(200, 2 * i + 101))
        values.append(value.value)
        errors.append(value.uncertainty.value)
    ratio = math.sqrt(np.square(errors).mean()) / np.std(values, ddof=1)
    assert 0.75 < ratio < 1.6
    assert np.mean(np.abs(np.array(values) - np.mean(values)) <= 1.96 * np.array(errors)) >= 0.9


# --- Memorised pixels


def test_copied_digits_are_memorised_and_new_ones_are_not(tmp_path):
    train, test = digits("train", tmp_path, False).images, digits("test", tmp_path, False).images
    copied = memorised(train[:600], train[:300], test[:250])
    assert copied.value == 1
    assert copied.details["closest"][0] == {"fake": 0, "training": 0, "distance": 0}
    half = memorised(train[:600], torch.cat([train[:100], test[250:350]]), test[:250])
    assert half.value == pytest.approx(0.5, abs=0.06)
    new = memorised(train[:600], test[250:], test[:250])
    assert abs(new.value - new.details["expected_of_real_images"]) < 3 * new.uncertainty.value
    assert new.details["expected_of_real_images"] == 2 / 251


def test_the_memorised_share_equals_the_definition():
    real, fake, held_out = images(300, 0, 6), images(150, 1, 6), images(210, 2, 6)
    threshold = np.sort(all_l1(real, held_out).min(1))[1]  # the second of 210
    value = memorised(real, fake, held_out)
    assert value.details["threshold"] == threshold
    assert value.value == pytest.approx((all_l1(real, fake).min(1) <= threshold).mean(), abs=1e-12)
    assert (value.n_real, value.n_fake) == (300, 150)


def test_a_thousand_of_many_images_are_drawn():
    real, fake = images(20, 0, 4), images(1500, 1, 4)
    a, b = (memorised(real, fake, images(1200, 2, 4), seed) for seed in (0, 1))
    assert (a.n_fake, a.details["held_out"]) == (1000, 1000)
    assert a.value != b.value
    assert a.value == pytest.approx(b.value, abs=5 * a.uncertainty.value)
    for pair in a.details["closest"]:
        difference = real[pair["training"]].int() - fake[pair["fake"]].int()
        assert difference.abs().sum() == pair["distance"]


def test_few_held_out_images_give_a_warning_and_none_are_unavailable():
    assert "rough estimate" in memorised(images(20, 0), images(9, 1), images(98, 2)).warnings[0]
    assert not memorised(images(20, 0), images(9, 1), images(99, 2)).warnings
    with pytest.raises(Unavailable, match="no real images beside the reference"):
        MEMORISED.compute(Inputs(Side(images(9, 0)), Side(images(9, 0)), None, torch.Generator()))
