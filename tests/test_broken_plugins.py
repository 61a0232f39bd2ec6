"""Packages of others that are broken: one line names the package where it was asked for, and nothing else breaks."""

import importlib
import json
import sys

import pytest
import torch
from support import everything_below, write_recipe

from ganbench.base import registry
from ganbench.evaluation import protocols
from ganbench.gan import checkpoint

EVALUATE = ("evaluate", "--images", "digits:test", "--reference", "digits:train", "--num", "20", "--seed", "1")

IMPORTED = "print('printed by the plugin')\nopen('imported', 'a').write(__name__ + '\\n')\n"

METRICS = """
import torch, numpy
from dataclasses import replace
from ganbench.metrics import Inputs, Protocol, Unavailable, Uncertainty, Value

GOOD = Value(1.5, Uncertainty(0.1, "standard error", "the samples"), 20, 20)

def compute(how):
    def of(inputs):
        print("printed by the metric")
        return how(inputs)
    return of

def leave(inputs):
    raise SystemExit(0)

def rows(inputs):
    raise KeyError("rows")

HOWS = {
    "good": lambda i: [GOOD],
    "numpy": lambda i: [replace(GOOD, value=numpy.float32(1.5))],
    "raises": lambda i: 1 / 0,
    "leaves": leave,
    "nothing": lambda i: None,
    "number": lambda i: 1.5,
    "empty": lambda i: [],
    "tensor": lambda i: [replace(GOOD, value=torch.tensor([1.5]))],
    "text": lambda i: [replace(GOOD, value="1.5")],
    "true": lambda i: [replace(GOOD, value=True)],
    "nan": lambda i: [replace(GOOD, value=float("nan"))],
    "negative_error": lambda i: [replace(GOOD, uncertainty=Uncertainty(-1.0, "standard error", "x"))],
    "infinite_error": lambda i: [replace(GOOD, uncertainty=Uncertainty(float("inf"), "standard error", "x"))],
    "number_as_error": lambda i: [replace(GOOD, uncertainty=0.1)],
    "kind_of_error": lambda i: [replace(GOOD, uncertainty=Uncertainty(0.1, "guess", "x"))],
    "counts": lambda i: [replace(GOOD, n_real=-1)],
    "details": lambda i: [replace(GOOD, details={"set": {1, 2}})],
    "details_nan": lambda i: [replace(GOOD, details={"x": float("nan")})],
    "twice": lambda i: [GOOD, GOOD],
}

def protocol(stem, how, **more):
    needs = frozenset({"real.images", "fake.images"})
    return Protocol(stem, 1, "A test.", "none", "lower", compute(how), needs, **more)

PROTOCOLS = [protocol(f"x_{name}", how) for name, how in HOWS.items()] + [
    protocol("x_rows", HOWS["good"], rows=rows),
    protocol("x_other_rows", HOWS["good"], rows=lambda i: {"fake": torch.tensor([999])}),
    protocol("x_no_rows", HOWS["good"], rows=lambda i: 3),
    Protocol("x_features", 1, "A test.", "none", "lower", compute(HOWS["good"]), frozenset({"fake.features"})),
]
"""

EXTRACTORS = """
import torch
from ganbench.features import FeatureExtractor, Features

class Base(FeatureExtractor):
    name, source = "x_good", "this package"
    def __init__(self, weights=None, download=True):
        super().__init__()
    def forward(self, images):
        print("printed by the extractor")
        return self.of(images.float().flatten(1) / 255)
    def of(self, x):
        return Features(x)

def made(of, name, **fields):
    return type("X", (Base,), {"of": of, "name": name, **fields})

def leave(self, x):
    raise SystemExit(0)

def changing(self, x):
    self.calls = getattr(self, "calls", 0) + 1
    return Features(x[:, self.calls:])

def boom(self, weights=None, download=True):
    raise RuntimeError("boom")

HOWS = {
    "x_tensor": lambda self, x: x,
    "x_raises": lambda self, x: 1 / 0,
    "x_leaves": leave,
    "x_numpy": lambda self, x: Features(x.numpy()),
    "x_whole": lambda self, x: Features(x.long()),
    "x_images": lambda self, x: Features(x.view(len(x), 8, 8)),
    "x_few": lambda self, x: Features(x[1:]),
    "x_no_columns": lambda self, x: Features(x[:, :0]),
    "x_logits": lambda self, x: Features(x, x[0]),
    "x_nan": lambda self, x: Features(x / 0),
    "x_changing": changing,
}
for _name, _how in HOWS.items():
    globals()[_name] = made(_how, _name)
x_good = Base
x_constructor = type("X", (Base,), {"__init__": boom, "name": "x_constructor"})
x_other_name = made(Base.of, "y")
x_version = made(Base.of, "x_version", version=3)
x_batch = made(Base.of, "x_batch", batch_size=lambda self, device, shape: 0)
x_function = lambda weights=None, download=True: 3
"""

