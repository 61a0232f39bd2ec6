"""Groups: recipes that make a table of a paper, run with one command and joined in one table."""

import json
import re
import shutil

import pytest
from support import write_recipe

from ganbench import recipes
from ganbench.base import registry
from ganbench.base.errors import UserError
from ganbench.reporting import pages, tables

GROUP = 'name = "{name}"\ntitle = "Two things"\npaper = "none, Table 1"\nrecipes = [{recipes}]\n{more}'
BUDGETS = "\n[budget.smoke]\nsteps = 2\nnum = 20\n\n[budget.short]\nsteps = 3\n"


def write_group(folder, *members, name="pair", more=""):
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text(GROUP.format(name=name, recipes=", ".join(f'"{m}"' for m in members), more=more))
    return path


@pytest.fixture
def pair(place):
    """A group of two tiny recipes beside it."""
    for name in ("a", "b"):
        path = write_recipe(place, name=name)
        path.write_text(path.read_text() + BUDGETS)
    return write_group(place, "a.toml", "b.toml")


@pytest.fixture
def installed(place, monkeypatch):
    """A third party's folder of recipes, with a folder of groups in it."""
    for name in ("a", "b"):
        write_recipe(place, name=name)
    write_group(place / "groups", "b", "a")
    names, load = registry.names, registry.load
    monkeypatch.setattr(registry, "names", lambda kind: ["mine"] if kind == "recipes" else names(kind))
    monkeypatch.setattr(registry, "load", lambda kind, name: place if kind == "recipes" else load(kind, name))


# --- The bundled ones ---


@pytest.mark.parametrize("name", recipes.available_groups())
def test_a_bundled_group_is_of_recipes_that_there_are(name):
    group, found = recipes.lookup(name)
    assert group.name == name
    assert list(found) == group.recipes
    assert re.search(r"(19|20)\d\d, arXiv:\d{4}\.\d{4,5}", group.paper)
    own = group.paper.split(", arXiv:")[0] + re.search(r", arXiv:[\d.]+\d", group.paper)[0]
    assert own in {r.paper for r in found.values()}, "beside baselines of other papers"
    rows = tables.group_rows(group, [(r, []) for r in found.values()])
    further = [*(a.row for a in group.absent), *(order.claim for order in group.order)]
    assert {row["recipe"] for row in rows} == {*found, *further}, "each of its recipes has a row"
    assert name not in recipes.available()
    assert name.partition("-")[0] in registry.names("models")


def test_there_are_groups():
    assert recipes.available_groups()["bigan-table1"] == recipes.BUNDLED / "bigan/tables/bigan-table1.toml"
    assert len(recipes.lookup("bigan-table1")[1]) == 6


# --- Finding ---


def test_a_third_partys_group_is_found_beside_its_recipes(installed, place):
    assert list(recipes.available_groups()) == ["pair"]
    assert list(recipes.available()) == ["a", "b"]
    group, found = recipes.lookup("pair")
    assert (group.title, list(found)) == ("Two things", ["b", "a"])
    assert recipes.lookup("a")[0] is None


def test_an_unknown_name_is_looked_for_among_recipes_and_groups(installed):
    with pytest.raises(UserError, match=r"unknown recipe 'pare'\. Did you mean 'pair'\?"):
        recipes.lookup("pare")


def test_a_group_by_its_path_names_recipes_by_theirs(pair, place):
    group, found = recipes.lookup(str(pair))
    assert group.recipes == ["a.toml", "b.toml"]
    assert list(found) == [str(place / "a.toml"), str(place / "b.toml")]
    group, found = recipes.lookup(str(place / "a.toml"))
    assert group is None


def test_a_name_of_both_kinds_is_refused(installed, place):
    write_group(place / "groups", "b", name="a")
    with pytest.raises(UserError, match=r"'a' is a recipe, .* and a group"):
        recipes.lookup("a")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('"a.toml"', '"c.toml"'), "group 'pair': cannot read the recipe .*c.toml"),
        (('"a.toml"', '"dcgan-digit"'), "group 'pair': unknown recipe 'dcgan-digit'. Did you mean 'dcgan-digits'"),
        (('"a.toml"', '"b.toml"'), "none twice"),
        (('"a.toml", "b.toml"', ""), "at least one"),
        (('name = "pair"', 'name = "pear"'), "must be that of the file"),
        (("title", "titel"), "unknown key 'titel'.*title"),
        (('paper = "none, Table 1"', ""), "'paper' is missing"),
        (('title = "Two things"', "title = 2"), "must be of type str"),
    ],
)
def test_a_group_with_a_mistake_is_refused_in_words(pair, refuses, change, words):
    assert pair.read_text().count(change[0]) == 1
    pair.write_text(pair.read_text().replace(*change))
    assert re.search(words, refuses([], "reproduce", "pair.toml"))


