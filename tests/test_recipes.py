"""Recipes: read as they are written, with nothing ignored, and overridden as the command line says."""

import copy
import dataclasses
import hashlib
import re

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


@pytest.mark.parametrize(
    ("written", "decimals"), [("2.30", 2), ("1.5", 1), ("225.0", 1), ("1_000.25", 2), ("1.5e3", -2), ("93e-4", 4)],
)
def test_a_papers_number_keeps_its_digits_and_others_are_plain(place, written, decimals):
    recipe = recipes.read(write_recipe(place, {"value = 1.5": f"value = {written}"}))
    (reported,) = recipe.reported
    assert reported.value == float(written)
    assert reported.value.decimals == decimals
    assert copy.deepcopy(reported).value.decimals == decimals
    assert dataclasses.replace(reported, note="x").value.decimals == decimals
    numbers = [*recipe.model.args.values(), recipe.train.ema_decay]
    assert {type(x) for x in numbers} <= {int, float, bool, str, list}


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


# --- Trees ---


@pytest.fixture
def tree(place, monkeypatch):
    """A tree of recipes that somebody else installs."""
    root = place / "tree"
    root.mkdir()
    monkeypatch.setattr(registry, "names", lambda kind: ["mine"])
    monkeypatch.setattr(registry, "load", lambda kind, name: root)
    return root


def write_group(folder, name, *members, more=""):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text(f'name = "{name}"\ntitle = "t"\npaper = "p"\nrecipes = {list(members)}\n{more}')
    return path


def test_a_tree_holds_recipes_at_its_top_and_in_a_folder_a_paper_with_groups_beside_them(tree):
    (tree / "paper").mkdir()
    flat, deep = write_recipe(tree, name="flat"), write_recipe(tree / "paper", name="deep")
    groups = write_group(tree / "groups", "old", "flat"), write_group(tree / "paper" / "tables", "new", "deep", "flat")
    assert recipes.available() == {"deep": deep, "flat": flat}
    assert recipes.available_groups() == {"new": groups[1], "old": groups[0]}
    assert recipes.find("deep").name == "deep"
    assert list(recipes.lookup("new")[1]) == ["deep", "flat"]


def test_a_toml_file_of_another_kind_is_no_recipe(tree):
    (tree / "speed").mkdir()
    (tree / "speed" / "machine.toml").write_text('title = "a machine"\n[cpu]\nmodels = 2\n')
    (tree / "pyproject.toml").write_text('[project]\nname = "mine"\n')
    (tree / "deep" / "er").mkdir(parents=True)
    write_recipe(tree / "deep" / "er", name="third_floor")
    (tree / "folder.toml").mkdir()
    assert recipes.available() == {}
    # A recipe in which something is missing is still one, and reading it says so.
    (tree / "a.toml").write_text('model = { name = "dcgan" }\n')
    (tree / "b.toml").write_text("  [ train ]\n[[[")
    assert list(recipes.available()) == ["a", "b"]
    with pytest.raises(UserError, match=r"a\.toml: the key 'name' is missing"):
        recipes.find("a")
    with pytest.raises(UserError, match=r"b\.toml is not valid TOML"):
        recipes.find("b")


def test_two_files_of_one_name_in_one_tree_are_named(tree):
    for folder in ("a", "b"):
        (tree / folder).mkdir()
        write_recipe(tree / folder)
    write_recipe(tree, name="fine")
    for folder in (tree / "groups", tree / "a" / "tables"):
        write_group(folder, "table1", "fine")
    words = {
        "tiny": r"two files are named 'tiny': .*tree/a/tiny.toml and .*tree/b/tiny.toml",
        "table1": r"two files are named 'table1': .*tree/a/tables/.* and .*tree/groups/",
    }
    for name, said in words.items():
        with pytest.raises(UserError, match=said):
            recipes.lookup(name)
    for said, fault in zip(words.values(), recipes.installed().faults, strict=True):
        assert re.search(said, fault)
    assert recipes.find("fine").name == "fine"


def test_of_two_trees_the_first_one_is_found(place, monkeypatch):
    for tree in ("one", "two"):
        (place / tree).mkdir()
        write_recipe(place / tree)
    write_recipe(place / "two", name="other")
    monkeypatch.setattr(registry, "names", lambda kind: ["one", "two"])
    monkeypatch.setattr(registry, "load", lambda kind, name: place / name)
    assert recipes.available() == {"tiny": place / "one/tiny.toml", "other": place / "two/other.toml"}


