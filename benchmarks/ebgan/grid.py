"""Write a sample of EBGAN's grid search on MNIST as recipes. `python -m benchmarks.ebgan.grid FOLDER [--each 24]`

Zhao, Mathieu, LeCun 2017, arXiv:1609.03126, Table 1: 512 configurations of EBGAN, the same of EBGAN-PT, and 6,144 of a
GAN. A seed draws `--each` of EBGAN, which EBGAN-PT shares, and as many of the GAN. The group of all is a launcher's:

    python -m benchmarks.ebgan.grid grid
    ganbench reproduce grid/ebgan-grid.toml --launcher local --out grid/results
    python -m benchmarks.ebgan.grid grid --histogram grid/results   # Figure 3

The same seed draws the same configurations. A name holds the number of its configuration in the whole grid.
"""

import argparse
import itertools
import random
import sys
from pathlib import Path
from typing import Any

SIZES = {
    "g_layers": (2, 3, 4, 5), "d_layers": (2, 3, 4, 5), "g_width": (400, 800, 1600, 3200),
    "d_width": (128, 256, 512, 1024), "dropout": (0.0, 0.5),
}
OPTIMISERS = {"d_optimizer": ("adam", "sgd"), "g_optimizer": ("adam", "sgd"), "lr": (0.01, 0.001, 0.0001)}
METRIC = "modified_score_mnist-cnn"
PAPER = "Zhao, Mathieu, LeCun 2017, arXiv:1609.03126"
BINS = 20

RECIPE = """name = "{name}"
version = 1
title = "Configuration {number} of the grid search of EBGAN: {kind}"
paper = "{paper}"

deviations = [
  "{steps:,} steps; the length of the paper's runs is not known.",
  "Images are 28 x 28; the paper pads them to 32 x 32.",
]

[model]
name = "{model}"
args = {{ {args} }}

[train]
data = "mnist:train"
batch_size = 100
steps = {steps}

[evaluate]
metrics = ["{metric}", "score_mnist-cnn"]
num = 5000
reference = "mnist:train"
real = "mnist:test"

[watch]
on_trouble = "go on"  # a configuration that fails is a result too
"""


def grid(values: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    """All configurations, in the order of the table."""
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def sample(each: int, seed: int) -> dict[str, tuple[str, str, int, dict[str, Any]]]:
    """Draw the configurations: kind, model, number in the grid and arguments, by the recipe's name."""
    of_ebgan, of_gan = grid(SIZES), grid(SIZES | OPTIMISERS)
    draw = random.Random(seed)
    shared = sorted(draw.sample(range(len(of_ebgan)), each))
    own = sorted(draw.sample(range(len(of_gan)), each))
    found = {}
    for i in shared:
        found[f"ebgan-mnist-grid-{i:04d}"] = ("EBGAN", "ebgan", i, of_ebgan[i])
        found[f"ebgan-mnist-pt-grid-{i:04d}"] = ("EBGAN-PT", "ebgan", i, of_ebgan[i] | {"pt_weight": 0.1})
    return found | {f"ebgan-gan-mnist-grid-{i:04d}": ("GAN", "ebgan-gan", i, of_gan[i]) for i in own}


def write(folder: Path, each: int, seed: int, steps: int) -> Path:
    """Write the recipes and their group. Returns the group's file."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = sample(each, seed)
    for name, (kind, model, number, args) in chosen.items():
        text = ", ".join(f'{k} = "{v}"' if isinstance(v, str) else f"{k} = {v}" for k, v in args.items())
        (folder / f"{name}.toml").write_text(
            RECIPE.format(name=name, kind=kind, model=model, number=number, args=text, steps=steps, metric=METRIC,
                          paper=PAPER), encoding="utf-8",
        )
    group = folder / "ebgan-grid.toml"
    names = "".join(f'  "{name}.toml",\n' for name in chosen)
    group.write_text(
        f'name = "ebgan-grid"\ntitle = "A sample of the grid search of EBGAN on MNIST, {steps:,} steps"\n'
        f'paper = "{PAPER}, Table 1 and Figure 3"\nrecipes = [\n{names}]\nmetrics = ["{METRIC}"]\n', encoding="utf-8",
    )
    return group


def scores(results: Path, each: int, seed: int) -> dict[str, list[float]]:
    """The modified scores of the configurations that were run, by kind."""
    from ganbench.reporting.results import load

    found: dict[str, list[float]] = {}
    for name, (kind, *_) in sample(each, seed).items():
        for file in sorted((results / "runs" / name).glob("*/result.json")):
            values = [m.value for m in load(file).measurements if m.metric == METRIC and m.value is not None]
            found.setdefault(kind, []).extend(values)
    return found


def main(argv: list[str]) -> int:
    """Write the recipes, or draw the histogram of their results. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ebgan.grid", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the recipes go, and the picture")
    parser.add_argument("--each", type=int, default=24, help="configurations of each kind, at most 512 (24)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    parser.add_argument("--steps", type=int, default=1200, help="length of each run (1200: two epochs)")
    parser.add_argument("--histogram", type=Path, metavar="RESULTS", help="draw FOLDER/ebgan-grid.png from them")
    options = parser.parse_args(argv)
    if not 1 <= options.each <= len(grid(SIZES)) or options.steps < 1:
        parser.error(f"--each must be between 1 and {len(grid(SIZES))}, and --steps at least 1")
    if options.histogram is None:
        print(write(options.folder, options.each, options.seed, options.steps))
        return 0
    from ganbench.base.errors import UserError
    from ganbench.reporting.figures import histogram

    try:
        found = scores(options.histogram, options.each, options.seed)
        if not found:
            parser.error(f"no results of these configurations in {options.histogram / 'runs'}")
        options.folder.mkdir(parents=True, exist_ok=True)
        picture = options.folder / "ebgan-grid.png"
        histogram(found, picture, "modified score I' (mnist-cnn), nats", "share of configurations", BINS)
    except UserError as error:
        parser.error(str(error))
    for kind, values in found.items():
        print(f"{kind}: {len(values)} configurations, mean {sum(values) / len(values):.3f}, best {max(values):.3f}")
    print(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
