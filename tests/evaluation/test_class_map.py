"""`--class-map`: labels under other names give the values of the same images with the right labels."""

import json

import numpy as np
import pytest
from support import save_tiny, write_png

from ganbench.base.errors import UserError
from ganbench.data.datasets.digits import digits
from ganbench.data.sources import class_map, open_source

GERMAN = ["null", "eins", "zwei", "drei", "vier", "fuenf", "sechs", "sieben", "acht", "neun"]
ENGLISH = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TRANSLATED = dict(zip(GERMAN, ENGLISH, strict=True))
NUMBERS = {name: str(i) for i, name in enumerate(GERMAN)}


def text(pairs):
    return ",".join(f"{a}={b}" for a, b in pairs.items())


def write_folder(path, split, rows, names):
    """Digits in class folders; the order of the files is that of the digits within each class."""
    data = digits(split, path, False)
    for i in range(rows):
        write_png(path / names[int(data.labels[i])] / f"{i:03}.png", data.images[i, 0].numpy())
    return path


@pytest.fixture
def sets(place):
    """Images with German classes, a reference with English ones, and the images again with the reference's."""
    write_folder(place / "german", "test", 60, GERMAN)
    write_folder(place / "english", "test", 60, ENGLISH)
    write_folder(place / "numbers", "test", 60, [str(i) for i in range(10)])
    write_folder(place / "reference", "train", 120, ENGLISH)
    return place


def measured(done):
    assert done.code == 0, done.err
    return {m["metric"]: m["value"] for m in json.loads(done.out)["measurements"]}


def evaluate(images, *more, metrics="intra_fd_pixels,nn_error", reference="reference"):
    of = ["--reference", reference, "--held-out", reference] if reference else []
    return ["evaluate", "--images", images, *of, "--metrics", metrics, "--json", "--quiet", *more]


def test_mapped_classes_are_those_of_the_reference(ganbench, sets):
    right = measured(ganbench(*evaluate("english")))
    done = ganbench(*evaluate("german", "--class-map", text(TRANSLATED)))
    assert measured(done) == pytest.approx(right, rel=1e-9)
    assert json.loads(done.out)["fake"]["class_map"] == TRANSLATED
    (sets / "map.json").write_text(json.dumps(TRANSLATED), encoding="utf-8")
    assert measured(ganbench(*evaluate("german", "--class-map", "map.json"))) == pytest.approx(right, rel=1e-9)
    wrong = TRANSLATED | {"eins": "two", "zwei": "one"}
    assert measured(ganbench(*evaluate("german", "--class-map", text(wrong)))) != pytest.approx(right, rel=1e-2)


def test_classes_of_the_same_name_need_no_pair(ganbench, sets):
    right = measured(ganbench(*evaluate("english")))
    for name in GERMAN[2:]:
        (sets / "german" / name).rename(sets / "german" / TRANSLATED[name].upper())
    done = ganbench(*evaluate("german", "--class-map", "null=zero, eins=one"))
    assert measured(done) == pytest.approx(right, rel=1e-9)


def test_names_are_mapped_to_the_numbers_of_a_reference(ganbench, sets):
    right = measured(ganbench(*evaluate("numbers", reference="digits:train")))
    done = ganbench(*evaluate("german", "--class-map", text(NUMBERS), reference="digits:train"))
    assert measured(done) == pytest.approx(right, rel=1e-9)


def test_mapped_classes_are_those_of_a_classifier_whatever_the_reference_calls_them(ganbench, sets):
    metrics = "discriminability_mnist-cnn"
    right = measured(ganbench(*evaluate("numbers", reference=None, metrics=metrics)))
    done = ganbench(*evaluate("german", "--class-map", text(NUMBERS), reference=None, metrics=metrics))
    assert measured(done) == right
    # One map for both: German to the reference's, and the reference's to the classifier's.
    of_both = TRANSLATED | {name: str(i) for i, name in enumerate(ENGLISH)}
    both = f"intra_fd_pixels,{metrics}"
    done = ganbench(*evaluate("german", "--class-map", text(of_both), metrics=both))
    found = measured(done)
    assert {name: found[name] for name in right} == right
    assert found["intra_fd_pixels"] == measured(ganbench(*evaluate("english")))["intra_fd_pixels"]
    row = {m["metric"]: m["value"] for m in json.loads(done.out)["real"]}
    assert row["discriminability_mnist-cnn"] is not None


def test_few_classes_of_a_large_classifier_are_its_classes(ganbench, sets):
    args = ["--num", "12", "--class-map", text({name: 100 + i for i, name in enumerate(GERMAN)})]
    done = ganbench(*evaluate("german", *args, reference=None, metrics="discriminability_efficientnet-lite0"))
    assert measured(done)["discriminability_efficientnet-lite0"] == 0  # digits are none of these classes


