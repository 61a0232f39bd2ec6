"""The command line: stdout is the answer, stderr the progress; it starts light, and reads the same images alike."""

import csv
import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from support import TINY, process, save_tiny, tiny_dcgan, write_png, write_recipe

from ganbench import __version__, cli, recipes
from ganbench.base import registry
from ganbench.cli.list_ import METRIC_NAMES
from ganbench.data import sources
from ganbench.data.datasets import load
from ganbench.data.images import to_uint8
from ganbench.evaluation import measure
from ganbench.features import small_cnn
from ganbench.gan import checkpoint

# --- Start ---

LIGHT = """
import sys
from ganbench import cli
for line in sys.argv[1:]:
    try:
        cli.main(line.split(), prog_name="ganbench")
    except SystemExit as stop:
        assert not stop.code, line
heavy = {"torch", "torchvision", "numpy", "scipy", "sklearn", "pandas", "PIL"} & set(sys.modules)
assert not heavy, heavy
print("light")
"""


def test_help_list_and_table_import_nothing_heavy(place):
    commands = [*(f"{name} --help" for name in cli.main.commands), "list", *(f"list {kind}" for kind in registry.KINDS)]
    done = process("-c", LIGHT, "--help", "--version", "", "table", "table --format csv", *commands, cwd=place)
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith("light\n")


def test_a_check_imports_nothing_heavy(ganbench, place, folder):
    assert (
        ganbench(
            "evaluate", "--images", folder, "--reference", "digits", "--metrics", "fd_pixels", "--out", "r.json"
        ).code
        == 0
    )
    done = process("-c", LIGHT, "check r.json r.json --junit junit.xml", cwd=place)
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith("light\n")


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]], ids=str)
def test_help_names_every_command(ganbench, args):
    done = ganbench(*args)
    assert (done.code, done.err) == (0, "")
    for name in cli.main.commands:
        assert f"\n  {name} " in done.out


@pytest.mark.parametrize("name", sorted(cli.main.commands))
def test_every_command_and_every_option_has_help(ganbench, name):
    command = cli.main.commands[name]
    assert command.help
    for option in command.params:
        assert option.param_type_name == "argument" or option.help, option.name
    done = ganbench(name, "--help")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 110


def test_version(ganbench):
    assert ganbench("--version").out == f"ganbench, version {__version__}\n"


def test_list_shows_everything_with_a_line_about_it(ganbench):
    done = ganbench("list")
    lines = done.out.splitlines()
    for kind in registry.KINDS:
        assert f"{kind}:" in lines
    for kind in ("models", "datasets", "extractors", "metrics"):
        entries = ganbench("list", kind).out.removesuffix(f"{METRIC_NAMES}\n").splitlines()
        shown = dict(line.split(maxsplit=1) for line in entries)
        assert list(shown) == registry.names(kind)
        assert all(len(text) > 10 for text in shown.values())
    recipes = dict(line.split(maxsplit=1) for line in ganbench("list", "recipes").out.splitlines())
    assert recipes["dcgan-digits"].startswith("DCGAN on the digits of scikit-learn")


def test_list_names_every_published_metric(ganbench):
    words = ganbench("list", "metrics").out.splitlines()[-1].replace(",", " ").replace(". ", " ").rstrip(".").split()
    for protocol in measure.protocols().values():
        assert protocol.published is None or protocol.published[0] in words
    assert "fid" in words


# --- stdout and stderr ---


def no_constants(text):
    raise AssertionError(f"{text} is no JSON")


def test_evaluate_prints_one_json_object_on_stdout_and_progress_on_stderr(ganbench, ckpt, monkeypatch):
    monkeypatch.setattr("ganbench.base.progress.LINE_EVERY_SECONDS", 0.0)
    done = ganbench(
        "evaluate", "--ckpt", ckpt, "--num", "50", "--metrics", "fd_pixels,ms_ssim", "--json", "--out", "r.json"
    )
    assert done.code == 0
    value = json.loads(done.out, parse_constant=no_constants)
    assert [m["metric"] for m in value["measurements"]] == ["fd_pixels", "ms_ssim"]
    assert value["fake"]["count"] == 50
    assert value["reference"]["name"] == "digits"
    assert value["training"]["data"] == "digits:train"
    assert "sample 50: 50/50" in done.err
    assert "result: r.json" in done.err
    with open("r.json", encoding="utf-8") as file:
        assert json.load(file) == value


