"""What a user gets wrong ends with exit code 2, one line that says what, where and what to do, and nothing written."""

import io
import json
import pickle
import shutil
import struct
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support import TINY, everything_below, process, save_tiny, tiny_dcgan, write_png, write_recipe

from ganbench.gan import checkpoint

# --- Names that there are not ---


@pytest.mark.parametrize(
    ("words", "args"),
    [
        (
            ["unknown model 'dcgn'", "Did you mean 'dcgan'?"],
            ["evaluate", "--model", "dcgn", "--ckpt", "tiny.safetensors"],
        ),
        (
            ["unknown model 'dcgn'", "Did you mean 'dcgan'?"],
            ["sample", "--model", "dcgn", "--ckpt", "tiny.safetensors", "--grid", "a.png"],
        ),
        (["unknown recipe 'dcgan-digit'", "Did you mean 'dcgan-digits'?"], ["reproduce", "dcgan-digit"]),
        (["unknown recipe 'bigan-tabel1'", "Did you mean 'bigan-table1'?"], ["reproduce", "bigan-tabel1"]),
        (["unknown recipe 'bigan-tabel1'", "Did you mean 'bigan-table1'?"], ["table", "bigan-tabel1"]),
        (["no split '1x8'", "synthetic:CxHxW"], ["evaluate", "--images", "synthetic:1x8"]),
        (["unknown recipe 'wgan'", "`ganbench list recipes`"], ["reproduce", "wgan"]),
        (
            ["--weights small-cnn", "no metric", "dcgan-digits"],
            ["reproduce", "dcgan-digits", "--weights", "small-cnn=tiny.safetensors"],
        ),
        (
            ["--weights pixels=gone.pth", "no such file", "dcgan-digits"],
            ["reproduce", "dcgan-digits", "--weights", "pixels=gone.pth"],
        ),
        (["'synthetic' has no split 'train'"], ["reproduce", "dcgan-digits", "--data", "synthetic:train"]),
        (["unknown metric 'fdi'"], ["evaluate", "--ckpt", "tiny.safetensors", "--metrics", "fdi"]),
        (
            ["unknown extractor 'pixel'", "Did you mean 'pixels'?"],
            ["evaluate", "--ckpt", "tiny.safetensors", "--metrics", "fd_pixel"],
        ),
        (
            ["unknown extractor 'pixel'", "Did you mean 'pixels'?"],
            ["evaluate", "--ckpt", "tiny.safetensors", "--extractor", "pixel"],
        ),
        (["cannot read images from 'digts'", "Did you mean 'digits'?"], ["evaluate", "--images", "digts"]),
        (["unknown dataset 'digts'", "Did you mean 'digits'?"], ["reproduce", "dcgan-digits", "--data", "digts"]),
        (
            ["unknown dataset 'digts'", "Did you mean 'digits'?"],
            ["train-classifier", "digts", "--out", "c.safetensors"],
        ),
        (["'digits' has no split 'val'", "train, test"], ["evaluate", "--images", "digits:val"]),
        (
            ["'digits' has no split 'val'", "train, test"],
            ["evaluate", "--images", "digits", "--reference", "digits:val"],
        ),
        (["--dataset digts", "Did you mean 'digits'?"], ["table", "--dataset", "digts"]),
        (["--device 'cuda:77'", "ganbench doctor"], ["evaluate", "--ckpt", "tiny.safetensors", "--device", "cuda:77"]),
        (["--device 'gpu'", "ganbench doctor"], ["evaluate", "--ckpt", "tiny.safetensors", "--device", "gpu"]),
        (["--device 'hpu'"], ["sample", "--ckpt", "tiny.safetensors", "--grid", "a.png", "--device", "hpu"]),
        (["--device 'meta'"], ["reproduce", "dcgan-digits", "--device", "meta"]),
        (["No such command 'evalute'", "ganbench --help"], ["evalute"]),
        (["No such option", "--metric", "ganbench evaluate --help"], ["evaluate", "--metric", "fid"]),
        (["No such option", "--nope"], ["--nope"]),
        (["'model'", "models", "ganbench list --help"], ["list", "model"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_a_name_that_there_is_not_is_named_with_what_there_is(refuses, ckpt, words, args):
    refuses(words, *args)


# --- Options ---


@pytest.mark.parametrize(
    ("words", "args"),
    [
        (["asked for twice", "fd_pixels"], ["evaluate", "--images", "digits", "--metrics", "fd_pixels,fd_pixels"]),
        (["--metrics", "it is empty"], ["evaluate", "--images", "digits", "--metrics", ""]),
        (["--metrics 'fd_pixels,'", "empty name"], ["evaluate", "--images", "digits", "--metrics", "fd_pixels,"]),
        (["give either --model NAME --ckpt FILE or --images SOURCE"], ["evaluate"]),
        (["give either"], ["evaluate", "--images", "digits", "--ckpt", "tiny.safetensors"]),
        (["--model dcgan needs --ckpt"], ["evaluate", "--model", "dcgan", "--images", "digits"]),
        (["--num", "0"], ["evaluate", "--images", "digits", "--num", "0"]),
        (["--num", "many"], ["evaluate", "--images", "digits", "--num", "many"]),
        (["'digits:test' has 500 images", "501", "--num"], ["evaluate", "--images", "digits:test", "--num", "501"]),
        (
            ["--num 1", "at least two"],
            ["evaluate", "--ckpt", "tiny.safetensors", "--num", "1", "--metrics", "fd_pixels"],
        ),
        (["--batch-size"], ["evaluate", "--images", "digits", "--batch-size", "0"]),
        (["--seed", "4294967295"], ["evaluate", "--images", "digits", "--seed", str(2**32)]),
        (["--seed"], ["sample", "--ckpt", "tiny.safetensors", "--grid", "a.png", "--seed", "-1"]),
        (["--steps"], ["reproduce", "dcgan-digits", "--steps", "0"]),
        (["--seeds", "'a,b'"], ["reproduce", "dcgan-digits", "--seeds", "a,b"]),
        (["--seeds", "different", "'0,0'"], ["reproduce", "dcgan-digits", "--seeds", "0,0"]),
        (["--seeds", "'3-1'"], ["reproduce", "dcgan-digits", "--seeds", "3-1"]),
        (["--seeds", "different", "'0-2,1'"], ["reproduce", "dcgan-digits", "--seeds", "0-2,1"]),
        (["--seeds", "'0-4294967295'"], ["reproduce", "dcgan-digits", "--seeds", "0-4294967295"]),
        (["--seeds", "-9'"], ["reproduce", "dcgan-digits", "--seeds", "0-9999999999999999999999999-9"]),
        (["digits:train", "classes 0 to 9", "[classes 8-10]"], ["evaluate", "--images", "digits[classes 8-10]"]),
        (["{seed} is for recipes"], ["evaluate", "--images", "digits[classes {seed}-{seed}]"]),
        (
            ["begin with class 0", "digits[classes 8-9]"],
            ["train-classifier", "digits[classes 8-9]", "--out", "a.safetensors"],
        ),
        (["--seeds", "'-1'"], ["reproduce", "dcgan-digits", "--seeds", "-1"]),
        (["--seeds", "4294967295"], ["reproduce", "dcgan-digits", "--seeds", "99999999999999999999"]),
        (["--weights pixels", "EXTRACTOR=FILE"], ["evaluate", "--images", "digits", "--weights", "pixels"]),
        (["--weights nope=x", "mnist-cnn"], ["evaluate", "--images", "digits", "--weights", "nope=x"]),
        (
            ["--weights small-cnn", "no metric", "pixels"],
            ["evaluate", "--images", "digits", "--metrics", "fd_pixels", "--weights", "small-cnn=tiny.safetensors"],
        ),
        (["--resolutions", "'a'"], ["evaluate", "--images", "digits", "--resolutions", "a"]),
        (["--resolutions", "at least 1"], ["evaluate", "--images", "digits", "--resolutions", "0"]),
        (
            ["--resolutions 100000", "side of 8"],
            ["evaluate", "--images", "digits", "--metrics", "ms_ssim", "--resolutions", "4,100000"],
        ),
        (["--grid FILE.png or --out FILE.npz"], ["sample", "--ckpt", "tiny.safetensors"]),
        (["--out x.png", ".npz"], ["sample", "--ckpt", "tiny.safetensors", "--out", "x.png"]),
        (["Missing option '--ckpt'"], ["sample", "--grid", "a.png"]),
        (["--labels", "0 to 9", "'10'"], ["sample", "--ckpt", "tiny.safetensors", "--grid", "a.png", "--labels", "10"]),
        (["--labels", "0 to 9", "'-1'"], ["sample", "--ckpt", "tiny.safetensors", "--grid", "a.png", "--labels", "-1"]),
        (["--labels", "0 to 9", "'a'"], ["sample", "--ckpt", "tiny.safetensors", "--grid", "a.png", "--labels", "a"]),
        (["Missing argument 'RECIPE|GROUP...'"], ["reproduce"]),
        (["'--budget'", "'tiny'", "smoke", "short", "full"], ["reproduce", "dcgan-digits", "--budget", "tiny"]),
        (["either a NAME or --dataset"], ["table", "dcgan-digits", "--dataset", "digits"]),
        (["--format", "md", "csv", "latex"], ["table", "--format", "html"]),
    ],
    ids=lambda value: " ".join(value)[:70] if isinstance(value, list) else None,
)
def test_an_option_with_a_wrong_value_is_named(refuses, ckpt, words, args):
    refuses(words, *args)


def test_labels_for_a_model_without_classes_are_refused(refuses, place):
    meta = checkpoint.Checkpoint("dcgan", {**TINY, "num_classes": 0})
    checkpoint.save(place / "plain.safetensors", tiny_dcgan(num_classes=0).state_dict(), meta)
    refuses(
        ["--labels", "takes no labels"], "sample", "--ckpt", "plain.safetensors", "--grid", "a.png", "--labels", "1"
    )


@pytest.mark.parametrize(
    "args",
    [
        ["evaluate", "--images", "digits", "--metrics", "ms_ssim", "--out", "{}/a.json"],
        ["evaluate", "--images", "digits", "--metrics", "ms_ssim", "--out", "{}/a/b.json"],
        ["sample", "--ckpt", "tiny.safetensors", "--grid", "{}/a.png"],
        ["sample", "--ckpt", "tiny.safetensors", "--out", "{}/a.npz"],
        ["reproduce", "dcgan-digits", "--steps", "1", "--out", "{}"],
        ["reproduce", "dcgan-digits", "--steps", "1", "--out", "{}/results"],
        ["train-classifier", "digits", "--out", "{}/c.safetensors"],
        ["check", "{}", "--junit", "{}/junit.xml"],
        ["table", "--out", "{}"],
    ],
    ids=" ".join,
)
def test_a_file_where_a_folder_should_be_is_found_before_the_work(refuses, ckpt, place, args):
    (place / "file").write_text("mine")
    refuses(["file"], *(a.format("file") for a in args))


def test_a_folder_where_a_file_should_be_is_refused(refuses, ckpt, place):
    for name in ("a.png", "a.json", "a.safetensors"):
        (place / name).mkdir()
    refuses(["a.png"], "sample", "--ckpt", ckpt, "--grid", "a.png")
    refuses(["a.json"], "evaluate", "--images", "digits", "--metrics", "ms_ssim", "--out", "a.json")
    refuses(["a.safetensors"], "evaluate", "--ckpt", "a.safetensors")
    refuses(["a.json"], "check", "a.json")


# --- Checkpoints ---


def evaluate(file):
    return "evaluate", "--model", "dcgan", "--ckpt", file, "--metrics", "fd_pixels", "--num", "20"


def test_a_checkpoint_of_another_model_names_both(refuses, ckpt):
    refuses([str(ckpt), "'dcgan'", "not of 'acgan'", "--model dcgan"], "evaluate", "--model", "acgan", "--ckpt", ckpt)


def test_a_missing_checkpoint_is_named(refuses):
    refuses(["gone.safetensors", "no such file"], *evaluate("gone.safetensors"))


@pytest.mark.parametrize("keep", [0, 4, 8, 60, 500, -4000, -1], ids=lambda n: f"{n} bytes")
def test_a_truncated_checkpoint_is_named_wherever_it_was_cut(refuses, ckpt, keep):
    data = ckpt.read_bytes()
    (ckpt.parent / "cut.safetensors").write_bytes(data[:keep])
    header = struct.unpack("<Q", data[:8])[0]
    assert len(data) > 4000 + 8 + header > 8 + header > 500  # the cuts lie in the length, the header and the data
    refuses(["cut.safetensors", "truncated"], *evaluate("cut.safetensors"))


def test_a_safetensors_file_that_ganbench_did_not_write_is_refused(refuses, place):
    save_file(tiny_dcgan().state_dict(), place / "foreign.safetensors")
    refuses(["foreign.safetensors", "no ganbench metadata"], *evaluate("foreign.safetensors"))


@pytest.mark.parametrize(
    "metadata", ["{", "[]", '{"model": "dcgan", "colour": 1}', '{"model": 5}', '{"model": "dcgan", "args": 3}']
)
def test_metadata_that_cannot_be_understood_are_refused(refuses, place, metadata):
    save_file(tiny_dcgan().state_dict(), place / "odd.safetensors", metadata={"ganbench": metadata})
    refuses(["odd.safetensors", "metadata"], *evaluate("odd.safetensors"))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({**TINY, "g_widht": 4}, ["no argument 'g_widht'", "Did you mean 'g_width'?"]),
        ({**TINY, "image_size": 9}, ["refuses", "image_size"]),
        ({**TINY, "g_width": -4}, ["refuses"]),
        ({**TINY, "g_width": 8}, ["does not fit the model 'dcgan'"]),
    ],
    ids=str,
)
def test_a_checkpoint_whose_arguments_do_not_fit_is_refused(refuses, place, args, words):
    checkpoint.save(place / "odd.safetensors", tiny_dcgan().state_dict(), checkpoint.Checkpoint("dcgan", args))
    refuses(["odd.safetensors", *words], *evaluate("odd.safetensors"))


class Malicious:
    """Unpickling one writes a file."""

    def __reduce__(self):
        return Path.touch, (Path("sentinel"),)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip format", "plain pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(refuses, place, legacy):
    value = {"weight": torch.zeros(1), "evil": Malicious()}
    if legacy:
        (place / "evil.pt").write_bytes(pickle.dumps(value))
    else:
        torch.save(value, place / "evil.pt")
    refuses(["evil.pt", "refused", "run code"], *evaluate("evil.pt"))
    assert not (place / "sentinel").exists()
    pickle.loads((place / "evil.pt").read_bytes()) if legacy else torch.load(place / "evil.pt", weights_only=False)
    assert (place / "sentinel").exists()  # it would have run


@pytest.mark.parametrize("extractor", ["inception-v3", "efficientnet-lite0"])
def test_weights_that_would_run_code_are_refused_and_do_not_run(refuses, folder, place, extractor):
    torch.save({"weight": torch.zeros(1), "evil": Malicious()}, place / "evil.pth")
    refuses(["evil.pth"], "evaluate", "--images", folder, "--reference", "digits", "--metrics", f"fd_{extractor}",
            "--weights", f"{extractor}=evil.pth")
    assert not (place / "sentinel").exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"weight": torch.zeros(3)}, ["does not fit the model 'dcgan'"]),
        ({1: torch.zeros(3)}, ["state dict"]),
        ({"state_dict": torch.zeros(3)}, ["state dict"]),
        ({"state_dict": {}, "model": 7}, ["'model' must be a name"]),
        ({"state_dict": {}, "args": 7}, ["'args'"]),
        ({"state_dict": {}, "model": "acgan"}, ["'acgan'", "not of 'dcgan'"]),
        ({"epoch": 3}, ["state dict"]),
        ([torch.zeros(3)], ["holds a list"]),
        (torch.zeros(3), ["holds a Tensor"]),
    ],
    ids=lambda v: "" if isinstance(v, list) else type(v).__name__,
)
def test_a_foreign_pickle_that_does_not_fit_is_refused(refuses, place, value, words):
    torch.save(value, place / "foreign.pt")
    refuses(["foreign.pt", *words], *evaluate("foreign.pt"))


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04 nor this"])
def test_a_pt_file_that_is_none_is_refused(refuses, place, content):
    (place / "bad.pt").write_bytes(content)
    refuses(["bad.pt", "refused"], *evaluate("bad.pt"))


