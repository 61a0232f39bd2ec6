"""Evaluation: names of metrics, one pass an extractor over each set, reasons for no value, the row of real data."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ganbench.base import registry
from ganbench.base.errors import UserError
from ganbench.data.sources import Samples
from ganbench.evaluation import measure
from ganbench.evaluation.feature_store import FeatureStore
from ganbench.evaluation.measure import evaluate, metric_name, parse_metrics
from ganbench.features import FeatureExtractor, Features
from ganbench.metrics import Inputs, Side

CPU = torch.device("cpu")


class Means(FeatureExtractor):
    """Row and column means as features, the first four as logits; it counts what it is given."""

    name = "inception-v3"
    sha256 = "0123456789abcdef"

    def __init__(self, official=True, classes=True):
        super().__init__()
        self.official, self.with_classes, self.seen = official, classes, []

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        x = images.float() / 255
        features = torch.cat([x.mean((1, 2)), x.mean((1, 3))], 1)
        return Features(features, features[:, :4] * 9 if self.with_classes else None)


def samples(n, seed, labels=True, channels=1, side=8):
    images = torch.randint(
        256, (n, channels, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    return Samples(images, torch.arange(n) % 4 if labels else None)


def run(metrics, extractor=None, fake=None, reference=None, held_out=None, **options):
    extractor = extractor or Means()
    requests = parse_metrics(metrics, "inception-v3")
    fake = fake or samples(30, 1)
    of_store = {k: options.pop(k) for k in ("batch_size", "progress", "folder", "say") if k in options}
    store = FeatureStore({"inception-v3": extractor}, CPU, **of_store)
    return evaluate(requests, store, fake, reference, held_out, **options)


# --- Names


def test_a_published_name_is_the_formula_over_its_own_extractor_whatever_the_default():
    [fid, kid, score] = parse_metrics(["fid", "kid", "inception_score"], "pixels")
    assert [(r.protocol.stem, r.extractor) for r in (fid, kid, score)] == [
        ("fd", "inception-v3"), ("kd", "inception-v3"), ("score", "inception-v3"),
    ]


def test_a_stem_alone_takes_the_default_extractor_and_with_a_name_that_one():
    requests = parse_metrics(
        ["fd", "kd_mnist-cnn", "fd10k_full_pixels", "ms_ssim", "ms_ssim_all", "nn_error"], "pixels"
    )
    assert [(r.protocol.stem, r.extractor) for r in requests] == [
        ("fd", "pixels"), ("kd", "mnist-cnn"), ("fd10k_full", "pixels"), ("ms_ssim", None), ("ms_ssim_all", None),
        ("nn_error", None),
    ]


@pytest.mark.parametrize("extractor", registry.names("extractors"))
def test_every_protocol_over_every_extractor_is_understood_by_the_name_that_it_would_carry(extractor):
    for protocol in measure.protocols().values():
        name = f"{protocol.stem}_{extractor}" if protocol.needs_extractor else protocol.stem
        [request] = parse_metrics([name], "pixels")
        assert (request.protocol, request.extractor) == (
            protocol,
            extractor if protocol.needs_extractor else None,
        )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fidd", "unknown metric 'fidd'. Did you mean 'fid'?"),
        ("", "unknown metric ''"),
        ("accuracy", "unknown metric 'accuracy'"),
        ("fid_mnist-cnn", "unknown metric 'fid_mnist-cnn'"),
        ("fd_mnist-cn", "unknown extractor 'mnist-cn'. Did you mean 'mnist-cnn'?"),
        ("fd_", "unknown extractor ''"),
        ("ms_ssim_pixels", "unknown metric 'ms_ssim_pixels'. Did you mean 'ms_ssim"),
    ],
)
def test_an_unknown_name_is_refused_with_what_comes_close(name, words):
    with pytest.raises(UserError) as error:
        parse_metrics([name], "pixels")
    assert words in str(error.value)


@pytest.mark.parametrize(
    "names",
    [["fid", "fid"], ["fid", "fd_inception-v3"], ["fd", "fd_pixels"], ["ms_ssim", "kid", "ms_ssim"]],
    ids=" ".join,
)
def test_the_same_measurement_under_two_names_is_refused(names):
    with pytest.raises(UserError, match=f"'{names[-1]}' is asked for twice"):
        parse_metrics(names, "pixels")


@pytest.mark.parametrize(
    ("metric", "stem"),
    [("fid", "fd"), ("kid", "kd"), ("inception_score", "score"), ("fid10k_full", "fd10k_full")],
)
def test_a_published_name_is_carried_over_published_weights_only(metric, stem):
    [request] = parse_metrics([metric], "pixels")
    assert metric_name(request, Means()) == metric
    assert metric_name(request, Means(official=False)) == f"{stem}_inception-v3@01234567"


def test_an_extractor_that_takes_another_s_place_does_not_take_its_published_name():
    impostor = Means()
    impostor.name = "inception-v4"
    assert metric_name(parse_metrics(["fid"], "pixels")[0], impostor) == "fd_inception-v4"


def test_the_published_formula_asked_for_by_its_stem_carries_the_published_name():
    measured, _ = run(["fd", "kd_inception-v3"], reference=samples(20, 2))
    assert [m.metric for m in measured] == ["fid", "kid"]


def test_every_name_that_is_listed_is_understood():
    for name in measure.metric_names():
        assert parse_metrics([name.replace("<extractor>", "pixels")], "pixels")


# --- Values


def test_a_value_carries_its_protocol_extractor_counts_and_uncertainty():
    [m], _ = run(["fid"], Means(official=False), samples(30, 1), samples(20, 2))
    assert m.metric == "fd_inception-v3@01234567"
    assert m.protocol == "fd/1: Fréchet distance of features"
    assert m.extractor["sha256"] == "0123456789abcdef"
    assert m.extractor["official"] is False
    assert (m.n_real, m.n_fake, m.direction) == (20, 30, "lower")
    assert m.uncertainty["kind"] == "standard error"
    assert m.uncertainty["value"] == m.error > 0
    assert "arXiv:1706.08500" in m.source


def test_the_values_are_those_of_the_formula_on_the_extractor_s_features():
    fake, reference = samples(30, 1), samples(20, 2)
    measured, _ = run(["fid", "kid"], None, fake, reference, batch_size=7)
    sides = [Side(s.images, features=Means()(s.images).features) for s in (reference, fake)]
    for m, request in zip(measured, parse_metrics(["fid", "kid"], "pixels"), strict=True):
        [expected] = request.protocol.compute(Inputs(*sides, None, torch.Generator()))
        assert m.value == pytest.approx(expected.value, rel=1e-5)


def test_each_set_is_passed_once_for_all_metrics_in_batches():
    extractor = Means()
    fake, reference, held_out = samples(30, 1), samples(20, 2), samples(10, 3)
    metrics = ["fid", "kid", "inception_score", "ms_ssim", "fd10k_full"]
    run(metrics, extractor, fake, reference, held_out, batch_size=16)
    passed = sorted(n for n, *_ in extractor.seen)
    assert passed == sorted([16, 14, 16, 4, 10])


def test_reduced_images_are_passed_once_a_resolution_and_measured_apart():
    extractor, fake = Means(), samples(30, 1, side=16)
    measured, _ = run(["discriminability"], extractor, fake, batch_size=30)
    assert [m.metric for m in measured] == [
        "discriminability_inception-v3", "discriminability_inception-v3@8", "discriminability_inception-v3@4",
    ]
    assert [shape[2] for shape in extractor.seen] == [16, 8, 4]
    for m, side in zip(measured, (16, 8, 4), strict=True):
        x = F.interpolate(fake.images.float(), (side, side), mode="bilinear", antialias=True).round()
        x = x.to(torch.uint8) if side < 16 else fake.images
        assert m.value == (Means()(x).logits.argmax(1) == fake.labels).double().mean().item()


def test_other_resolutions_can_be_asked_for():
    measured, _ = run(["discriminability"], resolutions=(5, 2))
    assert [m.metric.rpartition("@")[2] for m in measured[1:]] == ["5", "2"]


def test_metrics_without_an_extractor_run_none():
    extractor = Means()
    [m], _ = run(["ms_ssim_all"], extractor, reference=samples(20, 2))
    assert m.value is not None
    assert m.extractor is None
    assert extractor.seen == []


def test_the_seed_draws_the_pairs():
    values = [run(["ms_ssim"], seed=seed)[0][0].value for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def test_the_order_of_the_metrics_does_not_change_their_values():
    metrics = ["kid", "ms_ssim", "ms_ssim_all", "fid", "inception_score"]
    forward, _ = run(metrics, reference=samples(20, 2))
    backward, _ = run(metrics[::-1], reference=samples(20, 2))
    assert [m.metric for m in forward] == metrics
    assert forward == backward[::-1]


def test_progress_names_the_set_and_the_extractor():
    told = []

    def progress(what, total):
        told.append((what, total))
        return lambda n: told.append(n)

    run(["fid"], None, samples(30, 1), samples(20, 2), batch_size=16, progress=progress)
    assert told == [("inception-v3, reference", 20), 16, 4, ("inception-v3, samples", 30), 16, 14]


# --- No value, and why


@pytest.mark.parametrize(
    ("metric", "options", "reason"),
    [
        ("fid", {}, "there is no reference: give --reference"),
        ("kid", {}, "there is no reference: give --reference"),
        ("fid10k_full", {"reference": samples(20, 2)}, "10,000 samples, and there are 30: give --num 10000"),
        ("ms_ssim", {"fake": samples(30, 1, labels=False)}, "no labels"),
        ("discriminability", {"fake": samples(30, 1, labels=False)}, "no labels"),
        ("discriminability", {"extractor": Means(classes=False)}, "this extractor has no classes"),
        ("inception_score", {"extractor": Means(classes=False)}, "this extractor has no classes"),
        ("inception_score", {"fake": samples(9, 1)}, "at least 10 images, not 9"),
        ("nn_error", {"reference": samples(20, 2)}, "no real images beside the reference"),
        ("fid", {"reference": samples(20, 2, side=16)}, "32 features of real images and 16 of fake ones"),
        ("kid", {"reference": samples(20, 2, side=16)}, "32 features of real images and 16 of fake ones"),
        ("nn_error", {"held_out": samples(20, 2, side=16)}, "differ in size"),
    ],
)
def test_what_cannot_be_measured_says_why_and_has_no_value(metric, options, reason):
    measured, _ = run([metric, "ms_ssim_all"], **options)
    assert reason in measured[0].reason
    assert measured[0].value is measured[0].uncertainty is None
    assert measured[1].value is not None  # the others go on
    assert measured[1].reason == ""


@pytest.mark.parametrize("metric", ["fid", "kid", "inception_score", "discriminability"])
def test_an_extractor_that_yields_nan_makes_the_measurement_unavailable(metric):
    class Broken(Means):
        def forward(self, images):
            out = super().forward(images)
            return Features(out.features.where(out.features > 0.55, torch.nan), out.logits * torch.nan)

    [m, *_], _ = run([metric], Broken(), reference=samples(20, 2))
    assert m.value is None
    assert "not finite" in m.reason


def test_channels_that_differ_are_the_user_s_to_mend():
    for other in ("reference", "held_out"):
        with pytest.raises(UserError, match=r"the images have 1 channel and .* 3: convert one"):
            run(["fid"], **{other: samples(20, 2, channels=3)})


# --- The row of real data


def test_the_row_of_real_data_is_held_out_images_in_the_place_of_the_samples():
    fake, reference, held_out = samples(30, 1), samples(20, 2), samples(12, 3)
    metrics = ["fid", "inception_score", "ms_ssim"]
    measured, real = run(metrics, None, fake, reference, held_out)
    as_fake, _ = run(metrics, None, held_out, reference)
    assert [m.value for m in real] == [m.value for m in as_fake]
    assert [m.metric for m in real] == [m.metric for m in measured] == metrics
    assert [m.n_fake for m in real] == [12, 12, 12]


def test_the_row_of_real_data_of_nn_error_trains_on_the_reference():
    fake, reference, held_out = samples(30, 1), samples(20, 2), samples(12, 3)
    measured, real = run(["nn_error"], None, fake, reference, held_out)
    as_fake, _ = run(["nn_error"], None, reference, None, held_out)
    assert real[0].value == as_fake[0].value
    assert (measured[0].n_fake, real[0].n_fake, real[0].n_real) == (30, 20, 12)


def test_without_held_out_images_there_is_no_row_of_real_data():
    assert run(["fid", "ms_ssim"], reference=samples(20, 2))[1] == []


def test_metrics_are_computed_in_full_float32_whatever_the_process_allows():
    [request], seen = parse_metrics(["kd"], "inception-v3"), []

    def compute(inputs):
        new = getattr(torch.backends.mkldnn, "matmul", None)  # torch 2.9 and later
        seen.append(new.fp32_precision if new else torch.get_float32_matmul_precision())
        return request.protocol.compute(inputs)

    watched = replace(request, protocol=replace(request.protocol, compute=compute))
    store = FeatureStore({"inception-v3": Means()}, CPU)
    torch.set_float32_matmul_precision("medium")
    try:
        evaluate([watched], store, samples(30, 1), samples(30, 2), None)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(seen) in ({"ieee"}, {"highest"})
