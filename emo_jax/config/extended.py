"""The config of a model extended by routed experts (SPEC 10)."""

import dataclasses

from emo_jax.config.fields import Config
from emo_jax.config.sections import MeshConfig
from emo_jax.errors import UsageError


def extended_config(config: Config, add: int) -> Config:
    """The config with `add` more routed experts; pools grow by the same number.

    Raises:
      UsageError: layers have different numbers of experts.
    """
    moe = config.moe
    assert moe is not None
    pool = moe.pool
    if moe.experts_per_layer:
        raise UsageError(f"{config.name}: its layers have different numbers of experts")
    sizes = {
        name: size + add
        for name in ("size", "min_size", "max_size", "eval_size")
        if (size := getattr(pool, name))
    }
    pool = dataclasses.replace(pool, forced_experts=pool.forced_experts + add, **sizes)
    moe = dataclasses.replace(moe, num_experts=moe.num_experts + add, pool=pool)
    return dataclasses.replace(config, moe=moe, mesh=MeshConfig())
