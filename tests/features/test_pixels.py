"""Raw pixels as features."""

import torch

from ganbench.features import create


def test_pixels_are_flattened_by_channel_row_and_column_and_scaled_to_one():
    images = torch.arange(2 * 3 * 2 * 2, dtype=torch.uint8).view(2, 3, 2, 2) * 10
    out = create("pixels")(images)
    assert out.features.dtype == torch.float32
    assert torch.equal(out.features, torch.arange(24).view(2, 12) * 10 / 255)
    assert create("pixels")(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)).features.item() == 1


def test_there_are_no_classes_and_no_weights():
    pixels = create("pixels")
    assert pixels(torch.zeros(1, 1, 4, 4, dtype=torch.uint8)).logits is None
    assert (pixels.classes, pixels.sha256, pixels.title) == ((), "", "pixels")


def test_float_images_are_in_the_same_units_as_uint8_ones():
    images = torch.tensor([0.0, 0.25, 254.5, 255.0]).view(1, 1, 2, 2)
    assert torch.equal(create("pixels")(images).features, images.flatten(1) / 255)
