"""The standard-MoE twin of emo_tiny: same shape, data and attention, no pool.

emo train --config experiments/stdmoe_tiny.py --config.data.store=STORE --workdir WORKDIR

Hardware and hours: two CPU cores, minutes; losses: README.md, "What quickstart prints".
"""

from ml_collections import ConfigDict

from emo_jax.config import presets
from emo_jax.errors import ConfigError


def get_config(arg: str = "") -> ConfigDict:
    if arg:
        raise ConfigError(f"stdmoe_tiny takes no config argument, not {arg!r}")
    return presets.stdmoe_tiny()
