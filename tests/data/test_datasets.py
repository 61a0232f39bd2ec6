"""Data sets: contents, labels from folders, row ranges, class subsets and fingerprints."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from ganbench.base import registry
from ganbench.base.errors import UserError
from ganbench.data import datasets, resizing
from ganbench.data.datasets import Dataset
from ganbench.data.sources import from_dataset, open_source
from ganbench.evaluation.inputs import held_out_of


def write_idx(path, array):
    """Write an IDX file of unsigned bytes, the published format of MNIST."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.tobytes())


@pytest.fixture
def mnist_files(tmp_path, monkeypatch):
    """A data folder with a tiny MNIST: 7 training and 3 test images, in the published file format."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 7), ("t10k", 3)):
        write_idx(tmp_path / f"MNIST/raw/{part}-images-idx3-ubyte", rng.integers(0, 256, (n, 28, 28), dtype=np.uint8))
        write_idx(tmp_path / f"MNIST/raw/{part}-labels-idx1-ubyte", np.arange(n, dtype=np.uint8))
    monkeypatch.setenv("GANBENCH_DATA", str(tmp_path))
    monkeypatch.setenv("GANBENCH_OFFLINE", "1")
    return tmp_path


def save(path, value, size=(5, 4), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value,) * 3).save(path)


def test_digits_are_the_published_ones_split_without_overlap():
    train, test = datasets.load("digits"), datasets.load("digits:test")
    assert (len(train), len(test)) == (1297, 500)
    assert train.images.shape[1:] == (1, 8, 8)
    assert train.images.min() == 0
    assert train.images.max() == 255
    from sklearn.datasets import load_digits

    data = load_digits()
    both = torch.cat([train.images, test.images]).flatten(1).double() * 16 / 255
    assert torch.allclose(both, torch.from_numpy(data.data), atol=0.04)  # one level is 16/255
    assert torch.equal(torch.cat([train.labels, test.labels]), torch.from_numpy(data.target).long())


def test_mnist_is_read_from_the_data_folder_in_file_order(mnist_files):
    train, test = datasets.load("mnist"), datasets.load("mnist:test")
    assert train.images.shape == (7, 1, 28, 28)
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert len(test) == 3
    raw = (mnist_files / "MNIST/raw/train-images-idx3-ubyte").read_bytes()[16:]
    assert train.images.numpy().tobytes() == raw


def test_the_error_of_a_missing_set_names_the_set_and_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GANBENCH_DATA", str(tmp_path / "nothing"))
    monkeypatch.setenv("GANBENCH_OFFLINE", "1")
    for name in ("mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "stl10", "celeba"):
        with pytest.raises(UserError, match=rf"'{name}'.*{tmp_path}.*offline"):
            datasets.load(name)


@pytest.mark.parametrize("name", registry.names("datasets"))
def test_every_set_refuses_an_unknown_split_before_it_looks_for_files(name, tmp_path, monkeypatch):
    monkeypatch.setenv("GANBENCH_DATA", str(tmp_path))
    with pytest.raises(UserError, match="no split 'tset'"):
        datasets.load(f"{name}:tset")


def test_a_row_range_is_a_split_with_its_own_name_and_fingerprint(mnist_files):
    whole = datasets.load("mnist:train")
    first, rest = datasets.load("mnist:train[:5]"), datasets.load("mnist:train[5:]")
    assert torch.equal(torch.cat([first.images, rest.images]), whole.images)
    assert first.labels.tolist() == [0, 1, 2, 3, 4]
    assert rest.labels.tolist() == [5, 6]
    assert (first.name, first.split, rest.split) == ("mnist", "train[0:5]", "train[5:7]")
    assert len({whole.fingerprint, first.fingerprint, rest.fingerprint}) == 3
    again = datasets.load(f"mnist:{rest.split}")
    assert again.fingerprint == rest.fingerprint
    assert torch.equal(datasets.load("mnist:test[1:2]").images, datasets.load("mnist:test").images[1:2])
    assert datasets.load("mnist[:5]").fingerprint == first.fingerprint
    images = datasets.load("synthetic:1x4x4:2:test[60:]").images
    assert torch.equal(images, datasets.load("synthetic:1x4x4:2:test").images[60:])


@pytest.mark.parametrize("rows", ["[7:]", "[:8]", "[3:3]", "[4:2]"])
def test_rows_that_do_not_exist_are_refused(rows, mnist_files):
    with pytest.raises(UserError, match=r"mnist:train has rows 0 to 6, but \[\d:\d\] asks for other rows, or for none"):
        datasets.load(f"mnist:train{rows}")


def test_held_out_images_of_a_row_range_are_the_other_split():
    assert held_out_of(datasets.load("digits:train[:50]")).origin["split"] == "test"
    assert held_out_of(datasets.load("digits:test[:50]")).origin["split"] == "train"


def test_the_path_of_a_folder_may_end_like_a_row_range(tmp_path):
    save(tmp_path / "set[1:2]" / "a.png", 1)
    assert len(datasets.load(f"folder:{tmp_path / 'set[1:2]'}")) == 1


def test_class_folders_become_labels_in_sorted_order(tmp_path):
    for i, name in enumerate(["zebra", "ant", "ant"]):
        save(tmp_path / "animals" / name / f"{i}.png", i)
    data = datasets.load(f"folder:{tmp_path / 'animals'}")
    assert data.name == "animals"
    assert data.classes == ("ant", "zebra")
    assert data.labels.tolist() == [0, 0, 1]
    assert data.images[:, 0, 0, 0].tolist() == [1, 2, 0]
    assert data.images.shape == (3, 3, 4, 5)


def test_class_folders_with_numbers_as_names_have_these_labels(tmp_path):
    for c in (10, 2, 998):
        save(tmp_path / str(c) / "a.png", c % 251)
    data = datasets.load(f"folder:{tmp_path}")
    assert sorted(data.labels.tolist()) == [2, 10, 998]
    for image, label in zip(data.images, data.labels, strict=True):
        assert image[0, 0, 0] == label % 251


def test_a_flat_folder_has_no_labels(tmp_path):
    save(tmp_path / "b.png", 2, mode="L")
    save(tmp_path / "a.png", 1, mode="L")
    data = datasets.load(f"folder:{tmp_path}")
    assert data.labels is None
    assert data.images[:, 0, 0, 0].tolist() == [1, 2]
    assert data.images.shape == (2, 1, 4, 5)


def test_train_and_test_folders_are_splits(tmp_path):
    save(tmp_path / "train" / "x" / "a.png", 1)
    save(tmp_path / "test" / "x" / "a.png", 2)
    assert datasets.load(f"folder:{tmp_path}").images[0, 0, 0, 0] == 1
    assert datasets.load(f"folder:{tmp_path}:test").images[0, 0, 0, 0] == 2
    with pytest.raises(UserError, match="no split 'val'"):
        datasets.load(f"folder:{tmp_path}:val")


def test_images_beside_class_folders_are_refused(tmp_path):
    save(tmp_path / "x" / "a.png", 1)
    save(tmp_path / "stray.png", 2)
    with pytest.raises(UserError, match=r"stray\.png"):
        datasets.load(f"folder:{tmp_path}")


def test_fingerprint_depends_on_pixels_labels_order_and_shape_and_on_nothing_else():
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(2, 3, 4, 4)
    labels = torch.tensor([0, 1])
    base = Dataset("a", "train", images, labels).fingerprint
    assert Dataset("b", "test", images.clone(), labels.clone()).fingerprint == base
    assert Dataset("a", "train", images.flip(0), labels).fingerprint != base
    assert Dataset("a", "train", images, labels.flip(0)).fingerprint != base
    assert Dataset("a", "train", images, None).fingerprint != base
    assert Dataset("a", "train", images.reshape(2, 3, 2, 8), labels).fingerprint != base


def test_a_data_set_refuses_another_dtype_or_number_of_labels():
    with pytest.raises(TypeError):
        Dataset("a", "train", torch.zeros(2, 3, 4, 4))
    with pytest.raises(TypeError):
        Dataset("a", "train", torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0]))


# --- Class subsets ---


@pytest.fixture
def twelve_classes(tmp_path):
    """A folder with classes c00 to c11. Class k has k + 1 training images, and all their pixels are k."""
    for c in range(12):
        for i in range(c + 1):
            save(tmp_path / "set" / "train" / f"c{c:02}" / f"{i}.png", c)
    save(tmp_path / "set" / "val" / "c05" / "0.png", 5)
    return f"folder:{tmp_path / 'set'}"


def test_a_class_subset_is_relabelled_from_0_and_stores_its_first_class(twelve_classes):
    part = datasets.load(f"{twelve_classes}:train[classes 4-6]")
    assert part.images[:, 0, 0, 0].tolist() == [4] * 5 + [5] * 6 + [6] * 7
    assert (part.labels + part.first_class).tolist() == part.images[:, 0, 0, 0].tolist()
    assert part.first_class == 4
    assert part.classes == ("c04", "c05", "c06")
    assert (part.split, part.whole_split) == ("train[classes 4-6]", "train")
    assert datasets.load(f"{twelve_classes}[classes 04-06]").fingerprint == part.fingerprint


def test_samples_of_a_class_subset_have_the_labels_of_the_whole_set(twelve_classes):
    spec = f"{twelve_classes}[classes 4-6]"
    for source in (from_dataset(datasets.load(spec)), open_source(spec)):
        assert source.labels.tolist() == source.images[:, 0, 0, 0].tolist()
    first = from_dataset(datasets.load(f"{twelve_classes}[classes 0-6]"))
    assert first.labels.tolist() == first.images[:, 0, 0, 0].tolist()
    assert first.classes[5] == "c05"


def test_a_class_of_a_subset_has_the_same_label_in_all_splits(twelve_classes):
    part = datasets.load(f"{twelve_classes}:val[classes 4-6]")
    assert (part.labels.tolist(), part.classes) == ([1], ("c04", "c05", "c06"))
    assert datasets.load(f"{twelve_classes}:val").labels.tolist() == [0]


def test_only_the_images_of_the_classes_are_read(twelve_classes, tmp_path):
    (tmp_path / "set" / "train" / "c01" / "0.png").write_text("broken")
    assert len(datasets.load(f"{twelve_classes}[classes 2-3]").images[:]) == 7
    with pytest.raises(UserError, match="c01"):
        _ = datasets.load(f"{twelve_classes}[classes 0-3]").images[:]


def test_a_bundled_set_has_class_subsets_and_so_have_its_held_out_images():
    whole, part = datasets.load("digits:test"), datasets.load("digits:test[classes 7-9]")
    assert torch.equal(part.images, whole.images[whole.labels >= 7])
    assert torch.equal(part.labels + 7, whole.labels[whole.labels >= 7])
    other = held_out_of(part)
    assert set(other.labels.tolist()) == {7, 8, 9}
    assert other.origin["split"] == "train[classes 7-9]"


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("[classes 10-12]", r"has classes 0 to 11, but \[classes 10-12\] asks for other classes"),
        ("[classes 3-2]", r"has classes 0 to 11, but \[classes 3-2\] asks for other classes, or for none"),
        (":val[classes 0-4]", r"val has no image of \[classes 0-4\]"),
    ],
)
def test_classes_that_do_not_exist_are_refused(part, words, twelve_classes):
    with pytest.raises(UserError, match=words):
        datasets.load(twelve_classes + part)


def test_a_class_subset_of_a_flat_folder_is_refused(tmp_path):
    save(tmp_path / "flat" / "a.png", 1)
    with pytest.raises(UserError, match=r"flat has no labels, so \[classes 0-1\] cannot be selected"):
        datasets.load(f"folder:{tmp_path / 'flat'}[classes 0-1]")


def test_images_are_resized_as_they_are_read(twelve_classes):
    data = datasets.load(twelve_classes, resize=resizing.parse("2:pil-bilinear"))
    assert data.images.shape == (78, 3, 2, 2)
    small = datasets.load("digits", resize=resizing.parse("4:box"))
    assert torch.equal(small.images[0], resizing.parse("4:box")(datasets.load("digits").images[0]))
