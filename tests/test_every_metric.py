"""Tests for every installed metric: its protocol is described, and it gives a correct value or a reason for none."""

import importlib
import inspect
import math
import re
from dataclasses import replace

import pytest
import torch

from ganbench.base import registry
from ganbench.evaluation import measure
from ganbench.metrics import frechet, hierarchical_parzen, probes
from ganbench.metrics.contract import NEEDS, Inputs, Model, Protocol, Side, Unavailable

PROTOCOLS = list(measure.protocols().values())
CLASSES = 5

# Metrics without random draws and splits, for which the order of samples must not matter: relative tolerances.
ORDER_FREE = {
    "fd": 1e-9, "fd50k_full": 1e-9, "fd10k_full": 1e-9, "fd5k_full": 1e-9, "intra_fd": 1e-9, "mmd_rbf": 1e-6,
    "score_1split": 1e-12, "modified_score": 1e-12, "discriminability": 0, "nn_error": 0,
    "auth_share": 0, "memorised_share": 0,
    "precision": 0, "recall": 0, "density": 1e-12, "coverage": 0, "nn_transfer": 0, "gaining_classes": 0,
    "realism": 1e-12, "gan_train": 0, "gan_test": 0, "test_error": 0, "cluster_error": 0,
    "cluster_error_majority": 0, "reconstruction_l1": 1e-12, "reconstruction_mse": 1e-12,
    "modes": 0, "class_kl": 1e-9, "stacked_modes": 0, "stacked_modes_kl": 1e-9, "parzen_ll": 1e-9,
}
# Values if the generated images are a copy of the real ones: the best, or an extreme one for direction 'none'.
ITSELF = {
    "fd": 0,
    "monge": 0,
    "auth_share": 0,
    "memorised_share": 1,
    "fd50k_full": 0,
    "fd10k_full": 0,
    "fd5k_full": 0,
    "intra_fd": 0,
    "mmd_rbf": 0,
    "precision": 1,
    "recall": 1,
    "coverage": 1,
    "class_kl": 0,
}
# Metrics without a value if nothing varies, with the reason.
UNDEFINED = {"accuracy_diversity_correlation": "is the same in every class", "z_from_y": "do not vary"}


SEES_IMAGES = [p for p in PROTOCOLS if any(p.needs_side(s) for s in ("real", "fake", "held_out"))]


@pytest.fixture(autouse=True)
def small_protocols(monkeypatch):
    """A thousand labels need more images than these tests have, and many windows take long: fewer run the same code."""
    monkeypatch.setattr(probes, "LABELS", CLASSES)
    monkeypatch.setattr(hierarchical_parzen, "COARSEST_WINDOWS", 1000)


def every(protocols=PROTOCOLS):
    return pytest.mark.parametrize("protocol", protocols, ids=lambda p: p.stem)


def side(n, seed, d=8, edge=28):
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    images = torch.randint(256, (n, 1, edge, edge), generator=g, dtype=torch.uint8)
    logits = torch.randn(n, CLASSES, generator=g) + 2 * torch.nn.functional.one_hot(labels, CLASSES)
    at = {14: torch.randn(n, CLASSES, generator=g)}
    return Side(images, labels, torch.randn(n, d, generator=g).relu(), logits, at)


def rows(s, order):
    at = {r: x[order] for r, x in s.logits_at.items()}
    return Side(s.images[order], s.labels[order], s.features[order], s.logits[order], at)


def matrix(rows, columns):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(5)) / rows**0.5


def embed(images):
    features = (images.flatten(1).float() / 255 @ matrix(28 * 28, 8)).relu()
    return features, features[:, :CLASSES]


def fit(images, labels):
    """Return a classifier by the nearest class mean."""
    means = torch.stack([images[labels == c].float().flatten(1).mean(0) for c in range(int(labels.max()) + 1)])
    return lambda x: -torch.cdist(x.float().flatten(1), means)


def generate(z, y):
    return (z @ matrix(4, 28 * 28) + (0 if y is None else y[:, None] / CLASSES)).tanh().view(-1, 1, 28, 28)


