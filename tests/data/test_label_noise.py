"""Label noise: the draws against independent ones, rates by number, and what a recipe, a run and a page make of it."""

import numpy as np
import pytest
import torch
from support import write_recipe

from ganbench import recipes
from ganbench.base.errors import UserError
from ganbench.base.label_noise import CIFAR10, CIFAR100, CIFAR100_SUPERCLASSES, KINDS, LabelNoise, flips
from ganbench.base.label_noise import transition_matrix as matrix
from ganbench.base.progress import Reporter
from ganbench.data import datasets
from ganbench.data.datasets import Dataset
from ganbench.data.label_noise import with_label_noise
from ganbench.reporting import pages, results
from ganbench.reproduction.run import make_run
from ganbench.training import loop

N = 20000


def data(classes, n=N, name="cifar", seed=0):
    labels = torch.from_numpy(np.random.RandomState(seed).randint(len(classes), size=n))
    return Dataset(name, "train", torch.zeros(n, 1, 1, 1, dtype=torch.uint8), labels, tuple(classes))


def of(kind, rate, classes, **given):
    clean = data(classes, **given)
    return clean.labels.numpy(), with_label_noise(clean, LabelNoise(kind, rate)).labels.numpy()


# --- Draws, against a draw of each image in turn ---


def test_symmetric_draws_are_a_mask_and_then_classes():
    clean, noisy = of("symmetric", 0.7, CIFAR10)
    np.random.seed(12345)
    expected = clean.copy()
    mask = np.array([np.random.rand() <= 0.7 for _ in clean])
    expected[mask] = [np.random.choice(10) for _ in range(int(mask.sum()))]
    assert np.array_equal(noisy, expected)


def test_asymmetric_draws_of_cifar10_are_one_for_each_image_that_can_be_mistaken():
    clean, noisy = of("asymmetric", 0.7, CIFAR10)
    np.random.seed(12345)
    pairs, expected = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}, clean.copy()
    for i, c in enumerate(clean):
        if c in pairs and np.random.uniform(0, 1) <= 0.7:
            expected[i] = pairs[c]
    assert np.array_equal(noisy, expected)


def test_asymmetric_draws_of_cifar100_are_one_of_a_row_of_t_for_each_image():
    clean, noisy = of("asymmetric", 0.3, CIFAR100, n=2000)
    t = torch.tensor(matrix("asymmetric", 0.3, 100)).numpy().astype(np.float64)
    rng = np.random.RandomState(12345)
    assert np.array_equal(noisy, [rng.multinomial(1, t[c] / t[c].sum()).argmax() for c in clean])


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [CIFAR10, CIFAR100], ids=len)
def test_labels_change_as_often_as_t_says(kind, rate, classes):
    clean, noisy = of(kind, rate, classes)
    t, seen = np.array(matrix(kind, rate, len(classes))), np.zeros((len(classes), len(classes)))
    np.add.at(seen, (clean, noisy), 1)
    counts = seen.sum(1, keepdims=True)
    assert np.all(seen[t == 0] == 0)
    assert np.abs(seen - counts * t).max() <= 5 * np.sqrt(counts.max() / 4)
    changed, kept = (clean != noisy).mean(), np.diag(t)[clean].mean()
    assert changed == pytest.approx(1 - kept, abs=0.015)
    if kind == "symmetric":
        assert changed == pytest.approx(rate * (1 - 1 / len(classes)), abs=0.015)


def test_the_rates_by_number():
    assert matrix("symmetric", 0.7, 10)[0] == pytest.approx([0.37, *9 * [0.07]])
    assert matrix("asymmetric", 0.7, 10)[9] == pytest.approx([0, 0.7, 0, 0, 0, 0, 0, 0, 0, 0.3])
    assert matrix("asymmetric", 0.7, 10)[0] == [1, *9 * [0]]  # an airplane stays one
    for kind in KINDS:
        for classes in (10, 100):
            t = np.array(matrix(kind, 0.7, classes))
            assert t.shape == (classes, classes)
            assert np.allclose(t.sum(1), 1, atol=1e-15)
            assert np.array_equal(matrix(kind, 0.0, classes), np.eye(classes))


def test_the_pairs_are_those_that_the_papers_name():
    named = {CIFAR10[a]: CIFAR10[b] for a, b in flips(CIFAR10).items()}
    assert named == {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}
    assert len(set(CIFAR100)) == 100
    assert {len(group) for group in CIFAR100_SUPERCLASSES} == {5}
    after = flips(CIFAR100)
    for group in CIFAR100_SUPERCLASSES:
        assert list(group) == sorted(group)  # the order of the numbers of classes
        start = CIFAR100.index(group[0])
        ring = [start]
        for _ in range(5):
            ring.append(after[ring[-1]])
        assert [CIFAR100[c] for c in ring] == [*group, group[0]]


def test_classes_are_known_by_name_in_any_order_and_spelling():
    names = [name.title().replace("_", "-") for name in CIFAR10[::-1]]
    clean, noisy = of("asymmetric", 1.0, names)
    assert set(noisy[clean == names.index("Truck")]) == {names.index("Automobile")}


# --- In a data set ---


