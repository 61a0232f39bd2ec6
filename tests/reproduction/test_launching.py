"""Jobs: what would be run is printed, local jobs are waited for, Slurm's are submitted, and all can be interrupted."""

import json
import os
import pickle
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import everything_below, write_recipe

from ganbench.base.errors import UserError
from ganbench.reproduction import jobs, launching

GROUP = 'name = "two"\ntitle = "Two"\npaper = "none"\nrecipes = ["a.toml", "b.toml"]\n'


@pytest.fixture
def two(place):
    """A group of two tiny recipes, the second on a data set that is not there."""
    write_recipe(place, name="a")
    write_recipe(place, {'data = "digits:train"': 'data = "mnist:train"'}, name="b")
    (place / "two.toml").write_text(GROUP)
    return "two.toml"


@pytest.fixture
def slurm(place, monkeypatch):
    """An `sbatch` that takes every job and keeps its file, and an `srun`: what submitit looks for."""
    tools = place.parent / "bin"
    tools.mkdir()
    kept = place.parent / "submitted.sh"
    for name, script in (("srun", "exit 0"), ("sbatch", f'cp "$1" "{kept}"\necho "Submitted batch job 4711"')):
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return kept


# --- Without running anything ---


def test_a_dry_run_prints_a_command_a_job_and_writes_nothing(ganbench, place, two):
    before = everything_below(place)
    options = "--seeds", "0,3", "--steps", "4", "--out", "some where", "--fresh"
    for launcher in ([], ["--launcher", "local"], ["--launcher", "slurm", "--launcher-arg", "slurm_partition=gpu"]):
        done = ganbench("reproduce", two, *options, *launcher, "--dry-run")
        assert (done.code, done.err) == (0, "")
        assert done.out.splitlines() == [
            f"ganbench reproduce {name}.toml --seeds {seed} --steps 4 --out 'some where' --fresh --offline"
            for name in "ab"
            for seed in (0, 3)
        ]
    value = json.loads(ganbench("reproduce", two, *options, "--dry-run", "--json").out)
    assert [(job["recipe"], job["seed"], job["id"]) for job in value["jobs"]][1:3] == [
        ("a.toml", 3, None), ("b.toml", 0, None)
    ]
    assert shlex.split(value["jobs"][0]["command"])[:3] == ["ganbench", "reproduce", "a.toml"]
    assert everything_below(place) == before


def test_weights_go_to_the_jobs_whose_metrics_use_them(ganbench, place, two):
    write_recipe(place, {'metrics = ["fd_pixels"]': 'metrics = ["fd_small-cnn"]'}, name="b")
    done = ganbench("reproduce", two, "--weights", "small-cnn=my weights.safetensors", "--dry-run")
    assert done.out.splitlines() == [
        "ganbench reproduce a.toml --seeds 0 --out results --offline",
        "ganbench reproduce b.toml --seeds 0 --out results --offline --weights 'small-cnn=my weights.safetensors'",
    ]


def test_what_is_done_is_no_job_unless_it_is_to_be_done_again(ganbench, place):
    path = write_recipe(place)
    assert ganbench("reproduce", path).code == 0
    args = "reproduce", path, "--seeds", "0,1", "--dry-run"
    done = ganbench(*args)
    assert done.out.splitlines() == [f"ganbench reproduce {path} --seeds 1 --out results --offline"]
    assert "already done: 1 of 2 runs" in done.err
    assert len(ganbench(*args, "--fresh").out.splitlines()) == 2
    assert len(ganbench(*args, "--steps", "3").out.splitlines()) == 2
    write_recipe(place, {"num = 40": "num = 41"})
    assert len(ganbench(*args).out.splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("gpu", "gpu"),
        ("600", 600),
        ("1.5", 1.5),
        ("true", True),
        ('["module load cuda"]', ["module load cuda"]),
        ("a=b", "a=b"),
    ],
)
def test_a_parameter_is_json_or_text(text, value):
    assert launching.parse_args((f"slurm_setup={text}",)) == {"slurm_setup": value}


@pytest.mark.parametrize("items", [("slurm_partition",), ("=gpu",), ("a b=1",), ("a=1", "a=2")])
def test_a_parameter_that_is_none_or_given_twice_is_refused(items):
    with pytest.raises(UserError, match="--launcher-arg"):
        launching.parse_args(items)


# --- On this machine ---


