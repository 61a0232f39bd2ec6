"""Files are complete or absent, and a path that cannot be written is found before the work."""

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import process

from ganbench.base import files
from ganbench.base.errors import UserError
from ganbench.base.files import atomic_path, read_json, require_writable, sha256_of, write_json, write_text


def write_half(path, error):
    with atomic_path(path) as part:
        part.write_text("half")
        raise error


def test_a_file_appears_only_when_complete_and_missing_folders_are_made(tmp_path):
    with atomic_path(tmp_path / "a" / "b.txt") as part:
        part.write_text("half")
        assert not (tmp_path / "a" / "b.txt").exists()
        assert part.parent == tmp_path / "a"  # in the same folder, so that renaming is atomic
    assert (tmp_path / "a" / "b.txt").read_text() == "half"
    assert os.listdir(tmp_path / "a") == ["b.txt"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_mode_of_the_umask_and_an_old_one_keeps_its_own(tmp_path, umask, mode):
    def replaced_by_its_writer(part):  # as safetensors does
        os.close(os.open(tmp_path / "other", os.O_CREAT, 0o600))
        os.replace(tmp_path / "other", part)

    before = os.umask(umask)
    try:
        write_text(tmp_path / "a.txt", "new")
        with atomic_path(tmp_path / "b.txt") as part:
            replaced_by_its_writer(part)
        (tmp_path / "c.txt").write_text("old")
        (tmp_path / "c.txt").chmod(0o640)
        write_text(tmp_path / "c.txt", "new")
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / f"{name}.txt").stat().st_mode) for name in "abc"] == [mode, mode, 0o640]


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far/a.txt")  # nothing is there yet
    (tmp_path / "second").symlink_to(tmp_path / "link")
    for text in ("one", "two"):
        require_writable(tmp_path / "second", "--out")
        write_text(tmp_path / "second", text)
        assert (tmp_path / "second").is_symlink()
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "far" / "a.txt").read_text() == text
    assert os.listdir(tmp_path / "far") == ["a.txt"]
    (tmp_path / "circle").symlink_to("circle")
    for act in (lambda: require_writable(tmp_path / "circle", "--out"), lambda: write_text(tmp_path / "circle", "")):
        with pytest.raises(UserError, match="circle"):
            act()


def test_a_device_and_a_pipe_are_written_and_never_replaced(tmp_path, monkeypatch):
    def never(source, target):
        raise AssertionError(f"{target} would be replaced")

    monkeypatch.setattr(os, "replace", never)  # so that a fault does not cost the machine its devices
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    require_writable(pipe, "--out")
    write_text(pipe, "through the pipe")
    assert os.read(reader, 100) == b"through the pipe"
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    os.close(reader)
    (tmp_path / "null").symlink_to(os.devnull)
    write_text(tmp_path / "null", "gone")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert sorted(os.listdir(tmp_path)) == ["null", "pipe"]
    with pytest.raises(UserError, match=r"cannot write /dev/full: No space left"):
        write_text(Path("/dev/full"), "x")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_standard_output_gets_the_file_in_its_place_between_what_is_printed(tmp_path):
    code = (
        "from pathlib import Path; from ganbench.base.files import require_writable, write_text\n"
        "print('before', flush=True); path = Path('/dev/stdout'); require_writable(path, '--out')\n"
        "write_text(path, 'file\\n'); print('after')\n"
    )
    with open(tmp_path / "out", "w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True, timeout=60)
    assert (tmp_path / "out").read_text() == "before\nfile\nafter\n"
    done = process("-c", code, cwd=tmp_path)
    assert (done.code, done.out) == (0, "before\nfile\nafter\n"), done.err


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EPERM])
def test_a_file_that_cannot_be_renamed_over_is_written_in_place(tmp_path, monkeypatch, number):
    def refuse(source, target):
        raise OSError(number, os.strerror(number))

    (tmp_path / "a.txt").write_text("something longer")
    monkeypatch.setattr(os, "replace", refuse)
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    with pytest.raises(UserError, match=rf"b\.txt: {os.strerror(number)}"):
        write_text(tmp_path / "b.txt", "new")
    assert os.listdir(tmp_path) == ["a.txt"]


