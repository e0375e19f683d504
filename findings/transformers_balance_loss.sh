#!/usr/bin/env bash
# transformers 5.24.0: the load-balancing loss of a mixture of experts joins all layers.
#
# Guess: the loss of Switch Transformer, one figure a layer, 1 where a layer's routing is balanced, and
# larger where any layer has collapsed.
# Seen: tokens of all layers are counted as if they were of one. Two layers that have each collapsed
# onto two of four experts, not the same two, have the loss of perfect balance; and that is top-k
# (here 2), not 1. `load_balancing_loss_func` of qwen2_moe; that of mixtral gives the same figures.
# Prints the figures; exits non-zero where they are others.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func as mixtral
from transformers.models.qwen2_moe.modeling_qwen2_moe import load_balancing_loss_func as qwen2_moe

TOKENS, EXPERTS, TOP_K = 8, 4, 2


def layer(*pairs):
    """Router logits of a layer whose tokens take these pairs of experts in turn."""
    logits = torch.full((TOKENS, EXPERTS), -30.0)
    for token in range(TOKENS):
        logits[token, list(pairs[token % len(pairs)])] = 0.0
    return logits


balanced, first, second = layer((0, 1), (2, 3)), layer((0, 1)), layer((2, 3))
cases = {
    "balanced layers": ((balanced, balanced), 2.0),
    "one collapsed layer": ((first,), 4.0),
    "two layers, collapsed onto the same experts": ((first, first), 4.0),
    "two layers, collapsed onto different experts": ((first, second), 2.0),
}
for what, (layers, expected) in cases.items():
    found = [loss(layers, EXPERTS, TOP_K).item() for loss in (qwen2_moe, mixtral)]
    print(f"{what}: {found}")
    assert all(abs(value - expected) < 1e-5 for value in found), expected
PYTHON
