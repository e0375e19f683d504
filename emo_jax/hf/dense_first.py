"""Layers without experts before the others (`model.dense_layers`), in fields of config.json."""

from collections.abc import Mapping
from typing import Any

from emo_jax.config import Config


def dense_fields(config: Config, name: str = "intermediate_size") -> dict[str, int]:
    """The field `name` with the hidden size of dense layers; none without such layers."""
    model = config.model
    return {name: model.mlp_dim} if model.dense_layers else {}


def dense_section(
    hf: Mapping[str, Any], layers: int, name: str = "intermediate_size"
) -> dict[str, Any]:
    """The same as fields of the config's section `model`, for so many dense layers."""
    return {"dense_layers": layers, "mlp_dim": hf[name]} if layers else {}