def test_only_labels_change_and_the_fingerprint_with_them():
    clean = data(CIFAR10)
    noisy = with_label_noise(clean, LabelNoise("symmetric", 0.5))
    assert noisy.images is clean.images
    assert torch.equal(clean.labels, data(CIFAR10).labels)  # as it was
    other = with_label_noise(clean, LabelNoise("symmetric", 0.5, seed=1))
    assert len({clean.fingerprint, noisy.fingerprint, other.fingerprint}) == 3
    assert with_label_noise(noisy, LabelNoise("symmetric", 0.5)) is noisy  # once is enough
    assert with_label_noise(clean, None) is clean
    with pytest.raises(ValueError, match="label noise already"):
        with_label_noise(noisy, LabelNoise("symmetric", 0.6))


@pytest.mark.parametrize("spec", ["digits:train", "synthetic:1x8x8:20:train", "synthetic:1x8x8:10:train"])
def test_data_without_the_pairs_say_so(spec):
    noise = LabelNoise("asymmetric", 0.5)
    if spec.startswith("synthetic") and ":10:" in spec:  # stands for CIFAR-10
        assert with_label_noise(datasets.load(spec), noise).label_noise == noise
        return
    with pytest.raises(UserError, match=f"'{spec.partition(':')[0]}' does not have them all"):
        with_label_noise(datasets.load(spec), noise)


def test_data_without_labels_say_so():
    bare = Dataset("bare", "all", torch.zeros(4, 1, 1, 1, dtype=torch.uint8))
    with pytest.raises(UserError, match="'bare' has no labels"):
        with_label_noise(bare, LabelNoise("symmetric", 0.5))


# --- In a recipe ---


def noisy_recipe(place, noise):
    return write_recipe(place, {"steps = 6": f"steps = 6\nlabel_noise = {noise}"})


def test_a_recipe_reads_it_and_it_is_part_of_the_run(place):
    recipe = recipes.read(noisy_recipe(place, '{ kind = "symmetric", rate = 0.7 }'))
    assert recipe.train.label_noise == LabelNoise("symmetric", 0.7, 12345)
    assert recipe.train.identity()["label_noise"] == {"kind": "symmetric", "rate": 0.7, "seed": 12345}
    assert recipe.replace(data="digits:test").train.label_noise == recipe.train.label_noise
    assert "label_noise" not in recipes.read(write_recipe(place)).train.identity()


@pytest.mark.parametrize(
    ("noise", "words"),
    [
        ('{ kind = "random", rate = 0.7 }', "'kind' must be one of symmetric, asymmetric, not 'random'"),
        ('{ kind = "symmetric", rate = 1.01 }', r"'rate' must be in \[0, 1\], not 1.01"),
        ('{ kind = "symmetric", rate = -0.1 }', r"'rate' must be in \[0, 1\], not -0.1"),
        ('{ kind = "symmetric", rate = 0.7, seed = -1 }', "'seed' must be a whole number from 0"),
        ('{ kind = "symmetric", rate = 0.7, seed = 4294967296 }', "'seed' must be a whole number from 0"),
        ('{ kind = "symmetric" }', "the key 'rate' is missing"),
        ('{ kind = "symmetric", rate = 0.7, sed = 1 }', "unknown key 'sed'"),
        ('"symmetric"', "must be a table"),
    ],
)
def test_a_mistake_in_it_is_one_clear_line(place, noise, words):
    with pytest.raises(UserError, match=f"'label_noise'.*{words}") as caught:
        recipes.read(noisy_recipe(place, noise))
    assert "\n" not in str(caught.value)


def test_a_run_trains_on_noisy_labels_and_is_measured_with_true_ones(place, monkeypatch):
    seen = {}

    def new(recipe, data):
        seen["trained"] = data
        return model(recipe, data)

    model = loop.new_model
    monkeypatch.setattr(loop, "new_model", new)
    recipe = recipes.read(noisy_recipe(place, '{ kind = "symmetric", rate = 0.7 }')).override({"steps": 1})
    run = make_run(recipe, {"steps": 1}, 0, torch.device("cpu"), place / "out", False, Reporter(quiet=True))
    clean = datasets.load("digits:train")
    assert (seen["trained"].labels != clean.labels).float().mean() == pytest.approx(0.63, abs=0.05)
    training = results.load(run.folder / results.RESULT).training
    assert training["label_noise"] == {"kind": "symmetric", "rate": 0.7, "seed": 12345}
    assert training["data_fingerprint"] == seen["trained"].fingerprint != clean.fingerprint
    assert run.result.reference["fingerprint"] == clean.fingerprint
    text = pages.write(recipe, [run.result], place).read_text(encoding="utf-8")
    assert "Noise on the labels of the training images: symmetric, rate 0.7, seed 12345." in text


def test_show_and_validate_say_it(place, ganbench):
    noisy_recipe(place, '{ kind = "symmetric", rate = 0.7 }')
    shown = " ".join(ganbench("show", "tiny.toml", "--no-cost").out.split())
    assert "noise on their labels: symmetric, rate 0.7, seed 12345" in shown
    assert "with noise: symmetric, rate 0.7, seed 12345" in ganbench("validate", "tiny.toml").out


def test_asymmetric_noise_on_other_classes_is_refused_in_one_line(refuses, place):
    noisy_recipe(place, '{ kind = "asymmetric", rate = 0.7 }')
    refuses(["recipe 'tiny'", "'digits' does not have them all"], "reproduce", "tiny.toml", "--out", "out")
