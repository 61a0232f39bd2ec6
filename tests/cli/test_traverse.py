"""`ganbench traverse`: a row for each code, in which all but that code stays the same."""

import numpy as np
import pytest
import torch
from PIL import Image

from ganbench.base import registry
from ganbench.base.errors import UserError
from ganbench.base.progress import Reporter
from ganbench.data.images import to_uint8
from ganbench.data.sources import traversals
from ganbench.gan import GAN, Code, checkpoint

ARGS = {"width": 4, "categorical": [3, 12], "continuous": 1, "noise_dim": 5}


@pytest.fixture
def infogan(place):
    """A checkpoint with codes of 3 and 12 categories and a continuous one, columns 5 to 7, 8 to 19 and 20 of z."""
    torch.manual_seed(0)
    model = registry.load("models", "infogan")(**ARGS)
    for p in model.G.parameters():
        torch.nn.init.normal_(p, 0.0, 0.3)
    checkpoint.save(place / "infogan.safetensors", model.state_dict(), checkpoint.Checkpoint("infogan", ARGS))
    return model.eval()


def cell(picture, row, column):
    """One image of a picture of 28 x 28 images, with 2 pixels around each."""
    return picture[2 + 30 * row :, 2 + 30 * column :][:28, :28]


def test_a_row_is_a_code_and_each_image_is_g_of_the_latent_with_another_value(infogan, ganbench, place):
    done = ganbench("traverse", "--ckpt", "infogan.safetensors", "--columns", "5", "--out", "codes.png", "--seed", "7")
    assert done.code == 0, done.err
    assert done.out.strip() == "codes.png  (from the top: c1 (3 values), c2 (12 values), c3 (-2 to 2))"
    picture = np.asarray(Image.open(place / "codes.png"))
    assert picture.shape == (2 + 3 * 30, 2 + 12 * 30)
    z = infogan.sample_latent(1, torch.Generator().manual_seed(7))
    for row, (columns, values) in enumerate([
        (slice(5, 8), torch.eye(3)), (slice(8, 20), torch.eye(12)),
        (slice(20, 21), torch.tensor([[-2.0], [-1.0], [0.0], [1.0], [2.0]])),
    ]):
        for column, value in enumerate(values):
            changed = z.clone()
            changed[:, columns] = value
            with torch.inference_mode():
                expected = to_uint8(infogan.generate(changed))[0, 0].numpy()
            assert np.abs(cell(picture, row, column).astype(int) - expected).max() <= 1  # batches of other sizes
            assert cell(picture, row, column).std() > 1
        assert (picture[2 + 30 * row :][:28, 2 + 30 * len(values) :] == 255).all()


def test_a_code_has_a_row_for_each_latent(infogan, ganbench, place):
    for latents, out in ((1, "a.png"), (2, "b.png")):
        ganbench("traverse", "--ckpt", "infogan.safetensors", "--latents", str(latents), "--out", out)
    b = np.asarray(Image.open(place / "b.png"))
    assert b.shape[0] == 2 + 6 * 30
    assert not np.array_equal(cell(b, 0, 0), cell(b, 1, 0))


class WithClasses(GAN):
    """Images of one grey level, which is the class, or NaN."""

    image_shape = (1, 8, 8)
    num_classes = 3

    def __init__(self, level: float = 0.0):
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor(level))

    def codes(self):
        return (Code("c1", 0),)

    def sample_latent(self, n, generator=None):
        return torch.zeros(n, 1)

    def generate(self, z, y=None):
        return self.level + (y.float() / 3).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)


@pytest.mark.parametrize("level", [0.0, float("nan")])
def test_a_model_with_classes_shows_another_class_for_each_latent(level, monkeypatch, place):
    loaded = WithClasses(level), checkpoint.Checkpoint("with-classes", {})
    monkeypatch.setattr(checkpoint, "load", lambda *args: loaded)

    def draw():
        return traversals.draw(place / "a.safetensors", None, 2, 4, 0, "cpu", Reporter(quiet=True))

    if level != level:
        with pytest.raises(UserError, match=r"the generator cannot be evaluated: .*Take an earlier checkpoint"):
            draw()
        return
    drawn = draw()
    assert [int(row[0, 0, 0, 0]) for row in drawn.images] == [128, 170, 213, 128]
    assert [len(row) for row in drawn.images] == [2] * 4


@pytest.mark.parametrize(
    ("said", "args"),
    [
        (["tiny.safetensors", "'dcgan' has no codes"], ["--ckpt", "tiny.safetensors", "--out", "a.png"]),
        (["--columns", "from 2 to 100"], ["--ckpt", "tiny.safetensors", "--out", "a.png", "--columns", "1"]),
        (["--out"], ["--ckpt", "tiny.safetensors"]),
        (["none.safetensors"], ["--ckpt", "none.safetensors", "--out", "a.png"]),
        (["infogn", "infogan"], ["--model", "infogn", "--ckpt", "tiny.safetensors", "--out", "a.png"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(ckpt, refuses, place, said, args):
    refuses(said, "traverse", *args)
    assert not (place / "a.png").exists()
