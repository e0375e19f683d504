#!/usr/bin/env bash
# deepspeed 0.19.8: a top-2 gate draws the second expert also in evaluation; a top-1 gate draws whom it drops.
#
# Guess: after `.eval()` a gate is a function of its input: noise, jitter and random token selection are for
# training, and tokens beyond a capacity are dropped in their order.
# Seen: the same gate, called twice with the same tokens in evaluation. With k = 2 and room for all, seven of
# eight tokens change their second expert: it has the largest logit after Gumbel noise. With k = 1 and a
# capacity of 1, a quarter of the tokens is dropped in one call and kept in the other. k = 3 is the same both
# times. Options turn both off; neither looks at `training`. Prints shares; exits non-zero where that changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 setuptools wheel
DS_BUILD_OPS=0 "$folder/venv/bin/pip" install --quiet --disable-pip-version-check deepspeed==0.19.8
cd "$folder"
"$folder/venv/bin/python" - 2>"$folder/err" <<'PYTHON' || { cat "$folder/err" >&2; exit 1; }
import sys

import torch
from deepspeed.moe.sharded_moe import TopKGate

TOKENS, WIDTH, EXPERTS = 64, 16, 8


def changed(k: int, capacity: float) -> float:
    """Share of tokens whose experts differ between two calls with the same tokens."""
    torch.manual_seed(0)
    x = torch.randn(TOKENS, WIDTH)
    factors = {"capacity_factor": capacity, "eval_capacity_factor": capacity}
    gate = TopKGate(WIDTH, EXPERTS, k=k, **factors).eval()
    with torch.no_grad():
        first, second = (gate(x)[1].sum(dim=2) > 0 for _ in range(2))  # (tokens, experts)
    return (first != second).any(dim=1).float().mean().item()


found = {}
for k in (1, 2, 3):
    for capacity in (1.0, float(EXPERTS)):  # the second has room for all
        found[k, capacity] = changed(k, capacity)
        print(f"k = {k}, capacity {capacity}: {found[k, capacity]:.0%} of the tokens change their experts")
same = (
    found[1, 1.0] > 0.1
    and found[1, 8.0] == 0
    and min(found[2, 1.0], found[2, 8.0]) > 0.5
    and found[3, 1.0] == found[3, 8.0] == 0
)
sys.exit(0 if same else "the behaviour has changed")
PYTHON
