"""EMO 1t (1.03 T parameters, 36 B active), 10 T tokens; planned, trained by nobody yet.

emo compile --config experiments/emo_1t.py --topology tpu7x:8x8x16 --config.mesh.expert=32

docs/larger.md has what it takes: chips, memory, network and bounds.
"""

from ml_collections import ConfigDict

from emo_jax.config import larger
from emo_jax.errors import ConfigError


def get_config(arg: str = "") -> ConfigDict:
    if arg:
        raise ConfigError(f"emo_1t takes no config argument, not {arg!r}")
    return larger.emo_1t()