def test_list_shows_groups(ganbench):
    lines = ganbench("list", "groups").out.splitlines()
    assert [line.split()[0] for line in lines] == list(recipes.available_groups())
    assert any(line.endswith("(6 recipes)") for line in lines)
    assert "groups:" in ganbench("list").out.splitlines()


# --- Running ---


def test_a_group_runs_each_recipe_and_joins_them_in_one_table(ganbench, pair, place):
    done = ganbench("reproduce", "pair.toml", "--seeds", "0,1", "--out", "out")
    assert done.code == 0, done
    head, _, *rows = done.out.splitlines()
    assert [c.strip() for c in head.strip("|").split("|")] == [
        "recipe", "metric", "ours", "real data", "paper", "difference", "verdict", "seeds", "steps", "deviations"
    ]
    assert [row.split("|")[1].strip() for row in rows] == ["a", "b"]
    page = (place / "out/tables/pair.md").read_text(encoding="utf-8")
    assert page.startswith("# pair\n\nTwo things. Paper: none, Table 1.\n\n| recipe")
    assert done.out in page
    assert "- [a](a.md): A tiny recipe, version 1" in page
    assert (place / "out/tables/a.md").exists()
    assert (place / "out/tables/b.md").exists()

    short = ganbench("reproduce", "pair.toml", "--budget", "short", "--out", "out")
    assert "short: 3 of 6 steps, not comparable" in short.out
    page = (place / "out/tables/pair.md").read_text(encoding="utf-8")
    assert done.out in page
    assert page.index("## Short runs: not comparable with the paper") < page.index(short.out)

    (place / "out/tables/pair.md").unlink()
    table = ganbench("table", "pair.toml", "--out", "out")
    assert (table.code, table.out) == (0, done.out)
    assert (place / "out/tables/pair.md").read_text(encoding="utf-8") == page
    assert ganbench("table", "pair.toml", "--out", "out", "--budget", "short").out == short.out
    value = json.loads(ganbench("reproduce", "pair.toml", "--out", "out", "--json").out)
    assert value["group"] == "pair"
    assert [(r["recipe"], [x["seed"] for x in r["results"]]) for r in value["recipes"]] == [("a", [0]), ("b", [0])]
    assert "failed" not in value


def test_several_names_are_done_in_their_order_and_each_has_its_table(ganbench, pair, installed, place):
    """A group by its path and a pattern; what is done already is not done again."""
    assert ganbench("reproduce", "b", "--out", "out").code == 0
    done = ganbench("reproduce", "pair.toml", "[ac]", "b", "--out", "out")
    assert done.code == 0, done
    group, a, b = done.out.split("\n\n")
    assert [[row.split("|")[1].strip() for row in group.splitlines()[2:]]] == [["a", "b"]]
    assert ["dataset" in one.splitlines()[0] for one in (group, a, b)] == [False, True, True]
    assert [line.partition(": ")[2].strip() for line in done.err.splitlines() if line.startswith("table:")] == [
        "out/tables/pair.md", "out/tables/a.md", "out/tables/b.md",
    ]
    value = json.loads(ganbench("reproduce", "b", "a", "--out", "out", "--json").out)
    assert [target["recipe"] for target in value["targets"]] == ["b", "a"]


def test_a_pattern_that_fits_nothing_is_refused(refuses, installed):
    refuses(["no recipe fits the pattern 'c*'", "ganbench list recipes"], "reproduce", "a", "c*")


def test_a_group_shows_the_metrics_that_it_names(place):
    write_recipe(place, {'metrics = ["fd_pixels"]': 'metrics = ["fd_pixels", "ms_ssim"]'}, name="a")
    group, found = recipes.lookup(str(write_group(place, "a.toml")))
    pairs = [(r, []) for r in found.values()]
    assert [row["metric"] for row in tables.group_rows(group, pairs)] == ["fd_pixels"]  # the paper's
    group, _ = recipes.lookup(str(write_group(place, "a.toml", more='metrics = ["ms_ssim"]')))
    assert [row["metric"] for row in tables.group_rows(group, pairs)] == ["ms_ssim"]


