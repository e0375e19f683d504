"""Switch Transformers' routing: one expert a token, with a capacity, at EMO's active size.

emo train --config experiments/switch_tiny.py --config.data.store=STORE --workdir WORKDIR

What it is and where it differs from the paper: docs/baselines.md. Hardware and hours: two CPU
cores, about a quarter of an hour for 3.7 M tokens.
"""

from ml_collections import ConfigDict

from emo_jax.config import baselines
from emo_jax.errors import ConfigError


def get_config(arg: str = "") -> ConfigDict:
    if arg:
        raise ConfigError(f"switch_tiny takes no config argument, not {arg!r}")
    return baselines.switch_tiny()
