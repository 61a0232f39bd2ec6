"""A process that decodes images: `python -m ganbench.data.decoder`, started and fed by `ganbench.data.decoders`.

It reads tasks from stdin and writes pixels to stdout until stdin ends, which it does when its parent ends, however that
ends. It imports no torch, ignores Ctrl-C (the parent closes stdin), and holds one chunk of images at a time.
"""

import os
import pickle
import signal
import struct
import sys
import warnings
import zipfile
from typing import IO, Any

import numpy as np

from ganbench.base.errors import UserError
from ganbench.data.decoding import decode_all

LENGTH = struct.Struct("<Q")


def send(stream: IO[bytes], value: Any) -> None:
    """Write a value, preceded by its length in bytes."""
    data = pickle.dumps(value)
    stream.write(LENGTH.pack(len(data)) + data)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Read a value that `send` wrote. Raises EOFError if the other process has ended."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise EOFError
    data = stream.read(LENGTH.unpack(head)[0])
    return pickle.loads(data)  # from the process at the other end of our own pipe


def main() -> None:
    """Answer tasks (files, decoding, shape H x W x C, name of the first file) by an error or None, then the pixels."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # of Pillow, about EXIF data and sizes: what matters is an error
    archives: dict[str, zipfile.ZipFile] = {}
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a decoder prints must not reach the pixels
    while True:
        try:
            files, how, (h, w, c), first = receive(source)
        except EOFError:
            return
        try:
            pixels = np.empty((len(files), c, h, w), np.uint8)
            decode_all(files, how, (h, w, c), first, pixels, archives)
        except UserError as error:
            send(sink, str(error))
            continue
        except MemoryError:
            send(sink, "there is not enough memory to decode the images: lower --workers.")
            continue
        send(sink, None)
        sink.write(pixels.data)
        sink.flush()


if __name__ == "__main__":
    main()
