"""The router. All variants share one `choose`: a variant is a field of `MoeConfig` (SPEC 2).

`choose` picks the experts of each token; `statistics` computes what the losses and metrics need.

Legend: B windows, S tokens, G documents, D width, E experts (shared included), R routed experts,
K routed picks, s shared experts, M domains.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from emo_jax.config import MoeConfig
from emo_jax.moe import losses
from emo_jax.moe.pools import Pools, pool_mask
from emo_jax.moe.score_bias import margin_histogram

LEAST_SUM = 1e-20  # keeps a sum of sigmoids above zero, as in DeepSeek-V3's published code


class RouterTokens(NamedTuple):
    """The tokens that the routers of all layers see, and what to count for them."""

    pool_ids_BS: jax.Array  # int32, document of each token; -1: padding
    loss_tokens: jax.Array | float = 1.0  # T of SPEC 3, denominator of the router losses
    balance_BS: jax.Array | None = None  # bool, tokens the load-balancing loss counts; None: all
    domain_ids_BS: jax.Array | None = None  # int32; -1: none
    num_domains: int = 0  # M, to sum probabilities by domain; 0: no sums
    token_probs: bool = False  # keep the probabilities of every token
    # In training, and where asked for: capacity and labels act, and a bias is prepared for.
    training: bool = False
    label_ids_BS: jax.Array | None = None  # int32, row of `moe.pool.labels`; -1: padding


class Routing(NamedTuple):
    """Which routed experts each token uses, and with what weights.

    With `moe.shared_picks` there are shared ones among them, and for padding it is E.
    """

    weights_BSK: jax.Array  # float32, see `MoeConfig.normalize_picks`; 0 for padding
    indices_BSK: jax.Array  # int32 in 0..R-1; R for padding, which no expert computes


class RouterProbs(NamedTuple):
    """What a choice is based on. All float32.

    Probabilities are scores divided by their sum, which a softmax's are already.
    """

    logits_BSR: jax.Array  # -inf outside the pool, or lowered by its penalty; or all of them, see
    probs_BSR: jax.Array  # over the pool; `PoolConfig.renormalize` is about both
    all_probs_BSR: jax.Array  # before the pool is applied
    pool_size_BS: jax.Array  # experts of the layer that a token may use
    indices_BSK: jax.Array  # of `Routing` before any is dropped
    all_logits_BSR: jax.Array  # before the pool is applied


class RouterStats(NamedTuple):
    """Losses and metrics of one layer and micro-batch. All float32."""

    load_balance_loss: jax.Array  # unweighted, scalar
    router_z_loss: jax.Array  # unweighted, scalar
    counts_E: jax.Array  # tokens of each expert; shared ones see every token
    token_entropy: jax.Array  # of the probabilities in the pool, nats, summed over tokens
    document_entropy: jax.Array  # of the probabilities before the pool, nats, summed over tokens
    pool_size_sum: jax.Array  # pool sizes summed over tokens
    domain_probs_MR: jax.Array  # probabilities before the pool, summed over each domain's tokens
    probs_BSR: jax.Array  # of each token, before the pool; (0,) unless requested
    dispatch_rounds: jax.Array  # in which tokens travelled to experts on other devices
    dropped: jax.Array | None = None  # picks beyond an expert's capacity; None: it has no bound
    margins_RJ: jax.Array | None = None  # of `score_bias`, for a bias by quantiles
    shared_balance_loss: jax.Array | None = None  # unweighted, scalar; None: see `shared_pools`


def _probs(logits_BSR: jax.Array, gate: str) -> jax.Array:
    if gate == "softmax":
        return jax.nn.softmax(logits_BSR, axis=-1)
    scores_BSR = jax.nn.sigmoid(logits_BSR)
    return scores_BSR / (scores_BSR.sum(-1, keepdims=True) + LEAST_SUM)


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


def logits_of(x_BSD: jax.Array, kernel_DR: jax.Array) -> jax.Array:
    """The router's logits (B,S,R), in float32 throughout."""
    return jnp.einsum(
        "bsd,dr->bsr",
        x_BSD.astype(jnp.float32),
        kernel_DR.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )


