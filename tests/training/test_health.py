"""Trouble is said while it happens, by rules that healthy runs do not break."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import ROOT, tiny_dcgan, write_recipe

from ganbench import recipes
from ganbench.base import registry
from ganbench.data import streams
from ganbench.data.datasets import load
from ganbench.data.datasets.decoded import for_training
from ganbench.gan import GAN
from ganbench.training import health, loop
from ganbench.training.health import GRACE, Health
from ganbench.training.loop import TrainingFailed, train
from ganbench.training.run_folder import CHECKPOINT, LOG, STATE

CPU = torch.device("cpu")


@pytest.fixture
def data():
    return load("digits:train")


@pytest.fixture
def watched(data):
    """Rules whose grace has passed."""
    rules = Health(data, GAN.game)
    rules.updates = GRACE + 1
    return rules


def test_the_rules_compare_with_the_same_images_in_memory_and_from_a_file(data, watched, monkeypatch):
    monkeypatch.setenv("GANBENCH_IN_MEMORY", "0")
    stream = streams.Made(data.images.shape, len(data), lambda index: data.images)
    mapped = Health(for_training(replace(data, images=stream)), GAN.game)
    assert (mapped.real_spread, mapped.real_alike) == (watched.real_spread, watched.real_alike)


# --- Losses ---


def test_a_loss_a_thousand_times_its_median_has_exploded(watched):
    for _ in range(12):
        assert watched.look_at_losses({"d_loss": 2.0, "g_loss": 1.0}) is None
    assert watched.look_at_losses({"d_loss": 1990.0, "g_loss": 1.0}) is None
    assert "d_loss has exploded (-2.1e+03; its median was 2)" in watched.look_at_losses(
        {"d_loss": -2100.0, "g_loss": 1.0}
    )


def test_small_losses_may_grow_to_ordinary_ones(watched):
    for _ in range(12):
        watched.look_at_losses({"d_loss": 1e-6, "g_loss": 1e-6})
    assert watched.look_at_losses({"d_loss": 3.0, "g_loss": 9.0}) is None


def test_a_discriminator_has_won_after_ten_logged_steps_in_a_row(watched):
    won, fair = {"d_loss": 0.003, "g_loss": 7.0}, {"d_loss": 0.3, "g_loss": 7.0}
    for _ in range(9):
        assert watched.look_at_losses(won) is None
    assert watched.look_at_losses(fair) is None
    for _ in range(9):
        assert watched.look_at_losses(won) is None
    assert "the discriminator has won (d_loss 0.003, g_loss 7)" in watched.look_at_losses(won)


def test_the_game_is_told_by_the_losses_that_the_model_names(data):
    rules, none = Health(data, ("d_xy_loss", "ge_loss")), Health(data, None)
    rules.updates = none.updates = 2000
    for _ in range(9):
        assert rules.look_at_losses({"d_xy_loss": 0.003, "ge_loss": 7.0}) is None
    assert "has won (d_xy_loss 0.003, ge_loss 7)" in rules.look_at_losses({"d_xy_loss": 0.003, "ge_loss": 7.0})
    for _ in range(30):  # G matches features: its loss is no answer to D's
        assert none.look_at_losses({"d_loss": 0.003, "g_loss": 7.0}) is None


def test_losses_near_zero_of_a_critic_are_no_victory(watched):
    for _ in range(30):
        assert watched.look_at_losses({"d_loss": 0.001, "g_loss": 0.02}) is None
        assert watched.look_at_losses({"reconstruction_loss": 0.001}) is None


def test_a_logged_value_above_its_limit_for_ten_logged_steps_in_a_row_is_trouble(data):
    rules, high, low = Health(data, None, {"sigma": 50.0}), {"sigma": 51.0, "d_loss": 99.0}, {"sigma": 49.0}
    for _ in range(30):  # too early
        assert rules.look_at_losses(high) is None
    rules.updates = 2000
    for _ in range(9):
        assert rules.look_at_losses(high) is None
    assert rules.look_at_losses(low) is None
    for _ in range(9):
        assert rules.look_at_losses(high) is None
    resumed = Health(data, None, {"sigma": 50.0})
    resumed.restore(json.loads(json.dumps(rules.state())))
    for each in (rules, resumed):
        assert each.look_at_losses(high) == "sigma stays above its limit (51, more than 50)"
        assert each.look_at_losses({"d_loss": 99.0}) is None


def test_nothing_is_said_of_the_game_before_g_has_learnt_anything(data):
    rules = Health(data, GAN.game)
    for _ in range(30):
        assert rules.look_at_losses({"d_loss": 0.001, "g_loss": 9.0}) is None


@pytest.mark.parametrize(
    "run",
    sorted(
        p.parent.name + "/" + p.name for p in (ROOT / "results/runs").glob("*/seed*") if (p / "result.json").exists()
    ),
)
def test_the_runs_in_results_had_no_trouble(run, watched):
    lines = (ROOT / "results/runs" / run / "log.jsonl").read_text().splitlines()
    assert len(lines) > 50
    for line in map(json.loads, lines):
        values = {k: v for k, v in line.items() if k.endswith("_loss")}
        assert watched.look_at_losses(values) is None


# --- Samples ---


class Painted(torch.nn.Module):
    """A generator that paints what it is told."""

    num_classes, device = 10, CPU

    def __init__(self, images):
        super().__init__()
        self.images = images.float() / 127.5 - 1

    def sample(self, n, y=None, generator=None):
        return self.images[:n]


def neighbours_of_a_class(data):
    rows = [(data.labels == c).nonzero().squeeze(1) for c in range(10)]
    return torch.stack([r[i : i + 2] for i in range(10, 50, 2) for r in rows]).flatten()


def test_real_images_are_no_collapse(data, watched):
    images = data.images[neighbours_of_a_class(data)]
    assert [watched.look_at_samples(Painted(images)) for _ in range(4)] == [None] * 4


def test_one_image_a_class_is_a_collapse_once_two_looks_agree(data, watched):
    images = data.images[neighbours_of_a_class(data)]
    images[1::2] = images[0::2]
    assert watched.look_at_samples(Painted(images)) is None
    assert "the generator has collapsed (deviation over samples 0 of 255" in watched.look_at_samples(Painted(images))
    assert watched.look_at_samples(Painted(data.images[neighbours_of_a_class(data)])) is None
    assert watched.look_at_samples(Painted(images)) is None


def test_images_that_differ_in_noise_alone_are_a_collapse(data, watched):
    images = data.images[neighbours_of_a_class(data)].int()
    noise = torch.randint(-25, 26, images[1::2].shape, generator=torch.Generator().manual_seed(0))
    images[1::2] = images[0::2] + noise
    images = images.clamp(0, 255).to(torch.uint8)
    watched.look_at_samples(Painted(images))
    said = watched.look_at_samples(Painted(images))
    assert said is None or "collapsed" in said
    watched.real_alike = 0.5
    images = data.images[neighbours_of_a_class(data)]
    images[1::2] = (images[0::2].int() + torch.where(noise > 0, 9, -9)).clamp(0, 255).to(torch.uint8)
    watched.look_at_samples(Painted(images))
    assert "MS-SSIM of samples" in watched.look_at_samples(Painted(images))


def test_an_untrained_generator_is_given_time(data):
    rules = Health(data, GAN.game)
    assert [rules.look_at_samples(tiny_dcgan()) for _ in range(3)] == [None] * 3
    rules.updates = GRACE + 1
    rules.look_at_samples(tiny_dcgan())
    assert "collapsed" in rules.look_at_samples(tiny_dcgan())


def test_a_look_leaves_the_random_state_alone(watched):
    state = torch.get_rng_state()
    model = tiny_dcgan().train()
    watched.look_at_samples(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_what_the_rules_remember_survives_a_resume(data, watched):
    for _ in range(9):
        watched.look_at_losses({"d_loss": 0.003, "g_loss": 7.0})
    later = Health(data, GAN.game)
    later.restore(json.loads(json.dumps(watched.state())))
    assert later.state() == watched.state()
    assert later.look_at_losses({"d_loss": 0.003, "g_loss": 7.0}) is not None


# --- A run ---


@pytest.fixture
def sick(place, monkeypatch):
    """A tiny recipe whose losses explode at step 15."""
    recipe = recipes.read(write_recipe(place, {"steps = 6": "steps = 20"}))
    cls = registry.load("models", "dcgan")

    def training_step(self, batch, opt, plain=cls.training_step):
        losses = plain(self, batch, opt)
        return {**losses, "g_loss": losses["g_loss"] * (1e6 if batch.step + 1 in (15, 17) else 1)}

    monkeypatch.setattr(cls, "training_step", training_step)
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    return recipe


def test_trouble_ends_the_run_with_its_step_its_reason_and_the_last_healthy_checkpoint(sick, data, place):
    with pytest.raises(TrainingFailed, match=r"step 15: g_loss has exploded .*on_trouble = \"go on\".*checkpoint is"):
        train(sick, data, place / "a", 0, CPU)
    assert torch.load(place / "a" / STATE, weights_only=True)["step"] == 14
    assert (place / "a" / CHECKPOINT).exists()


def test_a_recipe_may_go_on_and_then_the_trouble_is_said_once_and_kept(sick, data, place):
    sick = replace(sick, watch=replace(sick.watch, on_trouble="go on"))
    said: list[str] = []
    trained = train(sick, data, place / "a", 0, CPU, say=said.append)
    assert trained.steps == 20
    assert len(said) == len(trained.warnings) == 1
    assert said[0].startswith("step 15: g_loss has exploded")
    lines = [json.loads(line) for line in (place / "a" / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines if "warning" in line] == [15]


def test_a_watched_metric_keeps_its_best_checkpoint(data, place):
    recipe = recipes.read(write_recipe(place))
    recipe = replace(recipe, watch=replace(recipe.watch, metric="m", every=2))
    values = iter([3.0, 1.0, 2.0])
    watch = loop.Watch("m", lambda gan: next(values), higher_is_better=False)
    trained = train(recipe, data, place / "a", 0, CPU, watch=watch)
    assert trained.best == (4, 1.0)
    from ganbench.gan import checkpoint

    assert checkpoint.load(place / "a" / "best.safetensors")[1].steps == 4
    assert checkpoint.load(place / "a" / CHECKPOINT)[1].steps == 6
    lines = [json.loads(line) for line in (place / "a" / LOG).read_text().splitlines()]
    assert {line["step"]: line["m"] for line in lines if "m" in line} == {2: 3.0, 4: 1.0, 6: 2.0}


def test_pictures_are_drawn_at_the_chosen_steps(data, place):
    recipe = recipes.read(write_recipe(place))
    train(replace(recipe, watch=replace(recipe.watch, grid_every=4)), data, place / "a", 0, CPU)
    names = sorted(Path(p).name for p in (place / "a" / "samples").iterdir())
    assert names == [f"{kind}-{step:06d}.png" for kind in ("between", "step") for step in (4, 6)]


class Leaky(type(tiny_dcgan())):
    """A model whose samples use up random numbers of the training."""

    def sample(self, n, y=None, generator=None):
        torch.rand(3)
        return super().sample(n, y, generator)


def test_the_first_picture_comes_soon_and_once_and_moves_no_weight(data, place, monkeypatch):
    monkeypatch.setattr(loop.checkpoint.registry, "load", lambda kind, name: Leaky)
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    recipe = recipes.read(write_recipe(place))
    recipe = replace(recipe, watch=replace(recipe.watch, grid_every=100))
    pictures = {}
    for name, seconds in (("late", 1e9), ("soon", 0.0)):
        monkeypatch.setattr(loop, "FIRST_PICTURE_SECONDS", seconds)
        with pytest.raises(ZeroDivisionError):
            train(recipe, data, place / name, 0, CPU, advance=lambda step, text: 1 // (3 - step))
        train(recipe, data, place / name, 0, CPU)
        pictures[name] = sorted(p.name for p in (place / name / "samples").glob("step-*.png"))
    assert pictures == {"late": ["step-000006.png"], "soon": ["step-000001.png", "step-000006.png"]}
    assert (place / "late" / CHECKPOINT).read_bytes() == (place / "soon" / CHECKPOINT).read_bytes()
    assert (place / "late" / LOG).read_bytes() == (place / "soon" / LOG).read_bytes()


def test_between_two_latents_the_ends_are_their_images(data):
    model = tiny_dcgan().eval()
    picture = loop.interpolation(model)
    generator = torch.Generator().manual_seed(0)
    a, b = model.sample_latent(10, generator), model.sample_latent(10, generator)
    y = torch.arange(10)
    for z, column in ((a, 0), (b, 9)):
        expected = loop.to_uint8(model.generate(z, y).detach())
        for row in range(10):
            found = picture[:, 2 + row * 10 :, 2 + column * 10 :][:, :8, :8]
            assert (found.int() - expected[row].int()).abs().max() <= 1


def test_how_often_is_looked_is_no_part_of_a_run(data, place):
    recipe = recipes.read(write_recipe(place))
    train(recipe, data, place / "a", 0, CPU)
    watched = replace(recipe, watch=replace(recipe.watch, grid_every=1, on_trouble="go on"))
    steps: list[int] = []
    train(watched, data, place / "a", 0, CPU, advance=lambda step, text: steps.append(step))
    assert steps == []
    assert health.EVERY > 0


# --- From the command line ---


def test_reproduce_measures_what_the_recipe_watches_and_logs_to_tensorboard(ganbench, place):
    watch = '[watch]\nmetric = "fd_pixels"\nevery = 3\nnum = 40\n\n[evaluate]\n'
    path = write_recipe(place, {"[evaluate]\n": watch})
    done = ganbench("reproduce", path, "--out", "out", "--tensorboard")
    assert done.code == 0, done.err
    run = place / "out/runs/tiny/seed0"
    training_part = json.loads((run / "result.json").read_text())["training"]
    lines = [json.loads(line) for line in (run / LOG).read_text().splitlines()]
    seen = {line["step"]: line["fd_pixels"] for line in lines if "fd_pixels" in line}
    assert list(seen) == [3, 6]
    best = min(seen, key=seen.__getitem__)
    assert training_part["best"] == {"step": best, "fd_pixels": seen[best]}
    assert training_part["warnings"] == []

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert {"d_loss", "g_loss", "fd_pixels"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("d_loss")] == list(range(1, 7))
    assert {"step", "between"} <= set(events.Tags()["images"])


def test_a_metric_that_has_no_best_cannot_be_watched(refuses, place):
    watch = '[watch]\nmetric = "ms_ssim"\nevery = 3\n\n[evaluate]\n'
    path = write_recipe(place, {"[evaluate]\n": watch})
    assert "has no better or worse" in refuses(["watch"], "reproduce", path, "--out", "out")
