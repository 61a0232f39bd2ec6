"""`ganbench validate`: a right recipe says what it needs, a wrong one where it is wrong, and nothing is made."""

import numpy as np
import pytest
import torch
from support import everything_below, write_png, write_recipe

from ganbench import recipes
from ganbench.base import registry
from ganbench.base.errors import UserError
from ganbench.data.datasets import unknown_split
from ganbench.gan import checkpoint
from ganbench.reproduction import validation
from ganbench.training import loop

SMOKE = "\n[budget.smoke]\nsteps = 2\nnum = 20\n"
GROUP = 'name = "pair"\ntitle = "Two things"\npaper = "none, Table 1"\nrecipes = ["tiny.toml", "other.toml"]\n'


@pytest.fixture(autouse=True)
def nothing_is_made(monkeypatch):
    """Training and downloading are errors, whoever tries."""

    def refuse(*args, **kwargs):
        raise AssertionError("this is a check alone")

    monkeypatch.setattr("ganbench.reproduction.run.train", refuse)
    monkeypatch.setattr(loop, "train", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.fixture
def wrong(ganbench, place):
    """`wrong(*args)`: the lines on stderr of a `validate` that ends with exit code 2 and writes no file."""

    def run(*args):
        before = everything_below(place)
        done = ganbench("validate", *args)
        assert done.code == 2, done
        assert everything_below(place) == before
        lines = done.err.splitlines()
        assert all(line.startswith("ganbench: error: ") for line in lines)
        return [line.removeprefix("ganbench: error: ") for line in lines]

    return run


# --- Right ones ---


def test_a_right_recipe_says_what_a_run_needs(ganbench, place):
    path = write_recipe(place)
    path.write_text(path.read_text() + SMOKE)
    before = everything_below(place)
    done = ganbench("validate", "tiny.toml")
    parameters = sum(p.numel() for p in checkpoint.make_model("dcgan", recipes.read(path).model.args, "").parameters())
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "tiny: right (A tiny recipe)",
        f"  model       dcgan, {parameters:,} parameters",
        "  training    6 steps of 16 images; smoke 2 steps",
        "  evaluation  40 images: fd_pixels",
        "  ok  digits               embedded in scikit-learn",
        "  ok  pixels               needs nothing",
    ]
    assert everything_below(place) == before


@pytest.mark.parametrize("name", [*recipes.available(), *recipes.available_groups()])
def test_every_bundled_recipe_and_group_is_right(name):
    report = validation.validate(name)
    assert report.faults == []
    assert report.lines[0].startswith(f"{name}: right")


def test_what_is_missing_is_no_fault_and_is_said(ganbench, place, monkeypatch):
    write_recipe(place, {
        'data = "digits:train"': 'data = "mnist:train"', 'reference = "digits:train"': 'reference = "folder:gone:val"',
        '["fd_pixels"]': '["fid", "fd_small-cnn"]',
    })
    lines = ganbench("validate", "tiny.toml").out.splitlines()
    marks = {line.split()[1]: (line.split()[0], line) for line in lines[4:]}
    assert {name: mark for name, (mark, _) in marks.items()} == {
        "mnist": "--", "folder:gone": "--", "digits": "ok", "inception-v3": "--", "small-cnn": "--",
    }
    assert "missing, and this run is offline" in marks["mnist"][1]
    assert "weights missing" in marks["inception-v3"][1]
    monkeypatch.setenv("GANBENCH_OFFLINE", "0")
    assert "downloaded on first use" in ganbench("validate", "tiny.toml").out


def test_a_group_is_a_line_a_recipe_and_what_all_of_them_need(ganbench, place):
    write_recipe(place)
    write_recipe(place, {'["fd_pixels"]': '["fd_mnist-cnn"]'}, name="other")
    (place / "pair.toml").write_text(GROUP)
    done = ganbench("validate", "pair.toml")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "pair: right, 2 recipes (Two things)"
    assert [line.split()[0] for line in lines[1:3]] == ["tiny", "other"]
    assert lines[1].endswith("6 steps, 40 images evaluated")
    assert [line.split()[:2] for line in lines[3:]] == [["ok", "digits"], ["ok", "mnist-cnn"], ["ok", "pixels"]]


