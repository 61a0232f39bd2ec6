"""Labels and names of classes that do not belong together give a reason in place of a number."""

import pytest
import torch

from ganbench.evaluation import measure
from ganbench.metrics import Inputs, Side, Unavailable
from ganbench.metrics.contract import compare_labels, require_classes, require_same_names

PROTOCOLS = measure.protocols()
DIGITS = tuple(map(str, range(10)))
THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BY_LOGITS = ["discriminability", "gaining_classes", "accuracy_diversity_correlation"]
BY_TWO_SETS = ["gan_train", "gan_test", "nn_error", "nn_transfer", "linear_probe", "svm_probe", "svm_probe_1000"]


def side(labels, classes=(), k=10):
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256, (len(labels), 1, 8, 8), generator=g, dtype=torch.uint8)
    logits = torch.randn(len(labels), k, generator=g)
    return Side(images, labels, torch.randn(len(labels), 4, generator=g), logits, {4: logits}, classes=classes)


def compute(stem, real=None, fake=None, held_out=None, names=()):
    balanced = side(torch.arange(60) % 10)
    inputs = Inputs(
        real or balanced, fake or balanced, held_out or balanced, torch.Generator().manual_seed(0),
        fit=lambda images, labels: lambda x: torch.zeros(len(x), int(labels.max()) + 1), classes_of_logits=names,
    )
    return PROTOCOLS[stem].compute(inputs)


@pytest.mark.parametrize("stem", BY_LOGITS)
def test_a_classifier_of_other_classes_is_refused(stem):
    labels = torch.arange(60) % 10
    compute(stem, fake=side(labels, THINGS), names=("Airplane", *THINGS[1:]))
    with pytest.raises(Unavailable, match="label 0 is 'airplane' in the images and '0' in the extractor"):
        compute(stem, fake=side(labels, THINGS), names=DIGITS)
    with pytest.raises(Unavailable, match="the images have 10 classes, and the extractor has 1000"):
        compute(stem, fake=side(labels, THINGS, k=1000))
    with pytest.raises(Unavailable, match="the labels are those of 10 classes, and the extractor has 1000"):
        compute(stem, fake=side(labels, k=1000))
    with pytest.raises(Unavailable, match="label 9 is not one of the extractor's 5 classes"):
        compute(stem, fake=side(labels, k=5))


def test_unnamed_labels_may_leave_out_classes_by_chance():
    labels = torch.tensor([0, 3, 8])
    assert torch.equal(require_classes(side(labels), torch.zeros(3, 10), DIGITS), labels)
    assert torch.equal(require_classes(side(labels, DIGITS), torch.zeros(3, 10), ()), labels)
    with pytest.raises(Unavailable, match="those of 9 classes, and the extractor has 10"):
        require_classes(side(torch.arange(180) % 9), torch.zeros(180, 10), ())


def test_names_are_compared_without_capitals_and_separators():
    require_same_names(("hot dog", "T-shirt"), ("Hot_Dog", "t shirt"), "a", "b")
    require_same_names((), ("x",), "a", "b")
    with pytest.raises(Unavailable, match="label 1 is 'x' in a and 'y' in b"):
        require_same_names(("o", "x"), ("o", "y"), "a", "b")
    with pytest.raises(Unavailable, match="a have 2 classes and b 1"):
        require_same_names(("o", "x"), ("o",), "a", "b")


@pytest.mark.parametrize("stem", BY_TWO_SETS)
def test_sets_without_a_class_in_common_are_refused(stem):
    labels = torch.arange(60) % 10
    for which in ("fake", "held_out", "real"):
        if f"{which}.labels" not in PROTOCOLS[stem].needs:
            continue
        with pytest.raises(Unavailable, match=r"no class in common: labels .*, \.\.\. of"):
            compute(stem, **{which: side(labels + 10)})
        with pytest.raises(Unavailable, match="a label for every image, and 6 are below 0"):
            compute(stem, **{which: side(labels - 1)})
        other = {w: side(labels, DIGITS) for w in ("real", "fake", "held_out")}
        with pytest.raises(Unavailable, match="the classes differ: label 0 is"):
            compute(stem, **{**other, which: side(labels, THINGS)})


@pytest.mark.parametrize("stem", BY_TWO_SETS)
def test_a_class_that_only_one_set_has_is_an_error_of_a_generator_and_else_refused(stem):
    seven = side(torch.arange(60) % 7)
    generated = stem in ("gan_train", "nn_error")
    train = "fake" if generated else "real"
    if generated:
        [value] = compute(stem, **{train: seven})
        assert value.warnings == ("3 of the test classes have no training image: 7, 8, 9",)
    else:
        with pytest.raises(Unavailable, match=r"have no image of 3 classes of .*: 7, 8, 9"):
            compute(stem, **{train: seven})


def test_training_classes_without_a_test_image_are_named():
    a, b = side(torch.arange(60) % 10), side(torch.arange(60) % 3)
    assert compare_labels(a, b, "a", "b", refuse=True) == (
        "7 of the training classes have no test image: 3, 4, 5, 6, 7, ...",
    )
    assert compare_labels(a, a, "a", "a") == ()
