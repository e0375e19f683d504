"""Document pools: which routed experts the tokens of one document may use (SPEC 2.2, 2.3).

There is no loop over documents and no host sync: documents are taken in blocks of `DOCUMENT_BLOCK`,
and the number of blocks follows the largest document count in the batch, known only on the device.
Everything here is a choice, not a value, so nothing carries a gradient.

Legend: B windows, S tokens, G documents per window, L layers, R routed experts.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from emo_jax.config import PoolConfig

DOCUMENT_BLOCK = 16


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pools:
    """Pools of the documents of some windows, as a pytree whose only array is their sizes.

    Attributes:
      size_BG: int32, routed experts in the pool of document g of row b; R or more restricts
        nothing. (L,B,G) for several layers.
      top_p: above 0, a pool is the smallest set with at least this share of its document's router
        probability, bounded to between `min_size` and `size_BG` experts.
      forced_experts: this many of the last routed experts are in every pool, and count towards its
        size.
      penalty: nats by which the router's logits outside the pool are lowered; 0: such experts
        cannot be used.
    """

    size_BG: jax.Array
    top_p: float = field(default=0.0, metadata={"static": True})
    min_size: int = field(default=0, metadata={"static": True})
    forced_experts: int = field(default=0, metadata={"static": True})
    penalty: float = field(default=0.0, metadata={"static": True})


def draw_pools(
    key: jax.Array,
    config: PoolConfig,
    *,
    rows: jax.Array,
    num_layers: int,
    num_documents: int,
    num_routed: int = 0,
    step: jax.Array | int = 0,
) -> Pools:
    """Draws the pools of every document in every layer, sizes (L,B,G).

    The draw depends only on (key, layer, global row, document), so that it is the same for every
    mesh, micro-batch count and recomputation. The caller folds the step into the key.

    Args:
      key: made from the run's seed and the step.
      config: of any kind but `none`.
      rows: (B,) int, index of each window in the step's global batch.
      num_documents: G, an upper bound; a larger one does not change the earlier draws.
      num_routed: R, with which pools begin; only for `decay_steps`.
      step: steps done before this one; likewise.
    """
    shape = (num_layers, rows.shape[0], num_documents)
    if config.kind == "uniform":
        size_LBG = _draw_sizes(key, config, rows, num_layers, num_documents)
    else:
        largest = config.size if config.kind == "fixed" else config.max_size
        size_LBG = jnp.full(shape, largest, jnp.int32)
    if config.decay_steps:
        size_LBG = decayed(size_LBG, config.decay_steps, num_routed, step)
    return Pools(size_LBG, config.top_p, config.min_size, config.forced_experts, config.penalty)


def decayed(
    size_LBG: jax.Array, decay_steps: int, num_routed: int, step: jax.Array | int
) -> jax.Array:
    """Sizes on their way from all routed experts to `size_LBG`, linear in the step (SPEC 6).

    d + ceil((R − d) · (decay_steps − step) / decay_steps) until `decay_steps`, and d from there on,
    with R at least d; in whole numbers, which the config keeps below 2³¹.

    Args:
      size_LBG: int32, d, the sizes at the end.
      decay_steps: steps until then.
      num_routed: R.
      step: steps done before this one.
    """
    left = jnp.clip(decay_steps - jnp.asarray(step, jnp.int32), 0, decay_steps)
    above_LBG = jnp.maximum(num_routed - size_LBG, 0)
    return size_LBG + (above_LBG * left + decay_steps - 1) // decay_steps


def _draw_sizes(
    key: jax.Array, config: PoolConfig, rows: jax.Array, num_layers: int, num_documents: int
) -> jax.Array:
    def draw(layer: jax.Array, row: jax.Array) -> jax.Array:
        document_key = jax.random.fold_in(jax.random.fold_in(key, layer), row)
        if config.size_power != 1:
            u = jax.random.uniform(document_key, (num_documents,))
            count = config.max_size - config.min_size + 1
            above = jnp.floor(count * u**config.size_power).astype(jnp.int32)
            return config.min_size + jnp.minimum(above, count - 1)  # where rounding gives `count`
        return jax.random.randint(
            document_key, (num_documents,), config.min_size, config.max_size + 1, jnp.int32
        )

    by_row = jax.vmap(draw, in_axes=(None, 0))
    return jax.vmap(by_row, in_axes=(0, None))(jnp.arange(num_layers), rows)


def pools_of_size(config: PoolConfig, size: int, shape: tuple[int, ...]) -> Pools:
    """Pools of one size for all documents, whatever kind of pool the model was trained with.

    Args:
      size: routed experts.
      shape: (B,G), or (L,B,G).
    """
    sizes = jnp.full(shape, size, jnp.int32)
    return Pools(sizes, forced_experts=config.forced_experts, penalty=config.penalty)


def shared_by(config: PoolConfig, pool_ids_BS: jax.Array, domain_ids_BS: jax.Array) -> jax.Array:
    """The tokens that share a pool, by number (B,S) int32 from 0; -1: padding.

    Args:
      config: its `scope` says which do; with `document`, the ids are those given.
      pool_ids_BS: int32 document of each token, -1 for padding.
      domain_ids_BS: int32 domain of each token's document.
    """
    if config.scope == "document":
        return pool_ids_BS
    valid_BS = pool_ids_BS >= 0
    if config.scope == "window":
        return jnp.where(valid_BS, 0, pool_ids_BS)
    S = pool_ids_BS.shape[1]
    place_1S = jnp.arange(S)[None]
    ids_BS = domain_ids_BS if config.scope == "domain" else pool_ids_BS
    begins_BS = (ids_BS != jnp.roll(ids_BS, 1, axis=1)) | (place_1S == 0)
    if config.scope == "span":
        begin_BS = jax.lax.cummax(jnp.where(begins_BS, place_1S, 0), axis=1)
        begins_BS |= (place_1S - begin_BS) % config.span == 0
    number_BS = jnp.cumsum(begins_BS & valid_BS, axis=1, dtype=jnp.int32) - 1
    return jnp.where(valid_BS, jnp.maximum(number_BS, 0), pool_ids_BS)


def pool_mask(probs_BSR: jax.Array, pool_ids_BS: jax.Array, pools: Pools) -> jax.Array:
    """Which routed experts each token may use, (B,S,R) bool.

    A document's pool is the experts with the largest summed probability over its tokens; ties go to
    the lower index.

    Args:
      probs_BSR: float32 router probabilities over all routed experts.
      pool_ids_BS: int32 document of each token, -1 for padding (its mask is all True).
      pools: those of one layer.
    """
    B, S, R = probs_BSR.shape
    probs_BSR = jax.lax.stop_gradient(probs_BSR)
    size_BG, forced_experts = pools.size_BG, pools.forced_experts
    G = size_BG.shape[1]
    block = min(DOCUMENT_BLOCK, G)
    size_BG = jnp.pad(size_BG, ((0, 0), (0, -G % block)))
    # Forced experts win every comparison; the others are ranked by their sum over the document.
    forced_R = jnp.arange(R) >= R - forced_experts
    earlier_RR = jnp.arange(R)[None, :] < jnp.arange(R)[:, None]  # [e, f]: f comes before e

    def choose(sums_BgR: jax.Array, size_Bg: jax.Array) -> jax.Array:
        size_Bg = jnp.maximum(size_Bg, forced_experts)
        ranked_BgR = jnp.where(forced_R, jnp.inf, sums_BgR)
        mine, other = ranked_BgR[..., :, None], ranked_BgR[..., None, :]
        before_BgRR = (other > mine) | ((other == mine) & earlier_RR)
        rank_BgR = before_BgRR.sum(-1, dtype=jnp.int32)
        if pools.top_p > 0:
            mass_before_BgR = jnp.where(before_BgRR, sums_BgR[..., None, :], 0.0).sum(-1)
            needed_Bg = (mass_before_BgR < pools.top_p * sums_BgR.sum(-1, keepdims=True)).sum(-1)
            size_Bg = jnp.clip(needed_Bg, max(pools.min_size, forced_experts), size_Bg)
        return rank_BgR < size_Bg[..., None]

    def one_block(i: jax.Array, keep_BSR: jax.Array) -> jax.Array:
        first = i * block
        member_BSg = pool_ids_BS[..., None] == first + jnp.arange(block)
        one_hot_BSg = member_BSg.astype(jnp.float32)
        sums_BgR = jnp.einsum(
            "bsg,bsr->bgr", one_hot_BSg, probs_BSR, precision=jax.lax.Precision.HIGHEST
        )
        keep_BgR = choose(sums_BgR, jax.lax.dynamic_slice_in_dim(size_BG, first, block, 1))
        # A token is in at most one document, so the product picks its row exactly.
        mine_BSR = jnp.einsum("bsg,bgr->bsr", one_hot_BSg, keep_BgR.astype(jnp.float32)) > 0.5
        in_block_BS = member_BSg.any(-1)
        return jnp.where(in_block_BS[..., None], mine_BSR, keep_BSR)

    # The loop bound is a value on the device: windows with few documents cost one block.
    num_blocks = (pool_ids_BS.max() + block) // block
    return jax.lax.fori_loop(0, num_blocks, one_block, jnp.ones((B, S, R), bool))
