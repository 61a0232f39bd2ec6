"""Results: written whole or not at all, read back as they were, and with what somebody else needs to get the same."""

import dataclasses
import datetime
import json
import re
import subprocess
from importlib.metadata import version

import pytest

from ganbench import __version__
from ganbench.base.errors import UserError
from ganbench.reporting import results
from ganbench.reporting.results import Measurement, Result


def made(**changes):
    error = {"value": 0.1, "kind": "standard error", "over": "bootstrap"}
    network, details = {"name": "pixels"}, {"k": [1, 2]}
    m = Measurement("fd_pixels", "fd/1: x", "lower", 1.5, error, 10, 20, network, "a paper", details, ("small",))
    gone = Measurement("fid", "fd/1: x", "lower", reason="no weights")
    return dataclasses.replace(
        Result({"kind": "npz"}, None, [m, gone], real=[m], seed=3, created=results.now()), **changes
    )


def test_a_result_comes_back_as_it_was(tmp_path):
    results.save(made(), tmp_path / "a" / "r.json")
    assert results.load(tmp_path / "a" / "r.json") == made(created=results.load(tmp_path / "a" / "r.json").created)


def test_a_measurement_is_found_by_name_and_knows_its_error():
    assert made().measurement("fd_pixels").error == 0.1
    assert made().measurement("fid").error is None
    assert made().measurement("kid") is None


def test_a_result_is_json_without_nan_and_with_letters_as_they_are(tmp_path):
    results.save(made(fake={"name": "画像"}), tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text(encoding="utf-8")
    assert "画像" in text
    assert json.loads(text)["schema"] == results.SCHEMA
    bad = dataclasses.replace(made().measurements[0], value=float("nan"))
    with pytest.raises(ValueError, match="JSON"):
        results.save(made(measurements=[bad]), tmp_path / "r.json")
    assert (tmp_path / "r.json").read_text(encoding="utf-8") == text
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_a_later_schema_is_refused(tmp_path):
    results.save(made(schema=results.SCHEMA + 1), tmp_path / "r.json")
    with pytest.raises(
        UserError, match=rf"r\.json has schema {results.SCHEMA + 1}, and this ganbench reads {results.SCHEMA}"
    ):
        results.load(tmp_path / "r.json")


def test_all_results_below_a_folder_are_found_in_the_order_of_their_paths(tmp_path):
    for name in ("b/seed1", "a/seed0", "b/seed0"):
        results.save(made(), tmp_path / name / results.RESULT)
    (tmp_path / "b" / "other.json").write_text("{")
    found = [str(p.parent.relative_to(tmp_path)) for p, _ in results.load_all(tmp_path)]
    assert found == ["a/seed0", "b/seed0", "b/seed1"]
    assert results.load_all(tmp_path / "gone") == []


def test_the_environment_says_what_ran_on_what():
    env = results.environment("cpu (1 thread)")
    assert env["ganbench"] == __version__
    assert env["device"] == "cpu (1 thread)"
    assert env["packages"]["torch"] == version("torch")
    assert env["cpus"] >= 1
    assert json.loads(json.dumps(env)) == env


def test_the_time_is_utc_to_the_second():
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", results.now())
    age = datetime.datetime.now(datetime.timezone.utc) - datetime.datetime.fromisoformat(results.now())
    assert abs(age.total_seconds()) < 5


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with a package in it, which results.py believes to be its own."""

    def git(*args):
        subprocess.run(
            ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *args], check=True, capture_output=True
        )

    (tmp_path / "ganbench").mkdir()
    (tmp_path / "ganbench" / "results.py").write_text("")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "table.md").write_text("")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "a")
    monkeypatch.setattr(results, "__file__", str(tmp_path / "ganbench" / "reporting" / "results.py"))
    return tmp_path


@pytest.fixture(autouse=True)
def new_process():
    """Each test asks for the commit as a new process would: the answer is kept for a process's life."""
    results.git_commit.cache_clear()
    yield
    results.git_commit.cache_clear()


def test_the_commit_is_that_of_the_code_and_changes_to_it_are_told(checkout):
    commit, dirty = results.git_commit()
    assert re.fullmatch("[0-9a-f]{40}", commit)
    assert not dirty
    (checkout / "results" / "table.md").write_text("what a run writes")
    (checkout / "notes.txt").write_text("not tracked")
    results.git_commit.cache_clear()
    assert results.git_commit() == (commit, False)
    (checkout / "ganbench" / "results.py").write_text("changed")
    assert results.git_commit() == (commit, False)  # the code that runs was read before
    results.git_commit.cache_clear()
    assert results.git_commit() == (commit, True)


def test_outside_of_a_repository_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "__file__", str(tmp_path / "ganbench" / "reporting" / "results.py"))
    assert results.git_commit() == ("", False)
