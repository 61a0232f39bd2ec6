"""`ganbench traverse`: a picture of what each code of a model changes."""

from pathlib import Path

import click

from ganbench.base import registry
from ganbench.base.files import require_writable
from ganbench.cli.options import FILE, SEED, WholeNumber, common, device_option, examples


@click.command(epilog=examples(
    ("A row for each code", "ganbench traverse --ckpt infogan.safetensors --out codes.png"),
    ("Three latents", "ganbench traverse --ckpt infogan.safetensors --latents 3 --out three.png"),
))
@click.option("--model", help="The reference model of --ckpt.")
@click.option("--ckpt", type=FILE, required=True, help="A checkpoint (.safetensors) of a model with codes, as infogan.")
@click.option("--columns", type=WholeNumber(2, 100), default=10, show_default=True,
              help="Images for a continuous code, from -2 to 2. A categorical code has one for each value.")
@click.option("--latents", type=WholeNumber(1, 100), default=1, show_default=True,
              help="Rows for each code, each with another latent.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the latents.")
@device_option
@click.option("--out", type=FILE, required=True, help="The PNG to write.")
@common
def traverse(
    model: str | None, ckpt: Path, columns: int, latents: int, seed: int, device: str | None, out: Path, quiet: bool
) -> None:
    """Draw what each code of a model changes: a row a code.

    All images of a row have one latent, but for that code.
    """
    if model is not None:
        registry.require("models", model)
    require_writable(out, "--out")

    from ganbench.base.progress import Reporter
    from ganbench.data.sources import traversals

    drawn = traversals.draw(ckpt, model, columns, latents, seed, device, Reporter(quiet))
    traversals.write_picture(drawn, out)
    names = dict.fromkeys(f"{c.name} ({c.values} values)" if c.values else f"{c.name} (-2 to 2)" for c in drawn.codes)
    click.echo(f"{out}  (from the top: {', '.join(names)})")
