"""Recipes: read as they are written, with nothing ignored, and overridden as the command line says."""

import hashlib

import pytest
from support import RECIPE, write_recipe

from ganbench import recipes, registry
from ganbench.errors import UserError


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
    ],
)
def test_other_data_are_also_the_reference(recipe, data, reference, real):
    other = recipe.replace(data=data)
    assert (other.train.data, other.evaluate.reference, other.evaluate.real) == (data, reference, real)
    assert other.train.steps == recipe.train.steps


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
