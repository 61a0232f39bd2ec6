"""`ganbench show`: one recipe, group, model, metric, extractor or data set, described."""

import json
from typing import Any

import click

from ganbench.base.errors import UserError, printable
from ganbench.cli import terminal
from ganbench.cli.list_ import KINDS
from ganbench.cli.options import common, device_option, examples

Description = dict[str, Any]
Entries = list[tuple[str, list[str]]]
ARROWS = {"lower": "lower is better", "higher": "higher is better", "none": "neither direction is better"}

REAL_ROWS = {
    "held_out": "its row is of held-out images", "reference": "its row is of the reference itself",
    "none": "has no row",
}


@click.command(epilog=examples(
    ("A recipe: size, cost, data, metrics, deviations", "ganbench show dcgan-digits"),
    ("A model, and a metric", "ganbench show bigan"),
    ("For a program", "ganbench show fd_pixels --json"),
))
@click.argument("name", metavar="RECIPE|GROUP|MODEL|METRIC|EXTRACTOR|DATASET")
@click.option("--kind", type=click.Choice(KINDS), help="What NAME is, if two things have it.")
@click.option("--no-cost", is_flag=True, help="Do not time steps of a recipe.")
@click.option("--json", "as_json", is_flag=True, help="Print the description as one JSON object.")
@device_option
@common
def show(name: str, kind: str | None, no_cost: bool, as_json: bool, device: str | None, quiet: bool) -> None:
    """Describe one thing.

    The cost of a recipe comes from a few of its model's own steps on random images, timed here and now. Nothing is
    downloaded or stored.
    """
    from ganbench.base.device import choose_device
    from ganbench.reproduction import description

    if kind is not None:
        description.require(kind, name)
    else:
        kind, *others = description.kinds_of(name)
        if others:
            both = [kind, *others]
            raise UserError(
                f"'{name}' is {' and '.join(f'one of the {each}' for each in both)}: give --kind "
                f"{' or --kind '.join(both)}."
            )
    chosen = choose_device(device) if kind == "recipes" and not no_cost else None
    if chosen is not None and not quiet:
        click.echo("timing a few training steps (--no-cost leaves them out)", err=True)
    described = description.describe(kind, name, chosen)
    if as_json:
        click.echo(json.dumps(described, indent=2, ensure_ascii=False, default=str))
        return
    columns = terminal.width() or terminal.NOT_A_TERMINAL
    lines = terminal.wrapped(f"{described['name']} ({described['kind']}): {described['title']}", columns)
    for label, paragraphs in TEXTS[kind](described):
        lines += terminal.entry(label, filter(None, paragraphs), columns)
    click.echo(printable("\n".join(lines)))


def _recipe(of: Description) -> Entries:
    model, train, evaluate = of["model"], of["training"], of["evaluation"]
    images = f"{train['batch_size']} images"
    if train["labels"]:
        images = (
            f"{train['batch_size']} images with labels, of {train['labels']:,}, and {train['unlabelled_batch_size']} "
            "without"
        )
    if noise := train["label_noise"]:
        images += f"; noise on their labels: {noise['kind']}, rate {noise['rate']:g}, seed {noise['seed']}"
    budgets = ", ".join(f"{name} {steps:,} steps" for name, steps in train["budgets"].items())
    arguments = ", ".join(f"{key} = {value!r}" for key, value in model["args"].items())
    return [
        ("paper", [of["paper"]]),
        ("model", [f"{model['name']} ({arguments})" if arguments else model["name"], _networks(model)]),
        ("training", [
            f"{train['steps']:,} steps of {images}" + (f"; {budgets}" if budgets else ""), train["growing"],
        ]),
        ("cost", [_cost(of["cost"])] if of["cost"] else []),
        ("data", [_here(each) for each in of["data"]]),
        ("weights", [_here(each) for each in of["extractors"]]),
        ("evaluation", [f"{evaluate['num']:,} images against {evaluate['reference']}; real data: {evaluate['real']}"]),
        ("metrics", [_metric_of_recipe(metric) for metric in of["metrics"]]),
        ("deviations", [f"{i}. {text}" for i, text in enumerate(of["deviations"], 1)]),
        ("faults", of["faults"]),
        ("run it", of["commands"]),
    ]


def _networks(model: Description) -> str:
    """The parameters of a model's networks; "" if it could not be built."""
    parts = ", ".join(f"{name} {count:,}" for name, count in model["networks"].items())
    return f"{model['parameters']:,} parameters" + (f": {parts}" if parts else "") if model["parameters"] else ""


