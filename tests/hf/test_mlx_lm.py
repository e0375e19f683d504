"""Exported folders in mlx-lm, on a CPU: loaded strictly, the same logits, the same tokens.

Needs mlx and mlx-lm (CI installs them before `-m system`).
"""

import numpy as np
import pytest
from logits import compare, forward, our_logits

from emo_jax.hf import export_model

pytestmark = pytest.mark.system


@pytest.fixture
def load():
    """The model of a folder; a tensor without a place, or a place without one, is an error."""
    from mlx_lm.utils import load_model

    return lambda folder: load_model(folder, strict=True)[0]


def logits_of(model, tokens):
    import mlx.core as mx

    return np.array(model(mx.array(tokens)))


@pytest.mark.parametrize("shared,routed", [(0, 8), (1, 8), (2, 8), (1, 3), (1, 127)])
def test_random_model_computes_the_same_function(make_model, tmp_path, load, shared, routed):
    params, config = make_model(shared=shared, routed=routed)
    params["layers"]["mlp"]["experts"]["down"] *= 3  # so that a wrong expert shows in the logits
    model = load(export_model(params, config, tmp_path / "out", max_shard_bytes=100_000))
    tokens = np.random.default_rng(1).integers(0, config.model.vocab_size, (2, 40))
    got = logits_of(model, tokens)
    compare(f"{shared} shared, {routed} routed experts", got, forward(params, config, tokens))


def test_a_dense_model(make_model, tmp_path, load):
    params, config = make_model(dense=True)
    params["layers"]["mlp"]["down"] *= 3
    model = load(export_model(params, config, tmp_path / "out"))
    tokens = np.random.default_rng(1).integers(0, config.model.vocab_size, (2, 40))
    got = logits_of(model, tokens)
    compare("dense, NumPy", got, forward(params, config, tokens))
    compare("dense, ours", got, our_logits(params, config, tokens))


@pytest.mark.parametrize("fits", ["qwen2_moe", "llama"])
def test_greedy_tokens_are_ours(make_model, tmp_path, load, fits):
    """One token after the other out of its cache, as ours come out of ours."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    from emo_jax.generation.decode import Generator
    from emo_jax.model.functions import ModelFunctions

    params, config = make_model(fits=fits)
    model = load(export_model(params, config, tmp_path / "out"))
    prompts = np.random.default_rng(2).integers(0, config.model.vocab_size, (3, 7)).tolist()
    ours = Generator(ModelFunctions(config), params, eos_id=-1).generate(prompts, 24)
    for prompt, row in zip(prompts, ours, strict=True):
        steps = generate_step(mx.array(prompt), model, max_tokens=24)
        assert [token for token, _ in steps] == row.tokens
    assert len({token for row in ours for token in row.tokens}) > 5  # they say something


def test_without_its_biases_it_does_not_load(make_model, tmp_path, load):
    """What the zero biases are for: mlx-lm does not read `qkv_bias`."""
    from safetensors.numpy import load_file, save_file

    params, config = make_model()
    file = export_model(params, config, tmp_path / "out") / "model.safetensors"
    tensors = load_file(file)
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith("bias")}
    assert len(kept) < len(tensors)
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="bias"):
        load(file.parent)
