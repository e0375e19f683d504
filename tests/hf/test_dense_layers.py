"""Layers without experts before the others: `model.dense_layers` (SPEC 6, densefirst)."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from logits import compare, forward, our_logits
from tiny import NO_POOL, tiny_batch, tiny_config

from emo_jax.batch import from_documents
from emo_jax.config import from_config_dict, presets
from emo_jax.errors import ConfigError, HfFormatError, UsageError
from emo_jax.files.trees import flatten, unflatten
from emo_jax.generation import cache as cache_lib
from emo_jax.hf import export_model, import_model
from emo_jax.hf.gguf_export import check_model
from emo_jax.model.functions import ModelFunctions
from emo_jax.training.flops import flops_per_token
from emo_jax.training.freeze import trains
from emo_jax.training.muon import matrix_of
from emo_jax.training.step import draw_pools, loss_and_grads

FIRST = dict(num_layers=3, dense_layers=1, mlp_dim=24)
SIGMOID = dict(gate="sigmoid", normalize_picks=True, score_bias="sign", bias_rate=0.01)


def _of_others(folder, **fields):
    """Without our section, and with other fields; `...`: without it."""
    path = folder / "config.json"
    said = json.loads(path.read_text()) | {"emo_jax": ...} | fields
    path.write_text(json.dumps({name: value for name, value in said.items() if value is not ...}))


def test_logits_of_a_transcription(make_model):
    params, config = make_model(first=2)
    tokens = np.random.default_rng(1).integers(0, config.model.vocab_size, (2, 40))
    compare("two dense", our_logits(params, config, tokens), forward(params, config, tokens))


def test_gradients_of_a_transcription(make_model):
    """In a random direction of each stack of layers, by central differences in float64."""
    params, config = make_model(first=1)
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, config.model.vocab_size, (2, 12))
    weights = rng.normal(size=(*tokens.shape, config.model.vocab_size))
    batch = from_documents(tokens, np.zeros_like(tokens))
    model = ModelFunctions(config)

    def ours(params):
        logits = model.logits(params, batch)[..., : config.model.vocab_size]
        return jnp.sum(logits * weights)

    grads, leaves = flatten(jax.jit(jax.grad(ours))(params)), flatten(params)
    for stack in ("dense_layers/", "layers/attention"):
        paths = [path for path in leaves if path.startswith(stack)]
        assert paths
        for path in paths:
            way = rng.normal(size=leaves[path].shape)
            values = []
            for step in (1e-5, -1e-5):
                moved = {**leaves, path: np.asarray(leaves[path], np.float64) + step * way}
                values.append((forward(unflatten(moved), config, tokens) * weights).sum())
            want = (values[0] - values[1]) / 2e-5
            got = float(np.sum(np.asarray(grads[path], np.float64) * way))
            assert got == pytest.approx(want, rel=2e-3), path


def test_the_router_has_the_layers_with_experts_only():
    config = tiny_config(**FIRST)
    batch, model = tiny_batch(config), ModelFunctions(config)
    pools = draw_pools(config, jnp.int32(0), jnp.arange(batch.tokens.shape[0]))
    assert pools.size_BG.shape[0] == 2
    params = model.init(0)
    grads, metrics = jax.jit(
        lambda params: loss_and_grads(params, batch, pools, config=config, model=model)
    )(params)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(grads["dense_layers"]))
    assert {v.shape[0] for k, v in flatten(metrics).items() if k.endswith("_by_layer")} <= {2}
    # The stack after it is drawn as in a model without them.
    shorter = ModelFunctions(tiny_config()).init(0)
    jax.tree.map(np.testing.assert_array_equal, params["layers"], shorter["layers"])


def test_one_token_after_the_other():
    config = tiny_config(pool=NO_POOL, **FIRST)
    model = ModelFunctions(config)
    params = model.init(0)
    tokens = np.random.default_rng(3).integers(8, 50, (2, 12)).astype(np.int32)
    batch = from_documents(tokens, np.zeros_like(tokens))
    whole = np.asarray(model.logits(params, batch))
    used = cache_lib.inference_params(config, params)
    lengths = jnp.full((2,), 8, jnp.int32)
    cache, logits = cache_lib.prefill(
        model, used, jnp.asarray(tokens[:, :8]), lengths, eos_id=-1, places=16
    )
    for i in range(8, 12):
        np.testing.assert_allclose(logits[:, :50], whole[:, i - 1, :50], rtol=0, atol=1e-5)
        cache, logits = cache_lib.append(model, used, jnp.asarray(tokens[:, i]), cache)
    np.testing.assert_allclose(logits[:, :50], whole[:, 11, :50], rtol=0, atol=1e-5)


def test_parameters_and_flops():
    """Table 2, row 2: the first two of sixteen layers have one feed-forward of 8 · 1024."""
    config = presets.emo_1b14b()
    config.model.dense_layers, config.model.mlp_dim = 2, 8192
    config = from_config_dict(config)
    one = 3 * 2048 * 1024
    router = 128 * 2048
    assert ModelFunctions(config).num_params() == 13_568_641_024 - 2 * (120 * one + router)
    # A token uses eight experts there and here: only the router is spared.
    assert flops_per_token(config) == 9_311_367_168 - 2 * 6 * router


@pytest.mark.parametrize(("layout", "moe"), [("qwen2_moe", {}), ("emo", {}), ("glm4_moe", SIGMOID)])
@pytest.mark.parametrize("section", [True, False])
def test_a_folder_comes_back(make_model, tmp_path, layout, moe, section):
    """With our section, and as a folder of others."""
    params, config = make_model(first=2, **moe)
    folder = export_model(params, config, tmp_path / "out", layout=layout)
    if not section:
        _of_others(folder)
    again, found = import_model(folder)
    if section:
        assert found == config
    assert (found.model.dense_layers, found.model.num_layers, found.model.mlp_dim) == (2, 4, 24)
    assert found.moe.experts_per_layer == ()
    ours = flatten(params)
    for path, leaf in flatten(again).items():
        if path.startswith("dense_layers/") or "/experts/" in path or "/attention" in path:
            np.testing.assert_array_equal(leaf, ours[path], err_msg=path)


def test_a_glm4_moe_has_a_dense_layer_unless_it_says_otherwise(make_model, tmp_path):
    """As in transformers, whose default is 1."""
    for first in (0, 1):
        folder = export_model(*make_model(first=first, **SIGMOID), tmp_path / str(first))
        _of_others(folder, first_k_dense_replace=...)
        if first:
            assert import_model(folder)[1].model.dense_layers == 1
        else:
            with pytest.raises(HfFormatError, match=r"missing tensors: 3 \(model\.layers\.0\.mlp"):
                import_model(folder)


@pytest.mark.parametrize(
    ("layout", "moe", "fields", "said"),
    [
        ("qwen2_moe", {}, {"mlp_only_layers": [1]}, r"mlp_only_layers = \[1\], but \[0\] follows"),
        ("qwen2_moe", {}, {"mlp_only_layers": [0, 1, 2]}, "dense_layers = 3: must be 0..2"),
        ("qwen2_moe", {}, {"mlp_only_layers": ["0"]}, "all must be integers"),
        ("qwen2_moe", {}, {"intermediate_size": 25}, "has shape"),
        ("glm4_moe", SIGMOID, {"first_k_dense_replace": 3}, "dense_layers = 3: must be 0..2"),
        ("emo", {}, {"dense_intermediate_size": None}, "mlp_dim"),
        ("emo", {}, {"dense_mlp_bias": True}, "dense_mlp_bias = True"),
    ],
)
def test_folders_of_other_models(make_model, tmp_path, layout, moe, fields, said):
    folder = export_model(*make_model(first=1, **moe), tmp_path / "out", layout=layout)
    _of_others(folder, **fields)
    with pytest.raises(HfFormatError, match=said):
        import_model(folder)


@pytest.mark.system
@pytest.mark.parametrize(
    ("name", "moe"), [("Qwen2MoeForCausalLM", {}), ("Glm4MoeForCausalLM", SIGMOID)]
)
def test_transformers_computes_the_same_function(make_model, tmp_path, name, moe):
    import torch
    from transformers import AutoModelForCausalLM

    params, config = make_model(first=2, **moe)
    params["dense_layers"]["mlp"]["down"] *= 3
    folder = export_model(params, config, tmp_path / "out")
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not report[what], f"{what}: {report[what]}"
    assert type(model).__name__ == name
    tokens = np.random.default_rng(1).integers(0, config.model.vocab_size, (2, 40))
    with torch.no_grad():
        got = model.eval()(torch.as_tensor(tokens)).logits.numpy()
    compare(name, got, our_logits(params, config, tokens))
    model.save_pretrained(tmp_path / "again")
    again, _ = import_model(tmp_path / "again")
    for path, leaf in flatten(again["dense_layers"]).items():
        np.testing.assert_array_equal(leaf, flatten(params["dense_layers"])[path], err_msg=path)


def test_layouts_without_such_layers(make_model, tmp_path):
    params, config = make_model(first=1, shared=0, normalize_picks=True)
    with pytest.raises(UsageError, match=r"'mixtral' is for .* model\.dense_layers = 0"):
        export_model(params, config, tmp_path / "out", layout="mixtral")
    with pytest.raises(UsageError, match=r"--gguf: .* model\.dense_layers = 1; export it with"):
        check_model(config, None)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(dense_layers=2, mlp_dim=8), r"dense_layers = 2: must be 0\.\.1"),
        (dict(dense_layers=-1), r"dense_layers = -1"),
        (dict(dense_layers=1), r"mlp_dim = 0: must be at least 1, for model.dense_layers = 1"),
        (dict(mlp_dim=8), r"mlp_dim = 8: must be 0 in a mixture of experts without"),
    ],
)
def test_bad_shapes(fields, said):
    with pytest.raises(ConfigError, match=said):
        tiny_config(**fields)
    config = tiny_config()
    model = dataclasses.replace(config.model, num_layers=3, dense_layers=1, mlp_dim=8)
    with pytest.raises(ConfigError, match="dense_layers = 1: must be 0 in a dense model"):
        dataclasses.replace(config, model=model, moe=None)


def test_what_is_frozen_and_what_is_a_matrix():
    config = tiny_config(**FIRST)
    path = ("dense_layers", "mlp", "up")
    assert trains(config, path, (1, 16, 24)) is True
    assert matrix_of(path, 3) == matrix_of(("layers", "mlp", "up"), 3)
    assert matrix_of(("dense_layers", "mlp_norm", "scale"), 2) is None
    frozen = dataclasses.replace(config.optimizer, frozen=("attention", "norms", "mlp"))
    config = dataclasses.replace(config, optimizer=frozen)
    for path in ("attention/query", "mlp_norm/scale", "mlp/up"):
        assert trains(config, ("dense_layers", *path.split("/")), (1, 16, 24)) is False
    assert trains(config, ("layers", "mlp", "experts", "up"), (2, 8, 16, 8)) is True
