"""Synthetic images: any shape, balanced classes, the same pixels on every machine, different splits."""

import pytest
import torch

from ganbench.base.errors import UserError
from ganbench.data import datasets, sources


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 20), (3, 128, 128), (1, 1, 1)])
def test_images_have_the_shape_and_the_classes_of_the_spec(shape):
    name = "x".join(map(str, shape))
    for classes in (1, 10, 40):
        data = datasets.load(f"synthetic:{name}:{classes}:test")
        assert tuple(data.images.shape[1:]) == shape
        counts = data.labels.bincount(minlength=classes)
        assert counts.max() - counts.min() <= 1
        assert len(data.classes) == len(counts) == classes
    assert datasets.load(f"synthetic:{name}").fingerprint == datasets.load(f"synthetic:{name}:10:train").fingerprint


def test_the_pixels_are_the_same_on_every_machine():
    data = datasets.load("synthetic:1x2x3:3:train")
    assert data.fingerprint == "460cfc81ae8032d72b4a82e3a1ea0203dab25758e917cecebad7cda963675b8f"
    assert data.fingerprint != datasets.load("synthetic:1x2x3:3:test").fingerprint


def test_classes_can_be_told_apart():
    train, test = (datasets.load(f"synthetic:1x8x8:10:{part}") for part in ("train", "test"))
    distances = torch.cdist(test.images.flatten(1).float(), train.images.flatten(1).float())
    assert (train.labels[distances.argmin(1)] == test.labels).float().mean() > 0.95


def test_name_and_split_load_the_same_images_again():
    for spec in ("synthetic:3x4x4", "synthetic:3x4x4:7:test"):
        data = datasets.load(spec)
        assert datasets.load(data.name, data.split).fingerprint == data.fingerprint
        assert torch.equal(sources.open_source(spec).images, data.images)


@pytest.mark.parametrize("text", ["", ":train", ":2x8x8", ":1x8", ":1x0x8", ":1x8x8:0", ":1x8x8:val", ":1x8x8:10:val"])
def test_another_form_is_refused_with_an_example(text):
    with pytest.raises(UserError, match=r"write synthetic:CxHxW\[:CLASSES\]\[:train\|test\], as in synthetic:3x32x32"):
        datasets.load(f"synthetic{text}")
