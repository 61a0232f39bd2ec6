"""`ganbench sample`: images of a checkpoint."""

from pathlib import Path

import click

from ganbench.base import registry
from ganbench.base.errors import UserError
from ganbench.base.files import require_writable
from ganbench.cli.options import COUNT, FILE, SEED, Number, common, device_option, examples


@click.command(epilog=examples(
    ("A picture, sorted by class", "ganbench sample --ckpt model.safetensors --grid samples.png"),
    ("A file for --images", "ganbench sample --ckpt model.safetensors --num 1000 --out samples.npz"),
    ("Two classes in turn", "ganbench sample --ckpt model.safetensors --labels 3,7 --grid classes.png"),
))
@click.option("--model", help="The reference model of --ckpt.")
@click.option("--ckpt", type=FILE, required=True, help="A checkpoint (.safetensors).")
@click.option("--num", type=COUNT, default=100, show_default=True, help="Number of samples.")
@click.option("--labels", help="Comma-separated classes, repeated to --num. Default: balanced.")
@click.option("--truncation", type=Number(0, 10), metavar="PSI", help="Truncation in W of StyleGAN: 1 is none.")
@click.option("--mix", help="Layers FIRST-LAST: --grid shows images in which they have the styles of others.")
@click.option("--scales", is_flag=True, help="--grid shows images at all scales that the generator makes.")
@click.option("--grid", type=FILE, help="Write a PNG with the samples, ten to a row.")
@click.option("--out", type=FILE, help="Write an npz: arr_0 uint8 N x H x W x C, and arr_1 labels.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of the samples.")
@device_option
@common
def sample(
    model: str | None, ckpt: Path, num: int, labels: str | None, truncation: float | None, mix: str | None,
    scales: bool, grid: Path | None, out: Path | None, seed: int, device: str | None, quiet: bool,
) -> None:
    """Draw samples from a checkpoint, to a PNG or npz."""
    if grid is None and out is None:
        raise UserError("give --grid FILE.png or --out FILE.npz.")
    if model is not None:
        registry.require("models", model)
    if out is not None and out.suffix != ".npz":
        raise UserError(f"--out {out}: the file must end with .npz.")
    for path, option in ((grid, "--grid"), (out, "--out")):
        if path is not None:
            require_writable(path, option)

    from ganbench.base.progress import Reporter
    from ganbench.data.sources import checkpoints

    if mix is not None:
        if scales:
            raise UserError("--mix and --scales make a sheet each: give one of them.")
        if grid is None or out is not None or labels is not None or truncation is not None:
            raise UserError("--mix makes a sheet: give --grid FILE.png, without --out, --labels and --truncation.")
        checkpoints.write_sheet(checkpoints.draw_mixed(ckpt, model, checkpoints.parse_layers(mix), seed, device), grid)
        click.echo(str(grid))
        return
    if scales:
        if grid is None or out is not None or labels is not None or truncation is not None:
            raise UserError("--scales makes a sheet: give --grid FILE.png, without --out, --labels and --truncation.")
        sheet, columns = checkpoints.draw_scales(ckpt, model, seed, device)
        checkpoints.write_sheet(sheet, grid, columns)
        click.echo(str(grid))
        return
    drawn = checkpoints.draw(ckpt, model, num, labels, seed, device, Reporter(quiet), truncation)
    if grid is not None:
        checkpoints.write_grid(drawn, grid)
        click.echo(str(grid))
    if out is not None:
        checkpoints.write_npz(drawn, out)
        click.echo(str(out))
