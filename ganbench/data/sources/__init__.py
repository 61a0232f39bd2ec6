"""Sources of images to evaluate. Every source gives `Samples`: uint8 N x C x H x W, with labels if they are known.

Use `open_source` with the text that a user gives to `--images` or `--reference`.

archives.py     zip and npz files
callables.py    a Python function of the user
class_map.py    the user's words about which class of the images is which class of the reference or of a classifier
checkpoints.py  samples of a checkpoint, written to a PNG or an npz
generators.py   a reference model, a network in memory, or one in a TorchScript or ONNX file
objects.py      tensors, arrays, batches and functions of Python code
samples.py      `Samples`, the options of reading, and what is done to samples afterwards
traversals.py   what each code of a checkpoint changes, as a PNG
"""

import os
from pathlib import Path

from ganbench.base.data_spec import name_in
from ganbench.base.errors import UserError, did_you_mean, shortened
from ganbench.base.registry import names
from ganbench.data import datasets
from ganbench.data.decoding import SUFFIXES
from ganbench.data.sources.archives import read_npz, read_zip
from ganbench.data.sources.callables import call
from ganbench.data.sources.generators import SUFFIXES as GENERATORS
from ganbench.data.sources.generators import generate, open_generator, parse_latent
from ganbench.data.sources.objects import samples_of
from ganbench.data.sources.samples import Options, Samples, aligned, from_dataset, named_like, resized, take

__all__ = [
    "GENERATORS",
    "Options",
    "Samples",
    "aligned",
    "are_files",
    "from_dataset",
    "generate",
    "named_like",
    "open_source",
    "opened",
    "parse_latent",
    "resized",
    "samples_of",
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
    path, of_zip = _zip_and_split(text)
    head = name_in(text)
    named = head in names("datasets")
    folder = head == "folder" or (not named and bool(text) and os.path.isdir(path))
    suffix = "" if folder or named else path.suffix.lower()
    if named and os.path.isdir(text):
        options.say(f"'{text}' is the data set of that name; the folder is ./{text}")
    files = folder or suffix == ".zip"
    given = options.labels_option if options.labels_file else options.of_image_files()
    if given and not files:
        raise UserError(f"{given} is for the files of a folder or a zip, and '{text}' is neither: leave it out.")
    if (given := options.of_a_generator()) and suffix not in GENERATORS:
        raise UserError(
            f"{given} is for a generator in a file ({', '.join(GENERATORS)}), and '{text}' is not one: leave it out."
        )
    if folder:
        spec = text if head == "folder" else f"folder:{text}"
        data = datasets.load(
            spec, split, labels_file=options.labels_file, how=options.decoding, progress=options.progress
        )
        samples = from_dataset(data, options)
    elif named:
        samples = resized(from_dataset(datasets.load(text, split)), options.resize)
    elif suffix == ".zip":
        samples = read_zip(path, options, of_zip or split)
    elif suffix == ".npz":
        samples = resized(read_npz(path, options.moments_alone), options.resize)
    elif suffix in GENERATORS:
        return resized(open_generator(path, num, seed, options), options.resize)
    elif ":" in text and not os.path.exists(path):
        return resized(call(text, num, seed), options.resize)
    else:
        raise UserError(
            f"cannot read images from '{shortened(text)}': it is no folder, .zip, .npz, {', '.join(GENERATORS)}, "
            f"module:callable or data set.{_advice(path, head)}"
        )
    return take(samples, num, text, seed)


def opened(
    source: str | Samples, num: int | None = None, seed: int = 0, split: str | None = None,
    options: Options | None = None,
) -> Samples:
    """Return the samples of a source, or samples that are at hand, resized and drawn as `open_source` does."""
    if isinstance(source, str):
        return open_source(source, num, seed, split, options)
    return take(resized(source, (options or Options()).resize), num, "the set", seed)


def are_files(text: str) -> bool:
    """Return True if a source is a folder or a zip of image files."""
    head = name_in(text)
    if head == "folder" or head in names("datasets"):
        return head == "folder"
    path, _ = _zip_and_split(text)
    return path.suffix.lower() == ".zip" or (bool(text) and os.path.isdir(path))


def _zip_and_split(text: str) -> tuple[Path, str | None]:
    """Return the path, and the split of FILE.zip:split; None of anything else."""
    path, _, split = text.rpartition(":")
    if path.lower().endswith(".zip") and not os.path.exists(text):
        return Path(path), split
    return Path(text), None


def _advice(path: Path, head: str) -> str:
    """Return the end of a message about a text that is no source."""
    if path.suffix.lower() == ".npy" and os.path.isfile(path):
        return f" Write the array into an npz: numpy.savez('{path.stem}.npz', numpy.load('{path}'))."
    if path.suffix.lower() in SUFFIXES and os.path.isfile(path):
        return " It is one image, and a metric needs a set: give its folder."
    return did_you_mean(head, names("datasets"))
