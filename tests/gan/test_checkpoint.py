"""Checkpoints hold all that is needed to draw the same samples again, and no code."""

import dataclasses
import json
import struct

import pytest
import torch
from safetensors.torch import load_file
from support import TINY, save_tiny, tiny_dcgan

from ganbench import __version__
from ganbench.base.errors import UserError
from ganbench.base.files import sha256_of
from ganbench.gan import checkpoint
from ganbench.gan.checkpoint import Checkpoint


def test_weights_and_metadata_are_loaded_unchanged(tmp_path):
    model = tiny_dcgan()
    meta = Checkpoint("dcgan", TINY, steps=7, recipe="tiny", data="digits:train", seed=3, commit="abc")
    checkpoint.save(tmp_path / "a.safetensors", model.state_dict(), meta)
    back, read = checkpoint.load(tmp_path / "a.safetensors", "dcgan")
    assert read == dataclasses.replace(meta, sha256=sha256_of(tmp_path / "a.safetensors"))
    assert read.version == __version__
    assert back.image_shape == (1, 8, 8)
    for name, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], value)
        assert back.state_dict()[name].dtype == value.dtype


def test_a_loaded_model_is_in_evaluation_mode_without_gradients(tmp_path):
    model, _ = checkpoint.load(save_tiny(tmp_path / "a.safetensors"))
    assert not any(module.training for module in model.modules())
    assert not any(p.requires_grad for p in model.parameters())


def test_a_checkpoint_is_loaded_without_the_name_of_its_model(tmp_path):
    assert checkpoint.load(save_tiny(tmp_path / "a.safetensors"))[1].model == "dcgan"


def test_the_metadata_are_plain_json_in_the_header(tmp_path):
    data = save_tiny(tmp_path / "a.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    value = json.loads(header["__metadata__"]["ganbench"])
    assert value["model"] == "dcgan"
    assert value["args"] == TINY


def test_equal_weights_make_equal_files(tmp_path):
    assert save_tiny(tmp_path / "a.safetensors").read_bytes() == save_tiny(tmp_path / "b.safetensors").read_bytes()


def test_weights_that_share_memory_can_be_saved(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    checkpoint.save(tmp_path / "a.safetensors", {"a": base, "t": base.t(), "part": base[1]}, Checkpoint("dcgan"))
    back = load_file(tmp_path / "a.safetensors")
    assert torch.equal(back["t"], base.t())
    assert torch.equal(back["part"], base[1])


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = save_tiny(tmp_path / "a.safetensors")
    before = path.read_bytes()
    with pytest.raises(TypeError):
        checkpoint.save(path, tiny_dcgan().state_dict(), Checkpoint("dcgan", {"x": object()}))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pickled_state_dict_is_read_with_default_or_stored_arguments(tmp_path, wrapped):
    if wrapped:
        state = tiny_dcgan().state_dict()
        torch.save({"model": "dcgan", "args": TINY, "state_dict": state}, tmp_path / "a.pt")
        model, meta = checkpoint.load(tmp_path / "a.pt")
        assert meta.args == TINY
    else:
        state = checkpoint.make_model("dcgan", {}, "test").state_dict()
        torch.save(state, tmp_path / "a.pt")
        model, meta = checkpoint.load(tmp_path / "a.pt", "dcgan")
        assert meta.args == {}
    assert meta.data == ""
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_an_unknown_argument_is_refused_with_a_suggestion():
    with pytest.raises(
        UserError, match=r"^mine: the model 'dcgan' has no argument 'g_widht'\. Did you mean 'g_width'\?$"
    ):
        checkpoint.make_model("dcgan", {"g_widht": 3}, "mine")


def test_a_file_with_another_suffix_is_read_as_safetensors(tmp_path):
    path = save_tiny(tmp_path / "a.safetensors").rename(tmp_path / "a.weights")
    assert checkpoint.load(path)[1].model == "dcgan"
