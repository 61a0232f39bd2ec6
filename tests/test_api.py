"""The door for Python code: the numbers of the command line, from objects; and messages in Python's words."""

import doctest
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support import ROOT, save_tiny
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ganbench
from ganbench import UserError, cli
from ganbench.data import datasets
from ganbench.data.images import to_float
from ganbench.gan import checkpoint

METRICS = ["fd_pixels", "precision_pixels", "ms_ssim_all"]
HOW = {"reference": "digits:train", "metrics": METRICS, "cache": False}


@pytest.fixture(scope="module")
def images():
    return datasets.load("digits:test").images[:120]


@pytest.fixture(scope="module")
def labels():
    return datasets.load("digits:test").labels[:120]


def values(result):
    return {m.metric: (m.value, m.error) for m in result.measurements}


@pytest.fixture(scope="module")
def expected(images, tmp_path_factory):
    """The command line's own values of these images."""
    path = tmp_path_factory.mktemp("api") / "images.npz"
    np.savez(path, images.permute(0, 2, 3, 1).numpy())
    args = ["evaluate", "--images", str(path), "--reference", "digits:train", "--metrics", ",".join(METRICS)]
    found = json.loads(CliRunner().invoke(cli.main, [*args, "--no-cache", "--json", "--quiet"]).stdout)
    return path, {m["metric"]: (m["value"], m["uncertainty"]["value"]) for m in found["measurements"]}


# --- The same numbers, whatever the images are ---


FORMS = {
    "a path": lambda x, path: path,
    "a name": lambda x, path: str(path),
    "uint8": lambda x, path: x,
    "an array, channels last": lambda x, path: x.permute(0, 2, 3, 1).numpy(),
    "an array without channels, backwards twice": lambda x, path: x[:, 0].flip(0).numpy()[::-1],
    "a list of batches": lambda x, path: list(x.split(50)),
    "a data loader": lambda x, path: DataLoader(x, batch_size=32),
    "a function": lambda x, path: lambda n, first: x[first : first + n],
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_the_same_images_have_the_command_lines_values(form, images, expected):
    path, wanted = expected
    value = FORMS[form](images, path)
    num = len(images) if form == "a function" else None
    assert values(ganbench.evaluate(value, num=num, **HOW)) == wanted


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (0, 1), (0, 255)])
def test_floats_of_any_declared_range_are_the_same_levels(low, high, images, expected):
    x = low + (high - low) * (to_float(images).double() + 1) / 2
    assert values(ganbench.evaluate(x, value_range=(low, high), **HOW)) == expected[1]
    assert values(ganbench.evaluate(x.float().numpy(), value_range=(low, high), **HOW)) == expected[1]


def test_labels_come_with_batches_or_beside_them(images, labels):
    how = {"reference": "digits:train", "metrics": ["nn_error"], "cache": False}
    beside = ganbench.evaluate(images, labels=labels.tolist(), **how)
    with_batches = ganbench.evaluate(DataLoader(TensorDataset(images, labels), batch_size=32), **how)
    assert values(beside) == values(with_batches)
    assert beside["nn_error"].value < 0.5
    assert ganbench.evaluate(images, **how)["nn_error"].reason == "the images have no labels"


def test_the_reference_and_the_held_out_images_may_be_objects_too(images, expected):
    real, test = datasets.load("digits:train"), datasets.load("digits:test")
    how = {"metrics": METRICS, "cache": False}
    result = ganbench.evaluate(images, real.images, held_out=test.images, **how)
    assert values(result) == expected[1]
    named = ganbench.evaluate(images, "digits:train", **how)
    assert [m.value for m in result.real] == [m.value for m in named.real]  # of the row of real data


def test_a_number_of_images_is_drawn_under_the_seed(images):
    one = ganbench.evaluate(images, num=50, seed=3, **HOW)
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(3))[:50].sort().values
    assert one.fake["drawn"] == 50
    assert one["ms_ssim_all"].n_fake == 50
    assert one["fd_pixels"].value == ganbench.evaluate(images[rows], **HOW)["fd_pixels"].value
    first = ganbench.evaluate(list(images.split(30)), num=50, **HOW)
    assert first["fd_pixels"].value == ganbench.evaluate(images[:50], **HOW)["fd_pixels"].value