def test_a_pickle_without_a_model_name_asks_for_it(refuses, place):
    torch.save(tiny_dcgan().state_dict(), place / "plain.pt")
    refuses(["plain.pt", "--model"], "sample", "--ckpt", "plain.pt", "--grid", "a.png")


@pytest.mark.parametrize("command", ["evaluate", "sample"])
def test_a_generator_that_makes_nan_is_refused_in_words(refuses, place, command):
    model = tiny_dcgan()
    with torch.no_grad():
        model.G.project.weight.fill_(float("nan"))
    save_tiny(place / "nan.safetensors", model)
    rest = ["--grid", "a.png"] if command == "sample" else ["--metrics", "fd_pixels", "--num", "20"]
    refuses(["generator", "NaN"], command, "--ckpt", "nan.safetensors", *rest)


def test_the_reference_that_a_checkpoint_names_and_that_is_gone_is_said_to_be_the_checkpoints(refuses, place):
    meta = checkpoint.Checkpoint("dcgan", TINY, data="folder:gone")
    checkpoint.save(place / "a.safetensors", tiny_dcgan().state_dict(), meta)
    refuses(
        ["trained on 'folder:gone'", "--reference"], "evaluate", "--ckpt", "a.safetensors", "--metrics", "fd_pixels"
    )


