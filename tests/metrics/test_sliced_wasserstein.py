"""The sliced Wasserstein distance against SciPy: filters, pyramid, distances along a line."""

import importlib
import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from scipy.stats import wasserstein_distance

from ganbench.metrics import Inputs, Side, Unavailable
from ganbench.metrics.sliced_wasserstein import laplacian_pyramid, levels, patches

sliced_wasserstein = importlib.import_module(
    "ganbench.metrics.sliced_wasserstein"
)  # the package has a function of the same name

BINOMIAL = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256


def images(n, seed, edge=16, channels=1):
    """Return smooth images with some noise."""
    g = torch.Generator().manual_seed(seed)
    blobs = torch.rand(n, channels, edge // 4, edge // 4, generator=g).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return (255 * (blobs + 0.1 * torch.rand(n, channels, edge, edge, generator=g)) / 1.1).to(torch.uint8)


def measure(real, fake, seed=0):
    g = torch.Generator().manual_seed(seed)
    return sliced_wasserstein.PROTOCOLS[0].compute(Inputs(Side(real), Side(fake), None, g))


def test_the_pyramid_equals_scipys_filters():
    x = images(3, 0, edge=64, channels=3).double().numpy()

    def blur(t, gain):
        return np.stack([[scipy.ndimage.convolve(c, BINOMIAL * gain, mode="mirror") for c in image] for image in t])

    expected = []
    for _ in range(2):
        smaller = blur(x, 1)[:, :, ::2, ::2]
        spread = np.zeros_like(x)
        spread[:, :, ::2, ::2] = smaller
        expected.append(x - blur(spread, 4))
        x = smaller
    expected.append(x)
    ours = laplacian_pyramid(images(3, 0, edge=64, channels=3), 3)
    assert [tuple(level.shape) for level in ours] == [(3, 3, 64, 64), (3, 3, 32, 32), (3, 3, 16, 16)]
    for level, theirs in zip(ours, expected, strict=True):
        assert level.numpy() == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize(
    ("height", "width", "sides"),
    [(128, 128, [128, 64, 32, 16]), (64, 64, [64, 32, 16]), (28, 28, [28]), (48, 64, [48, 24]), (16, 16, [16]),
     (50, 50, [50, 25])],
)
def test_levels_are_halved_down_to_sixteen(height, width, sides):
    assert levels(height, width) == sides


def test_small_images_and_sides_that_cannot_be_halved_are_unavailable():
    with pytest.raises(Unavailable, match="needs images of at least 16 x 16"):
        levels(15, 64)
    with pytest.raises(Unavailable, match="needs sides that can be halved"):
        levels(65, 65)
    with pytest.raises(Unavailable, match="differ in size"):
        measure(images(3, 0), images(3, 0, edge=32))
    with pytest.raises(Unavailable, match="needs at least 2 images"):
        measure(images(3, 0), images(1, 0))


def test_patches_are_parts_of_their_images_standardised_by_channel():
    x = images(5, 0, channels=3)
    g = torch.Generator().manual_seed(0)
    found = patches(x, 0, 1, g).view(5, 128, 3, 7, 7)
    assert found.mean((0, 1, 3, 4)).tolist() == pytest.approx([0] * 3, abs=1e-5)
    assert found.std((0, 1, 3, 4), correction=0).tolist() == pytest.approx([1] * 3, abs=1e-5)
    windows = x.float().unfold(2, 7, 1).unfold(3, 7, 1).permute(0, 2, 3, 1, 4, 5)  # n, y, x, c, 7, 7
    # Undo the standardisation: pixels are whole numbers.
    for image, some in zip(windows, found, strict=True):
        channels = [some[:, c] for c in range(3)]
        pieces = image.flatten(0, 1)
        for c, piece in enumerate(channels):
            d = torch.cdist(_standard(piece), _standard(pieces[:, c]))
            assert d.amin(1).max() < 1e-2
    places = patches(torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16), 0, 1, g)
    assert len(places.unique(dim=0)) > 60  # of the 100 places of a 7 x 7 window