def test_a_folder_without_splits_needs_no_real_images(ganbench, place):
    for i in range(20):
        write_png(place / "set" / str(i % 10) / f"{i}.png", np.full((8, 8), i, np.uint8))
    write_recipe(place, {
        'data = "digits:train"\nb': 'data = "folder:set"\nb',
        'reference = "digits:train"': 'reference = "folder:set"',
        'real = "digits:test"': 'real = "folder:set:test"',
    })
    done = ganbench("validate", "tiny.toml")
    assert done.code == 0, done.err
    assert "  ok  folder:set           a folder" in done.out.splitlines()


def test_a_model_that_looks_at_its_weights_is_built_with_them(ganbench, place, monkeypatch):
    make_model, devices = checkpoint.make_model, []

    def looks(name, args, whose):
        devices.append(torch.empty(0).device.type)
        if devices[-1] == "meta":
            raise UserError(f"{whose}: the model '{name}' refuses its arguments.")
        return make_model(name, args, whose)

    monkeypatch.setattr(checkpoint, "make_model", looks)
    write_recipe(place, {"digits:test": "folder:gone:test", 'data = "digits:train"': 'data = "folder:gone:train"'})
    state = torch.random.get_rng_state()
    assert ganbench("validate", "tiny.toml").code == 0
    assert devices[:2] == ["meta", "cpu"]
    assert torch.equal(torch.random.get_rng_state(), state)


