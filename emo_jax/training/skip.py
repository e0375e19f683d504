"""Skips the updates of steps whose loss or gradient norm is far above the recent ones.

This is the dense recipe's SkipStepAdamW (SPEC 4; OLMo-core's SkipStepOptimizer), without a host
sync.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from emo_jax.training.offload import keep_old


class SkipState(NamedTuple):
    """Arrays only. The last W steps are kept in a ring buffer."""

    inner: Any  # state of the wrapped optimizer
    losses_W: jax.Array  # float32
    norms_W: jax.Array  # float32, of the gradients before clipping
    seen: jax.Array  # int32, steps so far, including skipped ones
    skips: jax.Array  # int32, skipped steps


def skip_spikes(
    inner: optax.GradientTransformation, *, window: int, sigma: float
) -> optax.GradientTransformationExtraArgs:
    """Wraps `inner` to skip steps whose `loss` (an argument of update) or gradient norm is a spike.

    A spike exceeds the mean of the last `window` steps by more than `sigma` of their standard
    deviations (unbiased). There are no spikes while fewer than window / 2 steps are known,
    including this one. A skipped step changes nothing of `inner`, not even its counts, and its
    update is zero; its loss and norm are remembered like any other's.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> SkipState:
        zeros_W, zero = jnp.zeros((window,), jnp.float32), jnp.zeros((), jnp.int32)
        return SkipState(inner.init(params), zeros_W, zeros_W, zero, zero)

    def update(
        grads: Any,
        state: SkipState,
        params: Any = None,
        *,
        loss: jax.Array,
        hold: jax.Array | None = None,
        **extra: Any,
    ) -> tuple[Any, SkipState]:
        loss, norm = jnp.asarray(loss, jnp.float32), optax.tree.norm(grads).astype(jnp.float32)
        spike = is_spike(state.losses_W, state.seen, loss, sigma)
        spike |= is_spike(state.norms_W, state.seen, norm, sigma)
        hold = spike if hold is None else spike | hold
        updates, new_inner = inner.update(grads, state.inner, params, hold=hold, **extra)
        updates = jax.tree.map(lambda u: jnp.where(spike, jnp.zeros_like(u), u), updates)
        kept = keep_old(spike, state.inner, new_inner)
        at = state.seen % window
        return updates, SkipState(
            kept,
            state.losses_W.at[at].set(loss),
            state.norms_W.at[at].set(norm),
            state.seen + 1,
            state.skips + spike.astype(jnp.int32),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def is_spike(values_W: jax.Array, seen: jax.Array, newest: jax.Array, sigma: float) -> jax.Array:
    """Whether `newest` is far above the values of the last W steps, of which `seen` are known."""
    W = values_W.shape[0]
    known_W = jnp.arange(W) < seen
    number = jnp.minimum(seen, W).astype(jnp.float32)
    mean = jnp.sum(jnp.where(known_W, values_W, 0.0)) / jnp.maximum(number, 1.0)
    squares = jnp.sum(jnp.where(known_W, (values_W - mean) ** 2, 0.0))
    deviation = jnp.sqrt(squares / jnp.maximum(number - 1.0, 1.0))
    return (seen + 1 >= W // 2) & (newest - mean > sigma * deviation)
