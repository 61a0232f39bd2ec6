"""GAN-train and GAN-test: training and test sets."""

import pytest
import torch

from ganbench.features.small_cnn import fit_classifier
from ganbench.metrics import Inputs, Side, Unavailable, gan_train_test


def bars(n, classes=3, seed=0, edge=8, shift=0):
    """Return images whose class is the position of a bright bar; `shift` moves the bars relative to the labels."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    images = torch.randint(80, (n, 1, edge, edge), generator=g, dtype=torch.uint8)
    for i, c in enumerate((labels + shift) % classes):
        images[i, 0, :, 2 * int(c)] = 250
    return Side(images, labels)


def nearest_mean(images, labels):
    means = torch.stack([images[labels == c].float().flatten(1).mean(0) for c in range(int(labels.max()) + 1)])
    return lambda x: -torch.cdist(x.float().flatten(1), means)


def measure(stem, real, fake, held_out, fit=nearest_mean, shared=None):
    protocol = next(p for p in gan_train_test.PROTOCOLS if p.stem == stem)
    inputs = Inputs(real, fake, held_out, torch.Generator(), {} if shared is None else shared, fit=fit)
    [value] = protocol.compute(inputs)
    return value


def test_gan_train_trains_on_generated_and_gan_test_on_real_images():
    real, wrong, held_out = bars(60), bars(40, seed=1, shift=1), bars(30, seed=2)
    assert measure("gan_train", real, bars(40, seed=1), held_out).value == 1
    assert measure("gan_test", real, bars(40, seed=1), held_out).value == 1
    assert measure("gan_train", real, wrong, held_out).value == 0
    assert measure("gan_test", real, wrong, held_out).value == 0
    # The third set does not matter.
    assert measure("gan_train", wrong, real, held_out).value == 1
    assert measure("gan_test", real, real, wrong).value == 1


def test_the_standard_error_is_binomial_over_the_test_images():
    real, half, held_out = bars(60), bars(40, seed=1), bars(30, seed=2)
    half.labels[:20] = (half.labels[:20] + 1) % 3
    value = measure("gan_test", real, half, held_out)
    assert value.value == 0.5
    assert value.uncertainty.value == pytest.approx((0.25 / 44) ** 0.5, rel=1e-12)
    assert (value.n_real, value.n_fake, value.uncertainty.over) == (60, 40, "the samples (binomial)")
    value = measure("gan_train", real, bars(40, seed=1), held_out)
    assert (value.n_real, value.n_fake, value.uncertainty.over) == (30, 40, "the test images (binomial)")


def test_classes_without_generated_images_count_as_errors_and_give_a_warning():
    fake = bars(40, seed=1)
    two = Side(fake.images[fake.labels < 2], fake.labels[fake.labels < 2])
    value = measure("gan_train", bars(60), two, bars(30, seed=2))
    assert value.value == pytest.approx(2 / 3)
    assert value.warnings == ("1 of the test classes have no training image: 2",)


def test_the_classifier_of_the_reference_is_trained_once():
    calls = []

    def fit(images, labels):
        calls.append(len(images))
        return nearest_mean(images, labels)

    shared = {}
    for _ in range(2):
        measure("gan_test", bars(60), bars(40, seed=1), None, fit, shared)
    assert calls == [60]


def test_sets_that_cannot_be_trained_on_are_unavailable():
    few, wide = bars(20), bars(200)
    wide = Side(wide.images[:, :, :6], wide.labels)
    for stem in ("gan_train", "gan_test"):
        for bad in (few, wide):
            with pytest.raises(Unavailable, match=r"the classifier needs other images: .*128 square images"):
                measure(stem, bad, bad, bars(30), fit_classifier)
        with pytest.raises(Unavailable, match="a label for every image"):
            measure(stem, *[Side(few.images, few.labels - 1)] * 2, few)
        with pytest.raises(Unavailable, match="no labels"):
            measure(stem, few, Side(few.images), few)
        with pytest.raises(Unavailable, match="no classifier"):
            measure(stem, few, few, few, fit=None)
    with pytest.raises(Unavailable, match="no real images beside the reference"):
        measure("gan_train", few, few, None)


def test_the_real_row_trains_on_the_reference():
    rows = {p.stem: p.real_row for p in gan_train_test.PROTOCOLS}
    assert rows == {"gan_train": "reference", "gan_test": "held_out"}
