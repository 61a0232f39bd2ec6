"""`ganbench baseline`, `check` and `compare` on files, from end to end."""

import json
import shutil

import pytest
from support import write_recipe

from ganbench.reporting import results
from ganbench.reporting.results import Measurement, Result


def save(path, value, error=0.1, seed=0, created="2026-01-01T00:00:00+00:00", metric="fd", direction="lower", **fields):
    fields = {"recipe": {"name": "tiny", "version": 1}, "fake": {"checkpoint_sha256": f"{seed:02}"}} | fields
    m = Measurement(metric, "fd/1", direction, value, {"value": error, "kind": "standard error", "over": "x"})
    results.save(Result(reference=None, measurements=[m], seed=seed, created=created, **fields), path)
    return path


@pytest.fixture
def seeds(place):
    """Files of four seeds, and a baseline of these."""
    return [save(place / f"{i}.json", v, seed=i) for i, v in enumerate((3.2, 3.8, 3.3, 3.5))]


@pytest.fixture
def base(ganbench, seeds):
    done = ganbench("baseline", *seeds, "--out", "base.json")
    assert done.code == 0, done.err
    assert "spread over 4 runs" in done.out
    return "base.json"


def test_another_seed_is_no_regression_and_a_worse_model_is(ganbench, base, place):
    done = ganbench("check", base, save(place / "new.json", 3.7, seed=8), "--junit", "j.xml")
    assert (done.code, done.err) == (0, "")
    assert "One run against a baseline of 4 runs" in done.out
    assert "1 % of checks" in done.out
    assert "90 % probability" in done.out
    done = ganbench("check", base, save(place / "new.json", 5.5, seed=8))
    assert done.code == 1
    assert done.err == f"ganbench: check failed: fd ({place / 'new.json'} against base.json)\n"
    several = [save(place / f"new{i}.json", v, seed=10 + i) for i, v in enumerate((4.4, 4.6, 4.5))]
    assert ganbench("check", base, several[0]).code == 0
    assert ganbench("check", base, *several).code == 1
    assert ganbench("check", base, several[0], "--false-alarms", "0.3").code == 1


@pytest.mark.parametrize("bad", ["NaN", "1e999", '"nan"', '"12.5"', "-1e999", "1" + 400 * "0"])
@pytest.mark.parametrize("key", ["value", "uncertainty"])
@pytest.mark.parametrize("worse", ["312.5", "0.25"])
def test_no_number_in_a_result_or_a_baseline_lets_anything_pass(ganbench, base, place, bad, key, worse):
    """A result that is a hundred times worse, or one that is not: the check fails or refuses, without a traceback."""
    path = save(place / "new.json", float(worse), error=0.125, seed=8)
    number = worse if key == "value" else "0.125"
    text = path.read_text()
    assert text.count(f'"value": {number}') == 1
    path.write_text(text.replace(f'"value": {number}', f'"value": {bad}'))
    for args in (["check", base, path], ["check", path, "0.json"], ["baseline", "0.json", path, "--out", "b.json"]):
        done = ganbench(*args)
        assert done.code in (1, 2), args
        assert done.err.count("\n") == 1
        assert "ganbench: " in done.err
    assert not (place / "b.json").exists()
    for args in (["compare", path, "0.json"], ["compare", "0.json", path]):
        done = ganbench(*args)
        assert done.code in (0, 2), args
        assert "better" not in done.out
        assert done.code == 2 or "cannot judge" in done.out


@pytest.mark.parametrize("bad", ["NaN", "1e999", "-1", '"1"'])
def test_no_tolerance_or_rate_lets_everything_pass(refuses, base, place, bad):
    text = (place / base).read_text()
    for old in ('"tolerances": {}', '"false_alarms": 0.01'):
        assert text.count(old) == 1
        (place / "bad.json").write_text(text.replace(old, f'{old.partition(":")[0]}: {bad}'))
        refuses(["bad.json"], "check", "bad.json", "0.json")
    (place / "bad.json").write_text(text.replace('"tolerances": {}', f'"tolerances": {{"fd": {bad}}}'))
    refuses(["bad.json"], "check", "bad.json", "0.json")


