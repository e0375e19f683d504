"""What the fields of router variants refuse."""

import dataclasses

import pytest
from tiny import tiny_config

from emo_jax.config import MoeConfig, PoolConfig, from_config_dict, to_dict
from emo_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (dict(score_bias="sign", bias_rate=-0.1), "bias_rate = -0.1: must be at least 0"),
        (dict(bias_rate=0.1), "bias_rate = 0.1: must be 0: moe.score_bias = 'none' does not"),
        (dict(score_bias="quantile"), "'quantile': must be with moe.gate = 'sigmoid'"),
        (dict(score_bias="quantile", gate="sigmoid", top_k=8), "top_k = 8: must be such that"),
        (dict(capacity_factor=-1.0), "capacity_factor = -1.0: must be at least 0"),
        (dict(extension_experts=8), "extension_experts = 8: must be 0..7"),
        (dict(extension_detach_router=True), "must be False where moe.extension_experts = 0"),
        (dict(input_jitter=1.0), "input_jitter = 1.0: must be 0, or below 1"),
    ],
)
def test_of_the_router(fields, said):
    with pytest.raises(ConfigError, match=said):
        MoeConfig(**dict(num_experts=8, top_k=3, expert_dim=1) | fields)


def _pool(kind, **fields):
    pool = PoolConfig(kind=kind, **fields)
    return MoeConfig(num_experts=9, top_k=3, expert_dim=1, pool=pool)


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("label_table", {}, "pool.size = 0: must be 2..9"),
        ("label_table", dict(size=4, labels=("a", "a")), "labels = .*: must be different domains"),
        ("label_table", dict(size=4, labels=("a=0-3", "b")), "all with ranges of experts, or none"),
        ("label_table", dict(size=4, labels=("a=0-3",)), "pool.size = 4: must be 0: moe.pool.la"),
        ("label_table", dict(labels=("a=0-0",)), "labels = '0-0': must be at least 2 experts in 0"),
        ("label_table", dict(labels=("a=5-8",)), "labels = '5-8': must be at least 2 experts in 0"),
        ("label_table", dict(size=4, label_bias=1.0), "label_bias = 1.0: must be 0: pools of kind"),
        ("label_table", dict(size=4, forced_experts=1), "without moe.pool.forced_experts"),
        ("label_learned", dict(size=4), "label_rate = 0.0: must be above 0, at most 1"),
        (
            "label_learned",
            dict(label_rate=0.1, labels=("a=0-3",)),
            "labels = .*: must be names, as the table is learned",
        ),
        ("label_bias", dict(size=4), "label_bias = 0.0: must be above 0"),
        (
            "uniform",
            dict(min_size=2, max_size=4, labels=("a",)),
            "labels = .*: must be empty: pools",
        ),
    ],
)
def test_of_label_pools(kind, fields, said):
    with pytest.raises(ConfigError, match=said):
        _pool(kind, **fields)


def test_a_capacity_holds_a_row_of_the_shortest_window():
    config = tiny_config(pool=PoolConfig())  # 32 tokens, 2 picks of 7 experts
    moe = dataclasses.replace(config.moe, capacity_factor=0.11)
    assert dataclasses.replace(config, moe=moe).moe.capacity_factor == 0.11
    moe = dataclasses.replace(config.moe, capacity_factor=0.1)
    with pytest.raises(ConfigError, match=r"capacity_factor = 0\.1: must be such that an expert"):
        dataclasses.replace(config, moe=moe)


def test_names_of_domains_come_back_from_json():
    config = tiny_config(pool=PoolConfig(kind="label_table", size=3, labels=("lang es", "b.c")))
    assert from_config_dict(to_dict(config)) == config