def test_rows_of_one_metric_are_told_apart_beneath_the_table(place):
    """Which of two values of the paper is one model's, and which an ensemble's, also where nothing was run."""
    second = '[[reported]]\nmetric = "fd_pixels"\nvalue = 1.25\nsource = "ten models"\nnote = "Ours is one."\n'
    path = write_recipe(place, name="a")
    path.write_text(path.read_text() + second)
    write_recipe(place, name="b")
    group, found = recipes.lookup(str(write_group(place, "a.toml", "b.toml")))
    page = pages.write_group(group, [(r, []) for r in found.values()], place).read_text()
    assert page.endswith(
        "- a: A tiny recipe, version 1\n  - fd_pixels 1.5: nowhere.\n  - fd_pixels 1.25: ten models. Ours is one.\n"
        "- b: A tiny recipe, version 1\n"
    )


def test_where_one_recipe_fails_the_others_run_and_the_reason_is_said_at_the_end(ganbench, pair, place):
    write_recipe(place, {'data = "digits:train"': 'data = "mnist:train"'}, name="a")
    done = ganbench("reproduce", "pair.toml", "--out", "out")
    assert done.code == 1
    assert "| b " in done.out
    assert done.err.splitlines()[-1].startswith("ganbench: error: recipe 'a': the data set 'mnist' is missing")
    value = json.loads(ganbench("reproduce", "pair.toml", "--out", "out", "--json").out)
    (failed,) = value["failed"]
    assert (failed["recipe"], failed["seed"]) == ("a", 0)
    assert "mnist" in failed["reason"]


def test_where_training_fails_the_others_run(ganbench, pair, place):
    text = (place / "a.toml").read_text()
    (place / "a.toml").write_text(
        text.replace("d_width = 4 }", "d_width = 4, lr = 1e38 }").replace("steps = 6", "steps = 40")
    )
    done = ganbench("reproduce", "pair.toml", "--out", "out")
    assert done.code == 1, done
    assert "| b " in done.out
    assert done.err.splitlines()[-1].startswith("ganbench: training failed: recipe 'a', seed 0, step ")


def test_where_none_can_run_it_is_the_users_mistake(refuses, pair):
    refuses(["mnist", "1 other run cannot be made either"], "reproduce", "pair.toml", "--data", "mnist")
    refuses(["unknown dataset 'digts'", "Did you mean 'digits'?"], "reproduce", "pair.toml", "--data", "digts")


def test_a_table_of_one_recipe_is_rebuilt_and_of_none_that_ran_is_only_printed(ganbench, pair, place):
    done = ganbench("table", "pair.toml", "--out", "out")
    assert (done.code, done.err) == (0, "")
    assert done.out.count("not run") == 4  # of both, ours and the verdict
    assert not (place / "out").exists()
    printed = ganbench("reproduce", "a.toml", "--out", "out").out
    (place / "out/tables/a.md").unlink()
    table = ganbench("table", "a.toml", "--out", "out")
    assert (table.out, table.err) == (printed, "table:   out/tables/a.md\n")
    assert (place / "out/tables/a.md").exists()


def test_table_writes_all_pages_and_the_index_and_reproduce_keeps_it_up_to_date(
    ganbench, installed, refuses, place
):
    assert ganbench("reproduce", "a", "--out", "out").code == 0
    assert not (place / "out/README.md").exists()  # only for whoever asks for it
    (place / "out/tables/a.md").unlink()
    done = ganbench("table", "--index", "--out", "out")
    assert (done.code, done.err) == (0, "index:   out/README.md\n")
    assert done.out == ganbench("table", "--out", "out").out
    assert {p.name for p in (place / "out/tables").iterdir()} == {"a.md", "pair.md"}
    text = (place / "out/README.md").read_text(encoding="utf-8")
    assert "2 recipes: 1 were run in full, 0 at short length, 1 not yet" in text
    assert ganbench("reproduce", "b", "--out", "out").code == 0
    text = (place / "out/README.md").read_text(encoding="utf-8")
    assert "2 recipes: 2 were run in full" in text
    shutil.rmtree(place / "out/runs/b")
    ganbench("table", "a", "--out", "out")
    assert "2 recipes: 1 were run in full" in (place / "out/README.md").read_text(encoding="utf-8")
    (place / "out/README.md").write_text("mine")
    ganbench("table", "a", "--out", "out")
    assert (place / "out/README.md").read_text() == "mine"
    refuses(["README.md is not an index"], "table", "--index", "--out", "out")
    assert ganbench("table", "--index", "--out", "other", "--quiet").err == ""


