"""EMO in minutes, and the variants it is compared with.

emo train --config experiments/ablation_tiny.py:fixed-pool --config.data.store=STORE --workdir DIR

Argument: emo, standard, matched (standard with a quarter of the experts), fixed-pool, no-shared,
local-balance, window-attention, standard-window. For pools only in the anneal, use
anneal_tiny.py:std_to_emo.

Hardware and hours: two CPU cores, minutes.
"""

from ml_collections import ConfigDict

from emo_jax.config import presets


def get_config(arg: str = "emo") -> ConfigDict:
    return presets.ablation_tiny(arg or "emo")
