"""The tree of a model's parameters: its leaves, and their shapes.

Legend: V' padded vocabulary rows, L layers, D width, H heads, Dh head_dim, E experts (the shared
ones last), F hidden size of an expert or of a dense model.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from emo_jax.config import Config
from emo_jax.errors import UsageError
from emo_jax.files.trees import unflatten

Shape = tuple[int, ...]
# Paths of the leaves of a mixture of experts.
ROUTER = "layers/mlp/router/kernel"
EXPERTS = ("layers/mlp/experts/gate", "layers/mlp/experts/up", "layers/mlp/experts/down")


def leaf_shapes(config: Config) -> dict[str, Shape]:
    """`{"layers/mlp/router/kernel": (L,D,E), …}`: every leaf of a model."""
    model, moe = config.model, config.moe
    V, L, D = model.padded_vocab_size, model.num_layers, model.embed_dim
    H, Dh = model.num_heads, model.head_dim
    mlp: dict[str, Shape]
    if moe is None:
        F = model.mlp_dim
        mlp = {"gate": (L, D, F), "up": (L, D, F), "down": (L, F, D)}
    else:
        E, F = moe.num_experts, moe.expert_dim
        mlp = {
            "router/kernel": (L, D, E),
            "experts/gate": (L, E, D, F),
            "experts/up": (L, E, D, F),
            "experts/down": (L, E, F, D),
        }
    return {
        "embed/embedding": (V, D),
        "layers/attention_norm/scale": (L, D),
        "layers/attention/query": (L, D, H, Dh),
        "layers/attention/key": (L, D, H, Dh),
        "layers/attention/value": (L, D, H, Dh),
        "layers/attention/out": (L, H, Dh, D),
        "layers/mlp_norm/scale": (L, D),
        **{f"layers/mlp/{name}": shape for name, shape in mlp.items()},
        "final_norm/scale": (D,),
        "lm_head/kernel": (D, V),
    }


def unit_axes(path: str) -> tuple[int, ...]:
    """The leading axes of a leaf that a Hugging Face folder takes apart: layers, and experts."""
    if "/experts/" in path:
        return (0, 1)
    return (0,) if path.startswith("layers/") else ()


def count_parameters(config: Config) -> tuple[int, int]:
    """(all, active for one token), at `vocab_size` rows: what a layout stores of the tree."""
    moe, model = config.moe, config.model
    padding = 2 * (model.padded_vocab_size - model.vocab_size) * model.embed_dim
    total = sum(math.prod(shape) for shape in leaf_shapes(config).values()) - padding
    if moe is None:
        return total, total
    there = [moe.experts_in(i) for i in range(model.num_layers)]
    one = 3 * model.embed_dim * moe.expert_dim
    # Of an expert that a layer does not have, arrays hold zeros and a column of the router.
    missing = moe.num_experts * len(there) - sum(there)
    total -= missing * (one + model.embed_dim)
    return total, total - (sum(there) - moe.top_k * len(there)) * one


def abstract_params(config: Config) -> dict[str, Any]:
    """The tree of a model's parameters as shapes and dtypes."""
    return unflatten(
        {
            path: jax.ShapeDtypeStruct(shape, np.dtype(np.float32))
            for path, shape in leaf_shapes(config).items()
        }
    )


def check_shapes(shapes: Mapping[str, Shape], config: Config) -> None:
    """Refuses parameters that are not those of `config`, naming the first leaf that differs."""
    expected = leaf_shapes(config)
    for path in sorted(expected.keys() ^ shapes.keys()):
        what = "missing" if path in expected else "not one of this model's"
        raise UsageError(f"parameters: {path} is {what}; were they made by config {config.name!r}?")
    for path, shape in expected.items():
        if shapes[path] != shape:
            raise UsageError(
                f"parameters: {path} has shape {shapes[path]}, config {config.name!r} says"
                f" {shape}; give the config that made them"
            )
