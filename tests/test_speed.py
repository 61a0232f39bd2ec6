"""The speed benchmarks: each part in a process of its own, and one that fails loses no other one's rows."""

import shutil

import pytest
from support import ROOT, process

from benchmarks.speed import training
from ganbench.gan import checkpoint

CASE = """
import builtins
import os
from benchmarks.speed import Case

def case(title, ours=lambda: sum(range(1000)), agree=None):
    return Case(title, ours, {"peer": lambda: sum(range(2000))}, {"peer": 0.001}, repeats=2, count=3, unit="sums",
                agree=agree)
"""
PARTS = {
    "a_peer": """
def cases():
    builtins.left_behind = True  # as peers leave gradients switched off
    print("a peer's own words")
    os.system("echo words of a program of its own")
    yield case("first")
    yield case("second")
""",
    "b_broken": """
def disagree(ours, theirs):
    raise AssertionError("outcomes differ")

def cases():
    yield case("before the fault")
    yield case("the fault", agree=disagree)
    yield case("after the fault")
""",
    "c_killed": """
def cases():
    yield case("before the end", ours=lambda: os._exit(9))
""",
    "d_clean": """
def cases():
    assert not hasattr(builtins, "left_behind")
    yield case("by itself")
""",
}
PAGE = "# An earlier page\n\n| a table |\n\n## Reading it\n\nProse by hand.\n\n### More\n"


@pytest.fixture
def speed(tmp_path):
    """The benchmarks with fake parts in the place of the real ones."""
    folder = tmp_path / "benchmarks" / "speed"
    folder.mkdir(parents=True)
    for name in ("__init__.py", "__main__.py"):
        shutil.copy(ROOT / "benchmarks" / "speed" / name, folder / name)
    for name, text in PARTS.items():
        (folder / f"{name}.py").write_text(CASE + text)
    return lambda *args: process("-m", "benchmarks.speed", *args, cwd=tmp_path, OMP_NUM_THREADS="1")


def titles(text):
    return [row.split(" | ")[0].strip("| ") for row in text.splitlines() if " | peer | " in row]


def test_each_part_has_a_process_of_its_own_and_those_that_fail_are_named_at_the_end(speed, tmp_path):
    (tmp_path / "page.md").write_text(PAGE)
    done = speed("--out", "page.md")
    assert done.code == 1
    expected = ["first", "second", "before the fault", "by itself"]
    assert titles(done.out) == expected
    assert "outcomes differ" in done.err
    last = done.err.splitlines()[-1]
    assert last == "These parts failed, and rows of theirs are missing: b_broken, c_killed."
    assert "words" not in done.out

    page = (tmp_path / "page.md").read_text()
    assert titles(page) == expected
    assert page.startswith("# Speed, beside other tools\n")
    table, heading, prose = page.partition("\n## Reading it\n")
    assert table.splitlines()[-1].startswith("| by itself | ")
    assert heading
    assert prose == PAGE.partition("\n## Reading it\n")[2]


def test_parts_that_are_chosen_and_succeed_end_with_0(speed, tmp_path):
    done = speed("--only", "a_peer", "d_clean", "--out", "new.md")
    assert done.code == 0, done
    assert titles(done.out) == titles((tmp_path / "new.md").read_text()) == ["first", "second", "by itself"]
    row = done.out.splitlines()[-1].split(" | ")
    assert len(row) == 8
    assert row[1].endswith(" sums/s)")
    assert row[5] == "0.001"


def test_the_table_of_the_docs_has_the_columns_that_are_written():
    text = (ROOT / "benchmarks" / "speed" / "__main__.py").read_text()
    header = next(row for row in (ROOT / "docs" / "speed.md").read_text().splitlines() if row.startswith("| what |"))
    assert header in text


@pytest.mark.parametrize("case", training.CASES, ids=lambda case: case[0])
def test_the_plain_loop_of_the_training_part_is_the_step_of_the_model(case, monkeypatch):
    """One step of each from the same weights: D's loss is about the same."""
    monkeypatch.setattr(training, "STEPS", 1)
    title, model, args, batch_size, _, _ = case
    small = {k: 8 for k in ("g_width", "d_width") if k in args}
    data = training.images(checkpoint.make_model(model, {**args, **small}, title).image_shape)
    training.agree(
        training.ours(model, {**args, **small}, data, batch_size, "float32")(),
        {"plain": training.plain(model, {**args, **small}, data, batch_size, 0)()},
    )
