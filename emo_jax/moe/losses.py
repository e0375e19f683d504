"""Router losses (SPEC 3). Sums over all devices by construction: these run inside one SPMD program.

Legend: B windows, S tokens, R routed experts, K picks.
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
      counts_R: float32 N_e, tokens that chose routed expert e in this micro-batch; or this
        micro-batch's share, by tokens, of those of the whole step. Summed over the micro-batches
        that is the loss of the step in one piece.
      mean_probs_R: float32 P̄_e, mean routing probability in this micro-batch's tokens.
      num_experts: R, routed experts that this layer has.
      num_picks: K, routed picks of a token.
      loss_tokens: T, label tokens of the whole step.
    """
    fraction_R = jax.lax.stop_gradient(counts_R) / loss_tokens
    return num_experts / num_picks * jnp.sum(fraction_R * mean_probs_R)


def router_z_loss(logits_BSR: jax.Array, valid_BS: jax.Array, loss_tokens: jax.Array) -> jax.Array:
    """Σ_t logsumexp(z_t)² / T over the pool-masked logits, float32 scalar."""
    z_BS = jax.nn.logsumexp(logits_BSR, axis=-1)
    return jnp.sum(jnp.where(valid_BS, z_BS**2, 0.0)) / loss_tokens