MODEL = Model(
    "test", CLASSES, {"gamma": 0.5}, sample_latent=lambda n, g: torch.randn(n, 4, generator=g), generate=generate,
    encode=lambda x: x.flatten(1).float() / 255 @ matrix(28 * 28, 4), reconstruct=lambda x: x.float() / 255 - 0.5,
    classify=lambda x: embed(x)[1], codes={"c1": math.log(2), "c2": math.log(10)},
    code_log_likelihood=lambda z, y: z[:, :2] - z[:, :2].square(),
    pyramid=lambda x: [torch.nn.functional.avg_pool2d(x / 64, 7), x / 64],
    sample_level=lambda k, x, g: torch.randn(len(x), 1, 28 if k else 4, 28 if k else 4, generator=g),
)


def measure(protocol, real=None, fake=None, held_out=None):
    real, fake = real or side(60, 1), fake or side(50, 2)
    g = torch.Generator().manual_seed(0)
    inputs = Inputs(real, fake, held_out or side(50, 3), g, model=MODEL, embed=embed, fit=fit)
    values = protocol.compute(inputs)
    assert values
    for v in values:
        assert math.isfinite(v.value), v
        assert v.uncertainty is None or (math.isfinite(v.uncertainty.value) and v.uncertainty.value >= 0), v
    return values


def measure_where_nothing_varies(protocol, *sides):
    """Return the values, or none if the reason is the one in UNDEFINED."""
    try:
        return measure(protocol, *sides)
    except Unavailable as reason:
        if UNDEFINED.get(protocol.stem, "no such reason") not in str(reason):
            raise
        return []


# --- The description of a protocol


def test_stems_and_published_names_are_unique():
    installed = {id(p): p for e in registry.names("metrics") for p in registry.load("metrics", e)}.values()
    names = [p.stem for p in installed] + [p.published[0] for p in installed if p.published]
    assert len(set(names)) == len(names) >= 10


@every()
def test_a_protocol_has_valid_fields(protocol):
    assert isinstance(protocol, Protocol)
    assert re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", protocol.stem)
    assert isinstance(protocol.version, int)
    assert protocol.version >= 1
    assert protocol.summary.strip(" .") == protocol.summary != ""
    assert re.search(r"\b(19|20)\d\d\b", protocol.source), "a source has a year"
    assert protocol.direction in ("lower", "higher", "none")
    assert protocol.needs <= NEEDS
    assert protocol.real_row in ("held_out", "reference", "none")


@every()
def test_a_published_protocol_has_a_known_extractor(protocol):
    if protocol.published:
        assert protocol.needs_extractor
        assert protocol.published[1] in registry.names("extractors")


@pytest.mark.parametrize("entry", registry.names("metrics"))
def test_the_docstring_of_a_metric_gives_its_paper_its_range_and_its_direction(entry):
    module = importlib.import_module(registry.entries("metrics")[entry].value.partition(":")[0])
    doc = " ".join(inspect.getdoc(module).split())
    assert re.search(r"\(\d{4}\)", doc), "a paper with its year"
    assert re.search(r"arXiv:\d{4}\.\d{5}", doc)
    assert re.search(r"range|negative", doc, re.IGNORECASE)
    assert re.search(r"(higher|lower) is (better|more diverse)", doc, re.IGNORECASE)


# --- Values


@every()
def test_a_value_is_finite_with_its_uncertainty_and_counts(protocol):
    for v in measure(protocol):
        assert v.uncertainty is not None
        assert v.uncertainty.over
        assert v.n_fake == 50 or not protocol.needs_side("fake")
        assert v.n_real in (0, 50, 60) or protocol.asks_model


@every()
def test_the_same_inputs_give_the_same_value_and_do_not_change(protocol):
    real, fake, held_out = side(60, 1), side(50, 2), side(40, 3)
    first = measure(protocol, real, fake, held_out)
    assert measure(protocol, real, fake, held_out) == first
    for now, seed, n in ((real, 1, 60), (fake, 2, 50), (held_out, 3, 40)):
        before = side(n, seed)
        assert torch.equal(now.images, before.images)
        assert torch.equal(now.features, before.features)
        assert torch.equal(now.logits, before.logits)


