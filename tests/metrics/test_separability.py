"""Linear separability against the definition in NumPy, scikit-learn and generators with known values."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score
from sklearn.svm import LinearSVC

from ganbench.metrics import Inputs, Model, Side, Space, Unavailable, separability
from ganbench.metrics.separability import (
    attributes,
    conditional_entropies,
    linear_separability,
    most_confident,
    separators,
)

NOTHING = Side(torch.zeros(0, 1, 1, 1, dtype=torch.uint8))
[PROTOCOL] = separability.PROTOCOLS


def draw(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def show(z, y=None):
    """Return images whose pixels are the latent, scaled into [-1, 1]."""
    return (z / 5).view(-1, 1, 2, 2)


def seen(images):
    return images.flatten(1).float() / 127.5 - 1


def measure(classify, generate=show, classes=0, seed=0):
    model = Model("test", classes, sample_latent=lambda n, g: torch.randn(n, 4, generator=g), generate=generate)
    generator = torch.Generator().manual_seed(seed)

    def embed(images):
        assert images.dtype == torch.uint8
        return seen(images), classify(seen(images))

    [value] = PROTOCOL.compute(Inputs(NOTHING, NOTHING, None, generator, model=model, embed=embed))
    return value


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(separability, "SAMPLES", 2000)
    monkeypatch.setattr(separability, "KEPT", 1000)


def two(score):
    return torch.stack([torch.zeros_like(score), score], 1)


# --- Entropies


def test_conditional_entropy_is_the_entropy_minus_the_mutual_information():
    x, y = draw(500, 3, 0) > 0.3, draw(500, 3, 1) > -0.5
    y[:, 1] |= x[:, 1]
    entropies, surprise = conditional_entropies(x, y)
    for i in range(3):
        p = y[:, i].double().mean().item()
        own = -p * math.log(p) - (1 - p) * math.log(1 - p)
        expected = own - mutual_info_score(x[:, i].numpy(), y[:, i].numpy())
        assert entropies[i].item() == pytest.approx(expected, rel=1e-12)
    assert torch.allclose(surprise.mean(0), entropies)


@pytest.mark.parametrize("case", list(product([0, 1], repeat=4)))
def test_conditional_entropies_of_four_samples_equal_the_definition(case):
    x, y = torch.tensor([0, 0, 1, 1])[:, None], torch.tensor(case)[:, None]

    def h(values):
        p = np.mean(values)
        return 0 if p in (0, 1) else -p * math.log(p) - (1 - p) * math.log(1 - p)

    expected = (h(case[:2]) + h(case[2:])) / 2
    assert conditional_entropies(x, y)[0].item() == pytest.approx(expected, abs=1e-12)


def test_separability_is_two_to_the_power_of_the_entropies_in_bits():
    x, y = draw(300, 4, 0) > 0, draw(300, 4, 1) > 0
    total = 0.0
    for i in range(4):
        table = np.array([[((x[:, i] == a) & (y[:, i] == b)).double().mean() for b in (0, 1)] for a in (0, 1)])
        joint, of_x = -(table * np.log2(table)).sum(), table.sum(1)
        total += joint + (of_x * np.log2(of_x)).sum()
    assert linear_separability(x, y)[0] == pytest.approx(2**total, rel=1e-12)


def test_predicted_attributes_and_constant_attributes_have_entropy_zero():
    y = draw(100, 3, 0) > 0
    assert linear_separability(y, y)[0] == 1
    assert linear_separability(~y, y)[0] == 1
    assert linear_separability(draw(100, 3, 1) > 0, torch.ones(100, 3))[0] == 1
    # A share of 100 % is not certain.
    assert linear_separability(y, y)[1] == pytest.approx(0.01)


def test_each_independent_attribute_gives_a_factor_of_two():
    x, y = draw(40_000, 2, 0) > 0, draw(40_000, 2, 1) > 0
    assert linear_separability(x, y)[0] == pytest.approx(4, rel=1e-3)


def test_the_entropy_of_no_samples_is_unavailable():
    with pytest.raises(Unavailable, match="needs at least 1 sample"):
        linear_separability(torch.zeros(0, 2), torch.zeros(0, 2))


# --- Attributes and separators


def test_each_of_several_classes_is_an_attribute_and_two_classes_are_one_attribute():
    answers = torch.tensor([0, 2, 1, 2])
    assert attributes(torch.eye(3)[answers]).int().tolist() == torch.eye(3).int()[answers].tolist()
    assert attributes(torch.eye(2)[answers.clamp(max=1)]).int().tolist() == [[0], [1], [1], [1]]


def test_the_most_confident_samples_have_the_largest_probability():
    logits = draw(200, 5, 0) * 3
    expected = np.argsort(-logits.softmax(1).amax(1).numpy(), kind="stable")[:100]
    assert sorted(most_confident(logits, 100).tolist()) == sorted(expected.tolist())
    # These probabilities are all 1 in float32.
    assert most_confident(torch.tensor([[0.0, 100.0], [0.0, 300.0], [0.0, 200.0]]), 2).tolist() == [1, 2]


def test_separators_equal_scikit_learn():
    z = draw(800, 10, 0)
    y = torch.stack([z[:, 0] + 0.5 * draw(800, 1, 1)[:, 0] > 0.3, z[:, 1] * z[:, 2] > 0], 1)
    said = separators(z, y)
    for i in range(2):
        assert (said[:, i].numpy() == LinearSVC().fit(z.numpy(), y[:, i].numpy()).predict(z.numpy())).mean() > 0.998
    assert (said[:, 0] == y[:, 0]).double().mean() > 0.8
    assert y[:, 0].sum() != said[:, 0].sum()  # the input is not changed


# --- The protocol


def test_a_class_that_is_a_half_space_has_separability_one():
    value = measure(lambda x: two(50 * (x[:, 0] + x[:, 1])))
    assert value.value == pytest.approx(1, abs=0.01)
    assert (value.n_real, value.n_fake, value.warnings) == (0, 2000, ())
    assert value.details["attributes"] == 1
    assert value.details["kept"] == 1000
    assert value.details["accuracy"] > 0.998


def test_a_class_that_no_hyperplane_predicts_has_separability_two():
    value = measure(lambda x: two(500 * x[:, 0] * x[:, 1]))
    assert value.value == pytest.approx(2, rel=0.03)
    assert value.details["accuracy"] < 0.65


def test_each_latent_space_has_its_value_from_the_same_samples():
    """A class by |z| is no half-space of Z, and one of W = (|z|, 0)."""
    def of(z, y):
        return torch.stack([z.norm(dim=1), 0 * z[:, 0]], 1)

    spaces = (Space("z", lambda z, y: z, show), Space("w", of, lambda w, y: show(w.repeat(1, 2)), straight=True))
    model = Model("test", sample_latent=lambda n, g: torch.randn(n, 4, generator=g), latent_spaces=spaces)

    def embed(images):
        x = 5 * seen(images)
        return x, two(500 * (x.norm(dim=1) - 1.83))

    inputs = Inputs(NOTHING, NOTHING, None, torch.Generator().manual_seed(0), model=model, embed=embed)
    in_z, in_w = PROTOCOL.compute(inputs)
    assert (in_z.suffix, in_w.suffix) == ("", "@w")
    assert in_z.value > 1.8  # no plane helps: the entropy of the classes, one of which is more often confident
    assert in_w.value == pytest.approx(1, abs=0.02)
    alone = measure(lambda x: two(500 * (5 * x.norm(dim=1) - 1.83)))
    assert alone.value == pytest.approx(in_z.value, rel=1e-12)  # sums over classes may differ by rounding
    assert alone.details == in_z.details


def test_only_the_confident_half_is_used():
    # Half of the samples are near the decision border, where the class does not depend on z_0 alone.
    def classify(x):
        sharp = x[:, 1] > 0
        return two(torch.where(sharp, 100 * x[:, 0], x[:, 2] * x[:, 3]))

    # About 2 % of the 1,000 samples that are kept do not belong to the sharp half.
    assert measure(classify).value < 1.2
    assert linear_separability(*half_of_all(classify))[0] > 1.5


def half_of_all(classify):
    z = draw(2000, 4, 0)
    y = attributes(classify(z / 5))
    return separators(z, y), y


def test_more_than_two_classes_are_one_against_the_rest():
    value = measure(lambda x: 20 * torch.cat([x, -x], 1))
    assert (value.details["attributes"], value.details["attributes_seen"]) == (8, 8)
    z = draw(2000, 4, 0)
    logits = 20 * torch.cat(
        [seen((show(z) * 127.5 + 128).to(torch.uint8)), -seen((show(z) * 127.5 + 128).to(torch.uint8))], 1
    )
    kept = most_confident(logits, 1000)
    y = attributes(logits[kept])
    expected = linear_separability(separators(z[kept], y), y)
    assert (value.value, value.uncertainty.value) == pytest.approx(expected, rel=1e-12)


def test_a_collapsed_generator_with_one_class_has_separability_one():
    value = measure(lambda x: two(x[:, 0]), lambda z, y: torch.zeros(len(z), 1, 2, 2))
    assert (value.value, value.details["attributes_seen"]) == (1, 0)


def test_a_conditional_generator_gives_a_warning():
    value = measure(lambda x: two(x[:, 0].sign()), lambda z, y: show(z * 0 + y[:, None].float() * 2 - 1), classes=2)
    assert "is given the class" in value.warnings[0]
    assert value.value == pytest.approx(2, rel=0.02)


def test_too_few_classes_and_values_that_are_not_finite_are_unavailable():
    with pytest.raises(Unavailable, match="has no classes"):
        measure(lambda x: None)
    with pytest.raises(Unavailable, match="fewer than two classes"):
        measure(lambda x: x[:, :1])
    with pytest.raises(Unavailable, match="logits are not finite"):
        measure(lambda x: x * math.nan)
    with pytest.raises(Unavailable, match="generated images are not finite"):
        measure(lambda x: x, lambda z, y: show(z) * math.nan)


@pytest.mark.parametrize("right", [0.7, 0.95])
def test_the_interval_of_the_standard_error_covers_the_truth(right):
    g = torch.Generator().manual_seed(0)

    def joint(n):
        """Return attributes of three classes, and separators that are right for a share of the samples."""
        y = torch.randint(3, (n,), generator=g)
        x = torch.where(torch.rand(n, generator=g) < right, y, torch.randint(3, (n,), generator=g))
        return (torch.nn.functional.one_hot(a, 3).bool() for a in (x, y))

    truth = linear_separability(*joint(1_000_000))[0]
    runs = np.array([linear_separability(*joint(1000)) for _ in range(200)])
    assert 0.90 <= np.mean(abs(runs[:, 0] - truth) <= 1.96 * runs[:, 1]) <= 0.99
