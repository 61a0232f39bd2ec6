"""One run: a recipe is trained with one seed, its checkpoint is evaluated, and the result is stored.

A run lies in `<out>/runs/<recipe>/<run>/`. A run that is done is not made again, and one that was interrupted goes on.
Several recipes and seeds together are a `Plan` (plan.py).
"""

import dataclasses
import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ganbench.base import distributed, registry
from ganbench.base.device import describe_device, peak_memory
from ganbench.base.errors import UserError
from ganbench.base.files import sha256_of
from ganbench.base.progress import Reporter
from ganbench.data import datasets, resizing
from ganbench.data.datasets import Dataset
from ganbench.data.datasets.decoded import for_training
from ganbench.data.images import save_png
from ganbench.data.label_noise import with_label_noise
from ganbench.data.sources import Options, Samples, from_dataset, generate, named_like
from ganbench.evaluation import measure
from ganbench.evaluation.feature_store import FeatureStore
from ganbench.evaluation.inputs import cache_folder, describe, make_extractors
from ganbench.evaluation.subject import own_extractors, under_test
from ganbench.features import FeatureExtractor
from ganbench.gan import GAN, checkpoint
from ganbench.recipes import SYNTHETIC, Recipe
from ganbench.reporting import results
from ganbench.reporting.results import Result
from ganbench.training.growth import changes, recipe_spans
from ganbench.training.loop import Trained, Watch, new_model, sample_grid, train
from ganbench.training.run_folder import CHECKPOINT

GRID = "samples.png"
DEFAULT_EXTRACTOR = "inception-v3"  # for metrics that a recipe names without one


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, and the result of its evaluation."""

    folder: Path
    result: Result


@dataclass(frozen=True)
class Inputs:
    """The inputs of a run, opened before training: a mistake is found before hours are spent.

    requests: the metrics of the evaluation. watched: the metric of [watch], or none. extractors: for both, by name.
    data: the training images, with the recipe's label noise. clean: the same with their true labels. reference,
    held_out: as the evaluation takes them; held_out is None for a folder without splits, which has no real images to
    spare.
    """

    requests: list[measure.Request]
    watched: list[measure.Request]
    extractors: dict[str, FeatureExtractor]
    data: Dataset
    clean: Dataset
    reference: Samples
    held_out: Samples | None


def make_run(
    recipe: Recipe, overrides: dict[str, Any], seed: int, device: torch.device, out: Path, fresh: bool,
    reporter: Reporter, board: bool = False, weights: dict[str, Path] | None = None,
) -> Run:
    """Train one seed of a recipe, or go on with it, evaluate it, and store `result.json` and a grid of samples.

    recipe: with the overrides applied. fresh: throw an earlier run away. board: log to TensorBoard too.
    weights: files by extractor, instead of the published ones.
    Raises UserError for everything that the user can mend, and TrainingFailed.
    """
    folder = run_folder(out, recipe, seed, overrides)
    recipe = recipe.of_seed(seed)
    try:
        registry.require("models", recipe.model.name)
        recipe = with_synthetic_data(recipe)
        inputs = _open(recipe, weights or {})
    except UserError as error:
        raise UserError(f"recipe '{recipe.name}': {error}") from error
    commit, dirty = results.git_commit()

    done = folder / results.RESULT
    rewrite = False  # the checkpoint, from state.pt
    if not fresh and distributed.decide(already_done(folder, recipe, overrides, inputs.data.fingerprint)):
        if not distributed.decide(is_another_checkpoint(folder)):
            reporter.say(f"{recipe.name} seed {seed}: already done, in {folder} (--fresh does it again)")
            return Run(folder, results.load(done))
        rewrite = True
        reporter.say(
            f"{recipe.name} seed {seed}: {folder / CHECKPOINT} is not the one that {results.RESULT} measured (its "
            "SHA-256 differs): the run goes on from its state, and is measured again"
        )

    if not isinstance(inputs.data.images, torch.Tensor):
        new_model(recipe, inputs.data)  # a misfit is reported before a large set is decoded
    decoded = for_training(inputs.data, reporter.progress, reporter.say)
    grows_at = changes(recipe_spans(recipe))
    with reporter.task(f"train {recipe.name} seed {seed}", recipe.train.steps, grows_at) as task:
        trained = train(
            recipe, decoded, folder, seed, device, commit + ("+" if dirty else ""), task.at, fresh, reporter.say,
            watch(recipe, inputs.watched, inputs.extractors, inputs.clean, seed, device), board, rewrite,
        )
    result = _evaluate(recipe, overrides, seed, device, folder, inputs, trained, reporter)
    if distributed.rank() == 0:
        results.save(result, done)
    return Run(folder, result)


def _open(recipe: Recipe, weights: dict[str, Path]) -> Inputs:
    """Open everything that a run needs. Raises UserError for a name, a file or an image that cannot be used."""
    requests = measure.parse_metrics(recipe.evaluate.metrics, DEFAULT_EXTRACTOR)
    watched = measure.parse_metrics(watched_metric(recipe), DEFAULT_EXTRACTOR)
    extractors, missing = make_extractors(requests + watched, weights)
    for why in missing.values():  # a run without all of its numbers is not begun
        raise UserError(why)
    options = Options(resize=resizing.parse(recipe.train.resize) if recipe.train.resize else None)
    read = functools.cache(lambda spec: datasets.load(spec, resize=options.resize))  # a set named twice is read once
    data = read(recipe.train.data)
    reference = from_dataset(read(recipe.evaluate.reference), options)
    held_out = None if data.whole_split == "all" else from_dataset(read(recipe.evaluate.real), options)
    noisy = with_label_noise(data, recipe.train.label_noise)
    return Inputs(requests, watched, extractors, noisy, data, reference, held_out)


def _evaluate(
    recipe: Recipe, overrides: dict[str, Any], seed: int, device: torch.device, folder: Path, inputs: Inputs,
    trained: Trained, reporter: Reporter,
) -> Result:
    """Evaluate the checkpoint of a run by the recipe's protocol, and draw its grid of samples into the folder."""
    gan, meta = checkpoint.load(trained.checkpoint)
    if distributed.rank() == 0:
        save_png(sample_grid(gan.to(device)), folder / GRID)

    began = time.monotonic()
    data, requests = inputs.data, inputs.requests
    with reporter.task(f"sample {recipe.evaluate.num:,}", recipe.evaluate.num) as task:
        fake = generate(
            gan, recipe.evaluate.num, seed, device, advance=task.advance, first_class=data.first_class
        )
    fake = named_like(fake, inputs.reference, recipe.train.data, recipe.evaluate.reference)
    fake.origin.update(model=meta.model, checkpoint_sha256=meta.sha256)
    own = own_extractors(gan, meta.sha256, {r.extractor for r in requests if r.extractor})
    store = FeatureStore(
        inputs.extractors | own, device, folder=cache_folder(), progress=reporter.progress, say=reporter.say
    )
    model = under_test(gan, meta.model, meta.args, device)
    measurements, real = measure.evaluate(
        requests, store, fake, inputs.reference, inputs.held_out, model=model
    )
    training = {
        "model": dataclasses.asdict(recipe.model),
        "steps": trained.steps,
        "batch_size": recipe.train.batch_size,
        "seconds": round(trained.seconds, 1),
        "data": recipe.train.data,
        "data_fingerprint": data.fingerprint,
        **({"label_noise": dataclasses.asdict(noise)} if (noise := recipe.train.label_noise) else {}),
        "commit": meta.commit,
        "ema_decay": recipe.train.ema_decay,
        "precision": recipe.train.precision,
        "processes": distributed.world_size(),
        "warnings": list(trained.warnings),
        "best": trained.best and {"step": trained.best[0], recipe.watch.metric: trained.best[1]},
    }
    return Result(
        fake=describe(fake),
        reference=describe(inputs.reference),
        held_out=describe(inputs.held_out) if inputs.held_out else None,
        measurements=measurements,
        real=real,
        overrides=overrides,
        seed=seed,
        recipe=same_as(recipe, overrides),
        training=training,
        seconds=round(time.monotonic() - began, 1),
        peak_memory_bytes=peak_memory(device),
        environment=results.environment(describe_device(device)),
        created=results.now(),
    )