@every([p for p in PROTOCOLS if p.stem in ORDER_FREE])
def test_the_order_of_the_samples_does_not_matter(protocol):
    real, fake, held_out = side(60, 1), side(50, 2), side(40, 3)
    order = [torch.randperm(len(s), generator=torch.Generator().manual_seed(9)) for s in (real, fake, held_out)]
    shuffled = [rows(s, o) for s, o in zip((real, fake, held_out), order, strict=True)]
    for a, b in zip(measure(protocol, real, fake, held_out), measure(protocol, *shuffled), strict=True):
        assert b.value == pytest.approx(a.value, rel=ORDER_FREE[protocol.stem], abs=0)


@every([p for p in PROTOCOLS if p.stem not in ORDER_FREE])
def test_another_order_changes_a_seeded_draw_little(protocol):
    # Fifty images and a draw of pairs, subsets or splits: the change is at most five standard errors.
    fake = side(50, 2)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(9))
    for a, b in zip(measure(protocol, fake=fake), measure(protocol, fake=rows(fake, order)), strict=True):
        assert b.value == pytest.approx(a.value, abs=5 * a.uncertainty.value)


@every([p for p in PROTOCOLS if p.stem in ITSELF])
def test_a_copy_of_the_real_images_has_the_best_value(protocol):
    real = side(60, 1)
    copy = rows(real, torch.arange(60))
    [value] = measure(protocol, real, copy)
    assert value.value == pytest.approx(ITSELF[protocol.stem], abs=1e-12)


@every([p for p in PROTOCOLS if "fake.labels" in p.needs])
def test_missing_labels_are_unavailable(protocol):
    s = side(50, 2)
    with pytest.raises(Unavailable, match="no labels"):
        measure(protocol, fake=Side(s.images, None, s.features, s.logits))


@pytest.mark.parametrize(
    ("protocol", "which"),
    [
        (p, which)
        for p in PROTOCOLS
        for which in ("real", "fake", "held_out")
        if {f"{which}.features", f"{which}.logits"} & p.needs
    ],
    ids=lambda x: getattr(x, "stem", x),
)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_unavailable(protocol, which, bad):
    s = side(50, 2)
    s.features[7, 3] = s.logits[7, 3] = bad
    with pytest.raises(Unavailable, match="not finite"):
        measure(protocol, **{which: s})


@every([p for p in PROTOCOLS if {"real.features", "fake.features"} <= p.needs])
def test_features_of_different_lengths_are_unavailable(protocol):
    with pytest.raises(Unavailable, match="8 features of real images and 6 of fake ones"):
        measure(protocol, fake=side(50, 2, d=6))


def constant(n, seed):
    s = side(n, seed)
    one = torch.zeros(n, dtype=torch.int64)
    return Side(s.images[one], s.labels, s.features[one], s.logits[one], {14: s.logits[one]})


@every(SEES_IMAGES)
@pytest.mark.parametrize("which", ["fake", "both"])
def test_equal_images_have_a_finite_value(protocol, which):
    fake = constant(50, 2)
    values = measure_where_nothing_varies(protocol, constant(60, 1) if which == "both" else None, fake)
    expected = {
        "fd": (
            (side(60, 1).features[0] - fake.features[0]).double().square().sum().item() if which == "both" else None
        ),
        "score": 1,
        "score_1split": 1,
        "ms_ssim": 1,
        "ms_ssim_all": 1,
        "discriminability": 1 / CLASSES,
    }.get(protocol.stem)
    if expected is not None:
        assert values[0].value == pytest.approx(expected, rel=1e-9)


@every(SEES_IMAGES)
def test_black_images_have_a_finite_value(protocol):
    same = constant(50, 2)
    logits = torch.zeros_like(same.logits)
    black = Side(torch.zeros_like(same.images), same.labels, torch.zeros_like(same.features), logits, {14: logits})
    measure_where_nothing_varies(protocol, black, black, black)


@every(SEES_IMAGES)
def test_duplicates_have_a_finite_value(protocol):
    twice = rows(side(25, 2), torch.arange(50) % 25)
    measure(protocol, rows(side(30, 1), torch.arange(60) % 30), twice)


@every([p for p in PROTOCOLS if "real.features" in p.needs and "embed" not in p.needs])  # not computed by `embed`
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_features_of_any_scale_and_fewer_images_than_features_have_a_finite_value(protocol, scale):
    real, fake, held_out = side(12, 1, d=100), side(11, 2, d=100), side(10, 3, d=100)
    for s in (real, fake, held_out):
        s.features.mul_(scale)
    measure(protocol, real, fake, held_out)


