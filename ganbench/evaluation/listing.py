"""Open a source without reading its files: a shard of a folder or zip reads its own rows and no others.

`sources.open_source` reads every file once, for a fingerprint of what is in them. Here the fingerprint of a folder or
zip is that of its listing: the names and sizes of the files, in their order, and how they are decoded.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

from ganbench.base.data_spec import name_in
from ganbench.base.registry import names
from ganbench.data import datasets, sources
from ganbench.data.datasets import layout
from ganbench.data.datasets.folder import labels_of_layout
from ganbench.data.decoding import VERSION
from ganbench.data.sources import Options, Samples
from ganbench.data.sources.samples import of_files, origin_of_options
from ganbench.data.streams import EncodedImages


def open_listed(text: str, num: int | None, seed: int, options: Options) -> Samples:
    """Open a source as `sources.open_source` does. The origin of a folder or zip has the fingerprint of its listing.

    Raises UserError as `sources.open_source` does.
    """
    path, of_zip = Path(text), None
    head, _, split = text.rpartition(":")
    if head.lower().endswith(".zip") and not os.path.exists(path):
        path, of_zip = Path(head), split
    named = name_in(text) in names("datasets")
    folder = name_in(text) == "folder" or (not named and bool(text) and os.path.isdir(path))
    if options.of_a_generator() or not (folder or (not named and path.suffix.lower() == ".zip")):
        return sources.open_source(text, num, seed, options=options)
    if folder:
        spec = text if name_in(text) == "folder" else f"folder:{text}"
        data = datasets.load(spec, labels_file=options.labels_file, how=options.decoding, progress=options.progress)
        images, labels, classes = data.images, data.labels, data.classes
        origin: dict[str, Any] = {"kind": "dataset", "name": data.name, "split": data.split}
        origin |= of_files(data.where or data.name, data.left_out, data.remarks, options)
    else:
        found = layout.of_zip(path, of_zip, options.labels_file is None)
        labels, classes = labels_of_layout(found, options.labels_file)
        images = EncodedImages(found.files, options.decoding, str(path), options.progress)
        origin = {"kind": "zip", "name": path.name, "split": found.split}
        origin |= of_files(str(path), found.left_out, found.remarks, options)
    assert isinstance(images, EncodedImages)
    origin |= {"fingerprint": fingerprint_of_listing(images), "fingerprint_of": "listing", **origin_of_options(options)}
    return sources.take(Samples(images, labels, origin, classes=classes), num, text, seed)


def fingerprint_of_listing(images: EncodedImages) -> str:
    """Return the SHA-256 of the files' names and sizes, in their order, and of how they are decoded.

    Names of files in a folder are relative to it, so that it may lie elsewhere on another machine. A file that is
    changed and keeps its size changes nothing here.
    """
    digest = hashlib.sha256(f"listed images, decoder {VERSION}, {images.how}".encode())
    ends = [os.path.dirname(file.path) for file in (images.files[0], images.files[-1])]
    root = len(os.path.commonpath(ends))
    for file in images.files:
        name = file.path[root:].lstrip(os.sep) if file.member is None else file.member
        digest.update(f"{file.size} {name}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
