"""What is written comes back with the same bits."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from emo_jax.errors import UsageError
from emo_jax.files.trees import flatten
from emo_jax.hf import export_model, import_model, import_tensors, layouts

VOCAB_LEAVES = {"embed/embedding": 0, "lm_head/kernel": 1}
ROUTER = "layers/mlp/router/kernel"


def kept(params, config, layout):
    """The flat tree, zero in the rows that a layout does not store."""
    leaves = {path: np.array(leaf) for path, leaf in flatten(params).items()}
    for path, axis in VOCAB_LEAVES.items():
        np.moveaxis(leaves[path], axis, 0)[config.model.vocab_size :] = 0
    if layout == "qwen2_moe" and config.moe:
        leaves[ROUTER][:, :, config.moe.num_routed_experts :] = 0
    return leaves


def assert_same_bits(got, expected):
    assert got.keys() == expected.keys()
    for path, leaf in expected.items():
        assert got[path].dtype == np.float32
        np.testing.assert_array_equal(got[path].view(np.uint32), leaf.view(np.uint32), err_msg=path)


def test_golden_in_and_out_as_emo_is_bit_equal(golden, tmp_path):
    params, config = import_model(golden)
    export_model(params, config, tmp_path / "out", layout="emo")
    before = load_file(golden / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert_same_bits(after, before)


def test_golden_gradients_are_read_as_a_tree_like_the_parameters(step_emo):
    params, config = import_model(step_emo)
    grads = import_tensors(step_emo / "grads.safetensors", config)
    shapes = {path: leaf.shape for path, leaf in flatten(params).items()}
    assert {path: leaf.shape for path, leaf in flatten(grads).items()} == shapes
    stored = load_file(step_emo / "grads.safetensors")
    norm = np.sqrt(sum((leaf.astype(np.float64) ** 2).sum() for leaf in flatten(grads).values()))
    np.testing.assert_allclose(norm, np.load(step_emo / "case.npz")["grad_norm"], rtol=1e-6)
    np.testing.assert_array_equal(
        grads["layers"]["mlp"]["experts"]["up"][1, 3].T,
        stored["model.layers.1.mlp.experts.3.up_proj.weight"],
    )
    # The router row of the shared expert gets no gradient from any loss (SPEC 2.2).
    assert not grads["layers"]["mlp"]["router"]["kernel"][:, :, -1].any()


def test_golden_config_is_read_with_defaults(step_emo):
    _, config = import_model(step_emo)
    said = json.loads((step_emo / "config.json").read_text())
    assert config.name == "step_emo"
    assert config.model.vocab_size == said["vocab_size"]
    assert config.model.head_dim == 8
    assert config.model.rope_theta == 500_000.0
    assert config.model.compute_dtype == "float32"
    assert (config.moe.num_experts, config.moe.top_k, config.moe.num_shared_experts) == (9, 3, 1)
    assert config.data.seq_len == said["max_position_embeddings"]
    assert (config.train.steps, config.train.batch_size) == (1, 1)
    assert config.optimizer.warmup_steps == 0


def test_golden_config_written_as_emo_agrees_with_the_reference(golden, tmp_path):
    params, config = import_model(golden)
    export_model(params, config, tmp_path / "out", layout="emo", eos_token_id=1, pad_token_id=0)
    ours = json.loads((tmp_path / "out" / "config.json").read_text())
    theirs = json.loads((golden / "config.json").read_text())
    assert {k: ours[k] for k in theirs.keys() & ours.keys()} == {
        k: theirs[k] for k in theirs.keys() & ours.keys()
    }
    assert theirs.keys() - ours.keys() == {"rope_scaling", "router_aux_loss_coef"}


def test_golden_through_qwen2_moe_is_bit_equal_but_for_the_dead_router_row(golden, tmp_path):
    params, config = import_model(golden)
    export_model(params, config, tmp_path / "out", layout="qwen2_moe")
    again, config_again = import_model(tmp_path / "out")
    assert config_again == config
    assert_same_bits(flatten(again), kept(params, config, "qwen2_moe"))


@pytest.mark.parametrize("shared", [0, 1])
def test_both_forms_of_qwen2_moe_are_the_same_model(make_model, make_older, tmp_path, shared):
    """Exports had no biases and a gate of zeros once, as the folders on the hub still do."""
    params, config = make_model(shared=shared)
    new = import_model(export_model(params, config, tmp_path / "new"))
    older = make_older(export_model(params, config, tmp_path / "older"))
    again, config_again = import_model(older)
    assert config_again == new[1]
    assert_same_bits(flatten(again), flatten(new[0]))


def test_the_shared_gate_lets_exactly_half_through():
    """In the largest shape that its comment names, h along the gate as far as it can be."""
    D, scale = 2048, np.float32(15.99)
    for sign in (1, -1):
        logit = np.float32(sign * D * scale * layouts.SHARED_GATE)
        for dtype in (np.float32, ml_dtypes.bfloat16):
            assert dtype(1) / (dtype(1) + np.exp(-dtype(logit)).astype(dtype)) == dtype(0.5)
    assert np.float32(1) / (1 + np.exp(np.float32(2.0**-22))) != 0.5


@pytest.mark.parametrize("layout", ["qwen2_moe", "emo"])
@pytest.mark.parametrize("shared", [0, 1, 3])
@pytest.mark.parametrize("vocab", [96, 128])
def test_random_model_comes_back(make_model, tmp_path, layout, shared, vocab):
    params, config = make_model(shared=shared, vocab=vocab)
    export_model(params, config, tmp_path / "out", layout=layout)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored["model.embed_tokens.weight"].shape == (vocab, 32)
    assert stored["lm_head.weight"].shape == (vocab, 32)
    again, config_again = import_model(tmp_path / "out")
    assert config_again == config
    assert flatten(again)["embed/embedding"].shape == (128, 32)
    assert_same_bits(flatten(again), kept(params, config, layout))


@pytest.mark.parametrize("vocab", [96, 128])
def test_a_dense_model_comes_back(make_model, tmp_path, vocab):
    params, config = make_model(dense=True, vocab=vocab)
    out = export_model(params, config, tmp_path / "out")
    again, config_again = import_model(out)
    assert config_again == config
    assert_same_bits(flatten(again), kept(params, config, "llama"))
    said = json.loads((out / "config.json").read_text())
    del said["emo_jax"]
    (out / "config.json").write_text(json.dumps(said))
    again, config_again = import_model(out)
    assert config_again.moe is None and config_again.model == config.model
    assert_same_bits(flatten(again), kept(params, config, "llama"))


@pytest.mark.parametrize("layout", ["qwen2_moe", "mixtral", "emo", "llama"])
@pytest.mark.parametrize("kv_heads", [0, 1, 2])
def test_heads_wider_than_the_model_come_back(make_model, tmp_path, layout, kv_heads):
    params, config = make_model(head_dim=16, kv_heads=kv_heads, fits=layout)
    out = export_model(params, config, tmp_path / "out", layout=layout)
    said = json.loads((out / "config.json").read_text())
    assert (said["head_dim"], said["num_key_value_heads"]) == (16, kv_heads or 4)
    again, config_again = import_model(out)
    assert config_again == config
    assert_same_bits(flatten(again), kept(params, config, layout))


@pytest.mark.parametrize("more", [{}, {"kv_heads": 2}, {"normalize_picks": True}])
@pytest.mark.parametrize("layout", ["qwen2_moe", "emo"])
def test_without_our_section_the_shape_is_read_from_the_other_fields(
    make_model, tmp_path, layout, more
):
    params, config = make_model(shared=2, **more)
    export_model(params, config, tmp_path / "out", layout=layout)
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    del said["emo_jax"]
    (tmp_path / "out" / "config.json").write_text(json.dumps(said))
    again, config_again = import_model(tmp_path / "out")
    assert config_again.model == dataclasses.replace(config.model, vocab_multiple=128)
    assert dataclasses.replace(config_again.moe, pool=config.moe.pool) == config.moe
    assert_same_bits(flatten(again), kept(params, config, layout))


def test_a_mixtral_without_our_section(make_model, tmp_path):
    params, config = make_model(fits="mixtral", kv_heads=2)
    folder = export_model(params, config, tmp_path / "out")  # the layout that is taken for it
    path = folder / "config.json"
    said = json.loads(path.read_text())
    assert said["architectures"] == ["MixtralForCausalLM"]
    del said["emo_jax"]
    path.write_text(json.dumps(said))
    again, config_again = import_model(folder)
    assert config_again.model == dataclasses.replace(config.model, vocab_multiple=128)
    assert config_again.moe == config.moe
    assert_same_bits(flatten(again), kept(params, config, "mixtral"))


@pytest.mark.parametrize("shape", [{"shared": 0}, {"shared": 1, "normalize_picks": True}])
def test_a_model_that_is_no_mixtral(make_model, tmp_path, shape):
    with pytest.raises(UsageError, match=r"'mixtral' is for .* give layout qwen2_moe or emo"):
        export_model(*make_model(**shape), tmp_path / "out", layout="mixtral")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rows,said", [(128, 96), (96, 128), (128, 128), (96, 96)])
def test_released_folders_of_either_vocabulary_size_are_read(golden, tmp_path, rows, said):
    """SPEC 9.1: 100278 rows or 100352, whatever config.json says; here 96 and 128."""
    params, config = import_model(golden)
    source = export_model(params, config, tmp_path / "source", layout="emo")
    fields = json.loads((source / "config.json").read_text()) | {"vocab_size": said}
    del fields["emo_jax"]
    tensors = load_file(source / "model.safetensors")
    rng = np.random.default_rng(0)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = rng.normal(size=(rows, 32)).astype(np.float32)
    (source / "config.json").write_text(json.dumps(fields))
    save_file(tensors, source / "model.safetensors")
    again, config_again = import_model(source)
    vocab = min(rows, said)
    assert config_again.model.vocab_size == vocab
    embedding = again["embed"]["embedding"]
    assert embedding.shape == (128, 32)
    np.testing.assert_array_equal(embedding[:vocab], tensors["model.embed_tokens.weight"][:vocab])
    np.testing.assert_array_equal(
        again["lm_head"]["kernel"][:, :vocab], tensors["lm_head.weight"][:vocab].T
    )
    assert not embedding[vocab:].any() and not again["lm_head"]["kernel"][:, vocab:].any()


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_is_upcast(make_model, tmp_path, dtype):
    params, config = make_model()
    out = export_model(params, config, tmp_path / "out")
    halves = {k: v.astype(dtype) for k, v in load_file(out / "model.safetensors").items()}
    save_file(halves, out / "model.safetensors")
    again = flatten(import_model(out)[0])
    expected = kept(params, config, "qwen2_moe")
    assert_same_bits(again, {k: v.astype(dtype).astype(np.float32) for k, v in expected.items()})


def test_many_shards_hold_what_one_file_holds(make_model, tmp_path):
    params, config = make_model(shared=2)
    one = export_model(params, config, tmp_path / "one")
    many = export_model(params, config, tmp_path / "many", max_shard_bytes=20_000)
    files = sorted(many.glob("*.safetensors"))
    assert len(files) > 5
    assert not (many / "model.safetensors").exists()
    index = json.loads((many / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    joined = {}
    for file in files:
        held = load_file(file)
        assert len(held) == 1 or sum(v.nbytes for v in held.values()) <= 20_000
        assert all(index["weight_map"][name] == file.name for name in held)
        joined |= held
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in joined.values())
    assert_same_bits(joined, load_file(one / "model.safetensors"))
    assert_same_bits(flatten(import_model(many)[0]), flatten(import_model(one)[0]))
