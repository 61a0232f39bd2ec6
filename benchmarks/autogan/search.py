"""Search for a generator as AutoGAN does, and write what was found as recipes.

    python -m benchmarks.autogan.search OUT --data folder:cifar10-jpeg:train --extractor efficientnet-lite0
    python -m benchmarks.autogan.search OUT-random ... --random     # its baseline: a random search
    ganbench reproduce OUT/autogan-search-s0-top1.toml                             # train the best one from scratch

Gong, Chang, Jiang, Wang 2019, arXiv:1908.03835. An iteration trains the shared weights of all architectures, one of
which the controller draws for each update of D, and then the controller, whose reward is the Inception Score by the
classes of an extractor. The iterations of `grow` begin the next stage: one more cell, twice the side, and the beam of
the best architectures so far. A random search differs in one thing, the policy: it draws every token uniformly. It
trains and scores as often, and its beam is taken from all architectures that it scored since the weights last moved.

OUT holds `state.pt`, from which the same command goes on after a kill (an iteration is lost at most, and the result is
the same), `log.jsonl` with every score, and the recipes. Values of `--budget full` are those of the official code;
`--set g_width=64` changes one.

Deviations from the code: those of `controller.py`; the moments of Adam rest while a layer is not used, where the code's
second moments decay; images are drawn in epochs without an incomplete batch; the controller is on the CPU.
"""

import argparse
import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from benchmarks.autogan import controller
from benchmarks.autogan.controller import EMPTY, Arch, Baseline, Beam, Controller, Draw, ResetRule, Uniform
from ganbench import features
from ganbench.base import registry, weight_files
from ganbench.base.device import choose_device
from ganbench.base.errors import UserError
from ganbench.base.files import write_text
from ganbench.base.progress import Reporter
from ganbench.data import datasets
from ganbench.data.datasets.decoded import for_training
from ganbench.data.images import to_float, to_uint8
from ganbench.data.resizing import Resize
from ganbench.gan import minimize
from ganbench.metrics.inception_score import inception_score
from ganbench.recipes import MAX_SEED, EvaluateSpec, ModelSpec, Recipe, TrainSpec
from ganbench.training.batches import endless
from ganbench.training.run_folder import RunFolder
from reference_models.autogan import CELLS, AutoGAN, Discriminator, Generator

PAPER = "Gong, Chang, Jiang, Wang 2019, arXiv:1908.03835"
METHOD = "pil-bilinear"  # of images that are reduced for a stage


@dataclass(frozen=True)
class Budget:
    """The schedule of a search, and the training of what it finds. The values here are the official code's.

    iterations, grow: iterations of all stages; those that begin the second stage and the third.
    shared_steps: updates of D in an iteration: 15 epochs of CIFAR-10. controller_steps: architectures scored in one.
    images: of a score. candidates, top: architectures drawn at the end of a stage, and kept in the beam.
    window, threshold: of the dynamic reset. g_width to precision: networks and batches of the shared weights.
    recipe: networks and length of the training of what is found, a key of TRAINING.
    `short` takes about two hours on one core. It has a fifth of the iterations, and four times the controller's rate.
    """

    iterations: int = 65
    grow: tuple[int, int] = (15, 35)
    shared_steps: int = 11730
    controller_steps: int = 30
    images: int = 5000
    candidates: int = 10
    top: int = 5
    window: int = 500
    threshold: float = 1e-3
    g_width: int = 128
    d_width: int = 64
    latent_dim: int = 128
    batch_size: int = 64
    n_critic: int = 5
    g_batch: int = 2
    lr: float = 2e-4
    controller_lr: float = 3.5e-4
    precision: str = "float32"
    recipe: str = "paper"


BUDGETS = {
    "full": Budget(),
    "short": Budget(
        iterations=13, grow=(3, 7), shared_steps=5000, images=500, controller_lr=1.4e-3,
        g_width=32, d_width=32, batch_size=32, n_critic=2, g_batch=1, precision="bf16", recipe="narrow",
    ),
    "smoke": Budget(
        iterations=3, grow=(1, 2), shared_steps=4, controller_steps=3, images=20, candidates=3, top=2, window=4,
        g_width=4, d_width=4, latent_dim=4, batch_size=4, n_critic=2, g_batch=1, recipe="tiny",
    ),
}
# Training of what is found: model arguments, [train], and deviations. The narrow one is that of the recipe
# autogan-folder-cifar10-jpeg.
TRAINING: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "paper": ({}, {"batch_size": 320, "steps": 50000, "ema_decay": 0.999}, []),
    "narrow": (
        {"g_width": 32, "d_width": 32, "n_critic": 1, "g_batch": 1},
        {"batch_size": 32, "steps": 20000, "precision": "bf16"},
        ["Blocks of 32 channels, one update of D for each of G with 32 images, 20,000 updates, no averaged weights.",
         "The products of the training steps are in bfloat16; weights, sums and updates in float32."],
    ),
    "tiny": (
        {"g_width": 4, "d_width": 4, "latent_dim": 4, "n_critic": 1, "g_batch": 1}, {"batch_size": 4, "steps": 2},
        ["A tiny network and two steps: it shows that everything works."],
    ),
}


