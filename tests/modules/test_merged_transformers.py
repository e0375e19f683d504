"""Branches and their mixtures in stock transformers: the same logits, no remote code."""

import numpy as np
import pytest
from branching import moved, trained

import emo_jax
from emo_jax.batch import from_documents
from emo_jax.model.functions import ModelFunctions
from emo_jax.saved.load import load_model

pytestmark = pytest.mark.system
TOLERANCE = 1e-4  # as of tests/hf


@pytest.mark.parametrize("method", ["btx", "flexolmo"])
def test_a_mixture_and_a_branch_have_our_logits(method, dense_seed, byte_store, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    made = emo_jax.branch(
        *(dense_seed, byte_store, ("cooking", "law"), tmp_path / "b"), method=method, examples=4
    )
    branches = [one.workdir for one in made]
    if method == "btx":
        branches = [trained(b, lambda p, n=n: moved(p, n)) for n, b in enumerate(branches)]
    mixed = emo_jax.mix(branches, tmp_path / "mixed").workdir
    tokens = np.random.default_rng(0).integers(0, 259, (2, 24))
    layouts = {"btx": ("llama", "mixtral"), "flexolmo": ("qwen2_moe", "qwen2_moe")}[method]
    for number, (workdir, layout) in enumerate(zip((branches[0], mixed), layouts, strict=True)):
        loaded = load_model(str(workdir))
        batch = from_documents(tokens, np.zeros_like(tokens))
        expected = ModelFunctions(loaded.config).logits(loaded.params, batch)[..., :259]
        folder = emo_jax.export(workdir, tmp_path / f"hf{number}").folder
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        assert type(model).__module__.startswith(f"transformers.models.{layout}")
        with torch.no_grad():
            found = model(torch.as_tensor(tokens)).logits.numpy()
        assert np.abs(found - np.asarray(expected)).max() < TOLERANCE
