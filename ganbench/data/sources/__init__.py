"""Sources of images to evaluate. Every source gives `Samples`: uint8 N x C x H x W, with labels if they are known.

Use `open_source` with the text that a user gives to `--images` or `--reference`.

archives.py     zip and npz files
callables.py    a Python function of the user
checkpoints.py  samples of a checkpoint, written to a PNG or an npz
generators.py   a reference model, or a generator in a TorchScript or ONNX file
samples.py      `Samples`, the options of reading, and what is done to samples afterwards
"""

from pathlib import Path

from ganbench.base.data_spec import name_in
from ganbench.base.errors import UserError, did_you_mean
from ganbench.base.registry import names
from ganbench.data import datasets
from ganbench.data.sources.archives import read_npz, read_zip
from ganbench.data.sources.callables import call
from ganbench.data.sources.generators import SUFFIXES as GENERATORS
from ganbench.data.sources.generators import generate, open_generator, parse_latent
from ganbench.data.sources.samples import Options, Samples, aligned, from_dataset, resized, take

__all__ = [
    "GENERATORS",
    "Options",
    "Samples",
    "aligned",
    "from_dataset",
    "generate",
    "open_source",
    "parse_latent",
    "resized",
    "take",
]


def open_source(
    text: str, num: int | None = None, seed: int = 0, split: str | None = None, options: Options | None = None
) -> Samples:
    """Read or generate the images of a source.

    text: a folder, FILE.zip, FILE.npz, a data spec such as `mnist:test` or `folder:PATH`, a generator in FILE.pt
    (TorchScript, whose code runs) or FILE.onnx, or `module:callable`.
    num: number of images. A callable or a generator makes this number. From other sources, `num` images are drawn
    without replacement, with `seed`; None takes all. split: the split if a data set is named without one. options: how
    to read the source.
    Raises UserError if the source cannot be read, if an option does not fit it, and if it has fewer images than `num`.
    """
    options = options or Options()
    path = Path(text)
    head = name_in(text)
    folder = head == "folder" or (head not in names("datasets") and bool(text) and path.is_dir())
    suffix = "" if folder or head in names("datasets") else path.suffix.lower()  # NAME is the data set, ./NAME a folder
    if options.labels_file is not None and not folder and suffix != ".zip":
        raise UserError(
            f"{options.labels_option} is for the files of a folder or a zip, and '{text}' is neither: leave it out."
        )
    if (given := options.of_a_generator()) and suffix not in GENERATORS:
        raise UserError(
            f"{given} is for a generator in a file ({', '.join(GENERATORS)}), and '{text}' is not one: leave it out."
        )
    if folder:
        spec = text if head == "folder" else f"folder:{text}"
        samples = from_dataset(datasets.load(spec, split, options.resize, options.labels_file), options)
    elif head in names("datasets"):
        samples = resized(from_dataset(datasets.load(text, split)), options.resize)
    elif suffix == ".zip":
        samples = read_zip(path, options)
    elif suffix == ".npz":
        samples = resized(read_npz(path, options.moments_alone), options.resize)
    elif suffix in GENERATORS:
        return resized(open_generator(path, num, seed, options), options.resize)
    elif ":" in text and not path.exists():
        return resized(call(text, num, seed), options.resize)
    else:
        known = did_you_mean(head, names("datasets"))
        raise UserError(
            f"cannot read images from '{text}': it is no folder, .zip, .npz, {', '.join(GENERATORS)}, module:callable "
            f"or data set.{known}"
        )
    return take(samples, num, text, seed)
