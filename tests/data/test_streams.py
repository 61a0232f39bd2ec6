"""Streams of images: the same values from files and from memory, with any number of decoders; nothing is read twice."""

import importlib
import io
import json
import os
import signal
import struct
import threading
import time
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from support import process, write_png

from ganbench.base.errors import UserError
from ganbench.data import decoders, resizing, sources, streams
from ganbench.data.decoding import Decoding, File, decode
from ganbench.data.sources import archives, callables, generators, open_source
from ganbench.data.sources.generators import generate
from ganbench.gan import GAN

N, SIDE = 300, 12  # more than are decoded in the process itself


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (N, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def kinds(place, pixels, monkeypatch):
    """The same images, with the same labels, as a source of every kind that holds images."""
    labels = np.arange(N) % 3
    with zipfile.ZipFile("set.zip", "w") as archive:
        for i, array in enumerate(pixels):
            file = write_png(place / "set" / str(labels[i]) / f"{i:03}.png", array)
            archive.write(file, f"{labels[i]}/{i:03}.png")
    order = np.argsort(labels, kind="stable")
    np.savez("plain.npz", arr_0=pixels[order], arr_1=labels[order])
    np.savez_compressed("packed.npz", images=pixels[order].transpose(0, 3, 1, 2), labels=labels[order])
    (place / "mine.py").write_text(
        "import numpy as np, torch\n"
        "with np.load('plain.npz') as file:\n"
        "    images, labels = torch.from_numpy(file['arr_0']).permute(0, 3, 1, 2), torch.from_numpy(file['arr_1'])\n"
        "def whole(num, seed): return images[:num], labels[:num]\n"
        "def parts(num, seed):\n"
        "    print('made')\n"
        "    for at in range(0, num, 70): yield images[at:at + 70], labels[at:at + 70]\n"
    )
    monkeypatch.syspath_prepend(str(place))
    return ["set", "set.zip", "plain.npz", "packed.npz", "mine:whole", "mine:parts"], order


def stream_all(monkeypatch):
    """Keep nothing in memory, as if all sets were large."""
    for module in (streams, archives, callables, generators):
        monkeypatch.setattr(module, "IN_MEMORY", 0)


@pytest.mark.parametrize("workers", ["0", "1", "4"])
def test_every_kind_of_source_streams_the_pixels_that_it_has_in_memory(kinds, pixels, monkeypatch, workers):
    monkeypatch.setenv("GANBENCH_WORKERS", workers)
    names, order = kinds
    expected = torch.from_numpy(pixels[order]).permute(0, 3, 1, 2)
    rows = torch.tensor([7, 290, 3, 3])
    for large in (False, True):
        if large:
            stream_all(monkeypatch)
        for name in names:
            made = open_source(name, N if ":" in name else None)
            assert made.images.shape == (N, 3, SIDE, SIDE), name
            assert torch.equal(made.images[:], expected), name
            assert torch.equal(made.images[rows], expected[rows]), name
            assert torch.equal(made.labels, torch.from_numpy(np.arange(N) % 3)[torch.from_numpy(order)]), name
            parts = list(streams.batches(made.images, 64, slice(10, 200)))
            assert [len(part) for part in parts] == [64, 64, 62], name
            assert all(part.is_contiguous() for part in parts)
            assert torch.equal(torch.cat(parts), expected[10:200]), name
            drawn = sources.take(made, 40, name, 5)
            again = sources.take(sources.Samples(expected, made.labels), 40, name, 5)
            assert torch.equal(drawn.images[:], again.images), name


METRICS = "fd_pixels,kd_pixels,score_mnist-cnn,ms_ssim,ms_ssim_all,swd,nn_error,memorised_share,parzen_ll"


def test_values_of_streams_are_those_of_sets_in_memory_whatever_the_number_of_decoders(ganbench, kinds, monkeypatch):
    args = ["--images", "set.zip", "--reference", "set", "--held-out", "plain.npz", "--metrics", METRICS, "--num", 250,
            "--resize", "32:pil-bicubic", "--no-cache", "--json"]
    swd = importlib.import_module("ganbench.metrics.sliced_wasserstein")
    for name, less in {"PATCHES": 16, "REPEATS": 1, "DIRECTIONS": 40}.items():  # of 128, 4 and 128: they take seconds
        monkeypatch.setattr(swd, name, less)
    values = []
    for workers in ("0", "1", "4", "large"):
        if workers == "large":
            stream_all(monkeypatch)
        done = ganbench("evaluate", *args, *([] if workers == "large" else ["--workers", workers]))
        assert done.code == 0, done.err
        result = json.loads(done.out)
        values.append([(m["metric"], m["value"], m["uncertainty"]) for m in result["measurements"] + result["real"]])
    assert all(value is not None for _, value, _ in values[0])
    assert values[1] == values[0]
    assert values[2] == values[0]
    for (name, a, of_a), (_, b, of_b) in zip(values[0], values[3], strict=True):
        assert b == pytest.approx(a, rel=1e-6, abs=1e-9), name
        if of_a:
            assert of_b["value"] == pytest.approx(of_a["value"], rel=1e-5), name


def test_each_image_is_decoded_once_for_all_extractors_and_metrics(ganbench, kinds, monkeypatch):
    stream_all(monkeypatch)
    monkeypatch.setenv("GANBENCH_WORKERS", "0")
    seen = []
    monkeypatch.setattr(decoders, "decode_all", lambda files, *rest, whole=decoders.decode_all: (
        seen.extend(file.name for file in files), whole(files, *rest)))
    metrics = "fd_pixels,kd_pixels,score_mnist-cnn,fd_mnist-cnn,ms_ssim,ms_ssim_all"
    done = ganbench("evaluate", "--images", "set.zip", "--reference", "set", "--metrics", metrics, "--no-cache")
    assert done.code == 0, done.err
    assert len(seen) == len(set(seen)) == 2 * N


def test_a_cached_reference_is_not_decoded_again(ganbench, kinds, monkeypatch):
    args = ["evaluate", "--images", "plain.npz", "--reference", "set", "--metrics", "fd_pixels,kd_pixels", "--json"]
    first = ganbench(*args)

    def fail(*args):
        raise AssertionError("decoded")

    monkeypatch.setattr(streams, "decode_files", fail)
    second = ganbench(*args)
    assert second.code == 0, second.err
    assert json.loads(second.out)["measurements"] == json.loads(first.out)["measurements"]
    assert json.loads(second.out)["reference"]["fingerprint_of"] == "files"


def test_the_fingerprint_of_files_depends_on_their_bytes_order_labels_and_decoding(place, pixels):
    def of(files, resize=None):
        folder = place / f"f{len(list(place.iterdir()))}"
        for name, i in files.items():
            write_png(folder / name, pixels[i])
        return open_source(str(folder), options=sources.Options(resize=resize)).origin["fingerprint"]

    base = of({"a/1.png": 0, "b/2.png": 1})
    assert of({"a/3.png": 0, "b/4.png": 1}) == base
    others = [of({"a/1.png": 1, "b/2.png": 0}), of({"a/1.png": 0, "b/2.png": 2}), of({"1.png": 0, "2.png": 1}),
              of({"a/1.png": 0, "b/2.png": 1}, resizing.parse("6:box"))]
    assert len({base, *others}) == 5


class Steps(GAN):
    """Images of one colour that the latent gives."""

    image_shape = (1, 4, 4)

    def sample_latent(self, n, generator=None):
        return torch.rand(n, 1, generator=generator) * 2 - 1

    def generate(self, z, y=None):
        return z.view(-1, 1, 1, 1).expand(-1, 1, 4, 4)

    def sample(self, n, y=None, generator=None):
        return self.generate(self.sample_latent(n, generator))

    @property
    def device(self):
        return torch.device("cpu")


def test_image_i_of_a_seed_depends_on_no_batch_size_and_no_order_of_asking(monkeypatch):
    whole = generate(Steps(), 1700, 3, torch.device("cpu")).images
    stream_all(monkeypatch)
    stream = generate(Steps(), 1700, 3, torch.device("cpu")).images
    assert isinstance(stream, streams.Images)
    for size in (1, 64, 999):
        rows = slice(600, 1300)
        assert torch.equal(torch.cat(list(stream.batches(size, rows))), whole[rows])
    rows = torch.tensor([1699, 0, 501, 3])
    assert torch.equal(stream[rows], whole[rows])


def test_pixels_that_a_metric_did_not_announce_are_refused():
    partial = streams.Partial(9, torch.tensor([2, 5]), torch.arange(2 * 48, dtype=torch.uint8).view(2, 3, 4, 4))
    assert torch.equal(partial[torch.tensor([5, 2, 5])], partial.pixels[[1, 0, 1]])
    assert (len(partial), partial.shape) == (9, (9, 3, 4, 4))
    for rows in (torch.tensor([2, 3]), slice(None)):
        with pytest.raises(IndexError, match=r"Protocol\.rows"):
            _ = partial[rows]


# --- Under attack ---


def evaluate(source):
    return ["evaluate", "--images", source, "--reference", "digits", "--channels", "l", "--metrics", "fd_pixels"]


def huge_png(width, height):
    """A PNG whose header claims a size, with hardly any data."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 99)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_an_image_that_claims_to_be_huge_is_refused(refuses, place):
    (place / "set").mkdir()
    (place / "set" / "a.png").write_bytes(huge_png(60_000, 60_000))
    refuses(["a.png", "not a readable image"], *evaluate("set"))


def test_a_fifo_among_the_images_is_named_and_not_waited_for(refuses, place, pixels):
    write_png(place / "set" / "a.png", pixels[0])
    os.mkfifo(place / "set" / "b.png")
    refuses(["b.png", "no regular file"], *evaluate("set"))
    os.mkfifo(place / "set.zip")
    os.mkfifo(place / "set.npz")
    refuses(["set.zip", "no regular file"], *evaluate("set.zip"))
    refuses(["set.npz", "no regular file"], "evaluate", "--images", "set.npz", "--metrics", "fd_pixels")


def test_a_member_that_unpacks_to_more_than_it_says_is_refused(refuses, place):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", b"\0" * (8 << 20))
    data = bytearray(buffer.getvalue())
    for signature, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):  # the size, in both of its places
        at = data.index(signature) + offset
        data[at : at + 4] = struct.pack("<I", 1000)
    (place / "bomb.zip").write_bytes(data)
    refuses(["bomb.zip"], *evaluate("bomb.zip"))
    with zipfile.ZipFile("large.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", b"")
    data = bytearray((place / "large.zip").read_bytes())
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = struct.pack("<I", 3 << 30)
    (place / "large.zip").write_bytes(data)
    refuses(["a.png", "unpacks to 3,221,225,472 bytes"], *evaluate("large.zip"))


def test_an_npz_that_claims_more_than_it_holds_is_refused(refuses, place):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 99, 99, 3)})
    with zipfile.ZipFile("claims.npz", "w") as archive:
        archive.writestr("arr_0.npy", header.getvalue() + b"\0" * 99)
    refuses(["claims.npz", "its images take 99 bytes"], "evaluate", "--images", "claims.npz", "--metrics", "fd_pixels")


def test_a_file_that_changes_while_it_is_read_is_named(place, pixels):
    file = write_png(place / "set" / "a.png", pixels[0])
    found = file.stat()
    listed = File(str(file), None, found.st_size, found.st_mtime_ns)
    assert decode(listed.read(), "a.png").shape == (SIDE, SIDE, 3)
    write_png(file, pixels[1])
    with pytest.raises(UserError, match=r"a\.png changed while it was read"):
        listed.read()


def test_a_decoder_that_is_killed_is_one_line(place, pixels, monkeypatch):
    for i in range(N):
        write_png(place / "set" / f"{i:03}.png", pixels[i])
    monkeypatch.setattr(decoders, "CHUNK_FILES", 8)
    images = open_source("set").images
    parts = decoders.decode_files(images.files, Decoding(), (3, SIDE, SIDE), "000.png", 1)
    next(parts)
    (decoder,) = [p for p in children() if "ganbench.data.decoder" in p[1]]
    os.kill(decoder[0], signal.SIGKILL)
    with pytest.raises(UserError, match=r"a process that decodes images was killed by signal 9.*--workers"):
        list(parts)
    assert not [p for p in children() if "ganbench.data.decoder" in p[1]]


def children():
    """(process, command line) of the processes that this one started."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as stat, open(f"/proc/{entry}/cmdline") as command:
                    parent = int(stat.read().rpartition(")")[2].split()[1])
                    if parent == os.getpid():
                        found.append((int(entry), command.read().replace("\0", " ")))
            except OSError:
                continue
    return found


def test_leaving_a_pass_ends_all_decoders_at_once(place, pixels, monkeypatch):
    for i in range(N):
        write_png(place / "set" / f"{i:03}.png", pixels[i])
    monkeypatch.setattr(decoders, "CHUNK_FILES", 8)
    parts = decoders.decode_files(open_source("set").images.files, Decoding(), (3, SIDE, SIDE), "000.png", 3)
    next(parts)
    assert [p for p in children() if "ganbench.data.decoder" in p[1]]
    began = time.monotonic()
    parts.close()
    assert time.monotonic() - began < 2
    assert not [p for p in children() if "ganbench.data.decoder" in p[1]]
    assert not [t for t in threading.enumerate() if t.name.startswith("decoder")]


def test_the_error_is_that_of_the_first_damaged_file_in_order(place, pixels, monkeypatch):
    for i in range(N):
        write_png(place / "set" / f"{i:03}.png", pixels[i])
    for i in (200, 290):
        (place / "set" / f"{i:03}.png").write_text("broken")
    monkeypatch.setattr(decoders, "CHUNK_FILES", 8)
    for workers in ("0", "3"):
        monkeypatch.setenv("GANBENCH_WORKERS", workers)
        with pytest.raises(UserError, match=r"200\.png is not a readable image"):
            _ = open_source("set").images[:]


def test_a_set_larger_than_the_memory_that_is_allowed_is_measured(place):
    """300 MB of pixels in each set, of which 64 MB may be kept, in an address space with 200 MB of room."""
    noise = np.random.default_rng(0).integers(0, 256, (2400, 3, 1), dtype=np.uint8)
    for i in range(20):
        write_png(place / "one" / f"{i:02}.png", np.full((200, 200, 3), i * 12, np.uint8) + noise[i % 9, :, 0])
    with zipfile.ZipFile("set.zip", "w") as archive:
        for i in range(2400):
            archive.write(place / "one" / f"{i % 20:02}.png", f"{i:04}.png")
    code = (
        "import resource, torch, ganbench.evaluation.run, ganbench.cli.evaluate, sys\n"
        "from ganbench.cli import main\n"
        "from ganbench.features import create\n"
        "import scipy.linalg\n"
        "torch.conv2d(torch.rand(8, 3, 64, 64), torch.rand(8, 3, 3, 3))\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20),) * 2)\n"
        "sys.argv[0] = 'ganbench'\n"
        "main(sys.argv[1:])\n"
    )
    args = ["evaluate", "--images", "set.zip", "--reference", "set.zip", "--metrics", "fd_mnist-cnn", "--channels", "l",
            "--workers", "1", "--no-cache", "--quiet"]
    done = process("-c", code, *args, cwd=place, OMP_NUM_THREADS="1", MALLOC_ARENA_MAX="2")
    assert done.code == 0, done.err[-500:]
    assert "fd_mnist-cnn" in done.out


# --- What a file shows ---


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_an_image_is_turned_as_its_exif_data_say(place, pixels, orientation):
    array = pixels[0, :8]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(array).save("a.png", exif=exif)
    turns = {3: 2, 6: -1, 8: 1}[orientation]
    assert np.array_equal(decode((place / "a.png").read_bytes(), "a.png"), np.rot90(array, turns))


def test_alpha_is_flattened_on_request_and_channels_are_converted_on_request(refuses, ganbench, place, pixels):
    rgba = np.dstack([pixels[0], np.full((SIDE, SIDE), 100, np.uint8)])
    write_png(place / "a.png", rgba)
    data = (place / "a.png").read_bytes()
    with pytest.raises(UserError, match="--alpha"):
        decode(data, "a.png")
    for name, level in (("white", 255), ("black", 0)):
        expected = (pixels[0].astype(float) * 100 + level * 155) / 255
        assert np.abs(decode(data, "a.png", Decoding(alpha=name)) - expected).max() <= 1
    grey = decode(data, "a.png", Decoding(channels="l", alpha="white"))
    assert grey.shape == (SIDE, SIDE, 1)
    refuses(["--channels", "files of a folder or a zip"], "evaluate", "--images", "digits", "--channels", "rgb",
            "--metrics", "fd_pixels")
