"""Tokens to the rows of their experts and back. Gathers both ways: no float is ever scattered.

A gather's own transpose is a scatter-add, which is slow on every back end and not deterministic on
some. Sorting is a permutation, so its transpose is the inverse gather, written here by hand.

Legend: N tokens, K picks, M = N·K rows, R routed experts, D width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Permutation(NamedTuple):
    """Order in which the (token, pick) pairs stand by expert."""

    token_M: jax.Array  # int32, token of sorted row m
    pick_M: jax.Array  # int32, n·K + k of sorted row m
    row_NK: jax.Array  # int32, sorted row of pick k of token n
    group_sizes_R: jax.Array  # int32, rows of each expert; rows of index R stand last, uncounted


def sort_by_expert(indices_NK: jax.Array, num_experts: int) -> Permutation:
    """Groups picks by expert, tokens in order within an expert. Index `num_experts`: no expert."""
    N, K = indices_NK.shape
    flat_M = indices_NK.reshape(-1)
    order_M = jnp.argsort(flat_M, stable=True).astype(jnp.int32)
    row_M = (
        jnp.zeros_like(order_M)
        .at[order_M]
        .set(jnp.arange(N * K, dtype=jnp.int32), unique_indices=True)
    )
    sizes_R = jnp.sum(flat_M[:, None] == jnp.arange(num_experts), axis=0, dtype=jnp.int32)
    return Permutation(order_M // K, order_M, row_M.reshape(N, K), sizes_R)


@jax.custom_vjp
def gather_rows(x_ND: jax.Array, perm: Permutation) -> jax.Array:
    """(M,D): the token of every sorted row."""
    return x_ND[perm.token_M]


def _gather_fwd(x_ND, perm):
    return gather_rows(x_ND, perm), perm


def _gather_bwd(perm, grad_MD):
    return grad_MD[perm.row_NK].sum(axis=1), None


gather_rows.defvjp(_gather_fwd, _gather_bwd)


@jax.custom_vjp
def combine_rows(y_MD: jax.Array, weights_NK: jax.Array, perm: Permutation) -> jax.Array:
    """(N,D): Σ_k weight · row of pick k. Products in float32, result in the dtype of `y_MD`."""
    picked_NKD = y_MD[perm.row_NK].astype(jnp.float32)
    return jnp.sum(weights_NK[..., None] * picked_NKD, axis=1).astype(y_MD.dtype)


def _combine_fwd(y_MD, weights_NK, perm):
    return combine_rows(y_MD, weights_NK, perm), (y_MD, weights_NK, perm)


def _combine_bwd(residuals, grad_ND):
    y_MD, weights_NK, perm = residuals
    grad32_ND = grad_ND.astype(jnp.float32)
    picked_NKD = y_MD[perm.row_NK].astype(jnp.float32)
    grad_weights_NK = jnp.sum(grad32_ND[:, None] * picked_NKD, axis=-1)
    weight_M = weights_NK.reshape(-1)[perm.pick_M]
    grad_y_MD = (grad32_ND[perm.token_M] * weight_M[:, None]).astype(y_MD.dtype)
    return grad_y_MD, grad_weights_NK, None


combine_rows.defvjp(_combine_fwd, _combine_bwd)
