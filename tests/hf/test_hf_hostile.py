"""Folders made to harm: refused in one line, soon, before anything grows with them."""

import json
import os
import struct
import time
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emo_jax.errors import EmoError, HfFormatError, UsageError
from emo_jax.hf import export_model, import_model
from emo_jax.hf.importing import OTHER_FILES
from emo_jax.saved.load import open_model
from emo_jax.saved.transfer import import_

MANY = {
    "num_hidden_layers": 10**7,
    "num_experts": 10**9,
    "vocab_size": 10**9,
    "hidden_size": 2**31 - 1,
    "moe_intermediate_size": 10**9,
    "shared_expert_intermediate_size": 10**9,
    "intermediate_size": 10**9,
    "max_position_embeddings": 10**30,
    "num_attention_heads": 10**9,
    "head_dim": 10**9,
}
OURS = {  # the field of a run's config that says the same
    "num_hidden_layers": ("model", "num_layers"),
    "num_experts": ("moe", "num_experts"),
    "vocab_size": ("model", "vocab_size"),
    "hidden_size": ("model", "embed_dim"),
    "head_dim": ("model", "head_dim"),
    "num_attention_heads": ("model", "num_heads"),
}


@pytest.fixture(params=["qwen2_moe", "emo", "llama"])
def folder(request, make_model, tmp_path):
    params, config = make_model(fits=request.param)
    return export_model(params, config, tmp_path / "model", layout=request.param)


@pytest.fixture
def qwen(make_model, tmp_path):
    params, config = make_model()
    return export_model(params, config, tmp_path / "model")


def refused(folder, *said, by=import_model, error=HfFormatError):
    """In one line, soon, and with no memory to speak of."""
    start = time.perf_counter()
    tracemalloc.start()
    with pytest.raises(error) as caught:
        by(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.perf_counter() - start < 5 and peak < 30e6
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700, message
    for part in said:
        assert part in message


def test_large_numbers(folder):
    said = json.loads((folder / "config.json").read_text())
    del said["emo_jax"]
    fields = [name for name in MANY if name in said or name == "head_dim"]
    if said["model_type"] == "qwen2_moe":
        fields.remove("intermediate_size")  # of dense layers, of which there are none
    assert len(fields) >= 6
    for field in fields:
        (folder / "config.json").write_text(json.dumps(said | {field: MANY[field]}))
        refused(folder, str(folder))


def test_large_numbers_that_our_section_has_too(folder):
    text = (folder / "config.json").read_text()
    tried = 0
    for field, (section, name) in OURS.items():
        said = json.loads(text)
        ours = said["emo_jax"][section]
        if ours is None:
            continue
        many = said[field] = ours[name] = MANY[field]
        if field == "num_experts" and said["model_type"] == "qwen2_moe":
            ours[name] = many + 1  # the shared one
        if field == "num_attention_heads":
            said["num_key_value_heads"] = many
        (folder / "config.json").write_text(json.dumps(said))
        refused(folder, str(folder))
        tried += 1
    assert tried >= 5


def test_numbers_that_grow_only_in_our_section(qwen):
    said = json.loads((qwen / "config.json").read_text())
    said["emo_jax"]["model"]["vocab_multiple"] = 10**9
    (qwen / "config.json").write_text(json.dumps(said))
    refused(qwen, "config.json", "vocab_multiple")


def test_experts_in_one_tensor_of_nothing(qwen):
    """A shape costs a file nothing where one of its sizes is zero."""
    said = json.loads((qwen / "config.json").read_text())
    del said["emo_jax"]
    held = load_file(qwen / "model.safetensors")
    for i in (0, 1):
        held[f"model.layers.{i}.mlp.experts.gate_up_proj"] = np.zeros((10**9, 0, 32), np.float32)
    save_file(held, qwen / "model.safetensors")
    (qwen / "config.json").write_text(json.dumps(said | {"num_experts": 10**9}))
    refused(qwen, "config.json", "num_experts = 1000000000")


ONE = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
NEXT = {"dtype": "F32", "shape": [2, 2], "data_offsets": [16, 32]}


@pytest.mark.parametrize(
    "entries",
    [
        {"a": ONE, "b": {**NEXT, "data_offsets": [8, 24]}},
        {"a": ONE, "b": {**NEXT, "data_offsets": [16, 2**62]}},
        {"a": ONE, "b": {**NEXT, "data_offsets": [1 << 40, (1 << 40) + 16]}},
        {"a": ONE, "b": {**NEXT, "data_offsets": [32, 16]}},
        {"a": ONE, "b": {**NEXT, "data_offsets": [-16, 0]}},
        {"a": ONE, "b": {**NEXT, "data_offsets": [16]}},
        {"a": ONE, "b": {**NEXT, "data_offsets": "16-32"}},
        {"a": ONE, "b": {**NEXT, "shape": [2, 3]}},
        {"a": ONE, "b": {**NEXT, "shape": [2**62, 2**62]}},
        {"a": ONE, "b": {**NEXT, "shape": [-2, -2]}},
        {"a": ONE, "b": {**NEXT, "shape": {"0": 2}}},
        {"a": ONE, "b": {**NEXT, "dtype": "F33"}},
        {"a": ONE, "b": {**NEXT, "dtype": 32}},
        {"a": ONE, "b": {"shape": [2, 2]}},
        {"a": ONE, "b": None},
        {"a": ONE, "b": [NEXT]},
        {"a": ONE, "b": NEXT, "__metadata__": {"format": 1}},
        {"a": ONE, "b": NEXT, "\ud800": ONE},
        [ONE, NEXT],
        "a",
        None,
        {},
    ],
)
def test_headers_that_are_none(qwen, entries):
    text = json.dumps(entries).encode()
    file = qwen / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(32))
    refused(qwen, "model")


