"""The small classifier: the bundled one of MNIST, and those that a user trains."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from ganbench.base.errors import UserError
from ganbench.base.files import sha256_of
from ganbench.data.datasets.digits import digits
from ganbench.features import create, extract, small_cnn

CPU = torch.device("cpu")


def noise(n, c, side, seed=0):
    return torch.randint(256, (n, c, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_the_bundled_weights_are_the_ones_whose_hash_is_in_the_code():
    assert sha256_of(small_cnn.BUNDLED) == small_cnn.BUNDLED_SHA256


def test_the_bundled_classifier_knows_handwritten_digits_of_another_data_set(tmp_path):
    data = digits("test", tmp_path, False)
    # 8 x 8 to 20 x 20 within 28 x 28, as MNIST's digits lie.
    images = F.pad(F.interpolate(data.images.float(), (20, 20), mode="bilinear"), (4, 4, 4, 4)).round().to(torch.uint8)
    net = create("mnist-cnn")
    out = extract(net, images, 250, CPU)
    assert net.classes == tuple("0123456789")
    assert (out.features.shape, out.logits.shape) == ((500, 128), (500, 10))
    assert (out.logits.argmax(1) == data.labels).double().mean() > 0.85


def test_the_bundled_weights_have_one_name_however_they_are_loaded():
    assert create("mnist-cnn").title == "mnist-cnn"
    assert create("small-cnn", small_cnn.BUNDLED).title == "mnist-cnn"


def test_an_image_has_the_same_features_in_any_batch():
    net, x = create("mnist-cnn"), noise(5, 1, 28)
    one_by_one, at_once = extract(net, x, 1, CPU), extract(net, x, 5, CPU)
    assert torch.allclose(one_by_one.features, at_once.features, rtol=1e-5, atol=1e-6)


def test_other_sizes_and_colours_are_brought_to_the_network_s_own():
    net, x = create("mnist-cnn"), noise(3, 3, 40)
    grey = x.float().mean(1, keepdim=True) / 127.5 - 1
    small = F.interpolate(grey, (28, 28), mode="bilinear", antialias=True, align_corners=False)
    assert torch.allclose(net(x).features, net.body(small), rtol=1e-5, atol=1e-6)
    one = noise(3, 1, 28)
    assert torch.allclose(net(one).features, net(one.expand(-1, 3, -1, -1)).features, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A classifier of the digits after four passes: (path, net that training returned, its progress texts)."""
    path = tmp_path_factory.mktemp("weights") / "digits-cnn.safetensors"
    data, texts = digits("train", Path(), False), []
    recipe = small_cnn.Training(epochs=4, batch_size=64, rotate=0, scale=0, shift=0)
    net = small_cnn.train_classifier(data.images, data.labels, data.classes, path, "digits", recipe, texts.append)
    return path, net, texts


def test_training_learns_and_reports_each_step(trained):
    _, net, texts = trained
    test = digits("test", Path(), False)
    assert (net(test.images).logits.argmax(1) == test.labels).double().mean() > 0.85
    assert len(texts) == 4 * (1297 // 64)
    assert [t[:9] for t in texts if t] == ["epoch 3/4"]


def test_a_trained_file_loads_with_its_name_classes_and_to_half_precision_the_same_answers(trained):
    path, net, _ = trained
    loaded = create("small-cnn", path)
    assert loaded.title == f"digits-cnn@{sha256_of(path)[:8]}"
    assert loaded.classes == tuple("0123456789")
    assert (loaded.size, loaded.channels) == (8, 1)
    images = digits("test", Path(), False).images
    ours, theirs = loaded(images).features, net(images).features
    assert 0 < (ours - theirs).norm() / theirs.norm() < 1e-3


def test_training_is_the_same_for_the_same_seed_and_another_for_another(tmp_path):
    data = digits("train", Path(), False)

    def hash_of(name, seed):
        recipe = small_cnn.Training(epochs=1, batch_size=64, seed=seed)
        images, labels = data.images[:128], data.labels[:128]
        small_cnn.train_classifier(images, labels, data.classes, tmp_path / name, "digits", recipe)
        return sha256_of(tmp_path / name)

    assert hash_of("a", 0) == hash_of("b", 0) != hash_of("c", 1)


def test_augmentation_without_bounds_changes_nothing_and_a_shift_moves_at_most_that_share_of_the_side():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(4, 1, 16, 16, generator=g) * 2 - 1
    still = small_cnn.Training(rotate=0, scale=0, shift=0)
    assert torch.allclose(small_cnn.augment(x, still, g), x, atol=1e-5)
    # The centre of mass of one bright spot says where the image went.
    spot = torch.zeros(200, 1, 20, 20)
    spot[:, :, 10, 10] = 1
    moved = small_cnn.augment(spot, small_cnn.Training(rotate=0, scale=0, shift=0.1), g)
    at = torch.arange(20.0)
    rows = (moved.sum((1, 3)) * at).sum(1) / moved.sum((1, 2, 3))
    columns = (moved.sum((1, 2)) * at).sum(1) / moved.sum((1, 2, 3))
    for centre in (rows, columns):
        assert 1.8 < (centre - 10).abs().max() <= 2.001


def test_images_that_are_not_square_cannot_be_trained_on(tmp_path):
    with pytest.raises(UserError, match="square images, and those of 'wide' are 12x8"):
        small_cnn.train_classifier(
            torch.zeros(4, 1, 8, 12, dtype=torch.uint8), torch.zeros(4).long(), ("a",), tmp_path / "x", "wide"
        )


def test_without_weights_it_says_how_to_make_some():
    with pytest.raises(UserError, match="ganbench train-classifier NAME --out FILE"):
        create("small-cnn")


@pytest.mark.parametrize("content", ["text", "other tensors", "truncated"])
def test_a_file_that_holds_no_classifier_is_refused_by_name(tmp_path, content):
    path = tmp_path / "bad.safetensors"
    if content == "text":
        path.write_text("not weights")
    elif content == "other tensors":
        save_file({"weight": torch.zeros(3)}, path)
    else:
        path.write_bytes(small_cnn.BUNDLED.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"bad\.safetensors is not a small-cnn weights file"):
        create("small-cnn", path)


@pytest.mark.parametrize("side", [28, 40])
def test_float_images_are_in_the_same_units_and_are_not_rounded(side):
    net, x = create("mnist-cnn"), noise(2, 1, side)
    assert torch.equal(net(x.float()).features, net(x).features)
    assert not torch.equal(net(x.float() + 0.25).features, net(x).features)
