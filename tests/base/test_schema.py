"""Schemas: each kind takes what belongs to it and nothing else; every stored file fits its own."""

import json
import math

import pytest
from support import ROOT

from ganbench import recipes
from ganbench.base.errors import UserError, printable
from ganbench.base.schema import Anything, Flag, List, Maybe, Misfit, Number, Plain, Table, Text, Whole, require
from ganbench.reporting import results


def deep(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


FITS = [
    (Number(), 0), (Number(), -1.5), (Number(0), 0.0), (Number(), 2**63), (Whole(), 0), (Whole(-5), -5),
    (Whole(), 2**63 - 1), (Whole(1, 4), 4), (Flag(), False), (Text(), ""), (Text(3), "画像é"), (Text(), "a\nb\x1b"),
    (Text(line=True), "ü b"), (Text(choices=("a", "b")), "b"), (Maybe(Flag()), None), (Maybe(Flag()), True),
    (List(Whole()), []), (List(Whole()), (1, 2)), (List(Table(others=Plain()), "a"), [{"a": 1}, {"a": 2}]),
    (Table({"a": Whole()}, {"b": Flag()}), {"a": 1}), (Table({"a": Whole()}, {"b": Flag()}), {"a": 1, "b": True}),
    (Table(others=Text()), {"any": "x"}), (Plain(), {"a": [1, None, True, 0.5, "x", {}]}), (Plain(), deep(50)),
    (Anything(), object()),
]
MISFITS = [
    (Number(), "1", "''"), (Number(), True, ""), (Number(), None, ""), (Number(), math.nan, ""),
    (Number(), -math.inf, ""), (Number(), 10**400, ""), (Number(0), -1e-9, ""), (Whole(), 1.0, ""), (Whole(), True, ""),
    (Whole(), -1, ""), (Whole(), 2**63, ""), (Whole(), 10**5000, ""), (Whole(1, 4), 5, ""), (Whole(), "1", ""),
    (Flag(), 1, ""), (Text(), 3, ""), (Text(3), "abcd", ""), (Text(line=True), "a\x1b[31m", ""),
    (Text(line=True), "a\nb", ""), (Text(choices=("a",)), "b", ""), (Maybe(Flag()), 0, ""), (List(Whole()), {}, ""),
    (List(Whole()), "12", ""), (List(Whole()), [0, -1], "'[1]'"),
    (List(Table(others=Plain()), "a"), [{"a": 1}, {"a": 1}], "'[1].a'"), (Table(), [], ""),
    (Table({"a": Whole()}), {}, "'a' is missing"), (Table({"a": Whole()}), {"a": 1, "b": 1}, "'b' is an unknown key"),
    (Table({"a": List(Table({"b": Number()}))}), {"a": [{"b": 1}, {"b": "1"}]}, "'a[1].b' must be a finite number"),
    (Table(others=Text()), {3: "x"}, "no text"), (Plain(), [math.inf], "'[0]'"), (Plain(), {"a": 10**30}, "'a'"),
    (Plain(), deep(51), "deep"), (Plain(), object(), "plain"),
]


@pytest.mark.parametrize(("kind", "value"), FITS, ids=lambda v: str(v).partition(" at 0x")[0][:40])
def test_a_value_of_the_kind_fits(kind, value):
    kind.check(value, "")


@pytest.mark.parametrize(("kind", "value", "words"), MISFITS, ids=lambda v: type(v).__name__)
def test_any_other_value_is_a_misfit_in_one_short_line(kind, value, words):
    with pytest.raises(Misfit) as error:
        kind.check(value, "")
    text = str(error.value)
    assert words.strip("'") in text
    assert printable(text) == text
    assert len(text) < 300
    assert "\n" not in text


def test_the_message_names_file_field_finding_and_remedy():
    with pytest.raises(UserError) as error:
        require(Table({"colour": Whole()}), {"color": 1, "colour": 2}, "the thing t.json", "make it again")
    assert str(error.value) == "the thing t.json: 'color' is an unknown key (Did you mean 'colour'?): make it again."


STORED = sorted((ROOT / "results").rglob("result.json"))


def test_every_stored_result_fits_and_is_read_as_it_stands():
    assert len(STORED) >= 20
    for path in STORED:
        read = json.loads(json.dumps(results.load(path).to_json()))
        stored = json.loads(path.read_text(encoding="utf-8"))
        assert {key: read[key] for key in stored} == stored, path


def test_every_bundled_recipe_and_group_can_be_read():
    found = recipes.installed()
    assert found.faults == []
    assert found.recipes.keys() == recipes.available().keys()
    assert found.groups.keys() == recipes.available_groups().keys()
    files = list(recipes.BUNDLED.rglob("*.toml"))
    assert len(files) == len(found.recipes) + len(found.groups) >= 50


def test_a_schema_of_an_older_form_is_one_and_a_newer_one_says_to_update(tmp_path):
    value = {"fake": None, "reference": None, "measurements": []}
    assert results.parse(value, tmp_path / "r.json").schema == 1
    with pytest.raises(UserError, match=r"r\.json has schema 2, .* made by a newer ganbench\. Update ganbench"):
        results.parse({**value, "schema": 2, "new": 1}, tmp_path / "r.json")
