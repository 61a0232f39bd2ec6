"""MS-SSIM against pytorch-msssim on large images and plain NumPy on small ones; the choice of pairs."""

import importlib

import numpy as np
import pytest
import pytorch_msssim
import torch
from scipy.ndimage import convolve
from scipy.signal import fftconvolve

from ganbench.metrics import Inputs, Side, Unavailable

ms_ssim = importlib.import_module("ganbench.metrics.ms_ssim")  # the package has a function of the same name

WITHIN, ALL = ms_ssim.PROTOCOLS


def similar(n, c, side, seed, noise=40):
    """Return n pairs of smooth uint8 images that differ by noise."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, c, 7, 7, generator=g) * 255
    a = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)
    b = a + noise * torch.randn(n, c, side, side, generator=g)
    return (x.round().clamp(0, 255).to(torch.uint8) for x in (a, b))


def plain(a, b, cut=False):
    """Return the MS-SSIM of a pair of single channels, H x W, as in the ProGAN code: 2-D windows, box filter, stride 2.

    cut: sigma stays 1.5, as in compare_gan.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity, contrast = [], []
    for _ in range(5):
        size = min(11, *x.shape)
        sigma = 1.5 if cut else size * 1.5 / 11
        at = np.arange(size) - (size - 1) / 2
        window = np.exp(-(at[:, None] ** 2 + at[None, :] ** 2) / (2 * sigma**2))
        window /= window.sum()

        def blur(z, window=window):
            return fftconvolve(z, window, mode="valid")

        mx, my = blur(x), blur(y)
        sxx, syy, sxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
        cs = (2 * sxy + c2) / (sxx + syy + c2)
        contrast.append(cs.mean())
        similarity.append(((2 * mx * my + c1) / (mx * mx + my * my + c1) * cs).mean())
        x, y = (convolve(z, np.full((2, 2), 0.25), mode="reflect")[::2, ::2] for z in (x, y))
    terms = np.clip([*contrast[:4], similarity[4]], 0, None)
    return np.prod(terms ** np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333]))


@pytest.mark.parametrize("side", [176, 192])
@pytest.mark.parametrize(("channels", "noise"), [(1, 10), (3, 60)])
def test_ms_ssim_equals_pytorch_msssim_on_large_images(side, channels, noise):
    a, b = similar(3, channels, side, side, noise)
    a, b = a.double(), b.double()
    ours = ms_ssim.ms_ssim(a, b).tolist()
    assert all(0.2 < value < 0.999 for value in ours)
    theirs = pytorch_msssim.ms_ssim(a, b, data_range=255, size_average=False)
    assert ours == pytest.approx(theirs.tolist(), rel=1e-5)
    # The window of pytorch-msssim is float32; with a float64 window both agree to rounding.
    window = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = (window / window.sum()).expand(channels, 1, 1, 11)
    exact = pytorch_msssim.ms_ssim(a, b, data_range=255, size_average=False, win=window)
    assert ours == pytest.approx(exact.tolist(), rel=1e-10)