def test_the_newest_run_of_the_recipe_is_taken_whatever_its_seed(ganbench, base, place):
    for seed, value, created in ((8, 9.9, "2026-02-01"), (9, 3.5, "2026-03-01")):
        save(place / f"out/runs/tiny/seed{seed}/result.json", value, seed=seed, created=created)
    save(place / "out/runs/tiny/seed9-steps=3/result.json", 9.9, created="2026-04-01", overrides={"steps": 3})
    assert ganbench("check", base, "--out", "out").code == 0
    save(place / "out/runs/tiny/seed10/result.json", 9.9, seed=10, created="2026-05-01")
    assert ganbench("check", base, "--out", "out").code == 1


def test_a_run_of_another_version_or_of_the_baseline_itself_is_said(ganbench, base, place):
    assert "is a run of the baseline itself: nothing new was checked" in ganbench("check", base, "2.json").out
    save(place / "new.json", 3.5, seed=8, recipe={"name": "tiny", "version": 2})
    assert "version of the recipe is 2, and 1 in the baseline" in ganbench("check", base, "new.json").err
    shutil.copy(place / "new.json", place / "copy.json")
    done = ganbench("check", base, "new.json", "copy.json")
    assert "copy.json is a copy of new.json: counted once" in done.err
    assert "One run against" in done.out


def test_an_update_writes_the_runs_and_prints_old_and_new(ganbench, refuses, base, place):
    new = [save(place / f"new{i}.json", v, seed=10 + i) for i, v in enumerate((4.4, 4.6, 4.5))]
    refuses(["of 4 runs, and one run cannot take their place"], "check", base, new[0], "--update")
    refuses(["--junit"], "check", base, *new, "--update", "--junit", "j.xml")
    done = ganbench("check", base, *new, "--update")
    assert done.code == 0, done.err
    row = next(line for line in done.out.splitlines() if line.startswith("| fd"))
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "fd", "3.45", "4.5", "+1.05", "4 runs before, 3 now"
    ]
    assert json.loads((place / base).read_text())["measurements"][0]["values"] == [4.4, 4.6, 4.5]
    assert ganbench("check", base, new[0]).code == 0


def test_an_update_without_files_takes_all_stored_runs(ganbench, base, place):
    for seed, value in enumerate((1.0, 2.0, 3.0)):
        save(place / f"out/runs/tiny/seed{seed}/result.json", value, seed=seed, created=f"2026-02-0{seed + 1}")
    shutil.copytree(place / "out/runs/tiny/seed2", place / "out/runs/tiny/seed3")
    done = ganbench("check", base, "--out", "out", "--update")
    assert done.code == 0, done.err
    assert "is a copy of" in done.err
    assert json.loads((place / base).read_text())["measurements"][0]["values"] == [1.0, 2.0, 3.0]


def test_a_baseline_of_a_newer_ganbench_is_refused_in_one_line(refuses, base, place):
    value = json.loads((place / base).read_text())
    (place / "newer.json").write_text(json.dumps({**value, "baseline": 2, "what": "ever"}))
    refuses(["newer.json", "format 2", "update ganbench"], "check", "newer.json", "0.json")


# --- Baselines ---


def test_a_baseline_of_a_recipe_makes_the_missing_runs_only(ganbench, place):
    path = write_recipe(place)
    assert ganbench("reproduce", path, "--seeds", "1", "--quiet").code == 0
    kept = place / "results/runs/tiny/seed1/result.json"
    kept.write_text(kept.read_text().replace("digits", "digits"))  # its bytes, and no checkpoint, as it is committed
    (kept.parent / "checkpoint.safetensors").unlink()
    before = kept.read_bytes()
    done = ganbench("baseline", path, "--seeds", "0-2", "--out", "base.json")
    assert done.code == 0, done.err
    assert "seed 1: already done" in done.err
    assert kept.read_bytes() == before
    value = json.loads((place / "base.json").read_text())
    stored = [
        results.load(place / f"results/runs/tiny/seed{i}/result.json").measurement("fd_pixels").value for i in range(3)
    ]
    assert value["measurements"][0]["values"] == stored
    assert len(set(stored)) == 3
    assert [run["seed"] for run in value["runs"]] == [0, 1, 2]
    ganbench("reproduce", path, "--seeds", "7", "--quiet")
    assert ganbench("check", "base.json").code == 0


def test_a_baseline_of_a_short_run_is_checked_with_short_runs(ganbench, place):
    path = write_recipe(place)
    assert ganbench("reproduce", path, "--quiet").code == 0
    assert ganbench("baseline", path, "--seeds", "0,1", "--steps", "3", "--out", "base.json", "--quiet").code == 0
    assert json.loads((place / "base.json").read_text())["overrides"] == {"steps": 3}
    done = ganbench("check", "base.json")
    assert done.code == 0
    assert "seed1-steps=3" in done.out  # the newest, and of the baseline itself


