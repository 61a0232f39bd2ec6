"""The wheel: built offline, it lists and trains from a folder that knows nothing of the repository."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from support import ROOT, Outcome

from ganbench import __version__, recipes
from ganbench.base import registry


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of what it is made of, so that nothing else in the repository can get into it."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in ("ganbench", "reference_models", "benchmarks", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)], cwd=source, check=True,
                   capture_output=True)
    (file,) = out.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """The wheel as an installer would lay it out: a wheel of pure Python is unpacked, and no more."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def installed(site, tmp_path):
    """Runs Python far from the repository, with the wheel first on its path and the working directory not on it."""
    place = tmp_path / "elsewhere"
    place.mkdir()

    def run(*args):
        env = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
        done = subprocess.run(
            [sys.executable, *map(str, args)], cwd=place, env=env, capture_output=True, text=True, timeout=300
        )
        return Outcome(done.returncode, done.stdout, done.stderr), place

    return run


def test_the_wheel_holds_the_package_the_models_the_recipes_the_weights_and_no_tests(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(f"ganbench-{__version__}.dist-info/METADATA").decode()
        entries = archive.read(f"ganbench-{__version__}.dist-info/entry_points.txt").decode()
    assert wheel.name == f"ganbench-{__version__}-py3-none-any.whl"
    assert {n.partition("/")[0] for n in names} == {"ganbench", "reference_models", f"ganbench-{__version__}.dist-info"}
    assert {n for n in names if n.endswith(".toml")} == {
        f"ganbench/benchmarks/{path.relative_to(recipes.BUNDLED).as_posix()}"
        for files in (recipes.available(), recipes.available_groups()) for path in files.values()
    }
    assert "ganbench/benchmarks/bigan/tables/bigan-table1.toml" in names
    assert "ganbench/features/weights/mnist-cnn.safetensors" in names
    for folder in ("ganbench", "reference_models"):
        files = {p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob("*.py")}
        assert files <= set(names)
    assert "ganbench = ganbench.cli:main" in entries
    assert all(f"[ganbench.{kind}]" in entries for kind in registry.KINDS)
    assert f"Version: {__version__}" in metadata


def test_the_wheel_is_imported_and_not_the_repository(installed, site):
    done, _ = installed(
        "-c", "import ganbench, reference_models; print(ganbench.__file__); print(reference_models.__file__)"
    )
    assert done.code == 0, done.err
    assert done.out.splitlines() == [str(site / "ganbench/__init__.py"), str(site / "reference_models/__init__.py")]


def test_the_wheel_lists_what_the_repository_lists(installed, site):
    done, _ = installed("-m", "ganbench", "list")
    assert (done.code, done.err) == (0, "")
    for kind in registry.KINDS:
        names = list(recipes.available()) if kind == "recipes" else registry.names(kind)
        for name in [*names, *recipes.available_groups()]:
            assert f"\n  {name} " in done.out, name
    done, _ = installed("-c", "from ganbench import recipes; print(*recipes.available().values(), sep='\\n')")
    assert done.out
    assert all(line.startswith(str(site / "ganbench/benchmarks")) for line in done.out.splitlines())


def test_the_wheel_trains_evaluates_and_tabulates(installed, site):
    code = "import sys, ganbench; from ganbench.cli import main; print(ganbench.__file__, file=sys.stderr); main()"
    done, place = installed("-c", code, "reproduce", "dcgan-digits", "--steps", "5", "--device", "cpu", "--quiet")
    assert done.code == 0, done.err
    assert done.err == f"{site / 'ganbench/__init__.py'}\n"
    assert "fd_pixels" in done.out
    run = place / "results/runs/dcgan-digits/seed0-steps=5"
    assert {"checkpoint.safetensors", "result.json", "samples.png"} <= {p.name for p in run.iterdir()}
