"""Accuracy of a classifier on the requested classes against scikit-learn, at native and reduced size."""

import numpy as np
import pytest
import torch
from scipy.stats import norm, pearsonr
from sklearn.metrics import accuracy_score, recall_score

from ganbench.metrics import Inputs, Side, Unavailable, discriminability
from ganbench.metrics.discriminability import accuracy, lower_resolutions
from ganbench.metrics.ms_ssim import ms_ssim

IMAGES = torch.zeros(0, 1, 8, 8, dtype=torch.uint8)


def draw(n, k, seed):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(k, (n,), generator=g)
    return torch.randn(n, k, generator=g) + 2 * torch.nn.functional.one_hot(labels, k), labels


def measure(labels, logits, at=None):
    fake = Side(IMAGES, labels, logits=logits, logits_at=at or {})
    return discriminability.PROTOCOLS[0].compute(Inputs(Side(IMAGES), fake, None, torch.Generator()))


def test_accuracy_equals_scikit_learn_in_total_and_per_class():
    logits, labels = draw(500, 7, 0)
    [value] = measure(labels, logits)
    answers = logits.argmax(1)
    assert value.value == accuracy_score(labels, answers)
    recall = recall_score(labels, answers, average=None)
    assert list(value.details["per_class"].values()) == pytest.approx(recall.tolist(), abs=1e-6)
    assert list(value.details["per_class"]) == [str(c) for c in range(7)]


def test_each_resolution_gives_a_value_with_its_own_suffix():
    logits, labels = draw(60, 4, 0)
    at = {r: draw(60, 4, r)[0] for r in (16, 8)}
    values = measure(labels, logits, at)
    assert [v.suffix for v in values] == ["", "@16", "@8"]
    assert [v.value for v in values] == [accuracy_score(labels, x.argmax(1)) for x in (logits, at[16], at[8])]


def test_the_standard_error_equals_the_standard_deviation_over_new_samples():
    runs = []
    for seed in range(300):
        logits, labels = draw(200, 3, seed)
        runs.append(accuracy(logits, labels))
    values, errors = np.array(runs).T
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(ddof=1), rel=0.15)


def test_the_standard_error_is_not_zero_at_0_or_100_percent():
    labels = torch.arange(10) % 2
    right = torch.nn.functional.one_hot(labels, 2).float()
    (all_right, e1), (none_right, e2) = accuracy(right, labels), accuracy(-right, labels)
    assert (all_right, none_right) == (1.0, 0.0)
    # Agresti and Coull: (10 + 2) of (10 + 4)
    assert (e1, e2) == pytest.approx([(12 / 14 * 2 / 14 / 14) ** 0.5] * 2, rel=1e-12)


@pytest.mark.parametrize(
    ("side", "expected"), [(28, (16, 8, 4)), (128, (64, 32, 16, 8, 4)), (32, (16, 8, 4)), (8, (4,)), (4, ())]
)
def test_resolutions_are_the_powers_of_two_below_the_side(side, expected):
    assert lower_resolutions(side) == expected


@pytest.mark.parametrize(
    ("label", "reason"),
    [(-1, "needs a label for every image, and 1 are below 0"), (3, "label 3 is not one of the extractor's 3 classes")],
)
def test_a_label_outside_the_classes_is_unavailable(label, reason):
    with pytest.raises(Unavailable, match=reason):
        measure(torch.tensor([0, 1, label]), torch.randn(3, 3))


def test_missing_labels_or_logits_are_unavailable():
    with pytest.raises(Unavailable, match="no labels"):
        measure(None, torch.randn(3, 3))
    with pytest.raises(Unavailable, match="no classes"):
        measure(torch.tensor([0]), None)


# --- AC-GAN's analysis by class


def protocol(stem):
    return next(p for p in discriminability.PROTOCOLS if p.stem == stem)


def compute(stem, fake, real=None, seed=0):
    return protocol(stem).compute(Inputs(real or Side(IMAGES), fake, None, torch.Generator().manual_seed(seed)))


def pictures(variety, each=8, seed=0, edge=16):
    """Return images of one class for each entry of `variety`: the number of distinct images, which are repeated."""
    g = torch.Generator().manual_seed(seed)
    images, labels = [], []
    for c, kinds in enumerate(variety):
        own = torch.randint(256, (kinds, 1, edge, edge), generator=g, dtype=torch.uint8)
        images.append(own[torch.arange(each) % kinds])
        labels += [c] * each
    return torch.cat(images), torch.tensor(labels)


def test_a_class_gains_if_its_accuracy_is_higher_at_native_size():
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    at_native = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 0, 2, 0]), 3).float()  # 1, 0.5, 0.5
    reduced = torch.nn.functional.one_hot(torch.tensor([0, 1, 1, 0, 2, 2]), 3).float()  # 0.5, 0.5, 1
    [value] = compute("gaining_classes", Side(IMAGES, labels, logits=at_native, logits_at={32: reduced}))
    assert (value.value, value.suffix, value.n_fake) == (1 / 3, "@32", 6)  # an equal accuracy is no gain
    assert value.details["per_class"] == {"native": {"0": 1, "1": 0.5, "2": 0.5}, "@32": {"0": 0.5, "1": 0.5, "2": 1}}
    assert value.uncertainty.value == pytest.approx((3 / 7 * 4 / 7 / 7) ** 0.5, rel=1e-12)
    assert value.uncertainty.over == "the classes (binomial)"


