"""What Switch Transformers do in training only: a capacity for each expert, and noisy inputs.

Both follow arXiv 2101.03961 (sections 2.2 and 2.4) with the window as its group of tokens, so that
neither depends on the mesh or on the number of micro-batches.

Legend: B windows, S tokens, D width, R routed experts, K picks, L layers.
"""

import jax
import jax.numpy as jnp

from emo_jax.moe.router import Routing


def within_capacity(routing: Routing, num_experts: int, rows: int) -> Routing:
    """The routing without the picks that find an expert full: no expert computes them.

    In a window, first picks come before second ones, and each in the order of the tokens (as in
    GShard, arXiv 2006.16668, algorithm 1; Switch has one pick). The weights of other picks stay.

    Args:
      num_experts: R.
      rows: picks that an expert takes of a window.
    """
    weights_BSK, indices_BSK = routing
    B, S, K = indices_BSK.shape
    order_BN = indices_BSK.swapaxes(1, 2).reshape(B, K * S)
    one_hot_BNR = (order_BN[..., None] == jnp.arange(num_experts)).astype(jnp.int32)
    before_BNR = jnp.cumsum(one_hot_BNR, axis=1) - one_hot_BNR
    place_BN = jnp.sum(before_BNR * one_hot_BNR, axis=-1)
    full_BSK = (place_BN >= rows).reshape(B, K, S).swapaxes(1, 2)
    return Routing(
        jnp.where(full_BSK, 0.0, weights_BSK), jnp.where(full_BSK, num_experts, indices_BSK)
    )


def draw_seeds(key: jax.Array, *, rows: jax.Array, num_layers: int) -> jax.Array:
    """(L,B) uint32: a seed for the noise of every window in every layer.

    Args:
      key: made from the run's seed and the step.
      rows: (B,) int, index of each window in the step's global batch.
    """

    def draw(layer: jax.Array, row: jax.Array) -> jax.Array:
        return jax.random.bits(jax.random.fold_in(jax.random.fold_in(key, layer), row))

    by_row = jax.vmap(draw, in_axes=(None, 0))
    return jax.vmap(by_row, in_axes=(0, None))(jnp.arange(num_layers), rows)


def jittered(x_BSD: jax.Array, seeds_B: jax.Array, size: float) -> jax.Array:
    """x times numbers drawn evenly from 1 ± `size`, in float32."""
    S, D = x_BSD.shape[1:]

    def noise(seed: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.key(seed), (S, D), jnp.float32, 1 - size, 1 + size)

    return x_BSD.astype(jnp.float32) * jax.vmap(noise)(seeds_B)
