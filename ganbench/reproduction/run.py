"""Reproduction: a recipe is trained, its checkpoint evaluated, the result stored and the table rebuilt.

A run lies in `<out>/runs/<recipe>/<run>/`; whatever of it is there already is not done again.
"""

import dataclasses
import functools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ganbench.base import distributed, registry
from ganbench.base.device import describe_device, peak_memory
from ganbench.base.errors import UserError
from ganbench.base.progress import Reporter
from ganbench.data import datasets, resizing
from ganbench.data.datasets import Dataset
from ganbench.data.images import save_png
from ganbench.data.sources import Options, from_dataset, generate
from ganbench.evaluation import measure
from ganbench.evaluation.feature_store import FeatureStore
from ganbench.evaluation.inputs import cache_folder, describe, make_extractors, needed_extractors
from ganbench.evaluation.subject import own_extractors, under_test
from ganbench.features import FeatureExtractor
from ganbench.gan import GAN, checkpoint
from ganbench.recipes import SYNTHETIC, Group, Recipe
from ganbench.reporting import results, tables
from ganbench.reporting.results import Result
from ganbench.training.loop import TrainingFailed, Watch, sample_grid, train
from ganbench.training.run_folder import CHECKPOINT

GRID = "samples.png"


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and its result."""

    folder: Path
    result: Result


@dataclass(frozen=True)
class Failure:
    """A run that came to nothing. kind: 'error' is one that the user can mend."""

    recipe: str
    seed: int
    reason: str
    kind: str

    def __str__(self) -> str:
        whose = "" if self.reason.startswith("recipe ") else f"{self.recipe} seed {self.seed}: "
        return f"{self.kind}: {whose}{self.reason}"


def run_folder(out: Path, recipe: Recipe, seed: int, overrides: dict[str, Any]) -> Path:
    """`seed0`, or with overrides `seed0-steps=100`: an overridden run never lies where the recipe's own does."""
    changes = "".join(
        f"-{key}={''.join(c if c.isalnum() else '_' for c in str(value))}" for key, value in sorted(overrides.items())
    )
    return out / "runs" / recipe.name / f"seed{seed}{changes}"


def already_done(folder: Path, recipe: Recipe, overrides: dict[str, Any], fingerprint: str | None = None) -> bool:
    """True if the run in that folder is finished: of this recipe, these overrides and, if given, these images."""
    if not (folder / results.RESULT).exists() or not (folder / CHECKPOINT).exists():
        return False
    old = results.load(folder / results.RESULT)
    same_recipe = same_as(recipe, overrides).items() <= {"budget": None, **(old.recipe or {})}.items()
    same_data = fingerprint in (None, (old.training or {}).get("data_fingerprint"))
    return same_recipe and old.overrides == overrides and same_data


def same_as(recipe: Recipe, overrides: dict[str, Any]) -> dict[str, Any]:
    """What a result says about its recipe: two that agree in it measured the same thing."""
    budget = overrides.get("budget")
    return {"name": recipe.name, "version": recipe.version, "sha256": recipe.sha256,
            **({"budget": recipe.budget[budget].changes()} if budget else {})}


def with_synthetic_data(recipe: Recipe) -> Recipe:
    """The recipe with synthetic images of its model's shape and classes, where it asks for such without saying more."""
    if recipe.train.data != SYNTHETIC:
        return recipe
    gan = checkpoint.make_model(recipe.model.name, recipe.model.args, f"recipe '{recipe.name}'")
    shape = "x".join(map(str, gan.image_shape))
    return recipe.replace(data=f"{SYNTHETIC}:{shape}:{gan.num_classes or 10}")


def watched_metric(recipe: Recipe) -> list[str]:
    """The metric that is measured while it trains, or none."""
    return [recipe.watch.metric] if recipe.watch.metric else []


