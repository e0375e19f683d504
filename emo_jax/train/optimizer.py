"""AdamW, clip and schedule as one optax chain (SPEC 4)."""

import jax
import jax.numpy as jnp
import optax

from emo_jax.config import Config, OptimizerConfig


def learning_rate(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Schedule of the step counted from 0 (optax's count): step n of SPEC 4 is count n−1.

    Linear warm-up to the peak at n = warmup_steps, then a cosine to `final_lr_fraction` of it at
    n = total_steps.
    """
    peak, warmup = config.peak_lr, config.warmup_steps
    low = peak * config.final_lr_fraction

    def schedule(count: jax.Array) -> jax.Array:
        n = jnp.asarray(count, jnp.float32) + 1.0
        rising = peak * n / max(warmup, 1)
        part = jnp.clip((n - warmup) / max(total_steps - warmup, 1), 0.0, 1.0)
        falling = low + (peak - low) * 0.5 * (1.0 + jnp.cos(jnp.pi * part))
        return jnp.where(n < warmup, rising, falling)

    return schedule


def decay_mask(params) -> dict:
    """True where weight decay acts: everything but the input embedding (SPEC 4)."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key != "embed", params)


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Clip to the global norm, then AdamW: p -= lr · (update + wd·p), decay decoupled."""
    opt = config.optimizer
    return optax.chain(
        optax.clip_by_global_norm(opt.clip_norm),
        optax.adamw(
            learning_rate(opt, config.train.steps),
            b1=opt.b1,
            b2=opt.b2,
            eps=opt.eps,
            weight_decay=opt.weight_decay,
            mask=decay_mask,
        ),
    )