@every(SEES_IMAGES)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_few_images_have_a_finite_value_or_a_reason(protocol, n):
    few = rows(side(2 * CLASSES, 2), torch.tensor([0, 5, 1])[:n])
    reason = ""
    try:
        measure(protocol, fake=few)
    except Unavailable as unavailable:
        reason = str(unavailable)
    assert not reason or "need" in reason, reason


# --- Sets that are larger than memory


class Part:
    """A set of images that has the pixels of some rows alone, and refuses everything else."""

    def __init__(self, images, rows):
        self.shape, self._images, self._rows = images.shape, images, set(rows.tolist())

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        assert isinstance(rows, slice | torch.Tensor)
        wanted = torch.arange(len(self))[rows].tolist()
        assert self._rows.issuperset(wanted), "rows that the protocol did not announce"
        return self._images[wanted]

    def split(self, size):
        for rows in torch.arange(len(self)).split(size):
            yield self[rows]


class Stream:
    """A set of images that can only be read in order."""

    def __init__(self, images):
        self.shape, self._images = images.shape, images

    def __len__(self):
        return self.shape[0]

    def split(self, size):
        yield from self._images.split(size)


def over(function):
    """Let a function of a tensor of images take a stream too."""
    return lambda x: function(x) if isinstance(x, torch.Tensor) else torch.cat([function(b) for b in x.split(7)])


STREAMED = replace(MODEL, encode=over(MODEL.encode), classify=over(MODEL.classify))
DRAWS = {
    "ms_ssim": {"PAIRS": 10, "PAIRS_PER_CLASS": 3}, "discriminability": {"PAIRS": 3},
    "memorisation": {"QUERIES": 13, "AT_ONCE": 11 * 28 * 28}, "parzen": {"WINDOWS": 15, "VALIDATION": 9},
    "began_convergence": {"IMAGES": 23}, "sliced_wasserstein": {"ENOUGH": 12, "PATCHES": 4},
    "mutual_predictability": {"MOST": 25},
    "hierarchical_parzen": {"TEST": 11, "VALIDATION": 7, "WINDOWS": 3, "COARSEST_WINDOWS": 12},
}


def the_inputs(sides, seed, model=MODEL):
    return Inputs(*sides, torch.Generator().manual_seed(seed), model=model, embed=embed, fit=fit)


def test_every_protocol_that_draws_images_says_which():
    draws = {"ms_ssim", "ms_ssim_all", "diverse_classes", "accuracy_diversity_correlation", "swd", "parzen_ll",
             "memorised_share", "began_convergence", "y_from_z", "z_from_y", "hierarchical_parzen_ll"}
    assert {p.stem for p in PROTOCOLS if callable(p.rows)} >= draws
    streams = {"reconstruction_l1", "reconstruction_mse", "test_error", "cluster_error", "cluster_error_majority",
               "stacked_modes", "stacked_modes_kl"}
    assert {p.stem for p in PROTOCOLS if p.rows == "stream"} >= streams
    assert all(callable(p.rows) or p.rows in ("all", "stream") for p in PROTOCOLS)


@every([p for p in PROTOCOLS if callable(p.rows)])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("counts", [(60, 50, 40), (31, 47, 33)])
@pytest.mark.parametrize("played", ["generated", "real"])
def test_the_rows_that_a_protocol_announces_are_all_that_it_looks_at(protocol, seed, counts, played, monkeypatch):
    for module, settings in DRAWS.items():
        for name, value in settings.items():
            monkeypatch.setattr(importlib.import_module(f"ganbench.metrics.{module}"), name, value)
    real, fake, held_out = (side(n, i + 1) for i, n in enumerate(counts))
    fake = real if played == "real" else fake
    nothing = [replace(s, features=None, logits=None, logits_at={}) for s in (real, fake, held_out)]
    nothing = [replace(s, images=Part(s.images, torch.zeros(0))) for s in nothing]
    if played == "real":
        nothing[1] = nothing[0]
    announced = protocol.rows(the_inputs(nothing, seed))
    assert set(announced) == {s for s in ("real", "fake", "held_out") if f"{s}.images" in protocol.needs}
    rows = [announced.get(s, torch.zeros(0, dtype=torch.int64)) for s in ("real", "fake", "held_out")]
    assert all(r.dtype == torch.int64 for r in rows)
    if played == "real":
        rows[0] = rows[1] = torch.cat(rows[:2])
    parts = [replace(s, images=Part(s.images, r)) for s, r in zip((real, fake, held_out), rows, strict=True)]
    if played == "real":
        parts[1] = replace(parts[1], images=parts[0].images)
    assert protocol.compute(the_inputs(parts, seed)) == protocol.compute(the_inputs([real, fake, held_out], seed))


