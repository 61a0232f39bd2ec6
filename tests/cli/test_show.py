"""`ganbench show` describes one thing, and says nothing that the code, the recipe or the machine does not say."""

import ast
import inspect
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import everything_below, tiny_dcgan, write_recipe

from ganbench import recipes
from ganbench.base import memory, registry
from ganbench.evaluation import measure
from ganbench.reproduction import description
from ganbench.training import cost
from ganbench.training.cost import Cost
from reference_models.dcgan import DCGAN

CPU = torch.device("cpu")


@pytest.fixture
def shown(ganbench):
    """`shown(...)`: the JSON that the command prints."""

    def run(*args):
        done = ganbench("show", *args, "--json", "--quiet")
        assert (done.code, done.err) == (0, ""), done
        return json.loads(done.out)

    return run


# --- Recipes ---


def test_a_recipe_is_described_by_its_file_its_model_and_this_machine(shown, place, monkeypatch):
    changes = {"value = 1.5\n": 'value = 1.5\nstd = 0.25\ncomparable = false\nnote = "Of another set."\n'}
    path = write_recipe(place, changes)
    path.write_text(path.read_text() + "\n[budget.smoke]\nsteps = 2\n\n[budget.short]\nsteps = 3\n", encoding="utf-8")
    monkeypatch.setattr(cost, "measure", lambda recipe, device: Cost(1200.0, 4))
    found = shown("tiny.toml")
    assert (found["kind"], found["name"], found["title"], found["paper"]) == (
        "recipe", "tiny", "A tiny recipe", "none")
    networks = {name: sum(p.numel() for p in net.parameters()) for name, net in tiny_dcgan().named_children()}
    assert found["model"]["networks"] == networks
    assert found["model"]["parameters"] == sum(networks.values())
    assert found["training"]["steps"] == 6
    assert found["training"]["budgets"] == {"smoke": 2, "short": 3}
    assert found["cost"]["hours"] == {"full": 2.0, "short": 1.0}  # steps of 20 minutes
    assert found["data"] == [{"name": "digits", "here": True, "text": "embedded in scikit-learn"}]
    (metric,) = found["metrics"]
    assert (metric["name"], metric["direction"], metric["measured"]) == ("fd_pixels", "lower", True)
    assert (metric["reported"][0]["value"], metric["reported"][0]["std"]) == (1.5, 0.25)
    assert found["deviations"] == ["Everything."]
    assert found["faults"] == []
    assert found["commands"][0] == "ganbench reproduce tiny.toml"


def test_the_text_says_the_same(ganbench, place, monkeypatch):
    write_recipe(place)
    monkeypatch.setattr(cost, "measure", lambda recipe, device: Cost(1200.0, 4))
    done = ganbench("show", "tiny.toml")
    assert done.code == 0
    assert done.err == "timing a few training steps (--no-cost leaves them out)\n"
    text = " ".join(done.out.split())
    for words in (
        "tiny (recipe): A tiny recipe", "model dcgan (image_size = 8", "6 steps of 16 images",
        "cost about 2 hours of training on this machine (cpu (1 thread), 1.2e+03 s a step, median of 4)",
        "digits: here, embedded", "fd_pixels ↓; paper 1.5 (nowhere)", "1. Everything.", "ganbench reproduce tiny.toml",
    ):
        assert words in text, words
    assert max(map(len, done.out.splitlines())) <= 110
    monkeypatch.setattr(cost, "measure", lambda recipe, device: Cost(None, reason="it is too large"))
    assert "cost unknown: it is too large" in " ".join(ganbench("show", "tiny.toml").out.split())
    assert "cost" not in ganbench("show", "tiny.toml", "--no-cost").out


def test_a_recipe_with_a_fault_is_described_with_it(shown, place):
    write_recipe(place, {'metrics = ["fd_pixels"]': 'metrics = ["fd_pixelz"]'})
    found = shown("tiny.toml")
    assert "unknown extractor 'pixelz'" in found["faults"][0]
    assert found["cost"] is None


# --- Cost ---


