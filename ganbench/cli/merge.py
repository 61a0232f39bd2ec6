"""`ganbench merge`: the part files of shards become one file of moments."""

from pathlib import Path

import click

from ganbench.base.errors import UserError
from ganbench.base.files import require_writable
from ganbench.cli.options import FILE, common, examples


@click.command(epilog=examples(
    ("All shards of a set", "ganbench merge parts/part-1.npz parts/part-2.npz --out reference.npz"),
    ("Without those that are missing", "ganbench merge parts/part-2.npz --allow-missing --out most.npz"),
))
@click.argument("parts", nargs=-1, required=True, type=FILE)
@click.option("--out", type=FILE, required=True, help="The npz to write.")
@click.option("--allow-missing", is_flag=True, help="Join an incomplete set; the file says which shards are missing.")
@common
def merge(parts: tuple[Path, ...], out: Path, allow_missing: bool, quiet: bool) -> None:
    """Join the PARTS that `ganbench statistics --shard` wrote.

    The file is the one that `ganbench statistics` writes of the whole set, up to rounding. Every part is verified;
    their order does not matter.
    """
    if out.suffix != ".npz":
        raise UserError(f"--out {out}: the file must end with .npz.")
    require_writable(out, "--out")
    if out.exists() and any(part.exists() and part.samefile(out) for part in parts):
        raise UserError(f"--out {out} is one of the parts: choose another.")

    from ganbench.base.progress import Reporter
    from ganbench.evaluation import shards

    if remark := shards.merge(parts, out, allow_missing):
        Reporter(quiet).say(remark)
    click.echo(str(out))