def _standard(x):
    x = x.flatten(1)
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)


def test_distances_along_a_line_equal_scipy():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(60, 5, generator=g), torch.randn(60, 5, generator=g) + 0.5
    distances, influence = sliced_wasserstein.sliced_wasserstein(a, b, torch.Generator().manual_seed(3), 2, 40)
    g, expected = torch.Generator().manual_seed(3), []
    for _ in range(2):
        u = torch.randn(40, 5, generator=g, dtype=torch.float64)
        for direction in u / u.norm(dim=1, keepdim=True):
            expected.append(wasserstein_distance(a.double() @ direction, b.double() @ direction))
    assert distances.numpy() == pytest.approx(np.array(expected), rel=1e-5)
    assert influence.shape == (2, 60)
    assert influence.mean(1).tolist() == pytest.approx([0, 0], abs=1e-12)
    with pytest.raises(ValueError, match="needs pairs"):
        sliced_wasserstein.sliced_wasserstein(a, b[:9], g)


def test_influences_are_the_derivative_of_the_distance():
    # Increase the weight of one descriptor slightly.
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, 1, generator=g), 2 * torch.randn(50, 1, generator=g) + 3
    _, influence = sliced_wasserstein.sliced_wasserstein(a, b, torch.Generator().manual_seed(0), 1, 1)
    before = wasserstein_distance(a[:, 0], b[:, 0])
    for i in (3, 20, 41):
        weights = np.ones(50)
        weights[i] += 1e-3
        slope = (wasserstein_distance(a[:, 0], b[:, 0], weights) - before) / (1e-3 / 50)
        assert influence[0, i].item() == pytest.approx(slope, rel=0.05, abs=0.05)


def test_the_distance_grows_with_noise_and_is_the_mean_over_levels():
    real, fake = images(40, 0, edge=32), images(40, 1, edge=32)
    noise = torch.randint(-40, 41, fake.shape, generator=torch.Generator().manual_seed(0))
    noisy = (fake.int() + noise).clamp(0, 255).to(torch.uint8)
    good, bad = measure(real, fake), measure(real, noisy)
    assert [v.suffix for v in good] == ["", "@32", "@16"]
    assert good[0].value == pytest.approx((good[1].value + good[2].value) / 2, rel=1e-12)
    assert good[0].details["levels"] == [32, 16]
    assert bad[1].value > 1.3 * good[1].value
    # Noise of single pixels appears at the finest level.
    assert bad[1].value - good[1].value > 2 * (bad[2].value - good[2].value)
    assert "16,384" in good[0].warnings[0]


def test_images_of_a_single_colour_have_distance_zero():
    flat = torch.full((4, 1, 16, 16), 7, dtype=torch.uint8)
    assert measure(flat, flat + 9)[0].value == 0


def test_unequal_counts_are_equalised_by_a_draw():
    value = measure(images(30, 0), images(20, 1))[0]
    assert (value.n_real, value.n_fake, value.details["images"]) == (30, 20, 20)


@pytest.mark.parametrize("alike", [True, False])
def test_the_standard_error_equals_the_deviation_over_new_samples(monkeypatch, alike):
    monkeypatch.setattr(sliced_wasserstein, "REPEATS", 1)
    monkeypatch.setattr(sliced_wasserstein, "DIRECTIONS", 32)
    values, errors = [], []
    for i in range(24):
        real, fake = images(40, 2 * i), images(40, 2 * i + 1)
        if not alike:  # different brightness, most of which the standardisation removes
            fake = (fake // 2 + 20 * (torch.arange(40) % 4).view(-1, 1, 1, 1)).to(torch.uint8)
        value = measure(real, fake, i)[0]
        values.append(value.value)
        errors.append(value.uncertainty.value)
    ratio = math.sqrt(np.square(errors).mean()) / np.std(values, ddof=1)
    assert 0.65 < ratio < (2.5 if alike else 1.6), ratio