@pytest.mark.parametrize("length", [0, 1, 31, 2**31, 2**63, 2**64 - 1])
def test_lengths_of_a_header_that_are_none(qwen, length):
    (qwen / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{" * 32)
    refused(qwen, "model.safetensors: not a whole safetensors file")


def test_a_header_larger_than_any_models(qwen):
    size = (1 << 25) + 8
    with open(qwen / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", size))
        file.truncate(size + 100)
    refused(qwen, "model.safetensors: its header has 33554440 bytes")


@pytest.mark.parametrize("fields", [[], "text", None, 7, {"a": 1}, {"model_type": "qwen2_moe"}])
def test_a_config_that_is_none(qwen, fields):
    (qwen / "config.json").write_text(json.dumps(fields))
    refused(qwen, str(qwen))


@pytest.mark.parametrize("section", [[], "text", None, 7, {}, {"name": "x"}, {"model": []}])
def test_a_section_of_ours_that_is_none(qwen, section):
    said = json.loads((qwen / "config.json").read_text())
    (qwen / "config.json").write_text(json.dumps(said | {"emo_jax": section}))
    refused(qwen, "config.json: no model of ours has these values")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", *OTHER_FILES])
@pytest.mark.parametrize("by", [import_model, open_model, import_])
def test_links_that_leave_the_folder(qwen, tmp_path, name, by):
    """What they lead to would be read, copied into a workdir or an export, and pushed."""
    secret = tmp_path / "secret"
    if (qwen / name).exists():
        (qwen / name).rename(secret)
    else:
        secret.write_text("mine")
    (qwen / name).symlink_to(secret)
    call = (lambda folder: by(folder, tmp_path / "new")) if by is import_ else by
    refused(qwen, name, f"a link to {secret}, outside", by=lambda folder: call(str(folder)))
    assert not (tmp_path / "new").exists()


def test_the_folder_of_a_tokenizer_is_such_a_folder(make_model, tmp_path):
    params, config = make_model()
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    (tmp_path / "secret").write_text("mine")
    (tokenizer / "chat_template.jinja").symlink_to("../secret")
    export = lambda folder: export_model(params, config, tmp_path / "out", tokenizer_dir=folder)  # noqa: E731
    refused(tokenizer, "chat_template.jinja", "outside of its folder", by=export, error=UsageError)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_the_hub_cache_is_read(qwen, tmp_path):
    expected = import_model(qwen)
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    for made in (snapshot, blobs):
        made.mkdir(parents=True)
    for n, file in enumerate(qwen.iterdir()):
        file.rename(blobs / f"blob{n}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob{n}")
    params, config = import_model(snapshot)
    assert config == expected[1]
    np.testing.assert_array_equal(params["lm_head"]["kernel"], expected[0]["lm_head"]["kernel"])


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json"]
)
@pytest.mark.parametrize("device", [None, "/dev/zero"])
def test_pipes_and_devices_are_no_files(qwen, name, device):
    (qwen / name).unlink(missing_ok=True)
    if device is None:
        os.mkfifo(qwen / name)
    else:
        (qwen / name).symlink_to(device)
    refused(qwen, name)
    refused(qwen, name, by=lambda folder: open_model(str(folder)), error=EmoError)
