#!/usr/bin/env bash
# mlx-lm 0.32.2 does not read `norm_topk_prob` of Qwen2-MoE: the weights of the chosen experts are never normalised.
#
# Guess: a field of config.json that changes what a model computes is used, or the model refused.
# Seen: with `norm_topk_prob: true` the weights of a token's experts are to sum to 1. mlx-lm loads the folder
# without a word and computes the same logits as with `false`, which are those of another model. Prints the
# differences from transformers; exits non-zero where that changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  torch==2.13.0 transformers==5.24.0 'mlx[cpu]==0.32.4' mlx-lm==0.32.2
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from mlx_lm.utils import load_model
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

shape = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    num_experts=8,
    num_experts_per_tok=2,
    moe_intermediate_size=16,
    shared_expert_intermediate_size=16,
    initializer_range=0.3,
)
TOKENS = [[1, 5, 9, 2, 7, 3, 8, 4] * 4]


def logits(normalised):
    """Of the same weights in transformers and in mlx-lm."""
    torch.manual_seed(0)
    model = Qwen2MoeForCausalLM(Qwen2MoeConfig(**shape, norm_topk_prob=normalised)).eval()
    folder = Path(sys.argv[1]) / str(normalised)
    model.save_pretrained(folder)
    file = folder / "config.json"
    fields = json.loads(file.read_text())
    assert fields["norm_topk_prob"] is normalised
    file.write_text(json.dumps(fields | {"rope_theta": fields["rope_parameters"]["rope_theta"]}))
    with torch.no_grad():
        expected = model(torch.tensor(TOKENS)).logits.numpy()
    return expected, np.array(load_model(folder)[0](mx.array(TOKENS)))


(plain, mlx_plain), (normalised, mlx_normalised) = logits(False), logits(True)
off = [float(np.abs(a - b).max()) for a, b in ((mlx_plain, plain), (mlx_normalised, normalised))]
print(f"off by {off[0]:.1g} with false, {off[1]:.2g} with true;"
      f" logits of mlx-lm are equal in both: {np.array_equal(mlx_plain, mlx_normalised)}")
assert off[0] < 1e-4 and off[1] > 1 and np.array_equal(mlx_plain, mlx_normalised)
PYTHON
