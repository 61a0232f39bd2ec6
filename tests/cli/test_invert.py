"""`ganbench invert`: latents whose images are like given ones, by a model's own loss and by pixels."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from support import write_png

from ganbench.base import registry
from ganbench.base.errors import UserError
from ganbench.base.progress import Reporter
from ganbench.data.images import to_float
from ganbench.evaluation import inversion
from ganbench.evaluation.inversion import Request
from ganbench.gan import GAN, checkpoint

YLG = {"g_width": 32, "d_width": 32, "latent_dim": 8, "attention": 8, "heads": 4, "num_classes": 2}


class Shifted(GAN):
    """Images of 8 x 8 pixels, all tanh(z) of one number z, moved up by a quarter with class 1."""

    image_shape = (1, 8, 8)

    def __init__(self, classes=0, own=None, fault=None):
        super().__init__()
        self.num_classes, self.own, self.fault = classes, own, fault
        self.weight = torch.nn.Parameter(torch.ones(()), requires_grad=False)

    def sample_latent(self, n, generator=None):
        return torch.randn(n, 1, generator=generator)

    def generate(self, z, y=None):
        level = torch.tanh(self.weight * z) * 0.7
        if self.num_classes:
            level = level + 0.25 * y[:, None]
        x = level.view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
        return x * math.nan if self.fault == "nan" else x.detach() if self.fault == "cut" else x


class Own(Shifted):
    """The same with a loss of its own, the distance to the negative of x."""

    def inversion_loss(self, x):
        if self.fault == "refuses":
            raise ValueError("there is no attention in this configuration")
        if self.fault == "returns":
            return lambda fake: torch.zeros(1)
        return lambda fake: (fake + x).abs().flatten(1).mean(1)


def found(model, x, labels=None, **options):
    request = Request(None, "", None, **{"steps": 60, "restarts": 2, "rate": 0.1, **options})
    return inversion.invert(model.eval(), x, labels, request, Reporter(quiet=True))


def constant(*levels):
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()


def test_it_finds_the_latents_of_images_that_the_model_makes():
    x = constant(0.3, -0.4, 0.5)
    by_pixels = found(Shifted(), x, loss="pixels", steps=90)
    torch.testing.assert_close(by_pixels.images, x, rtol=0, atol=0.02)
    assert by_pixels.losses.shape == (3, 2)
    torch.testing.assert_close(by_pixels.losses.amin(1).float(), (by_pixels.images - x).square().mean((1, 2, 3)))
    torch.testing.assert_close(found(Own(), x, loss="model", steps=90).images, -x, rtol=0, atol=0.05)


def test_the_class_is_given_to_the_model_and_not_found():
    x = constant(0.7, 0.7)
    images = found(Shifted(2), x, torch.tensor([0, 1]), loss="pixels", steps=100).images[:, 0, 0, 0]
    assert images[1].item() == pytest.approx(0.7, abs=0.01)
    assert 0.6 < images[0].item() < 0.7  # beyond what class 0 can make


def test_the_starts_depend_on_the_seed_and_the_image_alone(monkeypatch):
    x = constant(0.3, -0.5, 0.6)
    few = {"loss": "pixels", "steps": 3, "restarts": 3}
    all_at_once = found(Shifted(), x, **few)
    torch.testing.assert_close(found(Shifted(), x[:2], **few).losses, all_at_once.losses[:2])
    assert not torch.equal(found(Shifted(), x, **few, seed=1).losses, all_at_once.losses)
    monkeypatch.setattr(inversion, "PIXELS_AT_ONCE", 1)  # an image after the other
    one_by_one = found(Shifted(), x, **few)
    torch.testing.assert_close(one_by_one.losses, all_at_once.losses)
    torch.testing.assert_close(one_by_one.images, all_at_once.images)


def test_of_all_restarts_the_one_with_the_lowest_loss_counts():
    """Five starts that hardly move end where they began, which is known."""
    x = constant(0.2)
    done = found(Shifted(), x, loss="pixels", steps=1, restarts=5, rate=1e-6)
    z = Shifted().sample_latent(5, torch.Generator().manual_seed(0))
    losses = (torch.tanh(z[:, 0]) * 0.7 - 0.2).square()
    torch.testing.assert_close(done.losses[0].float(), losses, rtol=1e-3, atol=1e-5)
    assert done.images[0, 0, 0, 0].item() == pytest.approx(math.tanh(z[losses.argmin(), 0]) * 0.7, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "model"),
    [
        ("all restarts of an image diverged: lower --rate", Shifted(fault="nan")),
        ("no gradient of its loss reaches z", Shifted(fault="cut")),
        ("there is no attention in this configuration. Give --loss pixels", Own(fault="refuses")),
        ("its inversion_loss gives no float for each image", Own(fault="returns")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_model_that_cannot_be_inverted_says_why(words, model):
    with pytest.raises(UserError, match=words):
        found(model, constant(0.1), loss="model" if isinstance(model, Own) else "pixels", steps=2)


# --- The command ---


@pytest.fixture
def ylg(place):
    """A checkpoint of a small YLG, and three coloured images of 32 x 32 in two classes."""
    torch.manual_seed(0)
    model = registry.load("models", "ylg")(**YLG)
    checkpoint.save(place / "ylg.safetensors", model.state_dict(), checkpoint.Checkpoint("ylg", YLG))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        write_png(place / "photos" / str(i % 2) / f"{i}.png", image)
    return model.eval()


def test_the_folder_has_the_pairs_and_the_errors_of_each_image(ylg, ganbench, place):
    done = ganbench("invert", "--ckpt", "ylg.safetensors", "--images", "photos", "--num", "3", "--steps", "2",
                    "--restarts", "2", "--out", "a/found", "--quiet")
    assert done.code == 0, done.err
    folder = place / "a" / "found"
    assert sorted(p.name for p in folder.iterdir()) == ["0000.png", "0001.png", "0002.png", "inversion.json"]
    report = json.loads((folder / "inversion.json").read_text())
    assert {k: report[k] for k in ("model", "loss", "steps", "restarts", "rate", "seed")} == {
        "model": "ylg", "loss": "model", "steps": 2, "restarts": 2, "rate": 0.07, "seed": 0,
    }
    assert [row["image"] for row in report["each"]] == [0, 1, 2]
    assert sorted(row["label"] for row in report["each"]) == [0, 0, 1]
    for name, power in (("reconstruction_mse", 2), ("reconstruction_l1", 1)):
        errors = [row[name] for row in report["each"]]
        assert report[name]["value"] == pytest.approx(np.mean(errors))
        assert report[name]["standard_error"] == pytest.approx(np.std(errors, ddof=1) / math.sqrt(3))
        for row in report["each"]:
            assert row["loss"] == min(row["losses"])
            assert len(row["losses"]) == 2
            left, right = halves(folder / f"{row['image']:04}.png")
            seen = (np.abs(left - right) ** power).mean()
            assert row[name] == pytest.approx(seen, abs=0.02)  # the picture has whole grey levels
    assert "reconstruction_mse" in done.out
    assert "a/found" in done.out


def halves(path):
    """The two images of a pair as floats in [-1, 1]; the picture is enlarged by a whole factor."""
    picture = np.asarray(Image.open(path)).astype(float)
    scale = picture.shape[0] // 36
    small = picture[scale // 2 :: scale, scale // 2 :: scale]
    assert small.shape[:2] == (36, 70)
    return tuple(part / 127.5 - 1 for part in (small[2:34, 2:34], small[2:34, 36:68]))


def test_more_steps_lower_the_models_own_loss(ylg, place):
    x = to_float(torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)))
    y = torch.tensor([0, 1])
    short, long = (found(ylg, x, y, loss="model", steps=steps, restarts=2) for steps in (1, 15))
    assert bool((long.losses < short.losses).all())


def test_a_folder_with_files_is_kept_and_an_empty_one_is_filled(ckpt, refuses, ganbench, place):
    args = ["invert", "--ckpt", "tiny.safetensors", "--images", "digits:test", "--loss", "pixels", "--num", "1",
            "--steps", "1", "--restarts", "1", "--out"]
    (place / "full").mkdir()
    (place / "full" / "mine.txt").write_text("kept")
    refuses(["--out full", "choose a new folder"], *args, "full")
    (place / "empty").mkdir()
    done = ganbench(*args, "empty")
    assert done.code == 0, done.err
    assert json.loads((place / "empty" / "inversion.json").read_text())["reconstruction_mse"]["standard_error"] is None


def test_a_failure_while_writing_leaves_nothing(ckpt, refuses, monkeypatch):
    def full(image, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(inversion, "save_png", full)
    refuses(["No space left"], "invert", "--ckpt", "tiny.safetensors", "--images", "digits:test", "--loss", "pixels",
            "--num", "1", "--steps", "1", "--restarts", "1", "--out", "new", "--quiet")


@pytest.mark.parametrize(
    ("said", "args"),
    [
        (["'dcgan' has no loss of its own", "--loss pixels"], ["--loss", "model"]),
        (["--label 10", "0 to 9"], ["--label", "10"]),
        (["1 x 16 x 16", "1 x 8 x 8", "--resize 8:pil-bicubic"], ["--resize", "16:box"]),
        (["another one", "--label K"], ["--images", "others.npz"]),
        (["has no labels", "--label K"], ["--images", "plain.npz"]),
        (["fewer than the 99,999"], ["--num", "99999"]),
        (["--rate", "from 1e-06 to 10"], ["--rate", "nan"]),
        (["--steps", "from 1 to 1000000"], ["--steps", "0"]),
        (["'dcgan', not of 'ylg'"], ["--model", "ylg"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(ckpt, refuses, place, said, args):
    np.savez(place / "plain.npz", np.zeros((9, 8, 8, 1), np.uint8))
    np.savez(place / "others.npz", np.zeros((9, 8, 8, 1), np.uint8), np.full(9, 10))
    refuses(said, "invert", "--ckpt", "tiny.safetensors", "--images", "digits:test", "--loss", "pixels", "--steps", "1",
            "--restarts", "1", "--out", "new", "--quiet", *args)
