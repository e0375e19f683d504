"""Mixtral's routing: two of eight experts, weights that sum to 1, grouped queries.

emo train --config experiments/mixtral_tiny.py --config.data.store=STORE --workdir WORKDIR
emo export WORKDIR --output FOLDER        # layout mixtral: stock transformers loads it

What it is and where it differs from the paper: docs/baselines.md. Hardware and hours: two CPU
cores, about a quarter of an hour for 3.7 M tokens.
"""

from ml_collections import ConfigDict

from emo_jax.config import baselines
from emo_jax.errors import ConfigError


def get_config(arg: str = "") -> ConfigDict:
    if arg:
        raise ConfigError(f"mixtral_tiny takes no config argument, not {arg!r}")
    return baselines.mixtral_tiny()
