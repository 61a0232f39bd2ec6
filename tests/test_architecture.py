"""The house plan: who may import whom, read from the source, and what starts without torch."""

import ast
from pathlib import Path

import pytest
from support import ROOT, process

PACKAGE = ROOT / "ganbench"
MODELS = ROOT / "reference_models"
# The house plan (docs/design.md): a room, and the rooms that it may import. Each stands beneath the one above it.
ROOMS = {
    "cli": {
        "reproduction", "doctor", "evaluation", "reporting", "training", "recipes", "features", "data", "gan", "base",
    },
    "api": {"evaluation", "reporting", "data", "gan", "base"},
    "reproduction": {"doctor", "training", "evaluation", "reporting", "recipes", "features", "data", "gan", "base"},
    "doctor": {"features", "data", "base"},
    "evaluation": {"reporting", "features", "metrics", "data", "gan", "base"},
    "training": {"recipes", "data", "gan", "metrics", "base"},  # MS-SSIM tells a collapse
    "reporting": {"recipes", "base"},
    "recipes": {"base"},
    "features": {"data", "base"},
    "data": {"gan", "base"},
    "gan": {"base"},
    "metrics": set(),
    "base": set(),
}
DIRECTLY = {"__init__", "__main__", "api", "recipes", "doctor"}  # modules beside the rooms
# These start at once: they import nothing heavy.
LIGHT = (
    "base.data_spec", "base.errors", "base.files", "base.registry", "recipes", "reporting.results", "reporting.tables",
    "reporting.regression", "reporting.comparison", "reporting.stored", "reproduction.jobs", "reproduction.launching",
    *(f"cli.{p.stem}" for p in sorted((PACKAGE / "cli").glob("*.py")) if p.stem != "__init__"), "cli",
)
HEAVY = {
    "torch", "torchvision", "numpy", "scipy", "sklearn", "pandas", "PIL", "safetensors", "torch_fidelity",
    "pytorch_msssim",
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, top_level: bool = False) -> set[str]:
    """What a file imports; `from a import b` counts as a and as a.b. top_level: without what functions import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)
    }
    found = set()
    for node in ast.walk(tree):
        if top_level and id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where they lead"
            found |= {str(node.module), *(f"{node.module}.{a.name}" for a in node.names)}
    return found


FILES = {module_of(p): p for folder in (PACKAGE, MODELS) for p in sorted(folder.rglob("*.py"))}


def reaches(path: Path, *rooms: str) -> set[str]:
    """What a file imports from these rooms."""
    return {m for m in imports(path) if any(m == r or m.startswith(r + ".") for r in rooms)}


def test_the_reader_of_imports_sees_all_kinds(tmp_path):
    (tmp_path / "a.py").write_text("import a.b\nfrom c import d\ndef f():\n    import e\n    from g.h import i\n")
    assert imports(tmp_path / "a.py") == {"a.b", "c", "c.d", "e", "g.h", "g.h.i"}
    assert imports(tmp_path / "a.py", top_level=True) == {"a.b", "c", "c.d"}
    assert reaches(tmp_path / "a.py", "g", "cc") == {"g.h", "g.h.i"}
    assert len(FILES) > 30


@pytest.mark.parametrize("name", [m for m in FILES if m.startswith("ganbench")])
def test_ganbench_never_imports_models_or_recipes_by_name(name):
    assert not reaches(FILES[name], "reference_models", "benchmarks")


@pytest.mark.parametrize("name", [m for m in FILES if m.startswith("reference_models")])
def test_a_reference_model_imports_the_layers_and_the_contract_and_no_other_paper(name):
    layers = {m for m in reaches(FILES[name], "reference_models") if m.startswith("reference_models.layers")}
    assert reaches(FILES[name], "reference_models") - layers <= {"reference_models"}
    assert name != "reference_models.layers" or not layers
    assert {m.rpartition(".")[0] for m in reaches(FILES[name], "ganbench")} <= {"ganbench.gan", "ganbench"}
    assert not reaches(FILES[name], "ganbench.gan.checkpoint")
    assert not reaches(FILES[name], "numpy", "scipy", "sklearn")


def room_of(module: str) -> str:
    """The room of a module of ganbench: the first word after the package; the package itself is none."""
    return module.partition(".")[2].partition(".")[0]


def rooms_imported(path: Path) -> set[str]:
    """The rooms, and the modules beside them, that a file imports."""
    return {room_of(m) for m in imports(path) if m.startswith("ganbench.")} & {*ROOMS, *DIRECTLY}


@pytest.mark.parametrize("name", [m for m in FILES if room_of(m) in ROOMS])
def test_a_room_imports_the_rooms_of_the_plan_alone(name):
    room = room_of(name)
    assert rooms_imported(FILES[name]) <= ROOMS[room] | {room}


def test_the_plan_leads_down_only():
    order = list(ROOMS)
    for room, below in ROOMS.items():
        assert all(order.index(other) > order.index(room) for other in below), room
    assert "training" not in ROOMS["evaluation"]
    assert "evaluation" not in ROOMS["training"]


def test_every_folder_is_a_room_of_the_plan_and_few_modules_stand_beside_them():
    assert {p.name for p in PACKAGE.iterdir() if p.is_dir() and any(p.rglob("*.py"))} <= set(ROOMS)
    assert {p.stem for p in PACKAGE.glob("*.py")} == DIRECTLY
    assert len(DIRECTLY) <= 5


def test_training_uses_one_formula_of_the_metrics():
    files = [path for name, path in FILES.items() if room_of(name) == "training"]
    found = {m for path in files for m in reaches(path, "ganbench.metrics")}
    assert {m for m in found if m.count(".") == 2} == {"ganbench.metrics.ms_ssim"}


@pytest.mark.parametrize("name", [m for m in FILES if m.startswith("ganbench.metrics")])
def test_a_metric_is_a_function_of_arrays(name):
    found = reaches(
        FILES[name], "urllib", "requests", "http", "socket", "pathlib", "os", "io", "json", "safetensors", "PIL",
        "torchvision", "pandas", "torch_fidelity", "pytorch_msssim",
    )
    assert found <= ({"os"} if name == "ganbench.metrics.products" else set())  # reads oneDNN's environment variables


@pytest.mark.parametrize("name", [m for m in FILES if room_of(m) == "features"])
def test_an_extractor_knows_of_data_no_source(name):
    assert not reaches(FILES[name], "ganbench.data.sources")


@pytest.mark.parametrize("name", [m for m in FILES if m.startswith("ganbench.data") and "sources" not in m])
def test_a_data_set_knows_no_model_and_no_source(name):
    assert not reaches(FILES[name], "ganbench.gan", "ganbench.data.sources")


def test_the_loop_knows_no_metric_and_the_measuring_no_model_and_no_table():
    assert not reaches(FILES["ganbench.training.loop"], "ganbench.metrics")
    assert not reaches(FILES["ganbench.evaluation.measure"], "ganbench.gan", "ganbench.reporting.tables")


def test_the_contract_knows_nothing_of_ganbench():
    assert not reaches(FILES["ganbench.gan.contract"], "ganbench")


def test_nothing_below_the_command_line_knows_it():
    for name, path in FILES.items():
        if room_of(name) not in ("cli", "__main__"):
            assert not reaches(path, "ganbench.cli", "click"), name


@pytest.mark.parametrize("name", LIGHT)
def test_what_starts_at_once_imports_nothing_heavy_at_its_top(name):
    path = FILES[f"ganbench.{name}"]
    assert not {m.partition(".")[0] for m in imports(path, top_level=True)} & HEAVY


def test_what_starts_at_once_brings_nothing_heavy_along(place):
    names = ", ".join(f"ganbench.{n}" for n in LIGHT)
    code = f"import sys; import {names}; print(sorted({sorted(HEAVY)!r} & sys.modules.keys()))".replace(
        "[", "{", 1
    ).replace("]", "}", 1)
    done = process("-c", code, cwd=place)
    assert (done.code, done.out, done.err) == (0, "[]\n", "")


def test_no_import_is_circular():
    """A module that is half made is a surprise for whoever imports it first."""
    inner = {
        name: {m for m in imports(path, top_level=True) if m in FILES and m != name} for name, path in FILES.items()
    }
    for name, wanted in inner.items():  # a package is not a user of its own modules' package
        wanted -= {p for p in wanted if name.startswith(p + ".")}
    done: set[str] = set()
    while ready := {n for n, wanted in inner.items() if n not in done and wanted <= done}:
        done |= ready
    assert set(inner) == done, f"in a circle: {sorted(set(inner) - done)}"


def test_every_public_module_class_and_function_has_a_docstring():
    missing = []
    for name, path in FILES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if name.startswith("ganbench"):
            nodes = [
                tree,
                *(n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")),
            ]
            missing += [f"{name}: {getattr(n, 'name', 'module')}" for n in nodes if not ast.get_docstring(n)]
    assert missing == []


def test_toml_is_read_on_the_oldest_python_too():
    """tomllib came with 3.11."""
    assert any("tomllib" in imports(path) for path in FILES.values())
    for name, path in FILES.items():
        if "tomllib" in imports(path):
            assert "tomli" in imports(path), name
