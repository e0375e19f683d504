"""A folder that is not exactly a model of ours is refused in one line that names what is wrong."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emo_jax.errors import HfFormatError
from emo_jax.hf import export_model, import_model


@pytest.fixture(params=["qwen2_moe", "emo"])
def folder(request, make_model, tmp_path):
    params, config = make_model()
    return export_model(params, config, tmp_path / "model", layout=request.param)


@pytest.fixture
def qwen(make_model, tmp_path):
    params, config = make_model()
    return export_model(params, config, tmp_path / "qwen", layout="qwen2_moe")


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_config(folder, **fields):
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | fields))


def drop(folder, *fields):
    said = json.loads((folder / "config.json").read_text())
    for field in fields:
        del said[field]
    (folder / "config.json").write_text(json.dumps(said))


def refused(folder, *parts):
    with pytest.raises(HfFormatError) as caught:
        import_model(folder)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message


def test_missing_and_unexpected_tensors_are_counted_and_named(folder):
    def change(tensors):
        for e in range(5):
            del tensors[f"model.layers.0.mlp.experts.{e}.up_proj.weight"]
        tensors["model.layers.0.self_attn.o_proj.bias"] = np.zeros(32, np.float32)

    change_tensors(folder, change)
    message = refused(
        folder,
        "missing tensors: 5 (model.layers.0.mlp.experts.0.up_proj.weight",
        "and 2 more",
        "unexpected tensors: 1 (model.layers.0.self_attn.o_proj.bias)",
    )
    assert "experts.4" not in message


def test_one_missing_tensor(folder):
    change_tensors(folder, lambda tensors: tensors.pop("lm_head.weight"))
    assert "unexpected" not in refused(folder, "missing tensors: 1 (lm_head.weight)")


def test_one_unexpected_tensor(folder):
    name = "model.layers.0.self_attn.o_proj.bias"
    change_tensors(folder, lambda tensors: tensors.update({name: np.zeros(32, np.float32)}))
    assert "missing" not in refused(folder, f"unexpected tensors: 1 ({name})")


def test_wrong_shape_is_named(folder):
    name = "model.layers.1.mlp.experts.2.down_proj.weight"
    change_tensors(folder, lambda t: t.update({name: np.zeros((16, 32), np.float32)}))
    refused(folder, name, "(16, 32)", "(32, 16)")


def test_wrong_vocabulary_rows_are_named(folder):
    change_tensors(folder, lambda t: t.update({"lm_head.weight": np.zeros((95, 32), np.float32)}))
    refused(folder, "lm_head.weight", "(95, 32)", "(96, 32)")


@pytest.mark.parametrize(("dtype", "name"), [(np.int8, "I8"), (np.float64, "F64")])
def test_another_dtype_is_refused(folder, dtype, name):
    change_tensors(folder, lambda t: t.update({"model.norm.weight": np.zeros(32, dtype)}))
    refused(folder, f"model.norm.weight is {name}", "F32, F16, BF16")


def test_another_architecture_is_named_with_those_supported(folder):
    change_config(folder, model_type="gpt2", architectures=["GPT2LMHeadModel"])
    refused(folder, "gpt2", "GPT2LMHeadModel", "Qwen2MoeForCausalLM", "EmoForCausalLM", "Llama")


@pytest.mark.parametrize(
    "field,value",
    [
        ("tie_word_embeddings", True),
        ("norm_topk_prob", True),
        ("hidden_act", "gelu"),
        ("use_sliding_window", True),
        ("mlp_only_layers", [0]),
        ("decoder_sparse_step", 2),
        ("qkv_bias", "yes"),
    ],
)
def test_a_field_that_changes_the_function_is_refused(qwen, field, value):
    change_config(qwen, **{field: value})
    refused(qwen, field, repr(value))


def test_biases_are_there_as_qkv_bias_says(qwen, make_older):
    """transformers takes them for there where it is left out."""
    change_config(qwen, qkv_bias=False)
    refused(qwen, "unexpected tensors: 6 (model.layers.0.self_attn.k_proj.bias")
    make_older(qwen)
    drop(qwen, "qkv_bias")
    refused(qwen, "missing tensors: 6 (model.layers.0.self_attn.k_proj.bias")


def test_unequal_experts_per_layer_are_refused(step_emo, tmp_path):
    params, config = import_model(step_emo)
    out = export_model(params, config, tmp_path / "out", layout="emo")
    change_config(out, num_experts_per_layer=[9, 5])
    refused(out, "num_experts_per_layer", "[9, 5]")


@pytest.mark.parametrize(
    "fields", [{"num_key_value_heads": 2}, {"num_hidden_layers": 3}, {"rms_norm_eps": 1e-3}]
)
def test_fields_that_contradict_our_section_are_refused(folder, fields):
    change_config(folder, **fields)
    refused(folder, next(iter(fields)), "'emo_jax'")


@pytest.mark.parametrize(
    "fields,named",
    [
        ({"num_key_value_heads": 3}, "num_kv_heads = 3"),
        ({"num_key_value_heads": 2}, "k_proj.weight has shape (32, 32)"),
        ({"num_hidden_layers": 3}, "num_hidden_layers = 3, but the tensors are of 2"),
        ({"num_experts_per_tok": 40}, "moe.top_k"),
    ],
)
def test_impossible_fields_are_refused(folder, fields, named):
    change_config(folder, **fields)
    drop(folder, "emo_jax")
    refused(folder, named)


@pytest.mark.parametrize(
    "fields,named",
    [
        ({"rope_theta": 10_000.0}, "(found [10000.0, 30000.0])"),
        ({"rope_theta": 0.0, "rope_parameters": None}, "rope_theta"),
        ({"rope_theta": -1e4, "rope_parameters": None}, "rope_theta"),
        ({"rope_theta": "1e4", "rope_parameters": None}, "rope_theta must be a finite number"),
        ({"rope_theta": float("nan"), "rope_parameters": None}, "rope_theta must be a finite"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 30_000.0}}}, "full_attention"),
        ({"rope_parameters": [30_000.0]}, "rope_parameters must be an object, not a list"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 30_000.0}}, "yarn"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
    ],
)
def test_another_rotary_embedding_is_refused(folder, fields, named):
    change_config(folder, **fields)
    refused(folder, "config.json", named)


def test_rope_theta_is_read_from_either_place(folder):
    change_config(folder, rope_theta=None)
    assert import_model(folder)[1].model.rope_theta == 30_000.0
    change_config(folder, rope_theta=30_000, rope_parameters=None)
    assert import_model(folder)[1].model.rope_theta == 30_000.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mlp.shared_expert_gate.weight", 2.0**-30),
        ("mlp.shared_expert_gate.weight", np.nan),
        ("self_attn.v_proj.bias", 1e-30),
    ],
)
def test_what_was_moved_by_training_elsewhere_is_refused(qwen, name, value):
    name = f"model.layers.1.{name}"

    def move(tensors):
        tensors[name] = tensors[name].copy()
        tensors[name].flat[-1] = value

    change_tensors(qwen, move)
    refused(qwen, name, "zeros", "frozen", "shared_expert_gate and the biases")


def test_missing_field_is_named(step_emo, tmp_path):
    params, config = import_model(step_emo)
    out = export_model(params, config, tmp_path / "out", layout="emo")
    drop(out, "emo_jax", "hidden_size")
    refused(out, "config.json", "no field hidden_size")


def test_a_missing_field_means_what_transformers_takes_it_for(qwen):
    drop(qwen, "emo_jax", "hidden_size")
    refused(qwen, "model.embed_tokens.weight has shape (96, 32)", "says (96, 2048)")


@pytest.mark.parametrize("value", [3, 1.0, 0, -1e-5, "1e-5", float("nan"), True, [1e-5], 10**400])
@pytest.mark.parametrize("ours", [True, False])
def test_an_epsilon_that_is_none_is_refused(folder, value, ours):
    change_config(folder, rms_norm_eps=value)
    if ours:
        said = json.loads((folder / "config.json").read_text())
        said["emo_jax"]["model"]["norm_eps"] = value
        change_config(folder, emo_jax=said["emo_jax"])
    else:
        drop(folder, "emo_jax")
    refused(folder, "config.json", "eps")


def test_broken_config_is_one_line(folder):
    (folder / "config.json").write_text('{"a": \n 1,')
    refused(folder, "config.json", "JSON")


def test_folder_without_config_is_named(tmp_path):
    refused(tmp_path, "config.json", "missing")


def test_truncated_file_is_named(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    refused(folder, "model.safetensors", "not a whole safetensors file")


@pytest.mark.parametrize("content", [b"", b"\x10\0\0\0\0\0\0\0{broken header!!", b"\xff" * 64])
def test_broken_header_is_one_line(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, "model.safetensors", "copy it again")


def test_folder_without_weights_is_named(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, "model.safetensors", "missing")


def test_missing_shard_is_named(make_model, tmp_path):
    params, config = make_model()
    out = export_model(params, config, tmp_path / "out", max_shard_bytes=60_000)
    lost = sorted(out.glob("model-*.safetensors"))[1]
    lost.unlink()
    refused(out, lost.name, "missing")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("model-00009-of-00009.safetensors", ("model-00009-of-00009.safetensors", "missing")),
        ("../elsewhere.safetensors", ("index.json", "no name of a file")),
        ("..", ("index.json", "no name of a file")),
        ("below/model.safetensors", ("index.json", "files beside it")),
        ("model\0.safetensors", ("index.json", "no name of a file")),
        (["model.safetensors"], ("index.json", "no name of a file")),
    ],
)
def test_an_index_that_names_what_is_no_file_of_the_folder(make_model, tmp_path, file, words):
    params, config = make_model()
    out = export_model(params, config, tmp_path / "out", max_shard_bytes=60_000)
    index = out / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    said["weight_map"]["lm_head.weight"] = file
    index.write_text(json.dumps(said))
    refused(out, *words)


@pytest.mark.parametrize("weight_map", [None, [], {}, "model.safetensors"])
def test_an_index_without_a_map(qwen, weight_map):
    index = qwen / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    refused(qwen, "index.json", "weight_map")


def test_a_tensor_in_two_files_is_refused(make_model, tmp_path):
    params, config = make_model()
    out = export_model(params, config, tmp_path / "out", max_shard_bytes=60_000)
    first, second = sorted(out.glob("model-*.safetensors"))[:2]
    save_file(load_file(second) | load_file(first), second)
    refused(out, second.name, first.name, "too; remove one")


def test_two_models_in_one_folder_are_refused(make_model, tmp_path):
    """transformers would take the single file, an index would be read here."""
    params, config = make_model()
    out = export_model(params, config, tmp_path / "out", max_shard_bytes=60_000)
    first = sorted(out.glob("model-*.safetensors"))[0]
    (out / "model.safetensors").write_bytes(first.read_bytes())
    refused(out, "model.safetensors", "model.safetensors.index.json", "remove the one")


def test_an_index_of_one_file_is_read(make_model, tmp_path):
    params, config = make_model()
    out = export_model(params, config, tmp_path / "out")
    names = dict.fromkeys(load_file(out / "model.safetensors"), "model.safetensors")
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert import_model(out)[1] == config


@pytest.mark.parametrize("kind", ["a folder", "a link to itself"])
def test_a_file_that_cannot_be_read_is_called_neither_damaged_nor_missing(folder, kind):
    """Root may read everything else."""
    file = folder / "model.safetensors"
    file.unlink()
    if kind == "a folder":
        file.mkdir()
    else:
        file.symlink_to(file.name)
    said = "not a regular file" if kind == "a folder" else "cannot be read"
    line = refused(folder, "model.safetensors", said)
    assert "whole" not in line and "missing" not in line