def test_parts_of_killed_processes_are_removed_after_a_day_and_no_others(tmp_path, monkeypatch):
    ended = subprocess.Popen(["true"])
    ended.wait()
    host, day = files._host(), 24 * 3600
    old = {
        f".a.json.{host}-{ended.pid}-0123abcd.part": True,
        ".a.npz.elsewhere-1-0123abcd.part": True,
        f".a.safetensors.{ended.pid}.part": True,  # as an earlier version named it
        f".a.json.{host}-{os.getpid()}-0123abcd.part": False,  # of a living process
        f".film.{ended.pid}.part": False,  # somebody else's
        "a.json": False,
    }
    for name in old:
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (time.time() - day - 60,) * 2)
    young = f".b.json.{host}-{ended.pid}-0123abcd.part"
    (tmp_path / young).write_text("")
    monkeypatch.setattr(files, "_tidied", set())
    write_text(tmp_path / "new.txt", "")
    assert set(os.listdir(tmp_path)) == {"new.txt", young} | {name for name, gone in old.items() if not gone}


def test_two_writers_with_one_process_id_do_not_meet(tmp_path, monkeypatch):
    """Two containers may have the same process ids and write to one folder."""
    path = tmp_path / ("long" * 60)
    with atomic_path(path) as one, atomic_path(path) as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one"
    assert files.PART.fullmatch(one.name)


def test_a_failure_keeps_the_old_file_and_leaves_no_other(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ZeroDivisionError):
        write_half(tmp_path / "a.txt", ZeroDivisionError())
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_is_a_user_error_and_leaves_no_file(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*a\.txt: No space left"):
        write_half(tmp_path / "a.txt", OSError(28, "No space left on device"))
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_a_user_error_whatever_library_writes(tmp_path):
    writes = ("save_file(t, part)", "torch.save(t, part)", "np.savez(open(part, 'wb'), t['a'])")
    code = (
        "import resource, numpy as np, torch; from pathlib import Path; from safetensors.torch import save_file\n"
        "from ganbench.base.errors import UserError; from ganbench.base.files import atomic_path\n"
        "t = {'a': torch.zeros(100_000)}; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    ) + "".join(
        f"try:\n    with atomic_path(Path('a')) as part: {write}\nexcept UserError as error: print(error)\n"
        for write in writes
    )
    done = process("-c", code, cwd=tmp_path)
    assert done.code == 0, done.err
    assert [line[:16] for line in done.out.splitlines()] == ["cannot write a: "] * len(writes)
    assert os.listdir(tmp_path) == []


def test_json_is_written_and_read_without_nan(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1, 0.5, None]})
    assert read_json(tmp_path / "a.json", "thing") == {"é": [1, 0.5, None]}
    assert (tmp_path / "a.json").read_text(encoding="utf-8").endswith("}\n")
    for bad in ("NaN", "Infinity", "-Infinity"):
        with pytest.raises(ValueError, match="JSON"):
            write_json(tmp_path / "b.json", float(bad))
        (tmp_path / "b.json").write_text(json.dumps({"x": float(bad)}))
        with pytest.raises(UserError, match=rf"the thing .*b\.json is not valid JSON \({bad}"):
            read_json(tmp_path / "b.json", "thing")


def test_a_path_that_cannot_be_written_is_refused_and_nothing_is_made(tmp_path):
    (tmp_path / "file").write_text("")
    require_writable(tmp_path / "new" / "folder" / "a.json", "--out")
    require_writable(tmp_path / "file", "--out")
    with pytest.raises(UserError, match=r"--out .*file/a\.json cannot be written: .*file is a file"):
        require_writable(tmp_path / "file" / "a.json", "--out")
    with pytest.raises(UserError, match="is a folder"):
        require_writable(tmp_path, "--out")
    assert os.listdir(tmp_path) == ["file"]


def test_sha256_of_hashes_the_bytes_of_a_file(tmp_path):
    data = bytes(range(256)) * 5000  # longer than one read
    (tmp_path / "a").write_bytes(data)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(data).hexdigest()
