"""The Inception-v3 of FID: its input, its weights, and the whole path from PNG files to values against torch-fidelity.

The published weights cannot come with the tests. Random ones in the same format take the same path.
"""

import json
from unittest import mock

import numpy as np
import pytest
import torch
import torch_fidelity
import torch_fidelity.feature_extractor_inceptionv3 as reference
from support import write_png
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from ganbench.base.errors import UserError
from ganbench.base.files import sha256_of
from ganbench.features import create, inception_v3
from ganbench.features.weights import published


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights that keep the scale through the layers, and logits that differ between images."""
    torch.manual_seed(0)
    with (
        mock.patch.object(reference, "load_state_dict_from_url", return_value={}),
        mock.patch.object(reference.FeatureExtractorInceptionV3, "load_state_dict"),
    ):
        net = reference.FeatureExtractorInceptionV3("inception-v3", ["2048"])
    for name, parameter in net.named_parameters():
        if name.endswith("conv.weight"):
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        elif name.endswith("bn.bias"):
            parameter.normal_(std=0.1)
        elif name.endswith("bn.weight"):
            parameter.uniform_(0.8, 1.2)
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.8, 1.2)
    [features] = net(pictures(4, 3, 32, 0))
    mean = features.mean(0, keepdim=True)
    w = torch.randn(1008, 2048) * 5 / (features - mean).norm(dim=1).mean()
    net.fc.weight.copy_(w - (w @ mean.T) * mean / mean.square().sum())  # blind to what all images have in common
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def extractor(weights):
    return create("inception-v3", weights)


def pictures(n, c, side, seed):
    """Coarse colour patches and noise: images that differ from one another."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.nn.functional.interpolate(torch.rand(n, c, 4, 4, generator=g) * 255, (side, side), mode="bilinear")
    return (coarse + 20 * torch.randn(n, c, side, side, generator=g)).round().clamp(0, 255).to(torch.uint8)


def network_input(extractor, images):
    """What reaches the first layer."""

    def stop(module, args):
        raise Stop(args[0])

    hook = extractor.net.stem[0].register_forward_pre_hook(stop)
    try:
        with pytest.raises(Stop) as caught:
            extractor(images)
    finally:
        hook.remove()
    return caught.value.args[0]


def tf1_resize(image, size=299):
    """Bilinear without half-pixel centres, H x W: destination i looks at source i H / size, in float32 as there."""
    out = image.astype(np.float64)
    for axis in (0, 1):
        n = out.shape[axis]
        at = np.arange(size, dtype=np.float32) * np.float32(n / size)
        low = np.floor(at).astype(int)
        share = (at - low).reshape((-1, 1) if axis == 0 else (1, -1))
        high = np.minimum(low + 1, n - 1)
        out = out.take(low, axis) * (1 - share) + out.take(high, axis) * share
    return out


@pytest.mark.parametrize("side", [28, 32, 299, 400])
def test_images_are_resized_as_tensorflow_1_did_and_scaled_by_128(extractor, side):
    image = pictures(1, 3, side, side)
    x = network_input(extractor, image)
    expected = np.stack([(tf1_resize(channel) - 128) / 128 for channel in image[0].numpy()])
    assert x.shape == (1, 3, 299, 299)
    assert x.dtype == torch.float32
    assert np.abs(x[0].numpy() - expected).max() < 1e-6


def test_one_channel_counts_as_three_equal_ones(extractor):
    grey = pictures(1, 1, 32, 0)
    assert torch.equal(network_input(extractor, grey), network_input(extractor, grey.repeat(1, 3, 1, 1)))


def test_an_image_has_the_same_features_and_logits_without_bias_in_any_batch(extractor):
    images = pictures(2, 3, 32, 0)
    both, second = extractor(images), extractor(images[1:])
    assert (both.features.shape, both.logits.shape) == ((2, 2048), (2, 1008))
    assert both.features.std() > 0.01
    assert torch.allclose(both.features[1], second.features[0], rtol=1e-4, atol=1e-5)
    assert torch.allclose(both.logits, both.features @ extractor.net.classifier.T, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def plain(weights):
    """torch-fidelity's own network with the same weights: uint8 N x 3 x H x W to features and logits."""
    return reference.FeatureExtractorInceptionV3("inception-v3", ["2048", "logits_unbiased"], str(weights))


def error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 3, 299, 299), (1, 3, 150, 90)])
def test_features_and_logits_are_those_of_torch_fidelity(extractor, plain, shape):
    images = pictures(shape[0], 3, max(shape[2:]), 3)[:, :, : shape[2], : shape[3]]
    ours, theirs = extractor(images), plain(images)
    assert theirs[0].std() > 0.01
    assert theirs[1].std() > 0.01
    assert error(ours.features, theirs[0]) < 1e-5
    assert error(ours.logits, theirs[1]) < 2e-5


