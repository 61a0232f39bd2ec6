"""Files that people and crashes leave: every damaged form, given to every command that reads the file, is one line."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support import TINY, save_tiny, tiny_dcgan, write_recipe

from ganbench.gan import checkpoint
from ganbench.reporting import results
from ganbench.reporting.results import Measurement, Result

HUGE = "1" + 400 * "0"
DEEP = 100_000 * "["


@pytest.fixture
def one_line(ganbench, place):
    """`one_line(code, words, *args)`: the command ends at once with this code, and its one line has all the words."""

    def run(code, words, *args):
        began = time.monotonic()
        done = ganbench(*args)
        assert time.monotonic() - began < 20
        assert done.code == code, done
        assert done.err.startswith("ganbench: error: "), done.err
        assert done.err.count("\n") == 1, done.err
        assert "\x1b" not in done.err + done.out
        assert len(done.err) < 5000
        for word in words:
            assert word in done.err, f"{word!r} is not in: {done.err}"

    return run


# --- Results ---

UNCERTAINTY = {"value": 0.1, "kind": "standard error", "over": "x"}


def good_result():
    names = ("discriminability", "gaining_classes", "diverse_classes", "accuracy_diversity_correlation")
    per_class = {"native": {"0": 0.5}, "@4": {"0": 0.25}, "real": {"0": 0.5}, "fake": {"0": 0.5},
                 "accuracy": {"0": 0.5}, "ms_ssim": {"0": 0.5}}
    details = {"per_class": per_class, "threshold": 0.25}
    measurements = [
        Measurement(name, f"{name}/1", "higher", 1.5, UNCERTAINTY, 10, 20, details=details) for name in names
    ]
    made = Result({"kind": "npz"}, None, measurements, created=results.now(), recipe={"name": "tiny", "version": 1})
    return made.to_json()


def changed(value, path, new):
    """A copy of a JSON value with another value at a path such as measurements[0].value."""
    value = json.loads(json.dumps(value))
    *way, last = [int(key) if key.isdigit() else key for key in re.findall(r"\w+", path)]
    inner = value
    for key in way:
        inner = inner[key]
    inner[last] = new
    return value


DAMAGED_FIELDS = {
    "measurements[0].value": ["12.5", True, [1.0]],
    "measurements[0].uncertainty": [{}, -1, {**UNCERTAINTY, "value": -0.5}, {**UNCERTAINTY, "value": None}],
    "measurements[1].uncertainty.value": ["0.1", False],
    "measurements[2].n_fake": [-1, 1.5, "10", None],
    "measurements[3].details": [[], 3],
    "measurements[3].metric": ["discriminability", 7, "red \x1b[31m", "x" * 1000],
    "measurements[0].direction": ["up", None],
    "measurements[0].warnings": ["text", [1]],
    "measurements[0].extractor": ["inception", {"version": "1"}],
    "measurements[0]": ["fid", 3],
    "measurements": [3, {}],
    "recipe": ["tiny", {"name": 3}],
    "training": [{"steps": "6"}, {"steps": -6}, {"seconds": "x"}, {"warnings": 3}],
    "environment": [3, {"dirty": "no"}, {"commit": 3}],
    "overrides": [[], {"steps": "3"}],
    "seed": [-1, "0", 1.5, True],
    "created": [3, None],
    "fake": [3, {"count": "many"}],
    "schema": [2, 99, "1", True, 0],
}


@pytest.mark.parametrize("path", DAMAGED_FIELDS)
def test_a_damaged_field_of_a_result_is_named_by_every_command(one_line, place, path):
    good = good_result()
    (place / "good.json").write_text(json.dumps(good))
    for bad in DAMAGED_FIELDS[path]:
        (place / "bad.json").write_text(json.dumps(changed(good, path, bad)))
        run = place / "results/runs/tiny/seed0"
        run.mkdir(parents=True, exist_ok=True)
        shutil.copy(place / "bad.json", run / "result.json")
        words = ["bad.json", *([] if path == "schema" and bad in (2, 99) else [path.split("[")[0]])]
        one_line(2, words, "check", "good.json", "bad.json")
        one_line(2, words, "compare", "bad.json", "good.json")
        one_line(2, words, "baseline", "bad.json", "--out", "base.json")
        one_line(2, words, "figures", "bad.json", "--out", "a.png")
        one_line(2, ["tiny/seed0/result.json"], "check", "good.json")
        write_recipe(place)
        one_line(2, ["tiny/seed0/result.json"], "table", "tiny.toml")


@pytest.mark.parametrize(
    "text",
    [
        b"", b"  \n", b"{", b"\xff\xfe", b'{"a": "\xff"}', DEEP.encode(), b'{"measurements": ' + DEEP.encode(), b"[]",
        b'{"measurements": [], "measurements": []}', b'{"measurements": 1e999}', f'{{"measurements": {HUGE}}}'.encode(),
        b'{"measurements": ' + 5000 * b"9" + b"}", b'{"measurements": NaN}', b"\0" * 100, None,
    ],
    ids=lambda text: repr(text)[:40],
)
def test_a_result_that_is_no_json_is_named_with_what_to_do(one_line, place, text):
    (place / "good.json").write_text(json.dumps(good_result()))
    run = place / "results/runs/tiny/seed0"
    run.mkdir(parents=True)
    for path in (place / "bad.json", run / "result.json"):
        path.mkdir() if text is None else path.write_bytes(text)
    write_recipe(place)
    for args in (["check", "bad.json", "good.json"], ["check", "good.json", "bad.json"],
                 ["compare", "good.json", "bad.json"], ["baseline", "good.json", "bad.json", "--out", "base.json"],
                 ["figures", "bad.json", "--out", "a.png"]):
        one_line(2, ["bad.json"], *args)
    one_line(2, ["seed0/result.json"], "table", "tiny.toml")
    if text == b"":
        one_line(2, ["it is empty", "delete it", "ganbench reproduce"], "table", "tiny.toml")


def test_an_endless_file_is_refused_without_reading_it_all(one_line, place):
    for args in (["check", "/dev/zero"], ["compare", "/dev/zero", "/dev/zero"]):
        one_line(2, ["/dev/zero", "longer than 16 MiB"], *args)
    (place / "zero.toml").symlink_to("/dev/zero")
    one_line(2, ["zero.toml", "longer than 1 MiB"], "reproduce", "zero.toml")


@pytest.mark.parametrize(
    ("stem", "path", "bad"),
    [
        (1, "per_class", 3), (1, "per_class", {}), (1, "per_class", {"native": {"0": 1}}),
        (1, "per_class", {"native": {"0": "1"}, "@4": {}}), (2, "threshold", "0.5"), (2, "threshold", None),
        (2, "per_class", {"real": {}}), (3, "per_class", {"accuracy": [], "ms_ssim": {}}),
    ],
)
def test_figures_look_at_the_details_that_they_draw(one_line, place, stem, path, bad):
    (place / "bad.json").write_text(json.dumps(changed(good_result(), f"measurements[{stem}].details.{path}", bad)))
    one_line(2, ["bad.json", "native size only" if bad == {"native": {"0": 1}} else path], "figures", "bad.json",
             "--out", "a.png")
    assert not (place / "a.png").exists()


# --- Recipes ---


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"d_width = 4": "d_width = 4, lr = nan"}, ["'lr'", "finite"]),
        ({"d_width = 4": "d_width = 4, lr = -1"}, ["recipe 'tiny'", "'dcgan'", "'lr': -1"]),
        ({"d_width = 4": 'd_width = 4, lr = "x"'}, ["recipe 'tiny'", "'dcgan'", "'lr': 'x'"]),
        ({"d_width = 4": f"d_width = {HUGE}"}, ["'d_width'", "64 bits"]),
        ({"d_width = 4": "d_width = 0x" + 5000 * "f"}, ["'d_width'", "64 bits"]),
        ({"d_width = 4": "d_width = 9000000000000000000"}, ["recipe 'tiny'", "'dcgan'"]),
        ({"d_width = 4": 'd_width = "4"'}, ["recipe 'tiny'", "'dcgan'"]),
        ({"d_width = 4": "d_width = [" + 200 * "[" + 200 * "]" + "]"}, ["nested"]),
        ({"d_width = 4": "d_width = " + 5000 * "[" + 5000 * "]"}, ["nested too deeply"]),
        ({"steps = 6": "steps = " + 5000 * "9"}, ["not valid TOML"]),
        ({"steps = 6": f"steps = {HUGE}"}, ["'steps'", "64 bits"]),
        ({"[evaluate]": "[watch]\ngrid_every = -5\n[evaluate]"}, ["'grid_every'", "at least 0"]),
        ({"[evaluate]": '[watch]\nmetric = "fd_pixels"\nevery = 2\nnum = -5\n[evaluate]'}, ["'num'", "at least 2"]),
        ({"[evaluate]": "[watch]\nevery = -5\n[evaluate]"}, ["'every'", "at least 0"]),
        ({"ema_decay = 0.9": "unlabelled_batch_size = -5"}, ["'unlabelled_batch_size'", "at least 0"]),
        ({"value = 1.5": "value = 1.5\nstd = -1"}, ["'std'", "at least 0"]),
        ({'title = "A tiny recipe"': 'title = "red \\u001b[31m"'}, ["'title'", "control characters", "\\x1b"]),
        ({'data = "digits:train"': f'data = "digits:train[:{5000 * "9"}]"'}, ["tiny"]),
        ({'data = "digits:train"': f'data = "digits[classes 0-{5000 * "9"}]"'}, ["tiny"]),
        ({"version = 1": "version = -1"}, ["'version'"]),
    ],
    ids=lambda v: "" if isinstance(v, list) else next(iter(v.values()))[:40],
)
def test_a_damaged_recipe_is_named_by_every_command(one_line, place, changes, words):
    write_recipe(place, changes)
    built_only = words[0] in ("recipe 'tiny'", "tiny")  # what only building the model, or opening the data, shows
    for args in (["reproduce", "tiny.toml", "--out", "out"], *([] if built_only else [["table", "tiny.toml"]])):
        one_line(2, words, *args)


@pytest.mark.parametrize(
    "name", ["..", "...", " a", "a ", ".hidden", "-a", "a:b", "a\\b", "x" * 200, "a\tb", "a|b"], ids=repr
)
def test_a_name_that_no_folder_of_runs_can_have_is_refused(one_line, place, name):
    path = place / f"{name}.toml"
    text = write_recipe(place).read_text().replace('"tiny"', json.dumps(name))
    path.write_text(text)
    before = sorted(place.parent.rglob("*"))
    for command in ("reproduce", "table"):
        one_line(2, ["the name", "rename file and recipe"], command, f"./{path.name}")
    assert sorted(place.parent.rglob("*")) == before


def test_no_name_on_the_command_line_reaches_the_terminal_raw(one_line, ganbench, place, ckpt):
    one_line(2, ["red\\x1b[31m.toml"], "reproduce", "red\x1b[31m.toml")
    one_line(2, ["\\udcff.toml"], "reproduce", os.fsdecode(b"\xff.toml"))
    (place / "red\x1b[31m.json").write_text("{")
    one_line(2, ["red\\x1b[31m.json"], "check", "red\x1b[31m.json")
    odd = os.fsdecode(b"\xff.json")
    done = ganbench("evaluate", "--images", "digits:test", "--metrics", "fd_pixels", "--reference", "digits:test",
                    "--num", "20", "--out", odd)
    assert done.code == 0, done.err
    assert results.load(place / odd).measurements


def test_a_bad_recipe_of_one_package_breaks_neither_list_nor_table(one_line, ganbench, place, monkeypatch):
    from ganbench import recipes

    tree = place / "tree"
    tree.mkdir()
    write_recipe(tree, name="fine")
    write_recipe(tree, {"steps = 6": 'steps = "6"'}, name="broken")
    monkeypatch.setattr(recipes, "_trees", lambda: [tree])
    for args in (["list"], ["list", "recipes"], ["list", "groups"], ["table"],
                 ["table", "--index", "--quiet"]):
        one_line(1, ["broken.toml", "'steps'"], *args)
    assert "fine" in ganbench("list", "recipes").out
    assert "fine" in ganbench("table").out
    one_line(2, ["broken.toml", "'steps'"], "reproduce", "broken")


# --- Checkpoints and weights ---


def readers(file):
    return (["evaluate", "--ckpt", file, "--metrics", "fd_pixels", "--num", "20"],
            ["sample", "--ckpt", file, "--grid", "a.png", "--num", "4"])


METADATA = {"model": "dcgan", "args": TINY, "steps": 3, "data": "digits:train"}


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (DEEP, ["metadata", "nested too deeply"]),
        ("", ["metadata"]),
        ('{"model": "dcgan", "steps": 1e999}', ["metadata", "too large"]),
        (json.dumps({**METADATA, "steps": -1}), ["metadata", "'steps'"]),
        (json.dumps({**METADATA, "seed": "0"}), ["metadata", "'seed'"]),
        (json.dumps({**METADATA, "data": 3}), ["metadata", "'data'"]),
        (json.dumps({**METADATA, "model": "red \x1b[31m"}), ["metadata", "'model'", "\\x1b"]),
        (json.dumps({**METADATA, "args": {**TINY, "g_width": 10**9}}), ["does not fit", "tensor"]),
        (json.dumps({**METADATA, "args": {**TINY, "g_width": 9 * 10**18}}), ["'dcgan'"]),
        (f'{{"model": "dcgan", "args": {{"g_width": {HUGE}}}}}', ["metadata", "too large"]),
        (json.dumps({**METADATA, "data": f"digits[classes 0-{5000 * '9'}]"}), ["digits[classes 0-9"]),
    ],
    ids=lambda v: "" if isinstance(v, list) else v[:60],
)
def test_damaged_metadata_of_a_checkpoint_are_named_by_every_command(one_line, place, metadata, words):
    save_file(tiny_dcgan().state_dict(), place / "odd.safetensors", metadata={"ganbench": metadata})
    for args in readers("odd.safetensors")[: 1 if "classes" in metadata else 2]:  # only an evaluation opens the data
        one_line(2, [*([] if "classes" in metadata else ["odd.safetensors"]), *words], *args)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_missing_unknown_or_misshapen_tensor_is_named(one_line, place, suffix):
    state = tiny_dcgan().state_dict()
    name = next(iter(state))
    forms = (
        ({k: v for k, v in state.items() if k != name}, f"no tensor '{name}'"),
        ({**state, "more": torch.zeros(1)}, "the tensor 'more'"),
        ({**state, name: state[name][:1].clone()}, f"its tensor '{name}' is 1x"),
        ({**state, name: state[name].int()}, f"its tensor '{name}' is torch.int32"),
    )
    for bad, words in forms:
        if suffix == "pt":
            torch.save({"model": "dcgan", "args": TINY, "state_dict": bad}, place / "odd.pt")
        else:
            checkpoint.save(place / "odd.safetensors", bad, checkpoint.Checkpoint("dcgan", TINY))
        for args in readers(f"odd.{suffix}"):
            one_line(2, [f"odd.{suffix}", "does not fit the model 'dcgan'", words], *args)


def test_a_pickle_with_a_flipped_bit_or_an_expanded_tensor_is_refused(one_line, place):
    state = tiny_dcgan().state_dict()
    value = {"model": "dcgan", "args": TINY, "state_dict": state}
    torch.save(value, place / "odd.pt")
    data = bytearray((place / "odd.pt").read_bytes())
    at = data.index(next(iter(state.values())).numpy().tobytes())
    data[at + 3] ^= 64
    (place / "odd.pt").write_bytes(data)
    assert torch.load(place / "odd.pt", weights_only=True)  # torch does not see it
    one_line(2, ["odd.pt", "refused", "checksum"], *readers("odd.pt")[0])
    torch.save({**value, "state_dict": {**state, "x": torch.zeros(1).expand(10**10)}}, place / "odd.pt")
    one_line(2, ["odd.pt", "refused", "'x' is larger than its data"], *readers("odd.pt")[0])


BOMB = """
import resource, sys
import torch
from ganbench import cli
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), resource.RLIM_INFINITY))
cli.main(sys.argv[1:], prog_name="ganbench")
"""


def test_a_small_checkpoint_that_asks_for_a_huge_network_takes_no_memory(place):
    """A network of 20 GB within 2 GiB of address space: it would end in another message, or in none."""
    save_file(tiny_dcgan().state_dict(), place / "bomb.safetensors",
              metadata={"ganbench": json.dumps({**METADATA, "args": {**TINY, "latent_dim": 3 * 10**8}})})
    done = subprocess.run([sys.executable, "-c", BOMB, *readers("bomb.safetensors")[1]], cwd=place,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done
    assert re.fullmatch(r"ganbench: error: --ckpt bomb\.safetensors does not fit the model 'dcgan' .* tensor "
                        r"'G\.project\.weight' is 64x14, and that of the network 64x300000010\..*\n", done.stderr)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (DEEP, ["nested"]), ("[]", ["table"]), ("{}", ["'channels' is missing"]),
        ({"channels": 10**6}, ["tensor 'body.0.weight'", "1000000"]), ({"channels": "1"}, ["'channels'", "text '1'"]),
        ({"channels": 0}, ["'channels'"]), ({"channels": True}, ["'channels'"]), ({"size": 10**9}, ["'size'"]),
        ({"classes": "ten"}, ["'classes'"]), ({"classes": ["0"]}, ["tensor 'head."]),
        ({"dataset": 3}, ["'dataset'"]),
    ],
    ids=lambda v: str(v)[:40],
)
def test_weights_of_a_classifier_that_are_not_what_they_say_are_refused(one_line, place, metadata, words):
    from ganbench.features.small_cnn import BUNDLED

    with safe_open(BUNDLED, framework="pt") as file:
        good = json.loads(file.metadata()["small_cnn"])
        state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    text = metadata if isinstance(metadata, str) else json.dumps({**good, **metadata})
    save_file(state, place / "w.safetensors", metadata={"small_cnn": text})
    one_line(2, ["w.safetensors", *words], "evaluate", "--images", "digits:test", "--reference", "digits:test",
             "--metrics", "fd_small-cnn", "--weights", "small-cnn=w.safetensors")


# --- The folder of a run ---


@pytest.fixture
def run(ganbench, place):
    """The folder of a run of six steps that is not measured yet."""
    write_recipe(place)
    done = ganbench("reproduce", "tiny.toml", "--out", "out", "--quiet")
    assert done.code == 0, done.err
    folder = place / "out/runs/tiny/seed0"
    (folder / "result.json").unlink()
    return folder


def test_a_damaged_state_is_named(one_line, run):
    path = run / "state.pt"
    good = torch.load(path, weights_only=True)
    again = ["reproduce", "tiny.toml", "--out", "out", "--quiet"]
    data = path.read_bytes()
    flipped = bytearray(data)
    at = data.index(next(iter(good["model"].values())).numpy().tobytes())
    flipped[at + 3] ^= 64
    for bad in (bytes(flipped), data[:-100], data[: len(data) // 2], b"", b"\0" * len(data)):
        path.write_bytes(bad)
        one_line(2, ["state.pt", "--fresh"], *again)
    for key, value in (("step", "6"), ("step", -1), ("step", True), ("seconds", float("nan")), ("identity", []),
                       ("model", 3), ("rng", "x"), ("rng", torch.zeros(3)), ("warnings", []), ("best", 3),
                       ("optimizers", {"D": {}}), ("optimizers", []), ("average", {"x": torch.zeros(1)}),
                       ("health", {"updates": "many"})):
        torch.save({**good, key: value}, path)
        one_line(2, ["state.pt", "--fresh"], *again)
    torch.save([good], path)
    one_line(2, ["state.pt", "--fresh"], *again)
    path.unlink()
    path.mkdir()
    one_line(2, ["state.pt", "--fresh"], *again)


def test_damage_in_a_log_is_named_with_its_line_and_at_its_end_dropped(one_line, ganbench, run):
    path = run / "log.jsonl"
    good = path.read_bytes()
    assert good.count(b"\n") == 6
    again = ["reproduce", "tiny.toml", "--out", "out"]
    for bad in (b"{", b"[]", b"3", b'{"d_loss": 1.0}', b'{"step": "2"}', b'{"step": true}', b'{"step": 1.5}', b"\xff",
                b"", DEEP.encode()):
        lines = good.split(b"\n")
        lines[1] = bad
        path.write_bytes(b"\n".join(lines))
        one_line(2, ["log.jsonl, line 2", "--fresh"], *again, "--quiet")
    for end in (b'{"step": 7, "d_lo', b"\0" * 100, b'{"step": "x"}\n', b"\xff\xfe"):
        path.write_bytes(good + end)
        done = ganbench(*again)
        assert done.code == 0, done.err
        assert "log.jsonl: the last line is damaged and was dropped" in done.err
        assert path.read_bytes() == good
        (run / "result.json").unlink()


def test_a_checkpoint_that_was_not_measured_is_written_and_measured_again(ganbench, run):
    again = ["reproduce", "tiny.toml", "--out", "out", "--json"]
    assert ganbench(*again).code == 0
    path, kept = run / "checkpoint.safetensors", (run / "checkpoint.safetensors").read_bytes()
    measured = results.load(run / "result.json").measurements
    done = ganbench(*again)
    assert "already done" in done.err
    alone = ["evaluate", "--ckpt", path, "--metrics", "fd_pixels", "--num", "20"]
    assert "not the checkpoint" not in ganbench(*alone).err
    path.write_bytes(kept[:-4] + bytes(4))
    done = ganbench(*alone)
    assert done.code == 0, done.err
    assert f"{path} is not the checkpoint that {run / 'result.json'} measured" in done.err
    done = ganbench(*again)
    assert done.code == 0, done.err
    assert "checkpoint.safetensors is not the one that result.json measured" in done.err
    assert path.read_bytes() == kept
    assert results.load(run / "result.json").measurements == measured
    assert "already done" in ganbench(*again).err


def test_notes_and_indexes_that_are_no_text_are_named_or_kept(one_line, ganbench, place):
    run = place / "results/runs/tiny/seed0"
    run.mkdir(parents=True)
    write_recipe(place)
    (run / "result.json").write_text(json.dumps(good_result()))
    (place / "results/README.md").write_bytes(b"\xff")
    (place / "results/notes").mkdir()
    (place / "results/notes/tiny.md").write_bytes(b"\xff")
    one_line(2, ["notes/tiny.md", "not UTF-8"], "table", "tiny.toml")
    (place / "results/notes/tiny.md").write_text("a note")
    assert ganbench("table", "tiny.toml").code == 0
    assert (place / "results/README.md").read_bytes() == b"\xff"


def test_the_tiny_checkpoint_of_these_tests_is_right(ganbench, place):
    save_tiny(place / "odd.safetensors")
    for args in readers("odd.safetensors"):
        assert ganbench(*args).code == 0
