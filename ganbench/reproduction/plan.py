"""Plans: which recipes are run with which seeds, and what came of it.

A `Plan` is what the user asked for. Its runs are made here, one after the other (`Plan.run`), or as jobs of their own
(`Plan.jobs`), whose stored results are collected afterwards (`Plan.collect`). Either way an `Outcome` comes of it: the
finished runs, and a `Failure` for each run that came to nothing.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ganbench.base import distributed
from ganbench.base.device import choose_device
from ganbench.base.errors import UserError
from ganbench.base.progress import Reporter
from ganbench.data.datasets import offline
from ganbench.evaluation import measure
from ganbench.evaluation.inputs import needed_extractors
from ganbench.recipes import Group, Recipe
from ganbench.reporting import pages, results, tables
from ganbench.reproduction.jobs import Job
from ganbench.reproduction.run import DEFAULT_EXTRACTOR, Run, already_done, make_run, run_folder, watched_metric
from ganbench.training.loop import TrainingFailed


@dataclass(frozen=True)
class Failure:
    """A run that came to nothing.

    kind: 'error' is a mistake that the user can mend; the others are 'training failed' and 'job failed'.
    """

    recipe: str
    seed: int
    reason: str
    kind: str

    def __str__(self) -> str:
        whose = "" if self.reason.startswith("recipe ") else f"{self.recipe} seed {self.seed}: "
        return f"{self.kind}: {whose}{self.reason}"


@dataclass(frozen=True)
class Outcome:
    """The outcome of a plan. runs: the finished ones, by the name that the user calls their recipe by."""

    runs: dict[str, list[Run]]
    failures: list[Failure]

    def part(self, recipes: Collection[str]) -> "Outcome":
        """Return the finished runs of some recipes, by the names that the user calls them by; failures are left out."""
        return Outcome({name: self.runs[name] for name in recipes}, [])

    @property
    def done(self) -> list[Run]:
        """All finished runs."""
        return [run for runs in self.runs.values() for run in runs]


@dataclass(frozen=True)
class Plan:
    """The runs that the user asked for: every recipe with every seed.

    recipes: as they are in their files, by the name that the user calls them by. overrides: what the command line
    changes of them: budget, steps, data. out: the folder of results. fresh: throw earlier runs away. board: log to
    TensorBoard too. weights: files by extractor, instead of the published ones.
    """

    recipes: dict[str, Recipe]
    overrides: dict[str, Any]
    seeds: list[int]
    out: Path
    fresh: bool = False
    board: bool = False
    weights: dict[str, Path] = field(default_factory=dict)

    def weights_of(self, recipe: Recipe) -> dict[str, Path]:
        """Return the given weights that the recipe's metrics use."""
        if not self.weights:
            return {}
        spec = recipe.override(self.overrides)
        used = needed_extractors(
            measure.parse_metrics([*spec.evaluate.metrics, *watched_metric(spec)], DEFAULT_EXTRACTOR)
        )
        return {name: file for name, file in self.weights.items() if name in used}

    def require_weights_used(self) -> None:
        """Raise UserError for weights that no recipe uses."""
        used = {name for recipe in self.recipes.values() for name in self.weights_of(recipe)}
        for name in self.weights:
            if name not in used:
                raise UserError(f"--weights {name}=...: no metric of {', '.join(self.recipes)} uses that extractor.")

    def part(self, recipes: Collection[str]) -> "Plan":
        """Return the plan of some of its recipes, by the names that the user calls them by."""
        return replace(self, recipes={name: self.recipes[name] for name in recipes})

    def folder(self, recipe: Recipe, seed: int) -> Path:
        """Return the folder of a run."""
        return run_folder(self.out, recipe, seed, self.overrides)

    def to_do(self) -> list[tuple[str, int]]:
        """Return recipe and seed of the runs that are not done; of all if they are on a folder, which may change."""
        everything = self.fresh or str(self.overrides.get("data")).startswith("folder:")
        return [
            (name, seed) for name, recipe in self.recipes.items() for seed in self.seeds
            if everything or not already_done(self.folder(recipe, seed), recipe, self.overrides)
        ]

    def run_here(self, device: str | None, reporter: Reporter) -> Outcome:
        """Make the runs in this process, or share each of them with the other processes of torchrun.

        device: by name; None: the accelerator if there is one.
        """
        distributed.start()
        outcome = self.run(choose_device(device), reporter)
        distributed.stop()
        return outcome

    def run(self, device: torch.device, reporter: Reporter) -> Outcome:
        """Make the runs in turn; one that fails does not keep the others from being made.

        Under torchrun the first failure ends all. Raises UserError then, and if no run can be made because of the
        user's mistakes.
        """
        runs: dict[str, list[Run]] = {name: [] for name in self.recipes}
        failures: list[Failure] = []
        for name, recipe in self.recipes.items():
            for seed in self.seeds:
                spec = recipe.override(self.overrides)
                try:
                    run = make_run(
                        spec, self.overrides, seed, device, self.out, self.fresh, reporter, self.board,
                        self.weights_of(recipe),
                    )
                    runs[name].append(run)
                except (UserError, TrainingFailed) as error:
                    kind = "error" if isinstance(error, UserError) else "training failed"
                    if distributed.world_size() > 1:  # another process may not have failed, and would wait for this one
                        raise UserError(f"{recipe.name} seed {seed}: {error}") from error
                    failures.append(Failure(recipe.name, seed, str(error), kind))
        if not any(runs.values()) and all(f.kind == "error" for f in failures):
            more = len(failures) - 1
            others = f" {more} other run{'s' * (more > 1)} cannot be made either." if more else ""
            raise UserError(failures[0].reason + others)
        return Outcome(runs, failures)

    def jobs(self, device: str | None, quiet: bool, say: Callable[[str], None]) -> list[Job]:
        """Return a job for each run that is not done yet: the command that makes it. Says how many are done."""
        options = {**self.overrides, "device": device, "out": self.out}
        flags = {"--fresh": self.fresh, "--tensorboard": self.board, "--quiet": quiet, "--offline": offline()}
        args = [word for key, value in options.items() if value is not None for word in (f"--{key}", str(value))]
        args += [flag for flag, on in flags.items() if on]
        todo = self.to_do()
        if done := len(self.recipes) * len(self.seeds) - len(todo):
            say(f"already done: {done} of {done + len(todo)} runs (--fresh does them again)")
        jobs = []
        for name, seed in todo:
            files = self.weights_of(self.recipes[name]).items()
            weights = [word for extractor, file in files for word in ("--weights", f"{extractor}={file}")]
            jobs.append(Job(name, seed, ("reproduce", name, "--seeds", str(seed), *args, *weights)))
        return jobs

    def collect(self, failed: dict[Job, str]) -> Outcome:
        """Return the runs that jobs have made, without those that failed, whose reasons are given."""
        reasons = {(job.recipe, job.seed): why for job, why in failed.items()}
        runs = {
            name: [Run(folder, results.load(folder / results.RESULT)) for seed in self.seeds
                   if (name, seed) not in reasons and (folder := self.folder(recipe, seed))]
            for name, recipe in self.recipes.items()
        }
        failures = [Failure(self.recipes[name].name, seed, why, "job failed") for (name, seed), why in reasons.items()]
        return Outcome(runs, failures)

    def write_tables(self, group: Group | None, outcome: Outcome) -> list[Path]:
        """Rebuild the pages of the recipes that ran, then of the group, and the index; return the pages' paths.

        Runs with other overrides than the short budget are in no table, and rebuild nothing.
        """
        if self.overrides not in ({}, tables.SHORT):
            return []
        ran = [recipe for name, recipe in self.recipes.items() if outcome.runs[name]]
        paths = [pages.write(recipe, self._stored(recipe), self.out / "tables", group) for recipe in ran]
        if group is not None and paths:
            stored = [(recipe, self._stored(recipe)) for recipe in self.recipes.values()]
            paths.append(pages.write_group(group, stored, self.out / "tables"))
        if paths:
            pages.refresh_index(self.out)
        return paths

    def _stored(self, recipe: Recipe) -> list[results.Result]:
        """All stored results of a recipe, those of earlier plans too."""
        return [result for _, result in results.load_all(self.out / "runs" / recipe.name)]
