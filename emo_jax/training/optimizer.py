"""AdamW (SPEC 4) or Muon, clipping and schedule as one optax chain."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from emo_jax.config import Config, OptimizerConfig
from emo_jax.training import muon
from emo_jax.training.freeze import freeze
from emo_jax.training.offload import follow_memory
from emo_jax.training.skip import SkipState, skip_spikes


def learning_rate(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Returns a schedule of the step counted from 0 (optax's count): step n of SPEC 4 is count n−1.

    Linear warm-up to the peak at n = warmup_steps, then decay to `final_lr_fraction` of it at n =
    total_steps: along a cosine, or constant and then linear over the last `decay_steps` (the anneal
    of SPEC 4).
    """
    peak, warmup = config.peak_lr, config.warmup_steps
    low = peak * config.final_lr_fraction

    def schedule(count: jax.Array) -> jax.Array:
        n = jnp.asarray(count, jnp.float32) + 1.0
        rising = peak * n / max(warmup, 1)
        if config.schedule == "wsd":
            left = jnp.clip((total_steps - n) / config.decay_steps, 0.0, 1.0)
        else:
            part = jnp.clip((n - warmup) / max(total_steps - warmup, 1), 0.0, 1.0)
            left = 0.5 * (1.0 + jnp.cos(jnp.pi * part))
        return jnp.where(n < warmup, rising, low + (peak - low) * left)

    return schedule


def decay_mask(params) -> dict:
    """Returns True where weight decay applies: everywhere but the input embedding (SPEC 4)."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key != "embed", params)


def make_optimizer(config: Config, shardings: Any = None) -> optax.GradientTransformationExtraArgs:
    """Clips to the global norm, then applies p -= lr · (update + wd·p): the decay is decoupled.

    The update is Adam's, or that of Muon for matrices with `optimizer.name = muon`.

    With `skip_window`, the update takes the step's cross-entropy as `loss`, and a spike of it or of
    the gradient norm changes nothing but the schedule's count.

    Args:
      config: config of the run.
      shardings: those of the parameters, on a mesh; Muon computes by them.
    """
    opt = config.optimizer
    direction = _adam(opt)
    if opt.name == "muon":
        momentum = _kept_in(opt.first_moment_dtype, muon.muon(opt.muon_momentum, shardings))
        direction = optax.partition({muon.MUON: momentum, muon.ADAM: direction}, muon.labels)
    adamw: optax.GradientTransformation = optax.chain(
        optax.clip_by_global_norm(opt.clip_norm),
        direction,
        optax.add_decayed_weights(opt.weight_decay, mask=decay_mask),
    )
    if opt.skip_window:
        adamw = skip_spikes(adamw, window=opt.skip_window, sigma=opt.skip_sigma)
    schedule = learning_rate(opt, config.train.steps)
    chain = optax.chain(adamw, optax.scale_by_learning_rate(schedule))
    return freeze(chain, config)


def _adam(opt: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    adam = optax.scale_by_adam(b1=opt.b1, b2=opt.b2, eps=opt.eps)
    return follow_memory(_kept_in(opt.first_moment_dtype, adam))


def _kept_in(dtype: str, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns `inner` with its first moment, `mu`, kept in a dtype between steps.

    All arithmetic is in float32. optax's own `mu_dtype` multiplies b1 in the narrow dtype, where
    0.9 is 0.898: the mean of equal gradients would come out 1.5 % too small.
    """
    if dtype == "float32":
        return inner

    def stored(state: Any, dtype: str) -> Any:
        if isinstance(state, tuple) and not hasattr(state, "mu"):  # of a chain
            return tuple(stored(part, dtype) for part in state)
        return state._replace(mu=optax.tree.cast(state.mu, dtype))

    def init(params: Any) -> Any:
        return stored(inner.init(params), dtype)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = inner.update(grads, stored(state, "float32"), params)
        return updates, stored(state, dtype)

    return optax.GradientTransformation(init, update)


def skipped_steps(opt_state: Any) -> jax.Array:
    """Returns the number of steps whose update was skipped so far, in a run with `skip_window`."""
    return opt_state[0].skips


def moments_only(opt_state: Any, fresh: Any) -> Any:
    """Returns `fresh` with the moments of `opt_state` and their counts: the schedule restarts."""
    (adamw, _), (fresh_adamw, fresh_schedule) = opt_state, fresh
    if isinstance(adamw, SkipState):
        adamw = fresh_adamw._replace(inner=adamw.inner)
    return adamw, fresh_schedule
