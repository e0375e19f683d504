r"""FlexOlmo (arXiv 2507.07024) in minutes: a dense public model, an expert per domain beside it.

emo train --config experiments/flexolmo_tiny.py:seed --config.data.store=STORE \
    --config.data.domains=encyclopedia,politics --workdir runs/public
emo branch runs/public --method flexolmo --data STORE --domains law,medicine --output branches
emo train --config experiments/flexolmo_tiny.py:branch:3.69m:2 --config.data.store=STORE \
    --config.data.domains=law --workdir branches/law
emo mix branches/law branches/medicine --output runs/flexolmo

That is the model. The stage `mixed` trains its router alone, as the paper's section 3.3.3 does on
public texts like those of the domains:

emo train --config experiments/flexolmo_tiny.py:mixed:3.69m:2 --config.data.store=STORE \
    --config.data.domains=encyclopedia,politics --workdir runs/routed \
    --init-from runs/flexolmo@0 --init weights

The argument: branch_stages.py. Of the FLOPs, the public model gets 1/2, all branches together 7/16
and the router 1/16. More: docs/baselines_merging.md.

Hardware and hours: two CPU cores, minutes.
"""

import branch_stages
from ml_collections import ConfigDict

SHARES = {"seed": 1 / 2, "branch": 7 / 16, "mixed": 1 / 16}
FROZEN = ("embeddings", "attention", "norms")


def get_config(arg: str = "seed") -> ConfigDict:
    stage = branch_stages.parse(arg)
    config = branch_stages.dense(f"flexolmo_tiny_{stage.name}")
    share = SHARES[stage.name]
    if stage.name == "seed":
        return branch_stages.with_steps(config, stage, share)
    if stage.name == "branch":
        share /= stage.domains
        config = branch_stages.of_experts(config, 2)
        config.moe.top_k = 2
        config.moe.pool.forced_experts = 1
        config.optimizer.frozen = (*FROZEN, "old_experts")
    else:
        config = branch_stages.of_experts(config, stage.domains + 1)  # the public one is one too
        config.moe.top_k = min(4, stage.domains + 1)
        config.optimizer.frozen = (*FROZEN, "routed")
    config.optimizer.weight_decay = 0.0
    config.moe.load_balance_weight = 0.0
    return branch_stages.with_steps(config, stage, share)
