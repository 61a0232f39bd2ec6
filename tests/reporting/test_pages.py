"""Pages: what stands behind a recipe's numbers, its note, and the index over all recipes."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
from support import ROOT, write_recipe

from ganbench import recipes
from ganbench.base.errors import UserError
from ganbench.recipes import Reported
from ganbench.reporting import pages, results, tables
from ganbench.reporting.results import Measurement, Result

RESULTS = ROOT / "results"
HEADINGS = ["## Outcome", "## What happened", "## Likely cause", "## Open"]
NOTES = sorted((RESULTS / "notes").glob("*.md"))


def measured(value, error=None, metric="fd_pixels", direction="lower", **more):
    uncertainty = None if error is None else {"value": error, "kind": "standard error", "over": "the bootstrap"}
    return Measurement(metric, "p", direction, value, uncertainty, **more)


def result(*measurements, seed=0, version=1, steps=6, name="tiny", **more):
    training = {"steps": steps, "seconds": 90}
    return Result(
        {}, None, list(measurements), seed=seed, recipe={"name": name, "version": version}, training=training, **more
    )


@pytest.fixture
def recipe(place):
    return recipes.read(write_recipe(place))


# --- The page of a recipe ---


def test_the_page_says_what_is_behind_the_numbers(recipe, tmp_path):
    env = {"device": "cpu (2 threads)", "commit": "0123456789abcdef", "dirty": True}
    one = result(
        measured(1.0, 0.1, warnings=("few samples",)), seed=4, environment=env, created="2020-01-01T00:00:00+00:00"
    )
    other = result(measured(9.0), overrides={"steps": 5}, seed=7)
    text = pages.write(recipe, [one, other], tmp_path / "tables").read_text(encoding="utf-8")
    assert text.startswith("# tiny\n\n| dataset")
    for part in (
        "Seed 4: 6 steps in 2 min on cpu (2 threads), commit `0123456789` (with local changes), 2020-01-01",
        "1. Everything.",
        "- fd_pixels 1.5: nowhere.",
        "one standard error over the bootstrap",
        "- fd_pixels: few samples",
        "40 samples, reference `digits:train`",
        "version 1",
    ):
        assert part in text, part
    assert "Seed 7" not in text


def test_the_page_has_the_value_of_each_seed(recipe):
    runs = [result(measured(0.0664, 0.0025)), result(measured(0.0282, 0.0017), seed=1), result(measured(None), seed=4)]
    line = "- fd_pixels: seed 0 0.0664 ± 0.0025, seed 1 0.0282 ± 0.0017, seed 4 unavailable\n"
    assert f"Each with its own ±:\n{line}" in pages.provenance(recipe, runs)
    assert "Each with its own" not in pages.provenance(recipe, runs[:1])


def test_trouble_in_a_run_is_said_under_its_table(recipe):
    healthy = result(measured(1.0))
    ended = dataclasses.replace(
        result(measured(2.0), seed=1), training={"steps": 6, "warnings": ["step 500: the generator has collapsed"]}
    )
    assert "Warnings" not in pages.provenance(recipe, [healthy])
    assert "- seed 1, training, step 500: the generator has collapsed\n" in pages.provenance(recipe, [healthy, ended])


def test_the_page_says_what_a_verdict_rests_on(recipe):
    two = [result(measured(v), seed=i) for i, v in enumerate((1.4, 1.7))]  # t 12.706, standard error 0.15
    assert (
        "Verdicts, by the 95 % interval of ours minus the paper's:\n"
        "- fd_pixels 1.5: inconclusive; +0.05 ± 1.91. *Reproduced* allows ± 0.375, a quarter of the value.\n"
    ) in pages.provenance(recipe, two)
    assert (
        "- fd_pixels 1.5: inconclusive (one seed); the measurement has no uncertainty. More seeds would give one.\n"
    ) in pages.provenance(recipe, two[:1])
    vague = dataclasses.replace(recipe, reported=[Reported("fd_pixels", 1.5, "Table 1", std=0.5)])
    assert "The paper's own ± gives 0.98 alone: more seeds cannot mend that.\n" in pages.provenance(vague, two)
    far = dataclasses.replace(recipe, reported=[Reported("fd_pixels", 1.5, "Table 1", comparable=False)])
    assert "Verdicts" not in pages.provenance(far, two)
    assert "Verdicts" not in pages.provenance(recipe, [])


def test_the_page_names_the_rival(place):
    for name, value in (("a", "1.5"), ("b", "1.4")):
        write_recipe(place, {"value = 1.5": f"value = {value}"}, name)
    (place / "pair.toml").write_text('name = "pair"\ntitle = "t"\npaper = "p"\nrecipes = ["a.toml", "b.toml"]\n')
    group, _ = recipes.lookup(str(place / "pair.toml"))
    text = pages.write(group.members[0], [result(measured(1.5, 0.01), name="a")], place, group).read_text()
    assert (
        "- fd_pixels 1.5: reproduced (one seed); 0 ± 0.0196. *Reproduced* allows ± 0.1, the distance to 1.4 of b.\n"
        in text.replace("+0 ±", "0 ±")
    )


def test_the_page_names_the_protocol_of_a_value(recipe):
    other = dataclasses.replace(recipe, reported=[Reported("fd_pixels", 1.5, "Table 1", protocol="by the caption")])
    assert "- fd_pixels 1.5 (by the caption): Table 1.\n" in pages.provenance(other, [])


# --- Notes ---

NOTE = """## Outcome

