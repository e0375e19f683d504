"""Causal attention in blocks of queries: the score matrix of a window never exists at once.

Each block sees only the keys up to its last query, so that nearly half of the work is not done;
the backward pass makes the probabilities again from the saved logsumexp. Windows are taken two at a
time: what a few windows need stays in the cache, and little memory is touched at all.

Legend: B windows, S tokens, H heads, h head size, C queries of a block, T keys that a block sees.
"""

import math
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite: a padded token, which may attend to nothing, gives a number and no NaN
# Small blocks skip more of the upper half, many of them make a long program. Measured at S = 256
# and 512 on two cores: of 64, 128 and 256, 128 is fastest by a tenth.
MIN_BLOCK, MAX_BLOCKS = 128, 16
WINDOWS = 2  # taken at a time

_dot = partial(jnp.einsum, preferred_element_type=jnp.float32)


def _blocks(seq_len: int) -> Iterator[tuple[int, int]]:
    """(first query, end of queries and keys) of each block."""
    block = max(MIN_BLOCK, -(-seq_len // MAX_BLOCKS))
    for first in range(0, seq_len, block):
        yield first, min(first + block, seq_len)


def _seen(ids_BS, within_document):
    """Which keys each query may see, (B,C,T) for each block of queries."""
    masks = []
    for i, T in _blocks(ids_BS.shape[1]):
        causal_CT = jnp.arange(i, T)[:, None] >= jnp.arange(T)
        seen_BCT = causal_CT & (ids_BS[:, None, :T] >= 0)
        if within_document:
            seen_BCT &= ids_BS[:, i:T, None] == ids_BS[:, None, :T]
        masks.append(seen_BCT)
    return masks


def _scores(q_BHCh, k_BHTh, seen_BCT):
    """Masked scaled scores (B,H,C,T) in float32."""
    scores_BHCT = _dot("bhck,bhtk->bhct", q_BHCh, k_BHTh) * q_BHCh.shape[-1] ** -0.5
    return jnp.where(seen_BCT[:, None], scores_BHCT, MASKED)


def _by_windows(f, *arrays_B):
    """f(*arrays_B), `WINDOWS` windows at a time where their number allows it."""
    B = jax.tree.leaves(arrays_B)[0].shape[0]
    c = math.gcd(B, WINDOWS)
    parts = jax.tree.map(lambda a: a.reshape(B // c, c, *a.shape[1:]), arrays_B)
    out = jax.lax.map(lambda parts: f(*parts), parts)
    return jax.tree.map(lambda a: a.reshape(B, *a.shape[2:]), out)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q_BHSh, k_BHSh, v_BHSh, ids_BS, within_document):
    return _attend_fwd(q_BHSh, k_BHSh, v_BHSh, ids_BS, within_document)[0]


def _attend_fwd(q_BHSh, k_BHSh, v_BHSh, ids_BS, within_document):
    # The masks, a byte a pair, are made before the loop: where a fusion in it both reads the ids
    # and makes an exponential, XLA:CPU leaves the exponential scalar, seven times slower.
    masks = _seen(ids_BS, within_document)
    out_BHSh, lse_BHS = _by_windows(_forward, masks, q_BHSh, k_BHSh, v_BHSh)
    return out_BHSh, (q_BHSh, k_BHSh, v_BHSh, ids_BS, out_BHSh, lse_BHS)


def _attend_bwd(within_document, residuals, grad_BHSh):
    q_BHSh, k_BHSh, v_BHSh, ids_BS, out_BHSh, lse_BHS = residuals
    masks = _seen(ids_BS, within_document)
    inputs = q_BHSh, k_BHSh, v_BHSh, out_BHSh, lse_BHS, grad_BHSh
    return *_by_windows(_backward, masks, *inputs), None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _forward(masks, q_BHSh, k_BHSh, v_BHSh):
    """The output, and the logsumexp of the scores (B,H,S)."""
    dtype = v_BHSh.dtype
    outs, lses = [], []
    for (i, T), seen_BCT in zip(_blocks(q_BHSh.shape[2]), masks, strict=True):
        scores_BHCT = _scores(q_BHSh[:, :, i:T], k_BHSh[:, :, :T], seen_BCT)
        top_BHC1 = scores_BHCT.max(axis=-1, keepdims=True)
        probs_BHCT = jnp.exp(scores_BHCT - top_BHC1)
        sum_BHC1 = probs_BHCT.sum(axis=-1, keepdims=True)
        mixed_BHCh = _dot("bhct,bhtk->bhck", probs_BHCT.astype(dtype), v_BHSh[:, :, :T])
        outs.append((mixed_BHCh / sum_BHC1).astype(dtype))
        lses.append((top_BHC1 + jnp.log(sum_BHC1))[..., 0])
    return jnp.concatenate(outs, axis=2), jnp.concatenate(lses, axis=2)


def _backward(masks, q_BHSh, k_BHSh, v_BHSh, out_BHSh, lse_BHS, grad_BHSh):
    """Gradients of q, k and v."""
    dtype, S, scale = q_BHSh.dtype, q_BHSh.shape[2], q_BHSh.shape[-1] ** -0.5
    dot_BHS = _dot("bhsk,bhsk->bhs", out_BHSh, grad_BHSh)
    dk_BHSh, dv_BHSh = (jnp.zeros(a.shape, jnp.float32) for a in (k_BHSh, v_BHSh))
    dqs = []
    for (i, T), seen_BCT in zip(_blocks(S), masks, strict=True):
        q_BHCh, k_BHTh, v_BHTh = q_BHSh[:, :, i:T], k_BHSh[:, :, :T], v_BHSh[:, :, :T]
        grad_BHCh = grad_BHSh[:, :, i:T]
        scores_BHCT = _scores(q_BHCh, k_BHTh, seen_BCT)
        probs_BHCT = jnp.exp(scores_BHCT - lse_BHS[:, :, i:T, None])
        dprobs_BHCT = _dot("bhck,bhtk->bhct", grad_BHCh, v_BHTh)
        dscores_BHCT = probs_BHCT * (dprobs_BHCT - dot_BHS[:, :, i:T, None]) * scale
        probs_BHCT, dscores_BHCT = probs_BHCT.astype(dtype), dscores_BHCT.astype(dtype)
        later = ((0, 0), (0, 0), (0, S - T), (0, 0))
        dv_BHSh += jnp.pad(_dot("bhct,bhck->bhtk", probs_BHCT, grad_BHCh), later)
        dk_BHSh += jnp.pad(_dot("bhct,bhck->bhtk", dscores_BHCT, q_BHCh), later)
        dqs.append(_dot("bhct,bhtk->bhck", dscores_BHCT, k_BHTh).astype(dtype))
    return jnp.concatenate(dqs, axis=2), dk_BHSh.astype(dtype), dv_BHSh.astype(dtype)


def blocked_attention(
    q_BSHh: jax.Array,
    k_BSHh: jax.Array,
    v_BSHh: jax.Array,
    segment_ids_BS: jax.Array,
    *,
    within_document: bool,
) -> jax.Array:
    """Causal attention (B,S,H,h), scale 1/√h, softmax in float32; padding (id -1) is never seen."""
    heads_first = (jnp.moveaxis(a, 2, 1) for a in (q_BSHh, k_BSHh, v_BSHh))
    return jnp.moveaxis(_attend(*heads_first, segment_ids_BS, within_document), 1, 2)
