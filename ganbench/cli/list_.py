"""`ganbench list`: names of everything that is installed."""

import sys

import click

from ganbench.base import registry
from ganbench.base.errors import printable, shortened
from ganbench.cli.options import common, examples
from ganbench.recipes import Installed, installed

METRIC_NAMES = (
    "Those over a network's features take its name: fd_mnist-cnn. The published ones over inception-v3 are fid, "
    "fid50k_full, fid10k_full, fid5k_full, fid_inf, intra_fid, kid, inception_score, inception_score_1split, mind."
)
KINDS = (*registry.KINDS, "groups")


@click.command("list", epilog=examples(
    ("Everything", "ganbench list"),
    ("Names for --metrics", "ganbench list metrics"),
    ("Names for `ganbench reproduce`", "ganbench list recipes"),
))
@click.argument("kind", required=False, type=click.Choice(KINDS))
@common
def list_(kind: str | None, quiet: bool) -> None:
    """Models, datasets, metrics, extractors, recipes, groups.

    A part of another package that cannot be used is a line on stderr, and the exit code is 1 then.
    """
    indent, found = "" if kind else "  ", installed()
    kinds = [kind] if kind else KINDS
    for each in kinds:
        if not kind:
            click.echo(f"{each}:")
        titles = _titles(each, found)
        width = max(map(len, titles), default=0)
        for name, title in titles.items():
            click.echo(printable(f"{indent}{name.ljust(width)}  {title}"))
        if each == "metrics":
            click.echo(f"{indent}{METRIC_NAMES}")
    faults = list(found.faults) if kind in (None, "recipes", "groups") else []
    for each in registry.KINDS:
        if each in kinds and each != "recipes":
            faults += registry.faults(each)
    end_with(faults)


def end_with(faults: list[str], code: int = 1) -> None:
    """Print a line about each fault, such as a file that was left out, and if there is one, exit with the code."""
    for fault in faults:
        click.echo(f"ganbench: error: {printable(shortened(' '.join(fault.split()), 4000))}", err=True)
    if faults:
        sys.exit(code)


def _titles(kind: str, found: Installed) -> dict[str, str]:
    """A line about each thing of a kind, by its name."""
    if kind == "recipes":
        return {name: recipe.title for name, recipe in found.recipes.items()}
    if kind == "groups":
        return {name: f"{group.title} ({len(group.recipes)} recipes)" for name, group in found.groups.items()}
    return {name: registry.summary(kind, name) for name in registry.names(kind)}