MODELS = """
import torch
from ganbench.gan import GAN

class Base(GAN):
    image_shape = (1, 8, 8)
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))
    def sample(self, n, y=None, generator=None):
        print("printed by the model")
        return self.of(torch.tanh(torch.randn(n, 1, 8, 8, generator=generator)))
    def of(self, x):
        return x

def leave(self, x):
    raise SystemExit(0)

HOWS = {
    "x_nothing": lambda self, x: None,
    "x_array": lambda self, x: x.numpy(),
    "x_raises": lambda self, x: 1 / 0,
    "x_leaves": leave,
    "x_few": lambda self, x: x[1:],
    "x_large": lambda self, x: torch.zeros(len(x), 1, 9, 9),
    "x_whole": lambda self, x: x.long(),
    "x_flat": lambda self, x: x.flatten(1),
    "x_nan": lambda self, x: x * float("nan"),
    "x_good": Base.of,
}
for _name, _how in HOWS.items():
    globals()[_name] = type(_name, (Base,), {"of": _how})
x_no_shape = type("X", (Base,), {"image_shape": None})
x_channels = type("X", (Base,), {"image_shape": (2, 8, 8)})
x_module = torch.nn.Linear
x_object = type("X", (), {"state_dict": lambda self: {}})
"""

DATASETS = """
import torch
from ganbench.data.datasets import Dataset

def leave(split, root, download):
    raise SystemExit(0)

def images(**more):
    fields = {"images": torch.zeros(30, 1, 8, 8, dtype=torch.uint8), **more}
    return lambda split, root, download: Dataset("x", split, **fields)

x_raises = lambda split, root, download: 1 / 0
x_leaves = leave
x_nothing = lambda split, root, download: None
x_floats = images(images=torch.zeros(30, 1, 8, 8))
x_labels = images(labels=torch.zeros(3, dtype=torch.int64))
x_arguments = lambda: None
"""


@pytest.fixture
def install(place, monkeypatch):
    """`install(package, {kind: {name: value}}, {module: text})`: as an installer would have done it."""

    def forget():
        for cached in (registry._provided, protocols._of_entry):
            cached.cache_clear()

    installed: list[str] = []

    def run(package, parts, modules):
        site = place.parent / "site"
        info = site / f"{package}-1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
        lines = [f"[ganbench.{kind}]\n" + "".join(f"{name} = {value}\n" for name, value in names.items())
                 for kind, names in parts.items()]
        (info / "entry_points.txt").write_text("".join(lines))
        for name, text in modules.items():
            (site / f"{name}.py").write_text(text)
        installed.extend(modules)
        if str(site) not in sys.path:
            monkeypatch.syspath_prepend(site)
        importlib.invalidate_caches()
        forget()

    yield run
    for name in installed:
        sys.modules.pop(name, None)
    forget()


def error_of(done, code):
    """The one line on stderr beside what the plugins print, which never is on stdout."""
    assert done.code == code, done
    assert "printed by" not in done.out
    lines = [line for line in done.err.splitlines() if not line.startswith("printed by")]
    assert len(lines) == 1, done.err
    assert lines[0].startswith("ganbench: error: "), done.err
    return lines[0]


