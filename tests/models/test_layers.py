"""The shared layers against formulas written independently: NumPy loops, SciPy, Pillow, torch's own layers."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage, stats
from torch import nn
from torch.nn.utils import parametrizations

from reference_models import layers
from reference_models.layers import (
    ZCA,
    Blur,
    ConditionalBatchNorm,
    DownBlock,
    EqualisedRate,
    FirstDownBlock,
    GaussianNoise,
    Maxout,
    MeanOnlyNorm,
    MinibatchDiscrimination,
    MinibatchStd,
    PixelNorm,
    SelfAttention,
    ShiftNorm,
    StartedWeightNorm,
    UpBlock,
    WeightNorm,
)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def array(t):
    return t.detach().double().numpy()


def close(a, b, rtol=1e-4, atol=1e-5):
    """Compare a tensor with an array or a tensor."""
    np.testing.assert_allclose(array(a), array(b) if isinstance(b, torch.Tensor) else b, rtol=rtol, atol=atol)


def matrix(layer):
    """The weights of a layer as outputs x all else, float64."""
    w = array(layer.weight)
    w = w.swapaxes(0, 1) if isinstance(layer, nn.ConvTranspose2d) else w
    return w.reshape(len(w), -1)


# --- Small helpers ---


def test_a_label_is_joined_to_a_vector_and_as_constant_maps_to_a_feature_map():
    y = torch.eye(3)[[2, 0]]
    assert layers.with_label(torch.zeros(2, 4), y).tolist() == [[0] * 4 + [0, 0, 1], [0] * 4 + [1, 0, 0]]
    h = torch.randn(2, 4, 5, 6)
    joined = layers.with_label(h, y)
    assert torch.equal(joined[:, :4], h)
    for n in range(2):
        for k in range(3):
            assert (joined[n, 4 + k] == y[n, k]).all()
    assert layers.with_label(h, None) is h


def test_a_conditional_sequence_joins_the_condition_where_it_says():
    first, second = nn.Linear(4 + 3, 5), nn.Linear(5 + 2 * 3, 2)
    join = layers.JoinLabel
    net = layers.ConditionalSequential(join(), first, nn.ReLU(), join(), join(), second)
    h, y = torch.randn(6, 4), torch.eye(3).repeat(2, 1)
    hidden = np.maximum(np.hstack([array(h), array(y)]) @ array(first.weight).T + array(first.bias), 0)
    expected = np.hstack([hidden, array(y), array(y)]) @ array(second.weight).T + array(second.bias)
    close(net(h, y), expected)
    assert not torch.equal(net(h, y), net(h, y.flip(0)))


def test_an_affine_map_takes_images_to_0_1_and_back_to_the_bit():
    x = torch.linspace(-1, 1, 256)
    assert torch.equal(layers.Affine(0.5, 0.5)(x), (x + 1) / 2)
    assert torch.equal(layers.Affine(2.0, -1.0)(x), 2 * x - 1)
    assert layers.Affine(0.5, 0.5)(x).aminmax() == (0, 1)


def test_a_network_ends_in_float32_under_mixed_precision_too():
    net = nn.Sequential(nn.Linear(3, 2), layers.Float32(), nn.Tanh())
    x = torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        out, half = net(x), net[0](x)
    assert half.dtype == torch.bfloat16
    assert out.dtype == torch.float32
    assert torch.equal(out, half.float().tanh())  # not the tanh of a bfloat16


def test_a_conditional_sequence_joins_the_label_where_it_is_told_to():
    body = layers.ConditionalSequential(
        layers.JoinLabel(), nn.Linear(5, 4), nn.Dropout(0.5), layers.JoinLabel(), nn.Linear(6, 3)
    ).eval()
    h, y = torch.randn(7, 3), torch.randn(7, 2)
    first, second = (m for m in body if isinstance(m, nn.Linear))
    inner = array(torch.cat([h, y], 1)) @ array(first.weight).T + array(first.bias)
    expected = np.concatenate([inner, array(y)], 1) @ array(second.weight).T + array(second.bias)
    close(body(h, y), expected)


def test_affine_maps_are_exact_between_the_two_ranges_of_pixels():
    x = torch.linspace(-1, 1, 511)
    assert torch.equal(layers.Affine(0.5, 0.5)(x), (x + 1) / 2)
    assert torch.equal(layers.Affine(2, -1)(x), 2 * x - 1)


def test_float32_ends_mixed_precision():
    h = torch.randn(5).bfloat16()
    assert torch.equal(layers.Float32()(h), h.float())
    assert layers.Float32()(h).dtype == torch.float32


def test_leaky_relu_has_the_slope_02():
    assert layers.lrelu(torch.tensor([-5.0, 0.0, 2.0])).tolist() == [-1.0, 0.0, 2.0]


@pytest.mark.parametrize("kernel", [3, 4, 5])
def test_a_down_convolution_halves_and_an_up_convolution_is_its_adjoint(kernel):
    down = layers.down_conv(3, 4, kernel, bias=False)
    up = layers.up_conv(4, 3, kernel, bias=False)
    up.weight = down.weight
    x, y = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 4, 4)
    assert down(x).shape == y.shape
    assert up(y).shape == x.shape
    assert (down(x) * y).sum().item() == pytest.approx((x * up(y)).sum().item(), rel=1e-4)
    assert layers.down_conv(3, 4).bias is not None
    assert layers.up_conv(3, 4).bias is not None


@pytest.mark.parametrize("shape", [(5,), (3, 4)])
def test_maxout_is_the_maximum_over_the_pieces_of_each_unit(shape):
    h = torch.randn(2, 12, *shape)
    out = array(Maxout(3)(h))
    assert out.shape == (2, 4, *shape)
    for n in range(2):
        for unit in range(4):
            pieces = [array(h)[n, 3 * unit + i] for i in range(3)]
            np.testing.assert_array_equal(out[n, unit], np.maximum.reduce(pieces))


@pytest.mark.parametrize("fused", [False, True])
def test_noise_is_gaussian_in_training_and_absent_in_evaluation(fused):
    noise, h = GaussianNoise(0.3, fused), torch.ones(200, 500)
    draws = array(noise(h) - h).ravel()
    assert stats.kstest(draws / 0.3, "norm").pvalue > 1e-3
    assert noise.eval()(h) is h
    assert GaussianNoise(0.0, fused)(h) is h


def test_both_ways_to_add_noise_agree_up_to_rounding():
    h, outs = torch.randn(50, 3, 4, 4), []
    for fused in (False, True):
        torch.manual_seed(1)
        outs.append(GaussianNoise(0.3, fused)(h))
    torch.manual_seed(1)
    assert torch.equal(outs[0], layers.gaussian_noise(h, 0.3))
    close(outs[0], outs[1], rtol=0, atol=1e-6)


def test_fused_noise_is_drawn_in_float32_for_half_precision_too():
    h = torch.zeros(1000, dtype=torch.bfloat16)
    out = GaussianNoise(1.0, fused=True)(h)
    assert out.dtype == torch.float32
    assert out.unique().numel() > 950


# --- Random numbers, initialisation, averages ---


@pytest.mark.parametrize(("bound", "std"), [(0.5, 1.0), (2.0, 0.02), (4.0, 3.0)])
def test_truncated_normal_has_scipys_distribution(bound, std):
    z = array(layers.truncated_normal(200, 100, bound=bound, std=std)).ravel()
    assert np.abs(z).max() <= bound * std * (1 + 1e-6)
    assert stats.kstest(z / std, stats.truncnorm(-bound, bound).cdf).pvalue > 1e-3


def test_truncated_normal_draws_from_its_generator():
    a, b = (layers.truncated_normal(3, 4, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, layers.truncated_normal(3, 4, generator=torch.Generator().manual_seed(8)))


def small_net():
    return nn.Sequential(
        nn.Conv2d(2, 40, 5), nn.ConvTranspose2d(40, 30, 5), nn.BatchNorm2d(30), nn.Linear(300, 50),
        nn.Embedding(60, 40), nn.Linear(20, 10, bias=False),
    )


def of_kind(net):
    return [m for m in net if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.Embedding)]


def test_the_normal_start_draws_weights_and_sets_biases_to_0():
    net = small_net()
    net[2].bias.data.fill_(3)
    layers.normal_start(net, 0.02)
    for layer in of_kind(net):
        assert stats.kstest(array(layer.weight).ravel() / 0.02, "norm").pvalue > 1e-3
        assert getattr(layer, "bias", None) is None or not layer.bias.any()
    assert (net[2].weight == 1).all()
    assert (net[2].bias == 3).all()
    one = layers.normal(nn.Linear(300, 50), 0.1)
    assert one.weight.std().item() == pytest.approx(0.1, rel=0.03)
    assert one.bias.any()


def test_the_xavier_start_is_uniform_with_glorots_bound():
    net = small_net()
    layers.xavier_start(net, gain=1.5)
    fans = (25 * 2 + 25 * 40, 25 * 40 + 25 * 30, 300 + 50, 60 + 40, 20 + 10)
    for layer, fan in zip(of_kind(net), fans, strict=True):
        a = 1.5 * math.sqrt(6 / fan)
        assert layer.weight.abs().max() <= a
        assert stats.kstest(array(layer.weight).ravel(), stats.uniform(-a, 2 * a).cdf).pvalue > 1e-3
        assert getattr(layer, "bias", None) is None or not layer.bias.any()


def test_the_xavier_start_spares_the_layers_that_it_is_told_to():
    net = nn.Sequential(nn.Linear(2, 3), nn.Embedding(4, 5))
    nn.init.constant_(net[0].bias, 3.0)
    kept, drawn = net[1].weight.clone(), net[0].weight.clone()
    layers.xavier_start(net, but=[net[1]])
    assert torch.equal(net[1].weight, kept)
    assert not torch.equal(net[0].weight, drawn)
    assert not net[0].bias.any()


def test_the_orthogonal_start_makes_rows_or_columns_orthonormal():
    net = nn.Sequential(nn.Linear(7, 4), nn.Linear(4, 7), nn.Conv2d(3, 5, 3), nn.Embedding(6, 3))
    layers.orthogonal_start(net)
    for layer in net:
        w = array(layer.weight).reshape(len(layer.weight), -1)
        gram = w @ w.T if len(w) <= w.shape[1] else w.T @ w
        np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-5)
        assert getattr(layer, "bias", None) is None or not layer.bias.any()


@pytest.mark.parametrize(
    "start", [lambda n: layers.normal_start(n, 1.0), layers.xavier_start, layers.orthogonal_start, layers.spectral_norm]
)
def test_a_start_after_spectral_norm_is_refused(start):
    with pytest.raises(ValueError, match="before spectral_norm"):
        start(layers.spectral_norm(nn.Sequential(nn.Linear(3, 3))))


def test_the_average_moves_by_its_rate_and_copies_whole_numbers():
    net, average = (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)) for _ in range(2))
    net(torch.randn(5, 3))
    before = {k: array(v) for k, v in average.state_dict().items()}
    layers.update_average(average, net, 0.25)
    for name, value in average.state_dict().items():
        new = array(net.state_dict()[name])
        close(value, new if name.endswith("tracked") else 0.75 * before[name] + 0.25 * new)
    assert average[1].num_batches_tracked == 1


@pytest.mark.parametrize("fails", [False, True])
def test_the_start_and_the_kept_moments_end_with_their_block(fails):
    net = nn.Sequential(StartedWeightNorm(nn.Linear(3, 3, bias=False)), nn.BatchNorm1d(3),
                        nn.BatchNorm1d(3, track_running_stats=False))
    try:
        with layers.data_dependent_start(net), layers.moments_kept(net):
            assert net[0].starting
            with layers.moments_kept(net):
                net(torch.randn(5, 3))
            net(torch.randn(5, 3))
            assert not net[1].track_running_stats
            if fails:
                raise RuntimeError("in the middle")
    except RuntimeError:
        assert fails
    assert not net[0].starting
    assert net[1].track_running_stats
    assert not net[2].track_running_stats
    assert not net[1].running_mean.any()
    net(torch.randn(5, 3))
    assert net[1].running_mean.any()


def test_with_kept_moments_a_pass_normalises_by_its_own_batch():
    norm, h = nn.BatchNorm1d(3, affine=False), 2 + 3 * torch.randn(50, 3)
    with layers.moments_kept(norm):
        close(norm(h), (array(h) - array(h).mean(0)) / np.sqrt(array(h).var(0) + 1e-5))
    assert not norm.running_mean.any()


# --- Weight normalisation ---

KINDS = [
    (lambda bias: nn.Linear(7, 4, bias=bias), (50, 7)),
    (lambda bias: nn.Conv2d(3, 4, 3, 2, 1, bias=bias), (20, 3, 8, 8)),
    (lambda bias: nn.ConvTranspose2d(3, 4, 5, 2, 2, 1, bias=bias), (20, 3, 4, 4)),
    (lambda bias: nn.ConvTranspose2d(3, 4, 4, 2, 1, bias=bias), (20, 3, 4, 4)),
]


@pytest.mark.parametrize(("make", "shape"), KINDS)
@pytest.mark.parametrize("scaled", [False, True])
def test_weight_norm_scales_each_output_by_the_length_of_its_weights(make, shape, scaled):
    layer, x = make(True), torch.randn(shape)
    norm = WeightNorm(layer, scaled, eps=0.5)
    assert len(list(norm.parameters())) == 2 + scaled
    if scaled:
        norm.g.data.uniform_(0.5, 2)
    by = (1, -1, *[1] * (len(shape) - 2))
    lengths = np.sqrt((matrix(layer) ** 2).sum(1) + 0.5)
    g = array(norm.g).ravel() if scaled else 1.0
    bias = array(layer.bias).reshape(by)
    close(norm(x), (array(layer(x)) - bias) * (g / lengths).reshape(by) + bias)


@pytest.mark.parametrize(("make", "shape"), KINDS)
def test_weight_norm_without_epsilon_is_torchs(make, shape):
    layer, x = make(True), torch.randn(shape)
    dim = int(isinstance(layer, nn.ConvTranspose2d))
    theirs = parametrizations.weight_norm(copy.deepcopy(layer), dim=dim)
    g = torch.rand(theirs.parametrizations.weight.original0.shape) + 0.5
    theirs.parametrizations.weight.original0.data.copy_(g)
    ours = WeightNorm(layer, scaled=True, eps=0.0)
    ours.g.data.copy_(g)
    close(ours(x), theirs(x))


@pytest.mark.parametrize(("make", "shape"), KINDS)
def test_started_weight_norm_scales_each_output_by_the_length_of_its_weights(make, shape):
    layer, x = make(False), torch.randn(shape)
    norm = StartedWeightNorm(layer, train_scale=True)
    norm.scale.data.uniform_(0.5, 2)
    norm.bias.data.normal_()
    by = (1, -1, *[1] * (len(shape) - 2))
    lengths = np.sqrt((matrix(layer) ** 2).sum(1))
    close(norm(x), array(layer(x)) * (array(norm.scale).ravel() / lengths).reshape(by) + array(norm.bias).reshape(by))


@pytest.mark.parametrize(("make", "shape"), KINDS)
@pytest.mark.parametrize("std", [1.0, 0.1])
def test_after_the_data_dependent_start_outputs_have_mean_0_and_the_asked_deviation(make, shape, std):
    norm, x = StartedWeightNorm(make(False), init_std=std), 3 + 5 * torch.randn(shape)
    with layers.data_dependent_start(norm):
        started = norm(x)
    h = norm(x)
    assert torch.equal(h, started)
    dims = [d for d in range(h.ndim) if d != 1]
    close(h.mean(dims), np.zeros(4), atol=1e-4)
    close(h.std(dims, correction=0), np.full(4, std), atol=0)


def test_without_a_deviation_there_is_no_start():
    norm, x = StartedWeightNorm(nn.Linear(7, 4, bias=False), init_std=0.0), torch.randn(50, 7)
    before = norm(x)
    with layers.data_dependent_start(norm):
        assert torch.equal(norm(x), before)


def test_a_scale_is_trained_only_where_it_is_asked_for():
    assert [n for n, _ in StartedWeightNorm(nn.Linear(3, 2, bias=False)).named_parameters()] == ["bias", "layer.weight"]
    learnt = StartedWeightNorm(nn.Linear(3, 2, bias=False), train_scale=True)
    assert [n for n, _ in learnt.named_parameters()] == ["bias", "scale", "layer.weight"]
    with pytest.raises(AssertionError):
        StartedWeightNorm(nn.Linear(3, 2))  # the layer's own bias would be lost


# --- Other rules for weights ---

SPECTRAL = [
    lambda: nn.Linear(7, 4), lambda: nn.Conv2d(3, 4, 3), lambda: nn.ConvTranspose2d(3, 4, 4), lambda: nn.Embedding(5, 3)
]


@pytest.mark.parametrize("make", SPECTRAL)
def test_spectral_norm_divides_by_the_largest_singular_value(make):
    layer = layers.spectral_norm(make())
    for _ in range(100):
        _ = layer.weight  # a pass in training is one power iteration
    w = array(layer.parametrizations.weight.original)
    outputs_first = w.swapaxes(0, 1) if isinstance(layer, nn.ConvTranspose2d) else w
    sigma = np.linalg.svd(outputs_first.reshape(len(outputs_first), -1), compute_uv=False)[0]
    close(layer.weight, w / sigma, rtol=1e-3)


def test_spectral_norm_takes_one_power_iteration_a_pass_in_training_and_none_in_evaluation():
    layer = layers.spectral_norm(nn.Linear(7, 4))
    w = layer.parametrizations.weight.original
    w.data.normal_()  # so that u and v are far from converged
    v, w = array(layer.parametrizations.weight[0]._v), array(w)
    for _ in range(2):
        u = w @ v / (np.linalg.norm(w @ v) + 1e-12)
        v = w.T @ u / (np.linalg.norm(w.T @ u) + 1e-12)
        close(layer.weight, w / (u @ w @ v))
    assert abs(u @ w @ v / np.linalg.svd(w, compute_uv=False)[0] - 1) > 1e-3
    layer.eval()
    for _ in range(2):
        close(layer.weight, w / (u @ w @ v))


def test_the_gradient_of_spectral_norm_takes_u_and_v_as_constants():
    layer = layers.spectral_norm(nn.Linear(7, 4, bias=False)).eval()
    original, (u, v) = layer.parametrizations.weight.original, layer.parametrizations.weight[0].buffers()
    of_w = torch.randn(4, 7)
    (gradient,) = torch.autograd.grad((layer.weight * of_w).sum(), original)
    u, v, w, g = array(u), array(v), array(original), array(of_w)
    sigma = u @ w @ v
    close(gradient, (g - (g * w).sum() / sigma * np.outer(u, v)) / sigma)  # Equation 12 of the paper, for any loss


def test_spectral_norm_reaches_every_layer_of_a_net_and_survives_a_copy():
    net = layers.spectral_norm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Linear(2, 3)))
    assert [nn.utils.parametrize.is_parametrized(m) for m in net] == [True, False, False, True]
    twin = copy.deepcopy(net).eval()
    net.eval()
    x = torch.randn(2, 3, 6, 4)
    assert torch.equal(twin(x), net(x))


def test_the_largest_singular_values_are_those_of_the_weights_before_normalisation():
    made = [nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(5, 2, 3), nn.Embedding(6, 3)]
    expected = [np.linalg.svd(matrix(layer), compute_uv=False)[0] for layer in made]
    net = layers.spectral_norm(nn.Sequential(*made, nn.BatchNorm2d(4)))
    for _ in range(100):
        for layer in made:
            _ = layer.weight
    close(layers.largest_singular_values(net), expected)
    with torch.no_grad():
        made[1].parametrizations.weight.original.mul_(50)  # seen at once, before the next power iteration
    assert layers.largest_singular_values(net)[1].item() == pytest.approx(50 * expected[1], rel=1e-4)


def test_spectral_norm_spares_the_layers_that_it_is_told_to():
    net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Embedding(4, 5), nn.Linear(3, 2)))
    layers.spectral_norm(net, but=[net[1][0]])
    normed = [nn.utils.parametrize.is_parametrized(m) for m in (net[0], net[1][0], net[1][1])]
    assert normed == [True, False, True]


@pytest.mark.parametrize(("make", "shape"), KINDS)
def test_the_equalised_rate_applies_hes_constant_at_run_time(make, shape):
    layer, x = make(True), torch.randn(shape)
    equal = EqualisedRate(layer, gain=1.7)
    assert not layer.bias.any()
    assert layer.weight.std().item() == pytest.approx(1, rel=0.3)
    layer.bias.data.normal_()
    c = 1.7 / math.sqrt(matrix(layer).shape[1])
    by = (1, -1, *[1] * (len(shape) - 2))
    bias = array(layer.bias).reshape(by)
    close(equal(x), (array(layer(x)) - bias) * c + bias)


def test_with_the_equalised_rate_white_inputs_have_outputs_of_deviation_gain():
    h = EqualisedRate(nn.Linear(2000, 500), gain=1.3)(torch.randn(300, 2000))
    assert h.std().item() == pytest.approx(1.3, rel=0.02)
    relu = F.relu(EqualisedRate(nn.Conv2d(200, 100, 3))(torch.randn(4, 200, 10, 10)))
    assert relu.square().mean().item() == pytest.approx(1, rel=0.1)  # gain sqrt 2 keeps the mean square of a ReLU


def test_the_rate_multiplies_the_speed_of_weights_and_bias_and_no_start():
    x, moved = torch.randn(50, 20), []
    for rate in (1.0, 0.01):
        torch.manual_seed(1)
        layer = EqualisedRate(nn.Linear(20, 3), rate=rate)
        before = layer(x)
        optimizer = torch.optim.Adam(layer.parameters(), 1e-4)
        layer(x).sum().backward()
        optimizer.step()
        moved.append(layer(x) - before)
        if rate == 1:
            first = before
    close(before, first)
    close(moved[1], 0.01 * array(moved[0]), rtol=0.01, atol=1e-6)


# --- Normalisation of activations ---


def test_adaptive_instance_norm_gives_each_channel_the_moments_of_its_style():
    norm, h, w = layers.AdaIN(3, 5), 4 * torch.randn(2, 3, 6, 6) + 7, torch.randn(2, 5)
    style = array(w) @ array(norm.affine.layer.weight).T / math.sqrt(5)
    scale, shift = 1 + style[:, :3], style[:, 3:]
    out = norm(h, w)
    close(out.mean((2, 3)), shift, atol=1e-5)
    close(out.std((2, 3), correction=0), np.abs(scale), rtol=1e-4)
    normed = (array(h) - array(h).mean((2, 3), keepdims=True)) / array(h).std((2, 3), keepdims=True)
    close(out, normed * scale[:, :, None, None] + shift[:, :, None, None], atol=1e-5)
    assert norm(h.bfloat16(), w).dtype == torch.float32
    assert norm(h.double(), w).dtype == torch.float64
    norm.affine.layer.bias.data[:3] += 2
    close(norm(h, w), normed * (scale + 2)[:, :, None, None] + shift[:, :, None, None], atol=1e-5)


def test_a_noise_input_adds_one_image_of_noise_to_all_channels_by_their_scales():
    layer, h, e = layers.NoiseInput(3), torch.randn(2, 3, 4, 4), torch.randn(2, 1, 4, 4)
    assert torch.equal(layer(h, e), h)  # scales start at 0
    layer.scale.data = torch.tensor([1.0, -2.0, 0.5]).view(3, 1, 1)
    close(layer(h, e), array(h) + np.array([1, -2, 0.5]).reshape(3, 1, 1) * array(e))
    close(layer(h, e[:1]), array(h) + np.array([1, -2, 0.5]).reshape(3, 1, 1) * array(e[:1]))
    drawn = (layer(h) - h) / layer.scale
    close(drawn, array(drawn)[:, :1].repeat(3, 1), atol=1e-5)
    assert np.abs(array(drawn[0] - drawn[1])).max() > 0.1  # each image has its own


def test_mean_only_norm_subtracts_the_mean_of_the_batch_and_keeps_a_running_one():
    norm, x = MeanOnlyNorm(3, 4, 3, 1), torch.randn(6, 3, 5, 5)
    norm.shift.data.normal_()
    t = array(F.conv2d(x, norm.conv.layer.weight, padding=1))
    t = t / np.sqrt((matrix(norm.conv.layer) ** 2).sum(1) + 1e-6).reshape(1, 4, 1, 1)
    mean = t.mean((0, 2, 3), keepdims=True)[0]
    close(norm(x), t - mean + array(norm.shift))
    close(norm.running_mean, 0.001 * mean)
    with layers.moments_kept(norm):
        norm(x)
    close(norm.running_mean, 0.001 * mean)
    close(norm.eval()(x), t - 0.001 * mean + array(norm.shift))


def test_the_start_of_mean_only_norm_gives_outputs_the_deviation_1():
    norm, x = MeanOnlyNorm(3, 4, 3, 1), 2 + 3 * torch.randn(6, 3, 5, 5)
    with torch.no_grad(), layers.data_dependent_start(norm):
        started = norm(x)
    close(norm(x), started)
    close(norm(x).std((0, 2, 3), correction=0), np.ones(4))


@pytest.mark.parametrize("shape", [(50, 4), (6, 4, 3, 3)])
def test_batch_norm_with_a_shift_has_no_gain(shape):
    kind, h = (nn.BatchNorm1d, nn.BatchNorm2d)[len(shape) == 4], 2 + 3 * torch.randn(shape)
    whole, wrapped = layers.shift_norm(4, kind), ShiftNorm(kind(4, eps=1e-6, affine=False))
    assert [n for n, _ in whole.named_parameters()] == ["bias"]
    assert [n for n, _ in wrapped.named_parameters()] == ["shift"]
    whole.bias.data.normal_()
    wrapped.shift.data.copy_(whole.bias)
    axes, by = (0, 2, 3)[: len(shape) - 1], (1, 4, 1, 1)[: len(shape)]
    a = array(h)
    expected = (a - a.mean(axes, keepdims=True)) / np.sqrt(a.var(axes, keepdims=True) + 1e-6)
    for norm in (whole, wrapped):
        close(norm(h), expected + array(whole.bias).reshape(by))
        assert not torch.equal(norm.eval()(h), norm.train()(h))


def test_conditional_batch_norm_has_gains_and_shifts_by_class():
    norm, h, y = ConditionalBatchNorm(3, 5, eps=0.1), torch.randn(6, 3, 4, 4), torch.tensor([0, 4, 4, 2, 1, 0])
    plain = nn.BatchNorm2d(3, eps=0.1)
    close(norm(h, F.one_hot(y, 5).float()), plain(h))  # gain 1 and shift 0 at the start
    norm.gain.weight.data.normal_()
    norm.shift.weight.data.normal_()
    a, gain, shift = array(h), 1 + array(norm.gain.weight), array(norm.shift.weight)
    expected = np.empty_like(a)
    for n in range(6):
        for c in range(3):
            centred = a[n, c] - a[:, c].mean()
            expected[n, c] = gain[c, y[n]] * centred / np.sqrt(a[:, c].var() + 0.1) + shift[c, y[n]]
    close(norm(h, F.one_hot(y, 5).float()), expected)


def test_conditional_batch_norm_uses_running_moments_in_evaluation():
    norm, plain = ConditionalBatchNorm(3, 2, momentum=0.3), nn.BatchNorm2d(3, momentum=0.3)
    c = torch.randn(6, 2)
    for _ in range(3):
        h = 1 + torch.randn(6, 3, 4, 4)
        norm(h, c)
        plain(h)
    close(norm.eval()(h, c), plain.eval()(h))


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 2, 4)])
def test_pixel_norm_gives_every_pixel_the_mean_square_1(shape):
    x = 7 * torch.randn(shape)
    a = array(x)
    expected = np.empty_like(a)
    for n in range(3):
        for at in np.ndindex(shape[2:]):
            v = a[(n, slice(None), *at)]
            expected[(n, slice(None), *at)] = v / math.sqrt(np.mean(v**2) + 1e-8)
    close(PixelNorm()(x), expected)
    assert torch.equal(PixelNorm()(torch.zeros(shape)), torch.zeros(shape))
    close(PixelNorm(eps=3.0)(torch.ones(shape)), np.full(shape, 0.5))


# --- Layers that look at the batch ---


def test_minibatch_discrimination_is_the_sum_over_the_other_images():
    layer, h = MinibatchDiscrimination(6, 3, 5), torch.randn(4, 6)
    layer.log_scale.data.normal_(0, 0.3)
    layer.bias.data.normal_()
    theta, scale = array(layer.theta), np.exp(array(layer.log_scale))
    expected = np.zeros((4, 3))
    for b in range(3):
        rows = theta[b] / np.linalg.norm(theta[b], axis=1, keepdims=True) * scale[b][:, None]  # 5 x 6
        m = array(h) @ rows.T
        for i in range(4):
            expected[i, b] = sum(np.exp(-np.abs(m[i] - m[j]).sum()) for j in range(4) if j != i)
    out = layer(h)
    assert out.shape == (4, 6 + 3)
    assert torch.equal(out[:, :6], h)
    close(out[:, 6:], expected + array(layer.bias))
    assert (MinibatchDiscrimination(6, 3, 5).bias == -1).all()


def test_the_start_of_minibatch_discrimination_sets_distances_and_the_mean_feature():
    layer, h = MinibatchDiscrimination(6, 3, 5), 4 * torch.randn(30, 6)
    with layers.data_dependent_start(layer):
        layer(h)
    d = layer.distances(h) + torch.full((30,), math.inf).diag()
    close(0.5 * d.amin(2).mean(1), np.ones(3), atol=0)
    close(layer(h)[:, 6:].mean(0), np.zeros(3), atol=1e-4)


def minibatch_std(h, size):
    """By loops, as in TensorFlow: reshape to [size, N / size, ...], then one number for each group."""
    n, joined = len(h), np.empty((len(h), 1, *h.shape[2:]))
    for group in range(n // size):
        members = [k * (n // size) + group for k in range(size)]
        deviations = [
            math.sqrt(np.var([h[(m, *at)] for m in members]) + 1e-8) for at in np.ndindex(h.shape[1:])
        ]
        joined[members] = np.mean(deviations)
    return np.concatenate([h, joined], 1)


@pytest.mark.parametrize(("n", "group", "size"), [(8, 4, 4), (8, 0, 8), (3, 4, 3), (6, 4, 3), (1, 4, 1), (5, 4, 1)])
def test_minibatch_std_is_one_number_for_each_group(n, group, size):
    h = torch.randn(n, 3, 2, 2)
    close(MinibatchStd(group)(h), minibatch_std(array(h), size), atol=2e-6)


def test_minibatch_std_of_equal_images_is_the_root_of_its_epsilon():
    out = MinibatchStd()(torch.randn(1, 3, 2, 2).expand(4, -1, -1, -1))
    close(out[:, 3:], np.full((4, 1, 2, 2), 1e-4))
    assert MinibatchStd()(torch.randn(4, 3, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


# --- Layers that look at all pixels ---


@pytest.mark.parametrize("pooled", [True, False])
def test_self_attention_is_the_sum_over_pixels_of_its_equations(pooled):
    layer, h = SelfAttention(16, pooled), torch.randn(2, 16, 4, 4)
    assert torch.equal(layer(h), h)  # gamma starts at 0
    layer.gamma.data.fill_(0.7)
    a = array(h)

    def maps(conv, pool):
        out = np.einsum("oc,nchw->nohw", array(conv.weight)[:, :, 0, 0], a)
        return out.reshape(2, -1, 2, 2, 2, 2).max((3, 5)) if pool else out

    queries, keys, values = maps(layer.theta, False), maps(layer.phi, pooled), maps(layer.g, pooled)
    expected = a.copy()
    for n in range(2):
        k, v = keys[n].reshape(2, -1), values[n].reshape(8, -1)
        for at in np.ndindex(4, 4):
            scores = np.exp(queries[(n, slice(None), *at)] @ k)
            read = v @ (scores / scores.sum())
            expected[(n, slice(None), *at)] += 0.7 * array(layer.out.weight)[:, :, 0, 0] @ read
    close(layer(h), expected)


def test_self_attention_is_torchs_without_the_scale():
    layer, h = SelfAttention(16, pooled=False), torch.randn(2, 16, 4, 4)
    layer.gamma.data.fill_(1.0)
    q, k, v = (c(h).flatten(2).transpose(1, 2) for c in (layer.theta, layer.phi, layer.g))
    read = F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).unflatten(2, (4, 4))
    close(layer(h), h + layer.out(read))


# --- Resampling ---


def test_doubling_repeats_and_halving_averages():
    h = torch.randn(2, 3, 4, 6)
    np.testing.assert_array_equal(array(layers.double(h)), array(h).repeat(2, 2).repeat(2, 3))
    close(layers.halve(h), array(h).reshape(2, 3, 2, 2, 3, 2).mean((3, 5)))
    close(layers.halve(layers.double(h)), h)


@pytest.mark.parametrize("size", [5, 8, 16])
def test_bilinear_enlargement_is_pillows(size):
    h = torch.randn(5, 5)
    theirs = Image.fromarray(h.numpy()).resize((size, size), Image.Resampling.BILINEAR)
    close(layers.bilinear(h[None, None], size)[0, 0], np.asarray(theirs))


def test_bilinear_reduction_interpolates_between_the_four_nearest_pixels():
    h = torch.randn(7, 7)
    at = (np.arange(4) + 0.5) * 7 / 4 - 0.5
    grid = np.stack(np.meshgrid(at, at, indexing="ij"))
    close(layers.bilinear(h[None, None], 4)[0, 0], ndimage.map_coordinates(array(h), grid, order=1))


@pytest.mark.parametrize("taps", [(1, 2, 1), (1, 4, 6, 4, 1)])
@pytest.mark.parametrize("way", ["", "up", "down"])
def test_blur_is_scipys_convolution(taps, way):
    h = torch.randn(2, 3, 6, 8)
    kernel = np.outer(taps, taps) / np.sum(taps) ** 2
    a = array(h).repeat(2, 2).repeat(2, 3) if way == "up" else array(h)
    expected = np.stack([[ndimage.convolve(m, kernel, mode="constant") for m in image] for image in a])
    if way == "down":
        expected = expected.reshape(2, 3, 3, 2, 4, 2).mean((3, 5))
    blur = Blur(taps, up=way == "up", down=way == "down")
    close(blur(h), expected)
    assert not blur.state_dict()


def test_a_blur_keeps_constants_inside_and_removes_the_finest_pattern():
    inside = (..., slice(1, -1), slice(1, -1))
    close(Blur()(torch.ones(1, 2, 6, 6))[inside], np.ones((1, 2, 4, 4)))
    chequered = torch.tensor([[(-1.0) ** (i + j) for i in range(6)] for j in range(6)])[None, None]
    close(Blur()(chequered)[inside], np.zeros((1, 1, 4, 4)), atol=1e-6)
    assert Blur(up=True)(chequered.bfloat16()).dtype == torch.bfloat16


# --- Residual blocks ---


def conv(x, layer):
    return F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)


def repeated(x):
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def pooled(x):
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def shaken(net):
    """The net with every parameter away from its start."""
    for p in net.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    return net


@pytest.mark.parametrize("condition", [0, 5])
def test_the_up_block_is_its_formula(condition):
    block, h = shaken(UpBlock(4, 6, condition, eps=0.01)), torch.randn(3, 4, 5, 5)
    c = torch.randn(3, 5) if condition else None

    def norm(layer, t):
        t = (t - t.mean((0, 2, 3), keepdim=True)) / (t.var((0, 2, 3), correction=0, keepdim=True) + 0.01).sqrt()
        if condition:
            gain, shift = 1 + c @ layer.gain.weight.T, c @ layer.shift.weight.T
        else:
            gain, shift = layer.weight[None], layer.bias[None]
        return gain[..., None, None] * t + shift[..., None, None]

    r = conv(repeated(norm(block.norm1, h).clamp(min=0)), block.conv1)
    r = conv(norm(block.norm2, r).clamp(min=0), block.conv2)
    expected = r + conv(repeated(h), block.shortcut)
    assert expected.shape == (3, 6, 10, 10)
    close(block(h, c) if condition else block(h), expected, rtol=1e-3, atol=1e-4)


def test_blocks_that_keep_the_size_have_a_shortcut_only_for_a_change_of_width():
    h = torch.randn(3, 4, 6, 6)
    for block in (UpBlock(4, 4, up=False), DownBlock(4, 4, down=False)):
        assert isinstance(block.shortcut, nn.Identity)
        nn.init.zeros_(block.conv2.weight)
        assert torch.equal(block(h), h)
    for block in (UpBlock(4, 5, up=False), DownBlock(4, 5, down=False)):
        assert block(h).shape == (3, 5, 6, 6)
        assert isinstance(block.shortcut, nn.Conv2d)
    for block in (UpBlock(4, 4), DownBlock(4, 4)):
        assert isinstance(block.shortcut, nn.Conv2d)


@pytest.mark.parametrize("hidden", [0, 6])
def test_the_down_block_is_its_formula(hidden):
    block, h = shaken(DownBlock(4, 6, hidden=hidden)), torch.randn(3, 4, 8, 8)
    assert block.conv1.out_channels == (hidden or 4)
    r = conv(conv(h.clamp(min=0), block.conv1).clamp(min=0), block.conv2)
    close(block(h), pooled(r) + pooled(conv(h, block.shortcut)))


def test_the_first_block_of_a_discriminator_is_its_formula():
    block, x = shaken(FirstDownBlock(3, 6)), torch.randn(3, 3, 8, 8)
    r = conv(conv(x, block.conv1).clamp(min=0), block.conv2)
    close(block(x), pooled(r) + conv(pooled(x), block.shortcut))


def test_the_blocks_start_with_glorots_weights_and_the_gain_root_2_in_3x3_convolutions():
    for block in (UpBlock(40, 60), DownBlock(40, 60), FirstDownBlock(40, 60)):
        for layer in (block.conv1, block.conv2, block.shortcut):
            o, i, k, _ = layer.weight.shape
            a = (math.sqrt(2) if k == 3 else 1) * math.sqrt(6 / (k * k * (o + i)))
            assert stats.kstest(array(layer.weight).ravel(), stats.uniform(-a, 2 * a).cdf).pvalue > 1e-3
            assert not layer.bias.any()


def test_spectral_norm_reaches_all_three_convolutions_of_a_block():
    block = layers.spectral_norm(DownBlock(4, 6))
    assert sum(nn.utils.parametrize.is_parametrized(m) for m in block.modules()) == 3
    assert block(torch.randn(2, 4, 8, 8)).shape == (2, 6, 4, 4)


# --- Whitening ---


def test_whitened_images_have_the_covariance_s_over_s_plus_epsilon():
    zca, x = ZCA((2, 3, 3), eps=0.1), torch.randn(500, 2, 3, 3) @ torch.randn(3, 3)
    assert torch.equal(zca(x), x)  # before the fit
    zca.fit(x.split(200))
    white = array(zca(x)).reshape(500, -1)
    flat = array(x).reshape(500, -1)
    s, u = np.linalg.eigh(np.cov(flat.T, bias=True))
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(white.T, bias=True), u * (s / (s + 0.1)) @ u.T, atol=1e-4)
    np.testing.assert_allclose(array(zca.matrix), array(zca.matrix).T, atol=1e-5)  # ZCA: the symmetric root
    expected = (flat - flat.mean(0)) @ u / np.sqrt(s + 0.1) @ u.T
    np.testing.assert_allclose(white, expected, rtol=1e-3, atol=1e-4)


def test_whitening_by_a_handful_of_images_agrees_with_that_by_their_covariance():
    x = torch.randn(5, 2, 3, 3)
    few, many = ZCA((2, 3, 3), eps=0.1), ZCA((2, 3, 3), eps=0.1)
    few.fit([x])
    many.fit(x.repeat(4, 1, 1, 1).split(10))  # the same moments from more images than dimensions
    close(few.matrix, many.matrix, rtol=1e-4, atol=1e-5)
    close(few.mean, many.mean)


# --- All layers ---


class OfOne(nn.Module):
    """A layer of two inputs, the second of which is fixed."""

    def __init__(self, layer, second):
        super().__init__()
        self.layer, self.second = layer, second

    def forward(self, h):
        return self.layer(h, self.second.to(h))


MAKE = {
    "maxout": (lambda: Maxout(2), (2, 4, 3)),
    "weight norm": (lambda: WeightNorm(nn.Conv2d(3, 2, 3), scaled=True), (2, 3, 4, 4)),
    "started weight norm": (lambda: StartedWeightNorm(nn.Linear(3, 2, bias=False), True), (4, 3)),
    "mean-only norm": (lambda: MeanOnlyNorm(3, 2, 3, 1), (2, 3, 4, 4)),
    "shift norm": (lambda: ShiftNorm(nn.BatchNorm2d(3, affine=False)), (2, 3, 4, 4)),
    "shift norm of torch": (lambda: layers.shift_norm(3), (4, 3)),
    "minibatch discrimination": (lambda: MinibatchDiscrimination(6, 3, 2), (4, 6)),
    "minibatch std": (MinibatchStd, (4, 2, 2, 2)),
    "pixel norm": (PixelNorm, (2, 3, 2, 2)),
    "self-attention": (lambda: SelfAttention(8), (1, 8, 4, 4)),
    "spectral norm": (lambda: layers.spectral_norm(nn.Conv2d(3, 2, 3)), (2, 3, 4, 4)),
    "equalised linear": (lambda: EqualisedRate(nn.Linear(3, 2), rate=0.1), (4, 3)),
    "equalised convolution": (lambda: EqualisedRate(nn.Conv2d(3, 2, 3)), (2, 3, 4, 4)),
    "equalised transposed": (lambda: EqualisedRate(nn.ConvTranspose2d(3, 2, 4, 2, 1)), (2, 3, 2, 2)),
    "blur": (Blur, (1, 2, 4, 4)),
    "blur up": (lambda: Blur(up=True), (1, 2, 2, 2)),
    "blur down": (lambda: Blur(down=True), (1, 2, 4, 4)),
    "up block": (lambda: UpBlock(2, 3), (2, 2, 2, 2)),
    "down block": (lambda: DownBlock(2, 3), (2, 2, 4, 4)),
    "first down block": (lambda: FirstDownBlock(2, 3), (2, 2, 4, 4)),
    "spectral down block": (lambda: layers.spectral_norm(DownBlock(2, 2)), (2, 2, 2, 2)),
    "zca": (lambda: ZCA((2, 2, 2)), (3, 2, 2, 2)),
    "adaptive instance norm": (lambda: OfOne(layers.AdaIN(3, 2), torch.ones(2, 2)), (2, 3, 2, 2)),
    "noise input": (lambda: OfOne(layers.NoiseInput(3), torch.ones(1, 1, 2, 2)), (2, 3, 2, 2)),
}
UNDER_A_PENALTY = [  # what stands in the discriminators that a gradient penalty meets
    "maxout", "minibatch std", "pixel norm", "self-attention", "spectral norm", "equalised linear",
    "equalised convolution", "equalised transposed", "blur", "blur up", "blur down", "down block", "first down block",
    "spectral down block", "weight norm",
]


@pytest.mark.parametrize("name", UNDER_A_PENALTY)
def test_second_derivatives_are_right(name):
    make, shape = MAKE[name]
    layer = shaken(make().double().eval())  # in evaluation spectral norm takes no power iteration
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(layer, x)


@pytest.mark.parametrize("name", UNDER_A_PENALTY)
def test_a_gradient_penalty_reaches_the_weights(name):
    make, shape = MAKE[name]
    layer = shaken(make()).train()
    x = torch.randn(shape, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    (gradient.square().sum().sqrt() - 1).square().backward()
    weights = [p for n, p in layer.named_parameters() if "bias" not in n]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in weights)


@pytest.mark.parametrize("name", MAKE)
def test_a_state_dict_restores_the_layer_and_a_copy_equals_it(name):
    make, shape = MAKE[name]
    layer, x = shaken(make()), torch.randn(shape)
    for _ in range(3):
        layer(1 + x)  # moves running moments and power iterations
    if isinstance(layer, ZCA):
        layer.fit([x])
    other = make()
    other.load_state_dict(copy.deepcopy(layer.state_dict()))
    twin = copy.deepcopy(layer)
    out = layer.eval()(x)
    assert torch.equal(other.eval()(x), out)
    assert torch.equal(twin.eval()(x), out)
    if list(layer.parameters()):
        assert not torch.equal(shaken(make()).eval()(x), out)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 9), group=st.integers(0, 5), channels=st.integers(1, 3), side=st.integers(1, 3),
    scale=st.floats(0.5, 4),
)
def test_minibatch_std_is_the_loop_for_every_shape_and_scales_with_its_input(n, group, channels, side, scale):
    h = torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(n))
    size = max(k for k in range(1, (min(group, n) if group else n) + 1) if n % k == 0)
    out = MinibatchStd(group)(h)
    close(out, minibatch_std(array(h), size), atol=2e-6)
    close(MinibatchStd(group)(scale * h)[:, -1], scale * array(out[:, -1]), atol=4e-4)


@settings(max_examples=25, deadline=None)
@given(half=st.integers(1, 4), channels=st.integers(1, 3))
def test_resampling_keeps_the_mean_of_an_image(half, channels):
    h = torch.randn(2, channels, 2 * half, 2 * half, generator=torch.Generator().manual_seed(half))
    for of in (layers.double, layers.halve, lambda t: layers.bilinear(t, 4 * half)):
        close(of(h).mean((2, 3)), h.mean((2, 3)), atol=1e-5)
