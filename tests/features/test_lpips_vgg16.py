"""LPIPS as features, against torch-fidelity's LPIPS with the same random weights."""

import hashlib
from unittest import mock

import pytest
import torch
import torch_fidelity.sample_similarity_lpips as published
import torchvision

from ganbench.base.errors import UserError
from ganbench.base.files import sha256_of
from ganbench.features import create, extract, lpips_vgg16


@pytest.fixture(scope="module")
def parts():
    """Random weights in the published files' formats: VGG16's convolutions, and the linear layers."""
    torch.manual_seed(0)
    with mock.patch.object(torch.nn, "Linear", return_value=torch.nn.Identity()):  # its classifier is 0.5 GB
        vgg = torchvision.models.vgg16(init_weights=False)
    for module in vgg.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            torch.nn.init.normal_(module.bias, std=0.1)
    channels = (64, 128, 256, 512, 512)
    return vgg, {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(channels)}


@pytest.fixture(scope="module")
def weights(parts, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "lpips.pth"
    torch.save({**parts[0].state_dict(), **parts[1]}, path)
    return path


@pytest.fixture(scope="module")
def theirs(parts):
    with (
        mock.patch.object(published, "load_state_dict_from_url", return_value=parts[1]),
        mock.patch.object(published, "torchvision_load_pretrained_vgg16", return_value=parts[0]),
    ):
        return published.SampleSimilarityLPIPS("lpips")


@pytest.fixture(scope="module")
def extractor(weights):
    return create("lpips-vgg16", weights)


def pictures(n, c, height, width, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, c, height, width), generator=g, dtype=torch.uint8)


@pytest.mark.parametrize("shape", [(32, 32), (48, 64), (16, 16), (37, 19)])
def test_the_squared_distance_of_features_is_lpips(extractor, theirs, shape):
    a, b = pictures(3, 3, *shape), pictures(3, 3, *shape, seed=1)
    with torch.no_grad():
        expected = theirs(a, b).flatten()
    ours = (extractor(a).features - extractor(b).features).square().sum(1)
    assert expected.min() > 0.01
    assert ours.tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_features_are_of_all_five_layers_and_there_are_no_classes(extractor):
    out = extractor(pictures(2, 3, 32, 32))
    assert out.features.shape == (2, 32 * 32 * (64 + 128 // 4 + 256 // 16 + 512 // 64 + 512 // 256))
    assert out.logits is None


def test_one_channel_counts_as_three_equal_ones_and_float_images_are_in_the_same_units(extractor):
    grey = pictures(1, 1, 16, 16)
    expected = extractor(grey.repeat(1, 3, 1, 1)).features
    assert torch.allclose(extractor(grey).features, expected, atol=1e-7)
    assert torch.equal(extractor(grey.float()).features, extractor(grey).features)
    assert not torch.equal(extractor(grey.float() + 0.25).features, expected)


def test_any_batch_gives_the_same_features(extractor):
    images, cpu = pictures(5, 3, 16, 16), torch.device("cpu")
    one, all_at_once = extract(extractor, images, 1, cpu), extract(extractor, images, None, cpu)
    assert torch.allclose(one.features, all_at_once.features, rtol=1e-4, atol=1e-7)


def test_images_that_the_pools_would_use_up_are_refused(extractor):
    with pytest.raises(UserError, match="needs images of 16 px or more, not 20x15"):
        extractor(pictures(1, 3, 15, 20))


def test_own_weights_carry_their_hash_and_only_the_published_files_are_official(
    parts, weights, extractor, monkeypatch, tmp_path
):
    assert extractor.title == f"lpips-vgg16@{sha256_of(weights)[:8]}"
    monkeypatch.setenv("GANBENCH_DATA", str(tmp_path))
    (tmp_path / "weights").mkdir()
    torch.save(parts[0].state_dict(), tmp_path / "weights" / lpips_vgg16.VGG16)
    torch.save(parts[1], tmp_path / "weights" / lpips_vgg16.LINEAR)
    pair = create("lpips-vgg16", download=False)
    assert not pair.official  # the right names are not enough
    values = b"".join(v.numpy().tobytes() for v in parts[1].values())
    monkeypatch.setattr(lpips_vgg16, "LINEAR_SHA256", hashlib.sha256(values).hexdigest())
    monkeypatch.setattr(lpips_vgg16, "sha256_of", lambda path: "397923af" + "0" * 56)
    assert create("lpips-vgg16", download=False).title == "lpips-vgg16"
    images = pictures(1, 3, 16, 16)
    assert torch.equal(pair(images).features, extractor(images).features)


def test_missing_weights_name_both_files_and_the_option():
    with pytest.raises(UserError) as error:
        create("lpips-vgg16", download=False)
    for words in (lpips_vgg16.VGG16, lpips_vgg16.LINEAR, "offline", "--weights lpips-vgg16=FILE"):
        assert words in str(error.value)


def test_a_download_that_fails_says_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", mock.Mock(side_effect=OSError("no route to host")))
    with pytest.raises(UserError, match=r"could not be downloaded \(no route to host\)\. Put .* or give --weights"):
        create("lpips-vgg16")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lin4.model.1.weight": None}, r"no lin4\.model\.1\.weight of 1x512x1x1"),
        ({"features.0.weight": torch.zeros(64, 1, 3, 3)}, r"no features\.0\.weight of 64x3x3x3"),
        ({"lin0.model.1.weight": -torch.ones(1, 64, 1, 1)}, "negative weights in lin0"),
    ],
)
def test_a_file_that_holds_something_else_is_refused_by_name(weights, tmp_path, change, words):
    torch.save({**torch.load(weights), **change}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=rf"other\.pth .*{words}"):
        create("lpips-vgg16", tmp_path / "other.pth")


def test_a_broken_file_is_refused_by_name(tmp_path):
    (tmp_path / "broken.pth").write_bytes(b"not weights")
    with pytest.raises(UserError, match=r"broken\.pth is not a whole file of plain tensors"):
        create("lpips-vgg16", tmp_path / "broken.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(UserError, match=r"tensor\.pth does not hold weights of LPIPS over VGG16 \(found Tensor\)"):
        create("lpips-vgg16", tmp_path / "tensor.pth")
