"""Greedy tokens of `emo generate` and of stock transformers on the exported folder.

Needs torch and transformers (CI installs them before `-m system`).
"""

import numpy as np
import pytest

from emo_jax.generation.decode import Generator
from emo_jax.hf import export_model, import_model
from emo_jax.model.functions import ModelFunctions

pytestmark = pytest.mark.system

NEW, NEVER = 24, -1
LENGTHS = (1, 5, 9, 17)


@pytest.mark.parametrize("shared", [0, 1, 2])
def test_stock_transformers_makes_the_same_tokens(make_model, tmp_path, shared):
    import torch
    from transformers import AutoModelForCausalLM

    params, config = make_model(shared=shared)
    params["layers"]["mlp"]["experts"]["down"] *= 3  # so that a wrong expert shows
    folder = export_model(params, config, tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, config.model.vocab_size, n).tolist() for n in LENGTHS]
    again, read = import_model(folder)
    ours = Generator(ModelFunctions(read), again, NEVER).generate(prompts, NEW)
    assert len({tuple(row.tokens) for row in ours}) == len(prompts)
    for prompt, row in zip(prompts, ours, strict=True):
        made = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NEW,
            do_sample=False,
        )
        assert row.tokens == made[0, len(prompt) :].tolist()
