"""The checked config of a run. Does not import JAX.

`fields` has the dataclasses with their checks, `parse` builds them from a `ConfigDict`, `file`
reads experiment files with overrides, and `presets` has the named shapes and recipes.
"""

from emo_jax.config.architecture import ModelConfig, MoeConfig
from emo_jax.config.fields import (
    Config,
    capacity_rows,
    differences,
    flatten,
    may_change,
    moe_of,
    portable,
    routed_by_layer,
    to_dict,
)
from emo_jax.config.parse import from_config_dict
from emo_jax.config.pools import PoolConfig
from emo_jax.config.sections import (
    CheckpointConfig,
    DataConfig,
    InitConfig,
    MeshConfig,
    OptimizerConfig,
    SourceConfig,
    TrackingConfig,
    TrainConfig,
)

__all__ = [
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "InitConfig",
    "MeshConfig",
    "ModelConfig",
    "MoeConfig",
    "OptimizerConfig",
    "PoolConfig",
    "SourceConfig",
    "TrackingConfig",
    "TrainConfig",
    "capacity_rows",
    "differences",
    "flatten",
    "from_config_dict",
    "may_change",
    "moe_of",
    "portable",
    "routed_by_layer",
    "to_dict",
]
