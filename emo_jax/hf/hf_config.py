"""config.json of a Hugging Face folder: written from a `Config`, and read back as one."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emo_jax import config as config_lib
from emo_jax.config import Config
from emo_jax.data.tokenizer_base import Tokenizer
from emo_jax.errors import ConfigError, HfFormatError, UsageError
from emo_jax.files.json_files import is_integer
from emo_jax.hf.layouts import LAYOUTS, Layout

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
        # Without a version 4.57 takes every folder of over 100 000 tokens for one of Mistral's
        # faulty ones, and advises to split text another way.
        "transformers_version": "4.57.1",
        "use_cache": True,
        OUR_SECTION: config_lib.to_dict(config),
    }
    if config.moe is None:
        return fields
    # qwen2_moe also wants the width of dense layers, of which there are none.
    return {"intermediate_size": config.moe.expert_dim, "output_router_logits": False} | fields


def ids_for_others(tokenizer: Tokenizer) -> dict[str, int | None]:
    """`SPECIAL_IDS` of a tokenizer: a beginning only where documents began with it."""
    own = (tokenizer.first_id, tokenizer.eos_id, tokenizer.pad_id)
    return dict(zip(SPECIAL_IDS, own, strict=True))


def special_ids(folder: Path) -> dict[str, int | None]:
    """`bos_token_id`, `eos_token_id` and `pad_token_id`, as a folder's config.json says."""
    found = load_json(folder / "config.json")
    ids = {name: found.get(name) for name in SPECIAL_IDS}
    return {name: i if is_integer(i) else None for name, i in ids.items()}


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the folder."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HfFormatError(f"{path}: missing; is this a Hugging Face model folder?") from None
    except (OSError, ValueError) as error:
        raise HfFormatError(f"{path}: not readable as JSON ({error}); copy it again") from None
    if not isinstance(value, dict):
        raise HfFormatError(f"{path}: must hold a JSON object; copy it again")
    return value


def layout_of(hf: Mapping[str, Any], where: Path) -> Layout:
    """The layout of a folder, by its model_type; and every fixed field as we need it."""
    if "architectures" not in hf and {"model", "train"} <= hf.keys():
        raise UsageError(
            f"{where.parent}: a run's workdir, not a Hugging Face folder; make one with emo export"
            f" {where.parent} --output FOLDER"
        )
    layout = LAYOUTS.get(hf.get("model_type", ""))
    if layout is None or layout.architecture not in (hf.get("architectures") or []):
        supported = ", ".join(f"{x.model_type} ({x.architecture})" for x in LAYOUTS.values())
        raise HfFormatError(
            f"{where}: model_type {hf.get('model_type')!r} with architectures "
            f"{hf.get('architectures')!r} cannot be imported; supported: {supported}"
        )
    for name, value in layout.fixed.items():
        found = hf.get(name, value)
        if found != value and not (found is None and value == []):
            raise HfFormatError(
                f"{where}: {name} = {found!r}, but only {value!r} can be imported: this model "
                "computes another function"
            )
    if layout.bias_field and not isinstance(hf.get(layout.bias_field, True), bool):
        raise HfFormatError(
            f"{where}: {layout.bias_field} = {hf[layout.bias_field]!r}, must be true or false; copy"
            " the file again"
        )
    return layout


def has_biases(hf: Mapping[str, Any], layout: Layout) -> bool:
    """Whether query, key and value of a folder have biases, which must then be zeros."""
    return layout.bias_field is not None and hf.get(layout.bias_field, True)


def vocab_size(hf: Mapping[str, Any], rows: int) -> int:
    """Ids of the vocabulary, given the rows of the embedding table.

    The released models exist with 100278 rows (the tokenizer's) and 100352 (rounded up), and a
    config.json may say the other number (SPEC 9.1): the smaller one is the tokenizer's.
    """
    said = hf["vocab_size"]
    return min(said, rows) if _round_up(said) == _round_up(rows) else said


def _round_up(rows: int) -> int:
    return math.ceil(rows / REFERENCE_VOCAB_MULTIPLE) * REFERENCE_VOCAB_MULTIPLE


def vocab_rows(size: int) -> tuple[int, int]:
    """Rows that the vocabulary tensors of a folder may have."""
    return size, _round_up(size)


def from_hf(hf: Mapping[str, Any], layout: Layout, where: Path, *, name: str) -> Config:
    """The run's own config if the folder has it, else one made of the folder's fields.

    Args:
      hf: config.json, its vocab_size settled by `vocab_size`.
      layout: `layout_of(hf)`.
      where: the file, for messages.
      name: `config.name` of a folder that is not ours.

    Raises:
      HfFormatError: a field is missing, is impossible, or contradicts our own section.
    """
    hf = dict(hf) | {"rope_theta": _rope_theta(hf, where)}
    try:
        if OUR_SECTION in hf:
            config = config_lib.from_config_dict(hf[OUR_SECTION])
        else:
            config = config_lib.from_config_dict(_defaults(hf, layout) | {"name": name})
        if (config.moe is None) != layout.dense:
            raise ConfigError(f"{config.name!r} is no model for layout {layout.name}")
        expected = layout.shape_fields(config)
    except KeyError as error:
        raise HfFormatError(f"{where}: field {error} is missing; copy the file again") from None
    except (ConfigError, TypeError, ZeroDivisionError, AttributeError) as error:
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


def _rope_theta(hf: Mapping[str, Any], where: Path) -> float:
    """Base of the rotary embedding: top level (transformers 4) or rope_parameters (5)."""
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    thetas = [x["rope_theta"] for x in (hf, rope) if x.get("rope_theta") is not None]
    if kind != "default" or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise HfFormatError(f"{where}: rotary embedding {rope!r} is scaled: cannot be imported")
    if len(set(thetas)) != 1:
        raise HfFormatError(
            f"{where}: rope_theta must be given once, or twice alike (found {thetas}): set it to "
            "the value that the model was trained with"
        )
    return float(thetas[0])


def _defaults(hf: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """Fields of a `Config` for a folder that is not ours; training fields get the least value."""
    mlp = layout.mlp_sections(hf)
    model = {
        "vocab_size": hf["vocab_size"],
        "num_layers": hf["num_hidden_layers"],
        "embed_dim": hf["hidden_size"],
        "num_heads": hf["num_attention_heads"],
        "head_dim": hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
        "rope_theta": hf["rope_theta"],
        "norm_eps": hf["rms_norm_eps"],
        "init_std": hf.get("initializer_range") or 0.02,
        "compute_dtype": "float32",
    }
    return {
        "model": model | mlp.get("model", {}),
        "moe": mlp.get("moe"),
        "data": {"seq_len": hf["max_position_embeddings"]},
        "optimizer": {"warmup_steps": 0},
        "train": {"steps": 1, "batch_size": 1},
    }
