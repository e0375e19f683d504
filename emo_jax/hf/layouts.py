"""The Hugging Face layouts: the tensors of a folder, and the fields of its config.json.

A layout is one list of tensors and one table of config fields, each used for writing and reading.
Legend: V vocab_size, L layers, D width, H heads, K heads of keys and values, Dh head_dim, E
experts, s shared ones (the last), R = E - s routed, F hidden size of an expert or of a dense model.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from emo_jax.config import Config, moe_of
from emo_jax.errors import UsageError
from emo_jax.hf import glm4_moe
from emo_jax.hf.dense_first import dense_fields, dense_section
from emo_jax.hf.leaf_blocks import LeafBlocks, Place, dense, experts, places, router
from emo_jax.hf.mixtral import is_mixtral, mixtral_fields, mixtral_sections, mixtral_tensors
from emo_jax.hf.tensors import HfTensor
from emo_jax.model.params import DENSE_LAYERS, leaf_shapes


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way of laying out a model in a folder."""

    name: str
    dense: bool = False  # for dense models; otherwise for mixtures of experts
    model_type: str
    architecture: str
    attention_norm: str
    mlp_norm: str
    # Fields with one value in all of our models; when read back, they must still have it.
    fixed: Mapping[str, Any]
    # The field that states whether query, key and value have biases (in transformers they do if it
    # is missing). Ours are zeros, for engines that require them without checking the field.
    bias_field: str | None = None
    # Feed-forward fields, made from a config and converted back to fields of its sections.
    fused_experts: bool = False  # other tools may write all experts of a layer as one tensor
    mlp_counts: tuple[str, ...]  # the feed-forward fields that are integers
    mlp_flags: tuple[str, ...] = ()  # those that are true or false, the latter if absent
    mlp_lists: tuple[str, ...] = ()  # those that are lists of integers, empty if absent
    mlp_fields: Callable[[Config], dict[str, Any]]
    mlp_sections: Callable[[Mapping[str, Any]], dict[str, dict[str, Any]]]
    mlp_tensors: Callable[[LeafBlocks, Config, Place], Iterator[HfTensor]]

    def shape_fields(self, config: Config) -> dict[str, Any]:
        """Fields of config.json that follow from the model; a folder must have exactly these."""
        model = config.model
        fields = {
            "vocab_size": model.vocab_size,
            "hidden_size": model.embed_dim,
            "num_hidden_layers": model.num_layers,
            "num_attention_heads": model.num_heads,
            "num_key_value_heads": model.kv_heads,
            "rms_norm_eps": model.norm_eps,
            "rope_theta": model.rope_theta,
        }
        if model.head_dim * model.num_heads != model.embed_dim:
            fields["head_dim"] = model.head_dim
        return fields | self.mlp_fields(config)

    def tensors(self, config: Config, *, biases: bool = True) -> list[HfTensor]:
        """Every tensor of the folder, layer by layer.

        Args:
          config: config of the model.
          biases: False for a folder whose `bias_field` states that there are none.
        """
        model, at = config.model, LeafBlocks(leaf_shapes(config))
        V, D, Dh = model.vocab_size, model.embed_dim, model.head_dim
        H, K = model.num_heads, model.kv_heads
        out = [
            at.block(
                "model.embed_tokens.weight", (V, D), "embed/embedding", slice(V), is_vocab=True
            )
        ]
        for place in places(config):
            prefix, stack, layer = place.prefix, place.stack, place.layer
            norm = f"{prefix}.{self.attention_norm}.weight"
            out.append(at.block(norm, (D,), f"{stack}/attention_norm/scale", layer))
            for letter, name, heads in (("q", "query", H), ("k", "key", K), ("v", "value", K)):
                out.append(
                    at.block(
                        f"{prefix}.self_attn.{letter}_proj.weight",
                        (heads * Dh, D),
                        f"{stack}/attention/{name}",
                        layer,
                        axes=(0, 2, 3, 1),
                    )
                )
                if self.bias_field and biases:
                    bias = f"{prefix}.self_attn.{letter}_proj.bias"
                    out.append(HfTensor(bias, (heads * Dh,)))
            name = f"{prefix}.self_attn.o_proj.weight"
            out.append(
                at.block(name, (D, H * Dh), f"{stack}/attention/out", layer, axes=(0, 3, 1, 2))
            )
            norm = f"{prefix}.{self.mlp_norm}.weight"
            out.append(at.block(norm, (D,), f"{stack}/mlp_norm/scale", layer))
            mlp = dense if stack == DENSE_LAYERS else self.mlp_tensors
            out.extend(mlp(at, config, place))
        out.append(at.block("model.norm.weight", (D,), "final_norm/scale"))
        out.append(
            at.block(
                "lm_head.weight",
                (V, D),
                "lm_head/kernel",
                slice(None),
                slice(V),
                axes=(1, 0),
                is_vocab=True,
            )
        )
        return out


