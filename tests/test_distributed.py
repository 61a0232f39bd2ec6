"""Several processes under torchrun give the values of one; without torchrun there is nothing to see of it."""

import json

import numpy as np
import pytest
import torch
from support import process

from ganbench import distributed

EVALUATE = ["-m", "ganbench", "evaluate", "--images", "images.npz", "--reference", "digits:train", "--quiet", "--json",
            "--metrics", "fd_pixels,kd_pixels,precision_pixels,ms_ssim_all", "--batch-size", "16"]  # fmt: skip


@pytest.fixture
def images(place):
    rng = np.random.default_rng(0)
    np.savez(place / "images.npz", arr_0=rng.integers(0, 256, (101, 8, 8, 1), dtype=np.uint8))


def test_two_processes_give_the_values_of_one(place, images):
    one = process(*EVALUATE, "--no-cache", cwd=place)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = process(*launch, *EVALUATE, "--no-cache", cwd=place, OMP_NUM_THREADS="1")
    assert (one.code, two.code) == (0, 0), two.err
    alone, together = json.loads(one.out), json.loads(two.out)
    for kind in ("measurements", "real"):
        assert len(alone[kind]) == len(together[kind]) > 0
        for a, b in zip(alone[kind], together[kind], strict=True):
            assert a["value"] is not None
            assert b["metric"] == a["metric"]
            assert b["value"] == pytest.approx(a["value"], rel=1e-6)
            assert b["n_fake"] == a["n_fake"]


def test_a_mistake_is_said_once(place):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = process(*launch, *EVALUATE, cwd=place, OMP_NUM_THREADS="1")
    assert done.code != 0
    assert done.err.count("ganbench: error: cannot read images from 'images.npz'") <= 1


def test_one_process_alone_keeps_its_rows_and_decides_for_itself():
    rows = torch.arange(6).view(3, 2)
    assert distributed.gather(rows) is rows
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.decide(True)
    assert not distributed.decide(False)
