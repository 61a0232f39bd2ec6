"""What a command advises works: the next command, the option that a message asks for, a parameter that is refused."""

import json
import re
import shlex

import numpy as np
import pytest
import torch
from PIL import Image
from support import write_recipe

from ganbench import features
from ganbench.evaluation.measure import parse_metrics, protocols
from ganbench.evaluation.metric_hints import HERE, INSTEAD
from ganbench.features import small_cnn


def next_command(done):
    """The words after "next:" on stderr, without the program's name."""
    (line,) = [line for line in done.err.splitlines() if line.startswith("next:")]
    return shlex.split(line)[2:]


def test_the_next_command_after_a_run_works(ganbench, place):
    path = write_recipe(place, {'metrics = ["fd_pixels"]': 'metrics = ["fd_small-cnn", "ms_ssim"]'})
    run = ganbench("reproduce", path, "--out", "with a space", "--weights", f"small-cnn={small_cnn.BUNDLED}")
    assert run.code == 0, run.err
    done = ganbench(*next_command(run), "--num", "40", "--json", "--quiet")
    assert (done.code, done.err) == (0, "")
    assert [m["metric"] for m in json.loads(done.out)["measurements"]] == ["fd_mnist-cnn", "ms_ssim"]


def test_the_next_command_after_a_smoke_run_is_the_run_itself(ganbench, place):
    path = write_recipe(place)
    path.write_text(path.read_text() + "\n[budget.smoke]\nsteps = 2\n")
    run = ganbench("reproduce", path, "--budget", "smoke")
    assert run.code == 0, run.err
    done = ganbench(*next_command(run), "--dry-run")
    assert done.code == 0, done.err
    assert "--budget" not in done.out


@pytest.mark.parametrize("launcher", ["local", "slurm"])
@pytest.mark.parametrize("argument", ["slurm_partitoin=gpu", "nonsense=1", "timeout_min=soon"])
def test_a_dry_run_refuses_a_parameter_that_the_run_would_refuse(refuses, launcher, argument):
    words = ["--launcher-arg", argument.partition("=")[0]]
    refuses(words, "reproduce", "dcgan-digits", "--launcher", launcher, "--launcher-arg", argument, "--dry-run")


def test_a_dry_run_takes_good_parameters_without_a_scheduler(ganbench):
    done = ganbench(
        "reproduce", "dcgan-digits", "--launcher", "slurm", "--launcher-arg", "slurm_partition=gpu", "--launcher-arg",
        "timeout_min=60", "--dry-run",
    )
    assert (done.code, done.out.count("\n")) == (0, 1), done.err


CALLABLE = """
import torch
print("printed at import")
def f(n, seed):
    print("printed when called")
    return torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
"""


