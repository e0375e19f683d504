#!/usr/bin/env bash
# mlx-lm 0.32.2 reads `rope_theta` at the top of config.json only; transformers 5.24.0 does not write it there.
#
# Guess: a model that `save_pretrained` of the newest transformers wrote runs in the newest mlx-lm, or is
# refused.
# Seen: transformers 5 writes the base of the rotary embedding into `rope_parameters`. For Llama, Qwen2
# and Qwen2-MoE mlx-lm then takes the default of the architecture (10 000 or 1 000 000) without a word,
# and gives other logits. Prints the differences; exits non-zero where that changes.
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
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

BASE = 50_000.0
shape = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    initializer_range=0.3,
    rope_parameters={"rope_type": "default", "rope_theta": BASE},
)
experts = dict(
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=16,
    shared_expert_intermediate_size=16,
    norm_topk_prob=False,
)
models = {
    "llama": (LlamaForCausalLM, LlamaConfig(**shape), 10_000),
    "qwen2_moe": (Qwen2MoeForCausalLM, Qwen2MoeConfig(**shape, **experts), 1_000_000),
}
for name, (kind, config, default) in models.items():
    torch.manual_seed(0)
    folder = Path(sys.argv[1]) / name
    model = kind(config).eval()
    model.save_pretrained(folder)
    tokens = [[1, 5, 9, 2, 7, 3, 8, 4] * 4]
    with torch.no_grad():
        expected = model(torch.tensor(tokens)).logits.numpy()

    def compare(folder=folder, tokens=tokens, expected=expected):
        """The largest difference of a logit in mlx-lm."""
        found = np.array(load_model(folder)[0](mx.array(tokens)))
        return float(np.abs(found - expected).max())

    file = folder / "config.json"
    fields = json.loads(file.read_text())
    assert "rope_theta" not in fields and fields["rope_parameters"]["rope_theta"] == BASE
    saved = compare()
    file.write_text(json.dumps(fields | {"rope_theta": float(default)}))
    as_default = compare()
    file.write_text(json.dumps(fields | {"rope_theta": BASE}))
    mended = compare()
    print(f"{name}: as saved off by {saved:.2g}, as with {default:,} ({as_default:.2g});"
          f" with rope_theta at the top {mended:.1g}")
    assert saved == as_default > 1e-2 > 1e-3 > mended
PYTHON
