"""Several processes, with torchrun or without, give the values of one process; one process alone exchanges nothing."""

import json
import re
import socket
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import ROOT, Forked, Outcome, process, two_forked, write_recipe

from ganbench.base import distributed

EVALUATE = ["evaluate", "--images", "images.npz", "--reference", "digits:train", "--quiet", "--json",
            "--metrics", "fd_pixels,kd_pixels,precision_pixels,ms_ssim_all", "--batch-size", "16"]


@pytest.fixture
def images(place):
    rng = np.random.default_rng(0)
    np.savez(place / "images.npz", arr_0=rng.integers(0, 256, (101, 8, 8, 1), dtype=np.uint8))


def test_two_processes_give_the_same_values_as_one(ganbench, place, images):
    pair = two_forked("-m", "ganbench", *EVALUATE, "--no-cache", cwd=place)
    one, (first, second) = ganbench(*EVALUATE, "--no-cache"), [process.wait() for process in pair]
    assert (one.code, first.code, second.code) == (0, 0, 0), first.err + second.err
    assert second.out == ""
    alone, together = json.loads(one.out), json.loads(first.out)
    for kind in ("measurements", "real"):
        assert len(alone[kind]) == len(together[kind]) > 0
        for a, b in zip(alone[kind], together[kind], strict=True):
            assert a["value"] is not None
            assert b["metric"] == a["metric"]
            assert b["value"] == pytest.approx(a["value"], rel=1e-6)
            assert b["n_fake"] == a["n_fake"]


LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

# A command of the command line that goes wrong in one way or another; its argument says how.
COMMAND = """
import os, signal, sys, time
from ganbench.base import distributed
from ganbench.base.errors import UserError
from ganbench.cli import main

@main.command()
def fail():
    distributed.start()
    how, second = sys.argv[1], distributed.rank() == 1
    if how == "all" or (how == "one" and second):
        raise UserError("the file a.npz is not there.")
    if how == "fault" and second:
        raise RuntimeError("no memory\\nand much more")
    if how == "stopped" and second:
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "slow" and not second:
        time.sleep(3)
    distributed.stop()
    print("fine")

main(["fail"], prog_name="ganbench")
"""


@pytest.mark.parametrize(
    ("how", "line", "code"),
    [
        ("all", "the file a.npz is not there.", 2),
        ("one", "rank 1: the file a.npz is not there.", 2),
        ("fault", "rank 1: RuntimeError: no memory", 1),
    ],
)
def test_a_failure_is_said_once_with_the_rank_that_has_it_and_ends_the_report_of_torchrun(place, how, line, code):
    (place / "run.py").write_text(COMMAND)
    done = process(*LAUNCH, "run.py", how, cwd=place, OMP_NUM_THREADS="1")
    assert done.code == 1  # torchrun's own
    assert done.out == ""
    own = [text for text in done.err.splitlines() if text.startswith("ganbench: ")]
    assert own == [f"ganbench: {'error: ' * (code == 2)}{line}"]
    last = [text.strip() for text in done.err.splitlines() if text.strip("= ")][-3:]
    assert last[0].startswith(f"exitcode  : {code} ")
    assert last[2] == f"traceback : {line}"
    assert ("in fail" in done.err) == (how == "fault")  # the stack of calls of a fault, and of nothing else


