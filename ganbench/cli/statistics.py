"""`ganbench statistics`: moments of features in a file."""

from pathlib import Path

import click

from ganbench.base import registry
from ganbench.base.errors import UserError
from ganbench.base.files import require_writable
from ganbench.cli.options import COUNT, FILE, SEED, common, device_option, examples, parse_weights, reading


@click.command(epilog=examples(
    ("For FID, to share in place of the images", "ganbench statistics folder:faces --out faces.npz"),
    ("Over another network", "ganbench statistics digits:train --extractor pixels --out digits.npz"),
    ("A draw of the images", "ganbench statistics samples/ --extractor mnist-cnn --num 100 --out draw.npz"),
))
@click.argument("source")
@click.option(
    "--extractor", default="inception-v3", show_default=True, help="The network (`ganbench list extractors`).",
)
@click.option("--weights", multiple=True, metavar="EXTRACTOR=FILE", help="Its weights, instead of the published ones.")
@click.option("--out", type=FILE, required=True, help="The npz to write.")
@click.option("--with-images", is_flag=True, help="Also arr_0, uint8 N x H x W x C, and arr_1, labels.")
@click.option("--num", type=COUNT, help="Number of images, drawn under --seed. Default: all.")
@reading
@click.option("--batch-size", type=COUNT, help="Batch size of the extractor. Default: 16 on the CPU, else 256.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of samples and of draws.")
@device_option
@common
def statistics(
    source: str, extractor: str, weights: tuple[str, ...], out: Path, with_images: bool, num: int | None,
    resize: str | None, image_labels: Path | None, latent: str | None, prior: str | None, classes: int | None,
    batch_size: int | None, seed: int, device: str | None, quiet: bool,
) -> None:
    """Write the moments of a set's features, to an npz.

    mu and sigma (float64, N - 1), and with them n, extractor and sha256. Such a file can be the --reference of
    Fréchet distances in place of its images.
    """
    registry.require("extractors", extractor)
    files = parse_weights(weights)
    if unused := [name for name in files if name != extractor]:
        raise UserError(f"--weights {unused[0]}=...: the extractor is {extractor}.")
    if out.suffix != ".npz":
        raise UserError(f"--out {out}: the file must end with .npz.")
    require_writable(out, "--out")

    from ganbench.base.progress import Reporter
    from ganbench.evaluation import statistics

    statistics.write_of_source(
        source, extractor, files.get(extractor), out, with_images, num, seed, batch_size, device, Reporter(quiet),
        resize=resize, image_labels=image_labels, latent=latent, prior=prior, classes=classes,
    )
    click.echo(str(out))
