"""README.md of an exported folder: facts only."""

from collections.abc import Mapping
from typing import Any

from emo_jax.config import Config
from emo_jax.hf.layouts import Layout
from emo_jax.hf.tree import count_parameters, moe_of

_HOW_TO_LOAD = {
    "qwen2_moe": """\
```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("PATH")
```

The architecture is Qwen2-MoE's, so no remote code is needed. The shared experts are its shared
expert, with `down_proj` doubled behind a gate that is always one half: the same function, exactly.
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
_MANY_SHARED = """\
The released code for `emo` gives several shared experts weights that add up to one; this model was
trained with a weight of one each. Only emo_jax reads this folder as it was trained.
"""
_WIDE_HEADS = """\
heads × head_dim is not the width here, which transformers reads from version 5 on.
"""


def model_card(config: Config, layout: Layout, facts: Mapping[str, Any] | None) -> str:
    """Markdown text; `facts` (step, losses, …) may be nested and are listed as they are."""
    model, moe = config.model, moe_of(config)
    total, active = count_parameters(config)
    rows = {
        "layout": layout.name,
        "parameters": f"{total:,}",
        "active parameters for one token": f"{active:,}",
        "layers": model.num_layers,
        "width": model.embed_dim,
        "attention heads × head_dim": f"{model.num_heads} × {model.head_dim}",
        "experts": f"{moe.num_routed_experts} routed + {moe.num_shared_experts} shared",
        "experts of one token": f"{moe.num_routed_picks} routed + {moe.num_shared_experts} shared",
        "expert hidden size": moe.expert_dim,
        "vocabulary": model.vocab_size,
        "stored as": "float32",
        "config moe.pool.kind": moe.pool.kind,
        "config model.attention": model.attention,
        "config data.seq_len": config.data.seq_len,
    }
    parts = [
        f"---\nlibrary_name: {'transformers' if layout.name == 'qwen2_moe' else 'emo_jax'}\n---",
        f"# {config.name}\n\nA mixture-of-experts language model, exported by emo_jax.",
        _table(rows),
    ]
    if facts:
        parts.append("## Training\n\n" + _table(_flat(facts)))
    parts.append("## Loading\n\n" + _HOW_TO_LOAD[layout.name].strip())
    if layout.name == "emo" and moe.num_shared_experts > 1:
        parts.append(_MANY_SHARED.strip())
    if layout.name == "qwen2_moe" and model.num_heads * model.head_dim != model.embed_dim:
        parts.append(_WIDE_HEADS.strip())
    return "\n\n".join(parts) + "\n"


def _table(rows: Mapping[str, Any]) -> str:
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _flat(facts: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            out.update(_flat(value, f"{path}{name} / "))
        else:
            out[path + str(name)] = f"{value:.4f}" if isinstance(value, float) else value
    return out