# --- emo: the released checkpoints ----------------------------------------------------------------


def _emo_tensors(at: LeafBlocks, config: Config, place: Place) -> Iterator[HfTensor]:
    """A layer's experts; shared ones come last, and the gate includes their unused rows."""
    moe = moe_of(config)
    there, s = moe.experts_in(place.number), moe.num_shared_experts
    yield router(at, config, place, there)
    shared = range(moe.num_experts - s, moe.num_experts)
    yield from experts(at, config, place, [*range(there - s), *shared])


def _emo_fields(config: Config) -> dict[str, Any]:
    moe, model = moe_of(config), config.model
    none, L = [0] * model.dense_layers, model.stacked_layers
    counts = [*moe.experts_per_layer] or ([moe.num_experts] * L if none else [])
    return {
        "intermediate_size": moe.expert_dim,
        "num_experts": min(moe.experts_per_layer, default=moe.num_experts),
        "num_experts_per_tok": moe.top_k,
        "num_shared_experts": moe.num_shared_experts,
        "norm_topk_prob": moe.normalize_picks,
        "num_experts_per_layer": [*none, *counts] or None,
        "num_shared_experts_per_layer": [*none, *[moe.num_shared_experts] * len(counts)] or None,
        "dense_intermediate_size": model.mlp_dim or None,
    }


