"""EMO 1b14b (13.57 B parameters, 1.49 B active), 130 B or 1 T tokens.

emo train --config experiments/emo_1b14b.py:130b --config.data.store=STORE --workdir WORKDIR

Hardware and hours: the reference trained on 128 H100 at about 19k tokens/s per GPU (SPEC 12):
15 hours for 130b. Not yet run with this code at full size.
"""

from ml_collections import ConfigDict

from emo_jax.config import presets


def get_config(arg: str = "130b") -> ConfigDict:
    return presets.emo_1b14b(arg or "130b")
