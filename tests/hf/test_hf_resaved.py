"""What others make of our folders is read as the same model: transformers 4 and 5, mergekit, PEFT.

The system tests need torch and transformers (CI installs them before `-m system`).
"""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import runs
from hf_folders import SAVED_BY, fuse, fuse_mixtral, say
from safetensors.numpy import load_file, save_file

from emo_jax.errors import HfFormatError
from emo_jax.files.trees import flatten
from emo_jax.hf import export_model, import_model, open_folder


def assert_same(folder, expected, dtype=np.float32):
    """A folder holds a model's parameters as some type rounds them, and its config."""
    params, config = import_model(folder)
    found, wanted = flatten(params), flatten(expected[0])
    assert config == expected[1] and found.keys() == wanted.keys()
    for path, leaf in wanted.items():
        rounded = leaf.astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(found[path], rounded, err_msg=path)


@pytest.fixture
def exported(make_model, tmp_path):
    """A folder and what an import of it gives."""
    params, config = make_model(shared=2)
    folder = export_model(params, config, tmp_path / "model")
    return folder, import_model(folder)


@pytest.mark.parametrize("layers", [(0, 1), (1,)])
@pytest.mark.parametrize("version", SAVED_BY)
def test_experts_in_one_tensor_are_read_where_they_lie(exported, layers, version):
    folder, expected = exported
    say(fuse(folder, layers), **SAVED_BY[version])
    assert len(load_file(folder / "model.safetensors")) < len(expected[0]) + 80
    assert_same(folder, expected)
    source, _, _ = open_folder(folder)
    block = (slice(1, 2), slice(3, 5), slice(7, 20), slice(2, 9))
    leaf = flatten(expected[0])["layers/mlp/experts/up"]
    np.testing.assert_array_equal(source.read("layers/mlp/experts/up", block), leaf[block])


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_other_types(exported, dtype):
    """In float16 the shared gate becomes zero; in both a fused expert begins at other bytes."""
    folder, expected = exported
    file = fuse(folder) / "model.safetensors"
    save_file({name: value.astype(dtype) for name, value in load_file(file).items()}, file)
    assert_same(folder, expected, dtype)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("gate_up_proj", lambda x: x[:, :-1], "has shape (8, 31, 32), but the config says"),
        ("gate_up_proj", lambda x: x[:7], "has shape (7, 32, 32)"),
        ("down_proj", lambda x: np.swapaxes(x, 1, 2), "has shape (8, 16, 32)"),
        ("down_proj", lambda x: x[:4], "has shape (4, 32, 16)"),
        ("down_proj", lambda x: x.astype(np.float64), "is F64, must be one of F32"),
        ("down_proj", lambda x: x[0, 0, :1], "has shape (1,)"),
        ("down_proj", None, "missing tensors: 16 (model.layers.0.mlp.experts.0.down_proj"),
    ],
)
def test_one_tensor_that_is_not_all_experts(exported, name, change, said):
    folder, _ = exported
    file = fuse(folder) / "model.safetensors"
    held = load_file(file)
    for i in (0, 1):
        whole = held.pop(f"model.layers.{i}.mlp.experts.{name}")
        if change is not None:
            held[f"model.layers.{i}.mlp.experts.{name}"] = np.ascontiguousarray(change(whole))
    save_file(held, file)
    with pytest.raises(HfFormatError) as caught:
        import_model(folder)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_an_expert_that_is_there_twice(exported):
    folder, _ = exported
    before = load_file(folder / "model.safetensors")
    file = fuse(folder) / "model.safetensors"
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    save_file(load_file(file) | {name: before[name]}, file)
    with pytest.raises(HfFormatError, match=f"{name} is in .*gate_up_proj too"):
        import_model(folder)


def test_a_mixtral_as_it_is_in_memory(make_model, tmp_path):
    params, config = make_model(fits="mixtral", kv_heads=2)
    folder = export_model(params, config, tmp_path / "model")
    expected = import_model(folder)
    file = fuse_mixtral(folder) / "model.safetensors"
    assert_same(folder, expected)
    held = load_file(file)
    name = "model.layers.1.block_sparse_moe.gate.weight"
    save_file(held | {name: held["model.layers.1.mlp.gate.weight"]}, file)
    with pytest.raises(HfFormatError, match=f"{name} is there as model.layers.1.mlp.gate"):
        import_model(folder)


def test_an_adapter_alone_is_named(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(HfFormatError, match=r"PEFT adapter alone.*merge_and_unload\(\)"):
        import_model(tmp_path)


@pytest.mark.system
@pytest.mark.parametrize("fits", ["qwen2_moe", "mixtral", "llama"])
def test_saved_again_by_transformers(make_model, tmp_path, transformers_at, fits):
    """In each type, in one file and in many, as it comes from the hub and as it is in memory."""
    params, config = make_model(shared=2, fits=fits)
    first = export_model(params, config, tmp_path / "first")
    kinds = {
        "same": ("float32", {}),
        "sharded": ("bfloat16", {"max_shard_size": "20KB"}),
        "half": ("float16", {}),
    }
    version, env = transformers_at
    if version != "4.57":
        kinds["fused"] = ("float32", {"save_original_format": False})
    request = [
        {"folder": str(first), "output": str(tmp_path / name), "dtype": dtype, "options": options}
        for name, (dtype, options) in kinds.items()
    ]
    (tmp_path / "request.json").write_text(json.dumps(request))
    script = runs.REPO / "tests/peers/transformers_save.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path / "request.json"],
        env=runs.environment(**env),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(version) or version == "newest"
    expected = import_model(first)
    types = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    for name, (dtype, _) in kinds.items():
        assert_same(tmp_path / name, expected, types[dtype])
    if fits != "llama" and "fused" in kinds:
        assert "model.layers.0.mlp.experts.down_proj" in load_file(
            tmp_path / "fused" / "model.safetensors"
        )
