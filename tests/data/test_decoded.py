"""Images decoded once: the same pixels in memory and from a file, however often its making was killed."""

import json
import multiprocessing
import os
import random
import shutil
import time
from collections import namedtuple

import pytest
import torch
from support import write_png

from ganbench.base.errors import UserError
from ganbench.data.datasets import data_root, decoded, load
from ganbench.data.datasets.decoded import for_training, is_mapped, remove, stored
from ganbench.data.resizing import parse

SIDE, COUNT = 8, 60
ROW = 3 * SIDE * SIDE
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Pieces of four images, one process, and no set is kept in memory."""
    monkeypatch.setattr(decoded, "PIECE", 4 * ROW + 1)
    monkeypatch.setenv("GANBENCH_IN_MEMORY", "0")
    monkeypatch.setenv("GANBENCH_WORKERS", "0")


@pytest.fixture
def cats(place):
    """A folder of 60 images of two classes."""
    pixels = torch.randint(256, (COUNT, SIDE, SIDE, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for i, image in enumerate(pixels):
        write_png(place / "cats" / "ab"[i % 2] / f"{i:03}.png", image.numpy())
    return f"folder:{place / 'cats'}"


def files():
    return sorted(path.name for path in (data_root() / "decoded").iterdir())


def test_a_mapped_set_is_the_set_in_memory(cats, monkeypatch):
    said = []
    mapped = for_training(load(cats), say=said.append)
    monkeypatch.setenv("GANBENCH_IN_MEMORY", str(COUNT * ROW))
    whole = for_training(load(cats))
    assert is_mapped(mapped.images)
    assert is_mapped(mapped.images[3:5])
    assert not is_mapped(whole.images)
    assert torch.equal(mapped.images, whole.images)
    assert torch.equal(whole.images, load(cats).images[:])
    assert torch.equal(mapped.labels, whole.labels)
    assert (mapped.classes, mapped.fingerprint, mapped.fingerprint_of) == (
        whole.classes, load(cats).fingerprint, load(cats).fingerprint_of)
    assert mapped.fingerprint == whole.fingerprint
    assert len(said) == 1
    assert "60 images of cats at 3x8x8 take" in said[0]
    assert "free: " in said[0]
    assert for_training(mapped) is mapped
    about = json.loads(next((data_root() / "decoded").glob("*.json")).read_text())
    assert (about["count"], about["shape"], about["source"]) == (COUNT, [COUNT, 3, SIDE, SIDE], "cats:all")
    assert (len(about["sha256"]), about["piece_rows"]) == (15, 4)


def test_a_file_is_made_once_and_again_for_other_pixels(cats, place, recwarn):
    said = []
    for _ in range(2):
        for_training(load(cats), say=said.append)
    assert len(said) == 1
    assert len(files()) == 2  # pixels and their description
    small = for_training(load(cats, resize=parse("4:box")), say=said.append)
    assert small.images.shape == (COUNT, 3, 4, 4)
    picture = place / "cats" / "a" / "000.png"
    write_png(picture, torch.zeros(SIDE, SIDE, 3, dtype=torch.uint8).numpy())
    changed = for_training(load(cats), say=said.append)
    assert not changed.images[0].any()
    assert len(files()) == 6
    assert len(said) == 3
    assert not [w for w in recwarn if "writable" in str(w.message)]


def test_a_file_larger_than_memory_can_be_mapped(tmp_path, monkeypatch):
    """A mapping that may be written counts as memory on Linux, and is refused for such a file."""
    class Huge(decoded.Images):
        shape = torch.Size((1 << 24, 3, 256, 256))  # 3 TiB

        def batches(self, size, rows=None):
            raise AssertionError

    monkeypatch.setattr(decoded, "PIECE", 1 << 62)
    monkeypatch.setattr(decoded._Store, "verified", lambda self, file, digests: set(digests))
    data = decoded.Dataset("huge", "all", Huge())
    data.__dict__["fingerprint"] = "of it"
    store = decoded._Store(data, data.images)
    store.path.parent.mkdir(parents=True)
    try:
        with open(store.path, "wb") as file:
            file.truncate(store.size)
    except OSError:
        pytest.skip("this file system has no files of 3 TiB")
    store.about.write_text(json.dumps({**store.described, "sha256": ["0"]}))
    images = for_training(data).images
    assert images.shape == Huge.shape
    assert not images[torch.tensor([0, 5, (1 << 24) - 1])].any()


# What a kill, a full disk or a bad disk may leave: (a change to the files, whether a whole file was there before).
DAMAGE = {
    "nothing": lambda u8: None,
    "cut": lambda u8: os.truncate(u8, 1000),
    "longer": lambda u8: os.truncate(u8, COUNT * ROW + 1),
    "a piece of zeros": lambda u8: u8.write_bytes(bytes(4 * ROW) + u8.read_bytes()[4 * ROW :]),
    "no description": lambda u8: u8.with_suffix(".json").unlink(),
    "a broken description": lambda u8: u8.with_suffix(".json").write_text('{"version": 1, "sha256": 3}'),
    "no pixels": lambda u8: u8.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_made_again(cats, damage):
    expected = for_training(load(cats)).images.clone()
    (u8,) = (data_root() / "decoded").glob("*.u8")
    damage(u8)
    assert torch.equal(for_training(load(cats)).images, expected)
    assert len(files()) == 2


def test_pieces_that_are_as_recorded_are_kept_and_the_others_made_again(cats, monkeypatch):
    expected, batches, asked = load(cats).images[:], decoded.batches, []

    def stops_in_the_sixth(images, size, rows):
        pieces = batches(images, size, rows)
        for _ in range(5):
            yield next(pieces)
        raise KeyboardInterrupt

    monkeypatch.setattr(decoded, "batches", stops_in_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        for_training(load(cats))
    (part,) = (data_root() / "decoded").glob(".*.part")
    record = part.with_suffix(".record")
    assert len(record.read_text().splitlines()) == 1 + 5
    with open(part, "r+b") as file:  # the second piece is damaged, and the record has a line that was cut
        file.seek(4 * ROW)
        file.write(bytes(ROW))
    record.write_text(record.read_text() + "5 abc")

    def notes(images, size, rows):
        asked.extend(rows.tolist())
        return batches(images, size, rows)

    monkeypatch.setattr(decoded, "batches", notes)
    made = for_training(load(cats))
    assert torch.equal(made.images, expected)
    assert asked == [4, 5, 6, 7, *range(20, COUNT)]
    assert len(files()) == 2


def test_a_disk_without_the_room_is_said_before_anything_is_decoded(cats, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6, COUNT * ROW - 1))
    monkeypatch.setattr(decoded, "batches", lambda *args: pytest.fail("decoded"))
    with pytest.raises(UserError, match=r"60 images of cats at 3x8x8 take .* has .* free: free some, set"):
        for_training(load(cats))
    assert files() == []


def test_a_damaged_image_and_a_folder_that_cannot_be_written_are_one_line(cats, place):
    (place / "cats" / "b" / "031.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"031\.png is not a readable image"):
        for_training(load(cats))
    shutil.rmtree(data_root() / "decoded")
    (data_root() / "decoded").write_text("a file")
    with pytest.raises(UserError, match=r"cannot write .*GANBENCH_DATA"):
        for_training(load(cats))


@pytest.mark.parametrize("text", ["1.5", "-1", "1e9", "9" * 30, "٣"])
def test_a_limit_that_is_no_number_is_refused(cats, monkeypatch, text):
    monkeypatch.setenv("GANBENCH_IN_MEMORY", text)
    with pytest.raises(UserError, match=r"GANBENCH_IN_MEMORY=.* must be a number of bytes"):
        for_training(load(cats))


def maker(spec):
    """Start a process that makes the file slowly, says what it says, then the images, and waits for an end."""
    here, there = FORK.Pipe()

    def run():
        batches = decoded.batches

        def slowly(*args):
            for batch in batches(*args):
                time.sleep(0.03)
                yield batch

        decoded.batches, decoded.POLL_SECONDS = slowly, 0.02
        there.send("ready")
        images = for_training(load(spec), say=there.send).images
        there.send(images.numpy().copy())
        there.recv()

    process = FORK.Process(target=run)
    process.start()
    assert here.recv() == "ready"
    return process, here


def test_kills_at_any_moment_leave_nothing_that_is_wrong(cats):
    """Processes are killed with -9 while they make the file; the next one goes on. Then two wait for each other."""
    whole = load(cats).images[:].numpy()
    moments, kept = random.Random(0), []

    def recorded():
        (folder := data_root() / "decoded").mkdir(parents=True, exist_ok=True)
        return max([len(record.read_text().splitlines()) for record in folder.glob(".*.record")], default=0)

    for pieces in (0, 0, 3, 5, 7):
        process, _ = maker(cats)
        while recorded() < pieces:
            assert process.is_alive()
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.06))
        process.kill()
        process.join()
        kept.append(recorded())
    assert kept == sorted(kept)  # nothing that was made is lost
    assert kept[-1] >= 7
    assert not list((data_root() / "decoded").glob("*.u8"))
    both = [maker(cats) for _ in range(2)]
    said = [[talk.recv() for _ in range(2)] for _, talk in both]
    assert all((images == whole).all() for _, images in said)
    assert sorted(text.split(",")[0].split(" /")[0] for text, _ in said) == [
        "another process makes", "decodes once for training: 60 images of cats at 3x8x8 take 0.011 MiB",
    ]
    (entry,) = stored()
    assert entry.why_kept == "in use"
    assert not remove(entry)
    assert len(files()) == 2
    for process, talk in both:
        talk.send("end")
        process.join()
    (entry,) = stored()
    assert entry.what == "60 images of cats:all at 3x8x8"
    assert entry.size == COUNT * ROW
    assert remove(entry)
    assert files() == []


def test_what_a_kill_left_is_removed_after_a_day(cats, monkeypatch):
    rename = os.replace

    def full(old, new):
        if str(new).endswith(".u8"):
            raise OSError(28, "No space left on device")
        rename(old, new)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"No space left on device.*the same command then goes on"):
        for_training(load(cats))
    (entry,) = stored()
    assert (entry.what, entry.why_kept) == ("unfinished", "unfinished, less than a day old")
    assert not remove(entry)
    for path in (data_root() / "decoded").iterdir():
        os.utime(path, (time.time() - 90_000,) * 2)
    (entry,) = stored()
    assert remove(entry)
    assert files() == []


def test_doctor_lists_and_removes_what_nobody_uses(cats, ganbench, refuses):
    features = data_root() / "features"
    features.mkdir(parents=True)
    (features / "a.safetensors").write_bytes(b"12345678")
    used = for_training(load(cats))
    for_training(load(cats, resize=parse("4:box")))
    assert "decoded training images: 2 files, " in ganbench("doctor").out
    refuses(["--yes belongs to --clean"], "doctor", "--yes")
    refuses(["--features belongs to --clean"], "doctor", "--features")
    refuses(["give --yes"], "doctor", "--clean")
    assert len(files()) == 4
    done = ganbench("doctor", "--clean", "--yes")
    assert done.out.count("60 images of cats:all at ") == 2
    assert "60 images of cats:all at 3x8x8 (in use: kept)\n" in done.out
    assert done.out.endswith("removed 1 of 2\n")
    assert len(files()) == 2
    assert len(used.images) == COUNT
    assert list(features.iterdir())
    del used
    done = ganbench("doctor", "--clean", "--yes", "--features")
    assert "features of images, 1 files" in done.out
    assert done.out.endswith("removed 2 of 2\n")
    assert files() == []
    assert list(features.iterdir()) == []
    assert ganbench("doctor", "--clean").out == "nothing to remove\n"