def watch(
    recipe: Recipe, requests: list[measure.Request], extractors: dict[str, FeatureExtractor], data: Dataset,
    seed: int, device: torch.device,
) -> Watch | None:
    """Return the metric of the recipe's [watch], of samples against the training images; None if it names none.

    Raises UserError for a metric that has no better or worse; the score that is returned does so for a metric that
    takes more than samples and training images.
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


def watched_metric(recipe: Recipe) -> list[str]:
    """Return the name of the metric that is measured during training, or nothing."""
    return [recipe.watch.metric] if recipe.watch.metric else []


def run_folder(out: Path, recipe: Recipe, seed: int, overrides: dict[str, Any]) -> Path:
    """Return the folder of a run: `seed0`, or `seed0-steps=100` with overrides, apart from the recipe's own run."""
    changes = "".join(
        f"-{key}={''.join(c if c.isalnum() else '_' for c in str(value))}" for key, value in sorted(overrides.items())
    )
    return out / "runs" / recipe.name / f"seed{seed}{changes}"


def already_done(folder: Path, recipe: Recipe, overrides: dict[str, Any], fingerprint: str | None = None) -> bool:
    """Return True if the run in that folder is finished and of this recipe, these overrides and these images.

    fingerprint: of the training images; None: do not compare them.
    """
    if not (folder / results.RESULT).exists() or not (folder / CHECKPOINT).exists():
        return False
    old = results.load(folder / results.RESULT)
    same_recipe = same_as(recipe, overrides).items() <= {"budget": None, **(old.recipe or {})}.items()
    same_data = fingerprint in (None, (old.training or {}).get("data_fingerprint"))
    return same_recipe and old.overrides == overrides and same_data


def is_another_checkpoint(folder: Path) -> bool:
    """Return True if the checkpoint in a folder is not the one that its result measured.

    It was damaged or replaced, or a run that began beside an older result was killed before it was measured.
    """
    measured = (results.load(folder / results.RESULT).fake or {}).get("checkpoint_sha256")
    return measured is not None and measured != sha256_of(folder / CHECKPOINT)


def same_as(recipe: Recipe, overrides: dict[str, Any]) -> dict[str, Any]:
    """Return the identity of a recipe for a result: two results that agree in it measured the same thing."""
    budget = overrides.get("budget")
    return {
        "name": recipe.name,
        "version": recipe.version,
        "sha256": recipe.sha256,
        **({"budget": recipe.budget[budget].changes()} if budget else {}),
    }


def with_synthetic_data(recipe: Recipe) -> Recipe:
    """Return the recipe with the shape and classes of its model in the name of synthetic data, if it trains on such."""
    if recipe.train.data != SYNTHETIC:
        return recipe
    gan = checkpoint.make_model(recipe.model.name, recipe.model.args, f"recipe '{recipe.name}'")
    shape = "x".join(map(str, gan.image_shape))
    return recipe.replace(data=f"{SYNTHETIC}:{shape}:{gan.num_classes or 10}")