# --- Images ---


def images(source):
    return "evaluate", "--images", source, "--reference", "digits:test", "--metrics", "fd_pixels"


def test_an_empty_folder_is_named(refuses, place):
    (place / "nothing").mkdir()
    refuses(["nothing", "no images", ".png"], *images("nothing"))


@pytest.mark.parametrize(
    "source", ["gone", "gone/", "gone.zip", "gone.npz", "folder:gone", "gone.module:f", "gone.png", ""]
)
def test_a_source_that_does_not_exist_is_named(refuses, source):
    refuses([source.removeprefix("folder:").rstrip("/")], *images(source))


def test_a_folder_without_a_name_is_refused(refuses):
    refuses(["folder:PATH"], *images("folder:"))


def test_a_broken_image_is_named(refuses, folder):
    data = (folder / "05.png").read_bytes()
    (folder / "05.png").write_bytes(data[: len(data) // 2])
    refuses(["05.png", "not a readable image", "remove or replace"], *images(folder))
    (folder / "05.png").write_text("no picture")
    refuses(["05.png", "not a readable image"], *images(folder))
    (folder / "05.png").unlink()
    (folder / "05.png").symlink_to("gone")
    refuses(["05.png", "link to nothing"], *images(folder))


def test_images_of_two_sizes_are_named_with_their_sizes(refuses, folder):
    write_png(folder / "07.png", np.zeros((9, 8), np.uint8))
    refuses(["07.png", "8x9", "00.png", "8x8"], *images(folder))


def test_grey_images_among_colour_ones_are_named(refuses, folder):
    write_png(folder / "07.png", np.zeros((8, 8, 3), np.uint8))
    refuses(["07.png", "3 channels", "00.png", "1 channel"], *images(folder))


def test_one_image_is_no_set(refuses, place):
    write_png(place / "one" / "a.png", np.zeros((8, 8), np.uint8))
    refuses(["one", "at least two"], *images("one"))
    refuses(
        ["--reference 'one'", "at least two"],
        "evaluate",
        "--images",
        "digits",
        "--reference",
        "one",
        "--metrics",
        "fd_pixels",
    )


def test_grey_images_against_a_colour_reference_are_refused(refuses, folder, place):
    for i in range(3):
        write_png(place / "colour" / f"{i}.png", np.full((8, 8, 3), i, np.uint8))
    refuses(["1 channel", "3"], "evaluate", "--images", folder, "--reference", "colour", "--metrics", "fd_pixels")
    refuses(["3 channels", "1"], "evaluate", "--images", "colour", "--reference", folder, "--metrics", "fd_pixels")


@pytest.mark.parametrize(
    ("array", "mode", "words"),
    [
        (np.zeros((8, 8, 4), np.uint8), "RGBA", ["alpha channel", "RGBA", "flatten"]),
        (np.zeros((8, 8, 2), np.uint8), "LA", ["alpha channel", "LA"]),
        (np.zeros((8, 8), np.uint16), "I;16", ["more than 8 bits", "convert"]),
    ],
    ids=["RGBA", "LA", "16 bits"],
)
def test_images_that_would_have_to_be_flattened_or_scaled_are_refused(refuses, folder, array, mode, words):
    image = Image.fromarray(array)
    assert image.mode == mode
    image.save(folder / "07.png")
    refuses(["07.png", *words], *images(folder))


def test_a_transparent_palette_is_refused_and_an_opaque_one_is_read_as_colours(ganbench, refuses, place):
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for i in range(3):
        write_png(place / "rgb" / f"{i}.png", np.roll(colours, i, 0))
        picture = Image.fromarray(np.roll(colours, i, 0)).convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
        assert picture.mode == "P"
        (place / "palette").mkdir(exist_ok=True)
        picture.save(place / "palette" / f"{i}.png")
    done = ganbench("evaluate", "--images", "palette", "--reference", "rgb", "--metrics", "fd_pixels", "--json")
    assert done.code == 0
    assert json.loads(done.out)["measurements"][0]["value"] == pytest.approx(0, abs=1e-6)
    picture.save(place / "palette" / "1.png", transparency=0)
    refuses(["1.png", "alpha channel"], *images("palette"), "--channels", "l")


@pytest.mark.parametrize("form", ["png", "webp", "tiff", "gif"])
def test_an_image_of_several_frames_is_refused(refuses, place, form):
    frames = [Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (10, 200)]
    (place / "moving").mkdir()
    frames[0].save(place / "moving" / f"0.{form}", save_all=True, append_images=frames[1:], lossless=True)
    refuses([f"0.{form} has 2 frames", "save each as a file"], *images("moving"))


def test_images_beside_class_folders_are_refused(refuses, folder):
    write_png(folder / "cats" / "a.png", np.zeros((8, 8), np.uint8))
    refuses(["mixes images with class folders", "00.png"], *images(folder))


def test_class_folders_that_are_numbered_like_identifiers_are_classes_and_not_labels(ganbench, place):
    for i, name in enumerate(["20240131235959", "20240201000000", "99999999999999999999"]):
        write_png(place / "dated" / name / "a.png", np.full((8, 8), 40 * i, np.uint8))
    done = ganbench("evaluate", "--images", "dated", "--metrics", "fd_pixels", "--reference", "digits:test")
    assert done.code == 0, done.err


def test_a_folder_without_the_split_that_is_asked_for_says_how_to_make_it(refuses, folder, place):
    refuses(["images", "no split 'test'", "images/train"], *images(f"folder:{folder}:test"))
    write_png(place / "sets" / "train" / "a.png", np.zeros((8, 8), np.uint8))
    refuses(["no split 'test'", "train"], *images("folder:sets:test"))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"arr_0": np.zeros((4, 8, 8, 1), np.float32)}, ["uint8", "float32"]),
        ({"arr_0": np.zeros((4, 8, 8), np.uint8)}, ["4 dimensions", "3"]),
        ({"arr_0": np.zeros((4, 8, 8, 4), np.uint8)}, ["(4, 8, 8, 4)", "neither 1 nor 3 channels"]),
        ({"arr_0": np.zeros((0, 8, 8, 1), np.uint8)}, ["no images"]),
        ({"arr_0": np.zeros((4, 0, 8, 1), np.uint8)}, ["no images"]),
        ({"other": np.zeros((4, 8, 8, 1), np.uint8)}, ["no array 'arr_0' or 'images'"]),
        ({}, ["no array 'arr_0' or 'images'"]),
        ({"arr_0": np.zeros((4, 8, 8, 1), np.uint8), "arr_1": np.zeros(3, int)}, ["labels must be 4 whole numbers"]),
        ({"arr_0": np.zeros((4, 8, 8, 1), np.uint8), "arr_1": np.zeros(4)}, ["labels must be 4 whole numbers"]),
        ({"arr_0": np.array([Malicious()], dtype=object)}, ["cannot be read as npz", "allow_pickle"]),
    ],
    ids=[
        "float",
        "3-d",
        "4 channels",
        "none",
        "no pixels",
        "other name",
        "nothing",
        "few labels",
        "float labels",
        "pickle",
    ],
)
def test_an_npz_that_holds_no_images_is_refused(refuses, place, arrays, words):
    np.savez(place / "a.npz", **arrays)
    refuses(["a.npz", *words], *images("a.npz"))
    assert not (place / "sentinel").exists()


