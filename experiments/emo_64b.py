"""EMO 64b (63.5 B parameters, 3.9 B active), 2 T tokens; planned, trained by nobody yet.

emo compile --config experiments/emo_64b.py --topology v5p:8x8x8 --config.mesh.expert=8

docs/larger.md has what it takes: chips, memory, network and bounds.
"""

from ml_collections import ConfigDict

from emo_jax.config import larger
from emo_jax.errors import ConfigError


def get_config(arg: str = "") -> ConfigDict:
    if arg:
        raise ConfigError(f"emo_64b takes no config argument, not {arg!r}")
    return larger.emo_64b()
