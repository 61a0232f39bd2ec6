"""The training loop: seeded, resumable to the bit, one process a folder, and a failure overwrites nothing."""

import contextlib
import fcntl
import json
import os
import resource
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from support import TINY, Forked, tiny_dcgan, write_recipe

from ganbench import recipes
from ganbench.base import registry
from ganbench.base.errors import UserError
from ganbench.data.datasets import Dataset, load
from ganbench.training import loop
from ganbench.training.loop import TrainingFailed, train
from ganbench.training.run_folder import CHECKPOINT, LOG, STATE, RunFolder

CPU = torch.device("cpu")


@pytest.fixture
def recipe(place):
    return recipes.read(write_recipe(place, {"batch_size = 16": "batch_size = 32", "steps = 6": "steps = 10"}))


@pytest.fixture
def data():
    return load("digits:train")


def log_of(folder):
    """The lines of the log, whose bytes are those of every other run with this seed."""
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def same(a, b):
    a, b = load_file(a), load_file(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Stopped(Exception):
    """What the tests throw into a run to end it between two steps."""


def stop_at(step):
    def advance(at, text):
        if at == step:
            raise Stopped

    return advance


# --- Determinism and resuming ---


def test_a_seeded_run_is_deterministic_and_another_seed_is_another_run(recipe, data, place):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(5)  # whatever was drawn before does not matter
        trained = train(recipe, data, place / name, seed, CPU)
        assert trained.steps == 10
        assert trained.checkpoint == place / name / CHECKPOINT
    assert same(place / "a" / CHECKPOINT, place / "b" / CHECKPOINT)
    assert log_of(place / "a") == log_of(place / "b")
    assert [line["step"] for line in log_of(place / "a")] == list(range(1, 11))
    assert not same(place / "a" / CHECKPOINT, place / "c" / CHECKPOINT)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_run_that_stopped_anywhere_goes_on_to_the_same_end(recipe, data, place, monkeypatch, ema):
    recipe = replace(recipe, train=replace(recipe.train, ema_decay=ema))
    train(recipe, data, place / "whole", 0, CPU)
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    for step in (3, 7, 9):
        with pytest.raises(Stopped):
            train(recipe, data, place / "parts", 0, CPU, advance=stop_at(step))
    train(recipe, data, place / "parts", 0, CPU)
    assert same(place / "whole" / CHECKPOINT, place / "parts" / CHECKPOINT)
    assert log_of(place / "whole") == log_of(place / "parts")


def test_latents_are_drawn_on_the_device_that_trains_and_by_a_generator_on_the_cpu():
    draw = loop.drawn_on(torch.device("meta"), lambda n, generator=None: torch.rand(n, 3, generator=generator))
    assert draw(5).device.type == "meta"
    assert draw(5, torch.Generator()).device.type == "cpu"


def test_a_finished_run_is_not_trained_again(recipe, data, place):
    train(recipe, data, place / "a", 0, CPU)
    before = (place / "a" / CHECKPOINT).stat().st_mtime_ns
    steps = []
    train(recipe, data, place / "a", 0, CPU, advance=lambda step, text: steps.append(step))
    assert steps == []
    assert (place / "a" / CHECKPOINT).stat().st_mtime_ns == before


def test_a_finished_run_without_its_checkpoint_gets_it_back(recipe, data, place):
    train(recipe, data, place / "a", 0, CPU)
    shutil.copy(place / "a" / CHECKPOINT, place / "kept.safetensors")
    (place / "a" / CHECKPOINT).unlink()
    train(recipe, data, place / "a", 0, CPU)
    assert same(place / "a" / CHECKPOINT, place / "kept.safetensors")


def test_a_kill_between_the_two_files_of_the_last_save_does_not_leave_an_older_checkpoint(
    recipe, data, place, monkeypatch
):
    train(recipe, data, place / "whole", 0, CPU)
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    with pytest.raises(Stopped):
        train(recipe, data, place / "cut", 0, CPU, advance=stop_at(9))
    written = []

    def replace_once(src, dst, plain=os.replace):
        if os.fspath(dst).endswith((CHECKPOINT, STATE)):
            if written:
                raise Stopped
            written.append(dst)
        plain(src, dst)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_once)
        with pytest.raises(Stopped):
            train(recipe, data, place / "cut", 0, CPU)
    assert len(written) == 1
    train(recipe, data, place / "cut", 0, CPU)
    assert same(place / "whole" / CHECKPOINT, place / "cut" / CHECKPOINT)


