"""Standard MoE 1b4b: 32 experts, the memory-matched baseline, 130 B tokens.

emo train --config experiments/stdmoe_1b4b.py --config.data.store=STORE --workdir WORKDIR

Hardware and hours: as stdmoe_1b14b, with a third of its memory. Not yet run with this code at
full size.
"""

from ml_collections import ConfigDict

from emo_jax.config import presets
from emo_jax.errors import ConfigError


def get_config(arg: str = "") -> ConfigDict:
    if arg:
        raise ConfigError(f"stdmoe_1b4b takes no config argument, not {arg!r}")
    return presets.stdmoe_1b4b()
