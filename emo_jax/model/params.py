"""The parameter tree of a model: its leaves and their shapes.

Legend: V' padded vocabulary rows, L layers, D width, H heads, K heads of keys and values, Dh
head_dim, E experts (the shared ones last), F hidden size of an expert or of a dense model.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from emo_jax.config import Config, ModelConfig, MoeConfig
from emo_jax.errors import UsageError
from emo_jax.files.trees import STACKS, unflatten
from emo_jax.moe.experts import DOWN_AXES as EXPERT_DOWN_AXES
from emo_jax.moe.experts import GATE_UP_AXES

Params = dict[str, Any]  # nested dict of float32 arrays
Shape = tuple[int, ...]
# Logical axes of the matrices; those of experts are in `emo_jax.moe.experts`.
TABLE_AXES, HEAD_AXES = ("vocab", "embed"), ("embed", "vocab")
PROJECT_AXES, OUT_AXES = ("embed", "heads", None), ("heads", None, "embed")
KV_AXES = ("embed", "kv_heads", None)
UP_AXES, DOWN_AXES = ("embed", "mlp"), ("mlp", "embed")
# Layers are stacked, see `transformer`: those of `model.dense_layers` by themselves, as they have
# other leaves.
DENSE_LAYERS, LAYERS = STACKS
# Paths of the mixture-of-experts leaves.
ROUTER = "layers/mlp/router/kernel"
EXPERTS = ("layers/mlp/experts/gate", "layers/mlp/experts/up", "layers/mlp/experts/down")
# What the step sets by itself: no gradient, no optimizer.
SCORE_BIAS, FAVOUR = "layers/mlp/router/bias", "layers/mlp/router/favour"


class Leaf(NamedTuple):
    """A float32 parameter: its shape, and the logical axes `parallel.mesh` uses to place it."""

    shape: Shape
    axes: tuple[str | None, ...]


def model_leaves(config: Config) -> dict[str, Leaf]:
    """`{"layers/mlp/router/kernel": Leaf((L,D,E), …), …}`: every parameter of a model.

    The modules of `emo_jax.model` create these parameters, and files store them under these names.
    """
    model, moe = config.model, config.moe
    V, D = model.padded_vocab_size, model.embed_dim
    H, K, Dh = model.num_heads, model.kv_heads, model.head_dim
    attention = {
        "attention_norm/scale": Leaf((D,), (None,)),
        "attention/query": Leaf((D, H, Dh), PROJECT_AXES),
        "attention/key": Leaf((D, K, Dh), KV_AXES),
        "attention/value": Leaf((D, K, Dh), KV_AXES),
        "attention/out": Leaf((H, Dh, D), OUT_AXES),
        "mlp_norm/scale": Leaf((D,), (None,)),
    }

    def stacked(name: str, number: int, mlp: dict[str, Leaf]) -> dict[str, Leaf]:
        layer = attention | {f"mlp/{part}": leaf for part, leaf in mlp.items()}
        return {
            f"{name}/{part}": Leaf((number, *leaf.shape), ("layers", *leaf.axes))
            for part, leaf in layer.items()
        }

    dense = _dense_mlp(model)
    first = stacked(DENSE_LAYERS, model.dense_layers, dense) if model.dense_layers else {}
    mlp = dense if moe is None else _moe_mlp(model, moe)
    return {
        "embed/embedding": Leaf((V, D), TABLE_AXES),
        **first,
        **stacked(LAYERS, model.stacked_layers, mlp),
        "final_norm/scale": Leaf((D,), (None,)),
        "lm_head/kernel": Leaf((D, V), HEAD_AXES),
    }


def _dense_mlp(model: ModelConfig) -> dict[str, Leaf]:
    D, F = model.embed_dim, model.mlp_dim
    return {
        "gate": Leaf((D, F), UP_AXES),
        "up": Leaf((D, F), UP_AXES),
        "down": Leaf((F, D), DOWN_AXES),
    }


def _moe_mlp(model: ModelConfig, moe: MoeConfig) -> dict[str, Leaf]:
    D, E, F = model.embed_dim, moe.num_experts, moe.expert_dim
    mlp = {
        "router/kernel": Leaf((D, E), ("embed", None)),
        "experts/gate": Leaf((E, D, F), GATE_UP_AXES),
        "experts/up": Leaf((E, D, F), GATE_UP_AXES),
        "experts/down": Leaf((E, F, D), EXPERT_DOWN_AXES),
    }
    if moe.score_bias != "none":
        mlp["router/bias"] = Leaf((E,), (None,))
    if moe.pool.kind == "label_learned":
        shape = (max(len(moe.pool.labels), 1), moe.num_routed_experts)
        mlp["router/favour"] = Leaf(shape, (None, None))
    return mlp


def is_stacked(path: str) -> bool:
    """Whether the first axis of a leaf counts layers."""
    return path.split("/", 1)[0] in STACKS


def within(leaves: Mapping[str, Leaf], name: str) -> dict[str, Leaf]:
    """The leaves below `name`, with that prefix removed from their paths."""
    start = f"{name}/"
    return {path.removeprefix(start): x for path, x in leaves.items() if path.startswith(start)}


def leaf_shapes(config: Config) -> dict[str, Shape]:
    """The shape of every parameter of a model, by path."""
    return {path: leaf.shape for path, leaf in model_leaves(config).items()}


def unit_axes(path: str) -> tuple[int, ...]:
    """The leading axes of a leaf that a Hugging Face folder splits up: layers and experts."""
    if "/experts/" in path:
        return (0, 1)
    return (0,) if is_stacked(path) else ()


def count_parameters(config: Config) -> tuple[int, int]:
    """Counts (all, active per token) with `vocab_size` rows, which is what a layout stores."""
    moe, model = config.moe, config.model
    padding = 2 * (model.padded_vocab_size - model.vocab_size) * model.embed_dim
    total = sum(math.prod(shape) for shape in leaf_shapes(config).values()) - padding
    if moe is None:
        return total, total
    there = [moe.experts_in(i) for i in range(model.stacked_layers)]
    one = 3 * model.embed_dim * moe.expert_dim
    # For an expert a layer lacks, the arrays contain zeros and a column of the router.
    missing = moe.num_experts * len(there) - sum(there)
    total -= missing * (one + model.embed_dim)
    return total, total - (sum(there) - moe.top_k * len(there)) * one


def abstract_params(config: Config) -> dict[str, Any]:
    """The parameter tree of a model as shapes and dtypes."""
    return unflatten(
        {
            path: jax.ShapeDtypeStruct(shape, np.dtype(np.float32))
            for path, shape in leaf_shapes(config).items()
        }
    )


def check_shapes(shapes: Mapping[str, Shape], config: Config) -> None:
    """Rejects parameters that do not match `config`, naming the first leaf that differs."""
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