See [b](b.md), [data](../analyses/b.json#top), [web](https://a.org/b.md) and [below](#open).

## What happened

```
# no heading, and no [link](b.md)
```

### Deeper

[ref]: b.md
"""


def test_a_page_shows_the_recipes_note_with_links_that_lead_to_the_same_places(recipe, place):
    page = pages.write(recipe, [result(measured(1.0))], place / "tables").read_text(encoding="utf-8")
    assert "## Notes" not in page
    (place / "notes").mkdir()
    (place / "notes/tiny.md").write_text(NOTE)
    page = pages.write(recipe, [result(measured(1.0))], place / "tables").read_text(encoding="utf-8")
    note = page[page.index("## Notes\n") : page.index("## Recipe and runs\n")]
    assert note == """## Notes

### Outcome

See [b](../notes/b.md), [data](../analyses/b.json#top), [web](https://a.org/b.md) and [below](#open).

### What happened

```
# no heading, and no [link](b.md)
```

#### Deeper

[ref]: ../notes/b.md

"""
    assert page.startswith("# tiny\n\n| dataset")
    assert page.index("## Recipe and runs") < page.index("Deviations from the paper:")


def test_the_page_of_a_group_links_to_notes(recipe, place):
    (place / "notes").mkdir()
    (place / "notes/tiny.md").write_text(NOTE)
    group = recipes.Group("all", "t", "p", ["tiny"])
    text = pages.write_group(group, [(recipe, [])], place / "tables").read_text(encoding="utf-8")
    assert "- tiny: A tiny recipe, version 1 ([note](../notes/tiny.md))\n" in text


@pytest.mark.parametrize("path", NOTES, ids=[p.stem for p in NOTES])
def test_a_note_has_the_four_headings_and_belongs_to_a_recipe(path):
    text = path.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if re.match(r"#{1,2} ", line)] == HEADINGS
    for part in re.split(r"^## .*$", text, flags=re.MULTILINE)[1:]:
        assert part.strip(), "a heading without a word"
    assert path.stem in recipes.available()


def test_every_recipe_that_was_run_has_a_note():
    assert {p.name for p in (RESULTS / "runs").iterdir()} <= {p.stem for p in NOTES}


# --- The index ---


@pytest.fixture
def out(place, monkeypatch):
    """Results of four recipes, of which two are in a group: run in full, at short length, once too wide, and not."""
    tree = place / "tree"
    (tree / "tables").mkdir(parents=True)
    paper = {'paper = "none"': 'paper = "Odena, Olah, Shlens 2017, arXiv:1610.09585"'}
    for name in ("full", "short", "wide", "waiting"):
        path = write_recipe(tree, paper, name)
        path.write_text(path.read_text() + "\n[budget.short]\nsteps = 3\n")
    (tree / "tables" / "both.toml").write_text(
        'name = "both"\ntitle = "t"\npaper = "p"\nrecipes = ["full", "short"]\n'
    )
    monkeypatch.setattr(recipes, "_trees", lambda: [tree])
    short = result(measured(1.0), name="short", steps=3, overrides=tables.SHORT, created="2020-01-03T00:00:00+00:00")
    short = dataclasses.replace(short, recipe={**short.recipe, "budget": {"steps": 3}})
    runs = {
        "full/seed0": result(measured(1.5, 0.01), name="full", created="2020-01-01T00:00:00+00:00"),
        "short/seed0-budget=short": short,
        "wide/seed0": result(measured(1.0), name="wide", created="2020-01-01T00:00:00+00:00"),
        "wide/seed1": result(measured(2.0), seed=1, name="wide", created="2020-01-02T00:00:00+00:00"),
        "mine/seed0": result(measured(1.0), name="mine"),
    }
    for run, value in runs.items():
        results.save(value, place / "out/runs" / run / results.RESULT)
    (place / "out/notes").mkdir()
    for name in ("wide", "waiting"):
        (place / f"out/notes/{name}.md").write_text(NOTE)
    return place / "out"


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def table_in(text, start):
    """The cells of the Markdown table whose head begins so, a dict a row."""
    lines = text[text.index(start) :].split("\n\n")[0].splitlines()
    return [dict(zip(cells(lines[0]), cells(line), strict=True)) for line in lines[2:]]


def test_the_index_counts_verdicts_and_has_a_line_for_each_recipe_that_was_run(out):
    written = pages.write_all(out)
    assert sorted(p.relative_to(out).as_posix() for p in written) == [
        "README.md", "tables/both.md", "tables/full.md", "tables/short.md", "tables/wide.md"
    ]
    text = (out / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# Results\n\n{pages.MARK}\n")
    assert "4 recipes: 2 were run in full, 1 at short length, 1 not yet. They have 4 values of papers:\n" in text
    assert table_in(text, "| reproduced") == [{
        "reproduced": "1", "better": "0", "inconclusive": "1", "not reproduced": "0", "short": "1",
        "not comparable": "0", "unavailable": "0", "not run": "1",
    }]
    same = {"paper": "Odena et al. 2017", "data": "digits"}
    assert table_in(text, "| recipe") == [
        {"recipe": "[full](tables/full.md)", **same, "verdict": "reproduced (one seed)", "length": "full: 6",
         "seeds": "1", "date": "2020-01-01", "note": ""},
        {"recipe": "[short](tables/short.md)", **same, "verdict": "short", "length": "short: 3 of 6",
         "seeds": "1", "date": "2020-01-03", "note": ""},
        {"recipe": "[wide](tables/wide.md)", **same, "verdict": "inconclusive", "length": "full: 6", "seeds": "2",
         "date": "2020-01-02", "note": "[note](notes/wide.md)"},
    ]
    assert "\nTables of the papers: [both](tables/both.md)\n" in text
    assert "\nRuns of recipes that are not installed: mine\n" in text
    assert "## Not run\n\n- Odena et al. 2017: [waiting](notes/waiting.md)\n\n## Folders\n\n" in text
    for folder in ("runs/", "tables/", "notes/", "analyses/", "no checkpoints"):
        assert folder in text[text.index("## Folders") :]
    assert text[text.index("## Folders") :].count("\n- ") == 3


def test_a_page_without_results_goes(out):
    pages.write_all(out)
    shutil.rmtree(out / "runs/full")
    shutil.rmtree(out / "runs/short")
    (out / "tables/mine.md").write_text("of no installed recipe")
    pages.write_all(out)
    assert {p.name for p in (out / "tables").iterdir()} == {"mine.md", "wide.md"}
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "1 were run in full, 0 at short length, 3 not yet" in text
    assert "- Odena et al. 2017: full, short, [waiting](notes/waiting.md)\n" in text
    assert "Tables of the papers" not in text


def test_an_index_of_nothing_says_so(tmp_path):
    text = pages.write_index(tmp_path).read_text(encoding="utf-8")
    assert f"{len(recipes.available())} recipes: 0 were run in full, 0 at short length" in text
    assert "| recipe" not in text
    assert text.count("\n- ") <= 3 + len({Path(p).parent for p in recipes.available().values()})  # a line a paper


def test_a_readme_that_is_no_index_is_not_overwritten(out):
    (out / "README.md").write_text("mine")
    assert not pages.is_index(out / "README.md")
    with pytest.raises(UserError, match=r"README.md is not an index that ganbench wrote"):
        pages.write_index(out)
    assert (out / "README.md").read_text() == "mine"
    (out / "README.md").unlink()
    assert pages.is_index(pages.write_index(out))
    before = (out / "README.md").read_bytes()
    assert pages.write_index(out).read_bytes() == before
    assert not pages.is_index(out / "gone.md")


@pytest.mark.parametrize(
    ("paper", "text"),
    [
        ("Odena, Olah, Shlens 2017, arXiv:1610.09585", "Odena et al. 2017"),
        ("Goodfellow, Bengio 2014, arXiv:1406.2661", "Goodfellow and Bengio 2014"),
        ("Kingma 2013", "Kingma 2013"),
        ("none", "none"),
    ],
)
def test_a_paper_is_cited_by_its_first_author(paper, text):
    assert pages.cited(paper) == text


# --- The results of this repository ---


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    """Pages and index, made anew from the repository's results and notes."""
    out = tmp_path_factory.mktemp("results")
    for path in (*RESULTS.glob(f"runs/*/*/{results.RESULT}"), *NOTES):
        (out / path.relative_to(RESULTS)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, out / path.relative_to(RESULTS))
    pages.write_all(out)
    return out


def test_the_pages_are_those_of_the_results(rebuilt):
    """If this fails, `ganbench table --index` rebuilds them."""
    for folder in ("", "tables"):
        ours = {p.name: p.read_text(encoding="utf-8") for p in (RESULTS / folder).glob("*.md")}
        assert ours == {p.name: p.read_text(encoding="utf-8") for p in (rebuilt / folder).glob("*.md")}


def test_the_index_fits_a_screens_width(rebuilt):
    """As it is read: a link is its text."""
    text = (rebuilt / "README.md").read_text(encoding="utf-8")
    for row in table_in(text, "| recipe"):
        assert sum(len(re.sub(r"\[(.+?)\]\(.+?\)", r"\1", cell)) + 3 for cell in row.values()) <= 140
    assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith("|"))


def test_every_link_of_pages_notes_and_index_leads_somewhere():
    for path in (RESULTS / "README.md", *(RESULTS / "tables").glob("*.md"), *NOTES):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            assert re.match("https?:", target) or (path.parent / target).exists(), f"{path}: {target}"
