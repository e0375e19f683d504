"""Knobs for how modular EMO becomes: one field of `moe.pool` changed at a time (docs/control.md).

emo train --config experiments/control_tiny.py:span-64 --config.data.store=STORE --workdir DIR

Argument: emo, standard, sizes-4-16, sizes-4-32, sizes-16-64, small, large, decay, span-16, span-64,
span-256, domain, window, penalty-1, penalty-2, penalty-4.

Hardware and hours: two CPU cores, a quarter of an hour each.
"""

from ml_collections import ConfigDict

from emo_jax.config import control


def get_config(arg: str = "emo") -> ConfigDict:
    return control.control_tiny(arg or "emo")