BROKEN = {
    "raises": ("raise RuntimeError('first line\\nsecond line')", "RuntimeError: first line second line"),
    "leaves": ("raise SystemExit(0)", "SystemExit"),
    "syntax": ("1 +", "SyntaxError"),
    "needs": ("import no_such_package_of_this_test", "needs a package that is not installed"),
    "attribute": ("", "AttributeError"),
    "number": ("BROKEN = 3", "BROKEN is 3"),
}


@pytest.mark.parametrize("kind", registry.KINDS)
def test_a_package_that_cannot_be_loaded_breaks_only_what_asks_for_it(install, ganbench, place, kind):
    broken = {how: f"broken_{how}:BROKEN" for how in BROKEN}
    install("broken-package", {kind: broken}, {f"broken_{how}": IMPORTED + text for how, (text, _) in BROKEN.items()})
    write_recipe(place)
    done = ganbench(*EVALUATE, "--metrics", "fd_pixels", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["measurements"][0]["value"] is not None
    assert not (place / "imported").exists()  # not even loaded
    assert ganbench("validate", "tiny.toml").code == 0

    for args in (["list"], ["list", kind]):
        done = ganbench(*args)
        assert done.code == 1
        assert "printed by" not in done.out
        assert "digits" in done.out or args[1:]
        for how, (_, words) in BROKEN.items():
            (line,) = [line for line in done.err.splitlines() if f"'{how}'" in line]
            assert line.startswith(f"ganbench: error: the {kind[:-1]} '{how}' of the package 'broken-package' "), line
            assert words in line
    done = ganbench("doctor")
    assert (done.code, "printed by" in done.out) == (0, False)
    lines = {line.split()[1]: line for line in done.out.splitlines() if line.startswith("  --")}
    for how, (_, words) in BROKEN.items():
        assert words in lines[how]
    done = ganbench("table", "tiny.toml")
    assert done.code == (1 if kind == "recipes" else 0), done.err
    assert "fd_pixels" in done.out

    for how, (_, words) in BROKEN.items():
        asked = {
            "models": ["evaluate", "--model", how, "--ckpt", "tiny.safetensors", "--metrics", "fd_pixels"],
            "datasets": ["evaluate", "--images", how, "--metrics", "fd_pixels"],
            "extractors": [*EVALUATE, "--metrics", f"fd_{how}"],
            "metrics": [*EVALUATE, "--metrics", f"{how}_pixels"],
            "recipes": ["reproduce", "of-the-broken-package"],
        }[kind]
        if kind == "models":
            checkpoint.save(place / "tiny.safetensors", {}, checkpoint.Checkpoint(how, {}))
        line = error_of(ganbench(*asked), 2)
        for word in ("broken-package", f"'{how}'", words):
            assert word in line


def test_of_a_metric_that_no_entry_point_names_all_packages_are_loaded(install, ganbench, place):
    install("whole", {"metrics": {"pack": "whole_pack:PROTOCOLS", "x_raises": "whole_pack:PROTOCOLS"}},
            {"whole_pack": IMPORTED + METRICS})
    install("other", {"metrics": {"other": "other_pack:PROTOCOLS"}}, {"other_pack": IMPORTED + "1 / 0"})
    done = ganbench(*EVALUATE, "--metrics", "x_raises")
    assert done.code == 1
    assert (place / "imported").read_text() == "whole_pack\n"  # by the name of the entry point
    done = ganbench(*EVALUATE, "--metrics", "x_good,x_features_pixels,fd_pixels", "--json")
    assert done.code == 0, done.err
    assert [m["value"] for m in json.loads(done.out)["measurements"]][:2] == [1.5, 1.5]
    assert sorted((place / "imported").read_text().split()) == ["other_pack", "whole_pack"]
    line = error_of(ganbench(*EVALUATE, "--metrics", "x_goood"), 2)
    for word in ("unknown metric 'x_goood'", "'x_good'", "'other'", "ZeroDivisionError"):
        assert word in line


def test_two_packages_with_one_name_break_only_that_name(install, ganbench, place):
    install("second", {"metrics": {"kd": "second_kd:PROTOCOLS"}, "datasets": {"mnist": "second_kd:mnist"}},
            {"second_kd": "PROTOCOLS = []"})
    assert ganbench(*EVALUATE, "--metrics", "fd_pixels").code == 0
    assert "two packages provide the dataset 'mnist'" in error_of(ganbench("evaluate", "--images", "mnist"), 2)
    assert "two packages provide the metric 'kd'" in error_of(ganbench(*EVALUATE, "--metrics", "kd_pixels"), 2)
    done = ganbench("list")
    assert [line.partition("': ")[0] for line in done.err.splitlines()] == [
        f"ganbench: error: two packages provide the {name}" for name in ("dataset 'mnist", "metric 'kd")
    ]


def test_a_list_of_entry_points_that_cannot_be_read_is_left_out(install, ganbench, place):
    install("damaged", {}, {})
    (place.parent / "site/damaged-1.dist-info/entry_points.txt").write_text("[ganbench.models]\nno equals sign\n")
    registry._provided.cache_clear()
    assert ganbench(*EVALUATE, "--metrics", "fd_pixels").code == 0
    assert "acgan" in ganbench("list", "models").out


# --- Parts that load, and return what they should not ---

OF_METRICS = {
    "x_raises": "ZeroDivisionError", "x_leaves": "SystemExit", "x_nothing": "a list of Value", "x_number": "a list of",
    "x_empty": "a list of Value", "x_tensor": "must be a number", "x_text": "must be a number", "x_true": "number",
    "x_nan": "no finite number", "x_negative_error": "uncertainty", "x_infinite_error": "uncertainty",
    "x_number_as_error": "uncertainty", "x_kind_of_error": "uncertainty", "x_counts": "counts",
    "x_details": "details", "x_details_nan": "details", "x_twice": "same suffix", "x_rows": "KeyError",
    "x_other_rows": "must return rows of", "x_no_rows": "must return int64 tensors",
}


def test_a_metric_that_fails_is_one_line_and_takes_no_other_with_it(install, ganbench, place):
    install("metrics-of-the-test", {"metrics": {"x_raises": "metrics_of_the_test:PROTOCOLS"}},
            {"metrics_of_the_test": METRICS})
    done = ganbench(*EVALUATE, "--metrics", ",".join([*OF_METRICS, "x_good", "x_numpy", "fd_pixels"]), "--json",
                    "--out", "r.json")
    assert done.code == 1, done.err
    found = {m["metric"]: m for m in json.loads(done.out)["measurements"]}
    for name, words in OF_METRICS.items():
        assert found[name]["value"] is None
        assert words in found[name]["reason"], name
        assert name in found[name]["reason"] or name == "x_nan"
        assert "\n" not in found[name]["reason"]
    assert (found["x_good"]["value"], found["x_numpy"]["value"]) == (1.5, 1.5)
    assert found["fd_pixels"]["value"] > 0
    assert ganbench("compare", "r.json", "r.json").code == 0  # the result can be read


OF_EXTRACTORS = {
    "x_tensor": "type Tensor", "x_raises": "ZeroDivisionError", "x_leaves": "tried to end the program",
    "x_numpy": "of type ndarray", "x_whole": "int64", "x_images": "of shape (20, 8, 8)", "x_few": "of shape (",
    "x_no_columns": "of shape (", "x_logits": "logits", "x_nan": "not finite", "x_changing": "are (62, None) now",
    "x_constructor": "RuntimeError: boom", "x_other_name": "its name is 'y'", "x_version": "'version'",
    "x_batch": "batch_size", "x_function": "a int",
}


def test_an_extractor_that_returns_no_features_is_one_line_and_takes_no_other_with_it(install, ganbench, place):
    install("networks-of-the-test",
            {"extractors": {name: f"networks_of_the_test:{name}" for name in [*OF_EXTRACTORS, "x_good"]}},
            {"networks_of_the_test": EXTRACTORS})
    metrics = [f"fd_{name}" for name in [*OF_EXTRACTORS, "x_good", "pixels"]]
    done = ganbench(*EVALUATE, "--metrics", ",".join(metrics), "--batch-size", "10", "--json")
    assert done.code == 1, done.err
    assert "printed by the extractor" in done.err
    found = {m["metric"]: m for m in json.loads(done.out)["measurements"]}
    for name, words in OF_EXTRACTORS.items():
        (reason,) = [m["reason"] for key, m in found.items() if key == f"fd_{name}"]
        assert f"'{name}'" in reason
        assert words.replace("20", "10") in reason, name
        assert "\n" not in reason
    assert found["fd_x_good"]["value"] == pytest.approx(found["fd_pixels"]["value"], rel=1e-6)


OF_MODELS = {
    "x_nothing": "NoneType", "x_array": "ndarray", "x_raises": "ZeroDivisionError", "x_leaves": "SystemExit",
    "x_few": "(19, 1, 8, 8)", "x_large": "(20, 1, 9, 9)", "x_whole": "int64", "x_flat": "(20, 64)", "x_nan": "NaN",
    "x_no_shape": "image_shape", "x_channels": "1 or 3 channels", "x_module": "no ganbench.gan.GAN",
    "x_object": "no ganbench.gan.GAN",
}


def test_a_model_that_makes_no_images_is_one_line(install, ganbench, place):
    install("models-of-the-test", {"models": {n: f"models_of_the_test:{n}" for n in [*OF_MODELS, "x_good"]}},
            {"models_of_the_test": MODELS})
    for name, words in {**OF_MODELS, "x_good": ""}.items():
        args = {"in_features": 3, "out_features": 2} if name == "x_module" else {}
        checkpoint.save(place / "m.safetensors", {"w": torch.zeros(1)}, checkpoint.Checkpoint(name, args))
        before = everything_below(place)
        for command in (["evaluate", "--metrics", "fd_pixels", "--reference", "digits:test", "--json"],
                        ["sample", "--grid", "a.png", "--quiet"]):
            done = ganbench(*command, "--ckpt", "m.safetensors", "--num", "20")
            if name == "x_good":
                assert done.code == 0, done.err
                assert "printed by" not in done.out
                continue
            assert done.code == 2, name
            line = error_of(done, 2)
            assert words in line, name
            assert name in line or name == "x_nan"
            assert everything_below(place) == before


OF_DATASETS = {
    "x_raises": "ZeroDivisionError", "x_leaves": "SystemExit", "x_nothing": "NoneType", "x_floats": "uint8",
    "x_labels": "labels", "x_arguments": "TypeError",
}


def test_a_data_set_that_is_none_is_one_line(install, ganbench, place):
    install("sets-of-the-test", {"datasets": {name: f"sets_of_the_test:{name}" for name in OF_DATASETS}},
            {"sets_of_the_test": DATASETS})
    for name, words in OF_DATASETS.items():
        for args in (["--images", name], ["--images", "digits", "--reference", name]):
            line = error_of(ganbench("evaluate", *args, "--metrics", "fd_pixels"), 2)
            assert f"'{name}'" in line
            assert words in line


def test_a_tree_of_recipes_that_cannot_be_opened_hides_no_other(install, ganbench, place):
    trees = {"raises": "def f(): 1 / 0", "leaves": "def f(): raise SystemExit(0)", "number": "def f(): return 3",
             "gone": "f = 'no/such/folder'", "file": f"f = {str(place / 'tiny.toml')!r}"}
    write_recipe(place)
    install("trees", {"recipes": {how: f"tree_{how}:f" for how in trees}},
            {f"tree_{how}": text for how, text in trees.items()})
    for args in (["list"], ["list", "recipes"], ["list", "groups"], ["table", "tiny.toml"]):
        done = ganbench(*args)
        assert done.code == 1
        assert len(done.err.splitlines()) == len(trees), done.err
        for how, line in zip(sorted(trees), done.err.splitlines(), strict=True):
            assert line.startswith(f"ganbench: error: the recipes '{how}' of the package 'trees' cannot be opened (")
    assert "dcgan-digits" in ganbench("list", "recipes").out
    assert ganbench("validate", "dcgan-digits").code == 0
    line = error_of(ganbench("reproduce", "no-such-recipe"), 2)
    assert "Besides, the recipes 'file' of the package 'trees'" in line
