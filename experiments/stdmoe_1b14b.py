"""Standard MoE 1b14b, the twin of emo_1b14b, 130 B or 1 T tokens.

emo train --config experiments/stdmoe_1b14b.py:130b --config.data.store=STORE --workdir WORKDIR

Hardware and hours: the reference trained on 128 H100 at 20.4k tokens/s per GPU (SPEC 12), which is
14 hours for 130b and 106 for 1t. Not yet run with this code at full size.
"""

from ml_collections import ConfigDict

from emo_jax.config import presets


def get_config(arg: str = "130b") -> ConfigDict:
    return presets.stdmoe_1b14b(arg or "130b")
