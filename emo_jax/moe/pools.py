"""Document pools: which routed experts the tokens of one document may use (SPEC 2.2, 2.3).

No loop over documents and no host sync: documents are taken in blocks of `DOCUMENT_BLOCK`, and the
number of blocks is the largest document count of the batch, known on the device only. Everything
here is a choice, not a value: nothing carries a gradient.

Legend: B windows, S tokens, G documents of a window, R routed experts.
"""

import jax
import jax.numpy as jnp

from emo_jax.config import PoolConfig

DOCUMENT_BLOCK = 16


def draw_pool_sizes(
    key: jax.Array, config: PoolConfig, *, rows: jax.Array, num_layers: int, num_documents: int
) -> jax.Array:
    """Pool size of every document in every layer: (L,B,G) int32.

    The draw depends on (key, layer, global row, document) only, so that every mesh, micro-batch
    count and recomputation sees the same one. The caller folds the step into the key.

    Args:
      key: of the run's seed and the step.
      rows: (B,) int, index of the window in the global batch of the step.
      num_documents: G, a bound; a larger one does not change the earlier draws.
    """
    shape = (num_layers, rows.shape[0], num_documents)
    if config.kind != "uniform":
        return jnp.full(
            shape, config.size if config.kind == "fixed" else config.max_size, jnp.int32
        )

    def draw(layer: jax.Array, row: jax.Array) -> jax.Array:
        document_key = jax.random.fold_in(jax.random.fold_in(key, layer), row)
        return jax.random.randint(
            document_key, (num_documents,), config.min_size, config.max_size + 1, jnp.int32
        )

    by_row = jax.vmap(draw, in_axes=(None, 0))
    return jax.vmap(by_row, in_axes=(0, None))(jnp.arange(num_layers), rows)


def pool_mask(
    probs_BSR: jax.Array,
    pool_ids_BS: jax.Array,
    pool_size_BG: jax.Array,
    *,
    forced_experts: int = 0,
    top_p: float = 0.0,
    min_size: int = 0,
) -> jax.Array:
    """Which routed experts each token may use, (B,S,R) bool.

    A document's pool is the `size` experts with the largest summed probability over its tokens;
    of equals the lower index wins. The last `forced_experts` are always in it and count.

    Args:
      probs_BSR: float32 router probabilities over all routed experts.
      pool_ids_BS: int32 document of each token, -1 for padding (its mask is all True).
      pool_size_BG: int32; a size of R or more restricts nothing.
      top_p: when above 0, the pool is the smallest set with at least this share of the document's
        probability, at least `min_size` and at most `pool_size_BG` experts.
    """
    B, S, R = probs_BSR.shape
    probs_BSR = jax.lax.stop_gradient(probs_BSR)
    G = pool_size_BG.shape[1]
    block = min(DOCUMENT_BLOCK, G)
    pool_size_BG = jnp.pad(pool_size_BG, ((0, 0), (0, -G % block)))
    # Forced experts win every comparison; the others are ranked by their document sum.
    forced_R = jnp.arange(R) >= R - forced_experts
    earlier_RR = jnp.arange(R)[None, :] < jnp.arange(R)[:, None]  # [e, f]: f comes before e

    def choose(sums_BgR: jax.Array, size_Bg: jax.Array) -> jax.Array:
        size_Bg = jnp.maximum(size_Bg, forced_experts)
        ranked_BgR = jnp.where(forced_R, jnp.inf, sums_BgR)
        mine, other = ranked_BgR[..., :, None], ranked_BgR[..., None, :]
        before_BgRR = (other > mine) | ((other == mine) & earlier_RR)
        rank_BgR = before_BgRR.sum(-1, dtype=jnp.int32)
        if top_p > 0:
            mass_before_BgR = jnp.where(before_BgRR, sums_BgR[..., None, :], 0.0).sum(-1)
            needed_Bg = (mass_before_BgR < top_p * sums_BgR.sum(-1, keepdims=True)).sum(-1)
            size_Bg = jnp.clip(needed_Bg, max(min_size, forced_experts), size_Bg)
        return rank_BgR < size_Bg[..., None]

    def one_block(i: jax.Array, keep_BSR: jax.Array) -> jax.Array:
        first = i * block
        member_BSg = pool_ids_BS[..., None] == first + jnp.arange(block)
        one_hot_BSg = member_BSg.astype(jnp.float32)
        sums_BgR = jnp.einsum(
            "bsg,bsr->bgr", one_hot_BSg, probs_BSR, precision=jax.lax.Precision.HIGHEST
        )
        keep_BgR = choose(sums_BgR, jax.lax.dynamic_slice_in_dim(pool_size_BG, first, block, 1))
        # A token is in at most one document, so the product picks its row exactly.
        mine_BSR = jnp.einsum("bsg,bgr->bsr", one_hot_BSg, keep_BgR.astype(jnp.float32)) > 0.5
        in_block_BS = member_BSg.any(-1)
        return jnp.where(in_block_BS[..., None], mine_BSR, keep_BSR)

    # The bound of the loop is a value on the device: windows of few documents cost one block.
    num_blocks = (pool_ids_BS.max() + block) // block
    return jax.lax.fori_loop(0, num_blocks, one_block, jnp.ones((B, S, R), bool))
