r"""A dense model, split into experts and trained on (LLaMA-MoE): `dense`, then `standard` or `emo`.

emo train --config experiments/split_tiny.py:dense --config.data.store=STORE --workdir DENSE
emo upcycle DENSE --method split-importance --data STORE --experts 16 --top-k 4 --workdir SPLIT
emo train --config experiments/split_tiny.py:emo --config.data.store=STORE --workdir DIR \
    --init-from SPLIT@0 --init weights

Hardware: two CPU cores.
"""

from ml_collections import ConfigDict

from emo_jax.config import shapes


def get_config(arg: str = "emo") -> ConfigDict:
    return shapes.split_tiny(arg or "emo")