@dataclass(frozen=True)
class Question:
    """A search's settings. data, image_size: the training images, stretched to this side; weights: of the extractor."""

    budget: Budget
    data: str
    extractor: str
    image_size: int = 32
    weights: Path | None = None
    seed: int = 0
    random: bool = False

    @property
    def name(self) -> str:
        """Beginning of the recipes' names."""
        return f"autogan-{'random' if self.random else 'search'}-s{self.seed}"


class Search:
    """Everything that changes during a search, and how it is saved."""

    def __init__(self, question: Question, place: RunFolder, device: torch.device, reporter: Reporter):
        self.q, self.b, self.place, self.device, self.reporter = question, question.budget, place, device, reporter
        self.extractor = features.create(question.extractor, question.weights, not datasets.offline()).to(device)
        blank = torch.zeros(2, 3, question.image_size, question.image_size, dtype=torch.uint8)
        if features.embed(self.extractor, blank, device).logits is None:
            raise UserError(f"--extractor {question.extractor} has no classes, which the reward needs: choose another.")
        self.whole = datasets.load(question.data)
        if len(self.whole) < self.b.batch_size:
            raise UserError(f"--data {question.data} has {len(self.whole)} images, fewer than one batch.")
        self.identity = json.dumps({
            **dataclasses.asdict(self.b), "data": self.whole.fingerprint, "image_size": question.image_size,
            "extractor": [self.extractor.title, self.extractor.sha256], "seed": question.seed,
            "random": question.random,
        }, sort_keys=True)
        self.iteration, self.stage, self.d_steps = 0, 0, 0
        self.beam, self.found = EMPTY, None
        self.scored: list[tuple[Arch, float]] = []  # by a random search, since the shared weights last moved
        self.lines: list[str] = []
        self.rule = ResetRule(self.b.window, self.b.threshold)
        self.seed_draws(-1)
        self.new_weights()
        self.new_policy()

    def open(self) -> None:
        """Go on from the saved state, if there is one, and write the log as it was then."""
        if self.place.state.exists():
            self.restore()
        write_text(self.place.log, "".join(self.lines))

    # --- Parts that begin anew ---

    def seed_draws(self, iteration: int) -> None:
        """Start the random numbers of an iteration, so that it can be repeated."""
        torch.manual_seed((self.q.seed * 1_000_003 + iteration + 1) % 2**32)

    def new_weights(self) -> None:
        """Start the shared weights and their optimisers."""
        b, channels = self.b, self.whole.images.shape[1]
        self.G = Generator(self.q.image_size, channels, b.latent_dim, b.g_width, None).to(self.device)
        self.D = Discriminator(channels, b.d_width).to(self.device)
        for net in (self.G, self.D):
            net.to(memory_format=torch.channels_last)
        self.opt_g, self.opt_d = (Adam(net.parameters(), b.lr, betas=(0.0, 0.9)) for net in (self.G, self.D))

    def new_policy(self) -> None:
        """Start the policy of the present stage."""
        self.policy: Controller | Uniform = Uniform(self.stage) if self.q.random else Controller(self.stage)
        if isinstance(self.policy, Controller):
            self.opt_c = Adam(self.policy.parameters(), self.b.controller_lr, betas=(0.0, 0.9))

    def stage_images(self) -> Tensor:
        """The training images at the side of the present stage, uint8."""
        side = self.q.image_size >> (CELLS - 1 - self.stage)
        data = datasets.load(self.q.data, resize=Resize(side, METHOD))
        return for_training(data, self.reporter.progress, self.reporter.say).images[:]

    # --- The search ---

    def run(self) -> Beam:
        """Make the remaining iterations, and return the best architectures."""
        if self.found is not None:
            return self.found
        images = self.stage_images()
        with self.reporter.task(self.q.name, self.b.iterations) as task:
            task.at(self.iteration)
            while self.iteration < self.b.iterations:
                self.seed_draws(self.iteration)
                if self.iteration in self.b.grow:
                    self.beam = self.select()
                    self.stage += 1
                    self.new_policy()
                    images = self.stage_images()
                reset = self.train_shared(images)
                score = self.train_policy()
                if reset:
                    self.new_weights()
                    self.scored = []
                self.iteration += 1
                self.save()
                task.at(self.iteration, f"stage {self.stage + 1}  score {score:.3f}")
        self.seed_draws(self.iteration)
        self.found = self.select()
        self.save()
        return self.found

    def train_shared(self, images: Tensor) -> bool:
        """Train the shared weights; the policy draws an architecture for each update of D. Returns whether to reset."""
        b, stages, losses = self.b, self.stage + 1, {"d_loss": 0.0, "g_loss": 0.0}
        rows = endless(len(images), self.q.seed, self.d_steps * b.batch_size, b.shared_steps * b.batch_size)
        self.scored, reset, step = [], False, 0
        self.G.train()
        self.D.train()
        for step in range(b.shared_steps):
            with torch.no_grad():
                arch = self.policy.draw(1, self.beam).archs[0]
            x = to_float(images[rows[step * b.batch_size :][: b.batch_size]].to(self.device))
            x = x.contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=b.precision == "bf16"):
                with torch.no_grad():
                    fake = self.G(self.latent(b.batch_size), arch)
                loss = minimize(AutoGAN.d_loss(self.D(x, stages), self.D(fake, stages)), self.opt_d)
                losses["d_loss"] = loss.item()
                self.rule.d.append(losses["d_loss"])
                if step % b.n_critic == 0:
                    fake = self.G(self.latent(b.batch_size * b.g_batch), arch)
                    losses["g_loss"] = minimize(AutoGAN.g_loss(self.D(fake, stages)), self.opt_g).item()
                    self.rule.g.append(losses["g_loss"])
            if self.rule.due():
                reset = True
                break
        self.d_steps += step + 1
        self.note({"steps": step + 1, **losses, "reset": reset})
        return reset

    def train_policy(self) -> float:
        """Score architectures, and move the controller after each one. Returns the mean score."""
        baseline, total = Baseline(), 0.0
        for step in range(self.b.controller_steps):
            draw = self.policy.draw(1, self.beam)
            arch, entropy = draw.archs[0], draw.entropy.item()
            score = self.score(arch)
            advantage = baseline.advantage(score + controller.ENTROPY_WEIGHT * entropy)
            if isinstance(self.policy, Controller) and step:  # the first reward only starts the baseline
                minimize(controller.policy_loss(draw.log_p, draw.entropy, advantage), self.opt_c)
            elif self.q.random:
                self.scored.append((arch, score))
            self.note({"arch": arch, "score": score, "entropy": entropy, "advantage": advantage})
            total += score
        return total / self.b.controller_steps

    def select(self) -> Beam:
        """Score candidates, and return the best architectures."""
        draws = []
        if self.scored:
            nothing = torch.zeros(len(self.scored), EMPTY.hidden.shape[1])
            none = torch.zeros(len(self.scored))
            draws.append(Draw([arch for arch, _ in self.scored], none, none, nothing, nothing))
        with torch.no_grad():
            draws.append(self.policy.draw(self.b.candidates, self.beam))
        scores = [score for _, score in self.scored] + [self.score(arch) for arch in draws[-1].archs]
        found = controller.best(draws, scores, self.b.top)
        self.note({"best": found.archs, "scores": found.scores})
        return found

    @torch.no_grad()
    def score(self, arch: Arch) -> float:
        """Inception Score of the shared generator with this architecture, by the extractor's classes."""
        self.G.eval()
        parts = []
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.b.precision == "bf16"):
            for first in range(0, self.b.images, 100):
                parts.append(self.G(self.latent(min(100, self.b.images - first)), arch).float())
        torch.clear_autocast_cache()  # its copies of the weights have no gradients
        try:
            images = to_uint8(torch.cat(parts)).contiguous().cpu()
        except ValueError as error:
            raise UserError(
                f"iteration {self.iteration}: {error}. Begin again with --fresh and another --seed, or --set lr=1e-4."
            ) from error
        logits = features.extract(self.extractor, images, None, self.device).logits
        assert logits is not None
        return inception_score(logits).mean().item()

    def latent(self, n: int) -> Tensor:
        """z ~ N(0, I), n x d."""
        return torch.randn(n, self.b.latent_dim, device=self.device)

    # --- Files ---

    def note(self, line: dict[str, Any]) -> None:
        """Write a line to the log."""
        line = {"iteration": self.iteration, "stage": self.stage + 1, **line}
        self.lines.append(json.dumps(line) + "\n")
        self.place.write(line)

    def save(self) -> None:
        """Replace the state, whole."""
        learns = isinstance(self.policy, Controller)
        self.place.save_state({
            "identity": self.identity, "iteration": self.iteration, "stage": self.stage, "d_steps": self.d_steps,
            "G": self.G.state_dict(), "D": self.D.state_dict(), "opt_g": self.opt_g.state_dict(),
            "opt_d": self.opt_d.state_dict(), "policy": self.policy.state_dict() if learns else {},
            "opt_c": self.opt_c.state_dict() if learns else {}, "beam": tuple(self.beam),
            "found": self.found and tuple(self.found), "scored": self.scored, "lines": self.lines,
            "g_window": list(self.rule.g), "d_window": list(self.rule.d),
        })

    def restore(self) -> None:
        """Go on from the saved state. Raises UserError if it is damaged or another search's."""
        remedy = "give --fresh to begin again, or another folder"
        weight_files.require_whole_archive(self.place.state, str(self.place.state), remedy)
        try:
            saved = torch.load(self.place.state, map_location="cpu", weights_only=True)
            ours, its = json.loads(self.identity), json.loads(saved["identity"])
            other = ", ".join(sorted(key for key in ours if its.get(key) != ours[key]))
        except Exception as error:
            raise UserError(f"{self.place.state} cannot be read ({type(error).__name__}): {remedy}.") from error
        if other:
            raise UserError(f"{self.place.state} is the state of another search (other {other}): {remedy}.")
        try:
            self.iteration, self.stage, self.d_steps = saved["iteration"], saved["stage"], saved["d_steps"]
            self.new_policy()
            for part in ("G", "D", "opt_g", "opt_d", *(("policy", "opt_c") if not self.q.random else ())):
                getattr(self, part).load_state_dict(saved[part])
            self.beam, self.found = Beam(*saved["beam"]), saved["found"] and Beam(*saved["found"])
            self.scored, self.lines = [(tuple(arch), score) for arch, score in saved["scored"]], list(saved["lines"])
            self.rule.g.extend(saved["g_window"])
            self.rule.d.extend(saved["d_window"])
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{self.place.state} is damaged ({type(error).__name__}): {remedy}.") from error


