"""`ganbench list`: names of everything that is installed."""

import click

from ganbench.base import registry
from ganbench.cli.options import common, examples

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
    """Models, datasets, metrics, extractors, recipes, groups."""
    indent = "" if kind else "  "
    for each in [kind] if kind else KINDS:
        if not kind:
            click.echo(f"{each}:")
        titles = _titles(each)
        width = max(map(len, titles), default=0)
        for name, title in titles.items():
            click.echo(f"{indent}{name.ljust(width)}  {title}")
        if each == "metrics":
            click.echo(f"{indent}{METRIC_NAMES}")


def _titles(kind: str) -> dict[str, str]:
    """A line about each thing of a kind, by its name."""
    from ganbench import recipes

    if kind == "recipes":
        return {name: recipes.read(path).title for name, path in recipes.available().items()}
    if kind == "groups":
        groups = {name: recipes.read_group(path) for name, path in recipes.available_groups().items()}
        return {name: f"{group.title} ({len(group.recipes)} recipes)" for name, group in groups.items()}
    return {name: registry.summary(kind, name) for name in registry.names(kind)}
