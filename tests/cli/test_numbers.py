"""Numbers on the command line have a range that their declaration states; others are refused in one short line."""

import math

import click
import pytest

from ganbench import cli

NUMBERS = [
    (name, option) for name, command in cli.main.commands.items() for option in command.params
    if isinstance(option, click.Option)
    and isinstance(option.type, click.types.IntParamType | click.types.FloatParamType)
]
IDS = [f"{name} {option.opts[0]}" for name, option in NUMBERS]
# Arguments without which a command does not come to look at a number that it checks itself.
OTHERS = {"check": ["baseline.json"], "baseline": ["result.json", "--out", "baseline.json"]}
TOO_LARGE = ["1" + "0" * 12, "1" + "0" * 30, "9" * 5000]
SHORT = 500


@pytest.mark.parametrize(("name", "option"), NUMBERS, ids=IDS)
def test_a_number_that_is_too_large_is_refused_in_one_short_line(refuses, name, option):
    whole = isinstance(option.type, click.types.IntParamType)
    if whole:
        assert isinstance(option.type, click.IntRange)
        assert math.isfinite(option.type.min)
        assert math.isfinite(option.type.max)
        assert option.type.max < 2**32
    for text in [*TOO_LARGE, "nan", "-1"]:
        said = refuses([option.opts[0]], name, *OTHERS.get(name, []), option.opts[0], text)
        assert len(said) < SHORT


def test_the_table_of_numbers_is_whole():
    assert len(NUMBERS) > 15
    assert {name for name, _ in NUMBERS} >= {"evaluate", "neighbours", "reproduce", "sample", "statistics"}


@pytest.mark.parametrize("digits", TOO_LARGE)
@pytest.mark.parametrize(
    ("word", "args"),
    [
        ("--seeds", ["reproduce", "dcgan-digits", "--dry-run", "--seeds", "{}"]),
        ("--seeds", ["reproduce", "dcgan-digits", "--dry-run", "--seeds", "0-{}"]),
        ("--resolutions", ["evaluate", "--images", "digits:test", "--resolutions", "{}"]),
        ("--latent", ["evaluate", "--images", "g.pt", "--latent", "{}"]),
        ("--resize", ["evaluate", "--images", "digits:test", "--resize", "{}:box"]),
        ("--labels", ["sample", "--ckpt", "tiny.safetensors", "--labels", "{}", "--grid", "a.png"]),
        ("digits", ["evaluate", "--images", "digits:train[:{}]"]),
        ("digits", ["evaluate", "--images", "digits:train[{}:]"]),
        ("digits", ["evaluate", "--images", "digits:train[classes 0-{}]"]),
        ("digits", ["train-classifier", "digits:train[classes {}-{}]", "--out", "a.safetensors"]),
        ("images", ["evaluate", "--images", "folder:images[:{}]"]),
        ("synthetic", ["evaluate", "--images", "synthetic:{}x8x8"]),
        ("--shard", ["statistics", "digits", "--extractor", "pixels", "--shard", "1/{}", "--out", "a.npz"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value[:20],
)
def test_a_number_within_a_text_is_refused_in_one_short_line(refuses, ckpt, folder, word, args, digits):
    said = refuses([word], *(arg.replace("{}", digits) for arg in args))
    assert len(said) < SHORT


@pytest.mark.parametrize(
    ("option", "args"),
    [
        ("--metrics", ["evaluate", "--images", "digits:test", "--metrics", "{},"]),
        ("metric", ["evaluate", "--images", "digits:test", "--metrics", "fd_{}"]),
        ("--latent", ["evaluate", "--images", "g.pt", "--latent", "{}"]),
        ("--resize", ["evaluate", "--images", "digits:test", "--resize", "8:{}"]),
        ("--class-map", ["evaluate", "--images", "digits:test", "--class-map", "{}"]),
        ("--weights", ["evaluate", "--images", "digits:test", "--weights", "{}"]),
        ("--resolutions", ["evaluate", "--images", "digits:test", "--resolutions", "{}"]),
        ("--device", ["evaluate", "--images", "digits:test", "--device", "{}"]),
        ("extractor", ["evaluate", "--images", "digits:test", "--extractor", "{}"]),
        ("model", ["evaluate", "--ckpt", "tiny.safetensors", "--model", "{}"]),
        ("cannot read images", ["evaluate", "--images", "{}"]),
        ("cannot read images", ["evaluate", "--images", "digits:test", "--reference", "{}"]),
        ("give a folder of images", ["evaluate", "--images", "folder:{}"]),
        ("no split", ["evaluate", "--images", "digits:{}"]),
        ("--labels", ["sample", "--ckpt", "tiny.safetensors", "--labels", "{}", "--grid", "a.png"]),
        ("--shard", ["statistics", "digits", "--extractor", "pixels", "--shard", "{}", "--out", "a.npz"]),
        ("cannot read images", ["statistics", "{}", "--extractor", "pixels", "--out", "a.npz"]),
        ("--launcher-arg", ["reproduce", "dcgan-digits", "--dry-run", "--launcher", "local", "--launcher-arg", "{}"]),
        ("--seeds", ["reproduce", "dcgan-digits", "--dry-run", "--seeds", "{}"]),
        ("dataset", ["reproduce", "dcgan-digits", "--dry-run", "--data", "{}"]),
        ("recipe", ["reproduce", "{}"]),
        ("--dataset", ["table", "--dataset", "{}"]),
        ("recipe", ["table", "{}"]),
        ("dataset", ["train-classifier", "{}", "--out", "a.safetensors"]),
        ("--two-sided", ["baseline", "a.json", "--two-sided", "{},", "--out", "b.json"]),
        ("cannot read images", ["neighbours", "--images", "{}", "--reference", "digits", "--out", "n.png"]),
        ("cannot read images", ["evaluate", "--images", "{}:f", "--num", "9"]),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else None,
)
def test_a_long_text_is_shortened_in_a_message(refuses, ckpt, option, args):
    said = refuses([option], *(arg.replace("{}", "x" * 5000) for arg in args))
    assert len(said) < 1500
    assert "x" * 250 not in said
