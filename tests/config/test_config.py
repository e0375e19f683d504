"""What a config refuses, and how it says so."""

import dataclasses
import json

import pytest
from runs import REPO

from emo_jax.config import (
    Config,
    MeshConfig,
    MoeConfig,
    PoolConfig,
    differences,
    from_config_dict,
    names,
    presets,
    to_dict,
)
from emo_jax.config.file import load_config
from emo_jax.errors import ConfigError, UsageError


def changed(preset=presets.emo_tiny, **fields) -> Config:
    """The config of a preset with `section__field=value`."""
    config = preset().to_dict()
    for name, value in fields.items():
        node = config
        *path, last = name.split("__")
        for part in path:
            node = node[part]
        node[last] = value
    return from_config_dict(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model__num_layer": 3},
            r"config\.model\.num_layer = 3: no such field; did you mean 'num_l",
        ),
        ({"model__num_layers": "3"}, r"config\.model\.num_layers = '3': must be int, not str"),
        ({"model__num_layers": True}, r"must be int, not bool"),
        ({"seed": 2**63}, r"config\.seed = 9223372036854775808: must be of 64 bits"),
        ({"model__num_layers": 0}, r"config\.model\.num_layers = 0: must be at least 1"),
        (
            {"model__attention": "windows"},
            r"one of \['document', 'window'\]; did you mean 'window'",
        ),
        ({"model__head_dim": 7}, r"config\.model\.head_dim = 7: must be even"),
        ({"model__num_kv_heads": 3}, r"num_kv_heads = 3: must be 0, or a divisor of .* = 4"),
        ({"model__num_kv_heads": 8}, r"num_kv_heads = 8: must be 0, or a divisor of .* = 4"),
        ({"model__num_kv_heads": -1}, r"num_kv_heads = -1: must be 0, or a divisor of .* = 4"),
        ({"model__rope_theta": float("nan")}, r"must be finite"),
        ({"moe__top_k": 65}, r"config\.moe\.top_k = 65: must be 2\.\.64"),
        ({"moe__top_k": 1}, r"config\.moe\.top_k = 1: must be 2\.\.64"),
        ({"moe__pool__max_size": 65}, r"config\.moe\.pool\.max_size = 65"),
        ({"moe__pool__min_size": 2}, r"min_size = 2: must be 3\.\.64 \(moe\.top_k picks 3"),
        ({"moe__pool__size": 8}, r"pool\.size = 8: must be 0: pools of kind 'uniform' do not"),
        ({"moe__pool__eval_size": 2}, r"pool\.eval_size = 2"),
        ({"moe__pool__forced_experts": 64}, r"forced_experts = 64: must be 0\.\.63"),
        ({"moe__num_shared_experts": 64}, r"num_shared_experts = 64"),
        (
            {"mesh__expert": 3},
            r"config\.moe\.num_experts = 64: must be divisible by mesh\.expert = 3",
        ),
        ({"mesh__fsdp": 0}, r"config\.mesh\.fsdp = 0"),
        ({"train__micro_batches": 5}, r"micro_batches = 5: must be a divisor"),
        ({"train__steps": 10}, r"warmup_steps = 40: must be at most train\.steps = 10"),
        ({"optimizer__decay_steps": 5}, r"decay_steps = 5: must be 0: a cosine schedule does not"),
        ({"optimizer__schedule": "wsd"}, r"decay_steps = 0: must be at least 1 in a wsd"),
        (
            {"optimizer__schedule": "wsd", "optimizer__decay_steps": 161},
            r"decay_steps = 161: must be at most 160",
        ),
        ({"optimizer__schedule": "wds"}, r"one of \['cosine', 'wsd'\]; did you mean 'wsd'"),
        ({"optimizer__skip_window": 5}, r"skip_window = 5: must be 0 or at least 6"),
        ({"optimizer__skip_sigma": 0.0}, r"skip_sigma = 0\.0: must be above 0"),
        ({"moe__balance_scope": "steps"}, r"'step', 'document'\]; did you mean 'step'"),
        ({"init__expected_changes": ("moe.poll",)}, r"'moe\.poll': must be fields or sections"),
        ({"init__expected_changes": (3,)}, r"\(3,\): must be names, like \('a', 'b'\)"),
        ({"init__expected_changes": "moe"}, r"'moe': must be names"),
        ({"checkpoint__keep_every": 150}, r"keep_every = 150: must be 0 or a multiple"),
        ({"model__mlp_dim": 64}, r"config\.model\.mlp_dim = 64: must be 0 in a mixture"),
        ({"moe": None}, r"config\.model\.mlp_dim = 0: must be at least 1 in a dense model"),
        (
            {"data__raw_vocab_size": 32_000},
            r"config\.data\.raw_eos_id = 100257: must be 0\.\.31999 \(below data\.raw_vocab_size",
        ),
        ({"optimizer": 3}, r"config\.optimizer = 3: must be a section of fields"),
        (
            {"data__order": "olmo", "data__packing": "best_fit"},
            r"data\.packing = 'best_fit': must be 'cut' in the order 'olmo'",
        ),
        (
            {"data__order": "olmo", "data__seed": -5},
            r"data\.seed = -5: must be at least 0 in",
        ),
    ],
)
def test_refused_with_name_value_and_what_is_allowed(fields, message):
    with pytest.raises(ConfigError, match=message):
        changed(**fields)


def test_refusals_are_usage_errors():
    assert issubclass(ConfigError, UsageError) and ConfigError.exit_code == 2


def test_two_free_mesh_axes():
    with pytest.raises(ConfigError, match=r"cannot all be -1"):
        MeshConfig(replica=-1, fsdp=-1)


