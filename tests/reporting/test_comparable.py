"""Which values may be compared, and which results are copies of one run."""

import copy

import pytest

from ganbench.reporting.comparable import differences, is_number, why_no_number, without_copies
from ganbench.reporting.results import Measurement, Result

NETWORK = {"name": "pixels", "version": "1", "sha256": "ab"}
REFERENCE = {"kind": "dataset", "name": "digits", "split": "train", "fingerprint": "12" * 32, "count": 10,
             "shape": [1, 8, 8]}
HELD_OUT = {**REFERENCE, "split": "test", "fingerprint": "34" * 32, "count": 7}
FAKE = {"kind": "generator", "seed": 0, "checkpoint_sha256": "aa", "count": 20, "shape": [1, 8, 8]}


def case(**changes):
    """A result and its measurement; `reference__split="test"` changes a key of a part, `m__n_fake` the measurement."""
    m = {"metric": "m", "protocol": "fd/1: x", "direction": "lower", "value": 1.0, "n_real": 10, "n_fake": 20}
    parts = {"fake": FAKE, "reference": REFERENCE, "held_out": HELD_OUT, "extractor": NETWORK, "m": m}
    parts = copy.deepcopy(parts)
    for name, value in changes.items():
        part, _, key = name.partition("__")
        if key:
            parts[part][key] = value
        else:
            parts[part] = value
    m = Measurement(**parts["m"], extractor=parts["extractor"])
    return Result(parts["fake"], parts["reference"], [m], parts["held_out"]), m


def test_runs_that_differ_in_what_is_under_test_may_be_compared():
    assert differences(case(), case()) == []
    other = case(fake__seed=3, fake__checkpoint_sha256="bb", fake__kind="zip", m__value=9.0)
    assert differences(case(), other) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"m__protocol": "fd/2: x"}, "protocol: old has fd/1: x, new has fd/2: x"),
        ({"extractor__name": "other"}, "network: old has pixels, new has other"),
        ({"extractor": None}, "network: old has pixels, new has none"),
        ({"extractor__version": "2"}, "version of the network: old has 1, new has 2"),
        ({"extractor__sha256": "cd"}, "hash of the network: old has ab, new has cd"),
        ({"m__n_fake": 2000}, "generated images: old has 20, new has 2,000"),
        ({"m__n_real": 7}, "real images: old has 10, new has 7"),
        ({"reference__fingerprint": "56" * 32}, "reference, images: old has digits:train (12121212), new has "
                                                "digits:train (56565656)"),
        ({"reference__drawn": 5}, "reference, images drawn: old has none, new has 5"),
        ({"reference__draw_seed": 1}, "reference, seed of draw: old has none, new has 1"),
        ({"reference__resize": "8:box"}, "reference, resize: old has none, new has 8:box"),
        ({"reference__shape": [3, 8, 8]}, "reference, shape: old has 1 x 8 x 8, new has 3 x 8 x 8"),
        ({"reference__count": 9}, "reference, count: old has 10, new has 9"),
        ({"fake__shape": [1, 64, 64]}, "shape of images: old has 1 x 8 x 8, new has 1 x 64 x 64"),
        ({"fake__resize": "8:box"}, "resize of images: old has none, new has 8:box"),
    ],
)
def test_a_difference_in_how_it_was_measured_is_said_in_words(changes, words):
    assert differences(case(), case(**changes), ("old", "new"))[0] == words


def test_fingerprints_of_two_kinds_are_not_compared_but_names_are():
    files = case(reference__fingerprint="78" * 32, reference__fingerprint_of="files")
    assert differences(case(), files) == []
    other = case(reference__fingerprint="78" * 32, reference__fingerprint_of="files", reference__split="train[:10]")
    assert differences(case(), other) == ["reference, images: a has digits:train, b has digits:train[:10]"]
    assert differences(files, other) == []  # the same files by another name
    unknown = copy.deepcopy(REFERENCE)
    del unknown["fingerprint"]
    assert differences(case(), case(reference=unknown)) == []


def test_a_set_that_the_metric_does_not_look_at_may_differ():
    assert differences(case(m__n_real=0), case(m__n_real=0, reference__fingerprint="0" * 64)) == []
    assert differences(case(), case(held_out__fingerprint="0" * 64)) == []
    assert differences(case(m__n_fake=0), case(m__n_fake=0, fake__shape=[1, 9, 9])) == []
    assert differences(case(m__n_real=7), case(m__n_real=7, held_out__fingerprint="0" * 64)) == [
        "held-out images, images: a has digits:test (34343434), b has digits:test (00000000)"
    ]


def test_a_part_of_the_model_is_another_network_in_every_run():
    own = {"name": "encoder", "version": "1"}
    assert differences(case(extractor={**own, "sha256": "aa"}), case(extractor={**own, "sha256": "bb"})) == []
    assert differences(case(extractor={**own, "sha256": "aa"}), case(extractor={**own, "name": "discriminator"})) != []


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), "12.5", True, 10**400, [1.0]])
def test_only_a_finite_number_is_one(bad):
    assert not is_number(bad)
    assert "value" in why_no_number(Measurement("m", "p", "lower", bad))
    error = {"value": bad, "kind": "standard error", "over": "x"}
    assert "uncertainty" in why_no_number(Measurement("m", "p", "lower", 1.0, error))
    assert why_no_number(Measurement("m", "p", "lower", 1.0, {**error, "value": 0})) == ""
    assert "uncertainty" in why_no_number(Measurement("m", "p", "lower", 1.0, {**error, "value": -1.0}))


def run(**changes):
    fields = {"fake": FAKE, "recipe": {"name": "tiny", "version": 1}, "seed": 0, "created": "2026", "value": 1.0}
    fields |= changes
    m = Measurement("m", "p", "lower", fields.pop("value"))
    return Result(reference=None, measurements=[m], **fields)


def test_a_copied_run_counts_once():
    kept, lines = without_copies([("a", run()), ("b", run()), ("c", run(value=2.0)), ("d", run())])
    assert [name for name, _ in kept] == ["a", "c"]
    assert lines == ["b is a copy of a: counted once", "d is a copy of a: counted once"]


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"value": 1.1}, {"fake": {**FAKE, "checkpoint_sha256": "bb"}}, {"overrides": {"steps": 3}},
     {"recipe": {"name": "tiny", "version": 2}}, {"fake": {**FAKE, "seed": 1}}],
    ids=str,
)
def test_another_run_is_no_copy(change):
    assert without_copies([("a", run()), ("b", run(**change))])[1] == []


def test_without_a_known_model_the_time_decides_and_without_both_nothing_is_a_copy():
    unknown = {"fake": {}}
    assert len(without_copies([("a", run(**unknown)), ("b", run(**unknown))])[0]) == 1
    assert len(without_copies([("a", run(**unknown)), ("b", run(**unknown, created="2027"))])[0]) == 2
    assert len(without_copies([("a", run(**unknown, created="")), ("b", run(**unknown, created=""))])[0]) == 2
    assert len(without_copies([("a", run()), ("b", run(created="2027"))])[0]) == 1  # the same bits, made again