@pytest.mark.parametrize("side", [8, 16, 28, 32, 50, 64])
@pytest.mark.parametrize("noise", [5, 40, 200])
def test_ms_ssim_equals_plain_numpy_on_small_images(side, noise):
    a, b = similar(4, 1, side, side, noise)
    expected = [plain(x[0], y[0]) for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    # The FFT rounds: if a factor is near 0, only the absolute error is small.
    assert ms_ssim.ms_ssim(a, b).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("side", [8, 28, 50, 64, 100])
def test_a_cut_window_keeps_its_sigma(side):
    a, b = (x.double() for x in similar(3, 1, side, side, 40))
    expected = [plain(x[0], y[0], cut=True) for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    ours = ms_ssim.ms_ssim(a, b, variant="cut-window")
    assert ours.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert (ours - ms_ssim.ms_ssim(a, b)).abs().max() > 1e-6  # the window is smaller than 11 at some scale


def test_the_variants_are_equal_if_the_window_fits_at_every_scale():
    a, b = (x.double() for x in similar(2, 1, 176, 0))
    assert torch.equal(ms_ssim.ms_ssim(a, b, "cut-window"), ms_ssim.ms_ssim(a, b, "shrunk-window"))


def blank(side):
    """Return flat pairs, pairs with one edge, and pairs that differ by a grey level: the hardest for float32."""
    a, b = torch.zeros(6, 1, side, side, dtype=torch.uint8), torch.zeros(6, 1, side, side, dtype=torch.uint8)
    a[0], b[0] = 255, 0
    a[1], b[1] = 3, 250
    a[2, :, :, : side // 2], b[2, :, : side // 2] = 255, 200
    a[3], b[3] = 254, 255
    a[4, :, ::2], b[4, :, 1::2] = 255, 255
    a[5, :, side // 3 :], b[5, :, side // 3 :] = 250, 251
    return a, b


@pytest.mark.parametrize("side", [65, 128, 200])
@pytest.mark.parametrize("noise", [2, 40, 200, "unrelated", "blank"])
def test_large_uint8_images_agree_with_float64_to_1e_5(side, noise):
    if noise == "blank":
        a, b = blank(side)
    elif noise == "unrelated":
        a, b = next(similar(6, 3, side, 1)), next(similar(6, 3, side, 2))
    else:
        a, b = similar(6, 3, side, side, noise)
    error = (ms_ssim.ms_ssim(a, b) - ms_ssim.ms_ssim(a.double(), b.double())).abs().max().item()
    assert error < (1e-5 if noise == "blank" else 1e-6)


@pytest.mark.parametrize("shape", [(128, 60), (17, 128), (90, 200)])
def test_images_that_are_not_square_are_filtered_along_the_right_axes(shape):
    a, b = (x[..., : shape[0], : shape[1]] for x in similar(2, 1, max(shape), 0))
    assert ms_ssim.ms_ssim(a.mT, b.mT).tolist() == pytest.approx(ms_ssim.ms_ssim(a, b).tolist(), abs=1e-7)
    # Swapped sides in one filter would change the shapes; swapped windows would change the value.
    exact = [plain(p[0].numpy(), q[0].numpy()) for p, q in zip(a, b, strict=True)]
    assert ms_ssim.ms_ssim(a, b).tolist() == pytest.approx(exact, abs=2e-3 if min(shape) > 80 else 0.05)


@pytest.mark.parametrize("side", [16, 100, 176])
def test_equal_images_are_exactly_one(side):
    a, _ = similar(2, 3, side, 1)
    assert ms_ssim.ms_ssim(a, a.clone()).tolist() == [1.0, 1.0]
    assert ms_ssim.ms_ssim(torch.full_like(a, 7), torch.full_like(a, 7)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("side", [28, 100])
def test_a_pair_has_the_same_value_in_any_batch(side, monkeypatch):
    a, b = similar(5, 3, side, 1)
    alone = torch.cat([ms_ssim.ms_ssim(a[i : i + 1], b[i : i + 1]) for i in range(5)])
    monkeypatch.setattr(ms_ssim, "CACHED", 2 * a[0].numel())
    assert ms_ssim.ms_ssim(a, b).tolist() == pytest.approx(alone.tolist(), abs=1e-7)


def test_an_unknown_variant_and_pairs_of_two_shapes_raise():
    a, b = similar(2, 1, 16, 1)
    with pytest.raises(ValueError, match="unknown variant 'wang' of MS-SSIM: shrunk-window, cut-window"):
        ms_ssim.ms_ssim(a, b, "wang")
    with pytest.raises(ValueError, match="images of one shape"):
        ms_ssim.ms_ssim(a, b[..., :8])


def test_the_values_of_the_protocols_equal_the_first_release():
    # Computed before the filters were rewritten.
    images = next(similar(12, 1, 28, 1, 0))
    labels = torch.arange(12) % 2
    assert measure(WITHIN, images, labels).value == pytest.approx(0.05840967601590379, abs=1e-9)
    assert measure(ALL, images, labels).value == pytest.approx(0.044090279503957545, abs=1e-9)
    large = next(similar(6, 1, 72, 1, 0))
    assert measure(ALL, large, None).value == pytest.approx(0.0151569973087807, abs=1e-6)


def test_colour_is_the_mean_over_the_channels():
    a, b = similar(2, 3, 32, 0)
    channels = [ms_ssim.ms_ssim(a[:, c : c + 1], b[:, c : c + 1]) for c in range(3)]
    assert ms_ssim.ms_ssim(a, b).tolist() == pytest.approx(torch.stack(channels).mean(0).tolist(), rel=1e-12)


def test_ms_ssim_is_one_for_equal_images_and_symmetric():
    a, b = similar(3, 1, 28, 1)
    assert ms_ssim.ms_ssim(a, a).tolist() == pytest.approx([1.0] * 3, rel=1e-12)
    assert torch.equal(ms_ssim.ms_ssim(a, b), ms_ssim.ms_ssim(b, a))


def test_an_image_and_its_negative_have_ms_ssim_zero():
    a, _ = similar(3, 1, 28, 1)
    assert ms_ssim.ms_ssim(a, 255 - a).tolist() == [0.0, 0.0, 0.0]


def test_more_noise_lowers_ms_ssim():
    values = [ms_ssim.ms_ssim(*similar(5, 1, 28, 0, noise)).mean().item() for noise in (0, 10, 40, 120)]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(1, rel=1e-12)


def test_pairs_have_two_different_entries_and_all_pairs_are_equally_likely():
    rows = torch.tensor([4, 8, 15, 16])
    first, second = ms_ssim.random_pairs(rows, 24_000, torch.Generator().manual_seed(0))
    assert set(first.tolist()) | set(second.tolist()) == {4, 8, 15, 16}
    counts = torch.stack([first, second], 1).unique(dim=0, return_counts=True)[1]
    # 12 ordered pairs, 2,000 each; the standard deviation is 43.
    assert len(counts) == 12
    assert counts.min() > 1800
    assert counts.max() < 2200
    assert (first != second).all()


def measure(protocol, images, labels, seed=0):
    side = Side(images, labels)
    [value] = protocol.compute(Inputs(side, side, None, torch.Generator().manual_seed(seed)))
    return value


def two_kinds(per_class=6):
    """Return equal images of class 3 and different images of class 7."""
    same = next(similar(1, 1, 28, 0, 0)).expand(per_class, -1, -1, -1)
    different = next(similar(per_class, 1, 28, 1, 0))
    return torch.cat([same, different]), torch.tensor([3] * per_class + [7] * per_class)


def test_pairs_within_a_class_detect_a_collapsed_class():
    images, labels = two_kinds()
    value = measure(WITHIN, images, labels)
    assert value.details["per_class"]["3"] == 1
    assert value.details["per_class"]["7"] < 0.6
    assert value.details["pairs"] == 200
    pairs = ms_ssim.random_pairs(torch.arange(6, 12), 200, torch.Generator().manual_seed(5))
    expected = (1 + ms_ssim.ms_ssim(images[pairs[0]], images[pairs[1]]).mean().item()) / 2
    assert value.value == pytest.approx(expected, abs=5 * value.uncertainty.value)


def test_the_value_is_the_unrounded_mean_over_the_classes():
    # Each class has only one pair, in either order.
    images = torch.cat([*similar(1, 1, 28, 0), *similar(1, 1, 28, 1)])
    value = measure(WITHIN, images, torch.tensor([3, 3, 7, 7]))
    expected = ms_ssim.ms_ssim(images[::2], images[1::2]).mean().item()
    assert round(expected, 6) != pytest.approx(expected, rel=1e-9)
    assert value.value == pytest.approx(expected, rel=1e-12)
    assert (value.uncertainty, value.warnings) == (
        None, ("no uncertainty is known: at least 5 images are needed for one, not 2",)
    )


def test_pairs_over_all_samples_are_less_similar_than_within_a_class():
    images, labels = two_kinds()
    value = measure(ALL, images, labels)
    assert value.value < measure(WITHIN, images, labels).value
    exact = torch.cat([ms_ssim.ms_ssim(images[i : i + 1].expand_as(images), images) for i in range(12)])
    off_diagonal = exact[~torch.eye(12, dtype=torch.bool).flatten()].mean().item()
    assert value.value == pytest.approx(off_diagonal, abs=4 * value.uncertainty.value)


@pytest.mark.parametrize("protocol", [WITHIN, ALL], ids=lambda p: p.stem)
def test_the_standard_error_equals_the_deviation_over_new_samples_and_pairs(protocol, monkeypatch):
    monkeypatch.setattr(ms_ssim, "PAIRS", 200)
    monkeypatch.setattr(ms_ssim, "PAIRS_PER_CLASS", 100)
    labels = torch.arange(80) % 2
    runs = [measure(protocol, next(similar(80, 1, 8, seed, 0)), labels, seed) for seed in range(150)]
    errors = np.array([r.uncertainty.value for r in runs])
    assert np.sqrt((errors**2).mean()) == pytest.approx(np.std([r.value for r in runs], ddof=1), rel=0.15)


def test_the_same_generator_gives_the_same_pairs():
    images, labels = two_kinds()
    assert measure(WITHIN, images, labels, 1) == measure(WITHIN, images, labels, 1)
    assert measure(WITHIN, images, labels, 1).value != measure(WITHIN, images, labels, 2).value


def test_a_class_of_one_image_and_images_without_labels_are_unavailable():
    images, labels = two_kinds(2)
    with pytest.raises(Unavailable, match="class 7 has one image"):
        measure(WITHIN, images[:3], labels[:3])
    with pytest.raises(Unavailable, match="no labels"):
        measure(WITHIN, images, None)
    with pytest.raises(Unavailable, match="two images"):
        measure(ALL, images[:1], None)


def test_the_variance_of_a_mean_over_pairs_includes_common_images():
    # The values are sums of two of n independent numbers: the mean over all pairs is twice their mean, variance 4 / n.
    n, m = 30, 4000
    means, variances = [], []
    for seed in range(200):
        g = torch.Generator().manual_seed(seed)
        x, pairs = torch.randn(n, generator=g, dtype=torch.float64), ms_ssim.random_pairs(torch.arange(n), m, g)
        values = x[pairs[0]] + x[pairs[1]]
        means.append(values.mean())
        variances.append(ms_ssim.pairs_variance(values, pairs))
    assert torch.stack(means).var().item() == pytest.approx(4 / n, rel=0.25)
    assert sum(variances) / 200 == pytest.approx(4 / n, rel=0.15)
    assert values.var().item() / m < 0.01 * 4 / n  # the variance for independent pairs


def test_pairs_without_common_images_have_the_variance_of_independent_values():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs = torch.arange(50), torch.arange(50, 100)
    assert ms_ssim.pairs_variance(values, pairs) == pytest.approx(values.var().item() / 50, rel=1e-9)
