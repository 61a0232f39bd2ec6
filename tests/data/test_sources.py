"""Sources of images: generators in files, labels from a CSV, moments in an npz, resizing, order, several processes."""

import json
import warnings
import zipfile

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from support import Forked, save_tiny, tiny_dcgan, two_forked, write_png
from torch import nn

from ganbench import features
from ganbench.base.errors import UserError
from ganbench.cli.options import PRIORS as OFFERED
from ganbench.data import datasets, resizing, sources
from ganbench.data.images import to_uint8
from ganbench.data.sources import Options, open_source
from ganbench.data.sources.generators import PRIORS
from ganbench.metrics.inception_score import inception_score

# --- Generators ---

D = 6


class Plain(nn.Module):
    """Maps z (N x 6) to tanh images of 8 x 8. It stores the size of z, as torch-fidelity's generators do."""

    z_size: int

    def __init__(self, size: int = D):
        super().__init__()
        self.z_size = size
        self.linear = nn.Linear(D, 64)

    def forward(self, z):
        return torch.tanh(3 * self.linear(z)).view(-1, 1, 8, 8)


class Labelled(Plain):
    """Returns uint8 images of a class. It also stores the number of classes and the prior."""

    num_classes: int
    z_type: str

    def __init__(self):
        super().__init__()
        self.num_classes, self.z_type = 3, "uniform_0_1"
        self.embed = nn.Embedding(3, 64)

    def forward(self, z, y):
        x = torch.tanh(self.linear(z) + self.embed(y)).view(-1, 1, 8, 8)
        return (x * 127 + 128).to(torch.uint8)


class Echo(nn.Module):
    """Returns the latents themselves as an image of one row."""

    def forward(self, z):
        return z.flatten(1)[:, None, None, :].clamp(-1, 1)


class Noisy(Plain):
    """Adds noise that it draws itself."""

    def forward(self, z):
        x = torch.tanh(self.linear(z)).view(-1, 1, 8, 8)
        return x + 0.1 * torch.randn_like(x)


