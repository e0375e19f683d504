"""The README.md of an exported folder: facts only."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from emo_jax.config import Config, to_dict
from emo_jax.files.trees import flatten
from emo_jax.hf.layouts import Layout
from emo_jax.model.params import count_parameters

_STOCK = """\
```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("PATH")
```
"""
_HOW_TO_LOAD = {
    "qwen2_moe": f"""{_STOCK}
The architecture is Qwen2-MoE's, so no remote code is needed. The shared experts are its shared
expert, with `down_proj` doubled behind a gate that is always one half; query, key and value have
biases of zero: the same function, exactly. Keep `shared_expert_gate` and these biases frozen where
you train it further, or emo_jax cannot import what comes out.
""",
    "glm4_moe": f"""{_STOCK}
The architecture is GLM-4.5's, so no remote code is needed: the router's sigmoids, and the bias
that chooses without being in the weights, are its own.
""",
    "mixtral": f"""{_STOCK}
The architecture is Mixtral's, so no remote code is needed.
""",
    "llama": f"""{_STOCK}
The architecture is Llama's, so no remote code is needed.
""",
    "emo": """\
```python
from emo_jax.hf import import_model

params, config = import_model("PATH")
```

Tensor names are those of the checkpoints released with the EMO paper (arXiv 2605.06663). Engines
need code for model_type `emo`, which this folder does not bring; `emo export --layout qwen2_moe`
writes a folder that does without.
""",
}
_BASE_MODEL = """\
This is a base model: it goes on with a text, and was not trained to follow a chat template (there
is none in the tokenizer's files).
"""
_MANY_SHARED = """\
The released code for `emo` gives several shared experts weights that add up to one; this model was
trained with a weight of one each. Only emo_jax reads this folder as it was trained.
"""
_WIDE_HEADS = """\
heads × head_dim is not the width here, which transformers reads for this architecture from version
5 on.
"""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a model card states besides the shape.

    Attributes:
      facts: facts about the training, such as step and losses.
      versions: versions of the libraries that wrote the checkpoint.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def model_card(config: Config, layout: Layout, card: Card | None = None) -> str:
    """The model card in Markdown; nested facts are flattened into one table."""
    model, card = config.model, card or Card()
    kind = "mixture-of-experts" if config.moe else "dense"
    stock = layout.name != "emo"
    parts = [
        f"---\nlibrary_name: {'transformers' if stock else 'emo_jax'}\n"
        "pipeline_tag: text-generation\n---",
        f"# {config.name}\n\nA {kind} language model, exported by emo_jax.",
        _BASE_MODEL.strip(),
        _table(_shape(config, layout)),
    ]
    if card.facts:
        parts.append("## Training\n\n" + _table(_flat(card.facts)))
    if card.versions:
        parts.append("## Library versions\n\n" + _table(card.versions))
    parts.append("## Loading\n\n" + _HOW_TO_LOAD[layout.name].strip())
    if layout.name == "emo" and config.moe and config.moe.num_shared_experts > 1:
        parts.append(_MANY_SHARED.strip())
    if layout.name == "qwen2_moe" and model.num_heads * model.head_dim != model.embed_dim:
        parts.append(_WIDE_HEADS.strip())
    text = json.dumps(to_dict(config), indent=2)
    parts.append(f"## Config of the run\n\n```json\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def _shape(config: Config, layout: Layout) -> dict[str, Any]:
    model, moe = config.model, config.moe
    total, active = count_parameters(config)
    rows: dict[str, Any] = {
        "layout": layout.name,
        "parameters": f"{total:,}",
        "active parameters for one token": f"{active:,}",
        "layers": model.num_layers,
        **(
            {"first layers without experts": f"{model.dense_layers}, hidden size {model.mlp_dim}"}
            if model.dense_layers
            else {}
        ),
        "width": model.embed_dim,
        "attention heads × head_dim": f"{model.num_heads} × {model.head_dim}",
        **({"heads of keys and values": model.num_kv_heads} if model.num_kv_heads else {}),
    }
    if moe is None:
        rows["hidden size"] = model.mlp_dim
    else:
        shared = moe.num_shared_experts
        rows |= {
            "experts": f"{moe.num_routed_experts} routed + {shared} shared",
            "experts of one token": f"{moe.num_routed_picks} routed + {shared} shared",
            "expert hidden size": moe.expert_dim,
        }
    return rows | {"vocabulary": model.vocab_size, "stored as": "float32"}


def _table(rows: Mapping[str, Any]) -> str:
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: f"{value:.4f}" if isinstance(value, float) else value
        for name, value in flatten(facts, " / ").items()
    }
