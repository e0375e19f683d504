"""Stages of one model at the size of docs/results.md, at the training FLOPs of an EMO run.

The argument of btx_tiny.py and flexolmo_tiny.py is STAGE[:TOKENS[:DOMAINS]]: `seed`, `branch` or
`mixed`; the tokens of the EMO run whose FLOPs all stages together spend, such as 7.5m (3.69m: 450
steps); and the number of domains (12), over which the branches' FLOPs are spread evenly. That of
split_tiny.py is STAGE[:TOKENS]. FLOPs are those of SPEC 1.5, which count a frozen weight as a
trained one.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from emo_jax.config import MoeConfig, from_config_dict, presets
from emo_jax.errors import ConfigError
from emo_jax.training.flops import flops_per_token

TOKENS, DOMAINS = 450 * 16 * 512, 12
STAGES = ("seed", "branch", "mixed")


class Stage(NamedTuple):
    """What the argument says."""

    name: str
    tokens: int  # of the EMO run
    domains: int


def parse(arg: str, stages: Sequence[str] = STAGES) -> Stage:
    """Reads the argument; its first stage is the default."""
    name, *rest = (arg or stages[0]).split(":")
    found = re.fullmatch(r"(\d+(?:\.\d+)?)m", rest[0]) if rest else None
    tokens = round(float(found[1]) * 1e6) if found else TOKENS
    domains = int(rest[1]) if len(rest) == 2 and rest[1].isdecimal() else DOMAINS
    good = name in stages and (not rest or found) and (len(rest) < 2 or rest[1].isdecimal())
    branching = "branch" in stages
    if not good or len(rest) > 1 + branching or not domains or not tokens:
        raise ConfigError(
            f"config argument {arg!r}: must be {', '.join(stages)}, and may go on with the tokens"
            + (
                " and the domains, as in branch:7.5m:12"
                if branching
                else f", as in {stages[0]}:7.5m"
            )
        )
    return Stage(name, tokens, domains)


def dense(name: str) -> ConfigDict:
    """A dense model as wide as what a token uses of EMO's, trained as EMO is."""
    config = presets.modularity_tiny("emo")
    config.name = name
    config.model.mlp_dim = config.moe.top_k * config.moe.expert_dim
    config.train.eval_keep = ()
    config.moe = None
    return config


def of_experts(config: ConfigDict, count: int) -> ConfigDict:
    """A mixture of experts as wide as the dense model's feed-forward, none of them shared."""
    moe = MoeConfig(
        num_experts=count, top_k=1, num_shared_experts=0, expert_dim=config.model.mlp_dim
    )
    config = config.copy_and_resolve_references()
    config.model.mlp_dim = 0
    with config.unlocked():
        config.moe = ConfigDict(dataclasses.asdict(moe), convert_dict=True)
    return config


def with_steps(config: ConfigDict, stage: Stage, share: float) -> ConfigDict:
    """The config with the steps that a share of the EMO run's FLOPs pays for."""
    emo = from_config_dict(presets.modularity_tiny("emo"))
    flops = share * stage.tokens * flops_per_token(emo)
    per_step = flops_per_token(from_config_dict(config))
    per_step *= config.train.batch_size * config.data.seq_len
    whole = config.train.steps
    config.train.steps = max(1, int(flops / per_step))
    # Warm-up keeps its share of the run.
    warmup = config.optimizer.warmup_steps * config.train.steps // whole
    config.optimizer.warmup_steps = min(warmup, config.optimizer.warmup_steps)
    return config
