#!/usr/bin/env bash
# jax 0.10.2 on a CPU, Linux with glibc: a compiled program gets its temporary memory anew at every call.
#
# Guess: after the first call a program's buffers are warm, so that later calls make no page faults.
# Seen: every call faults in each page of its temporaries and results again (65 537 faults for
# 256 MiB in pages of 4 KiB): XLA asks malloc at each call, and glibc maps pieces that large apart and
# unmaps them when they are freed. malloc's own limit, which adapts itself, stops at 32 MiB. With
# mmap_max=0, trim_threshold and one arena the same program makes none; with mmap_max=0 alone there are
# 127 057. Prints the faults of
# a warm call for each; exits non-zero where that changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2
cat >"$folder/faults.py" <<'PYTHON'
import resource

import jax
import jax.numpy as jnp


@jax.jit
def step(x):
    """One temporary of 256 MiB: what the matmuls hand on is too large to be fused away."""
    return (jnp.tanh(x @ x.T) @ x).sum()


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


x = jnp.ones((8192, 16))
for _ in range(3):
    step(x).block_until_ready()
before = faults()
for _ in range(4):
    step(x).block_until_ready()
print((faults() - before) // 4)
PYTHON
# NumPy and XLA must not get huge pages by themselves: the count is in pages of 4 KiB.
run() { JAX_PLATFORMS=cpu GLIBC_TUNABLES="$1" "$folder/venv/bin/python" "$folder/faults.py" 2>/dev/null; }
usual=$(run "glibc.malloc.perturb=0")
alone=$(run "glibc.malloc.mmap_max=0")
kept=$(run "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1000000000000:glibc.malloc.arena_max=1")
echo "page faults of a warm call: $usual by default, $alone with mmap_max=0 alone, $kept where all is kept"
[ "$usual" -gt 10000 ] && [ "$alone" -gt 10000 ] && [ "$kept" -lt 100 ]
