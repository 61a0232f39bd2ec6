"""Where images come from: a folder, a zip, an npz, a data set's split, a callable, or a generator.

Whatever the source, the outcome is `Samples`: uint8 N x C x H x W, all of one size, with labels where they are known.
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
    """Images from what a user may name.

    A folder, FILE.zip, FILE.npz, `NAME[:split]`, `folder:PATH`, a generator in FILE.pt (TorchScript, whose code runs)
    or FILE.onnx, or `module:callable`.
    num: how many; a callable or a generator is asked for them, from everything else they are drawn without replacement
    under `seed`. options: how it is read where that has to be said.
    Raises UserError that names the source for anything that cannot be read, and for fewer images than `num`.
    """
    options = options or Options()
    path = Path(text)
    head = name_in(text)
    folder = head == "folder" or (head not in names("datasets") and bool(text) and path.is_dir())
    suffix = "" if folder or head in names("datasets") else path.suffix.lower()  # a folder of a set's name is ./NAME
    if options.labels_file is not None and not folder and suffix != ".zip":
        raise UserError(f"{options.labels_option} is for the files of a folder or a zip, and '{text}' is neither.")
    if (given := options.of_a_generator()) and suffix not in GENERATORS:
        raise UserError(f"{given} is for a generator in a file ({', '.join(GENERATORS)}), and '{text}' is none.")
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
            f"cannot read images from '{text}': no such folder, .zip, .npz, {', '.join(GENERATORS)}, module:callable "
            f"or data set.{known}"
        )
    return take(samples, num, text, seed)