def test_the_bundled_recipes_lie_in_a_folder_a_paper():
    every = sorted(recipes.BUNDLED.rglob("*.toml"))
    found = {p for files in (recipes.available(), recipes.available_groups()) for p in files.values()}
    assert set(every) <= found, "each TOML file is a recipe or a table"
    for path in every:
        folder = path.parent.parent if path.parent.name == "tables" else path.parent
        assert folder.parent == recipes.BUNDLED


# --- Rivals ---


def row(folder, name, value, changes=None, metric="fd_pixels"):
    """A recipe with one reported value, as a row of a table."""
    path = write_recipe(folder, {"value = 1.5": f"value = {value}", **(changes or {})}, name)
    path.write_text(path.read_text().replace('metric = "fd_pixels"', f'metric = "{metric}"'))
    return path


def values_beside(name, group=None):
    found = recipes.rivals(recipes.find(name), group)
    return sorted((r.metric, r.value, r.source) for r in found)


def test_rivals_are_the_other_rows_of_the_column(tree):
    row(tree, "a", 1.5)
    row(tree, "b", 2.0)
    row(tree, "other_data", 3.0, {'"digits:train"\nbatch': '"digits:test"\nbatch'})
    row(tree, "more_labels", 4.0, {"steps = 6": "steps = 6\nlabels = 20\nunlabelled_batch_size = 20"})
    row(tree, "in_no_table", 5.0)
    write_group(tree / "groups", "table1", "a", "b", "other_data", "more_labels")
    assert values_beside("a") == [("fd_pixels", 2.0, "b")]
    assert values_beside("b") == [("fd_pixels", 1.5, "a")]
    assert values_beside("other_data") == values_beside("more_labels") == values_beside("in_no_table") == []
    write_group(tree / "p" / "tables", "table2", "in_no_table", "a")
    assert values_beside("a") == [("fd_pixels", 2.0, "b"), ("fd_pixels", 5.0, "in_no_table")]


def test_a_recipes_own_values_are_no_rivals_of_each_other(tree):
    path = row(tree, "a", 1.5)
    path.write_text(path.read_text() + '[[reported]]\nmetric = "fd_pixels"\nvalue = 1.4\nsource = "ten models"\n')
    row(tree, "b", 2.0)
    write_group(tree / "groups", "table1", "a", "b")
    assert values_beside("a") == [("fd_pixels", 2.0, "b")]
    assert values_beside("b") == [("fd_pixels", 1.4, "a"), ("fd_pixels", 1.5, "a")]


RIVAL = '[[rival]]\nmetric = "ms_ssim"\nvalue = 7\nsource = "Table 1, another\'s model"\n'


def test_a_table_names_rivals_that_its_recipes_do_not_have(tree):
    row(tree, "a", 1.5)
    row(tree, "b", 2.0, metric="nn_error")
    theirs = ("ms_ssim", 7.0, "Table 1, another's model")
    path = write_group(tree / "groups", "table1", "a", "b", more=RIVAL)
    assert values_beside("a") == [theirs, ("nn_error", 2.0, "b")]
    assert values_beside("b") == [("fd_pixels", 1.5, "a"), theirs]
    path.write_text(path.read_text() + 'recipes = ["b"]\n')
    assert values_beside("a") == [("nn_error", 2.0, "b")]
    assert theirs in values_beside("b")
    path.write_text(path.read_text().replace('recipes = ["b"]', 'recipes = ["c"]'))
    with pytest.raises(UserError, match=r"table1\.toml, 'rival': 'c' is none of the group's recipes"):
        recipes.read_group(path)
    assert values_beside("a") == []  # the group cannot be read, which `list` and `table` say
    (fault,) = recipes.installed().faults
    assert "table1.toml, 'rival': 'c' is none" in fault


ABSENT = '[[absent]]\nrow = "DBN"\nreason = "another model"\nmetric = "ms_ssim"\nvalue = 7\nstd = 2\nrecipes = ["b"]\n'