def test_each_resolution_gives_a_share_of_gaining_classes_and_one_is_required():
    logits, labels = draw(200, 4, 0)
    fake = Side(IMAGES, labels, logits=logits, logits_at={r: draw(200, 4, r)[0] for r in (7, 4)})
    assert [v.suffix for v in compute("gaining_classes", fake)] == ["@7", "@4"]
    with pytest.raises(Unavailable, match="needs a lower resolution"):
        compute("gaining_classes", Side(IMAGES, labels, logits=logits))
    with pytest.raises(Unavailable, match="not finite"):
        compute("gaining_classes", Side(IMAGES, labels, logits=logits, logits_at={7: logits / 0}))
    assert [protocol("gaining_classes").resolutions(side) for side in (128, 28, 2)] == [(32,), (7,), (1,)]


def test_ms_ssim_of_a_class_is_the_mean_over_its_own_pairs():
    images, labels = pictures([1, 8, 2])
    found = discriminability.class_ms_ssim(images, labels, torch.Generator().manual_seed(0), pairs=400)
    assert list(found) == [0, 1, 2]
    assert found[0] == pytest.approx(1, abs=1e-12)
    # Eight images of two kinds: 3 of the 7 other images are equal.
    other = ms_ssim(images[16:17], images[17:18]).item()
    assert found[2] == pytest.approx(3 / 7 + 4 / 7 * other, abs=4 * 0.5 / 20)
    a, b = np.triu_indices(8, 1)
    every = ms_ssim(images[8:16][a], images[8:16][b])
    assert found[1] == pytest.approx(every.mean().item(), abs=5 * every.std().item() / 20)


def test_a_class_is_diverse_if_its_ms_ssim_is_below_the_largest_real_class_mean():
    real = Side(*pictures([2, 8], seed=1))
    fake = Side(*pictures([1, 8, 8, 8]))
    [value] = compute("diverse_classes", fake, real)
    assert value.value == 3 / 4
    per_class = value.details["per_class"]
    assert value.details["threshold"] == max(per_class["real"].values()) == per_class["real"]["0"]
    assert [m < value.details["threshold"] for m in per_class["fake"].values()] == [False, True, True, True]
    assert (value.n_real, value.n_fake, value.details["classes"]) == (16, 32, 4)
    assert value.uncertainty.value == pytest.approx((5 / 8 * 3 / 8 / 8) ** 0.5, rel=1e-12)


def test_diverse_classes_need_labels_and_two_images_per_class():
    images, labels = pictures([2, 2])
    with pytest.raises(Unavailable, match="no labels"):
        compute("diverse_classes", Side(images, labels), Side(images))
    with pytest.raises(Unavailable, match="class 1 has one image"):
        compute("diverse_classes", Side(images[:9], labels[:9]), Side(images, labels))


@pytest.mark.parametrize("n", [4, 10, 60])
def test_the_correlation_and_its_interval_equal_scipy(n):
    g = torch.Generator().manual_seed(n)
    x = torch.randn(n, generator=g, dtype=torch.float64)
    y = 0.6 * x + torch.randn(n, generator=g, dtype=torch.float64)
    r, error = discriminability.correlation(x, y)
    reference = pearsonr(x, y)
    assert r == pytest.approx(reference.statistic, rel=1e-12)
    interval = reference.confidence_interval(norm.cdf(1) - norm.cdf(-1))
    assert error == pytest.approx((interval.high - interval.low) / 2, rel=1e-9)


def test_the_correlation_is_between_accuracy_and_ms_ssim_over_classes():
    # The classifier is right on the classes with variety and wrong on the others: r is close to -1.
    images, labels = pictures([1, 1, 8, 8, 8])
    logits = torch.nn.functional.one_hot(torch.where(labels < 2, 4, labels), 5).float()
    [value] = compute("accuracy_diversity_correlation", Side(images, labels, logits=logits))
    per_class = value.details["per_class"]
    assert list(per_class["accuracy"].values()) == [0, 0, 1, 1, 1]
    expected = np.corrcoef(list(per_class["accuracy"].values()), list(per_class["ms_ssim"].values()))[0, 1]
    assert value.value == pytest.approx(expected, abs=1e-5)
    assert value.value < -0.95
    assert protocol("accuracy_diversity_correlation").direction == "none"


def test_the_correlation_needs_four_classes_that_differ():
    images, labels = pictures([8, 8, 8])
    logits = torch.nn.functional.one_hot(labels, 3).float()
    with pytest.raises(Unavailable, match="needs at least 4 classes, not 3"):
        compute("accuracy_diversity_correlation", Side(images, labels, logits=logits))
    images, labels = pictures([8, 8, 8, 8])
    logits = torch.nn.functional.one_hot(labels, 4).float()
    with pytest.raises(Unavailable, match="the accuracy is the same in every class"):
        compute("accuracy_diversity_correlation", Side(images, labels, logits=logits))
    images, labels = pictures([1, 1, 1, 1])
    logits = torch.nn.functional.one_hot(labels // 2, 4).float()
    with pytest.raises(Unavailable, match="the MS-SSIM is the same in every class"):
        compute("accuracy_diversity_correlation", Side(images, labels, logits=logits))
