"""Every `--help` ends with examples, and every example runs: offline, in a folder that has what it names."""

import shlex
import shutil
from dataclasses import replace

import click
import numpy as np
import pytest
import torch
from support import save_tiny, write_png, write_recipe

from ganbench import cli, recipes
from ganbench.base import registry
from ganbench.base.progress import Reporter
from ganbench.data.datasets import load
from ganbench.evaluation import statistics
from ganbench.evaluation.shards import Shard
from ganbench.evaluation.statistics import Request
from ganbench.gan import checkpoint
from ganbench.metrics import Inputs, Side, discriminability
from ganbench.reporting import results
from ganbench.reporting.results import Measurement, Result

COMMANDS = {"": cli.main, **cli.main.commands}


def examples(name):
    """The command lines at the foot of a command's help."""
    return [line.strip() for line in COMMANDS[name].epilog.splitlines() if line.strip().startswith("ganbench ")]


EVERY = [(name, line) for name in COMMANDS for line in examples(name)]
# These need a data set or weights that are downloaded; without a network they end by saying so.
DOWNLOADS = {
    "ganbench evaluate --images samples/ --reference cifar10:train",
    "ganbench statistics folder:faces --out faces.npz",
    "ganbench train-classifier fashion-mnist --out fashion.safetensors",
}


def acgan_result():
    """A result of the recipe dcgan-digits with all measurements of AC-GAN's analysis."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 5
    answers = torch.nn.functional.one_hot(labels, 5)

    def logits(weight):
        return torch.randn(80, 5, generator=generator) + weight * answers

    def side():
        images = torch.randint(256, (80, 1, 16, 16), generator=generator, dtype=torch.uint8)
        return Side(images, labels, None, logits(2), {8: logits(1), 4: logits(0.5)})

    inputs = Inputs(side(), side(), None, generator)
    measurements = [
        Measurement(p.stem + ("_mnist-cnn" if p.needs_extractor else "") + value.suffix, f"{p.stem}/1: {p.summary}",
                    p.direction, value.value, vars(value.uncertainty), details=value.details)
        for p in discriminability.PROTOCOLS for value in p.compute(inputs)
    ]
    version = recipes.find("dcgan-digits").version
    return Result({}, {}, measurements, recipe={"name": "dcgan-digits", "version": version}, created="2024-01-01")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with everything that the examples name."""
    folder = tmp_path_factory.mktemp("prepared")
    save_tiny(folder / "model.safetensors")
    infogan = registry.load("models", "infogan")(width=4)
    meta = checkpoint.Checkpoint("infogan", {"width": 4})
    checkpoint.save(folder / "infogan.safetensors", infogan.state_dict(), meta)
    ylg_args = {"g_width": 32, "d_width": 32, "latent_dim": 8, "attention": 8, "heads": 4}
    ylg = registry.load("models", "ylg")(**ylg_args)
    checkpoint.save(folder / "ylg.safetensors", ylg.state_dict(), checkpoint.Checkpoint("ylg", ylg_args))
    write_recipe(folder, name="my-recipe")
    digits = load("digits:test")
    for i in range(160):
        image = digits.images[i, 0].numpy()
        write_png(folder / "samples" / f"{i:03}.png", image)
        write_png(folder / "shapes" / str(int(digits.labels[i])) / f"{i:03}.png", image)
    for i in range(8):
        write_png(folder / "photos" / str(i) / f"{i}.png", np.full((32, 32, 3), 30 * i, np.uint8))
    for i in range(3):
        write_png(folder / "faces" / f"{i}.png", np.full((8, 8, 3), 80 * i, np.uint8))
    result = acgan_result()
    names = ("baseline", "result", "old", "new", "old0", "old1", "new0", "new1", "seed0", "seed1", "seed2")
    for seed, name in enumerate(names):
        results.save(replace(result, seed=seed), folder / f"{name}.json")
    names = ("truncation_fd_pixels", "truncation_fd_pixels@1.0", "truncation_fd_pixels@0.5")
    curve = [Measurement(name, "truncation_fd/1: ...", "lower", 20.0) for name in names]
    results.save(replace(result, measurements=[*result.measurements, *curve]), folder / "result.json")
    for run in ("dcgan-digits", "acgan-mnist"):
        results.save(result, folder / "results" / "runs" / run / "seed0" / "result.json")
    for number in (1, 2):
        request = Request("digits:test", folder / "parts" / f"part-{number}.npz", "pixels", shard=Shard(number, 2))
        statistics.run(request, Reporter(quiet=True))
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_a_help_ends_with_two_or_three_examples_of_its_own_command(name):
    assert 2 <= len(examples(name)) <= 3
    for line in examples(name):
        assert shlex.split(line)[1] in ([name] if name else cli.main.commands)


@pytest.mark.parametrize("width", [80, 110])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_help_fits_the_terminal_and_its_examples_stay_whole(name, width):
    """At the width that click takes of a terminal of that many columns, and at most."""
    context = click.Context(COMMANDS[name], info_name=name or "ganbench", terminal_width=width, max_content_width=width)
    lines = COMMANDS[name].get_help(context).splitlines()
    assert max(map(len, lines)) <= width
    foot = lines[lines.index("  Examples:") :]
    assert [line.strip() for line in foot[2::2]] == examples(name)
    assert all(line.startswith("    # ") for line in foot[1::2])


@pytest.mark.parametrize(("name", "line"), EVERY, ids=[line for _, line in EVERY])
def test_an_example_runs(ganbench, place, prepared, name, line, monkeypatch):
    steps = next(p for p in cli.main.commands["invert"].params if p.name == "steps")
    monkeypatch.setattr(steps, "default", 2)  # of a thousand
    shutil.copytree(prepared, place, dirs_exist_ok=True)
    program, *args = shlex.split(line)
    assert program == "ganbench"
    done = ganbench(*args)
    if line in DOWNLOADS:
        assert (done.code, done.out) == (2, "")
        assert "offline" in done.err
        return
    assert done.code == 0, done.err
    assert done.out
    for option in ("--out", "--grid", "--junit"):
        assert option not in args or (place / args[args.index(option) + 1]).exists()


def test_the_examples_that_download_are_examples():
    assert {line for _, line in EVERY} >= DOWNLOADS
