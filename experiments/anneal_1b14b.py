r"""Anneal of a 1b14b run of 1 T tokens: 50 B more tokens, learning rate 4e-4 to 0 (SPEC 4).

emo train --config experiments/anneal_1b14b.py:emo --config.data.store=STORE \
    --workdir WORKDIR --init-from RUN@238419

RUN is a workdir of emo_1b14b.py:1t or, for the arguments std and std_to_emo, of stdmoe_1b14b.py:1t.
Optimizer, step and position in the data continue; std_to_emo turns on pools and document attention.

Hardware and hours: as emo_1b14b; 11 920 steps take 6 hours on 128 H100 at the reference's speed
(SPEC 12). Not yet run with this code at full size.
"""

from ml_collections import ConfigDict

from emo_jax.config import presets


def get_config(arg: str = "emo") -> ConfigDict:
    return presets.anneal_1b14b(arg or "emo")