def test_a_class_without_a_pair_is_unavailable_by_its_name_where_a_classifier_has_numbers(ganbench, sets):
    args = evaluate("german", "--class-map", "null=0", reference=None, metrics="discriminability_mnist-cnn")
    done = ganbench(*args)
    (measurement,) = json.loads(done.out)["measurements"]
    assert (done.code, measurement["value"]) == (1, None)
    assert measurement["reason"] == "the class map says nothing of class 'acht'"


def test_a_model_s_classes_are_called_by_their_numbers(ganbench, sets):
    save_tiny(sets / "tiny.safetensors")
    assert ganbench("sample", "--ckpt", "tiny.safetensors", "--num", "60", "--out", "samples.npz").code == 0
    values = []
    for turn in (0, 1):
        pairs = {str(i): ENGLISH[(i + turn) % 10] for i in range(10)}
        args = ["--reference", "reference", "--metrics", "intra_fd_pixels", "--class-map", text(pairs), "--json"]
        done = ganbench("evaluate", "--ckpt", "tiny.safetensors", "--num", "60", *args, "--quiet")
        values.append(measured(done))
        assert json.loads(done.out)["fake"]["class_map"] == pairs
        assert measured(ganbench("evaluate", "--images", "samples.npz", *args, "--quiet")) == values[-1]
    assert values[0] != values[1]


def test_a_number_in_another_form_is_no_class(sets):
    images, reference = open_source("numbers"), open_source("digits")
    with pytest.raises(UserError, match="the images have no class '-3'"):
        class_map.to_reference(images, reference, {"-3": "0"})
    for target in ("-1", "1e0", "10"):
        _, rest = class_map.to_reference(images, reference, {"3": target})
        assert rest == [class_map.Pair("3", target, 3)]
        with pytest.raises(UserError, match="mnist-cnn, whose classes are 0 to 9"):
            class_map.to_classifier(images, rest, "mnist-cnn", tuple("0123456789"))


def test_several_classes_become_one(sets):
    np.savez("a.npz", arr_0=np.zeros((4, 8, 8, 1), np.uint8), labels=np.array([7, 3, 5, 3]))
    reference = open_source("reference")
    made, rest = class_map.to_reference(open_source("a.npz"), reference, {"7": "two", "3": "zero", "5": "two"})
    assert ([made.classes[label] for label in made.labels], rest) == (["two", "zero", "two", "zero"], [])
    with pytest.raises(UserError, match="says nothing of class '5' of the images: add 5=CLASS"):
        class_map.to_reference(open_source("a.npz"), reference, {"7": "two", "3": "zero"})


LONG = "x" * 5000


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", ["--class-map"]),
        ("null", ["'null'", "a=b"]),
        ("null=", ["empty"]),
        ("=zero", ["empty"]),
        ("null=zero,", ["a=b"]),
        ("null=zero,null=one", ["'null' stands twice"]),
        ("null=zero,Null=one", ["'Null' is a class that stands twice"]),
        ("nul=zero", ["no class 'nul'", "Did you mean 'null'?"]),
        ("null=zer", ["'zer' is no class of the reference", "Did you mean 'zero'?"]),
        ("null=0", ["'0' is no class of the reference"]),
        ("-1=zero", ["no class '-1'"]),
        (f"{LONG}=zero", ["name"]),
        (LONG, ["a=b"]),
        ("gone.json", ["cannot read the class map gone.json"]),
        ("list.json", ["list.json", "one object"]),
        ("nested.json", ["nested.json", "one object"]),
        ("bad.json", ["bad.json", "not valid JSON"]),
        ("twice.json", ["twice.json", "'null' stands twice"]),
        ("none.json", ["none.json", "no pairs"]),
    ],
    ids=lambda value: None if isinstance(value, list) else value[:30],
)
def test_a_bad_map_is_one_short_line(refuses, sets, given, words):
    for name, content in {
        "list": '["null"]', "nested": '{"null": ["zero"]}', "bad": "{", "twice": '{"null": 1, "null": 2}', "none": "{}",
    }.items():
        (sets / f"{name}.json").write_text(content)
    said = refuses(["class", *words], *evaluate("german", "--class-map", given))
    assert len(said) < 600


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--images", "plain", "--reference", "reference"], "the images have no labels"),
        (["--reference", "reference"], "give --images SOURCE or --ckpt FILE"),
        (["--images", "german", "--metrics", "discriminability_mnist-cnn"], "classes are 0 to 9"),
    ],
)
def test_a_map_that_there_is_nothing_for_is_refused(refuses, sets, args, words):
    for i in range(3):
        write_png(sets / "plain" / f"{i}.png", np.zeros((8, 8), np.uint8))
    more = [] if "--metrics" in args else ["--metrics", "ms_ssim"]
    refuses(["--class-map", words], "evaluate", *args, *more, "--class-map", "null=11")
