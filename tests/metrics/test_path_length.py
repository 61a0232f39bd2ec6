"""Perceptual path length against closed forms of linear generators, float64 and torch-fidelity."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ganbench.metrics import Inputs, Model, Side, Space, Unavailable, path_length
from ganbench.metrics.path_length import path_lengths, perceptual_path_length, slerp, trimmed

NOTHING = Side(torch.zeros(0, 1, 1, 1, dtype=torch.uint8))
D, EDGE = 6, 8


def latents(n, seed, d=D):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def orthogonal(d=D):
    """Return an EDGE^2 x d matrix with orthonormal columns: a linear generator that preserves lengths."""
    return torch.linalg.qr(torch.randn(EDGE**2, d, generator=torch.Generator().manual_seed(7)).double()).Q.float()


def linear(z, y=None):
    # The offset gives values of the size of real images, so that float32 rounds them in the same way.
    return (z @ orthogonal(z.shape[1]).T).view(-1, 1, EDGE, EDGE) / 5 + 0.2


def pixels(images):
    assert images.dtype == torch.float32
    return images.flatten(1) / 127.5, None


def measure(generate=linear, embed=pixels, num_classes=0, seed=0, end=False, d=D):
    model = Model("test", num_classes, sample_latent=lambda n, g: torch.randn(n, d, generator=g), generate=generate)
    inputs = Inputs(NOTHING, NOTHING, None, torch.Generator().manual_seed(seed), model=model, embed=embed)
    [value] = path_length.PROTOCOLS[end].compute(inputs)
    return value


def speeds(a, b):
    """Return |d slerp / dt|^2 at t = 0: the squared arc length plus the squared change of length."""
    a, b = a.double(), b.double()
    omega = torch.nn.functional.cosine_similarity(a, b).acos()
    return (omega * a.norm(dim=1)).square() + (b.norm(dim=1) - a.norm(dim=1)).square()


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(path_length, "PATHS", 400)


# --- The path


@given(seed=st.integers(0, 1000), t=st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_slerp_has_constant_speed_along_the_great_circle(seed, t):
    a, b = latents(5, seed).double(), latents(5, seed + 1).double()
    z = slerp(a, b, torch.full((5,), t, dtype=torch.float64))
    assert z.norm(dim=1).numpy() == pytest.approx(((1 - t) * a.norm(dim=1) + t * b.norm(dim=1)).numpy(), rel=1e-9)
    total, part = (torch.nn.functional.cosine_similarity(a, x).clamp(-1, 1).acos().numpy() for x in (b, z))
    assert part == pytest.approx(t * total, abs=1e-6)


def test_slerp_is_the_official_path_for_a_generator_that_normalises():
    a, b, t = latents(20, 0).double(), latents(20, 1).double(), torch.rand(20, dtype=torch.float64)

    def unit(v):
        return v / np.sqrt((v**2).sum(-1, keepdims=True))

    u, v = unit(a.numpy()), unit(b.numpy())
    dot = (u * v).sum(-1, keepdims=True)
    angle = t.numpy()[:, None] * np.arccos(dot)
    official = unit(u * np.cos(angle) + unit(v - dot * u) * np.sin(angle))
    assert unit(slerp(a, b, t).numpy()) == pytest.approx(official, abs=1e-12)


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0, 0.0])
def test_slerp_between_parallel_latents_is_a_straight_line(factor):
    a = latents(4, 0).double()
    assert torch.allclose(slerp(a, factor * a, torch.full((4,), 0.25)), a + 0.25 * (factor - 1) * a)


# --- The distances


def test_path_lengths_of_a_linear_generator_equal_the_closed_form_in_float32():
    a, b = latents(2000, 0, 100), latents(2000, 1, 100)
    t = torch.zeros(2000, dtype=torch.float64)
    ours, exact = path_lengths(lambda z, y: linear_of(z), pixels, a, b, t), speeds(a, b) * 16 / 25
    assert ours.mean().item() == pytest.approx(exact.mean().item(), rel=2e-4)
    # The finite step contributes 1e-4: the closed form is the speed at 0.
    assert (ours / exact - 1).abs().max() < 5e-3


def linear_of(z):
    return (z @ WIDE.T).view(-1, 1, 16, 16) * 0.8


WIDE = torch.linalg.qr(torch.randn(256, 100, generator=torch.Generator().manual_seed(7)).double()).Q.float()


def test_rounding_images_to_grey_levels_changes_the_metric():
    a, b, t = latents(300, 0), latents(300, 1), torch.rand(300, dtype=torch.float64)
    exact = path_lengths(linear, pixels, a, b, t)
    rounded = path_lengths(linear, lambda x: pixels(x.round()), a, b, t)
    assert rounded.mean() > 10 * exact.mean()


def test_a_batch_boundary_changes_nothing(monkeypatch):
    a, b, t, y = latents(25, 0), latents(25, 1), torch.rand(25, dtype=torch.float64), torch.arange(25)
    whole = path_lengths(of_class, pixels, a, b, t, y)
    monkeypatch.setattr(path_length, "BATCH", 10)
    assert path_lengths(of_class, pixels, a, b, t, y).numpy() == pytest.approx(whole.numpy(), rel=1e-2)


def of_class(z, y):
    return linear(z) * (1 + y.float()).view(-1, 1, 1, 1) / 26


def test_both_ends_of_a_step_have_the_same_class():
    a, b, t, y = latents(25, 0), latents(25, 1), torch.zeros(25, dtype=torch.float64), torch.arange(25)
    expected = speeds(a, b) / 25 * ((1 + y.double()) / 26) ** 2
    assert path_lengths(of_class, pixels, a, b, t, y).numpy()[5:] == pytest.approx(expected.numpy()[5:], rel=2e-2)


@pytest.mark.parametrize("trim", [True, False])
def test_path_lengths_equal_torch_fidelity_for_the_same_latents(trim, monkeypatch):
    import torch_fidelity
    from torch_fidelity.registry import SAMPLE_SIMILARITY_REGISTRY
    from torch_fidelity.sample_similarity_base import SampleSimilarityBase

    class Pixels(SampleSimilarityBase):
        def __init__(self, name, **kwargs):
            super().__init__(name)

        def forward(self, x, y):
            return (pixels((y + 1) * 127.5)[0].double() - pixels((x + 1) * 127.5)[0].double()).square().sum(1)

    class Tanh(torch.nn.Module):
        def forward(self, z):
            return linear(3 * z).tanh()

    n = 1000
    monkeypatch.setitem(SAMPLE_SIMILARITY_REGISTRY, "test-pixels", Pixels)
    percentile = np.percentile  # NumPy has renamed an argument that torch-fidelity uses
    monkeypatch.setattr(np, "percentile", lambda x, q, interpolation: percentile(x, q, method=interpolation))
    theirs = torch_fidelity.calculate_metrics(
        input1=torch_fidelity.GenerativeModelModuleWrapper(Tanh(), D, "unit", 0), input1_model_num_samples=n,
        ppl=True, ppl_sample_similarity="test-pixels", ppl_z_interp_mode="slerp_any", cuda=False, verbose=False,
        ppl_reduction="none", rng_seed=3, **({} if trim else dict.fromkeys(DISCARD)),
    )
    rng = np.random.RandomState(3)  # torch-fidelity's latents: uniform, normalised to length 1
    a, b = (torch.from_numpy(rng.rand(n, D)).float() for _ in range(2))
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
    ours = path_lengths(lambda z, y: Tanh()(z), pixels, a, b, torch.zeros(n, dtype=torch.float64))
    # torch-fidelity's slerp is in float32 with steps of 1e-4: single paths differ by about 1e-3.
    if trim:
        assert perceptual_path_length(ours)[0] == pytest.approx(theirs["perceptual_path_length_mean"], rel=1e-3)
        assert int(trimmed(ours).sum()) == len(theirs["perceptual_path_length_raw"])
    else:
        assert ours.numpy() == pytest.approx(theirs["perceptual_path_length_raw"], rel=2e-2)
        assert ours.mean().item() == pytest.approx(theirs["perceptual_path_length_mean"], rel=1e-3)


DISCARD = ("ppl_discard_percentile_lower", "ppl_discard_percentile_higher")


# --- The trimmed mean


@pytest.mark.parametrize("n", [2, 50, 100, 101, 1000])
def test_distances_outside_the_1st_to_99th_percentile_are_excluded_as_in_the_official_code(n):
    x = torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64).exp()
    low, high = np.percentile(x, 1, method="lower"), np.percentile(x, 99, method="higher")
    assert torch.equal(trimmed(x), (x >= low) & (x <= high))
    assert perceptual_path_length(torch.cat([x, x]))[0] == pytest.approx(perceptual_path_length(x)[0], rel=0.3)
    if n == 1000:
        assert int(trimmed(x).sum()) == 982


def test_one_extreme_path_does_not_change_the_value():
    x = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wild = x.clone()
    wild[x.argmax()] = 1e9
    assert perceptual_path_length(wild) == perceptual_path_length(x)


@pytest.mark.parametrize("draw", [torch.rand, lambda *a, **k: torch.randn(*a, **k).exp()], ids=["even", "skewed"])
def test_the_interval_of_the_standard_error_covers_the_truth(draw):
    g = torch.Generator().manual_seed(0)
    truth = perceptual_path_length(draw(2_000_000, generator=g, dtype=torch.float64))[0]
    runs = np.array([perceptual_path_length(draw(1000, generator=g, dtype=torch.float64)) for _ in range(200)])
    covered = np.mean(abs(runs[:, 0] - truth) <= 1.96 * runs[:, 1])
    assert 0.90 <= covered <= 0.99


# --- The protocols


def test_both_protocols_equal_the_closed_forms_of_a_linear_generator(few):
    for end in (False, True):
        g = torch.Generator().manual_seed(3)
        a, b = torch.randn(400, D, generator=g), torch.randn(400, D, generator=g)
        t = torch.rand(400, generator=g, dtype=torch.float64) * (not end)
        length = a.double().norm(dim=1) * (1 - t) + b.double().norm(dim=1) * t
        omega = torch.nn.functional.cosine_similarity(a.double(), b.double()).acos()
        exact = ((omega * length).square() + (b.norm(dim=1) - a.norm(dim=1)).square()) / 25
        value = measure(seed=3, end=end)
        assert value.value == pytest.approx(exact[trimmed(exact)].mean().item(), rel=2e-3)
        assert value.details["rounding"] < 5e-3
        assert (value.n_real, value.n_fake, value.warnings) == (0, 400, ())
    assert [p.stem for p in path_length.PROTOCOLS] == ["ppl", "ppl_end"]


def test_each_latent_space_has_its_value_on_paths_between_the_images_of_the_same_latents(few):
    """w = z / |z| diag(1, 2, ...): straight paths in W have the length |w2 - w1|. The value in Z stays the same."""
    def of(z, y):
        return z / z.norm(dim=1, keepdim=True) * torch.arange(1.0, D + 1)

    spaces = (Space("z", lambda z, y: z, linear), Space("w", of, linear, straight=True))
    model = Model("test", sample_latent=lambda n, g: torch.randn(n, D, generator=g), latent_spaces=spaces)
    inputs = Inputs(NOTHING, NOTHING, None, torch.Generator().manual_seed(3), model=model, embed=pixels)
    in_z, in_w = path_length.PROTOCOLS[0].compute(inputs)
    assert (in_z, in_z.suffix, in_w.suffix) == (measure(seed=3), "", "@w")
    g = torch.Generator().manual_seed(3)
    a, b = (of(torch.randn(400, D, generator=g), None).double() for _ in range(2))
    exact = (b - a).square().sum(1) / 25
    assert in_w.value == pytest.approx(exact[trimmed(exact)].mean().item(), rel=2e-3)

    noisy = Space("w", of, lambda w, y: linear(w) + torch.randn(len(w), 1, EDGE, EDGE), straight=True)
    inputs = replace(inputs, generator=torch.Generator().manual_seed(3),
                     model=replace(model, latent_spaces=(spaces[0], noisy)))
    [alone] = path_length.PROTOCOLS[0].compute(inputs)
    assert alone.value == in_z.value
    assert "no value in W: " in alone.warnings[0]


def test_a_generator_with_three_times_the_change_has_nine_times_the_value(few):
    once, thrice = measure(), measure(lambda z, y: 3 * (linear(z) - 0.2))
    assert thrice.value == pytest.approx(9 * once.value, rel=2e-3)


def test_a_generator_of_one_image_has_length_zero(few):
    value = measure(lambda z, y: torch.zeros(len(z), 1, EDGE, EDGE))
    assert (value.value, value.uncertainty, value.details["rounding"]) == (0, None, 0)
    assert value.warnings == ("no uncertainty is known: all paths have one length",)


def coarse(step, z, y=None):
    return (linear(z) / step).round() * step


def test_the_share_of_rounding_is_measured_and_gives_a_warning(few):
    # The rounding error of a difference of two rounded values has a variance of step^2 / 6 per pixel.
    exact = measure().value
    for share, warned in ((0.002, False), (0.05, True)):
        step = math.sqrt(share * exact * 6 * path_length.EPSILON**2 / EDGE**2)
        value = measure(partial(coarse, step))
        assert value.value == pytest.approx(exact * (1 + share), rel=0.01)
        assert value.details["rounding"] == pytest.approx(share, abs=0.01)
        assert bool(value.warnings) == warned
    assert "of the value is rounding" in value.warnings[0]


def test_an_extractor_that_rounds_and_a_generator_with_noise_are_unavailable(few):
    with pytest.raises(Unavailable, match="of the path length is rounding or noise"):
        measure(embed=lambda x: pixels(x.round()))
    with pytest.raises(Unavailable, match="of the path length is rounding or noise"):
        measure(lambda z, y: linear(z) + 1e-3 * torch.randn(len(z), 1, EDGE, EDGE))


def test_all_classes_are_drawn_uniformly(few):
    asked = []
    measure(lambda z, y: asked.append(y) or linear(z), num_classes=4)
    counts = torch.cat(asked[:1]).bincount(minlength=4)
    assert len(counts) == 4
    assert counts.min() > 0.7 * counts.float().mean()


def test_features_that_are_not_finite_are_unavailable(few):
    with pytest.raises(Unavailable, match="not finite"):
        measure(lambda z, y: linear(z) * math.nan)


def test_latents_of_one_dimension_have_a_path_length(few):
    value = measure(lambda z, y: z.view(-1, 1, 1, 1).expand(-1, 1, EDGE, EDGE) / EDGE, d=1)
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(400, 1, generator=g), torch.randn(400, 1, generator=g)
    exact = (a - b).double()[:, 0].square()
    assert value.value == pytest.approx(exact[trimmed(exact)].mean().item(), rel=2e-3)
