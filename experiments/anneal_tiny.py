r"""Anneal of a tiny run of 200 steps: 60 more steps, learning rate 4e-4 to 0.

emo train --config experiments/anneal_tiny.py:emo --config.data.store=STORE \
    --workdir WORKDIR --init-from RUN@200

RUN is a workdir of emo_tiny.py or, for the arguments std and std_to_emo, of stdmoe_tiny.py.

Hardware and hours: two CPU cores, a minute. Held-out loss on quickstart's store: 4.813 for
stdmoe_tiny, then 4.753 with std and 4.780 with std_to_emo.
"""

from ml_collections import ConfigDict

from emo_jax.config import presets


def get_config(arg: str = "emo") -> ConfigDict:
    return presets.anneal_tiny(arg or "emo")
