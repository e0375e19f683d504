"""Sigmoid gates balanced by a bias on their scores, without a load-balancing loss.

emo train --config experiments/lossfree_tiny.py:quantile --config.data.store=STORE --workdir WORKDIR

Argument: sign (the default; DeepSeek-V3) or quantile (Kimi K3): docs/baselines.md. Hardware and
hours: two CPU cores, about a quarter of an hour for 3.7 M tokens.
"""

from ml_collections import ConfigDict

from emo_jax.config import baselines


def get_config(arg: str = "sign") -> ConfigDict:
    return baselines.lossfree_tiny(arg or "sign")
