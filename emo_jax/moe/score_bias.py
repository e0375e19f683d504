"""A bias on the router's scores that balances the load without a loss; it only chooses.

`sign` moves each expert's bias by a fixed rate against its excess load (arXiv 2408.15664,
algorithm 1). `quantile` sets the bias to what would have balanced the step (Kimi K3's report,
section 2.3.3 and appendix D; kexue.fm/archives/11619): a token picks an expert whose bias is above
the expert's margin, which is the token's cutoff, its (K+1)th largest biased score, minus the
expert's score. The bias is the K/R quantile of the expert's margins over the step's tokens. Margins
are counted in bins, so that the counts of micro-batches and devices add up to the same integers.

Legend: B windows, S tokens, L layers, E experts (shared ones last), R routed experts, K picks, J
bins.
"""

import jax
import jax.numpy as jnp

BINS = 1000  # as in the report


def margin_histogram(
    logits_BSR: jax.Array, valid_BS: jax.Array, bias_R: jax.Array, *, num_picks: int
) -> jax.Array:
    """(R,J) float32: how many tokens have their margin for an expert in a bin of `_edges`.

    Margins are at most that much away from the biases, as scores are in 0..1. Experts that the
    layer does not have (a logit of -inf) are in no bin, and fill no cutoff.
    """
    logits_BSR, bias_R = jax.lax.stop_gradient((logits_BSR, bias_R))
    there_BSR = logits_BSR > -jnp.inf
    scores_BSR = jax.nn.sigmoid(logits_BSR)
    biased_BSR = jnp.where(there_BSR, scores_BSR + bias_R, -jnp.inf)
    cutoff_BS1 = jax.lax.top_k(biased_BSR, num_picks + 1)[0][..., -1:]
    low, width = _range(bias_R)
    bins_BSR = jnp.floor((cutoff_BS1 - scores_BSR - low) / width).astype(jnp.int32)
    bins_BSR = jnp.clip(bins_BSR, 0, BINS - 1)
    counts_BSR = (valid_BS[..., None] & there_BSR).astype(jnp.int32)
    R = bias_R.shape[0]
    where_BSR = bins_BSR + BINS * jnp.arange(R)
    flat = jnp.zeros((R * BINS,), jnp.int32).at[where_BSR.reshape(-1)].add(counts_BSR.reshape(-1))
    return flat.reshape(R, BINS).astype(jnp.float32)


def _range(bias_R: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The lowest margin there can be, and the width of a bin."""
    low, high = bias_R.min() - 1.0, bias_R.max() + 1.0
    return low, (high - low) / BINS


def quantile_bias(bias_R: jax.Array, margins_RJ: jax.Array, *, num_picks: int) -> jax.Array:
    """(R,): the next bias, with a mean of 0; 0 for experts without margins, which are not there.

    Args:
      bias_R: that by which the margins were counted.
      margins_RJ: sums of `margin_histogram` over the step.
    """
    there_R = margins_RJ.sum(-1) > 0
    low, width = _range(bias_R)
    below_RJ = jnp.cumsum(margins_RJ, axis=-1)
    wanted_R = below_RJ[:, -1] * num_picks / jnp.maximum(there_R.sum(), 1)
    bin_R = jnp.sum(below_RJ < wanted_R[:, None], axis=-1)  # the first that reaches it
    at_R1 = jnp.minimum(bin_R, BINS - 1)[:, None]
    inside_R = jnp.take_along_axis(margins_RJ, at_R1, axis=-1)[:, 0]
    before_R = jnp.take_along_axis(below_RJ, at_R1, axis=-1)[:, 0] - inside_R
    part_R = (wanted_R - before_R) / jnp.maximum(inside_R, 1.0)
    new_R = low + width * (at_R1[:, 0] + part_R)
    mean = jnp.sum(jnp.where(there_R, new_R, 0.0)) / jnp.maximum(there_R.sum(), 1)
    return jnp.where(there_R, new_R - mean, 0.0)


def sign_bias(bias_R: jax.Array, counts_R: jax.Array, there_R: jax.Array, rate: float) -> jax.Array:
    """(R,): the next bias: up by `rate` where an expert had fewer picks than the mean, else down.

    Args:
      counts_R: picks of the step.
      there_R: bool, experts that the layer has; the mean is over them, and others keep their bias.
    """
    mean = jnp.sum(jnp.where(there_R, counts_R, 0.0)) / jnp.maximum(there_R.sum(), 1)
    return jnp.where(there_R, bias_R + rate * jnp.sign(mean - counts_R), bias_R)
