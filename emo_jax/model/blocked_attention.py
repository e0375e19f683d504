"""Causal attention in blocks of queries: the score matrix of a window never exists at once.

The CPU form. One head of one window at a time, plain two-dimensional dots, only the keys up to the
block's last query; the backward pass makes the probabilities again from the saved logsumexp.

Legend: N heads of windows (B·H), S tokens, C queries of a block, T keys seen by a block, h head
size.
"""

from functools import partial

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite: a padded token, which may attend to nothing, gives a number and no NaN
MIN_BLOCK, MAX_BLOCKS = 128, 16


def _block(seq_len: int) -> int:
    return max(MIN_BLOCK, -(-seq_len // MAX_BLOCKS))


def _scores(q_Ch, k_Th, ids_S, first, within_document):
    """Masked scaled scores (C,T) in float32 of the queries that start at `first`."""
    C, T = q_Ch.shape[0], k_Th.shape[0]
    query_C1, key_1T = jnp.arange(first, first + C)[:, None], jnp.arange(T)[None, :]
    ids_C1, ids_1T = ids_S[first : first + C, None], ids_S[None, :T]
    seen_CT = (query_C1 >= key_1T) & (ids_1T >= 0)
    if within_document:
        seen_CT &= ids_C1 == ids_1T
    scores_CT = jnp.dot(q_Ch, k_Th.T, preferred_element_type=jnp.float32)
    return jnp.where(seen_CT, scores_CT * q_Ch.shape[-1] ** -0.5, MASKED)


def _blocks(seq_len: int) -> list[tuple[int, int]]:
    block = _block(seq_len)
    return [(i, min(i + block, seq_len)) for i in range(0, seq_len, block)]


def _forward_one(args, *, within_document):
    q_Sh, k_Sh, v_Sh, ids_S = args
    outs, lses = [], []
    for i, T in _blocks(q_Sh.shape[0]):
        scores_CT = _scores(q_Sh[i:T], k_Sh[:T], ids_S, i, within_document)
        top_C1 = scores_CT.max(axis=-1, keepdims=True)
        probs_CT = jnp.exp(scores_CT - top_C1)
        sum_C1 = probs_CT.sum(axis=-1, keepdims=True)
        mixed_Ch = jnp.dot(
            probs_CT.astype(v_Sh.dtype), v_Sh[:T], preferred_element_type=jnp.float32
        )
        outs.append((mixed_Ch / sum_C1).astype(v_Sh.dtype))
        lses.append((top_C1 + jnp.log(sum_C1))[:, 0])
    return jnp.concatenate(outs), jnp.concatenate(lses)


def _backward_one(args, *, within_document):
    q_Sh, k_Sh, v_Sh, ids_S, out_Sh, lse_S, grad_Sh = args
    dtype, scale = q_Sh.dtype, q_Sh.shape[-1] ** -0.5
    dot = partial(jnp.dot, preferred_element_type=jnp.float32)
    dot_S = jnp.sum(out_Sh.astype(jnp.float32) * grad_Sh.astype(jnp.float32), axis=-1)
    dk_Sh, dv_Sh = (jnp.zeros(a.shape, jnp.float32) for a in (k_Sh, v_Sh))
    dqs = []
    for i, T in _blocks(q_Sh.shape[0]):
        scores_CT = _scores(q_Sh[i:T], k_Sh[:T], ids_S, i, within_document)
        probs_CT = jnp.exp(scores_CT - lse_S[i:T, None])
        dprobs_CT = dot(grad_Sh[i:T], v_Sh[:T].T)
        dscores_CT = (probs_CT * (dprobs_CT - dot_S[i:T, None]) * scale).astype(dtype)
        dv_Sh = dv_Sh.at[:T].add(dot(probs_CT.astype(dtype).T, grad_Sh[i:T]))
        dk_Sh = dk_Sh.at[:T].add(dot(dscores_CT.T, q_Sh[i:T]))
        dqs.append(dot(dscores_CT, k_Sh[:T]).astype(dtype))
    return jnp.concatenate(dqs), dk_Sh.astype(dtype), dv_Sh.astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q_NSh, k_NSh, v_NSh, ids_NS, within_document):
    return _attend_fwd(q_NSh, k_NSh, v_NSh, ids_NS, within_document)[0]


def _attend_fwd(q_NSh, k_NSh, v_NSh, ids_NS, within_document):
    forward = partial(_forward_one, within_document=within_document)
    out_NSh, lse_NS = jax.lax.map(forward, (q_NSh, k_NSh, v_NSh, ids_NS))
    return out_NSh, (q_NSh, k_NSh, v_NSh, ids_NS, out_NSh, lse_NS)


def _attend_bwd(within_document, residuals, grad_NSh):
    backward = partial(_backward_one, within_document=within_document)
    return (*jax.lax.map(backward, (*residuals, grad_NSh)), None)


_attend.defvjp(_attend_fwd, _attend_bwd)


def blocked_attention(
    q_BSHh: jax.Array,
    k_BSHh: jax.Array,
    v_BSHh: jax.Array,
    segment_ids_BS: jax.Array,
    *,
    within_document: bool,
) -> jax.Array:
    """Causal attention (B,S,H,h), scale 1/√h, softmax in float32; padding (id -1) is never seen."""
    B, S, H, h = q_BSHh.shape
    by_head = lambda a: jnp.moveaxis(a, 2, 1).reshape(B * H, S, h)  # noqa: E731
    ids_NS = jnp.repeat(segment_ids_BS, H, axis=0)
    out_NSh = _attend(*(by_head(a) for a in (q_BSHh, k_BSHh, v_BSHh)), ids_NS, within_document)
    return jnp.moveaxis(out_NSh.reshape(B, H, S, h), 1, 2)
