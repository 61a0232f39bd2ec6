"""Linear probes against scikit-learn's minimisers of the same objectives."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from ganbench.metrics import Inputs, Side, Unavailable, probes
from ganbench.metrics.probes import few_labels_probe, linear_classifier, predict, probe, split, standardise

LOSSES = ("logistic", "squared hinge")


def blobs(n, seed, d=6, classes=3, spread=1.0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    return torch.nn.functional.one_hot(labels, d).float() * 2 + spread * torch.randn(n, d, generator=g), labels


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def side(features, labels):
    return Side(torch.zeros(len(features), 1, 2, 2, dtype=torch.uint8), labels, features)


def measure(stem, real, held_out, seed=0):
    protocol = next(p for p in probes.PROTOCOLS if p.stem == stem)
    [value] = protocol.compute(Inputs(real, real, held_out, generator(seed)))
    return value


@pytest.mark.parametrize("strength", [10, 0.1, 1e-3])
def test_logistic_regression_equals_scikit_learn(strength):
    x, y = blobs(150, 0)
    found = linear_classifier(x, y, 3, strength, "logistic", tolerance=1e-8)
    reference = LogisticRegression(C=1 / (strength * len(x)), tol=1e-8, max_iter=5000).fit(x.double(), y)
    scores = x.double() @ found[:, :-1].T + found[:, -1]
    expected = torch.from_numpy(reference.decision_function(x.double().numpy()))
    # A constant in all biases does not change the probabilities, and either fit may choose it freely.
    assert torch.allclose(scores - scores.mean(1, keepdim=True), expected - expected.mean(1, keepdim=True), atol=1e-5)


@pytest.mark.parametrize("strength", [10, 0.1, 1e-3])
def test_the_l2_svm_equals_scikit_learn(strength):
    x, y = blobs(150, 0)
    found = linear_classifier(x, y, 3, strength, "squared hinge", tolerance=1e-8)
    # The bias of liblinear has a penalty, which a large intercept_scaling makes negligible.
    reference = LinearSVC(C=1 / (strength * len(x)), intercept_scaling=1e3, dual=False, tol=1e-10,
                          max_iter=100_000).fit(x.double().numpy(), y.numpy())
    assert torch.allclose(found[:, :-1], torch.from_numpy(reference.coef_), atol=1e-4)
    assert torch.allclose(found[:, -1], torch.from_numpy(reference.intercept_), atol=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_start_of_the_fit_does_not_matter(loss):
    x, y = blobs(90, 0)
    start = torch.randn(3, 7, generator=generator(), dtype=torch.float64)
    a = linear_classifier(x, y, 3, 0.01, loss, tolerance=1e-8)
    b = linear_classifier(x, y, 3, 0.01, loss, start, tolerance=1e-8)
    assert torch.allclose(a[:, :-1], b[:, :-1], atol=1e-4)


def test_standardised_features_have_mean_0_and_variance_1_over_the_training_images():
    x, _ = blobs(200, 0)
    x[:, 2] = 1e5  # constant, but its sums are rounded
    a, b = standardise(x * 1e-6, x * 1e-6)
    varies = [0, 1, 3, 4, 5]
    assert torch.allclose(a[:, varies].mean(0), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(a[:, varies].var(0, correction=0), torch.ones(5, dtype=torch.float64))
    assert (a[:, 2] == 0).all()
    assert torch.equal(a, b)


def test_a_split_contains_every_row_once_and_at_most_10000_for_validation():
    for n, size in ((60, 10), (6, 1), (70_000, 10_000)):
        fit, validation = split(n, generator())
        assert len(validation) == size
        assert torch.equal(torch.cat([fit, validation]).sort().values, torch.arange(n))
    with pytest.raises(Unavailable, match="needs at least 6 labelled images, not 5"):
        split(5, generator())


@pytest.mark.parametrize("loss", LOSSES)
def test_the_strength_is_the_best_on_the_validation_split_and_not_on_the_test_set(loss):
    # Fifty noise features for 120 images: the weakest penalty overfits.
    (x, y), (t, truth) = blobs(120, 0, d=50, spread=1.5), blobs(500, 1, d=50, spread=1.5)
    answers, strength = probe(x, y, t, loss, generator())
    assert probe(x, y, t[:1], loss, generator())[1] == strength

    scaled, *_ = standardise(x)
    fit, validation = split(120, generator())
    hits = {}
    for s in probes.STRENGTHS:
        w = linear_classifier(scaled[fit], y[fit], 3, s, loss)
        hits[s] = int((predict(w, scaled[validation]) == y[validation]).sum())
    assert hits[strength] == max(hits.values())
    assert len(set(hits.values())) > 1

    final = linear_classifier(scaled, y, 3, strength, loss)
    expected = predict(final, standardise(x, t)[1])
    assert (answers == expected).double().mean() > 0.995
    assert (answers == truth).double().mean() > 0.5


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_unit_of_the_features_does_not_matter(loss, scale):
    (x, y), (t, _) = blobs(60, 0), blobs(40, 1)
    a, b = probe(x, y, t, loss, generator()), probe(x * scale, y, t * scale, loss, generator())
    assert a[1] == b[1]
    assert torch.equal(a[0], b[0])


def test_labels_may_be_any_numbers_and_classes_without_training_images_are_refused():
    (x, y), (t, truth) = blobs(60, 0), blobs(40, 1)
    plain = measure("linear_probe", side(x, y), side(t, truth)).value
    assert measure("linear_probe", side(x, 100 * y + 7), side(t, 100 * truth + 7)).value == plain
    with pytest.raises(Unavailable, match="no class in common: labels 0, 1, 2 of the reference, and 50, 51, 52 of"):
        measure("linear_probe", side(x, y), side(t, truth + 50))
    with pytest.raises(Unavailable, match="the reference have no image of 2 classes of the test images: 1, 2"):
        measure("svm_probe", side(x, 0 * y), side(t, truth))
    # A single class gives a constant prediction.
    assert not probe(x, 0 * y, t, "squared hinge", generator())[0].any()


def test_a_linear_probe_learns_only_linear_classes():
    g = generator()
    x = torch.rand(600, 2, generator=g) * 2 - 1
    linear, checkers = (x[:, 0] > x[:, 1]).long(), ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long()
    for stem in ("linear_probe", "svm_probe"):
        assert measure(stem, side(x[:400], linear[:400]), side(x[400:], linear[400:])).value > 0.97
        assert measure(stem, side(x[:400], checkers[:400]), side(x[400:], checkers[400:])).value < 0.65


def test_more_labels_give_higher_accuracy_and_a_smaller_deviation_over_draws():
    (x, y), (t, truth) = blobs(600, 0, spread=1.5), blobs(300, 1, spread=1.5)
    accuracies, strength = few_labels_probe(x, y, t, truth, 12, 10, generator())
    assert accuracies.shape == (10,)
    assert strength in probes.STRENGTHS
    assert accuracies.std() > 0
    many, _ = few_labels_probe(x, y, t, truth, 300, 10, generator())
    assert many.mean() > accuracies.mean() + 0.02
    assert many.std() < accuracies.std()


def test_the_thousand_label_probe_is_the_mean_and_deviation_over_ten_draws():
    (x, y), (t, truth) = blobs(1500, 0, classes=2), blobs(200, 1, classes=2)
    value = measure("svm_probe_1000", side(x, y), side(t, truth))
    draws = np.array(value.details["accuracies"])
    assert len(draws) == 10
    assert value.value == pytest.approx(draws.mean(), abs=1e-6)
    assert value.uncertainty.value == pytest.approx(draws.std(ddof=1), abs=1e-6)
    assert (value.uncertainty.kind, value.uncertainty.over) == ("standard deviation", "10 draws of labels")
    assert (value.details["train"], value.warnings, value.n_real) == (1000, (), 200)


def test_labels_that_cannot_be_divided_by_the_classes_give_a_warning():
    (x, y), (t, truth) = blobs(1400, 0), blobs(50, 1)
    value = measure("svm_probe_1000", side(x, y), side(t, truth))
    assert value.warnings == ("999 labels: 1,000 cannot be divided by 3 classes",)


def test_too_few_images_of_a_class_are_unavailable():
    (x, y), (t, truth) = blobs(600, 0), blobs(50, 1)
    reason = "need at least 333 images of each class that are not used for validation, and a class has 1"
    with pytest.raises(Unavailable, match=reason):
        measure("svm_probe_1000", side(x, y), side(t, truth))
    with pytest.raises(Unavailable, match="needs at least 6"):
        measure("linear_probe", side(x[:5], y[:5]), side(t, truth))
