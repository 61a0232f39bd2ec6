"""Each part keeps its contract. Run `python -m pytest` in the folder of the template, once it is installed."""

import math

import pytest
import torch
from ganbench_example.dataset import SIZES, bars
from ganbench_example.extractor import Strokes
from ganbench_example.metric import matching_distances
from ganbench_example.model import TinyGAN

from ganbench.data import datasets
from ganbench.data.datasets import UnknownSplit
from ganbench.gan import Batch


def test_a_step_of_the_model_moves_every_weight_and_a_seed_determines_the_samples():
    torch.manual_seed(0)
    model = TinyGAN()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = model.training_step(Batch(torch.rand(16, 1, 8, 8) * 2 - 1, None, 0), model.optimizers())
    assert sorted(losses) == ["d_loss", "g_loss"]
    assert all(loss.isfinite() and not loss.requires_grad for loss in losses.values())
    assert not any(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with torch.inference_mode():
        a, b, c = (model.sample(5, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert a.shape == (5, 1, 8, 8)
    assert a.abs().max() <= 1
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_the_metric_is_its_formula():
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(30, 5, generator=generator), torch.randn(20, 5, generator=generator)
    nearest = [min(math.dist(x, g) for g in fake.tolist()) for x in real.tolist()]
    assert matching_distances(real, fake).tolist() == pytest.approx(nearest, rel=1e-12)


@pytest.mark.parametrize("shape", [(4, 1, 8, 8), (4, 3, 8, 8), (4, 1, 28, 20)])
def test_the_extractor_takes_images_of_any_size_in_grey_and_colour(shape):
    images = torch.randint(256, shape, dtype=torch.uint8)
    out = Strokes()(images)
    assert out.features.shape == (4, shape[2] + shape[3])
    assert out.logits.shape == (4, 2)
    assert torch.equal(Strokes()(images.float()).features, out.features)  # float images are in 0..255 too


def test_the_data_set_is_the_same_each_time_and_its_classes_are_told_apart():
    for split, n in SIZES.items():
        data = datasets.load(f"bars:{split}")  # by name, so that the entry point is tested too
        assert len(data) == n
        assert data.fingerprint == datasets.load(f"bars:{split}").fingerprint
        assert torch.equal(Strokes()(data.images).logits.argmax(1), data.labels)
    with pytest.raises(UnknownSplit, match="train, test"):
        bars("validation", datasets.data_root(), False)
