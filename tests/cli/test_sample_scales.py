"""`ganbench sample --scales`: images at all scales that a generator makes."""

import numpy as np
import pytest
import torch
from PIL import Image

from ganbench.base import registry
from ganbench.data.images import to_uint8
from ganbench.gan import checkpoint

ARGS = {"image_size": 16, "latent_dim": 4, "fmap_base": 32, "fmap_max": 8}


@pytest.fixture
def model(place):
    """An MSG-ProGAN and its checkpoint; beside it a DCGAN."""
    torch.manual_seed(0)
    dcgan = {"image_size": 8, "latent_dim": 4, "g_width": 4, "d_width": 4}
    for kind, args in (("dcgan", dcgan), ("msg_gan", ARGS)):
        made = registry.load("models", kind)(**args)
        checkpoint.save(place / f"{kind}.safetensors", made.state_dict(), checkpoint.Checkpoint(kind, args))
    return made.eval()


@torch.inference_mode()
def test_a_row_has_one_image_at_each_scale_enlarged(model, ganbench, place):
    done = ganbench("sample", "--ckpt", "msg_gan.safetensors", "--scales", "--grid", "scales.png", "--seed", "5")
    assert done.code == 0, done.err
    picture = np.asarray(Image.open(place / "scales.png"))[::2, ::2].astype(int)  # shown at twice their size
    assert picture.shape == (2 + 8 * 18, 2 + 3 * 18, 3)
    z = model.sample_latent(8, torch.Generator().manual_seed(5))
    for column, x in enumerate(model.G(z)):
        side = 4 * 2**column
        assert x.shape[2] == side
        enlarged = to_uint8(x.clamp(-1, 1)).numpy().repeat(16 // side, 2).repeat(16 // side, 3).astype(int)
        for row in range(8):
            cell = picture[2 + 18 * row :, 2 + 18 * column :][:16, :16]
            assert np.abs(cell - enlarged[row].transpose(1, 2, 0)).max() <= 1


@pytest.mark.parametrize(("options", "message"), [
    (("dcgan", "--scales"), "the model 'dcgan' makes images at one scale only"),
    (("msg_gan", "--scales", "--truncation", "0.7"), "--scales makes a sheet"),
    (("msg_gan", "--scales", "--mix", "0-1"), "give one of them"),
])
def test_options_that_do_not_fit_are_refused_in_a_line(model, ganbench, place, options, message):
    name, *rest = options
    done = ganbench("sample", "--ckpt", f"{name}.safetensors", *rest, "--grid", "a.png")
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not (place / "a.png").exists()
