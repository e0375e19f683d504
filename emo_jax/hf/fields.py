"""Reads a Hugging Face config.json as transformers does: types checked, defaults filled in."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emo_jax.errors import HfFormatError, UsageError
from emo_jax.files.json_files import Fields, NotReadableError, is_integer, read_object
from emo_jax.hf.layouts import LAYOUTS, Layout


@dataclass(frozen=True, kw_only=True)
class _Architecture:
    """A class that computes what one of our layouts does, and what its config.json may omit.

    Attributes:
      absent: defaults of transformers' configuration class by field, the same in 4.57 and 5.24.
      rope_theta: likewise; None: must be given.
      windowed: a token sees only as many tokens as `sliding_window` states.
      half_rotated: so is a head unless `partial_rotary_factor` says otherwise.
    """

    name: str
    layout: str
    absent: Mapping[str, Any]
    rope_theta: float | None = 10_000.0
    windowed: bool = False
    half_rotated: bool = False


_ABSENT = {"initializer_range": 0.02, "rms_norm_eps": 1e-6}
_BY_MODEL_TYPE = {
    "qwen2_moe": _Architecture(
        name="Qwen2MoeForCausalLM",
        layout="qwen2_moe",
        absent=_ABSENT
        | {
            "vocab_size": 151_936,
            "hidden_size": 2048,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "max_position_embeddings": 32_768,
            "intermediate_size": 5632,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "qkv_bias": True,
        },
    ),
    "mixtral": _Architecture(
        name="MixtralForCausalLM",
        layout="mixtral",
        absent={
            "initializer_range": 0.02,
            "rms_norm_eps": 1e-5,
            "vocab_size": 32_000,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131_072,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
        rope_theta=1_000_000.0,
        windowed=True,
    ),
    "llama": _Architecture(
        name="LlamaForCausalLM",
        layout="llama",
        absent=_ABSENT
        | {
            "vocab_size": 32_000,
            "hidden_size": 4096,
            "intermediate_size": 11_008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "max_position_embeddings": 2048,
        },
        windowed=True,  # if a window is set, transformers' cache and vLLM apply it
    ),
    "mistral": _Architecture(
        name="MistralForCausalLM",
        layout="llama",
        absent=_ABSENT
        | {
            "vocab_size": 32_000,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131_072,
            "sliding_window": 4096,
        },
        windowed=True,
    ),
    "glm4_moe": _Architecture(
        name="Glm4MoeForCausalLM",
        layout="glm4_moe",
        absent=_ABSENT
        | {
            "vocab_size": 151_552,
            "hidden_size": 4096,
            "num_hidden_layers": 46,
            "num_attention_heads": 96,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5,
            "intermediate_size": 10_944,
            "moe_intermediate_size": 1408,
            "n_routed_experts": 128,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "first_k_dense_replace": 1,
        },
        half_rotated=True,
    ),
    # The released models: transformers has no such class.
    "emo": _Architecture(
        name="EmoForCausalLM", layout="emo", absent={"initializer_range": 0.02}, rope_theta=None
    ),
}
# Fields of any transformers class that change what it computes if set to other values.
_OF_ANY = {
    "is_causal": (True, None),
    "attention_chunk_size": (None,),
    "per_layer_config": (None,),
    "kv_sharing_modes": (None,),
    "quantization_config": (None,),
    "transformers_weights": (None,),  # names another file than the one read here
}
_ALIASES = {"hidden_act": ("swish",)}  # equivalents of fixed values
_MAY_BE_NONE = ("num_shared_experts", "first_k_dense_replace")  # counts that may be 0


def is_hugging_face(folder: Path) -> bool:
    """Whether a folder's config.json is for transformers rather than that of a run.

    Raises:
      UsageError: there is no config.json, or it is damaged.
    """
    advice = "copy it again, or give another folder"
    try:
        return _is_of_transformers(
            read_object(folder / "config.json", error=UsageError, advice=advice)
        )
    except FileNotFoundError:
        raise UsageError(f"{folder}: no config.json; {advice}") from None


def _is_of_transformers(hf: Mapping[str, Any]) -> bool:
    return "architectures" in hf or "model_type" in hf


def read_fields(hf: Mapping[str, Any], where: Path) -> tuple[Layout, dict[str, Any]]:
    """The layout of a folder, and the fields that determine which model of that layout it is.

    Args:
      hf: contents of config.json.
      where: the file, for messages.

    Returns:
      The layout, and all fields of `hf` with those of the model checked and completed.
      `rope_theta`, `num_key_value_heads` and `head_dim` are present however the file gives them.

    Raises:
      HfFormatError: another architecture, a field that is missing or has the wrong type, or one
        that makes the model compute something none of ours does.
      UsageError: it is the config of a run.
    """
    architecture = _architecture(hf, where)
    layout = LAYOUTS[architecture.layout]
    fields = Fields({**architecture.absent, **hf})
    try:
        found = _found(fields, layout)
        found["rope_theta"] = _rope_theta(fields, architecture)
        _check_attention(fields, found, architecture)
    except NotReadableError as error:
        raise HfFormatError(
            f"{where}: {error}; copy the file again, or set what the model was trained with"
        ) from None
    allowed = {name: (value, *_ALIASES.get(name, ())) for name, value in layout.fixed.items()}
    for name, values in (allowed | _OF_ANY).items():
        said = hf.get(name, architecture.absent.get(name, values[0]))
        if not any(type(said) is type(value) and said == value for value in values):
            raise HfFormatError(
                f"{where}: {name} = {_short(said)}, but only {values[0]!r} can be imported: this"
                " model computes another function"
            )
    return layout, {**hf, **found}


def _architecture(hf: Mapping[str, Any], where: Path) -> _Architecture:
    if not _is_of_transformers(hf) and {"model", "train"} <= hf.keys():
        raise UsageError(
            f"{where.parent}: a run's workdir, not a Hugging Face folder; make one with emo export"
            f" {where.parent} --output FOLDER"
        )
    kind, names = hf.get("model_type"), hf.get("architectures")
    found = _BY_MODEL_TYPE.get(kind) if isinstance(kind, str) else None
    # transformers uses model_type; architectures shows whether the model has another head.
    if found is None or (names is not None and names != [found.name]):
        known = ", ".join(f"{kind} ({one.name})" for kind, one in _BY_MODEL_TYPE.items())
        raise HfFormatError(
            f"{where}: model_type {_short(kind)} with architectures {_short(names)} cannot be"
            f" imported; supported: {known}"
        )
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _found(fields: Fields, layout: Layout) -> dict[str, Any]:
    """The fields of the model except those of its rotary embedding."""
    counts = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    out: dict[str, Any] = {
        name: fields.integer(name, low=1) for name in (*counts, "max_position_embeddings")
    }
    out |= {
        name: fields.integer(name, low=0 if name in _MAY_BE_NONE else 1)
        for name in layout.mlp_counts
    }
    out |= {name: fields.flag(name, False) for name in layout.mlp_flags}
    for name in layout.mlp_lists:
        values = fields.items(name, None) or []
        if not all(map(is_integer, values)):
            raise NotReadableError(f"{name} = {_short(values)}: all must be integers")
        out[name] = values
    out |= {name: fields.number(name) for name in ("rms_norm_eps", "initializer_range")}
    if layout.bias_field:
        out[layout.bias_field] = fields.flag(layout.bias_field)
    heads = out["num_attention_heads"]
    for name, value in (
        ("num_key_value_heads", heads),
        ("head_dim", out["hidden_size"] // heads),
    ):
        given = fields.integer(name, None, low=1)
        out[name] = value if given is None else given
    return out


def _rope_theta(fields: Fields, architecture: _Architecture) -> float:
    """Base of the rotary embedding: at top level (transformers 4) or in rope_parameters (5)."""
    places = [fields]
    for name in ("rope_parameters", "rope_scaling"):
        if fields.value(name, None) is None:
            continue
        rope = fields.inner(name)
        kinds = [rope.value(key) for key in ("rope_type", "type") if key in rope]
        inner = any(isinstance(rope.value(key), dict) for key in rope)
        if inner or any(kind != "default" for kind in kinds):
            raise NotReadableError(
                f"{name} = {_short(fields.value(name))}: a scaled rotary embedding cannot be"
                " imported"
            )
        places.append(rope)
    rotated = [place.number("partial_rotary_factor", None) for place in places]
    if any(part not in (None, 1) for part in rotated) or (
        architecture.half_rotated and 1 not in rotated
    ):
        raise NotReadableError("partial_rotary_factor: only whole heads can be rotated")
    thetas = [place.number("rope_theta", None) for place in places]
    thetas = [float(theta) for theta in thetas if theta is not None]
    if not thetas and architecture.rope_theta is not None:
        return architecture.rope_theta
    if len(set(thetas)) != 1:
        raise NotReadableError(f"rope_theta must be given once, or twice alike (found {thetas})")
    return thetas[0]


def _check_attention(fields: Fields, found: Mapping[str, Any], architecture: _Architecture) -> None:
    """Rejects a model whose tokens do not see all earlier ones."""
    longest = found["max_position_embeddings"]
    window = fields.integer("sliding_window", None) if architecture.windowed else None
    if window is not None and window < longest:
        raise NotReadableError(
            f"sliding_window = {window} is below max_position_embeddings = {longest}: a model in"
            " which a token does not see all before it cannot be imported"
        )
    types = fields.items("layer_types", None)
    if any(kind != "full_attention" for kind in types or ()):
        raise NotReadableError(f"layer_types = {_short(types)}: all must be full_attention")
