"""Products of attention where several heads of queries read one head of keys and values.

Query heads kG..kG+G-1 read head k (grouped-query attention: Ainslie et al., arXiv 2305.13245). The
rows of a group lie side by side in memory: seen as more rows of one head, they are multiplied in
one matrix product, and no key is copied. With G = 1 nothing is reshaped.

Legend: B windows, H heads of queries, K of keys and values, G = H/K, C rows, T keys, h head size, x
anything.
"""

from functools import partial

import jax
import jax.numpy as jnp

_dot = partial(jnp.einsum, preferred_element_type=jnp.float32)


def rows_by_keys(rows_BHCh: jax.Array, keys_BKTh: jax.Array) -> jax.Array:
    """Each row times each key of its head, (B,H,C,T) in float32."""
    H, K = rows_BHCh.shape[1], keys_BKTh.shape[1]
    return _by_head(_dot("bkch,bkth->bkct", _by_key_head(rows_BHCh, K), keys_BKTh), H)


def mixed(weights_BHCT: jax.Array, values_BKTh: jax.Array) -> jax.Array:
    """For each row, the weighted sum of the values of its head, (B,H,C,h) in float32."""
    H, K = weights_BHCT.shape[1], values_BKTh.shape[1]
    return _by_head(_dot("bkct,bkth->bkch", _by_key_head(weights_BHCT, K), values_BKTh), H)


def sent_to_keys(weights_BHCT: jax.Array, rows_BHCh: jax.Array, K: int) -> jax.Array:
    """For each key, the weighted sum of all rows of its group, (B,K,T,h) in float32."""
    weights, rows = _by_key_head(weights_BHCT, K), _by_key_head(rows_BHCh, K)
    return _dot("bkct,bkch->bkth", weights, rows)


def _by_key_head(a_BHCx: jax.Array, K: int) -> jax.Array:
    """(B,H,C,x) as (B,K,G·C,x): the rows of each group, one head after another."""
    B, _, _, x = a_BHCx.shape
    return a_BHCx.reshape(B, K, -1, x)


def _by_head(a_BKMx: jax.Array, H: int) -> jax.Array:
    """(B,K,G·C,x) as (B,H,C,x): the inverse of `_by_key_head`."""
    B, _, _, x = a_BKMx.shape
    return a_BKMx.reshape(B, H, -1, x)
