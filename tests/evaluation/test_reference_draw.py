"""`--num-reference`: a seeded draw of the reference, which the result, the cache and every comparison know of."""

import json
import shutil

import numpy as np
import pytest
import torch
from support import save_tiny, write_png

from ganbench.data.datasets.digits import digits
from ganbench.reporting import results
from ganbench.reporting.comparable import differences


def evaluate(*more, images="digits:test", reference="digits:train", metrics="fd_pixels"):
    return ["evaluate", "--images", images, "--reference", reference, "--metrics", metrics, "--json", *more]


def value(done):
    assert done.code == 0, done.err
    result = json.loads(done.out)
    (first, *_) = result["measurements"]
    return first["value"], first["n_real"], result["reference"]


def test_the_draw_is_that_of_num_and_the_value_is_that_of_these_rows(ganbench, place):
    drawn, n, about = value(ganbench(*evaluate("--num-reference", "300", "--seed", "4")))
    assert (n, about["count"], about["drawn"], about["draw_seed"]) == (300, 300, 300, 4)
    data = digits("train", place, False)
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(4))[:300]
    np.savez("rows.npz", arr_0=data.images[rows.sort().values].permute(0, 2, 3, 1).numpy())
    same, _, _ = value(ganbench(*evaluate(reference="rows.npz")))
    assert drawn == pytest.approx(same, rel=1e-12)
    other, _, _ = value(ganbench(*evaluate("--num-reference", "300", "--seed", "5")))
    whole, n, about = value(ganbench(*evaluate("--num-reference", "1297")))
    assert len({drawn, other, whole}) == 3
    assert "drawn" not in about
    assert whole == value(ganbench(*evaluate()))[0]


def test_what_is_cached_of_one_draw_is_not_taken_for_another(ganbench, place):
    found = {}
    for _again in (False, True):  # the second time from the cache
        for more in ((), ("60",), ("80",), ("80", "--seed", "1")):
            draw = ("--num-reference", *more) if more else ()
            args = evaluate(
                *draw, "--held-out", "digits:test[40:80]", images="digits:test[:40]", reference="digits:train[:120]",
                metrics="fd_mnist-cnn,coverage_mnist-cnn",
            )
            values = [m["value"] for m in json.loads(ganbench(*args).out)["measurements"]]
            assert found.setdefault(more, values) == values
    assert len(set(map(str, found.values()))) == len(found)


@pytest.mark.parametrize("source", ["folder", "zip", "npz", "checkpoint"])
def test_whatever_works_for_a_named_set_works_for_other_sources(ganbench, place, source):
    data = digits("train", place, False)
    images, args = data.images[:40, 0].numpy(), evaluate("--num-reference", "20", reference="real")
    if source == "npz":
        np.savez("real.npz", arr_0=images[..., None])
        args = evaluate("--num-reference", "20", reference="real.npz")
    elif source == "checkpoint":
        save_tiny(place / "tiny.safetensors")
        args = ["evaluate", "--ckpt", "tiny.safetensors", "--num", "30", "--num-reference", "20", "--metrics",
                "fd_pixels", "--json"]
    else:
        for i, image in enumerate(images):
            write_png(place / "real" / str(int(data.labels[i])) / f"{i}.png", image)
        if source == "zip":
            shutil.make_archive("real", "zip", "real")
            args = evaluate("--num-reference", "20", reference="real.zip")
    _, n, about = value(ganbench(*args))
    assert (n, about["drawn"]) == (20, 20)


def test_rows_of_a_class_sorted_folder_that_leave_out_classes_are_mentioned(ganbench, place):
    for i in range(30):
        write_png(place / "real" / "abc"[i // 10] / f"{i}.png", np.full((8, 8), i, np.uint8))
    said = "has 2 of 3 classes, since its files are sorted by class: --num and --num-reference draw from all"
    assert said in ganbench(*evaluate(reference="folder:real[:20]")).err
    assert said in ganbench(*evaluate(images="folder:real[10:30]")).err
    for reference, more in (("folder:real[:21]", ()), ("folder:real", ("--num-reference", "20"))):
        assert ganbench(*evaluate(*more, reference=reference)).err == ""


def test_a_resize_that_moments_do_not_follow_is_mentioned(ganbench, place):
    args = ["digits:train", "--extractor", "pixels", "--resize", "4:box", "--out", "m.npz"]
    assert ganbench("statistics", *args).code == 0
    args = evaluate("--resize", "4:box", reference="m.npz")
    assert "--resize changes the images alone: 'm.npz' holds moments" in ganbench(*args).err
    assert "--resize" not in ganbench(*evaluate("--resize", "4:box")).err


def test_values_against_two_draws_are_not_compared(ganbench, place):
    loaded = []
    for name, more in (("a", ()), ("b", ("--seed", "1")), ("c", ("--num-reference", "200"))):
        done = ganbench(*evaluate("--num-reference", "300", *more, "--out", f"{name}.json"))
        assert done.code == 0, done.err
        result = results.load(place / f"{name}.json")
        loaded.append((result, result.measurements[0]))
    a, b, c = loaded
    assert differences(a, a) == []
    assert differences(a, b) == ["reference, seed of draw: a has 0, b has 1"]
    assert "reference, images drawn: a has 300, b has 200" in differences(a, c)
    assert "not comparable" in ganbench("compare", "a.json", "b.json").out


def test_a_protocol_against_the_whole_reference_is_unavailable_with_a_draw(ganbench, place):
    np.savez("a.npz", arr_0=np.random.default_rng(0).integers(0, 256, (5000, 8, 8, 1), np.uint8))
    done = ganbench(*evaluate("--num-reference", "300", images="a.npz", metrics="fd5k_full_pixels"))
    (measurement,) = json.loads(done.out)["measurements"]
    assert done.code == 1
    assert measurement["reason"] == "this protocol is against the whole reference, and a draw of it was asked for"


@pytest.mark.parametrize(
    ("words", "args"),
    [
        (["'digits:train' has 1,297 images", "1,298", "--num-reference"], evaluate("--num-reference", "1298")),
        (["--num-reference", "--reference"], ["evaluate", "--images", "digits", "--metrics", "ms_ssim",
                                              "--num-reference", "9"]),
        (["'moments.npz'", "no images", "--num-reference"], evaluate("--num-reference", "9", reference="moments.npz")),
        (["--num-reference 1", "one image"], evaluate("--num-reference", "1")),
        (["--num-reference", "1 to"], evaluate("--num-reference", "0")),
    ],
    ids=lambda value: value[0] if len(value) < 4 else None,
)
def test_a_draw_that_cannot_be_made_is_refused(refuses, place, words, args):
    np.savez("moments.npz", mu=np.zeros(64), sigma=np.eye(64))
    refuses(words, *args)
