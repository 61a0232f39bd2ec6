"""`ganbench sample --truncation` and `--mix`: images of a model with styles."""

import numpy as np
import pytest
import torch
from PIL import Image

from ganbench.base import registry
from ganbench.data.images import to_uint8
from ganbench.gan import checkpoint

ARGS = {"image_size": 16, "start_size": 8, "latent_dim": 4, "fmap_base": 32, "fmap_max": 8, "mapping_layers": 2}
TRADITIONAL = {"styles": False, "constant": False, "noise": False, "mixing": 0.0}


@pytest.fixture
def model(place):
    """A grown StyleGAN with a mean of w, and its checkpoint; beside it one without styles, and a DCGAN."""
    torch.manual_seed(0)
    for name, kind, args in (
        ("dcgan", "dcgan", {"image_size": 8, "latent_dim": 4, "g_width": 4, "d_width": 4}),
        ("traditional", "stylegan", ARGS | TRADITIONAL), ("stylegan", "stylegan", ARGS),
    ):
        made = registry.load("models", kind)(**args)
        if kind == "stylegan":
            made.shown.fill_(10**9)
            made.G.w_mean.normal_()
        checkpoint.save(place / f"{name}.safetensors", made.state_dict(), checkpoint.Checkpoint(kind, args))
    return made.eval()


def cell(picture, row, column):
    """One image of a picture of 16 x 16 images, with 2 pixels around each."""
    return picture[2 + 18 * row :, 2 + 18 * column :][:16, :16].astype(int)


def image(x):
    return to_uint8(x)[0].permute(1, 2, 0).numpy().astype(int)


def near(a, b):
    return np.abs(a - b).max() <= 1  # batches of other sizes


@torch.inference_mode()
def test_truncated_samples_are_those_of_the_same_latents_nearer_to_the_mean(model, ganbench, place):
    for psi in ("1", "0.5", "0"):
        done = ganbench("sample", "--ckpt", "stylegan.safetensors", "--num", "3", "--truncation", psi, "--out",
                        f"{psi}.npz", "--seed", "5")
        assert done.code == 0, done.err
        z = model.sample_latent(3, torch.Generator().manual_seed(5))
        w = model.G.w_mean + float(psi) * (model.G.mapping(z) - model.G.w_mean)
        expected = to_uint8(model.render(model.styles(w), z)).permute(0, 2, 3, 1).numpy().astype(int)
        assert near(np.load(place / f"{psi}.npz")["arr_0"].astype(int), expected)
    ganbench("sample", "--ckpt", "stylegan.safetensors", "--num", "3", "--out", "plain.npz", "--seed", "5")
    plain, one, half = (np.load(place / f"{name}.npz")["arr_0"] for name in ("plain", "1", "0.5"))
    assert np.array_equal(plain, one)
    assert not np.array_equal(plain, half)


@torch.inference_mode()
def test_a_sheet_of_mixed_images_has_the_layers_of_the_row_above_and_the_rest_of_the_column_before(
    model, ganbench, place
):
    done = ganbench("sample", "--ckpt", "stylegan.safetensors", "--mix", "1-2", "--grid", "mixed.png", "--seed", "5")
    assert done.code == 0, done.err
    picture = np.asarray(Image.open(place / "mixed.png"))[::2, ::2]  # small images are shown at twice their size
    assert picture.shape == (2 + 7 * 18, 2 + 7 * 18, 3)
    z = model.sample_latent(12, torch.Generator().manual_seed(5))
    w, noise = model.G.mapping(z), [model.noise(z[i : i + 1], 2) for i in range(12)]
    assert (cell(picture, 0, 0) == 255).all()
    for i in (0, 5):
        assert near(cell(picture, i + 1, 0), image(model.generate(z[i : i + 1])))
        assert near(cell(picture, 0, i + 1), image(model.generate(z[6 + i : 7 + i])))
        for j in (1, 4):
            styles = torch.stack([w[6 + j] if layer in (1, 2) else w[i] for layer in range(6)])[None]
            expected = image(model.G(styles, 2, 1.0, noise[i]).clamp(-1, 1))
            assert near(cell(picture, i + 1, j + 1), expected)
            assert not near(cell(picture, i + 1, j + 1), cell(picture, i + 1, 0))


@pytest.mark.parametrize(("options", "message"), [
    (("dcgan", "--truncation", "0.7"), "the model 'dcgan' has no latent space to truncate in"),
    (("dcgan", "--mix", "0-3"), "the model 'dcgan' has no styles to mix"),
    (("traditional", "--mix", "0-3"), "without styles has nothing to mix"),
    (("stylegan", "--mix", "3-1"), "the last layer is before the first"),
    (("stylegan", "--mix", "a"), "write the first and the last layer"),
    (("stylegan", "--mix", "0-3", "--truncation", "0.7"), "--mix makes a sheet"),
    (("stylegan", "--mix", "6"), "layers 0 to 5"),
])
def test_options_that_fit_no_model_are_refused_in_a_line(model, ganbench, place, options, message):
    name, *rest = options
    done = ganbench("sample", "--ckpt", f"{name}.safetensors", *rest, "--grid", "a.png")
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not (place / "a.png").exists()