def test_local_jobs_are_waited_for_and_one_that_fails_keeps_no_other_from_running(ganbench, place, two):
    done = ganbench("reproduce", two, "--launcher", "local", "--jobs", "2", "--out", "out")
    assert done.code == 1, done
    assert "| a " in done.out
    assert "| b " not in done.out
    assert "[2/2] b.toml seed 0: begun" in done.err
    assert "a.toml seed 0: done after" in done.err
    assert done.err.splitlines()[-1].startswith("ganbench: job failed: recipe 'b': the data set 'mnist' is missing")
    assert (place / "out/runs/a/seed0/result.json").exists()
    text = (place / "out/tables/two.md").read_text(encoding="utf-8")
    assert "fd_pixels ↓" in text
    assert "not run" in text  # b
    (log,) = [p for p in (place / "out/jobs").glob("*_log.out") if "fd_pixels" in p.read_text(encoding="utf-8")]
    assert log.exists()
    again = ganbench("reproduce", "a.toml", "--launcher", "local", "--out", "out")
    assert again.code == 0
    assert "already done: 1 of 1" in again.err
    assert "begun" not in again.err


class Gone:
    """A job of submitit's: not done the first three times that any is asked, so that the second is the first to end."""

    def __init__(self, place, alive):
        self.alive = alive
        self.paths = SimpleNamespace(stderr=place / "none", result_pickle=place)

    def done(self):
        self.alive[0] -= 1
        return self.alive[0] < 0


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [
        (None, 2, ["0", "1", "1", "0"]),
        ("3, GPU-a", 2, ["3", "GPU-a", "GPU-a", "3"]),
        ("7", 1, ["7", "7", "7", "7"]),
        (None, 0, [None] * 4),
        ("", 0, [""] * 4),
    ],
)
def test_local_jobs_share_out_the_accelerators(monkeypatch, place, visible, count, expected):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    given, alive = [], [3]

    def submit(work):
        given.append(work.environment["CUDA_VISIBLE_DEVICES"])
        return Gone(place, alive)

    four = [jobs.Job("a", seed, ()) for seed in range(4)]
    assert launching.run(four, SimpleNamespace(submit=submit), 2, False, lambda text: None) == {}
    assert given == expected


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.1)


def test_sigterm_makes_local_jobs_save_and_end(place):
    path = write_recipe(place, {"steps = 6": "steps = 1000000"})
    command = [sys.executable, "-m", "ganbench", "reproduce", str(path), "--launcher", "local", "--device", "cpu"]
    parent = subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run = place / "results/runs/tiny/seed0"
    try:
        wait_for(lambda: (run / "log.jsonl").exists() or (run / ".lock").exists())
        time.sleep(1)
        parent.send_signal(signal.SIGTERM)
        out, err = parent.communicate(timeout=120)
    finally:
        parent.kill()
    assert parent.returncode == 143, err
    assert out == ""
    words = "interrupted; the jobs have saved where they were; the same command goes on from there"
    assert err.splitlines()[-1] == f"ganbench: {words}"
    assert (run / "state.pt").exists()
    (log,) = (place / "results/jobs").glob("*_log.err")
    assert "which is saved" in log.read_text(encoding="utf-8")
    assert not list((place / "results/jobs").glob("*_result.pkl"))


# --- In a job ---

IN_A_JOB = """
import signal, sys
from ganbench.reproduction.jobs import Work
work = Work(tuple(sys.argv[1:]), {"OMP_NUM_THREADS": "1"})
def requeue(number, frame):
    again = work.checkpoint().function
    print(again.args, again.environment, flush=True)
    sys.exit(77)
signal.signal(signal.SIGUSR2, requeue)
work()
"""


def test_before_the_time_limit_a_job_saves_and_goes_on_later_without_beginning_afresh(place):
    path = write_recipe(place, {"steps = 6": "steps = 1000000"})
    args = "reproduce", str(path), "--fresh", "--device", "cpu"
    job = subprocess.Popen([sys.executable, "-c", IN_A_JOB, *args], cwd=place, stdout=subprocess.PIPE, text=True)
    run = place / "results/runs/tiny/seed0"
    try:
        wait_for(lambda: (run / ".lock").exists())
        time.sleep(1)
        job.send_signal(signal.SIGUSR2)
        out, _ = job.communicate(timeout=120)
    finally:
        job.kill()
    assert job.returncode == 77
    assert out.splitlines()[-1] == f"('reproduce', {str(path)!r}, '--device', 'cpu') {{'OMP_NUM_THREADS': '1'}}"
    assert (run / "state.pt").exists()


def test_a_job_ends_with_the_code_of_its_command_and_is_told_once(place):
    code = "from ganbench.reproduction.jobs import Work; Work(('nonsense',))()"
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("ganbench: error: No such command 'nonsense'")


# --- By Slurm ---


