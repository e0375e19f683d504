"""Variants of the router, as fields of `moe` in `tiny.tiny_config`; shared by tests."""

import dataclasses

from tiny import tiny_config

from emo_jax.config import Config, PoolConfig

LABELS = dict(size=3, labels=("a", "b", "c"))
SIGMOID = dict(gate="sigmoid", normalize_picks=True, load_balance_weight=0.0)
SWITCH = dict(capacity_factor=0.75, input_jitter=0.3)
LEARNED = PoolConfig(kind="label_learned", label_rate=0.3, **LABELS)
UNIFORM = PoolConfig(kind="uniform", min_size=2, max_size=5)
VARIANTS = {
    "all": dict(SIGMOID | SWITCH, score_bias="sign", bias_rate=0.01, pool=LEARNED),
    "switch": SWITCH,
    "sign": dict(SIGMOID, score_bias="sign", bias_rate=0.01),
    "quantile": dict(SIGMOID, score_bias="quantile"),
    "table": dict(pool=PoolConfig(kind="label_table", **LABELS)),
    "soft": dict(pool=PoolConfig(kind="label_bias", label_bias=1.0, **LABELS)),
    "learned": dict(pool=LEARNED),
    "shared": dict(
        num_shared_experts=3,
        shared_picks=2,
        top_k=4,
        shared_balance_weight=0.1,
        pool=UNIFORM,
    ),
    "ghosts": dict(pool=UNIFORM, ghosts="usage"),
    "drawn ghosts": dict(pool=UNIFORM, ghosts="random", ghost_sample=2),
}


def variant_config(variant: str | dict, *, micro_batches: int = 1) -> Config:
    config = tiny_config(pool=PoolConfig(), micro_batches=micro_batches)
    fields = VARIANTS[variant] if isinstance(variant, str) else variant
    return dataclasses.replace(config, moe=dataclasses.replace(config.moe, **fields))
