"""Growing models: stages in images become steps, batches and sizes; a run goes on to the bit from any of its stages."""

import contextlib
import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import tiny_dcgan, write_recipe

from ganbench import recipes
from ganbench.base import progress
from ganbench.base.errors import UserError
from ganbench.data.datasets import load
from ganbench.gan import GAN, Stage
from ganbench.recipes import TrainSpec
from ganbench.training import cost, growth, loop
from ganbench.training.batches import batches, epoch_order
from ganbench.training.growth import Span, changes, growth_in_words, reduced, span_at, spans
from ganbench.training.health import GRACE, Health
from ganbench.training.loop import train
from ganbench.training.run_folder import CHECKPOINT, LOG, STATE
from reference_models.progan import ProGAN

CPU = torch.device("cpu")
# 4 x 4: 64 images in steps 0..3; fade: 96 images in steps 4..15; 8 x 8: from step 16 on
ARGS = "image_size = 8, channels = 1, latent_dim = 4, fmap_base = 16, fmap_max = 4, stable_images = 64, " \
       "fade_images = 96, batch_sizes = [16, 8]"
CHANGES = {
    'name = "dcgan"': 'name = "progan"',
    "image_size = 8, channels = 1, num_classes = 10, latent_dim = 4, g_width = 4, d_width = 4": ARGS,
    "steps = 6": "steps = 20",
}
FIRSTS, STEPS = (0, 4, 16), 20


@pytest.fixture
def data():
    return load("digits:train")


@pytest.fixture
def recipe(place):
    return recipes.read(write_recipe(place, CHANGES))


class Growing(GAN):
    """A model that is nothing but its stages."""

    def __init__(self, *stages, side=8):
        super().__init__()
        self.image_shape, self.given = (1, side, side), stages

    def stages(self, batch_size):
        return self.given


# --- Stages in steps ---


def test_a_model_that_does_not_grow_has_one_stage_without_end():
    assert spans(tiny_dcgan(), 16) == [Span(16)]
    assert (Span(16).shown_before(7), span_at([Span(16)], 10**9)) == (112, Span(16))
    assert growth_in_words([Span(16)], 100) == ""


def test_a_stage_begins_with_the_first_step_before_which_its_first_image_is_due():
    found = spans(Growing(Stage(100, 30, 2), Stage(20, 8, 4), Stage(3, 4, 4), Stage(25, 10, 8)), 1)
    # 30, 60, 90, 120 images; due are 100, 120, 123: the second stage is left out, the third has one step.
    assert [(s.first, s.stop, s.shown, s.batch_size, s.image_size) for s in found] == [
        (0, 4, 0, 30, 2), (4, 5, 120, 4, 4), (5, None, 124, 10, 8)]
    assert changes(found) == [4, 5]
    for step in range(12):
        span = span_at(found, step)
        assert span.first <= step < (span.stop or math.inf)
        by_hand = sum(span_at(found, earlier).batch_size for earlier in range(step))
        assert span.shown_before(step) == by_hand
    assert growth_in_words(found, 7) == (
        "batches of 30 to 4 images, 144 images in all, from 2 x 2 to 8 x 8 pixels, which are reached at step 5")


@pytest.mark.parametrize(("stages", "match"), [
    (((8, 8, 8),), "must return a tuple of `Stage`"), ((Stage(0, 8, 8),), "whole and positive"),
    ((Stage(8, 8.0, 8),), "whole and positive"), ((Stage(8, 8, 3),), "cannot be reduced to the 3 x 3"),
    ((Stage(8, 8, 16),), "cannot be reduced to the 16 x 16"), ((Stage(8, 8, 8, 1.0),), r"must be in \[0, 1\)"),
])
def test_stages_that_cannot_be_are_refused_in_a_line(stages, match):
    with pytest.raises(UserError, match=match):
        spans(Growing(*stages), 8)


def test_a_stage_that_the_data_or_the_recipe_cannot_serve_is_refused(recipe, data):
    many = replace(recipe, model=replace(recipe.model, args={**recipe.model.args, "batch_sizes": [8, 4096]}))
    with pytest.raises(UserError, match="fewer than one batch of 4096"):
        loop.new_model(many, data)
    few = replace(recipe, train=replace(recipe.train, labels=10, unlabelled_batch_size=16))
    with pytest.raises(UserError, match="grows, and cannot be trained with few labels"):
        loop.new_model(few, data)


# --- Batches ---