def test_missing_field():
    with pytest.raises(ConfigError, match=r"config\.model: missing"):
        from_config_dict({"name": "x"})


def test_pool_kinds():
    moe = dict(num_experts=16, top_k=3, expert_dim=4)
    for pool in (
        PoolConfig(),
        PoolConfig(kind="fixed", size=2),
        PoolConfig(kind="uniform", min_size=2, max_size=16),
        PoolConfig(kind="top_p", top_p=0.9, min_size=2, max_size=15),
    ):
        assert MoeConfig(**moe, pool=pool).num_routed_picks == 2
    for pool, field in (
        (PoolConfig(kind="fixed", size=1), "size"),
        (PoolConfig(kind="fixed", size=17), "size"),
        (PoolConfig(kind="uniform", min_size=5, max_size=4), "max_size"),
        (PoolConfig(kind="top_p", top_p=1.5, min_size=2, max_size=15), "top_p"),
        (PoolConfig(kind="none", size=3), "size"),
    ):
        with pytest.raises(ConfigError, match=rf"moe\.pool\.{field} "):
            MoeConfig(**moe, pool=pool)


def test_forced_experts_are_in_every_layer():
    """The last experts of a layer that has fewer do not exist: their probabilities would be NaN."""
    moe = dict(num_experts=16, top_k=3, expert_dim=4, experts_per_layer=(16, 8))
    pool = PoolConfig(kind="fixed", size=4, forced_experts=2)
    with pytest.raises(ConfigError, match=r"moe\.pool\.forced_experts = 2: must be 0 with"):
        MoeConfig(**moe, pool=pool)


def test_expected_changes_are_names_however_they_are_written(tmp_path):
    names = ("moe.pool", "train.steps")
    for value in (names, list(names), ("moe.pool, train.steps",)):
        config = changed(init__expected_changes=value)
        assert config.init.expected_changes == names
        assert from_config_dict(json.loads(json.dumps(to_dict(config)))) == config
    file = "experiments/emo_tiny.py"
    for text in ("moe.pool,train.steps", "('moe.pool', 'train.steps')"):
        override = f"--config.init.expected_changes={text}"
        assert load_config(str(REPO / file), [override]).init.expected_changes == names


def test_round_trip_and_differences():
    config = changed()
    assert from_config_dict(to_dict(config)) == config
    other = dataclasses.replace(config, seed=3)
    assert differences(other, config) == ["seed: 0 -> 3"]
    assert differences(config, config) == []


def test_sources_as_typed(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    typed = "~/web = 0.5, ~/math=0.25,date=2024/code=0.25@3"
    config = load_config(
        str(REPO / "experiments/emo_tiny.py"), [f"--config.data.sources={typed},a=1@0"]
    )
    assert [(one.store, one.weight, one.from_step) for one in config.data.sources] == [
        ("/home/me/web", 0.5, 0),
        ("/home/me/math", 0.25, 0),
        ("date=2024/code", 0.25, 3),
        ("a", 1.0, 0),
    ]


@pytest.mark.parametrize("name", ["store", "raw_base", "sources"])
def test_keys_in_a_url_are_refused_and_not_shown(name):
    value = "a/*.npy,s3://AKIA:HIDDEN@bucket/web"
    value = ({"store": value, "weight": 1.0},) if name == "sources" else value
    with pytest.raises(ConfigError, match=r"must not hold a user and password") as caught:
        changed(**{f"data__{name}": value})
    assert "HIDDEN" not in str(caught.value)


LONG = "x" * 100_000


@pytest.mark.parametrize(
    "override",
    [
        f"--config.{LONG}=1",
        f"--config.{LONG}.{LONG}=1",
        f"--config.model.{LONG}=1",
        f"--config.model.{LONG}",
        f"--config.model.num_layers={LONG}",
        f"--config.data.sources={{{LONG}",
        f"--{LONG}",
        "--config.model.num_layers=" + "\udced\udca0" * 200,
        f"--config.model.\n{LONG}",
    ],
)
def test_long_names_and_values_are_cut_in_the_message(override):
    with pytest.raises(UsageError) as caught:
        load_config(str(REPO / "experiments/emo_tiny.py"), [override])
    said = str(caught.value)
    assert len(said) < 600 and "\n" not in said
    said.encode()


def test_long_names_in_a_file_are_cut_in_the_message():
    values = to_dict(changed())
    values["optimizer"][LONG] = 1
    with pytest.raises(ConfigError) as caught:
        from_config_dict(values)
    assert len(str(caught.value)) < 600


def test_names_are_those_of_the_tables_that_have_them():
    from emo_jax.data.stream import SPLITS
    from emo_jax.hf.gguf_tensors import TYPES
    from emo_jax.hf.layouts import LAYOUTS
    from emo_jax.modules.finetune import FREEZE

    assert set(names.LAYOUT_NAMES) == set(LAYOUTS)
    moe = {name for name, layout in LAYOUTS.items() if not layout.dense}
    assert set(names.MOE_LAYOUT_NAMES) == moe
    assert set(names.GGUF_TYPES) == set(TYPES)
    assert set(names.FREEZES) == set(FREEZE)
    assert set(names.SPLIT_NAMES) == set(SPLITS)


def test_configs_of_earlier_versions_are_read():
    """A run, a checkpoint or a folder may hold them; on a command line they are unknown."""
    values = presets.emo_tiny().to_dict()
    values["moe"] |= {"token_parts": 4, "dispatch": "all_gather"}
    assert from_config_dict(values) == from_config_dict(presets.emo_tiny())
    with pytest.raises(ConfigError, match="token_parts"):
        load_config(str(REPO / "experiments/emo_tiny.py"), ["--config.moe.token_parts=1"])
