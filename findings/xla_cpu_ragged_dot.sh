#!/usr/bin/env bash
# jax 0.10.2 on a CPU: `lax.ragged_dot` multiplies every row with the matrices of all groups.
#
# Guess: 4,096 rows sorted by group, each times its group's matrix, cost the same however many groups there
# are, as a grouped matmul does; a group's matrix is read once more, that is all.
# Seen: work and temporary memory are those of one group times the number of groups, and so is the time:
# with 128 experts over 100 times as much of each. Prints them; exits non-zero where that changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import statistics
import sys
import time

import jax
import jax.numpy as jnp

ROWS, WIDTH = 4096, 128
NEEDED = 2 * ROWS * WIDTH * WIDTH  # a multiplication and an addition for each element

work, memory = {}, {}
for groups in (1, 8, 64, 128):
    x, matrices = jnp.ones((ROWS, WIDTH)), jnp.ones((groups, WIDTH, WIDTH))
    sizes = jnp.full((groups,), ROWS // groups, jnp.int32)
    compiled = jax.jit(jax.lax.ragged_dot).lower(x, matrices, sizes).compile()
    seconds = []
    for _ in range(7):
        begun = time.perf_counter()
        compiled(x, matrices, sizes).block_until_ready()
        seconds.append(time.perf_counter() - begun)
    work[groups] = compiled.cost_analysis()["flops"] / NEEDED
    memory[groups] = compiled.memory_analysis().temp_size_in_bytes / x.nbytes
    print(
        f"{groups} groups: {work[groups]:.0f} times the work, temporary memory of {memory[groups]:.0f}"
        f" times the rows, {statistics.median(seconds) * 1e3:.1f} ms"
    )
same = all(work[groups] >= groups and memory[groups] >= groups for groups in work)
sys.exit(0 if same else "the behaviour has changed")
PYTHON
