"""Memory that is free: limits of control groups and of the process, and the refusal of what needs more."""

import doctest
import re
import resource
import sys

import pytest
from support import process

from ganbench.base import memory
from ganbench.base.errors import UserError

GIB = 1 << 30


def group(folder, version, limit, used, cache):
    """Write the files of a control group."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {2: ("memory.max", "memory.current", "inactive_file"),
             1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")}[version]
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 7\n{names[2]} {cache}\n")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("limits", "free"),
    [
        ((8 * GIB, 4 * GIB), 4 * GIB - 2 * GIB + GIB),  # the job's own limit
        ((3 * GIB, 4 * GIB), 3 * GIB - 2 * GIB + GIB),  # a limit above it
        (("max", 4 * GIB), 4 * GIB - 2 * GIB + GIB),
        (("max", "max"), memory.UNKNOWN),
    ],
)
def test_the_least_limit_of_the_groups_above_a_process_counts_and_cached_files_are_free(
    tmp_path, version, limits, free
):
    root = tmp_path if version == 2 else tmp_path / "memory"
    group(root / "slurm", version, limits[0], 2 * GIB, GIB)
    group(root / "slurm" / "job_1" / "step_0", version, limits[1], 2 * GIB, GIB)
    own = tmp_path / "own"
    own.write_text("0::/slurm/job_1/step_0\n" if version == 2 else "5:cpu:/x\n4:memory,foo:/slurm/job_1/step_0\n")
    assert memory._cgroup(tmp_path, own) == free


def test_no_groups_set_no_limit(tmp_path):
    assert memory._cgroup(tmp_path / "none", tmp_path / "gone") == memory.UNKNOWN
    (tmp_path / "own").write_text("nonsense\n0::/a/../../../..\n")
    assert memory._cgroup(tmp_path, tmp_path / "own") == memory.UNKNOWN


def test_what_fits_passes_and_what_does_not_is_refused_in_one_line(monkeypatch):
    free = memory.available()
    assert 0 < free < 1 << 50
    memory.require(1 << 20, "a small array")
    monkeypatch.setattr(memory, "available", lambda: 3 * GIB)
    memory.require(3 * GIB, "an array")
    with pytest.raises(UserError, match=r"^the covariance of 786,432 features: 14 TiB .* 3 GiB are free: \S[^\n]*$"):
        memory.require(786_432**2 * 8 * 3, "the covariance of 786,432 features")


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v is Linux's")
def test_a_limit_of_the_address_space_counts(tmp_path):
    code = "from ganbench.base import memory; print(memory.available())"
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({GIB}, {resource.RLIM_INFINITY})); {code}"
    done = process("-c", limit, cwd=tmp_path)
    assert done.code == 0, done.err
    assert 0 < int(done.out) < GIB


@pytest.mark.parametrize(
    ("size", "text"),
    [(99.6 * GIB, "100 GiB"), (99.4 * GIB, "99 GiB"), (512 * GIB, "512 GiB"), (4.5 * 1024 * GIB, "4.5 TiB"),
     (1 << 19, "0.5 MiB")],
)
def test_sizes_are_written_for_people(size, text):
    assert memory.in_words(int(size)) == text
    assert not re.search("e[+-]", memory.in_words(int(size)))


def test_the_example_in_the_docstring_works():
    found = doctest.testmod(memory)
    assert (found.failed, found.attempted) == (0, 1)