def _emo_sections(hf: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    counts = hf.get("num_experts_per_layer") or []
    first = next((n for n, count in enumerate(counts) if count), 0)
    if first:
        counts = [] if len({*counts[first:]}) == 1 else counts[first:]
    return {
        "model": dense_section(hf, first, "dense_intermediate_size"),
        "moe": {
            "expert_dim": hf["intermediate_size"],
            "num_experts": max(counts, default=hf["num_experts"]),
            "experts_per_layer": counts,
            "top_k": hf["num_experts_per_tok"],
            "num_shared_experts": hf["num_shared_experts"],
            "normalize_picks": hf["norm_topk_prob"],
        },
    }


# --- qwen2_moe: the same function in an architecture that engines support -------------------------

# The shared expert's gate. Zeros would give sigmoid(gate·h) = 1/2, but llama.cpp computes sigmoid
# as silu(x)/x. With h normed, |gate·h| ≤ 2⁻⁴⁰ · D · rms(the norm's scale), by Cauchy-Schwarz; a
# float32 sigmoid is exactly 1/2 below 2⁻²⁵, that is for scales up to 16 if D is 2048 (beyond, it is
# off by a rounding). bfloat16 has the same range; float16 flushes it to zero, which also gives 1/2.
SHARED_GATE = 2.0**-40


def _qwen2_moe_tensors(at: LeafBlocks, config: Config, place: Place) -> Iterator[HfTensor]:
    """A layer's experts; shared ones are joined into one, with doubled output and gate 1/2.

    Both factors are exact in floating point. Without shared experts the one written is zero.
    """
    moe, D = moe_of(config), config.model.embed_dim
    R, s, F = moe.num_routed_experts, moe.num_shared_experts, moe.expert_dim
    prefix = f"{place.prefix}.mlp"
    yield router(at, config, place, R)
    yield from experts(at, config, place, range(R))
    width = max(s, 1) * F
    for name, shape in (("gate", (width, D)), ("up", (width, D)), ("down", (D, width))):
        tensor = f"{prefix}.shared_expert.{name}_proj.weight"
        if s == 0:
            yield HfTensor(tensor, shape)
        else:
            yield at.block(
                tensor,
                shape,
                f"layers/mlp/experts/{name}",
                place.layer,
                slice(R, R + s),
                axes=(0, 3, 1, 2) if name == "down" else (0, 1, 3, 2),
                scale=2.0 if name == "down" else 1.0,
            )
    yield HfTensor(f"{prefix}.shared_expert_gate.weight", (1, D), fill=SHARED_GATE)


def _qwen2_moe_fields(config: Config) -> dict[str, Any]:
    moe = moe_of(config)
    return {
        "moe_intermediate_size": moe.expert_dim,
        "shared_expert_intermediate_size": max(moe.num_shared_experts, 1) * moe.expert_dim,
        "num_experts": moe.num_routed_experts,
        "num_experts_per_tok": moe.num_routed_picks,
        "norm_topk_prob": moe.normalize_picks,
        "mlp_only_layers": [*range(config.model.dense_layers)],
        **dense_fields(config),
    }


def _qwen2_moe_sections(hf: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Config sections; without our own section, a shared width of s·F means s shared experts."""
    shared = hf["shared_expert_intermediate_size"] // hf["moe_intermediate_size"]
    return {
        "model": dense_section(hf, len(hf["mlp_only_layers"])),
        "moe": {
            "expert_dim": hf["moe_intermediate_size"],
            "num_experts": hf["num_experts"] + shared,
            "top_k": hf["num_experts_per_tok"] + shared,
            "num_shared_experts": shared,
            "normalize_picks": hf["norm_topk_prob"],
        },
    }


# --- llama: dense models --------------------------------------------------------------------------


def _llama_fields(config: Config) -> dict[str, Any]:
    return {"intermediate_size": config.model.mlp_dim}


def _llama_sections(hf: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    return {"model": {"mlp_dim": hf["intermediate_size"]}}


_FIXED = {"hidden_act": "silu", "tie_word_embeddings": False}

LAYOUTS = {
    "qwen2_moe": Layout(
        name="qwen2_moe",
        model_type="qwen2_moe",
        architecture="Qwen2MoeForCausalLM",
        attention_norm="input_layernorm",
        mlp_norm="post_attention_layernorm",
        fixed=_FIXED
        | {
            "decoder_sparse_step": 1,
            "use_sliding_window": False,
        },
        bias_field="qkv_bias",
        fused_experts=True,
        mlp_counts=(
            *("moe_intermediate_size", "shared_expert_intermediate_size"),
            *("num_experts", "num_experts_per_tok", "intermediate_size"),
        ),
        mlp_flags=("norm_topk_prob",),
        mlp_lists=("mlp_only_layers",),
        mlp_fields=_qwen2_moe_fields,
        mlp_sections=_qwen2_moe_sections,
        mlp_tensors=_qwen2_moe_tensors,
    ),
    "emo": Layout(
        name="emo",
        model_type="emo",
        architecture="EmoForCausalLM",
        attention_norm="pre_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        fixed=_FIXED
        | {
            "attention_bias": False,
            "dense_mlp_bias": False,
            "always_active_experts": None,
            "always_active_experts_per_layer": None,
        },
        mlp_counts=(
            *("intermediate_size", "num_shared_experts"),
            *("num_experts", "num_experts_per_tok"),
        ),
        mlp_flags=("norm_topk_prob",),
        mlp_fields=_emo_fields,
        mlp_sections=_emo_sections,
        mlp_tensors=_emo_tensors,
    ),
    "glm4_moe": Layout(
        name="glm4_moe",
        model_type="glm4_moe",
        architecture="Glm4MoeForCausalLM",
        attention_norm="input_layernorm",
        mlp_norm="post_attention_layernorm",
        fixed=_FIXED | glm4_moe.FIXED,
        fused_experts=True,
        mlp_counts=(
            *("moe_intermediate_size", "n_routed_experts"),
            *("n_shared_experts", "num_experts_per_tok"),
            *("first_k_dense_replace", "intermediate_size"),
        ),
        mlp_flags=("norm_topk_prob",),
        mlp_fields=glm4_moe.glm4_moe_fields,
        mlp_sections=glm4_moe.glm4_moe_sections,
        mlp_tensors=glm4_moe.glm4_moe_tensors,
    ),
    "mixtral": Layout(
        name="mixtral",
        model_type="mixtral",
        architecture="MixtralForCausalLM",
        attention_norm="input_layernorm",
        mlp_norm="post_attention_layernorm",
        fixed=_FIXED,
        fused_experts=True,
        mlp_counts=("intermediate_size", "num_local_experts", "num_experts_per_tok"),
        mlp_fields=mixtral_fields,
        mlp_sections=mixtral_sections,
        mlp_tensors=mixtral_tensors,
    ),
    "llama": Layout(
        name="llama",
        dense=True,
        model_type="llama",
        architecture="LlamaForCausalLM",
        attention_norm="input_layernorm",
        mlp_norm="post_attention_layernorm",
        fixed=_FIXED | {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1},
        mlp_counts=("intermediate_size",),
        mlp_fields=_llama_fields,
        mlp_sections=_llama_sections,
        mlp_tensors=dense,
    ),
}


def layout_named(name: str) -> Layout:
    """The layout called `name`."""
    if name not in LAYOUTS:
        raise UsageError(f"layout {name!r}: must be one of {list(LAYOUTS)}")
    return LAYOUTS[name]


def layout_for(config: Config, name: str | None = None) -> Layout:
    """The layout of a model: by name, or by default one that stock transformers loads.

    For a mixture of experts that is `mixtral` or `glm4_moe` if it fits the model, otherwise
    `qwen2_moe`.

    Raises:
      UsageError: no such layout, or it does not support this kind of model.
    """
    dense = config.moe is None
    sigmoid = config.moe is not None and config.moe.gate == "sigmoid"
    of_experts = "mixtral" if is_mixtral(config) else "glm4_moe" if sigmoid else "qwen2_moe"
    layout = layout_named(name or ("llama" if dense else of_experts))
    if layout.dense != dense:
        kinds = {True: "dense models", False: "mixtures of experts"}
        fitting = [other.name for other in LAYOUTS.values() if other.dense == dense]
        raise UsageError(
            f"layout {layout.name!r} is for {kinds[layout.dense]}, and {config.name!r} is one of"
            f" the {kinds[dense]}; give layout {' or '.join(fitting)}, or none"
        )
    if config.moe is not None:
        glm4_moe.check_gate(layout.name, config)
    if layout.name == "mixtral" and not is_mixtral(config):
        raise UsageError(
            f"layout 'mixtral' is for models with moe.num_shared_experts = 0, moe.normalize_picks"
            f" and model.dense_layers = 0, which {config.name!r} is not; give layout qwen2_moe or"
            " emo"
        )
    if layout.name != "emo" and config.moe is not None and config.moe.experts_per_layer:
        raise UsageError(
            f"layout {layout.name!r} has one number of experts for all layers, and"
            f" {config.name!r} has {min(config.moe.experts_per_layer)} to"
            f" {max(config.moe.experts_per_layer)}; give layout emo"
        )
    if config.moe is not None and config.moe.expert_bias:
        raise UsageError(
            f"layout {layout.name!r} has no bias of the router's logits, and {config.name!r} has"
            f" moe.expert_bias = {config.moe.expert_bias:g}, as no layout can; use the run itself"
        )
    if config.moe is not None and config.moe.shared_picks:
        raise UsageError(
            f"layout {layout.name!r} has no router for shared experts, and {config.name!r} has"
            f" moe.shared_picks = {config.moe.shared_picks}, as no layout can; use the run itself"
        )
    return layout
