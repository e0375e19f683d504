"""The feed-forward of layout `glm4_moe`: sigmoid gates with a score bias, for stock transformers.

GLM-4.5's architecture (arXiv 2508.06471) has DeepSeek-V3's router, and attention like Llama's;
`deepseek_v3` itself shares one rotated key among all heads, which no model of ours does. Legend: D
width, R routed experts, s shared ones, F hidden size of an expert.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from emo_jax.config import Config, moe_of
from emo_jax.errors import UsageError
from emo_jax.hf.dense_first import dense_fields, dense_section
from emo_jax.hf.leaf_blocks import LeafBlocks, Place, experts, router
from emo_jax.hf.tensors import HfTensor
from emo_jax.model.params import SCORE_BIAS

# One group of experts, no further head; see `Layout.fixed`.
FIXED = {
    "attention_bias": False,
    "n_group": 1,
    "num_nextn_predict_layers": 0,
    "partial_rotary_factor": 1.0,
    "routed_scaling_factor": 1.0,
    "topk_group": 1,
    "use_qk_norm": False,
}
_RATE = 0.001  # DeepSeek-V3's, for a folder that does not say how its bias came about


def glm4_moe_tensors(at: LeafBlocks, config: Config, place: Place) -> Iterator[HfTensor]:
    """The mixture of experts of a layer.

    Shared experts are joined into one; without any, and without a bias, those written are zero.
    """
    moe, D, layer = moe_of(config), config.model.embed_dim, place.layer
    R, s, F = moe.num_routed_experts, moe.num_shared_experts, moe.expert_dim
    yield router(at, config, place, R)
    yield from experts(at, config, place, range(R))
    name = f"{place.prefix}.mlp.gate.e_score_correction_bias"
    if moe.score_bias == "none":
        yield HfTensor(name, (R,))
    else:
        yield at.block(name, (R,), SCORE_BIAS, layer, slice(R))
    width = max(s, 1) * F
    for part, shape in (("gate", (width, D)), ("up", (width, D)), ("down", (D, width))):
        name = f"{place.prefix}.mlp.shared_experts.{part}_proj.weight"
        if s == 0:
            yield HfTensor(name, shape)
            continue
        axes = (0, 3, 1, 2) if part == "down" else (0, 1, 3, 2)
        leaf = f"layers/mlp/experts/{part}"
        yield at.block(name, shape, leaf, layer, slice(R, R + s), axes=axes)


def glm4_moe_fields(config: Config) -> dict[str, Any]:
    """Fields of config.json."""
    moe = moe_of(config)
    return {
        "moe_intermediate_size": moe.expert_dim,
        "n_routed_experts": moe.num_routed_experts,
        "n_shared_experts": max(moe.num_shared_experts, 1),
        "num_experts_per_tok": moe.num_routed_picks,
        "norm_topk_prob": moe.normalize_picks,
        "first_k_dense_replace": config.model.dense_layers,
        **dense_fields(config),
    }


def glm4_moe_sections(hf: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Config sections; a folder that is not ours is taken for one that balances by `sign`."""
    shared = hf["n_shared_experts"]
    return {
        "model": dense_section(hf, hf["first_k_dense_replace"]),
        "moe": {
            "expert_dim": hf["moe_intermediate_size"],
            "num_experts": hf["n_routed_experts"] + shared,
            "top_k": hf["num_experts_per_tok"] + shared,
            "num_shared_experts": shared,
            "normalize_picks": hf["norm_topk_prob"],
            "gate": "sigmoid",
            "score_bias": "sign",
            "bias_rate": _RATE,
        },
    }


def check_gate(layout: str, config: Config) -> None:
    """Refuses a layout that makes other scores of the router's logits than a model.

    Raises:
      UsageError: says which layout does, or what none of them has.
    """
    moe, of_sigmoid = moe_of(config), layout == "glm4_moe"
    if (moe.gate == "sigmoid") != of_sigmoid:
        raise UsageError(
            f"layout {layout!r} has a {'sigmoid' if of_sigmoid else 'softmax'} for the router, and"
            f" {config.name!r} has moe.gate = {moe.gate!r}; give layout"
            f" {'qwen2_moe or emo' if of_sigmoid else 'glm4_moe'}, or none"
        )
    if moe.score_bias != "none" and not of_sigmoid:
        raise UsageError(
            f"layout {layout!r} has no bias on a softmax's scores, and {config.name!r} has"
            f" moe.score_bias = {moe.score_bias!r}: no layout is the same function (with moe.gate ="
            " 'sigmoid' glm4_moe would be); use the run itself"
        )
    if of_sigmoid and moe.num_routed_experts < 2:
        raise UsageError(
            f"layout 'glm4_moe' takes at least 2 routed experts, and {config.name!r} has 1"
        )
