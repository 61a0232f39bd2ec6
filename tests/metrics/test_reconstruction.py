"""Reconstruction error on pixels in [-1, 1] against scikit-learn and closed forms."""

import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_squared_error

from ganbench.data.images import to_float
from ganbench.metrics import Inputs, Model, Side, Unavailable, reconstruction

IMAGES = torch.randint(256, (20, 3, 4, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def measure(stem, reconstruct, images=IMAGES):
    protocol = next(p for p in reconstruction.PROTOCOLS if p.stem == stem)
    empty = Side(images[:0])
    [value] = protocol.compute(
        Inputs(empty, empty, Side(images), torch.Generator(), model=Model("test", reconstruct=reconstruct))
    )
    return value


@pytest.mark.parametrize(
    ("stem", "reference"), [("reconstruction_mse", mean_squared_error), ("reconstruction_l1", mean_absolute_error)]
)
def test_the_error_equals_scikit_learn_over_all_pixels(stem, reference):
    noise = 0.3 * torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(1))
    value = measure(stem, lambda x: to_float(x) + noise)
    a, b = to_float(IMAGES), to_float(IMAGES) + noise
    assert value.value == pytest.approx(reference(a.flatten().double(), b.flatten().double()), rel=1e-9)
    each = [reference(x.flatten().double(), y.flatten().double()) for x, y in zip(a, b, strict=True)]
    assert value.uncertainty.value == pytest.approx(torch.tensor(each).std().item() / 20**0.5, rel=1e-6)
    assert (value.n_real, value.n_fake, value.uncertainty.over) == (20, 0, "the held-out images")


def test_a_grey_level_is_2_over_255_and_black_for_white_is_the_largest_error():
    def one_more(x):
        return (x.float() + 1) / 127.5 - 1

    assert measure("reconstruction_l1", one_more).value == pytest.approx(2 / 255, rel=1e-5)
    assert measure("reconstruction_mse", one_more).value == pytest.approx((2 / 255) ** 2, rel=1e-5)
    white = torch.full((3, 1, 2, 2), 255, dtype=torch.uint8)
    assert measure("reconstruction_l1", lambda x: 0 * x.float() - 1, white).value == 2
    assert measure("reconstruction_mse", lambda x: 0 * x.float() - 1, white).value == 4
    assert measure("reconstruction_mse", to_float).value == 0


def test_images_are_reconstructed_in_batches_and_in_order():
    sizes = []

    def reconstruct(x):
        sizes.append(len(x))
        return to_float(x)

    many = torch.arange(2500).view(-1, 1, 1, 1).remainder(256).to(torch.uint8)
    assert measure("reconstruction_l1", reconstruct, many).value == 0
    assert sizes == [1000, 1000, 500]


def test_reconstructions_that_cannot_be_compared_are_unavailable():
    with pytest.raises(Unavailable, match=r"images of shape \(3, 4, 5\) with shape \(3, 4, 4\)"):
        measure("reconstruction_mse", lambda x: to_float(x)[..., :4])
    with pytest.raises(Unavailable, match="not finite"):
        measure("reconstruction_mse", lambda x: to_float(x) / 0)
    with pytest.raises(Unavailable, match="no model that reconstructs"):
        measure("reconstruction_mse", None)
    with pytest.raises(Unavailable, match="needs at least 2 images, not 1"):
        measure("reconstruction_l1", to_float, IMAGES[:1])
    with pytest.raises(Unavailable, match="no real images beside the reference"):
        reconstruction.PROTOCOLS[0].compute(Inputs(Side(IMAGES), Side(IMAGES), None, torch.Generator()))
