"""The config.json of a Hugging Face folder: written from a `Config`, and read back as one."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emo_jax.config import Config, from_config_dict, portable, to_dict
from emo_jax.errors import ConfigError, HfFormatError, UsageError
from emo_jax.files import json_files
from emo_jax.files.inside import check_own_files
from emo_jax.files.json_files import is_integer
from emo_jax.hf.layouts import Layout, layout_for
from emo_jax.tokenizer.base import Tokenizer

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
OUR_SECTION = "emo_jax"  # the whole config of the run, so that an import restores it
REFERENCE_VOCAB_MULTIPLE = 128  # the released tables are rounded up to this (SPEC 9.1)


def to_hf(layout: Layout, config: Config, *, special_ids: Mapping[str, int | None]) -> dict:
    """Contents of config.json; `special_ids` are its `SPECIAL_IDS`."""
    fields = {
        "architectures": [layout.architecture],
        "model_type": layout.model_type,
        **layout.shape_fields(config),
        **layout.fixed,
        **({layout.bias_field: True} if layout.bias_field else {}),
        "attention_dropout": 0.0,
        **special_ids,
        "initializer_range": config.model.init_std,
        "max_position_embeddings": config.data.seq_len,
        # transformers 4 reads rope_theta, transformers 5 rope_parameters.
        "rope_parameters": {"rope_type": "default", "rope_theta": config.model.rope_theta},
        "torch_dtype": "float32",
        # Without a version, 4.57 takes every folder with over 100 000 tokens for one of Mistral's
        # faulty ones, and advises splitting text differently.
        "transformers_version": "4.57.1",
        "use_cache": True,
        OUR_SECTION: to_dict(config),
    }
    if config.moe is None:
        return fields
    # qwen2_moe also requires the width of dense layers, even where there are none.
    return {"intermediate_size": config.moe.expert_dim, "output_router_logits": False} | fields


def ids_for_others(tokenizer: Tokenizer) -> dict[str, int | None]:
    """`SPECIAL_IDS` of a tokenizer; BOS only if documents began with it."""
    own = (tokenizer.first_id, tokenizer.eos_id, tokenizer.pad_id)
    return dict(zip(SPECIAL_IDS, own, strict=True))


def special_ids(folder: Path) -> dict[str, int | None]:
    """`bos_token_id`, `eos_token_id` and `pad_token_id` from a folder's config.json."""
    found = load_json(folder / "config.json")
    ids = {name: found.get(name) for name in SPECIAL_IDS}
    return {name: i if is_integer(i) else None for name, i in ids.items()}


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the folder; links that lead out of the folder are rejected."""
    check_own_files(path.parent, [path.name], error=HfFormatError)
    try:
        return json_files.read_object(path, error=HfFormatError, advice="copy it again")
    except FileNotFoundError:
        raise HfFormatError(f"{path}: missing; is this a Hugging Face model folder?") from None


def vocab_size(hf: Mapping[str, Any], rows: int) -> int:
    """The number of vocabulary ids, given the rows of the embedding table.

    The released models exist with 100278 rows (the tokenizer's) and 100352 (rounded up), and a
    config.json may state the other number (SPEC 9.1): the smaller one is the tokenizer's.
    """
    said = hf["vocab_size"]
    return min(said, rows) if _round_up(said) == _round_up(rows) else said


def _round_up(rows: int) -> int:
    return math.ceil(rows / REFERENCE_VOCAB_MULTIPLE) * REFERENCE_VOCAB_MULTIPLE


def vocab_rows(size: int) -> tuple[int, int]:
    """The row counts that the vocabulary tensors of a folder may have."""
    return size, _round_up(size)


def from_hf(hf: Mapping[str, Any], layout: Layout, where: Path, *, name: str) -> Config:
    """The run's own config if the folder has it, otherwise one made from the folder's fields.

    The run's own is returned without what `config.portable` drops.

    Args:
      hf: what `read_fields` returns with `layout`, its vocab_size settled by `vocab_size`.
      layout: layout of the folder.
      where: the file, for messages.
      name: `config.name` for a folder that is not ours.

    Raises:
      HfFormatError: a field is impossible, or contradicts our own section.
    """
    try:
        if OUR_SECTION in hf:
            config = portable(from_config_dict(hf[OUR_SECTION]))
        else:
            config = from_config_dict(_defaults(hf, layout) | {"name": name})
        if (config.moe is None) != layout.dense:
            raise ConfigError(f"{config.name!r} is no model for layout {layout.name}")
        layout_for(config, layout.name)
        expected = layout.shape_fields(config)
    except (UsageError, TypeError, ZeroDivisionError, AttributeError) as error:
        raise HfFormatError(f"{where}: no model of ours has these values: {error}") from None
    for field, value in expected.items():
        if hf.get(field) != value:
            raise HfFormatError(
                f"{where}: {field} = {hf.get(field)!r}, but {value!r} follows from "
                + (
                    f"its section {OUR_SECTION!r}; delete that section to import with defaults"
                    if OUR_SECTION in hf
                    else "its other fields; only such models can be imported"
                )
            )
    return config


def _defaults(hf: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """Fields of a `Config` for a folder that is not ours; training fields get minimal values."""
    mlp = layout.mlp_sections(hf)
    heads, kv_heads = hf["num_attention_heads"], hf["num_key_value_heads"]
    model = {
        "vocab_size": hf["vocab_size"],
        "num_layers": hf["num_hidden_layers"],
        "embed_dim": hf["hidden_size"],
        "num_heads": heads,
        "num_kv_heads": 0 if kv_heads == heads else kv_heads,
        "head_dim": hf["head_dim"],
        "rope_theta": hf["rope_theta"],
        "norm_eps": hf["rms_norm_eps"],
        "init_std": hf["initializer_range"] or 0.02,
        "compute_dtype": "float32",
    }
    return {
        "model": model | mlp.get("model", {}),
        "moe": mlp.get("moe"),
        "data": {"seq_len": hf["max_position_embeddings"]},
        "optimizer": {"warmup_steps": 0},
        "train": {"steps": 1, "batch_size": 1},
    }
