"""Mixtral's proportions in minutes: top-2 of 8 experts, weights that sum to 1, grouped queries.

emo train --config experiments/mixtral_tiny.py --config.data.store=STORE --workdir WORKDIR
emo export WORKDIR --output FOLDER        # layout mixtral: stock transformers loads it

Hardware: two CPU cores.
"""

from ml_collections import ConfigDict

from emo_jax.config import shapes
from emo_jax.errors import ConfigError


def get_config(arg: str = "") -> ConfigDict:
    if arg:
        raise ConfigError(f"mixtral_tiny takes no config argument, not {arg!r}")
    return shapes.mixtral_tiny()
