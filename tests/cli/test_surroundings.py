"""Commands in bad surroundings: no home, no data folder, a full disk, closed or broken outputs, broken plugins."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support import everything_below, process

EVALUATE = ["evaluate", "--images", "digits:test", "--reference", "digits:train", "--metrics", "fd_pixels"]
# Two commands as a user who is not root, who may read everything. What they import must be imported before.
UNPRIVILEGED = f"""
import contextlib, os, sys
from pathlib import Path
import ganbench.doctor, ganbench.evaluation.run, ganbench.reporting.tables, platformdirs, pandas
from ganbench.cli import main
from ganbench.data.datasets.digits import digits
digits("train", Path("."), False)
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
for command in {EVALUATE}, ["doctor"]:
    try:
        main(command, prog_name="ganbench")
    except SystemExit as end:
        print("exit code", end.code)
"""


def test_the_doctor_reports_where_everything_else_is_broken(place):
    plugin = place / "plugin"
    (plugin / "noisy-1.dist-info").mkdir(parents=True)
    (plugin / "noisy-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: noisy\nVersion: 1\n")
    (plugin / "noisy-1.dist-info" / "entry_points.txt").write_text(
        "[ganbench.models]\nbroken = noisy_broken:Model\nloud = noisy_loud:Model\n"
        "[ganbench.datasets]\ndigits = noisy_loud:Model\n"  # a name that ganbench has too
    )
    (plugin / "noisy_broken.py").write_text("raise SystemExit('I end everything')\n")
    (plugin / "noisy_loud.py").write_text("print('printed by the plugin')\nclass Model: pass\n")
    weights = place / "data" / "weights"
    weights.mkdir(parents=True)
    (weights / "pt_inception-2015-12-05-6726825d.pth").write_bytes(b"half a file")
    done = process(
        "-m", "ganbench", "doctor", cwd=place, PYTHONPATH=str(plugin), GANBENCH_DATA=str(place / "data"),
        HOME="/nowhere",
    )
    assert done.code == 0, done.err
    lines = {line.split()[1]: line for line in done.out.splitlines() if line.startswith(("  ok", "  --"))}
    assert "damaged: delete" in lines["inception-v3"]
    assert lines["broken"].startswith("  --")
    assert "SystemExit: I end everything" in lines["broken"]
    assert lines["loud"].startswith("  ok")
    assert "two packages provide the dataset 'digits'" in lines["digits"]
    assert {"digits", "mnist", "cifar10", "pixels"} <= lines.keys()
    assert "printed by the plugin" not in done.out
    assert "printed by the plugin" in done.err


@pytest.mark.parametrize("given", ["~nosuchuser", "~nosuchuser/data"])
def test_a_data_folder_of_nobody_is_one_line_and_the_doctor_says_it(ganbench, refuses, monkeypatch, given):
    monkeypatch.setenv("GANBENCH_DATA", given)
    refuses([f"GANBENCH_DATA={given}"], *EVALUATE)
    done = ganbench("doctor")
    assert (done.code, done.err) == (0, "")
    assert f"GANBENCH_DATA={given} names no home folder" in done.out
    assert "mnist" in done.out


def test_a_user_without_a_home_is_told_to_name_a_data_folder(ganbench, refuses, monkeypatch):
    for name in ("GANBENCH_DATA", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as of a user whom the system does not know
    refuses(["no home folder", "GANBENCH_DATA"], *EVALUATE)
    assert "no home folder" in ganbench("doctor").out


@pytest.mark.parametrize(("mode", "said"), [(0o000, "may not be read"), (0o500, "may not be written")])
def test_a_data_folder_that_may_not_be_used_costs_the_cache_alone(place, mode, said):
    (place / "run.py").write_text(UNPRIVILEGED)
    with tempfile.TemporaryDirectory() as top:  # which other users may reach, unlike the folders of pytest
        data = Path(top) / "data"
        data.mkdir()
        if os.geteuid() == 0:
            os.chown(data, 65534, 65534)
        data.chmod(mode)
        Path(top).chmod(0o755)
        done = process("run.py", cwd=place, GANBENCH_DATA=str(data))
        data.chmod(0o700)
        assert os.listdir(data) == []
    assert done.code == 0, done.err
    evaluation, _, doctor = done.out.partition("exit code 0\n")
    assert "fd_pixels" in evaluation
    assert f"features are not kept: {data}" in done.err
    assert said in doctor
    assert doctor.endswith("exit code 0\n")


def shell(line, place, **env):
    """A line of bash in which $G is the command line."""
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], cwd=place, capture_output=True, text=True, timeout=120,
        env={**os.environ, "G": f"{sys.executable} -m ganbench", **env},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "command",
    ["train-classifier digits:train[:200] --out a.safetensors", "sample --ckpt tiny.safetensors --num 3000 --out a.npz",
     "statistics digits --extractor pixels --out a.npz", "sample --ckpt tiny.safetensors --num 3000 --grid a.png"],
)
def test_a_full_disk_is_one_line_and_leaves_nothing(place, ckpt, command):
    before = everything_below(place)
    code, out, err = shell(f"ulimit -f 20; $G {command} --quiet", place, GANBENCH_DATA=str(place.parent / "data"))
    assert code == 2, err
    assert err.startswith("ganbench: error: cannot write a.")
    assert err.count("\n") == 1
    assert everything_below(place) == before
    assert "a." not in out


def test_outputs_that_are_closed_or_that_nobody_reads_change_nothing_else(place):
    assert shell("$G list models 2>&- | grep -c '^acgan '", place) == (0, "1\n", "")
    assert shell("$G list models >&-", place)[::2] == (0, "")
    code, out, err = shell(f"$G {' '.join(EVALUATE)} --out a.json 2>&- >&- <&-", place)
    assert (code, out, err) == (0, "", "")
    assert (place / "a.json").read_text().startswith("{")
    code, out, err = shell("$G list | head -1", place)
    assert (code, out, err) == (0, "models:\n", "")
    # The exit code of a check is the same whoever reads.
    assert shell("$G evalute | true; exit ${PIPESTATUS[0]}", place)[0] == 2
    assert shell("{ sleep 1; $G check nothing.json; } 2>&1 | true; exit ${PIPESTATUS[0]}", place)[0] == 2


def test_a_working_directory_that_was_deleted_is_one_line_and_the_doctor_works(place):
    gone = "mkdir gone; cd gone; rmdir ../gone;"
    code, out, err = shell(f"{gone} $G {' '.join(EVALUATE)}", place)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == "ganbench: error: the working directory was deleted: change to another folder."
    code, out, _ = shell(f"{gone} $G doctor", place)
    assert code == 0
    assert "data sets:" in out
