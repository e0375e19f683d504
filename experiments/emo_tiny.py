"""EMO in minutes: 64 experts (1 shared), top-k 4, three layers of width 128.

emo train --config experiments/emo_tiny.py --config.data.store=STORE --workdir WORKDIR

Hardware and hours: two CPU cores, minutes; losses: README.md, "What quickstart prints".
"""

from ml_collections import ConfigDict

from emo_jax.config import presets
from emo_jax.errors import ConfigError


def get_config(arg: str = "") -> ConfigDict:
    if arg:
        raise ConfigError(f"emo_tiny takes no config argument, not {arg!r}")
    return presets.emo_tiny()
