"""The template of a plugin: installed elsewhere, its parts are found, validated, trained and measured as the page says.

Another folder holds the built package, and each command is a process of its own with that folder on its path.
"""

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.spatial.distance import cdist
from support import ROOT, process

from ganbench.base.errors import UserError
from ganbench.base.files import sha256_of
from ganbench.data.datasets import UnknownSplit

PLUGIN = ROOT / "examples" / "plugin"
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
PARTS = {"models": "tinygan", "metrics": "matching_distance", "extractors": "strokes", "datasets": "bars",
         "recipes": "tinygan-bars"}
METRICS = ["matching_distance_strokes", "matching_distance_pixels", "fd_strokes", "score_strokes"]

CONSOLE = re.findall(r"^```console\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
CODE = re.findall(r"^```(?:python|toml)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
# A link to a file of the template, and a block with its text, or with a part of it after 'From'.
QUOTES = re.findall(
    r"^(From )?\[`([^`]+)`\]\(\.\./examples/plugin/\2\):\n\n```\w+\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The template's wheel as an installer would lay it out, built from a copy so that the sources stay as they are."""
    source, out, folder = (tmp_path_factory.mktemp(name) for name in ("source", "wheel", "site"))
    shutil.copytree(PLUGIN, source, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)], cwd=source, check=True,
                   capture_output=True)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """The folder in which the commands run."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def python(site, work):
    """Runs Python offline on the CPU with the template on its path."""
    env = {"PYTHONPATH": str(site), "GANBENCH_OFFLINE": "1", "GANBENCH_DATA": str(work / "data"),
           "CUDA_VISIBLE_DEVICES": "", "PYTEST_ADDOPTS": ""}
    return lambda *args: process(*args, cwd=work, **env)


@pytest.fixture(scope="module")
def said(python):
    """The commands of the page, run in their order: what each printed, with its exit code."""
    lines = [line[2:] for block in CONSOLE for line in block.splitlines() if line.startswith("$ ganbench ")]
    return {line: python("-m", *shlex.split(line)) for line in lines}


def table(text: str) -> dict[str, dict[str, str]]:
    """The rows of a Markdown table, by metric and column."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[rows[0].index("metric")]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def tables_of_the_page() -> list[dict[str, dict[str, str]]]:
    return [table(text) for text in re.findall(r"^\| metric .*?(?=\n\n)", PAGE, re.DOTALL | re.MULTILINE)]


def number(cell: str) -> tuple[float, float]:
    """The value and the ± of '0.24 ± 0.02'."""
    value, error = cell.split(" ± ")
    return float(value), float(error)


# --- What the page says happens ---


def test_every_command_of_the_page_runs(said):
    assert [line.split()[1] for line in said] == ["list", "reproduce", "evaluate", "validate"]
    for line, done in said.items():
        assert done.code == 0, f"{line}: {done.err}"


def test_the_readme_of_the_template_begins_with_commands_of_the_page(said):
    first = (PLUGIN / "README.md").read_text(encoding="utf-8").split("```")[1]
    lines = [line[2:] for line in first.splitlines() if line.startswith("$ ")]
    assert lines[0] == "pip install ./examples/plugin"
    assert len(lines) == 5
    assert set(lines[1:]) == set(said)


def test_every_part_is_listed_with_its_summary(said):
    listed = said["ganbench list"].out
    for kind, summary in {
        "models": "TinyGAN (Goodfellow et al., 2014): fully connected, for images of 8 x 8 pixels",
        "metrics": "Minimum matching distance: how far real images are from the nearest generated image",
        "extractors": "Mean brightness of every row and every column, in [0, 1]: d = H + W. Classes: horizontal and "
        "vertical bars",
        "datasets": "Bars of 2 pixels on a dark square, 1 x 8 x 8, classes horizontal and vertical: train 400, "
        "test 200",
        "recipes": "TinyGAN on bars",
    }.items():
        of_kind = listed[listed.index(f"{kind}:\n"):].split(":\n", 2)[1]
        assert re.search(rf"^  {PARTS[kind]} +{re.escape(summary)}$", of_kind, re.MULTILINE), kind


def test_the_recipe_is_right_and_the_page_shows_what_validate_prints(said):
    shown = {block.splitlines()[0][2:]: block.partition("\n")[2] for block in CONSOLE if len(block.splitlines()) > 1}
    assert said["ganbench validate tinygan-bars"].out == shown["ganbench validate tinygan-bars"]


def test_the_page_shows_the_tables_that_reproduce_and_evaluate_print(said):
    reproduced, evaluated = tables_of_the_page()
    found = table(said["ganbench reproduce tinygan-bars --out trial"].out)
    assert [name.split()[0] for name in found] == [name.split()[0] for name in reproduced] == METRICS
    for name, row in reproduced.items():
        assert row["real data"] == found[name]["real data"]
        (value, error), (ours, _) = number(row["ours"]), number(found[name]["ours"])
        assert abs(value - ours) <= 5 * error, name  # training on another machine rounds differently
    (line,) = [line for line in said if line.startswith("ganbench evaluate")]
    found = table(said[line].out)
    assert {name: {key: found[name][key] for key in row} for name, row in evaluated.items()} == evaluated


# --- What the parts do together ---


def test_the_run_was_of_all_five_parts(said, work):
    result = json.loads((work / "trial/runs/tinygan-bars/seed0/result.json").read_text(encoding="utf-8"))
    assert result["recipe"]["name"] == "tinygan-bars"
    assert result["training"]["model"] == {"name": "tinygan", "args": {"width": 64}}
    assert result["training"]["data"] == "bars:train"
    assert result["training"]["steps"] == 400
    for measurements in (result["measurements"], result["real"]):
        assert [m["metric"] for m in measurements] == METRICS
        assert all(m["value"] is not None and m["uncertainty"]["value"] > 0 for m in measurements)
    assert result["measurements"][0]["extractor"]["name"] == "strokes"
    values = {m["metric"]: m["value"] for m in result["measurements"]}
    real = {m["metric"]: m["value"] for m in result["real"]}
    assert 1.5 < values["score_strokes"] < real["score_strokes"] <= 2  # two classes, which training has found
    assert (work / "trial/runs/tinygan-bars/seed0/samples.png").exists()


def test_the_metric_over_the_extractor_is_the_formula(python, work):
    """On images of a file of our own, against features and distances in NumPy and SciPy."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (90, 8, 8, 1), dtype=np.uint8)
    np.savez(work / "own.npz", arr_0=images)
    code = (
        "import sys, numpy; from ganbench.data import datasets; "
        "numpy.save(sys.argv[1], datasets.load('bars:train').images.numpy())"
    )
    assert python("-c", code, work / "bars.npy").code == 0
    done = python("-m", "ganbench", "evaluate", "--images", "own.npz", "--reference", "bars:train",
                  "--metrics", "matching_distance_strokes", "--json", "--quiet")
    assert done.code == 0, done.err
    (measured,) = json.loads(done.out)["measurements"]

    def strokes(pixels):
        return np.concatenate([pixels.mean(2), pixels.mean(1)], 1) / 255

    real, fake = strokes(np.load(work / "bars.npy")[:, 0].astype(float)), strokes(images[..., 0].astype(float))
    distances = cdist(real, fake).min(1)
    assert (measured["n_real"], measured["n_fake"]) == (400, 90)
    assert measured["value"] == pytest.approx(distances.mean(), rel=1e-6)
    assert measured["uncertainty"]["value"] == pytest.approx(distances.std(ddof=1) / math.sqrt(400), rel=1e-5)
    assert measured["uncertainty"]["over"] == "the real images"
    assert measured["warnings"] == ["90 generated images: comparable only at equal counts"]


def test_the_template_passes_its_own_tests_and_the_contract_tests(python):
    """The contract tests run over all that is installed, as the page says; here, over the template alone."""
    words = re.search(r'-k "(.+)"', PAGE)[1]
    files = re.findall(r"tests/test_every_\w+\.py", PAGE)
    assert files == ["tests/test_every_model.py", "tests/test_every_metric.py", "tests/test_every_recipe.py"]
    done = python("-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml",
                  "-k", f"{words} or test_parts", PLUGIN / "tests/test_parts.py", *(ROOT / file for file in files))
    assert done.code == 0, done.out
    (passed,) = re.findall(r"^(\d+) passed", done.out, re.MULTILINE)
    assert int(passed) > 50, done.out


# --- What the page quotes ---


def test_the_page_quotes_the_files_of_the_template_as_they_are():
    for beginning, name, code in QUOTES:
        text = (PLUGIN / name).read_text(encoding="utf-8")
        if beginning:
            assert f"\n{text}".count(f"\n{code}") == 1, f"docs/extending.md quotes a part of {name} as it is not"
        else:
            assert code == text, f"docs/extending.md quotes {name} as it is not"


def test_the_page_quotes_every_part_and_every_test_of_the_template():
    whole = {name for beginning, name, _ in QUOTES if not beginning}
    package = PLUGIN / "ganbench_example"
    files = {p for p in package.rglob("*") if p.suffix in (".py", ".toml") and p.name != "__init__.py"}
    assert whole == {p.relative_to(PLUGIN).as_posix() for p in files}
    parts = "".join(code for _, name, code in QUOTES if name == "tests/test_parts.py")
    tests = re.findall(r"^def (test_\w+)", (PLUGIN / "tests/test_parts.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert re.findall(r"^def (test_\w+)", parts, re.MULTILINE) == tests
    assert len(CODE) - len(QUOTES) == len(SNIPPETS) == 2  # no other code on the page is without a test


SNIPPETS = [code for code in CODE if code not in [quoted for _, _, quoted in QUOTES]]


def test_the_pages_extractor_with_weights_reads_them(tmp_path):
    names: dict = {}
    exec(SNIPPETS[0], names)
    Linear = names["Linear"]
    net = torch.nn.Linear(64, 10)
    save_file(net.state_dict(), tmp_path / "a.safetensors")
    images = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8)
    extractor = Linear(tmp_path / "a.safetensors")
    with torch.no_grad():
        out = extractor(images)
        torch.testing.assert_close(out.logits, net(images.flatten(1) / 255))
    assert extractor.title == f"linear@{sha256_of(tmp_path / 'a.safetensors')[:8]}"
    with pytest.raises(UserError, match="--weights linear=FILE"):
        Linear()
    (tmp_path / "b.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="does not hold the weights"):
        Linear(tmp_path / "b.safetensors")


def test_the_pages_data_set_of_files_reads_them_and_downloads_nothing_offline(tmp_path, monkeypatch):
    names: dict = {}
    exec(SNIPPETS[1], names)
    scans = names["scans"]
    with pytest.raises(UnknownSplit):
        scans("validation", tmp_path, False)
    with pytest.raises(UserError, match="this run is offline: put https"):
        scans("train", tmp_path, False)
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    labels = np.arange(5)

    def download(url, path):
        assert url == "https://example.org/scans/test.npz"
        np.savez(path, images=images, labels=labels)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    data = scans("test", tmp_path, True)
    assert torch.equal(data.images, torch.from_numpy(images))
    assert data.labels.tolist() == labels.tolist()
    assert torch.equal(scans("test", tmp_path, False).images, data.images)  # from the file
