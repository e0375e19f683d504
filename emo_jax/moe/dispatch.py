"""The order of tokens by expert, and the way back, by gathers; no float is ever scattered.

The transpose of a gather is a scatter-add, which is slow on every back end and nondeterministic on
some. Sorting is a permutation, so its transpose is the inverse gather: whoever moves rows writes
both directions.

Legend: N tokens, K picks, M = N·K rows sorted by expert, R experts, D width.
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


def sort_by_expert(indices_NK: jax.Array, num_experts: int) -> Permutation:
    """Groups picks by expert, with tokens in order within an expert.

    Args:
      indices_NK: expert of each pick; `num_experts` means none, and gets no row.
    """
    N, K = indices_NK.shape
    flat_M = indices_NK.reshape(-1)
    order = jnp.argsort(flat_M, stable=True).astype(jnp.int32)
    place = (
        jnp.zeros_like(order).at[order].set(jnp.arange(N * K, dtype=jnp.int32), unique_indices=True)
    )
    sizes_R = jnp.sum(flat_M[:, None] == jnp.arange(num_experts), axis=0, dtype=jnp.int32)
    row_NK = jnp.where(place < sizes_R.sum(), place, NO_ROW).reshape(N, K)
    return Permutation(order // K, order, row_NK, sizes_R)


def rows_of(y_MD: jax.Array, row_NK: jax.Array) -> jax.Array:
    """(N,K,D): the row of every pick, or zero if it has none, whatever unused rows contain.

    The order of the axes is that of `row_NK`.
    """
    return y_MD.at[row_NK].get(mode="fill", fill_value=0)


def sum_rows(y_MD: jax.Array, row_NK: jax.Array, start_ND: jax.Array | None = None) -> jax.Array:
    """(N,D): `start` + Σ_k row of pick k, added in float32, in which it is returned."""
    # Picks come first: with K in the middle, a TPU lays out all rows again before it adds them.
    # One by one: a sum of its own would be written, and read again to be added to `start`; and
    # XLA:CPU takes 30 times as long for a sum over the first axis.
    row_KN, M, total_ND = row_NK.T, y_MD.shape[0], start_ND
    rows_KND = y_MD[jnp.minimum(row_KN, M - 1)]
    for k in range(row_KN.shape[0]):
        # Zeros only here, since they would be written for all first.
        there_N1 = row_KN[k, :, None] < M
        row_ND = jnp.where(there_N1, rows_KND[k].astype(jnp.float32), 0)
        total_ND = row_ND if total_ND is None else total_ND + row_ND
    assert total_ND is not None  # K > 0
    return total_ND
