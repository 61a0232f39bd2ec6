"""The pages: their commands run, their links lead somewhere, and no line is wider than a screen."""

import re
import shlex
from pathlib import Path

import pytest
from support import ROOT, save_tiny

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "results" / "README.md"])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
GENERATED = ("results/README.md", "docs/speed.md", "docs/calibration.md")
TRAINED = "quickstart/runs/dcgan-digits/seed0/checkpoint.safetensors"


def commands(page: Path) -> list[str]:
    """The lines after `$ ` in the console blocks of a page, in their order."""
    blocks = re.findall(r"^```console\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ganbench ")]


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p) and p.name != "extending.md"], ids=lambda p: p.name)
def test_its_commands_run(page, ganbench, place):
    """Except the training of the quick start, which `make quickstart` runs: an untrained checkpoint takes its place."""
    for line in commands(page):
        line, _, or_else = line.partition(" || ")
        if line.startswith("ganbench reproduce dcgan-digits --offline"):
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(BIN)/", "")
            assert line.replace(" --device cpu", "") in makefile
            (place / TRAINED).parent.mkdir(parents=True)
            save_tiny(place / TRAINED)
            continue
        done = ganbench(*shlex.split(line)[1:])
        assert done.code == (1 if or_else else 0), f"{line}: {done.err}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_its_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


WRITTEN = [page for page in PAGES if str(page.relative_to(ROOT)) not in GENERATED]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda p: p.name)
def test_no_line_but_a_tables_is_wider_than_a_screen(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    wide = [line for line in lines if len(line) > 130 and not line.startswith("|")]
    assert wide == [] or page.name == "CHANGELOG.md"


@pytest.mark.parametrize("note", sorted((ROOT / "results" / "notes").glob("*.md")), ids=lambda p: p.stem)
def test_the_links_of_a_note_lead_somewhere(note):
    test_its_links_lead_somewhere(note)