def test_neighbours_of_a_callable_and_of_a_generator_in_a_file(ganbench, place):
    (place / "neighbours_source.py").write_text(CALLABLE)

    class Generator(torch.nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return z.view(-1, 1, 8, 8).tanh()

    torch.jit.script(Generator()).save("g.pt")
    for source, more in (("neighbours_source:f", ()), ("g.pt", ("--latent", "64"))):
        done = ganbench(
            "neighbours", "--images", source, "--reference", "digits:train", "--num", "50", "--rows", "4", *more,
            "--out", "n.png", "--quiet",
        )
        assert done.code == 0, done.err
        assert done.out.startswith("n.png  (L1 of pixels: ")
        assert done.out.count("\n") == 1
        assert (place / "n.png").exists()


def test_neighbours_takes_the_weights_that_its_message_asks_for(ganbench, refuses, place):
    command = ["neighbours", "--images", "digits:test", "--reference", "digits:train", "--out", "n.png", "--rows", "2"]
    said = refuses(["--weights small-cnn="], *command, "--extractor", "small-cnn")
    assert "--weights small-cnn=FILE" in said
    done = ganbench(*command, "--extractor", "small-cnn", "--weights", f"small-cnn={small_cnn.BUNDLED}")
    assert done.code == 0, done.err
    refuses(["--weights small-cnn", "--extractor small-cnn"], *command, "--weights", f"small-cnn={small_cnn.BUNDLED}")


def test_neighbours_brings_both_sets_to_one_size(ganbench, place):
    np.savez("big.npz", arr_0=np.zeros((9, 16, 16, 1), np.uint8))
    sizes = []
    for source, more in (("big.npz", ["--resize", "8:box"]), ("digits:test", [])):
        done = ganbench(
            "neighbours", "--images", source, "--reference", "digits:train", *more, "--out", "n.png", "--rows", "3",
        )
        assert done.code == 0, done.err
        with Image.open("n.png") as picture:
            sizes.append(picture.size)
    assert sizes[0] == sizes[1]


def test_permission_is_the_reason_that_is_given_for_weights_that_may_not_be_read(refuses, place, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    (place / "i.pth").write_bytes(b"x")
    monkeypatch.setattr(torch, "load", refuse)
    refuses(
        ["cannot read the weights i.pth", "Permission denied"], "statistics", "digits", "--extractor", "inception-v3",
        "--weights", "inception-v3=i.pth", "--out", "a.npz",
    )


# --- Names of metrics ---


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("FID", "Did you mean 'fid'?"),
        ("MS-SSIM", "Did you mean 'ms_ssim'?"),
        ("is", "Did you mean 'inception_score'?"),
        ("IS", "Did you mean 'inception_score'?"),
        ("inception-score", "Did you mean 'inception_score'?"),
        ("prc", "Did you mean 'precision,recall'?"),
        ("sFID", "Did you mean 'fd_inception-v3-spatial'?"),
        ("fid50k", "Did you mean 'fid50k_full'?"),
        ("lpips", "variety is 'ms_ssim'"),
        ("SWD", "Did you mean 'swd'?"),
        ("swd_pixels", "Did you mean 'swd'? It is over no extractor."),
        ("fid_pixels", "'fid' is the name over inception-v3: over another network the formula is 'fd_pixels'."),
        ("FD_pixels", "Did you mean 'fd_pixels'?"),
        ("fd_Pixels", "Did you mean 'pixels'?"),
        ("fid kid", "Separate names by commas: 'fid,kid'."),
        ("precisoin", "Did you mean 'precision'?"),
        ("x" * 5000, "Known: "),
    ],
    ids=lambda value: value[:20],
)
def test_the_name_of_a_metric_in_another_tool_is_answered_with_the_name_here(refuses, name, words):
    said = refuses(["metric '", words], "evaluate", "--images", "digits:test", "--metrics", name)
    assert len(said) < 1500


def test_every_name_that_is_offered_is_one():
    for names in HERE.values():
        assert parse_metrics(names, "pixels")
    stems = protocols()
    for line in INSTEAD.values():
        for name in re.findall("'([^']+)'", line):
            assert name in stems or parse_metrics([name], "pixels")
    assert not set(HERE) & {*stems, "fid", "kid", "inception_score"}


def test_an_extractor_for_a_published_name_is_answered_with_the_formula_s_name(ganbench, refuses):
    args = ["evaluate", "--images", "digits:test", "--reference", "digits:train"]
    said = refuses(
        ["'fid' is the name kept for inception-v3", "'fd'"], *args, "--metrics", "fid", "--extractor", "small-cnn"
    )
    advised = said.partition("formula is 'fd': ")[2].rstrip(".\n").replace("small-cnn", "pixels")
    done = ganbench(*args, *shlex.split(advised))
    assert done.code == 0, done.err
    refuses(["--extractor pixels", "ms_ssim"], *args, "--metrics", "ms_ssim", "--extractor", "pixels")
    mixed = ganbench(*args, "--metrics", "fid,fd", "--extractor", "pixels", "--json")
    values = {m["metric"]: m["value"] for m in json.loads(mixed.out)["measurements"]}
    assert (mixed.code, values["fid"]) == (1, None)
    assert values["fd_pixels"] > 0


@pytest.mark.parametrize("here", ["efficientnet-lite0", "pixels"])
def test_missing_weights_are_answered_with_a_network_that_is_here(ganbench, refuses, monkeypatch, place, here):
    monkeypatch.setattr(features, "is_bundled", lambda name: name == here)
    command = ["evaluate", "--images", "digits:test", "--num", "20", "--reference", "digits:train[:20]"]
    said = refuses([f"fd_{here}"], *command, "--metrics", "fid,inception_score")
    assert (f"score_{here}" in said) is (here != "pixels")  # which have no classes
    done = ganbench(*command, *shlex.split(said.partition("for other numbers: ")[2].rstrip(".\n")))
    assert done.code == 0, done.err
    for words in (["statistics", "digits", "--out", "s.npz"],
                  ["neighbours", "--images", "digits:test", "--reference", "digits", "--extractor", "inception-v3",
                   "--out", "n.png"]):
        refuses([f"--extractor {here}"], *words)