def choose(
    x_BSD: jax.Array,
    kernel_DE: jax.Array,
    config: MoeConfig,
    pool_ids_BS: jax.Array,
    *,
    pools: Pools | None = None,
    allowed_BSR: jax.Array | None = None,
    label_BSR: jax.Array | None = None,
    bias_R: jax.Array | None = None,
) -> tuple[Routing, RouterProbs]:
    """Chooses experts for every token; also returns the probabilities it chose by.

    The columns of the shared experts in `kernel_DE` are not used here: a shared expert sees every
    token with weight 1, or `shared_pools` chooses among them.

    Args:
      x_BSD: input of the mixture of experts, any float dtype; the computation is in float32.
      kernel_DE: router weights.
      pool_ids_BS: document of each token, -1 for padding.
      pools: pools of the documents; None: no pool.
      allowed_BSR: routed experts available to a token, as if the others had been pruned; or (R,),
        for all tokens.
      label_BSR: added to the logits as a pool is, after `all_probs_BSR`; -inf: not in the pool.
      bias_R: added to the scores to choose by; the weights are the scores without it.
    """
    R, K = config.num_routed_experts, config.num_routed_picks
    valid_BS = pool_ids_BS >= 0
    logits_BSR = logits_of(x_BSD, kernel_DE[:, :R])
    logits_BSR = checkpoint_name(logits_BSR, "router_logits")
    if config.expert_bias:
        logits_BSR = logits_BSR + jnp.where(jnp.arange(R) > 0, config.expert_bias, 0.0)
    if allowed_BSR is not None:
        logits_BSR = jnp.where(allowed_BSR, logits_BSR, -jnp.inf)
    all_probs_BSR = _probs(logits_BSR, config.gate)
    keep_BSR = None
    masked_BSR, probs_BSR = logits_BSR, all_probs_BSR
    if pools is not None:
        keep_BSR = pool_mask(all_probs_BSR, pool_ids_BS, pools)
        outside_BSR = logits_BSR - pools.penalty if pools.penalty else -jnp.inf
        masked_BSR = jnp.where(keep_BSR, logits_BSR, outside_BSR)
        probs_BSR = _probs(masked_BSR, config.gate)
        if not config.pool.renormalize:  # the z-loss sees all logits then (SPEC 6, fullzloss)
            probs_BSR = jnp.where(keep_BSR, all_probs_BSR, 0.0)
    elif label_BSR is not None:
        keep_BSR = label_BSR > -jnp.inf
        masked_BSR = logits_BSR + label_BSR
        probs_BSR = _probs(masked_BSR, config.gate)

    scores_BSR = probs_BSR if config.gate == "softmax" else jax.nn.sigmoid(masked_BSR)
    if bias_R is None:
        weights_BSK, indices_BSK = jax.lax.top_k(scores_BSR, K)
    else:
        biased_BSR = jnp.where(masked_BSR > -jnp.inf, scores_BSR + bias_R, -jnp.inf)
        _, indices_BSK = jax.lax.top_k(jax.lax.stop_gradient(biased_BSR), K)
        weights_BSK = jnp.take_along_axis(scores_BSR, indices_BSK, axis=-1)
    if config.normalize_picks:
        weights_BSK = weights_BSK / (weights_BSK.sum(-1, keepdims=True) + LEAST_SUM)
    indices_BSK = jnp.where(valid_BS[..., None], indices_BSK, R).astype(jnp.int32)
    weights_BSK = jnp.where(valid_BS[..., None], weights_BSK, 0.0)

    may_use = [mask for mask in (keep_BSR, allowed_BSR) if mask is not None]
    sizes_BS = jnp.full(valid_BS.shape, R, jnp.float32)
    if may_use:
        both_BSR = functools.reduce(jnp.logical_and, may_use)
        sizes_BS = jnp.broadcast_to(both_BSR.sum(-1).astype(jnp.float32), valid_BS.shape)
    loss_logits_BSR = masked_BSR if config.pool.renormalize else logits_BSR
    probs = RouterProbs(
        loss_logits_BSR, probs_BSR, all_probs_BSR, sizes_BS, indices_BSK, logits_BSR
    )
    return Routing(weights_BSK, indices_BSK), probs