# --- Budgets ---


def test_a_smoke_run_is_on_synthetic_images_and_in_no_table(ganbench, pair, place):
    done = ganbench("reproduce", "a.toml", "--budget", "smoke", "--out", "out")
    assert done.code == 0, done.err
    assert "synthetic:1x8x8:10" in done.out
    assert "smoke: 2 of 6 steps, not comparable" in done.out
    result = json.loads((place / "out/runs/a/seed0-budget=smoke/result.json").read_text())
    assert result["overrides"] == {"budget": "smoke"}
    assert result["recipe"]["budget"] == {"steps": 2, "num": 20}
    assert (result["training"]["steps"], result["fake"]["count"]) == (2, 20)
    assert not (place / "out/tables").exists()
    ckpt = "out/runs/a/seed0-budget=smoke/checkpoint.safetensors"
    evaluated = ganbench("evaluate", "--ckpt", ckpt, "--num", "20", "--metrics", "fd_pixels")
    assert evaluated.code == 0, evaluated.err


def test_steps_and_data_come_on_top_of_a_budget_and_are_recorded(ganbench, pair, place):
    options = "--budget", "smoke", "--steps", "1", "--data", "digits:test"
    done = ganbench("reproduce", "a.toml", *options, "--out", "out")
    assert done.code == 0, done.err
    run = place / "out/runs/a/seed0-budget=smoke-data=digits_test-steps=1"
    result = json.loads((run / "result.json").read_text())
    assert result["overrides"] == {"budget": "smoke", "data": "digits:test", "steps": 1}
    assert (result["training"]["steps"], result["training"]["data"]) == (1, "digits:test")
    assert "smoke: 1 of 6 steps, not comparable" in done.out


def test_a_short_run_stands_in_for_a_full_one_and_goes_when_its_budget_changes(ganbench, pair, place):
    short = ganbench("reproduce", "a.toml", "--budget", "short", "--out", "out")
    page = (place / "out/tables/a.md").read_text(encoding="utf-8")
    assert page.startswith(f"# a\n\n{short.out}")
    assert "short: 3 of 6 steps, not comparable" in short.out
    assert "not comparable with the paper: run with budget = short" in short.err
    assert "not run" not in page
    assert "## Short runs" not in page
    assert "Seed 0: 3 steps in" in page
    assert "`--budget short`: steps = 3." in page
    assert ganbench("table", "a.toml", "--out", "out").out == short.out
    assert "not run" in ganbench("table", "a.toml", "--out", "out", "--budget", "full").out
    joined = ganbench("table", "pair.toml", "--out", "out").out
    assert "short: 3 of 6 steps, not comparable" in joined.splitlines()[2]
    assert "not run" in joined.splitlines()[3]
    page = (place / "out/tables/pair.md").read_text(encoding="utf-8")
    assert "- [a](a.md): A tiny recipe" in page
    assert "- b: A tiny recipe" in page  # it has no page to lead to
    assert "already done" in ganbench("reproduce", "a.toml", "--budget", "short", "--out", "out").err
    text = (place / "a.toml").read_text()
    (place / "a.toml").write_text(text.replace("[budget.short]\nsteps = 3", "[budget.short]\nsteps = 4"))
    assert "short: " not in ganbench("table", "a.toml", "--budget", "short", "--out", "out").out
    ganbench("table", "a.toml", "--out", "out")
    assert "short: " not in (place / "out/tables/a.md").read_text(encoding="utf-8")
    again = ganbench("reproduce", "a.toml", "--budget", "short", "--out", "out")
    assert "already done" not in again.err
    assert "short: 4 of 6 steps" in again.out


def test_a_change_of_budgets_leaves_full_runs_done(ganbench, pair, place):
    ganbench("reproduce", "a.toml", "--out", "out")
    text = (place / "a.toml").read_text()
    (place / "a.toml").write_text(text.replace("steps = 3", "steps = 4") + "num = 7\n")
    assert "already done" in ganbench("reproduce", "a.toml", "--out", "out").err
