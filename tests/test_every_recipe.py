"""The contract that every installed recipe keeps."""

import inspect
import json
import re
from pathlib import Path

import pytest
import torch

from ganbench import recipes
from ganbench.base import registry, weight_files
from ganbench.base.errors import UserError
from ganbench.base.progress import Reporter
from ganbench.evaluation import measure
from ganbench.gan import checkpoint
from ganbench.recipes import BUNDLED
from ganbench.reporting import pages, tables
from ganbench.reproduction import validation
from ganbench.reproduction.plan import Plan

FILES = recipes.available()
READ = {name: recipes.read(path) for name, path in FILES.items()}


def first_of_each(configuration):
    """Names of the first recipe of each configuration: recipes that differ elsewhere alone share a slow test."""
    firsts = {}
    for name, recipe in READ.items():
        firsts.setdefault(json.dumps(configuration(recipe), sort_keys=True), name)
    return list(firsts.values())


def smoke(recipe):
    """Everything that makes a difference to a smoke run but the names and the numbers of labels."""
    spec = recipe.at("smoke")
    args = {k: v for k, v in spec.model.args.items() if k != "labels"}
    return [spec.model.name, args, spec.evaluate.metrics, spec.train.precision, bool(spec.train.ema_decay)]


def without_values(recipe):
    """The model of a recipe in full, on torch's meta device: wide networks would draw millions of random numbers."""
    model = validation.build(recipe.model.name, recipe.model.args, recipe.name)
    assert all(value.is_meta for value in model.state_dict().values()), (
        "its constructor looks at weights, or names a device: tests of wide networks would take their memory"
    )
    return model


def shapes(model):
    return {name: value.shape for name, value in model.state_dict().items()}


@pytest.fixture(params=FILES.values(), ids=FILES.keys())
def recipe(request):
    return recipes.read(request.param)


def test_the_bundled_recipes_are_found():
    files = {p.stem for p in BUNDLED.glob("*/*.toml")}
    assert files == {n for n, p in FILES.items() if BUNDLED in Path(p).parents}
    assert len(files) >= 40
    assert {p.parent.name for p in FILES.values()} >= {"acgan", "bigan", "sgan"}


def test_its_name_is_model_and_data_set(recipe):
    data = recipe.train.data.partition(":")[0]
    assert recipe.name == f"{recipe.model.name}-{data}" or recipe.name.startswith(f"{recipe.model.name}-{data}-")
    assert recipes.find(recipe.name) == recipe


def test_its_data_sets_and_splits_are_named_in_full(recipe):
    for spec in (recipe.train.data, recipe.evaluate.reference, recipe.evaluate.real):
        name, _, split = spec.partition(":")
        assert name in registry.names("datasets") or (name == "folder" and ":" in split)  # folder:PATH:split
        assert split
    assert recipe.evaluate.reference != recipe.evaluate.real


def test_its_model_builds_with_its_arguments(recipe):
    model = without_values(recipe)
    assert sum(p.numel() for p in model.parameters()) > 1000
    if recipe.train.data.startswith("digits"):
        assert model.image_shape == (1, 8, 8)
    elif recipe.train.data.startswith("mnist"):
        assert model.image_shape == (1, 28, 28)
    elif recipe.train.data.startswith("cifar"):
        side = int(recipe.train.resize.partition(":")[0] or 32)
        assert model.image_shape == (3, side, side)


def test_its_metrics_are_known_and_name_their_network(recipe):
    requests = measure.parse_metrics(recipe.evaluate.metrics, "no default is used")
    assert len(requests) == len(recipe.evaluate.metrics)
    for r in requests:
        assert r.extractor != "no default is used", f"{r.name} does not say over which network"
        if r.protocol.num is not None:
            assert recipe.evaluate.num == r.protocol.num, r.name


def test_metrics_that_need_labels_have_a_model_with_classes(recipe):
    model = without_values(recipe)
    for r in measure.parse_metrics(recipe.evaluate.metrics, "pixels"):
        assert "fake.labels" not in r.protocol.needs or model.num_classes, r.name


