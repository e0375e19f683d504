"""Knobs of experiments/control_tiny.py: each changes pools only, and differs from the others."""

import pytest

from emo_jax.config import from_config_dict, presets, to_dict
from emo_jax.config.control import KNOBS, control_tiny
from emo_jax.errors import ConfigError


def test_each_knob_changes_pools_only():
    base, found = to_dict(from_config_dict(presets.modularity_tiny())), []
    for knob in KNOBS:
        config = to_dict(from_config_dict(control_tiny(knob)))
        assert config["name"] == f"control_tiny_{knob}"
        pool = config["moe"].pop("pool")
        assert pool not in found
        found.append(pool)
        expected = base | {"name": config["name"]}
        expected["moe"] = {k: v for k, v in base["moe"].items() if k != "pool"}
        assert config == expected
    assert found[0] == base["moe"]["pool"]


def test_an_unknown_knob():
    with pytest.raises(ConfigError, match="'loud': must be one of emo, standard, sizes-4-16"):
        control_tiny("loud")
