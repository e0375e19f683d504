"""Dense 1b: SwiGLU of hidden size 8192, 130 B tokens; steps with a loss spike are skipped.

emo train --config experiments/dense_1b.py --config.data.store=STORE --workdir WORKDIR

Hardware and hours: one pod slice or a few GPU nodes; not yet run with this code at full size.
"""

from ml_collections import ConfigDict

from emo_jax.config import presets
from emo_jax.errors import ConfigError


def get_config(arg: str = "") -> ConfigDict:
    if arg:
        raise ConfigError(f"dense_1b takes no config argument, not {arg!r}")
    return presets.dense_1b()
