"""A run that is killed with -9 at random moments, twenty times, ends as one that was not."""

import json
import os
import random
import shutil
import signal
import threading

import torch
from support import fork_server, write_recipe

from ganbench.training.run_folder import CHECKPOINT, LOG, STATE


def reproduce(place, out, patience):
    """One process of a user's. Something kills it `patience` seconds after it has begun to train."""
    from ganbench import cli
    from ganbench.reporting import results
    from ganbench.training import loop

    def to_the_end(self, *args, plain=loop._Run.to_the_end):
        if patience is not None:
            threading.Timer(patience, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return plain(self, *args)

    os.chdir(place)
    torch.set_num_threads(1)
    loop.SAVE_EVERY_SECONDS = 0.02
    loop._Run.to_the_end = to_the_end
    results.git_commit = lambda: ("0" * 40, False)  # the checkpoint names it, and somebody may commit meanwhile
    cli.main(["reproduce", "tiny.toml", "--out", out, "--quiet", "--device", "cpu"])


def test_twenty_kills_at_random_moments_change_no_bit(place):
    write_recipe(place, {"steps = 6": "steps = 600"})
    server = fork_server()

    def run(out, patience=None):
        process = server.Process(target=reproduce, args=(place, out, patience))
        process.start()
        process.join()
        return process.exitcode

    def step():
        state = place / "cut/runs/tiny/seed0" / STATE
        return torch.load(state, weights_only=True)["step"] if state.exists() else 0

    moments, seen, kills = random.Random(0), [], 0
    while kills < 20:
        code = run("cut", patience=moments.uniform(0.01, 0.4))
        if code == 0:  # at its end before it was killed: again from the beginning, for the kills that are left
            shutil.move(place / "cut", place / f"cut{kills}")
        else:
            assert code == -signal.SIGKILL
            kills += 1
            seen.append(step())
    assert len(set(seen)) > 5, "the kills came at too few places to mean anything"
    assert run("cut") == 0
    assert run("whole") == 0
    for cut in place.glob("cut*"):
        compare(place / "whole/runs/tiny/seed0", cut / "runs/tiny/seed0")
        assert [*cut.rglob(".*.part")] == []


def compare(whole, cut):
    """Weights, log, optimisers, random state and metrics: the same to the bit."""
    for name in (CHECKPOINT, LOG):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name
    a, b = (torch.load(folder / STATE, weights_only=True) for folder in (whole, cut))
    a.pop("seconds"), b.pop("seconds")
    assert str(a) == str(b)
    assert torch.equal(a["rng"], b["rng"])
    a, b = (json.loads((folder / "result.json").read_text())["measurements"] for folder in (whole, cut))
    assert a == b
