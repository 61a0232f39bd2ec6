"""The feature store: made once, kept for references, never taken for something else, and never in the way."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ganbench.data.sources import Samples
from ganbench.evaluation import disk_cache, feature_store
from ganbench.evaluation.feature_store import FeatureStore, Wanted
from ganbench.features import FeatureExtractor, Features
from ganbench.metrics import Unavailable

CPU = torch.device("cpu")


class Means(FeatureExtractor):
    """Column means; it counts how many images it was given."""

    name = "means"

    def __init__(self, sha256="a" * 64, classes=True):
        super().__init__()
        self.sha256, self.classes_too, self.seen = sha256, classes, 0

    def forward(self, images):
        self.seen += len(images)
        features = images.float().mean((1, 2))
        return Features(features, features[:, :2] if self.classes_too else None)


def samples(seed=0, n=20, **origin):
    images = torch.randint(256, (n, 1, 6, 6), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Samples(images, None, {"fingerprint": f"{seed}-{n}", **origin})


def store(folder, extractor=None, said=None):
    return FeatureStore({"means": extractor or Means()}, CPU, 7, folder, say=(said if said is not None else []).append)


def look(a_store, of, side=0, keep=True):
    a_store.name(of, "reference", keep=keep)
    return a_store.features(of, "means", side)


def test_a_second_evaluation_spends_no_time_on_the_reference(tmp_path):
    first = look(store(tmp_path), samples())
    extractor = Means()
    second = look(store(tmp_path, extractor), samples())
    assert extractor.seen == 0
    assert torch.equal(first.features, second.features)
    assert torch.equal(first.logits, second.logits)


def test_no_logits_stay_no_logits(tmp_path):
    look(store(tmp_path, Means(classes=False)), samples())
    assert look(store(tmp_path, Means(classes=False)), samples()).logits is None


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("images", "other images"), ("count", "a draw of them"), ("seed", "another draw"), ("weights", "other weights"),
        ("version", "another version of the extractor"), ("side", "another size"), ("code", "another version of this"),
    ],
)
def test_what_could_change_a_digit_is_in_the_key(tmp_path, monkeypatch, change, what):
    of, extractor, side = samples(drawn=20, draw_seed=0), Means(), 0
    look(store(tmp_path, Means()), of)
    if change == "images":
        of = samples(1, drawn=20, draw_seed=0)
    elif change == "count":
        of = Samples(of.images[:9], None, {**of.origin, "drawn": 9})
    elif change == "seed":
        of = Samples(of.images, None, {**of.origin, "draw_seed": 1})
    elif change == "weights":
        extractor = Means("b" * 64)
    elif change == "version":
        extractor.version = "2"
    elif change == "side":
        side = 3
    else:
        monkeypatch.setattr(feature_store, "VERSION", 99)
    look(store(tmp_path, extractor), of, side)
    assert extractor.seen == len(of.images), what


def test_samples_are_not_kept_and_neither_is_a_set_without_a_fingerprint(tmp_path):
    look(store(tmp_path), samples(), keep=False)
    look(store(tmp_path), Samples(samples().images, None))
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_made_again_with_a_remark(tmp_path):
    expected = look(store(tmp_path), samples()).features
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:50])
    said: list[str] = []
    extractor = Means()
    assert torch.equal(look(store(tmp_path, extractor, said), samples()).features, expected)
    assert extractor.seen == 20
    assert len(said) == 1
    assert path.name in said[0]
    again = Means()
    look(store(tmp_path, again), samples())
    assert again.seen == 0


def test_a_folder_that_cannot_be_written_costs_a_remark_and_nothing_else(tmp_path):
    (tmp_path / "file").write_text("in the way")
    said: list[str] = []
    assert len(look(store(tmp_path / "file", said=said), samples()).features) == 20
    assert len(said) == 1
    assert "not kept" in said[0]


def test_what_is_derived_from_a_reference_is_kept_beside_its_features(tmp_path):
    of = samples()
    a = store(tmp_path)
    look(a, of)
    a.kept(of, "means")["moments/1"] = {"mean": torch.arange(3.0)}
    b = store(tmp_path)
    look(b, of)
    assert torch.equal(b.kept(of, "means")["moments/1"]["mean"], torch.arange(3.0))
    with pytest.raises(KeyError):
        b.kept(of, "means")["moments/2"]


def test_what_is_derived_from_samples_is_kept_in_memory_only(tmp_path):
    a, of = store(tmp_path), samples()
    look(a, of, keep=False)
    a.kept(of, "means")["moments/1"] = {"mean": torch.arange(3.0)}
    assert "moments/1" in a.kept(of, "means")
    assert list(tmp_path.iterdir()) == []


def test_images_that_a_metric_makes_are_embedded_as_levels_or_as_floats(tmp_path):
    images = samples().images
    embed = store(None).embed("means")
    a, b = embed(images), embed(images.float())
    assert torch.equal(a[0], b[0])
    assert torch.equal(embed(images.float() + 1e-3)[0], (images.float() + 1e-3).mean((1, 2)))


# --- Damage and interruption ---


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x40
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["bits", "rows", "name"])
@pytest.mark.parametrize("what", ["features", "moments"])
def test_damaged_values_are_never_used(tmp_path, damage, what):
    of, first = samples(), store(tmp_path)
    expected = look(first, of).features
    first.kept(of, "means")["moments/1"] = {"mean": torch.arange(3.0)}
    path = next(p for p in tmp_path.iterdir() if ("moments" in p.name) == (what == "moments"))
    if damage == "bits":
        flip(path)
    else:
        name = {"features": "features", "moments": "mean"}[what]
        with safe_open(path, "pt") as file:
            tensors, about = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118
        tensors = {k: v[:2] for k, v in tensors.items()} if damage == "rows" else {f"{name}s": tensors[name]}
        save_file(tensors, path, about)
    said: list[str] = []
    again = store(tmp_path, said=said)
    assert torch.equal(look(again, of).features, expected)
    assert ("moments/1" in again.kept(of, "means")) == (what == "features")
    assert len(said) == 1
    assert path.name in said[0]


def test_a_file_of_other_images_under_the_same_name_is_not_used(tmp_path):
    """A whole file with a right checksum, of fewer images than the set has."""
    of = samples()
    look(store(tmp_path), of)
    [path] = tmp_path.iterdir()
    disk_cache.write(path, {"features": torch.zeros(9, 6), "logits": torch.zeros(9, 2)}, print)
    extractor = Means()
    look(store(tmp_path, extractor), of)
    assert extractor.seen == 20


class Stops(Means):
    """Raises KeyboardInterrupt after some images."""

    after = 10**9

    def forward(self, images):
        if self.seen >= self.after:
            raise KeyboardInterrupt
        return super().forward(images)


@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("after", [14, 49])
def test_an_interrupted_pass_goes_on_where_it_was(tmp_path, monkeypatch, moments, after):
    monkeypatch.setattr(feature_store, "SAVE_EVERY", -1.0)
    of, wanted = samples(n=60), Wanted({("means", 0): moments})
    whole = store(None)
    whole.name(of, "reference")
    whole.gather(of, wanted)
    first = Stops()
    first.after = after
    broken = store(tmp_path, first)
    broken.name(of, "reference", keep=True)
    with pytest.raises(KeyboardInterrupt):
        broken.gather(of, wanted)
    assert list(tmp_path.glob("*.piece"))
    second = Means()
    again = store(tmp_path, second)
    again.name(of, "reference", keep=True)
    again.gather(of, wanted)
    assert second.seen == 60 - first.seen
    assert not list(tmp_path.glob("*.piece"))
    if moments:
        for name in ("moments/1", "some/1"):
            for key, value in whole.kept(of, "means")[name].items():
                torch.testing.assert_close(again.kept(of, "means")[name][key], value, rtol=1e-12, atol=1e-12)
    else:
        assert torch.equal(again.features(of, "means").features, whole.features(of, "means").features)


def test_a_damaged_piece_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "SAVE_EVERY", -1.0)
    of, first = samples(n=60), Stops()
    first.after = 35
    with pytest.raises(KeyboardInterrupt):
        look(store(tmp_path, first), of)
    for piece in sorted(tmp_path.glob("*.piece"))[1:2]:
        flip(piece)
    said: list[str] = []
    second = Means()
    assert torch.equal(look(store(tmp_path, second, said), of).features, look(store(None), of).features)
    assert second.seen == 60 - 7  # the first piece is whole
    assert len(said) == 1


def test_an_extractor_that_fails_takes_no_other_with_it():
    class Fails(Means):
        def forward(self, images):
            raise RuntimeError("no such kernel")

    of, both = samples(), FeatureStore({"means": Means(), "fails": Fails()}, CPU, 7)
    both.name(of, "samples")
    both.gather(of, Wanted({("means", 0): False, ("fails", 0): False}))
    assert both.features(of, "means").features.shape == (20, 6)
    with pytest.raises(Unavailable, match="the extractor 'fails' failed: RuntimeError: no such kernel"):
        both.features(of, "fails")
