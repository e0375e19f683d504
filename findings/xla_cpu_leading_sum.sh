#!/usr/bin/env bash
# jax 0.10.2 on a CPU: a sum over a short first axis takes many times as long as adding its slices.
#
# Guess: `x.sum(axis=0)` of a (4, 8192, 256) array is bound by memory, as `x[0] + x[1] + x[2] + x[3]`
# is, which reads and writes the same bytes and gives the same bits.
# Seen: 20 to 30 times as long (71 ms against 3.1 ms, and 40 against 1.3, on two cores), with the same
# bits. A sum over the last axis is not slow. It matters wherever picks of a mixture of experts, heads
# or micro-batches are stacked in front and summed.
# Prints both medians; exits non-zero where the ratio is below 5 or the bits differ.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2
JAX_PLATFORMS=cpu GLIBC_TUNABLES=glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1000000000000:glibc.malloc.arena_max=1 \
  "$folder/venv/bin/python" - <<'PYTHON'
import statistics
import sys
import time

import jax
import numpy as np

x = jax.numpy.asarray(np.random.default_rng(0).normal(size=(4, 8192, 256)).astype(np.float32))
ways = {
    "sum over the first axis": jax.jit(lambda x: x.sum(axis=0)),
    "its slices, added": jax.jit(lambda x: x[0] + x[1] + x[2] + x[3]),
}
times = {name: [] for name in ways}
for _ in range(15):  # in turns
    for name, way in ways.items():
        start = time.perf_counter()
        way(x).block_until_ready()
        times[name].append(time.perf_counter() - start)
median = {name: statistics.median(found[2:]) for name, found in times.items()}
for name, seconds in median.items():
    print(f"{name}: {seconds * 1e3:.2f} ms")
slow, fast = median.values()
same = all((a == b).all() for a, b in [[np.asarray(way(x)) for way in ways.values()]])
print(f"{slow / fast:.0f} times as long; the same bits: {same}")
sys.exit(slow / fast < 5 or not same)
PYTHON
