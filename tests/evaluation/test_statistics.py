"""Moments of a set in one pass and in shards: part files, what is wrong with them, and their merger."""

import doctest
import itertools
import json
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import everything_below, write_png
from torch import nn

from ganbench.base import memory
from ganbench.base.errors import UserError
from ganbench.base.progress import Reporter
from ganbench.data.streams import Images, batches
from ganbench.evaluation import shards, statistics
from ganbench.evaluation.shards import Part, Shard
from ganbench.evaluation.statistics import Request
from ganbench.features import FeatureExtractor, Features
from ganbench.metrics.frechet import MomentsAccumulator

QUIET = Reporter(quiet=True)


def arrays(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def assert_same_moments(path, other, tolerance=1e-10):
    """Relative to the largest mean, and to the variances of the two features."""
    a, b = arrays(path), arrays(other)
    assert set(a) == set(b)
    for name in a:
        if name.startswith("mu"):
            np.testing.assert_allclose(a[name], b[name], rtol=0, atol=tolerance * np.abs(b[name]).max())
        elif name.startswith("sigma"):
            deviation = np.sqrt(np.diagonal(b[name]))
            assert (np.abs(a[name] - b[name]) <= tolerance * np.outer(deviation, deviation)).all()
        else:
            np.testing.assert_array_equal(a[name], b[name])


def make(number, of, out, source="digits:train", **more):
    statistics.run(Request(source, out, "pixels", shard=Shard(number, of), **more), QUIET)


def part_of(shard, total, **more):
    images = {"fingerprint": "f" * 64, "shape": [1, 8, 8]}
    return Part(shard, total, "set", images, "net", {"net": {"version": "1", "sha256": "a" * 64}}, **more)


def write_parts(folder, rows, of, features=True):
    """Part files of the shards of some rows of features."""
    paths = []
    for number in range(1, of + 1):
        shard = Shard(number, of)
        span = shard.rows(len(rows))
        own = rows[span.start : span.stop]
        accumulator = MomentsAccumulator()
        for batch in own.split(7):
            accumulator.update(batch)
        paths.append(folder / f"part-{number}.npz")
        shards.write(paths[-1], part_of(shard, len(rows), features=features), {"net": accumulator},
                     own if features else None)
    return paths


# --- The cut into shards ---


def test_the_examples_in_the_docstrings_work():
    found = doctest.testmod(shards)
    assert (found.failed, found.attempted > 2) == (0, True)


@given(total=st.integers(1, 10**9), of=st.integers(1, 2000))
def test_shards_tile_the_rows_and_are_of_one_size(total, of):
    if of > total:
        with pytest.raises(UserError, match="at most one shard an image"):
            Shard(1, of).rows(total)
        return
    spans = [Shard(i, of).rows(total) for i in range(1, of + 1)]
    assert (spans[0].start, spans[-1].stop) == (0, total)
    assert all(a.stop == b.start for a, b in itertools.pairwise(spans))
    unit = 256 if total >= 256 * of else 1
    assert min(map(len, spans)) >= 1
    assert max(map(len, spans)) - min(map(len, spans)) <= 2 * unit - 1
    assert all(span.start % unit == 0 for span in spans)


@pytest.mark.parametrize(
    "text", ["0/64", "65/64", "3/0", "0/0", "-1/4", "3", "3/", "a/b", "3/64/2", "1/12345678", "٣/٤"],
)
def test_a_shard_that_is_none_is_refused(refuses, text):
    refuses([f"--shard '{text}'", "3/64"], "statistics", "digits", "--extractor", "pixels", "--out", "a.npz",
            f"--shard={text}")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--shard", "1/2000"], ["2,000 shards of 1,297 images"]),
        (["--shard", "1/2", "--with-images"], ["--with-images"]),
        (["--force"], ["--force", "--shard"]),
        (["--shards", "4"], ["--shards needs --launcher"]),
        (["--launcher-arg", "a=1"], ["--launcher-arg needs --launcher"]),
        (["--jobs", "2"], ["--jobs needs --launcher"]),
        (["--launcher", "local"], ["--shards N"]),
        (["--launcher", "local", "--shards", "2", "--shard", "1/2"], ["either --shard"]),
        (["--launcher", "local", "--shards", "2", "--launcher-arg", "x"], ["KEY=VALUE"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_options_that_do_not_go_together_are_refused(refuses, args, words):
    refuses(words, "statistics", "digits:train", "--extractor", "pixels", "--out", "a.npz", *args)


# --- Merged is one pass ---


@settings(deadline=None, max_examples=40)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1), offset=st.sampled_from([0.0, 1.0, 1e3, 1e5]))
def test_any_split_and_order_gives_the_moments_of_one_pass(tmp_path_factory, data, seed, offset):
    """Also of features whose mean is far from 0, against NumPy in extended precision."""
    folder = tmp_path_factory.mktemp("parts")
    rng = np.random.default_rng(seed)
    n, d = data.draw(st.integers(2, 200)), data.draw(st.integers(1, 6))
    rows = torch.from_numpy((rng.standard_normal((n, d)) * rng.uniform(0.1, 3, d) + offset).astype(np.float32))
    paths = write_parts(folder, rows, data.draw(st.integers(1, min(n, 20))))
    shards.merge(data.draw(st.permutations(paths)), folder / "merged.npz")
    shards.merge(paths, folder / "in-order.npz")
    assert (folder / "merged.npz").read_bytes() == (folder / "in-order.npz").read_bytes()
    found, exact = arrays(folder / "merged.npz"), rows.numpy().astype(np.longdouble)
    mean = exact.mean(0)
    sigma = (exact - mean).T @ (exact - mean) / (n - 1)
    np.testing.assert_allclose(found["mu"], mean.astype(float), rtol=1e-10, atol=1e-10 * max(np.abs(mean).max(), 1))
    deviation = np.sqrt(np.diagonal(sigma)).astype(float)
    error = np.abs(found["sigma"] - sigma.astype(float))
    assert (error <= 1e-10 * np.outer(deviation, deviation) + 1e-300).all()
    assert (int(found["n"]), str(found["extractor"]), str(found["sha256"])) == (n, "net", "a" * 64)
    np.testing.assert_array_equal(found["features"], rows.numpy())


def test_64_shards_some_of_them_killed_and_made_again_are_one_pass(ganbench, place):
    parts = [place / "parts" / f"part-{i:02}.npz" for i in range(1, 65)]
    for i, path in enumerate(parts, 1):
        make(i, 64, path, with_features=True)
    for i in (0, 9, 63):  # cut at several places
        content = parts[i].read_bytes()
        parts[i].write_bytes(content[: len(content) * (i + 1) // 65])
    parts[20].unlink()
    parts[30].unlink()
    (parts[30].parent / ".part-31.npz.77.part").write_bytes(b"PK half-written")
    changed = bytearray(parts[40].read_bytes())
    changed[len(changed) // 2] ^= 1
    parts[40].write_bytes(changed)
    there = [path for path in parts if path.exists()]
    done = ganbench("merge", *there, "--out", "merged.npz")
    assert done.code == 2
    assert "damaged" in done.err
    assert done.err.count("\n") == 1
    whole = {str(p): p.stat().st_mtime_ns for i, p in enumerate(parts) if i not in (0, 9, 20, 30, 40, 63)}
    good = [p for p in parts if str(p) in whole]
    assert not (place / "merged.npz").exists()

    done = ganbench("merge", *good, "--out", "merged.npz")
    assert (done.code, done.out) == (2, "")
    assert "missing are 6 of 64 shards: 1, 10, 21, 31, 41, 64" in done.err
    done = ganbench("merge", *good, "--allow-missing", "--out", "some.npz")
    assert (done.code, done.out) == (0, "some.npz\n")
    some = arrays("some.npz")
    assert some["missing"].tolist() == [1, 10, 21, 31, 41, 64]
    assert int(some["shards"]) == 64
    assert int(some["n"]) == len(some["features"]) == 1297 - sum(len(Shard(i, 64).rows(1297)) for i in some["missing"])
    np.testing.assert_allclose(some["sigma"], np.cov(some["features"].astype(float), rowvar=False), atol=1e-12)

    for i, path in enumerate(parts, 1):
        make(i, 64, path, with_features=True)
    assert {p: (place / p).stat().st_mtime_ns for p in whole} == whole  # finished ones are left alone
    mixed = [parts[i] for i in torch.randperm(64, generator=torch.Generator().manual_seed(1)).tolist()]
    done = ganbench("merge", *mixed, "--out", "merged.npz")
    assert (done.code, done.out, done.err) == (0, "merged.npz\n", "")
    one = ganbench("statistics", "digits:train", "--extractor", "pixels", "--with-features", "--out", "one.npz")
    assert one.code == 0
    assert_same_moments("merged.npz", "one.npz")
    values = []
    for reference in ("merged.npz", "one.npz"):
        done = ganbench(
            "evaluate", "--images", "digits:test", "--reference", reference, "--metrics", "fd_pixels", "--json")
        assert done.code == 0, done.err
        values.append(json.loads(done.out)["measurements"][0]["value"])
    assert values[0] == pytest.approx(values[1], rel=1e-9)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_shard_of_files_reads_its_own_and_not_the_others(place, kind, monkeypatch):
    rng = np.random.default_rng(0)
    for i in range(40):
        write_png(place / "set" / f"{i:02}.png", rng.integers(0, 256, (6, 6), dtype=np.uint8))
    source = "set"
    if kind == "zip":
        source = shutil.make_archive("set", "zip", "set")
        shutil.rmtree("set")
    statistics.run(Request(source, place / "one.npz", "pixels"), QUIET)
    read = []
    from ganbench.data.decoding import File

    whole = File.read
    monkeypatch.setattr(File, "read", lambda self, *more: (read.append(self.name[-6:]), whole(self, *more))[1])
    for i in (1, 2, 3):
        read.clear()
        make(i, 3, place / f"{i}.npz", source)
        # The first file tells the shape of all.
        assert set(read) == {"00.png", *(f"{row:02}.png" for row in Shard(i, 3).rows(40))}
    shards.merge([place / f"{i}.npz" for i in (3, 1, 2)], place / "merged.npz")
    assert_same_moments("merged.npz", "one.npz")


def test_a_shard_of_a_generator_makes_its_own_images(place, monkeypatch):
    """Images that are made on demand, as those of a large number of samples are."""
    from ganbench.data.sources import generators

    class Generator(nn.Module):
        def forward(self, z):
            return torch.tanh(z).view(-1, 1, 4, 4)

    torch.jit.script(Generator()).save("g.pt")
    monkeypatch.setattr(generators, "IN_MEMORY", 0)
    monkeypatch.setattr(generators, "BATCH", 20)
    more = {"num": 150, "latent": "16"}
    statistics.run(Request("g.pt", place / "one.npz", "pixels", **more), QUIET)
    for i in (1, 2, 3, 4):
        make(i, 4, place / f"{i}.npz", "g.pt", **more)
    shards.merge([place / f"{i}.npz" for i in (4, 1, 2, 3)], place / "merged.npz")
    assert_same_moments("merged.npz", "one.npz")
    make(4, 4, place / "other.npz", "g.pt", **more, seed=1)
    with pytest.raises(UserError, match="seed 1, not 0"):
        shards.merge([place / "1.npz", place / "other.npz"], place / "m.npz")


def test_a_set_that_lies_elsewhere_is_the_same_one_and_a_changed_one_is_not(place):
    for i in range(6):
        write_png(place / "a" / f"{i}.png", np.full((4, 4), 40 * i, np.uint8))
    shutil.copytree("a", "elsewhere/b")
    make(1, 2, place / "1.npz", "a")
    make(2, 2, place / "2.npz", "folder:elsewhere/b")
    shards.merge([place / "1.npz", place / "2.npz"], place / "m.npz")
    (place / "a" / "5.png").rename(place / "a" / "6.png")
    make(2, 2, place / "other.npz", "a")
    with pytest.raises(UserError, match=r"other\.npz is of another protocol than .*1\.npz: fingerprint \w{12}\.\.\."):
        shards.merge([place / "1.npz", place / "other.npz"], place / "m.npz")


class Counted(Images):
    """Images of constant colour that count the rows that are asked for at a time."""

    def __init__(self, n):
        self.shape = torch.Size((n, 1, 4, 4))
        self.largest = self.asked = 0

    def batches(self, size, rows=None):
        chosen = torch.arange(len(self))[rows or slice(None)]
        for some in chosen.split(size):
            self.largest, self.asked = max(self.largest, len(some)), self.asked + len(some)
            yield (some % 251).to(torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4).contiguous()


class Net(FeatureExtractor):
    """Few features of an image, in batches of 16."""

    name = "net"

    def forward(self, images):
        x = images.float().mean((1, 2, 3))
        return Features(torch.stack([x, x.square() / 100, 1000 + x.sin()], 1))


def test_one_pass_takes_batches_and_keeps_no_features(monkeypatch):
    from ganbench.data.sources import Samples

    images = Counted(5000)
    made = statistics.measure(Samples(images, None), range(1000, 3000), {"net": Net()}, None, torch.device("cpu"),
                              False, "set", QUIET)
    assert made.features is None
    assert (images.largest, images.asked) == (16, 2001)  # one image tells the number of features
    rows = Net()(torch.cat(list(batches(images, 5000)))).features[1000:3000].double().numpy()
    found = made.moments["net"].moments()
    assert found.n == 2000
    np.testing.assert_allclose(found.cov, np.cov(rows, rowvar=False), rtol=1e-10)


def test_spatial_moments_of_inception_go_through_shards(place, monkeypatch):
    class Spatial(Net):
        name = "inception-v3-spatial"

        def forward(self, images):
            return Features(images[:, 0, :, 0].float())

    class Pool(Net):
        name = "inception-v3"
        sha256 = "b" * 64

    classes = {"inception-v3": Pool, "inception-v3-spatial": Spatial}
    monkeypatch.setattr(statistics.features, "create", lambda name, *more: classes[name]().eval())
    for number in (1, 2, 3, 4):
        statistics.run(Request("digits:test", place / f"{number}.npz", shard=Shard(number, 4)), QUIET)
    statistics.run(Request("digits:test", place / "one.npz"), QUIET)
    shards.merge([place / f"{i}.npz" for i in (2, 4, 1, 3)], place / "merged.npz")
    found = arrays("one.npz")
    assert (found["mu"].shape, found["mu_s"].shape, found["sigma_s"].shape) == ((3,), (8,), (8, 8))
    assert str(found["sha256"]) == "b" * 64
    assert_same_moments("merged.npz", "one.npz")


# --- Part files that are not as they should be ---


def test_a_finished_part_is_left_alone_and_force_makes_it_again(ganbench, place):
    args = ["statistics", "digits:train", "--extractor", "pixels", "--shard", "2/3", "--out", "p.npz"]
    assert ganbench(*args).code == 0
    before = (place / "p.npz").stat().st_mtime_ns
    done = ganbench(*args)
    assert (done.code, done.out) == (0, "p.npz\n")
    assert "nothing to do" in done.err
    assert (place / "p.npz").stat().st_mtime_ns == before
    assert ganbench(*args, "--force").code == 0
    assert (place / "p.npz").stat().st_mtime_ns != before
    assert ganbench(*args, "--with-features").code == 0  # it had none
    assert arrays("p.npz")["features"].shape == (len(Shard(2, 3).rows(1297)), 64)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--shard", "1/3"], ["another part", "shard 2/3, not 1/3"]),
        (["--shard", "2/4"], ["number of shards 3, not 4"]),
        (["--extractor", "mnist-cnn"], ["extractor pixels, not mnist-cnn"]),
        (["--resize", "4:box"], ["not 4:box"]),
        (["--num", "100"], ["number of images 1297, not 100"]),
    ],
)
def test_a_part_of_another_protocol_is_not_written_over(refuses, place, change, words):
    make(2, 3, place / "p.npz")
    args = ["statistics", "digits:train", "--extractor", "pixels", "--shard", "2/3", "--out", "p.npz"]
    refuses(["--out p.npz", "--force", *words], *args, *change)


def test_another_file_is_not_written_over(refuses, place):
    np.savez(place / "p.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    refuses(["p.npz", "no part file"], "statistics", "digits:train", "--extractor", "pixels", "--shard", "2/3", "--out",
            "p.npz")
    refuses(["p.npz", "no part file"], "merge", "p.npz", "--out", "m.npz")


def test_parts_that_do_not_belong_together_are_refused(refuses, place):
    rows = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    one, two, three = write_parts(place, rows, 3)
    shutil.copy(two, place / "again.npz")
    refuses(["shard 2/3 is there twice", "again.npz"], "merge", one, two, three, place / "again.npz", "--out", "m.npz")
    refuses(["there twice"], "merge", one, one, "--out", "m.npz")
    refuses(["missing are 2 of 3 shards: 1, 3"], "merge", two, "--out", "m.npz")
    refuses(["gone.npz"], "merge", one, "gone.npz", "--out", "m.npz")
    refuses(["one of the parts"], "merge", one, two, three, "--out", one)
    refuses([".npz"], "merge", one, two, three, "--out", "m.txt")
    refuses(["Missing argument 'PARTS...'"], "merge", "--out", "m.npz")
    accumulator = MomentsAccumulator()
    accumulator.update(rows[10:20])
    part = part_of(Shard(2, 3), 30)
    for other, words in [
        (replace(part, extractor="other", networks={"other": part.networks["net"]}), "extractor other, not net"),
        (replace(part, networks={"net": {"version": "2", "sha256": "a" * 64}}), "version of net 2, not 1"),
        (replace(part, networks={"net": {"version": "1", "sha256": "c" * 64}}), "sha256 of net cccc"),
        (replace(part, images={**part.images, "fingerprint": "e" * 64}), "fingerprint eeee"),
        (replace(part, images={**part.images, "resize": "4:box"}), "resize 4:box, not null"),
        (replace(part, shard=Shard(3, 4), total=40), "number of shards 4, not 3"),
    ]:
        shards.write(place / "other.npz", other, {next(iter(other.networks)): accumulator}, None)
        refuses([words, "other.npz", "part-1.npz"], "merge", one, place / "other.npz", three, "--out", "m.npz")
    shards.write(two, part, {"net": accumulator}, None)  # without features
    assert shards.merge([one, two, three], place / "m.npz") == "features are left out: 1 of 3 parts have none"
    assert "features" not in arrays("m.npz")


def test_every_damage_of_a_part_is_one_line(refuses, place):
    """Cut anywhere, or one byte changed anywhere that is read."""
    rows = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    one, two = write_parts(place, rows, 2)
    whole = two.read_bytes()
    with zipfile.ZipFile(two) as archive:
        spans = {m.filename: (m.header_offset, m.header_offset + m.file_size) for m in archive.infolist()}
    assert set(spans) == {f"{n}.npy" for n in ("part", "n", "mean_net", "scatter_net", "features", "checksum")}
    refused = 0
    places = sorted({*range(0, len(whole), 97), *(b - 1 for _, b in spans.values())})
    for at in places:
        two.write_bytes(whole[:at])
        with pytest.raises(UserError, match=r"part-2\.npz"):
            shards.merge([one, two], place / "m.npz")
        changed = bytearray(whole)
        changed[at] ^= 255
        two.write_bytes(changed)
        said = ""
        try:
            shards.merge([one, two], place / "m.npz")
        except UserError as error:
            said = str(error)
            refused += 1
        if said:
            assert "part-2.npz" in said
            assert "\n" not in said
        else:  # a byte that says nothing, such as a time: the moments are right
            np.testing.assert_allclose(arrays("m.npz")["sigma"], np.cov(rows.double().numpy(), rowvar=False))
            np.testing.assert_array_equal(arrays("m.npz")["features"], rows.numpy())
            (place / "m.npz").unlink()
        assert not (place / "m.npz").exists()
    assert refused > len(spans)
    two.write_bytes(whole[: len(whole) // 2])
    refuses(["part-2.npz is damaged", "again"], "merge", one, two, "--out", "m.npz")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", "[" * 10_000, '{"protocol": 2}', '{"protocol": 1, "shard": {"number": 2, "of": 1}}',
     '{"protocol": 1, "shard": {"number": 1, "of": 2}, "total": "9", "source": "", "images": {}, "extractor": "a", '
     '"networks": {"a": {"version": "1", "sha256": ""}}}'],
    ids=lambda text: text[:20] or "empty",
)
def test_a_part_that_does_not_say_what_it_is_is_refused(refuses, place, text):
    np.savez(place / "p.npz", part=np.array(text), n=np.array(3))
    refuses(["p.npz is damaged"], "merge", "p.npz", "--out", "m.npz")


# --- Memory, and features that cannot be ---


@pytest.mark.parametrize("shard", [[], ["--shard", "1/2"]])
def test_a_covariance_that_is_too_large_is_refused_before_it_is_made(refuses, place, shard):
    """786,432 features: 4.5 TiB a matrix."""
    for i in range(3):
        write_png(place / "large" / f"{i}.png", np.zeros((512, 512, 3), np.uint8))
    words = ["covariance of 786,432 features", "14 TiB", "free"]
    refuses(words, "statistics", "large", "--extractor", "pixels", "--out", "s.npz", *shard)


def test_features_that_do_not_fit_are_refused(refuses, monkeypatch):
    args = ["statistics", "digits:train", "--extractor", "pixels", "--with-features", "--out", "s.npz"]
    monkeypatch.setattr(memory, "available", lambda: 0)
    monkeypatch.setattr(shards, "require_memory", lambda *sizes: None)
    monkeypatch.setattr(statistics, "memory", memory)
    monkeypatch.setattr(memory, "require", lambda size, what: (_ for _ in ()).throw(UserError(f"{what}: {size}")))
    refuses(["features of 1,297 images", str(4 * 1297 * 64)], *args)


def test_features_that_are_not_finite_are_refused(place, monkeypatch):
    class Broken(Net):
        def forward(self, images):
            x = images.float().mean((1, 2, 3))
            return Features(torch.stack([x, torch.where(x > x.min(), x, torch.nan)], 1))

    monkeypatch.setattr(statistics.features, "create", lambda name, *more: Broken())
    before = everything_below(place)
    with pytest.raises(UserError, match="not finite"):
        make(1, 2, place / "p.npz")
    assert everything_below(place) == before


# --- All shards by a launcher ---


def test_the_local_launcher_makes_all_shards_and_merges_them(ganbench, place):
    pytest.importorskip("submitit")
    args = ["statistics", "digits:test", "--extractor", "pixels", "--num", "400", "--with-features"]
    done = ganbench(*args, "--launcher", "local", "--shards", "2", "--jobs", "2", "--out", "all.npz")
    assert (done.code, done.out) == (0, "all.npz\n"), done.err
    assert sorted(p.name for p in (place / "all-parts").glob("*.npz")) == ["part-1-of-2.npz", "part-2-of-2.npz"]
    assert "shard 2: done" in done.err
    assert ganbench(*args, "--out", "one.npz").code == 0
    assert_same_moments("all.npz", "one.npz")


def test_the_slurm_launcher_submits_a_command_a_shard(ganbench, place, monkeypatch):
    from ganbench.reproduction import launching

    seen = []
    monkeypatch.setattr(launching, "submit_to_slurm", lambda jobs, *more: (
        seen.append((jobs, *more)), [f"7_{i}" for i in range(len(jobs))])[1])
    done = ganbench("statistics", "digits:test", "--extractor", "pixels", "--launcher", "slurm", "--shards", "12",
                    "--launcher-arg", "slurm_partition=gpu", "--jobs", "4", "--batch-size", "8", "--force", "--quiet",
                    "--out", "big/all.npz")
    assert done.code == 0, done.err
    [(jobs, folder, parameters, at_once)] = seen
    assert (str(folder), parameters, at_once, len(jobs)) == ("big/all-parts", {"slurm_partition": "gpu"}, 4, 12)
    assert jobs[2].args == (
        "statistics", "digits:test", "--shard", "3/12", "--out", "big/all-parts/part-03-of-12.npz", "--offline",
        *jobs[2].args[7:])
    assert sorted(jobs[2].args[7:]) == sorted(
        ["--extractor", "pixels", "--batch-size", "8", "--force", "--quiet"])
    assert done.out.splitlines()[2].startswith("7_2  ganbench statistics digits:test --shard 3/12")
    assert ganbench(*jobs[2].args).code == 0
    assert (place / "big" / "all-parts" / "part-03-of-12.npz").exists()
