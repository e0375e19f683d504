"""What an export writes beside the tensors, what it refuses, and where it reads from."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from emo_jax.config import from_config_dict
from emo_jax.config.presets import emo_1b14b
from emo_jax.errors import EmoError, UsageError
from emo_jax.files.trees import flatten, unflatten
from emo_jax.hf import export_model, weights
from emo_jax.hf.card import Card
from emo_jax.hf.layouts import LAYOUTS
from emo_jax.model.params import count_parameters

EMO_1B14B_TENSORS = 6_259  # SPEC 9.1


def test_released_shape_has_the_published_tensor_and_parameter_counts():
    config = from_config_dict(emo_1b14b())
    assert len(LAYOUTS["emo"].tensors(config)) == EMO_1B14B_TENSORS
    total, active = count_parameters(config)
    padding = 2 * 74 * 2048  # SPEC 1.1 counts 100352 rows
    assert total + padding == 13_568_641_024
    assert active + padding == 1_489_045_504


def test_every_element_of_the_tree_is_stored_once(make_model):
    """The blocks of a layout tile the tree: nothing is left out, nothing is written twice."""
    for layout in LAYOUTS.values():
        params, config = make_model(shared=2, fits=layout.name)
        counts = {path: np.zeros(leaf.shape, int) for path, leaf in flatten(params).items()}
        for tensor in layout.tensors(config):
            if tensor.path:
                counts[tensor.path][tensor.block] += 1
        counts["embed/embedding"][96:] += 1
        counts["lm_head/kernel"][:, 96:] += 1
        if layout.name in ("qwen2_moe", "glm4_moe"):  # not the unused columns of shared experts
            counts["layers/mlp/router/kernel"][:, :, 8:] += 1
        assert all((count == 1).all() for count in counts.values()), layout.name


def test_linear_weights_are_transposes(make_model, tmp_path):
    params, config = make_model(shared=2)
    out = load_file(export_model(params, config, tmp_path / "out") / "model.safetensors")
    layers = params["layers"]
    x = np.random.default_rng(0).normal(size=32).astype(np.float32)
    for letter, name in (("q", "query"), ("k", "key"), ("v", "value")):
        weight = out[f"model.layers.1.self_attn.{letter}_proj.weight"]
        ours = np.einsum("d,dhk->hk", x, layers["attention"][name][1])
        np.testing.assert_allclose(weight @ x, ours.ravel(), rtol=1e-4, atol=1e-5)
    heads = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
    weight = out["model.layers.1.self_attn.o_proj.weight"]
    ours = np.einsum("hk,hkd->d", heads, layers["attention"]["out"][1])
    np.testing.assert_allclose(weight @ heads.ravel(), ours, rtol=1e-4, atol=1e-5)
    experts = layers["mlp"]["experts"]
    for name in ("gate", "up", "down"):
        np.testing.assert_array_equal(
            out[f"model.layers.1.mlp.experts.2.{name}_proj.weight"], experts[name][1, 2].T
        )
    np.testing.assert_array_equal(
        out["model.layers.1.mlp.gate.weight"], layers["mlp"]["router"]["kernel"][1, :, :8].T
    )
    np.testing.assert_array_equal(
        out["model.layers.1.mlp.shared_expert.up_proj.weight"],
        np.concatenate([experts["up"][1, 8].T, experts["up"][1, 9].T]),
    )
    np.testing.assert_array_equal(
        out["model.layers.1.mlp.shared_expert.down_proj.weight"],
        2 * np.concatenate([experts["down"][1, 8].T, experts["down"][1, 9].T], axis=1),
    )


def test_sharded_jax_arrays_write_the_same_file(make_model, tmp_path):
    params, config = make_model(shared=2)
    assert len(jax.devices()) >= 2, "tests/conftest.py forces several CPU devices"
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    axes = {"embed/embedding": 0, "layers/mlp/experts/gate": 1, "layers/mlp/experts/down": 2}
    leaves = {}
    for path, leaf in flatten(params).items():
        spec = [None] * leaf.ndim
        if path in axes:
            spec[axes[path]] = "x"
        leaves[path] = jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*spec)))
    numpy_file = export_model(params, config, tmp_path / "numpy") / "model.safetensors"
    jax_file = export_model(unflatten(leaves), config, tmp_path / "jax")
    assert (jax_file / "model.safetensors").read_bytes() == numpy_file.read_bytes()


def test_files_of_a_folder(make_model, tmp_path):
    params, config = make_model()
    out = export_model(
        params,
        config,
        tmp_path / "new" / "out",
        eos_token_id=3,
        card=Card(
            facts={"step": 12, "losses": {"loss": 2.5, "loss pool=32": 2.25}},
            versions={"jax": "0.0.1"},
        ),
    )
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": 3}
    card = (out / "README.md").read_text()
    for fact in (
        "qwen2_moe",
        "8 routed + 1 shared",
        "| step | 12 |",
        "| losses / loss | 2.5000 |",
        "| jax | 0.0.1 |",
        '"rope_theta": 30000.0',
        "base model",
    ):
        assert fact in card
    assert list(out.parent.iterdir()) == [out]  # nothing unfinished is left


def test_existing_folder_is_left_alone(make_model, tmp_path):
    params, config = make_model()
    (tmp_path / "out").mkdir()
    export_model(params, config, tmp_path / "out")  # empty: fine
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="is there already"):
        export_model(params, config, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is there already"):
        export_model(params, config, tmp_path / "file")


def test_a_failed_export_leaves_nothing(make_model, tmp_path, monkeypatch):
    params, config = make_model()
    monkeypatch.setattr(
        "os.pwrite", lambda fd, data, at: (_ for _ in ()).throw(OSError(28, "No space"))
    )
    with pytest.raises(EmoError, match=r"out: cannot be written: .*No space"):
        export_model(params, config, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_file_does_not_become_the_output(make_model, tmp_path, monkeypatch):
    params, config = make_model()

    def forgets_one(folder, shards, *args):
        weights.write_shards(folder, {n: part[:-1] for n, part in shards.items()}, *args)

    monkeypatch.setattr("emo_jax.hf.export.write_shards", forgets_one)
    with pytest.raises(EmoError, match=r"missing tensors: 1 \(lm_head.weight\)"):
        export_model(params, config, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_layout_is_the_one_that_stock_transformers_loads(make_model, tmp_path):
    for dense, architecture in ((False, "Qwen2MoeForCausalLM"), (True, "LlamaForCausalLM")):
        params, config = make_model(dense=dense)
        out = export_model(params, config, tmp_path / architecture)
        assert json.loads((out / "config.json").read_text())["architectures"] == [architecture]


@pytest.mark.parametrize(
    ("dense", "layout", "said"),
    [
        (
            False,
            "llama",
            r"'llama' is for dense models, .* qwen2_moe or emo or glm4_moe or mixtral, or none",
        ),
        (True, "qwen2_moe", r"'qwen2_moe' is for mixtures of experts, .* give layout llama"),
        (True, "emo", r"'emo' is for mixtures of experts, .* give layout llama"),
        (
            True,
            "gpt2",
            r"'gpt2': must be one of \['qwen2_moe', 'emo', 'glm4_moe', 'mixtral', 'llama'\]",
        ),
    ],
)
def test_a_layout_for_other_models_is_refused(make_model, tmp_path, dense, layout, said):
    params, config = make_model(dense=dense)
    with pytest.raises(UsageError, match=said) as error:
        export_model(params, config, tmp_path / "out", layout=layout)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_parameters_of_another_config_are_refused(make_model, tmp_path):
    params, config = make_model()
    params["final_norm"]["scale"] = np.ones(31, np.float32)
    with pytest.raises(UsageError, match=r"final_norm/scale has shape \(31,\)"):
        export_model(params, config, tmp_path / "out")
    del params["final_norm"]
    with pytest.raises(UsageError, match="final_norm/scale is missing"):
        export_model(params, config, tmp_path / "out")
