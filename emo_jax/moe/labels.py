"""Pools given by a document's domain, its label, in training (`PoolConfig.labelled`).

Legend: M labels, R routed experts.
"""

import jax
import jax.numpy as jnp
import numpy as np

from emo_jax.config import MoeConfig
from emo_jax.config.labels import parse_label


def label_experts(config: MoeConfig) -> np.ndarray:
    """(M,R) bool: the experts of each label, as the config gives them.

    Without ranges, the M domains begin at equal distances and have `moe.pool.size` experts each,
    with the first expert after the last: they share none if M · size is at most R.
    """
    R, pool = config.num_routed_experts, config.pool
    ranges = [parse_label(label)[1] for label in pool.labels or ("",)]
    table_MR = np.zeros((len(ranges), R), bool)
    for m, given in enumerate(ranges):
        first = m * R // len(ranges)
        here = given or [(first + n) % R for n in range(min(pool.size, R))]
        table_MR[m, list(here)] = True
    return table_MR


def first_favour(config: MoeConfig) -> np.ndarray:
    """(M,R) float32: how a learned table begins: probabilities that favour those experts."""
    there_MR = label_experts(config)
    return (there_MR / there_MR.sum(-1, keepdims=True)).astype(np.float32)


def label_logits(config: MoeConfig, favour_MR: jax.Array | None) -> jax.Array:
    """(M,R) float32, what a label adds to the logits: -inf where an expert is not in its pool.

    Args:
      favour_MR: for `label_learned`, the router's mean probabilities in each domain so far; its
        pool is the `size` experts with the largest, ties going to the lower index. A domain without
        any, as in a model that comes from a Hugging Face folder, has those of `first_favour`.
    """
    pool = config.pool
    if pool.kind == "label_bias":
        return jnp.where(label_experts(config), jnp.float32(pool.label_bias), 0.0)
    if pool.kind == "label_table":
        return jnp.where(label_experts(config), jnp.float32(0.0), -jnp.inf)
    assert favour_MR is not None
    size = min(pool.size, config.num_routed_experts)
    known_M1 = favour_MR.any(-1, keepdims=True)
    favour_MR = jnp.where(known_M1, favour_MR, first_favour(config))
    rank_MR = jnp.argsort(jnp.argsort(-favour_MR, axis=-1, stable=True), axis=-1)
    return jnp.where(rank_MR < size, jnp.float32(0.0), -jnp.inf)


def next_favour(favour_MR: jax.Array, probs_MR: jax.Array, rate: float) -> jax.Array:
    """The moving average after a step; domains without tokens keep theirs.

    Args:
      probs_MR: the router's probabilities before the pool, summed over each domain's tokens.
    """
    tokens_M1 = probs_MR.sum(-1, keepdims=True)  # each token's add up to 1
    mean_MR = probs_MR / jnp.maximum(tokens_M1, 1.0)
    return jnp.where(tokens_M1 > 0.5, favour_MR + rate * (mean_MR - favour_MR), favour_MR)