# --- Models ---


def test_a_gan_has_what_its_checkpoint_has(tmp_path):
    path = save_tiny(tmp_path / "tiny.safetensors")
    gan, _ = checkpoint.load(path)
    metrics = {"reference": "digits:train", "metrics": ["fd_pixels", "ppl_pixels"], "num": 60, "cache": False}
    of_file = ganbench.evaluate(ckpt=path, **metrics)
    of_object = ganbench.evaluate(gan, **metrics)
    assert values(of_object) == values(of_file)
    assert {m.metric for m in of_object.measurements if m.value is not None} == {"fd_pixels", "ppl_pixels"}
    with torch.no_grad():
        next(gan.parameters()).add_(1.0)
    assert ganbench.evaluate(gan, **metrics).fake["checkpoint_sha256"] != of_object.fake["checkpoint_sha256"]


class Network(nn.Module):
    """A generator of somebody else: floats in [0, 1], with dropout in training alone."""

    def __init__(self):
        super().__init__()
        self.linear, self.drop = nn.Linear(16, 64), nn.Dropout(0.5)

    def forward(self, z, y=None):
        h = self.drop(self.linear(z)) + (0 if y is None else y[:, None] / 10)
        return torch.sigmoid(h).view(-1, 1, 8, 8)


def test_a_network_is_called_in_evaluation_mode_with_its_prior():
    torch.manual_seed(0)
    network = Network().train()
    how = {"reference": "digits:train", "metrics": ["fd_pixels"], "cache": False}
    result = ganbench.evaluate(network, num=70, latent=16, value_range=(0, 1), **how)
    assert network.training
    z = torch.randn(70, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = network.eval()(z)
    assert result["fd_pixels"].value == ganbench.evaluate(x, value_range=(0, 1), **how)["fd_pixels"].value
    assert result.fake["latent"] == [16]
    labelled = ganbench.evaluate(network, num=70, latent=(16,), classes=10, prior="uniform", value_range=(0, 1), **how)
    assert labelled.fake["classes"] == 10
    assert labelled.fake["labels"] is True
    assert labelled["fd_pixels"].value != result["fd_pixels"].value


# --- Batch by batch ---


def accumulated(batches, labels=None, **how):
    made = ganbench.Accumulator(**how)
    for i, batch in enumerate(batches):
        made.update(batch, None if labels is None else labels[i])
    return made


@pytest.mark.parametrize("size", [1, 50, 200])
def test_batches_of_any_size_have_the_value_of_the_whole(size, images, expected):
    """Also by an extractor whose batch is no multiple of these, and after a look in between."""
    made = ganbench.Accumulator(batch_size=64, **HOW)
    for index, batch in enumerate(images.split(size)):
        made.update(batch.permute(0, 2, 3, 1).numpy() if index else batch)
        if index == 1:
            made.compute()
    assert len(made) == len(images)
    whole = ganbench.evaluate(images, batch_size=64, **HOW)
    assert values(made.compute()) == values(whole) == values(made.compute())
    made.reset()
    made.update(images[:40])
    assert values(made.compute()) == values(ganbench.evaluate(images[:40], batch_size=64, **HOW))


def test_classes_and_smaller_sizes_are_measured_as_of_the_whole(images, labels):
    how = {"reference": "digits:train", "cache": False, "metrics": ["nn_error", "discriminability_mnist-cnn"]}
    made = accumulated(images.split(50), labels.split(50), **how)
    whole = ganbench.evaluate(images, labels=labels, **how)
    assert values(made.compute()) == values(whole)
    assert any("@4" in name for name in values(whole))


def test_two_accumulators_become_one(images, expected):
    one, other = (accumulated(part.split(30), **HOW) for part in (images[:70], images[70:]))
    one.merge(other)
    wanted = expected[1]
    for metric, (value, error) in values(one.compute()).items():
        assert value == pytest.approx(wanted[metric][0], rel=1e-5)
        assert error == pytest.approx(wanted[metric][1], rel=1e-5)
    assert len(other) == 50
    empty = ganbench.Accumulator(**HOW)
    empty.merge(other)
    assert values(empty.compute()) == values(other.compute())
    with pytest.raises(UserError, match="with the same metrics"):
        one.merge(ganbench.Accumulator(["fd_pixels"], "digits:train", cache=False))


def test_features_are_kept_and_pixels_only_if_a_metric_looks_at_them(images):
    made = accumulated([images], reference="digits:train", metrics=["fd_pixels"], cache=False)
    assert made.of.pixels == []
    for _ in range(3):
        made.compute()
    kept = len(made.of.store._memory) + len(made.of.store._kept)
    made.compute()
    assert len(made.of.store._memory) + len(made.of.store._kept) == kept, "each look would take more memory"


@pytest.mark.parametrize(
    ("do", "words"),
    [
        (lambda a, x: a.update(x.float()), "the batch holds floats: say their range"),
        (lambda a, x: (a.update(x), a.update(x[..., :4])), "the images are (1, 8, 4), and were (1, 8, 8) before"),
        (lambda a, x: (a.update(x), a.update(x, [0] * len(x))), "give labels with all batches, or with none"),
        (lambda a, x: (a.update(x, [0] * len(x)), a.update(x)), "give labels with all batches, or with none"),
        (lambda a, x: a.update(x, [0]), "the labels of the batch must be"),
        (lambda a, x: (a.update(x[:1]), a.compute()), "1 images have come"),
        (lambda a, x: a.compute(), "0 images have come"),
        (lambda a, x: ganbench.Accumulator(["ppl_pixels"], "digits:train"), "'ppl_pixels' is measured of a model"),
    ],
)
def test_a_mistake_in_a_loop_is_one_line(do, words, images):
    with pytest.raises(UserError) as error:
        do(ganbench.Accumulator(**HOW), images)
    assert words in str(error.value)


TOGETHER = """
import sys, torch, torch.distributed as dist
import ganbench
from ganbench.data import datasets
torch.set_num_threads(1)
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
x = datasets.load("digits:test").images
made = ganbench.Accumulator(["fd_pixels", "ms_ssim_all"], reference="digits:train", cache=False)
for batch in (x[:70] if rank == 0 else x[70:120]).split(30):
    made.update(batch)
result = made.compute()
print(*(m.value for m in result.measurements), result["fd_pixels"].n_fake, flush=True)
dist.barrier()  # a process that leaves early breaks the connections of the other one
dist.destroy_process_group()
"""


def test_two_processes_measure_the_images_of_both(images, expected, tmp_path):
    running = [
        subprocess.Popen([sys.executable, "-c", TOGETHER, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE,
                         text=True)
        for rank in (0, 1)
    ]
    said = [process.communicate(timeout=120)[0].split() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert said[0] == said[1]
    wanted = expected[1]
    assert float(said[0][0]) == pytest.approx(wanted["fd_pixels"][0], rel=1e-6)
    assert float(said[0][1]) == pytest.approx(wanted["ms_ssim_all"][0], rel=1e-6)
    assert said[0][2] == "120"


# --- The result ---


def test_a_result_can_be_asked_and_shown(images):
    result = ganbench.evaluate(images, **HOW)
    m = result["fd_pixels"]
    assert m.interval == (m.value - 1.959964 * m.error, m.value + 1.959964 * m.error)
    assert list(result.to_frame()["metric"]) == METRICS
    assert str(result).startswith("| metric ")
    page = result._repr_html_()
    assert page.count("<tr>") == 1 + len(METRICS)
    with pytest.raises(KeyError, match="fid: measured were fd_pixels, precision_pixels, ms_ssim_all"):
        result["fid"]


def test_a_page_escapes_what_somebody_else_wrote(images):
    result = ganbench.evaluate(images, **HOW)
    object.__setattr__(result.measurements[0], "warnings", ("<script>",))
    assert "&lt;script&gt;" in result._repr_html_()
    assert "<script>" not in result._repr_html_()


def test_a_deviation_over_splits_is_no_standard_error():
    from ganbench.reporting.results import Measurement

    splits = {"value": 0.1, "kind": "standard deviation", "over": "10 splits"}
    assert Measurement("score", "score/1", "higher", 5.0, splits).interval is None
    assert Measurement("score", "score/1", "higher").interval is None


def test_stored_results_are_a_frame(place):
    from ganbench.reporting import results

    made = ganbench.evaluate(datasets.load("digits:test").images[:50], **HOW)
    results.save(made, place / "results/runs/a/seed0/result.json")
    frame = ganbench.load_results("results")
    assert list(frame["metric"]) == METRICS
    assert frame["value"].tolist() == [m.value for m in made.measurements]


# --- Mistakes ---


X = torch.zeros(4, 1, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "give either images= or ckpt=."),
        ({"images": X, "ckpt": "a.safetensors"}, "give either images= or ckpt=."),
        ({"images": X}, "images holds floats: say their range, as value_range=(0, 1)"),
        ({"images": X + 2, "value_range": (0, 1)}, "images: floats of 2 to 2 are not in value_range=(0, 1)"),
        ({"images": X * float("nan"), "value_range": (0, 1)}, "images: the images contain NaN"),
        ({"images": X, "value_range": (1, 0)}, "the first number must be less than the second"),
        ({"images": X.byte(), "value_range": (0, 1)}, "images is uint8, whose range is known"),
        ({"images": X.int()}, "images: images must be uint8 or floats, not torch.int32"),
        ({"images": X.byte().view(4, 2, 4, 8)}, "with C = 1 or 3, not (4, 2, 4, 8)"),
        ({"images": X.byte()[:0]}, "images holds no images"),
        ({"images": 3}, "images must be a path, a tensor, an array"),
        ({"images": [X.byte(), "b"]}, "images, batch 1 must be a tensor or an array of images"),
        ({"images": [X.byte(), X.byte()[..., :4]]}, "images of (1, 8, 8) and of (1, 8, 4)"),
        ({"images": X.byte(), "labels": [0, 1]}, "the labels of images must be 4 numbers of 0 or more"),
        ({"images": X.byte(), "labels": [0.5] * 4}, "the labels of images must be whole numbers"),
        ({"images": X.byte(), "num": 5}, "'images' has 4 images, fewer than the 5 asked for: lower num= or give more"),
        ({"images": lambda n, first: X.byte()}, "images is a function, which makes any number of images: give num="),
        ({"images": lambda n, first: X.byte(), "num": 3}, "was asked for 3 images in all, and returned 4"),
        ({"images": Network(), "num": 9}, "images: give the shape of a latent, as latent=128"),
        ({"images": "nowhere"}, "cannot read images from 'nowhere'"),
        ({"images": X.byte(), "reference": Network()}, "reference: a generator makes no reference"),
        ({"images": X.byte(), "metrics": "fdd_pixels"}, "unknown metric 'fdd_pixels'"),
        ({"images": X.byte(), "extractor": "inception"}, "inception"),
        ({"reference": "digits:train", "metrics": "fd_pixels"}, "give ckpt= or images="),
        ({"images": X.byte(), "model": "dcgan"}, "model='dcgan' needs ckpt="),
        ({"images": "samples", "labels": [1]}, "labels= of files must be the path of a CSV, not list"),
    ],
)
def test_a_mistake_is_one_line_in_the_words_of_python(arguments, words):
    arguments = {"reference": "digits:train", "metrics": METRICS, "cache": False, **arguments} if arguments else {}
    with pytest.raises(UserError) as error:
        ganbench.evaluate(**arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert "--" not in str(error.value)


def test_an_error_of_somebody_elses_function_is_passed_on():
    def broken(n, first):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        ganbench.evaluate(broken, num=10, **HOW)


def test_the_page_says_what_happens(place):
    done = doctest.testfile(str(ROOT / "docs/python.md"), module_relative=False)
    assert done.attempted >= 9
    assert done.failed == 0


# --- Imports ---


def test_importing_is_light_and_names_are_there():
    code = (
        "import sys, time; t = time.perf_counter(); import ganbench; took = time.perf_counter() - t\n"
        "assert not {'torch', 'numpy', 'pandas'} & set(sys.modules); assert took < 1, took\n"
        "assert {'evaluate', 'load_results', 'UserError'} <= set(dir(ganbench)); ganbench.UserError\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'evalute'"):
        ganbench.evalute  # noqa: B018
