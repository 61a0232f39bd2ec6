"""The error of 1-NN against scikit-learn and against exact integers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from ganbench.data.datasets.digits import digits
from ganbench.metrics import Inputs, Side, Unavailable, nearest_neighbour, products
from ganbench.metrics.nearest_neighbour import bytes_multiply, nearest


@pytest.fixture(params=["bytes", "floats"], autouse=True)
def arithmetic(request, monkeypatch):
    """Run a test with both kinds of products on any processor; exact integers replace missing products of bytes."""
    if request.param == "floats":
        monkeypatch.setattr(nearest_neighbour, "bytes_multiply", lambda n, m, d: False)
    elif not bytes_multiply(64, 64, 1024):
        multiply_bytes_by(whole_product, monkeypatch)
    yield request.param
    products._keeps_digits.cache_clear()  # it contains the results of products that a test replaced


def multiply_bytes_by(multiply, monkeypatch):
    monkeypatch.setattr(torch, "_int_mm", multiply)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    products._keeps_digits.cache_clear()


def whole_product(a, b):
    return a.int() @ b.int()


def saturating_product(a, b):
    """Sum pairs of products in 16 bits, like the instruction pmaddubsw."""
    a, b = (F.pad(x.int(), (0, x.shape[1] % 2)) for x in (a, b.T))
    pairs = (a[:, None, :] * b[None]).unflatten(2, (-1, 2)).sum(3)
    return pairs.clamp(-(2**15), 2**15 - 1).sum(2, dtype=torch.int32)


def broken_product(a, b):
    raise RuntimeError("not implemented")


def wrong_for_one_pixel(a, b):
    """Return an output without values for one pixel, like torch 2.14."""
    return whole_product(a, b) if a.shape[1] > 1 else torch.zeros(len(a), b.shape[1], dtype=torch.int32)


def wrong_in_one_column(a, b):
    c = whole_product(a, b)
    c[:, -1] += 1
    return c


def wrong_in_one_entry_of_a_tile_with_a_rest(a, b):
    """Return one wrong entry if the number of points is not a multiple of 16."""
    c = whole_product(a, b)
    c[-1, -1] -= int(b.shape[1] % 16 > 0)
    return c


def rows_swapped_in_large_tiles(a, b):
    c = whole_product(a, b)
    return c[[1, 0, *range(2, len(a))]] if len(a) > 10 else c


@pytest.mark.parametrize("shape", [(64, 64, 1024), (20, 300, 1), (1, 7, 60), (1024, 33, 784)])
@pytest.mark.parametrize(("multiply", "answer"), [
    (whole_product, lambda n, m, d: True),
    (saturating_product, lambda n, m, d: d == 1),
    (broken_product, lambda n, m, d: False),
    (wrong_for_one_pixel, lambda n, m, d: d > 1),
    (wrong_in_one_column, lambda n, m, d: False),
    (wrong_in_one_entry_of_a_tile_with_a_rest, lambda n, m, d: m % 16 == 0),
    (rows_swapped_in_large_tiles, lambda n, m, d: n <= 10),
    (lambda a, b: whole_product(a, b)[:, :-1], lambda n, m, d: False),
])
def test_products_of_bytes_are_tried_for_each_shape(
    monkeypatch, shape, multiply, answer
):
    multiply_bytes_by(multiply, monkeypatch)
    assert bytes_multiply(*shape) is answer(*shape)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert bytes_multiply(*shape) is False


@pytest.mark.parametrize("multiply", [
    saturating_product, broken_product, wrong_for_one_pixel, wrong_in_one_column,
    wrong_in_one_entry_of_a_tile_with_a_rest, rows_swapped_in_large_tiles,
])
@pytest.mark.parametrize(("n", "m", "d"), [(20, 300, 1), (20, 32, 7), (5, 17, 60), (33, 65, 64)])
def test_a_wrong_product_of_bytes_never_changes_the_nearest_point(arithmetic, monkeypatch, multiply, n, m, d):
    if arithmetic == "bytes":
        multiply_bytes_by(multiply, monkeypatch)
    queries, points = pixels(n, d, 0, 4), pixels(m, d, 1, 4)
    expected = exact(queries, points).tolist()
    assert nearest(queries, points).tolist() == expected
    monkeypatch.setattr(nearest_neighbour, "QUERIES", 16)  # tiles of several shapes
    monkeypatch.setattr(nearest_neighbour, "POINTS", 16)
    assert nearest(queries, points).tolist() == expected


def test_products_of_bytes_are_used_if_they_are_exact(arithmetic, monkeypatch):
    calls = []
    multiply_bytes_by(lambda a, b: calls.append((len(a), b.shape[1])) or whole_product(a, b), monkeypatch)
    nearest(pixels(20, 9, 0), pixels(30, 9, 1))
    assert calls == ([(20, 30)] * 2 if arithmetic == "bytes" else [])  # once to try the shape, once to use it
    nearest(pixels(20, 9, 2), pixels(30, 9, 3))
    assert len(calls) == (3 if arithmetic == "bytes" else 0)


@pytest.mark.parametrize("d", [1, 2, 64])
def test_unusual_strides_do_not_change_the_result(d):
    points, queries = pixels(40, d, 0, 4), pixels(1, d, 1, 4)
    expected = exact(queries, points).tolist()
    assert nearest(queries.as_strided((1, d), (1, 1)), points).tolist() == expected
    assert nearest(queries, points.T.contiguous().T).tolist() == expected
    assert nearest(points[:1].as_strided((1, d), (1, 1)), points[:1].as_strided((1, d), (1, 1))).tolist() == [0]


def exact(queries, points):
    """Return the nearest points by squared distances in integers; argmin takes the first one in a tie."""
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


def test_the_error_equals_scikit_learn_on_the_digits(tmp_path):
    train, test = digits("train", tmp_path, False), digits("test", tmp_path, False)
    knn = KNeighborsClassifier(1, algorithm="brute").fit(train.images.flatten(1).numpy().astype(float), train.labels)
    expected = 1 - knn.score(test.images.flatten(1).numpy().astype(float), test.labels)
    value = measure(as_side(train), as_side(test))
    assert value.value == pytest.approx(expected, abs=1e-12)
    assert 0.01 < value.value < 0.06
    assert (value.n_real, value.n_fake) == (500, 1297)


@given(n=st.integers(1, 300), d=st.integers(1, 60), top=st.sampled_from([2, 4, 256]), seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_first_of_the_nearest_points_is_found(n, d, top, seed):
    # Pixels of few values have many ties.
    points, queries = pixels(n, d, seed, top), pixels(20, d, seed + 1, top)
    assert nearest(queries, points).tolist() == exact(queries, points).tolist()


@pytest.mark.parametrize("top", [1, 256])
@pytest.mark.parametrize("d", [784, 1024, 3072, 50_000])
def test_ties_and_near_ties_of_large_images_are_exact(d, top):
    base = pixels(1, d, 0, top)
    points = base.repeat(200, 1)
    for i in range(1, 200):  # all points except the first have the same distance
        points[i, i] ^= 1
    points[0, :3] ^= 1
    points[150] = base  # the only exact copy
    queries = torch.cat([base, 255 - base])
    assert nearest(queries, points).tolist() == exact(queries, points).tolist()
    assert nearest(base, points).tolist() == [150]


def test_distances_that_float32_cannot_represent_are_exact():
    white = torch.full((40, 1024), 255, dtype=torch.uint8)
    white[:, 0] = 253  # its distance to black is 1,016 smaller than that of white
    white[30, :2] = 254  # 1,018 smaller
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
def test_the_nearest_feature_is_exact_at_any_scale_and_offset(n, d, scale, offset, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    points = ((torch.randn(n, d, generator=g) + offset) * scale).to(dtype)
    queries = ((torch.randn(20, d, generator=g) + offset) * scale).to(dtype)
    assert nearest(queries, points).tolist() == exact_features(queries, points)


@given(n=st.integers(1, 300), d=st.integers(1, 20), levels=st.sampled_from([1, 2, 4]), seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_first_of_equally_distant_features_is_found(n, d, levels, seed):
    g = torch.Generator().manual_seed(seed)
    points, queries = (torch.randint(levels, (m, d), generator=g).float() for m in (n, 20))
    assert nearest(queries, points).tolist() == exact_features(queries, points)


@pytest.mark.parametrize("spread", [1e-3, 1e-5])
def test_differences_below_the_precision_of_float32_products_are_decided_exactly(spread):
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


def test_no_points_raise_and_no_queries_give_no_result():
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


def test_the_requested_labels_count_and_not_the_content_of_images():
    held_out = Side(pixels(30, 9, 0).view(30, 1, 3, 3), torch.arange(30) % 3)
    assert measure(Side(held_out.images, (held_out.labels + 1) % 3), held_out).value == 1


def test_missing_held_out_images_and_images_of_another_shape_are_unavailable():
    fake = Side(pixels(6, 36, 0).view(6, 1, 6, 6), torch.arange(6))
    with pytest.raises(Unavailable, match="no real images beside the reference"):
        measure(fake, None)
    with pytest.raises(Unavailable, match="differ in size"):
        measure(fake, Side(fake.images.view(6, 1, 4, 9), fake.labels))  # the same number of pixels in another shape
    with pytest.raises(Unavailable, match="no labels"):
        measure(fake, Side(fake.images))
