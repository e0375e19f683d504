#!/usr/bin/env bash
# optax 0.2.8: muon trains the embedding and the output head by Muon, and stacked experts by Adam without weight decay.
#
# Guess: Muon is for the matrices of hidden layers, each expert of a stack (experts, in, out) among them;
# embeddings and the head, as in its author's runs, are left to Adam.
# Seen: what counts is the number of axes. The embedding and the head have two and are orthogonalised; stacked
# experts, most of a mixture's weights, have three and go to Adam, whose weight decay is another argument,
# 0 unless given. Muon's update has singular values near each other. Prints the largest over the median one of each,
# and what weight decay does; exits non-zero where that changes.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 optax==0.2.8
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

weights = {
    "embedding": jnp.ones((64, 32)),
    "experts": jnp.ones((8, 32, 32)),
    "head": jnp.ones((32, 64)),
    "query": jnp.ones((32, 32)),
}
gradients = jax.tree.map(lambda w: 0.5 + jax.random.normal(jax.random.key(0), w.shape), weights)


def update(decay):
    tx = optax.contrib.muon(1e-3, weight_decay=decay)
    return tx.update(gradients, tx.init(weights), weights)[0]


without, decayed = update(0.0), update(0.1)
spread, shrunk = {}, {}
for name in weights:
    values = np.linalg.svd(np.asarray(without[name]).reshape(-1, *weights[name].shape[-2:])[0])[1]
    spread[name] = float(values.max() / np.median(values))
    shrunk[name] = float(jnp.abs(decayed[name] - without[name]).max()) > 0
    print(f"{name} {weights[name].shape}: {spread[name]:.2f}, decayed: {shrunk[name]}")
by_muon = {name for name, value in spread.items() if value < 2}
same = by_muon == {"embedding", "head", "query"} == {name for name in shrunk if shrunk[name]}
sys.exit(0 if same and spread["experts"] > 2.5 else "the behaviour has changed")
PYTHON
