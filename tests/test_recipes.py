"""Recipes: read as they are written, with nothing ignored, and overridden as the command line says."""

import hashlib

import pytest
from support import RECIPE, write_recipe

from ganbench import recipes
from ganbench.base import registry
from ganbench.base.errors import UserError


@pytest.fixture
def recipe(place):
    return recipes.read(write_recipe(place))


def test_every_value_of_the_file_is_in_the_recipe(recipe):
    assert (recipe.name, recipe.version, recipe.title, recipe.paper) == ("tiny", 1, "A tiny recipe", "none")
    assert recipe.model.name == "dcgan"
    assert recipe.model.args["latent_dim"] == 4
    assert (recipe.train.data, recipe.train.batch_size, recipe.train.steps) == ("digits:train", 16, 6)
    assert recipe.train.ema_decay == 0.9
    assert (recipe.evaluate.metrics, recipe.evaluate.num) == (["fd_pixels"], 40)
    assert (recipe.evaluate.reference, recipe.evaluate.real) == ("digits:train", "digits:test")
    (reported,) = recipe.reported
    assert (reported.metric, reported.value, reported.source, reported.std) == ("fd_pixels", 1.5, "nowhere", None)
    assert (reported.comparable, reported.unconfirmed, reported.note) == (True, False, "")
    assert recipe.deviations == ["Everything."]


def test_the_hash_is_of_the_files_bytes(recipe, place):
    assert recipe.sha256 == hashlib.sha256(RECIPE.format(name="tiny").encode()).hexdigest()
    assert recipes.read(write_recipe(place, {"A tiny": "Another"})).sha256 != recipe.sha256


def test_a_hash_in_the_file_is_an_unknown_key(place):
    with pytest.raises(UserError, match="unknown key 'sha256'"):
        recipes.read(write_recipe(place, {"version = 1": 'version = 1\nsha256 = "mine"'}))


def test_a_whole_number_will_do_for_a_float_and_not_the_other_way_round(place):
    value = recipes.read(write_recipe(place, {"value = 1.5": "value = 2\nstd = 1"})).reported[0]
    assert (value.value, value.std) == (2.0, 1.0)
    assert isinstance(value.value, float)
    with pytest.raises(UserError, match=r"'steps' must be of type int, not 6\.0"):
        recipes.read(write_recipe(place, {"steps = 6": "steps = 6.0"}))


def test_a_mistake_below_a_list_says_which_item(place):
    path = write_recipe(
        place, {'source = "nowhere"': 'source = "a"\n[[reported]]\nmetric = "b"\nvalue = "c"\nsource = "d"'}
    )
    with pytest.raises(UserError, match=r"'reported'\[1\], 'value' must be of type float"):
        recipes.read(path)


@pytest.mark.parametrize(
    ("data", "reference", "real"),
    [
        ("digits", "digits:train", "digits:test"),
        ("digits:train", "digits:train", "digits:test"),
        ("digits:test", "digits:test", "digits:train"),
        ("folder:a/b", "folder:a/b:train", "folder:a/b:test"),
        ("folder:a/b:train", "folder:a/b:train", "folder:a/b:test"),
        ("digits:train[:50]", "digits:train[:50]", "digits:test"),
        ("digits[classes 2-4]", "digits:train[classes 2-4]", "digits:test[classes 2-4]"),
        ("folder:a/b[classes 2-4]", "folder:a/b:train[classes 2-4]", "folder:a/b:test[classes 2-4]"),
        ("folder:a/b:val[classes 2-4]", "folder:a/b:val[classes 2-4]", "folder:a/b:train[classes 2-4]"),
    ],
)
def test_other_data_are_also_the_reference(recipe, data, reference, real):
    other = recipe.replace(data=data)
    assert (other.train.data, other.evaluate.reference, other.evaluate.real) == (data, reference, real)
    assert other.train.steps == recipe.train.steps


def test_a_recipe_of_classes_takes_those_of_another_folder_and_its_own_other_split(place):
    part = "[classes {seed}0-{seed}9]"
    text = {
        '"digits:train"\nbatch': f'"folder:a:train{part}"\nbatch',
        'real = "digits:test"': f'real = "folder:a:val{part}"',
    }
    recipe = recipes.read(write_recipe(place, text))
    other = recipe.replace(data="folder:b").of_seed(7)
    assert (other.train.data, other.evaluate.reference, other.evaluate.real) == (
        "folder:b[classes 70-79]", "folder:b:train[classes 70-79]", "folder:b:val[classes 70-79]"
    )
    assert recipe.of_seed(0).train.data == "folder:a:train[classes 00-09]"
    assert recipe.replace(data="digits").train.data == "digits"
    rows = recipes.read(write_recipe(place, {'"digits:train"\nbatch': '"digits:train[:50]"\nbatch'}))
    assert rows.replace(data="folder:b").train.data == "folder:b"  # rows are of one set


def test_other_steps_change_nothing_else(recipe):
    other = recipe.replace(steps=99)
    assert other.train.steps == 99
    assert other.replace(steps=6) == recipe
    assert recipe.replace() == recipe


