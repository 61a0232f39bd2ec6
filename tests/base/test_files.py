"""Files are complete or absent, and a path that cannot be written is found before the work."""

import hashlib
import json
import os
import stat

import pytest

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
    assert stat.S_IMODE((tmp_path / "a" / "b.txt").stat().st_mode) == 0o644


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