def script(module, path, trace=None):
    """Write a module as TorchScript, and return it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.script(module.eval()) if trace is None else torch.jit.trace(module.eval(), trace)
        torch.jit.save(made, path)
    return module


@pytest.fixture(autouse=True)
def same_weights():
    torch.manual_seed(0)


def test_torchscript_is_called_with_latents_of_a_seeded_normal_in_batches_of_500(place):
    net = script(Plain(), "g.pt")
    made = open_source("g.pt", 1100, seed=3)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        expected = torch.cat([to_uint8(net(torch.randn(n, D, generator=generator))) for n in (500, 500, 100)])
    assert (made.images.int() - expected.int()).abs().max() <= 1
    assert (made.images == expected).float().mean() > 0.999
    assert made.labels is None
    assert made.origin["kind"] == "torchscript"
    assert (made.origin["latent"], made.origin["prior"], made.origin["classes"]) == ([D], "normal", 0)
    assert (made.origin["seed"], made.origin["batch_size"]) == (3, 500)
    assert len(made.origin["sha256"]) == 64
    assert torch.equal(open_source("g.pt", 1100, seed=3).images, made.images)
    assert not torch.equal(open_source("g.pt", 1100, seed=4).images, made.images)


def test_a_labelled_generator_gets_balanced_labels_and_its_attributes_give_classes_and_prior(place):
    net = script(Labelled(), "g.ts")
    made = open_source("g.ts", 7)
    y = torch.arange(7) % 3
    with torch.no_grad():
        expected = net(torch.rand(7, D, generator=torch.Generator().manual_seed(0)), y)
    assert torch.equal(made.labels, y)
    assert (made.images.int() - expected.int()).abs().max() <= 1
    assert (made.origin["prior"], made.origin["classes"]) == ("uniform_0_1", 3)
    assert open_source("g.ts", 7, options=Options(prior="normal")).origin["prior"] == "normal"


def test_options_give_what_a_trace_does_not_store(place):
    script(Echo(), "g.torchscript", torch.zeros(2, 4, 1, 1))
    made = open_source("g.torchscript", 9, options=Options(latent=(4, 1, 1), prior="uniform"))
    z = torch.rand(9, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(made.images, to_uint8(z[:, None, None]))


@pytest.mark.parametrize(("prior", "low", "high", "mean", "std"), [
    ("normal", -9, 9, 0, 1), ("uniform", -1, 1, 0, 3**-0.5), ("uniform_0_1", 0, 1, 0.5, 12**-0.5),
    ("unit", -1, 1, 0, 0.5),
])
def test_each_prior_is_the_distribution_of_its_name(prior, low, high, mean, std):
    z = PRIORS[prior](20_000, (2, 2), torch.Generator().manual_seed(0))
    assert z.shape == (20_000, 2, 2)
    assert low <= z.min() < z.max() <= high
    assert z.mean().item() == pytest.approx(mean, abs=0.01)
    assert z.std().item() == pytest.approx(std, abs=0.01)
    if prior == "unit":
        torch.testing.assert_close(z.flatten(1).norm(dim=1), torch.ones(20_000))


def test_the_command_line_offers_all_priors():
    assert set(OFFERED) == set(PRIORS)


def test_the_seed_fixes_noise_inside_a_network_and_the_global_random_state_is_unchanged(place):
    script(Noisy(), "g.pt")
    state = torch.get_rng_state()
    a, b, c = (open_source("g.pt", 600, seed).images for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def write_onnx(path, net, z_shape=("n", D), labelled=False, z_type=TensorProto.FLOAT, outputs=("n", 1, 8, 8)):
    """The graph of a Plain or Labelled network's linear layer and tanh, built node by node."""
    weights = {
        "w": net.linear.weight.detach().numpy().T.copy(),
        "b": net.linear.bias.detach().numpy(),
        "shape": np.array([-1, 1, 8, 8]),
        "flat": np.array([-1, D]),
        "three": np.array(3, np.float32),
    }
    inputs = [helper.make_tensor_value_info("z", z_type, z_shape)]
    nodes = [helper.make_node("Reshape", ["z", "flat"], ["z2"]), helper.make_node("Gemm", ["z2", "w", "b"], ["h"])]
    if labelled:
        weights["e"] = net.embed.weight.detach().numpy()
        inputs.append(helper.make_tensor_value_info("y", TensorProto.INT32, z_shape[:1]))
        nodes += [helper.make_node("Gather", ["e", "y"], ["c"]), helper.make_node("Add", ["h", "c"], ["k"])]
    else:
        nodes += [helper.make_node("Mul", ["h", "three"], ["k"])]
    nodes += [helper.make_node("Tanh", ["k"], ["t"]), helper.make_node("Reshape", ["t", "shape"], ["x"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, outputs)
    graph = helper.make_graph(nodes, "g", inputs, [x], [numpy_helper.from_array(v, k) for k, v in weights.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def test_onnx_gives_the_images_of_the_same_network_in_torchscript(place):
    net = script(Plain(), "g.pt")
    write_onnx("g.onnx", net)
    a, b = open_source("g.pt", 700, seed=2), open_source("g.onnx", 700, seed=2)
    assert (a.images.int() - b.images.int()).abs().max() <= 1
    assert (a.images == b.images).float().mean() > 0.999
    assert b.origin["kind"] == "onnx"
    assert b.origin["latent"] == [D]


@pytest.mark.parametrize("shape", [(4, D), ("n", D, 1, 1), (4, D, 1, 1)], ids=str)
def test_onnx_with_a_fixed_batch_size_or_more_axes_of_z_gives_the_same_images(place, shape):
    net = Plain()
    write_onnx("a.onnx", net)
    write_onnx("b.onnx", net, shape, outputs=(shape[0], 1, 8, 8))
    a, b = open_source("a.onnx", 10), open_source("b.onnx", 10)
    assert (a.images.int() - b.images.int()).abs().max() <= 1
    assert b.origin["latent"] == list(shape[1:])


@pytest.mark.parametrize("batch", ["n", 4], ids=str)
def test_labelled_onnx_gets_balanced_labels_and_the_option_gives_the_classes(place, batch):
    net = Labelled()
    write_onnx("g.onnx", net, (batch, D), labelled=True, outputs=(batch, 1, 8, 8))
    made = open_source("g.onnx", 7, options=Options(classes=3))
    y = torch.arange(7) % 3
    z = torch.randn(7, D, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = to_uint8(torch.tanh(net.linear(z) + net.embed(y)).view(-1, 1, 8, 8))
    assert torch.equal(made.labels, y)
    assert (made.images.int() - expected.int()).abs().max() <= 1


def test_onnx_without_a_size_of_z_needs_the_option(place):
    write_onnx("g.onnx", Plain(), ("n", "d"))
    with pytest.raises(UserError, match=r"g\.onnx does not say the size of its latents: give --latent"):
        open_source("g.onnx", 3)
    assert open_source("g.onnx", 3, options=Options(latent=(D,))).images.shape == (3, 1, 8, 8)


class Fixed(Plain):
    """Takes four latents at a time and no other number, as a network whose batch size was traced into it."""

    def forward(self, z):
        return torch.tanh(3 * self.linear(z)).view(4, 1, 8, 8)


class Repeating(Plain):
    """Returns four images whatever it is asked for."""

    def forward(self, z):
        return torch.tanh(3 * self.linear(z[:1])).view(-1, 1, 8, 8).expand(4, 1, 8, 8)


def test_a_generator_of_one_batch_size_is_called_with_that_and_its_message_asks_for_it(ganbench, refuses, place):
    fixed = script(Fixed(), "g.pt")
    plain = Plain()
    plain.load_state_dict(fixed.state_dict())
    script(plain, "p.pt")
    expected = open_source("p.pt", 602, seed=2)
    made = open_source("g.pt", 602, seed=2, options=Options(generator_batch=4))
    assert (made.images.int() - expected.images.int()).abs().max() <= 1
    assert len(made.images) == 602
    assert (made.origin["generator_batch"], "generator_batch" in expected.origin) == (4, False)
    args = ["evaluate", "--reference", "digits:test", "--metrics", "fd_pixels", "--num", "10", "--images"]
    said = refuses(["g.pt failed when called with (10, 6)", "--generator-batch N."], *args, "g.pt")
    assert said.count("--generator-batch") == 1
    script(Repeating(), "r.pt")
    refuses(["returned shape (4, 1, 8, 8)", "--generator-batch 4."], *args, "r.pt")
    done = ganbench(*args, "g.pt", "--generator-batch", "4", "--json")
    assert json.loads(done.out)["fake"]["generator_batch"] == 4
    for command in (["statistics", "g.pt", "--extractor", "pixels", "--num", "10", "--out", "s.npz"],
                    ["neighbours", "--images", "g.pt", "--reference", "digits", "--num", "10", "--out", "n.png"]):
        assert ganbench(*command, "--generator-batch", "4").code == 0


def test_the_batch_size_in_an_onnx_file_is_the_one_and_the_option_gives_one_that_is_not_there(refuses, place):
    write_onnx("g.onnx", Plain(), (4, D), outputs=(4, 1, 8, 8))
    assert open_source("g.onnx", 10, options=Options(generator_batch=4)).origin["generator_batch"] == 4
    args = ["evaluate", "--reference", "digits:test", "--metrics", "fd_pixels", "--num", "10", "--images"]
    refuses(["--generator-batch 3", "g.onnx says 4"], *args, "g.onnx", "--generator-batch", "3")
    write_onnx("n.onnx", Plain())
    any_number = open_source("n.onnx", 10)
    assert "generator_batch" not in any_number.origin
    by_seven = open_source("n.onnx", 10, options=Options(generator_batch=7))
    assert (by_seven.images.int() - any_number.images.int()).abs().max() <= 1
    refuses(["--generator-batch", "leave it out"], *args, "digits:train", "--generator-batch", "4")


def test_evaluate_measures_a_generator_and_records_how_it_was_sampled(ganbench, place):
    script(Labelled(), "g.pt")
    args = ["evaluate", "--images", "g.pt", "--num", 30, "--reference", "digits:test", "--metrics", "fd_pixels,ms_ssim"]
    done = ganbench(*args, "--json")
    assert done.code == 0, done.err
    assert done.err.strip() == ""
    result = json.loads(done.out)
    assert all(m["value"] is not None for m in result["measurements"])
    fake = result["fake"]
    assert (fake["kind"], fake["name"], fake["count"], fake["labels"]) == ("torchscript", "g.pt", 30, True)
    assert (fake["latent"], fake["prior"], fake["classes"]) == ([D], "uniform_0_1", 3)
    other = ganbench(*args, "--prior", "normal", "--json")
    assert json.loads(other.out)["measurements"][0]["value"] != result["measurements"][0]["value"]


# --- Latents apart from the network, and several processes ---


TOGETHER = """
import sys, torch
from pathlib import Path
from ganbench.base import distributed
from ganbench.data import sources
from ganbench.gan import checkpoint
from ganbench.base.errors import UserError
distributed.start()
cpu, out = torch.device("cpu"), {}
gan, _ = checkpoint.load(Path("tiny.safetensors"))
for num in (1100, 5):
    calls = []
    plain = type(gan).generate
    def counted(self, z, y=None): calls.append(len(z)); return plain(self, z, y)
    type(gan).generate = counted
    made = sources.generate(gan, num, 3, cpu)
    type(gan).generate = plain
    out[f"gan {num}"], out[f"labels {num}"], out[f"calls {num}"] = made.images, made.labels, calls
    made = sources.open_source("g.pt", num, 3)
    out[f"script {num}"], out[f"fingerprint {num}"] = made.images, made.origin["fingerprint"]
plain = type(gan).generate
def broken(self, z, y=None):
    x = plain(self, z, y)
    return x if distributed.rank() == 0 else x * float("nan")
type(gan).generate = broken
try:
    sources.generate(gan, 1100, 3, cpu)
except UserError as error:
    out["error"] = str(error)
torch.save(out, f"{distributed.world_size()}-{distributed.rank()}.tensors")
distributed.stop()
"""


def test_processes_share_the_batches_and_all_have_the_images_of_one_process(place):
    save_tiny(place / "tiny.safetensors")
    script(Noisy(), "g.pt")
    (place / "together.py").write_text(TOGETHER)
    for process in [Forked("together.py", cwd=place), *two_forked("together.py", cwd=place)]:
        done = process.wait()
        assert done.code == 0, done.err
    alone, *both = (torch.load(f"{name}.tensors") for name in ("1-0", "2-0", "2-1"))
    assert [both[0]["calls 1100"], both[1]["calls 1100"]] == [[500], [500, 100]]
    assert [both[0]["calls 5"], both[1]["calls 5"]] == [[], [5]]
    assert alone["gan 1100"].shape == (1100, 1, 8, 8)
    for part in both:
        for num in (1100, 5):
            for key in ("gan", "labels", "script"):
                assert torch.equal(part[f"{key} {num}"], alone[f"{key} {num}"]), (key, num)
            assert part[f"fingerprint {num}"] == alone[f"fingerprint {num}"]
        assert "NaN" in part["error"]  # NaN in one process is reported by both
    assert "error" not in alone


# --- Labels from a CSV ---


def write_csv(path, rows, header="file,label", encoding="utf-8"):
    path.write_text("\n".join([header, *(f"{a},{b}" for a, b in rows)]) + "\n", encoding=encoding)
    return path


def numbered(place, names):
    """Write 8 x 8 images; all pixels of image i are i."""
    for i, name in enumerate(names):
        write_png(place / "set" / name, np.full((8, 8), i, np.uint8))
    return place / "set"


def test_a_csv_labels_a_folder_in_any_order_of_its_lines(place):
    folder = numbered(place, ["a.png", "b.png", "sub/c.png"])
    file = write_csv(place / "l.csv", [("./sub/c.png", 7), ("a.png", 2), ("b.png", 7)])
    made = open_source(str(folder), options=Options(labels_file=file))
    assert made.images[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert made.labels.tolist() == [2, 7, 7]
    assert made.labels.dtype == torch.int64
    assert made.origin["labels_from"] == "l.csv"
    write_csv(file, [("sub/c.png", 7), ("a.png", 2), ("b.png", 3)])
    other = open_source(str(folder), options=Options(labels_file=file))
    assert other.origin["fingerprint"] != made.origin["fingerprint"]


def test_names_in_a_csv_are_classes_in_sorted_order_and_replace_the_class_folders(place):
    folder = numbered(place, ["x/1.png", "x/2.png", "y/1.png"])
    rows = [("x/1.png", '"zebra, plain"'), ("x/2.png", "ant"), ("y/1.png", '"zebra, plain"')]
    file = write_csv(place / "l.csv", rows, encoding="utf-8-sig")  # as spreadsheets write it
    assert open_source(str(folder)).labels.tolist() == [0, 0, 1]
    assert open_source(str(folder), options=Options(labels_file=file)).labels.tolist() == [1, 0, 1]


def test_a_csv_labels_the_members_of_a_zip_and_a_split_of_a_folder(place):
    folder = numbered(place, ["train/b.png", "train/a.png"])
    with zipfile.ZipFile("a.zip", "w") as archive:
        for name in ("b.png", "a.png"):
            archive.write(folder / "train" / name, name)
    options = Options(labels_file=write_csv(place / "l.csv", [("a.png", 5), ("b.png", 1)]))
    for source in ("a.zip", str(folder), f"folder:{folder}:train"):
        made = open_source(source, options=options)
        assert made.labels.tolist() == [5, 1]
        assert made.images[:, 0, 0, 0].tolist() == [1, 0]


def test_evaluate_reads_labels_of_both_sets(ganbench, place):
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png", "c.png", "d.png"):
        write_png(place / "fake" / name, rng.integers(0, 256, (28, 28), dtype=np.uint8))
        write_png(place / "real" / name, rng.integers(0, 256, (28, 28), dtype=np.uint8))
    write_csv(place / "l.csv", [(f"{c}.png", i) for i, c in enumerate("abcd")])
    sets = ["--images", "fake", "--image-labels", "l.csv", "--reference", "real", "--reference-labels", "l.csv"]
    done = ganbench("evaluate", *sets, "--metrics", "discriminability_mnist-cnn,fd_pixels", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["fake"]["labels"] is result["reference"]["labels"] is True
    assert result["fake"]["labels_from"] == result["reference"]["labels_from"] == "l.csv"
    assert result["measurements"][0]["value"] is not None


def test_a_class_has_the_same_label_in_both_sets_if_both_have_names(place):
    reference = open_source(str(numbered(place / "r", ["ant/1.png", "cat/1.png", "dog/1.png"])))
    folder = numbered(place / "f", ["bee/1.png", "cat/1.png", "dog/1.png", "dog/2.png"])
    fake = open_source(str(folder))
    assert fake.labels.tolist() == [0, 1, 2, 2]
    made = sources.aligned(fake, reference)
    assert made.labels.tolist() == [3, 1, 2, 2]
    assert made.classes == ("ant", "cat", "dog", "bee")
    assert made.images is fake.images
    with zipfile.ZipFile("a.zip", "w") as archive:
        for name in ("cat/1.png", "dog/1.png"):
            archive.write(folder / name, name)
    assert sources.aligned(open_source("a.zip"), reference).labels.tolist() == [1, 2]
    numbers = open_source(str(numbered(place / "n", ["1/a.png", "2/a.png"])))
    assert sources.aligned(numbers, reference) is numbers
    assert sources.aligned(fake, open_source("digits")) is fake
    plain = open_source(str(numbered(place / "p", ["a.png"])))
    assert sources.aligned(plain, reference) is plain
    assert sources.aligned(fake, plain) is fake


def test_evaluate_compares_classes_by_their_names(ganbench, place, monkeypatch):
    seen = []
    aligned = sources.aligned
    monkeypatch.setattr(sources, "aligned", lambda *sets: seen.append(aligned(*sets)) or seen[-1])
    reference = numbered(place / "r", ["ant/1.png", "cat/1.png", "cat/2.png"])
    numbered(place / "f", ["a.png", "b.png"])
    write_csv(place / "l.csv", [("a.png", "cat"), ("b.png", "ant")])
    done = ganbench("evaluate", "--images", "f/set", "--image-labels", "l.csv", "--reference", reference,
                    "--metrics", "fd_pixels")
    assert done.code == 0, done.err
    assert seen[0].labels.tolist() == [1, 0]


# --- Moments in an npz ---


def moments(d=5, extra=None):
    x = np.random.default_rng(0).normal(size=(40, d))
    arrays = {"mu": x.mean(0).astype(np.float32), "sigma": np.cov(x, rowvar=False)}
    return arrays | (extra or {})


def test_moments_of_an_npz_are_read_and_dropped_after_a_draw_or_a_resize(place):
    images = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    spatial = {"mu_s": np.zeros(3), "sigma_s": np.eye(3)}
    np.savez("a.npz", arr_0=images, **moments(extra=spatial))
    made = open_source("a.npz")
    assert torch.equal(made.images, torch.from_numpy(images).permute(0, 3, 1, 2))
    assert set(made.moments) == {"mu", "sigma", "mu_s", "sigma_s"}
    assert all(m.dtype == torch.float64 for m in made.moments.values())
    np.testing.assert_allclose(made.moments["sigma"].numpy(), moments()["sigma"], rtol=1e-12)
    assert made.origin["moments"] == {"arrays": ["mu", "mu_s", "sigma", "sigma_s"]}
    assert open_source("a.npz", 6).moments is not None
    assert open_source("a.npz", 5).moments is None
    assert open_source("a.npz", options=Options(resize=resizing.parse("4:box"))).moments is None
    np.savez("b.npz", arr_0=images)
    assert open_source("b.npz").moments is None


def test_moments_without_images_are_read_only_on_request(place):
    np.savez("a.npz", **moments())
    made = open_source("a.npz", options=Options(moments_alone=True))
    assert made.images.shape == (0, 3, 1, 1)
    assert made.images.dtype == torch.uint8
    assert set(made.moments) == {"mu", "sigma"}
    np.savez("b.npz", **moments(extra={"mu": np.zeros(5)}))
    other = open_source("b.npz", options=Options(moments_alone=True))
    assert other.origin["fingerprint"] != made.origin["fingerprint"]
    with pytest.raises(UserError, match=r"a\.npz holds moments and no images"):
        open_source("a.npz")


# --- The statistics command ---


def test_statistics_are_the_mean_and_the_unbiased_covariance_of_the_features(ganbench, place):
    done = ganbench("statistics", "digits:test", "--extractor", "pixels", "--out", "s.npz")
    assert (done.code, done.out) == (0, "s.npz\n")
    x = datasets.load("digits:test").images.flatten(1).double().numpy()
    with np.load("s.npz") as file:
        assert set(file.files) == {"mu", "sigma", "n", "extractor", "sha256"}
        assert file["mu"].dtype == file["sigma"].dtype == np.float64
        # The features of `pixels` are the pixels times a constant.
        scale = file["mu"].max() / x.mean(0).max()
        np.testing.assert_allclose(file["mu"], scale * x.mean(0), atol=1e-6 * scale * 255)
        np.testing.assert_allclose(file["sigma"], scale**2 * np.cov(x, rowvar=False), atol=1e-6 * (scale * 255) ** 2)
        assert (int(file["n"]), str(file["extractor"]), str(file["sha256"])) == (500, "pixels", "")
    made = open_source("s.npz", options=Options(moments_alone=True))
    assert made.origin["moments"] == {"arrays": ["mu", "sigma"], "n": 500, "extractor": "pixels", "sha256": ""}


def test_statistics_with_images_are_an_npz_that_evaluate_reads(ganbench, place):
    args = ["statistics", "digits:test", "--extractor", "mnist-cnn", "--with-images", "--num", "50", "--out"]
    assert ganbench(*args, "s.npz").code == 0
    made, drawn = open_source("s.npz"), open_source("digits:test", 50)
    assert torch.equal(made.images, drawn.images)
    assert torch.equal(made.labels, drawn.labels)
    assert made.moments["sigma"].shape == (128, 128)
    assert len(made.origin["moments"]["sha256"]) == 64
    with np.load("s.npz") as file:
        assert file["arr_0"].shape == (50, 8, 8, 1)


def test_metrics_that_need_images_or_another_network_are_unavailable_with_statistics_as_reference(ganbench, place):
    rng = np.random.default_rng(0)
    np.savez("a.npz", arr_0=rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8))
    assert ganbench("statistics", "a.npz", "--extractor", "mnist-cnn", "--out", "s.npz").code == 0
    done = ganbench("evaluate", "--images", "a.npz", "--reference", "s.npz", "--metrics", "fd_pixels,kd_mnist-cnn")
    assert done.code == 1, done.err
    assert done.out.count("unavailable") == 2
    assert done.out.count("file of moments") == 2


@pytest.fixture
def random_inception(place):
    """A file with random weights of the network of FID."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Blank(FeatureExtractorInceptionV3):
        def load_state_dict(self, *args, **kwargs):
            return None

    torch.save({}, place / "blank.pth")
    net = Blank("inception-v3", ["2048"], str(place / "blank.pth"))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0, (2 / module.weight[0].numel()) ** 0.5)
    torch.save(net.state_dict(), place / "random.pth")
    return place / "random.pth"


def test_statistics_of_inception_hold_the_arrays_that_adm_s_evaluator_reads(ganbench, place, random_inception):
    rng = np.random.default_rng(0)
    np.savez("a.npz", arr_0=rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8))
    done = ganbench("statistics", "a.npz", "--weights", f"inception-v3={random_inception}", "--out", "s.npz",
                    "--with-images", "--device", "cpu")
    assert done.code == 0, done.err
    with np.load("s.npz") as file:  # as its `read_statistics` and `read_activations` do
        assert "mu" in list(file.keys())
        assert (file["mu"].shape, file["sigma"].shape) == ((2048,), (2048, 2048))
        assert (file["mu_s"].shape, file["sigma_s"].shape) == ((2023,), (2023, 2023))
        assert file["arr_0"].shape == (3, 8, 8, 3)
        spatial, mean = file["mu_s"].reshape(17, 17, 7), file["mu"]
    # The network's own first 17 x 17 blocks, as torch-fidelity has them.
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    net, seen = FeatureExtractorInceptionV3("inception-v3", ["2048"], str(random_inception)), []
    net.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, out: seen.append(out))
    with torch.inference_mode():
        [pool] = net(open_source("a.npz").images)
    expected = seen[0][:, :7].mean(0).permute(1, 2, 0).numpy()
    assert expected.std() > 0
    np.testing.assert_allclose(spatial, expected, atol=1e-4 * expected.std())
    np.testing.assert_allclose(mean, pool.mean(0).numpy(), atol=1e-4 * pool.std().item())


# --- Resizing ---


FILTERS = {"pil-bicubic": Image.BICUBIC, "pil-bilinear": Image.BILINEAR, "pil-lanczos": Image.LANCZOS, "box": Image.BOX}


@pytest.mark.parametrize("method", FILTERS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(20, 31), (6, 7)], ids=["smaller", "larger"])
def test_each_method_equals_pillow_on_8_bits(method, channels, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, channels), dtype=np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    expected = np.array(Image.fromarray(pixels.squeeze()).resize((12, 12), FILTERS[method])).reshape(12, 12, channels)
    assert np.array_equal(resizing.parse(f"12:{method}")(image).permute(1, 2, 0).numpy(), expected)
    h, w = size
    top, left, side = (h - min(size)) // 2, (w - min(size)) // 2, min(size)
    square = Image.fromarray(pixels.squeeze()).crop((left, top, left + side, top + side))
    expected = np.array(square.resize((12, 12), FILTERS[method])).reshape(12, 12, channels)
    assert np.array_equal(resizing.parse(f"12:crop-{method}")(image).permute(1, 2, 0).numpy(), expected)


def test_an_image_of_the_right_size_is_unchanged_and_a_crop_takes_the_centre():
    image = torch.arange(3 * 4 * 6, dtype=torch.uint8).view(3, 4, 6)
    for method in FILTERS:
        assert torch.equal(resizing.parse(f"4:crop-{method}")(image), image[:, :, 1:5])
        assert torch.equal(resizing.parse(f"4:{method}")(image[:, :, :4]), image[:, :, :4])


def test_images_of_several_sizes_become_one_set_from_a_folder_and_from_a_zip(place):
    rng = np.random.default_rng(0)
    with zipfile.ZipFile("a.zip", "w") as archive:
        for i, size in enumerate([(8, 8), (9, 20), (30, 16)]):
            name = f"{i}.png"
            archive.write(write_png(place / "set" / name, rng.integers(0, 256, (*size, 3), dtype=np.uint8)), name)
    with pytest.raises(UserError, match=r"1\.png is 20x9 .* --resize"):
        _ = open_source("set").images[:]
    options = Options(resize=resizing.parse("8:crop-box"))
    a, b = open_source("set", options=options), open_source("a.zip", options=options)
    assert a.images.shape == (3, 3, 8, 8)
    assert torch.equal(a.images[:], b.images[:])
    assert a.origin["fingerprint"] == b.origin["fingerprint"]
    assert a.origin["resize"] == b.origin["resize"] == "8:crop-box"
    other = open_source("set", options=Options(resize=resizing.parse("8:box")))
    assert other.origin["fingerprint"] != a.origin["fingerprint"]  # so that cached features are not mixed up


def test_resize_is_applied_to_all_sets_and_recorded(ganbench, ckpt, place):
    args = ["--reference", "digits:train", "--metrics", "fd_pixels", "--resize", "4:box", "--num", "40", "--json"]
    for source in (["--ckpt", ckpt], ["--images", "digits:test"]):
        done = ganbench("evaluate", *source, *args)
        assert done.code == 0, done.err
        result = json.loads(done.out)
        for side in ("fake", "reference", "held_out"):
            assert result[side]["shape"] == [1, 4, 4], side
            assert result[side]["resize"] == "4:box"
        assert result["real"][0]["value"] is not None


# --- Order ---


def test_images_sorted_by_class_have_the_same_values_as_shuffled_ones(ganbench, place):
    """In other implementations, each split of the Inception Score would hold images of one class only."""
    data = datasets.load("digits:train")
    by_class = torch.argsort(data.labels, stable=True)
    shuffled = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    values = {}
    for name, rows in (("sorted", by_class), ("shuffled", shuffled)):
        np.savez(f"{name}.npz", arr_0=data.images[rows].permute(0, 2, 3, 1).numpy(), arr_1=data.labels[rows].numpy())
        done = ganbench("evaluate", "--images", f"{name}.npz", "--reference", "digits:test", "--json", "--metrics",
                        "fd_pixels,score_mnist-cnn")
        assert done.code == 0, done.err
        values[name] = json.loads(done.out)["measurements"]
    (fd, score), (fd2, score2) = values["sorted"], values["shuffled"]
    assert fd["value"] == pytest.approx(fd2["value"], rel=1e-9)
    assert abs(score["value"] - score2["value"]) <= min(score["uncertainty"]["value"], score2["uncertainty"]["value"])
    # Splits in the order of the file would score lower by more than this tolerance, so the test can fail.
    logits = features.extract(features.create("mnist-cnn"), data.images[by_class], 500, torch.device("cpu")).logits
    assert inception_score(logits).mean() < score["value"] - 3 * score["uncertainty"]["value"]


def test_the_npz_of_sample_is_read_back(ganbench, place):
    save_tiny(place / "tiny.safetensors", tiny_dcgan())
    assert ganbench("sample", "--ckpt", "tiny.safetensors", "--num", 12, "--out", "a.npz").code == 0
    made = sources.open_source("a.npz")
    assert made.images.shape == (12, 1, 8, 8)
    assert made.moments is None


@pytest.mark.parametrize("images", ["digits:test", "colour.npz"])
def test_statistics_as_reference_give_the_same_value_as_their_images(ganbench, place, images):
    rng = np.random.default_rng(0)
    for name in ("colour", "other"):
        np.savez(f"{name}.npz", arr_0=rng.integers(0, 256, (90, 8, 8, 3), dtype=np.uint8))
    reference = "other.npz" if images == "colour.npz" else "digits:train"
    assert ganbench("statistics", reference, "--extractor", "mnist-cnn", "--out", "s.npz").code == 0
    values = []
    for source in (reference, "s.npz"):
        done = ganbench("evaluate", "--images", images, "--reference", source, "--metrics", "fd_mnist-cnn", "--json")
        assert done.code == 0, done.err
        values.append(json.loads(done.out)["measurements"][0]["value"])
    assert values[1] == pytest.approx(values[0], rel=1e-6)
    done = ganbench("evaluate", "--images", images, "--reference", "s.npz", "--metrics", "fd_pixels,kd_mnist-cnn")
    assert done.code == 1
    assert done.out.count("unavailable") >= 2
