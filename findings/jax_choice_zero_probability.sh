#!/usr/bin/env bash
# jax 0.10.2: `random.choice` without replacement draws elements whose probability is zero.
#
# Guess: asked for more elements than have a probability, as when a document's pool of experts is drawn from a
# mask that leaves too few, it marks what is missing with -1 or an index out of range, since compiled code
# raises nothing. NumPy raises: "Fewer non-zero entries in p than size".
# Seen: the elements with probability zero follow the others, always the first of them, whatever the key: no
# draw looks wrong. Prints the draws; exits non-zero where they are others.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np

p = np.array([0.0, 0.0, 0.5, 0.0, 0.5, 0.0], np.float32)  # two of six elements can be drawn


@jax.jit
def draw(key):
    return jax.random.choice(key, len(p), (4,), replace=False, p=jnp.array(p))


draws = np.stack([draw(jax.random.key(seed)) for seed in range(100)])
print("jax: sets of four drawn with 100 keys:", sorted({tuple(sorted(map(int, one))) for one in draws}))
try:
    np.random.default_rng(0).choice(len(p), 4, replace=False, p=p)
    numpy_says = ""
except ValueError as error:
    numpy_says = str(error)
print("numpy:", numpy_says)
same = all(set(one[:2]) == {2, 4} and list(one[2:]) == [0, 1] for one in draws)
sys.exit(0 if same and "Fewer non-zero" in numpy_says else "the behaviour has changed")
PYTHON
