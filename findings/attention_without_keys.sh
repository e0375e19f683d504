#!/usr/bin/env bash
# jax 0.10.2 and torch 2.13.0: a query that may see no key gets the mean of all values in jax, zeros in torch.
#
# Guess: where a mask leaves a row no key (padding of a packed batch), both give the same: NaN, as the softmax of
# -inf does, or zeros.
# Seen: `jax.nn.dot_product_attention` gives the mean of all values, those of the other documents in the batch
# among them, and a loss on that row reaches them with its gradient; torch's `scaled_dot_product_attention` gives
# zeros and no gradient. Logits at padding differ between a model and its port, and any loss or router statistic
# that counts padding differs with them. Prints both; exits non-zero where they are others.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 torch==2.13.0 numpy
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np
import torch

rng = np.random.default_rng(0)
query, key = rng.normal(size=(2, 1, 3, 1, 4)).astype("f")  # batch, tokens, heads, width
value = np.broadcast_to(np.array([1.0, 3.0, 8.0], "f")[:, None, None], (1, 3, 1, 4))
mask = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]], bool)[None, None]  # the last query sees nothing


def last_row(value):
    return jax.nn.dot_product_attention(query, key, value, mask=mask)[0, 2, 0, 0]


in_jax = float(last_row(value)), np.asarray(jax.grad(last_row)(jnp.array(value)))[0, :, 0, 0].tolist()
values = torch.tensor(value.copy()).requires_grad_()
heads_first = [torch.tensor(x.copy()).transpose(1, 2) for x in (query, key)]
attended = torch.nn.functional.scaled_dot_product_attention(
    *heads_first, values.transpose(1, 2), attn_mask=torch.tensor(mask)
)
attended[0, 0, 2, 0].backward()
in_torch = float(attended[0, 0, 2, 0].detach()), values.grad[0, :, 0, 0].tolist()
print("values 1, 3, 8. jax:  ", in_jax)
print("values 1, 3, 8. torch:", in_torch)
same = np.allclose(in_jax[0], 4) and np.allclose(in_jax[1], 1 / 3) and in_torch == (0.0, [0.0, 0.0, 0.0])
sys.exit(0 if same else "the behaviour has changed")
PYTHON