def test_steps_are_timed_and_nothing_else_is_changed(place):
    recipe = recipes.read(write_recipe(place))
    before, state = everything_below(place), torch.get_rng_state()
    found = cost.measure(recipe, CPU)
    assert found.timed == cost.STEPS
    assert 0 < found.step_seconds < 10
    assert everything_below(place) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_a_long_step_is_estimated_from_two_parts_of_the_batch(place, monkeypatch):
    """Some of a step does not depend on the batch: eight times an eighth would be 32 seconds here, and not 11."""
    sizes = []

    def timed_steps(recipe, *_):
        size = recipe.train.batch_size
        sizes.append(size)
        for late in (5.0, 9.0, 0.0, 0.0):  # the first step prepares kernels, the second one lost its core
            yield 3.0 + size / 8 + late

    monkeypatch.setattr(cost, "timed_steps", timed_steps)
    recipe = recipes.read(write_recipe(place, {"batch_size = 16": "batch_size = 64"}))
    found = cost.measure(recipe, CPU)
    assert found.timed == 0
    assert found.step_seconds == pytest.approx(3.0 + 64 / 8)
    assert sizes == [8, 16]


def test_a_step_that_is_shorter_than_it_looked_is_timed(place, monkeypatch):
    """An eighth of the batch took 2 seconds, and so does the whole."""
    monkeypatch.setattr(cost, "timed_steps", lambda *_: iter([2.0] * 9))
    recipe = recipes.read(write_recipe(place, {"batch_size = 16": "batch_size = 64"}))
    assert cost.measure(recipe, CPU) == Cost(2.0, 3)


def test_a_semi_supervised_step_takes_both_batches(monkeypatch):
    recipe = recipes.find("improved_gan-mnist-100")
    seen = []

    def step(self, batch, opt):
        seen.append((len(batch.x), batch.y.max().item() < 10, len(batch.u)))
        return {"d_loss": torch.zeros(())}

    monkeypatch.setattr(registry.load("models", "improved_gan"), "training_step", step)
    assert cost.measure(recipe, CPU).timed == cost.STEPS
    assert (recipe.train.batch_size, True, recipe.train.unlabelled_batch_size) in seen


def test_what_does_not_fit_into_memory_is_unknown_and_is_not_tried(place, monkeypatch):
    recipe = recipes.read(write_recipe(place, {"g_width = 4": "g_width = 64"}))
    monkeypatch.setattr(memory, "available", lambda: 100_000)
    monkeypatch.setattr(DCGAN, "training_step", lambda *_: pytest.fail("a step was made"))
    found = cost.measure(recipe, CPU)
    assert found.step_seconds is None
    assert "of memory are needed" in found.reason


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "does not fit into memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "does not fit into memory"),
        (ZeroDivisionError("of the model"), "a step on random images failed (ZeroDivisionError: of the model)"),
    ],
    ids=["memory", "allocator", "model"],
)
def test_a_step_that_fails_is_a_reason_and_no_traceback(place, monkeypatch, error, words):
    def step(self, batch, opt):
        raise error

    monkeypatch.setattr(DCGAN, "training_step", step)
    found = cost.measure(recipes.read(write_recipe(place)), CPU)
    assert found.step_seconds is None
    assert words in found.reason


# --- Everything that is installed ---


@pytest.mark.parametrize("name", registry.names("models"))
def test_every_model_is_described_by_its_source(name):
    found = description.describe("models", name)
    json.dumps(found)
    cls = registry.load("models", name)
    assert found["arguments"] == {p.name: p.default for p in inspect.signature(cls).parameters.values()}
    doc = ast.get_docstring(ast.parse(Path(inspect.getsourcefile(cls)).read_text(encoding="utf-8")))
    numbers = re.findall(r"^(\d+)\. ", doc[doc.index("Deviations") :], re.MULTILINE)
    assert len(found["deviations"]) == len(numbers) > 0
    assert not any(re.match(r"\d+\.", text) for text in found["deviations"])
    assert "arXiv" in found["source"]
    assert "sample" in found["capabilities"]
    assert sum(found["networks"].values()) >= found["parameters"] > 0
    assert all(recipes.find(recipe["name"]).model.name == name for recipe in found["recipes"])