# --- Wrong ones ---


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"batch_size = 16": "batch_sise = 16"},
            "tiny.toml, 'train': unknown key 'batch_sise'. Did you mean 'batch_size'?",
        ),
        ({'name = "dcgan"': 'name = "dcgn"'}, "tiny.toml, model, 'name': unknown model 'dcgn'. Did you mean 'dcgan'?"),
        (
            {"latent_dim = 4": "latent_dmi = 4"},
            "tiny.toml, model, 'args': the model 'dcgan' has no argument 'latent_dmi'. Did you mean 'latent_dim'?",
        ),
        ({'["fd_pixels"]': '["fdi"]'}, "tiny.toml, evaluate, 'metrics': unknown metric 'fdi'."),
        (
            {'["fd_pixels"]': '["fd_pixel"]'},
            "tiny.toml, evaluate, 'metrics': metric 'fd_pixel': unknown extractor 'pixel'. Did you mean 'pixels'?",
        ),
        (
            {'["fd_pixels"]': '["ms_ssim", "ms_ssim"]'},
            "tiny.toml, evaluate, 'metrics': the metric 'ms_ssim' is asked for twice.",
        ),
        (
            {'["fd_pixels"]': '["fid50k_full"]'},
            "tiny.toml, evaluate, 'metrics': 'fid50k_full' cannot be measured: it is of 50,000 images, and 'num' is "
            "40: make 'num' 50000.",
        ),
        (
            {'["fd_pixels"]': '["reconstruction_mse"]'},
            "tiny.toml, evaluate, 'metrics': 'reconstruction_mse' cannot be measured: the model 'dcgan' does not "
            "reconstruct images.",
        ),
        (
            {'["fd_pixels"]': '["linear_probe_encoder"]'},
            "tiny.toml, evaluate, 'metrics': 'linear_probe_encoder' cannot be measured: the model 'dcgan' is none "
            "with an encoder.",
        ),
        (
            {'data = "digits:train"\nb': 'data = "digts:train"\nb'},
            "tiny.toml, train, 'data': unknown dataset 'digts'. Did you mean 'digits'?",
        ),
        (
            {'data = "digits:train"\nb': 'data = "digits:val"\nb'},
            "tiny.toml, train, 'data': the data set 'digits' has no split 'val': ",
        ),
        (
            {'reference = "digits:train"': 'reference = "mnist:val"'},
            "tiny.toml, evaluate, 'reference': the data set 'mnist' has no split 'val': ",
        ),
        (
            {'real = "digits:test"': 'real = "svhn:valid"'},
            "tiny.toml, evaluate, 'real': the data set 'svhn' has no split 'valid': ",
        ),
        (
            {'real = "digits:test"': 'real = "digits:test[classes 8-10]"'},
            "tiny.toml, evaluate, 'real': digits:test has classes 0 to 9",
        ),
        (
            {"image_size = 8": "image_size = 16"},
            "tiny.toml, train, 'data': the model makes images of (1, 16, 16) (C, H, W) but 'digits' has (1, 8, 8). "
            "Give data of that size, or another recipe.",
        ),
        ({"steps = 6": 'steps = 6\nresize = "8"'}, "tiny.toml, train, 'resize': --resize '8'"),
        ({'metric = "fd_pixels"': 'metric = "fdi@32"'}, "tiny.toml, 'reported'[0], 'metric': unknown metric 'fdi'."),
        (
            {'deviations = ["Everything."]': ""},
            "tiny.toml, 'deviations': say in a sentence each how the recipe differs from its paper: a list of texts.",
        ),
        (
            {"[evaluate]": '[watch]\nmetric = "gan_tran"\nevery = 2\n[evaluate]'},
            "tiny.toml, watch, 'metric': unknown metric 'gan_tran'.",
        ),
        (
            {"[evaluate]": '[watch]\nmetric = "nn_error"\nevery = 2\n[evaluate]'},
            "tiny.toml, watch, 'metric': 'nn_error' takes more than samples and training images: name another.",
        ),
        ({"steps = 6": "steps = "}, "the recipe tiny.toml is not valid TOML"),
        ({'name = "tiny"': 'name = "other"'}, "tiny.toml: the name 'other' must be that of the file."),
    ],
    ids=lambda v: next(iter(v.values())) if isinstance(v, dict) else "",
)
def test_a_mistake_is_one_line_that_names_file_and_key(wrong, place, changes, line):
    write_recipe(place, changes)
    (said,) = wrong("tiny.toml")
    assert said.startswith(line)


def test_a_mistake_of_a_budget_names_it_and_what_it_leaves_is_not_said_twice(wrong, place):
    path = write_recipe(place, {'real = "digits:test"': 'real = "digits:val"'})
    path.write_text(path.read_text() + '\n[budget.short]\nsteps = 2\nmetrics = ["fdi"]\nargs = { g_widht = 2 }\n')
    real, *budget = wrong("tiny.toml")
    assert real.startswith("tiny.toml, evaluate, 'real': ")
    assert [line.partition(": ")[0] for line in budget] == [
        "tiny.toml, budget 'short', 'args'", "tiny.toml, budget 'short', 'metrics'"
    ]