def test_images_are_reduced_by_means_of_squares_and_rounded():
    x = torch.randint(256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    means = x.double().numpy().reshape(5, 3, 2, 4, 2, 4).mean((3, 5))
    assert np.array_equal(reduced(x, 2).numpy(), np.round(means))
    assert reduced(x, 8) is x
    assert reduced(x, 0) is x


def test_each_stage_has_its_batch_and_size_and_begins_with_an_epoch_of_its_own(data):
    stages = [Span(400, 0, 5, 0, 4), Span(500, 5, None, 2000, 8)]  # 1,297 images: three, then two batches an epoch
    spec = TrainSpec("digits", 7, 9)
    whole = list(batches(data, spec, 3, 0, 9, CPU, spans=stages))
    rows = [epoch_order(len(data), 3, e) for e in range(4)]
    expected = [*rows[0][:1200].split(400), *rows[1][:800].split(400), *rows[2][:1000].split(500),
                *rows[3][:1000].split(500)]
    assert [b.shown for b in whole] == [0, 400, 800, 1200, 1600, 2000, 2500, 3000, 3500]
    for b, own in zip(whole, expected, strict=True):
        images = reduced(data.images[own], 4 if b.step < 5 else 8)
        assert torch.equal(((b.x + 1) * 127.5).round().to(torch.uint8), images)
        assert torch.equal(b.y, data.labels[own])
    for start in (3, 5, 8):  # from the middle; and the parts of two processes
        later = list(batches(data, spec, 3, start, 9, CPU, spans=stages))
        parts = [list(batches(data, spec, 3, start, 9, CPU, (r, 2), stages)) for r in range(2)]
        for b, c, d, e in zip(whole[start:], later, *parts, strict=True):
            assert (b.step, b.shown) == (c.step, c.shown) == (d.step, d.shown)
            assert torch.equal(b.x, c.x)
            assert torch.equal(b.x, torch.cat([d.x, e.x]))


# --- Training ---


class Stopped(Exception):
    """Ends a run in the middle of a step."""


@contextlib.contextmanager
def stop_in(monkeypatch, step, how):
    """A training step begins inside, does its work and calls `how`, which never returns."""
    plain = ProGAN.training_step

    def training_step(self, batch, opt):
        losses = plain(self, batch, opt)
        if batch.step == step:
            how()
        return losses

    with monkeypatch.context() as patch:
        patch.setattr(ProGAN, "training_step", training_step)
        yield


def stop():
    raise Stopped


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_that_ends_at_any_change_of_stage_goes_on_to_the_same_bits(recipe, data, place, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)
    train(recipe, data, place / "whole", 0, CPU)
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    for step in (4, 5, 11, 15, 16):
        with stop_in(monkeypatch, step, stop), pytest.raises(Stopped):
            train(recipe, data, place / "parts", 0, CPU)
        assert torch.load(place / "parts" / STATE, weights_only=True)["step"] == step
    train(recipe, data, place / "parts", 0, CPU)
    for name in (CHECKPOINT, LOG):
        assert (place / "whole" / name).read_bytes() == (place / "parts" / name).read_bytes()


def test_a_run_that_is_killed_in_each_stage_ends_as_one_that_was_not(recipe, data, place, monkeypatch):
    """Real kills, of forks of this process, before the middle steps of the three stages."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a fork has none of the threads of its parent
    try:
        train(recipe, data, place / "whole", 0, CPU)
        monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
        monkeypatch.setattr(os, "fsync", lambda file: None)  # what a killed process wrote is not lost
        for step in (2, 10, 18):
            child = os.fork()
            if child == 0:
                with contextlib.suppress(BaseException), stop_in(monkeypatch, step, kill):
                    train(recipe, data, place / "killed", 0, CPU)
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
            assert torch.load(place / "killed" / STATE, weights_only=True)["step"] == step
        train(recipe, data, place / "killed", 0, CPU)
    finally:
        torch.set_num_threads(threads)
    for name in (CHECKPOINT, LOG):
        assert (place / "whole" / name).read_bytes() == (place / "killed" / name).read_bytes()


def test_the_moments_begin_anew_with_each_stage_and_only_layers_in_use_move(recipe, data, place, monkeypatch):
    counts, moved, plain = {}, {}, ProGAN.training_step

    def training_step(self, batch, opt):
        before = {name: p.detach().clone() for name, p in self.named_parameters()}
        losses = plain(self, batch, opt)
        counts[batch.step] = {int(s["step"]) for o in opt.values() for s in o.state.values()}
        moved[batch.step] = {name for name, p in self.named_parameters() if not torch.equal(p, before[name])}
        return losses

    monkeypatch.setattr(ProGAN, "training_step", training_step)
    train(recipe, data, place / "a", 0, CPU)
    assert counts == {step: {step - max(f for f in FIRSTS if f <= step) + 1} for step in range(STEPS)}
    rgb = {"to_rgb.0", "to_rgb.1", "from_rgb.0", "from_rgb.1"}
    used = {step: {r for r in rgb if any(r in name for name in moved[step])} for step in range(STEPS)}
    assert used[2] == {"to_rgb.0", "from_rgb.0"}
    assert used[8] == rgb  # in the fade
    assert used[18] == {"to_rgb.1", "from_rgb.1"}
    assert not any("blocks" in name for step in range(4) for name in moved[step])
    assert all(any(f"{net}.blocks" in name for name in moved[18]) for net in "GD")


def test_the_average_follows_growth_with_the_decay_of_the_stage(recipe, data, place, monkeypatch):
    """Each step's average by NumPy; the layers of later stages stay where both networks began."""
    by_hand, decays = {}, []

    def stages(self, batch_size):
        first, fade, stable = plain_stages(self, batch_size)
        return first, fade._replace(ema_decay=0.5), stable

    def update(average, gan, decay):
        decays.append(decay)
        for name, p in gan.named_parameters():
            before = by_hand.get(name, average.get_parameter(name).double().numpy())
            by_hand[name] = decay * before + (1 - decay) * p.detach().double().numpy()
        plain_update(average, gan, decay)

    plain_stages, plain_update = ProGAN.stages, loop._update_average
    monkeypatch.setattr(ProGAN, "stages", stages)
    monkeypatch.setattr(loop, "_update_average", update)
    trained = train(recipe, data, place / "a", 0, CPU)
    assert decays == [0.9] * 4 + [0.5] * 12 + [0.9] * 4
    weights = load_file(trained.checkpoint)
    assert all(np.allclose(weights[name].numpy(), by_hand[name], atol=1e-6) for name in by_hand)
    assert int(weights["shown"]) == 64 + 96 + 3 * 8  # before the last step: the averaged model knows its stage
    short = train(replace(recipe, train=replace(recipe.train, steps=3)), data, place / "b", 0, CPU)
    start = loop.new_model(recipe, data)
    torch.manual_seed(0)
    start = loop.new_model(recipe, data).state_dict()
    later = {name: w for name, w in load_file(short.checkpoint).items() if "blocks" in name or "rgb.1" in name}
    assert len(later) > 8
    assert all(torch.equal(w, start[name]) for name, w in later.items())


def test_samples_are_judged_beside_real_images_of_the_size_that_the_model_has_grown_to(data):
    rules = Health(data, None)
    rules.updates, whole = GRACE + 1, Health(data, None).real_spread
    small = ProGAN(image_size=8, channels=1, latent_dim=4, fmap_base=16, fmap_max=4)
    rules.look_at_samples(small, 2)
    images = rules.real.double().numpy()
    coarse = np.round(images.reshape(-1, 1, 2, 4, 2, 4).mean((3, 5))).repeat(4, 2).repeat(4, 3)
    expected = math.sqrt(((coarse[0::2] - coarse[1::2]) ** 2).mean() / 2)
    assert rules.real_spread == pytest.approx(expected, rel=1e-6)
    assert rules.real_spread < 0.8 * whole
    rules.look_at_samples(small, 8)
    assert rules.real_spread == whole


# --- What is said of it ---


def test_the_cost_is_the_mean_over_steps_of_each_size(recipe, monkeypatch):
    seen = []

    def timed(recipe, data, folder, device, span):
        seen.append((span.batch_size, span.image_size))
        return iter([span.batch_size * span.image_size / 1000.0] * 9)

    monkeypatch.setattr(cost, "_timed", lambda recipe, data, device, span: (
        seconds for seconds in timed(recipe, data, None, device, span)))
    found = cost.measure(recipe, CPU)
    # 4 steps of 16 images of 4 x 4, 16 steps of 8 images of 8 x 8; a part of the larger batch comes first
    assert seen == [(2, 4), (16, 4), (8, 8)]
    assert (found.step_seconds, found.timed) == (pytest.approx(0.064), cost.STEPS)


def test_the_steps_of_each_size_are_timed(recipe):
    found = cost.measure(recipe, CPU)
    assert 0 < found.step_seconds < 10, found.reason
    assert found.timed == cost.STEPS


def test_the_time_left_is_that_until_the_images_grow(monkeypatch):
    task = progress.Task("train", 1000, True, [100, 400])
    clock = {"now": 0.0}
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock["now"])

    def after(seconds, count):
        clock["now"] += seconds
        task.at(count)
        return task.line(clock["now"])

    after(0, 10)
    assert after(6, 70) == "train: 70/1,000  10.0/s  0.1 min left to 100"
    after(10, 100)
    assert after(60, 160) == "train: 160/1,000  1.0/s  4.0 min left to 400"
    after(1, 400)
    assert after(60, 430) == "train: 430/1,000  0.5/s  19.0 min left"


def test_show_and_validate_say_how_a_model_grows(ganbench, place):
    write_recipe(place, CHANGES)
    words = "batches of 16 to 8 images, 192 images in all, from 4 x 4 to 8 x 8 pixels, which are reached at step 4"
    for args in (("show", "tiny.toml", "--no-cost"), ("validate", "tiny.toml")):
        done = ganbench(*args)
        assert done.code == 0, done.err
        assert words in " ".join(done.out.split())
    assert "growing" not in ganbench("validate", "dcgan-digits").out
    assert [s.first for s in growth.recipe_spans(recipes.read(place / "tiny.toml"))] == [*FIRSTS]
