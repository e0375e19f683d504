r"""Training only the new experts of an emo_tiny run on new data; the argument is how many.

emo extend RUN --add 8 --layout emo --output EXTENDED
emo import EXTENDED --workdir IMPORTED
emo train --config experiments/extension_tiny.py:8 --config.data.store=STORE --workdir DIR \
    --init-from IMPORTED@0 --init weights

Everything but the new experts stays unchanged, to the last bit.

Hardware and hours: two CPU cores, minutes.
"""

from ml_collections import ConfigDict

from emo_jax.config import presets


def get_config(arg: str = "8") -> ConfigDict:
    return presets.extension_tiny(arg or "8")
