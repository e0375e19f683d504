"""Router losses (SPEC 3). Sums span all devices by construction: this is one SPMD program.

Legend: B windows, S tokens, G documents, R routed experts, K picks.
"""

import jax
import jax.numpy as jnp


def load_balance_loss(
    counts_R: jax.Array,
    mean_probs_R: jax.Array,
    *,
    num_experts: jax.Array | float,
    num_picks: int,
    loss_tokens: jax.Array,
) -> jax.Array:
    """(R/K) · Σ_e (N_e / T) · P̄_e: 1 when routing is balanced, float32 scalar.

    The gradient flows through the probabilities only.

    Args:
      counts_R: float32 N_e, tokens that chose routed expert e in this micro-batch; or the whole
        step's counts scaled by this micro-batch's share of the tokens, so that the sum over
        micro-batches is the loss of the undivided step.
      mean_probs_R: float32 P̄_e, mean routing probability over this micro-batch's tokens.
      num_experts: R, routed experts of this layer.
      num_picks: K, routed picks per token.
      loss_tokens: T, label tokens of the whole step.
    """
    fraction_R = jax.lax.stop_gradient(counts_R) / loss_tokens
    return num_experts / num_picks * jnp.sum(fraction_R * mean_probs_R)


def document_balance_loss(
    indices_BSK: jax.Array,
    probs_BSR: jax.Array,
    document_ids_BS: jax.Array,
    pool_size_BS: jax.Array,
    *,
    loss_tokens: jax.Array,
) -> jax.Array:
    """Mean over documents of (d/K) · Σ_e (N_e / T_g) · P̄_e, d experts being in the pool (SPEC 6).

    N_e, P̄_e and T_g are picks, mean probability and number of a document's tokens. Balanced
    routing in every document gives 1. A micro-batch's mean counts as the share of its tokens in the
    step, so that the sum over micro-batches is a mean too. The gradient flows through the
    probabilities only.

    Args:
      indices_BSK: picks; R for padding.
      document_ids_BS: int32, below S; -1 for padding.
      pool_size_BS: float32, d, the same for all tokens of a document.
      loss_tokens: T of SPEC 3, label tokens of the whole step.
    """
    B, S, K = indices_BSK.shape
    R = probs_BSR.shape[-1]
    valid_BS = document_ids_BS >= 0
    ids_BS, rows_B1 = jnp.maximum(document_ids_BS, 0), jnp.arange(B)[:, None]
    picks_BSR = jnp.sum(indices_BSK[..., None] == jnp.arange(R), axis=2, dtype=jnp.float32)
    counts_BGR = jnp.zeros((B, S, R), jnp.float32).at[rows_B1, ids_BS].add(picks_BSR)
    tokens_BG = jnp.zeros((B, S), jnp.float32).at[rows_B1, ids_BS].add(valid_BS.astype(jnp.float32))
    # Σ_e N_e · P̄_e, a token at a time.
    mine_BS = jnp.sum(jax.lax.stop_gradient(counts_BGR)[rows_B1, ids_BS] * probs_BSR, axis=-1)
    size_BS = jnp.maximum(tokens_BG[rows_B1, ids_BS], 1.0)
    loss_BS = jax.lax.stop_gradient(pool_size_BS) / K * mine_BS / size_BS**2
    documents = jnp.maximum(jnp.sum(tokens_BG > 0), 1)
    share = valid_BS.sum() / loss_tokens
    return share * jnp.sum(jnp.where(valid_BS, loss_BS, 0.0)) / documents


def router_z_loss(logits_BSR: jax.Array, valid_BS: jax.Array, loss_tokens: jax.Array) -> jax.Array:
    """Σ_t logsumexp(z_t)² / T over the pool-masked logits, float32 scalar."""
    z_BS = jax.nn.logsumexp(logits_BSR, axis=-1)
    return jnp.sum(jnp.where(valid_BS, z_BS**2, 0.0)) / loss_tokens
