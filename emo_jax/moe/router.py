"""The router. One function for every variant: a variant is a field of `MoeConfig` (SPEC 2).

Legend: B windows, S tokens, G documents, D width, E experts (shared included), R routed experts,
K routed picks, s shared experts, M domains.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from emo_jax.config import MoeConfig
from emo_jax.moe import losses, pools


class Routing(NamedTuple):
    """Which routed experts each token uses, and with which weight."""

    weights_BSK: jax.Array  # float32 probabilities, not renormalised over the picks
    indices_BSK: jax.Array  # int32 in 0..R-1; R for padding, which no expert computes


class RouterStats(NamedTuple):
    """Losses and what the metrics show, of one layer and micro-batch. All float32."""

    load_balance_loss: jax.Array  # unweighted, scalar
    router_z_loss: jax.Array  # unweighted, scalar
    counts_E: jax.Array  # tokens of each expert; shared ones see every token
    token_entropy: jax.Array  # sum over tokens, nats, of the probabilities in the pool
    document_entropy: jax.Array  # sum over tokens, nats, of the probabilities before the pool
    pool_size_sum: jax.Array  # sum over tokens of the size of their pool
    domain_probs_MR: jax.Array  # sum over the tokens of each domain of the probabilities before it
    probs_BSR: jax.Array  # of each token, before the pool; (0,) unless asked for
    dropped: jax.Array  # picks that no expert computed, for want of room (`moe.receive_factor`)


def _entropy(probs: jax.Array) -> jax.Array:
    return -jnp.sum(jnp.where(probs > 0, probs * jnp.log(jnp.maximum(probs, 1e-30)), 0.0), axis=-1)


def _sum_by_domain(
    probs_BSR: jax.Array, valid_BS: jax.Array, domain_ids_BS: jax.Array | None, num_domains: int
) -> jax.Array:
    if num_domains == 0 or domain_ids_BS is None:
        return jnp.zeros((0, probs_BSR.shape[-1]), jnp.float32)
    R = probs_BSR.shape[-1]
    # A scatter, not a one-hot product: a store may have as many domains as the web has sites.
    ids_N = jnp.where(valid_BS & (domain_ids_BS >= 0), domain_ids_BS, num_domains).reshape(-1)
    sums = jnp.zeros((num_domains + 1, R), jnp.float32)
    return sums.at[ids_N].add(jax.lax.stop_gradient(probs_BSR).reshape(-1, R))[:-1]


def route(
    x_BSD: jax.Array,
    kernel_DE: jax.Array,
    config: MoeConfig,
    *,
    pool_ids_BS: jax.Array,
    pool_size_BG: jax.Array | None,
    loss_tokens: jax.Array | float,
    top_p: float = 0.0,
    allowed_BSR: jax.Array | None = None,
    domain_ids_BS: jax.Array | None = None,
    num_domains: int = 0,
    step_load_R: jax.Array | None = None,
    balance_BS: jax.Array | None = None,
    token_probs: bool = False,
) -> tuple[Routing, RouterStats]:
    """Chooses experts for every token.

    The columns of the shared experts in `kernel_DE` are not used and get no gradient: a shared
    expert sees every token with weight 1.

    Args:
      x_BSD: input of the mixture of experts, any float dtype; everything here is float32.
      kernel_DE: router weights.
      pool_ids_BS: document of each token, -1 for padding.
      pool_size_BG: pool size of document g of row b, or None: no pool.
      top_p: above 0, pools are the smallest sets of this probability, at most of `pool_size_BG`
        and at least of the config's `min_size`; else `pool_size_BG` is their size.
      loss_tokens: T of SPEC 3, the denominator of the load-balancing counts and the z-loss.
      allowed_BSR: routed experts that exist for a token, as if the others had been pruned.
      step_load_R: float32, how often a token of the whole step picks each expert, for the load
        balance; None: the tokens given are all that count.
      balance_BS: bool, the tokens that the load balance is of; None: all.
      domain_ids_BS, num_domains: for the sums of probabilities by domain; 0 domains: none kept.
      token_probs: keep the probabilities of every token.
    """
    R, K, pool = config.num_routed_experts, config.num_routed_picks, config.pool
    valid_BS = pool_ids_BS >= 0
    logits_BSR = jnp.einsum(
        "bsd,dr->bsr",
        x_BSD.astype(jnp.float32),
        kernel_DE[:, :R].astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    logits_BSR = checkpoint_name(logits_BSR, "router_logits")
    if allowed_BSR is not None:
        logits_BSR = jnp.where(allowed_BSR, logits_BSR, -jnp.inf)
    all_probs_BSR = jax.nn.softmax(logits_BSR, axis=-1)
    if pool_size_BG is None:
        masked_BSR, probs_BSR = logits_BSR, all_probs_BSR
        sizes_BS = jnp.full(valid_BS.shape, R, jnp.float32)
    else:
        keep_BSR = pools.pool_mask(
            all_probs_BSR,
            pool_ids_BS,
            pool_size_BG,
            forced_experts=pool.forced_experts,
            top_p=top_p,
            min_size=pool.min_size,
        )
        masked_BSR = jnp.where(keep_BSR, logits_BSR, -jnp.inf)
        probs_BSR = jax.nn.softmax(masked_BSR, axis=-1)
        sizes_BS = keep_BSR.sum(-1).astype(jnp.float32)

    weights_BSK, indices_BSK = jax.lax.top_k(probs_BSR, K)
    indices_BSK = jnp.where(valid_BS[..., None], indices_BSK, R).astype(jnp.int32)
    weights_BSK = jnp.where(valid_BS[..., None], weights_BSK, 0.0)

    def counts_of(indices_BSK: jax.Array) -> jax.Array:
        chosen_R = jnp.sum(indices_BSK[..., None] == jnp.arange(R), axis=(0, 1, 2), dtype=jnp.int32)
        return chosen_R.astype(jnp.float32)

    num_valid = valid_BS.sum().astype(jnp.float32)
    counts_R = balanced_R = counts_of(indices_BSK)
    counted_BS, num_counted = valid_BS, num_valid
    if balance_BS is not None:
        counted_BS = valid_BS & balance_BS
        num_counted = counted_BS.sum().astype(jnp.float32)
        balanced_R = counts_of(jnp.where(counted_BS[..., None], indices_BSK, R))
    mean_probs_R = jnp.sum(
        jnp.where(counted_BS[..., None], probs_BSR, 0.0), axis=(0, 1)
    ) / jnp.maximum(num_counted, 1.0)
    loss_tokens = jnp.asarray(loss_tokens, jnp.float32)
    # A layer that has fewer experts than others is balanced over its own.
    there = R if allowed_BSR is None else allowed_BSR.sum(-1).max().astype(jnp.float32)

    def over_tokens(values_BS: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(jnp.sum(jnp.where(valid_BS, values_BS, 0.0)))

    stats = RouterStats(
        load_balance_loss=losses.load_balance_loss(
            balanced_R if step_load_R is None else step_load_R * num_valid,
            mean_probs_R,
            num_experts=there,
            num_picks=K,
            loss_tokens=loss_tokens,
        ),
        router_z_loss=losses.router_z_loss(masked_BSR, valid_BS, loss_tokens),
        counts_E=jnp.concatenate([counts_R, jnp.full((config.num_shared_experts,), num_valid)]),
        token_entropy=over_tokens(_entropy(jax.lax.stop_gradient(probs_BSR))),
        document_entropy=over_tokens(_entropy(jax.lax.stop_gradient(all_probs_BSR))),
        pool_size_sum=over_tokens(sizes_BS),
        domain_probs_MR=_sum_by_domain(all_probs_BSR, valid_BS, domain_ids_BS, num_domains),
        probs_BSR=all_probs_BSR if token_probs else jnp.zeros((0,), jnp.float32),
        dropped=jnp.zeros((), jnp.float32),  # known when the experts have run
    )
    return Routing(weights_BSK, indices_BSK), stats