def test_the_parameters_of_a_model_are_those_that_it_has(shown):
    model = registry.load("models", "acgan")()
    found = shown("acgan")
    assert found["networks"] == {name: sum(p.numel() for p in net.parameters()) for name, net in model.named_children()}
    assert found["parameters"] == sum(p.numel() for p in model.parameters())


def test_every_metric_has_a_formula_a_source_and_an_uncertainty(monkeypatch):
    installed = recipes.installed()
    monkeypatch.setattr(recipes, "installed", lambda: installed)  # read once
    for stem, p in measure.protocols().items():
        found = description.describe("metrics", stem)
        json.dumps(found)
        assert found["formula"], stem
        assert found["uncertainty"], stem
        assert found["source"], stem
        assert not any("import " in text for text in found["formula"]), stem
        assert (found["version"], found["direction"]) == (p.version, p.direction)
        assert found["protocol"].startswith(f"{stem}/{p.version}: ")
        assert (f"{stem}_<extractor>" if p.needs_extractor else stem) in found["names"]


def test_a_published_name_and_one_with_an_extractor_are_one_protocol(shown):
    published, plain = shown("fid"), shown("fd_pixels")
    assert published["protocol"] == plain["protocol"]
    assert (published["extractor"], plain["extractor"]) == ("inception-v3", "pixels")
    assert published["extractor_here"]["here"] is False
    assert plain["formula"] == ["    d^2 = |mu_r - mu_f|^2 + tr(S_r + S_f - 2 (S_r S_f)^(1/2))"]
    assert "dcgan-digits" in plain["recipes"]
    assert "dcgan-digits" not in published["recipes"]


@pytest.mark.parametrize("kind", ["extractors", "datasets", "groups"])
def test_everything_of_a_kind_is_described(ganbench, kind):
    names = list(recipes.installed().groups) if kind == "groups" else registry.names(kind)
    for name in names:
        done = ganbench("show", name, "--kind", kind)
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith(f"{name} ({kind[:-1]}): ")
        assert max(map(len, done.out.splitlines())) <= 110


# --- Names ---


def test_an_unknown_name_gets_similar_ones_of_every_kind(refuses):
    assert "'dcgan-digits' (recipe)" in refuses(["unknown name 'dcgan-digit'"], "show", "dcgan-digit")
    assert refuses([], "show", "FID").endswith("Did you mean 'fid' (metric)?\n")
    assert "'fd_pixels' (metric)" in refuses([], "show", "fd_pixel")
    refuses(["unknown name 'qqqq'", "`ganbench list`"], "show", "qqqq")
    assert refuses([], "show", "prc").endswith("unknown name 'prc'. Did you mean 'precision,recall'?\n")
    refuses(["unknown metric 'pixels'"], "show", "pixels", "--kind", "metrics")
    refuses(["unknown model 'acga'", "'acgan' (model)"], "show", "acga", "--kind", "models")
    refuses(["nowhere.toml"], "show", "nowhere.toml")


def test_a_name_of_two_things_asks_which(shown, refuses, place, monkeypatch):
    (place / "tree").mkdir()
    write_recipe(place / "tree", name="dcgan")
    monkeypatch.setattr(recipes, "_trees", lambda: [place / "tree"])
    refuses(["'dcgan' is one of the recipes and one of the models", "--kind recipes or --kind models"], "show", "dcgan")
    assert shown("dcgan", "--kind", "models")["arguments"]["image_size"] == 64
    assert shown("dcgan", "--kind", "recipes", "--no-cost")["title"] == "A tiny recipe"


def test_a_metric_may_have_the_name_of_something_else(refuses, monkeypatch):
    request = measure.parse_metrics(["fd_pixels"], "pixels")[0]
    monkeypatch.setattr(description, "_request", lambda name: replace(request, name=name))
    refuses(["'digits' is one of the metrics and one of the datasets"], "show", "digits")
