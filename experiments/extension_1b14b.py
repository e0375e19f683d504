r"""Training only the new experts of an emo_1b14b run on new data; the argument is how many.

emo extend RUN --add 16 --layout emo --output EXTENDED
emo import EXTENDED --workdir IMPORTED
emo train --config experiments/extension_1b14b.py:16 --config.data.store=STORE --workdir DIR \
    --init-from IMPORTED@0 --init weights

Everything but the new experts stays unchanged, to the last bit.

Hardware and hours: as emo_1b14b.py; 10 B tokens.
"""

from ml_collections import ConfigDict

from emo_jax.config import presets


def get_config(arg: str = "16") -> ConfigDict:
    return presets.extension_1b14b(arg or "16")