KILLED = """
import os, signal, sys
from ganbench import cli
from ganbench.base import registry
from ganbench.training import loop

loop.SAVE_EVERY_SECONDS = 0.02
DCGAN = registry.load("models", "dcgan")
plain = DCGAN.training_step

def training_step(self, batch, opt):
    if batch.step == 40:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, batch, opt)

DCGAN.training_step = training_step
cli.main(["reproduce", "dcgan-digits", "--steps", "80", "--out", sys.argv[1], "--quiet", "--device", "cpu"])
"""


DIGITS = ["reproduce", "dcgan-digits", "--steps", "80", "--device", "cpu"]
WHOLE = []  # the run that nothing interrupted: made once, and compared with each that was


@pytest.fixture
def whole(ganbench, tmp_path_factory):
    if not WHOLE:
        out = tmp_path_factory.mktemp("whole")
        WHOLE.append((ganbench(*DIGITS, "--out", out), out / "runs/dcgan-digits/seed0-steps=80"))
    return WHOLE[0]


def test_a_run_that_was_killed_ends_as_one_that_was_not(ganbench, place, whole):
    (place / "killed.py").write_text(KILLED)
    assert Forked("killed.py", "killed", cwd=place).wait().code == -signal.SIGKILL
    run = place / "killed/runs/dcgan-digits/seed0-steps=80"
    assert 0 < torch.load(run / STATE, weights_only=True)["step"] <= 40
    assert log_of(run)[-1]["step"] == 40
    assert not (run / "result.json").exists()

    (whole, other), resumed = whole, ganbench(*DIGITS, "--out", "killed")
    assert (whole.code, resumed.code) == (0, 0)
    assert same(run / CHECKPOINT, other / CHECKPOINT)
    assert log_of(run) == log_of(other)
    assert whole.out == resumed.out
    assert "fd_pixels" in whole.out
    values = [
        [m["value"] for m in json.loads((folder / "result.json").read_text())["measurements"]]
        for folder in (run, other)
    ]
    assert values[0] == values[1]
    assert [*run.glob(".*.part")] == []


STOPPED = KILLED.replace("signal.SIGKILL", "getattr(signal, sys.argv[2])").replace("0.02", "1000")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_run_that_is_asked_to_stop_saves_where_it_is_and_goes_on_from_there(ganbench, place, whole, name, code):
    (place / "stopped.py").write_text(STOPPED)
    done = Forked("stopped.py", "stopped", name, cwd=place).wait()
    assert (done.code, done.out) == (code, "")
    assert done.err == "ganbench: interrupted at step 41, which is saved; the same command goes on from there\n"
    run = place / "stopped/runs/dcgan-digits/seed0-steps=80"
    assert torch.load(run / STATE, weights_only=True)["step"] == 41

    (whole, other), resumed = whole, ganbench(*DIGITS, "--out", "stopped")
    assert same(run / CHECKPOINT, other / CHECKPOINT)
    assert log_of(run) == log_of(other)
    assert whole.out == resumed.out