def test_reproduce_prints_one_json_object_on_stdout(ganbench, place):
    done = ganbench("reproduce", write_recipe(place), "--seeds", "0,1", "--out", "out", "--json")
    assert done.code == 0
    value = json.loads(done.out, parse_constant=no_constants)
    assert value["recipe"] == "tiny"
    assert [r["seed"] for r in value["results"]] == [0, 1]
    assert "table:" in done.err
    text = (place / "out/tables/tiny.md").read_text(encoding="utf-8")
    assert "fd_pixels ↓" in text
    assert "standard deviation over 2 seeds" in text


def test_quiet_leaves_stderr_empty(ganbench, ckpt, place, monkeypatch):
    monkeypatch.setattr("ganbench.base.progress.LINE_EVERY_SECONDS", 0.0)
    for args in (
        ["evaluate", "--ckpt", ckpt, "--num", "50", "--metrics", "fd_pixels", "--out", "r.json"],
        ["sample", "--ckpt", ckpt, "--num", "20", "--grid", "a.png"],
        ["reproduce", write_recipe(place), "--out", "out"],
        ["reproduce", write_recipe(place), "--out", "out", "--steps", "3"],
        ["list"],
        ["table", "--out", "out"],
        ["check", "r.json", "r.json"],
    ):
        done = ganbench(*args, "--quiet")
        assert (done.code, done.err) == (0, ""), args
        assert done.out


def test_offline_is_of_this_command_alone(ganbench, monkeypatch, folder):
    monkeypatch.setenv("GANBENCH_OFFLINE", "0")
    assert ganbench("list", "--offline").code == 0
    from ganbench.data.datasets import offline

    assert offline()  # what was to be seen by the command that was run


# --- Reproduce ---


def test_reproduce_leaves_a_checkpoint_a_result_a_picture_and_a_table_and_says_where(ganbench, place):
    done = ganbench("reproduce", write_recipe(place), "--out", "out")
    run = place / "out/runs/tiny/seed0"
    assert {p.name for p in run.iterdir()} >= {
        "checkpoint.safetensors",
        "result.json",
        "samples.png",
        "log.jsonl",
        "state.pt",
    }
    assert "out/tables/tiny.md" in done.err
    assert "next:    ganbench evaluate --model dcgan --ckpt out/runs/tiny/seed0/checkpoint.safetensors" in done.err
    with Image.open(run / "samples.png") as picture:
        assert picture.format == "PNG"
    assert done.out.startswith("| dataset      | recipe | metric")
    again = ganbench("reproduce", write_recipe(place), "--out", "out")
    assert "already done" in again.err
    assert again.out == done.out


def test_reproduce_measures_with_the_weights_that_are_given(ganbench, place):
    path = write_recipe(place, {'metrics = ["fd_pixels"]': 'metrics = ["fd_small-cnn"]'})
    done = ganbench("reproduce", path, "--weights", f"small-cnn={small_cnn.BUNDLED}", "--json")
    assert done.code == 0, done.err
    (result,) = json.loads(done.out)["results"]
    assert [m["metric"] for m in result["measurements"]] == ["fd_mnist-cnn"]  # the name is of the weights


def test_an_overridden_run_lies_apart_and_stays_out_of_the_table(ganbench, place):
    path = write_recipe(place)
    done = ganbench("reproduce", path, "--steps", "3", "--data", "digits:test", "--out", "out")
    assert done.code == 0, done.err
    assert "not comparable with the paper, and in no table: run with" in done.err
    assert "fd_pixels" in done.out
    result = json.loads((place / "out/runs/tiny/seed0-data=digits_test-steps=3/result.json").read_text())
    assert result["overrides"] == {"steps": 3, "data": "digits:test"}
    assert (result["reference"]["split"], result["held_out"]["split"]) == ("test", "train")
    assert not (place / "out/tables").exists()