def test_every_mistake_of_every_file_is_said(wrong, ganbench, place):
    write_recipe(place, {'["fd_pixels"]': '["fdi", "kd_pixel"]', 'real = "digits:test"': 'real = "digits:val"'})
    write_recipe(place, name="right")
    lines = wrong("tiny.toml", "right.toml", "gone.toml", "dcgan-digit", "tiny.toml")
    assert [line.partition(":")[0] for line in lines] == [
        "tiny.toml, evaluate, 'real'", "tiny.toml, evaluate, 'metrics'", "tiny.toml, evaluate, 'metrics'",
        "cannot read the recipe gone.toml", "unknown recipe 'dcgan-digit'. Did you mean 'dcgan-digits'? A path to a "
        ".toml file works too.",
    ]
    done = ganbench("validate", "tiny.toml", "right.toml")
    assert done.out.startswith("right: right (")  # the others are looked at, and reported


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (('"other.toml"', '"dcgan-digit"'), "pair.toml, 'recipes': unknown recipe 'dcgan-digit'. Did you mean 'dcgan-"),
        (('"other.toml"', '"gone.toml"'), "pair.toml, 'recipes': cannot read the recipe gone.toml"),
        (("title", "titel"), "pair.toml: unknown key 'titel'. Did you mean 'title'?"),
        (('"tiny.toml", ', '"other.toml", '), "pair.toml, 'recipes' must name at least one recipe, and none twice."),
        (
            ("recipes =", 'metrics = ["fdi"]\nrecipes ='),
            "pair.toml, 'metrics': no recipe of the group measures or reports 'fdi': drop it, or add it there.",
        ),
        (
            ('"other.toml"]\n', '"other.toml"]\n[[rival]]\nmetric = "fdi"\nvalue = 1.0\nsource = "another row"\n'),
            "pair.toml, 'rival'[0], 'metric': unknown metric 'fdi'.",
        ),
        (
            ('"other.toml"]\n', '"other.toml"]\n[[absent]]\nrow = "r"\nreason = "w"\nmetric = "fdi"\nvalue = 1.0\n'),
            "pair.toml, 'absent'[0], 'metric': unknown metric 'fdi'.",
        ),
    ],
)
def test_a_group_with_a_mistake_is_named(wrong, place, change, line):
    write_recipe(place)
    write_recipe(place, name="other")
    assert GROUP.count(change[0]) == 1
    (place / "pair.toml").write_text(GROUP.replace(*change))
    (said,) = wrong("pair.toml")
    assert said.startswith(line)


def test_a_group_says_every_mistake_of_its_recipes(wrong, place):
    write_recipe(place, {"g_width = 4": "g_widht = 4"})
    write_recipe(place, {'["fd_pixels"]': '["fdi"]'}, name="other")
    (place / "pair.toml").write_text(GROUP)
    assert [line.partition(":")[0] for line in wrong("pair.toml")] == [
        "tiny.toml, model, 'args'", "other.toml, evaluate, 'metrics'"
    ]


def test_the_split_of_a_folder_that_is_there_is_looked_for(wrong, place):
    write_png(place / "set/train/0/a.png", np.zeros((8, 8), np.uint8))
    write_recipe(place, {
        'real = "digits:test"': 'real = "folder:set:test"', 'data = "digits:train"\nb': 'data = "folder:set:train"\nb',
    })
    (line,) = wrong("tiny.toml")
    assert line.startswith("tiny.toml, evaluate, 'real': the data set 'set' has no split 'test': ")


def test_the_data_set_of_a_third_party_is_asked_for_its_split_alone(wrong, ganbench, place, monkeypatch):
    asked = []

    def others(split, root, download):
        asked.append((split, list(root.iterdir()), download))
        if split != "train":
            raise unknown_split("others", split, ("train",))
        raise FileNotFoundError("no such set")

    entries, load = registry.entries, registry.load
    more = {"datasets": {"others": None}}
    monkeypatch.setattr(registry, "entries", lambda kind: entries(kind) | more.get(kind, {}))
    monkeypatch.setattr(registry, "load", lambda kind, name: others if name == "others" else load(kind, name))
    write_recipe(place, {'reference = "digits:train"': 'reference = "others"'})
    assert "  ok  others               provided by another package" in ganbench("validate", "tiny.toml").out
    write_recipe(place, {'reference = "digits:train"': 'reference = "others:dev"'})
    (line,) = wrong("tiny.toml")
    assert line.startswith("tiny.toml, evaluate, 'reference': the data set 'others' has no split 'dev': ")
    assert set(map(str, asked)) == {"('train', [], False)", "('dev', [], False)"}


def test_a_recipe_without_a_name_is_refused(refuses):
    refuses(["Missing argument 'RECIPE...'", "ganbench validate --help"], "validate")