def test_a_recipe_is_found_by_name_and_by_path(place):
    assert recipes.find("dcgan-digits").name == "dcgan-digits"
    assert recipes.find(str(write_recipe(place))).name == "tiny"
    with pytest.raises(UserError, match=r"unknown recipe 'tiny'\..* path to a \.toml file"):
        recipes.find("tiny")


def test_a_folder_of_recipes_that_somebody_else_installs_is_found(place, monkeypatch):
    write_recipe(place)
    monkeypatch.setattr(registry, "names", lambda kind: ["mine"])
    monkeypatch.setattr(registry, "load", lambda kind, name: lambda: place)
    assert list(recipes.available()) == ["tiny"]
    monkeypatch.setattr(registry, "load", lambda kind, name: str(place))
    assert recipes.available() == {"tiny": place / "tiny.toml"}


# --- Budgets ---

BUDGETS = """
[budget.smoke]
steps = 2
batch_size = 4
num = 10
metrics = ["ms_ssim"]
args = { latent_dim = 3, g_width = 2 }

[budget.short]  # an hour
steps = 3
ema_decay = 0.5
data = "digits:test"
"""


@pytest.fixture
def budgeted(place):
    path = write_recipe(place)
    path.write_text(path.read_text() + BUDGETS)
    return recipes.read(path)


def test_a_budget_changes_what_it_names_and_nothing_else(budgeted, recipe):
    smoke, short = budgeted.at("smoke"), budgeted.at("short")
    assert (smoke.train.steps, smoke.train.batch_size, smoke.train.ema_decay) == (2, 4, 0.9)
    assert (smoke.evaluate.num, smoke.evaluate.metrics) == (10, ["ms_ssim"])
    assert smoke.model.args == {**recipe.model.args, "latent_dim": 3, "g_width": 2}
    assert (short.train.steps, short.train.batch_size, short.train.ema_decay) == (3, 16, 0.5)
    assert (short.evaluate.num, short.evaluate.metrics, short.model) == (40, ["fd_pixels"], recipe.model)
    assert budgeted.at("full") == budgeted
    assert budgeted.budget["smoke"].changes() == {
        "steps": 2, "batch_size": 4, "num": 10, "metrics": ["ms_ssim"], "args": {"latent_dim": 3, "g_width": 2}
    }
    assert budgeted.budget["short"].changes() == {"steps": 3, "ema_decay": 0.5, "data": "digits:test"}


def test_a_smoke_run_is_on_synthetic_images_unless_it_names_others(budgeted):
    smoke, short = budgeted.at("smoke"), budgeted.at("short")
    assert (smoke.train.data, smoke.evaluate.reference, smoke.evaluate.real) == (
        "synthetic", "synthetic:train", "synthetic:test"
    )
    assert (short.train.data, short.evaluate.reference, short.evaluate.real) == (
        "digits:test", "digits:test", "digits:train"
    )


def test_steps_and_data_come_on_top_of_a_budget(budgeted):
    spec = budgeted.override({"budget": "smoke", "steps": 7, "data": "digits"})
    assert (spec.train.steps, spec.train.data, spec.evaluate.num) == (7, "digits", 10)
    assert budgeted.override({}) == budgeted


def test_the_hash_is_without_the_budgets(budgeted, recipe, place):
    assert budgeted.sha256 == recipe.sha256
    text = (place / "tiny.toml").read_text()
    (place / "tiny.toml").write_text(text.replace("steps = 3", "steps = 4"))
    assert recipes.read(place / "tiny.toml").sha256 == recipe.sha256
    (place / "tiny.toml").write_text(text.replace("steps = 6", "steps = 7"))
    assert recipes.read(place / "tiny.toml").sha256 != recipe.sha256


def test_a_budget_that_a_recipe_does_not_have_is_named_with_what_to_do(recipe):
    with pytest.raises(UserError, match=r"recipe 'tiny' has no budget 'short': add a table \[budget\.short\]"):
        recipe.at("short")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[budget.long]\nsteps = 3", "unknown budget 'long'"),
        ("[budget.short]\nnum = 3", "'short': the key 'steps' is missing"),
        ("[budget.short]\nstep = 3", "'short': unknown key 'step'"),
        ("[budget.short]\nsteps = 0", "budget 'short', train, 'steps' must be at least 1"),
        ("[budget.short]\nsteps = 3\nnum = 0", "budget 'short', evaluate, 'num' must be at least 1"),
        ("[budget.short]\nsteps = 3\nmetrics = []", "budget 'short', evaluate, 'metrics' must name at least one"),
        ("[budget.short]\nsteps = 3\nema_decay = 1", r"budget 'short', train, 'ema_decay' must be in \[0, 1\)"),
        ("[budget.short]\nsteps = 3\nlabels = 10", "budget 'short', train: 'labels' and 'unlabelled_batch_size'"),
        ("budget = 3", "'budget' must be of type dict"),
        ("[budget]\nshort = 3", "'short' must be a table"),
        ("[budget.short]\nsteps = 3\n[[reported]]\nmetric = 'a'\nvalue = 1\nsource = 'b'", "budgets must come last"),
    ],
)
def test_a_mistake_in_a_budget_is_named(place, text, words):
    path = write_recipe(place)
    path.write_text(f"{text}\n{path.read_text()}" if text.startswith("budget") else f"{path.read_text()}\n{text}\n")
    with pytest.raises(UserError, match=words):
        recipes.read(path)