def test_slurm_jobs_are_submitted_as_one_array_and_not_waited_for(ganbench, place, slurm, two):
    options = ["--launcher-arg", "slurm_partition=gpu", "--launcher-arg", "timeout_min=90", "--jobs", "3"]
    done = ganbench("reproduce", two, "--seeds", "0,1", "--launcher", "slurm", *options, "--out", "out")
    assert done.code == 0, done
    assert done.out.splitlines() == [
        f"4711_{i}  ganbench reproduce {name}.toml --seeds {seed} --out out --offline"
        for i, (name, seed) in enumerate([("a", 0), ("a", 1), ("b", 0), ("b", 1)])
    ]
    assert "next: " in done.err
    lines = slurm.read_text(encoding="utf-8").splitlines()
    jobs = place / "out/jobs"
    for line in ("--partition=gpu", "--time=90", "--array=0-3%3", "--job-name=ganbench", "--signal=USR2@90",
                 f"--output={jobs}/%A_%a_0_log.out", f"--error={jobs}/%A_%a_0_log.err"):
        assert f"#SBATCH {line}" in lines
    with open(jobs / "4711_2_submitted.pkl", "rb") as file:
        work = pickle.load(file).function
    assert work.args == ("reproduce", "b.toml", "--seeds", "0", "--out", "out", "--offline")
    assert not (place / "out/runs").exists()


def test_a_slurm_job_makes_its_run_and_the_command_without_launcher_finds_it(ganbench, place, slurm):
    path = write_recipe(place)
    done = ganbench("reproduce", path.name, "--launcher", "slurm", "--out", "out", "--quiet")
    assert done.out == "4711  ganbench reproduce tiny.toml --seeds 0 --out out --quiet --offline\n"
    env = {**os.environ, "SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "4711", "SLURM_PROCID": "0"}
    job = [sys.executable, "-m", "submitit.core._submit", str(place / "out/jobs")]
    subprocess.run(job, cwd=place, env=env, check=True, capture_output=True)
    assert "already done" in ganbench("reproduce", path.name, "--out", "out").err


def test_a_job_that_slurm_starts_again_does_not_begin_afresh(monkeypatch, place):
    seen = []

    class Ended:
        def __init__(self, command, **_):
            seen.append(command[3:])

        def poll(self):
            return 0

    monkeypatch.setattr(subprocess, "Popen", Ended)
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        for count in ("0", "1"):
            monkeypatch.setenv("SLURM_RESTART_COUNT", count)
            jobs.Work(("reproduce", "tiny", "--fresh"))()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert seen == [["reproduce", "tiny", "--fresh"], ["reproduce", "tiny"]]


# --- Mistakes ---


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--launcher-arg", "needs --launcher"], ["--launcher-arg", "timeout_min=1"]),
        (["--jobs", "needs --launcher"], ["--jobs", "2"]),
        (["--jobs", "0"], ["--launcher", "local", "--jobs", "0"]),
        (["'--launcher'", "'pbs'", "local", "slurm"], ["--launcher", "pbs"]),
        (["--launcher-arg 'timeout_min'", "KEY=VALUE"], ["--launcher", "local", "--launcher-arg", "timeout_min"]),
        (["--launcher-arg", "nonsense"], ["--launcher", "local", "--launcher-arg", "nonsense=1"]),
        (["--launcher-arg", "timeout_min"], ["--launcher", "local", "--launcher-arg", "timeout_min=soon"]),
        (["--launcher slurm", "srun"], ["--launcher", "slurm"]),
    ],
    ids=str,
)
def test_a_launcher_that_cannot_be_used_is_refused_before_anything_is_written(
    refuses, place, monkeypatch, words, options
):
    monkeypatch.setenv("PATH", "/nowhere")
    refuses(words, "reproduce", write_recipe(place), "--out", "out", *options)


def test_a_parameter_that_slurm_does_not_have_is_named(refuses, place, slurm):
    options = "--launcher", "slurm", "--launcher-arg", "slurm_partitoin=gpu"
    refuses(["--launcher-arg", "partitoin"], "reproduce", write_recipe(place), *options)


def test_what_sbatch_answers_is_said(ganbench, place, slurm):
    (Path(slurm).parent / "bin/sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    done = ganbench("reproduce", write_recipe(place), "--launcher", "slurm", "--out", "out")
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("ganbench: error: the jobs were not submitted: ")
    assert done.err.splitlines()[-1].endswith("invalid partition.")


def test_without_submitit_the_extra_that_brings_it_is_named(refuses, place, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    refuses(["submitit", "ganbench[launch]"], "reproduce", write_recipe(place), "--launcher", "local")