def statistics(
    routing: Routing,
    probs: RouterProbs,
    config: MoeConfig,
    tokens: RouterTokens,
    *,
    allowed_BSR: jax.Array | None = None,
    step_load_E: jax.Array | None = None,
    bias_R: jax.Array | None = None,
) -> RouterStats:
    """Losses and sums for a choice.

    Args:
      routing, probs: from `choose`; `allowed_BSR` and `bias_R` are what it was given. Picks may
        have been dropped from the routing since: losses and counts are of the choice.
      step_load_E: float32, mean picks of each expert per token over the whole step, for the
        load-balancing loss; None: the given tokens are all that count.
    """
    R, K = config.num_routed_experts, config.num_routed_picks
    valid_BS = tokens.pool_ids_BS >= 0

    def counts_of(indices_BSK: jax.Array) -> jax.Array:
        chosen_R = jnp.sum(indices_BSK[..., None] == jnp.arange(R), axis=(0, 1, 2), dtype=jnp.int32)
        return chosen_R.astype(jnp.float32)

    num_valid = valid_BS.sum().astype(jnp.float32)
    counts_R = balanced_R = counts_of(probs.indices_BSK)
    counted_BS, num_counted = valid_BS, num_valid
    if tokens.balance_BS is not None:
        counted_BS = valid_BS & tokens.balance_BS
        num_counted = counted_BS.sum().astype(jnp.float32)
        balanced_R = counts_of(jnp.where(counted_BS[..., None], probs.indices_BSK, R))
    of_pool = config.aux_scope == "pool"
    aux_probs_BSR = probs.probs_BSR if of_pool else probs.all_probs_BSR
    mean_probs_R = jnp.sum(
        jnp.where(counted_BS[..., None], aux_probs_BSR, 0.0), axis=(0, 1)
    ) / jnp.maximum(num_counted, 1.0)
    loss_tokens = jnp.asarray(tokens.loss_tokens, jnp.float32)
    # A layer with fewer experts than others is balanced over its own.
    there = R if allowed_BSR is None else allowed_BSR.sum(-1).max().astype(jnp.float32)

    def over_tokens(values_BS: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(jnp.sum(jnp.where(valid_BS, values_BS, 0.0)))

    dropped = margins_RJ = None
    if tokens.training and config.capacity_factor:
        dropped = jnp.sum(routing.indices_BSK != probs.indices_BSK, dtype=jnp.float32)
    if tokens.training and config.score_bias == "quantile":
        assert bias_R is not None
        margins_RJ = margin_histogram(probs.logits_BSR, valid_BS, bias_R, num_picks=K)
    all_probs_BSR = probs.all_probs_BSR
    if config.balance_scope == "document":
        balance = losses.document_balance_loss(
            probs.indices_BSK,
            probs.probs_BSR,
            tokens.pool_ids_BS,
            probs.pool_size_BS,
            loss_tokens=loss_tokens,
        )
    else:
        balance = losses.load_balance_loss(
            balanced_R if step_load_E is None else step_load_E[:R] * num_valid,
            mean_probs_R,
            num_experts=there,
            num_picks=K,
            loss_tokens=loss_tokens,
        )
    logits_BSR = probs.logits_BSR if of_pool else probs.all_logits_BSR
    return RouterStats(
        load_balance_loss=balance,
        router_z_loss=losses.router_z_loss(logits_BSR, valid_BS, loss_tokens),
        counts_E=jnp.concatenate([counts_R, jnp.full((config.num_shared_experts,), num_valid)]),
        token_entropy=over_tokens(_entropy(jax.lax.stop_gradient(probs.probs_BSR))),
        document_entropy=over_tokens(_entropy(jax.lax.stop_gradient(all_probs_BSR))),
        pool_size_sum=over_tokens(probs.pool_size_BS),
        domain_probs_MR=_sum_by_domain(
            all_probs_BSR, valid_BS, tokens.domain_ids_BS, tokens.num_domains
        ),
        probs_BSR=all_probs_BSR if tokens.token_probs else jnp.zeros((0,), jnp.float32),
        dispatch_rounds=jnp.zeros((), jnp.float32),  # known only once the experts have run
        dropped=dropped,
        margins_RJ=margins_RJ,
    )
