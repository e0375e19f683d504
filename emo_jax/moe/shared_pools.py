"""Shared experts of which a document uses some (SPEC 6, sharedexppool).

The router's columns of the shared experts are read then. A document keeps the `moe.shared_picks`
shared experts with the largest summed probability, as it does with routed ones, and all its tokens
use every one of these, with the weights of a softmax over them. Without pools, as in evaluation, a
token does so on its own.

Legend: B windows, S tokens, D width, E experts, R routed experts, K routed picks, s shared experts,
k those that a document uses.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from emo_jax.config import MoeConfig
from emo_jax.moe.losses import load_balance_loss, router_z_loss
from emo_jax.moe.pools import Pools, pool_mask
from emo_jax.moe.router import RouterStats, RouterTokens, Routing, logits_of


class SharedChoice(NamedTuple):
    """Which shared experts each token uses, and what that is based on. Weights are float32."""

    weights_BSk: jax.Array  # that sum to 1; 0 for padding
    indices_BSk: jax.Array  # int32 in R..E-1; E for padding
    logits_BSs: jax.Array  # float32, -inf for the shared experts that are not used
    probs_BSs: jax.Array  # their softmax


def choose_shared(
    x_BSD: jax.Array,
    kernel_DE: jax.Array,
    config: MoeConfig,
    pool_ids_BS: jax.Array,
    *,
    by_document: bool,
) -> SharedChoice:
    """Chooses `config.shared_picks` shared experts for every document, or for every token.

    Args:
      x_BSD: input of the mixture of experts, any float dtype; the computation is in float32.
      kernel_DE: router weights.
      pool_ids_BS: int32 document of each token, -1 for padding.
    """
    R, E, k = config.num_routed_experts, config.num_experts, config.shared_picks
    valid_BS = pool_ids_BS >= 0
    logits_BSs = logits_of(x_BSD, kernel_DE[:, R:])
    if by_document:
        pools = Pools(jnp.full(pool_ids_BS.shape, k, jnp.int32))
        keep_BSs = pool_mask(jax.nn.softmax(logits_BSs, axis=-1), pool_ids_BS, pools)
        logits_BSs = jnp.where(keep_BSs, logits_BSs, -jnp.inf)
    best_BSk, indices_BSk = jax.lax.top_k(logits_BSs, k)
    if not by_document:
        used_BSs = jnp.any(indices_BSk[..., None] == jnp.arange(E - R), axis=2)
        logits_BSs = jnp.where(used_BSs, logits_BSs, -jnp.inf)
    return SharedChoice(
        jnp.where(valid_BS[..., None], jax.nn.softmax(best_BSk, axis=-1), 0.0),
        jnp.where(valid_BS[..., None], R + indices_BSk, E).astype(jnp.int32),
        logits_BSs,
        jax.nn.softmax(logits_BSs, axis=-1),
    )


def with_shared(routing: Routing, shared: SharedChoice, config: MoeConfig) -> Routing:
    """A routing with K + k picks, of all experts; E for what no expert computes."""
    R, E = config.num_routed_experts, config.num_experts
    routed_BSK = jnp.where(routing.indices_BSK >= R, E, routing.indices_BSK)
    return Routing(
        jnp.concatenate([routing.weights_BSK, shared.weights_BSk], axis=-1),
        jnp.concatenate([routed_BSK, shared.indices_BSk], axis=-1),
    )


def with_shared_losses(
    stats: RouterStats,
    shared: SharedChoice,
    config: MoeConfig,
    tokens: RouterTokens,
    step_load_E: jax.Array | None = None,
) -> RouterStats:
    """The statistics with what the shared experts add.

    They have a load-balancing loss of their own, and their part of the router z-loss; counts of
    tokens are those that use them.

    Args:
      step_load_E: as in `statistics`.
    """
    R, E = config.num_routed_experts, config.num_experts
    valid_BS = counted_BS = tokens.pool_ids_BS >= 0
    if tokens.balance_BS is not None:
        counted_BS = valid_BS & tokens.balance_BS

    def counts_of(mask_BS: jax.Array) -> jax.Array:
        used_BSks = shared.indices_BSk[..., None] == jnp.arange(R, E)
        return jnp.sum(used_BSks & mask_BS[..., None, None], axis=(0, 1, 2)).astype(jnp.float32)

    loss_tokens = jnp.asarray(tokens.loss_tokens, jnp.float32)
    probs_s = jnp.sum(jnp.where(counted_BS[..., None], shared.probs_BSs, 0.0), axis=(0, 1))
    counts_s = counts_of(counted_BS)
    if step_load_E is not None:
        counts_s = step_load_E[R:] * valid_BS.sum()
    balance = load_balance_loss(
        counts_s,
        probs_s / jnp.maximum(counted_BS.sum(), 1),
        num_experts=E - R,
        num_picks=config.shared_picks,
        loss_tokens=loss_tokens,
    )
    return stats._replace(
        shared_balance_loss=balance,
        router_z_loss=stats.router_z_loss + router_z_loss(shared.logits_BSs, valid_BS, loss_tokens),
        counts_E=jnp.concatenate([stats.counts_E[:R], counts_of(valid_BS)]),
    )
