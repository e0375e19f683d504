"""Pools given by documents' domains: the upper bound that EMO claims to do without.

emo train --config experiments/labels_tiny.py:learned --config.data.store=STORE --workdir WORKDIR

Argument: table (the default), learned, soft. Every document of the store needs a domain; labels act
in training only: docs/baselines.md. Hardware and hours: two CPU cores, about a quarter of an hour
for 3.7 M tokens.
"""

from ml_collections import ConfigDict

from emo_jax.config import baselines


def get_config(arg: str = "table") -> ConfigDict:
    return baselines.labels_tiny(arg or "table")
