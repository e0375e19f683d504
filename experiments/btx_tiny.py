r"""Branch-Train-MiX (arXiv 2403.07816) in minutes: a dense seed, its branches, their mixture.

emo train --config experiments/btx_tiny.py:seed --config.data.store=STORE --workdir runs/seed
emo train --config experiments/btx_tiny.py:branch --config.data.store=STORE \
    --config.data.domains=law --workdir branches/law --init-from runs/seed --init weights
emo mix branches/* --with-seed runs/seed --output runs/mixed
emo train --config experiments/btx_tiny.py:mixed --config.data.store=STORE --workdir runs/btx \
    --config.moe.num_experts=13 --init-from runs/mixed@0 --init weights

The argument: branch_stages.py. Of the FLOPs, the seed gets 1/2, all branches together 3/8 and the
mixture 1/8. In the paper the seed is Llama 2, the branches see 453 B tokens and the mixture 80 B,
with two experts each. More: docs/baselines_merging.md.

Hardware and hours: two CPU cores, minutes.
"""

import branch_stages
from ml_collections import ConfigDict

SHARES = {"seed": 1 / 2, "branch": 3 / 8, "mixed": 1 / 8}


def get_config(arg: str = "seed") -> ConfigDict:
    stage = branch_stages.parse(arg)
    config = branch_stages.dense(f"btx_tiny_{stage.name}")
    share = SHARES[stage.name]
    if stage.name == "branch":
        share /= stage.domains
    if stage.name == "mixed":
        config = branch_stages.of_experts(config, stage.domains + 1)  # the seed is one too
        config.moe.update(
            {
                "top_k": 2,
                "normalize_picks": True,
                "load_balance_weight": 0.01 * config.model.num_layers,
                "router_z_weight": 0.0,
            }
        )
    return branch_stages.with_steps(config, stage, share)
