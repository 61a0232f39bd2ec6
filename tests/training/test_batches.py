"""The order of the data: a function of seed and step, every image once an epoch, few labels as many of each class."""

import threading
from dataclasses import replace

import pytest
import torch
from support import write_png, write_recipe

from ganbench import recipes
from ganbench.base.errors import UserError
from ganbench.data import streams
from ganbench.data.datasets import data_root, load
from ganbench.data.datasets.decoded import for_training, is_mapped
from ganbench.recipes import TrainSpec
from ganbench.training import batches as of_batches
from ganbench.training import loop
from ganbench.training.batches import batches, endless, epoch_order, labelled_rows
from ganbench.training.loop import Interrupted, train
from ganbench.training.run_folder import CHECKPOINT

CPU = torch.device("cpu")
FEW = TrainSpec("digits", batch_size=16, steps=8, labels=40, unlabelled_batch_size=400)


@pytest.fixture
def data():
    return load("digits:train")


def test_an_epoch_takes_every_image_once_in_an_order_of_its_own():
    assert torch.equal(epoch_order(50, 3, 7), epoch_order(50, 3, 7))
    assert sorted(epoch_order(50, 3, 7).tolist()) == list(range(50))
    assert not torch.equal(epoch_order(50, 3, 7), epoch_order(50, 3, 8))


def test_each_seed_has_an_order_of_its_own():
    assert not torch.equal(epoch_order(50, 0, 7), epoch_order(50, 1, 7))


