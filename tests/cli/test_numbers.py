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
