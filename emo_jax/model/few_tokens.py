"""Experts for a few tokens: generation computes one token of each row at a time.

The cost is then in reading weights, so only those of the chosen experts are touched. A layer's
experts are neither copied, as by a scan over layers, nor laid out again, as for training.

Legend: N tokens (one of each of B rows), D width, L layers, E experts (shared ones last), R routed,
K picks, F hidden size of an expert.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from emo_jax.config import MoeConfig
from emo_jax.moe.experts import ExpertWeights, experts, pick_backend
from emo_jax.moe.grouped import swiglu
from emo_jax.moe.router import Routing

_dot = partial(jnp.dot, preferred_element_type=jnp.float32)


def few_token_experts(
    x_B1D: jax.Array,
    routing: Routing,
    stacked: ExpertWeights,
    layer: jax.Array,
    *,
    config: MoeConfig,
) -> jax.Array:
    """(B,1,D): what `experts` computes, for one token per row.

    Args:
      stacked: the weights of all layers, (L,E,…), in any float dtype, or `as_bits`.
      layer: the layer to use.
      config: with back end `blocked`, the CPU's, the products below are used; others have no copies
        to avoid.
    """
    if pick_backend(config.backend) != "blocked":
        weights = ExpertWeights(
            *(from_bits(lax.dynamic_index_in_dim(w, layer, 0, keepdims=False)) for w in stacked)
        )
        return experts(x_B1D, routing, weights, config)[0]
    E = stacked.gate_EDF.shape[1]
    flat = [w.reshape(-1, *w.shape[2:]) for w in stacked]

    def expert(x_nD: jax.Array, e: jax.Array | int) -> jax.Array:
        gate_DF, up_DF, down_FD = (
            from_bits(lax.dynamic_index_in_dim(w, layer * E + e, 0, keepdims=False)).astype(
                x_nD.dtype
            )
            for w in flat
        )
        dot = lambda a, w: _dot(a, w).astype(x_nD.dtype)  # noqa: E731
        return dot(swiglu(dot(x_nD, gate_DF), dot(x_nD, up_DF)), down_FD)

    x_ND = x_B1D[:, 0]
    out_ND = _picked(x_ND, routing.weights_BSK[:, 0], routing.indices_BSK[:, 0], expert)
    for e in range(config.dispatched_experts, E):
        out_ND = out_ND + expert(x_ND, e)
    return out_ND[:, None]


def as_bits(stacked: Any) -> Any:
    """Weights of all layers, stored as `from_bits` takes them: on a CPU, bfloat16 as its bits.

    XLA:CPU computes products of bfloat16 in float32. Left alone, it converts the weights of all
    layers before the loop over them, and holds three times what is stored.
    """
    if stacked.dtype != jnp.bfloat16 or jax.default_backend() != "cpu":
        return stacked
    if isinstance(stacked, np.ndarray):
        return stacked.view(np.uint16)
    return lax.bitcast_convert_type(stacked, jnp.uint16)


def from_bits(weight: jax.Array) -> jax.Array:
    """The weights of a layer or an expert, cut out of those of all, if they are bits."""
    bits = weight.dtype == jnp.uint16
    return lax.bitcast_convert_type(weight, jnp.bfloat16) if bits else weight


def _picked(
    x_ND: jax.Array,
    weights_NK: jax.Array,
    indices_NK: jax.Array,
    expert: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """(N,D): Σ over the picks of weight · expert(x), one vector after another.

    On two cores this is faster than blocks of rows up to N = 128, the largest measured, and a
    token's result is bitwise the same whatever else is in the batch. A pick of no expert (index R)
    has weight 0; it computes the next expert in the array, or the last one if there is no next.
    """
    (N, D), K = x_ND.shape, indices_NK.shape[1]

    def body(m, y_MD):
        x_1D = lax.dynamic_slice_in_dim(x_ND, m // K, 1, 0)
        y_1D = expert(x_1D, indices_NK[m // K, m % K])
        return lax.dynamic_update_slice_in_dim(y_MD, y_1D, m, 0)

    y_MD = lax.fori_loop(0, N * K, body, jnp.zeros((N * K, D), x_ND.dtype))
    y_NKD = y_MD.reshape(N, K, D).astype(jnp.float32)
    return jnp.sum(weights_NK[..., None] * y_NKD, axis=1).astype(x_ND.dtype)