def test_an_absent_row_of_the_paper_is_a_rival_of_those_beside_it(tree):
    row(tree, "a", 1.5)
    row(tree, "b", 2.0, metric="nn_error")
    path = write_group(tree / "groups", "table1", "a", "b", more=ABSENT)
    assert values_beside("a") == [("nn_error", 2.0, "b")]
    assert values_beside("b") == [("fd_pixels", 1.5, "a"), ("ms_ssim", 7.0, "DBN")]
    right = path.read_text()
    for wrong, reason in (
        ({'["b"]': '["c"]'}, "'absent': 'c' is none of the group's recipes"),
        ({"value = 7\n": "", "std = 2\n": ""}, "'absent': 'DBN' needs 'metric' and 'value' together"),
        ({'metric = "ms_ssim"\n': ""}, "'absent': 'DBN' needs 'metric' and 'value' together"),
        ({"std = 2": "std = -2"}, "'std' of at least 0"),
    ):
        text = right
        for old, new in wrong.items():
            assert old in text
            text = text.replace(old, new)
        path.write_text(text)
        with pytest.raises(UserError, match=reason):
            recipes.read_group(path)


def test_a_table_by_its_path_has_rivals_too(tree, place):
    for name, value in (("a", 1.5), ("b", 2.0)):
        row(place, name, value)
    group, found = recipes.lookup(str(write_group(place, "mine", "a.toml", "b.toml", more=RIVAL)))
    assert group.members == list(found.values())
    beside_a = recipes.rivals(group.members[0], group)
    assert [(r.metric, r.value) for r in beside_a] == [("fd_pixels", 2.0), ("ms_ssim", 7.0)]
    assert recipes.rivals(group.members[0]) == []


def test_bigans_table_has_one_column_and_improved_gans_one_a_number_of_labels():
    assert {r.value for r in recipes.rivals(recipes.find("bigan-d-mnist")) if "discrim" in r.metric} >= {0.9739}
    beside_bigan = [r for r in recipes.rivals(recipes.find("bigan-mnist")) if r.metric == "nn_transfer_encoder-hidden"]
    assert sorted(r.value for r in beside_bigan) == [0.9713, 0.973, 0.9744, 0.9758, 0.9763]
    assert recipes.rivals(recipes.find("improved_gan-mnist-100")) == []


# --- Two protocols ---


def test_a_value_may_stand_twice_with_two_protocols(place):
    text = """value = 1.5
source = "Table 1"
protocol = "the caption: test images"

[[reported]]
metric = "ms_ssim"
value = 1.5
std = 0.2
runs = 10
source = "Table 1"
protocol = "the code: held-out training images"
note = "The official code's default."
"""
    first, second = recipes.read(write_recipe(place, {'value = 1.5\nsource = "nowhere"\n': text})).reported
    assert (first.metric, first.value, first.protocol) == ("fd_pixels", 1.5, "the caption: test images")
    assert (second.metric, second.value, second.runs) == ("ms_ssim", 1.5, 10)
    assert (second.protocol, second.note) == ("the code: held-out training images", "The official code's default.")


def test_the_number_of_runs_belongs_to_a_spread(place):
    for more in ("runs = 10", "std = 1\nruns = -1"):
        path = write_recipe(place, {"value = 1.5": f"value = 1.5\n{more}"})
        with pytest.raises(UserError, match=r"'reported'\[0\]: 'runs' is at least 1, and goes with 'std'"):
            recipes.read(path)


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


def test_a_limit_is_a_number(place):
    path = write_recipe(place)
    path.write_text(f"{path.read_text()}\n[watch]\nlimits = {{ d_loss = 3, sigma = 'high' }}\n")
    with pytest.raises(UserError, match=r"watch, 'limits', 'sigma' must be a number, not 'high'"):
        recipes.read(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[budget.long]\nsteps = 3", "unknown budget 'long'"),
        ("[budget.short]\nnum = 3", "'short': the key 'steps' is missing"),
        ("[budget.short]\nstep = 3", "'short': unknown key 'step'"),
        ("[budget.short]\nsteps = 0", "budget 'short', train, 'steps' must be at least 1"),
        ("[budget.short]\nsteps = 3\nnum = 0", "budget 'short', evaluate, 'num' must be at least 1"),
        ("[budget.short]\nsteps = 3\nmetrics = []", "budget 'short', evaluate, 'metrics' must name at least one"),
        ("[budget.short]\nsteps = 3\nema_decay = 0\nema_start = 2", "'ema_start' goes with 'ema_decay'"),
        ("[budget.short]\nsteps = 3\nema_start = -2", "'ema_start' must be at least 0"),
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