def test_signals_are_as_before_after_a_run(recipe, data, place):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    train(recipe, data, place / "a", 0, CPU)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_log_that_is_ahead_of_the_state_is_cut(recipe, data, place, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    with pytest.raises(Stopped):
        train(recipe, data, place / "a", 0, CPU, advance=stop_at(4))
    with open(place / "a" / LOG, "a") as log:
        log.write('{"step": 5, "d_loss": 9.0, "g_loss": 9.0, "seconds": 0.1}\n{"step": 6, "d_lo')  # a kill, mid-line
    train(recipe, data, place / "a", 0, CPU)
    train(recipe, data, place / "b", 0, CPU)
    assert log_of(place / "a") == log_of(place / "b")


def test_what_a_killed_process_was_writing_is_swept_away(recipe, data, place):
    (place / "a").mkdir()
    (place / "a" / ".state.pt.123.part").write_text("half")
    train(recipe, data, place / "a", 0, CPU)
    assert [*(place / "a").glob(".*.part")] == []


def test_fresh_begins_again(recipe, data, place):
    train(recipe, data, place / "a", 1, CPU)
    (place / "a" / "result.json").write_text("old")
    train(recipe, data, place / "a", 0, CPU, fresh=True)
    train(recipe, data, place / "b", 0, CPU)
    assert same(place / "a" / CHECKPOINT, place / "b" / CHECKPOINT)
    assert not (place / "a" / "result.json").exists()


def test_a_run_can_be_lengthened_to_what_a_longer_run_would_have_been(recipe, data, place):
    longer = replace(recipe, train=replace(recipe.train, steps=14))
    train(recipe, data, place / "a", 0, CPU)
    steps = []
    assert train(longer, data, place / "a", 0, CPU, advance=lambda step, text: steps.append(step)).steps == 14
    train(longer, data, place / "b", 0, CPU)
    assert steps == [11, 12, 13, 14]
    assert same(place / "a" / CHECKPOINT, place / "b" / CHECKPOINT)
    assert log_of(place / "a") == log_of(place / "b")


def test_a_run_cannot_be_shortened(recipe, data, place):
    train(recipe, data, place / "a", 0, CPU)
    before = (place / "a" / CHECKPOINT).read_bytes()
    with pytest.raises(UserError, match=r"has gone 10 steps, more than 9: give --fresh"):
        train(replace(recipe, train=replace(recipe.train, steps=9)), data, place / "a", 0, CPU)
    assert (place / "a" / CHECKPOINT).read_bytes() == before


@pytest.mark.parametrize("change", ["batch size", "seed", "data", "model"])
def test_a_folder_of_another_run_is_not_gone_on_with(recipe, data, place, change):
    train(recipe, data, place / "a", 0, CPU)
    seed = 0
    if change == "batch size":
        recipe = replace(recipe, train=replace(recipe.train, batch_size=16))
    elif change == "seed":
        seed = 1
    elif change == "data":
        data = Dataset("digits", "train", 255 - data.images, data.labels)
    else:
        recipe = replace(recipe, model=replace(recipe.model, args={**TINY, "lr": 0.1}))
    with pytest.raises(UserError, match=r"belongs to another run .*--fresh"):
        train(recipe, data, place / "a", seed, CPU)


@pytest.mark.parametrize("content", ["garbage", "cut", "foreign", "old weights"])
def test_a_state_that_cannot_be_used_says_so(recipe, data, place, content):
    train(recipe, data, place / "a", 0, CPU)
    state = place / "a" / STATE
    if content == "garbage":
        state.write_bytes(b"garbage")
    elif content == "cut":
        state.write_bytes(state.read_bytes()[:-100])
    elif content == "foreign":
        torch.save({"weight": torch.zeros(1)}, state)
    else:
        saved = torch.load(state, weights_only=True)
        torch.save({**saved, "model": {"weight": torch.zeros(1)}}, state)
    with pytest.raises(UserError, match="--fresh"):
        train(recipe, data, place / "a", 0, CPU)


# --- One process a folder ---


@contextlib.contextmanager
def held(folder):
    """The lock of a folder, as another process would hold it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def test_a_second_process_on_one_folder_is_refused(refuses, place):
    path = write_recipe(place)
    with held(place / "out/runs/tiny/seed0"):
        refuses(["another process", "out/runs/tiny/seed0", "--out"], "reproduce", path, "--out", "out")


def test_fresh_does_not_pull_the_folder_from_under_a_process_that_trains_there(refuses, place):
    path = write_recipe(place)
    with held(place / "out/runs/tiny/seed0"):
        (place / "out/runs/tiny/seed0" / STATE).write_text("of the other process")
        refuses(["another process"], "reproduce", path, "--out", "out", "--fresh")


def test_a_folder_is_free_again_after_a_run_and_after_a_failure(recipe, data, place):
    with pytest.raises(Stopped):
        train(recipe, data, place / "a", 0, CPU, advance=stop_at(1))
    with held(place / "a"):
        pass
    train(recipe, data, place / "a", 0, CPU)
    with held(place / "a"):
        pass


def test_a_limit_for_something_that_is_not_logged_is_refused(recipe, data):
    with pytest.raises(UserError, match=r"limits names 'sigma', which the model does not log"):
        loop.new_model(replace(recipe, watch=replace(recipe.watch, limits={"d_loss": 9.0, "sigma": 1.0})), data)


# --- Averages ---


@pytest.mark.parametrize("begins", [0, 2])
def test_the_checkpoint_holds_the_average_of_the_weights(recipe, data, place, begins):
    plain = replace(recipe, train=replace(recipe.train, ema_decay=0.0))
    weights = []
    for steps in (1, 2, 3):  # the weights after each step, by the plain recipe
        train(replace(plain, train=replace(plain.train, steps=steps)), data, place / f"plain{steps}", 0, CPU)
        weights.append(load_file(place / f"plain{steps}" / CHECKPOINT))
    averaged = replace(recipe, train=replace(recipe.train, ema_decay=0.75, ema_start=begins, steps=3))
    train(averaged, data, place / "ema", 0, CPU)
    torch.manual_seed(0)
    start = loop.new_model(recipe, data).state_dict()
    buffers = {name for name, _ in tiny_dcgan().named_buffers()}
    for name, value in load_file(place / "ema" / CHECKPOINT).items():
        expected = start[name]
        for step, w in enumerate(weights):
            expected = w[name] if name in buffers or step < begins else 0.75 * expected + 0.25 * w[name]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
    assert not same(place / "ema" / CHECKPOINT, place / "plain3" / CHECKPOINT)


# --- Fused optimisers ---


def in_another_layout(optimizer, *_):
    """As a model leaves them that takes gradients itself, and as an older state holds its running means."""
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        p.grad = p.grad.contiguous()
        for name, value in optimizer.state.get(p, {}).items():
            optimizer.state[p][name] = value.contiguous()


def test_a_fused_step_is_the_plain_one_whatever_the_layout_of_gradients_and_running_means():
    g = torch.Generator().manual_seed(0)
    start = torch.randn(4, 3, 2, 2, generator=g).contiguous(memory_format=torch.channels_last)
    ends = []
    steps = [torch.randn(4, 3, 2, 2, generator=g) for _ in range(3)]
    for fused in (True, False):
        p = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([p], 0.01, fused=fused, foreach=False)
        optimizer.register_step_pre_hook(in_another_layout)
        optimizer.register_step_pre_hook(loop._one_layout)
        for gradient in steps:
            p.grad = gradient.clone()
            optimizer.step()
        assert p.is_contiguous(memory_format=torch.channels_last)
        ends.append(p.detach())
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-7)
    assert (ends[0] - start).abs().max() > 0.01


def test_a_run_whose_gradients_have_another_layout_is_the_same_run(recipe, data, place, monkeypatch):
    train(recipe, data, place / "usual", 0, CPU)
    usual = loop.new_model

    def unusual(*args):
        gan = usual(*args)
        made = gan.optimizers

        def optimizers():
            found = made()
            for optimizer in found.values():
                optimizer.register_step_pre_hook(in_another_layout)
            return found

        gan.optimizers = optimizers
        return gan

    monkeypatch.setattr(loop, "new_model", unusual)
    train(recipe, data, place / "unusual", 0, CPU)
    assert same(place / "usual" / CHECKPOINT, place / "unusual" / CHECKPOINT)


# --- What does not fit ---


def test_a_data_set_smaller_than_a_batch_is_refused_before_anything_is_written(recipe, place):
    data = Dataset("few", "all", torch.zeros(31, 1, 8, 8, dtype=torch.uint8), torch.zeros(31, dtype=torch.int64))
    with pytest.raises(UserError, match="'few' has 31 images, fewer than one batch of 32"):
        train(recipe, data, place / "a", 0, CPU)
    assert not (place / "a").exists()


def test_data_without_labels_are_refused_for_a_model_with_classes(recipe, data, place):
    with pytest.raises(UserError, match=r"needs labels and 'digits' has none.*class folders"):
        train(recipe, replace(data, labels=None), place / "a", 0, CPU)
    assert not (place / "a").exists()


def test_data_with_more_classes_than_the_model_are_refused(recipe, data, place):
    with pytest.raises(UserError, match="more classes than the model's 10"):
        train(recipe, replace(data, labels=data.labels + 1), place / "a", 0, CPU)


def test_data_of_another_shape_are_refused_with_both_shapes(recipe, data, place):
    with pytest.raises(UserError, match=r"\(1, 8, 8\).*\(3, 8, 8\)"):
        train(recipe, replace(data, images=data.images.expand(-1, 3, -1, -1)), place / "a", 0, CPU)


# --- Runs that fail ---


def breaks_at(step, how, monkeypatch):
    """Makes the DCGAN's step number `step` yield a loss, or weights, that are not finite."""
    cls = registry.load("models", "dcgan")
    plain = cls.training_step

    def training_step(self, batch, opt):
        losses = plain(self, batch, opt)
        if batch.step + 1 >= step:
            if how == "losses":
                return {**losses, "g_loss": losses["g_loss"] * float("nan")}
            with torch.no_grad():
                next(self.D.parameters()).fill_(float("inf"))
        return losses

    monkeypatch.setattr(cls, "training_step", training_step)


def test_losses_that_are_not_finite_end_the_run_and_leave_the_last_good_checkpoint(recipe, data, place, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    with pytest.raises(Stopped):
        train(recipe, data, place / "a", 0, CPU, advance=stop_at(4))
    shutil.copy(place / "a" / CHECKPOINT, place / "good.safetensors")
    breaks_at(5, "losses", monkeypatch)
    with pytest.raises(
        TrainingFailed, match=r"step 5: the losses are not finite \(g_loss nan\).*checkpoint\.safetensors"
    ):
        train(recipe, data, place / "a", 0, CPU)
    assert same(place / "a" / CHECKPOINT, place / "good.safetensors")
    assert torch.load(place / "a" / STATE, weights_only=True)["step"] == 4


def test_weights_that_are_not_finite_are_never_saved(recipe, data, place, monkeypatch):
    recipe = replace(recipe, train=replace(recipe.train, steps=1000))  # the log speaks every fifth step
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    breaks_at(3, "weights", monkeypatch)
    with pytest.raises(TrainingFailed, match="step 3: the weights are not finite"):
        train(recipe, data, place / "a", 0, CPU)
    assert torch.load(place / "a" / STATE, weights_only=True)["step"] == 2
    assert all(torch.isfinite(v).all() for v in load_file(place / "a" / CHECKPOINT).values())


def test_a_run_that_fails_exits_with_1_and_says_that_there_is_no_checkpoint(ganbench, place, monkeypatch):
    breaks_at(1, "losses", monkeypatch)
    done = ganbench("reproduce", write_recipe(place), "--out", "out", "--quiet")
    assert done.code == 1
    assert done.out == ""
    assert done.err.startswith("ganbench: training failed: recipe 'tiny', seed 0, step 1: ")
    assert done.err.count("\n") == 1
    assert "No checkpoint was written." in done.err
    run = place / "out/runs/tiny/seed0"
    assert not (run / "result.json").exists()
    assert not (run / CHECKPOINT).exists()
    assert not (place / "out/tables").exists()


@contextlib.contextmanager
def no_file_beyond(size):
    """A disk on which no file can grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_said_in_one_line_and_leaves_the_last_good_files(ganbench, place):
    path = write_recipe(place)
    assert ganbench("reproduce", path, "--steps", "2", "--out", "out").code == 0
    run = place / "out/runs/tiny/seed0-steps=2"
    good = {name: (run / name).read_bytes() for name in (CHECKPOINT, STATE)}
    state = torch.load(run / STATE, weights_only=True)
    (run / "result.json").unlink()
    (run / CHECKPOINT).unlink()
    with no_file_beyond(8000):
        done = ganbench("reproduce", path, "--steps", "2", "--out", "out", "--quiet")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "cannot write" in done.err
    assert CHECKPOINT in done.err
    assert state["step"] == 2
    assert (run / STATE).read_bytes() == good[STATE]
    assert [*run.glob(".*.part")] == []
    assert ganbench("reproduce", path, "--steps", "2", "--out", "out", "--quiet").code == 0
    assert (run / CHECKPOINT).read_bytes() == good[CHECKPOINT]


def test_a_disk_that_fills_up_while_training_leaves_the_last_good_files_and_the_run_goes_on_later(
    ganbench, place, monkeypatch
):
    path = write_recipe(place, {"steps = 6": "steps = 30"})
    assert ganbench("reproduce", path, "--out", "whole", "--quiet").code == 0
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    with no_file_beyond(30_000):  # a checkpoint is smaller, a state larger
        done = ganbench("reproduce", path, "--out", "full", "--quiet")
    run = place / "full/runs/tiny/seed0"
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "cannot write full/runs/tiny/seed0/state.pt: the file could not be written whole. Free some" in done.err
    assert not (run / STATE).exists()
    assert [*run.glob(".*.part")] == []
    assert ganbench("reproduce", path, "--out", "full", "--quiet").code == 0
    assert (run / LOG).read_bytes() == (place / "whole/runs/tiny/seed0" / LOG).read_bytes()
    assert same(run / CHECKPOINT, place / "whole/runs/tiny/seed0" / CHECKPOINT)


def test_a_log_that_cannot_grow_is_said(place):
    folder = RunFolder(place)
    folder.write({"step": 1})
    with no_file_beyond(15), pytest.raises(UserError, match=r"cannot write .*log.jsonl: File too large. Free some"):
        folder.write({"step": 2})
    folder.cut_log(1)
    assert folder.log.read_text() == '{"step": 1}\n'