def test_batches_from_the_middle_are_those_of_a_whole_run(data):
    whole = list(batches(data, TrainSpec("digits", 400, 8), 0, 0, 8, CPU))  # three batches an epoch
    later = list(batches(data, TrainSpec("digits", 400, 8), 0, 5, 8, CPU))
    assert [b.step for b in whole] == list(range(8))
    assert [b.step for b in later] == [5, 6, 7]
    for a, b in zip(whole[5:], later, strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
    assert not torch.equal(whole[0].x, whole[3].x)  # a new epoch is a new order
    assert whole[0].x.dtype == torch.float32
    assert -1 <= float(whole[0].x.min()) < float(whole[0].x.max()) <= 1


def test_labels_stay_with_their_images(data):
    batch = next(batches(data, TrainSpec("digits", 64, 1), 0, 0, 1, CPU))
    rows = epoch_order(len(data), 0, 0)[:64]
    assert torch.equal(batch.y, data.labels[rows])
    assert torch.equal(((batch.x + 1) * 127.5).round().to(torch.uint8), data.images[rows])


def test_few_labels_are_as_many_of_each_class_and_each_seed_draws_its_own(data):
    rows = labelled_rows(data.labels, 40, 0)
    assert len(rows.unique()) == 40
    assert data.labels[rows].bincount().tolist() == [4] * 10
    assert torch.equal(rows, labelled_rows(data.labels, 40, 0))
    assert not torch.equal(rows, labelled_rows(data.labels, 40, 1))


def test_labels_that_the_classes_do_not_divide_are_one_more_of_classes_that_the_seed_draws(data):
    draws = [labelled_rows(data.labels, 25, seed) for seed in range(20)]
    counts = [data.labels[rows].bincount(minlength=10) for rows in draws]
    assert all(len(rows.unique()) == 25 for rows in draws)
    assert all(sorted(c.tolist()) == [2] * 5 + [3] * 5 for c in counts)
    assert torch.equal(draws[3], labelled_rows(data.labels, 25, 3))
    assert all(4 <= often <= 16 for often in sum(c == 3 for c in counts).tolist())  # each class, half of the time
    # The images of a class are those that 20 labels would take, and perhaps one more.
    assert {*labelled_rows(data.labels, 20, 3).tolist()} < {*draws[3].tolist()}


@pytest.mark.parametrize(("labels", "shared"), [(9, False), (10, True), (25, True), (1280, True), (1281, False)])
def test_labels_are_refused_that_the_classes_cannot_share(data, labels, shared):
    assert int(data.labels.bincount().min()) == 128
    few = TrainSpec("digits", batch_size=16, steps=1, labels=labels, unlabelled_batch_size=32)
    recipe = replace(recipes.find("dcgan-digits"), train=few)
    if shared:
        loop.new_model(recipe, data)
        assert len(labelled_rows(data.labels, labels, 0)) == labels
    else:
        with pytest.raises(UserError, match=f"{labels} labels cannot be shared equally by the 10 classes of 'digits'"):
            loop.new_model(recipe, data)


def test_permutations_follow_each_other_without_a_gap():
    whole = endless(7, 3, 0, 70)
    for epoch in range(10):
        assert torch.equal(whole[epoch * 7 :][:7], epoch_order(7, 3, epoch))
    for start, count in ((0, 1), (5, 4), (6, 30), (14, 7), (69, 1)):
        assert torch.equal(endless(7, 3, start, count), whole[start:][:count])


def test_a_batch_of_few_labels_has_labelled_images_and_a_stream_of_all(data):
    own = {bytes(i) for i in data.images[labelled_rows(data.labels, 40, 0)].numpy()}
    stream, labelled = [], []
    for b in batches(data, FEW, 0, 0, 3, CPU):  # three batches of 400 are an epoch
        assert (len(b.x), len(b.y), len(b.u)) == (16, 16, 400)
        stream.append(((b.u + 1) * 127.5).round().to(torch.uint8))
        labelled.append(((b.x + 1) * 127.5).round().to(torch.uint8))
        for image, label in zip(labelled[-1], b.y, strict=True):
            assert bytes(image.numpy()) in own
            assert (data.images == image).flatten(1).all(1).logical_and(data.labels == label).any()
    assert torch.equal(torch.cat(stream), data.images[epoch_order(len(data), 0, 0)[:1200]])
    assert len({bytes(i.numpy()) for i in torch.cat(labelled)[:40]}) == 40  # every labelled image before any again


def test_the_parts_of_several_processes_are_the_batch(data):
    for spec in (TrainSpec("digits", 64, 4), FEW):
        whole = list(batches(data, spec, 0, 0, 4, CPU))
        parts = [list(batches(data, spec, 0, 0, 4, CPU, (r, 2))) for r in range(2)]
        for b, a, c in zip(whole, *parts, strict=True):
            assert torch.equal(torch.cat([a.x, c.x]), b.x)
            assert torch.equal(torch.cat([a.y, c.y]), b.y)
            assert b.u is None or torch.equal(torch.cat([a.u, c.u]), b.u)


def test_batches_without_end_go_on(data):
    endless_batches = batches(data, TrainSpec("digits", 400, 1), 0, 7, None, CPU)
    assert [next(endless_batches).step for _ in range(5)] == [7, 8, 9, 10, 11]


def digits_of(count):
    """The first digits as arrays, and their labels."""
    data = load("digits:train")
    return data.images[:count, 0].numpy(), data.labels[:count].tolist()


@pytest.fixture
def mapped(data, monkeypatch):
    """The same data, mapped from a file."""
    monkeypatch.setenv("GANBENCH_IN_MEMORY", "0")
    stream = streams.Made(data.images.shape, len(data), lambda index: data.images)
    made = for_training(replace(data, images=stream))
    assert is_mapped(made.images)
    return made


@pytest.mark.parametrize("spec", [TrainSpec("digits", 400, 8), FEW], ids=["labels", "few labels"])
@pytest.mark.parametrize("share", [(0, 1), (1, 2)])
def test_batches_of_a_mapped_set_are_those_of_the_set_in_memory(data, mapped, spec, share):
    before = threading.active_count()
    state = torch.get_rng_state()
    pairs = [list(batches(images, spec, 1, 2, 9, CPU, share)) for images in (data, mapped)]
    for a, b in zip(*pairs, strict=True):
        assert a.step == b.step
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
        assert (a.u is None) == (b.u is None) == (spec is not FEW)
        assert a.u is None or torch.equal(a.u, b.u)
    assert torch.equal(torch.get_rng_state(), state)
    unfinished = batches(mapped, spec, 1, 0, None, CPU)
    next(unfinished)
    unfinished.close()
    assert threading.active_count() == before  # no thread is left


def test_an_error_of_the_thread_that_takes_batches_is_raised(mapped, monkeypatch):
    def broken(*args):
        yield of_batches._Taken(torch.zeros(1, dtype=torch.uint8), None, 0, None)
        raise OSError("the disk")

    monkeypatch.setattr(of_batches, "_taken", broken)
    found = batches(mapped, FEW, 0, 0, 2, CPU)
    assert next(found).step == 0
    with pytest.raises(OSError, match="the disk"):
        next(found)


def test_training_on_a_folder_is_the_same_from_memory_from_a_file_and_first_one_then_the_other(place, monkeypatch):
    for i, (image, label) in enumerate(zip(*digits_of(60), strict=True)):
        write_png(place / "digits" / str(label) / f"{i:02}.png", image)
    recipe = recipes.read(write_recipe(place))

    def run(folder, limit, stop=None):
        monkeypatch.setenv("GANBENCH_IN_MEMORY", limit)

        def advance(step, text):
            if step == stop:
                raise Interrupted(2, step)

        train(recipe, load(f"folder:{place / 'digits'}"), place / folder, 0, CPU, advance=advance)
        return (place / folder / CHECKPOINT).read_bytes()

    expected = run("memory", "1000000")
    assert not (data_root() / "decoded").exists()
    assert run("file", "0") == expected
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0.0)
    with pytest.raises(Interrupted):
        run("both", "1000000", stop=3)
    assert run("both", "0") == expected


@pytest.mark.parametrize(("free", "on_the_gpu"), [(1 << 20, True), (100_000, False)])
def test_a_set_goes_to_a_gpu_that_has_twice_the_room(data, monkeypatch, free, on_the_gpu):
    """The 1,297 digits take 83,008 bytes."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 1 << 30))
    assert of_batches._fits(data.images, torch.device("cuda")) is on_the_gpu
