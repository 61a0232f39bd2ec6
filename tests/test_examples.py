"""The examples run: each on tiny weights, in seconds, with nothing downloaded."""

import importlib.util

import pytest
import torch
from PIL import Image
from support import ROOT

from ganbench.base.errors import UserError
from ganbench.data import datasets
from ganbench.data.images import to_float
from ganbench.gan import checkpoint

TINY = {"image_size": 8, "channels": 1, "num_classes": 10, "latent_dim": 4, "width": 4}


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("applications", ROOT / "examples" / "cvae_gan_applications.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def new(name="cvae_gan"):
    torch.manual_seed(0)
    return checkpoint.make_model(name, TINY, "test").eval().requires_grad_(False)


@pytest.fixture
def saved(tmp_path):
    def save(name="cvae_gan"):
        path = tmp_path / f"{name}.safetensors"
        checkpoint.save(path, new(name).state_dict(), checkpoint.Checkpoint(name, TINY, data="digits:train"))
        return path

    return save


@pytest.fixture
def digits():
    data = datasets.load("digits:test")
    return to_float(data.images), data.labels


def cells(picture, columns, side=8, padding=2):
    """The images of a grid, row by row."""
    step = side + padding
    rows = picture.shape[1] // step
    return [
        [picture[:, padding + r * step :][:, :side, padding + c * step :][:, :, :side] for c in range(columns)]
        for r in range(rows)
    ]


@pytest.mark.parametrize(("what", "more"), [("morph", []), ("inpaint", []), ("augment", ["--generated", "40"])])
def test_each_command_writes_its_picture(example, saved, tmp_path, capsys, what, more, monkeypatch):
    if what == "augment":  # fewer epochs than the classifier's own
        monkeypatch.setattr("ganbench.features.small_cnn.TRAINING", type(example.TRAINING)(epochs=1))
        more = [*more, "--real", "130"]
    out = tmp_path / "a.png"
    example.main([what, "--ckpt", str(saved()), "--data", "digits:test", "--out", str(out), *more])
    assert min(Image.open(out).size) > 80
    printed = capsys.readouterr().out
    assert str(out) in printed
    assert printed.count("accuracy") == (2 if what == "augment" else 0)


def test_a_morph_goes_from_one_reconstruction_to_the_other_between_the_two_images(example, digits):
    gan, (x, y) = new(), digits
    rows = cells(example.morph(gan, x, y, rows=3, columns=5), 7)
    assert len(rows) == 3
    for c, row in enumerate(rows):
        pair = x[y == c][:2]
        back = gan.reconstruct(pair, torch.full((2,), c))
        for image, wanted in zip((row[0], row[1], row[5], row[6]), (pair[0], *back, pair[1]), strict=True):
            torch.testing.assert_close(to_float(image), wanted, rtol=0, atol=0.02)


def test_inpainting_leaves_alone_what_is_there_and_fills_the_hole_with_the_reconstruction(example, digits):
    gan, (x, y) = new(), digits
    rows = cells(example.inpaint(gan, x, y, rows=2, hole=0.5, iterations=3), 5)
    hole = torch.zeros(8, 8, dtype=torch.bool)
    hole[2:6, 2:6] = True
    for i, (original, damaged, *filled) in enumerate(rows):
        assert (damaged[0, hole] == 128).all()
        for image in (damaged, *filled):
            assert torch.equal(image[0, ~hole], original[0, ~hole])
        again = gan.reconstruct(torch.where(hole, torch.tensor(0.0), x[i : i + 1]), y[i : i + 1])
        torch.testing.assert_close(to_float(filled[0])[0, hole], again[0, 0, hole], rtol=0, atol=0.02)


def test_augmentation_tests_both_classifiers_on_the_same_unseen_images(example, monkeypatch):
    data, sets = datasets.load("digits:test"), []

    def fit(images, labels):
        sets.append((images, labels))
        return lambda x: torch.eye(10)[torch.zeros(len(x), dtype=torch.int64)]  # always class 0

    monkeypatch.setattr(example, "fit_classifier", fit)
    made, accuracies = example.augment(new(), data.images, data.labels, real=150, generated=30)
    assert [len(images) for images, _ in sets] == [180, 180]  # as many steps
    assert torch.equal(sets[0][0][150:], sets[0][0][:30])
    assert torch.equal(sets[1][0][:150], sets[0][0][:150])
    assert torch.equal(sets[1][0][150:], made)
    assert torch.equal(sets[1][1][150:], torch.arange(30) % 10)
    (alone, error), (both, _) = accuracies.values()
    zeros = int((data.labels == 0).sum()) - int((sets[0][1][:150] == 0).sum())
    assert alone == both == zeros / (len(data) - 150)
    assert 0 < error < 0.1
    with pytest.raises(UserError, match="at least 128"):
        example.augment(new(), data.images, data.labels, real=100, generated=30)


def test_what_does_not_fit_is_said_in_a_line(example, saved, tmp_path):
    out = ["--out", str(tmp_path / "a.png")]
    with pytest.raises(SystemExit, match="has no encoder"):
        example.main(["morph", "--ckpt", str(saved("cvae_gan-cgan")), "--data", "digits:test", *out])
    with pytest.raises(SystemExit, match="no such file"):
        example.main(["morph", "--ckpt", str(tmp_path / "b.safetensors"), "--data", "digits:test", *out])