def test_seeds_of_a_recipe_can_be_models_of_different_classes(ganbench, place):
    part = "[classes {seed}-{seed}]"
    path = write_recipe(place, {
        "num_classes = 10": "num_classes = 1", 'metrics = ["fd_pixels"]': 'metrics = ["discriminability_small-cnn"]',
        'data = "digits:train"': f'data = "digits:train{part}"',
        'reference = "digits:train"': f'reference = "digits:train{part}"',
        "digits:test": f"digits:test{part}",
    })
    weights = "--weights", f"small-cnn={small_cnn.BUNDLED}"
    assert ganbench("reproduce", path, "--seeds", "0-1,3", *weights, "--out", "out").code == 0
    for seed in (0, 1, 3):
        run = place / f"out/runs/tiny/seed{seed}"
        result = json.loads((run / "result.json").read_text())
        assert result["training"]["data"] == f"digits:train[classes {seed}-{seed}]"
        assert result["held_out"]["split"] == f"test[classes {seed}-{seed}]"
        for row in result["measurements"][0], result["real"][0]:
            assert list(row["details"]["per_class"]) == [str(seed)]
        ckpt = "--ckpt", run / "checkpoint.safetensors"
        assert ganbench("sample", *ckpt, "--num", 5, "--out", "a.npz").code == 0
        assert np.load(place / "a.npz")["arr_1"].tolist() == [seed] * 5
        metrics = "--metrics", "discriminability_small-cnn", *weights
        again = ganbench("evaluate", *ckpt, "--num", 40, "--seed", seed, *metrics, "--json")
        assert json.loads(again.out)["measurements"][0]["value"] == result["measurements"][0]["value"]
    assert "{seed}" in ganbench("table", path, "--out", "out").out


def test_a_recipe_may_bring_images_to_one_size(ganbench, refuses, place):
    for part in ("train", "test"):
        for i in range(20):
            write_png(place / "set" / part / str(i % 10) / f"{i}.png", np.full((8 + i % 3, 9), i, np.uint8))
    args = "reproduce", write_recipe(place, {"steps = 6": 'steps = 6\nresize = "8:crop-pil-bilinear"'})
    assert ganbench(*args, "--data", "folder:set", "--out", "out").code == 0
    result = json.loads((place / "out/runs/tiny/seed0-data=folder_set/result.json").read_text())
    for side in ("reference", "held_out"):
        assert (result[side]["resize"], result[side]["shape"]) == ("8:crop-pil-bilinear", [1, 8, 8])
    write_recipe(place, {"steps = 6": 'steps = 6\nresize = "8"'})
    refuses(["tiny", "resize '8'", "SIDE:METHOD"], *args)


def test_two_data_sets_whose_names_look_alike_are_not_taken_for_each_other(ganbench, place):
    digits = sources.open_source("digits:test")
    for name, shift in (("a_b", 0), ("a-b", 100)):
        for part in ("train", "test"):
            for i in range(20):
                pixels = digits.images[shift + i, 0].numpy()
                write_png(place / name / part / str(int(digits.labels[shift + i])) / f"{i}.png", pixels)
    path = write_recipe(place)
    assert ganbench("reproduce", path, "--data", "folder:a_b", "--out", "out").code == 0
    done = ganbench("reproduce", path, "--data", "folder:a-b", "--out", "out")
    assert done.code == 2
    assert "belongs to another run" in done.err


def test_a_finished_run_on_images_that_were_changed_since_is_not_taken_for_done(ganbench, place):
    digits = sources.open_source("digits:test")
    for part in ("train", "test"):
        for i in range(20):
            write_png(place / "set" / part / str(int(digits.labels[i])) / f"{i}.png", digits.images[i, 0].numpy())
    args = "reproduce", write_recipe(place), "--data", "folder:set", "--out", "out"
    assert ganbench(*args).code == 0
    assert "already done" in ganbench(*args).err
    write_png(next((place / "set/train").rglob("*.png")), np.zeros((8, 8), np.uint8))
    done = ganbench(*args)
    assert done.code == 2
    assert "data differs" in done.err
    assert ganbench(*args, "--fresh").code == 0


def test_a_changed_recipe_is_evaluated_again(ganbench, place):
    ganbench("reproduce", write_recipe(place), "--out", "out")
    done = ganbench("reproduce", write_recipe(place, {"num = 40": "num = 50"}), "--out", "out")
    assert "already done" not in done.err
    assert json.loads((place / "out/runs/tiny/seed0/result.json").read_text())["fake"]["count"] == 50


# --- Sample ---


def test_sample_writes_a_grid_with_a_row_a_class(ganbench, ckpt, place):
    done = ganbench("sample", "--ckpt", ckpt, "--num", "30", "--labels", "3, 1", "--grid", "a.png")
    assert (done.code, done.out) == (0, "a.png\n")
    with Image.open(place / "a.png") as picture:
        factor = picture.width // (10 * 10 + 2)  # ten images of 8 pixels with a border of 2, enlarged to be seen
        assert picture.size == (factor * 102, factor * (3 * 10 + 2))
        assert picture.mode == "L"


