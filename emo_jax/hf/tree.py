"""The parameter tree that is exported and imported: its leaves, their shapes, and reading blocks.

Legend: V' padded vocabulary rows, L layers, D width, H heads, Dh head_dim, E experts (the shared
ones last), F expert hidden.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from emo_jax.config import Config
from emo_jax.errors import UsageError

Shape = tuple[int, ...]


def leaf_shapes(config: Config) -> dict[str, Shape]:
    """`{"layers/mlp/router/kernel": (L,D,E), …}`: every leaf of a mixture-of-experts model."""
    model, moe = config.model, moe_of(config)
    V, L, D = model.padded_vocab_size, model.num_layers, model.embed_dim
    H, Dh, E, F = model.num_heads, model.head_dim, moe.num_experts, moe.expert_dim
    return {
        "embed/embedding": (V, D),
        "layers/attention_norm/scale": (L, D),
        "layers/attention/query": (L, D, H, Dh),
        "layers/attention/key": (L, D, H, Dh),
        "layers/attention/value": (L, D, H, Dh),
        "layers/attention/out": (L, H, Dh, D),
        "layers/mlp_norm/scale": (L, D),
        "layers/mlp/router/kernel": (L, D, E),
        "layers/mlp/experts/gate": (L, E, D, F),
        "layers/mlp/experts/up": (L, E, D, F),
        "layers/mlp/experts/down": (L, E, F, D),
        "final_norm/scale": (D,),
        "lm_head/kernel": (D, V),
    }


def moe_of(config: Config) -> Any:
    """The section `moe`, or a refusal: a dense model has no Hugging Face layout here."""
    if config.moe is None:
        raise UsageError(
            f"config {config.name!r} is dense (moe = None): only mixture-of-experts models can be "
            "exported, as layout qwen2_moe or emo"
        )
    return config.moe


def count_parameters(config: Config) -> tuple[int, int]:
    """(all, active for one token), at `vocab_size` rows: what a layout stores of the tree."""
    moe, model = moe_of(config), config.model
    padding = 2 * (model.padded_vocab_size - model.vocab_size) * model.embed_dim
    total = sum(math.prod(shape) for shape in leaf_shapes(config).values()) - padding
    unused = model.num_layers * (moe.num_experts - moe.top_k)
    return total, total - unused * 3 * model.embed_dim * moe.expert_dim


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dict → `{"embed/embedding": leaf, …}`."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            out.update({f"{key}/{name}": leaf for name, leaf in flatten(value).items()})
        else:
            out[key] = value
    return out


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = leaf
    return tree


def check_leaves(leaves: Mapping[str, Any], config: Config) -> None:
    """Refuses parameters that are not those of `config`, naming the first leaf that differs."""
    expected = leaf_shapes(config)
    for path in sorted(expected.keys() ^ leaves.keys()):
        what = "missing" if path in expected else "not one of this model's"
        raise UsageError(f"parameters: {path} is {what}; were they made by config {config.name!r}?")
    for path, shape in expected.items():
        if tuple(leaves[path].shape) != shape:
            raise UsageError(
                f"parameters: {path} has shape {tuple(leaves[path].shape)}, config "
                f"{config.name!r} says {shape}; give the config that made them"
            )


def read_block(leaf: Any, block: tuple[slice, ...]) -> np.ndarray:
    """`leaf[block]` as float32 on the host.

    A JAX array is read shard by shard: indexing it as a whole would gather a leaf that is sharded
    along the indexed axis onto every device, and compile once for each block.
    """
    shards = getattr(leaf, "addressable_shards", None)
    if shards is None:
        return np.asarray(leaf[block], np.float32)
    if not leaf.is_fully_addressable:
        raise UsageError(
            "parameters: an array has parts on other hosts; restore the checkpoint in one process "
            "and export there"
        )
    out = np.empty([part.stop - part.start for part in block], np.float32)
    for shard in shards:
        if shard.replica_id == 0:
            _copy_overlap(shard, block, leaf.shape, out)
    return out


def _copy_overlap(shard: Any, block: tuple[slice, ...], shape: Shape, out: np.ndarray) -> None:
    """Copies the part of `block` that lies in one shard of a leaf into `out`."""
    import jax  # here: reading a NumPy tree needs no JAX

    inside, target = [], []
    for want, held, size in zip(block, shard.index, shape, strict=True):
        first, last, _ = held.indices(size)
        start, stop = max(want.start, first), min(want.stop, last)
        if start >= stop:
            return
        inside.append((start - first, stop - start))
        target.append(slice(start - want.start, stop - want.start))
    starts, sizes = zip(*inside, strict=True)
    # The starts are arguments of the compiled slice: one compilation for each shape of block.
    out[tuple(target)] = np.asarray(jax.lax.dynamic_slice(shard.data, starts, sizes))