# --- Recipes ---


def recipe_text(question: Question, arch: Arch, place: int, score: float, shape: tuple[int, ...]) -> str:
    """Return the recipe of an architecture, as TOML. shape: C, H, W of the data's images."""
    args, train, deviations = TRAINING[question.budget.recipe]
    kind = "a random search" if question.random else "a search"
    metrics = [f"score_{question.extractor}", f"fd_{question.extractor}"]
    if question.extractor == "inception-v3":
        metrics = ["inception_score", "fid"]
    recipe = Recipe(  # which knows the splits that belong to the data
        question.name, 1, "", PAPER, ModelSpec("autogan"), TrainSpec("", 1, 1), EvaluateSpec([], 1, "", "")
    ).replace(data=question.data)
    num = 40 if question.budget.recipe == "tiny" else 50000 if question.extractor == "inception-v3" else 10000
    model = {"arch": list(arch), "image_size": question.image_size, "channels": shape[0], **args}
    if shape[1:] != (question.image_size, question.image_size):
        train = {**train, "resize": f"{question.image_size}:{METHOD}"}
    texts = [
        f"The architecture is number {place} of {kind} with seed {question.seed}, where its score with shared weights "
        f"was {score:.3f} by {question.extractor}.", *deviations,
    ]
    remarks = "".join(f"  {json.dumps(text, ensure_ascii=False)},\n" for text in texts)
    short = max(1, train["steps"] * 3 // 10)
    return (
        f'name = "{question.name}-top{place}"\nversion = 1\n'
        f'title = "AutoGAN with architecture number {place} of {kind}, seed {question.seed}"\npaper = "{PAPER}"\n\n'
        f"deviations = [\n{remarks}]\n\n"
        f'[model]\nname = "autogan"\nargs = {{ {", ".join(f"{k} = {json.dumps(v)}" for k, v in model.items())} }}\n\n'
        f"[train]\ndata = {json.dumps(recipe.train.data, ensure_ascii=False)}\n"
        + "".join(f"{k} = {json.dumps(v)}\n" for k, v in train.items())
        + f"\n[evaluate]\nmetrics = {json.dumps(metrics)}\nnum = {num}\n"
        f"reference = {json.dumps(recipe.evaluate.reference, ensure_ascii=False)}\n"
        f"real = {json.dumps(recipe.evaluate.real, ensure_ascii=False)}\n\n"
        f"[budget.short]\nsteps = {short}\n"
    )


def write_recipes(question: Question, found: Beam, folder: Path, shape: tuple[int, ...]) -> list[Path]:
    """Write a recipe for each architecture that was found, the best first; one that was drawn twice gets one."""
    files = []
    for place, arch in enumerate(dict.fromkeys(found.archs), 1):
        files.append(folder / f"{question.name}-top{place}.toml")
        score = found.scores[found.archs.index(arch)]
        write_text(files[-1], recipe_text(question, arch, place, score, shape))
    return files


# --- The command ---


def changed(budget: Budget, changes: list[str]) -> Budget:
    """Return the budget with the changes KEY=VALUE. Raises UserError for an unknown key or an impossible value."""
    kinds = {f.name: type(f.default) for f in dataclasses.fields(Budget)}
    for change in changes:
        key, _, text = change.partition("=")
        try:
            kind = kinds[key]
            value = tuple(int(t) for t in text.split(",")) if kind is tuple else kind(text)
            budget = dataclasses.replace(budget, **{key: value})
        except (KeyError, ValueError):
            raise UserError(f"--set {change}: write KEY=VALUE with one of {', '.join(kinds)} (grow=15,35).") from None
    b = budget
    whole = (v for f in dataclasses.fields(b) if isinstance(v := getattr(b, f.name), int) and f.name != "iterations")
    for wrong, why in (
        (min(whole) < 1 or not (0 < b.lr < 1 and 0 < b.controller_lr < 1), "numbers must be positive, rates below 1"),
        (len(b.grow) != 2 or not 0 < b.grow[0] < b.grow[1] < b.iterations, "0 < grow < grow < iterations"),
        (b.top > b.candidates, "top must be at most candidates"),
        (b.images < 20, "a score needs at least 20 images, two in each of ten splits"),
        (b.precision not in ("float32", "bf16"), "precision must be float32 or bf16"),
        (b.recipe not in TRAINING, f"recipe must be one of {', '.join(TRAINING)}"),
    ):
        if wrong:
            raise UserError(f"--set: {why}.")
    return budget


def search(question: Question, folder: Path, device: torch.device, reporter: Reporter, fresh: bool) -> list[Path]:
    """Search in `folder`, going on from its state, and write the recipes. Returns their files, the best first."""
    place = RunFolder(folder)
    run = Search(question, place, device, reporter)  # a misfit is reported before anything is written or removed
    with place.lock():
        if fresh:
            place.empty()
        run.open()
        return write_recipes(question, run.run(), folder, tuple(run.whole.images.shape[1:]))


def main(argv: list[str]) -> int:
    """Search, and print the command that trains what was found. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.autogan.search", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the state, the log and the recipes go")
    parser.add_argument("--budget", choices=BUDGETS, default="short", help="full: the official code's (short)")
    parser.add_argument("--data", default="cifar10:train", help="training images, as for a recipe (cifar10:train)")
    parser.add_argument("--image-size", type=int, default=32, help="side of the images, a multiple of 8 (32)")
    parser.add_argument("--extractor", default="inception-v3", help="whose classes the score is of (inception-v3)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="of the extractor, such as small-cnn's")
    parser.add_argument("--random", action="store_true", help="draw every token uniformly: the baseline")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (0)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of the budget")
    parser.add_argument("--device", help="cpu, cuda, ... (the GPU if there is one)")
    parser.add_argument("--fresh", action="store_true", help="begin again, and remove what the folder holds")
    options = parser.parse_args(argv)
    try:
        known = registry.names("extractors")
        if options.extractor not in known:
            raise UserError(f"--extractor {options.extractor}: choose one of {', '.join(known)}.")
        if options.image_size < 16 or options.image_size % 8 or options.image_size > 256:
            raise UserError(f"--image-size must be a multiple of 8 from 16 to 256, not {options.image_size}.")
        if not 0 <= options.seed <= MAX_SEED:
            raise UserError(f"--seed must be between 0 and {MAX_SEED}, not {options.seed}.")
        budget = changed(BUDGETS[options.budget], options.set)
        question = Question(
            budget, options.data, options.extractor, options.image_size, options.weights, options.seed, options.random
        )
        files = search(question, options.folder, choose_device(options.device), Reporter(), options.fresh)
    except UserError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last whole iteration", file=sys.stderr)
        return 130
    for file in files[1:]:
        print(file)
    weights = f" --weights {options.extractor}={options.weights}" if options.weights else ""
    print(f"ganbench reproduce {files[0]}{weights}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
