"""AC-GAN's figures from a stored result: the panels hold the result's numbers, and the picture is drawn from them."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ganbench.base.errors import UserError
from ganbench.metrics import Inputs, Side, discriminability
from ganbench.reporting import results
from ganbench.reporting.figures import (
    ACGAN,
    acgan_figures,
    acgan_panels,
    held,
    histogram,
    shares,
    truncation_curves,
    truncation_figures,
)
from ganbench.reporting.results import Measurement, Result

EXTRACTOR = {"name": "small-cnn@123", "sha256": "0"}


def side(seed, n=80, classes=5):
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    images = torch.randint(256, (n, 1, 16, 16), generator=g, dtype=torch.uint8)
    images[labels == 0] = images[0].clone()
    images[:30] //= 2
    answers = torch.nn.functional.one_hot(labels, classes)

    def logits(weight):
        return torch.randn(n, classes, generator=g) + weight * answers

    return Side(images, labels, None, logits(2), {8: logits(1), 4: logits(0.5)})


def measured(fake, real):
    out = []
    for p in discriminability.PROTOCOLS:
        name = p.stem + ("_small-cnn@123" if p.needs_extractor else "")
        for v in p.compute(Inputs(real, fake, None, torch.Generator().manual_seed(0))):
            out.append(Measurement(name + v.suffix, f"{p.stem}/1: {p.summary}", p.direction, v.value,
                                   vars(v.uncertainty), extractor=EXTRACTOR if p.needs_extractor else None,
                                   details=v.details))
    return out


@pytest.fixture
def result(tmp_path):
    """A result that was stored and read again."""
    fake, real, held_out = side(0), side(1), side(2)
    made = Result({}, {}, measured(fake, real), real=measured(held_out, real))
    results.save(made, tmp_path / "result.json")
    return results.load(tmp_path / "result.json")


def test_the_panels_hold_the_numbers_of_the_result(result):
    panels = acgan_panels(result)
    by_name = {m.metric: m for m in result.measurements}
    accuracy = by_name["discriminability_small-cnn@123"]
    assert panels.resolutions == ["4", "8", "native"]
    assert panels.accuracy[2] == (accuracy.value, accuracy.error)
    assert panels.accuracy[0][0] == by_name["discriminability_small-cnn@123@4"].value
    assert panels.real[1][0] == next(m.value for m in result.real if m.metric.endswith("@8"))

    assert panels.reduced == "8"
    assert len(panels.gain) == 5
    gaining = by_name["gaining_classes_small-cnn@123@8"]
    assert np.mean([native > reduced for reduced, native in panels.gain]) == gaining.value == panels.share_gaining[0]

    diverse = by_name["diverse_classes"]
    assert max(real for real, _ in panels.alike) == panels.threshold
    assert np.mean([fake < panels.threshold for _, fake in panels.alike]) == diverse.value == panels.share_diverse[0]

    r = np.corrcoef(np.array(panels.against).T)[0, 1]
    assert panels.r[0] == pytest.approx(r, abs=1e-4)
    assert list(accuracy.details["per_class"].values()) == [native for _, native in panels.gain]
    assert [x for x, _ in panels.against] == [native for _, native in panels.gain]


def test_the_picture_is_a_png_with_something_in_each_quarter_and_the_same_every_time(result, tmp_path):
    for name in ("a.png", "b.png"):
        acgan_figures(result, tmp_path / "deep" / name)
    picture = np.array(Image.open(tmp_path / "deep" / "a.png").convert("L"))
    assert (tmp_path / "deep" / "a.png").read_bytes() == (tmp_path / "deep" / "b.png").read_bytes()
    h, w = picture.shape
    assert (w, h) == (1500, 1200)
    for rows in (slice(0, h // 2), slice(h // 2, h)):
        for columns in (slice(0, w // 2), slice(w // 2, w)):
            assert (picture[rows, columns] < 128).mean() > 0.005
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["a.png", "b.png"]


def test_without_a_row_of_real_data_it_is_drawn_all_the_same(result, tmp_path):
    alone = replace(result, real=[])
    assert acgan_panels(alone).real == []
    acgan_figures(alone, tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()


@pytest.mark.parametrize("stem", ACGAN)
def test_what_the_result_lacks_is_said_and_nothing_is_written(result, stem, tmp_path):
    others = [m for m in result.measurements if not m.protocol.startswith(stem + "/")]
    with pytest.raises(UserError, match=f"no '{stem}': evaluate with --metrics {','.join(ACGAN)}"):
        acgan_figures(replace(result, measurements=others), tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def without_value(result, stem):
    return replace(result, measurements=[
        replace(m, value=None, reason="for a reason") if m.protocol.startswith(stem + "/") else m
        for m in result.measurements
    ])


def test_without_a_discriminability_there_is_nothing_to_draw(result, tmp_path):
    with pytest.raises(UserError, match="no value of 'discriminability': for a reason"):
        acgan_figures(without_value(result, "discriminability"), tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("stem", ACGAN[1:])
def test_a_panel_without_a_value_says_why(result, stem, tmp_path):
    panels = acgan_panels(without_value(result, stem))
    assert panels.reasons == {stem: "for a reason"}
    assert [bool(panels.gain), bool(panels.alike), bool(panels.against)] == [stem != other for other in ACGAN[1:]]
    acgan_figures(without_value(result, stem), tmp_path / "without.png")
    acgan_figures(result, tmp_path / "with.png")
    assert (tmp_path / "without.png").read_bytes() != (tmp_path / "with.png").read_bytes()


def test_without_matplotlib_it_says_how_to_get_it(result, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'ganbench\[figures\]'"):
        acgan_figures(result, tmp_path / "a.png")


# --- The truncation curve ---


def truncated(stem, values, reason=""):
    """Measurements as `truncation_fd` and `truncation_score` name them; None is untruncated, and comes first."""
    return [Measurement(f"{stem}_small-cnn@123" + (f"@{t}" if t else ""), f"{stem}/1: of truncated samples", "lower",
                        None if reason else v, {"value": v / 10, "kind": "standard error", "over": "samples"},
                        extractor=EXTRACTOR, reason=reason) for t, v in values.items()]


FD, SCORE = {None: 20.0, 2.0: 18.0, 0.5: 25.0, 0.1: 70.0}, {None: 5.0, 2.0: 6.0, 0.5: 8.0, 0.1: 8.5}


def test_the_truncation_curves_hold_the_numbers_of_the_result_by_threshold():
    both = Result({}, {}, [*truncated("truncation_score", SCORE), *truncated("truncation_fd", FD)])
    fd, score = truncation_curves(both)
    assert (fd.metric, score.metric) == ("truncation_fd_small-cnn@123", "truncation_score_small-cnn@123")
    assert fd.untruncated == (20.0, 2.0)
    assert list(fd.points.items()) == [(0.1, (70.0, 7.0)), (0.5, (25.0, 2.5)), (2.0, (18.0, 1.8))]
    assert [v for v, _ in score.points.values()] == [8.5, 8.0, 6.0]
    edited = replace(both.measurements[-1], metric="truncation_fd_small-cnn@123@none")
    assert truncation_curves(Result({}, {}, [*both.measurements[:-1], edited]))[0].points.keys() == {0.5, 2.0}


def test_the_truncation_curve_is_drawn_with_one_metric_or_both(tmp_path):
    fd, score = truncated("truncation_fd", FD), truncated("truncation_score", SCORE)
    unmeasured = truncated("truncation_score", SCORE, "no classes")
    sizes = {}
    for name, measurements in {
        "both": fd + score, "one": fd, "unmeasured": fd + unmeasured, "other": score + fd[:2],
    }.items():
        truncation_figures(Result({}, {}, measurements), tmp_path / f"{name}.png")
        sizes[name] = Image.open(tmp_path / f"{name}.png").size
    assert sizes["both"][0] == 3 * sizes["one"][0]
    assert sizes["unmeasured"] == sizes["one"]
    assert (tmp_path / "both.png").read_bytes() != (tmp_path / "other.png").read_bytes()


def test_a_result_without_a_truncation_curve_says_how_to_get_one(result, tmp_path):
    with pytest.raises(UserError, match="no 'truncation_fd': evaluate with --metrics truncation_fd,truncation_score"):
        truncation_figures(result, tmp_path / "a.png")
    with pytest.raises(UserError, match="no value of 'truncation_score': no classes"):
        truncation_curves(Result({}, {}, truncated("truncation_score", SCORE, "no classes")))
    assert not (tmp_path / "a.png").exists()


def test_what_a_result_holds_decides_what_is_drawn(result):
    fd = truncated("truncation_fd", FD)
    assert held(result) == "acgan"
    assert held(Result({}, {}, fd)) == "truncation"
    assert held(Result({}, {}, [*fd, *result.measurements])) == "acgan"
    assert held(Result({}, {}, [])) == "acgan"


def test_a_histogram_shows_the_share_of_each_set_over_the_same_bins(tmp_path):
    g = np.random.default_rng(0)
    values = {"EBGAN": g.normal(3, 1, 24).tolist(), "GAN": g.normal(1, 2, 500).tolist()}
    edges, heights = shares(values, 20)
    every = np.concatenate(list(values.values()))
    np.testing.assert_allclose(edges, np.histogram_bin_edges(every, 20))
    for name, own in values.items():
        np.testing.assert_allclose(heights[name], np.histogram(own, np.histogram_bin_edges(every, 20))[0] / len(own))
    assert shares({"a": [2.0, 2.0]}, 4)[1] == {"a": [1.0, 0.0, 0.0, 0.0]}  # equal values are one bin
    histogram(values, tmp_path / "a.png", "score", "share")
    histogram({**values, "GAN": values["EBGAN"]}, tmp_path / "b.png", "score", "share")
    a, b = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")) for name in "ab")
    assert a.shape == b.shape == (750, 1200, 3)
    assert not np.array_equal(a, b)
