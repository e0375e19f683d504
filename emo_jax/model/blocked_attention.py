"""Causal attention in blocks of queries: a window's whole score matrix never exists at once.

Each block sees only the keys up to its last query, which saves nearly half of the work; the
backward pass recomputes the probabilities from the saved logsumexp. Windows are taken two at a
time: the working set of a few windows stays in the cache, and little memory is touched overall.

With a context axis, a device has part of a window's queries and all of its keys; the queries'
positions are known only at run time, so every block gets all keys.

Legend: B windows, S queries, U keys (equal to S without a context axis), H heads, K heads of keys
and values, h head size, C queries per block, T keys given to a block.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from emo_jax.model.grouped_heads import mixed, rows_by_keys, sent_to_keys

MASKED = -1e30  # finite: padding, which attends to nothing, gives a number instead of NaN
# Small blocks skip more of the upper half, but many of them make a long program. Measured at
# S = 256 and 512 on two cores: of 64, 128 and 256, 128 is fastest by a tenth.
MIN_BLOCK, MAX_BLOCKS = 128, 16
WINDOWS = 2  # taken at a time

_dot = partial(jnp.einsum, preferred_element_type=jnp.float32)


class _Block(NamedTuple):
    queries: slice
    keys: int  # the number of leading keys the block gets


def _blocks(S: int, U: int) -> Iterator[_Block]:
    """Blocks of queries; if queries and keys are the same tokens, keys end with the queries."""
    size = max(MIN_BLOCK, -(-S // MAX_BLOCKS))
    for first in range(0, S, size):
        end = min(first + size, S)
        yield _Block(slice(first, end), end if S == U else U)


def _seen(ids, within_document):
    """Which keys each query may see, (B,C,T) for each block of queries."""
    q_ids_BS, k_ids_BU, first_query = ids
    S, U = q_ids_BS.shape[1], k_ids_BU.shape[1]
    place_S = jnp.arange(S) if first_query is None else jnp.arange(S) + first_query
    masks = []
    for queries, T in _blocks(S, U):
        q_ids_BC1, k_ids_B1T = q_ids_BS[:, queries, None], k_ids_BU[:, None, :T]
        causal_CT = place_S[queries, None] >= jnp.arange(T)
        seen_BCT = causal_CT & (q_ids_BC1 >= 0) & (k_ids_B1T >= 0)
        if within_document:
            seen_BCT &= q_ids_BC1 == k_ids_B1T
        masks.append(seen_BCT)
    return masks


def _scores(q_BHCh, k_BKTh, seen_BCT):
    """Masked scaled scores (B,H,C,T) in float32."""
    scores_BHCT = rows_by_keys(q_BHCh, k_BKTh) * q_BHCh.shape[-1] ** -0.5
    return jnp.where(seen_BCT[:, None], scores_BHCT, MASKED)


def _by_windows(f, *arrays_B):
    """f(*arrays_B), computed `WINDOWS` windows at a time if that divides their number."""
    B = jax.tree.leaves(arrays_B)[0].shape[0]
    c = math.gcd(B, WINDOWS)
    parts = jax.tree.map(lambda a: a.reshape(B // c, c, *a.shape[1:]), arrays_B)
    out = jax.lax.map(lambda parts: f(*parts), parts)
    return jax.tree.map(lambda a: a.reshape(B, *a.shape[2:]), out)


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attend(q_BHSh, k_BKUh, v_BKUh, q_ids_BS, k_ids_BU, first_query, within_document):
    ids = q_ids_BS, k_ids_BU, first_query
    return _attend_fwd(q_BHSh, k_BKUh, v_BKUh, *ids, within_document)[0]


def _attend_fwd(q_BHSh, k_BKUh, v_BKUh, q_ids_BS, k_ids_BU, first_query, within_document):
    # The masks, one byte per pair, are built before the loop: if a fusion in it both reads the ids
    # and computes an exponential, XLA:CPU leaves the exponential scalar, seven times slower.
    ids = q_ids_BS, k_ids_BU, first_query
    masks = _seen(ids, within_document)
    # Named here: what is saved by name must be what the gradient reads, or all is recomputed.
    out_BHSh, lse_BHS = (
        checkpoint_name(a, "attention")
        for a in _by_windows(_forward, masks, q_BHSh, k_BKUh, v_BKUh)
    )
    return out_BHSh, (q_BHSh, k_BKUh, v_BKUh, ids, out_BHSh, lse_BHS)


def _attend_bwd(within_document, residuals, grad_BHSh):
    q_BHSh, k_BKUh, v_BKUh, ids, out_BHSh, lse_BHS = residuals
    masks = _seen(ids, within_document)
    inputs = q_BHSh, k_BKUh, v_BKUh, out_BHSh, lse_BHS, grad_BHSh
    return *_by_windows(_backward, masks, *inputs), None, None, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _forward(masks, q_BHSh, k_BKUh, v_BKUh):
    """The output, and the logsumexp of the scores (B,H,S)."""
    dtype = v_BKUh.dtype
    outs, lses = [], []
    blocks = _blocks(q_BHSh.shape[2], k_BKUh.shape[2])
    for (queries, T), seen_BCT in zip(blocks, masks, strict=True):
        scores_BHCT = _scores(q_BHSh[:, :, queries], k_BKUh[:, :, :T], seen_BCT)
        top_BHC1 = scores_BHCT.max(axis=-1, keepdims=True)
        probs_BHCT = jnp.exp(scores_BHCT - top_BHC1)
        sum_BHC1 = probs_BHCT.sum(axis=-1, keepdims=True)
        # Padding, which sees no key, gets output 0 and, as lse is then inf, zero probabilities and
        # no gradient in `_backward`.
        sum_BHC1 = jnp.where(top_BHC1 > MASKED, sum_BHC1, jnp.inf)
        mixed_BHCh = mixed(probs_BHCT.astype(dtype), v_BKUh[:, :, :T])
        outs.append((mixed_BHCh / sum_BHC1).astype(dtype))
        lses.append((top_BHC1 + jnp.log(sum_BHC1))[..., 0])
    return jnp.concatenate(outs, axis=2), jnp.concatenate(lses, axis=2)


def _backward(masks, q_BHSh, k_BKUh, v_BKUh, out_BHSh, lse_BHS, grad_BHSh):
    """Gradients of q, k and v."""
    dtype, scale = q_BHSh.dtype, q_BHSh.shape[-1] ** -0.5
    _, K, U, _ = k_BKUh.shape
    dot_BHS = _dot("bhsk,bhsk->bhs", out_BHSh, grad_BHSh)
    dk_BKUh, dv_BKUh = (jnp.zeros(a.shape, jnp.float32) for a in (k_BKUh, v_BKUh))
    dqs = []
    blocks = _blocks(q_BHSh.shape[2], U)
    for (queries, T), seen_BCT in zip(blocks, masks, strict=True):
        q_BHCh, k_BKTh, v_BKTh = q_BHSh[:, :, queries], k_BKUh[:, :, :T], v_BKUh[:, :, :T]
        grad_BHCh = grad_BHSh[:, :, queries]
        scores_BHCT = _scores(q_BHCh, k_BKTh, seen_BCT)
        probs_BHCT = jnp.exp(scores_BHCT - lse_BHS[:, :, queries, None])
        dprobs_BHCT = rows_by_keys(grad_BHCh, v_BKTh)
        dscores_BHCT = probs_BHCT * (dprobs_BHCT - dot_BHS[:, :, queries, None]) * scale
        probs_BHCT, dscores_BHCT = probs_BHCT.astype(dtype), dscores_BHCT.astype(dtype)
        later = ((0, 0), (0, 0), (0, U - T), (0, 0))
        dv_BKUh += jnp.pad(sent_to_keys(probs_BHCT, grad_BHCh, K), later)
        dk_BKUh += jnp.pad(sent_to_keys(dscores_BHCT, q_BHCh, K), later)
        dqs.append(mixed(dscores_BHCT, k_BKTh).astype(dtype))
    return jnp.concatenate(dqs, axis=2), dk_BKUh.astype(dtype), dv_BKUh.astype(dtype)


def blocked_attention(
    q_BSHh: jax.Array,
    k_BUKh: jax.Array,
    v_BUKh: jax.Array,
    q_ids_BS: jax.Array,
    k_ids_BU: jax.Array | None = None,
    *,
    within_document: bool,
    first_query: jax.Array | None = None,
) -> jax.Array:
    """Causal attention (B,S,H,h), scale 1/√h, softmax in float32; padding (id -1) is never seen.

    Padding sees nothing either: its rows are 0.

    Args:
      q_ids_BS: documents of the queries.
      k_ids_BU: documents of the keys, if these are not the same tokens as the queries.
      first_query: in that case, the position of the first query among the keys.
    """
    if k_ids_BU is None:
        k_ids_BU = q_ids_BS
    heads_first = (jnp.moveaxis(a, 2, 1) for a in (q_BSHh, k_BUKh, v_BUKh))
    ids = q_ids_BS, k_ids_BU, first_query
    return jnp.moveaxis(_attend(*heads_first, *ids, within_document), 1, 2)