def test_without_onednn_the_features_are_the_same_and_the_report_says_so(weights, extractor, monkeypatch):
    images = pictures(1, 3, 32, 4)
    expected = extractor(images)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    other = create("inception-v3", weights)
    assert error(other(images).features, expected.features) < 1e-5
    assert other.report == {"convolutions": "torch"}
    if torch.backends.mkldnn.is_available():
        assert extractor.report == {"convolutions": "oneDNN with ReLU"}


def test_float_images_are_the_uint8_ones_and_what_lies_between_levels_is_seen(extractor):
    images = pictures(1, 3, 32, 5)
    assert torch.equal(extractor(images.float()).features, extractor(images).features)
    raised = network_input(extractor, images.float() + 0.25) - network_input(extractor, images)
    assert (raised - 0.25 / 128).abs().max() < 5e-7


@pytest.mark.parametrize("shape", [(1, 2), (32, 48), (299, 512), (64, 513), (900, 299)])
def test_images_that_are_not_square_are_resized_by_each_side_s_own_factor(shape):
    image = pictures(1, 1, max(shape), 0)[:, :, : shape[0], : shape[1]]
    expected = interpolate_bilinear_2d_like_tensorflow1x((image.float() - 128) / 128, (299, 299), align_corners=False)
    x = inception_v3.scaled(image)
    assert x.shape == (1, 3, 299, 299)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert (x - expected).abs().max() < 1e-6


def test_lower_precision_allowed_elsewhere_does_not_reach_the_features_and_stays_allowed(extractor):
    images = pictures(1, 3, 32, 6)
    expected = extractor(images).features
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(extractor(images).features, expected)
        with inception_v3.full_float32():
            assert (
                torch.get_float32_matmul_precision() == "highest"
                or torch.backends.mkldnn.matmul.fp32_precision == "ieee"
            )
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_bfloat16_has_a_name_of_its_own_and_reports_the_error_it_made(weights, extractor, monkeypatch):
    fast = create("inception-v3-bf16", weights)
    images = pictures(3, 3, 32, 7)
    out, exact = fast(images), extractor(images)
    made = error(out.features, exact.features)
    assert 1e-4 < made < 0.1
    assert fast.report["probe_error"] == pytest.approx(made, rel=0.06)  # two digits are reported
    assert out.features.dtype == out.logits.dtype == torch.float32
    fast(pictures(2, 3, 32, 8))
    assert fast.report["probe_error"] == pytest.approx(made, rel=0.06)  # of the first batch
    assert "probe_error" not in fast.describe()
    assert (fast.official, fast.title) == (False, f"inception-v3-bf16@{sha256_of(weights)[:8]}")
    monkeypatch.setattr(inception_v3, "SHA256", sha256_of(weights))
    published_ones = create("inception-v3-bf16", weights)
    assert (published_ones.official, published_ones.title) == (False, "inception-v3-bf16")


def test_spatial_features_are_the_first_seven_channels_of_mixed_6d_by_row_column_and_channel(weights, plain):
    images, seen = pictures(2, 3, 32, 9), []
    hook = plain.Mixed_6d.register_forward_hook(lambda module, args, out: seen.append(out))
    plain(images)
    hook.remove()
    out = create("inception-v3-spatial", weights)(images)
    assert out.logits is None
    assert out.features.shape == (2, 2023)
    assert error(out.features.view(2, 17, 17, 7).permute(0, 3, 1, 2), seen[0][:, :7]) < 1e-5


