"""Knobs for how modular a model becomes, as `ConfigDict`s at the size of docs/results.md."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from emo_jax.config import presets
from emo_jax.errors import ConfigError

# What each changes in `moe.pool` of `presets.modularity_tiny`, whose pools have 4..64 experts.
KNOBS: Mapping[str, Mapping[str, Any]] = {
    "emo": {},
    "standard": {"kind": "none", "min_size": 0, "max_size": 0, "eval_size": 0},
    # Sizes
    "sizes-4-16": {"max_size": 16},
    "sizes-4-32": {"max_size": 32},
    "sizes-16-64": {"min_size": 16},
    "small": {"size_power": 2.0},
    "large": {"size_power": 0.5},
    "decay": {"decay_steps": 225},
    # Who shares a pool
    "span-16": {"scope": "span", "span": 16},
    "span-64": {"scope": "span", "span": 64},
    "span-256": {"scope": "span", "span": 256},
    "domain": {"scope": "domain"},
    "window": {"scope": "window"},
    # How much they must agree
    "penalty-1": {"penalty": 1.0},
    "penalty-2": {"penalty": 2.0},
    "penalty-4": {"penalty": 4.0},
}


def control_tiny(arg: str = "emo") -> ConfigDict:
    """`modularity_tiny` with one knob of its pools turned: arg is one of `KNOBS`."""
    if arg not in KNOBS:
        raise ConfigError(f"config argument {arg!r}: must be one of {', '.join(KNOBS)}")
    config = presets.modularity_tiny()
    config.name = f"control_tiny_{arg}"
    config.moe.pool.update(dict(KNOBS[arg]))
    return config