def test_a_stopped_process_is_named_after_the_timeout_and_a_busy_one_is_waited_for(place):
    (place / "run.py").write_text(COMMAND)
    first, second = two_forked("run.py", "stopped", cwd=place, GANBENCH_TIMEOUT="2")
    try:
        done = first.wait(60)
    finally:
        second.kill()
        second.wait()
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("ganbench: error: rank 1 has been silent for ")
    assert "GANBENCH_TIMEOUT" in done.err
    assert done.err.count("\n") == 1
    both = two_forked("run.py", "slow", cwd=place, GANBENCH_TIMEOUT="1")  # the second waits for three seconds
    assert [p.wait(60) for p in both] == [Outcome(0, "fine\n", "")] * 2


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"WORLD_SIZE": "2"}, ["WORLD_SIZE=2", "RANK", "MASTER_ADDR", "MASTER_PORT", "torchrun"]),
        ({"WORLD_SIZE": "two"}, ["WORLD_SIZE=two", "whole number"]),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, ["RANK=2", "0 to 1"]),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "9" * 20},
         ["MASTER_PORT", "65535"]),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "PORT", "GANBENCH_TIMEOUT": "1"},
         ["1 of 2 processes did not come", "localhost"]),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "PORT", "GANBENCH_TIMEOUT": "1"},
         ["rank 0 did not come", "localhost"]),
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1", "GANBENCH_TIMEOUT": "soon"},
         ["GANBENCH_TIMEOUT=soon", "seconds"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_environment_that_leads_to_no_other_process_is_one_line_within_seconds(refuses, monkeypatch, env, words):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, port if value == "PORT" else value)
    began = time.monotonic()
    refuses(words, "evaluate", "--images", "digits:test", "--metrics", "ms_ssim")
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(("form", "processes"), [(["-m", "--", "ganbench"], "2"), (["--", "command.py"], "1")])
def test_torchrun_leaves_options_that_it_has_too_to_the_command(place, images, form, processes):
    """`torchrun -m ganbench evaluate --num 20` is ambiguous to torchrun, which has --numa-binding."""
    (place / "command.py").write_text("from ganbench.cli import main\nmain(prog_name='ganbench')\n")
    done = process(
        *LAUNCH[:-1], processes, *form, "evaluate", "--images", "images.npz", "--metrics", "ms_ssim_all", "--num", "20",
        "--json", cwd=place, OMP_NUM_THREADS="1",
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["measurements"][0]["n_fake"] == 20


def test_one_process_alone_keeps_its_rows_and_decides_for_itself():
    rows = torch.arange(6).view(3, 2)
    assert distributed.gather(rows) is rows
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.decide(True)
    assert not distributed.decide(False)


TRAIN = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from ganbench import recipes
from ganbench.base import distributed
from ganbench.data.datasets import load
from ganbench.training.loop import train

out, batch_norm = sys.argv[1:]
torch.set_num_threads(1)
recipe = recipes.read(Path("tiny.toml"))
recipe = replace(recipe, train=replace(recipe.train, batch_norm=batch_norm))
distributed.start()
train(recipe, load("digits:train"), Path(out), 0, torch.device("cpu"))
distributed.stop()
"""


@pytest.fixture
def trained(place):
    """Train 20 steps with one process or two, and return the log and the weights."""
    (place / "run.py").write_text(TRAIN)
    write_recipe(place, {"steps = 6": "steps = 20", "batch_size = 16": "batch_size = 32"})

    def run(out, processes, batch_norm="global"):
        start = two_forked if processes == 2 else lambda *args, cwd: [Forked(*args, cwd=cwd)]
        for done in [p.wait() for p in start("run.py", out, batch_norm, cwd=place)]:
            assert done.code == 0, done.err
        log = [json.loads(line) for line in (place / out / "log.jsonl").read_text().splitlines()]
        return log, load_file(place / out / "checkpoint.safetensors")

    return run


def test_two_processes_train_as_one_with_the_same_global_batch(trained):
    (one, weights), (two, shared), (_, local) = trained("a", 1), trained("b", 2), trained("c", 2, "local")
    assert [line["step"] for line in two] == [line["step"] for line in one] == list(range(1, 21))
    for name in ("d_loss", "g_loss"):
        np.testing.assert_allclose(*[[line[name] for line in log] for log in (one, two)], rtol=0, atol=2e-5)
    for name, w in weights.items():
        torch.testing.assert_close(shared[name], w, rtol=1e-3, atol=1e-4)
    moments = [name for name in weights if name.endswith("running_mean")]
    assert moments
    for name in moments:  # the moments of half a batch differ
        assert (local[name] - weights[name]).abs().max() > 30 * (shared[name] - weights[name]).abs().max()


def test_moments_and_gradients_are_those_of_the_whole_batch(place):
    (place / "moments.py").write_text("""
import torch
from torch import nn
from ganbench.base import distributed
distributed.start()
torch.manual_seed(0)
x, y = torch.randn(12, 5, 4, 4, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
def new():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(5, 3, 3), nn.BatchNorm2d(3, momentum=0.3), nn.Flatten(), nn.Linear(12, 1)).double()
def step(net, x, y, optimizer):
    loss = (net(x).squeeze(1) - y).square().mean()
    loss.backward()
    optimizer.step()
whole, part = new(), new()
a, b = torch.optim.SGD(whole.parameters(), 0.1), torch.optim.SGD(part.parameters(), 0.1)
distributed.average_gradients(b)
distributed.share_moments(part)
r = distributed.rank()
step(part, x[6 * r :][:6], y[6 * r :][:6], b)
step(whole, x, y, a)
for (name, p), q in zip(whole.state_dict().items(), part.state_dict().values()):
    torch.testing.assert_close(q, p, rtol=1e-6, atol=1e-7, msg=name)
torch.testing.assert_close(part.eval()(x), whole.eval()(x), rtol=1e-6, atol=1e-7)
distributed.stop()
""")
    for done in [p.wait() for p in two_forked("moments.py", cwd=place)]:
        assert done.code == 0, done.err


def test_latents_are_the_rows_that_one_process_would_have_drawn():
    torch.manual_seed(3)
    draw = distributed.own_part(lambda n, generator=None: torch.rand(n, 2, generator=generator))
    torch.manual_seed(3)
    assert torch.equal(draw(5), torch.rand(5, 2))
    assert torch.equal(draw(3), torch.rand(3, 2))
    assert torch.equal(
        draw(2, torch.Generator().manual_seed(0)), torch.rand(2, 2, generator=torch.Generator().manual_seed(0))
    )


def test_reproduce_in_two_processes_writes_one_result_and_prints_it_once(ganbench, place):
    args = ["reproduce", write_recipe(place), "--device", "cpu", "--quiet"]
    pair = two_forked("-m", "ganbench", *args, "--out", "two", cwd=place)
    one, (first, second) = ganbench(*args, "--out", "one"), [process.wait() for process in pair]
    assert (one.code, first.code, second.code) == (0, 0, 0), first.err + second.err
    assert (first.out.count("fd_pixels"), second.out) == (1, "")
    results = [json.loads((place / out / "runs/tiny/seed0/result.json").read_text()) for out in ("one", "two")]
    assert [r["training"]["processes"] for r in results] == [1, 2]
    values = [[m["value"] for m in r["measurements"]] for r in results]
    assert values[1] == pytest.approx(values[0], rel=1e-2)  # rounding errors of six steps


def test_every_command_line_of_torchrun_that_is_shown_has_the_form_that_works():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "ganbench").rglob("*.py")]
    shown = [line for page in pages for line in re.findall(r"torchrun\s+--nproc[^`]*?ganbench", page.read_text())]
    assert len(shown) >= 3
    for line in shown:
        assert re.search(r"-m -- ganbench$", line), line