@pytest.mark.slow
def test_the_whole_path_equals_torch_fidelity_on_the_same_files_and_weights(weights, ganbench, place, tmp_path):
    sets = {"fake": pictures(21, 3, 32, 1), "real": pictures(11, 3, 32, 2) // 2 + 60}
    for name, images in sets.items():
        for i, image in enumerate(images):
            write_png(place / name / f"{i:02}.png", image.permute(1, 2, 0).numpy())
    theirs = torch_fidelity.calculate_metrics(
        input1=str(place / "fake"), input2=str(place / "real"), fid=True, kid=True, isc=True, kid_subset_size=11,
        feature_extractor_weights_path=str(weights), cuda=False, cache=False, verbose=False, batch_size=4,
        save_cpu_ram=True,
    )

    done = ganbench(
        "evaluate", "--images", "fake", "--reference", "real", "--extractor", "inception-v3", "--batch-size", 4,
        "--weights", f"inception-v3={weights}", "--metrics", "fid,kid,inception_score", "--json",
    )
    assert done.code == 0, done
    result = json.loads(done.out)
    values = {m["metric"]: m["value"] for m in result["measurements"]}
    title = f"inception-v3@{sha256_of(weights)[:8]}"
    # Names of published protocols are kept for the published weights.
    assert list(values) == [f"fd_{title}", f"kd_{title}", f"score_{title}"]
    assert values[f"fd_{title}"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)
    assert values[f"kd_{title}"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert values[f"score_{title}"] == pytest.approx(theirs["inception_score_mean"], rel=1e-5)
    assert values[f"score_{title}"] > 1.1  # at most 2.1 for 21 images in 10 splits
    score = result["measurements"][2]
    assert score["uncertainty"]["value"] == pytest.approx(theirs["inception_score_std"], rel=1e-4)


def test_only_the_published_file_is_official(weights, extractor, monkeypatch):
    assert not extractor.official
    assert extractor.title == f"inception-v3@{sha256_of(weights)[:8]}"
    monkeypatch.setattr(inception_v3, "SHA256", sha256_of(weights))
    official = create("inception-v3", weights)
    assert official.official
    assert official.title == "inception-v3"


def test_missing_weights_name_the_file_the_folder_and_the_option(tmp_path):
    with pytest.raises(UserError) as error:
        create("inception-v3", download=False)
    for words in (
        inception_v3.FILE,
        str(tmp_path / "data" / "weights"),
        "offline",
        "--weights inception-v3=FILE",
    ):
        assert words in str(error.value)


def test_missing_weights_are_downloaded_once_and_their_hash_is_asked_for(monkeypatch, tmp_path):
    calls = []

    def download(url, path, hash_prefix):
        calls.append((url, hash_prefix))
        with open(path, "wb") as file:
            file.write(b"weights")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    [path] = published("inception-v3", inception_v3.FILES, download=True)
    assert path == tmp_path / "data" / "weights" / inception_v3.FILE
    assert published("inception-v3", inception_v3.FILES, download=True) == [path]
    assert reference.URL_INCEPTION_V3 == inception_v3.URL
    assert calls == [(inception_v3.URL, inception_v3.SHA256)]
    assert inception_v3.SHA256.startswith("6726825d")  # as the publisher's own file name says


def test_a_download_that_fails_says_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", mock.Mock(side_effect=OSError("no route to host")))
    with pytest.raises(UserError, match=r"could not be downloaded \(no route to host\)\. Put .* or give --weights"):
        published("inception-v3", inception_v3.FILES, download=True)


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def test_a_file_that_would_run_code_is_refused_and_does_not_run_it(place):
    torch.save({"x": Bomb()}, place / "bomb.pth")
    with pytest.raises(UserError, match=r"bomb\.pth is not a whole file of plain tensors"):
        create("inception-v3", place / "bomb.pth")
    assert not (place / "exploded").exists()


@pytest.mark.parametrize("content", ["truncated", "text"])
def test_a_broken_file_is_refused_by_name(weights, tmp_path, content):
    path = tmp_path / "broken.pth"
    path.write_bytes(weights.read_bytes()[:100_000] if content == "truncated" else b"not weights")
    with pytest.raises(UserError, match=r"broken\.pth is not a whole file of plain tensors"):
        create("inception-v3", path)


@pytest.mark.parametrize(("content", "found"), [({"a": torch.zeros(1)}, "1 entries"), (torch.zeros(3), "Tensor")])
def test_weights_of_another_network_are_refused_by_name(tmp_path, content, found):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(
        UserError, match=rf"other\.pth does not hold the weights of FID's Inception-v3 \(found {found}\)"
    ):
        create("inception-v3", tmp_path / "other.pth")


@pytest.mark.parametrize(("key", "value"), [
    ("Mixed_7b.branch3x3_2a.conv.weight", None), ("Mixed_5b.branch_pool.conv.weight", torch.zeros(64, 192, 1, 1)),
    ("fc.bias", None), ("Mixed_8a.conv.weight", torch.zeros(1)),
])
def test_an_entry_that_is_missing_of_another_shape_or_unknown_is_refused(weights, tmp_path, key, value):
    state = torch.load(weights)
    state.pop(key, None)
    if value is not None:
        state[key] = value
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(
        UserError, match=r"other\.pth does not hold the weights of FID's Inception-v3 \(found \d+ entries"
    ):
        create("inception-v3", tmp_path / "other.pth")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"--weights inception-v3=.*gone\.pth: there is no such file"):
        create("inception-v3", tmp_path / "gone.pth")