def reproduce(
    recipe: Recipe,
    overrides: dict[str, Any],
    seed: int,
    device: torch.device,
    out: Path,
    fresh: bool,
    reporter: Reporter,
    board: bool = False,
    weights: dict[str, Path] | None = None,
) -> Run:
    """Train (or go on with) one seed of a recipe, evaluate it, and store `result.json` and a sample grid in its folder.

    recipe: with the `overrides` of the command line in it. board: a TensorBoard log too. weights: files of extractors.
    Raises UserError for whatever the user has to mend, and TrainingFailed.
    """
    folder = run_folder(out, recipe, seed, overrides)
    recipe = recipe.of_seed(seed)
    try:  # everything that can be wrong is looked at before hours are spent on training
        registry.require("models", recipe.model.name)
        recipe = with_synthetic_data(recipe)
        requests = measure.parse_metrics(recipe.evaluate.metrics, "inception-v3")
        watched = measure.parse_metrics(watched_metric(recipe), "inception-v3")
        extractors = make_extractors(requests + watched, weights or {})
        options = Options(resize=resizing.parse(recipe.train.resize) if recipe.train.resize else None)
        read = functools.cache(lambda spec: datasets.load(spec, resize=options.resize))  # once, of what is named twice
        data = read(recipe.train.data)
        reference = from_dataset(read(recipe.evaluate.reference), options)
        # A folder of the user's without splits has no real images to spare: its table has no row of real data.
        held_out = None if data.whole_split == "all" else from_dataset(read(recipe.evaluate.real), options)
    except UserError as error:
        raise UserError(f"recipe '{recipe.name}': {error}") from error
    commit, dirty = results.git_commit()

    done = folder / results.RESULT
    if not fresh and distributed.decide(already_done(folder, recipe, overrides, data.fingerprint)):
        reporter.say(f"{recipe.name} seed {seed}: already done, in {folder} (--fresh does it again)")
        return Run(folder, results.load(done))

    with reporter.task(f"train {recipe.name} seed {seed}", recipe.train.steps) as task:
        trained = train(
            recipe, data, folder, seed, device, commit + ("+" if dirty else ""), task.at, fresh, reporter.say,
            watch(recipe, watched, extractors, data, seed, device), board,
        )
    gan, meta = checkpoint.load(trained.checkpoint)
    if distributed.rank() == 0:
        save_png(sample_grid(gan.to(device)), folder / GRID)

    began = time.monotonic()
    with reporter.task(f"sample {recipe.evaluate.num:,}", recipe.evaluate.num) as task:
        fake = generate(
            gan, recipe.evaluate.num, seed, device, advance=task.advance, first_class=data.first_class
        )
    fake.origin.update(model=meta.model, checkpoint_sha256=meta.sha256)
    own = own_extractors(gan, meta.sha256, {r.extractor for r in requests if r.extractor})
    store = FeatureStore(extractors | own, device, folder=cache_folder(), progress=reporter.progress, say=reporter.say)
    model = under_test(gan, meta.model, meta.args, device)
    measurements, real = measure.evaluate(requests, store, fake, reference, held_out, model=model)
    result = Result(
        fake=describe(fake), reference=describe(reference), held_out=describe(held_out) if held_out else None,
        measurements=measurements, real=real, overrides=overrides, seed=seed,
        recipe=same_as(recipe, overrides),
        training={"model": dataclasses.asdict(recipe.model), "steps": trained.steps,
                  "batch_size": recipe.train.batch_size, "seconds": round(trained.seconds, 1),
                  "data": recipe.train.data, "data_fingerprint": data.fingerprint, "commit": meta.commit,
                  "ema_decay": recipe.train.ema_decay, "precision": recipe.train.precision,
                  "processes": distributed.world_size(), "warnings": list(trained.warnings),
                  "best": trained.best and {"step": trained.best[0], recipe.watch.metric: trained.best[1]}},
        seconds=round(time.monotonic() - began, 1), peak_memory_bytes=peak_memory(device),
        environment=results.environment(describe_device(device)), created=results.now(),
    )
    if distributed.rank() == 0:
        results.save(result, done)
    return Run(folder, result)


def watch(
    recipe: Recipe, requests: list[measure.Request], extractors: dict[str, FeatureExtractor], data: Dataset,
    seed: int, device: torch.device,
) -> Watch | None:
    """The metric that the recipe's [watch] names, of samples against the training images. None where it names none.

    Raises UserError for a metric that has no best, or takes more than samples and training images.
    """
    if not requests:
        return None
    (request,) = requests
    if request.protocol.direction == "none":
        raise UserError(
            f"recipe '{recipe.name}', [watch]: '{request.name}' has no better or worse: name another metric."
        )
    reference = from_dataset(data)

    def score(gan: GAN) -> float:
        fake = generate(gan, recipe.watch.num, seed, device, first_class=data.first_class)
        store = FeatureStore(extractors, device, folder=cache_folder())
        (measurement, *_), _ = measure.evaluate([request], store, fake, reference, None)
        if measurement.value is None:
            raise UserError(
                f"recipe '{recipe.name}', [watch]: {request.name} cannot be measured: {measurement.reason}."
            )
        return measurement.value

    return Watch(request.name, score, request.protocol.direction == "higher")


