#!/usr/bin/env bash
# optax 0.2.8: the global norm of bfloat16 gradients stops growing after 256 leaves of one size.
#
# Guess: `global_norm` sums squares in float32 and rounds once, or at worst rounds each leaf's sum: within
# half a per cent. All the more in a compiled step, where XLA may keep a higher precision.
# Seen: the sums of the leaves are added one by one in bfloat16, compiled or not. A sum of 256 equal parts
# plus one more is 256 parts: 1 024 leaves of norm 1 have the norm 16, not 32, so that
# `clip_by_global_norm(1.0)` leaves a norm of 2. Prints the norms; exits non-zero where that changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 optax==0.2.8
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import math
import sys

import jax
import jax.numpy as jnp
import optax


def exact(tree) -> float:
    return math.sqrt(sum(float(jnp.sum(jnp.square(leaf.astype(jnp.float32)))) for leaf in tree))


seen = {}
for leaves in (128, 256, 480, 1024):
    tree = [jnp.full((64, 64), 1 / 64, jnp.bfloat16) for _ in range(leaves)]
    clip = optax.clip_by_global_norm(1.0)
    clipped, _ = jax.jit(clip.update)(tree, clip.init(tree))
    seen[leaves] = (float(jax.jit(optax.global_norm)(tree)), float(optax.global_norm(tree)), exact(clipped))
    print(f"{leaves} leaves: norm {exact(tree):.2f}; global_norm {seen[leaves][0]:.2f} compiled,", end=" ")
    print(f"{seen[leaves][1]:.2f} not; after clipping to 1: {seen[leaves][2]:.2f}")

same = all(
    (compiled, plain) == (16.0, 16.0) and abs(clipped - math.sqrt(leaves) / 16) < 0.01
    for leaves, (compiled, plain, clipped) in seen.items()
    if leaves >= 256
)
sys.exit(0 if same else "the behaviour has changed")
PYTHON
