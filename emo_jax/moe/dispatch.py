"""Moves tokens to the rows of their experts and back by gathers; no float is ever scattered.

The transpose of a gather is a scatter-add, which is slow on every back end and nondeterministic on
some. Sorting is a permutation, so its transpose is the inverse gather, written here by hand.

Legend: N tokens, K picks, M rows sorted by expert (at most N·K), R experts, D width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

NO_ROW = 2**31 - 1  # beyond the end of any buffer of rows


class Permutation(NamedTuple):
    """The order of the (token, pick) pairs, sorted by expert."""

    token_M: jax.Array  # int32, token of sorted row m
    pick_M: jax.Array  # int32, n·K + k of sorted row m
    row_NK: jax.Array  # int32, sorted row of pick k of token n, or NO_ROW
    group_sizes_R: jax.Array  # int32, rows of each expert; the rows after them are unused
    dropped: jax.Array  # int32, picks of experts that got no row because there were too few


def sort_by_expert(
    indices_NK: jax.Array, num_experts: int, max_rows: int | None = None
) -> Permutation:
    """Groups picks by expert, with tokens in order within an expert.

    Args:
      indices_NK: expert of each pick; `num_experts` means none, and gets no row.
      max_rows: M, if it is to be less than N·K. The excess, which is the last experts' last tokens,
        is dropped.
    """
    N, K = indices_NK.shape
    M = N * K if max_rows is None else min(max_rows, N * K)
    flat_M = indices_NK.reshape(-1)
    order = jnp.argsort(flat_M, stable=True).astype(jnp.int32)
    place = (
        jnp.zeros_like(order).at[order].set(jnp.arange(N * K, dtype=jnp.int32), unique_indices=True)
    )
    wanted_R = jnp.sum(flat_M[:, None] == jnp.arange(num_experts), axis=0, dtype=jnp.int32)
    ends_R = jnp.minimum(jnp.cumsum(wanted_R), M)
    sizes_R = jnp.diff(ends_R, prepend=0)
    num_rows = ends_R[-1]
    row_NK = jnp.where(place < num_rows, place, NO_ROW).reshape(N, K)
    order_M = order[:M]
    return Permutation(order_M // K, order_M, row_NK, sizes_R, wanted_R.sum() - num_rows)


def rows_of(y_MD: jax.Array, row_NK: jax.Array) -> jax.Array:
    """(N,K,D): the row of every pick, or zero if it has none, whatever unused rows contain."""
    return y_MD.at[row_NK].get(mode="fill", fill_value=0)


@jax.custom_vjp
def gather_rows(x_ND: jax.Array, perm: Permutation) -> jax.Array:
    """(M,D): the token of every sorted row."""
    return x_ND[perm.token_M]


def _gather_fwd(x_ND, perm):
    return gather_rows(x_ND, perm), perm


def _gather_bwd(perm, grad_MD):
    grad_ND = rows_of(grad_MD, perm.row_NK).sum(axis=1, dtype=jnp.float32)
    return grad_ND.astype(grad_MD.dtype), None


gather_rows.defvjp(_gather_fwd, _gather_bwd)


@jax.custom_vjp
def sum_rows(y_MD: jax.Array, perm: Permutation) -> jax.Array:
    """(N,D): Σ_k row of pick k, added in float32: the transpose of `gather_rows`."""
    return rows_of(y_MD, perm.row_NK).sum(axis=1, dtype=jnp.float32).astype(y_MD.dtype)


def _sum_fwd(y_MD, perm):
    return sum_rows(y_MD, perm), perm


def _sum_bwd(perm, grad_ND):
    return grad_ND[perm.token_M], None


sum_rows.defvjp(_sum_fwd, _sum_bwd)


def rows_of_picks(weights_NK: jax.Array, perm: Permutation) -> jax.Array:
    """(M,): the weight of every sorted row. Unused rows get some token's, which is never used."""
    return gather_picks(weights_NK.reshape(-1, 1), perm)[:, 0]


@jax.custom_vjp
def gather_picks(values_P1: jax.Array, perm: Permutation) -> jax.Array:
    """(M,1) from (N·K,1): the value of every sorted row's pick."""
    return values_P1[perm.pick_M]


def _picks_fwd(values_P1, perm):
    return gather_picks(values_P1, perm), perm


def _picks_bwd(perm, grad_M1):
    return rows_of(grad_M1, perm.row_NK.reshape(-1)), None


gather_picks.defvjp(_picks_fwd, _picks_bwd)
