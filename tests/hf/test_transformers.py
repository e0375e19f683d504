"""Exported folders in transformers itself: no remote code, no name left over, the same logits.

Needs torch and transformers (CI installs them before `-m system`).
"""

import numpy as np
import pytest
from logits import compare, forward, our_logits

from emo_jax.files.trees import flatten
from emo_jax.hf import export_model, import_model

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def torch():
    import torch

    return torch


@pytest.fixture
def load(torch):
    """The model of a folder, loaded as a user would, with everything that loading reports."""
    from transformers import AutoModelForCausalLM

    def load(folder):
        model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            assert not report[what], f"{what}: {report[what]}"
        assert not report.get("error_msgs")
        assert type(model).__module__.startswith(
            tuple(f"transformers.models.{name}" for name in ("qwen2_moe", "mixtral", "llama"))
        )
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        return model.eval()

    return load


def logits_of(torch, model, tokens):
    with torch.no_grad():
        return model(torch.as_tensor(np.asarray(tokens), dtype=torch.long)).logits.numpy()


def test_golden_folders_load_with_every_name_in_its_place(golden, tmp_path, load):
    params, config = import_model(golden)
    model = load(export_model(params, config, tmp_path / "out"))
    assert model.config.num_experts == 8
    assert model.config.num_experts_per_tok == 2
    assert model.config.qkv_bias is True


def test_step_emo_has_the_reference_logits(step_emo, tmp_path, load, torch):
    params, config = import_model(step_emo)
    model = load(export_model(params, config, tmp_path / "out"))
    case = np.load(step_emo / "case.npz")
    got = logits_of(torch, model, case["input_ids"])
    compare("step_emo, transformers", got, case["logits_inference"])
    ours = forward(params, config, case["input_ids"])
    compare("step_emo, NumPy", ours, case["logits_inference"])


@pytest.mark.parametrize(
    "shared,routed,normalize",
    [(0, 8, False), (1, 8, False), (2, 8, False), (1, 3, False), (1, 8, True)],
)
def test_random_model_computes_the_same_function(
    make_model, tmp_path, load, torch, shared, routed, normalize
):
    """(1, 3): a selected module that uses all the routed experts it has."""
    params, config = make_model(shared=shared, routed=routed, normalize_picks=normalize)
    params["layers"]["mlp"]["experts"]["down"] *= 3  # so that a wrong expert shows in the logits
    model = load(export_model(params, config, tmp_path / "out", max_shard_bytes=100_000))
    tokens = np.random.default_rng(1).integers(0, config.model.vocab_size, (2, 40))
    got = logits_of(torch, model, tokens)
    compare(f"{shared} shared, {routed} routed experts", got, forward(params, config, tokens))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shared", [0, 2])
def test_biases_and_gate_change_no_bit(make_model, make_older, tmp_path, torch, dtype, shared):
    """They are there for other engines; here no logit may differ from those without them."""
    from transformers import AutoModelForCausalLM

    params, config = make_model(shared=shared)
    tokens = np.random.default_rng(1).integers(0, config.model.vocab_size, (2, 40))
    got = []
    for name in ("new", "older"):
        folder = export_model(params, config, tmp_path / name)
        folder = make_older(folder) if name == "older" else folder
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        got.append(model.eval()(torch.as_tensor(tokens)).logits.detach())
    assert got[0].isfinite().all() and torch.equal(*got)


@pytest.mark.parametrize("vocab", [96, 300])
def test_a_dense_model_is_stock_llama(make_model, tmp_path, load, torch, vocab):
    params, config = make_model(dense=True, vocab=vocab)
    params["layers"]["mlp"]["down"] *= 3
    model = load(export_model(params, config, tmp_path / "out"))
    assert type(model).__name__ == "LlamaForCausalLM"
    tokens = np.random.default_rng(1).integers(0, vocab, (2, 40))
    got = logits_of(torch, model, tokens)
    compare("dense, NumPy", got, forward(params, config, tokens))
    compare("dense, ours", got, our_logits(params, config, tokens))


@pytest.mark.parametrize("shared", [0, 1, 3])
def test_our_own_model_has_the_same_logits(make_model, tmp_path, load, torch, shared):
    params, config = make_model(shared=shared)
    model = load(export_model(params, config, tmp_path / "out"))
    tokens = np.random.default_rng(1).integers(0, config.model.vocab_size, (2, 40))
    compare("ours", logits_of(torch, model, tokens), our_logits(params, config, tokens))


@pytest.mark.parametrize("fits", ["qwen2_moe", "mixtral", "llama"])
def test_grouped_queries(make_model, tmp_path, load, torch, fits):
    params, config = make_model(fits=fits, kv_heads=2)
    mlp = params["layers"]["mlp"]
    mlp.get("experts", mlp)["down"] *= 3  # so that a wrong expert shows in the logits
    model = load(export_model(params, config, tmp_path / "out"))
    tokens = np.random.default_rng(1).integers(0, config.model.vocab_size, (2, 40))
    got = logits_of(torch, model, tokens)
    compare(f"{fits}, NumPy", got, forward(params, config, tokens))
    compare(f"{fits}, ours", got, our_logits(params, config, tokens))


@pytest.mark.parametrize("fits", ["qwen2_moe", "llama"])
def test_saved_again_by_transformers_it_imports_bit_equal(make_model, tmp_path, load, fits):
    """transformers rewrites config.json its own way and fuses experts in memory."""
    params, config = make_model(shared=2, fits=fits)
    first = export_model(params, config, tmp_path / "first")
    load(first).save_pretrained(tmp_path / "second")
    ours, config_ours = import_model(first)
    theirs, config_theirs = import_model(tmp_path / "second")
    assert config_theirs == config_ours
    for path, leaf in flatten(ours).items():
        np.testing.assert_array_equal(flatten(theirs)[path], leaf, err_msg=path)
