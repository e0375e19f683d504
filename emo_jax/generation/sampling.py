"""Sampling the next token from its logits.

Legend: B rows, V vocabulary rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sampling(NamedTuple):
    """How a token is sampled; static at compile time."""

    temperature: float = 0.0  # 0: the likeliest token
    top_k: int = 0  # only this many of the likeliest tokens; 0: all
    top_p: float = 1.0  # only the fewest likeliest tokens with at least this total probability


def allowed_logits(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits (B,V) divided by the temperature, -inf for tokens that may not be sampled.

    `top_p` applies to the probability that is left after `top_k`, as in `transformers`. Tokens with
    equal logits are kept or dropped together.
    """
    logits_BV = logits_BV / sampling.temperature
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        ones_BV = jnp.ones_like(logits_BV)
        logits_BV = _likeliest(logits_BV, ones_BV, float(sampling.top_k))
    if sampling.top_p < 1:
        probs_BV = jax.nn.softmax(logits_BV, axis=-1)
        logits_BV = _likeliest(logits_BV, probs_BV, sampling.top_p)
    return logits_BV


def _likeliest(logits_BV: jax.Array, mass_BV: jax.Array, enough: float) -> jax.Array:
    """Keeps the fewest largest logits whose mass is at least `enough`; the others are -inf.

    The smallest one kept is found bit by bit, from the most significant: sorting the whole
    vocabulary, and again to restore the order of ids, takes many times as long.
    """
    bits_BV = jax.lax.bitcast_convert_type(logits_BV.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    # Unsigned integers that sort like the floats.
    order_BV = jnp.where(bits_BV >= sign, ~bits_BV, bits_BV | sign)

    def next_bit(i, least_B):
        higher_B = least_B | (sign >> i.astype(jnp.uint32))
        mass_B = jnp.sum(jnp.where(order_BV >= higher_B[:, None], mass_BV, 0.0), axis=-1)
        return jnp.where(mass_B >= enough, higher_B, least_B)

    least_B = jax.lax.fori_loop(0, 32, next_bit, jnp.zeros(logits_BV.shape[0], jnp.uint32))
    return jnp.where(order_BV >= least_B[:, None], logits_BV, -jnp.inf)


def sample(
    logits_BV: jax.Array, sampling: Sampling, keys_B: jax.Array, place_B: jax.Array
) -> jax.Array:
    """Samples tokens (B,) int32. The result depends on key, place and logits, not on the row.

    Args:
      logits_BV: logits of the next token.
      sampling: how to sample.
      keys_B: key of each text.
      place_B: position of the new token in its row.
    """
    if sampling.temperature <= 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    keys_B = jax.vmap(jax.random.fold_in)(keys_B, place_B)
    drawn_B = jax.vmap(jax.random.categorical)(keys_B, allowed_logits(logits_BV, sampling))
    return drawn_B.astype(jnp.int32)