@every([p for p in PROTOCOLS if p.rows == "stream"])
def test_a_stream_gives_the_value_of_a_tensor(protocol):
    sides = side(60, 1), side(50, 2), side(40, 3)
    streams = [replace(s, images=Stream(s.images)) for s in sides]
    assert protocol.compute(the_inputs(streams, 0, STREAMED)) == protocol.compute(the_inputs(sides, 0))


@every([p for p in PROTOCOLS if p.fake_by_moments])
def test_moments_and_some_rows_give_the_value_and_the_error_of_all_features(protocol, monkeypatch):
    monkeypatch.setattr(frechet, "MOST", 13)
    sides = side(60, 1), side(50, 2), side(40, 3)
    expected = protocol.compute(the_inputs(sides, 0))
    for which in ((0, 1), (0,), (1,)):
        alone = list(sides)
        for i in which:
            m = frechet.moments(sides[i].features)
            kept = {"moments/1": {"n": torch.tensor(m.n), "mean": m.mean, "cov": m.cov}}
            some = sides[i].features[:: -(-len(sides[i]) // 13)]
            alone[i] = Side(sides[i].images, kept=kept, some=some)
        [found] = protocol.compute(the_inputs(alone, 0))
        assert found.value == pytest.approx(expected[0].value, rel=1e-12)
        assert found.uncertainty == expected[0].uncertainty
        assert replace(found, value=0, uncertainty=None) == replace(expected[0], value=0, uncertainty=None)


# --- Errors that the data cannot tell


def draw(kind, n, seed):
    """Return n images of a kind: all different, one of three for each class, or all equal."""
    if kind == "different":
        return side(n, seed)
    if kind == "equal":
        return constant(n, 77)
    three = torch.randint(3, (n,), generator=torch.Generator().manual_seed(seed))
    return rows(side(3 * CLASSES, 77), torch.arange(n) % CLASSES + CLASSES * three)


@every([p for p in SEES_IMAGES if not {"model.generate", "embed"} & p.needs or p.num])
@pytest.mark.parametrize("kind", ["different", "three", "equal"])
@pytest.mark.parametrize("n", [2, 6, 20])
def test_an_error_has_the_size_of_the_spread_over_new_samples_or_is_not_given(protocol, kind, n, monkeypatch):
    monkeypatch.setattr(probes, "DRAWS", 4)
    found = []
    for seed in range(10):
        sides = [draw(kind, n, 100 * seed + i) for i in range(3)]
        try:
            value = protocol.compute(the_inputs(sides, seed))[0]
        except Unavailable:
            continue
        if value.uncertainty is None:
            assert value.warnings, "a value without an uncertainty says why: see ganbench.metrics.known"
        else:
            assert value.uncertainty.value > 1e-7 * abs(value.value), value
            found.append((value.value, value.uncertainty.value))
    if len(found) > 5:
        values, errors = torch.tensor(found, dtype=torch.float64).T
        assert errors.square().mean().sqrt() > values.std() / 4


@every([p for p in SEES_IMAGES if {"real.features", "fake.features"} <= p.needs])
@pytest.mark.parametrize("n", [30, 200])
def test_a_set_against_itself_has_no_error_that_rounding_made(protocol, n):
    same = side(n, 1, d=60)
    values = protocol.compute(the_inputs([same, rows(same, torch.arange(n)), side(n, 3, d=60)], 0))
    for v in values:
        assert v.uncertainty is None or v.uncertainty.value > 1e-6 * max(1, abs(v.value)), v
