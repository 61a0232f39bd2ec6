"""The template of a plugin: installed elsewhere, its parts are found, validated, trained and measured."""

import json
import os
import re
import subprocess
import sys
import zipfile

import pytest
from support import ROOT, Outcome

PLUGIN = ROOT / "examples" / "plugin"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs `ganbench ...` in an empty folder with the plugin on the path, as an installer would lay it out."""
    out, site, place = (tmp_path_factory.mktemp(name) for name in ("wheel", "site", "place"))
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)], cwd=PLUGIN, check=True,
                   capture_output=True)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    env = {**os.environ, "PYTHONPATH": str(site), "GANBENCH_OFFLINE": "1", "GANBENCH_DATA": str(place / "data")}

    def command(*args):
        done = subprocess.run([sys.executable, "-m", "ganbench", *map(str, args)], cwd=place, env=env,
                              capture_output=True, text=True, timeout=300)
        return Outcome(done.returncode, done.stdout, done.stderr)

    return command


@pytest.fixture
def parts(monkeypatch):
    """The plugin's modules, imported from its folder."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    from ganbench_example import dataset, extractor, metric

    return dataset, extractor, metric


def test_every_part_is_listed_with_its_summary(run):
    listed = run("list")
    assert listed.code == 0, listed.err
    for name, words in (
        ("tinygan", "TinyGAN: fully connected, for images of 8 x 8 pixels"),
        ("ink_gap", "A metric: do generated images have as much ink as real ones?"),
        ("strokes", "Mean brightness of every row and every column"),
        ("bars", "Bars of 2 pixels on a dark square"),
        ("tinygan-bars", "TinyGAN on bars"),
    ):
        assert re.search(rf"^  {name} +{re.escape(words)}", listed.out, re.MULTILINE), name


def test_the_recipe_is_valid(run):
    done = run("validate", "tinygan-bars")
    assert (done.code, done.err) == (0, ""), done.err
    assert "tinygan-bars" in done.out


def test_the_recipe_trains_and_is_measured(run):
    done = run("reproduce", "tinygan-bars", "--steps", "60", "--device", "cpu", "--quiet", "--json")
    assert done.code == 0, done.err
    (result,) = json.loads(done.out)["results"]
    measured = {m["metric"]: m["value"] for m in result["measurements"]}
    assert set(measured) == {"ink_gap_strokes", "fd_strokes", "score_strokes"}
    assert all(value is not None for value in measured.values())
    real = {m["metric"]: m["value"] for m in result["real"]}
    assert real["ink_gap_strokes"] < 0.01
    assert real["score_strokes"] > 1.9  # two classes, told apart


def test_the_metric_is_its_formula_over_the_extractor(run, parts):
    dataset, _, _ = parts
    done = run("evaluate", "--images", "bars:test", "--reference", "bars:train", "--metrics", "ink_gap_strokes",
               "--json", "--quiet", "--device", "cpu")
    assert done.code == 0, done.err
    (measured,) = json.loads(done.out)["measurements"]
    means = [dataset.bars(split, None, False).images.double().mean((1, 2, 3)) / 255 for split in ("train", "test")]
    assert measured["value"] == pytest.approx(abs(means[0].mean() - means[1].mean()).item(), abs=1e-7)
    error = sum((m.var() / len(m)).item() for m in means) ** 0.5
    assert measured["uncertainty"]["value"] == pytest.approx(error, rel=1e-5)


def test_its_bars_are_told_apart_without_training(parts):
    dataset, extractor, _ = parts
    for split, n in dataset.SIZES.items():
        data = dataset.bars(split, None, False)
        assert len(data) == n
        assert (extractor.Strokes()(data.images).logits.argmax(1) == data.labels).all()


def test_the_page_quotes_the_files_of_the_template():
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    quoted = re.findall(r"<!-- (\S+) -->\n```\w+\n(.*?)```", page, re.DOTALL)
    assert {name for name, _ in quoted} >= {f"{part}.py" for part in ("model", "metric", "extractor", "dataset")}
    for name, code in quoted:
        text = (PLUGIN / "ganbench_example" / name).read_text(encoding="utf-8")
        assert code in text, f"docs/extending.md quotes {name} as it is not"
