r"""A dense model, split into experts and trained on (LLaMA-MoE): `dense`, then `standard` or `emo`.

emo train --config experiments/split_tiny.py:dense --config.data.store=STORE --workdir DENSE
emo upcycle DENSE --method split-importance --data STORE --experts 16 --top-k 4 --workdir SPLIT
emo train --config experiments/split_tiny.py:emo --config.data.store=STORE --workdir DIR \
    --init-from SPLIT@0 --init weights

The argument: branch_stages.py. Half of the FLOPs are the dense model's, half those of its split.
More: docs/baselines_upcycling.md. Hardware: two CPU cores.
"""

import branch_stages
from ml_collections import ConfigDict

from emo_jax.config import baselines

SHARE = 1 / 2


def get_config(arg: str = "emo") -> ConfigDict:
    stage = branch_stages.parse(arg or "emo", baselines.SPLITS)
    return branch_stages.with_steps(baselines.split_tiny(stage.name), stage, SHARE)
