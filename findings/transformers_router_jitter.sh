#!/usr/bin/env bash
# transformers 5.24.0: `router_jitter_noise` also changes what the experts compute; Switch's only in float32.
#
# Guess: the noise is on the input of the router alone, as in the paper on Switch Transformer. With one
# expert, which every token takes with weight 1, it does nothing, whatever the dtype.
# Seen: with one expert, a noise of 0.5 changes the outputs of Mixtral's block by 0.4 of their size. Those of
# SwitchTransformers change by 0.3 in float32, and not at all in bfloat16: the block's input is multiplied in
# place, unless its conversion to the router's float32 made a copy. Prints the changes; exits non-zero
# where they are others.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from transformers import MixtralConfig, SwitchTransformersConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP
from transformers.utils import logging

logging.set_verbosity_error()
NOISE = 0.5
mixtral = MixtralConfig(
    hidden_size=32, intermediate_size=64, num_local_experts=1, num_experts_per_tok=1, router_jitter_noise=NOISE
)
switch = SwitchTransformersConfig(
    d_model=32, d_ff=64, num_experts=1, router_jitter_noise=NOISE, dropout_rate=0.0, expert_capacity=64
)


def change(block, dtype) -> float:
    """By how much the noise of training changes the outputs, over their size."""
    torch.manual_seed(0)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    block, x = block.to(dtype), torch.randn(1, 16, 32).to(dtype)
    with torch.no_grad():
        plain, noisy = block.eval()(x.clone()), block.train()(x.clone())
    return ((noisy - plain).norm() / plain.norm()).item()


found = {}
for name, kind, config in (
    ("mixtral", MixtralSparseMoeBlock, mixtral),
    ("switch", SwitchTransformersSparseMLP, switch),
):
    for dtype in (torch.float32, torch.bfloat16):
        found[name, dtype] = change(kind(config), dtype)
        print(f"{name}, {dtype}: {found[name, dtype]:.2f}")
same = all(
    value == 0 if key == ("switch", torch.bfloat16) else value > 0.2 for key, value in found.items()
)
sys.exit(0 if same else "the behaviour has changed")
PYTHON
