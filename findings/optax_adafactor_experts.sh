#!/usr/bin/env bash
# optax 0.2.8: adafactor mixes the second moments of stacked experts that are more than their matrices are wide.
#
# Guess: a stack of experts (experts, in, out) is factored matrix by matrix: a row and a column vector each, so
# that an expert's update depends on its own gradients.
# Seen: the two largest axes are factored, whichever they are. With 512 experts of (256, 128) one of them is the
# expert axis: there is one (in, out) moment for all experts together, and the gradients of one expert change
# the updates of the others. With 128 experts of (256, 512) they don't. Clipping and scaling by the parameters,
# which act on the whole stack, are off here. Prints shapes and changes; exits non-zero where they are others.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 optax==0.2.8
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import optax

tx = optax.adafactor(1e-3, multiply_by_parameter_scale=False, clipping_threshold=None)


def change(shape):
    """Shapes of the moments, and how far the second expert's update moves with the first one's gradient."""
    weights = jnp.zeros(shape)
    state = tx.init(weights)
    gradient = jax.random.normal(jax.random.key(0), shape)
    rows = 10.0 ** jax.random.normal(jax.random.key(1), shape[1:2])[:, None]
    other = gradient.at[0].multiply(rows)
    update, again = (tx.update(g, state, weights)[0][1] for g in (gradient, other))
    moments = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim > 1]
    return moments, float(jnp.max(jnp.abs(again / update - 1)))


found = {shape: change(shape) for shape in ((512, 256, 128), (128, 256, 512))}
for shape, (moments, moved) in found.items():
    print(f"experts {shape}: moments {moments}, another expert's update moves by {100 * moved:.0f} %")
same = (
    found[512, 256, 128][0] == [(256, 128), (512, 128)]
    and found[512, 256, 128][1] > 0.2
    and found[128, 256, 512] == ([(128, 256), (128, 512)], 0.0)
)
sys.exit(0 if same else "the behaviour has changed")
PYTHON