def test_it_says_where_it_deviates_and_cites_its_paper(recipe):
    assert recipe.deviations
    assert all(len(d) > 15 and d.strip() == d for d in recipe.deviations)
    assert len(set(recipe.deviations)) == len(recipe.deviations)
    assert re.search(r"(19|20)\d\d, arXiv:\d{4}\.\d{4,5}", recipe.paper)
    assert recipe.title
    assert recipe.version >= 1


def test_every_reported_value_has_a_source_and_says_why_it_is_not_comparable(recipe):
    for r in recipe.reported:
        assert len(r.source) > 8
        assert r.comparable or len(r.note) > 15, r.metric
        assert r.std is None or r.std > 0
        measure.parse_metrics([r.metric.partition("@")[0]], "no default is used")  # NAME@32: of images reduced to 32


@pytest.mark.parametrize("name", first_of_each(lambda r: [r.model.name, r.model.args]))
def test_its_arguments_survive_a_checkpoint(name, tmp_path):
    """Their values come back, and fit the network; weights of a full network are not written."""
    recipe, file = READ[name], tmp_path / "a.safetensors"
    meta = checkpoint.Checkpoint(recipe.model.name, recipe.model.args, recipe=recipe.name, data=recipe.train.data)
    checkpoint.save(file, {"nothing": torch.zeros(1)}, meta)
    with pytest.raises(UserError, match="does not fit the model"):  # the metadata are read, and the network is built
        checkpoint.load(file)
    args = json.loads(weight_files.read_header(file).metadata["ganbench"])["args"]
    assert args == recipe.model.args
    assert shapes(validation.build(recipe.model.name, args, recipe.name)) == shapes(without_values(recipe))


@pytest.mark.parametrize("budget", recipes.BUDGETS[:-1])
def test_a_budget_is_shorter_and_fits_the_model_and_the_metrics(recipe, budget):
    assert budget in recipe.budget, f"add a table [budget.{budget}]"
    spec = recipe.at(budget)
    assert spec.train.steps < recipe.train.steps
    assert spec.evaluate.num <= recipe.evaluate.num
    assert set(recipe.budget[budget].args) <= {*inspect.signature(registry.load("models", spec.model.name)).parameters}
    for r in measure.parse_metrics(spec.evaluate.metrics, "no default is used"):
        assert r.protocol.num in (None, spec.evaluate.num), r.name
        assert budget == "smoke" or r.name in recipe.evaluate.metrics or not recipe.reported, "another metric"


@pytest.mark.parametrize("name", first_of_each(smoke))
def test_its_smoke_run_trains_and_measures_in_seconds_with_nothing_downloaded(name, tmp_path):
    """On synthetic images of the model's own shape; `ganbench reproduce NAME --budget smoke` does the same."""
    recipe, overrides = READ[name], {"budget": "smoke"}
    plan = Plan({recipe.name: recipe}, overrides, [0], tmp_path)
    outcome = plan.run(torch.device("cpu"), Reporter(quiet=True))
    ((done,),) = outcome.runs.values()
    size = sum(t.numel() for t in weight_files.read_header(done.folder / "checkpoint.safetensors").tensors.values())
    assert size <= 15e6, f"{size:,} weights: tests take long with them; make them few by args of [budget.smoke]"
    assert done.result.measurements
    assert {m.metric: m.reason for m in done.result.measurements if m.value is None} == {}
    assert done.result.training["data"].startswith("synthetic:")
    assert done.result.overrides == overrides
    assert tables.counted(recipe, [done.result]) == []
    for row in tables.rows(recipe, [done.result], overrides):
        assert row["verdict"].endswith("steps, not comparable")
    assert plan.write_tables(None, outcome) == []


def test_its_table_can_be_written_before_it_was_run(recipe, tmp_path):
    text = pages.write(recipe, [], tmp_path).read_text(encoding="utf-8")
    assert "not run" in text
    assert all(d in text for d in recipe.deviations)
    assert all(r.source in text for r in recipe.reported)