def test_sample_writes_an_npz_that_evaluate_reads_back(ganbench, ckpt, place):
    done = ganbench("sample", "--model", "dcgan", "--ckpt", ckpt, "--num", "25", "--out", "a.npz", "--seed", "3")
    assert (done.code, done.out) == (0, "a.npz\n")
    with np.load("a.npz") as file:
        assert file["arr_0"].shape == (25, 8, 8, 1)
        assert file["arr_0"].dtype == np.uint8
        assert file["arr_1"].tolist() == [i % 10 for i in range(25)]
    model = tiny_dcgan().eval()
    with torch.inference_mode():
        expected = to_uint8(model.sample(25, torch.arange(25) % 10, torch.Generator().manual_seed(3)))
    read = sources.open_source("a.npz")
    assert torch.equal(read.images, expected)
    assert torch.equal(read.labels, torch.arange(25) % 10)


def test_labels_are_repeated_to_num(ganbench, ckpt, place):
    ganbench("sample", "--ckpt", ckpt, "--num", "5", "--labels", "7,2", "--out", "a.npz")
    assert sources.open_source("a.npz").labels.tolist() == [7, 2, 7, 2, 7]


def test_one_seed_is_one_set_of_samples_and_another_is_another(ganbench, ckpt, place):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        ganbench("sample", "--ckpt", ckpt, "--num", "12", "--out", f"{name}.npz", "--seed", seed)
    a, b, c = (sources.open_source(f"{name}.npz").images for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


# --- Evaluate ---


def test_the_same_images_have_the_same_value_wherever_they_come_from(ganbench, ckpt, place):
    n = 40
    ganbench("sample", "--ckpt", ckpt, "--num", n, "--out", "all.npz")
    made = sources.open_source("all.npz")
    with zipfile.ZipFile("all.zip", "w") as archive:
        for i, (image, label) in enumerate(zip(made.images, made.labels, strict=True)):
            file = write_png(place / "all" / str(int(label)) / f"{i:03}.png", image[0].numpy())
            archive.write(file, f"{int(label)}/{i:03}.png")
    np.savez("nchw.npz", images=made.images.numpy(), labels=made.labels.numpy())
    (place / "my_generator.py").write_text(
        "from ganbench.data import sources\n"
        "def make(n, seed):\n"
        "    made = sources.open_source('all.npz')\n"
        "    return made.images[:n], made.labels[:n]\n"
    )
    given = {
        "checkpoint": ["--ckpt", ckpt],
        "checkpoint and model": ["--model", "dcgan", "--ckpt", ckpt],
        "folder": ["--images", "all"],
        "folder:": ["--images", "folder:all"],
        "zip": ["--images", "all.zip"],
        "npz": ["--images", "all.npz"],
        "nchw": ["--images", "nchw.npz"],
        "callable": ["--images", "my_generator:make"],
    }
    values = {}
    for name, source in given.items():
        num = ["--num", n] if name.startswith(("checkpoint", "callable")) else []
        done = ganbench(
            "evaluate", *source, *num, "--reference", "digits:test", "--metrics", "fd_pixels,nn_error,ms_ssim", "--json"
        )
        assert done.code == 0, done.err
        values[name] = [(m["metric"], m["value"], m["n_fake"]) for m in json.loads(done.out)["measurements"]]
    # Folders and zips hold the images in the order of their classes, which draws of pairs can tell; distances cannot.
    exact = {k: v for k, v in values.items() if k not in ("folder", "folder:", "zip")}
    for name, v in exact.items():
        assert v == values["npz"], name
    assert values["folder"] == values["folder:"] == values["zip"]
    for (metric, a, _), (_, b, _) in zip(values["npz"], values["zip"], strict=True):
        if metric in ("fd_pixels", "nn_error"):
            assert a == pytest.approx(b, rel=1e-6), metric
    assert values["npz"][0][1] is not None


def test_a_data_set_and_its_images_in_a_folder_have_the_same_value(ganbench, place):
    data = sources.open_source("digits:test")
    for i, image in enumerate(data.images):
        write_png(place / "test" / f"{i:03}.png", image[0].numpy())
    values = [
        json.loads(
            ganbench("evaluate", "--images", s, "--reference", "digits:train", "--metrics", "fd_pixels", "--json").out
        )
        for s in ("digits:test", "test")
    ]
    assert values[0]["measurements"][0]["value"] == values[1]["measurements"][0]["value"] > 0
    assert values[0]["held_out"]["split"] == "test"


def test_num_draws_without_replacement_under_the_seed(ganbench, folder):
    def fingerprint(seed):
        done = ganbench("evaluate", "--images", folder, "--num", "6", "--seed", seed, "--metrics", "ms_ssim", "--json")
        return json.loads(done.out)["fake"]

    assert fingerprint(0) == fingerprint(0)
    assert (fingerprint(0)["drawn"], fingerprint(0)["count"]) == (6, 6)
    drawn = sources.open_source(str(folder), 6, 1).images[:].flatten(1)
    assert len(drawn.unique(dim=0)) == 6


def test_a_state_dict_in_a_plain_pickle_is_read_safely(ganbench, place):
    model = tiny_dcgan()
    torch.save({"model": "dcgan", "args": TINY, "state_dict": model.state_dict()}, "a.pt")
    save_tiny(place / "a.safetensors", model)
    a, b = (ganbench("sample", "--ckpt", f"a.{s}", "--num", "5", "--out", f"{s}.npz") for s in ("pt", "safetensors"))
    assert (a.code, b.code) == (0, 0), (a.err, b.err)
    assert torch.equal(sources.open_source("pt.npz").images, sources.open_source("safetensors.npz").images)


def test_evaluating_does_not_change_the_checkpoint(ganbench, ckpt):
    before = ckpt.read_bytes()
    assert ganbench("evaluate", "--ckpt", ckpt, "--num", "20", "--metrics", "fd_pixels").code == 0
    assert ckpt.read_bytes() == before


# --- Table ---


def test_table_without_results_says_not_run_for_every_recipe(ganbench):
    done = ganbench("table", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert done.code == 0
    assert {r["recipe"] for r in rows} == {line.split()[0] for line in ganbench("list", "recipes").out.splitlines()}
    assert {r["ours"] for r in rows} == {"not run"}
    assert {r["verdict"] for r in rows} == {"", "not run"}
    assert all((r["verdict"] == "not run") == bool(r["paper"]) for r in rows)
    blank = [r["recipe"] for r in rows if not r["paper"]]  # a row that says nothing but that there is such a recipe
    assert len(set(blank)) == len(blank)
    assert not set(blank) & {r["recipe"] for r in rows if r["paper"]}


def test_table_of_one_data_set(ganbench):
    rows = list(csv.DictReader(io.StringIO(ganbench("table", "--format", "csv", "--dataset", "digits").out)))
    assert {r["dataset"] for r in rows} == {"digits:train"}


def test_every_format_holds_the_same_cells(ganbench):
    rows = list(csv.DictReader(io.StringIO(ganbench("table", "--format", "csv").out)))
    markdown, latex = ganbench("table").out.splitlines(), ganbench("table", "--format", "latex").out.splitlines()
    assert len(markdown) == len(rows) + 2
    assert len({len(line) for line in markdown}) == 1
    assert latex[0].startswith(r"\begin{tabular}{")
    assert latex[-1] == r"\end{tabular}"
    body = latex[4:-2]
    assert len(body) == len(rows)
    for row, md, tex in zip(rows, markdown[2:], body, strict=True):
        cells = [c.strip() for c in md.strip("|").split(" | ")]
        assert row["recipe"] in cells
        assert row["metric"] in cells
        assert row["metric"].replace("_", r"\_") in tex
        assert tex.endswith(r"\\")
        assert tex.count(" & ") == latex[2].count(" & ")


def test_a_table_shows_results_once_there_are_some(ganbench, place, monkeypatch):
    path = write_recipe(place)
    only = recipes.Installed({"tiny": recipes.read(path)}, {}, [])
    monkeypatch.setattr("ganbench.recipes.installed", lambda: only)
    assert "not run" in ganbench("table", "--out", "out").out
    printed = ganbench("reproduce", path, "--out", "out").out
    assert ganbench("table", "--out", "out").out == printed
    assert "not run" not in printed


# --- Check ---


def test_check_takes_the_newest_run_of_the_same_recipe_seed_and_overrides(ganbench, place):
    path = write_recipe(place)
    ganbench("reproduce", path, "--out", "out")
    ganbench("reproduce", path, "--out", "out", "--steps", "3")  # newer, but not the recipe's own
    own = json.loads((place / "out/runs/tiny/seed0/result.json").read_text())
    (place / "base.json").write_text(json.dumps({**own, "tolerances": {"fd_pixels": 0}}))
    done = ganbench("check", "base.json", "--out", "out", "--junit", "junit.xml")
    assert (done.code, done.err) == (0, "")
    assert " ok " in done.out
    assert (place / "junit.xml").exists()


def test_check_exits_with_1_and_names_the_metric_that_got_worse(ganbench, place, folder):
    ganbench("evaluate", "--images", folder, "--reference", "digits", "--metrics", "fd_pixels", "--out", "r.json")
    better = json.loads((place / "r.json").read_text())
    better["measurements"][0]["value"] /= 2
    (place / "base.json").write_text(json.dumps({**better, "tolerances": {"fd_pixels": 0.001}}))
    done = ganbench("check", "base.json", "r.json")
    assert done.code == 1
    assert "regression" in done.out
    assert done.err.startswith("ganbench: check failed: fd_pixels (r.json against base.json)")


# --- Interrupts ---


def test_an_interrupt_ends_with_130_and_one_line(ganbench, place, ckpt, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("ganbench.reproduction.run.train", interrupted)
    done = ganbench("reproduce", write_recipe(place), "--out", "out")
    assert done.code == 130
    assert "the same command goes on" in done.err
    monkeypatch.setattr(checkpoint, "load", interrupted)
    done = ganbench("sample", "--ckpt", ckpt, "--grid", "a.png")
    assert done.code == 130
    assert "ganbench: interrupted\n" in done.err


def test_a_recipe_trains_on_a_plain_folder_and_names_it_by_its_last_part(ganbench, place, folder):
    for c in range(10):
        for i in range(4):
            write_png(place / "ten-classes" / str(c) / f"{i}.png", np.full((8, 8), 20 * c + i, np.uint8))
    done = ganbench(
        "reproduce", write_recipe(place), "--data", f"folder:{place / 'ten-classes'}", "--steps", 2, "--quiet"
    )
    assert done.code == 0, done
    assert "| ten-classes " in done.out
    assert "real data" not in done.out  # there are no other images to play it
    assert "not comparable" in done.out  # it is another experiment than the paper's


# --- Train a classifier ---


def test_a_classifier_of_a_folder_is_tested_on_the_test_images_of_that_folder(ganbench, place):
    digits = load("digits:test")
    for part, rows in (("train", range(130)), ("test", range(130, 150))):
        for i in rows:
            write_png(place / "mnist" / part / str(int(digits.labels[i])) / f"{i:03}.png", digits.images[i, 0].numpy())
    done = ganbench("train-classifier", "folder:mnist", "--out", "c.safetensors")
    assert done.code == 0, done.err
    out, error = done.out.splitlines()
    assert out == "c.safetensors"
    assert error.startswith("test error: ")
    assert " of 20 (" in error
    (place / "mnist/test").rename(place / "rest")
    assert ganbench("train-classifier", "folder:mnist", "--out", "c.safetensors").out == "c.safetensors\n"


# --- neighbours


def test_neighbours_puts_copies_first_and_beside_their_originals(ganbench, place):
    real = load("digits:train").images
    noise = torch.randint(256, (20, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    fake = torch.cat([noise, real[[3, 500]]])
    np.savez(place / "fake.npz", arr_0=fake.permute(0, 2, 3, 1).numpy())
    for extra in ([], ["--extractor", "pixels"]):
        args = "--images", "fake.npz", "--reference", "digits:train", "--rows", "3", "--out", "n.png"
        done = ganbench("neighbours", *args, *extra)
        assert done.code == 0, done.err
        assert done.out.startswith("n.png  (")
        assert ": 0 to " in done.out
        picture = np.array(Image.open("n.png"))
        side = picture.shape[0] // (3 * 10 + 2)  # three rows of 8 pixels and 2 between; small pictures are enlarged
        cells = picture[::side, ::side]
        for row, image in ((0, 3), (1, 500)):
            for column in (0, 1):  # the copy, and its original
                cell = cells[2 + 10 * row : 10 + 10 * row, 2 + 10 * column : 10 + 10 * column]
                assert np.array_equal(cell, real[image, 0].numpy())


def test_neighbours_of_a_checkpoint_are_of_its_training_set(ganbench, ckpt, place):
    done = ganbench("neighbours", "--ckpt", ckpt, "--num", "12", "--out", "n.png")
    assert done.code == 0, done.err
    assert (place / "n.png").exists()


def test_neighbours_of_too_few_images_are_refused(refuses, place):
    np.savez(place / "few.npz", arr_0=np.zeros((3, 8, 8, 1), dtype=np.uint8))
    refuses(["7 nearest training images", "not 3"], "neighbours", "--images", "digits", "--reference", "few.npz",
            "--out", "n.png")
    refuses(["--reference"], "neighbours", "--images", "digits", "--out", "n.png")