@dataclass(frozen=True)
class Plan:
    """What is to be reproduced: recipes as they are in their files, by what a user calls them, and what is changed."""

    recipes: dict[str, Recipe]
    overrides: dict[str, Any]
    seeds: list[int]
    out: Path
    fresh: bool = False
    board: bool = False
    weights: dict[str, Path] = field(default_factory=dict)

    def weights_of(self, recipe: Recipe) -> dict[str, Path]:
        """Those of the given weights that the recipe's metrics look through."""
        if not self.weights:
            return {}
        spec = recipe.override(self.overrides)
        used = needed_extractors(
            measure.parse_metrics([*spec.evaluate.metrics, *watched_metric(spec)], "inception-v3")
        )
        return {name: file for name, file in self.weights.items() if name in used}

    def require_weights_used(self) -> None:
        """Raise UserError for weights that no recipe has a use for."""
        used = {name for recipe in self.recipes.values() for name in self.weights_of(recipe)}
        for name in self.weights:
            if name not in used:
                raise UserError(f"--weights {name}=...: no metric of {', '.join(self.recipes)} uses that extractor.")

    def folder(self, recipe: Recipe, seed: int) -> Path:
        """Where a run of it lies."""
        return run_folder(self.out, recipe, seed, self.overrides)

    def to_do(self) -> list[tuple[str, int]]:
        """Recipe and seed of the runs that are not done; of those on a folder of images, which may change, all."""
        everything = self.fresh or str(self.overrides.get("data")).startswith("folder:")
        return [
            (name, seed) for name, recipe in self.recipes.items() for seed in self.seeds
            if everything or not already_done(self.folder(recipe, seed), recipe, self.overrides)
        ]

    def run(self, device: torch.device, reporter: Reporter) -> "Outcome":
        """Each recipe and seed in turn; one that fails does not keep the others from it.

        Raises UserError where no run can be made, by the user's mistake.
        """
        runs: dict[str, list[Run]] = {name: [] for name in self.recipes}
        failures: list[Failure] = []
        for name, recipe in self.recipes.items():
            for seed in self.seeds:
                spec = recipe.override(self.overrides)
                try:
                    run = reproduce(
                        spec, self.overrides, seed, device, self.out, self.fresh, reporter, self.board,
                        self.weights_of(recipe),
                    )
                    runs[name].append(run)
                except (UserError, TrainingFailed) as error:
                    kind = "error" if isinstance(error, UserError) else "training failed"
                    failures.append(Failure(recipe.name, seed, str(error), kind))
        if not any(runs.values()) and all(f.kind == "error" for f in failures):
            more = len(failures) - 1
            others = f" {more} other run{'s' * (more > 1)} cannot be made either." if more else ""
            raise UserError(failures[0].reason + others)
        return Outcome(runs, failures)

    def collect(self, failed: dict[tuple[str, int], str]) -> "Outcome":
        """The runs that jobs have made, but for those that failed, with the reasons."""
        runs = {
            name: [Run(folder, results.load(folder / results.RESULT)) for seed in self.seeds
                   if (name, seed) not in failed and (folder := self.folder(recipe, seed))]
            for name, recipe in self.recipes.items()
        }
        failures = [Failure(self.recipes[name].name, seed, why, "job failed") for (name, seed), why in failed.items()]
        return Outcome(runs, failures)

    def write_tables(self, group: Group | None, outcome: "Outcome") -> list[Path]:
        """Rebuild the pages of the recipes that ran, and of the group: where nothing but a short budget was changed."""
        if self.overrides not in ({}, tables.SHORT):
            return []
        paths = [write_table(recipe, self.out) for name, recipe in self.recipes.items() if outcome.runs[name]]
        return [*paths, write_group_table(group, list(self.recipes.values()), self.out)] if group and paths else paths


@dataclass(frozen=True)
class Outcome:
    """The runs of a plan, by what the user calls their recipe, and those that came to nothing."""

    runs: dict[str, list[Run]]
    failures: list[Failure]


def write_table(recipe: Recipe, out: Path) -> Path:
    """Rebuild `<out>/tables/<recipe>.md` from the stored results."""
    return tables.write(recipe, [r for _, r in results.load_all(out / "runs" / recipe.name)], out / "tables")


def write_group_table(group: Group, recipes: list[Recipe], out: Path) -> Path:
    """Rebuild `<out>/tables/<group>.md` from the stored results of its recipes."""
    stored = [(recipe, [r for _, r in results.load_all(out / "runs" / recipe.name)]) for recipe in recipes]
    return tables.write_group(group, stored, out / "tables")