def _cost(cost: Description) -> str:
    if cost["step_seconds"] is None:
        return f"unknown: {cost['reason']} ({cost['device']})"
    of = f"median of {cost['timed']}" if cost["timed"] else "from a step on a part of the batch"
    full, *shorter = [f"{name} {_hours(hours)}" for name, hours in cost["hours"].items()]
    hours = full.removeprefix("full ") + " of training on this machine" + "".join(f", {text}" for text in shorter)
    return f"about {hours} ({cost['device']}, {_seconds(cost['step_seconds'])} a step, {of})"


def _hours(hours: float) -> str:
    if hours < 1:
        return f"{max(hours * 60, 0.1):.2g} minutes"
    return f"{hours:.2g} hours" if hours < 99.5 else f"{hours:,.0f} hours ({hours / 24:,.0f} days)"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _here(found: Description) -> str:
    return f"{found['name']}: {'here, ' if found['here'] else ''}{found['text']}"


def _metric_of_recipe(metric: Description) -> str:
    from ganbench.recipes import Reported
    from ganbench.reporting.tables import arrow, printed

    papers = []
    for value in metric["reported"]:
        r = Reported(metric["name"], **value)
        remarks = [r.source, r.protocol, "unconfirmed" if r.unconfirmed else "", "" if r.comparable else (
            f"not comparable: {r.note.rstrip('.')}")]
        papers.append(f"paper {printed(r)} ({'; '.join(filter(None, remarks))})")
    name = metric["name"] + arrow(metric["direction"]) + ("" if metric["measured"] else " (not measured)")
    return "; ".join([name, *papers])


def _group(of: Description) -> Entries:
    return [
        ("paper", [of["paper"]]),
        ("recipes", [f"{each['name']}: {each['title']}" for each in of["recipes"]]),
        ("metrics", [", ".join(of["metrics"])]),
        ("run it", of["commands"]),
    ]


def _model(of: Description) -> Entries:
    shape = " x ".join(map(str, of["image_shape"]))
    classes = f"{of['classes']} classes" if of["classes"] else "no classes"
    return [
        ("about", [of["about"]]),
        ("source", [of["source"]]),
        ("deviations", [f"{i}. {text}" for i, text in enumerate(of["deviations"], 1)]),
        ("arguments", [", ".join(f"{key} = {value!r}" for key, value in of["arguments"].items()),
                       *of["about_arguments"]]),
        ("by default", [f"images of {shape}, {classes}", _networks(of)]),
        ("can", [", ".join(of["capabilities"])]),
        ("recipes", [f"{each['name']}: {each['title']}" for each in of["recipes"]]),
    ]


def _metric(of: Description) -> Entries:
    counts = f"exactly {of['count']:,} generated images" if of["count"] else "any number of images: compare equal ones"
    network = of["extractor_here"]
    return [
        ("about", [of["about"]]),
        ("formula", of["formula"]),
        ("source", [of["source"]]),
        ("protocol", [of["protocol"]]),
        ("direction", [ARROWS[of["direction"]]]),
        ("needs", [", ".join(of["needs"])]),
        ("network", [_here(network) if network else of["extractor"] or ""]),
        ("counts", [counts]),
        ("real data", [REAL_ROWS[of["real_row"]]]),
        ("uncertainty", of["uncertainty"]),
        ("names", [", ".join(of["names"])]),
        ("recipes", [", ".join(of["recipes"])]),
    ]


def _extractor(of: Description) -> Entries:
    return [
        ("about", of["about"]),
        ("version", [of["version"]]),
        ("source", [of["source"]]),
        ("licence", [of["licence"]]),
        ("weights", [_here(of["weights"])]),
        ("published", [", ".join(of["published_metrics"])]),
        ("metrics", [", ".join(of["metrics"])]),
        ("of classes", [", ".join(of["metrics_of_classes"])]),
        ("recipes", [", ".join(of["recipes"])]),
    ]


def _dataset(of: Description) -> Entries:
    return [
        ("about", of["about"]),
        ("here", [_here(of["here"])]),
        ("recipes", [", ".join(of["recipes"])]),
        ("use it", of["commands"]),
    ]


TEXTS = {
    "recipes": _recipe, "groups": _group, "models": _model, "metrics": _metric, "extractors": _extractor,
    "datasets": _dataset,
}