def test_a_copied_run_is_no_second_seed_of_a_baseline(ganbench, refuses, place):
    path = write_recipe(place)
    ganbench("reproduce", path, "--quiet")
    shutil.copytree(place / "results/runs/tiny/seed0", place / "results/runs/tiny/seed1")
    refuses(["seed1", "holds a run of seed 0", "--fresh"], "baseline", path, "--seeds", "0,1", "--out", "b.json",
            "--quiet")


def test_copies_count_once_in_a_table_and_it_says_so(ganbench, place):
    path = write_recipe(place)
    ganbench("reproduce", path, "--quiet")
    alone = ganbench("table", path).out
    shutil.copytree(place / "results/runs/tiny/seed0", place / "results/runs/tiny/seed1")
    done = ganbench("table", path)
    assert done.out == alone
    assert "results/runs/tiny/seed1/result.json is a copy of results/runs/tiny/seed0/result.json" in done.err


def test_a_seed_against_another_reference_is_said_beside_the_table(ganbench, place):
    path = write_recipe(place)
    ganbench("reproduce", path, "--seeds", "0,1", "--quiet")
    assert "averaged" not in ganbench("table", path).err
    stored = place / "results/runs/tiny/seed1/result.json"
    value = json.loads(stored.read_text())
    value["reference"]["fingerprint"] = "0" * 64
    stored.write_text(json.dumps(value))
    said = ganbench("table", path).err
    assert "seed1/result.json should not be averaged with results/runs/tiny/seed0/result.json: fd_pixels (ref" in said
    assert "averaged" not in ganbench("table", path, "--quiet").err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["0.json", "--seeds", "0-2"], ["--seeds", "0.json is a result"]),
        (["0.json", "tiny.toml"], ["one RECIPE"]),
        (["0.json", "--false-alarms", "nan"], ["--false-alarms", "nan"]),
        (["0.json", "--false-alarms", "0"], ["--false-alarms", "1e-06"]),
        (["0.json", "--two-sided", "fid"], ["'fid'", "not measured", "fd"]),
        (["0.json", "other.json"], ["no runs of one recipe", "other.json"]),
        (["gone.json"], ["gone.json", "No such file"]),
        (["bigan-table1"], ["group of recipes", "bigan-mnist"]),
        (["tiny.toml", "--budget", "short"], ["no budget 'short'"]),
        (["tiny.toml", "--seeds", "x"], ["--seeds"]),
        (["tiny.toml", "--two-sided", "fid"], ["--two-sided fid", "measures fd_pixels"]),
        (["neither.json"], ["nothing could fail", "ms", "--two-sided"]),
    ],
    ids=str,
)
def test_a_mistake_in_a_baselines_command_is_said(refuses, seeds, place, args, words):
    save(place / "other.json", 1.0, recipe={"name": "other", "version": 1}, seed=5)
    save(place / "neither.json", 1.0, metric="ms", direction="none")
    write_recipe(place)
    refuses(words, "baseline", *args, "--out", "b.json")


# --- Compare ---


def test_several_results_a_side_are_joined_by_commas(ganbench, seeds, place):
    new = [save(place / f"new{i}.json", v, seed=10 + i) for i, v in enumerate((2.4, 2.6, 2.5))]
    a, b = (",".join(map(str, side)) for side in (seeds, new))
    done = ganbench("compare", a, b)
    assert done.code == 0, done.err
    assert "4 runs against 3" in done.out
    assert "± is one standard error" in done.out
    assert "b better" in done.out
    value = json.loads(ganbench("compare", a, b, "--json").out)
    assert (len(value["a"]), len(value["b"]), value["correction"]) == (4, 3, "Holm")
    (line,) = value["comparisons"]
    assert line["difference"] == pytest.approx(-0.95)
    assert line["verdict"] == "b better"


def test_a_comma_in_a_name_and_an_empty_name(ganbench, refuses, seeds, place):
    save(place / "a,b.json", 3.0, seed=20)
    assert ganbench("compare", "a,b.json", "0.json").code == 0
    refuses(["empty name"], "compare", "0.json,", "1.json")
    refuses(["gone.json"], "compare", "0.json,gone.json", "1.json")
