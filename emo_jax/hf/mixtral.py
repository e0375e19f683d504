"""The feed-forward of layout `mixtral`: Mixtral's names, and the fields of its config.json.

Mixtral (arXiv 2401.04088) has no shared expert, and the weights of a token's picks sum to 1.
Legend: D width, R experts, F their hidden size.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from emo_jax.config import Config, moe_of
from emo_jax.hf.leaf_blocks import LeafBlocks, Place
from emo_jax.hf.tensors import HfTensor

BLOCK = "block_sparse_moe"  # as files have it; `mlp` in the memory of transformers 5
PARTS = {"gate": "w1", "up": "w3", "down": "w2"}


def mixtral_tensors(at: LeafBlocks, config: Config, place: Place) -> Iterator[HfTensor]:
    """The feed-forward of a layer; matrices are [out,in]."""
    D, R, F = config.model.embed_dim, moe_of(config).num_experts, moe_of(config).expert_dim
    prefix, layer = f"{place.prefix}.{BLOCK}", place.layer
    yield at.block(
        f"{prefix}.gate.weight", (R, D), "layers/mlp/router/kernel", layer, axes=(0, 2, 1)
    )
    for e in range(R):
        for name, theirs in PARTS.items():
            yield at.block(
                f"{prefix}.experts.{e}.{theirs}.weight",
                (D, F) if name == "down" else (F, D),
                f"layers/mlp/experts/{name}",
                layer,
                slice(e, e + 1),
                axes=(0, 1, 3, 2),
            )


def mixtral_fields(config: Config) -> dict[str, Any]:
    """Fields of config.json."""
    moe = moe_of(config)
    return {
        "intermediate_size": moe.expert_dim,
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
    }


def mixtral_sections(hf: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Config sections."""
    return {
        "moe": {
            "expert_dim": hf["intermediate_size"],
            "num_experts": hf["num_local_experts"],
            "top_k": hf["num_experts_per_tok"],
            "num_shared_experts": 0,
            "normalize_picks": True,
        }
    }


def is_mixtral(config: Config) -> bool:
    """Whether a model has no shared expert, and softmax weights that sum to 1 over the picks.

    Nor any layer without experts.
    """
    moe = config.moe
    if moe is None or moe.gate != "softmax" or moe.score_bias != "none":
        return False
    if config.model.dense_layers:
        return False
    return moe.num_shared_experts == 0 and moe.normalize_picks
