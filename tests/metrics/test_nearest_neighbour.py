"""The error of 1-NN against scikit-learn and against exact integers."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from ganbench.data.datasets.digits import digits
from ganbench.metrics import Inputs, Side, Unavailable, nearest_neighbour
from ganbench.metrics.nearest_neighbour import bytes_multiply, nearest


@pytest.fixture(params=["bytes", "floats"], autouse=True)
def arithmetic(request, monkeypatch):
    """Both ways on any processor: where it does not multiply bytes, whole numbers multiply in their place."""
    if not bytes_multiply():
        monkeypatch.setattr(torch, "_int_mm", whole_product)
    monkeypatch.setattr(nearest_neighbour, "bytes_multiply", lambda: request.param == "bytes")


def whole_product(a, b):
    return a.int() @ b.int()


def saturating_product(a, b):
    """Pairs of products summed in 16 bits, as by the instruction pmaddubsw."""
    pairs = (a.int()[:, None, :] * b.T.int()[None]).unflatten(2, (-1, 2)).sum(3)
    return pairs.clamp(-(2**15), 2**15 - 1).sum(2, dtype=torch.int32)


def broken_product(a, b):
    raise RuntimeError("not implemented")


@pytest.mark.parametrize(
    ("multiply", "answer"), [(whole_product, True), (saturating_product, False), (broken_product, False)]
)
def test_a_processor_is_asked_whether_its_products_of_bytes_are_exact(monkeypatch, multiply, answer):
    monkeypatch.setattr(torch, "_int_mm", multiply)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert bytes_multiply.__wrapped__() is answer
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert bytes_multiply.__wrapped__() is False


def exact(queries, points):
    """Squared distances in whole numbers; argmin takes the first of equals."""
    q, p = queries.numpy().astype(np.int64), points.numpy().astype(np.int64)
    return np.array([((p - row) ** 2).sum(1).argmin() for row in q])


def pixels(n, d, seed, top=256):
    return torch.randint(top, (n, d), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def measure(fake, held_out):
    empty = Side(torch.zeros(0, 1, 1, 1, dtype=torch.uint8))
    [value] = nearest_neighbour.PROTOCOLS[0].compute(Inputs(empty, fake, held_out, torch.Generator()))
    return value


def as_side(data):
    return Side(data.images, data.labels)


def test_it_equals_scikit_learn_on_the_digits(tmp_path):
    train, test = digits("train", tmp_path, False), digits("test", tmp_path, False)
    knn = KNeighborsClassifier(1, algorithm="brute").fit(train.images.flatten(1).numpy().astype(float), train.labels)
    expected = 1 - knn.score(test.images.flatten(1).numpy().astype(float), test.labels)
    value = measure(as_side(train), as_side(test))
    assert value.value == pytest.approx(expected, abs=1e-12)
    assert 0.01 < value.value < 0.06
    assert (value.n_real, value.n_fake) == (500, 1297)


@given(n=st.integers(1, 300), d=st.integers(1, 60), top=st.sampled_from([2, 4, 256]), seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_first_of_the_exactly_nearest_is_found(n, d, top, seed):
    # Pixels of few values have many ties.
    points, queries = pixels(n, d, seed, top), pixels(20, d, seed + 1, top)
    assert nearest(queries, points).tolist() == exact(queries, points).tolist()


@pytest.mark.parametrize("top", [1, 256])
@pytest.mark.parametrize("d", [784, 1024, 3072, 50_000])
def test_ties_and_near_ties_of_large_images_are_exact_black_ones_too(d, top):
    base = pixels(1, d, 0, top)
    points = base.repeat(200, 1)
    for i in range(1, 200):  # one pixel off by one, at another place each time: all at the same distance but the first
        points[i, i] ^= 1
    points[0, :3] ^= 1
    points[150] = base  # the only exact copy
    queries = torch.cat([base, 255 - base])
    assert nearest(queries, points).tolist() == exact(queries, points).tolist()
    assert nearest(base, points).tolist() == [150]


def test_distances_beyond_the_whole_numbers_of_float32_are_exact():
    white = torch.full((40, 1024), 255, dtype=torch.uint8)
    white[:, 0] = 253  # 1,016 less than white from black
    white[30, :2] = 254  # 1,018 less
    assert nearest(torch.zeros(1, 1024, dtype=torch.uint8), white).tolist() == [30]


def test_tiles_change_nothing(monkeypatch):
    points, queries = pixels(300, 20, 0, 4), pixels(50, 20, 1, 4)
    expected = exact(queries, points).tolist()
    monkeypatch.setattr(nearest_neighbour, "QUERIES", 7)
    monkeypatch.setattr(nearest_neighbour, "POINTS", 11)
    assert nearest(queries, points).tolist() == expected
    assert nearest(queries.float(), points.float()).tolist() == expected


# --- Features


def exact_features(queries, points):
    """Sums of squared differences in float64."""
    q, p = queries.double().numpy(), points.double().numpy()
    return [int(np.square(p - row).sum(1).argmin()) for row in q]


@given(
    n=st.integers(1, 200),
    d=st.integers(1, 40),
    scale=st.sampled_from([1e-25, 1e-6, 1.0, 1e6, 1e25]),
    offset=st.sampled_from([0.0, 1000.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_nearest_of_features_is_exact_at_any_scale_and_offset(n, d, scale, offset, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    points = ((torch.randn(n, d, generator=g) + offset) * scale).to(dtype)
    queries = ((torch.randn(20, d, generator=g) + offset) * scale).to(dtype)
    assert nearest(queries, points).tolist() == exact_features(queries, points)


@given(n=st.integers(1, 300), d=st.integers(1, 20), levels=st.sampled_from([1, 2, 4]), seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_first_of_equally_near_features_is_found(n, d, levels, seed):
    g = torch.Generator().manual_seed(seed)
    points, queries = (torch.randint(levels, (m, d), generator=g).float() for m in (n, 20))
    assert nearest(queries, points).tolist() == exact_features(queries, points)


@pytest.mark.parametrize("spread", [1e-3, 1e-5])
def test_features_nearer_than_float32_products_can_tell_are_told_apart(spread):
    g = torch.Generator().manual_seed(0)
    centres = 100 * torch.randn(3, 64, generator=g)
    points, queries = (centres[torch.arange(m) % 3] + spread * torch.randn(m, 64, generator=g) for m in (500, 60))
    assert nearest(queries, points).tolist() == exact_features(queries, points)


def test_features_equal_scikit_learn():
    g = torch.Generator().manual_seed(0)
    points, queries = torch.randn(2000, 64, generator=g), torch.randn(300, 64, generator=g)
    knn = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(points.double())
    found = knn.kneighbors(queries.double(), return_distance=False)[:, 0]
    assert nearest(queries, points).tolist() == found.tolist()


def test_without_points_or_queries():
    with pytest.raises(Unavailable, match="needs at least 1 image"):
        nearest(pixels(2, 4, 0), pixels(0, 4, 0))
    assert nearest(torch.zeros(0, 4), torch.zeros(3, 4)).tolist() == []
    assert nearest(pixels(0, 4, 0), pixels(3, 4, 0)).tolist() == []


# --- The metric


def test_the_standard_error_is_binomial_and_never_zero():
    fake = Side(pixels(4, 9, 0).view(4, 1, 3, 3), torch.arange(4))
    perfect = measure(fake, fake)
    assert perfect.value == 0
    assert perfect.uncertainty.value == pytest.approx((2 / 8 * 6 / 8 / 8) ** 0.5, rel=1e-12)


def test_labels_asked_for_count_and_not_what_the_images_show():
    held_out = Side(pixels(30, 9, 0).view(30, 1, 3, 3), torch.arange(30) % 3)
    assert measure(Side(held_out.images, (held_out.labels + 1) % 3), held_out).value == 1


def test_it_is_unavailable_without_held_out_images_or_with_images_of_another_shape():
    fake = Side(pixels(6, 36, 0).view(6, 1, 6, 6), torch.arange(6))
    with pytest.raises(Unavailable, match="no real images beside the reference"):
        measure(fake, None)
    with pytest.raises(Unavailable, match="differ in size"):
        measure(fake, Side(fake.images.view(6, 1, 4, 9), fake.labels))  # as many pixels in another shape
    with pytest.raises(Unavailable, match="no labels"):
        measure(fake, Side(fake.images))