def as_npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((4, 8, 8, 1), np.uint8))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content", [b"", b"garbage", as_npy(), pickle.dumps(Malicious())], ids=["empty", "garbage", "npy", "pickle"]
)
@pytest.mark.parametrize("suffix", ["npz", "zip", "NPZ"])
def test_an_archive_that_is_none_is_refused(refuses, place, content, suffix):
    (place / f"a.{suffix}").write_bytes(content)
    refuses([f"a.{suffix}", "cannot be read as"], *images(f"a.{suffix}"))
    assert not (place / "sentinel").exists()


@pytest.mark.parametrize("suffix", ["zip", "npz"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_archive_is_refused(refuses, folder, place, suffix, damage):
    file = place / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
    if suffix == "npz":
        np.savez_compressed(file, arr_0=noise)
    else:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for i, pixels in enumerate(noise):
                archive.write(write_png(place / "noise" / f"{i}.png", pixels[:, :, 0]), f"{i}.png")
    data = bytearray(file.read_bytes())
    data = data[:-30] if damage == "cut" else data[:60] + bytes(b ^ 255 for b in data[60:90]) + data[90:]
    file.write_bytes(data)
    refuses([file.name, "cannot be read as" if damage == "cut" else file.name], *images(file.name))


def test_a_zip_with_a_broken_image_or_with_none_names_it(refuses, place):
    with zipfile.ZipFile(place / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "no picture")
    refuses(["a.zip", "no images"], *images("a.zip"))
    with zipfile.ZipFile(place / "a.zip", "w") as archive:
        archive.writestr("x/broken.png", "no picture")
    refuses(["a.zip/x/broken.png", "not a readable image"], *images("a.zip"))


CALLABLES = """
import numpy, torch

def floats(n, seed): return torch.zeros(n, 1, 8, 8)
def arrays(n, seed): return numpy.zeros((n, 1, 8, 8), numpy.uint8)
def few(n, seed): return torch.zeros(n - 1, 1, 8, 8, dtype=torch.uint8)
def fails(n, seed): return 1 / 0
def nothing(n, seed): pass
def labelled(n, seed): return torch.zeros(n, 1, 8, 8, dtype=torch.uint8), [0] * n
def short(n, seed): return torch.zeros(n, 1, 8, 8, dtype=torch.uint8), torch.zeros(n - 1, dtype=torch.int64)
def takes_none(): pass
value = 3
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("floats", ["uint8", "float32"]),
        ("arrays", ["tensor", "ndarray"]),
        ("few", ["asked for 20", "(19, 1, 8, 8)"]),
        ("fails", ["ZeroDivisionError"]),
        ("nothing", ["NoneType"]),
        ("labelled", ["labels", "int64"]),
        ("short", ["labels"]),
        ("takes_none", ["TypeError"]),
        ("value", ["not callable"]),
        ("gone", ["gone"]),
    ],
)
def test_a_callable_that_returns_no_images_is_refused(refuses, place, name, words):
    (place / "callables_of_the_test.py").write_text(CALLABLES)
    source = f"callables_of_the_test:{name}"
    refuses([source, *words], *images(source), "--num", "20")


def test_a_callable_without_num_asks_for_it(refuses):
    refuses(["--num"], *images("some:callable"))


def test_a_module_that_fails_on_import_is_refused_with_its_error(refuses, place):
    (place / "broken_of_the_test.py").write_text("1 +")
    refuses(["broken_of_the_test", "SyntaxError"], *images("broken_of_the_test:f"), "--num", "3")


# --- Generators in files ---


class Net(torch.nn.Module):
    """Latents N x 4 to images; what it returns and says can be chosen."""

    def __init__(self, kind: str = "tanh"):
        super().__init__()
        self.kind = kind
        self.linear = torch.nn.Linear(4, 64)

    def forward(self, z):
        x = self.linear(z).view(-1, 1, 8, 8)
        if self.kind == "above":
            return torch.sigmoid(x)
        if self.kind == "levels":
            return 255 * torch.sigmoid(x) - 1
        if self.kind == "nan":
            return x / 0 - x / 0
        if self.kind == "int":
            return x.int()
        if self.kind == "flat":
            return x.flatten(1)
        if self.kind == "last":
            return x.permute(0, 2, 3, 1).repeat(1, 1, 1, 3)
        if self.kind == "few":
            return x[1:]
        return torch.tanh(x)


class Pair(Net):
    def forward(self, z):
        return self.linear(z), z


class Knows(Net):
    z_size: int
    num_classes: int

    def __init__(self):
        super().__init__()
        self.z_size, self.num_classes = 4, 3


class Takes(Net):
    def forward(self, z, y):
        return torch.tanh(self.linear(z)).view(-1, 1, 8, 8) * y.float().view(-1, 1, 1, 1)


class TakesMore(Net):
    def forward(self, z, y, truncation: float):
        return torch.tanh(self.linear(z)).view(-1, 1, 8, 8)


class Nothing(Net):
    def forward(self):
        return self.linear.weight


def scripted(path, module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), path)


def generator(file, *options):
    return *images(file), "--num", "20", *options


@pytest.mark.parametrize(
    ("module", "options", "words"),
    [
        (Net("above"), ["--latent", "4"], ["floats of", "-1 to 1", "uint8"]),
        (Net("levels"), ["--latent", "4"], ["floats of", "-1 to 1", "uint8"]),
        (Net("nan"), ["--latent", "4"], ["NaN"]),
        (Net("int"), ["--latent", "4"], ["uint8, or floats", "int32"]),
        (Net("flat"), ["--latent", "4"], ["N x 1|3 x H x W", "(20, 64)"]),
        (Net("last"), ["--latent", "4"], ["N x 1|3 x H x W", "(20, 8, 8, 3)"]),
        (Net("few"), ["--latent", "4"], ["asked for 20", "(19, 1, 8, 8)"]),
        (Pair(), ["--latent", "4"], ["one tensor", "tuple"]),
        (Net(), [], ["does not say the size of its latents", "--latent"]),
        (Net(), ["--latent", "5"], ["(20, 5)", "20x5"]),
        (Net(), ["--latent", "4", "--classes", "3"], ["--classes 3", "takes no labels"]),
        (Knows(), ["--latent", "5"], ["--latent 5", "says 4"]),
        (Takes(), ["--latent", "4"], ["how many classes", "--classes"]),
        (TakesMore(), ["--latent", "4"], ["takes z, y, truncation"]),
        (Nothing(), ["--latent", "4"], ["takes nothing"]),
        (Knows(), ["--prior", "gauss"], ["--prior", "uniform_0_1"]),
        (Knows(), ["--classes", "0"], ["--classes"]),
        (Knows(), ["--latent", "0"], ["--latent '0'", "100x1x1"]),
        (Knows(), ["--latent", "4x"], ["--latent '4x'"]),
        (Knows(), ["--latent", ""], ["--latent", "it is empty"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else type(v).__name__,
)
def test_a_generator_that_cannot_be_used_is_named_with_the_reason(refuses, place, module, options, words):
    scripted(place / "g.pt", module)
    named = ["g.pt"] if not options or (options[0] == "--latent" and options[1] in ("4", "5")) else []
    refuses([*named, *words], *generator("g.pt", *options))


def test_a_generator_needs_a_number_and_is_no_reference(refuses, place):
    scripted(place / "g.pt", Knows())
    refuses(["g.pt", "--num"], *images("g.pt"))
    refuses(["--reference 'g.pt'", "generator"], "evaluate", "--images", "digits", "--reference", "g.pt")
    refuses(["gone.pt", "no such file"], *generator("gone.pt"))
    refuses(["gone.onnx", "no such file"], *generator("gone.onnx"))


@pytest.mark.parametrize("kind", ["zip format", "plain pickle", "posing as TorchScript"])
@pytest.mark.parametrize("suffix", ["pt", "ts", "torchscript"])
def test_a_pickle_given_as_a_generator_is_refused_and_does_not_run(refuses, place, kind, suffix):
    file, bomb = place / f"evil.{suffix}", pickle.dumps(Malicious())
    if kind == "zip format":
        torch.save({"evil": Malicious()}, file)
    elif kind == "plain pickle":
        file.write_bytes(bomb)
    else:
        with zipfile.ZipFile(file, "w") as archive:
            for name in ("data.pkl", "constants.pkl", "version"):
                archive.writestr(f"evil/{name}", b"3" if name == "version" else bomb)
    words = ["cannot be loaded"] if kind.startswith("posing") else ["refused", "torch.jit.save", "run code"]
    refuses([file.name, *words], *generator(file.name))
    assert not (place / "sentinel").exists()


def test_a_state_dict_and_a_cut_torchscript_are_refused(refuses, place):
    torch.save(tiny_dcgan().state_dict(), place / "state.pt")
    refuses(["state.pt", "not TorchScript", "--ckpt"], *generator("state.pt"))
    scripted(place / "g.pt", Knows())
    data = (place / "g.pt").read_bytes()
    for keep in (0, 100, len(data) // 2, len(data) - 10):
        (place / "cut.pt").write_bytes(data[:keep])
        refuses(["cut.pt", "refused"], *generator("cut.pt"))


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\x08" * 50])
def test_an_onnx_file_that_is_none_is_refused(refuses, place, content):
    (place / "g.onnx").write_bytes(content)
    refuses(["g.onnx", "cannot be loaded as ONNX"], *generator("g.onnx"))


def onnx_file(path, *inputs):
    """A graph that returns its first input."""
    made = [onnx.helper.make_tensor_value_info(f"in{i}", kind, shape) for i, (kind, shape) in enumerate(inputs)]
    kind, shape = inputs[0]
    out = onnx.helper.make_tensor_value_info("out", kind, shape)
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["in0"], ["out"])], "g", made, [out])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)


FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


@pytest.mark.parametrize(
    ("inputs", "options", "words"),
    [
        ([(INT64, ["n", 4])], [], ["latents of floats", "in0 tensor(int64)"]),
        ([(FLOAT, ["n"])], [], ["latents of floats", "in0"]),
        ([(FLOAT, ["n", 4])] * 3, [], ["latents of floats", "in2"]),
        ([(FLOAT, ["n", 4]), (FLOAT, ["n", 10])], [], ["labels as N whole numbers", "in1"]),
        ([(FLOAT, ["n", 4]), (INT64, ["n"])], [], ["how many classes", "--classes"]),
        ([(FLOAT, ["n", 4])], ["--classes", "3"], ["takes no labels"]),
        ([(FLOAT, ["n", 4])], ["--latent", "5"], ["--latent 5", "says 4"]),
        ([(FLOAT, ["n", "d"])], [], ["size of its latents", "--latent"]),
        ([(FLOAT, ["n", 4])], [], ["N x 1|3 x H x W", "(20, 4)"]),
    ],
    ids=lambda v: " ".join(v) if v and isinstance(v[0], str) else None,
)
def test_an_onnx_graph_that_is_no_generator_is_named_with_the_reason(refuses, place, inputs, options, words):
    onnx_file(place / "g.onnx", *inputs)
    refuses(["g.onnx", *words], *generator("g.onnx", *options))


def test_without_onnx_runtime_the_extra_that_brings_it_is_named(refuses, place, monkeypatch):
    onnx_file(place / "g.onnx", (FLOAT, ["n", 4]))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refuses(["g.onnx", "not installed", "ganbench[onnx]"], *generator("g.onnx"))


@pytest.mark.parametrize(
    ("words", "args"),
    [
        (["--latent", "'digits' is not one"], ["--images", "digits", "--latent", "4"]),
        (["--prior", "'images' is not one"], ["--images", "images", "--prior", "normal"]),
        (["--classes", "'x:y' is not one"], ["--images", "x:y", "--num", "3", "--classes", "3"]),
        (["--latent", "--images"], ["--ckpt", "tiny.safetensors", "--latent", "4"]),
        (["--image-labels", "--images"], ["--ckpt", "tiny.safetensors", "--image-labels", "l.csv"]),
        (["--image-labels", "'digits' is neither"], ["--images", "digits", "--image-labels", "l.csv"]),
        (["--image-labels", "'a.npz' is neither"], ["--images", "a.npz", "--image-labels", "l.csv"]),
        (
            ["--reference-labels", "'digits' is neither"],
            ["--images", "digits", "--reference", "digits", "--reference-labels", "l.csv"],
        ),
        (["--reference-labels", "--reference"], ["--images", "digits", "--reference-labels", "l.csv"]),
        (["--resize '8'", "SIDE:METHOD", "pil-bicubic"], ["--images", "digits", "--resize", "8"]),
        (["--resize '0:box'", "1 to"], ["--images", "digits", "--resize", "0:box"]),
        (["--resize '8:bicubic'", "pil-bicubic"], ["--images", "digits", "--resize", "8:bicubic"]),
        (["--resize '8:crop'"], ["--images", "digits", "--resize", "8:crop"]),
        (["--resize '-8:box'"], ["--images", "digits", "--resize=-8:box"]),
        (["--resize '99999:box'"], ["--images", "digits", "--resize", "99999:box"]),
        (["--resize", "it is empty"], ["--images", "digits", "--resize", ""]),
    ],
    ids=lambda value: " ".join(value)[:70],
)
def test_an_option_of_another_kind_of_source_is_named(refuses, ckpt, folder, words, args):
    refuses(words, "evaluate", *args, "--metrics", "fd_pixels")


# --- Labels in a CSV ---


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["file,label"]),
        ("00.png,1\n", ["file,label"]),
        ("file,class\n00.png,1\n", ["file,label"]),
        ("file,label\n", ["no label", "00.png and 11 more"]),
        ("{all}00.png,2\n", ["line 14", "00.png is listed twice"]),
        ("{all}./00.png,2\n", ["line 14", "00.png is listed twice"]),
        ("{all}x.png,2\n", ["labels x.png", "does not hold"]),
        ("{all}y.png,2\nx.png,2\n", ["labels x.png and 1 more"]),
        ("{most}", ["no label for 11.png in images"]),
        ("{most}11.png\n", ["line 13", "one file and its label"]),
        ("{most}11.png,\n", ["line 13", "one file and its label"]),
        ("{most}11.png,1,2\n", ["line 13", "one file and its label"]),
        ("{most}11.png,-1\n", ["line 13", "'-1'", "whole number"]),
        ("{most}11.png,1.0\n", ["line 13", "'1.0'", "whole number"]),
        ('{most}"11.png,1\n', ["not a CSV"]),
        ("{most}11.png,nan\n", ["line 13", "11.png", "missing", "'nan'"]),
    ],
)
def test_labels_that_do_not_fit_the_files_are_named(refuses, folder, place, text, words):
    most = "file,label\n" + "".join(f"{i:02}.png,{i}\n" for i in range(11))
    (place / "l.csv").write_text(text.format(most=most, all=most + "11.png,11\n"))
    refuses(["l.csv", *words], *images(folder.name), "--image-labels", "l.csv")


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        (["sub\\0.png", "sub/\u00e9.png"], ["it has sub\\0.png: write / in place of \\"]),
        (["sub/0.png", "sub/e\u0301.png"], ["Unicode", "unicodedata.normalize('NFC', name)"]),
    ],
    ids=["backslashes", "decomposed"],
)
def test_a_file_that_is_listed_in_another_spelling_is_answered_with_the_right_one(refuses, place, listed, words):
    for name in ("0.png", "\u00e9.png"):
        write_png(place / "set" / "sub" / name, np.zeros((8, 8), np.uint8))
    (place / "l.csv").write_text("file,label\n" + "".join(f"{name},1\n" for name in listed), encoding="utf-8")
    refuses(["l.csv", *words], *images("set"), "--image-labels", "l.csv")


IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), np.uint8)


@pytest.mark.parametrize(
    "write",
    [
        lambda: np.savez("a.npz", samples=IMAGES),
        lambda: np.save("a.npy", IMAGES),
        lambda: torch.save(torch.from_numpy(IMAGES).permute(0, 3, 1, 2).contiguous(), "a.pt"),
    ],
    ids=["another key", "npy", "a saved tensor"],
)
def test_the_line_of_code_for_arrays_in_another_form_mends_them(ganbench, refuses, place, write):
    write()
    (file,) = place.iterdir()
    said = refuses([file.name, "numpy.savez("], *images(file.name), "--num", "6")
    line = said[said.index("numpy.savez(") :].rstrip().rstrip(".")
    exec(line, {"numpy": np, "torch": torch})
    (made,) = set(place.iterdir()) - {file}
    done = ganbench(*images(made.name), "--json")
    assert done.code == 0, done.err
    with np.load(made) as arrays:
        assert np.array_equal(arrays["arr_0"].reshape(6, 64), IMAGES.reshape(6, 64))


@pytest.mark.parametrize("names", [("mean", "cov"), ("m", "s")])
def test_the_line_of_code_for_moments_under_other_names_mends_them(ganbench, refuses, place, names):
    features = np.random.default_rng(0).normal(size=(99, 64))
    np.savez("a.npz", **dict(zip(names, (features.mean(0), np.cov(features, rowvar=False)), strict=True)))
    args = ["evaluate", "--images", "digits", "--reference", "a.npz", "--metrics", "fd_pixels"]
    said = refuses(["a.npz", "For moments: "], *args)
    exec(said.partition("For moments: ")[2].rstrip().rstrip("."), {"numpy": np})
    with np.load("a-read.npz") as arrays:
        assert sorted(arrays) == ["mu", "sigma"]
        assert np.array_equal(arrays["mu"], features.mean(0))


def test_floats_are_answered_with_both_scalings(refuses, place):
    np.savez("a.npz", arr_0=IMAGES / 255)
    said = refuses(["float64", "[0, 1]", "[-1, 1]"], *images("a.npz"))
    for text, x in (("[0, 1]: ", IMAGES / 255), ("[-1, 1]: ", IMAGES / 127.5 - 1)):
        code = said.partition(text)[2].split(";")[0].rstrip().rstrip(".")
        assert code.startswith("arr_0 = ")
        assert np.abs(eval(code[8:], {"x": x}).astype(int) - IMAGES).max() <= 1


def test_labels_that_cannot_be_read_are_named(refuses, folder, place):
    refuses(["gone.csv", "No such file"], *images(folder.name), "--image-labels", "gone.csv")
    (place / "l.csv").write_bytes(b"file,label\n\xff\xfe,1\n")
    refuses(["l.csv", "UTF-8"], *images(folder.name), "--image-labels", "l.csv")
    refuses(["l.csv", "UTF-8"], "evaluate", "--images", "digits", "--reference", folder.name, "--reference-labels",
            "l.csv", "--metrics", "fd_pixels")


def test_resizing_does_not_hide_that_images_are_of_two_kinds(refuses, folder):
    write_png(folder / "07.png", np.zeros((9, 8, 3), np.uint8))
    refuses(["07.png", "3 channels", "00.png", "Convert"], *images(folder), "--resize", "8:box")


# --- Moments ---


def square(value):
    return {"mu": np.zeros(3), "sigma": value}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"mu": np.zeros(3)}, ["'mu' and 'sigma' belong together"]),
        ({"sigma": np.eye(3)}, ["'mu' and 'sigma' belong together"]),
        ({**square(np.eye(3)), "mu_s": np.zeros(3)}, ["'mu_s' and 'sigma_s' belong together"]),
        ({"mu_s": np.zeros(3), "sigma_s": np.eye(3)}, ["'mu_s' and no 'mu'"]),
        (square(np.eye(4)), ["(3,)", "(4, 4)"]),
        (square(np.zeros(3)), ["(3,)", "d x d"]),
        ({"mu": np.zeros((1, 3)), "sigma": np.eye(3)}, ["(1, 3)"]),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, ["(0,)"]),
        (square(np.eye(3, dtype=int)), ["floats", "int64"]),
        (square(np.eye(3) * np.nan), ["not finite"]),
        ({"mu": np.array([0, np.inf, 0]), "sigma": np.eye(3)}, ["not finite"]),
        (square(np.triu(np.ones((3, 3)))), ["not symmetric"]),
        (square(-np.eye(3)), ["negative variance"]),
        (square(np.array([[None] * 3] * 3)), ["cannot be read as npz"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
@pytest.mark.parametrize("beside", [True, False], ids=["beside images", "alone"])
def test_moments_that_are_none_are_refused(refuses, place, arrays, words, beside):
    pictures = {"arr_0": np.zeros((4, 8, 8, 3), np.uint8)} if beside else {}
    np.savez(place / "m.npz", **arrays, **pictures)
    refuses(["m.npz", *words], "evaluate", "--images", "digits", "--reference", "m.npz", "--metrics", "fd_pixels")


def test_moments_alone_are_no_images(refuses, place):
    np.savez(place / "m.npz", **square(np.eye(3)))
    refuses(["m.npz", "moments and no images", "--reference"], *images("m.npz"))
    refuses(["m.npz", "moments and no images"], "statistics", "m.npz", "--out", "s.npz")


@pytest.mark.parametrize(
    ("words", "args"),
    [
        (["unknown extractor 'pixel'", "Did you mean 'pixels'?"], ["digits", "--extractor", "pixel"]),
        (["--weights small-cnn=", "pixels"], ["digits", "--extractor", "pixels", "--weights", "small-cnn=x"]),
        (["--weights pixels", "EXTRACTOR=FILE"], ["digits", "--weights", "pixels"]),
        (["gone"], ["gone", "--extractor", "pixels"]),
        (["'one'", "one image"], ["one", "--extractor", "pixels"]),
        (["'digits:test' has 500 images"], ["digits:test", "--num", "501", "--extractor", "pixels"]),
        (["inception-v3", "offline"], ["digits"]),
        (["--out s.txt", ".npz"], ["digits", "--extractor", "pixels", "--out", "s.txt"]),
        (["one/0.png"], ["digits", "--extractor", "pixels", "--out", "one/0.png/s.npz"]),
        (["--resize '8'"], ["digits", "--extractor", "pixels", "--resize", "8"]),
        (["Missing argument 'SOURCE'"], []),
    ],
    ids=lambda value: " ".join(value)[:70],
)
def test_statistics_that_cannot_be_made_leave_no_file(refuses, place, words, args):
    write_png(place / "one" / "0.png", np.zeros((8, 8), np.uint8))
    refuses(words, "statistics", *args, *([] if "--out" in args else ["--out", "s.npz"]))


# --- Weights and data that are not there ---


def test_missing_weights_while_offline_say_where_to_put_them(refuses):
    words = ["inception-v3", "offline", "pt_inception-2015-12-05-6726825d.pth", "--weights inception-v3=FILE"]
    refuses(words, "evaluate", "--images", "digits", "--reference", "digits:test", "--metrics", "fid")


def test_a_missing_data_set_while_offline_says_how_to_get_it(refuses, monkeypatch):
    monkeypatch.delenv("GANBENCH_OFFLINE")
    refuses(
        ["'mnist'", "offline", "GANBENCH_DATA"], "evaluate", "--images", "mnist", "--metrics", "ms_ssim", "--offline"
    )


def test_a_damaged_data_set_is_named(refuses, place, monkeypatch):
    raw = place / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{part}-ubyte").write_bytes(b"garbage")
    monkeypatch.setenv("GANBENCH_DATA", str(place))
    refuses(["'mnist'", "damaged", str(place)], "evaluate", "--images", "mnist", "--metrics", "ms_ssim")


@pytest.mark.parametrize("extractor", ["inception-v3", "efficientnet-lite0", "small-cnn", "mnist-cnn"])
@pytest.mark.parametrize("kind", ["garbage", "empty", "missing", "another network", "folder"])
def test_weights_that_are_none_of_the_network_are_named(refuses, place, extractor, kind):
    file = place / ("w.safetensors" if extractor.endswith("cnn") else "w.pth")
    if kind == "another network":
        state = {"conv.weight": torch.zeros(3)}
        save_file(state, file) if extractor.endswith("cnn") else torch.save(state, file)
    elif kind == "folder":
        file.mkdir()
    elif kind != "missing":
        file.write_bytes(b"garbage, and more of it" if kind == "garbage" else b"")
    refuses([file.name], "evaluate", "--images", "digits:test", "--reference", "digits", "--metrics", f"fd_{extractor}",
            "--weights", f"{extractor}={file.name}")


# --- Recipes ---


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size = 16": "batch_sise = 16"}, ["unknown key 'batch_sise'", "Did you mean 'batch_size'?"]),
        ({"[evaluate]": "[evaluat]"}, ["unknown key 'evaluat'", "Did you mean 'evaluate'?"]),
        ({"steps = 6\n": ""}, ["train", "'steps' is missing"]),
        ({"steps = 6": 'steps = "6"'}, ["'steps'", "int", "'6'"]),
        ({"steps = 6": "steps = true"}, ["'steps'", "int"]),
        ({"steps = 6": "steps = -6"}, ["'steps'", "at least 1", "-6"]),
        ({"batch_size = 16": "batch_size = 0"}, ["'batch_size'", "at least 1"]),
        ({"num = 40": "num = 0"}, ["'num'", "at least 1"]),
        ({"steps = 6": "steps = "}, ["not valid TOML"]),
        ({"ema_decay = 0.9": "ema_decay = 1.0"}, ["'ema_decay'", "[0, 1)"]),
        ({"ema_decay = 0.9": "ema_decay = nan"}, ["'ema_decay'", "finite"]),
        ({"value = 1.5": "value = inf"}, ["'value'", "finite"]),
        ({'name = "tiny"': 'name = "other"'}, ["'other'", "must be that of the file"]),
        ({"latent_dim = 4": "latent_dmi = 4"}, ["no argument 'latent_dmi'", "Did you mean 'latent_dim'?"]),
        ({"image_size = 8": "image_size = 9"}, ["refuses its arguments", "image_size"]),
        ({"image_size = 8": "image_size = 16"}, ["(1, 16, 16)", "(1, 8, 8)"]),
        ({"num_classes = 10": "num_classes = 5"}, ["more classes than the model's 5"]),
        ({"batch_size = 16": "batch_size = 5000"}, ["1297 images", "fewer than one batch of 5000"]),
        ({'name = "dcgan"': 'name = "dcgn"'}, ["unknown model 'dcgn'", "Did you mean 'dcgan'?"]),
        ({'["fd_pixels"]': '["fd_pixel"]'}, ["unknown extractor 'pixel'", "Did you mean 'pixels'?"]),
        ({'["fd_pixels"]': '["fid", "fid"]'}, ["'fid' is asked for twice"]),
        ({'["fd_pixels"]': "[]"}, ["'metrics'", "at least one"]),
        ({'["fd_pixels"]': '["fid"]'}, ["inception-v3", "offline"]),
        ({'["fd_pixels"]': '"fd_pixels"'}, ["'metrics'", "must be a list"]),
        ({'data = "digits:train"': 'data = "digts:train"'}, ["unknown dataset 'digts'"]),
        ({'data = "digits:train"': 'data = "digits:val"'}, ["no split 'val'"]),
        ({'deviations = ["Everything."]': "deviations = [1]"}, ["'deviations'[0]", "str"]),
    ],
    ids=lambda v: next(iter(v.items()))[1] if isinstance(v, dict) else "",
)
def test_a_recipe_with_a_mistake_names_the_recipe_and_the_mistake(refuses, place, changes, words):
    refuses(["tiny", *words], "reproduce", write_recipe(place, changes), "--out", "out")


def test_a_budget_that_a_recipe_of_ones_own_does_not_have_is_named(refuses, place):
    refuses(["recipe 'tiny' has no budget 'smoke'", "[budget.smoke]"], "reproduce", write_recipe(place), "--budget",
            "smoke", "--out", "out")


@pytest.mark.parametrize("kind", ["missing", "folder", "binary", "empty"])
def test_a_recipe_file_that_cannot_be_read_is_named(refuses, place, kind):
    path = place / "mine.toml"
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(b"\xff\xfe\x00" if kind == "binary" else b"")
    refuses(["mine.toml"], "reproduce", path)


def test_training_data_without_labels_or_of_another_size_are_refused(refuses, folder, place):
    for part in ("train", "test"):
        shutil.copytree(folder, place / "set" / part)
    refuses(["needs labels", "class folders"], "reproduce", write_recipe(place, {"batch_size = 16": "batch_size = 4"}),
            "--data", "folder:set", "--out", "out")


def test_fresh_throws_nothing_away_before_the_recipe_is_known_to_be_right(ganbench, refuses, place):
    path = write_recipe(place)
    assert ganbench("reproduce", path, "--steps", "2", "--out", "out").code == 0
    write_recipe(place, {"latent_dim = 4": "latent_dmi = 4"})
    refuses(["latent_dmi"], "reproduce", path, "--steps", "2", "--out", "out", "--fresh")
    write_recipe(place, {'["fd_pixels"]': '["fid"]'})
    refuses(["inception-v3"], "reproduce", path, "--steps", "2", "--out", "out", "--fresh")


# --- Results and baselines ---


@pytest.fixture
def result(ganbench, folder, place):
    done = ganbench(
        "evaluate", "--images", folder, "--reference", "digits", "--metrics", "fd_pixels,ms_ssim", "--out", "r.json"
    )
    assert done.code == 1, done.err  # the images have no labels, which ms_ssim needs
    return place / "r.json"


def test_a_baseline_or_result_that_cannot_be_read_is_named_by_its_role(refuses, result, place):
    refuses(["the baseline gone.json", "No such file"], "check", "gone.json", result)
    refuses(["the result gone.json", "No such file"], "check", result, "gone.json")
    for content, words in (
        ("{", ["not valid JSON"]),
        ("", ["not valid JSON"]),
        ("[]", ["not a ganbench result"]),
        ("3", ["not a ganbench result"]),
        ('{"measurements": []}', ["'fake' is missing"]),
        ('{"measurements": NaN}', ["not valid JSON"]),
    ):
        (place / "bad.json").write_text(content)
        refuses(["bad.json", *words], "check", "bad.json", result)
        refuses(["the result bad.json", *words], "check", result, "bad.json")
    (place / "bad.json").write_bytes(b"\xff\xfe")
    refuses(["bad.json", "not valid JSON"], "check", result, "bad.json")


def test_a_result_of_another_schema_or_with_damage_is_refused(refuses, result, place):
    good = json.loads(result.read_text())

    def written(**changes):
        (place / "bad.json").write_text(json.dumps({**good, **changes}))
        return "bad.json"

    def measured(**changes):
        return written(measurements=[{**good["measurements"][0], **changes}])

    refuses(["schema 99"], "check", result, written(schema=99))
    refuses(["colour"], "check", result, written(colour="red"))
    refuses(["damaged"], "check", result, written(measurements=["fid"]))
    refuses(["damaged"], "check", result, written(measurements=3))
    refuses(["damaged"], "check", result, written(recipe="dcgan"))
    refuses(["damaged"], "check", result, measured(colour="red"))
    refuses(["damaged"], "check", result, measured(value="high"))
    refuses(["damaged"], "check", result, measured(direction="up"))
    refuses(["damaged"], "check", result, measured(uncertainty={}))
    refuses(["no measured value"], "check", measured(value=None), result)


def test_tolerances_that_are_none_are_refused(refuses, result, place):
    good = json.loads(result.read_text())
    for tolerances, words in (
        ({"fid": 1}, ["tolerance for 'fid'", "fd_pixels"]),
        ({"fd_pixels": -1}, ["'tolerances'", "not negative"]),
        ({"fd_pixels": "1"}, ["'tolerances'"]),
        ({"fd_pixels": True}, ["'tolerances'"]),
        ([1], ["'tolerances'"]),
    ):
        (place / "base.json").write_text(json.dumps({**good, "tolerances": tolerances}))
        refuses(["base.json", *words], "check", "base.json", result)


def test_a_check_without_a_result_says_which_run_it_looked_for(refuses, result, place):
    refuses(["of no recipe", "RESULT"], "check", result)
    good = json.loads(result.read_text())
    (place / "base.json").write_text(json.dumps({**good, "recipe": {"name": "tiny"}, "overrides": {"steps": 3}}))
    refuses(["'tiny'", "seed 0", "steps", "RESULT"], "check", "base.json", "--out", "empty")


def test_a_broken_result_in_the_results_folder_is_named(refuses, place):
    (place / "results/runs/dcgan-digits/seed0").mkdir(parents=True)
    (place / "results/runs/dcgan-digits/seed0/result.json").write_text("{")
    refuses(["runs/dcgan-digits/seed0/result.json"], "table")


# --- What is no mistake ---


def test_images_without_labels_make_discriminability_unavailable_in_words(ganbench, place):
    for i in range(4):
        write_png(place / "plain" / f"{i}.png", np.full((28, 28), 60 * i, np.uint8))
    done = ganbench("evaluate", "--images", "plain", "--metrics", "discriminability_mnist-cnn")
    assert done.code == 1
    assert "unavailable" in done.out
    assert "no labels" in done.out


def test_a_metric_without_a_reference_is_unavailable_in_words(ganbench, folder):
    done = ganbench("evaluate", "--images", folder, "--metrics", "fd_pixels")
    assert done.code == 1
    assert "unavailable" in done.out
    assert "--reference" in done.out


def test_names_in_any_script_work(ganbench, folder, place):
    folder.rename(place / "Bilder – 画像 é")
    done = ganbench(
        "evaluate",
        "--images",
        "Bilder – 画像 é",
        "--reference",
        "digits",
        "--metrics",
        "fd_pixels",
        "--out",
        "Größe.json",
    )
    assert done.code == 0, done.err
    assert "画像" in (place / "Größe.json").read_text(encoding="utf-8")


def test_a_folder_called_like_a_data_set_does_not_hide_the_data_set(ganbench, folder, place):
    folder.rename(place / "digits")
    both = [json.loads(ganbench("evaluate", "--images", source, "--metrics", "ms_ssim", "--json").out)["fake"]["count"]
            for source in ("digits", "./digits")]
    assert both == [1297, 12]


def test_spaces_after_the_commas_of_metrics_are_no_mistake(ganbench, folder):
    assert (
        ganbench("evaluate", "--images", folder, "--reference", "digits", "--metrics", "fd_pixels, kd_pixels").code == 0
    )


# --- Real processes ---


def test_a_mistake_in_a_real_process_is_one_line_and_exit_code_2(place, folder):
    (folder / "05.png").write_text("no picture")
    before = everything_below(place)
    # A busy machine would show progress without --quiet.
    done = process("-m", "ganbench", *images(folder), "--quiet", "--out", "r.json", cwd=place)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("ganbench: error: ")
    assert done.err.count("\n") == 1
    assert "05.png" in done.err
    assert everything_below(place) == before


def test_a_pickle_does_not_run_in_a_real_process(place):
    torch.save({"evil": Malicious()}, place / "evil.pt")
    done = process("-m", "ganbench", *evaluate("evil.pt"), cwd=place)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert not (place / "sentinel").exists()


def test_moments_that_are_no_covariance_are_refused(refuses, place):
    indefinite = np.array([[1.0, 2.0], [2.0, 1.0]])
    args = "evaluate", "--images", "digits", "--reference", "m.npz", "--metrics", "fd_pixels"
    np.savez(place / "m.npz", mu=np.zeros(2), sigma=indefinite)
    refuses(["m.npz", "'sigma'", "negative eigenvalue"], *args)
    np.savez(place / "m.npz", mu=np.zeros(2), sigma=np.eye(2), n=-5)
    refuses(["m.npz", "n = -5"], *args)
